"""Who samples and who writes for ``sgsd bank build``. A model that does both in process is loaded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sgsd.bank.writing import Writer
from sgsd.cli.bank_settings import BuildSettings
from sgsd.cli.settings import hub_or_cache
from sgsd.engines.budget import BudgetWriter
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.rollouts import Sampler

if TYPE_CHECKING:
    from sgsd.engines.vllm_offline import VLLMEngine


class Engines:
    """Samplers and writers by the settings.

    Args:
        settings: the build's.

    Raises:
        ConfigError: a package that the engine needs is missing.
    """

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings
        self._tokenizers: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        self._vllm: VLLMEngine | None = None
        for engine, package, extra in (
            (settings.engine, "openai", "server"),
            (settings.engine, "vllm", "vllm"),
            (settings.writer_engine, "openai", "server"),
            (settings.writer_engine, "vllm", "vllm"),
        ):
            if engine == package and importlib.util.find_spec(package) is None:
                raise ConfigError(f"the package {package} is not installed", remedy=f"run: pip install 'sgsd[{extra}]'")

    def tokenizer(self, name: str) -> Any:
        """A model's tokenizer."""
        if name not in self._tokenizers:
            with hub_or_cache(name):
                self._tokenizers[name] = load_tokenizer(name, trust_remote_code=self._settings.trust_remote_code)
        return self._tokenizers[name]

    def context(self) -> int | None:
        """Tokens that the sampled model takes; ``None`` where only the engine knows."""
        if self._settings.engine != "transformers":
            return None
        return self._model(str(self._settings.model_name_or_path)).config.get_text_config().max_position_embeddings

    def sampler(self, *, room: int, progress: Callable[[int], object]) -> Sampler:
        """Who draws the rollouts.

        Args:
            room: the most tokens that a prompt and its completion may have together.
            progress: called with the number done of the batch under way.
        """
        settings = self._settings
        name = str(settings.model_name_or_path)
        sampling: dict[str, Any] = {
            "max_new_tokens": settings.max_completion_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "progress": progress,
        }
        if settings.engine == "transformers":
            return TransformersSampler(
                self._model(name), self.tokenizer(name), batch_size=settings.batch_size or 1, **sampling
            )
        if settings.engine == "openai":
            from sgsd.engines.servers import OpenAISampler

            return OpenAISampler(
                settings.served_model or name,
                self.tokenizer(name),
                base_url=str(settings.base_url),
                **self._patience(),
                **sampling,
            )
        from sgsd.engines.vllm_offline import VLLMSampler

        with hub_or_cache(name):
            options = {**self._vllm_options(), "max_model_len": self._room(room)}
            sampler = VLLMSampler(name, self.tokenizer(name), **options, **sampling)
        self._vllm = sampler.engine
        return sampler

    def writer(self, *, spent: int) -> Writer:
        """Who writes candidates and merges them.

        Args:
            spent: tokens of the budget that are gone.
        """
        writer = self._writer()
        budget = self._settings.token_budget
        return writer if budget is None else BudgetWriter(writer, budget, spent=spent)

    def _writer(self) -> Writer:
        settings = self._settings
        name = str(settings.writer_model)
        options: dict[str, Any] = {
            "temperature": settings.writer_temperature,
            "chat_template_kwargs": settings.writer_chat_template_kwargs,
        }
        label = f"{settings.writer_engine} {name}"
        if settings.writer_engine == "openai":
            from sgsd.engines.server_writer import ServerWriter

            served = settings.served_model if settings.writer_model == settings.model_name_or_path else None
            return ServerWriter(served or name, base_url=str(settings.writer_base_url), **self._patience(), **options)
        if settings.writer_engine == "vllm":
            from sgsd.engines.vllm_offline import VLLMEngine, VLLMWriter

            if self._vllm is None or name != settings.model_name_or_path:
                self._vllm = None  # one at a time fits more machines than two
                with hub_or_cache(name):
                    self._vllm = VLLMEngine(name, **self._vllm_options())
            return VLLMWriter(self._vllm, self.tokenizer(name), name=label, **options)
        from sgsd.engines.writers import TransformersWriter

        size = settings.writer_batch_size or 1
        return TransformersWriter(self._model(name), self.tokenizer(name), name=label, batch_size=size, **options)

    def _model(self, name: str) -> Any:
        if name not in self._models:
            settings = self._settings
            self._models.clear()  # one at a time fits more machines than two
            with hub_or_cache(name):
                self._models[name] = load_model(
                    name,
                    dtype=settings.dtype or "float32",
                    device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
                    trust_remote_code=settings.trust_remote_code,
                )
        return self._models[name]

    def _patience(self) -> dict[str, Any]:
        return {name: vars(self._settings)[name] for name in ("concurrency", "timeout", "retries")}

    def _vllm_options(self) -> dict[str, Any]:
        more = {"trust_remote_code": True} if self._settings.trust_remote_code else {}
        return {"dtype": self._settings.dtype or "auto", **more}

    def _room(self, room: int) -> int | None:
        """The context to reserve for rollouts; the model's own where it goes on to write, which takes more."""
        settings = self._settings
        writes = settings.writer_engine == "vllm" and settings.writer_model == settings.model_name_or_path
        return None if writes else room
