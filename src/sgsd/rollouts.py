"""A completion as it was sampled, and the protocol of whatever samples it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np


class StopReason(StrEnum):
    """Why sampling stopped: an end token, or the length limit."""

    END = "end"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion. The ids are kept as sampled and never re-tokenised, but where ``retokenised`` says so.

    Attributes:
        prompt_ids: what the model saw.
        completion_ids: what it added, the end token included.
        text: the completion, decoded, without special tokens but for marks of thinking; behind the mark that its prompt
            ended in, if it never ends those thoughts.
        stop_reason: see ``StopReason``.
        retokenised: the sampler gave text alone and ``completion_ids`` are its tokens, perhaps not those sampled.
        counted: where ``retokenised``, how many tokens the sampler says it sampled.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    stop_reason: StopReason
    retokenised: bool = False
    counted: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were sampled, the end token included: never a count of re-tokenised text."""
        return len(self.completion_ids) if self.counted is None else self.counted


class Sampler(Protocol):
    """Prompts → rollouts."""

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """One rollout per prompt, in order; the same seed and prompts give the same rollouts."""
        ...


def completion_seed(seed: int, index: int) -> int:
    """A seed in [0, 2³¹) for the prompt at position ``index``, for engines that draw every completion on its own: no
    batch and no order of arrival has a part in it.
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


def derived_seed(seed: int, index: int) -> int:
    """A seed in [0, 2³¹) that depends on ``seed`` and ``index`` alone: 31 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "big") >> 1
