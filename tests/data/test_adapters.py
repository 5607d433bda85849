"""Every format reads as intended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.data.adapters import Adapted, adapt, strip_wrapper
from sgsd.data.curation import curate
from sgsd.data.problems import DropReason, Problem
from sgsd.errors import ConfigError, DataError
from sgsd.verifiers import get_verifier

HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem."
)
TAIL = 'Remember to put your answer on its own line after "Answer:".'
TEXT = "How many ducks are in 3 ponds of 4 ducks each?"


def wrapped(text: str) -> str:
    return f"{HEAD}\n\n{text}\n\n{TAIL}"


def read(*rows: Mapping[str, Any], adapter: str | None = None) -> Adapted:
    columns = dict.fromkeys(column for row in rows for column in row)
    return adapt(rows, columns, stem="ducks", source="farm/ducks", adapter=adapter)


def only(row: Mapping[str, Any]) -> Problem:
    adapted = read(row)
    assert not adapted.dropped
    (problem,) = adapted.problems
    return problem


DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": wrapped(TEXT)}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "12", "style": "rule"},
    "extra_info": {"index": "a-b-c"},
}
GYM = {"question": "Calculate 8 + 4.", "answer": "12", "metadata": {"source_dataset": "sums", "b": 1, "a": [2, (3, 4)]}}

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "another metadata": ("plain", {"question": TEXT, "answer": "12", "metadata": {"page": 3}}),
    "DAPO raw": ("dapo_raw", DAPO),
    "DAPO raw with a plain prompt": ("dapo_raw", DAPO | {"prompt": wrapped(TEXT)}),
    "DAPO processed": ("dapo_processed", DAPO | {"prompt": TEXT, "solution": "12", "source_prompt": DAPO["prompt"]}),
    "OpenThoughts": ("plain", {"problem": TEXT, "solution": "3 · 4", "Answer": "12", "messages": []}),
    "GSM8K": ("gsm8k", {"question": TEXT, "answer": "There are 3*4=<<3*4=12>>12 ducks.\n#### 12"}),
    "MATH-500": (
        "plain",
        {"problem": TEXT, "solution": "x", "answer": "12", "subject": "Ducks", "level": 2, "unique_id": "test/1.json"},
    ),
    "AIME 2024": (
        "plain",
        {"id": 60, "problem": TEXT, "solution": "x", "answer": "12", "url": "https://example.org", "year": "2024"},
    ),
    "AIME 1983-2024": ("plain", {"ID": "1983-1", "Year": 1983, "Question": TEXT, "Answer": "12"}),
    "MathArena": ("plain", {"problem_idx": 7, "problem": TEXT, "answer": 12, "problem_type": ["Combinatorics"]}),
    "Minerva, AMC": ("plain", {"question": TEXT, "answer": "12"}),
    "AMC from Parquet": ("plain", {"id": 0, "question": TEXT, "answer": 12.0, "url": "https://example.org"}),
    "JSONL": ("plain", {"id": "d1", "problem": TEXT, "answer": "12", "solution": "x", "source": "my farm"}),
    "JSONL with text": ("plain", {"text": TEXT, "answer": ["12"]}),
    "MATH": ("plain", {"problem": TEXT, "level": "Level 2", "type": "Ducks", "solution": r"So \boxed{12}."}),
    "TRL conversational": ("trl", {"prompt": [{"role": "user", "content": TEXT}], "ground_truth": "12"}),
    "TRL string": ("trl", {"prompt": TEXT, "answer": "12"}),
    "TRL solution": ("trl", {"prompt": TEXT, "solution": "12"}),
    "TRL boxed solution": ("trl", {"prompt": TEXT, "solution": r"Thus $\boxed{12}$"}),
}


@pytest.mark.parametrize(("adapter", "row"), FORMATS.values(), ids=FORMATS)
def test_every_format_is_detected_and_yields_text_and_answer(adapter: str, row: dict[str, Any]) -> None:
    adapted = read({name: row[name] for name in reversed(row)} | {"difficulty": 1, "embedding": [0.5]})
    (problem,) = adapted.problems
    assert adapted.adapter == adapter
    assert (problem.text, problem.answer, problem.key) == (TEXT, "12", "12")


@pytest.mark.parametrize("prompt", [wrapped(TEXT), [{"role": "system", "content": "Be brief."}, *DAPO["prompt"]]])
def test_the_adapter_that_keeps_dapos_wrapper_is_chosen_by_name_alone(prompt: object) -> None:
    row = DAPO | {"prompt": prompt}
    assert read(row).adapter == "dapo_raw"
    adapted = read(row, adapter="dapo_wrapped")
    (problem,) = adapted.problems
    assert (problem.text, problem.answer, problem.id) == (wrapped(TEXT).strip(), "12", "a-b-c")
    assert adapted.notes == {"instruction wrapper kept": 1}


def test_own_ids_and_sources_stay_and_missing_ones_name_the_row() -> None:
    ids = {name: only(row).id for name, (_, row) in FORMATS.items()}
    assert ids["DAPO raw"] == ids["DAPO processed"] == "a-b-c"
    assert ids["MATH-500"] == "test/1.json"
    assert ids["AIME 2024"] == "60"
    assert ids["AIME 1983-2024"] == "1983-1"
    assert ids["MathArena"] == "7"
    assert ids["AMC from Parquet"] == "0"
    assert ids["GSM8K"] == "ducks-0"
    assert only(FORMATS["GSM8K"][1]).source == "farm/ducks#0"
    assert only(FORMATS["JSONL"][1]).source == "my farm"


def test_repeated_ids_are_suffixed_and_counted() -> None:
    rows = [{"id": name, "problem": TEXT, "answer": "12"} for name in ("a", "a", "a#2", "a", "b")]
    adapted = read(*rows)
    ids = [problem.id for problem in adapted.problems]
    assert ids == ["a", "a#2", "a#2#2", "a#3", "b"]
    assert adapted.notes == {"repeated id given a suffix": 3}


def test_gsm8k_loses_its_calculator_annotations_and_digit_groups() -> None:
    problem = only({"question": TEXT, "answer": "It is <<600*2=1200>>1200.\n#### 5 no\nso\n#### 1,200"})
    assert problem.answer == "1200"
    assert problem.solution == "It is 1200.\n#### 5 no\nso\n#### 1,200"


def test_gsm8k_solutions_without_a_final_line_have_no_answer_and_plain_answers_are_taken() -> None:
    answers = ("#### 12", "Three times four.\nTwelve, I think.", "7", 1_200)
    adapted = read(*({"question": TEXT + str(place), "answer": answer} for place, answer in enumerate(answers)))
    assert [problem.answer for problem in adapted.problems] == ["12", "", "7", "1200"]
    assert [problem.solution for problem in adapted.problems] == [*answers[:2], None, None]
    assert adapted.notes == {"one line without #### taken as the answer": 2}
    _, report = curate(adapted.problems)
    assert report.ids("no_answer") == ("ducks-1",)


# ---- multiple choice

LETTERED = "Capital of France?\nA. Rome\nB. Paris"
CHOICES = ["Rome", "Paris"]


@pytest.mark.parametrize(
    "row",
    [
        {"choices": CHOICES, "answer": 1, "subject": "geography"},
        {"choices": CHOICES, "answer": 1.0},
        {"choices": CHOICES, "answer": "Paris"},
        {"choices": CHOICES, "answer": "(b)"},
        {"choices": {"text": CHOICES, "label": ["A", "B"]}, "answerKey": "B"},
        {"choices": {"text": CHOICES, "label": ["1", "2"]}, "answerKey": "2"},
        {"options": ["Rome", " Paris\n"], "answer": "B", "answer_index": 1},
        {"options": {"A": "Rome", "B": "Paris", "C": None}, "answer": "Paris"},
    ],
)
def test_choices_reach_the_prompt_and_the_answer_is_a_letter_that_the_verifier_reads(row: dict[str, Any]) -> None:
    adapted = read({"question": "Capital of France?", **row})
    (problem,) = adapted.problems
    assert (problem.text, problem.answer) == (LETTERED, "B")
    assert sum(adapted.notes.values()) == 1
    choice = get_verifier("choice")
    assert choice.readable(problem.key)
    verdicts = choice.verify_many([r"\boxed{B}", r"\boxed{A}"], [problem.key] * 2)
    assert [verdict.outcome for verdict in verdicts] == ["correct", "incorrect"]


@pytest.mark.parametrize(
    ("choices", "answer", "why"),
    [
        (CHOICES, 2, "'2' is none of the choices"),
        (CHOICES, -1, "'-1' is none of the choices"),
        (CHOICES, 0.5, "'0.5' is none"),
        (CHOICES, "1", "'1' is none of the choices"),
        (CHOICES, "Lyon", "'Lyon' is none of the choices"),
        (["B", "A"], "A", "'A' is several of the choices"),
        (["x"] * 27, 0, "more choices than labels"),
        ({str(label): "x" for label in range(27)}, "26", "more choices than labels"),
        (["", "Rome", "Paris"], 1, "an empty choice"),
        ([2, 1, 0], 2, "'2' is several of the choices"),
        ("Rome, Paris", 1, "column choices holds no list"),
        ([["Rome"], {}], 1, "column choices holds a dict"),
    ],
)
def test_a_row_whose_answer_is_no_choice_is_dropped_with_the_reason(choices: Any, answer: Any, why: str) -> None:
    row = {"question": "Capital of France?", "choices": choices, "answer": answer}
    (drop,) = read(row).dropped
    assert drop.reason == DropReason.MALFORMED
    assert why in drop.why


def test_a_number_is_a_place_unless_the_choices_are_numbers() -> None:
    for choices, answer, letter in ((["1", "0"], 0, "A"), (["1", "0"], "0", "B"), ([10, 20.0], 20, "B")):
        (problem,) = read({"question": TEXT, "choices": choices, "answer": answer}).problems
        assert problem.answer == letter


def test_rows_without_choices_or_with_a_prompt_are_left_alone() -> None:
    row = {"question": TEXT, "answer": 1}
    for more in ({}, {"choices": None}, {"choices": []}, {"choices": CHOICES, "prompt": "A. Rome, B. Paris?"}):
        assert [(one.text, one.answer) for one in read(row | more, adapter="plain").problems] == [(TEXT, "1")]
    (unanswered,) = read({"question": TEXT, "choices": CHOICES, "answer": None}).problems
    assert (unanswered.text, unanswered.answer) == (f"{TEXT}\nA. Rome\nB. Paris", "")


# ---- DAPO's wrapper


@given(st.text(min_size=1).map(str.strip).filter(bool))
def test_stripping_undoes_wrapping(text: str) -> None:
    assert strip_wrapper(wrapped(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "Answer the riddle: what has 12 ducks?",
        "Let Answer: be a word. How many letters has it?",
        'What does "Answer:" mean?',
        f'A sheet says "{HEAD}" and nothing else. How many words is that?',
        f"{TAIL} How many words is that?",
        "Solve the following math problem step by step. 1 + 1",
    ],
)
def test_a_problem_that_speaks_of_answers_is_left_alone(text: str) -> None:
    assert strip_wrapper(text) == text
    assert only({"prompt": text, "answer": "1"}).text == text


def test_the_wrapper_is_stripped_from_the_system_form_too_and_counted() -> None:
    row = DAPO | {"prompt": [{"role": "system", "content": HEAD}, {"role": "user", "content": TEXT}]}
    adapted = read(row)
    assert adapted.problems[0].text == TEXT
    assert adapted.notes == {"instruction wrapper stripped": 1}
    other = DAPO | {"prompt": [{"role": "system", "content": "Be a duck."}, {"role": "user", "content": TEXT}]}
    (problem,) = read(other).problems
    assert problem.prompt == tuple(other["prompt"])
    assert read(other).notes == {"conversation kept as it is": 1}


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "system", "content": TEXT}],
        [{"content": TEXT}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
        [TEXT],
        {"text": TEXT},
    ],
)
def test_prompts_without_a_question_in_text_are_malformed(prompt: object) -> None:
    adapted = read({"prompt": prompt, "answer": "12"})
    assert [drop.reason for drop in adapted.dropped] == [DropReason.MALFORMED]
    assert adapted.dropped[0].id == "ducks-0"


TALK = [
    {"role": "system", "content": "Be a duck."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Quack."},
    {"role": "user", "content": f" {TEXT} "},
]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TALK, "answer": "12"},
        {"prompt": TALK, "question": TEXT, "answer": "3*4=<<3*4=12>>12\n#### 12"},
        {"prompt": TALK, "problem": TEXT, "solution": r"So \boxed{12}."},
        {"prompt": TALK, "problem": TEXT, "answer": "12", "unique_id": "u"},
        DAPO | {"prompt": TALK},
    ],
    ids=["trl", "gsm8k", "problem", "math500", "dapo"],
)
def test_a_conversation_is_kept_in_full_whatever_reads_the_rest(row: dict[str, Any]) -> None:
    filled = [message | {"name": None, "tool_calls": None} for message in TALK]  # as Parquet does
    assert only(row | {"prompt": filled}).prompt == tuple(TALK)
    problem = only(row)
    assert problem.prompt == tuple(TALK)
    assert (problem.text, problem.answer) == (TEXT, "12")
    assert problem.columns == {name: value for name, value in row.items() if name != "prompt"}


def test_text_is_kept_as_a_prompt_and_without_the_wrapper_as_a_problem() -> None:
    problem = only({"prompt": wrapped(TEXT), "answer": "12"})
    assert (problem.text, problem.prompt) == (TEXT, wrapped(TEXT))


def test_dapos_wrapper_is_kept_where_the_adapter_is_trls() -> None:
    (problem,) = read(DAPO, adapter="trl").problems
    assert (problem.text, problem.answer, problem.prompt) == (TEXT, "12", tuple(DAPO["prompt"]))
    assert only(DAPO).prompt is None


@pytest.mark.parametrize("row", [{"prompt": TALK, "level": 3}, {"question": TEXT, "level": 3}])
def test_rows_without_any_answer_serve_reward_functions_alone(row: dict[str, Any]) -> None:
    adapted = adapt([row], row, stem="ducks", source="farm", needs_answer=False)
    (problem,) = adapted.problems
    assert (problem.text, problem.answer, problem.columns["level"]) == (TEXT, "", 3)
    with pytest.raises(DataError, match="no adapter fits"):
        read(row)


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth", "reward_model", "id"])
@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, True, r"\boxed{1} \boxed{2}"], ids=str)
def test_reward_functions_alone_need_no_answer_that_is_text(column: str, value: Any) -> None:
    row = {"prompt": TALK, column: value}
    adapted = adapt([row], row, stem="ducks", source="farm", needs_answer=False)
    (problem,) = adapted.problems
    assert (problem.text, problem.columns[column]) == (TEXT, value)
    if column == "answer" and not isinstance(value, str):
        assert [drop.reason for drop in read(row).dropped] == ["malformed"]


def test_equal_rows_share_the_memory_of_their_columns() -> None:
    first, second = read(dict(DAPO), dict(DAPO)).problems
    assert first.columns is second.columns


def test_a_prompt_in_text_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two?"}]
    assert only({"prompt": [{"role": "user", "content": parts}], "answer": "12"}).text == "One.\nTwo?"


def test_a_processed_row_with_two_answers_is_malformed() -> None:
    row = FORMATS["DAPO processed"][1]
    assert only(row | {"solution": "12.0"}).answer == "12.0"
    assert read(row | {"solution": "13"}).dropped[0].why == "solution says '13', reward_model says '12'"


# ---- reasoning-gym, boxes, detection


def test_reasoning_gym_entries_carry_themselves_as_reference() -> None:
    problem = only(GYM)
    assert (problem.text, problem.answer) == ("Calculate 8 + 4.", "12")
    assert problem.reference == json.dumps(GYM, sort_keys=True)
    assert problem.key == problem.reference


def test_reasoning_gym_entries_json_cannot_carry_are_dropped_and_counted() -> None:
    bad = GYM | {"metadata": {"source_dataset": "sums", "x": {1, 2}}}
    worse = GYM | {"metadata": {"source_dataset": "sums", "x": float("nan")}}
    adapted = read(bad, GYM, worse)
    assert len(adapted.problems) == 1
    assert [drop.id for drop in adapted.dropped] == ["ducks-0", "ducks-2"]
    kept, report = curate(adapted.problems)
    report = report.including(adapted, source="gym")
    assert (report.rows, report.kept, report.counts) == (3, len(kept), {"malformed": 2})


def test_a_solution_that_boxes_two_answers_gives_none() -> None:
    adapted = read(
        {"problem": TEXT, "solution": r"\boxed{12}, that is \boxed{12.0}"},
        {"problem": TEXT, "solution": r"\boxed{12} or \boxed{13}"},
    )
    assert [one.answer for one in adapted.problems] == ["12.0"]
    assert [(drop.id, drop.reason) for drop in adapted.dropped] == [("ducks-1", DropReason.MALFORMED)]
    assert "2 boxes in the solution: 12; 13" in adapted.dropped[0].why


def test_a_boxed_answer_is_counted_and_only_used_where_the_column_is_silent() -> None:
    row = {"problem": TEXT, "solution": r"\boxed{12}", "Answer": None}
    adapted = read(row, row | {"Answer": "13"}, row | {"solution": "no box"})
    assert [problem.answer for problem in adapted.problems] == ["12", "13", ""]
    assert adapted.notes == {r"answer taken from the \boxed{} of the solution": 1}


def test_no_fitting_adapter_says_what_it_got_and_expected() -> None:
    with pytest.raises(DataError, match=r"got gold, pred; expected problem and answer \(docs/data.md"):
        read({"pred": "1", "gold": "2"})


def test_an_unknown_adapter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean gsm8k"):
        read(GYM, adapter="gsm8")


def test_an_adapter_that_lacks_its_columns_is_refused() -> None:
    with pytest.raises(DataError, match="needs another column: got prompt; expected one of answer, metadata, question"):
        read(GYM, adapter="trl")


def test_booleans_objects_and_worked_solutions_are_not_answers() -> None:
    adapted = read({"problem": TEXT, "answer": True}, {"problem": TEXT, "answer": {"x": 1}})
    assert [drop.reason for drop in adapted.dropped] == [DropReason.MALFORMED] * 2
    (worked,) = read(FORMATS["GSM8K"][1], adapter="plain").dropped
    assert "adapter gsm8k reads those" in worked.why
    assert read({"problem": TEXT, "answer": float("nan")}).problems[0].answer == ""


ODD: dict[str, Any] = {"question": TEXT, "gold": "12", "answer": "13", "text": "a chapter", "key": "k", "prompt": "Hi"}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("problem=question,answer=gold", (TEXT, "12", "ducks-0", None)),
        (" problem = question , answer=gold,id=key", (TEXT, "12", "k", None)),
        ("problem=question", (TEXT, "13", "ducks-0", None)),
        ("problem=question,prompt=prompt,answer=gold", (TEXT, "12", "ducks-0", "Hi")),
        ("prompt=question,answer=gold", (TEXT, "12", "ducks-0", TEXT)),
    ],
)
def test_columns_that_are_named_are_read_and_no_others_in_their_place(mapping: str, expected: tuple[Any, ...]) -> None:
    adapted = adapt([ODD], ODD, stem="ducks", source="farm", mapping=mapping)
    (problem,) = adapted.problems
    assert (problem.text, problem.answer, problem.id, problem.prompt) == expected
    assert adapted.adapter == "columns"


@pytest.mark.parametrize(
    ("mapping", "adapter", "message"),
    [
        ("problem", None, "not a mapping"),
        ("problem=question,problem=gold", None, "not a mapping"),
        ("problem=question,gold=answer", None, "not a mapping"),
        ("answer=gold", None, "name no problem"),
        ("problem=riddle,answer=gold", None, "no such column: got riddle"),
        ("problem=question", "plain", "exclude each other"),
    ],
)
def test_a_mapping_that_cannot_be_followed_is_refused(mapping: str, adapter: str | None, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        adapt([ODD], ODD, stem="ducks", source="farm", mapping=mapping, adapter=adapter)
