"""Comparison of runs: a table with a row per method, a column per evaluation, and differences paired by problem.

Evaluations with different problems, verifiers or sampling settings are refused. ``docs/statistics.md`` says how runs
become rows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from sgsd import runfolder
from sgsd.errors import ConfigError, did_you_mean
from sgsd.evaluation.recorded import Member, Scores, parts_of, read_member, settings_key, told_apart
from sgsd.evaluation.statistics import Estimate, difference_over, mean_over
from sgsd.trainers.names import BASE, method_name

MEAN = "mean"
"""The column of the unweighted mean over all evaluations."""

# Keys of summaries whose differences are noted and not refused.
_MAY_DIFFER = ("engine", "dtype", "sgsd")

Labelled: TypeAlias = Mapping[str, Sequence[Member]]
"""Label of a row → its members, one per seed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method: runs that differ only in their seed, or evaluations of an untrained model.

    Attributes:
        label: the name of the method (``trainers.names``) or model, and the settings that distinguish it from others.
        method: ``base``, ``grpo``, ``opsd`` or ``sgsd``.
        model: the model before training.
        seeds: of training, or of sampling for an untrained model.
        checkpoints: for each seed, the optimizer step that was evaluated; ``None`` if there is none or it is unknown.
        folders: for each seed, the folder that was read.
        cells: one for each column, as fractions; ``None`` for a missing evaluation.
        differences: to the baseline, for each column; ``None`` for the baseline and for missing evaluations.
    """

    label: str
    method: str
    model: str
    seeds: tuple[int | None, ...]
    checkpoints: tuple[int | None, ...]
    folders: tuple[str, ...]
    cells: tuple[Estimate | None, ...]
    differences: tuple[Estimate | None, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One evaluation, or the mean over all: name, number of problems, samples per problem (``None`` if they differ)."""

    name: str
    problems: int
    samples: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table of a comparison.

    Attributes:
        columns: the evaluations, then their mean if there are several and no two are of the same problems.
        rows: in the order in which the runs were named.
        baseline: the label of the row that differences are taken to; ``None`` if there is only one row.
        notes: notes for the reader, one sentence each.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values, in fractions; each row's cells and differences by column."""
        names = [column.name for column in self.columns]
        plain = asdict(self)
        for row in plain["rows"]:
            for part in ("cells", "differences"):
                row[part] = dict(zip(names, row[part], strict=True))
        return plain


def compare_runs(folders: Sequence[Path], *, baseline: str | None = None, checkpoint: int | None = None) -> Comparison:
    """Read run folders and evaluation folders, and compare them.

    Args:
        folders: run folders; evaluation folders (``samples.jsonl`` and ``summary.json`` in them); folders of
            evaluation folders, for an untrained model; or output folders of ``sgsd internalize``, whose evaluations
            are compared.
        baseline: a row's label, or one of its folders; ``None`` takes the first untrained model without skills
            in its prompt, else the first row.
        checkpoint: the optimizer step of every run, chosen before the results were seen; ``None`` takes the final one.
            It does not apply to untrained models.

    Raises:
        ConfigError: a folder that is neither; no evaluation of the checkpoint; an unknown baseline; evaluations of one
            name with other problems, verifiers, sampling or k; the same settings and seed twice.
    """
    every = [part for folder in folders for part in parts_of(folder)]
    distinct = {runfolder.real(path): path for path in every}.values()
    read = [read_member(folder, checkpoint) for folder in distinct]
    told = told_apart([member.settings for member in read], [member.sources for member in read])
    apart = [replace(member, settings=settings) for member, settings in zip(read, told, strict=True)]
    members = _with_shared_names(_joined(apart))
    if not members:
        raise ConfigError("nothing to compare", expected="run folders, or evaluation folders")
    evaluations: dict[str, list[Scores]] = {}
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(_key(member), []).append(member)
        for name, scores in member.scores.items():
            evaluations.setdefault(name, []).append(scores)
    for name, (first, *others) in evaluations.items():
        for other in others:
            _refuse_unlike(name, first, other)
    firsts = [group[0] for group in groups.values()]
    labels = distinct_labels(_names(firsts), [first.settings for first in firsts])
    labelled = dict(zip(labels, groups.values(), strict=True))
    chosen = _baseline(labelled, baseline)

    names = list(evaluations)
    columns = [Column(name, len(first.shares), first.evaluation.k) for name, (first, *_) in evaluations.items()]
    wanted = [(name,) for name in names]
    pairs = itertools.combinations((first for first, *_ in evaluations.values()), 2)
    has_repeated_problems = any(one.has_problems_of(other) for one, other in pairs)
    if len(names) > 1 and not has_repeated_problems:
        ks = {column.samples for column in columns}
        columns.append(Column(MEAN, sum(column.problems for column in columns), ks.pop() if len(ks) == 1 else None))
        wanted.append(tuple(names))
    rows = [
        Row(
            label=label,
            method=group[0].method,
            model=group[0].model,
            seeds=tuple(member.seed for member in group),
            checkpoints=tuple(member.checkpoint for member in group),
            folders=tuple(str(member.folder) for member in group),
            cells=tuple(_cell(group, parts) for parts in wanted),
            differences=tuple(
                None if chosen in (None, label) else _difference(labelled[chosen], group, parts) for parts in wanted
            ),
        )
        for label, group in labelled.items()
    ]
    notes = [*_notes(labelled, evaluations, checkpoint)]
    if (shown := sum(difference is not None for row in rows for difference in row.differences[: len(names)])) > 1:
        notes.append(
            f"{shown} differences without a correction for multiple comparisons: if none were real, one or more "
            f"intervals would exclude 0 in up to {min(100, 5 * shown)} % of such tables."
        )
    if has_repeated_problems:
        notes.append("Two evaluations have the same problems: no mean is taken.")
    return Comparison(tuple(columns), tuple(rows), chosen, tuple(notes))


def distinct_labels(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each method's name, followed by the settings that distinguish it from others of the same name.

    Args:
        names: of the methods.
        settings: of each method; see ``recorded.method_settings``.
    """
    labels: list[str] = []
    for name, own in zip(names, settings, strict=True):
        rivals = [other for other, theirs in zip(settings, names, strict=True) if theirs == name]
        known = dict.fromkeys(setting for rival in rivals for setting in rival)
        distinct = [s for s in known if len({json.dumps(r.get(s), default=str) for r in rivals}) > 1]
        labels.append(", ".join([name, *(f"{s.replace('_', ' ')} {own.get(s)}" for s in distinct)]))
    return labels


# Rows


def _key(member: Member) -> str:
    return f"{member.method} {settings_key(member.settings)}"


def _names(members: Sequence[Member]) -> list[str]:
    """The methods' names in tables; an untrained model that no run began with has its own name in place of Base."""
    began = {Path(member.model).name for member in members if member.is_trained}
    found: list[str] = []
    for member in members:
        name = method_name({**member.settings, "method": member.method})
        own = Path(member.model).name
        found.append(name if member.is_trained or own in began else name.replace(BASE, own, 1))
    return found


def _joined(members: Sequence[Member]) -> list[Member]:
    """One member per settings and seed, with the evaluations of folders that were given one by one."""
    joined: dict[tuple[str, int | None], Member] = {}
    for member in members:
        place = _key(member), member.seed
        known = joined.setdefault(place, replace(member, scores={}))
        elsewhere = member.is_trained and runfolder.real(member.folder) != runfolder.real(known.folder)
        if elsewhere or member.scores.keys() & known.scores.keys():
            raise ConfigError(
                "the same settings and seed twice",
                got=f"{known.folder} and {member.folder}, seed {member.seed}",
                expected="one run per seed",
                remedy="leave one of them out; a repetition is no second seed",
            )
        joined[place] = replace(known, scores={**known.scores, **member.scores})
    return list(joined.values())


def _with_shared_names(members: Sequence[Member]) -> list[Member]:
    """Evaluations outside of runs, renamed like the one with the same problems in a run, else in the first folder."""
    named: list[tuple[str, Scores]] = []
    for member in sorted(members, key=lambda member: not member.is_trained):
        for name, scores in member.scores.items():
            if not any(scores.has_problems_of(known) for _, known in named):
                named.append((name, scores))
    known = {name for member in members if member.is_trained for name in member.scores}
    shared: list[Member] = []
    for member in members:
        scores = {
            name if name in known else next(other for other, it in named if found.has_problems_of(it)): found
            for name, found in member.scores.items()
        }
        shared.append(replace(member, scores=scores) if len(scores) == len(member.scores) else member)
    return shared


def _refuse_unlike(name: str, first: Scores, other: Scores) -> None:
    changed = [id for id, asked in first.asked.items() if other.asked.get(id, asked) != asked]
    unlike = [setting for setting, value in first.conditions.items() if value != other.conditions[setting]]
    if first.shares.keys() != other.shares.keys():
        common = len(first.shares.keys() & other.shares.keys())
        what, got = "other problems", f"{len(first.shares)} and {len(other.shares)}, {common} of them in both"
    elif changed:
        what = "other problems"
        got = f"another text or reference answer under the id {changed[0]}, and {len(changed) - 1} more"
    elif unlike:
        what, got = unlike[0], f"{first.conditions[unlike[0]]!r} and {other.conditions[unlike[0]]!r}"
    else:
        return
    raise ConfigError(
        f"evaluation {name} of {first.folder} and {other.folder} cannot be compared: {what}",
        got=got,
        expected="the same in all",
        remedy="evaluate one of them again",
    )


def _baseline(labelled: Labelled, wanted: str | None) -> str | None:
    labels = list(labelled)
    if wanted is None:
        base = [label for label, group in labelled.items() if not (group[0].is_trained or group[0].with_skills)]
        return [*base, *labels][0] if len(labels) > 1 else None
    for label, group in labelled.items():
        folders = {runfolder.real(member.folder) for member in group}
        if wanted.casefold() == label.casefold() or runfolder.real(wanted) in folders:
            return label
    raise ConfigError(
        "unknown --baseline", got=repr(wanted), expected="; ".join(labels), remedy=did_you_mean(wanted, labels)
    )


# Estimates


def _values(group: Sequence[Member], parts: Sequence[str]) -> dict[int | None, list[list[float]]]:
    """Seed → for each evaluation the values of its problems, ordered by id; only seeds with all evaluations."""
    return {
        member.seed: [list(member.scores[name].shares.values()) for name in parts]
        for member in group
        if all(name in member.scores for name in parts)
    }


def _by_evaluation(values: Mapping[int | None, list[list[float]]]) -> list[list[list[float]]]:
    """``[S, N]`` for each evaluation."""
    return [list(seeds) for seeds in zip(*values.values(), strict=True)]


def _cell(group: Sequence[Member], parts: Sequence[str]) -> Estimate | None:
    values = _values(group, parts)
    return mean_over(_by_evaluation(values)) if values else None


def _difference(before: Sequence[Member], after: Sequence[Member], parts: Sequence[str]) -> Estimate | None:
    """The difference, paired by problem, and by seed if both were trained with the same seeds."""
    first, second = _values(before, parts), _values(after, parts)
    if not first or not second:
        return None
    paired = first.keys() == second.keys() and before[0].is_trained == after[0].is_trained
    if paired:
        first = {seed: first[seed] for seed in second}
    return difference_over(_by_evaluation(first), _by_evaluation(second), same_seeds=paired)


# Notes


def _notes(labelled: Labelled, evaluations: Mapping[str, Sequence[Scores]], checkpoint: int | None) -> Iterator[str]:
    trained = {label: group for label, group in labelled.items() if group[0].is_trained}
    steps = {label: sorted({str(member.checkpoint) for member in group}) for label, group in trained.items()}
    if trained and checkpoint is not None:
        yield f"Checkpoint: step {checkpoint} of every run, as declared."
    elif trained:
        yield "Checkpoint: the final one of every run."
        if len({step for found in steps.values() for step in found}) > 1:
            yield f"The runs ended at different steps. {_listed({name: ', '.join(of) for name, of in steps.items()})}."
    for label, group in labelled.items():
        if len(group) > 1:
            kind = "Training" if label in trained else "Sampling"
            yield f"{kind} seeds of {label}: {', '.join(str(member.seed) for member in group)}."
    if alone := [label for label, group in trained.items() if len(group) == 1]:
        yield f"One seed: {'; '.join(alone)}. Such an interval says nothing of other seeds."
    for label, group in labelled.items():
        for member in group:
            if missing := [name for name in evaluations if name not in member.scores]:
                yield f"Missing of {label}, seed {member.seed}: {', '.join(missing)}."
            yield from member.notes
    for label, group in trained.items():
        if skilled := {name: None for member in group for name, found in member.scores.items() if found.with_skills}:
            yield f"{label} was evaluated with skills in the prompt: {', '.join(skilled)}."
    for name, found in evaluations.items():
        for setting in _MAY_DIFFER:
            values = sorted({str(scores.summary.get(setting)) for scores in found})
            if len(values) > 1:
                yield f"Evaluation {name} was made with different settings. {setting}: {', '.join(values)}."
    models = {label: group[0].model for label, group in labelled.items()}
    if len(set(models.values())) > 1:
        yield f"The models differ. {_listed(models)}."
    data = {str(group[0].settings["dataset"]): None for group in trained.values() if group[0].settings.get("dataset")}
    if data:
        yield f"Whether {', '.join(data)} holds test problems: sgsd contamination --train … --test …"


def _listed(told: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {text}" for label, text in told.items())
