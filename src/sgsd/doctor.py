"""``sgsd doctor``: predict from some rollouts, without training, whether a bank or a document will help.

Three things are measured: the accuracy of the plain prompt, sampled; the change of the accuracy with the bank in the
prompt, decoded greedily on the same problems; and how well teachers tell the sampled successes from the failures. The
bank is shown in each of its contexts (``trainers.config.CONTEXTS``). Decoding is greedy because a teacher says at each
position what is likeliest there. ``docs/doctor.md`` has the rules for the verdict.
"""

from __future__ import annotations

import dataclasses
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy import stats
from torch.nn.utils.rnn import pad_sequence

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.controls import uncounted_token_ids
from sgsd.data.problems import Problem
from sgsd.engines.generation import TransformersSampler, generating
from sgsd.errors import ConfigError, DataError, check_choice
from sgsd.evaluation import Estimate, Evaluation, evaluate, paired_difference
from sgsd.evaluation.run import prompts_of
from sgsd.evaluation.statistics import CONFIDENCE
from sgsd.objectives import stances, supports
from sgsd.prompts import PromptRenderer, Shown
from sgsd.retrieval import Retriever
from sgsd.rollouts import Rollout, Sampler
from sgsd.scoring.logprobs import score_completions
from sgsd.scoring.teachers import TeacherPool, build_pool, control_prompt
from sgsd.trainers.config import CONTEXTS
from sgsd.trainers.rows import skill_pairs
from sgsd.validation import validated
from sgsd.verifiers import Outcome, Verifier

MOST_CUT = MOST_UNDECIDED = 0.5
MOST_RIGHT = 0.95
SIGNAL = 0.02, 0.90
"""Lowest and highest success rate at which the rollouts of a problem differ often enough."""
LEAST_AUC = 0.55
LITTLE = 0.5
"""An accuracy with the context in the prompt below which training has little to aim at."""
LEAST_ROLLOUTS = 16
_MANY_CUT = 0.1  # share of truncated completions from which the settings have a higher max_completion_length


class Verdict(StrEnum):
    """The recommendation."""

    GO = "go"
    GO_WITH_SETTINGS = "go with these settings"
    USE_GRPO = "use GRPO"
    NO = "no"


@dataclass(frozen=True)
class InPrompt:
    """Greedy answers with one context of the bank in the prompt.

    Attributes:
        accuracy: with its 95 % interval.
        difference: of the accuracy to that of the plain prompt, paired by problem.
        prompt_tokens: mean length of the prompts.
        truncated: share of the answers that were cut off.
    """

    accuracy: Estimate
    difference: Estimate
    prompt_tokens: float
    truncated: float


@dataclass(frozen=True)
class Teachers:
    """How teachers score the plain rollouts.

    Attributes:
        auc: area under the ROC curve of the supports of successes against those of failures; ``None`` if all rollouts
            have one outcome. The support of a rollout is the mean over its teachers, with the weights of retrieval.
        auc_control: the same for supports minus the support of the control teacher.
        style_share: mean |gap| per token of the control teacher, divided by that of the teachers. It is the part of the
            gap that any such prompt causes.
        stance_share: share of teachers with a stance, for supports measured against the control.
        successes, failures: how many plain rollouts were scored.
    """

    auc: Estimate | None
    auc_control: Estimate | None
    style_share: float
    stance_share: float
    successes: int
    failures: int


@dataclass(frozen=True)
class Example:
    """A greedy answer, with the plain prompt or with the best context in it.

    Attributes:
        context: of the prompt; ``None`` for the plain one.
        problem, reference, completion: texts.
        extracted: the answer that the verifier found, if it tells.
        outcome: an ``Outcome``.
        is_truncated: whether the length limit cut it off, so that it is incorrect.
    """

    context: str | None
    problem: str
    reference: str
    completion: str
    extracted: str | None
    outcome: str
    is_truncated: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """The measurements, and the verdict that follows from them.

    Attributes:
        problems, rollouts: how many problems were asked, and how many rollouts were sampled with the plain prompt.
        greedy_problems: how many of the problems were also answered greedily, with the plain prompt and each context.
        max_new_tokens: the limit of a completion.
        success, greedy_success: accuracy of the plain prompt, sampled and greedy.
        truncated, undecided: shares of the plain rollouts that were cut off, and that the verifier could not judge.
        mean_tokens, prompt_tokens: mean lengths of the plain completions and of the plain prompt.
        in_prompt: the results by context (``trainers.config.CONTEXTS``).
        too_long: tokens of the longest prompt by context, for contexts that exceed ``max_prompt_length``.
        max_prompt_length: the limit of a prompt, in tokens.
        context: the context with the highest accuracy, or the shortest one that does not differ from it; ``None`` if
            none fits. It is the recommended ``teacher_context``.
        teachers: the scores of teachers with that context; ``None`` if there are none.
        sampling_seconds, scoring_seconds: mean per rollout. Scoring is by student, teachers and control.
        memory_gib: peak main memory of the process.
        examples: answers to the first problems.
    """

    problems: int
    rollouts: int
    greedy_problems: int
    max_new_tokens: int
    success: Estimate
    greedy_success: Estimate
    truncated: float
    undecided: float
    mean_tokens: float
    prompt_tokens: float
    in_prompt: dict[str, InPrompt]
    too_long: dict[str, int]
    max_prompt_length: int
    context: str | None
    teachers: Teachers | None
    sampling_seconds: float
    scoring_seconds: float
    memory_gib: float
    examples: tuple[Example, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return self._ruling[0]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The reasons in words. The first sentence is the one that decided."""
        return self._ruling[1], *self._caveats(), *self._findings()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of ``sgsd train`` that the verdict recommends."""
        return self._ruling[2]

    @cached_property
    def _ruling(self) -> tuple[Verdict, str, dict[str, Any]]:
        """Verdict, reason and settings by the first rule of ``docs/doctor.md`` that applies."""
        longer = {"max_completion_length": 2 * self.max_new_tokens}
        low, high = SIGNAL
        right = _percent(self.success)
        forms = self.in_prompt.values()
        if self.success.mean < low and not any(shown.difference.low > 0 for shown in forms):
            wrong = all(shown.accuracy.mean < low and shown.truncated <= MOST_CUT for shown in forms)
            if forms and wrong and self.undecided <= MOST_UNDECIDED:
                said = (
                    f"Less than {low:.0%} of the answers are right, with the bank in the prompt, too, where most end "
                    "by themselves: look at some, at the verifier and at the form of answer that the instruction asks "
                    "for; or use easier tasks."
                )
                return Verdict.NO, said, {}
            if self.truncated > MOST_CUT:
                said = f"{self.truncated:.0%} of the rollouts are cut off at {self.max_new_tokens} tokens: allow more."
                return Verdict.NO, said, longer
        if self.undecided > MOST_UNDECIDED:
            said = f"The verifier cannot judge {self.undecided:.0%} of the rollouts: check it and the references."
            return Verdict.NO, said, {}
        if self.success.mean >= MOST_RIGHT:
            return Verdict.NO, f"The plain prompt is already right in {right}: use harder tasks.", {}
        if self.context is None or self.teachers is None:
            longest = ", ".join(f"{name} {tokens:,}" for name, tokens in self.too_long.items())
            said = (
                f"No context of the bank fits into {self.max_prompt_length:,} tokens of prompt: {longest}; shorten it."
            )
            return Verdict.NO, said, {}
        settings = {
            "method": "sgsd",
            "objective": "correction",
            "teacher": "frozen",
            "teacher_context": self.context,
            "support_baseline": "control",
            "teacher_guidance": 2.0,
        }
        shown = self.in_prompt[self.context]
        gain = f"{_NAMES[self.context]} in the prompt changes the accuracy by {_points(shown.difference)}"
        if shown.difference.low > 0:
            share = max(shown.truncated, self.truncated if self.success.mean < low else 0)
            settings |= {"teacher_trust": "vouched"} | (longer if share >= _MANY_CUT else {})
            return Verdict.GO, f"{gain}: it can be learnt.", settings
        cut = max(self.in_prompt, key=lambda name: self.in_prompt[name].truncated)
        if (share := self.in_prompt[cut].truncated) > MOST_CUT >= self.truncated:
            said = f"{_NAMES[cut]} in the prompt has {share:.0%} of the answers cut off at {self.max_new_tokens} tokens"
            return Verdict.NO, f"{said}, so its worth cannot be measured: allow more.", longer
        if not low <= self.success.mean <= high:
            # Most groups have one outcome: GRPO has no advantages, and the ledger cannot measure credit.
            many = "easier" if self.success.mean < low else "harder"
            said = f"{gain}, and the plain prompt is right in {right}: use another document, or {many} tasks."
            return Verdict.NO, said, {}
        groups = {"num_generations": 8} | (longer if self.truncated >= _MANY_CUT else {})
        auc = self.teachers.auc_control
        told = "cannot be told" if auc is None else _figures(auc)
        if auc is not None and auc.low > LEAST_AUC:
            said = f"{gain}, but its teachers tell successes from failures: area under the ROC curve {told}."
            trusted = {"teacher_trust": "worth", "sgsd_weight": 2.0, "grpo_weight": 1.0}
            return Verdict.GO_WITH_SETTINGS, said, settings | trusted | groups
        said = (
            f"{gain}, and its teachers do not tell successes from failures (area under the ROC curve {told}); but "
            f"outcomes differ, with {right} right."
        )
        return Verdict.USE_GRPO, said, {"method": "grpo"} | groups

    @property
    def teaches_little(self) -> bool:
        """Whether it is a go, although most answers are wrong with the context in the prompt."""
        return self.verdict is Verdict.GO and self.in_prompt[self.context or ""].accuracy.mean < LITTLE

    def _caveats(self) -> Iterator[str]:
        if self.teaches_little:
            wrong = 1 - self.in_prompt[self.context or ""].accuracy.mean
            yield (
                f"But {wrong:.0%} of the answers with it are wrong, and so are its teachers: look at some, and improve "
                "the document or the instruction first."
            )

    def _findings(self) -> Iterator[str]:
        yield (
            f"Plain prompt: {_percent(self.success)} right in {self.rollouts} rollouts of {self.problems} problems; "
            f"{self.truncated:.0%} cut off, {self.undecided:.0%} undecided; {self.mean_tokens:.0f} tokens each."
        )
        yield f"Greedily, on {self.greedy_problems} of them: {_percent(self.greedy_success)}."
        for name, shown in self.in_prompt.items():
            yield (
                f"{_NAMES[name]} in the prompt: {_percent(shown.accuracy)}, {_points(shown.difference)}; "
                f"{shown.prompt_tokens:.0f} tokens of prompt, {self.prompt_tokens:.0f} without."
            )
        for name, tokens in self.too_long.items():
            room = f"room for {self.max_prompt_length:,}"
            yield f"{_NAMES[name]} does not fit: {tokens:,} tokens of prompt, {room}."
        if (found := self.teachers) is not None:
            counts = f"{found.successes} successes and {found.failures} failures"
            if found.auc is None or found.auc_control is None:
                yield f"Whether teachers tell successes from failures cannot be said: {counts}."
            else:
                yield (
                    f"Teachers' supports of {counts}: area under the ROC curve {_figures(found.auc)}, "
                    f"measured against a control {_figures(found.auc_control)}."
                )
            yield (
                f"A control with another text in its prompt differs from the plain prompt {found.style_share:.0%} as "
                f"much as the teachers do; {found.stance_share:.0%} of teachers take a stance."
            )
        yield (
            f"A rollout takes {self.sampling_seconds:.2f} s to sample and {self.scoring_seconds:.2f} s to score; the "
            f"process had {self.memory_gib:.1f} GiB at most."
        )

    def to_json(self) -> dict[str, Any]:
        """The measurements, verdict, sentences and settings as plain data."""
        ruled = {"verdict": str(self.verdict), "sentences": list(self.sentences), "settings": self.settings}
        return ruled | asdict(self)

    def save(self, folder: Path) -> None:
        """Write ``doctor.json``."""
        runfolder.write_json(folder / runfolder.DOCTOR, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Diagnosis:
        """Read ``doctor.json`` from a folder.

        Raises:
            DataError: it cannot be read, or a field is missing or has a wrong type.
        """
        file = folder / runfolder.DOCTOR
        document, names = runfolder.read_json(file), {field.name for field in dataclasses.fields(cls)}
        return validated(TypeAdapter(cls), {name: document[name] for name in names & document.keys()}, str(file))


PLAIN = "plain"
_EXAMPLES = 3
_NAMES = {"pairs": "The best pair", "rules": "The best rule", "document": "The whole document"}


def diagnose(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    bank: SkillBank,
    *,
    renderer: PromptRenderer,
    verifier: Verifier,
    retriever: Retriever,
    max_new_tokens: int,
    contexts: Sequence[str] | None = None,
    rollouts: int = 120,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    num_teachers: int = 1,
    max_prompt_length: int,
    support_clip: float = 3.0,
    support_threshold: float = 0.05,
    batch_size: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> Diagnosis:
    """Sample the plain prompt, answer greedily with each context, and score the rollouts by teachers, without training.

    Args:
        model, tokenizer: of transformers. The training mode of the model is left as it is.
        problems: to draw from. If there are fewer than ``rollouts``, each is asked several times.
        bank: a skill bank, or a document read as one.
        renderer, verifier, retriever: as in training.
        max_new_tokens: most tokens of a completion.
        contexts: those of ``trainers.config.CONTEXTS`` to try; ``None`` is rules and document for a document, and pairs
            for any other bank.
        rollouts: most rollouts to sample with the plain prompt; 16 or more. Half as many problems are answered
            greedily, with the plain prompt and with each context.
        temperature, top_p, top_k: of sampling.
        seed: of the drawn problems, the sampling and the controls.
        num_teachers: teachers per problem; each is shown one pair or rule.
        max_prompt_length: most tokens of a prompt. A context with a longer prompt is left out.
        support_clip, support_threshold: as in training.
        batch_size: prompts to sample at a time.
        progress: called with the name of the current evaluation, and how many of its samples are done and wanted; then
            with ``scoring``, and how many chunks of the teachers' scores are done.

    Raises:
        DataError: no problems.
        ConfigError: too few rollouts, an unknown context, or context ``document`` for a bank without a document.
        BankError: context ``pairs`` for a bank without skills or mistakes.
        PromptError: a plain prompt is too long.
    """
    if not problems:
        raise DataError("no problems to diagnose with")
    if rollouts < LEAST_ROLLOUTS:
        raise ConfigError("too few rollouts for a diagnosis", got=rollouts, expected=f"{LEAST_ROLLOUTS} or more")
    contexts = _contexts(bank, contexts)
    drawn = random.Random(seed).sample(list(problems), min(len(problems), rollouts))
    k = rollouts // len(drawn)

    def answered(
        what: str, asked: Sequence[Problem], k: int = 1, shown: Sequence[Shown] | None = None, **how: Any
    ) -> tuple[Evaluation, list[Rollout]]:
        def told(done: int) -> None:
            if progress is not None:
                progress(what, done, k * len(asked))

        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": told, "temperature": 0} | how
        sampler = _RecordingSampler(TransformersSampler(model, tokenizer, **options))
        limit = {"max_prompt_length": max_prompt_length, "shown": shown}
        return evaluate(sampler, asked, renderer, verifier, k=k, seed=seed, **limit), sampler.rollouts

    began = time.perf_counter()
    plain, sampled = answered(PLAIN, drawn, k, temperature=temperature, top_p=top_p, top_k=top_k)
    sampling_seconds = (time.perf_counter() - began) / len(sampled)
    some = drawn[: max(LEAST_ROLLOUTS, rollouts // 2)]
    greedy, _ = answered(f"{PLAIN}, greedy", some)
    few = {problem.id: problem for problem in some[:_EXAMPLES]}
    in_prompt: dict[str, InPrompt] = {}
    made: dict[str, Evaluation] = {}
    too_long: dict[str, int] = {}
    for context in contexts:
        shown = skill_pairs(some, retriever, bank, 1, context)
        lengths = [len(prompt) for prompt in prompts_of(some, renderer, shown)]
        if max(lengths) > max_prompt_length:
            too_long[context] = max(lengths)
            continue
        own, _ = answered(f"{context}, greedy", some, shown=shown)
        made[context] = own
        in_prompt[context] = InPrompt(own.accuracy, _gain(greedy, own), sum(lengths) / len(some), own.truncated)
    best = None
    for name in sorted(in_prompt, key=lambda name: in_prompt[name].prompt_tokens):
        if best is None or _gain(made[best], made[name]).low > 0:  # a longer context must be better than a shorter
            best = name
    teachers, began = None, time.perf_counter()
    if best is not None:
        teachers = _teachers(
            plain,
            sampled,
            drawn,
            bank,
            model=model,
            renderer=renderer,
            retriever=retriever,
            num_teachers=1 if best == "document" else num_teachers,
            alone=best != "pairs",
            limits={
                "max_prompt_length": max_prompt_length,
                "document": str(bank.metadata["document"]) if best == "document" else None,
            },
            seed=seed,
            clip=support_clip,
            threshold=support_threshold,
            progress=None if progress is None else partial(progress, "scoring"),
        )
    return Diagnosis(
        problems=len(drawn),
        rollouts=len(sampled),
        greedy_problems=len(some),
        max_new_tokens=max_new_tokens,
        success=plain.accuracy,
        greedy_success=greedy.accuracy,
        truncated=plain.truncated,
        undecided=_outcomes(plain).count(0) / len(sampled),
        mean_tokens=sum(sample.tokens for sample in plain.samples) / len(sampled),
        prompt_tokens=sum(len(rollout.prompt_ids) for rollout in sampled) / len(sampled),
        in_prompt=in_prompt,
        too_long=too_long,
        max_prompt_length=max_prompt_length,
        context=best,
        teachers=teachers,
        sampling_seconds=sampling_seconds,
        scoring_seconds=(time.perf_counter() - began) / len(sampled),
        memory_gib=_peak_memory(),
        examples=tuple(
            Example(name, asked.text, asked.answer, one.completion, one.extracted, one.outcome, one.is_truncated)
            for name, evaluation in ((None, greedy), *([] if best is None else [(best, made[best])]))
            for one in evaluation.samples
            if (asked := few.get(one.problem_id))
        ),
    )


def area_under_roc(values: Sequence[float], success: Sequence[bool], problems: Sequence[int]) -> Estimate:
    """Area under the ROC curve: the probability that a success has a higher value than a failure; ties count one half.

    The 95 % interval is that of DeLong (1988) with problems as clusters (Obuchowski 1997) and Student's quantiles. The
    degrees of freedom are the number of problems with the rarer outcome, minus one. Two artificial problems are added
    first, so that a few rollouts that happen to be separated do not give an interval of zero width: the success of one
    is above and its failure below all others, and the other is the reverse.

    Args:
        values: ``[N]``, one per rollout.
        success: ``[N]``, whether the rollout succeeded. Both outcomes must occur.
        problems: ``[N]``, index of the rollout's problem, from 0.
    """
    value, succeeded, problem = np.array(values, dtype=float), np.array(success), np.array(problems)
    mean = float(_above(value[succeeded], value[~succeeded]).mean())
    far = float(np.abs(value).max()) + 1
    value = np.append(value, [far, -far, -far, far])
    succeeded = np.append(succeeded, [True, False, True, False])
    problem = np.append(problem, problem.max() + np.array([1, 1, 2, 2]))
    above = _above(value[succeeded], value[~succeeded])
    centre = float(above.mean())
    parts = np.empty(len(value))
    parts[succeeded] = (above.mean(1) - centre) / len(above)
    parts[~succeeded] = (above.mean(0) - centre) / above.shape[1]
    count = min(len(set(problem[succeeded])), len(set(problem[~succeeded])))
    error = float(np.sqrt((np.bincount(problem, parts) ** 2).sum() * count / (count - 1)))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Estimate(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def _above(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """``[M, N]``: 1 where one of ``high`` is above one of ``low``, ½ where they are equal."""
    return (np.sign(high[:, None] - low) + 1) / 2


class _RecordingSampler:
    """A sampler that keeps its last rollouts; an ``Evaluation`` keeps only their texts."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.rollouts: list[Rollout] = []

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        self.rollouts = self._sampler.sample(prompts, seed=seed)
        return self.rollouts


def _outcomes(evaluation: Evaluation) -> list[int]:
    return [Outcome(sample.outcome).sign for sample in evaluation.samples]


def _gain(before: Evaluation, after: Evaluation) -> Estimate:
    return paired_difference(list(before.accuracies.values()), list(after.accuracies.values()))


def _contexts(bank: SkillBank, asked: Sequence[str] | None) -> Sequence[str]:
    is_document = "document" in bank.metadata
    contexts = asked or (("rules", "document") if is_document else ("pairs",))
    for context in contexts:
        check_choice("context", context, CONTEXTS)
    if "document" in contexts and not is_document:
        raise ConfigError("context document without a document", got=f"bank {bank.name!r}", expected="a Markdown file")
    if "pairs" in contexts:
        bank.require_pairs()
    return contexts


def _teachers(
    evaluation: Evaluation,
    rollouts: Sequence[Rollout],
    problems: Sequence[Problem],
    bank: SkillBank,
    *,
    model: Any,
    renderer: PromptRenderer,
    retriever: Retriever,
    num_teachers: int,
    alone: bool,
    limits: Mapping[str, Any],
    seed: int,
    clip: float,
    threshold: float,
    progress: Callable[[int, int], None] | None,
) -> Teachers | None:
    """The scores of the decided rollouts by student, teachers and control; ``None`` without decided rollouts."""
    found = retriever.retrieve([problem.text for problem in problems], bank, num_teachers, alone=alone)
    outcomes, k = _outcomes(evaluation), len(rollouts) // len(problems)
    rows: list[int] = []  # rollouts to score
    students: list[list[int]] = []
    controls: list[list[int]] = []
    pools: list[TeacherPool] = []
    for number, (problem, retrieval) in enumerate(zip(problems, found, strict=True)):
        student, prompt = renderer.student_ids(problem), renderer.student_messages(problem)
        pool = build_pool(prompt, retrieval, renderer, num_teachers=num_teachers, **limits)
        if not pool.prompts:
            continue
        control = control_prompt(prompt, pool, bank, renderer, seed=f"{seed} {problem.text}", **limits) or student
        own = [n for n in range(number * k, (number + 1) * k) if outcomes[n] and rollouts[n].completion_ids]
        rows += own
        students += [student] * len(own)
        controls += [control] * len(own)
        pools += [pool] * len(own)
    if not rows:
        return None
    places = [(b, prompt) for b, pool in enumerate(pools) for prompt in pool.prompts]
    owner = torch.tensor([b for b, _ in places])
    completions = [rollouts[n].completion_ids for n in rows]
    with generating(model):  # without dropout
        scores = score_completions(
            model,
            [*students, *controls, *(prompt for _, prompt in places)],
            [*completions, *completions, *(completions[b] for b, _ in places)],
            progress=progress,
        )
    B = len(rows)
    logps, mask = scores.logps.cpu(), scores.mask[:B].cpu()
    uncounted = torch.tensor(sorted(uncounted_token_ids(renderer.tokenizer)))
    ids = pad_sequence([torch.tensor(completion) for completion in completions], batch_first=True)
    mask &= ~torch.isin(ids, uncounted)
    plain, control, teachers = logps[:B], logps[B : 2 * B], logps[2 * B :]
    baseline = supports(plain, control[:, None], mask, clip=clip).squeeze(1)
    support, stance = stances(  # of each teacher, [P, 1]
        plain[owner], teachers[:, None], mask[owner], clip=clip, threshold=threshold, baseline=baseline[owner]
    )
    weights = torch.tensor([weight for pool in pools for weight in pool.weights])
    relative = torch.zeros(B).index_add(0, owner, weights * support.squeeze(1))
    gap, style = ((other - plain[owner]).abs()[mask[owner]].sum() for other in (teachers, control[owner]))
    success = [outcomes[n] > 0 for n in rows]
    aucs: list[Estimate | None] = [None, None]
    if len(set(success)) == 2:
        asked = [n // k for n in rows]
        aucs = [area_under_roc(values.tolist(), success, asked) for values in (relative + baseline, relative)]
    return Teachers(
        auc=aucs[0],
        auc_control=aucs[1],
        style_share=float(style / gap) if gap > 0 else 1.0,
        stance_share=float((stance != 0).float().mean()),
        successes=sum(success),
        failures=B - sum(success),
    )


def _percent(share: Estimate) -> str:
    return f"{100 * share.mean:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _points(difference: Estimate) -> str:
    return f"{100 * difference.mean:+.1f} points ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _figures(value: Estimate) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)  # bytes on macOS, KiB elsewhere
