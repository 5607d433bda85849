"""``sgsd internalize``: train a model to follow a document without it in the prompt, and write a certificate.

Each stage writes its result to the output folder, and is skipped if that result exists. The same command therefore
resumes an interrupted run. The folder holds:

    plan.json                  all that the certificate depends on; it may change until a run has a checkpoint
    tasks/                     train.jsonl, held-out.jsonl
    bank.json                  the document as a bank
    doctor.json                the diagnosis (sgsd.doctor)
    evaluations/NAME/          before, with_document, after, grpo; retained-before, retained-after
    run/, grpo/                the run folders of the training and of the baseline, as sgsd train writes them
    certificate.json, .html    the certificate (sgsd.report.certificate)
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from scipy import stats
from transformers import PrinterCallback, TrainerCallback
from trl import ModelConfig

from sgsd import __version__, runfolder
from sgsd.bank.documents import load_bank
from sgsd.cli import figures
from sgsd.cli.console import standard_error, standard_output, warn_if_few
from sgsd.cli.doctor import diagnose_run, renderer_for, show_examples
from sgsd.cli.flags import with_underscores
from sgsd.cli.prepare import check_before_loading, prepare
from sgsd.cli.settings import RunArguments, flags_of, hub_or_cache, pop_flag, read_yaml, resolve_config
from sgsd.cli.train import run_training, settings_of, train
from sgsd.data.adapters import as_row
from sgsd.data.curation import asked_text
from sgsd.data.overlap import words
from sgsd.data.problems import Problem, same_text
from sgsd.data.sources import load_problems
from sgsd.display import SECRETS
from sgsd.doctor import Diagnosis, Verdict
from sgsd.engines.embedders import retriever_of
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer, weights_digest
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation import Evaluation, evaluate
from sgsd.evaluation.run import prompts_of
from sgsd.prompts import PromptRenderer, Shown
from sgsd.report.certificate import Certificate, add_to_card, certificate_table, duration, read_certificate, write_page
from sgsd.trainers.checkpoint import complete_checkpoints
from sgsd.trainers.config import SGSDConfig, VerifiedConfig, context_of
from sgsd.trainers.names import method_name
from sgsd.trainers.rows import skill_pairs
from sgsd.trainers.settings import computes_in_bfloat16
from sgsd.trainers.tracking import end_run, log_certificate
from sgsd.verifiers import PooledVerifier, get_verifier

PRESET = "internalize"
_PRESET = ("--config", PRESET)
_HELD_OUT = 3  # one task in three is held out if no file of held-out tasks is given
_MOST_HELD_OUT = 200
_SUMS = 100
SUMS_INSTRUCTION = "Finish with the final answer as a single number."
_DIAGNOSED = 60  # training tasks that the doctor uses
_DIAGNOSED_WITH = (
    *("temperature", "top_p", "top_k", "num_teachers", "support_clip", "support_threshold", "teacher_context"),
    *("max_completion_length", "max_prompt_length", "instruction", "verifier", "verifier_options", "thinking"),
    *("chat_template_kwargs", "retriever", "embedder", "retrieval_text"),
)
"""Settings that the diagnosis depends on."""
_GROUP = 4  # rollouts per problem of the GRPO baseline
_RUN, _GRPO = "run", "grpo"
_CERTIFIED_SETTINGS = (
    *("objective", "teacher_context", "teacher_trust", "teacher_guidance", "num_teachers", "learning_rate"),
    *("lora_r", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"),
    *("max_completion_length", "temperature", "instruction", "verifier", "dtype"),
)
"""Settings in the certificate; ``run/run.json`` has all."""
_SECRET_FLAGS = {f"--{name}" for name in SECRETS}


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
    """Train a model to follow a document without it in the prompt, and measure the gain and the cost.

    ```python
    from sgsd import internalize

    certificate = internalize("SKILL.md", tasks="problems.jsonl", model="Qwen/Qwen3-1.7B", output="runs/skill")
    print(certificate.accuracy.after, certificate.kept)
    ```

    Args:
        document: a Markdown file, a folder with a SKILL.md, or a bank (``bank.documents.load_bank``).
        tasks: problems with answers, as for ``sgsd train``.
        model: a hub name, folder or ``local:NAME``.
        output: a new folder, or the folder of an interrupted call with the same arguments, which is then resumed.
        held_out: tasks to evaluate on; by default a random third of ``tasks``, at most 200. ``tasks`` with the same
            words are left out of training.
        retain: problems that measure forgetting, with the prompt and verifier of the tasks; by default generated sums.
        baseline: ``grpo`` also trains GRPO with the same number of rollouts.
        baseline_learning_rate: of the baseline; by default that of the run, which may be too high for GRPO.
        columns: names of the columns of the tasks, such as ``problem=question,answer=gold``; also of ``held_out`` and
            ``retain`` if they have all of them.
        seed: of the split and the training.
        force: train even if the doctor advises against it.
        settings: flags of ``sgsd train``, such as ``["--max_steps", "100"]``, which override the preset
            ``internalize``.
        console: where to print progress.

    Raises:
        ConfigError: the doctor advises against training, and ``force`` is false.
        SGSDError: an argument, a setting, the data or the model cannot be used.
    """
    if baseline not in (None, _GRPO):
        raise ConfigError("unknown baseline", got=baseline, expected=_GRPO)
    rate = baseline_learning_rate
    if rate is not None and not (baseline and 0 < rate < math.inf):
        raise ConfigError("unusable baseline_learning_rate", got=rate, expected="a number above 0, with a baseline")
    job = _Job(Path(document), model, Path(output), settings, seed, rate, console or standard_error())
    with warnings.catch_warnings(), runfolder.one_writer(job.folder), job.stack:
        # PEFT looks for the configuration of a local: model on the hub, where it is not.
        warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
        # scipy warns if all resamples are equal; ``figures.kept`` takes quantiles of its resamples itself.
        warnings.filterwarnings("ignore", category=stats.DegenerateDataWarning)
        job.read_tasks(tasks, held_out, retain, columns)
        job.check_plan(baseline)
        diagnosis = job.ask_doctor(force=force)
        job.measure("before")
        job.measure("with_document", shown=job.shown)
        job.measure("retained-before")
        with job.grpo_beside() if baseline else nullcontext():
            job.train(diagnosis)
            job.measure("after", job.folder / _RUN)
            job.measure("retained-after", job.folder / _RUN)
        if baseline:
            job.train_grpo()
            job.measure(_GRPO, job.folder / _GRPO)
        told = job.certificate(diagnosis, baseline)
    runfolder.write_json(job.folder / runfolder.CERTIFICATE, told)
    certificate = read_certificate(job.folder / runfolder.CERTIFICATE)
    write_page(certificate, job.folder / runfolder.CERTIFICATE_PAGE)
    add_to_card(certificate, job.folder / _RUN)
    log_certificate(job.training, job.folder)
    return certificate


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``internalize``."""
    names = ("tasks", "model", "output", "held_out", "retain", "baseline", "baseline_learning_rate", "columns", "seed")
    given = {name: vars(options)[name] for name in (*names, "force", "settings")}
    certificate = internalize(options.document, **given)
    out = standard_output()
    out.print(certificate_table(certificate))
    out.print(f"certificate: {options.output / runfolder.CERTIFICATE_PAGE}", soft_wrap=True)
    return 0


def _machine_settings(settings: Sequence[str], console: Console) -> list[str]:
    """``--dtype float32`` if the processor has no bfloat16 instructions and the user has set no ``--dtype``.

    The flag is stored in ``plan.json``, so that a run is not resumed with another dtype on another machine.
    """
    if any(one.split("=")[0] in ("--dtype", "--config") for one in settings):
        return []
    if computes_in_bfloat16(cpu=not torch.accelerator.is_available()):
        return []
    console.print("this processor has no bfloat16 instructions: weights are float32 (override: --dtype bfloat16)")
    return ["--dtype", "float32"]


class _Job:
    """The stages of one call of ``internalize``."""

    def __init__(
        self,
        document: Path,
        model: str,
        folder: Path,
        settings: Sequence[str],
        seed: int,
        baseline_rate: float | None,
        console: Console,
    ) -> None:
        self.folder = folder
        self.stack = ExitStack()  # closes the verifiers at the end
        self._bank = load_bank(document)
        self._document = document.name
        self._model = model
        settings = [with_underscores(one) for one in settings]
        self._settings = [*_machine_settings(settings, console), *settings]
        self._seed = seed
        self._baseline_rate = baseline_rate
        self._console = console
        self._loaded: tuple[str, Any] | None = None  # name and model that were loaded last

    # ---- stages

    def read_tasks(
        self, tasks: str | Path, held_out: str | Path | None, retain: str | Path | None, columns: str | None
    ) -> None:
        """Read the tasks, and split them if no held-out tasks are given."""
        if not isinstance(self.training, SGSDConfig):  # also checks the settings before anything is read
            raise ConfigError("internalize trains with teachers", got="another --method", expected="method sgsd")
        model = self._parsed[2]
        if model.model_revision not in (None, "main") or model.load_in_4bit or model.load_in_8bit:
            raise ConfigError(
                "internalize evaluates the main revision in full precision",
                got=f"model_revision {model.model_revision}, load_in_4bit {model.load_in_4bit}, "
                f"load_in_8bit {model.load_in_8bit}",
                remedy="download the revision, and give its folder as --model; or leave the setting out",
            )
        retained = retention_sums() if retain is None else self._problems(retain, "retain", columns)
        every = self._problems(tasks, "tasks", columns)
        if held_out is not None:
            test = self._problems(held_out, "held_out", columns)
            train = self._without(test, every)
        else:
            order = random.Random(self._seed).sample(every, len(every))
            count = min(len(every) // _HELD_OUT, _MOST_HELD_OUT)
            test, train = order[:count], order[count:]
            train = self._without(test, train) if test and train else train
        if len(test) < 2 or not train:
            raise DataError("too few tasks", got=len(every), expected="six or more")
        warn_if_few(self._console, "held-out tasks", len(test))
        self._train_tasks, self._test_tasks, self._retained = train, test, retained
        self._file, self._retained_file = Path(tasks).name, retain and Path(retain).name

    def check_plan(self, baseline: str | None) -> None:
        """Write the plan, the tasks and the bank, and check the settings of both runs.

        Raises:
            ConfigError: a run has trained by another plan in this folder, or would refuse its settings.
        """
        plan = {
            "model": self._model,
            "weights": weights_digest(Path(self._model)),
            "document": hashlib.sha256(f"{self._bank.digest} {self._text}".encode()).hexdigest(),
            "settings": known_flags(self._settings, {one.split("=")[0] for one in self._settings} - _SECRET_FLAGS),
            "config": _sha256({name: value for name, value in self._config.items() if name not in SECRETS}),
            "seed": self._seed,
            "baseline": baseline and [baseline, self._baseline_rate],
            "train": _digest(self._train_tasks),
            "held_out": _digest(self._test_tasks),
            "retained": _digest(self._retained),
        }
        plan["doctor"] = self._asked_of_doctor(plan)
        file = self.folder / runfolder.PLAN
        if file.is_file():
            stored = runfolder.read_json(file)
            if baseline is None or stored.get("baseline") is None:  # a baseline can be added later
                stored["baseline"] = plan["baseline"] = plan["baseline"] or stored.get("baseline")
            other = {name for name, value in stored.items() if name != "doctor" and plan.get(name) != value}
            if other:
                self._change_plan(stored, plan, other)
        elif not runfolder.is_unused(self.folder):
            raise ConfigError("the output folder is not empty", got=str(self.folder), remedy="choose another --output")
        _ = self._tokenizer  # a missing model raises an error before anything is written
        runfolder.write_json(file, plan)
        for name, problems in (("train", self._train_tasks), ("held-out", self._test_tasks)):
            runfolder.write_text(self._task_file(name), map(_row, problems))
        self._bank.save(self.folder / runfolder.BANK)
        runs = [self._parsed, *([settings_of(self._grpo_flags())] if baseline else [])]
        for run, training, model in runs:
            prepare(run, training, model, verifier=self._verifier)
            check_before_loading(training, model, None)

    def _change_plan(self, stored: Mapping[str, Any], plan: Mapping[str, Any], other: Collection[str]) -> None:
        """Drop what another plan makes stale; raise ``ConfigError`` if a run has trained by the stored one."""
        if any(self._is_trained(name) or complete_checkpoints(self.folder / name) for name in (_RUN, _GRPO)):
            raise ConfigError(
                "the output folder holds other work",
                got=f"{self.folder}, begun with other {', '.join(sorted(other))}",
                expected=f"its flags {json.dumps(stored['settings'])}" if "settings" in other else None,
                remedy="choose another --output",
            )
        asked_anew = stored.get("doctor") != plan["doctor"]
        diagnosed, evaluations = self.folder / runfolder.DOCTOR, self.folder / runfolder.EVALUATIONS
        if asked_anew and diagnosed.is_file():
            self._say("doctor: asked anew, with other settings")
            diagnosed.unlink()
        if evaluations.is_dir() and (asked_anew or {"held_out", "retained"} & set(other)):
            shutil.rmtree(evaluations)

    def _asked_of_doctor(self, plan: Mapping[str, Any]) -> str:
        """A digest of all that the diagnosis depends on."""
        parts = [plan[name] for name in ("model", "weights", "document", "seed", "train")]
        settings = {name: vars(self.training)[name] for name in _DIAGNOSED_WITH}
        return _sha256([*parts, self._parsed[2].dtype, settings])

    def ask_doctor(self, *, force: bool) -> Diagnosis:
        """Diagnose whether the document will help, and which ``teacher_context`` suits it.

        Raises:
            ConfigError: the doctor advises against training, and ``force`` is false or nothing of the document fits.
        """
        file = self.folder / runfolder.DOCTOR
        if file.is_file():
            diagnosis = Diagnosis.load(self.folder)
        else:
            began = time.perf_counter()
            self._say("doctor: sampling with and without the document")
            few = min(len(self._train_tasks), _DIAGNOSED)
            drawn = random.Random(self._seed).sample(self._train_tasks, few)
            diagnosis = diagnose_run(
                self.training,
                self._weights(self._model),
                self._tokenizer,
                drawn,
                self._bank,
                self._verifier,
                self._console,
                batch_size=self.training.eval_batch_size,
            )
            runfolder.write_json(file, diagnosis.to_json() | {"seconds": time.perf_counter() - began})
        for sentence in diagnosis.sentences:
            self._say(sentence)
        if force and not diagnosis.in_prompt:  # there are no teachers
            longest = ", ".join(f"{name} {tokens:,} tokens" for name, tokens in diagnosis.too_long.items())
            limit = f"at most {diagnosis.max_prompt_length:,}"
            raise ConfigError("nothing of the document fits into a prompt", got=longest, expected=limit)
        refused = diagnosis.verdict in (Verdict.NO, Verdict.USE_GRPO) and not force
        if refused or diagnosis.teaches_little:
            show_examples(diagnosis, self._console)
        if (length := diagnosis.settings.get("max_completion_length")) and not refused:
            self._say(f"many answers are cut off: --max_completion_length {length} allows more")
        if refused:
            said = f"the doctor says {diagnosis.verdict}: {diagnosis.sentences[0].removesuffix('.')}"
            raise ConfigError(said, remedy="--force trains anyway")
        self._context = diagnosis.context or context_of(vars(self.training), self._bank)
        return diagnosis

    def measure(self, name: str, model: Path | None = None, shown: Sequence[Shown] | None = None) -> Evaluation:
        """Evaluate greedily on the held-out tasks; with a name ``retained-…`` on the retention set.

        Args:
            name: of the evaluation and its folder.
            model: folder of an adapter; ``None`` is the model before training.
            shown: the part of the document in each prompt; ``None`` for plain prompts.
        """
        folder = self.folder / runfolder.EVALUATIONS / name
        retained = name.startswith("retained")
        problems = self._retained if retained else self._test_tasks
        if (folder / runfolder.SUMMARY).is_file():
            made = Evaluation.load(folder)
            if made.by_problem.keys() != {problem.id for problem in problems}:
                raise DataError("an evaluation is of other problems", got=folder, remedy="remove it and run again")
            return made
        began = time.perf_counter()
        self._say(f"{name}: sampling")
        renderer, verifier, length = self._renderer, self._verifier, self.training.max_completion_length
        told = {"verifier": self.training.verifier, "verifier_options": self.training.verifier_options}
        if retained and self._retained_file is None:
            renderer = PromptRenderer(
                self._tokenizer,
                instruction=SUMS_INSTRUCTION,
                thinking=self.training.thinking,
                chat_template_kwargs=self.training.chat_template_kwargs,
            )
            verifier, length = self.stack.enter_context(get_verifier("math")), max(length, 32)
            told = {"verifier": "math"}
        weights = self._weights(self._model if model is None else str(model))
        sampler = TransformersSampler(
            weights, self._tokenizer, max_new_tokens=length, temperature=0.0, batch_size=self.training.eval_batch_size
        )
        evaluation = evaluate(sampler, problems, renderer, verifier, shown=shown)
        told |= {
            "model": self._model if model is None else str(model),
            "dataset": f"retained-{self._retained_file or 'sums'}" if retained else str(self._task_file("held-out")),
            "instruction": renderer.instruction,
            "chat_template_kwargs": renderer.student_kwargs,
            "skills_in_prompt": shown is not None,
            "max_completion_length": length,
            "temperature": 0.0,
            "seed": 0,
            "engine": "transformers",
            "dtype": self._parsed[2].dtype,
            "sgsd": __version__,
            "seconds": time.perf_counter() - began,
        }
        if shown is not None:
            told |= {"bank": self._bank.digest, "teacher_context": self._context}
        if model is not None:
            told["trained_by"] = _GRPO if model.name == _GRPO else "sgsd"
        evaluation.save(folder, **told)
        self._say(f"{name}: {100 * evaluation.accuracy.mean:.1f} % right")
        return evaluation

    @property
    def shown(self) -> list[Shown]:
        """The part of the document in the prompt of each held-out task: what its teachers would see."""
        retriever = retriever_of(self.training)
        return skill_pairs(self._test_tasks, retriever, self._bank, self.training.num_teachers, self._context)

    def train(self, diagnosis: Diagnosis) -> None:
        """Train with the preset and with the ``teacher_context`` and ``teacher_trust`` that the doctor found."""
        trust = diagnosis.settings.get("teacher_trust", self.training.teacher_trust)
        flags = ["--teacher_context", self._context, "--teacher_trust", str(trust)]
        self._train(_RUN, self._flags([*_PRESET, *flags], _RUN))

    @contextmanager
    def grpo_beside(self) -> Iterator[None]:
        """On a CPU, train the baseline in another process meanwhile, with half of the threads."""
        threads = torch.get_num_threads()
        if self._is_trained(_GRPO) or threads == 1 or self.training.device.type != "cpu":
            yield
            return
        self._drop_results(_GRPO)
        torch.set_num_threads(threads // 2)
        try:
            log, token = self.folder / "grpo.log", self.training.hub_token
            with _training_beside(self._grpo_flags(), threads - threads // 2, log, token) as process:
                yield
                if process.poll() is None:
                    self._say(f"{_GRPO}: still training")
        finally:
            torch.set_num_threads(threads)

    def train_grpo(self) -> None:
        """Train GRPO with as many rollouts and the same model, adapter and optimiser, unless that is done."""
        self._train(_GRPO, self._grpo_flags())

    def certificate(self, diagnosis: Diagnosis, baseline: str | None) -> dict[str, Any]:
        """The content of ``certificate.json``."""
        tasks, run = self._test_tasks, self.folder / _RUN
        names = ["before", "with_document", "after", *([baseline] if baseline else [])]
        made = {name: self.measure(name) for name in names}
        retained = {name: self.measure(name) for name in ("retained-before", "retained-after")}
        pairs = [("after", "before"), ("after", "with_document"), ("with_document", "before")]
        pairs += [("after", baseline), (baseline, "before")] if baseline else []
        whole: list[Shown] = [self._text] * len(tasks)
        tokens: dict[str, float] = {
            name: float(np.mean([*map(len, prompts_of(tasks, self._renderer, shown))]))
            for name, shown in (("plain", None), ("with_document", whole))
        }
        saved = tokens["with_document"] - tokens["plain"]
        steps, rollouts, step_seconds, spent = figures.training(run)
        record = runfolder.read_json(run / runfolder.RUN, runfolder.RUN_RECORD)["settings"]
        evaluations = [self.folder / runfolder.EVALUATIONS / name for name in (*made, *retained)]
        seconds = {
            "doctor": figures.seconds(self.folder / runfolder.DOCTOR),
            "evaluations": sum(figures.seconds(folder / runfolder.SUMMARY) for folder in evaluations),
            "training": step_seconds,
        }
        return {
            "version": 1,
            "sgsd": __version__,
            "model": self._model,
            "document": {
                "name": self._bank.name,
                "description": str(self._bank.metadata.get("description", "")),
                "file": self._document,
                "digest": self._bank.digest,
                "rules": len(self._bank.items),
                "tokens": len(self._tokenizer(self._text, add_special_tokens=False)["input_ids"]),
            },
            "method": method_name(record),
            "teachers": self._context,
            "tasks": {"train": len(self._train_tasks), "held_out": len(tasks), "file": self._file},
            "accuracy": {"grpo": None} | {name: figures.accuracy(found) for name, found in made.items()},
            "differences": {
                f"{later} - {earlier}": figures.difference(made[earlier], made[later]) for later, earlier in pairs
            },
            "kept": figures.kept(*(figures.values(made[name]) for name in ("before", "with_document", "after"))),
            "tokens": {
                **tokens,
                "saved": saved,
                "training": spent,
                "requests_to_pay": math.ceil(spent / saved) if saved > 0 else None,
            },
            "recited": {name: figures.recited(made[name], self._text) for name in ("before", "with_document", "after")},
            "retention": {
                "name": self._retained_file or "sums",
                "problems": len(self._retained),
                "before": figures.accuracy(retained["retained-before"]),
                "after": figures.accuracy(retained["retained-after"]),
                "difference": figures.difference(*retained.values()),
            },
            "rules": figures.rules(self._bank, run),
            "answers": figures.answers(tasks, made),
            "doctor": diagnosis.to_json(),
            "training": {
                "steps": steps,
                "rollouts": rollouts,
                "seed": self._seed,
                "settings": {name: record.get(name) for name in _CERTIFIED_SETTINGS},
            },
            "seconds": {
                **seconds,
                "grpo": figures.training(self.folder / _GRPO)[2] if baseline else None,
                "total": sum(seconds.values()),  # without the baseline's, which may run at the same time
            },
        }

    # ---- settings

    @cached_property
    def _parsed(self) -> tuple[RunArguments, VerifiedConfig, ModelConfig]:
        return settings_of(self._flags(_PRESET, _RUN))

    @property
    def training(self) -> Any:
        """The settings of prompts, sampling, verifier and teachers: an ``SGSDConfig``."""
        return self._parsed[1]

    @property
    def _config(self) -> dict[str, Any]:
        """The settings of the user's ``--config``, or of the preset."""
        return read_yaml(resolve_config(pop_flag([*self._settings], "--config") or PRESET))

    def _flags(self, flags: Sequence[str], name: str) -> list[str]:
        """The given flags, overridden by the user's, overridden by those of this call."""
        return [*flags, *self._settings, *self._own(name), "--bank", str(self.folder / runfolder.BANK)]

    def _grpo_flags(self) -> list[str]:
        """The settings of the preset or the user's ``--config``, and the user's flags, as far as GRPO has them."""
        known = flags_of(_GRPO) - {"--method"}
        content = {name: value for name, value in self._config.items() if f"--{name}" in known - _SECRET_FLAGS}
        file = self.folder / "grpo.yaml"
        runfolder.write_text(file, yaml.safe_dump(content | {"method": _GRPO, "num_generations": _GROUP}))
        rate = [] if self._baseline_rate is None else ["--learning_rate", str(self._baseline_rate)]
        return ["--config", str(file), *known_flags(self._settings, known), *self._own(_GRPO), *rate]

    def _own(self, name: str) -> list[str]:
        own = ["--model_name_or_path", self._model, "--dataset", str(self._task_file("train"))]
        own += ["--eval_dataset", str(self._task_file("held-out")), "--output_dir", str(self.folder / name)]
        return [*own, "--seed", str(self._seed), "--resume"]

    def _task_file(self, name: str) -> Path:
        return self.folder / "tasks" / f"{name}.jsonl"

    # ---- model, prompts, verdicts

    def _train(self, name: str, flags: Sequence[str]) -> None:
        if self._is_trained(name):
            return
        self._drop_results(name)
        self._loaded = None  # free the memory for the training
        gc.collect()
        run, training, model = settings_of(flags)
        training.hub_token = self.training.hub_token
        length = f", {training.max_steps} steps of {training.generation_batch_size} rollouts"
        self._say(f"{name}: training{length if training.max_steps > 0 else ''}")
        run_training(run, training, model, self._console, callbacks=[_Steps(self._console, name)], before=_quiet)
        end_run(training.report_to)
        gc.collect()

    def _drop_results(self, name: str) -> None:
        """Remove the results of a former training of this name, whose folder the user removed."""
        if name == _RUN:
            for file in (runfolder.CERTIFICATE, runfolder.CERTIFICATE_PAGE):
                (self.folder / file).unlink(missing_ok=True)
        for stale in ("after", "retained-after") if name == _RUN else (name,):
            shutil.rmtree(self.folder / runfolder.EVALUATIONS / stale, ignore_errors=True)

    def _is_trained(self, name: str) -> bool:
        return (self.folder / name / runfolder.STATE).is_file()

    def _weights(self, name: str) -> Any:
        """A model, kept in memory until another is loaded."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            gc.collect()
            with hub_or_cache(name):
                options = {"dtype": self._parsed[2].dtype, "trust_remote_code": self.training.trust_remote_code}
                weights = load_model(name, **options).to(self.training.device)
            self._loaded = name, weights
        return self._loaded[1]

    @cached_property
    def _tokenizer(self) -> Any:
        with hub_or_cache(self._model):
            return load_tokenizer(self._model, trust_remote_code=self.training.trust_remote_code)

    @cached_property
    def _renderer(self) -> PromptRenderer:
        return renderer_for(self.training, self._tokenizer, [*self._train_tasks, *self._test_tasks])

    @cached_property
    def _verifier(self) -> PooledVerifier:
        made = get_verifier(self.training.verifier, **(self.training.verifier_options or {}))
        return self.stack.enter_context(made)

    @cached_property
    def _text(self) -> str:
        """The whole document; for a bank, one item per line."""
        return str(self._bank.metadata.get("document") or "\n".join(item.text for item in self._bank.items))

    def _problems(self, source: str | Path, what: str, columns: str | None) -> list[Problem]:
        problems, report = load_problems(
            source, columns=columns, readable=self._verifier.readable, held_out=what != "tasks"
        )
        if report.dropped:
            self._say(f"{what}: {report.summary()}")
        return problems

    def _without(self, held_out: Sequence[Problem], tasks: Sequence[Problem]) -> list[Problem]:
        """The tasks whose words are not those of a held-out task."""
        texts = {_words(problem) for problem in held_out}
        kept = [problem for problem in tasks if _words(problem) not in texts]
        if not kept:
            raise DataError("every task is held out, too", got=f"{len(tasks):,}", expected="other tasks to train on")
        if shared := len(tasks) - len(kept):
            self._say(f"tasks: {shared:,} of {len(tasks):,} are held out, too, and left out of training")
        return kept

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def retention_sums() -> list[Problem]:
    """Sums of two numbers, which the document does not concern."""
    draw = random.Random(1)
    sums: dict[str, int] = {}
    while len(sums) < _SUMS:
        a, b = draw.randint(2, 20), draw.randint(2, 20)
        sums[f"What is {a} + {b}?"] = a + b
    return [Problem(f"sum-{n}", text, str(value)) for n, (text, value) in enumerate(sums.items())]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256("".join(map(_row, problems)).encode()).hexdigest()


def _words(problem: Problem) -> tuple[str, ...]:
    """The question as ``sgsd contamination`` compares it; as it is if it has no words."""
    text = asked_text(problem)
    return words(text) or (same_text(text),)


def _row(problem: Problem) -> str:
    return json.dumps(as_row(problem), ensure_ascii=False) + "\n"


def known_flags(flags: Sequence[str], known: Collection[str]) -> list[str]:
    """The flags that are in ``known``, with their values."""
    kept: list[str] = []
    taken = True
    for flag in flags:
        if flag.startswith("--"):
            taken = flag.split("=")[0] in known
        if taken:
            kept.append(flag)
    return kept


def _quiet(trainer: Any) -> None:
    """Remove the callback that prints all metrics."""
    trainer.remove_callback(PrinterCallback)


class _Steps(TrainerCallback):
    """Prints the success rate and the time left after the second step and every ten steps.

    Steps that train once more on the rollouts of an earlier one (num_iterations) log no success rate.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._began: tuple[int, float] | None = None  # the first step that this process made, and when it ended
        self._right: float | None = None  # the latest success rate

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if texts := args.rehearsal_texts if vars(args).get("rehearsal_weight") else 0:
            self._console.print(f"{self._name}: first writes {texts} texts to rehearse", soft_wrap=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "step_time" not in logs:
            return
        step, now = state.global_step, time.monotonic()
        self._right = logs.get("success_rate", self._right)
        first, began = self._began = self._began or (step, now)
        if (step % 10 and step != first + 1) or self._right is None:
            return
        said = f"step {step} of {state.max_steps}, {100 * self._right:.0f} % of the rollouts right"
        if first < step < state.max_steps:
            said += f", about {duration((state.max_steps - step) * (now - began) / (step - first))} left"
        self._console.print(f"{self._name}: {said}", soft_wrap=True)


@contextmanager
def _training_beside(
    arguments: Sequence[str], threads: int, log: Path, token: str | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sgsd train`` in another process during this context, and wait for it at the end.

    The hub's token is in its environment, not in its arguments, which all users of the machine can read.

    Raises:
        ConfigError: it failed; the message has the last line of its output.
    """
    code = "from sgsd.cli.internalize import train_beside; train_beside()"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-c", code, str(threads), *arguments]
        env = os.environ | ({"HF_TOKEN": token} if token else {})
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT) as process:
            try:
                yield process
                process.wait()
            finally:
                process.kill()
    if process.returncode:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        raise ConfigError("the baseline's training failed", got=said[-1] if said else f"exit code {process.returncode}")


def train_beside() -> None:
    """The main function of the process of ``_training_beside``. It exits if the parent process does."""

    def follow() -> None:
        os.read(0, 1)  # returns when the parent's end of the pipe is closed
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    threads, *arguments = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sys.exit(train(arguments))
