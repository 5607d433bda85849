"""What a run keeps of its teachers for ``sgsd report``: ``ledger.json``, and rollouts token by token.

``traces.jsonl`` holds, now and then, some rollouts of the first process under each of their teachers. A run that goes
on from a checkpoint first drops what was written after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict, TypeAdapter
from torch import Tensor
from transformers import TrainerCallback
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.objectives import TeacherScores
from sgsd.trainers.ledger import TrainingLedger
from sgsd.trainers.tracking import log_gaps

OUTCOMES = {1: "success", -1: "failure", 0: "undecided"}
_TRACED = 2  # rollouts of a trace: a success and a failure if there are


class _Line(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    step: runfolder.Count


_LINE = TypeAdapter(_Line)


class _Decoder(Protocol):
    def decode(self, token_ids: list[int], **options: Any) -> str: ...


class RunRecorder(TrainerCallback):
    """Ends an optimizer step for the ledger, and keeps the two files of this module.

    Args:
        folder, tokenizer, ledger: the run's.
        log: takes the ledger's totals into the log, at each step's end.
        trace_steps: optimizer steps between traces, beside one of the first step; 0 keeps none.
        writes: whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: _Decoder,
        ledger: TrainingLedger,
        log: Callable[[], None],
        *,
        trace_steps: int,
        writes: bool,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._log = log
        self._trace_steps = trace_steps
        self._writes = writes
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._traces: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._writes:  # what was recorded after the step where the run starts goes
            self._folder.mkdir(parents=True, exist_ok=True)
            keep_until(self._folder / runfolder.TRACES, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if traces := self.end_step(state.global_step):
            log_gaps(args.report_to, state.global_step, traces)
        self._log()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._writes:
            runfolder.write_text(self._folder / runfolder.LEDGER, self._ledger.ledger.to_json())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_save(args, state, control)

    def rollouts(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        """Begin a batch: the data rows of this process's rollouts, and their numbers, as ``row`` in the batch."""
        self._rows |= zip(numbers, rows, strict=True)

    def observe(
        self,
        step: int,
        inputs: Mapping[str, Tensor],
        student: Tensor,
        teachers: TeacherScores,
        support: Tensor,
        stance: Tensor,
    ) -> None:
        """Keep a micro-batch's rollouts for a trace, if optimizer step ``step``, from 1, is one of those traced.

        ``student`` is ``[B, T]``, log-probabilities; ``support`` and ``stance`` are ``[B, K]``.
        """
        if not self._writes or not self._trace_steps or (step > 1 and step % self._trace_steps):
            return
        for b, outcome in enumerate(inputs["outcome"].tolist()):
            kept = sum(trace["outcome"] == OUTCOMES[outcome] for trace in self._traces)
            scored = teachers.scored[b].nonzero().flatten().tolist()
            if kept == _TRACED or not scored:
                continue
            row, n = self._rows[int(inputs["row"][b])], int(inputs["completion_mask"][b].sum())
            traced: list[dict[str, Any]] = []
            for k in scored:
                skill, mistake = self._ledger.ids(*inputs["items"][b, k].tolist())
                traced.append(
                    {
                        "skill": skill,
                        "mistake": mistake,
                        "weight": round(float(teachers.weights[b, k]), 4),
                        "support": round(float(support[b, k]), 4),
                        "stance": int(stance[b, k]),
                        "polarity": outcome * int(stance[b, k]),
                        "gaps": rounded(teachers.logps[b, k, :n] - student[b, :n]),
                    }
                )
            self._traces.append(
                {
                    "step": step,
                    "problem_id": str(row["problem_id"]),
                    "problem": str(row["problem"]),
                    "answer": str(row.get("answer")),
                    "outcome": OUTCOMES[outcome],
                    "counted": inputs["score_mask"][b, :n].int().tolist(),
                    "tokens": token_pieces(self._tokenizer, inputs["completion_ids"][b, :n].tolist()),
                    "student_logps": rounded(student[b, :n]),
                    "teachers": traced,
                }
            )

    def end_step(self, step: int) -> list[dict[str, Any]]:
        """Credit the optimizer step that has just been made, and write its traces; returns them."""
        self._ledger.end_step()
        traces, self._traces = self._chosen(), []
        if traces:
            append_lines(self._folder / runfolder.TRACES, traces)
        return traces

    def _chosen(self) -> list[dict[str, Any]]:
        """One rollout of each outcome in turn, as long as there are any: successes first, undecided ones last."""
        by_outcome = [[trace for trace in self._traces if trace["outcome"] == name] for name in OUTCOMES.values()]
        turns = [traces[turn] for turn in range(_TRACED) for traces in by_outcome[:2] if turn < len(traces)]
        return [*turns, *by_outcome[2]][:_TRACED]


def token_pieces(tokenizer: _Decoder, ids: Sequence[int]) -> list[str]:
    """One text a token; joined, they are the decoded completion, special tokens included.

    A character that several tokens share stands at the last of them, and the others are empty. A token is decoded
    beside its predecessor: some tokenizers drop the space at the start of a text.
    """
    pieces: list[str] = []
    before, start = 0, 0  # ids[before:start] is written already, ids[start:] is not
    for end in range(1, len(ids) + 1):
        written = tokenizer.decode(list(ids[before:start]), skip_special_tokens=False)
        text = tokenizer.decode(list(ids[before:end]), skip_special_tokens=False)
        if text.endswith("�") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(written) :])
        before, start = start, end
    return pieces


def rounded(values: Tensor) -> list[float]:
    """To three places, without negative zeros."""
    return [round(value, 3) + 0.0 for value in values.detach().float().tolist()]


def append_lines(file: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Add one JSON object a line to the end of a file."""
    runfolder.append_text(file, "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))


def keep_until(file: Path, step: int) -> None:
    """Drop lines of later steps, and a last one that was cut off while it was written."""
    if not file.is_file():
        return
    kept = [line for _, line in runfolder.read_lines(file, _LINE) if line.get("step", 0) <= step]
    runfolder.write_text(file, (json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
