"""A budget is never overspent, and what was answered before it ended is handed on; an estimate comes before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank.writing import WriteRequest, WritingStoppedError, Written
from sgsd.engines.budget import BudgetWriter, estimate

TEMPLATE = 32


def request(number, max_tokens=10, text="Write."):
    return WriteRequest(f"key-{number}", [{"role": "user", "content": text}], {}, max_tokens, 0)


class Spender:
    """Spends on each request what ``costs`` says, and keeps what it was asked together."""

    name = "spender"

    def __init__(self, costs):
        self.costs = costs
        self.calls = []

    def write(self, requests):
        self.calls.append([asked.key for asked in requests])
        return [Written(asked.key, "{}", None, *self.costs[asked.key]) for asked in requests]


COST = st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 30), st.integers(0, 40))


@given(st.lists(COST, max_size=12), st.integers(0, 800), st.integers(0, 100))
def test_no_more_is_spent_than_there_is_however_dear_the_answers(costs, budget, spent):
    """(prompt, worst completion, how much less the prompt and the completion take than that)."""
    taken = {f"key-{n}": (max(p - less_p, 0), max(c - less_c, 0)) for n, (p, c, less_p, less_c) in enumerate(costs)}
    requests = [request(n, completion, "x" * prompt) for n, (prompt, completion, _, _) in enumerate(costs)]
    worst = [len(asked.messages[0]["content"]) + TEMPLATE + asked.max_tokens for asked in requests]
    spender = Spender(taken)
    writer = BudgetWriter(spender, budget, spent=spent)
    try:
        answered = writer.write(requests)
    except WritingStoppedError as stopped:
        answered = stopped.written
    left = worst[len(answered) :]
    assert not left or writer.spent + left[0] > budget  # the first that was refused would not have fitted
    assert [answer.key for answer in answered] == [asked.key for asked in requests][: len(answered)]
    assert writer.spent == spent + sum(sum(taken[answer.key]) for answer in answered) <= max(budget, spent)
    before = spent
    for keys in spender.calls:  # nor would any call, had all in it taken their worst course
        assert before + sum(worst[int(key.split("-")[1])] for key in keys) <= budget
        before += sum(sum(taken[key]) for key in keys)


def test_a_prompt_is_taken_for_longer_than_any_tokenizer_would_make_it(tokenizer):
    text = "Write it in 漢字 and π."
    asked = request(0, text=text)
    tokens = len(tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True)["input_ids"])
    worst = len(text.encode()) + TEMPLATE + 10
    assert tokens + 10 <= worst
    BudgetWriter(Spender({"key-0": (tokens, 10)}), worst).write([asked])
    with pytest.raises(WritingStoppedError):
        BudgetWriter(Spender({}), worst - 1).write([asked])


def test_an_estimate_is_one_line_that_says_how_it_counts():
    requests = [request(0, 100, "x" * 10), request(1, 200, "y" * 4)]
    line = "2 requests: 4 prompt tokens (one per four characters), at most 300 completion tokens"
    assert estimate(requests) == line
    assert estimate(requests, price_in=2.0, price_out=1e4, attempts=3) == (
        f"{line}, at most 3.00 at the prices given; up to 3 times that where answers do not fit"
    )
    assert "0.00 at the prices" in estimate([], price_in=1.0)
