"""Who samples and who writes for ``sgsd bank build``. A model that does both in process is loaded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from sgsd.bank.writing import Writer
from sgsd.commands.bank_settings import BuildSettings
from sgsd.commands.settings import hub_or_cache
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.rollouts import Sampler


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
        for engine, package, extra in (
            (settings.engine, "openai", "server"),
            (settings.engine, "vllm", "vllm"),
            (settings.writer_engine, "openai", "server"),
            (settings.writer_engine, "vllm", "vllm"),
        ):
            if engine == package and importlib.util.find_spec(package) is None:
                raise ConfigError(f"the package {package} is not installed", remedy=f"run: pip install 'sgsd[{extra}]'")
        if settings.writer_engine == "transformers" and importlib.util.find_spec("llguidance") is None:
            raise ConfigError("the package llguidance is not installed", remedy="run: pip install 'sgsd[writer]'")

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
            return VLLMSampler(name, self.tokenizer(name), **self._vllm_options(), max_model_len=room, **sampling)

    def writer(self) -> Writer:
        """Who writes candidates and merges them."""
        settings = self._settings
        name = str(settings.writer_model)
        options: dict[str, Any] = {
            "temperature": settings.writer_temperature,
            "chat_template_kwargs": settings.writer_chat_template_kwargs,
        }
        if settings.writer_engine == "transformers":
            from sgsd.engines.writers import TransformersWriter

            return TransformersWriter(
                self._model(name),
                self.tokenizer(name),
                name=f"transformers {name}",
                batch_size=settings.writer_batch_size or 1,
                **options,
            )
        if settings.writer_engine == "openai":
            from sgsd.engines.server_writer import ServerWriter

            served = settings.served_model if settings.writer_model == settings.model_name_or_path else None
            return ServerWriter(served or name, base_url=str(settings.writer_base_url), **self._patience(), **options)
        raise ConfigError("engine vllm does not write yet", expected="writer_engine transformers or openai")

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
