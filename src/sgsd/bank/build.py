"""Building a bank from sampled completions, in four stages over one folder: sample → verify → extract → merge.

An interrupted stage goes on with the chunk that it was working on. The folder's ``store`` holds all finished chunks;
the inputs, order and seeds of a chunk depend only on its position. Replies of the writer are stored as they arrive, so
that no request is paid for twice. ``export`` writes the results of finished stages as files:

``rollouts.jsonl``    every completion, in the order of problems and samples
``memories.jsonl``    the rollouts with a verdict, correct or incorrect
``candidates.jsonl``  what was extracted from the memories
``failures.jsonl``    undecided rollouts, memories and groups without a usable reply, and items that leak a problem,
                      each with its stage and reason
``lineage.json``      id of each candidate and item → ids of its direct sources
``bank.json``         the bank
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank.extract import MAX_ITEMS, Candidate, extraction_request, read_candidate, read_extraction
from sgsd.bank.items import Origin, item_document
from sgsd.bank.leaks import DEFAULT_N, quarantine, scan
from sgsd.bank.merge import GROUP_SIZE, PATIENCE, Embed, merge
from sgsd.bank.skills import SkillBank
from sgsd.bank.store import CachingWriter, Progress, Store, refused_writes
from sgsd.bank.writing import WriteFailure, Writer, WriteRequest, write_until_fit
from sgsd.data.problems import Problem
from sgsd.errors import BankError, DataError
from sgsd.memories import Memory, memory_of, read_memory
from sgsd.rollouts import Rollout, Sampler, StopReason, derived_seed
from sgsd.validation import validated
from sgsd.verifiers.verdict import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import verify_in_context

ROLLOUTS = "rollouts.jsonl"
MEMORIES = "memories.jsonl"
CANDIDATES = "candidates.jsonl"
FAILURES = "failures.jsonl"
LINEAGE = "lineage.json"
BANK = "bank.json"
RESULTS = (ROLLOUTS, MEMORIES, CANDIDATES, FAILURES, LINEAGE, BANK)

QUARANTINE = "quarantine"
"""The ``stage`` of failures that are items taken out of the bank."""
VERIFY_CHUNK = 256


class _RolloutRow(TypedDict):
    id: str
    problem_id: str
    completion: str
    stop_reason: str


class _FailureRow(TypedDict):
    stage: str
    reason: str
    leak: NotRequired[str]


BANK_TEXT = TypeAdapter(str)
_LINEAGE = TypeAdapter(dict[str, list[str]])
_ROWS: Mapping[str, TypeAdapter[Any]] = {
    ROLLOUTS: TypeAdapter(_RolloutRow),
    MEMORIES: TypeAdapter(Memory),
    CANDIDATES: TypeAdapter(Candidate),
    FAILURES: TypeAdapter(_FailureRow),
}


def rows_of(store: Store, name: str, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """``Store.rows``, validated by the schema of this name.

    Raises:
        BankError: the store is damaged, or a row does not fit the schema.
    """
    for number, row in enumerate(store.rows(name, start, end), start + 1):
        validated(_ROWS[name], row, f"{store.folder}: {name}:{number}", BankError)
        yield row


class Stage(StrEnum):
    """The stages, in order."""

    SAMPLE = "sample"
    VERIFY = "verify"
    EXTRACT = "extract"
    MERGE = "merge"


Report = Callable[[Stage, int, int], object]
"""Called with a stage, the number of its finished inputs and the number of all its inputs."""


class Chunk(NamedTuple):
    """The output of a stage for some of its inputs: rows and documents by name, counts to add up, further details."""

    rows: Mapping[str, Sequence[Mapping[str, object]]]
    counts: Mapping[str, int]
    documents: Mapping[str, object] | None = None
    details: Mapping[str, object] | None = None


def sample(
    store: Store,
    problems: Sequence[Problem],
    prompt: Callable[[Problem], Sequence[int]],
    sampler: Sampler,
    *,
    samples: int = 1,
    chunk: int = 32,
    seed: int = 0,
    progress: Report | None = None,
) -> None:
    """Draw ``samples`` completions of every problem, ``chunk`` at a time, each chunk with a seed of its own.

    Raises:
        DataError: no problems, or no samples.
    """
    if not problems or samples < 1:
        raise DataError("nothing to sample", got=f"{len(problems)} problems, {samples} samples of each")

    def step(start: int, end: int) -> Chunk:
        asked = [(problems[position // samples], position % samples) for position in range(start, end)]
        rollouts = sampler.sample([prompt(problem) for problem, _ in asked], seed=derived_seed(seed, start // chunk))
        rows = [_row(problem, index, rollout) for (problem, index), rollout in zip(asked, rollouts, strict=True)]
        counts = {
            "prompt_tokens": sum(len(rollout.prompt_ids) for rollout in rollouts),
            "completion_tokens": sum(rollout.tokens for rollout in rollouts),
        }
        return Chunk({ROLLOUTS: rows}, counts)

    _run(store, Stage.SAMPLE, len(problems) * samples, chunk, step, progress)


def verify(
    store: Store,
    problems: Sequence[Problem],
    verifier: Verifier,
    *,
    truncated: Outcome = Outcome.INCORRECT,
    progress: Report | None = None,
) -> None:
    """Judge the rollouts: those with a verdict become memories, undecided ones failures.

    Args:
        store: the store with the rollouts.
        problems: the problems of ``sample``.
        verifier: judges the completions.
        truncated: the outcome of completions that the length limit cut off.

    Raises:
        BankError: the rollouts are not all sampled.
        DataError: the problem of a rollout is missing.
    """
    total = _require_finished(store, Stage.SAMPLE).total
    by_id = {problem.id: problem for problem in problems}

    def step(start: int, end: int) -> Chunk:
        rows = list(rows_of(store, ROLLOUTS, start, end))
        asked = [_problem_of(row, f"{ROLLOUTS}:{number}", by_id) for number, row in enumerate(rows, start + 1)]
        texts = [str(row["completion"]) for row in rows]
        verdicts = verify_in_context(
            verifier,
            texts,
            [problem.key for problem in asked],
            lambda: [_context(problem, text) for problem, text in zip(asked, texts, strict=True)],
        )
        memories: list[dict[str, object]] = []
        failures: list[dict[str, object]] = []
        for row, problem, text, verdict in zip(rows, asked, texts, verdicts, strict=True):
            is_cut = row["stop_reason"] == StopReason.LENGTH
            verdict = Verdict(truncated, "truncated", verdict.extracted) if is_cut else verdict
            memory = memory_of(problem, text, verdict, truncated=is_cut, source=row["id"])
            if memory is None:
                failures.append(_failure(Stage.VERIFY, row["id"], verdict.reason or "undecided", text=text))
            else:
                memories.append(memory.as_dict())
        return Chunk({MEMORIES: memories, FAILURES: failures}, {"memories": len(memories), "undecided": len(failures)})

    _run(store, Stage.VERIFY, total, VERIFY_CHUNK, step, progress)


def extract(
    store: Store,
    writer: Writer,
    *,
    show_answer: bool = False,
    max_items: int = MAX_ITEMS,
    attempts: int = 3,
    chunk: int = 8,
    seed: int = 0,
    progress: Report | None = None,
) -> None:
    """Extract candidates from the memories.

    Args:
        store: the store with the memories.
        writer: the text generator, which gets ``chunk`` requests at a time.
        show_answer, max_items, attempts: see ``extraction_request`` and ``write_until_fit``.

    Raises:
        BankError: the rollouts are not all verified.
        ServerError: the writer cannot be reached.
    """
    total = _require_finished(store, Stage.VERIFY).counts.get("memories", 0)
    cached = CachingWriter(writer, store, chunk)

    def step(start: int, end: int) -> Chunk:
        memories = list(_memories(store, start, end))
        requests = list(_requests(memories, start, show_answer=show_answer, max_items=max_items, seed=seed))
        readers = [partial(read_extraction, memory, max_items=max_items) for memory in memories]
        answers, cost = write_until_fit(cached, requests, readers, attempts=attempts)
        candidates: list[Candidate] = []
        failures: list[dict[str, object]] = []
        for memory, answer in zip(memories, answers, strict=True):
            if isinstance(answer, WriteFailure):
                failures.append(_write_failure(Stage.EXTRACT, memory.id, answer))
            else:
                candidates += answer
        return Chunk({CANDIDATES: [found.as_dict() for found in candidates], FAILURES: failures}, cost)

    _run(store, Stage.EXTRACT, total, chunk, step, progress)


def requests_left(
    store: Store, *, show_answer: bool = False, max_items: int = MAX_ITEMS, seed: int = 0
) -> Iterator[WriteRequest]:
    """The requests that ``extract`` with these arguments has yet to send, without retries, to estimate their cost.

    Raises:
        BankError: the rollouts are not all verified.
    """
    total, progress = _require_finished(store, Stage.VERIFY).counts.get("memories", 0), store.progress(Stage.EXTRACT)
    start = 0 if progress is None else progress.done
    memories = _memories(store, start, total)
    yield from _requests(memories, start, show_answer=show_answer, max_items=max_items, seed=seed)


def merge_and_scan(
    store: Store,
    writer: Writer,
    problems: Iterable[Problem],
    *,
    name: str = "",
    metadata: Mapping[str, object] | None = None,
    group_size: int = GROUP_SIZE,
    patience: int = PATIENCE,
    embed: Embed | None = None,
    attempts: int = 3,
    chunk: int = 8,
    seed: int = 0,
    benchmarks: Mapping[str, Iterable[Problem]] | None = None,
    n: int = DEFAULT_N,
    progress: Report | None = None,
) -> None:
    """Merge the candidates to a bank. Items that leak a problem are left out and kept among the failures.

    Args:
        store: the store with the candidates.
        writer: the text generator, which gets ``chunk`` requests at a time.
        problems: the problems of ``sample``.
        name, metadata: of the bank.
        group_size, patience, embed, attempts, seed: see ``merge.merge``.
        benchmarks, n: see ``leaks.scan``.

    Raises:
        BankError: the candidates are not all extracted.
        ServerError: the writer cannot be reached.
    """
    _require_finished(store, Stage.EXTRACT)

    def step(_start: int, _end: int) -> Chunk:
        merged = merge(
            [read_candidate(row) for row in rows_of(store, CANDIDATES)],
            CachingWriter(writer, store, chunk, None if progress is None else partial(progress, Stage.MERGE)),
            group_size=group_size,
            patience=patience,
            embed=embed,
            attempts=attempts,
            seed=seed,
        )
        items = [item.item(Origin.COLD_START) for item in merged.items]
        bank = SkillBank(name=name, metadata=metadata or {}).with_items(items)
        found = scan(
            bank, problems=problems, memories=_memories(store), benchmarks=benchmarks, lineage=merged.lineage, n=n
        )
        kept, taken = quarantine(bank, found)
        failures = [_write_failure(Stage.MERGE, failure.key, failure) for failure in merged.failures]
        kinds = {leak.item: str(leak.kind) for leak in reversed(found.leaks)}
        for item in taken:
            reason = "; ".join(found.reasons[item.id])
            more = {"leak": kinds[item.id], "item": item_document(item)}
            failures.append(_failure(QUARANTINE, item.id, reason, **more))
        return Chunk(
            {FAILURES: failures},
            {**merged.counts, "items": len(bank.items), "quarantined": len(taken)},
            {LINEAGE: {id: list(parents) for id, parents in merged.lineage.items()}, BANK: kept.to_json()},
            {"layers": [asdict(layer) for layer in merged.layers], "digest": kept.digest},
        )

    _run(store, Stage.MERGE, 1, 1, step, None)


def export(store: Store) -> None:
    """Write the results of finished stages as files beside the store. An existing ``bank.json`` is kept.

    Raises:
        BankError: a file cannot be written.
    """
    made = {Stage.SAMPLE: (ROLLOUTS,), Stage.VERIFY: (MEMORIES, FAILURES), Stage.EXTRACT: (CANDIDATES,)}
    with refused_writes(store.folder):
        for name in (name for stage, names in made.items() if store.finished(stage) for name in names):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(store, name))
            runfolder.write_text(store.folder / name, lines)
        if store.finished(Stage.MERGE):
            runfolder.write_json(store.folder / LINEAGE, store.document(LINEAGE, _LINEAGE) or {})
            if not (store.folder / BANK).exists():
                runfolder.write_text(store.folder / BANK, store.document(BANK, BANK_TEXT) or "")


def refuse_changed_problems(store: Store, problems: Sequence[Problem]) -> None:
    """Refuse rollouts and memories whose problem is missing or has changed.

    Raises:
        DataError: with the first such row.
    """
    by_id = {problem.id: problem for problem in problems}
    for name in (MEMORIES, ROLLOUTS):
        for number, row in enumerate(rows_of(store, name), 1):
            problem = _problem_of(row, f"{name}:{number}", by_id)
            if name == MEMORIES and (row["problem"], row["answer"]) != (problem.text, problem.answer):
                raise _missing(f"{name}:{number}", f"{problem.id!r} with another text or answer")


def _run(
    store: Store,
    stage: Stage,
    total: int,
    chunk: int,
    step: Callable[[int, int], Chunk],
    report: Report | None,
) -> None:
    """Run the remaining chunks; ``step(start, end)`` makes one."""
    progress = store.progress(stage)
    if progress is None:
        progress = Progress(0, total)
        store.commit(stage, progress, {})
    if report is not None:
        report(stage, progress.done, total)
    while not progress.finished:
        began = time.monotonic()
        end = min(progress.done + chunk, total)
        made = step(progress.done, end)
        counts = Counter(progress.counts)
        counts.update(made.counts)
        seconds = progress.seconds + time.monotonic() - began
        progress = Progress(end, total, seconds, dict(counts), made.details or {})
        store.commit(stage, progress, made.rows, made.documents)
        if report is not None:
            report(stage, progress.done, total)


def _require_finished(store: Store, stage: Stage) -> Progress:
    """The progress of a stage; raises ``BankError`` if it is not finished."""
    progress = store.progress(stage)
    if progress is None or not progress.finished:
        got = "nothing" if progress is None else f"{progress.done:,} of {progress.total:,} done"
        raise BankError(
            f"stage {stage} is not finished in {store.folder}", got=got, remedy=f"run sgsd bank {stage} first"
        )
    return progress


def _memories(store: Store, start: int = 0, end: int | None = None) -> Iterator[Memory]:
    return (read_memory(row, MEMORIES) for row in rows_of(store, MEMORIES, start, end))


def _requests(
    memories: Iterable[Memory], start: int, *, show_answer: bool, max_items: int, seed: int
) -> Iterator[WriteRequest]:
    for position, memory in enumerate(memories, start):
        yield extraction_request(
            memory, show_answer=show_answer, max_items=max_items, seed=derived_seed(seed, position)
        )


def _row(problem: Problem, index: int, rollout: Rollout) -> dict[str, object]:
    return {
        "id": f"{problem.id}#{index}",
        "problem_id": problem.id,
        "sample": index,
        "completion": rollout.text,
        "stop_reason": rollout.stop_reason.value,
        "prompt_tokens": len(rollout.prompt_ids),
        "completion_tokens": rollout.tokens,
    }


def _context(problem: Problem, text: str) -> Context:
    """The arguments of a reward function, without the rendered prompt and the token ids, which are not stored."""
    prompt = problem.prompt if problem.prompt is not None else [{"role": "user", "content": problem.text}]
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    return Context(prompt, completion, columns=problem.reward_columns)


def _problem_of(row: Mapping[str, Any], where: str, problems: Mapping[str, Problem]) -> Problem:
    problem = problems.get(row["problem_id"])
    if problem is None:
        raise _missing(where, repr(row["problem_id"]))
    return problem


def _missing(where: str, got: str) -> DataError:
    return DataError(
        f"{where}: its problem is missing from the data set",
        got=got,
        remedy="use the data set that the build began with, or choose another --output",
    )


def _failure(stage: str, id: str, reason: str, **more: object) -> dict[str, object]:
    return {"stage": stage, "id": id, "reason": reason, **more}


def _write_failure(stage: str, id: str, failure: WriteFailure) -> dict[str, object]:
    return _failure(stage, id, failure.reason, key=failure.key, attempts=failure.attempts, text=failure.text)
