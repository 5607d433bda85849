"""Samplers and writers of ``sgsd eval`` and ``sgsd bank build``: transformers or vLLM in process, or a server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sgsd.bank.writing import Writer
from sgsd.cli.settings import hub_or_cache
from sgsd.engines.generation import TransformersSampler, context_length
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.rollouts import Sampler

if TYPE_CHECKING:
    from sgsd.engines.vllm_offline import VLLMEngine, VLLMSampler


@dataclass
class Engines:
    """The samplers and writers of one command. A model that samples and writes in process is loaded once.

    Attributes:
        engine: ``transformers``, ``vllm`` or ``openai``.
        model: hub name, folder or ``local:NAME``.
        dtype: of the weights; ``None`` is float32 for transformers, and ``auto`` for vLLM.
        device: of transformers; ``None`` is the GPU if there is one.
        trust_remote_code: run code that comes with the model.
        server: options of the server's client, such as base_url and concurrency.
        served_model: the name of the model on the server; ``None`` means ``model``.
    """

    engine: str
    model: str
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    server: Mapping[str, Any] = field(default_factory=dict)
    served_model: str | None = None
    _tokenizers: dict[str, Any] = field(default_factory=dict, init=False)
    _loaded: tuple[str, Any] | None = field(default=None, init=False)
    _sampler: VLLMSampler | None = field(default=None, init=False)
    _vllm: tuple[str, VLLMEngine] | None = field(default=None, init=False)

    def tokenizer(self, name: str | None = None) -> Any:
        """The tokenizer of a model, by default of the model to sample from."""
        name = name or self.model
        if name not in self._tokenizers:
            with hub_or_cache(name):
                self._tokenizers[name] = load_tokenizer(name, trust_remote_code=self.trust_remote_code)
        return self._tokenizers[name]

    def weights(self, name: str | None = None) -> Any:
        """A model of transformers on its device. Only the latest model is kept, to save memory."""
        name = name or self.model
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            with hub_or_cache(name):
                made = load_model(
                    name, dtype=self.dtype or "float32", device=device, trust_remote_code=self.trust_remote_code
                )
            self._loaded = name, made
        return self._loaded[1]

    def context(self) -> int | None:
        """The context length in tokens; ``None`` if there is no limit, or only the engine knows it."""
        return context_length(self.weights().config) if self.engine == "transformers" else None

    def sampler(
        self,
        sampling: Mapping[str, Any],
        *,
        batch_size: int,
        max_length: int | None,
        progress: Callable[[int], object],
    ) -> Sampler:
        """The sampler of ``engine``.

        Args:
            sampling: max_new_tokens, temperature, top_p, top_k.
            batch_size: used by transformers only.
            max_length: most tokens of a prompt with its completion, for vLLM; ``None`` is the model's context.
            progress: called with the number of finished samples of the current call.
        """
        if self.engine == "transformers":
            return TransformersSampler(
                self.weights(), self.tokenizer(), batch_size=batch_size, progress=progress, **sampling
            )
        if self.engine == "openai":
            from sgsd.engines.servers import OpenAISampler

            name = self.served_model or self.model
            return OpenAISampler(name, self.tokenizer(), progress=progress, **self.server, **sampling)
        if self._sampler is not None:
            return self._sampler.with_sampling(**sampling)
        from sgsd.engines.vllm_offline import VLLMSampler

        if self._loaded is not None:  # free the memory first
            self._loaded = None
            torch.cuda.empty_cache()
        with hub_or_cache(self.model):
            self._sampler = VLLMSampler(
                self.model,
                self.tokenizer(),
                progress=progress,
                max_model_len=max_length,
                **self._vllm_options(),
                **sampling,
            )
        return self._sampler

    def writer(
        self, engine: str, name: str, *, base_url: str | None, batch_size: int, options: Mapping[str, Any]
    ) -> Writer:
        """The writer of candidates and merges.

        Args:
            engine, name, base_url: engine, model and server address of the writer.
            batch_size: used by transformers only.
            options: temperature and chat_template_kwargs.
        """
        label = f"{engine} {name}"
        if engine == "openai":
            from sgsd.engines.server_writer import ServerWriter

            served = self.served_model if name == self.model else None
            return ServerWriter(served or name, **{**self.server, "base_url": base_url}, **options)
        if engine == "vllm":
            from sgsd.engines.vllm_offline import VLLMEngine, VLLMWriter

            if self._sampler is not None and name == self.model:
                self._vllm = name, self._sampler.engine
            if self._vllm is None or self._vllm[0] != name:
                self._sampler = self._vllm = None  # free the memory first
                with hub_or_cache(name):
                    self._vllm = name, VLLMEngine(name, **self._vllm_options())
            return VLLMWriter(self._vllm[1], self.tokenizer(name), name=label, **options)
        from sgsd.engines.writers import TransformersWriter

        return TransformersWriter(
            self.weights(name), self.tokenizer(name), name=label, batch_size=batch_size, **options
        )

    def _vllm_options(self) -> dict[str, Any]:
        more = {"trust_remote_code": True} if self.trust_remote_code else {}
        return {"dtype": self.dtype or "auto", **more}


def refuse_missing_package(engine: str) -> None:
    """Raise ``ConfigError`` if the package of an engine is not installed."""
    extra = {"openai": "server", "vllm": "vllm"}.get(engine)
    if extra is not None and importlib.util.find_spec(engine) is None:
        raise ConfigError(f"the package {engine} is not installed", remedy=f"run: pip install 'sgsd[{extra}]'")
