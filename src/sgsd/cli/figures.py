"""The figures of a certificate, from the results of the stages of ``sgsd internalize`` (docs/certificate.md)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required

import numpy as np
from pydantic import FiniteFloat, TypeAdapter
from scipy import stats
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank import Ledger, Skill, SkillBank
from sgsd.bank.credit import credit
from sgsd.bank.documents import sources
from sgsd.data.problems import Problem
from sgsd.evaluation import Evaluation, paired_difference
from sgsd.evaluation.statistics import Estimate
from sgsd.verifiers import Outcome

_RECITED_WORDS = 6
_RESAMPLES = 5000
_SHOWN_ANSWERS = 10
_JUDGED = {Outcome.CORRECT: True, Outcome.INCORRECT: False, Outcome.UNDECIDED: None}
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # kana and Chinese characters, written without spaces
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_Logged = TypedDict(
    "_Logged",
    {
        "step": Required[runfolder.Count],
        "num_tokens": FiniteFloat,
        "step_time": FiniteFloat,
        "sgsd/teacher_tokens": FiniteFloat,
        "sgsd/student_tokens": FiniteFloat,
    },
    total=False,
)


class _State(TypedDict):
    global_step: runfolder.Count
    log_history: list[_Logged]


class _Timed(TypedDict):
    seconds: FiniteFloat


_STATE, _TIMED = TypeAdapter(_State), TypeAdapter(_Timed)


def accuracy(evaluation: Evaluation) -> dict[str, Any]:
    """The share of tasks answered right, with its interval."""
    return _figure("accuracy", evaluation.accuracy)


def difference(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """The accuracy after minus the accuracy before, paired by task, with its interval."""
    return _figure("mean", paired_difference(values(before), values(after)))


def values(evaluation: Evaluation) -> list[float]:
    """The accuracy of each task."""
    return list(evaluation.accuracies.values())


def kept(before: Sequence[float], shown: Sequence[float], after: Sequence[float]) -> dict[str, Any] | None:
    """(after − before) / (with the document − before), with a percentile bootstrap interval over problems.

    ``None`` if the document shows no gain in the prompt, that is if the interval of that gain contains 0.
    """
    if paired_difference(before, shown).low <= 0:
        return None

    def share(first: Any, second: Any, third: Any, axis: int = -1) -> Any:
        gained = second.mean(axis) - first.mean(axis)
        return (third.mean(axis) - first.mean(axis)) / np.where(gained > 0, gained, np.nan)

    arrays = tuple(map(np.asarray, (before, shown, after)))
    drawn = stats.bootstrap(
        arrays,
        share,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        batch=100,  # the memory is that of so many resamples
        rng=np.random.default_rng(0),
    )
    low, high = np.nanquantile(drawn.bootstrap_distribution, [0.025, 0.975])
    return {"share": float(share(*arrays)), "ci95": [float(low), float(high)]}


def recited(evaluation: Evaluation, document: str) -> float:
    """The share of answers that have a word 6-gram in common with the document."""
    runs = runs_of_words(document)
    return float(np.mean([bool(runs_of_words(sample.completion) & runs) for sample in evaluation.samples]))


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """The word 6-grams of a text; a Chinese or Japanese character is a word."""
    letters = unicodedata.normalize("NFC", text.lower())  # vowel signs, of Hindi, say, would end a word
    words = _WORD.findall("".join(one for one in letters if unicodedata.category(one)[0] != "M"))
    return {tuple(words[n : n + _RECITED_WORDS]) for n in range(len(words) - _RECITED_WORDS + 1)}


def rules(bank: SkillBank, run: Path) -> list[dict[str, Any]]:
    """A row per rule: its worth, from −1 to 1, by the run's ledger, and whether the interval excludes 0."""
    ledger, places = Ledger.load(run / runfolder.LEDGER), sources(bank)
    rows: list[dict[str, Any]] = []
    for item in bank.items:
        record = ledger.record(item.id)
        found = credit(record)
        low, high = 2 * found.low - 1, 2 * found.high - 1
        verdict = "earned" if low > 0 else "harmful" if high < 0 else "idle"
        if not record.active:
            verdict = "idle" if record.uses else "unused"
        rows.append(
            {
                "id": item.id,
                "kind": "skill" if isinstance(item, Skill) else "mistake",
                "title": item.title,
                "text": item.text,
                "source": places.get(item.id),
                "worth": 2 * found.value - 1,
                "ci95": [low, high],
                "uses": record.uses,
                "verdict": verdict,
            }
        )
    return rows


def answers(problems: Sequence[Problem], made: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Ten problems with the answers of each evaluation; ``correct`` is ``None`` where the verifier was undecided."""
    return [
        {
            "problem": problem.text,
            "answer": problem.answer,
            "grpo": None,
            **{
                name: {"text": sample.completion, "correct": _JUDGED[Outcome(sample.outcome)]}
                for name, evaluation in made.items()
                for sample in evaluation.by_problem[problem.id]
            },
        }
        for problem in problems[:_SHOWN_ANSWERS]
    ]


def training(run: Path) -> tuple[int, int, float, int]:
    """The steps of a run, its rollouts, the seconds of all steps, and the tokens that the run processed.

    A sampled token counts once, as does one that a teacher scores. One that the student learns from counts three times,
    for the forward and twice as much for the backward pass, and so does one of a rehearsed text.
    """
    state = runfolder.read_json(run / runfolder.STATE, _STATE)
    settings = runfolder.read_json(run / runfolder.RUN, runfolder.RUN_RECORD)["settings"]
    history, steps, passes = state["log_history"], state["global_step"], settings["num_iterations"]
    batches = steps * settings["gradient_accumulation_steps"] / (settings["steps_per_generation"] * passes)
    rollouts = math.ceil(batches) * settings["generation_batch_size"]
    sampled = max((row["num_tokens"] for row in history if "num_tokens" in row), default=0)
    taught, learnt = (_mean(history, f"sgsd/{of}_tokens") for of in ("teacher", "student"))
    seconds = sum(mean * count for mean, count in windows(history, "step_time"))
    return steps, rollouts, seconds, round(sampled + (taught + 3 * learnt * passes) * rollouts)


def seconds(file: Path) -> float:
    """The duration of a stage, from its file."""
    return runfolder.read_json(file, _TIMED)["seconds"]


def windows(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, int]]:
    """The values of a metric, each the mean of the steps since the last log, with the number of these steps."""
    logged = [row for row in history if name in row]
    before = [0, *(row["step"] for row in logged)]
    return [(row[name], row["step"] - last) for row, last in zip(logged, before, strict=False)]


def _mean(history: Sequence[Mapping[str, Any]], name: str) -> float:
    found = windows(history, name)
    return sum(mean * count for mean, count in found) / max(sum(count for _, count in found), 1)


def _figure(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.mean, "ci95": [estimate.low, estimate.high]}
