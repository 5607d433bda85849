"""Sampling and writing with vLLM, in process."""

from __future__ import annotations

import copy
import importlib.util
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sgsd import runfolder
from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.models import base_and_adapter, first_line
from sgsd.errors import ConfigError
from sgsd.prompts import message_ids
from sgsd.rollouts import Rollout, StopReason, completion_seed
from sgsd.verifiers.thinking import CompletionText

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank


class VLLMEngine:
    """A causal language model that vLLM has loaded, for a sampler and a writer to share.

    Args and errors: as of ``VLLMSampler``.
    """

    def __init__(self, model_name: str, *, adapter: str | None = None, **engine_options: Any) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError("vLLM is not installed", remedy="run: pip install 'sgsd[vllm]', or use another engine")
        import vllm
        from vllm.lora.request import LoRARequest

        base, own_adapter = base_and_adapter(model_name)
        if own_adapter is not None and adapter is not None:
            raise ConfigError("two adapters", got=f"{own_adapter} and {adapter}", expected="one of them")
        adapter = own_adapter or adapter
        self._lora = None
        if adapter is not None:
            engine_options = {"enable_lora": True, "max_lora_rank": _max_lora_rank(adapter)} | engine_options
            self._lora = LoRARequest("adapter", 1, adapter)
        try:
            self._llm = vllm.LLM(model=base, **engine_options)
        except (ValueError, RuntimeError, OSError) as error:
            got = first_line(error)[:200]
            raise ConfigError(f"vLLM cannot start {model_name}", got=got, remedy="see its log above") from error
        self._new_params = vllm.SamplingParams

    @property
    def context(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return self._llm.model_config.max_model_len

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[dict[str, Any]], *, use_tqdm: Any = False
    ) -> list[Any]:
        """vLLM's completion of each prompt, with its own ``SamplingParams``."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self._new_params(**own) for own in params],
            use_tqdm=use_tqdm,
            lora_request=self._lora,
        )
        return [output.outputs[0] for output in outputs]


class VLLMSampler:
    """A causal language model that vLLM loads and runs, as ``rollouts.Sampler``.

    Prompts are sent as token ids, each with its own seed. Of the model's ``generation_config.json`` only the ids that
    end a completion apply. Two runs are identical only if vLLM is batch invariant. ``engine`` is the loaded model.

    Args:
        model_name: a hub name, a folder, or an adapter's folder, which brings its base model.
        tokenizer: decodes completions; its end-of-sequence token ends one.
        max_new_tokens: the length limit.
        temperature: 0 is greedy decoding.
        top_p, top_k: 1.0 and 0 switch them off.
        adapter: the folder of a LoRA adapter to put on ``model_name``.
        progress: called with the number of prompts done.
        engine_options: further arguments of ``vllm.LLM``, such as ``dtype``, ``max_model_len``,
            ``tensor_parallel_size`` or ``gpu_memory_utilization``.

    Raises:
        ConfigError: vLLM is not installed or cannot start; no such model or adapter; a GGUF file.
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        adapter: str | None = None,
        progress: Callable[[int], object] | None = None,
        **engine_options: Any,
    ) -> None:
        self.engine = VLLMEngine(model_name, adapter=adapter, **engine_options)
        self._tokenizer = tokenizer
        self._text = CompletionText(tokenizer)
        self._progress = progress
        self._options = _sampling_options(
            tokenizer, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
        )

    def with_sampling(self, *, max_new_tokens: int, **sampling: Any) -> VLLMSampler:
        """A sampler with other settings on the same engine: the model is not loaded again."""
        other = copy.copy(self)
        other._options = _sampling_options(self._tokenizer, max_tokens=max_new_tokens, **sampling)
        return other

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """See ``Sampler.sample``.

        Raises:
            ConfigError: vLLM aborted a completion, or the context ended before its length limit.
        """
        outputs = self.engine.generate(
            prompts,
            [{"seed": completion_seed(seed, index), **self._options} for index in range(len(prompts))],
            use_tqdm=False if self._progress is None else partial(_Bar, tell=self._progress),
        )
        return [self._rollout(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def _rollout(self, prompt: Sequence[int], output: Any) -> Rollout:
        ids = tuple(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            raise ConfigError(
                "vLLM aborted a completion", got=f"finish_reason {output.finish_reason!r}", remedy="see its log above"
            )
        reason = StopReason.END if output.finish_reason == "stop" else StopReason.LENGTH
        if reason is StopReason.LENGTH and len(ids) < self._options["max_tokens"]:
            raise ConfigError(
                "vLLM cut a completion before the length limit",
                got=f"{len(ids)} tokens after a prompt of {len(prompt)}",
                expected=self._options["max_tokens"],
                remedy="raise max_model_len, or lower the completion length",
            )
        return Rollout(
            prompt_ids=tuple(prompt),
            completion_ids=ids,
            text=self._text.after(prompt, ids),
            stop_reason=reason,
        )


class VLLMWriter:
    """A model that vLLM has loaded as ``bank.writing.Writer``; vLLM's structured outputs enforce the schema.

    Args:
        engine: the model, such as a sampler's ``engine``.
        tokenizer: the model's, with a chat template.
        name: the name in records.
        temperature: 0 is greedy decoding.
        chat_template_kwargs: such as ``{"enable_thinking": False}``.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        tokenizer: Any,
        *,
        name: str = "vllm",
        temperature: float = 0.7,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._engine = engine
        self._tokenizer = tokenizer
        self._options = _sampling_options(tokenizer, temperature=temperature)
        self._template_kwargs = chat_template_kwargs or {}

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is truncated; a full context is an error."""
        from vllm.sampling_params import StructuredOutputsParams

        prompts = [message_ids(self._tokenizer, request.messages, **self._template_kwargs) for request in requests]
        # vLLM refuses the whole call if one prompt fills the context.
        asked = [index for index, prompt in enumerate(prompts) if len(prompt) < self._engine.context]
        outputs = self._engine.generate(
            [prompts[index] for index in asked],
            [
                {
                    "seed": requests[index].seed,
                    "max_tokens": requests[index].max_tokens,
                    "structured_outputs": StructuredOutputsParams(json=requests[index].schema),
                    **self._options,
                }
                for index in asked
            ],
        )
        completions = dict(zip(asked, outputs, strict=True))
        return [
            self._written(request, prompt, completions.get(index))
            for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]

    def _written(self, request: WriteRequest, prompt: list[int], completion: Any) -> Written:
        ids, finish = ([], "length") if completion is None else (list(completion.token_ids), completion.finish_reason)
        text, error = None, None
        if finish == "length" and len(ids) < request.max_tokens:
            context = self._engine.context
            error = f"the context of {context} ended after a prompt of {len(prompt)} and {len(ids)} tokens"
        elif finish not in ("stop", "length"):
            error = f"vLLM aborted the text: finish_reason {finish!r}"
        else:
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Written(request.key, text, error, len(prompt), len(ids))


class _Bar(tqdm):
    """A hidden bar that passes vLLM's count of prompts to ``tell``. Bars over an iterable are other ones of vLLM."""

    def __init__(self, iterable: Any = None, *, tell: Callable[[int], object], **options: Any) -> None:
        self._tell = tell if iterable is None else bool
        super().__init__(iterable, **options, file=io.StringIO())

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        self._tell(int(self.n))
        return shown


def _sampling_options(
    tokenizer: Any, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        **more,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop_token_ids": [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id],
        "detokenize": False,
    }


def _max_lora_rank(adapter: str) -> int:
    """The smallest ``max_lora_rank`` for the adapter."""
    try:
        settings = runfolder.read_json(Path(adapter) / "adapter_config.json", kind=ConfigError)
        rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
        raise ConfigError(
            "the folder holds no LoRA adapter", got=adapter, expected="a folder with adapter_config.json"
        ) from error
    if rank > _LORA_RANKS[-1]:
        raise ConfigError("the adapter's rank is too large for vLLM", got=rank, expected=f"at most {_LORA_RANKS[-1]}")
    return next(allowed for allowed in _LORA_RANKS if allowed >= rank)
