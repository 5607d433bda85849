"""The manifest of a build: counts of its results, made from the store."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from sgsd.bank import build
from sgsd.bank.build import CANDIDATES, FAILURES, MEMORIES, QUARANTINE, RESULTS, ROLLOUTS, Stage, rows_of
from sgsd.bank.skills import SkillBank
from sgsd.bank.store import Progress, Store
from sgsd.bank.writing import kind_of_reason

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


def make_manifest(store: Store, **about: object) -> dict[str, object]:
    """The counts of all finished stages, after ``about``. They satisfy:

    ``rollouts = memories + undecided``, ``memories = correct + incorrect = written about + failed``, ``incorrect`` is
    the sum of its failure modes, ``requests = written about + rejected``, the first layer of a kind begins with its
    distinct candidates and each later one where the one before ended, ``merged = bank + quarantined``.
    """
    stages = {stage: progress for stage in Stage if (progress := store.progress(stage)) is not None}
    finished = {stage: progress for stage, progress in stages.items() if progress.finished}
    failed: dict[str, Counter[str]] = {stage: Counter() for stage in (*Stage, QUARANTINE)}
    for row in rows_of(store, FAILURES):
        failed.setdefault(row["stage"], Counter())[row.get("leak") or kind_of_reason(row["reason"])] += 1
    counts: dict[str, object] = {}
    if Stage.SAMPLE in finished:
        counts["rollouts"] = _rollouts(store)
    if Stage.VERIFY in finished:
        counts["memories"] = {**_memories(store), "undecided": dict(failed[Stage.VERIFY])}
    if extracted := finished.get(Stage.EXTRACT):
        counts["extraction"] = {**_requests(extracted), **_candidates(store), "failed": dict(failed[Stage.EXTRACT])}
    if merged := finished.get(Stage.MERGE):
        counts["merge"] = {
            **_requests(merged),
            "layers": merged.details.get("layers"),
            "merged": merged.counts.get("items", 0),
            "failed": dict(failed[Stage.MERGE]),
        }
        bank = SkillBank.from_json(store.document(build.BANK, build.BANK_TEXT) or "", source=str(store.folder))
        counts["bank"] = {
            "skills": len(bank.skills),
            "mistakes": len(bank.mistakes),
            "quarantined": dict(failed[QUARANTINE]),
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
    """SHA-256 of a file; ``None`` if it is missing."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rollouts(store: Store) -> dict[str, int]:
    rows = Counter((row["problem_id"], row["stop_reason"]) for row in rows_of(store, ROLLOUTS))
    return {
        "total": rows.total(),
        "problems": len({problem for problem, _ in rows}),
        "truncated": sum(count for (_, reason), count in rows.items() if reason == "length"),
    }


def _memories(store: Store) -> dict[str, Any]:
    rows = Counter((row["outcome"], row["failure_mode"]) for row in rows_of(store, MEMORIES))
    modes = {str(mode): count for (_, mode), count in rows.items() if mode is not None}
    return {
        "total": rows.total(),
        **{name: sum(count for (own, _), count in rows.items() if own == name) for name in ("correct", "incorrect")},
        "failure_modes": dict(sorted(modes.items())),
    }


def _candidates(store: Store) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    sources: set[str] = set()
    distinct: set[str] = set()
    for row in rows_of(store, CANDIDATES):
        kinds[row["kind"]] += 1
        distinct.add(row["id"])
        sources.update(row["parents"])
    return {
        "written_about": len(sources),
        "candidates": {"total": kinds.total(), "skills": kinds["skill"], "mistakes": kinds["mistake"]},
        "distinct": len(distinct),
    }


def _requests(progress: Progress) -> dict[str, Any]:
    """Requests, and rejected replies by reason."""
    start = "rejected: "
    rejected = {name.removeprefix(start): n for name, n in progress.counts.items() if name.startswith(start)}
    return {"requests": progress.counts.get("requests", 0), "rejected": rejected}


def _tokens(progress: Progress) -> dict[str, int]:
    return {name: progress.counts.get(f"{name}_tokens", 0) for name in ("prompt", "completion")}
