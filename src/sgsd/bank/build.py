"""From experience to a bank, in four stages over one folder: sample → verify → extract → merge.

``rollouts.jsonl``    every completion, in the order of problems and samples
``memories.jsonl``    those that are correct or incorrect
``candidates.jsonl``  what was written about them
``written.jsonl``     every answer of the writer, as it came
``failures.jsonl``    what came to nothing, with its stage and reason: undecided verdicts, memories and groups about
                      which nothing usable was written, items that give a problem away
``lineage.json``      id → what it comes from directly, of every candidate and item
``bank.json``         the bank

Each stage is a function over protocols and can be cut off at any moment (see ``records``): it goes on with the chunk
that was under way, whose inputs, order and seeds depend on its position alone. Answers of the writer are kept as they
come, so what was paid for is not asked for again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from typing import Any, cast

from sgsd.bank import formats
from sgsd.bank.extract import MAX_ITEMS, Candidate, extraction_request, read_candidate, read_extraction
from sgsd.bank.leaks import DEFAULT_N, quarantine, scan
from sgsd.bank.merge import GROUP_SIZE, PATIENCE, Embed, merge
from sgsd.bank.recording import RecordingWriter
from sgsd.bank.records import BuildFolder, Layout, Mark, replace_file
from sgsd.bank.skills import Origin, SkillBank
from sgsd.bank.writing import UnfitError, WriteFailure, Writer, WriteRequest, Written, write_until_fit
from sgsd.data.problems import Problem
from sgsd.errors import BankError, DataError
from sgsd.memories import Memory, memory_of, read_memory
from sgsd.rollouts import Rollout, Sampler, StopReason
from sgsd.verifiers.verdict import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import verify_in_context

ROLLOUTS = "rollouts.jsonl"
MEMORIES = "memories.jsonl"
CANDIDATES = "candidates.jsonl"
WRITTEN = "written.jsonl"
FAILURES = "failures.jsonl"
LINEAGE = "lineage.json"
BANK = "bank.json"

QUARANTINE = "quarantine"
"""In the failures, the stage of items that were taken out of the bank."""
VERIFY_CHUNK = 256


class Stage(StrEnum):
    """The stages, in their order."""

    SAMPLE = "sample"
    VERIFY = "verify"
    EXTRACT = "extract"
    MERGE = "merge"


LAYOUTS: Mapping[str, Layout] = {
    Stage.SAMPLE: Layout(appended=(ROLLOUTS,)),
    Stage.VERIFY: Layout(appended=(MEMORIES, FAILURES)),
    Stage.EXTRACT: Layout(appended=(CANDIDATES, FAILURES), journals=(WRITTEN,)),
    Stage.MERGE: Layout(appended=(FAILURES,), journals=(WRITTEN,), whole=(LINEAGE, BANK)),
}

Progress = Callable[[Stage, int, int], object]
"""Called with a stage, how much of it is done, and of how much."""


def sample(
    folder: BuildFolder,
    problems: Sequence[Problem],
    prompt: Callable[[Problem], Sequence[int]],
    sampler: Sampler,
    *,
    samples: int = 1,
    chunk: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Draw ``samples`` completions of every problem.

    Args:
        folder: where to.
        problems: in the order in which they are kept.
        prompt: a problem's prompt as token ids.
        sampler: draws them, ``chunk`` at a time, each chunk with a seed of its own.

    Raises:
        DataError: no problems.
    """
    if not problems or samples < 1:
        raise DataError("nothing to sample", got=f"{len(problems)} problems, {samples} samples of each")

    def step(start: int, end: int) -> dict[str, int]:
        asked = [(problems[position // samples], position % samples) for position in range(start, end)]
        rollouts = sampler.sample([prompt(problem) for problem, _ in asked], seed=_seed(seed, start // chunk))
        rows = [_row(problem, index, rollout) for (problem, index), rollout in zip(asked, rollouts, strict=True)]
        folder.records(ROLLOUTS).append(rows)
        prompts, completions = (
            sum(cast(int, row[f"{name}_tokens"]) for row in rows) for name in ("prompt", "completion")
        )
        return {"prompt_tokens": prompts, "completion_tokens": completions}

    _run(folder, Stage.SAMPLE, len(problems) * samples, chunk, step, progress)


def verify(
    folder: BuildFolder,
    problems: Sequence[Problem],
    verifier: Verifier,
    *,
    truncated: Outcome = Outcome.INCORRECT,
    progress: Progress | None = None,
) -> None:
    """Rollouts → memories; what could not be judged goes to the failures.

    Args:
        folder: where the rollouts are.
        problems: those of ``sample``.
        verifier: judges.
        truncated: what a completion is that the length limit cut, whatever it holds.

    Raises:
        BankError: there are no rollouts, or not all of them.
        DataError: a rollout whose problem is gone.
    """
    total = _total(folder, Stage.SAMPLE)
    by_id = {problem.id: problem for problem in problems}
    rows = folder.records(ROLLOUTS).rows(_done(folder, Stage.VERIFY))

    def step(start: int, end: int) -> dict[str, int]:
        taken = [(_problem_of(values, where, by_id), values) for where, values in islice(rows, end - start)]
        texts = [_text(values, "completion") for _, values in taken]
        verdicts = verify_in_context(
            verifier,
            texts,
            [problem.key for problem, _ in taken],
            lambda: [_context(problem, text) for (problem, _), text in zip(taken, texts, strict=True)],
        )
        memories: list[Memory] = []
        failures: list[dict[str, object]] = []
        for (problem, values), text, verdict in zip(taken, texts, verdicts, strict=True):
            is_cut = values.get("stop_reason") == StopReason.LENGTH
            verdict = Verdict(truncated, "truncated", verdict.extracted) if is_cut else verdict
            source = _text(values, "id")
            memory = memory_of(problem, text, verdict, truncated=is_cut, source=source)
            if memory is None:
                failures.append(_failure(Stage.VERIFY, source, verdict.reason or "undecided", text=text))
            else:
                memories.append(memory)
        folder.records(MEMORIES).append(memory.as_dict() for memory in memories)
        folder.records(FAILURES).append(failures)
        return {"memories": len(memories), "undecided": len(failures)}

    _run(folder, Stage.VERIFY, total, VERIFY_CHUNK, step, progress)


def extract(
    folder: BuildFolder,
    writer: Writer,
    *,
    show_answer: bool = False,
    max_items: int = MAX_ITEMS,
    attempts: int = 3,
    chunk: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Memories → candidates.

    Args:
        folder: where the memories are.
        writer: writes, ``chunk`` requests at a time.
        show_answer, max_items: see ``extraction_request``.
        attempts: how often the writer is asked about a memory at most.

    Raises:
        BankError: the rollouts are not all verified.
        ServerError: the writer is out of reach.
    """
    _total(folder, Stage.VERIFY)
    total = _counts(folder, Stage.VERIFY).get("memories", 0)
    memories_left = _memories(folder, _done(folder, Stage.EXTRACT))
    recorder = RecordingWriter(
        writer, folder.records(WRITTEN), _counts(folder, Stage.EXTRACT).get("requests", 0), chunk
    )

    def step(start: int, end: int) -> dict[str, int]:
        memories = list(islice(memories_left, end - start))
        requests = list(_requests(memories, start, show_answer=show_answer, max_items=max_items, seed=seed))
        rejected: Counter[str] = Counter()
        readers = [_reader(memory, max_items, rejected) for memory in memories]
        answers, cost = write_until_fit(recorder, requests, readers, attempts=attempts)
        candidates: list[Candidate] = []
        failures: list[dict[str, object]] = []
        for memory, answer in zip(memories, answers, strict=True):
            if isinstance(answer, WriteFailure):
                failures.append(_failure(Stage.EXTRACT, memory.id, answer.reason, **_attempt(answer)))
            else:
                candidates += answer
        folder.records(CANDIDATES).append({"id": found.id, **found.as_dict()} for found in candidates)
        folder.records(FAILURES).append(failures)
        return asdict(cost) | {f"rejected: {reason}": count for reason, count in rejected.items()}

    _run(folder, Stage.EXTRACT, total, chunk, step, progress)


def requests_left(
    folder: BuildFolder, *, show_answer: bool = False, max_items: int = MAX_ITEMS, seed: int = 0
) -> Iterator[WriteRequest]:
    """What ``extract`` with these arguments will ask the writer first, to tell what that may cost.

    Raises:
        BankError: the rollouts are not all verified.
    """
    _total(folder, Stage.VERIFY)
    start = _done(folder, Stage.EXTRACT)
    yield from _requests(_memories(folder, start), start, show_answer=show_answer, max_items=max_items, seed=seed)


def merge_and_scan(
    folder: BuildFolder,
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
    progress: Progress | None = None,
) -> None:
    """Candidates → ``bank.json``, without the items that give a problem away: those go to the failures, whole.

    Args:
        folder: where the candidates are.
        writer: writes, ``chunk`` requests at a time.
        problems: what was sampled.
        name, metadata: of the bank.
        group_size, patience, embed, attempts, seed: see ``merge.merge``.
        benchmarks, n: see ``leaks.scan``.

    Raises:
        BankError: not all memories were written about.
        ServerError: the writer is out of reach.
    """
    _total(folder, Stage.EXTRACT)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(Stage.MERGE, done, total)

    def step(_start: int, _end: int) -> dict[str, int]:
        asked = _counts(folder, Stage.EXTRACT).get("requests", 0)
        recorder = RecordingWriter(writer, folder.records(WRITTEN), asked, chunk, report)
        candidates = [read_candidate(values, where) for where, values in folder.records(CANDIDATES).rows()]
        merged = merge(
            candidates, recorder, group_size=group_size, patience=patience, embed=embed, attempts=attempts, seed=seed
        )
        bank = SkillBank(name=name, metadata=metadata or {}).with_items(
            item.item(Origin.COLD_START) for item in merged.items
        )
        found = scan(
            bank, problems=problems, memories=_memories(folder), benchmarks=benchmarks, lineage=merged.lineage, n=n
        )
        kept, taken = quarantine(bank, found)
        failures = [
            _failure(Stage.MERGE, failure.key, failure.reason, **_attempt(failure)) for failure in merged.failures
        ]
        kinds = {leak.item: str(leak.kind) for leak in reversed(found.leaks)}
        for entry in taken:
            id = entry.item.id
            more = {"leak": kinds[id], "item": _as_dict(entry.item)}
            failures.append(_failure(QUARANTINE, id, "; ".join(entry.reasons), **more))
        folder.records(FAILURES).append(failures)
        replace_file(folder.path / LINEAGE, formats.pretty({id: list(own) for id, own in merged.lineage.items()}))
        kept.save(folder.path / BANK)
        details.update(layers=[asdict(layer) for layer in merged.layers], digest=kept.digest)
        return asdict(merged.counts) | {"items": len(bank.items), "quarantined": len(taken)}

    details: dict[str, object] = {}
    _run(folder, Stage.MERGE, 1, 1, step, None, details)


def refuse_gone_problems(folder: BuildFolder, problems: Sequence[Problem]) -> None:
    """Rollouts and memories must be of problems that are there, and say what they said.

    Raises:
        DataError: naming the first line whose problem is gone or another.
    """
    by_id = {problem.id: problem for problem in problems}
    for name in (MEMORIES, ROLLOUTS):
        for where, values in folder.records(name).rows():
            problem = _problem_of(values, where, by_id)
            if name == MEMORIES and (values.get("problem"), values.get("answer")) != (problem.text, problem.answer):
                raise _gone(where, f"{problem.id!r} with another text or answer")


def _run(
    folder: BuildFolder,
    stage: Stage,
    total: int,
    chunk: int,
    step: Callable[[int, int], Mapping[str, int]],
    progress: Progress | None,
    details: Mapping[str, object] | None = None,
) -> None:
    """Do the chunks that are left; ``step(start, end)`` makes one, writes it and returns its counts."""
    mark = folder.mark(stage)
    if mark is None:
        for name in LAYOUTS[stage].appended:  # a file without lines says that there was nothing to say
            folder.records(name).append([])
        mark = Mark(stage, 0, total, _sizes(folder, stage))
        folder.commit(mark)
    if progress is not None:
        progress(stage, mark.done, total)
    while mark.done < total:
        began = time.monotonic()
        end = min(mark.done + chunk, total)
        counts = Counter(mark.counts)
        counts.update(step(mark.done, end))
        seconds = mark.seconds + time.monotonic() - began
        mark = Mark(stage, end, total, _sizes(folder, stage), dict(counts), seconds, details or {})
        folder.commit(mark)
        if progress is not None:
            progress(stage, mark.done, total)


def _memories(folder: BuildFolder, skip: int = 0) -> Iterator[Memory]:
    return (read_memory(values, where) for where, values in folder.records(MEMORIES).rows(skip))


def _requests(
    memories: Iterable[Memory], start: int, *, show_answer: bool, max_items: int, seed: int
) -> Iterator[WriteRequest]:
    for position, memory in enumerate(memories, start):
        yield extraction_request(memory, show_answer=show_answer, max_items=max_items, seed=_seed(seed, position))


def _sizes(folder: BuildFolder, stage: Stage) -> dict[str, int]:
    layout = LAYOUTS[stage]
    return {name: folder.records(name).size for name in (*layout.appended, *layout.journals)}


def _total(folder: BuildFolder, stage: Stage) -> int:
    """How much a stage made that must be finished."""
    mark = folder.mark(stage)
    if mark is None or not mark.is_last:
        got = "nothing" if mark is None else f"{mark.done:,} of {mark.total:,} done"
        raise BankError(
            f"stage {stage} is not finished in {folder.path}", got=got, remedy=f"run sgsd bank {stage} first"
        )
    return mark.total


def _done(folder: BuildFolder, stage: Stage) -> int:
    mark = folder.mark(stage)
    return 0 if mark is None else mark.done


def _counts(folder: BuildFolder, stage: Stage) -> Mapping[str, int]:
    mark = folder.mark(stage)
    return {} if mark is None else mark.counts


def _seed(seed: int, position: int) -> int:
    """A seed in [0, 2³¹) for what stands at this position; nothing else has a part in it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {position}".encode()).digest()[:4], "big") >> 1


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
    """What a reward function is told: the rendered prompt and the ids are not kept with the rollouts."""
    prompt = problem.prompt if problem.prompt is not None else [{"role": "user", "content": problem.text}]
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    return Context(prompt, completion, columns=problem.reward_columns)


def _problem_of(values: Mapping[str, object], where: str, problems: Mapping[str, Problem]) -> Problem:
    id = values.get("problem_id")
    problem = problems.get(id) if isinstance(id, str) else None
    if problem is None:
        raise _gone(where, repr(id))
    return problem


def _gone(where: str, got: str) -> DataError:
    return DataError(
        f"{where}: its problem is gone from the data set",
        got=got,
        remedy="go on with the data set that the build began with, or choose another --output",
    )


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise DataError("a rollout cannot be read", got=f"{name} {value!r}", expected="what sgsd bank sample wrote")
    return value


def _failure(stage: str, id: str, reason: str, **more: object) -> dict[str, object]:
    return {"stage": stage, "id": id, "reason": reason, **more}


def _attempt(failure: WriteFailure) -> dict[str, object]:
    return {"key": failure.key, "attempts": failure.attempts, "text": failure.text}


def _as_dict(item: Any) -> dict[str, object]:
    return {**asdict(item), "origin": str(item.origin), "parents": list(item.parents)}


def _reader(memory: Memory, max_items: int, rejected: Counter[str]) -> Callable[[Written], list[Candidate]]:
    """``read_extraction``, counting what does not fit by its reason."""

    def read(written: Written) -> list[Candidate]:
        try:
            return read_extraction(memory, written, max_items=max_items)
        except UnfitError as error:
            rejected[kind_of_reason(error.reason)] += 1
            raise

    return read


def kind_of_reason(reason: str) -> str:
    """A reason without its particulars, to be counted by: what it found, and its numbers as N."""
    return re.sub(r"\d+", "N", reason.partition(": got")[0])[:80]
