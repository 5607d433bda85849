"""Stored responses under another verifier."""

from __future__ import annotations

import json

import pytest

from sgsd.errors import ConfigError, DataError
from sgsd.evaluation import Evaluation
from sgsd.evaluation.regrade import agreement, disagreements, read_responses, regrade, stored_samples
from sgsd.evaluation.run import Sample, verifier_of
from sgsd.verifiers import Outcome, Verdict


class Equal:
    """The text is the answer; a question mark cannot be decided."""

    def verify_many(self, completions, answers):
        undecided = Verdict(Outcome.UNDECIDED, "timeout")
        return [
            undecided
            if completion == "?"
            else Verdict(Outcome.CORRECT if completion == answer else Outcome.INCORRECT, None, completion)
            for completion, answer in zip(completions, answers, strict=True)
        ]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_agreement_and_disagreements_of_a_file(tmp_path):
    rows = [
        {"id": "a", "answer": "1", "response": "1", "correct": True, "answer_format": "bare"},
        {"id": "b", "answer": "1", "response": "2", "correct": True, "answer_format": "bare"},
        {"id": "c", "answer": "1", "response": "1", "correct": False, "answer_format": "box"},
        {"id": "d", "answer": "1", "response": "?", "correct": False, "answer_format": "box"},
        {"answer": "1", "response": "1"},
    ]
    judged = regrade(read_responses(written(tmp_path / "r.jsonl", rows)), Equal())
    assert list(judged["id"]) == ["a", "b", "c", "d", "r-4"]
    changed = disagreements(judged)
    assert list(changed["id"]) == ["b", "c"]  # undecided is "not correct", too
    assert changed.to_dict("records")[0] == {
        "id": "b",
        "stored": "correct",
        "new": "incorrect",
        "reference": "1",
        "extracted": "2",
        "reason": None,
        "answer_format": "bare",
        "problem": "",
        "response": "2",
    }
    halves = {"responses": 2, "agreed": 1, "agreement": 0.5}
    assert agreement(judged) == {
        "responses": 5,
        "correct": 3,
        "incorrect": 1,
        "undecided": 1,
        "no_answer": 1,
        "with_stored_verdict": 4,
        "agreed": 2,
        "agreement": 0.5,
        "now_correct": 1,
        "no_longer_correct": 1,
        "by_format": {"bare": halves, "box": halves},
    }


def test_samples_of_an_evaluation_have_three_outcomes_and_truncated_ones_stay_incorrect(tmp_path):
    samples = [("1", "end", "correct"), ("?", "end", "incorrect"), ("1", "length", "incorrect")]
    evaluation = Evaluation(
        tuple(
            Sample("p", index, completion, 1, stop, outcome, None, None, "1?", "1")
            for index, (completion, stop, outcome) in enumerate(samples)
        ),
        3,
    )
    evaluation.save(tmp_path / "kept")
    for responses in (
        stored_samples(evaluation.samples),
        read_responses(tmp_path / "kept"),
        read_responses(tmp_path / "kept" / "samples.jsonl"),
    ):
        judged = regrade(responses, Equal())
        assert list(judged["new"]) == ["correct", "undecided", "incorrect"]
        assert list(disagreements(judged)["id"]) == ["p:1"]
        assert judged["verdict"][2] == Verdict(Outcome.INCORRECT, "truncated", "1")


def test_without_stored_verdicts_there_is_no_agreement(tmp_path):
    rows = [{"answer": "1", "response": "1", "answer_format": "box"}]
    judged = regrade(read_responses(written(tmp_path / "r.jsonl", rows)), Equal())
    assert agreement(judged)["agreement"] is None
    assert agreement(judged)["by_format"] == {"box": {"responses": 0, "agreed": 0, "agreement": None}}
    assert disagreements(judged).empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read: got .*r.jsonl"),
        ("", "holds no responses"),
        ("{\n", r"r.jsonl:1: malformed JSON"),
        ("[1]\n", r"r.jsonl:1: wrong type: got list"),
        ('{"answer": "1"}\n', r"not a response: got .*r.jsonl:1"),
        ('{"answer": 1, "response": "1"}\n', "expected text in response, answer and answer_format"),
        ('{"answer": "1", "response": "1", "correct": "yes"}\n', "in correct true or false"),
        ('{"completion": "1", "outcome": "correct"}\n', r"r.jsonl:1: problem_id is missing"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    file = tmp_path / "r.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_responses(file)


def test_old_samples_without_their_reference_are_refused(tmp_path):
    old = Sample("p", 0, "1", 1, "end", "correct", None, "1")
    with pytest.raises(DataError, match="without its reference"):
        stored_samples([old])
    Evaluation((old,), 1).save(tmp_path)
    with pytest.raises(DataError, match="without its reference"):
        read_responses(tmp_path)


def test_a_record_names_no_code_that_is_run():
    assert verifier_of(None, {}) == "math"
    assert verifier_of(None, {"verifier": "choice"}) == "choice"
    assert verifier_of(None, {"verifier": "sgsd.verifiers.dapo:reward"}) == "sgsd.verifiers.dapo:reward"
    assert verifier_of("mine:reward", {"verifier": "theirs:reward"}) == "mine:reward"
    with pytest.raises(
        ConfigError, match="not run unless requested: got theirs:reward; say --verifier theirs:reward if"
    ):
        verifier_of(None, {"verifier": "theirs:reward"})
