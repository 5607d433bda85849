"""What a build made, in numbers that add up: counted from its files, not from what the process remembers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from sgsd.bank import formats
from sgsd.bank.build import (
    BANK,
    CANDIDATES,
    FAILURES,
    LINEAGE,
    MEMORIES,
    QUARANTINE,
    ROLLOUTS,
    WRITTEN,
    Stage,
    kind_of_reason,
)
from sgsd.bank.records import SCHEMA_VERSION, BuildFolder, replace_file
from sgsd.bank.skills import SkillBank

MANIFEST = "manifest.json"
_REJECTED = "rejected: "


def make_manifest(folder: BuildFolder, **about: object) -> formats.Document:
    """The numbers of all stages that are finished, with ``about`` before them.

    ``rollouts = memories + undecided``, ``memories = correct + incorrect = written about + failed``, ``incorrect`` is
    the sum of its failure modes, ``requests = written about + rejected``, the first layer of a kind begins with its
    distinct candidates and each later one where the one before ended, ``merged = bank + quarantined``.
    """
    counts: formats.Document = {}
    failures = Counter(
        (str(values["stage"]), str(values.get("leak") or kind_of_reason(str(values["reason"]))))
        for _, values in folder.records(FAILURES).rows()
    )

    def failed(stage: str) -> dict[str, int]:
        return {reason: count for (own, reason), count in failures.items() if own == stage}

    if folder.finished(Stage.SAMPLE):
        counts["rollouts"] = _rollouts(folder)
    if folder.finished(Stage.VERIFY):
        counts["memories"] = {**_memories(folder), "undecided": failed(Stage.VERIFY)}
    if folder.finished(Stage.EXTRACT):
        counts["extraction"] = _extraction(folder, failed(Stage.EXTRACT))
    if folder.finished(Stage.MERGE):
        counts["merge"] = {**_merge(folder), "failed": failed(Stage.MERGE)}
        bank = SkillBank.load(folder.path / BANK)
        counts["bank"] = {
            "skills": len(bank.skills),
            "mistakes": len(bank.mistakes),
            "quarantined": failed(QUARANTINE),
            "digest": bank.digest,
        }
    marks = {stage: mark for stage in Stage if (mark := folder.mark(stage)) is not None}
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "finished": [str(stage) for stage in Stage if folder.finished(stage)],
        **counts,
        "tokens": {str(stage): _tokens(mark.counts) for stage, mark in marks.items() if stage != Stage.VERIFY},
        "seconds": {str(stage): round(mark.seconds, 3) for stage, mark in marks.items()},
        "files": {
            name: digest
            for name in (ROLLOUTS, MEMORIES, CANDIDATES, WRITTEN, FAILURES, LINEAGE, BANK)
            if (digest := file_digest(folder.path / name)) is not None
        },
    }


def save_manifest(folder: BuildFolder, manifest: formats.Document) -> None:
    """Write ``manifest.json`` at once."""
    replace_file(folder.path / MANIFEST, formats.pretty(manifest))


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; ``None`` where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rollouts(folder: BuildFolder) -> formats.Document:
    total = truncated = 0
    problems: set[object] = set()
    for _, values in folder.records(ROLLOUTS).rows():
        total += 1
        truncated += values["stop_reason"] == "length"
        problems.add(values["problem_id"])
    return {"total": total, "problems": len(problems), "truncated": truncated}


def _memories(folder: BuildFolder) -> formats.Document:
    outcomes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    for _, values in folder.records(MEMORIES).rows():
        outcomes[str(values["outcome"])] += 1
        if values["failure_mode"] is not None:
            modes[str(values["failure_mode"])] += 1
    return {
        "total": outcomes.total(),
        "correct": outcomes["correct"],
        "incorrect": outcomes["incorrect"],
        "failure_modes": dict(sorted(modes.items())),
    }


def _extraction(folder: BuildFolder, failed: Mapping[str, int]) -> formats.Document:
    kinds: Counter[str] = Counter()
    sources: set[str] = set()
    distinct: set[str] = set()
    for _, values in folder.records(CANDIDATES).rows():
        kinds[str(values["kind"])] += 1
        distinct.add(str(values["id"]))
        sources.update(cast("list[str]", values["parents"]))
    return {
        "requests": _mark_counts(folder, Stage.EXTRACT).get("requests", 0),
        "rejected": _rejected(_mark_counts(folder, Stage.EXTRACT)),
        "written_about": len(sources),
        "failed": dict(failed),
        "candidates": {"total": kinds.total(), "skills": kinds["skill"], "mistakes": kinds["mistake"]},
        "distinct": len(distinct),
    }


def _merge(folder: BuildFolder) -> formats.Document:
    mark = folder.mark(Stage.MERGE)
    counts = _mark_counts(folder, Stage.MERGE)
    return {
        "requests": counts.get("requests", 0),
        "layers": [] if mark is None else mark.details.get("layers", []),
        "merged": counts.get("items", 0),
    }


def _mark_counts(folder: BuildFolder, stage: Stage) -> Mapping[str, int]:
    mark = folder.mark(stage)
    return {} if mark is None else mark.counts


def _rejected(counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(_REJECTED): count for name, count in counts.items() if name.startswith(_REJECTED)}


def _tokens(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(f"{name}_tokens", 0) for name in ("prompt", "completion")}
