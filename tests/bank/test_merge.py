"""Merging: what comes out, what it came from, and when it stops."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank.extract import Candidate
from sgsd.bank.merge import merge, merge_request, read_merge, unite
from sgsd.bank.writing import UnfitError, Written

from .writers import FunctionWriter, kind_asked, listed, reply


def candidates(count, kind="skill", themes=None):
    """Titles ``theme/n``; each from a memory of its own."""
    themes = themes or count
    return [
        Candidate(kind, f"{n % themes}/{n}", f"text {n}", f"note {n}", (f"{kind}-memory-{n}",)) for n in range(count)
    ]


def by_theme(request):
    """Merges what has the same theme."""
    sets = {}
    for number, title in enumerate(listed(request), 1):
        sets.setdefault(title.partition("/")[0], []).append(number)
    items = []
    for theme, numbers in [entry for entry in sets.items() if len(entry[1]) > 1][:8]:
        titles = "".join(listed(request)[number - 1].partition("/")[2] for number in numbers)
        items += json.loads(reply(kind_asked(request), (f"{theme}/", titles[:300] or "x", "note"), sources=numbers))[
            "items"
        ]
    return json.dumps({"items": items})


def traced(merged, id):
    """Memory ids below an item, by way of the lineage alone."""
    seen, left = set(), [id]
    while left:
        at = left.pop()
        if at not in seen:
            seen.add(at)
            left += merged.lineage.get(at, ())
    return {at for at in seen if "memory" in at}


def test_nothing_is_lost_whatever_the_writer_merges():
    pool = candidates(70, themes=9)
    merged = merge(pool, FunctionWriter(by_theme), group_size=8)
    parents = [parent for item in merged.items for parent in item.parents]
    assert sorted(parents) == sorted(parent for candidate in pool for parent in candidate.parents)
    for item in merged.items:
        assert traced(merged, item.id) == set(item.parents)
    for candidate in pool:
        assert candidate.id in merged.lineage


def test_skills_and_mistakes_never_meet():
    writer = FunctionWriter(by_theme)
    merge(candidates(6, themes=1) + candidates(6, "mistake", themes=1), writer)
    assert [kind_asked(request) for request in writer.requests] == ["skill", "mistake"]


def test_a_first_layer_that_does_not_shrink_is_the_last():
    writer = FunctionWriter(lambda request: '{"items": []}')
    merged = merge(candidates(100), writer, group_size=32, patience=3)
    assert [(layer.groups, layer.before, layer.after) for layer in merged.layers] == [(4, 100, 100)]
    assert len(merged.items) == 100


def test_later_layers_have_patience_and_other_groups_each():
    writer = FunctionWriter(lambda request: by_theme(request) if len(writer.requests) <= 4 else '{"items": []}')
    merged = merge(candidates(200, themes=10), writer, group_size=64, patience=3)
    assert [layer.before > layer.after for layer in merged.layers] == [True, False, False, False]
    groups = [frozenset(listed(request)) for request in writer.requests]
    assert len(set(groups)) == len(groups)


def test_nothing_to_merge_asks_nothing():
    writer = FunctionWriter(by_theme)
    assert merge([], writer).items == ()
    assert merge(candidates(1) + candidates(1, "mistake"), writer).items == tuple(
        candidates(1) + candidates(1, "mistake")
    )
    assert not writer.requests


def test_a_group_that_fails_stays_as_it_is_and_is_told():
    merged = merge(candidates(40, themes=2), FunctionWriter(lambda request: None), attempts=2)
    assert len(merged.items) == 40
    assert len(merged.failures) == sum(layer.failed for layer in merged.layers) == 2
    assert {(failure.reason, failure.attempts) for failure in merged.failures} == {("no luck", 2)}
    assert merged.counts["rejected: no luck"] == 4


def test_candidates_that_say_the_same_word_for_word_become_one_with_all_parents():
    twice = [Candidate("skill", "a", "b", "c", (parent,)) for parent in ("m1", "m2", "m1")]
    assert unite(twice) == [Candidate("skill", "a", "b", "c", ("m1", "m2"))]
    assert merge(twice, FunctionWriter(by_theme)).items[0].parents == ("m1", "m2")


def test_an_item_that_comes_out_as_one_it_was_merged_from_keeps_every_memory():
    pool = candidates(3)
    same = (pool[0].title, pool[0].text, pool[0].note)
    merged = merge(pool, FunctionWriter(lambda request: reply("skill", same, sources=[1, 2, 3])))
    (item,) = merged.items
    assert set(item.parents) == traced(merged, item.id) == {f"skill-memory-{n}" for n in range(3)}


def test_the_same_seed_gives_the_same_bank():
    pool = candidates(90, themes=7)
    once, again = (merge(pool, FunctionWriter(by_theme), group_size=16, seed=3) for _ in range(2))
    assert once == again


def test_grouped_by_similarity_a_group_holds_one_theme():
    writer = FunctionWriter(by_theme)

    def embed(texts):
        return np.eye(4, dtype=np.float32)[[int(text.partition("/")[0]) for text in texts]]

    merged = merge(candidates(64, themes=4), writer, group_size=16, embed=embed)
    first_layer = writer.requests[:4]
    assert [len({title.partition("/")[0] for title in listed(request)}) for request in first_layer] == [1] * 4
    assert len(merged.items) == 4
    assert len(merged.layers) == 2


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([1], "two or more"),
        ([1, 9], "from 1 to 4"),
        ([1, 1], "two or more"),
        ("1, 2", "two or more"),
        ([True, 2], "1 to 4"),
    ],
)
def test_sources_must_be_numbers_of_the_group(sources, reason):
    with pytest.raises(UnfitError, match=reason):
        read_merge(candidates(4), Written("k", reply("skill", ("a", "b", "c"), sources=sources), None, 1, 1))


def test_an_answer_that_makes_the_group_no_smaller_is_refused():
    text = reply("skill", ("a", "b", "c"), ("d", "e", "f"), sources=[1, 2])
    with pytest.raises(UnfitError, match="2 items out of 2"):
        read_merge(candidates(4), Written("k", text, None, 1, 1))


def test_the_schema_allows_what_is_read():
    request = merge_request(candidates(4))
    jsonschema.validate(json.loads(reply("skill", ("a", "b", "c"), sources=[1, 4])), request.schema)
    for bad in ([1], [0, 1], [1, 5]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(reply("skill", ("a", "b", "c"), sources=bad)), request.schema)


@pytest.mark.parametrize("settings", [{"group_size": 1}, {"patience": 0}])
def test_settings_that_would_never_end_are_refused(settings):
    with pytest.raises(ValueError, match="at least"):
        merge(candidates(3), FunctionWriter(by_theme), **settings)


@given(st.integers(0, 40), st.integers(1, 8), st.integers(2, 9), st.integers(0, 5))
def test_whatever_comes_in_every_memory_is_below_some_item(count, themes, size, seed):
    pool = candidates(count, themes=themes)
    merged = merge(pool, FunctionWriter(by_theme), group_size=size, seed=seed)
    assert {p for item in merged.items for p in item.parents} == {p for c in pool for p in c.parents}
    assert len(merged.items) <= count
    assert len({item.id for item in merged.items}) == len(merged.items)
