"""``sgsd doctor``: whether a bank or a document will help, before any training."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from rich.console import Console

from sgsd.bank.documents import load_bank
from sgsd.cli.console import print_json, progress_bar, standard_error, standard_output, table
from sgsd.cli.settings import hub_or_cache, ignore_deprecations, refuse_unwritable
from sgsd.data.sources import load_problems
from sgsd.doctor import Diagnosis, diagnose
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.prompts import PromptRenderer
from sgsd.trainers.rows import all_text
from sgsd.trainers.tokens import prompt_budget
from sgsd.verifiers import get_verifier


def doctor(options: argparse.Namespace) -> int:
    """Measure and say what to do; exit code 0 whatever the verdict."""
    for name in ("max_completion_length", "temperature"):
        if not vars(options)[name] > 0:
            raise ConfigError(f"--{name} is out of range", got=vars(options)[name], expected="above 0")
    if options.output is not None:
        refuse_unwritable(options.output, "--output")
    ignore_deprecations()
    transformers.utils.logging.disable_progress_bar()
    console = standard_error()
    bank = load_bank(options.bank)
    with get_verifier(options.verifier) as verifier:
        problems, report = load_problems(options.tasks, columns=options.columns, readable=verifier.readable)
        console.print(report.summary())
        embedder = options.embedder if options.retriever == "embedding" else None
        retriever = build_retriever(options.retriever, embedder=embedder, seed=options.seed)
        with hub_or_cache(options.model):
            tokenizer = load_tokenizer(options.model)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = load_model(options.model, dtype=options.dtype, device=device)
        length = SimpleNamespace(max_completion_length=options.max_completion_length, max_prompt_length=None)
        found = diagnose_with_bar(
            console,
            model,
            tokenizer,
            problems,
            bank,
            renderer=PromptRenderer(
                tokenizer, instruction=options.instruction, thinking="off", text_only=all_text(problems)
            ),
            verifier=verifier,
            retriever=retriever,
            max_new_tokens=options.max_completion_length,
            max_prompt_length=prompt_budget(model.config, length),
            rollouts=options.rollouts,
            temperature=options.temperature,
            seed=options.seed,
        )
    if options.output is not None:
        found.save(options.output)
    if options.json:
        print_json(found.to_json())
    else:
        show(found, standard_output())
    return 0


def diagnose_with_bar(console: Console, *given: Any, **settings: Any) -> Diagnosis:
    """``diagnose``, with a bar for each prompt that is sampled."""
    with progress_bar(console) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        return diagnose(*given, progress=progress, **settings)


def show(found: Diagnosis, console: Console) -> None:
    """The verdict, why, and the settings it recommends."""
    made = table(
        "", "prompt", "right", "to plain", "tokens", "cut off", right=("right", "to plain", "tokens", "cut off")
    )
    made.add_row("plain", f"{found.success.mean:.1%}", "", f"{found.prompt_tokens:.0f}", f"{found.truncated:.0%}")
    made.add_row("plain, greedy", f"{found.greedy_success.mean:.1%}", "", f"{found.prompt_tokens:.0f}", "")
    for name, own in found.in_prompt.items():
        cells = f"{own.accuracy.mean:.1%}", f"{100 * own.difference.mean:+.1f} points", f"{own.prompt_tokens:.0f}"
        made.add_row(f"{name}, greedy", *cells, f"{own.truncated:.0%}")
    console.print(made)
    console.print(f"verdict: {found.verdict}")
    for sentence in found.sentences:
        console.print(f"- {sentence}", soft_wrap=True)
    if found.settings:
        flags = " ".join(f"--{name} {value}" for name, value in found.settings.items())
        console.print(f"settings of sgsd train: {flags}", soft_wrap=True)
