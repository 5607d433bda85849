"""A token budget for any writer, and an estimate of the cost of requests."""

from __future__ import annotations

from collections.abc import Sequence

from sgsd.bank.writing import Writer, WriteRequest, WritingStoppedError, Written

# An upper bound of what a chat template adds to a message, without a system prompt of its own.
_TEMPLATE_TOKENS = 32


class BudgetWriter:
    """A writer with a limit on its prompt and completion tokens together.

    A request is sent only if the remaining budget covers its worst case and that of the requests sent with it. The
    worst case is one token for each byte of the prompt, an upper bound for any tokenizer, plus ``max_tokens``. Tokens
    that the writer does not report, such as a server's for replies that never arrive, are not counted.

    Args:
        writer: the writer.
        budget: the limit, in tokens.
        spent: tokens spent before, as after an interruption.
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
            WritingStoppedError: the next request may exceed the budget; the error holds the replies so far.
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
        """The first requests, as many as the remaining budget covers in the worst case."""
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
    """One line on the likely tokens and costs of these requests. Prices are per million prompt and completion tokens;
    a request is sent at most ``attempts`` times.
    """
    prompts = sum(-(-len(message["content"]) // 4) for request in requests for message in request.messages)
    completions = sum(request.max_tokens for request in requests)
    line = (
        f"{len(requests):,} requests: {prompts:,} prompt tokens (one per four characters), "
        f"at most {completions:,} completion tokens"
    )
    if price_in is not None or price_out is not None:
        cost = (prompts * (price_in or 0.0) + completions * (price_out or 0.0)) / 1e6
        line += f", at most {cost:.2f} at the prices given"
    return line + (f"; up to {attempts} times that where answers do not fit" if attempts > 1 else "")
