"""Run folders and evaluations → one table: a row a method, a column an evaluation, differences paired by problem.

Runs that differ only in their seed and in paths are one row. What cannot be compared (other problems, another
verifier, other sampling) is refused, and what a reader should know (which checkpoint, how many seeds, what is missing)
is in the notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from sgsd.errors import ConfigError, did_you_mean
from sgsd.evaluation.recorded import Member, Scores, pathless, read_members
from sgsd.evaluation.statistics import Estimate, difference_over, mean_over

MEAN = "mean"
"""The column of the mean over all evaluations, each of equal weight."""

# What two evaluations must share to be compared, as their summaries name it.
_SAME = (
    *("dataset", "dataset_split", "dataset_config", "verifier", "verifier_options", "instruction"),
    *("chat_template_kwargs", "thinking", "temperature", "top_p", "top_k", "min_p"),
    *("max_completion_length", "max_new_tokens"),
)
# What may make a small difference, and is told.
_MAY_DIFFER = ("engine", "dtype", "sgsd")


@dataclass(frozen=True, slots=True)
class Row:
    """One method: runs that differ in nothing but their seed, or evaluations of a model without training.

    Attributes:
        label: the method's name (``trainers.names``), and what tells it from others of that name.
        method: ``base``, ``grpo``, ``opsd`` or ``sgsd``.
        model: the model it began with.
        seeds: of training, or of sampling where nothing was trained.
        checkpoints: for each seed, the optimizer step that was evaluated; ``None`` for a model without training, and
            for a run that does not say.
        folders: for each seed, where it was read.
        cells: one for each column, as fractions; ``None`` where an evaluation is missing.
        differences: to the baseline, for each column; ``None`` where there is nothing to compare, and for the baseline.
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
    """One evaluation.

    Attributes:
        name: of the evaluation; ``MEAN`` for the mean over all.
        problems: how many; of all evaluations in the mean.
        samples: of each problem, the k of avg@k; ``None`` in the mean of unlike ones.
    """

    name: str
    problems: int
    samples: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table.

    Attributes:
        columns: the evaluations, then their mean if there are several and no two are of the same problems.
        rows: in the order in which the runs were named.
        baseline: the label of the row that differences are taken to; ``None`` if there is only one row.
        notes: what a reader should know, a sentence each.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fractions as they are; each row's cells and differences by column."""
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            named = {"cells": row.cells, "differences": row.differences}
            estimates = {
                name: {
                    column.name: None if estimate is None else asdict(estimate)
                    for column, estimate in zip(self.columns, values, strict=True)
                }
                for name, values in named.items()
            }
            rows.append({**asdict(row), **estimates})
        return {
            "columns": [asdict(column) for column in self.columns],
            "rows": rows,
            "baseline": self.baseline,
            "notes": list(self.notes),
        }


def compare_runs(folders: Sequence[Path], *, baseline: str | None = None, checkpoint: int | None = None) -> Comparison:
    """Read run folders and evaluation folders, and compare them.

    Args:
        folders: run folders; evaluation folders (``samples.jsonl`` and ``summary.json`` in them); or folders of
            evaluation folders, for a model without training.
        baseline: a row's label, or one of its folders; ``None`` takes Base if it is there, else the first row.
        checkpoint: the optimizer step to take of every run, declared before the results were seen; ``None`` takes the
            final one. Models without training have none and are taken as they are.

    Raises:
        ConfigError: a folder that is neither; no evaluation of the checkpoint; an unknown baseline; evaluations of one
            name with other problems, verifiers, sampling or k; one setting and seed twice.
    """
    distinct = {path.resolve(): path for path in folders}.values()
    members = _merged(_with_starts([member for folder in distinct for member in read_members(folder, checkpoint)]))
    if not members:
        raise ConfigError("nothing to compare", expected="run folders, or evaluation folders")
    members = _with_shared_names(members)
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(_key(member), []).append(member)
    names = list(dict.fromkeys(name for member in members for name in member.scores))
    for name in names:
        _refuse_unlike(name, [member.scores[name] for member in members if name in member.scores])
    for group in groups.values():
        _refuse_repeated_seeds(group)
    firsts = [group[0] for group in groups.values()]
    labels = distinct_labels([first.name for first in firsts], [first.essence for first in firsts])
    labelled = dict(zip(labels, groups.values(), strict=True))
    chosen = _baseline(labelled, baseline)

    columns = [_column(name, members) for name in names]
    wanted = [(name,) for name in names]
    alike = _of_same_problems(names, members)
    if len(names) > 1 and not alike:
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
    shown = sum(difference is not None for row in rows for difference in row.differences[: len(names)])
    notes = _notes(labelled, names, shown, checkpoint)
    notes += [f"{one} and {other} are of the same problems: no mean is taken." for one, other in alike]
    return Comparison(tuple(columns), tuple(rows), chosen, tuple(notes))


# Grouping


def _key(member: Member) -> str:
    return json.dumps([member.method, member.essence], sort_keys=True, default=str)


def _with_starts(members: Sequence[Member]) -> list[Member]:
    """Each model that runs began with once, and not at all where a model without training was named itself."""
    if any(member.method == "base" and not (member.skills or member.start) for member in members):
        return [member for member in members if not member.start]
    known: set[tuple[str, int | None, str]] = set()
    kept: list[Member] = []
    for member in members:
        scores = dict(member.scores)
        for name, found in member.scores.items() if member.start else ():
            asked = (_key(member), member.seed, name)
            alike = all(_alike(found, other.scores[name]) for other in members if name in other.scores)
            if asked in known or not alike:
                del scores[name]
            known.add(asked)
        if scores:
            kept.append(replace(member, scores=scores))
    return kept


def _merged(members: Sequence[Member]) -> list[Member]:
    """Evaluations of one model or run that were named one by one become one member."""
    merged: list[Member] = []
    for member in members:
        for place, other in enumerate(merged):
            same = (_key(other), other.seed) == (_key(member), member.seed)
            disjoint = not set(other.scores) & set(member.scores)
            if same and disjoint and (member.method == "base" or other.folder.resolve() == member.folder.resolve()):
                merged[place] = replace(other, scores={**other.scores, **member.scores})
                break
        else:
            merged.append(member)
    return merged


def _with_shared_names(members: Sequence[Member]) -> list[Member]:
    """An evaluation of no run's takes the name that one of the same problems has in a run, or in the first folder."""
    named: dict[frozenset[str], str] = {}
    for member in sorted(members, key=lambda member: member.method == "base"):
        for name, scores in member.scores.items():
            named.setdefault(frozenset(scores.shares), name)
    known = {name for member in members if member.method != "base" for name in member.scores}
    shared: list[Member] = []
    for member in members:
        scores = {
            name if name in known else named[frozenset(found.shares)]: found for name, found in member.scores.items()
        }
        shared.append(replace(member, scores=scores) if len(scores) == len(member.scores) else member)
    return shared


def _refuse_repeated_seeds(group: Sequence[Member]) -> None:
    for one, other in combinations(group, 2):
        if one.seed == other.seed:
            raise ConfigError(
                "one setting and seed twice",
                got=f"{one.folder} and {other.folder}, seed {one.seed}",
                expected="one run a seed",
                remedy="leave one of them out; a repetition is no second seed",
            )


def _refuse_unlike(name: str, found: Sequence[Scores]) -> None:
    first = found[0]
    for other in found[1:]:
        where = f"evaluation {name} of {first.folder} and {other.folder}"
        if set(first.shares) != set(other.shares):
            common = len(set(first.shares) & set(other.shares))
            raise ConfigError(
                f"{where} cannot be compared: other problems",
                got=f"{len(first.shares)} and {len(other.shares)}, {common} of them in both",
                expected="the same problem ids",
            )
        changed = [id for id, asked in first.asked.items() if id in other.asked and other.asked[id] != asked]
        if changed:
            raise ConfigError(
                f"{where} cannot be compared: other problems",
                got=f"another text or reference answer under the id {changed[0]}, and {len(changed) - 1} more",
                expected="the same problems",
            )
        if first.k != other.k:
            raise ConfigError(
                f"{where} cannot be compared: samples per problem", got=f"{first.k} and {other.k}", expected="one k"
            )
        for setting in _SAME:
            values = [_told(scores, setting) for scores in (first, other)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"{where} cannot be compared: {setting}",
                    got=f"{values[0]!r} and {values[1]!r}",
                    expected="the same in all",
                    remedy="evaluate one of them again",
                )


def _alike(one: Scores, other: Scores) -> bool:
    """Whether the two can be compared."""
    same = one.shares.keys() == other.shares.keys() and one.k == other.k
    return same and all(_told(one, setting) == _told(other, setting) for setting in _SAME)


def _told(scores: Scores, setting: str) -> Any:
    """A setting as the summary tells it: a data set by its file's name; no options are none."""
    value = pathless(scores.summary.get(setting))
    if setting == "dataset" and value is not None:
        return Path(value).name
    return None if value == {} else value


def distinct_labels(names: Sequence[str], essences: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method alone where it says enough; else with the settings that tell it from others of that method.

    Args:
        names: of methods.
        essences: for each, the settings that make it what it is; see ``recorded.essence``.
    """
    labels: list[str] = []
    for name, own in zip(names, essences, strict=True):
        rivals = [other for other, theirs in zip(essences, names, strict=True) if theirs == name]
        settings = dict.fromkeys(setting for rival in rivals for setting in rival)
        telling = [s for s in settings if len({json.dumps(r.get(s), default=str) for r in rivals}) > 1]
        labels.append(", ".join([name, *(f"{s.replace('_', ' ')} {own.get(s)}" for s in telling)]))
    return labels


def _baseline(labelled: Mapping[str, Sequence[Member]], wanted: str | None) -> str | None:
    labels = list(labelled)
    if wanted is None:
        base = [label for label, group in labelled.items() if group[0].method == "base" and not group[0].skills]
        return [*base, *labels][0] if len(labels) > 1 else None
    for label, group in labelled.items():
        folders = {member.folder.resolve() for member in group}
        if wanted.casefold() == label.casefold() or Path(wanted).resolve() in folders:
            return label
    raise ConfigError(
        "unknown --baseline", got=repr(wanted), expected="; ".join(labels), remedy=did_you_mean(wanted, labels)
    )


# Estimates


def _table(group: Sequence[Member], name: str, seeds: Sequence[int | None]) -> list[list[float]]:
    """``[S, N]``: the problems in the order of their ids."""
    chosen = [member.scores[name] for seed in seeds for member in group if member.seed == seed]
    return [[scores.shares[id] for id in sorted(scores.shares)] for scores in chosen]


def _seeds(group: Sequence[Member], parts: Sequence[str]) -> list[int | None]:
    """The seeds that have all of these evaluations."""
    return [member.seed for member in group if all(name in member.scores for name in parts)]


def _cell(group: Sequence[Member], parts: Sequence[str]) -> Estimate | None:
    seeds = _seeds(group, parts)
    return mean_over([_table(group, name, seeds) for name in parts]) if seeds else None


def _difference(before: Sequence[Member], after: Sequence[Member], parts: Sequence[str]) -> Estimate | None:
    """Paired by problem; by seed too where both were trained with the same ones."""
    theirs, ours = _seeds(before, parts), _seeds(after, parts)
    if not theirs or not ours:
        return None
    paired = set(theirs) == set(ours) and (before[0].method == "base") == (after[0].method == "base")
    if paired:
        theirs = ours
    firsts = [_table(before, name, theirs) for name in parts]
    seconds = [_table(after, name, ours) for name in parts]
    return difference_over(firsts, seconds, same_seeds=paired)


def _of_same_problems(names: Sequence[str], members: Sequence[Member]) -> list[tuple[str, str]]:
    """Pairs of evaluations that are no two data sets."""
    asked = {
        name: next(member.scores[name].shares.keys() for member in members if name in member.scores) for name in names
    }
    return [(one, other) for one, other in combinations(names, 2) if asked[one] == asked[other]]


def _column(name: str, members: Sequence[Member]) -> Column:
    scores = next(member.scores[name] for member in members if name in member.scores)
    return Column(name, len(scores.shares), scores.k)


# Notes


def _notes(
    labelled: Mapping[str, Sequence[Member]], names: Sequence[str], shown: int, checkpoint: int | None
) -> list[str]:
    notes = [
        *_about_checkpoints(labelled, checkpoint),
        *_about_seeds(labelled),
        *_about_holes(labelled, names),
        *_about_conditions(labelled, names),
    ]
    if shown > 1:
        notes.append(
            f"{shown} differences beside the means: if there were none at all, one or more of these intervals "
            f"would still leave 0 out in up to {min(100, 5 * shown)} % of such tables."
        )
    return notes


def _trained(labelled: Mapping[str, Sequence[Member]]) -> dict[str, Sequence[Member]]:
    return {label: group for label, group in labelled.items() if group[0].method != "base"}


def _about_checkpoints(labelled: Mapping[str, Sequence[Member]], checkpoint: int | None) -> list[str]:
    steps = {label: sorted({str(member.checkpoint) for member in group}) for label, group in _trained(labelled).items()}
    if not steps:
        return []
    if checkpoint is not None:
        return [f"Checkpoint: step {checkpoint} of every run, as declared."]
    notes = ["Checkpoint: the final one of every run."]
    if len({step for found in steps.values() for step in found}) > 1:
        told = "; ".join(f"{label}: {', '.join(found)}" for label, found in steps.items())
        notes.append(f"The runs ended at unlike steps. {told}.")
    return notes


def _about_seeds(labelled: Mapping[str, Sequence[Member]]) -> list[str]:
    trained = _trained(labelled)
    notes = [
        f"{'Training' if label in trained else 'Sampling'} seeds of {label}: "
        f"{', '.join(str(member.seed) for member in group)}."
        for label, group in labelled.items()
        if len(group) > 1
    ]
    alone = [label for label, group in trained.items() if len(group) == 1]
    if alone:
        notes.append(f"One seed: {'; '.join(alone)}. Such an interval says nothing of other seeds.")
    return notes


def _about_holes(labelled: Mapping[str, Sequence[Member]], names: Sequence[str]) -> list[str]:
    notes: list[str] = []
    for label, group in labelled.items():
        for member in group:
            missing = [name for name in names if name not in member.scores]
            if missing:
                notes.append(f"Missing of {label}, seed {member.seed}: {', '.join(missing)}.")
            notes.extend(member.notes)
    return notes


def _about_conditions(labelled: Mapping[str, Sequence[Member]], names: Sequence[str]) -> list[str]:
    notes: list[str] = []
    for label, group in _trained(labelled).items():
        scores = {name: found for member in group for name, found in member.scores.items()}
        skilled = [name for name, found in scores.items() if found.summary.get("skills_in_prompt")]
        if skilled:
            notes.append(f"{label} was evaluated with skills in the prompt: {', '.join(skilled)}.")
    members = [member for group in labelled.values() for member in group]
    for name in names:
        summaries = [member.scores[name].summary for member in members if name in member.scores]
        for setting in _MAY_DIFFER:
            values = {str(summary.get(setting)) for summary in summaries}
            if len(values) > 1:
                notes.append(
                    f"Evaluation {name} was not made alike everywhere. {setting}: {', '.join(sorted(values))}."
                )
    if len({group[0].model for group in labelled.values()}) > 1:
        told = "; ".join(f"{label}: {group[0].model}" for label, group in labelled.items())
        notes.append(f"Not all are of one model. {told}.")
    data = [group[0].essence.get("dataset") for group in _trained(labelled).values()]
    if trained_on := dict.fromkeys(str(name) for name in data if name):
        notes.append(f"Whether {', '.join(trained_on)} holds test problems: sgsd contamination --train … --test …")
    return notes
