"""Checks before the first step: batch size, context length, token ids, thinking."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgsd.engines.generation import context_length
from sgsd.errors import ConfigError, DataError
from sgsd.prompts import SWITCH
from sgsd.verifiers.thinking import ends_thoughts, opens_thoughts


def check_batch(rows: int, args: Any) -> None:
    """Refuse fewer problems than a generation batch needs: TRL's sampler silently drops an incomplete batch.

    Raises:
        DataError: with both numbers.
    """
    needed = args.generation_batch_size // args.num_generations
    if rows < needed:
        parts = {
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "steps_per_generation": args.steps_per_generation,
            "processes": args.world_size,
        }
        product = " x ".join(f"{name} {count}" for name, count in parts.items())
        raise DataError(
            "fewer problems than one batch",
            got=rows,
            expected=f"at least {needed} ({product} / num_generations {args.num_generations})",
            remedy="use more problems, a smaller batch, or fewer gradient_accumulation_steps",
        )


def prompt_budget(model_config: Any, args: Any) -> int:
    """The most tokens of a prompt: ``max_prompt_length``, else the context less ``max_completion_length``, if limited.

    Raises:
        ConfigError: prompts and completions do not fit the context.
    """
    context = context_length(model_config)
    if context is None:
        return args.max_prompt_length or sys.maxsize
    room = context - args.max_completion_length
    if room < 1 or (args.max_prompt_length or 0) > room:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {args.max_completion_length}, max_prompt_length {args.max_prompt_length}",
            expected=f"at most {context} tokens together",
        )
    return args.max_prompt_length or room


def sampling_budget(args: Any, budget: int) -> int:
    """The most tokens of a prompt that is sampled from: ``budget``, or less if vLLM's context is shorter."""
    if not (args.use_vllm and args.vllm_mode == "colocate" and args.vllm_max_model_length):
        return budget
    return min(budget, args.vllm_max_model_length - args.max_completion_length)


def check_tokens(vocabulary: int, tokenizer: Any, ends: Sequence[int]) -> None:
    """Refuse a tokenizer without padding or end token, and token ids beyond the model's vocabulary.

    Args:
        vocabulary: rows of the model's embedding.
        tokenizer: of the run.
        ends: ids that end a completion (``engines.models.end_of_completion_ids``).

    Raises:
        ConfigError: naming the tokens.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer has no padding token", remedy="set tokenizer.pad_token")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end token", remedy="set tokenizer.eos_token")
    rendered: list[int] = []
    if tokenizer.chat_template:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], **options)["input_ids"]

    def shown(token: Any) -> str:
        known = isinstance(token, int) and token >= 0
        return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" if known else repr(token)

    named = {"the padding token": [tokenizer.pad_token_id], "an end token": ends, "a token of the template": rendered}
    for what, ids in named.items():
        outside = {token for token in ids if not (isinstance(token, int) and 0 <= token < vocabulary)}
        if outside:
            raise ConfigError(
                f"{what} is not in the model's vocabulary",
                got=", ".join(shown(token) for token in sorted(outside, key=repr)),
                expected=f"ids below {vocabulary}",
                remedy="use the model's own tokenizer, or resize the model's embeddings",
            )


# ---- thinking

_SWITCHES = (SWITCH, "thinking")
ROOM_TO_THINK = 4096
"""The least ``max_completion_length``, in tokens, for which a model that thinks causes no warning."""


@dataclass(frozen=True, slots=True)
class ThinkingState:
    """Whether rollouts contain thinking, according to the chat template.

    Attributes:
        thinks: the template opens a thought, or allows the model to open one.
        off: the template's arguments that switch thinking off; empty if there are none.
    """

    thinks: bool
    off: Mapping[str, Any]

    def warning(self, max_completion_length: int) -> str | None:
        """One line if ``max_completion_length`` is short for thinking, else ``None``."""
        if not self.thinks or max_completion_length >= ROOM_TO_THINK:
            return None
        return (
            f"the chat template lets the model think, and max_completion_length {max_completion_length} is short for "
            f"that: most rollouts may be cut off and count as failures; {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """The settings to change."""
        longer = f"max_completion_length of {ROOM_TO_THINK} or more"
        if not self.thinks:
            return "set a larger max_completion_length"
        if self.off == {SWITCH: False}:
            return f"set thinking: off, or {longer}"
        switches = ", ".join(f"{name}: {str(value).lower()}" for name, value in self.off.items())
        return f"set chat_template_kwargs: {{{switches}}}, or {longer}" if self.off else f"set {longer}"


def thinking_of(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> ThinkingState:
    """Find out from rendered prompts whether the model would think.

    Args:
        tokenizer: of the run.
        template_kwargs: the student's arguments of the template.
    """

    def rendered(**changes: Any) -> str:
        options = {"add_generation_prompt": True, "tokenize": False, **(template_kwargs or {}), **changes}
        return str(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], **options))

    def thinks(text: str, **changes: Any) -> bool:
        if ends_thoughts(text):
            return False
        if opens_thoughts(text):
            return True
        # A template that can prevent thinking, or set its effort, belongs to a model that opens thoughts itself.
        prevented = (rendered(**{**changes, switch: False}) for switch in _SWITCHES)
        return any(other != text and ends_thoughts(other) for other in prevented) or (
            rendered(**{**changes, "reasoning_effort": "low"}) != rendered(**{**changes, "reasoning_effort": "high"})
        )

    if not tokenizer.chat_template or not thinks(rendered()):
        return ThinkingState(False, {})
    for switch in _SWITCHES:
        off = {switch: False}
        text = rendered(**off)
        if text != rendered() and not thinks(text, **off):
            return ThinkingState(True, off)
    return ThinkingState(True, {})
