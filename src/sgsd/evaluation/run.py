"""Sample plain prompts, verify, summarise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sgsd.evaluation.statistics import Estimate, mean_estimate
from sgsd.problems import Problem
from sgsd.prompts import PromptRenderer, refuse_long_prompts
from sgsd.rollouts import Sampler, StopReason
from sgsd.verifiers import Outcome, Verifier


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged completion."""

    problem_id: str
    sample: int
    completion: str
    tokens: int
    stop_reason: str
    outcome: str
    reason: str | None
    extracted: str | None


@dataclass(frozen=True)
class Evaluation:
    """Every sample of one evaluation, ``k`` per problem.

    A truncated completion is incorrect, whatever it holds; an undecided one counts as not correct, and is counted.
    """

    samples: tuple[Sample, ...]
    k: int

    @property
    def accuracies(self) -> dict[str, float]:
        """Problem id → share of its k samples that are correct, in the order of the problems."""
        correct: dict[str, int] = {}
        for sample in self.samples:
            correct[sample.problem_id] = correct.get(sample.problem_id, 0) + (sample.outcome == Outcome.CORRECT)
        return {problem_id: count / self.k for problem_id, count in correct.items()}

    @property
    def accuracy(self) -> Estimate:
        """avg@k with its 95 % interval over problems."""
        return mean_estimate(list(self.accuracies.values()))

    def summary(self) -> dict[str, object]:
        """What is written to ``summary.json`` and printed."""
        accuracy = self.accuracy
        count = len(self.samples)
        return {
            "problems": len(self.accuracies),
            "samples_per_problem": self.k,
            "accuracy": accuracy.mean,
            "ci95": [accuracy.low, accuracy.high],
            "truncated": sum(sample.stop_reason == StopReason.LENGTH for sample in self.samples) / count,
            "no_answer": sum(sample.extracted is None for sample in self.samples) / count,
            "undecided": sum(sample.outcome == Outcome.UNDECIDED for sample in self.samples) / count,
            "mean_tokens": sum(sample.tokens for sample in self.samples) / count,
        }

    def save(self, folder: Path, **extra: object) -> None:
        """Write ``samples.jsonl`` and ``summary.json``, with ``extra`` in the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(asdict(sample), ensure_ascii=False) for sample in self.samples)
        (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps({**extra, **self.summary()}, indent=2) + "\n", encoding="utf-8")


def evaluate(
    sampler: Sampler,
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    verifier: Verifier,
    *,
    k: int = 1,
    seed: int = 0,
    max_prompt_length: int | None = None,
) -> Evaluation:
    """k samples of every problem's plain prompt, each judged by the verifier.

    Args:
        sampler: draws the completions.
        problems: what is asked.
        renderer: makes the prompts; the same as in training.
        verifier: judges; the same as in training.
        k: samples per problem.
        seed: of the sampling.
        max_prompt_length: refuse longer prompts, in tokens.

    Raises:
        PromptError: a prompt is too long.
    """
    prompts = [renderer.student_ids(problem.text) for problem in problems]
    if max_prompt_length is not None:
        refuse_long_prompts(map(len, prompts), max_prompt_length)
    asked = [(problem, index) for problem in problems for index in range(k)]
    rollouts = sampler.sample([prompt for prompt in prompts for _ in range(k)], seed=seed)
    verdicts = verifier.verify_many([rollout.text for rollout in rollouts], [problem.key for problem, _ in asked])
    samples = []
    for (problem, index), rollout, verdict in zip(asked, rollouts, verdicts, strict=True):
        cut = rollout.stop_reason is StopReason.LENGTH
        samples.append(
            Sample(
                problem_id=problem.id,
                sample=index,
                completion=rollout.text,
                tokens=len(rollout.completion_ids),
                stop_reason=rollout.stop_reason,
                outcome=Outcome.INCORRECT if cut else verdict.outcome,
                reason="truncated" if cut else verdict.reason,
                extracted=verdict.extracted,
            )
        )
    return Evaluation(tuple(samples), k)
