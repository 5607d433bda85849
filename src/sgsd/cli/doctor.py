"""``sgsd doctor``: whether a bank or a document will help, before any training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from rich.console import Console

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.bank.documents import load_bank
from sgsd.cli.console import Bars, print_json, progress_bar, standard_error, standard_output, table
from sgsd.cli.settings import hub_or_cache, ignore_deprecations
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import one_line
from sgsd.doctor import Diagnosis, diagnose
from sgsd.engines.embedders import build_retriever, retriever_of
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.prompts import PromptRenderer
from sgsd.trainers.config import SGSDConfig, VerifiedConfig
from sgsd.trainers.rows import all_text
from sgsd.trainers.tokens import prompt_budget
from sgsd.verifiers import Verifier, get_verifier


def run(options: argparse.Namespace) -> int:
    """Print the diagnosis. The exit code is 0, whatever the verdict."""
    if options.output is not None:
        runfolder.refuse_unwritable(options.output, "--output")
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
        renderer = PromptRenderer(
            tokenizer, instruction=options.instruction, thinking="off", text_only=all_text(problems)
        )
        length = SimpleNamespace(max_completion_length=options.max_completion_length, max_prompt_length=None)
        with progress_bar(console) as bar:
            found = diagnose(
                model,
                tokenizer,
                problems,
                bank,
                renderer=renderer,
                verifier=verifier,
                retriever=retriever,
                max_new_tokens=options.max_completion_length,
                max_prompt_length=prompt_budget(model.config, length),
                rollouts=options.rollouts,
                temperature=options.temperature,
                seed=options.seed,
                progress=Bars(bar).show,
            )
    if options.output is not None:
        found.save(options.output)
    if options.json:
        print_json(found.to_json())
    else:
        show(found, standard_output())
    return 0


def diagnose_run(
    args: SGSDConfig,
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    bank: SkillBank,
    verifier: Verifier,
    console: Console,
    *,
    batch_size: int = 32,
) -> Diagnosis:
    """Call ``diagnose`` with the settings of a run."""
    names = ("temperature", "top_p", "top_k", "seed", "num_teachers", "support_clip", "support_threshold")
    with progress_bar(console) as bar:
        return diagnose(
            model,
            tokenizer,
            problems,
            bank,
            renderer=renderer_for(args, tokenizer, problems),
            verifier=verifier,
            retriever=retriever_of(args),
            contexts=[args.teacher_context] if args.teacher_context else None,
            max_new_tokens=args.max_completion_length,
            max_prompt_length=prompt_budget(model.config, args),
            batch_size=batch_size,
            progress=Bars(bar, lines=True).show,
            **{name: vars(args)[name] for name in names},
        )


def renderer_for(args: VerifiedConfig, tokenizer: Any, problems: Sequence[Problem]) -> PromptRenderer:
    """The ``PromptRenderer`` of a run."""
    return PromptRenderer(
        tokenizer,
        instruction=args.instruction,
        thinking=args.thinking,
        chat_template_kwargs=args.chat_template_kwargs,
        text_only=all_text(problems) and not args.policy_writes,
    )


def show(found: Diagnosis, console: Console) -> None:
    """Print the accuracies, the verdict, its reasons and the recommended settings."""
    numbers = ("right", "change", "tokens", "cut off")
    made = table("", "prompt", *numbers, right=numbers)
    made.add_row("plain", f"{found.success.mean:.1%}", "", f"{found.prompt_tokens:.0f}", f"{found.truncated:.0%}")
    made.add_row("plain, greedy", f"{found.greedy_success.mean:.1%}", "", f"{found.prompt_tokens:.0f}", "")
    for name, own in found.in_prompt.items():
        cells = f"{own.accuracy.mean:.1%}", f"{100 * own.difference.mean:+.1f} points", f"{own.prompt_tokens:.0f}"
        made.add_row(f"{name}, greedy", *cells, f"{own.truncated:.0%}")
    console.print(made)
    console.print(f"verdict: {found.verdict}")
    for sentence in found.sentences:
        console.print(f"- {sentence}", soft_wrap=True)
    show_examples(found, console)
    if found.settings:
        flags = " ".join(f"--{name} {value}" for name, value in found.settings.items())
        console.print(f"settings of sgsd train: {flags}", soft_wrap=True)


def show_examples(found: Diagnosis, console: Console) -> None:
    """Print some answers with the plain prompt and with the bank in it, and what the verifier found in them."""
    for one in found.examples:
        prompt = "plain" if one.context is None else f"{one.context} in the prompt"
        read = "" if one.extracted is None or one.extracted == one.completion else f", read as {one.extracted!r}"
        read = ", cut off" if one.is_truncated else read
        console.print(f"{prompt}: {one_line(one.problem, 200)}", soft_wrap=True)
        console.print(
            f"    {one_line(one.completion, 300)}  [{one.outcome}{one_line(read, 200)}; reference "
            f"{one_line(one.reference, 100)}]",
            soft_wrap=True,
        )
