"""Evaluation: sample, verify, summarise. All samples are stored, and an interrupted evaluation can be resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Required

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, WrapValidator
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation.metrics import answer_group, majority_at_k, pass_at_k, subset_sizes
from sgsd.evaluation.statistics import Estimate, mean_estimate
from sgsd.prompts import PromptRenderer, Shown, refuse_long_prompts
from sgsd.rollouts import Rollout, Sampler, StopReason, derived_seed
from sgsd.validation import short_json
from sgsd.verifiers import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import names_code, verify_in_context

TRUNCATED = "truncated"
_HASHES = ("prompts", "weights", "bank")  # settings that mean nothing to a reader
_FILES = (runfolder.SETTINGS, runfolder.SAMPLES, runfolder.SUMMARY)


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged completion: a line of ``samples.jsonl``.

    Attributes:
        sample: index among the problem's k samples, from 0.
        tokens: length of the completion, the end token included.
        stop_reason, outcome: a ``StopReason`` and an ``Outcome``; incorrect where it was truncated.
        reason: the verifier's, or ``truncated``.
        extracted: the answer that was compared with the reference.
        problem, reference: texts of the problem and the reference answer, for regrading.
        retokenised: the engine returned only text; ``tokens`` may be off by a few, see ``rollouts.Rollout``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    problem_id: str
    sample: int
    completion: str
    tokens: runfolder.Count
    stop_reason: str
    outcome: Annotated[str, Field(pattern="^(correct|incorrect|undecided)$")]
    reason: str | None
    extracted: str | None
    problem: str | None = None
    reference: str | None = None
    retokenised: bool = False

    @property
    def is_correct(self) -> bool:
        return self.outcome == Outcome.CORRECT

    @property
    def is_truncated(self) -> bool:
        return self.stop_reason == StopReason.LENGTH

    def judged(self, verdict: Verdict) -> Sample:
        """The same completion under a verdict; a truncated one is incorrect whatever the verdict."""
        return dataclasses.replace(
            self,
            outcome=str(Outcome.INCORRECT if self.is_truncated else verdict.outcome),
            reason=TRUNCATED if self.is_truncated else verdict.reason,
            extracted=verdict.extracted,
        )


SAMPLE = TypeAdapter(Sample)


class _Summary(TypedDict, total=False):
    """The keys of ``summary.json`` that are read back; there are others."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    problems: int
    samples_per_problem: Required[Annotated[int, Field(ge=1)]]
    accuracy: float | None
    model: str | None
    dataset: str | None
    step: int | None
    seed: int | None
    skills_in_prompt: bool
    verifier: str | None
    verifier_options: dict[str, Any] | None


_SUMMARY = TypeAdapter(Annotated[_Summary, WrapValidator(runfolder.in_order)])


@dataclass(frozen=True)
class Evaluation:
    """Every sample of one evaluation, ``k`` per problem.

    A truncated completion is incorrect, whatever it holds. An undecided one counts as not correct.
    """

    samples: tuple[Sample, ...]
    k: int

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """A finished evaluation as ``save`` wrote it.

        Raises:
            DataError: no evaluation, an unfinished one, or samples that cannot be read.
        """
        if not (folder / runfolder.SUMMARY).is_file():
            cut_off = (folder / runfolder.SAMPLES).is_file()
            raise DataError(
                "the evaluation is not finished" if cut_off else "the folder holds no evaluation",
                got=str(folder),
                expected=f"{runfolder.SAMPLES} and {runfolder.SUMMARY} in it",
                remedy="run the same sgsd eval command again to resume it" if cut_off else None,
            )
        summary, samples = read_summary(folder), read_samples(folder / runfolder.SAMPLES)
        k = summary["samples_per_problem"]
        made = cls(tuple(samples), k)
        problems = summary.get("problems", len(made.by_problem))
        if not samples or len(made.by_problem) != problems or any(len(own) != k for own in made.by_problem.values()):
            raise DataError(
                "samples are missing",
                got=f"{len(samples)} in {folder / runfolder.SAMPLES}",
                expected=f"{k} of each of {problems} problems",
            )
        return made

    @cached_property
    def by_problem(self) -> Mapping[str, Sequence[Sample]]:
        """Problem id → its samples, in the order of the problems."""
        grouped: dict[str, list[Sample]] = {}
        for sample in self.samples:
            grouped.setdefault(sample.problem_id, []).append(sample)
        return grouped

    @property
    def accuracies(self) -> dict[str, float]:
        """Problem id → share of its k samples that are correct, in the order of the problems."""
        return {name: sum(sample.is_correct for sample in own) / self.k for name, own in self.by_problem.items()}

    @property
    def accuracy(self) -> Estimate:
        """avg@k with its 95 % interval over problems."""
        return mean_estimate(list(self.accuracies.values()))

    @property
    def truncated(self) -> float:
        """Share of the samples that the length limit cut off."""
        return sum(sample.is_truncated for sample in self.samples) / len(self.samples)

    def pass_at(self, k: int) -> Estimate:
        """Unbiased pass@k with its 95 % interval over problems; ``metrics.pass_at_k``."""
        counts = (sum(sample.is_correct for sample in own) for own in self.by_problem.values())
        return mean_estimate([pass_at_k(self.k, count, k) for count in counts])

    def majority_at(self, k: int) -> Estimate:
        """maj@k with its 95 % interval over problems; ``metrics.majority_at_k``. A truncated sample has no vote."""
        return mean_estimate(
            [
                majority_at_k(
                    [None if s.extracted is None or s.is_truncated else answer_group(s.extracted) for s in own],
                    [sample.is_correct for sample in own],
                    k,
                )
                for own in self.by_problem.values()
            ]
        )

    def summary(self) -> dict[str, object]:
        """The metrics of ``summary.json``: fractions, and lengths in tokens.

        ``pass@k`` and ``maj@k`` have k = 2, 4, 8 … and the number of samples; maj@k needs a verifier that returns the
        extracted answers. ``p90_tokens`` is the 90th percentile, interpolated.
        """
        count = len(self.samples)
        tokens = [sample.tokens for sample in self.samples]
        votes = any(sample.extracted is not None for sample in self.samples)
        several: dict[str, object] = {}
        for name, estimated in {"pass": self.pass_at, **({"maj": self.majority_at} if votes else {})}.items():
            for k in subset_sizes(self.k)[1:]:
                estimate = estimated(k)
                several |= {f"{name}@{k}": estimate.mean, f"{name}@{k}_ci95": [estimate.low, estimate.high]}
        return {
            "problems": len(self.by_problem),
            "samples_per_problem": self.k,
            "accuracy": self.accuracy.mean,
            "ci95": [self.accuracy.low, self.accuracy.high],
            **several,
            "truncated": self.truncated,
            "no_answer": sum(sample.extracted is None for sample in self.samples) / count,
            "undecided": sum(sample.outcome == Outcome.UNDECIDED for sample in self.samples) / count,
            "mean_tokens": float(np.mean(tokens)),
            "median_tokens": float(np.median(tokens)),
            "p90_tokens": float(np.percentile(tokens, 90)),
        }

    def under(self, verdicts: Sequence[Verdict]) -> Evaluation:
        """The same completions under other verdicts, one per sample; truncated ones stay incorrect."""
        judged = (sample.judged(verdict) for sample, verdict in zip(self.samples, verdicts, strict=True))
        return Evaluation(tuple(judged), self.k)

    def save(self, folder: Path, **extra: object) -> None:
        """Write ``samples.jsonl`` and ``summary.json``, with ``extra`` in the latter."""
        runfolder.write_text(folder / runfolder.SAMPLES, sample_lines(self.samples))
        runfolder.write_json(folder / runfolder.SUMMARY, {**extra, **self.summary()})


def sample_lines(samples: Sequence[Sample]) -> str:
    """Samples as JSON lines."""
    return "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def read_samples(file: Path, *, torn: bool = False) -> list[Sample]:
    """The samples of a ``samples.jsonl``; ``torn`` ignores an incomplete last line."""
    return [sample for _, sample in runfolder.read_lines(file, SAMPLE, torn=torn)]


def read_summary(folder: Path) -> dict[str, Any]:
    """A folder's ``summary.json``."""
    return dict(runfolder.read_json(folder / runfolder.SUMMARY, _SUMMARY))


def batch_seed(seed: int, batch: int) -> int:
    """The sampling seed of a batch, counted from 0: ``seed`` for the first, then ``derived_seed``.

    The samples of a batch therefore do not depend on earlier batches.
    """
    return derived_seed(seed, batch) if batch else seed


def prompts_of(
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    shown: Sequence[Shown] | None = None,
) -> list[list[int]]:
    """The token ids of each problem's prompt: plain, or with the text or items in ``shown``.

    Raises:
        PromptError: nothing is shown for a problem, whose prompt would be the plain one.
    """
    if shown is None:
        return [renderer.student_ids(problem) for problem in problems]
    return [renderer.skilled_ids(problem, own) for problem, own in zip(problems, shown, strict=True)]


def evaluate(
    sampler: Sampler,
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    verifier: Verifier,
    *,
    k: int = 1,
    seed: int = 0,
    max_prompt_length: int | None = None,
    shown: Sequence[Shown] | None = None,
    batch_size: int | None = None,
    done: Sequence[Sample] = (),
    on_batch: Callable[[Sequence[Sample]], None] | None = None,
) -> Evaluation:
    """Draw k samples for every problem and judge them.

    Samples are drawn in batches, problem by problem, each batch with its own seed (``batch_seed``). An evaluation that
    is resumed from ``done`` has therefore the same samples as an uninterrupted one.

    Args:
        sampler: draws the completions.
        problems: the problems.
        renderer: renders the prompts; the same as in training.
        verifier: judges the completions; the same as in training.
        k: samples per problem.
        seed: of the sampling.
        max_prompt_length: refuse longer prompts, in tokens.
        shown: for each problem, what its prompt shows of a bank; ``None`` for plain prompts.
        batch_size: samples per call of the sampler; ``None`` for all in one.
        done: the first samples of the same evaluation. Samples of an incomplete batch are drawn again.
        on_batch: called with each batch's new samples once they are judged.

    Raises:
        PromptError: a prompt is too long.
        ValueError: two problems have one id, or ``done`` is not the beginning of this evaluation.
    """
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError("two problems have one id: their samples could not be told apart")
    prompts = prompts_of(problems, renderer, shown)
    if max_prompt_length is not None:
        what = "plain prompts" if shown is None else "prompts with skills"
        refuse_long_prompts(map(len, prompts), max_prompt_length, what)
    places = [(problem, sample) for problem in range(len(problems)) for sample in range(k)]
    size = batch_size or len(places)
    samples = list(done[: in_complete_batches(len(done), size, len(places))])
    expected = [(problems[problem].id, sample) for problem, sample in places[: len(samples)]]
    if [(sample.problem_id, sample.sample) for sample in samples] != expected:
        raise ValueError("the samples in done are not the first samples of this evaluation")
    for start in range(len(samples), len(places), size):
        batch = places[start : start + size]
        asked = [problems[problem] for problem, _ in batch]
        rollouts = sampler.sample([prompts[problem] for problem, _ in batch], seed=batch_seed(seed, start // size))
        beside = [None if shown is None else shown[problem] for problem, _ in batch]
        verdicts = verify_in_context(
            verifier,
            [rollout.text for rollout in rollouts],
            [problem.key for problem in asked],
            partial(_contexts, asked, beside, rollouts, renderer),
        )
        judged = [
            Sample(
                problem_id=problem.id,
                sample=sample,
                completion=rollout.text,
                tokens=rollout.tokens,
                stop_reason=str(rollout.stop_reason),
                outcome=str(Outcome.UNDECIDED),
                reason=None,
                extracted=None,
                problem=problem.text,
                reference=problem.key,
                retokenised=rollout.retokenised,
            ).judged(verdict)
            for problem, (_, sample), rollout, verdict in zip(asked, batch, rollouts, verdicts, strict=True)
        ]
        samples += judged
        if on_batch is not None:
            on_batch(judged)
    return Evaluation(tuple(samples), k)


def _contexts(
    problems: Sequence[Problem], shown: Sequence[Shown | None], rollouts: Sequence[Rollout], renderer: PromptRenderer
) -> list[Context]:
    """The arguments of a reward function, as in training."""
    contexts: list[Context] = []
    for problem, own, rollout in zip(problems, shown, rollouts, strict=True):
        prompt = renderer.student_messages(problem) if own is None else renderer.skilled_messages(problem, own)
        is_text = isinstance(prompt, str)
        contexts.append(
            Context(
                prompt=str(prompt) if is_text else prompt,
                completion=rollout.text if is_text else [{"role": "assistant", "content": rollout.text}],
                completion_ids=rollout.completion_ids,
                columns=problem.reward_columns,
            )
        )
    return contexts


def in_complete_batches(done: int, size: int, total: int) -> int:
    """The number of finished samples in complete batches."""
    return done if done == total else done - done % size


def verifier_of(asked: str | None, record: Mapping[str, object]) -> str:
    """The requested verifier, else the one of the record.

    Raises:
        ConfigError: the record names a function. A run folder may be a stranger's, so its code is not imported.
    """
    recorded = str(record.get("verifier") or "math")
    if asked is None and names_code(recorded):
        raise ConfigError(
            "the record's verifier is a function, which is not run unless requested",
            got=recorded,
            remedy=f"say --verifier {recorded} if you trust it",
        )
    return asked or recorded


class SampleStore:
    """The stored samples of one evaluation, written batch by batch.

    Args:
        folder: the evaluation's folder; created with the first batch.
        settings: all settings that the samples depend on, as JSON values. A folder with other settings is refused.
        force: discard an evaluation in the folder when ``resume`` is called.

    Raises:
        ConfigError: the folder holds an evaluation with other settings, or with unknown ones.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, force: bool = False) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._force = force
        self._refuse_others()

    def finished(self) -> Evaluation | None:
        """The evaluation if it is finished, else ``None``.

        Raises:
            DataError: its samples cannot be read.
            ConfigError: another process made an evaluation with other settings here meanwhile.
        """
        self._refuse_others()
        made = not self._force and (self.folder / runfolder.SUMMARY).exists()
        return Evaluation.load(self.folder) if made else None

    def resume(self, *, batch_size: int, total: int) -> list[Sample]:
        """The stored samples of complete batches; samples of an incomplete batch are discarded.

        Raises:
            DataError: a line other than the last is broken.
            ConfigError: another process made an evaluation with other settings here meanwhile.
        """
        self._refuse_others()
        if self._force:
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
        file = self.folder / runfolder.SAMPLES
        if not file.exists():
            return []
        found = read_samples(file, torn=True)
        kept = found[: in_complete_batches(len(found), batch_size, total)]
        runfolder.write_text(file, sample_lines(kept))
        return kept

    def append(self, samples: Sequence[Sample]) -> None:
        """Write one batch."""
        if not (self.folder / runfolder.SETTINGS).exists():
            runfolder.write_json(self.folder / runfolder.SETTINGS, self._settings)
        runfolder.append_text(self.folder / runfolder.SAMPLES, sample_lines(samples))

    def finish(self, evaluation: Evaluation, **extra: object) -> None:
        """Write the summary, which marks the evaluation as finished, with the settings and ``extra``."""
        summary = {**self._settings, **extra, **evaluation.summary()}
        runfolder.write_json(self.folder / runfolder.SUMMARY, summary)

    def _refuse_others(self) -> None:
        if self._force or not any((self.folder / name).exists() for name in _FILES):
            return
        remedy = "choose another --output, or --force to discard that evaluation"
        try:
            before = runfolder.read_json(self.folder / runfolder.SETTINGS)
        except DataError as error:
            raise ConfigError(
                "the folder holds an evaluation whose settings are unknown", got=str(self.folder), remedy=remedy
            ) from error
        names = [name for name in {**before, **self._settings} if before.get(name) != self._settings.get(name)]
        if names:
            names.sort(key=lambda name: (name in _HASHES, name))
            here, there = (short_json(settings.get(names[0])) for settings in (self._settings, before))
            raise ConfigError(
                f"{self.folder} holds an evaluation with other {', '.join(names)}",
                got=f"{names[0]} {here}",
                expected=f"{there}, as stored",
                remedy=remedy,
            )
