"""Curation: nothing goes missing uncounted, and nothing changes the second time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.data.adapters import Adapted
from sgsd.data.curation import curate
from sgsd.data.problems import DropReason, Problem
from sgsd.errors import ConfigError

TEXT = "How many ducks are in 3 ponds of 4 ducks each?"


def problem(id: str, text: str = TEXT, answer: str = "12", reference: str | None = None) -> Problem:
    return Problem(id, text, answer, reference=reference)


problem_lists = st.lists(
    st.tuples(
        st.sampled_from(["", " ", "a", "a ", "b", "B", "e\u0301", "\u00e9", "c"]),
        st.sampled_from(["", "1", "1.0", "2", "$2$", "bad"]),
    ),
    max_size=12,
).map(lambda pairs: [Problem(f"p{i}", text, answer) for i, (text, answer) in enumerate(pairs)])
policies = st.fixed_dictionaries(
    {
        "on_duplicate": st.sampled_from(["drop", "keep"]),
        "on_conflict": st.sampled_from(["drop_all", "keep"]),
        "limit": st.one_of(st.none(), st.integers(1, 4)),
    }
)


def readable(key: str) -> bool:
    return key != "bad"


@given(problem_lists, policies)
def test_curation_is_idempotent_keeps_the_order_and_accounts_for_every_row(
    problems: list[Problem], settings: dict[str, Any]
) -> None:
    kept, report = curate(problems, readable=readable, **settings)
    positions = [problems.index(one) for one in kept]
    assert positions == sorted(positions)
    assert report.kept == len(kept)
    assert report.rows == len(problems) == len(kept) + len(report.dropped) + report.beyond_limit
    assert {one.id for one in kept}.isdisjoint(drop.id for drop in report.dropped)
    again, second = curate(kept, readable=readable, **settings)
    assert again == kept
    assert not second.dropped


def test_duplicates_keep_the_first_and_say_of_what() -> None:
    rows = [problem("a", "x  y"), problem("b", "x\ny ", "12.0"), problem("c", "X y")]
    kept, report = curate(rows)
    assert [one.id for one in kept] == ["a", "c"]
    assert [(drop.id, drop.reason, drop.why) for drop in report.dropped] == [("b", DropReason.DUPLICATE, "of a")]
    assert len(curate(rows, on_duplicate="keep")[0]) == 3


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("1200", "1,200", True),
        ("7", "007.00", True),
        ("$x$", "x", True),
        ("-0", "0", True),
        ("-1", "1", False),
        ("1,2", "12", False),
        ("1.5", "15", False),
        ("x+1", "1+x", False),
    ],
)
def test_answers_are_compared_by_eye_only(first: str, second: str, same: bool) -> None:
    _, report = curate([problem("a", answer=first), problem("b", answer=second)])
    assert report.counts == ({"duplicate": 1} if same else {"conflict": 2})


def test_conflicts_drop_every_copy_by_default() -> None:
    rows = [problem("a"), problem("b"), problem("c", answer="13"), problem("d", "other")]
    kept, report = curate(rows)
    assert [one.id for one in kept] == ["d"]
    assert report.ids(DropReason.CONFLICT) == ("a", "b", "c")
    assert report.dropped[0].why == "a says '12', c says '13'"
    assert [one.id for one in curate(rows, on_conflict="keep")[0]] == ["a", "c", "d"]


def test_unreadable_references_are_judged_by_the_verifiers_key_once_each() -> None:
    asked: list[str] = []

    def readable(key: str) -> bool:
        asked.append(key)
        return key != "?"

    rows = [problem("a", "1", "5", reference="?"), problem("b", "2", "5"), problem("c", "3", "5")]
    kept, report = curate(rows, readable=readable)
    assert [one.id for one in kept] == ["b", "c"]
    assert report.ids("unreadable") == ("a",)
    assert asked == ["?", "5"]


def test_the_limit_counts_usable_problems() -> None:
    rows = [problem(str(i), str(i), "" if i % 2 else "1") for i in range(10)]
    kept, report = curate(rows, limit=2)
    assert [one.id for one in kept] == ["0", "2"]
    assert (report.beyond_limit, report.counts) == (3, {"no_answer": 5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_duplicate": "dorp"}, "did you mean drop"),
        ({"on_conflict": "drop"}, "did you mean drop_all"),
        ({"limit": 0}, "limit"),
    ],
)
def test_settings_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curate([], **settings)


def test_conversations_are_the_same_if_all_their_messages_are() -> None:
    def asked(id: str, first: str, answer: str = "12") -> Problem:
        turns = (first, "Why?")
        return Problem(id, "Why?", answer, prompt=tuple({"role": "user", "content": turn} for turn in turns))

    kept, report = curate([asked("a", "One."), asked("b", "Two.", "13"), asked("c", "One.")])
    assert [one.id for one in kept] == ["a", "b"]
    assert report.ids("duplicate") == ("c",)


def test_answers_may_be_missing_where_none_is_needed() -> None:
    rows = [Problem("a", "Why?", " "), Problem("b", " ", "")]
    assert not curate(rows)[0]
    kept, report = curate(rows, needs_answer=False)
    assert [one.id for one in kept] == ["a"]
    assert report.counts == {"no_text": 1}


def test_the_report_speaks_three_ways() -> None:
    rows = [problem(f"p{i}") for i in range(8)]
    adapted = Adapted(tuple(rows), "plain", notes={"answer taken from a box": 2})
    _, report = curate(rows)
    report = report.including(adapted, source="ducks.jsonl")
    assert report.summary() == "1 of 8 rows kept from ducks.jsonl; dropped 7 duplicate (p1, p2, p3, …)"
    assert report.lines() == [
        "rows                           8  ducks.jsonl (plain)",
        "dropped: duplicate             7  p1, p2, p3, p4, p5, …",
        "kept                           1",
        "note: answer taken from a box  2",
    ]
    saved = json.loads(report.to_json())
    assert saved["counts"] == {"duplicate": 7}
    assert [row["id"] for row in saved["dropped"]["duplicate"]] == [f"p{i}" for i in range(1, 8)]
    assert (saved["rows"], saved["kept"], saved["adapter"]) == (8, 1, "plain")
