"""What a build made, in numbers that add up: counted from its store, not from what the process remembers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sgsd.bank import formats
from sgsd.bank.build import (
    BANK,
    BANK_TEXT,
    CANDIDATES,
    FAILURES,
    MEMORIES,
    QUARANTINE,
    RESULTS,
    ROLLOUTS,
    Stage,
    rows_of,
)
from sgsd.bank.skills import SkillBank
from sgsd.bank.store import Progress, Store
from sgsd.bank.writing import kind_of_reason

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_REJECTED = "rejected: "


def make_manifest(store: Store, **about: object) -> formats.Document:
    """The numbers of all stages that are finished, with ``about`` before them.

    ``rollouts = memories + undecided``, ``memories = correct + incorrect = written about + failed``, ``incorrect`` is
    the sum of its failure modes, ``requests = written about + rejected``, the first layer of a kind begins with its
    distinct candidates and each later one where the one before ended, ``merged = bank + quarantined``.
    """
    stages = {stage: progress for stage in Stage if (progress := store.progress(stage)) is not None}
    finished = [stage for stage, progress in stages.items() if progress.finished]
    failures = Counter(
        (str(row["stage"]), str(row.get("leak") or kind_of_reason(row["reason"]))) for row in rows_of(store, FAILURES)
    )

    def failed(stage: str) -> dict[str, int]:
        return {reason: count for (own, reason), count in failures.items() if own == stage}

    counts: formats.Document = {}
    if Stage.SAMPLE in finished:
        counts["rollouts"] = _rollouts(store)
    if Stage.VERIFY in finished:
        counts["memories"] = {**_memories(store), "undecided": failed(Stage.VERIFY)}
    if Stage.EXTRACT in finished:
        counts["extraction"] = _extraction(store, stages[Stage.EXTRACT]) | {"failed": failed(Stage.EXTRACT)}
    if Stage.MERGE in finished:
        merge = stages[Stage.MERGE]
        counts["merge"] = {
            "requests": merge.counts.get("requests", 0),
            "rejected": _rejected(merge),
            "layers": merge.details.get("layers"),
            "merged": merge.counts.get("items", 0),
            "failed": failed(Stage.MERGE),
        }
        bank = SkillBank.from_json(store.document(BANK, BANK_TEXT) or "", source=str(store.folder))
        counts["bank"] = {
            "skills": len(bank.skills),
            "mistakes": len(bank.mistakes),
            "quarantined": failed(QUARANTINE),
            "digest": bank.digest,
        }
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "finished": [str(stage) for stage in finished],
        **counts,
        "tokens": {str(stage): _tokens(progress) for stage, progress in stages.items() if stage != Stage.VERIFY},
        "seconds": {str(stage): round(progress.seconds, 3) for stage, progress in stages.items()},
        "files": {name: digest for name in RESULTS if (digest := file_digest(store.folder / name)) is not None},
    }


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; ``None`` where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rollouts(store: Store) -> formats.Document:
    rows = Counter((row["problem_id"], row["stop_reason"]) for row in rows_of(store, ROLLOUTS))
    return {
        "total": rows.total(),
        "problems": len({problem for problem, _ in rows}),
        "truncated": sum(count for (_, reason), count in rows.items() if reason == "length"),
    }


def _memories(store: Store) -> formats.Document:
    rows = Counter((row["outcome"], row["failure_mode"]) for row in rows_of(store, MEMORIES))
    modes = {str(mode): count for (_, mode), count in rows.items() if mode is not None}
    return {
        "total": rows.total(),
        **{name: sum(count for (own, _), count in rows.items() if own == name) for name in ("correct", "incorrect")},
        "failure_modes": dict(sorted(modes.items())),
    }


def _extraction(store: Store, progress: Progress) -> formats.Document:
    kinds: Counter[str] = Counter()
    sources: set[str] = set()
    distinct: set[str] = set()
    for row in rows_of(store, CANDIDATES):
        kinds[row["kind"]] += 1
        distinct.add(row["id"])
        sources.update(row["parents"])
    return {
        "requests": progress.counts.get("requests", 0),
        "rejected": _rejected(progress),
        "written_about": len(sources),
        "candidates": {"total": kinds.total(), "skills": kinds["skill"], "mistakes": kinds["mistake"]},
        "distinct": len(distinct),
    }


def _rejected(progress: Progress) -> Mapping[str, int]:
    return {
        name.removeprefix(_REJECTED): count for name, count in progress.counts.items() if name.startswith(_REJECTED)
    }


def _tokens(progress: Progress) -> dict[str, int]:
    return {name: progress.counts.get(f"{name}_tokens", 0) for name in ("prompt", "completion")}
