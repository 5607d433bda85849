"""Data sets → the rows that TRL's trainer is given."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from datasets import Dataset

from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.errors import DataError, PromptError
from sgsd.prompts import PromptRenderer, RawText
from sgsd.trainers.rows import problems_of, prompt_of, training_rows

from ..conftest import make_tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
RENDERER = PromptRenderer(make_tokenizer(), instruction=None)


def rows_of(*rows, verified=True, limit=1000, **options):
    problems = problems_of(Dataset.from_list(list(rows), on_mixed_types="use_json"), verified=verified)
    return training_rows(problems, RENDERER, max_prompt_length=limit, verified=verified, **options)


def test_a_conversation_stays_as_it_is_and_every_column_with_it():
    row = {"prompt": TALK, "answer": "2", "level": 3, "tags": ["a", "b"], "more": {"x": 1}}
    (made,) = rows_of(row)
    assert made == row | {"problem": "1 + 1?", "problem_id": "row-0", "solution": "2"}


def test_text_stays_text():
    (made,) = rows_of({"prompt": "1 + 1 =", "answer": "2"})
    assert made["prompt"] == "1 + 1 ="
    assert isinstance(prompt_of(made), RawText)
    assert RENDERER.student_ids(prompt_of(made)) == make_tokenizer()("1 + 1 =")["input_ids"]


def test_a_problem_alone_has_the_instruction():
    (made,) = rows_of({"problem": "1 + 1?", "answer": "2"})
    assert prompt_of(made) == RENDERER.student_messages("1 + 1?")
    assert RENDERER.instruction in made["prompt"][0]["content"]


def test_a_verifier_is_given_its_answer_and_other_rewards_the_data_sets():
    row = {"question": "1 + 1?", "answer": "It is 2.\n#### 2", "prompt": TALK}
    assert rows_of(row)[0]["answer"] == "2"
    assert rows_of(row, verified=False)[0]["answer"] == row["answer"]


def test_reward_functions_of_ones_own_need_no_answer_and_lose_no_row():
    rows = rows_of({"prompt": TALK, "aim": 1}, {"prompt": TALK, "aim": 2}, verified=False)
    assert rows["aim"] == [1, 2]
    assert "answer" not in rows.column_names
    assert rows["problem_id"] == ["row-0", "row-1"]


ODD = {"list": ["a", "b"], "dict": {"a": 1, "b": [2]}, "bool": True, "boxes": r"\boxed{1} or \boxed{2}", "int": 7}


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth", "reward_model", "id"])
@pytest.mark.parametrize("kind", ODD)
def test_reward_functions_of_ones_own_need_no_answer_that_is_text(column, kind):
    rows = [{"prompt": f"{n}?", column: ODD[kind]} for n in range(3)]
    found = rows_of(*rows, verified=False)
    assert found["prompt"] == [row["prompt"] for row in rows]
    assert found[column] == [ODD[kind]] * 3


@pytest.mark.parametrize("empty", [None, ""])
def test_a_problem_column_without_a_value_is_the_last_user_message(empty):
    rows = [
        {"prompt": "1?", "problem": empty, "problem_id": empty},
        {"prompt": "2?", "problem": "two", "problem_id": "b"},
    ]
    found = rows_of(*rows, verified=False)
    assert found["problem"] == ["1?", "two"]
    assert found["problem_id"] == ["row-0", "b"]


def test_a_problem_column_of_numbers_is_refused_by_its_row():
    with pytest.raises(DataError, match=r"the column problem is not text: got int in row-0; .*rename the column"):
        rows_of({"prompt": "1?", "problem": 3}, verified=False)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "system", "content": "Say a number."}], "the prompt has no user message"),
        ([{"role": "system", "content": "Say a number."}, {"role": "user", "content": ""}], "no_text"),
    ],
)
def test_a_conversation_that_asks_nothing_is_named(messages, why, caplog):
    rows = [{"prompt": [{"role": "user", "content": "1?"}], "answer": "1"}, {"prompt": messages, "answer": "1"}]
    with pytest.raises(DataError, match=f"1 of 2 rows of the data set cannot be used: got row-1: {why}; .*leave these"):
        rows_of(*rows, verified=False)
    rows_of(*rows)
    assert f"row-1: {why}" in caplog.text


def test_columns_of_mixed_types_stay_as_they_were():
    rows = rows_of(
        {"problem": "a", "answer": "1", "x": 1, "o": {"a": 1}}, {"problem": "b", "answer": "2", "x": "y", "o": {"b": 2}}
    )
    assert [row["x"] for row in rows] == [1, "y"]


@pytest.mark.parametrize(
    "values",
    [(10**30, 10**30), ([10**30], [1]), ({"k": 10**30}, {"k": 1}), (10**30, "y"), ("y", 10**30), ([1], 10**30)],
)
def test_an_integer_that_no_column_holds_is_told(values):
    problems = [Problem(f"p{value}"[:9], "x", "1", columns={"level": value}) for value in values]
    with pytest.raises(DataError, match=r", in level; expected .* integers of at most 64 bits"):
        training_rows(problems, RENDERER, max_prompt_length=100)


def test_text_and_conversations_do_not_mix():
    problems = [Problem("a", "x", "1"), Problem("b", "x", "1", prompt="x")]
    with pytest.raises(DataError, match="some are conversations: got text in b, a conversation in a"):
        training_rows(problems, RENDERER, max_prompt_length=100)


def test_no_row_that_can_be_used_is_said_with_the_first_ones_reason():
    with pytest.raises(DataError, match=r"no row .* row-0: the prompt has no user message"):
        rows_of({"prompt": TALK[:1], "answer": "2"})


# ---- lengths

LONG = [Problem(f"p{n}", "x" * (500 if n in (1, 3) else 5), "1") for n in range(5)]


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_refused_by_their_column_and_a_column_without_any_is_left_out(column):
    without = {"prompt": TALK, "answer": "2", column: None}
    assert column not in rows_of(without).column_names
    with pytest.raises(DataError, match=f"images are not supported: got column {column} in row-1"):
        rows_of({**without, "answer": "3"}, {"prompt": "1?", "answer": "1", column: "https://example.org/2.png"})


def test_long_prompts_are_named():
    with pytest.raises(PromptError, match=r"2 of 5 plain prompts are too long: got up to \d+ tokens \(p1, p3\)"):
        training_rows(LONG, RENDERER, max_prompt_length=200)


def test_long_prompts_can_be_left_out_with_a_count(caplog):
    rows = training_rows(LONG, RENDERER, max_prompt_length=200, long_prompts="drop")
    assert rows["problem_id"] == ["p0", "p2", "p4"]
    assert "2 of 5 rows left out: prompts of more than 200 tokens (p1, p3)" in caplog.text
    with pytest.raises(PromptError, match="5 of 5"):
        training_rows(LONG, RENDERER, max_prompt_length=20, long_prompts="drop")


def test_a_teachers_long_prompt_leaves_its_row_out_too():
    problems = [replace(problem, text="x") for problem in LONG]
    references = ["y" * (500 if n == 2 else 5) for n in range(5)]
    with pytest.raises(PromptError, match=r"1 of 5 teacher prompts .*\(p2\)"):
        training_rows(problems, RENDERER, max_prompt_length=300, references=references)
    rows = training_rows(problems, RENDERER, max_prompt_length=300, references=references, long_prompts="drop")
    assert rows["problem_id"] == ["p0", "p1", "p3", "p4"]
    assert rows["teacher_prompt"][2] == RENDERER.reference_ids(problems[3], references[3])


# ---- files of public bug reports


def test_system_messages_of_a_file_reach_the_rows(shared_data):
    file = shared_data / "bugcases" / "system.jsonl"
    problems, report = load_problems(file)
    assert report.counts == {}
    rows = training_rows(problems, RENDERER, max_prompt_length=1000)
    assert rows["prompt"] == [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
