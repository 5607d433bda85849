"""A run's records: ``run.json``, the initial bank, ``ledger.json``, and rollouts token by token in ``traces.jsonl``.

Every ``trace_steps`` steps, ``traces.jsonl`` gets rollouts of the first process with the scores of their teachers. A
run that resumes from a checkpoint first drops the lines of later steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from peft import PeftConfig
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor
from transformers import TrainerCallback
from typing_extensions import TypedDict

from sgsd import __version__, runfolder
from sgsd.bank import SkillBank
from sgsd.data.problems import Problem
from sgsd.display import without_secrets
from sgsd.engines.models import weights_digest
from sgsd.objectives import TeacherScores
from sgsd.trainers.ledger import TrainingLedger
from sgsd.trainers.tracking import log_gaps

OUTCOMES = {1: "success", -1: "failure", 0: "undecided"}
_TRACED = 2  # rollouts per traced step: a success and a failure if possible
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify", "numpy")


class _Line(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    step: runfolder.Count


_LINE = TypeAdapter(_Line)


class _Decoder(Protocol):
    def decode(self, token_ids: list[int], **options: Any) -> str: ...


class RunRecorder(TrainerCallback):
    """Ends the ledger's optimizer steps, and writes the two files of this module.

    Args:
        folder, tokenizer, ledger: the run's.
        log: logs the ledger's totals; called at the end of each step.
        trace_steps: optimizer steps between traces; the first step is traced as well. 0: no traces.
        writes: whether this process writes files.
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
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            keep_until(self._folder / runfolder.TRACES, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if traces := self.end_step(state.global_step):
            log_gaps(args.report_to, state.global_step, traces)
        self._log()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._writes:
            runfolder.write_text(self._folder / runfolder.LEDGER, self._ledger.so_far.to_json())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_save(args, state, control)

    def rollouts(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        """Take a batch's data rows and their numbers (``row`` in the batch), for this process's rollouts."""
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
        """Trace rollouts of a micro-batch, if its step is traced.

        Args:
            step: number of the optimizer step, from 1.
            inputs: the micro-batch.
            student: ``[B, T]``, log-probabilities.
            teachers: scores of the B rollouts.
            support, stance: ``[B, K]``.
        """
        if not self._writes or not self._trace_steps or (step > 1 and step % self._trace_steps):
            return
        for b, outcome in enumerate(inputs["outcome"].tolist()):
            kept = sum(trace["outcome"] == OUTCOMES[outcome] for trace in self._traces)
            scored = teachers.scored[b].nonzero().flatten().tolist()
            if kept == _TRACED or not scored:
                continue
            row, n = self._rows[int(inputs["row"][b])], int(inputs["completion_mask"][b].sum())
            of_teachers: list[dict[str, Any]] = []
            for k in scored:
                skill, mistake = self._ledger.ids(*inputs["items"][b, k].tolist())
                of_teachers.append(
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
                    "teachers": of_teachers,
                }
            )

    def end_step(self, step: int) -> list[dict[str, Any]]:
        """End the ledger's step; write the step's traces and return them."""
        self._ledger.end_step()
        traces, self._traces = self._chosen(), []
        if traces:
            append_lines(self._folder / runfolder.TRACES, traces)
        return traces

    def _chosen(self) -> list[dict[str, Any]]:
        """At most ``_TRACED`` rollouts: successes and failures in turn, then undecided ones."""
        by_outcome = [[trace for trace in self._traces if trace["outcome"] == name] for name in OUTCOMES.values()]
        decided = [traces[turn] for turn in range(_TRACED) for traces in by_outcome[:2] if turn < len(traces)]
        return [*decided, *by_outcome[2]][:_TRACED]


def token_pieces(tokenizer: _Decoder, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, the texts are the decoded completion, special tokens included.

    If several tokens form one character, the last one has it and the others are empty. A token is decoded together
    with its predecessor, since some tokenizers drop the space at the start of a text.
    """
    pieces: list[str] = []
    before, start = 0, 0  # ids[:start] have their pieces; ids[before:start] are the predecessors
    for end in range(1, len(ids) + 1):
        predecessors = tokenizer.decode(list(ids[before:start]), skip_special_tokens=False)
        text = tokenizer.decode(list(ids[before:end]), skip_special_tokens=False)
        if text.endswith("�") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(predecessors) :])
        before, start = start, end
    return pieces


def rounded(values: Tensor) -> list[float]:
    """The values rounded to three decimals, without negative zeros."""
    return [round(value, 3) + 0.0 for value in values.detach().float().tolist()]


def append_lines(file: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Append JSON objects to a file, one per line."""
    runfolder.append_text(file, "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))


def keep_until(file: Path, step: int) -> None:
    """Drop a file's lines of steps after ``step``, and an incomplete last line."""
    if not file.is_file():
        return
    kept = [line for _, line in runfolder.read_lines(file, _LINE) if line.get("step", 0) <= step]
    runfolder.write_text(file, (json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


# ---- run.json


def record_run(folder: Path, settings: Mapping[str, Any], bank: SkillBank | None, **more: Any) -> None:
    """Write ``run.json``, and the bank at the start.

    It has all settings, the versions of packages, digests of the bank and of a local model's folder, and ``more``.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    about = {"sgsd": __version__, "python": platform.python_version(), "versions": versions}
    about["bank_digest"] = None if bank is None else bank.digest
    about["model_digest"] = weights_digest(Path(str(settings.get("model_name_or_path"))))
    runfolder.write_json(folder / runfolder.RUN, {**about, **more, "settings": settings})
    if bank is not None:
        bank.save(folder / runfolder.BANK_START)


def settings_of_script(
    args: Any,
    method: str,
    model: Any,
    problems: Sequence[Problem],
    *,
    verifier: Any,
    reward_funcs: Any,
    peft_config: PeftConfig | None,
) -> dict[str, Any]:
    """The settings of a trainer without those of ``sgsd train``: what its arguments say, as plain data."""
    if reward_funcs is None:
        judge = args.verifier if verifier is None else getattr(verifier, "name", None) or _path_of(verifier)
    else:
        judge = ", ".join(map(_path_of, reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]))
    adapter = {} if peft_config is None else settings_as_dict(peft_config)
    return {
        **settings_as_dict(args),
        "method": method,
        "model_name_or_path": model if isinstance(model, str) else model.name_or_path or type(model).__name__,
        "verifier": judge,
        "dataset_digest": digest_of(problems),
        **{f"peft_{name}": value for name, value in adapter.items()},
    }


def _path_of(function: Any) -> str:
    """Where a reward function comes from, as ``module:name``; a script's file stands for ``__main__``."""
    module = getattr(function, "__module__", None) or type(function).__module__
    if module == "__main__":
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or module).stem
    return f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def settings_as_dict(*parts: Any) -> dict[str, Any]:
    """All settings of these dataclasses that are plain data, in one mapping, without secrets. Sets are sorted lists."""
    merged: dict[str, Any] = {}
    for part in parts:
        for item in dataclasses.fields(part):
            value = getattr(part, item.name)
            value = value.value if isinstance(value, Enum) else sorted(value) if isinstance(value, set) else value
            if item.init and _is_plain(value):
                merged[item.name] = value
    return without_secrets(merged)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def digest_of(problems: Iterable[Problem]) -> str:
    """SHA-256 of the training problems, in their order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.text, problem.key]).encode())
    return digest.hexdigest()
