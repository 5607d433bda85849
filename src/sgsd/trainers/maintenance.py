"""Online maintenance: what the policy does during training becomes new items of its bank.

Every ``maintenance_frequency`` optimizer steps the rollouts since the last check are looked at. Where too few of them
succeeded, a writer makes items of them: memories → extraction → merge → ``bank.maintain``. The window holds the
rollouts of all accumulation steps and processes, and is part of the checkpoint. The first process writes, the others
wait for the new bank. A writer that fails or takes too long costs the update, not the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from accelerate import DistributedType
from transformers import TrainerCallback

from sgsd import runfolder
from sgsd.bank import Item, Origin, SkillBank
from sgsd.bank.extract import Candidate, extraction_request, read_extraction
from sgsd.bank.leaks import scan
from sgsd.bank.maintain import Action, maintain
from sgsd.bank.merge import merge
from sgsd.bank.writing import WriteFailure, Writer, WriteRequest, Written, write_until_fit
from sgsd.data.problems import Problem
from sgsd.engines.server_writer import ServerWriter
from sgsd.engines.writers import TransformersWriter
from sgsd.errors import BankError, CheckpointError, ConfigError, DataError
from sgsd.memories import Memory, memory_of, read_memory
from sgsd.trainers.checkpoint import BankState
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.record import append_lines, keep_until
from sgsd.verifiers import Outcome, Verdict

# What the others wait beyond the writer's time: reading, merging, a batch of the policy's that runs to its end.
_GRACE = timedelta(hours=2)
_AT_ONCE = 16  # requests that the policy takes together: a batch of generation
_OUTCOMES = {1: Outcome.CORRECT, -1: Outcome.INCORRECT, 0: Outcome.UNDECIDED}

T = TypeVar("T")


# ---- what a writer makes of a window


@dataclass(frozen=True, slots=True)
class Proposal:
    """Items of the merge, best first; how many candidates there were before; reasons of requests that failed."""

    items: Sequence[Candidate]
    candidates: int
    failures: Sequence[str]


def propose(memories: Sequence[Memory], writer: Writer, *, seed: int = 0) -> Proposal:
    """Extract and merge. Items that more memories stand behind come first, older ones first among equals."""

    def reader(memory: Memory) -> Callable[[Written], list[Candidate]]:
        return lambda written: read_extraction(memory, written)

    requests = [extraction_request(memory, seed=seed) for memory in memories]
    answers, _ = write_until_fit(writer, requests, list(map(reader, memories)))
    failures = [answer.reason for answer in answers if isinstance(answer, WriteFailure)]
    candidates = [candidate for answer in answers if not isinstance(answer, WriteFailure) for candidate in answer]
    merged = merge(candidates, writer, seed=seed)
    items = sorted(merged.items, key=lambda item: -len(item.parents))
    return Proposal(items, len(candidates), [*failures, *(failure.reason for failure in merged.failures)])


class _Deadline:
    """A writer until ``seconds`` from now, and ``TimeoutError`` afterwards; asked every ``at_once`` requests."""

    def __init__(self, writer: Writer, seconds: float, at_once: int | None) -> None:
        self.name = writer.name
        self._writer = writer
        self._end = time.monotonic() + seconds
        self._at_once = at_once

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        size = self._at_once or max(len(requests), 1)
        written: list[Written] = []
        for start in range(0, len(requests), size):
            if time.monotonic() >= self._end:
                raise TimeoutError
            written += self._writer.write(requests[start : start + size])
        return written


def _in_thread(function: Callable[[], T], seconds: float | None) -> T | BaseException:
    """What a function returns or raises; ``TimeoutError`` after ``seconds``: a thread that is late is left behind."""
    results: list[T | BaseException] = []
    pool = ThreadPool(1)
    try:
        pool.apply_async(function, callback=results.append, error_callback=results.append).wait(seconds)
    finally:
        pool.close()
    return results[0] if results else TimeoutError()


def _without_leaks(candidates: Sequence[Candidate], memories: Sequence[Memory]) -> tuple[list[Candidate], list[str]]:
    """The candidates that give no answer away, and the reasons against the others."""
    items: dict[str, Item] = {}
    for candidate in candidates:
        with suppress(BankError):  # maintain says what is wrong with it
            items[candidate.id] = candidate.item(Origin.ONLINE)
    reasons = scan(SkillBank().with_items(items.values()), memories=memories).reasons
    kept = [candidate for candidate in candidates if candidate.id not in reasons]
    return kept, [reason for found in reasons.values() for reason in found]


# ---- in the trainer


class Maintenance(TrainerCallback):
    """Watches rollouts and renews a run's bank, before the step is logged and saved.

    All processes make the same calls. The first one alone holds the window, writes, and logs a line a check to
    ``maintenance.jsonl``: what the window held, and the fate of every candidate and of every item that went.

    Args:
        args, accelerator: the trainer's.
        bank: of the run; renewed here.
        credit: of an item, by the ledger (see ``bank.maintain``).
        log: takes a check's metrics.
        writer: who writes new items.
        own_process: the writer uses this process's model: it is waited for, and asked for the time between requests.
            Another one is left alone when its time is over.
    """

    def __init__(
        self,
        args: SGSDConfig,
        bank: BankState,
        credit: Callable[[str], float | None],
        log: Callable[[dict[str, float]], None],
        writer: Writer,
        accelerator: Any,
        *,
        own_process: bool,
    ) -> None:
        self._args = args
        self._file = Path(args.output_dir) / runfolder.MAINTENANCE
        self._bank = bank
        self._credit = credit
        self._log = log
        self._writer = writer
        self._own_process = own_process
        self._main = accelerator.is_main_process
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        # On the CPU and with a timeout of its own: NCCL would give up on a writer that takes its time.
        wait = timedelta(seconds=args.maintenance_timeout) + _GRACE
        self._group = torch.distributed.new_group(backend="gloo", timeout=wait) if self._processes > 1 else None
        # The window: rollouts since the last check; those that were decided, as memories.
        self._rollouts = 0
        self._memories: list[Memory] = []
        self._counts: Counter[str] = Counter(updated=0, skipped=0)

    def state_dict(self) -> dict[str, Any]:
        memories = [memory.as_dict() for memory in self._memories]
        return {"rollouts": self._rollouts, "memories": memories, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self._rollouts = int(state["rollouts"])
            self._memories = [read_memory(values, "window.json") for values in state["memories"]]
            self._counts = Counter(state["counts"])
        except (TypeError, KeyError, ValueError, DataError) as error:
            raise CheckpointError("not a window of rollouts", got=f"{type(error).__name__}: {error}") from error

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._main:  # what was logged after the step where the run starts goes
            self._file.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self._file, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._args.maintenance_frequency == 0 and self._bank.bank is not None:
            metrics = self.check(state.global_step, self._bank.bank)
            self._log({f"sgsd/maintenance/{name}": float(value) for name, value in metrics.items()})

    def observe(
        self,
        step: int,
        rows: Sequence[dict[str, Any]],
        completions: Sequence[str],
        truncated: Sequence[bool],
        outcomes: Sequence[int],
        verdicts: Sequence[Verdict] | None,
    ) -> None:
        """Add this process's newly verified rollouts, and all others', to the window.

        Args:
            step: the optimizer step they were made for, from 1.
            rows: of the data set, one a rollout; all processes have equally many.
            completions, truncated, outcomes: what the model wrote, whether the length limit cut it, 1, −1 or 0.
            verdicts: of a verifier, whose reasons are kept.
        """
        memories: list[Memory | None] = []
        for n, row in enumerate(rows):
            reason = verdicts[n].reason if verdicts else None
            problem = Problem(str(row["problem_id"]), row["problem"], row.get("answer") or "")
            verdict = Verdict(_OUTCOMES[outcomes[n]], reason, None)
            source = f"training step {step}, rollout {self._rank * len(rows) + n}"
            memories.append(memory_of(problem, completions[n], verdict, truncated=truncated[n], source=source))
        gathered: list[Any] = [memories]
        if self._group is not None:
            gathered = [None] * self._processes if self._main else []
            torch.distributed.gather_object(memories, gathered or None, dst=0, group=self._group)
        if self._main:
            self._rollouts += sum(map(len, gathered))
            self._memories += [memory for part in gathered for memory in part if memory is not None]

    def check(self, step: int, bank: SkillBank) -> dict[str, float]:
        """Look at the window after so many steps, and empty it; all processes have the new bank then."""
        sent: list[Any] = [self._renewed(step, bank) if self._main else None]
        if self._group is not None:
            torch.distributed.broadcast_object_list(sent, src=0, group=self._group)
        self._bank.bank, metrics = sent[0]
        return metrics

    def _renewed(self, step: int, bank: SkillBank) -> tuple[SkillBank, dict[str, float]]:
        begun = time.monotonic()
        successes = sum(memory.outcome == Outcome.CORRECT.value for memory in self._memories)
        # Among all rollouts, undecided ones included, as the success_rate of the logs.
        rate = successes / self._rollouts if self._rollouts else None
        line: dict[str, Any] = {
            "step": step,
            "records": self._rollouts,
            "success_rate": rate,
            "status": "enough",
            "reason": None,
            "memories": 0,
            "candidates": 0,
            "failures": {},
            "bank": bank.digest,
            "leaks": [],
            "items": [],
            "added": [],
            "memories_kept": [],
        }
        if rate is not None and rate < self._args.maintenance_threshold:
            bank = self._updated(step, bank, line)
        self._rollouts, self._memories = 0, []
        self._counts[line["status"]] += 1
        append_lines(self._file, [line])
        actions = [entry["action"] for entry in line["items"]]
        return bank, {
            "updates": self._counts["updated"],
            "skipped": self._counts["skipped"],
            "added": actions.count(Action.ADDED),
            "evicted": actions.count(Action.EVICTED),
            "leaks": len(line["leaks"]),
            "passed_over": actions.count(Action.PASSED_OVER),
            "failures": sum(line["failures"].values()),
            "records": line["records"],
            "success_rate": torch.nan if rate is None else rate,
            "online_skills": len(bank.dynamic.skills),
            "online_mistakes": len(bank.dynamic.mistakes),
            "seconds": time.monotonic() - begun,
        }

    def _updated(self, step: int, bank: SkillBank, line: dict[str, Any]) -> SkillBank:
        """The bank with what is written of the window; ``line`` tells what became of it."""
        memories, limit = self._memories, self._args.maintenance_timeout
        line["memories"] = len(memories)
        writer = _Deadline(self._writer, limit, _AT_ONCE if self._own_process else None)
        seed = self._args.seed + step
        found = _in_thread(lambda: propose(memories, writer, seed=seed), None if self._own_process else limit)
        if isinstance(found, BaseException):
            late, said = isinstance(found, TimeoutError), " ".join(f"{type(found).__name__}: {found}".split())
            line |= {"status": "skipped", "reason": f"no items within {limit:g} s" if late else said[:300]}
            return bank
        line |= {"candidates": found.candidates, "failures": dict(Counter(found.failures))}
        if found.failures and not found.items:
            line |= {"status": "skipped", "reason": "nothing that was written could be used"}
            return bank
        items, line["leaks"] = _without_leaks(found.items, memories)
        update = maintain(bank, items, credit=self._credit)
        parents = {parent for item in update.diff.added for parent in item.parents}
        line |= {
            "status": "updated" if update.diff else "unchanged",
            "bank": update.bank.digest,
            "items": list(map(asdict, update.log)),
            "added": list(map(asdict, update.diff.added)),
            "memories_kept": [memory.as_dict() for memory in memories if memory.id in parents],
        }
        return update.bank


def maintenance_of(
    trainer: Any,
    args: SGSDConfig,
    writer: Writer | None,
    bank: BankState,
    credit: Callable[[str], float | None],
    log: Callable[[dict[str, float]], None],
) -> Maintenance:
    """The maintenance that a run's settings describe: written by ``writer``, their server, or else the policy itself.

    Raises:
        ConfigError: no process holds the whole policy; of the server, the package openai is missing, the address is
            none, or there is no key.
    """
    accelerator = trainer.accelerator
    if writer is None and args.maintenance_writer_url and args.maintenance_writer_model:
        # A quarter of the update's time for a request: one that hangs is repeated before the time is over.
        wait = min(600.0, args.maintenance_timeout / 4)
        url = args.maintenance_writer_url
        writer = ServerWriter(args.maintenance_writer_model, base_url=url, timeout=wait, retries=2)
    own_process = writer is None
    if writer is None:
        refuse_partitioned_policy(accelerator, frequency=args.maintenance_frequency)
        writer = TransformersWriter(
            accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            name="policy",
            batch_size=_AT_ONCE,
            chat_template_kwargs={**(args.chat_template_kwargs or {}), "enable_thinking": False},
        )
    return Maintenance(args, bank, credit, log, writer, accelerator, own_process=own_process)


def refuse_partitioned_policy(accelerator: Any, *, frequency: int) -> None:
    """One process cannot generate alone with a model that is spread over all.

    Raises:
        ConfigError: the policy is to write under DeepSpeed ZeRO-3 or FSDP.
    """
    plugin = accelerator.state.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    if zero3 or accelerator.distributed_type is DistributedType.FSDP:
        raise ConfigError(
            f"the policy cannot write new items under {'DeepSpeed ZeRO-3' if zero3 else 'FSDP'}",
            got=f"maintenance_frequency {frequency}",
            expected="a writer of its own: maintenance_writer_url, or SGSDTrainer(writer=...)",
            remedy="no process holds the whole model there",
        )
