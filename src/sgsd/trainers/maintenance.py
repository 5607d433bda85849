"""Online maintenance: the policy's rollouts become new items of the bank during training.

Every ``maintenance_frequency`` optimizer steps, the window of rollouts since the last check is examined. If too few
succeeded, a writer derives items from them: memories → extraction → merge → ``bank.maintain``. The window has the
rollouts of all accumulation steps and processes, and is saved in checkpoints. The first process writes; the others wait
for the new bank. If the writer fails or takes too long, the update is skipped and the run continues.
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
from sgsd.scoring.weights import partitioned_by
from sgsd.trainers.checkpoint import BankState
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.record import append_lines, keep_until
from sgsd.verifiers import Outcome, Verdict

# Other processes wait this long beyond maintenance_timeout: for reading, merging, and the policy's last batch.
_GRACE = timedelta(hours=2)
_POLICY_BATCH = 16  # requests per batch of generation, if the policy writes
_OUTCOMES = {1: Outcome.CORRECT, -1: Outcome.INCORRECT, 0: Outcome.UNDECIDED}

T = TypeVar("T")


# ---- new items from a window


@dataclass(frozen=True, slots=True)
class Proposal:
    """Merged items, best first; the number of candidates before the merge; the reasons of failed requests."""

    items: Sequence[Candidate]
    candidates: int
    failures: Sequence[str]


def propose(memories: Sequence[Memory], writer: Writer, *, seed: int = 0) -> Proposal:
    """Extract and merge. Items are sorted by their number of parents, largest first; ties keep their order."""

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
    """A writer that raises ``TimeoutError`` before a batch of requests once ``seconds`` have passed."""

    def __init__(self, writer: Writer, seconds: float, batch_size: int | None) -> None:
        self.name = writer.name
        self._writer = writer
        self._end = time.monotonic() + seconds
        self._batch_size = batch_size

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        size = self._batch_size or max(len(requests), 1)
        written: list[Written] = []
        for start in range(0, len(requests), size):
            if time.monotonic() >= self._end:
                raise TimeoutError
            written += self._writer.write(requests[start : start + size])
        return written


def _in_thread(function: Callable[[], T], seconds: float | None) -> T | BaseException:
    """The function's result or exception; ``TimeoutError`` after ``seconds``, when its thread is abandoned."""
    results: list[T | BaseException] = []
    pool = ThreadPool(1)
    try:
        pool.apply_async(function, callback=results.append, error_callback=results.append).wait(seconds)
    finally:
        pool.close()
    return results[0] if results else TimeoutError()


def _without_leaks(candidates: Sequence[Candidate], memories: Sequence[Memory]) -> tuple[list[Candidate], list[str]]:
    """The candidates that do not reveal an answer, and the reasons against the others."""
    items: dict[str, Item] = {}
    for candidate in candidates:
        with suppress(BankError):  # maintain reports invalid candidates
            items[candidate.id] = candidate.item(Origin.ONLINE)
    reasons = scan(SkillBank().with_items(items.values()), memories=memories).reasons
    kept = [candidate for candidate in candidates if candidate.id not in reasons]
    return kept, [reason for found in reasons.values() for reason in found]


# ---- in the trainer


class Maintenance(TrainerCallback):
    """Collects rollouts and updates the bank of a run, before the step is logged and saved.

    All processes make the same calls. The first one has the window, writes, and adds a line per check to
    ``maintenance.jsonl``: the window's numbers, and what became of each candidate and each evicted item.

    Args:
        args, accelerator: the trainer's.
        bank: of the run; updated in place.
        credit: an item's credit in the ledger (see ``bank.maintain``).
        log: logs a check's metrics.
        writer: writes new items.
        own_process: the writer uses this process's model. Its deadline is then checked between batches; another writer
            runs in a thread that is abandoned at the deadline.
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
        # A gloo group with a longer timeout than NCCL's, since a writer can take long.
        wait = timedelta(seconds=args.maintenance_timeout) + _GRACE
        self._group = torch.distributed.new_group(backend="gloo", timeout=wait) if self._processes > 1 else None
        # The window: the number of rollouts since the last check, and memories of those with a verdict.
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
        if self._main:
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
        answers: Sequence[str],
        completions: Sequence[str],
        truncated: Sequence[bool],
        outcomes: Sequence[int],
        verdicts: Sequence[Verdict] | None,
    ) -> None:
        """Add all processes' newly verified rollouts to the window.

        Args:
            step: number of the optimizer step that they were sampled for, from 1.
            rows: the data row of each rollout; all processes have equally many.
            answers: the reference answers, empty where there are none.
            completions: the rollouts' texts.
            truncated: whether each was cut at the length limit.
            outcomes: in {−1, 0, 1}.
            verdicts: of a verifier; their reasons become part of the memories.
        """
        memories: list[Memory | None] = []
        for n, row in enumerate(rows):
            reason = verdicts[n].reason if verdicts else None
            problem = Problem(str(row["problem_id"]), row["problem"], answers[n])
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
        """Examine the window after step ``step``, update the bank on all processes, and empty the window."""
        result: list[Any] = [self._checked(step, bank) if self._main else None]
        if self._group is not None:
            torch.distributed.broadcast_object_list(result, src=0, group=self._group)
        self._bank.bank, metrics = result[0]
        return metrics

    def _checked(self, step: int, bank: SkillBank) -> tuple[SkillBank, dict[str, float]]:
        begun = time.monotonic()
        successes = sum(memory.outcome == Outcome.CORRECT.value for memory in self._memories)
        # Undecided rollouts are counted in the denominator, as in the logged success_rate.
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
        """The bank with the new items of the window; adds the results to ``line``."""
        memories, limit = self._memories, self._args.maintenance_timeout
        line["memories"] = len(memories)
        writer = _Deadline(self._writer, limit, _POLICY_BATCH if self._own_process else None)
        seed = self._args.seed + step
        proposal = _in_thread(lambda: propose(memories, writer, seed=seed), None if self._own_process else limit)
        if isinstance(proposal, BaseException):
            error = " ".join(f"{type(proposal).__name__}: {proposal}".split())
            late = isinstance(proposal, TimeoutError)
            line |= {"status": "skipped", "reason": f"no items within {limit:g} s" if late else error[:300]}
            return bank
        line |= {"candidates": proposal.candidates, "failures": dict(Counter(proposal.failures))}
        if proposal.failures and not proposal.items:
            line |= {"status": "skipped", "reason": "no written item could be used"}
            return bank
        items, line["leaks"] = _without_leaks(proposal.items, memories)
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
    """The maintenance of a run. The writer is ``writer``, else the server in the settings, else the policy.

    Raises:
        ConfigError: the policy writes and is sharded over processes; or the server has no valid URL, there is no key,
            or the package openai is missing.
    """
    accelerator = trainer.accelerator
    if writer is None and args.maintenance_writer_url and args.maintenance_writer_model:
        # A quarter of the update's time per request, so that one that hangs can be repeated in time.
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
            batch_size=_POLICY_BATCH,
            chat_template_kwargs={**(args.chat_template_kwargs or {}), "enable_thinking": False},
        )
    return Maintenance(args, bank, credit, log, writer, accelerator, own_process=own_process)


def refuse_partitioned_policy(accelerator: Any, *, frequency: int) -> None:
    """Refuse a policy that writes under DeepSpeed ZeRO-3 or FSDP: one process cannot generate with sharded weights.

    Raises:
        ConfigError: under one of the two.
    """
    if partitioned := partitioned_by(accelerator):
        raise ConfigError(
            f"the policy cannot write new items under {partitioned}",
            got=f"maintenance_frequency {frequency}",
            expected="another writer: maintenance_writer_url, or SGSDTrainer(writer=...)",
            remedy="or use DDP or ZeRO-2, where each process has the whole model",
        )
