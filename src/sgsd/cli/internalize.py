"""``sgsd internalize``: a document of rules into a model's weights, with a certificate.

The work is done in stages. Each leaves its result in the output folder and is passed over where that is there, so a run
that was cut off goes on when the same call is made again:

    plan.json                  all that the certificate depends on; a folder with another plan is refused
    tasks/                     train.jsonl, held-out.jsonl
    bank.json                  the document as a bank
    doctor.json                what the doctor said (sgsd.doctor)
    evaluations/NAME/          before, with_document, after, grpo; retained-before, retained-after
    run/, grpo/                the training run and the baseline's, as sgsd train leaves them; run/'s model card tells
                               the certificate
    certificate.json, .html    report.certificate
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Required

import numpy as np
import torch
import yaml
from pydantic import FiniteFloat, TypeAdapter
from rich.console import Console
from scipy import stats
from transformers import PrinterCallback, TrainerCallback
from trl import ModelConfig
from typing_extensions import TypedDict

from sgsd import __version__, runfolder
from sgsd.bank import Ledger, Skill, SkillBank
from sgsd.bank.credit import credit
from sgsd.bank.documents import load_bank, sources
from sgsd.bank.ledger import ItemRecord
from sgsd.cli.console import standard_error, standard_output
from sgsd.cli.settings import RunArguments, hub_or_cache, parse_settings, read_yaml, resolve_config
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.doctor import Diagnosis, Verdict, diagnose
from sgsd.engines.embedders import build_retriever
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation import Evaluation, evaluate, paired_difference
from sgsd.evaluation.run import prompts_of
from sgsd.prompts import PromptRenderer, Shown
from sgsd.report.certificate import Certificate, add_to_card, certificate_table, read_certificate, write_page
from sgsd.trainers.config import CONFIGS, SGSDConfig, VerifiedConfig, context_of
from sgsd.trainers.names import method_name
from sgsd.trainers.rows import skill_pairs
from sgsd.trainers.tokens import prompt_budget
from sgsd.trainers.tracking import end_run, log_certificate
from sgsd.verifiers import PooledVerifier, get_verifier

PRESET = "internalize"
_PRESET = ("--config", PRESET)
BASELINES = ("grpo",)
_HELD_OUT = 3  # one task in so many is held out, where no file of them is given
_MOST_HELD_OUT = 200
_RETAINED = 100
_DIAGNOSED = 60  # training tasks that the doctor asks
_SUMS_INSTRUCTION = "Finish with the final answer as a single number."
_SHOWN_ANSWERS = 10
_RECITED_WORDS = 6
_RESAMPLES = 5000
_GROUP = 4  # GRPO's rollouts a problem
_WORD = re.compile(r"\w+")
_RUN, _PLAN = "run", "plan.json"


def internalize(
    document: str | Path,
    *,
    tasks: str | Path,
    model: str,
    output: str | Path,
    held_out: str | Path | None = None,
    retain: str | Path | None = None,
    baseline: str | None = None,
    baseline_learning_rate: float | None = None,
    columns: str | None = None,
    seed: int = 0,
    force: bool = False,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Certificate:
    """Train a model to do without a document in its prompt, and measure what that was worth.

    ```python
    from sgsd import internalize

    certificate = internalize("SKILL.md", tasks="problems.jsonl", model="Qwen/Qwen3-1.7B", output="runs/skill")
    print(certificate.accuracy.after, certificate.kept)
    ```

    Args:
        document: a Markdown file, a folder with a SKILL.md, or a bank (``bank.documents.load_bank``).
        tasks: problems with answers, as for ``sgsd train``.
        model: a hub name, folder or ``local:NAME``.
        output: a folder, new or of the same call, which goes on where it stopped.
        held_out: tasks to measure with; without it, every third of ``tasks``, at most 200.
        retain: problems to see by whether anything was forgotten, with the tasks' prompt and verifier; without it,
            generated sums.
        baseline: ``grpo``, to run the same budget of rollouts beside it.
        baseline_learning_rate: its own, if it should not have the run's: what suits a correction may be much for GRPO.
        columns: which column of the tasks is what: ``problem=question,answer=gold``.
        seed: of the split and the training.
        force: train although the doctor says no.
        settings: flags of ``sgsd train``, such as ``["--max_steps", "100"]``, over the preset ``internalize``.
        console: told what happens.

    Raises:
        SGSDError: what cannot be used, in one line; a ``ConfigError`` where the doctor says no.
    """
    if baseline is not None and baseline not in BASELINES:
        raise ConfigError("no such baseline", got=baseline, expected=", ".join(BASELINES))
    if baseline_learning_rate is not None and not (baseline and 0 < baseline_learning_rate < math.inf):
        raise ConfigError(
            "a learning rate of a baseline", got=baseline_learning_rate, expected="a number above 0, with a baseline"
        )
    work = _Work(
        bank=load_bank(document),
        document=Path(document).name,
        folder=Path(output),
        model=model,
        settings=tuple(settings),
        seed=seed,
        baseline_rate=baseline_learning_rate,
        console=console or standard_error(),
    )
    with warnings.catch_warnings(), runfolder.one_writer(work.folder), work:
        # PEFT looks for the configuration of a local: name on the hub; sgsd knows where it is.
        warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
        # Where no resample differs there is no interval by scipy; its quantiles are taken instead.
        warnings.filterwarnings("ignore", category=stats.DegenerateDataWarning)
        work.plan(tasks, held_out, retain, baseline, columns)
        diagnosis = work.diagnosis(force=force)
        with work.baseline_beside() if baseline else nullcontext():
            work.train(diagnosis)
        certificate = work.certificate(diagnosis, baseline)
    runfolder.write_json(work.folder / runfolder.CERTIFICATE, certificate)
    made = read_certificate(work.folder / runfolder.CERTIFICATE)
    write_page(made, work.folder / runfolder.CERTIFICATE_PAGE)
    add_to_card(made, work.folder / _RUN)
    log_certificate(work.training, work.folder)
    return made


def run(options: argparse.Namespace) -> int:
    """The command; see ``internalize``."""
    certificate = internalize(
        options.document,
        tasks=options.tasks,
        model=options.model,
        output=options.output,
        held_out=options.held_out,
        retain=options.retain,
        baseline=options.baseline,
        baseline_learning_rate=options.baseline_learning_rate,
        columns=options.columns,
        seed=options.seed,
        force=options.force,
        settings=options.settings,
    )
    out = standard_output()
    out.print(certificate_table(certificate))
    out.print(f"certificate: {options.output / runfolder.CERTIFICATE_PAGE}", soft_wrap=True)
    return 0


@dataclass
class _Work:
    """One document, model and folder.

    Attributes:
        bank: the document's rules.
        document: its file's name.
        folder: of everything.
        model: by name.
        settings: flags of ``sgsd train``.
        seed: of the split and the training.
        baseline_rate: the baseline's learning rate; ``None`` is the run's.
        console: told what happens.
    """

    bank: SkillBank
    document: str
    folder: Path
    model: str
    settings: tuple[str, ...]
    seed: int
    baseline_rate: float | None
    console: Console
    _verifiers: dict[str, PooledVerifier] = field(default_factory=dict, init=False)
    _held: tuple[str, Any] | None = field(default=None, init=False)
    """The model that was loaded last, with its name."""

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        for verifier in self._verifiers.values():
            verifier.close()

    # ---- stages

    def plan(
        self,
        tasks: str | Path,
        held_out: str | Path | None,
        retain: str | Path | None,
        baseline: str | None,
        columns: str | None,
    ) -> None:
        """Read and split the tasks; refuse a folder that another call began."""
        settings = self.training  # unusable ones are refused before anything is read
        if not isinstance(settings, SGSDConfig):
            raise ConfigError("internalize trains with teachers", got="another --method", expected="method sgsd")
        self._retain_file = None if retain is None else Path(retain).name
        self._retained = self._sums() if retain is None else self._problems(retain, "retain", None)
        every = self._problems(tasks, "tasks", columns)
        self._file = Path(tasks).name
        if held_out is not None:
            self._train, self._test = every, self._problems(held_out, "held_out", columns)
        else:
            order = random.Random(self.seed).sample(every, len(every))
            count = min(len(every) // _HELD_OUT, _MOST_HELD_OUT)
            self._test, self._train = order[:count], order[count:]
        if len(self._test) < 2 or not self._train:
            raise DataError("too few tasks", got=len(every), expected="six or more")
        plan = {
            "model": self.model,
            "document": hashlib.sha256(f"{self.bank.digest} {self._text}".encode()).hexdigest(),
            "settings": list(self.settings),
            "seed": self.seed,
            "baseline": baseline and [baseline, self.baseline_rate],
            "train": _digest(self._train),
            "held_out": _digest(self._test),
            "retained": _digest(self._retained),
        }
        file = self.folder / _PLAN
        if file.is_file():
            stored = runfolder.read_json(file)
            if baseline is None or stored.get("baseline") is None:  # it can be added to what is there, or left as it is
                stored["baseline"] = plan["baseline"] = plan["baseline"] or stored.get("baseline")
            other = {name for name, value in stored.items() if plan.get(name) != value}
            if other and (self.folder / runfolder.DOCTOR).is_file():  # before the doctor there is nothing to lose
                raise ConfigError(
                    "the output folder holds other work",
                    got=f"{self.folder}, begun with a different {', '.join(sorted(other))}",
                    remedy="choose another --output",
                )
        elif not runfolder.is_unused(self.folder):
            raise ConfigError("the output folder is not empty", got=str(self.folder), remedy="choose another --output")
        _ = self._tokenizer  # a model that is not there is refused before anything is written
        runfolder.write_json(file, plan)
        for name, problems in (("train", self._train), ("held-out", self._test)):
            runfolder.write_text(self._tasks(name), map(_row, problems))
        self.bank.save(self.folder / runfolder.BANK)

    def diagnosis(self, *, force: bool) -> Diagnosis:
        """What the doctor says, and the measures of the model as it is.

        Raises:
            ConfigError: the doctor says no, and ``force`` is not given.
        """
        file = self.folder / runfolder.DOCTOR
        if file.is_file():
            diagnosis = Diagnosis.from_json(runfolder.read_json(file))
        else:
            began = time.perf_counter()
            self._say("the doctor looks at plain and taught rollouts")
            drawn = random.Random(self.seed).sample(self._train, min(len(self._train), _DIAGNOSED))
            args, model = self.training, self._weights(self.model)
            diagnosis = diagnose(
                model,
                self._tokenizer,
                drawn,
                self.bank,
                renderer=self.renderer,
                verifier=self.verifier,
                retriever=self._retriever,
                contexts=[args.teacher_context] if args.teacher_context else None,
                max_new_tokens=args.max_completion_length,
                max_prompt_length=prompt_budget(model.config, args),
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                num_teachers=args.num_teachers,
                support_clip=args.support_clip,
                support_threshold=args.support_threshold,
                batch_size=args.eval_batch_size,
                seed=self.seed,
            )
            runfolder.write_json(file, diagnosis.to_json() | {"seconds": time.perf_counter() - began})
        for sentence in diagnosis.sentences:
            self._say(sentence)
        if diagnosis.verdict in (Verdict.NO, Verdict.USE_GRPO) and not force:
            said = f"the doctor says {diagnosis.verdict}"
            raise ConfigError(said, got=diagnosis.sentences[0], remedy="--force trains anyway")
        self.context = diagnosis.context or context_of(vars(self.training), self.bank)
        self._evaluated("before", self.model)
        self._evaluated("with_document", self.model, shown=self._shown)
        self._evaluated("retained-before", self.model)
        self._forget()
        return diagnosis

    def train(self, diagnosis: Diagnosis) -> None:
        """``sgsd train`` with the preset, and the adapter measured."""
        flags = ["--teacher_context", self.context]
        flags += ["--teacher_trust", str(diagnosis.settings.get("teacher_trust", self.training.teacher_trust))]
        self._trained(_RUN, [*_PRESET, *flags])
        self._evaluated("after", str(self.folder / _RUN))
        self._evaluated("retained-after", str(self.folder / _RUN))
        self._forget()

    @contextmanager
    def baseline_beside(self) -> Iterator[None]:
        """GRPO with the same rollouts, model, adapter and optimiser: on a CPU beside the work in here, or after it."""
        known = {one.name for part in (RunArguments, ModelConfig, CONFIGS["grpo"]) for one in fields(part)}
        content = {name: value for name, value in read_yaml(resolve_config(PRESET)).items() if name in known}
        content |= {"method": "grpo", "num_generations": _GROUP}
        file = self.folder / "grpo.yaml"
        runfolder.write_text(file, yaml.safe_dump(content))
        flags, threads = ["--config", str(file)], torch.get_num_threads()
        if self._is_trained("grpo") or threads == 1 or self.training.device.type != "cpu":
            yield
        else:
            arguments = self._flags(flags, "grpo", known)
            torch.set_num_threads(threads // 2)
            try:
                with _training_beside(arguments, threads - threads // 2, self.folder / "grpo.log"):
                    yield
            finally:
                torch.set_num_threads(threads)
        self._trained("grpo", flags, known=known)  # where it is not there yet
        self._evaluated("grpo", str(self.folder / "grpo"))
        self._forget()

    def certificate(self, diagnosis: Diagnosis, baseline: str | None) -> dict[str, Any]:
        """What ``certificate.json`` holds."""
        names = ["before", "with_document", "after", *([baseline] if baseline else [])]
        made = {name: self._evaluated(name, "") for name in names}
        values = {name: list(evaluation.accuracies.values()) for name, evaluation in made.items()}
        retained = [self._evaluated(f"retained-{when}", "") for when in ("before", "after")]
        pairs = [("after", "before"), ("after", "with_document"), ("with_document", "before")]
        pairs += [("after", baseline), (baseline, "before")] if baseline else []
        whole: list[Shown] = [self._text] * len(self._test)
        prompts = {"plain": None, "with_document": whole}
        tokens: dict[str, float] = {
            name: float(np.mean([*map(len, prompts_of(self._test, self.renderer, shown))]))
            for name, shown in prompts.items()
        }
        saved, spent = tokens["with_document"] - tokens["plain"], self._training_tokens()
        history = runfolder.read_json(self.folder / _RUN / runfolder.STATE, _STATE)
        record = runfolder.read_json(self.folder / _RUN / runfolder.RUN, runfolder.RUN_RECORD)["settings"]
        seconds = {
            "doctor": runfolder.read_json(self.folder / runfolder.DOCTOR, _TIMED)["seconds"],
            "evaluations": sum(self._seconds(name) for name in (*names, "retained-before", "retained-after")),
            "training": _summed(history["log_history"], "step_time"),
            "grpo": self._baseline_seconds() if baseline else None,
        }
        return {
            "version": 1,
            "sgsd": __version__,
            "model": self.model,
            "document": {
                "name": self.bank.name,
                "description": str(self.bank.metadata.get("description", "")),
                "file": self.document,
                "digest": self.bank.digest,
                "rules": len(self.bank.items),
                "tokens": len(self._tokenizer(self._text)["input_ids"]),
            },
            "method": method_name(record),
            "teachers": self.context,
            "tasks": {"train": len(self._train), "held_out": len(self._test), "file": self._file},
            "accuracy": {"grpo": None} | {name: _accuracy(evaluation) for name, evaluation in made.items()},
            "differences": {
                f"{later} - {earlier}": _difference(values[earlier], values[later]) for later, earlier in pairs
            },
            "kept": _kept(values),
            "tokens": {
                **tokens,
                "saved": saved,
                "training": spent,
                "requests_to_pay": round(spent / saved) if saved > 0 else None,
            },
            "recited": {name: self._recited(made[name]) for name in ("before", "with_document", "after")},
            "retention": {
                "name": self._retain_file or "sums",
                "problems": len(self._retained),
                "before": _accuracy(retained[0]),
                "after": _accuracy(retained[1]),
                "difference": _difference(*(list(one.accuracies.values()) for one in retained)),
            },
            "rules": self._rules(),
            "answers": self._answers(made),
            "doctor": diagnosis.to_json(),
            "training": {
                "steps": history["global_step"],
                "rollouts": history["global_step"] * self.training.generation_batch_size,
                "seed": self.seed,
                "settings": {name: record.get(name) for name in _TOLD},
            },
            "seconds": seconds | {"total": seconds["doctor"] + seconds["evaluations"] + seconds["training"]},
        }

    # ---- what the stages are made of

    @cached_property
    def training(self) -> Any:
        """The settings that prompts, sampling, verdicts and teachers are by: an ``SGSDConfig``."""
        return self._parsed(_PRESET, _RUN)[1]

    @cached_property
    def renderer(self) -> PromptRenderer:
        args = self.training
        return PromptRenderer(
            self._tokenizer,
            instruction=args.instruction,
            thinking=args.thinking,
            chat_template_kwargs=args.chat_template_kwargs,
        )

    @property
    def verifier(self) -> PooledVerifier:
        return self._judge(self.training.verifier, **(self.training.verifier_options or {}))

    def _judge(self, name: str, **options: Any) -> PooledVerifier:
        key = json.dumps([name, options], sort_keys=True)
        if key not in self._verifiers:
            self._verifiers[key] = get_verifier(name, **options)
        return self._verifiers[key]

    @cached_property
    def _retriever(self) -> Any:
        args = self.training
        return build_retriever(
            args.retriever,
            embedder=args.embedder if args.retriever == "embedding" else None,
            item_text=args.retrieval_text,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        with hub_or_cache(self.model):
            return load_tokenizer(self.model)

    @cached_property
    def _text(self) -> str:
        """The document, or its rules below one another."""
        return str(self.bank.metadata.get("document") or "\n".join(item.text for item in self.bank.items))

    @property
    def _shown(self) -> list[Shown]:
        """What the held-out prompts show of the document: what its teachers are shown."""
        return skill_pairs(self._test, self._retriever, self.bank, self.training.num_teachers, self.context)

    def _weights(self, name: str) -> Any:
        """A model, kept until another is asked for."""
        if self._held is None or self._held[0] != name:
            self._forget()
            _, training, model = self._parsed(_PRESET, _RUN)
            with hub_or_cache(name):
                self._held = name, load_model(name, dtype=model.dtype).to(training.device)
        return self._held[1]

    def _forget(self) -> None:
        """Leave the memory to the stage that comes."""
        self._held = None
        gc.collect()

    def _evaluated(self, name: str, model: str, shown: Sequence[Shown] | None = None) -> Evaluation:
        """One greedy answer to each held-out task, or each problem of the retention set."""
        folder = self.folder / runfolder.EVALUATIONS / name
        if (folder / runfolder.SUMMARY).is_file():
            return Evaluation.load(folder)
        began = time.perf_counter()
        self._say(f"{name}: sampling")
        weights, retained = self._weights(model), name.startswith("retained")
        problems = self._retained if retained else self._test
        renderer, verifier, length = self.renderer, self.verifier, self.training.max_completion_length
        if retained and self._retain_file is None:
            renderer = PromptRenderer(self._tokenizer, instruction=_SUMS_INSTRUCTION, thinking=self.training.thinking)
            verifier, length = self._judge("math"), max(length, 32)
        sampler = TransformersSampler(
            weights, self._tokenizer, max_new_tokens=length, temperature=0.0, batch_size=self.training.eval_batch_size
        )
        evaluation = evaluate(sampler, problems, renderer, verifier, shown=shown)
        evaluation.save(folder, seconds=time.perf_counter() - began)
        self._say(f"{name}: {100 * evaluation.accuracy.mean:.1f} % right")
        return evaluation

    def _trained(self, name: str, flags: Sequence[str], known: Iterable[str] | None = None) -> None:
        from sgsd.cli.train import run_training

        if self._is_trained(name):
            return
        self._say(f"{name}: training")
        run, training, model = self._parsed(flags, name, known)
        run_training(run, training, model, self.console, callbacks=[_Steps(self._say, name)], before=_quiet)
        end_run(training.report_to)
        gc.collect()

    def _is_trained(self, name: str) -> bool:
        return (self.folder / name / runfolder.STATE).is_file()

    def _parsed(
        self, flags: Sequence[str], name: str, known: Iterable[str] | None = None
    ) -> tuple[RunArguments, VerifiedConfig, ModelConfig]:
        return parse_settings(self._flags(flags, name, known))

    def _flags(self, flags: Sequence[str], name: str, known: Iterable[str] | None = None) -> list[str]:
        """The flags, the user's, and this work's own, which hold."""
        own = ["--model_name_or_path", self.model, "--dataset", str(self._tasks("train"))]
        own += ["--eval_dataset", str(self._tasks("held-out"))]
        own += ["--output_dir", str(self.folder / name), "--seed", str(self.seed), "--resume"]
        if known is None:
            own += ["--bank", str(self.folder / runfolder.BANK)]
        elif self.baseline_rate is not None:
            own += ["--learning_rate", str(self.baseline_rate)]
        return [*flags, *_known(self.settings, known), *own]

    def _tasks(self, name: str) -> Path:
        return self.folder / "tasks" / f"{name}.jsonl"

    def _problems(self, source: str | Path, what: str, columns: str | None) -> list[Problem]:
        problems, report = load_problems(source, columns=columns, readable=self.verifier.readable)
        if not problems:
            raise DataError(f"no usable problem in {what}", got=report.summary())
        return problems

    def _sums(self) -> list[Problem]:
        """Sums that the document says nothing of."""
        draw = random.Random(1)
        sums: dict[str, int] = {}
        while len(sums) < _RETAINED:
            a, b = draw.randint(2, 20), draw.randint(2, 20)
            sums[f"What is {a} + {b}?"] = a + b
        return [Problem(f"sum-{n}", text, str(value)) for n, (text, value) in enumerate(sums.items())]

    def _training_tokens(self) -> int:
        """Tokens that training processed; one that the student learns from counts three times, for the way back."""
        history = runfolder.read_json(self.folder / _RUN / runfolder.STATE, _STATE)["log_history"]
        sampled = max((row["num_tokens"] for row in history if "num_tokens" in row), default=0)
        return round(4 * sampled + _summed(history, "sgsd/teacher_tokens") * self.training.generation_batch_size)

    def _baseline_seconds(self) -> float:
        return _summed(runfolder.read_json(self.folder / "grpo" / runfolder.STATE, _STATE)["log_history"], "step_time")

    def _seconds(self, name: str) -> float:
        return runfolder.read_json(self.folder / runfolder.EVALUATIONS / name / runfolder.SUMMARY, _TIMED)["seconds"]

    def _recited(self, evaluation: Evaluation) -> float:
        """Share of the answers with six words in a row, or more, of the document."""
        document = _runs_of_words(self._text)
        return float(np.mean([bool(_runs_of_words(sample.completion) & document) for sample in evaluation.samples]))

    def _rules(self) -> list[dict[str, Any]]:
        ledger = Ledger.load(self.folder / _RUN / runfolder.LEDGER)
        places = sources(self.bank)
        rows: list[dict[str, Any]] = []
        for item in self.bank.items:
            record = ledger.record(item.id)
            found = credit(record)
            low, high = 2 * found.low - 1, 2 * found.high - 1
            rows.append(
                {
                    "id": item.id,
                    "kind": "skill" if isinstance(item, Skill) else "mistake",
                    "title": item.title,
                    "text": item.text,
                    "source": places.get(item.id),
                    "worth": 2 * found.value - 1,
                    "ci95": [low, high],
                    "uses": record.uses,
                    "verdict": _verdict(record, low, high),
                }
            )
        return rows

    def _answers(self, made: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
        return [
            {
                "problem": problem.text,
                "answer": problem.answer,
                "grpo": None,
                **{
                    name: {"text": sample.completion, "correct": sample.is_correct}
                    for name, evaluation in made.items()
                    for sample in evaluation.by_problem[problem.id]
                },
            }
            for problem in self._test[:_SHOWN_ANSWERS]
        ]

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def _quiet(trainer: Any) -> None:
    """No line of all metrics at every step."""
    trainer.remove_callback(PrinterCallback)


class _Steps(TrainerCallback):
    """A line every ten steps."""

    def __init__(self, say: Callable[[str], None], name: str) -> None:
        self._say = say
        self._name = name

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "success_rate" in logs and state.global_step % 10 == 0:
            right = f"{100 * logs['success_rate']:.0f} % of the rollouts right"
            self._say(f"{self._name}: step {state.global_step} of {state.max_steps}, {right}")


@contextmanager
def _training_beside(arguments: Sequence[str], threads: int, log: Path) -> Iterator[None]:
    """``sgsd train`` in a process of its own, which ends with this one; waited for at the end.

    Raises:
        ConfigError: it failed; with its last line.
    """
    code = "from sgsd.cli.internalize import train_beside; train_beside()"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-c", code, str(threads), *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT) as process:
            try:
                yield
                process.wait()
            finally:
                process.kill()
    if process.returncode:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        raise ConfigError("the baseline's training failed", got=said[-1] if said else f"exit code {process.returncode}")


def train_beside() -> None:
    """What ``_training_beside`` starts; ends when its standard input does."""
    from sgsd.cli.train import train

    def follow() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    threads, *arguments = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sys.exit(train(arguments))


_TOLD = (
    *("objective", "teacher_context", "teacher_trust", "teacher_guidance", "num_teachers", "learning_rate"),
    *("lora_r", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"),
    *("max_completion_length", "temperature", "instruction", "verifier", "dtype"),
)
"""Settings that the certificate tells; ``run/run.json`` has all."""


def _kept(values: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """(after − before) / (with the document − before), with a bootstrap interval over problems."""
    before, shown, after = (np.asarray(values[name]) for name in ("before", "with_document", "after"))
    gain = paired_difference(before.tolist(), shown.tolist())
    if gain.low <= 0:
        return None

    def share(first: Any, second: Any, third: Any, axis: int = -1) -> Any:
        gained = second.mean(axis) - first.mean(axis)
        return (third.mean(axis) - first.mean(axis)) / np.where(gained > 0, gained, np.nan)

    drawn = stats.bootstrap(
        (before, shown, after),
        share,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = np.nanquantile(drawn.bootstrap_distribution, [0.025, 0.975])
    return {"share": float(share(before, shown, after)), "ci95": [float(low), float(high)]}


def _verdict(record: ItemRecord, low: float, high: float) -> str:
    if not record.active:
        return "idle" if record.uses else "unused"
    return "earned" if low > 0 else "harmful" if high < 0 else "idle"


def _accuracy(evaluation: Evaluation) -> dict[str, Any]:
    estimate = evaluation.accuracy
    return {"accuracy": estimate.mean, "ci95": [estimate.low, estimate.high]}


def _difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    estimate = paired_difference(before, after)
    return {"mean": estimate.mean, "ci95": [estimate.low, estimate.high]}


_Logged = TypedDict(
    "_Logged",
    {
        "step": Required[runfolder.Count],
        "num_tokens": FiniteFloat,
        "step_time": FiniteFloat,
        "sgsd/teacher_tokens": FiniteFloat,
    },
    total=False,
)


class _State(TypedDict):
    global_step: runfolder.Count
    log_history: list[_Logged]


class _Timed(TypedDict):
    seconds: FiniteFloat


_STATE, _TIMED = TypeAdapter(_State), TypeAdapter(_Timed)


def _summed(history: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over all steps, of a metric that is logged as the mean since the last log."""
    logged = [row for row in history if name in row]
    before = [0, *(row["step"] for row in logged)]
    return sum(row[name] * (row["step"] - last) for row, last in zip(logged, before, strict=False))


def _runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[n : n + _RECITED_WORDS]) for n in range(len(words) - _RECITED_WORDS + 1)}


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256("".join(map(_row, problems)).encode()).hexdigest()


def _row(problem: Problem) -> str:
    row = {**problem.columns, "id": problem.id, "problem": problem.text, "answer": problem.key}
    if problem.prompt is not None:
        row["prompt"] = problem.prompt
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _known(flags: Sequence[str], known: Iterable[str] | None) -> list[str]:
    """Flags with their values, without those that another method does not have."""
    if known is None:
        return list(flags)
    kept: list[str] = []
    taken = True
    for flag in flags:
        if flag.startswith("--"):
            taken = flag[2:].split("=")[0] in known
        if taken:
            kept.append(flag)
    return kept
