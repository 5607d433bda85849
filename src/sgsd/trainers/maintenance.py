"""Online maintenance: what the policy does during training becomes new items of its bank.

Every ``maintenance_frequency`` optimizer steps the rollouts since the last check are looked at. Where too few of them
succeeded, a writer makes items of them: memories → extraction → merge → ``bank.maintain``. How it deviates from the
public code of this family of methods:

- the window holds all rollouts, of all accumulation steps and ranks, and is part of the checkpoint;
- the first process writes outside of any collective; the others wait for its bytes in a group of their own, whose
  timeout is longer than the writer's;
- a writer that fails or takes too long costs the update, not the run.

``maintenance.jsonl`` in the run's folder has one line a check: what the window held, and what became of every
candidate and of every item that went.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from transformers import TrainerCallback

from sgsd import runfolder
from sgsd.bank import Item, Origin, SkillBank
from sgsd.bank.extract import Candidate, extraction_request, read_extraction
from sgsd.bank.leaks import scan
from sgsd.bank.maintain import Action, maintain
from sgsd.bank.merge import merge
from sgsd.bank.writing import WriteFailure, Writer, WriteRequest, Written, write_until_fit
from sgsd.data.problems import Problem
from sgsd.errors import BankError, CheckpointError
from sgsd.memories import Memory, memory_of
from sgsd.trainers.checkpoint import BankState
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.record import append_lines, keep_until
from sgsd.trainers.writer import AT_ONCE, policy_writer, served_writer
from sgsd.verifiers import Outcome, Verdict

# What the others wait beyond the writer's time: reading, merging, a batch of the policy's that runs to its end.
_GRACE = timedelta(hours=2)

T = TypeVar("T")


# ---- the window


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One rollout of training.

    Attributes:
        step: the optimizer step it was made for, from 1.
        row: its number among all processes' rollouts of one call of the sampler.
        problem_id, problem, answer: of its problem; ``answer`` is what the verifier took.
        completion: what the model wrote.
        outcome: 1 success, −1 failure, 0 undecided.
        reason, extracted: the verdict's, where a verifier gave one.
        truncated: whether the length limit cut it.
    """

    step: int
    row: int
    problem_id: str
    problem: str
    answer: str
    completion: str
    outcome: int
    reason: str | None
    extracted: str | None
    truncated: bool

    def memory(self) -> Memory | None:
        """The memory of this rollout; ``None`` where it is undecided."""
        outcome = {1: Outcome.CORRECT, -1: Outcome.INCORRECT, 0: Outcome.UNDECIDED}[self.outcome]
        return memory_of(
            Problem(id=self.problem_id, text=self.problem, answer=self.answer),
            self.completion,
            Verdict(outcome, self.reason, self.extracted),
            truncated=self.truncated,
            source=f"training step {self.step}, rollout {self.row}",
        )


def window_records(
    rows: Sequence[dict[str, Any]],
    completions: Sequence[str],
    truncated: Sequence[bool],
    outcomes: Sequence[int],
    verdicts: Sequence[Verdict] | None,
    *,
    step: int,
    rank: int,
) -> list[WindowRecord]:
    """One process's rollouts of one call of the sampler.

    Args:
        rows: of the data set, one a rollout, with ``problem_id``, ``problem`` and ``answer``.
        completions, truncated, outcomes: as in ``WindowRecord``.
        verdicts: of a verifier, whose reasons are kept; ``None`` where the rewards are others.
        step: as in ``WindowRecord``.
        rank: of the process; all have equally many rollouts.
    """
    return [
        WindowRecord(
            step=step,
            row=rank * len(rows) + index,
            problem_id=str(row["problem_id"]),
            problem=row["problem"],
            answer=row.get("answer") or "",
            completion=completions[index],
            outcome=outcomes[index],
            reason=None if verdict is None else verdict.reason,
            extracted=None if verdict is None else verdict.extracted,
            truncated=truncated[index],
        )
        for index, (row, verdict) in enumerate(zip(rows, verdicts or [None] * len(rows), strict=True))
    ]


@dataclass(frozen=True, slots=True)
class Window:
    """The rollouts since the last check, and how the checks so far ended.

    Attributes:
        records: in the order of steps, then rows.
        updates: checks that changed the bank.
        skipped: checks whose update a slow or failing writer cost.
    """

    records: tuple[WindowRecord, ...] = ()
    updates: int = 0
    skipped: int = 0

    @property
    def success_rate(self) -> float | None:
        """Share of the successes among all rollouts, undecided ones included, as the ``success_rate`` of the logs."""
        return sum(record.outcome > 0 for record in self.records) / len(self.records) if self.records else None

    def state_dict(self) -> dict[str, Any]:
        """Records and counts."""
        records = [asdict(record) for record in self.records]
        return {"records": records, "updates": self.updates, "skipped": self.skipped}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Window:
        """What ``state_dict`` returned, as a window.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            return cls(tuple(WindowRecord(**line) for line in state["records"]), state["updates"], state["skipped"])
        except (TypeError, KeyError) as error:
            raise CheckpointError("not a window of rollouts", got=type(error).__name__) from error


# ---- the update


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a writer made of a window: items, best first, and what went wrong on the way.

    Attributes:
        items: of the merge; parents are memory ids.
        memories: how many were written about.
        candidates: what extraction gave, before merging.
        failures: reasons of requests that gave nothing usable.
    """

    items: tuple[Candidate, ...]
    memories: int
    candidates: int
    failures: tuple[str, ...]


def propose(memories: Sequence[Memory], writer: Writer, *, seed: int = 0) -> Proposal:
    """Extract and merge. Items that more memories stand behind come first, older ones first among equals."""
    requests = [extraction_request(memory, seed=seed) for memory in memories]
    readers = [_reader(memory) for memory in memories]
    answers, _ = write_until_fit(writer, requests, readers)
    failures = [answer.reason for answer in answers if isinstance(answer, WriteFailure)]
    candidates = [candidate for answer in answers if not isinstance(answer, WriteFailure) for candidate in answer]
    merged = merge(candidates, writer, seed=seed)
    return Proposal(
        items=tuple(sorted(merged.items, key=lambda item: -len(item.parents))),
        memories=len(memories),
        candidates=len(candidates),
        failures=(*failures, *(failure.reason for failure in merged.failures)),
    )


def _reader(memory: Memory) -> Callable[[Written], list[Candidate]]:
    return lambda written: read_extraction(memory, written)


class _Deadline:
    """A writer until ``seconds`` from now, and ``TimeoutError`` afterwards.

    Args:
        writer: who writes.
        at_once: requests handed on together; the time is looked at in between. All of them, if not given.
    """

    def __init__(self, writer: Writer, seconds: float, *, at_once: int | None = None) -> None:
        self._writer = writer
        self._end = time.monotonic() + seconds
        self._at_once = at_once

    @property
    def name(self) -> str:
        return self._writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        size = self._at_once or max(len(requests), 1)
        written: list[Written] = []
        for start in range(0, len(requests), size):
            if time.monotonic() >= self._end:
                raise TimeoutError
            written += self._writer.write(requests[start : start + size])
        return written


def _in_thread(function: Callable[[], T], seconds: float | None) -> T | BaseException:
    """What a function returns or raises, in a thread of its own; ``TimeoutError`` after ``seconds``.

    A thread that is late is left to itself: it ends with the process at the latest.
    """
    results: list[T | BaseException] = []
    pool = ThreadPool(1)
    try:
        pool.apply_async(function, callback=results.append, error_callback=results.append).wait(seconds)
    finally:
        pool.close()
    return results[0] if results else TimeoutError()


# ---- in the trainer


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``maintenance.jsonl``.

    Attributes:
        step: optimizer steps done.
        records, success_rate: of the window.
        status: ``enough`` successes; the bank was ``updated``, or left ``unchanged``, since nothing new was written;
            the update was ``skipped``, since the writer was slow or failed.
        reason: why it was skipped.
        memories, candidates: see ``Proposal``.
        failures: reason → how many requests gave nothing usable for it.
        bank: digest, after the check.
        leaks: reasons of items that were left out because they give a problem away (``bank.leaks``).
        items: of ``maintain``: every candidate's and evicted item's fate.
        added: the new items whole, with the ids of the memories they come from.
        memories_kept: those memories.
    """

    step: int
    records: int
    success_rate: float | None
    status: str
    reason: str | None = None
    memories: int = 0
    candidates: int = 0
    failures: dict[str, int] = field(default_factory=dict[str, int])
    bank: str = ""
    leaks: tuple[str, ...] = ()
    items: tuple[dict[str, Any], ...] = ()
    added: tuple[dict[str, Any], ...] = ()
    memories_kept: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the first process sends to all: the bank as bytes with its digest, and what there is to log."""

    bank: bytes
    digest: str
    metrics: dict[str, float]


class Maintenance(TrainerCallback):
    """Watches rollouts and renews a run's bank every ``frequency`` steps, before the step is logged and saved.

    All processes make the same calls. The first one alone holds the window, writes and logs.

    Args:
        folder: the run's.
        bank: of the run; renewed here.
        credit: of an item, by the ledger (see ``bank.maintain``).
        log: takes a check's metrics.
        writer: who writes new items.
        frequency, threshold, timeout: see ``SGSDConfig``.
        own_process: the writer uses this process's model: it is waited for, and asked for the time between requests.
            Another one is left alone when its time is over.
        processes, rank: how many there are, and which one this is.
        seed: of the writer's sampling.
    """

    def __init__(
        self,
        folder: Path,
        bank: BankState,
        credit: Callable[[str], float | None],
        log: Callable[[dict[str, float]], None],
        writer: Writer,
        *,
        frequency: int,
        threshold: float,
        timeout: float,
        own_process: bool,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        self.window = Window()
        self.frequency = frequency
        self._file = folder / runfolder.MAINTENANCE
        self._bank = bank
        self._credit = credit
        self._log = log
        self._writer = writer
        self._threshold = threshold
        self._timeout = timeout
        self._own_process = own_process
        self._rank = rank
        self._seed = seed
        # On the CPU and with a timeout of its own: NCCL would give up on a writer that takes its time.
        self._group = (
            torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout) + _GRACE)
            if processes > 1
            else None
        )
        self._processes = processes

    def state_dict(self) -> dict[str, Any]:
        """The window, of the first process."""
        return self.window.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved window.

        Raises:
            CheckpointError: it is none.
        """
        self.window = Window.from_state(state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop what was logged after the step where the run starts, 0 or a checkpoint's."""
        if self._rank == 0:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self._file, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the bank if it is time."""
        if state.global_step % self.frequency == 0 and self._bank.bank is not None:
            self._bank.bank, metrics = self.check(state.global_step, self._bank.bank)
            self._log({f"sgsd/maintenance/{name}": value for name, value in metrics.items()})

    def observe(self, records: Sequence[WindowRecord]) -> None:
        """Add this process's newly verified rollouts, and all others', to the window."""
        gathered: list[Any] = [list(records)]
        if self._group is not None:
            gathered = [None] * self._processes if self._rank == 0 else []
            torch.distributed.gather_object(list(records), gathered or None, dst=0, group=self._group)
        if self._rank == 0:
            self.window = replace(self.window, records=(*self.window.records, *(r for part in gathered for r in part)))

    def check(self, step: int, bank: SkillBank) -> tuple[SkillBank, dict[str, float]]:
        """Look at the window and empty it; returns the bank as it is now, on all processes, and metrics.

        Args:
            step: optimizer steps done.
            bank: as it was, the same on all processes.

        Raises:
            CheckpointError: the bank that arrived is not the one that was sent.
        """
        sent: list[Any] = [self._renew(step, bank) if self._rank == 0 else None]
        if self._group is not None:
            torch.distributed.broadcast_object_list(sent, src=0, group=self._group)
        update: _Sent = sent[0]
        if update.digest != bank.digest:
            bank = SkillBank.from_json(update.bank.decode(), source="the updated bank")
        if bank.digest != update.digest:
            raise CheckpointError(
                "the updated bank is not the one that was sent", got=bank.digest[:12], expected=update.digest[:12]
            )
        return bank, update.metrics

    def _renew(self, step: int, bank: SkillBank) -> _Sent:
        begun = time.monotonic()
        check, bank = self._checked(step, bank)
        self.window = Window(
            updates=self.window.updates + (check.status == "updated"),
            skipped=self.window.skipped + (check.status == "skipped"),
        )
        append_lines(self._file, [asdict(check)])
        actions = [entry["action"] for entry in check.items]
        metrics = {
            "updates": self.window.updates,
            "skipped": self.window.skipped,
            "added": actions.count(Action.ADDED),
            "evicted": actions.count(Action.EVICTED),
            "leaks": len(check.leaks),
            "passed_over": actions.count(Action.PASSED_OVER),
            "failures": sum(check.failures.values()),
            "records": check.records,
            "success_rate": torch.nan if check.success_rate is None else check.success_rate,
            "online_skills": len(bank.dynamic.skills),
            "online_mistakes": len(bank.dynamic.mistakes),
            "seconds": time.monotonic() - begun,
        }
        return _Sent(bank.to_json().encode(), bank.digest, {name: float(value) for name, value in metrics.items()})

    def _checked(self, step: int, bank: SkillBank) -> tuple[Check, SkillBank]:
        rate = self.window.success_rate
        check = Check(step, len(self.window.records), rate, "enough", bank=bank.digest)
        if rate is None or rate >= self._threshold:
            return check, bank
        memories = [memory for record in self.window.records if (memory := record.memory()) is not None]
        writer = _Deadline(self._writer, self._timeout, at_once=AT_ONCE if self._own_process else None)
        proposal = _in_thread(
            lambda: propose(memories, writer, seed=self._seed + step), None if self._own_process else self._timeout
        )
        if isinstance(proposal, BaseException):
            late = isinstance(proposal, TimeoutError)
            reason = f"no items within {self._timeout:g} s" if late else _line(proposal)
            return replace(check, status="skipped", reason=reason, memories=len(memories)), bank
        check = replace(
            check,
            memories=proposal.memories,
            candidates=proposal.candidates,
            failures=dict(Counter(proposal.failures)),
        )
        if proposal.failures and not proposal.items:
            return replace(check, status="skipped", reason="nothing that was written could be used"), bank
        items, leaks = _without_leaks(proposal.items, memories)
        check = replace(check, leaks=leaks)
        update = maintain(bank, items, credit=self._credit)
        parents = {parent for item in update.diff.added for parent in item.parents}
        check = replace(
            check,
            status="updated" if update.diff else "unchanged",
            bank=update.bank.digest,
            items=tuple(map(asdict, update.log)),
            added=tuple(map(asdict, update.diff.added)),
            memories_kept=tuple(memory.as_dict() for memory in memories if memory.id in parents),
        )
        return check, update.bank


def _without_leaks(
    candidates: Sequence[Candidate], memories: Sequence[Memory]
) -> tuple[list[Candidate], tuple[str, ...]]:
    """The candidates that give nothing away, and the reasons against the others."""
    items: dict[str, Item] = {}
    for candidate in candidates:
        with suppress(BankError):  # maintain says what is wrong with it
            items[candidate.id] = candidate.item(Origin.ONLINE)
    report = scan(SkillBank().with_items(items.values()), memories=memories)
    reasons = report.reasons
    kept = [candidate for candidate in candidates if candidate.id not in reasons]
    return kept, tuple(reason for found in reasons.values() for reason in found)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def maintenance_of(
    trainer: Any,
    args: SGSDConfig,
    writer: Writer | None,
    bank: BankState,
    credit: Callable[[str], float | None],
    log: Callable[[dict[str, float]], None],
) -> Maintenance:
    """The maintenance that a run's settings describe.

    Args:
        trainer: whose policy writes where neither ``writer`` nor a server does.
        args: the run's settings.
        writer: in place of those.
        bank, credit, log: see ``Maintenance``.

    Raises:
        ConfigError: see ``trainers.writer``.
    """
    writer = writer or served_writer(args)
    own_process = writer is None
    if writer is None:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        writer = policy_writer(policy, trainer.processing_class, args, trainer.accelerator)
    return Maintenance(
        Path(args.output_dir),
        bank,
        credit,
        log,
        writer,
        frequency=args.maintenance_frequency,
        threshold=args.maintenance_threshold,
        timeout=args.maintenance_timeout,
        own_process=own_process,
        processes=trainer.accelerator.num_processes,
        rank=trainer.accelerator.process_index,
        seed=args.seed,
    )
