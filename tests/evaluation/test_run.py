"""From problems to judged samples."""

from __future__ import annotations

import json

import pytest

from sgsd.errors import PromptError
from sgsd.evaluation import evaluate
from sgsd.problems import Problem
from sgsd.prompts import PromptRenderer
from sgsd.rollouts import Rollout, StopReason
from sgsd.verifiers import Outcome, Verdict

PROBLEMS = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in (3, 1, 2)]


class Script:
    """A sampler that says what it is told, in order, and remembers what it was asked."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.asked: list[tuple[int, ...]] = []
        self.seeds: list[int] = []

    def sample(self, prompts, *, seed):
        self.asked += map(tuple, prompts)
        self.seeds.append(seed)
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                completion_ids=(5,) * len(line),
                text=line.removesuffix("…"),
                stop_reason=StopReason.LENGTH if line.endswith("…") else StopReason.END,
            )
            for prompt, line in zip(prompts, self.lines, strict=True)
        ]


class Reader:
    """A verifier that takes the text for the answer, and cannot decide on a question mark."""

    def verify(self, completion, answer):
        if completion == "?":
            return Verdict(Outcome.UNDECIDED, "timeout", None)
        right = completion == answer
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, None if right else "different", completion)

    def verify_many(self, completions, answers):
        return [self.verify(*pair) for pair in zip(completions, answers, strict=True)]


@pytest.fixture
def renderer(tokenizer):
    return PromptRenderer(tokenizer)


def test_truncated_is_incorrect_and_undecided_is_not_correct(renderer):
    result = evaluate(Script("3", "1…", "?"), PROBLEMS, renderer, Reader())
    assert [sample.outcome for sample in result.samples] == ["correct", "incorrect", "undecided"]
    assert [sample.reason for sample in result.samples] == [None, "truncated", "timeout"]
    assert result.accuracies == {"p3": 1.0, "p1": 0.0, "p2": 0.0}
    summary = result.summary()
    assert summary["accuracy"] == pytest.approx(1 / 3)
    for share in ("truncated", "undecided", "no_answer"):
        assert summary[share] == pytest.approx(1 / 3)
    assert summary["mean_tokens"] == pytest.approx((1 + 2 + 1) / 3)


def test_samples_come_by_problem_in_the_order_of_the_problems(renderer):
    sampler = Script("3", "9", "1", "1", "9", "9")
    result = evaluate(sampler, PROBLEMS, renderer, Reader(), k=2, seed=7)
    assert [(sample.problem_id, sample.sample) for sample in result.samples] == [
        *[("p3", 0), ("p3", 1), ("p1", 0), ("p1", 1), ("p2", 0), ("p2", 1)]
    ]
    assert list(result.accuracies.items()) == [("p3", 0.5), ("p1", 1.0), ("p2", 0.0)]
    assert result.accuracy.mean == pytest.approx(0.5)
    assert sampler.seeds == [7]
    assert sampler.asked == [tuple(renderer.student_ids(p.text)) for p in PROBLEMS for _ in range(2)]


def test_long_prompts_are_refused_before_anything_is_sampled(renderer):
    sampler = Script()
    with pytest.raises(PromptError, match="3 of 3 plain prompts are too long"):
        evaluate(sampler, PROBLEMS, renderer, Reader(), max_prompt_length=4)
    assert sampler.asked == []


def test_what_is_saved_can_be_read_back(renderer, tmp_path):
    result = evaluate(Script("3", "1…", "∞"), PROBLEMS, renderer, Reader())
    result.save(tmp_path / "new" / "folder", model="m")
    rows = [json.loads(line) for line in (tmp_path / "new/folder/samples.jsonl").read_text("utf-8").splitlines()]
    assert [row["completion"] for row in rows] == ["3", "1", "∞"]
    assert rows[1]["stop_reason"] == "length"
    summary = json.loads((tmp_path / "new/folder/summary.json").read_text("utf-8"))
    assert summary == {"model": "m", **result.summary()}
    assert summary["ci95"][0] <= summary["accuracy"] <= summary["ci95"][1]
