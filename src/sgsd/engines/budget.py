"""What writing may cost at most, and what it is likely to: for every engine alike."""

from __future__ import annotations

from collections.abc import Sequence

from sgsd.bank.writing import Writer, WriteRequest, WritingStoppedError, Written

# What a chat template adds to a message, at most; a system prompt of its own is more.
_TEMPLATE_TOKENS = 32


class BudgetWriter:
    """A writer that spends no more than so many tokens, prompts and completions together.

    A request is handed on only where the budget holds its worst case beside those of all under way with it: a token for
    each byte of its prompt, more than any tokenizer makes of it, and ``max_tokens``. What a writer spends without
    reporting it, such as a server on answers that never arrive, is not counted.

    Args:
        writer: who writes.
        budget: tokens.
        spent: tokens that are gone already, as after an interruption.
    """

    def __init__(self, writer: Writer, budget: int, *, spent: int = 0) -> None:
        self.spent = spent
        self._writer = writer
        self._budget = budget

    @property
    def name(self) -> str:
        return self._writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``.

        Raises:
            WritingStoppedError: the next request may take more than is left; it holds the answers until then.
        """
        written: list[Written] = []
        while len(written) < len(requests):
            affordable = self._affordable(requests[len(written) :])
            if not affordable:
                raise WritingStoppedError(
                    written,
                    "the writer's token budget is used up",
                    got=f"{self.spent:,} tokens of {self._budget:,}; the next request may take more than is left",
                    remedy="raise token_budget and run the same command: it goes on",
                )
            answers = self._writer.write(affordable)
            self.spent += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
            written += answers
        return written

    def _affordable(self, requests: Sequence[WriteRequest]) -> Sequence[WriteRequest]:
        """The first requests, as many as may all take their worst course."""
        left = self._budget - self.spent
        for position, request in enumerate(requests):
            prompt = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in request.messages)
            left -= prompt + request.max_tokens
            if left < 0:
                return requests[:position]
        return requests


def estimate(
    requests: Sequence[WriteRequest],
    *,
    price_in: float | None = None,
    price_out: float | None = None,
    attempts: int = 1,
) -> str:
    """What these requests are likely to take, in one line, before any of them is sent. Prices are of a million tokens
    of prompts and completions; a request is sent ``attempts`` times at most.
    """
    prompts = sum(-(-len(message["content"]) // 4) for request in requests for message in request.messages)
    completions = sum(request.max_tokens for request in requests)
    line = (
        f"{len(requests):,} requests: {prompts:,} prompt tokens (one for four characters), "
        f"at most {completions:,} completion tokens"
    )
    if price_in is not None or price_out is not None:
        cost = (prompts * (price_in or 0.0) + completions * (price_out or 0.0)) / 1e6
        line += f", at most {cost:.2f} at the prices given"
    return line + (f"; up to {attempts} times that where answers do not fit" if attempts > 1 else "")
