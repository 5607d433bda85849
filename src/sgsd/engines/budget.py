"""What writing may cost at most, and what it is likely to: for every engine alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sgsd.bank.writing import Writer, WriteRequest, Written
from sgsd.prompts import message_ids

Count: TypeAlias = Callable[[list[dict[str, str]]], int]
"""Chat messages → tokens of their prompt."""

# What a chat template adds to a message, at most; a system prompt of its own is more.
_TEMPLATE_TOKENS = 32


def token_counter(tokenizer: Any, **template_kwargs: Any) -> Count:
    """Counts prompts as this tokenizer and its chat template make them."""
    return lambda messages: len(message_ids(tokenizer, messages, **template_kwargs))


class BudgetWriter:
    """A writer that spends no more than so many tokens, prompts and completions together.

    A request is handed on only where the budget holds its worst case (its prompt and ``max_tokens``) beside those of
    all under way with it. The first that does not fit, and all after it, are answered by an error. What a writer
    spends without reporting it, such as a server on answers that never arrive, is not counted.

    Args:
        writer: who writes.
        budget: tokens.
        spent: tokens that are gone already, as after an interruption.
        count: tokens of a prompt; without it, one for each byte: more than any tokenizer makes of it.
    """

    def __init__(self, writer: Writer, budget: int, *, spent: int = 0, count: Count | None = None) -> None:
        self.spent = spent
        self._writer = writer
        self._budget = budget
        self._count = count or _bytes

    @property
    def name(self) -> str:
        return self._writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``."""
        written: list[Written] = []
        while len(written) < len(requests):
            affordable = self._affordable(requests[len(written) :])
            if not affordable:
                error = f"token budget of {self._budget} used up"
                return written + [Written(request.key, None, error, 0, 0) for request in requests[len(written) :]]
            answers = self._writer.write(affordable)
            self.spent += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
            written += answers
        return written

    def _affordable(self, requests: Sequence[WriteRequest]) -> Sequence[WriteRequest]:
        """The first requests, as many as may all take their worst course."""
        left = self._budget - self.spent
        for position, request in enumerate(requests):
            left -= self._count(request.messages) + request.max_tokens
            if left < 0:
                return requests[:position]
        return requests


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a list of requests is likely to take.

    Attributes:
        requests: how many.
        prompt_tokens: together.
        completion_tokens: together, at most.
        counted: how the prompts' tokens were counted.
        attempts: how often a request is sent at most; the figures are for once.
        cost: at most, asked once each, in the unit of the prices; ``None`` without prices.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    counted: str
    attempts: int = 1
    cost: float | None = None

    def __str__(self) -> str:
        line = (
            f"{self.requests:,} requests: {self.prompt_tokens:,} prompt tokens ({self.counted}), "
            f"at most {self.completion_tokens:,} completion tokens"
        )
        if self.cost is not None:
            line += f", at most {self.cost:.2f} at the prices given"
        if self.attempts > 1:
            line += f"; up to {self.attempts} times that where answers do not fit"
        return line


def estimate(
    requests: Sequence[WriteRequest],
    *,
    count: Count | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    attempts: int = 1,
) -> Estimate:
    """What these requests are likely to take, before any of them is sent.

    Args:
        requests: what is to be written.
        count: tokens of a prompt; without it, a token for four characters is assumed.
        price_in, price_out: of a million tokens of prompts and completions; one that is not given is 0.
        attempts: how often a request is sent at most.
    """
    prompts = sum((count or _quarter)(request.messages) for request in requests)
    completions = sum(request.max_tokens for request in requests)
    priced = price_in is not None or price_out is not None
    return Estimate(
        requests=len(requests),
        prompt_tokens=prompts,
        completion_tokens=completions,
        counted="one for four characters" if count is None else "by the tokenizer",
        attempts=attempts,
        cost=(prompts * (price_in or 0.0) + completions * (price_out or 0.0)) / 1e6 if priced else None,
    )


def _bytes(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in messages)


def _quarter(messages: list[dict[str, str]]) -> int:
    return sum(-(-len(message["content"]) // 4) for message in messages)
