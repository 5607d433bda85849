"""From memories to candidates."""

from __future__ import annotations

import json

import jsonschema
import pytest

from sgsd.bank.extract import Candidate, ExtractionError, extraction_request, read_candidate, read_extraction
from sgsd.bank.skills import Mistake, Origin, Skill
from sgsd.bank.writing import MAX_TITLE, WriteCounts, WriteFailure, Written, write_until_fit
from sgsd.data.problems import Problem
from sgsd.errors import DataError
from sgsd.memories import memory_of
from sgsd.verifiers import Outcome, Verdict

from .writers import FunctionWriter, reply

PROBLEM = Problem("p1", "Tom has {2} apples and buys 3. How many?", "5550123")


def memory(outcome=Outcome.CORRECT):
    return memory_of(PROBLEM, "First add.\nThen 5.", Verdict(outcome, None, "5"), truncated=False, source="p1#0")


def written(text, error=None):
    return Written("key", text, error, 1, 1)


def test_a_success_gives_skills_and_a_failure_mistakes():
    (skill,) = read_extraction(memory(), written(reply("skill", ("Add", "Add what is bought.", "When buying."))))
    assert skill == Candidate("skill", "Add", "Add what is bought.", "When buying.", (memory().id,))
    failure = memory(Outcome.INCORRECT)
    (mistake,) = read_extraction(failure, written(reply("mistake", ("Slip", "Haste.", "Check."))))
    assert (mistake.kind, mistake.parents) == ("mistake", (failure.id,))
    with pytest.raises(ExtractionError, match="description is missing"):
        read_extraction(failure, written(reply("skill", ("Add", "Add.", "Buying."))))


def test_the_reference_answer_is_shown_on_request_alone():
    assert "5550123" not in json.dumps(extraction_request(memory()).messages)
    assert "5550123" in json.dumps(extraction_request(memory(), show_answer=True).messages)


def test_the_request_shows_the_problem_and_the_steps_and_says_how_it_failed():
    text = extraction_request(memory(Outcome.INCORRECT)).messages[-1]["content"]
    assert "Tom has {2} apples" in text
    assert "First add.\nThen 5." in text
    assert "its final answer is wrong" in text


def test_equal_requests_have_equal_keys_and_others_other_ones():
    assert extraction_request(memory()).key == extraction_request(memory()).key
    others = (
        extraction_request(memory(), seed=1),
        extraction_request(memory(), max_items=2),
        extraction_request(memory(Outcome.INCORRECT)),
    )
    assert len({extraction_request(memory()).key, *(other.key for other in others)}) == 4


def test_what_fits_the_schema_is_read_and_the_schema_bounds_what_is_read():
    schema = extraction_request(memory(), max_items=2).schema
    good = reply("skill", ("Add", "Add.", "Buying."), ("Sum", "Sum.", "Selling."))
    jsonschema.validate(json.loads(good), schema)
    assert len(read_extraction(memory(), written(good), max_items=2)) == 2
    for bad in (
        reply("skill", *[(str(n), "b", "c") for n in range(3)]),
        reply("skill", ("a" * (MAX_TITLE + 1), "b", "c")),
        reply("skill", ("a", "", "c")),
        reply("skill"),
        reply("mistake", ("a", "b", "c")),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(bad), schema)
        with pytest.raises(ExtractionError):
            read_extraction(memory(), written(bad), max_items=2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty text"),
        ("I would rather not.", "no JSON object"),
        ('{"items": [{"title": "a"', "no JSON object"),
        ('{"items": [{"title": "a"}', "malformed JSON"),
        ("<html>{}</html>", "items: wrong type"),
        ('{"items": "none"}', "items: wrong type"),
        ('{"items": ["none"]}', "an item: wrong type"),
        (reply("skill", ("a", "   ", "c")), "principle is blank"),
        (reply("skill", ("a", "\frac{1}{2}", "c")), "no text may hold"),
        (None, "no luck"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason_in_one_line(text, reason):
    with pytest.raises(ExtractionError, match=reason) as error:
        read_extraction(memory(), written(text, "no luck"))
    assert "\n" not in error.value.reason


def test_a_fence_and_thoughts_around_the_json_are_passed_over():
    text = f"<think>hm</think>\n```json\n{reply('skill', ('a', 'b', 'c'), ('a', 'b  ', ' c'))}\n```"
    assert [c.title for c in read_extraction(memory(), written(text))] == ["a"], "and the same item counts once"


def test_a_candidate_becomes_an_item_with_the_same_id_and_parents():
    skill = Candidate("skill", "a", "b", "c", ("m",)).item(Origin.COLD_START)
    assert skill == Skill.new("b", title="a", when="c", origin=Origin.COLD_START, parents=["m"])
    mistake = Candidate("mistake", "a", "b", "c", ("m",))
    assert mistake.item(Origin.ONLINE) == Mistake(mistake.id, "a", "b", "c", Origin.ONLINE, ("m",))


def test_a_candidate_comes_back_from_json():
    candidate = Candidate("mistake", "a", "b", "c", ("m",))
    assert read_candidate(json.loads(json.dumps(candidate.as_dict())), "here") == candidate
    for change in ({"kind": "hint"}, {"parents": [1]}, {"text": None}):
        with pytest.raises(DataError, match="line 3: not a candidate"):
            read_candidate(candidate.as_dict() | change, "line 3")


def test_what_does_not_fit_is_asked_again_with_the_next_seed_and_then_given_up():
    good = reply("skill", ("a", "b", "c"))
    writer = FunctionWriter(lambda request: good if request.seed in (0, 12) else "nonsense")
    requests = [extraction_request(memory(), seed=seed) for seed in (0, 10, 20)]
    readers = [lambda answer: read_extraction(memory(), answer)] * 3
    (first, second, third), counts = write_until_fit(writer, requests, readers, attempts=3)
    assert first[0].title == second[0].title == "a"
    assert third == WriteFailure(requests[2].key, "no JSON object", "nonsense", 3)
    assert counts == WriteCounts(7, 70, 35)
    assert [r.seed for r in writer.requests] == [0, 10, 20, 11, 21, 12, 22]
    assert len({r.key for r in writer.requests}) == 7
