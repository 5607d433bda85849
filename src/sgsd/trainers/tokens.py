"""Before the first step: whole batches, room for prompts, known ids, thinking."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgsd.errors import ConfigError, DataError
from sgsd.prompts import SWITCH
from sgsd.verifiers.thinking import ends_thoughts, opens_thoughts


def check_batch(rows: int, args: Any) -> None:
    """Refuse fewer problems than one generation batch needs: TRL's sampler leaves out what fills none, without a word.

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
            remedy="more problems, or a smaller batch or gradient_accumulation_steps",
        )


def context_length(model_config: Any) -> int | None:
    """Tokens that a model's positions allow; ``None`` for models without a limit (ALiBi, recurrent ones)."""
    config = model_config.get_text_config()
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")  # GPT-2's kind: n_positions
    positions = vars(config).get(name)
    return positions if isinstance(positions, int) and positions > 0 else None


def prompt_budget(model_config: Any, args: Any) -> int:
    """The most tokens a prompt may have: ``max_prompt_length``, or what the context leaves, or no limit.

    Raises:
        ConfigError: if the context has no room for prompts.
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


def check_tokens(vocabulary: int, tokenizer: Any, ends: Sequence[int]) -> None:
    """Refuse padding or end ids that are unknown, and ids that the model has no row for.

    Args:
        vocabulary: rows of the model's embedding.
        tokenizer: of the run.
        ends: what ends a completion (``engines.models.end_of_completion_ids``).

    Raises:
        ConfigError: one line.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer has no padding token", remedy="set tokenizer.pad_token")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer names no end token", remedy="set tokenizer.eos_token")
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
                remedy="take the tokenizer that belongs to the model, or resize the model's embeddings",
            )


# ---- thinking

_SWITCHES = (SWITCH, "thinking")
ROOM_TO_THINK = 4096
"""Tokens below which a completion budget is short for a model that thinks."""


@dataclass(frozen=True, slots=True)
class ThinkingState:
    """Whether rollouts think, by the chat template.

    Attributes:
        thinks: the template opens the model's thinking, or leaves it to the model, which as a rule does.
        off: arguments of the template that switch it off; empty where there are none.
    """

    thinks: bool
    off: Mapping[str, Any]

    def warning(self, max_completion_length: int) -> str | None:
        """One line where the completion budget is short for thinking."""
        if not self.thinks or max_completion_length >= ROOM_TO_THINK:
            return None
        return (
            f"the chat template lets the model think, and max_completion_length {max_completion_length} is short for "
            f"that: most rollouts may be cut off and count as failures; {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What to change, as settings."""
        more = f"max_completion_length of {ROOM_TO_THINK} or more"
        if not self.thinks:
            return "a larger max_completion_length"
        if self.off == {SWITCH: False}:
            return f"set thinking: off, or {more}"
        switches = ", ".join(f"{name}: {str(value).lower()}" for name, value in self.off.items())
        return f"set chat_template_kwargs: {{{switches}}}, or {more}" if self.off else f"set {more}"


def thinking_of(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> ThinkingState:
    """Find out by rendering a prompt whether the model would think after it.

    Args:
        tokenizer: with a chat template.
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
        # The model opens its thinking itself, where the template knows how to prevent that.
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
