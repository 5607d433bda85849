"""A budget is never overspent, and what it refuses says so; an estimate comes before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank.writing import WriteFailure, WriteRequest, Written, parse_reply, write_until_fit
from sgsd.engines.budget import BudgetWriter, estimate, token_counter


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


@given(st.lists(COST, max_size=12), st.integers(0, 400), st.integers(0, 100))
def test_no_more_is_spent_than_there_is_however_dear_the_answers(costs, budget, spent):
    """(prompt, worst completion, how much less the prompt and the completion take than that)."""
    taken = {f"key-{n}": (max(p - less_p, 0), max(c - less_c, 0)) for n, (p, c, less_p, less_c) in enumerate(costs)}
    requests = [request(n, completion, "x" * prompt) for n, (prompt, completion, _, _) in enumerate(costs)]
    worst = [len(asked.messages[0]["content"]) + asked.max_tokens for asked in requests]
    spender = Spender(taken)
    writer = BudgetWriter(spender, budget, spent=spent, count=lambda messages: len(messages[0]["content"]))
    written = writer.write(requests)
    assert [answer.key for answer in written] == [asked.key for asked in requests]
    answered = [answer for answer in written if answer.text is not None]
    assert written[: len(answered)] == answered
    assert writer.spent == spent + sum(sum(taken[answer.key]) for answer in answered)
    assert writer.spent <= max(budget, spent)
    for answer in written[len(answered) :]:
        assert (answer.error, answer.prompt_tokens) == (f"token budget of {budget} used up", 0)
    if len(answered) < len(requests):  # the first that was refused would not have fitted
        assert writer.spent + worst[len(answered)] > budget
    before = spent
    for keys in spender.calls:  # nor would any call, had all in it taken their worst course
        assert before + sum(worst[int(key.split("-")[1])] for key in keys) <= budget
        before += sum(sum(taken[key]) for key in keys)


def test_a_budget_that_holds_all_is_asked_all_at_once():
    spender = Spender({f"key-{n}": (1, 1) for n in range(5)})
    assert BudgetWriter(spender, 1000).write([request(n) for n in range(5)])
    assert [len(keys) for keys in spender.calls] == [5]


def test_what_a_budget_refuses_is_a_failure_with_its_reason():
    spender = Spender({f"key-{n}": (20, 10) for n in range(4)})
    writer = BudgetWriter(spender, 75, count=lambda messages: 20)
    readers = [lambda written: parse_reply(written, least=0, most=1) or written.key] * 4
    results, counts = write_until_fit(writer, [request(n) for n in range(4)], readers, attempts=1)
    assert [isinstance(result, WriteFailure) for result in results] == [True] * 4  # "{}" holds no items
    assert [result.reason for result in results[2:]] == ["token budget of 75 used up"] * 2
    assert "items" in results[0].reason
    assert (writer.spent, counts.prompt_tokens + counts.completion_tokens) == (60, 60)


def test_without_a_tokenizer_a_prompt_is_taken_for_longer_than_any_would_make_it(tokenizer):
    text = "Write it in 漢字 and π."
    asked = request(0, text=text)
    tokens = token_counter(tokenizer)(asked.messages)
    for budget, fits in ((tokens + 9, False), (len(text.encode()) + 32 + 9, False), (len(text.encode()) + 42, True)):
        spender = Spender({"key-0": (tokens, 10)})
        (written,) = BudgetWriter(spender, budget).write([asked])
        assert (written.text is not None) == fits
    assert tokens <= len(text.encode()) + 32


def test_the_name_is_the_writers():
    assert BudgetWriter(Spender({}), 10).name == "spender"


def test_an_estimate_is_one_line_that_says_how_it_counts(tokenizer):
    requests = [request(0, 100, "x" * 10), request(1, 200, "y" * 4)]
    assert str(estimate(requests)) == (
        "2 requests: 4 prompt tokens (one for four characters), at most 300 completion tokens"
    )
    counted = estimate(requests, count=token_counter(tokenizer), price_in=2.0, price_out=1e4, attempts=3)
    tokens = sum(
        len(tokenizer.apply_chat_template(r.messages, add_generation_prompt=True)["input_ids"]) for r in requests
    )
    assert (counted.requests, counted.prompt_tokens, counted.completion_tokens) == (2, tokens, 300)
    assert counted.cost == (tokens * 2.0 + 300 * 1e4) / 1e6
    assert str(counted) == (
        f"2 requests: {tokens} prompt tokens (by the tokenizer), at most 300 completion tokens, "
        "at most 3.00 at the prices given; up to 3 times that where answers do not fit"
    )
    assert "0.00 at the prices" in str(estimate([], price_in=1.0))
