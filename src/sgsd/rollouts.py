"""A sampled completion, and the protocol of samplers."""

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
    """One sampled completion. The token ids are those sampled, unless ``retokenised`` is set.

    Attributes:
        prompt_ids: the prompt's token ids.
        completion_ids: the completion's token ids, the end token included.
        text: the decoded completion, without special tokens except thinking tags. If the prompt ends with an opening
            thinking tag that the completion never closes, the tag is put in front.
        stop_reason: see ``StopReason``.
        retokenised: the sampler returned only text; ``completion_ids`` are its tokenisation, which may differ from the
            tokens sampled.
        counted: where ``retokenised``, the number of sampled tokens that the sampler reported.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    stop_reason: StopReason
    retokenised: bool = False
    counted: int | None = None

    @property
    def tokens(self) -> int:
        """The number of sampled tokens, the end token included; ``counted`` where the sampler reported it."""
        return len(self.completion_ids) if self.counted is None else self.counted


class Sampler(Protocol):
    """Prompts → rollouts."""

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """One rollout per prompt, in order; the same seed and prompts give the same rollouts."""
        ...


def completion_seed(seed: int, index: int) -> int:
    """A seed in [0, 2³¹) for the prompt at position ``index``, for engines that seed each completion.

    Completions then do not depend on batches or on the order of requests.
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


def derived_seed(seed: int, index: int) -> int:
    """A seed in [0, 2³¹) that depends on ``seed`` and ``index`` alone: 31 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "big") >> 1
