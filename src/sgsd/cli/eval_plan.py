"""The ``Plan`` of ``sgsd eval`` for each data set.

A setting comes from the flags, else from the benchmark, else from the run, else from the defaults.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank.documents import load_bank
from sgsd.cli.flags import SAMPLE_BATCHES
from sgsd.cli.parser import build_parser
from sgsd.cli.settings import read_run
from sgsd.controls import ChatTokenizer
from sgsd.data.curation import DataReport
from sgsd.data.problems import Problem
from sgsd.data.sources import GYM, load_problems
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import refuse_missing_folder, weights_digest
from sgsd.errors import ConfigError, did_you_mean
from sgsd.evaluation.presets import BENCHMARKS, Benchmark, find_benchmark
from sgsd.evaluation.recorded import distinct_tails, final_step
from sgsd.evaluation.run import prompts_of, verifier_of
from sgsd.prompts import SWITCH, PromptRenderer, Shown, Thinking
from sgsd.trainers.config import context_of
from sgsd.trainers.rows import all_text, skill_pairs
from sgsd.verifiers import Verifier, get_verifier

_DEFAULTS = {"samples": 1, "max_completion_length": 1024, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
_DATE = re.compile(r"""\bstrftime_now\(\s*(['"])([^'"\n]*)\1\s*\)""")
_MOST_NAME = 200  # bytes; file systems allow 255


class _Dated(TypedDict):
    """The part of ``settings.json`` that is read here."""

    date: NotRequired[date | None]


_DATED = TypeAdapter(_Dated)


@dataclass(frozen=True)
class Plan:
    """One data set to evaluate on, ready to sample.

    Attributes:
        name: of the data set.
        problems: one per prompt.
        report: how many rows were kept, and why others were dropped.
        renderer, verifier: make the prompts, and judge the answers.
        shown: the part of a bank in each prompt; ``None`` for plain prompts.
        prompt_lengths: in tokens, one per problem.
        output: folder of the evaluation; ``None`` to save nothing.
        settings: everything on which the samples depend, as plain data.
        about: further entries of the summary.
    """

    name: str
    problems: Sequence[Problem]
    report: DataReport
    renderer: PromptRenderer
    verifier: Verifier
    shown: Sequence[Shown] | None
    prompt_lengths: Sequence[int]
    output: Path | None
    settings: Mapping[str, Any]
    about: Mapping[str, object]

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of the sampler."""
        sampling = {key: self.settings[key] for key in ("temperature", "top_p", "top_k")}
        return {"max_new_tokens": self.settings["max_completion_length"], **sampling}


# ---- options


def read_model_run(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run, if the model is a run folder or a checkpoint; else empty.

    Of the output folder of ``sgsd internalize``, the model becomes the run in it.
    """
    if options.model is None:
        raise ConfigError(
            "no model to evaluate",
            expected="a run folder, checkpoint, adapter, hub name or local:NAME; or --regrade PATH",
        )
    refuse_missing_folder(options.model)
    if os.path.isdir(options.model):
        options.model = str(runfolder.runs_of(Path(options.model))[0])
    return (read_run(Path(options.model)) if os.path.isdir(options.model) else None) or {}


def assumptions(options: argparse.Namespace, plan: Plan, tokenizer: ChatTokenizer) -> str | None:
    """A line on what is assumed about a model without the record of a run; ``None`` if nothing is assumed."""
    told = {
        "verifier": plan.settings["verifier"],
        "instruction": json.dumps(plan.settings["instruction"], ensure_ascii=False),
        "max_completion_length": plan.settings["max_completion_length"],
    }
    if SWITCH in str(tokenizer.chat_template) and SWITCH not in plan.settings["chat_template_kwargs"]:
        told["thinking"] = "as the chat template has it"
    left = [f"{name} {value}" for name, value in told.items() if vars(options)[name] is None]
    if not left:
        return None
    if all(problem.prompt is None for problem in plan.problems):
        left.append("no system message")
    return f"no run.json says how {options.model} was trained; assumed: {', '.join(left)}. Flags set other values"


def data_sets(options: argparse.Namespace, run: Mapping[str, Any]) -> list[str]:
    """The names of the data sets.

    Raises:
        ConfigError: no data set, one named twice, or a misspelt benchmark.
    """
    given = options.dataset or options.dataset_file or run.get("eval_dataset")
    if not given:
        raise ConfigError(
            "no data to evaluate on",
            expected=f"--dataset: a file, a hub name, reasoning_gym:TASK, or of {', '.join(BENCHMARKS)}",
        )
    text = str(given)
    # Options of reasoning-gym tasks and names of files may contain commas.
    names = [text] if text.startswith(GYM) or os.path.exists(text) else [part.strip() for part in text.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise ConfigError("--dataset has a repeated or an empty name", got=text)
    for name in names:
        near = did_you_mean(name.lower(), BENCHMARKS)
        if near is not None and name not in BENCHMARKS and "/" not in name and not os.path.exists(name):
            raise ConfigError("unknown data set", got=repr(name), remedy=near)
    for flag in ("dataset_file", "dataset_split", "dataset_config", "dataset_adapter", "dataset_columns"):
        if len(names) > 1 and vars(options)[flag] is not None:
            raise ConfigError(f"--{flag} is for one data set", got=text, remedy="evaluate on one at a time")
    return names


def refuse_idle_flags(options: argparse.Namespace, used: Collection[str], why: str) -> None:
    """Raise ``ConfigError`` for a flag that is set and not used."""
    defaults = vars(build_parser("eval").parse_args(["eval"]))
    for name, value in vars(options).items():
        if value != defaults[name] and name not in used:
            raise ConfigError(f"--{name} has no effect {why}", got=value)


def check_flags(options: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for flags that exclude each other, and set the default dtype of the engine."""
    for name in ("bank", "retriever", "embedder", "pairs"):
        if vars(options)[name] is not None and not options.skills_in_prompt:
            raise ConfigError(f"--{name} needs --skills_in_prompt", got=vars(options)[name])
    if options.thinking is not None and SWITCH in (options.chat_template_kwargs or {}):
        raise ConfigError(f"--thinking and {SWITCH} in --chat_template_kwargs", expected="only one of them")
    if options.output is not None:
        runfolder.refuse_unwritable(options.output, "--output")
    if options.device is not None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError("unusable --device", got=options.device, expected="cpu, cuda, cuda:1 …") from error
    readers = {
        "base_url": ("openai",),
        "served_model": ("openai",),
        "concurrency": ("openai",),
        "device": ("transformers",),
        "dtype": ("transformers", "vllm"),
    }
    for flag, engines in readers.items():
        if vars(options)[flag] is not None and options.engine not in engines:
            raise ConfigError(
                f"--{flag} has no effect with engine {options.engine}",
                got=vars(options)[flag],
                expected=f"--engine {' or '.join(engines)}",
            )
    if options.engine == "openai" and options.base_url is None:
        raise ConfigError("--engine openai needs --base_url", expected="such as http://localhost:8000/v1")
    if options.engine != "openai" and options.dtype is None:
        options.dtype = "float32" if options.engine == "transformers" else "auto"


# ---- the plan


def make_plan(
    name: str,
    options: argparse.Namespace,
    run: Mapping[str, Any],
    tokenizer: ChatTokenizer,
    *,
    folder: str,
    several: bool,
) -> Plan:
    """The plan for one data set, made without loading the model.

    Args:
        name: of the data set.
        options: the flags.
        run: settings of the run; empty for other models.
        tokenizer: of the model.
        folder: name of the evaluation's folder; see ``folder_names``.
        several: several data sets are evaluated, each in a subfolder of ``--output``.

    Raises:
        SGSDError: a setting, the data or the bank cannot be used.
    """
    benchmark = find_benchmark(name) if options.dataset_file is None else BENCHMARKS.get(name)
    verifier_name = verifier_of(options.verifier, run)
    verifier_options = (run.get("verifier_options") or {}) if verifier_name == run.get("verifier") else {}
    verifier = get_verifier(verifier_name, **verifier_options)
    problems, report = _load(name, benchmark, options, run, verifier)
    skilled = bool(options.skills_in_prompt)
    output = output_of(folder, options, skilled=skilled, several=several)
    today = _today(tokenizer, None if options.force else output)
    renderer = renderer_of(_dated(tokenizer, today), options, run, benchmark, text_only=all_text(problems))
    shown, skill_settings, bank = _skills(options, run, problems) if skilled else (None, {}, None)
    prompts = prompts_of(problems, renderer, shown)
    chosen = dict(_DEFAULTS)
    length = {"max_completion_length": run.get("max_completion_length")}
    for values in (length, {} if benchmark is None else asdict(benchmark), vars(options)):
        chosen |= {key: values[key] for key in _DEFAULTS if values.get(key) is not None}
    weights = weights_digest(Path(options.model))
    model = {"model": options.model}
    settings: dict[str, Any] = {
        # A folder is identified by its weights, so that it can be moved.
        **(model if weights is None else {"weights": weights}),
        "dataset": name,
        "verifier": verifier_name,
        "verifier_options": verifier_options,
        "instruction": renderer.instruction,
        "chat_template_kwargs": renderer.student_kwargs,
        "skills_in_prompt": skilled,
        **skill_settings,
        "samples_per_problem": chosen["samples"],
        **{key: chosen[key] for key in ("max_completion_length", "temperature", "top_p", "top_k")},
        "seed": options.seed,
        "batch_size": options.batch_size or SAMPLE_BATCHES[options.engine],
        "engine": options.engine,
        # Adapters on a server differ in this name.
        **({"served_model": options.served_model or options.model} if options.engine == "openai" else {}),
        "dtype": options.dtype,
        "problems": len(problems),
        "prompts": _prompts_digest(problems, prompts),
        **({} if today is None else {"date": today.isoformat()}),
    }
    about: dict[str, object] = {
        **({} if weights is None else model),
        **({"trained_by": run.get("method", "sgsd"), "step": final_step(Path(options.model))} if run else {}),
        **({"bank_source": bank} if skilled else {}),
        "dataset_source": report.source,
        "rows": report.rows,
        "rows_dropped": report.counts,
    }
    lengths = [len(prompt) for prompt in prompts]
    return Plan(name, problems, report, renderer, verifier, shown, lengths, output, settings, about)


def _load(
    name: str, benchmark: Benchmark | None, options: argparse.Namespace, run: Mapping[str, Any], verifier: Verifier
) -> tuple[list[Problem], DataReport]:
    split, config, source = options.dataset_split, options.dataset_config, options.dataset_file or name
    if options.dataset_file is None and benchmark is not None:
        source, split, config = benchmark.hub, split or benchmark.split, config or benchmark.config
    columns, of_run = options.dataset_columns, not (options.dataset or options.dataset_file)
    if of_run and benchmark is None and columns is None and options.dataset_adapter is None:
        columns = run.get("dataset_columns")
    return load_problems(
        source,
        split=split,
        config_name=config,
        adapter=options.dataset_adapter,
        columns=columns,
        limit=options.limit,
        readable=verifier.readable,
        held_out=of_run,
    )


def _skills(
    options: argparse.Namespace, run: Mapping[str, Any], problems: Sequence[Problem]
) -> tuple[list[Shown], dict[str, object], str]:
    """For ``--skills_in_prompt``: the pairs in each prompt, the settings they depend on, and the path of the bank."""
    folder = Path(options.model)
    places = folder / runfolder.PARTS / runfolder.BANK, folder / runfolder.BANK  # of a checkpoint, of the run's end
    name = options.bank or next((file for file in places if file.is_file()), None) or run.get("bank")
    if name is None:
        raise ConfigError("no skill bank", expected="--bank: a file, or a shipped one as seed:NAME")
    bank = load_bank(name)
    context = context_of(run, bank)
    kind = options.retriever or run.get("retriever") or "embedding"
    embedder = options.embedder or run.get("embedder") or "Qwen/Qwen3-Embedding-0.6B"
    embedder = embedder if kind == "embedding" else None
    count = options.pairs or run.get("skills_in_prompt_pairs") or 1
    item_text = run.get("retrieval_text", "topic")
    retriever = build_retriever(kind, embedder=embedder, item_text=item_text)
    settings: dict[str, object] = {
        "bank": bank.digest,
        "retriever": kind,
        "embedder": embedder,
        "skills_in_prompt_pairs": count,
    }
    if context != "pairs":  # the value of evaluations without this entry
        settings["teacher_context"] = context
    return skill_pairs(problems, retriever, bank, count, context), settings, str(name)


def renderer_of(
    tokenizer: ChatTokenizer,
    options: argparse.Namespace,
    run: Mapping[str, Any],
    benchmark: Benchmark | None,
    *,
    text_only: bool = False,
) -> PromptRenderer:
    """The ``PromptRenderer`` of the evaluation.

    ``thinking`` of the run is used unless it is ``paper``: the paper evaluates with thinking on, as the template does.
    With ``text_only`` all prompts are text, for which a tokenizer needs no chat template.

    Raises:
        ConfigError: ``--thinking`` is given, and the chat template has no such switch.
    """
    instruction = run.get("instruction") if options.instruction is None else options.instruction
    given: dict[str, Any] = options.chat_template_kwargs or {}
    if options.chat_template_kwargs is None:
        given = run.get("chat_template_kwargs") or {}
    if run.get("thinking") in (Thinking.OFF, Thinking.ON):
        given = {SWITCH: run["thinking"] == Thinking.ON, **given}
    if options.thinking is not None:
        given = {**given, SWITCH: options.thinking == "on"}
    elif (
        benchmark is not None and benchmark.thinking is not None and SWITCH not in (options.chat_template_kwargs or {})
    ):
        given = {**given, SWITCH: benchmark.thinking}

    def rendered(kwargs: dict[str, Any]) -> PromptRenderer:
        return PromptRenderer(tokenizer, instruction=instruction, chat_template_kwargs=kwargs, text_only=text_only)

    if text_only and not tokenizer.chat_template:
        return rendered({})
    on, off = (rendered({**given, SWITCH: value}).student_ids("1 + 1?") for value in (True, False))
    if on != off:
        return rendered(given)
    if options.thinking is not None:
        raise ConfigError(
            "--thinking has no effect: the chat template has no such switch",
            got=f"--thinking {options.thinking}",
            remedy="leave it out",
        )
    # The switch has no effect, so it is no setting in which two evaluations could differ.
    return rendered({name: value for name, value in given.items() if name != SWITCH})


def _today(tokenizer: ChatTokenizer, output: Path | None) -> date | None:
    """The date for a chat template with a date: the day on which the evaluation in this folder began, else today."""
    if not _DATE.search(str(tokenizer.chat_template)):
        return None
    file = None if output is None else output / runfolder.SETTINGS
    began = runfolder.read_json(file, _DATED).get("date") if file is not None and os.path.isfile(file) else None
    return began or date.today()


def _dated(tokenizer: ChatTokenizer, today: date | None) -> ChatTokenizer:
    """A copy of the tokenizer whose chat template has this date instead of ``strftime_now``."""
    if today is None:
        return tokenizer
    dated = copy.copy(tokenizer)
    text = functools.partial(_DATE.sub, lambda call: json.dumps(today.strftime(call[2])))
    template = dated.chat_template
    dated.chat_template = text(template) if isinstance(template, str) else {k: text(v) for k, v in template.items()}
    return dated


# ---- folders and digests


def output_of(folder: str, options: argparse.Namespace, *, skilled: bool, several: bool) -> Path | None:
    """The folder of an evaluation: ``--output``, or in the run's ``evaluations/``; ``None`` to save nothing."""
    folder += "-skills" if skilled else ""
    if options.output is not None:
        return options.output / folder if several else options.output
    model = Path(options.model)
    is_run = os.path.isdir(model) and any((place / runfolder.RUN).is_file() for place in (model, model.parent))
    if not is_run:
        return None
    place = model / runfolder.EVALUATIONS / folder
    if not runfolder.real(place).is_relative_to(runfolder.real(model)):
        raise ConfigError("the run's evaluations are outside the run", got=f"{place}, a link", remedy="pass --output")
    return place


def folder_names(datasets: Sequence[str]) -> list[str]:
    """A folder for each data set: ``aime24``, ``sums`` for ``data/sums.jsonl``, ``owner--name``, ``gym-task``.

    Files of one stem get the parts of their paths that distinguish them: ``a--test.jsonl`` and ``b--test.jsonl``.

    Raises:
        ConfigError: two data sets would share a folder, or a name is empty, ``.`` or ``..``.
    """
    places = [os.path.abspath(dataset) if os.path.exists(dataset) else dataset for dataset in datasets]
    names = list(map(_folder_name, datasets))
    tails = distinct_tails(places)
    names = [
        _as_folder(tail)[-_MOST_NAME:] if names.count(name) > 1 else name
        for name, tail in zip(names, tails, strict=True)
    ]
    for dataset, name in zip(datasets, names, strict=True):
        if name in ("", ".", ".."):
            raise ConfigError("the data set gives no name to a folder", got=dataset, remedy="rename it")
        if names.count(name) > 1:
            alike = [dataset for dataset, other in zip(datasets, names, strict=True) if other == name]
            raise ConfigError(
                "two data sets would share the folder",
                got=f"{name} for {' and '.join(alike)}",
                remedy="evaluate on one at a time, each with its own --output",
            )
    return names


def _folder_name(dataset: str) -> str:
    if dataset.startswith(GYM):
        name = "gym-" + _as_folder(dataset.removeprefix(GYM))
    else:
        name = Path(os.path.abspath(dataset)).stem if os.path.exists(dataset) else _as_folder(dataset)
    return name.encode()[:_MOST_NAME].decode(errors="ignore")


def _as_folder(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.replace("/", "--")).strip("-")


def _prompts_digest(problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the ids, references and prompt tokens of all problems, in their order."""
    digest = hashlib.sha256()
    for problem, prompt in zip(problems, prompts, strict=True):
        digest.update(json.dumps([problem.id, problem.key, list(prompt)]).encode())
    return digest.hexdigest()
