"""``sgsd eval``."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgsd import __version__
from sgsd.commands.settings import hub_or_cache, ignore_deprecations, read_run, refuse_unwritable
from sgsd.engines.datasets import load_problems
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.evaluation import evaluate
from sgsd.prompts import BOXED_INSTRUCTION, PromptRenderer
from sgsd.verifiers import get_verifier

_SHARES = ("truncated", "no_answer", "undecided")


def evaluate_model(options: argparse.Namespace) -> int:
    """Plain-prompt accuracy; a run's own instruction, verifier, length and data unless told otherwise.

    A run's ``thinking: paper`` does not apply: the paper evaluates with the template's thinking on.
    """
    ignore_deprecations()
    console = Console(stderr=True)
    run = (read_run(Path(options.model)) if Path(options.model).is_dir() else None) or {}
    dataset = options.dataset or run.get("eval_dataset")
    if not dataset:
        raise ConfigError("no data to evaluate on", expected="--dataset: a file, a hub name, or reasoning_gym:TASK")
    _check(options)
    verifier_name = options.verifier or run.get("verifier") or "math"
    same_verifier = verifier_name == run.get("verifier")
    verifier = get_verifier(verifier_name, **((run.get("verifier_options") or {}) if same_verifier else {}))
    problems, report = load_problems(
        dataset,
        split=options.dataset_split,
        config_name=options.dataset_config,
        adapter=options.dataset_adapter,
        limit=options.limit,
        readable=verifier.readable,
    )
    console.print(report.summary(), highlight=False)
    with hub_or_cache(options.model):
        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
        model = load_model(
            options.model,
            dtype=options.dtype,
            device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            trust_remote_code=options.trust_remote_code,
        )
    template_kwargs = options.chat_template_kwargs
    renderer = PromptRenderer(
        tokenizer,
        instruction=run.get("instruction", BOXED_INSTRUCTION) if options.instruction is None else options.instruction,
        chat_template_kwargs=run.get("chat_template_kwargs") if template_kwargs is None else template_kwargs,
    )
    length = options.max_completion_length or run.get("max_completion_length") or 1024
    context = model.config.get_text_config().max_position_embeddings
    if length >= context:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {length}",
            expected=f"less than {context}, and room for the prompts",
        )
    with progress_bar(console) as progress:
        task = progress.add_task("sampling", total=len(problems) * options.samples)
        sampler = TransformersSampler(
            model,
            tokenizer,
            max_new_tokens=length,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            batch_size=options.batch_size,
            progress=lambda done: progress.update(task, completed=done),
        )
        result = evaluate(
            sampler,
            problems,
            renderer,
            verifier,
            k=options.samples,
            seed=options.seed,
            max_prompt_length=context - length,
        )
    about = {
        "model": options.model,
        "dataset": str(dataset),
        "verifier": verifier_name,
        "instruction": renderer.instruction,
        "chat_template_kwargs": renderer.student_kwargs,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_completion_length": length,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "sgsd": __version__,
    }
    if options.output is not None:
        result.save(options.output, **about)
    summary = {**about, **result.summary()}
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        accuracy = result.accuracy
        low, high = 100 * accuracy.low, 100 * accuracy.high
        shares = ", ".join(f"{name.replace('_', ' ')} {100 * summary[name]:.1f} %" for name in _SHARES)
        print(f"avg@{options.samples} {100 * accuracy.mean:.1f} %, 95 % interval {low:.1f} to {high:.1f} %")
        print(f"{summary['problems']} problems; {shares}")
    return 0


def _check(options: argparse.Namespace) -> None:
    for name, fits, expected in (
        ("samples", options.samples >= 1, "1 or more"),
        ("temperature", 0 <= options.temperature < math.inf, "0 (greedy) or more"),
        ("top_p", 0 < options.top_p <= 1, "above 0, at most 1"),
        ("top_k", options.top_k >= 0, "0 (off) or more"),
        ("batch_size", options.batch_size >= 1, "1 or more"),
        ("max_completion_length", options.max_completion_length is None or options.max_completion_length >= 1, "≥ 1"),
    ):
        if not fits:
            raise ConfigError(f"--{name} is out of range", got=vars(options)[name], expected=expected)
    if options.output is not None:
        refuse_unwritable(options.output, "--output")
    if options.device is not None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError("unusable --device", got=options.device, expected="cpu, cuda, cuda:1 …") from error


def progress_bar(console: Console) -> Progress:
    """A bar with counts and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
