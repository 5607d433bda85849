"""``sgsd eval``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgsd.commands.settings import read_run
from sgsd.engines.datasets import load_problems
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.evaluation import evaluate
from sgsd.prompts import BOXED_INSTRUCTION, PromptRenderer
from sgsd.verifiers import get_verifier

_SHARES = ("truncated", "no_answer", "undecided")


def evaluate_model(options: argparse.Namespace) -> int:
    """Plain-prompt accuracy; a run's own prompts, verifier and data unless told otherwise."""
    console = Console(stderr=True)
    run = (read_run(Path(options.model)) if Path(options.model).is_dir() else None) or {}
    dataset = options.dataset or run.get("eval_dataset")
    if not dataset:
        raise ConfigError("no data to evaluate on", expected="--dataset: a file, a hub name, or reasoning_gym:TASK")
    if options.samples < 1:
        raise ConfigError("--samples is too small", got=options.samples, expected="1 or more")
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
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, dtype=options.dtype)
    template_kwargs = options.chat_template_kwargs
    renderer = PromptRenderer(
        tokenizer,
        instruction=run.get("instruction", BOXED_INSTRUCTION) if options.instruction is None else options.instruction,
        chat_template_kwargs=run.get("chat_template_kwargs") if template_kwargs is None else template_kwargs,
    )
    length = options.max_completion_length or run.get("max_completion_length") or 1024
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
            max_prompt_length=model.config.get_text_config().max_position_embeddings - length,
        )
    about = {
        "model": options.model,
        "dataset": str(dataset),
        "verifier": verifier_name,
        "instruction": renderer.instruction,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_completion_length": length,
        "seed": options.seed,
    }
    if options.output is not None:
        result.save(options.output, **about)
    summary = {**about, **result.summary()}
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        accuracy = result.accuracy
        low, high = 100 * accuracy.low, 100 * accuracy.high
        shares = ", ".join(f"{name.replace('_', ' ')} {100 * summary[name]:.1f} %" for name in _SHARES)
        print(f"avg@{options.samples} {100 * accuracy.mean:.1f} %, 95 % interval {low:.1f} to {high:.1f} %")
        print(f"{summary['problems']} problems; {shares}")
    return 0


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
