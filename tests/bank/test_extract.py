"""From memories to candidates."""

from __future__ import annotations

import json

import jsonschema
import pytest

from sgsd.bank import Mistake, Origin, Skill
from sgsd.bank.extract import Candidate, extraction_request, read_candidate, read_extraction
from sgsd.bank.writing import MAX_TITLE, UnfitError, WriteFailure, Written, write_until_fit
from sgsd.data.problems import Problem
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
    with pytest.raises(UnfitError, match="description is missing"):
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
        reply("skill", ("a" * (MAX_TITLE + 2), "b", "c")),
        reply("skill", ("a", "", "c")),
        reply("skill"),
        reply("mistake", ("a", "b", "c")),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(bad), schema)
        with pytest.raises(UnfitError):
            read_extraction(memory(), written(bad), max_items=2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty text"),
        ("I would rather not.", "no JSON object"),
        ('{"items": [{"title": "a"', "no JSON object"),
        ('{"items": [{"title": "a"}', "malformed JSON"),
        ("<html>{}</html>", "items: cannot be used"),
        ('{"items": "none"}', "items: cannot be used"),
        ('{"items": ["none"]}', r"items: \[0\]"),
        (reply("skill", ("a", "   ", "c")), "principle is blank"),
        (reply("skill", ("a", "\frac{1}{2}", "c")), "a control character"),
        (reply("skill", ("a", "Multiply with \times two.", "c")), "principle holds a LaTeX command"),
        (reply("skill", ("a", "b", "Where x \neq 0 holds.")), "holds a LaTeX command"),
        (None, "no luck"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason_in_one_line(text, reason):
    with pytest.raises(UnfitError, match=reason) as error:
        read_extraction(memory(), written(text, "no luck"))
    assert "\n" not in error.value.reason


APPLES = Problem("p2", "Marta sells 24 of her 96 apples to Tom. How many apples are left for Marta to sell?", "72")
SAYS = "Take what is sold away from what was there."


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (("Take away", "The problem states that", "When something is sold."), "cut in mid-sentence"),
        (("Take away", SAYS, "When something is sold, and"), "cut in mid-sentence"),
        (("Take away", "Take away what is sold,", "When something is sold."), "cut in mid-sentence"),
        (("Take away", 'Take away, and so."},{"', "When something is sold."), "pieces of JSON"),
        (("Take away", "Take 24 away from what was there.", "When something is sold."), "numbers of the problem"),
        (("Take away", "Count what Tom buys.", "When something is sold."), "names of the problem"),
        (("Take away", "Count the apples that Marta has.", "When something is sold."), "names of the problem"),
        (("Take away", "How many apples are left for her to count?", "When sold."), None),
        (("Take away", "How many apples are left for Marta to sell?", "When sold."), "the prompt is copied"),
        (("Take away", "Add ninety six to the number of apples here.", "When sold."), "the prompt is copied"),
        (("Take away", SAYS, "One whole sentence, at most 20 words."), "the prompt is copied"),
        (("Take away", "...", "When something is sold."), "principle is blank"),
        (("Take away", "x" * 321, "When something is sold."), "more than 320 characters"),
        (("Take away", SAYS, "When something is sold."), None),
        (("Find what is left", "Find it by taking 1 from 10, as with 100 %.", "When one of ten is gone"), None),
        (
            (
                "Use Vieta's formulas",
                "The Pythagorean theorem gives $\\{1\\},\\{2\\}$.",
                "In the interval [0, 1], [2, 3].",
            ),
            None,
        ),
    ],
)
def test_an_item_that_helps_with_no_other_problem_is_sent_back_with_the_reason(item, reason):
    asked = memory_of(
        APPLES,
        "Add ninety six to the number of apples here, then stop.",
        Verdict(Outcome.CORRECT, None, "72"),
        truncated=False,
        source="s",
    )
    if reason is None:
        assert len(read_extraction(asked, written(reply("skill", item)))) == 1
        return
    with pytest.raises(UnfitError, match=reason):
        read_extraction(asked, written(reply("skill", item)))
    good = ("Take away", SAYS, "When something is sold.")
    writer = FunctionWriter(lambda request: reply("skill", good if reason in request.messages[-1]["content"] else item))
    (found,), counts = write_until_fit(
        writer, [extraction_request(asked)], [lambda answer: read_extraction(asked, answer)]
    )
    assert found[0].text == SAYS
    assert (counts["requests"], sum(n for name, n in counts.items() if name.startswith("rejected"))) == (2, 1)


def test_a_fence_and_thoughts_around_the_json_are_passed_over():
    text = f"<think>hm</think>\n```json\n{reply('skill', ('a', 'b', 'c'), ('a', 'b  ', ' c'))}\n```"
    assert [c.title for c in read_extraction(memory(), written(text))] == ["a"], "and the same item counts once"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>so \\boxed{72} and \\frac{1}{2}</think>\n", ""),
        ('<think>The form is {"items": [...]}.</think>', "\nNote: {done}"),
        ("By \\frac{1}{2}: ", ""),
    ],
)
def test_braces_of_thoughts_and_remarks_are_passed_over(before, after):
    text = before + reply("skill", ("a", "b", "c")) + after
    assert [c.title for c in read_extraction(memory(), written(text))] == ["a"]


def test_a_candidate_becomes_an_item_with_the_same_id_and_parents():
    skill = Candidate("skill", "a", "b", "c", ("m",)).item(Origin.COLD_START)
    assert skill == Skill.new("b", title="a", when="c", origin=Origin.COLD_START, parents=["m"])
    mistake = Candidate("mistake", "a", "b", "c", ("m",))
    assert mistake.item(Origin.ONLINE) == Mistake(mistake.id, "a", "b", "c", Origin.ONLINE, ("m",))


def test_a_candidate_comes_back_from_json():
    candidate = Candidate("mistake", "a", "b", "c", ("m",))
    assert read_candidate(json.loads(json.dumps(candidate.as_dict()))) == candidate


def test_what_does_not_fit_is_asked_again_with_the_next_seed_and_then_given_up():
    good = reply("skill", ("a", "b", "c"))
    writer = FunctionWriter(lambda request: good if request.seed in (0, 12) else "nonsense")
    requests = [extraction_request(memory(), seed=seed) for seed in (0, 10, 20)]
    readers = [lambda answer: read_extraction(memory(), answer)] * 3
    (first, second, third), counts = write_until_fit(writer, requests, readers, attempts=3)
    assert first[0].title == second[0].title == "a"
    assert third == WriteFailure(requests[2].key, "no JSON object", "nonsense", 3)
    assert counts == {
        "requests": 7,
        "prompt_tokens": 70,
        "completion_tokens": 35,
        "rejected: no JSON object": 5,
    }
    said = [r.messages[-1]["content"].rpartition("\n\n")[2] for r in writer.requests]
    assert [text.startswith("An earlier answer was sent back: no JSON object.") for text in said] == [False] * 3 + [
        True
    ] * 4
    assert [r.seed for r in writer.requests] == [0, 10, 20, 11, 21, 12, 22]
    assert len({r.key for r in writer.requests}) == 7
