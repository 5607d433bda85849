"""What a run remembers of its teachers, for the report: the ledger, histograms of the support, traced rollouts.

Three files in the run's folder, written by the first process:

- ``ledger.json``: what became of each bank item (``bank.ledger``), of all processes' rollouts;
- ``supports.jsonl``: for each optimizer step, how many teachers had a support in each bin, by outcome; likewise of all;
- ``traces.jsonl``: now and then some rollouts of the first process, token by token, under each of their teachers.

The last two are appended to. A run that goes on from a checkpoint first drops what was written after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather
from torch import Tensor
from transformers import TrainerCallback

from sgsd.bank import Ledger, SkillBank
from sgsd.objectives import SGSDLoss
from sgsd.scoring.teachers import TeacherPool

LEDGER_FILE = "ledger.json"
SUPPORTS_FILE = "supports.jsonl"
TRACES_FILE = "traces.jsonl"

# Nats per token. Fine around 0, where most supports lie; 0.05 is the default dead zone.
SUPPORT_EDGES = (-2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
OUTCOMES = {1: "success", -1: "failure", 0: "undecided"}


class _Decoder(Protocol):
    def decode(self, token_ids: list[int], **options: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """What this process knows of one rollout besides its tensors."""

    problem_id: str
    problem: str
    answer: str


class RunRecorder:
    """Watches the losses of training micro-batches and keeps the three files of this module.

    Args:
        folder: the run's.
        tokenizer: decodes traced completions.
        trace_steps: optimizer steps between traces, beside one of the first step; 0 keeps none.
        trace_rollouts: rollouts of a trace; successes and failures take turns while there are both.
        writes: whether this process writes. All processes must make the same calls.
    """

    def __init__(
        self, folder: Path, tokenizer: _Decoder, *, trace_steps: int, trace_rollouts: int, writes: bool
    ) -> None:
        self.ledger = Ledger()
        self._folder = folder
        self._tokenizer = tokenizer
        self._trace_steps = trace_steps
        self._trace_rollouts = trace_rollouts
        self._writes = writes
        # Item ids by number, the same on all processes: tensors carry numbers. An id keeps its number for good.
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._asked: dict[int, _Asked] = {}
        self._edges = torch.tensor(SUPPORT_EDGES)
        self._histogram = torch.zeros(len(OUTCOMES), len(SUPPORT_EDGES) + 1, dtype=torch.int64)
        self._traces: list[dict[str, Any]] = []

    # ---- a run begins, is saved, ends

    def begin(self, step: int) -> None:
        """Drop what was recorded after ``step`` optimizer steps: the run starts there, at 0 or at a checkpoint."""
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (SUPPORTS_FILE, TRACES_FILE):
            keep_until(self._folder / name, step)

    def write_ledger(self) -> None:
        """Write ``ledger.json`` at once: readers see the old one or the new one."""
        if self._writes:
            partial = self._folder / f".{LEDGER_FILE}"
            partial.write_text(self.ledger.to_json(), encoding="utf-8")
            os.replace(partial, self._folder / LEDGER_FILE)

    # ---- rollouts are generated

    def rollouts(
        self, pools: Sequence[TeacherPool], bank: SkillBank, rows: Sequence[dict[str, Any]], *, first_row: int
    ) -> Tensor:
        """Take note of newly generated rollouts.

        Args:
            pools: the teachers of this process's B rollouts.
            bank: that they come from, the same on all processes.
            rows: the rollouts' rows of the data set.
            first_row: number of this process's first rollout among all processes'; the others follow.

        Returns:
            ``[B, K, 2]``: numbers of each teacher's skill and mistake, −1 for padding, to hand to ``observe``.
        """
        for item in bank.items:
            if item.id not in self._numbers:
                self._numbers[item.id] = len(self._ids)
                self._ids.append(item.id)
        self._asked = {
            first_row + index: _Asked(str(row["problem_id"]), str(row["problem"]), str(row["answer"]))
            for index, row in enumerate(rows)
        }
        padding = (-1, -1)
        return torch.tensor(
            [
                [
                    *((self._numbers[pair.skill.id], self._numbers[pair.mistake.id]) for pair in pool.pairs),
                    *([padding] * (len(pool.prompts) - len(pool.pairs))),
                ]
                for pool in pools
            ]
        )

    # ---- losses are computed

    def observe(self, step: int, inputs: dict[str, Tensor], result: SGSDLoss, student_logps: Tensor) -> None:
        """Record one training micro-batch.

        Args:
            step: the optimizer step it belongs to, from 1.
            inputs: of the loss: ``outcome`` ``[B]``, ``row`` ``[B]`` (numbers of the rollouts), ``items`` ``[B, K, 2]``
                (their part of what ``rollouts`` returned), ``teacher_weights`` ``[B, K]``, ``teacher_logps``
                ``[B, K, T]``, ``completion_ids``, ``completion_mask`` and ``score_mask`` ``[B, T]``.
            result: the loss.
            student_logps: ``[B, T]``.
        """
        local = torch.stack(
            [result.support, result.stance, inputs["outcome"].to(result.stance).unsqueeze(1).expand_as(result.stance)]
        )
        values, numbers = gather((local.movedim(0, -1).contiguous(), inputs["items"].contiguous()))
        support, stance, outcomes = values.cpu().unbind(-1)  # [B, K] each, of all processes
        outcome, numbers = outcomes[:, 0].long(), numbers.cpu()
        # Real teachers come first in a row, padding last: TeacherPool promises it.
        pairs = [
            [(self._ids[skill], self._ids[mistake]) for skill, mistake in row if skill >= 0] for row in numbers.tolist()
        ]
        self.ledger = self.ledger.credited(
            pairs, support=support.numpy(), stance=stance.numpy(), outcome=outcome.numpy(), problems=range(len(pairs))
        )
        self._count(outcome, support, numbers[..., 0] >= 0)
        if self._writes and self._traces_at(step):
            self._trace(step, inputs, result, student_logps.detach())

    def end_step(self, step: int) -> None:
        """Write what was observed of the optimizer step that has just been made."""
        counts = {name: row.tolist() for name, row in zip(OUTCOMES.values(), self._histogram, strict=True)}
        self._histogram.zero_()
        traces, self._traces = self._chosen(), []
        if not self._writes:
            return
        file = self._folder / SUPPORTS_FILE
        header = [] if file.is_file() and file.stat().st_size else [{"edges": SUPPORT_EDGES}]
        append_lines(file, [*header, {"step": step, **counts}])
        if traces:
            append_lines(self._folder / TRACES_FILE, traces)

    def _count(self, outcome: Tensor, support: Tensor, real: Tensor) -> None:
        for position, value in enumerate(OUTCOMES):
            chosen = support[real & (outcome == value).unsqueeze(1)]
            bins = torch.bucketize(chosen.float(), self._edges)  # bin n holds edges[n - 1] < S <= edges[n]
            self._histogram[position] += torch.bincount(bins, minlength=len(SUPPORT_EDGES) + 1)

    # ---- traces

    def _traces_at(self, step: int) -> bool:
        return bool(self._trace_steps and self._trace_rollouts) and (step == 1 or step % self._trace_steps == 0)

    def _trace(self, step: int, inputs: dict[str, Tensor], result: SGSDLoss, student_logps: Tensor) -> None:
        """Keep this micro-batch's rollouts of each outcome, as many as the step still lacks."""
        outcomes = inputs["outcome"].tolist()
        for index, outcome in enumerate(outcomes):
            kept = sum(trace["outcome"] == OUTCOMES[outcome] for trace in self._traces)
            if kept < self._trace_rollouts and int(inputs["items"][index, 0, 0]) >= 0:
                self._traces.append(self._trace_of(step, index, inputs, result, student_logps))

    def _trace_of(
        self, step: int, index: int, inputs: dict[str, Tensor], result: SGSDLoss, student_logps: Tensor
    ) -> dict[str, Any]:
        asked = self._asked[int(inputs["row"][index])]
        length = int(inputs["completion_mask"][index].sum())  # completions are padded on the right
        ids = inputs["completion_ids"][index, :length].tolist()
        student = student_logps[index, :length].float()
        teachers = []
        for k, (skill, mistake) in enumerate(inputs["items"][index].tolist()):
            if skill >= 0:
                gaps = inputs["teacher_logps"][index, k, :length].float() - student
                teachers.append(
                    {
                        "skill": self._ids[skill],
                        "mistake": self._ids[mistake],
                        "weight": round(float(inputs["teacher_weights"][index, k]), 4),
                        "support": round(float(result.support[index, k]), 4),
                        "stance": int(result.stance[index, k]),
                        "polarity": int(result.polarity[index, k]),
                        "gaps": _rounded(gaps),
                    }
                )
        return {
            "step": step,
            "problem_id": asked.problem_id,
            "problem": asked.problem,
            "answer": asked.answer,
            "outcome": OUTCOMES[int(inputs["outcome"][index])],
            "tokens": token_pieces(self._tokenizer, ids),
            "counted": inputs["score_mask"][index, :length].int().tolist(),
            "student_logps": _rounded(student),
            "teachers": teachers,
        }

    def _chosen(self) -> list[dict[str, Any]]:
        """One rollout of each outcome in turn, as long as there are any: successes first, undecided ones last."""
        by_outcome = [[trace for trace in self._traces if trace["outcome"] == name] for name in OUTCOMES.values()]
        turns = [
            traces[turn] for turn in range(self._trace_rollouts) for traces in by_outcome[:2] if turn < len(traces)
        ]
        return [*turns, *by_outcome[2]][: self._trace_rollouts]


class RecordCallback(TrainerCallback):
    """Tells a ``RunRecorder`` where training is."""

    def __init__(self, recorder: RunRecorder) -> None:
        self._recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._recorder.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._recorder.end_step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._recorder.write_ledger()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._recorder.write_ledger()


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


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) + 0.0 for value in values.tolist()]  # no negative zeros


def append_lines(file: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Add one JSON object a line to the end of a file."""
    with file.open("a", encoding="utf-8", newline="\n") as target:
        target.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)


def keep_until(file: Path, step: int) -> None:
    """Drop lines of later steps, and a last one that was cut off while it was written."""
    if not file.is_file():
        return
    # Not splitlines: a model may write the characters that only Unicode takes for the end of a line.
    *lines, _cut_off = file.read_text(encoding="utf-8").split("\n")
    kept = [line + "\n" for line in lines if json.loads(line).get("step", 0) <= step]
    partial = file.with_name(f".{file.name}")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, file)
