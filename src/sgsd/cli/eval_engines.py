"""Who samples for ``sgsd eval``: transformers or vLLM in process, or a server."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sgsd.cli.settings import hub_or_cache
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model
from sgsd.errors import ConfigError
from sgsd.rollouts import Sampler

if TYPE_CHECKING:
    from sgsd.engines.vllm_offline import VLLMSampler


class Engine:
    """The samplers of one command: the model is loaded with the first of them, and once.

    Args:
        options: the command line's.
        tokenizer: decodes completions.
        room: the most tokens that a prompt and its completion may have together.
        progress: called with the number of prompts done of the call under way.

    Raises:
        ConfigError: flags of another engine.
    """

    def __init__(
        self, options: argparse.Namespace, tokenizer: Any, *, room: int, progress: Callable[[int], None]
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._room = room
        self._progress = progress
        self._model: Any = None
        self._vllm: VLLMSampler | None = None

    @property
    def context(self) -> int | None:
        """Tokens that the model takes; ``None`` where only the engine knows, and refuses by itself."""
        if self._options.engine != "transformers":
            return None
        return self._loaded().config.get_text_config().max_position_embeddings

    def sampler(self, sampling: Mapping[str, Any], *, batch_size: int) -> Sampler:
        """A sampler with these settings.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        options = self._options
        if options.engine == "transformers":
            return TransformersSampler(
                self._loaded(), self._tokenizer, batch_size=batch_size, progress=self._progress, **sampling
            )
        if options.engine == "openai":
            from sgsd.engines.servers import OpenAISampler

            return OpenAISampler(
                options.served_model or options.model,
                self._tokenizer,
                base_url=options.base_url,
                concurrency=options.concurrency,
                progress=self._progress,
                **sampling,
            )
        if self._vllm is not None:
            return self._vllm.with_sampling(**sampling)
        from sgsd.engines.vllm_offline import VLLMSampler

        more = {"trust_remote_code": True} if options.trust_remote_code else {}
        with hub_or_cache(options.model):
            self._vllm = VLLMSampler(
                options.model,
                self._tokenizer,
                progress=self._progress,
                dtype=options.dtype,
                max_model_len=self._room,
                **more,
                **sampling,
            )
        return self._vllm

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = load(self._options)
        return self._model


def load(options: argparse.Namespace) -> Any:
    """The model that transformers samples from, on its device.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    with hub_or_cache(options.model):
        return load_model(
            options.model,
            dtype=options.dtype,
            device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            trust_remote_code=options.trust_remote_code,
        )


def check_engine(options: argparse.Namespace) -> None:
    """Refuse flags that the engine would not read, and settle its defaults.

    Raises:
        ConfigError: naming the flag.
    """
    readers = {
        "base_url": ("openai",),
        "served_model": ("openai",),
        "concurrency": ("openai",),
        "device": ("transformers",),
        "dtype": ("transformers", "vllm"),
    }
    for flag, engines in readers.items():
        if vars(options)[flag] is not None and options.engine not in engines:
            raise ConfigError(
                f"--{flag} means nothing to engine {options.engine}",
                got=vars(options)[flag],
                expected=f"--engine {' or '.join(engines)}",
            )
    if options.engine == "openai":
        if options.base_url is None:
            raise ConfigError("--engine openai needs --base_url", expected="such as http://localhost:8000/v1")
        options.concurrency = 16 if options.concurrency is None else options.concurrency
    elif options.dtype is None:
        options.dtype = "float32" if options.engine == "transformers" else "auto"
