"""``sgsd eval``: sample answers to one data set or several, judge them, store them, and print a summary."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from sgsd import __version__, runfolder
from sgsd.cli.console import (
    Bars,
    print_json,
    progress_bar,
    standard_error,
    standard_output,
    table,
    warn_if_few,
)
from sgsd.cli.engines import Engines
from sgsd.cli.eval_plan import (
    Plan,
    assumptions,
    check_flags,
    data_sets,
    folder_names,
    make_plan,
    read_model_run,
    refuse_idle_flags,
)
from sgsd.cli.settings import ignore_deprecations
from sgsd.display import public_url
from sgsd.errors import ConfigError
from sgsd.evaluation import evaluate
from sgsd.evaluation.recorded import distinct_tails
from sgsd.evaluation.run import Sample, SampleStore, read_summary
from sgsd.prompts import refuse_long_prompts
from sgsd.verifiers.verifier import NAMES

Summary = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the summary. Settings that are not given are those of the run, if the model is one.

    Settings and data are checked before the model is loaded. An evaluation that exists with these settings is shown
    and not repeated.
    """
    ignore_deprecations()
    transformers.utils.logging.disable_progress_bar()  # a second bar would break the bar of this command
    console = standard_error()
    record = read_model_run(options)
    names = data_sets(options, record)
    check_flags(options)
    refuse_idle_flags(options, {*vars(options)} - {"show"}, "without --regrade")
    engines = engines_of(options)
    plans: list[Plan] = []
    several = len(names) > 1
    for name, folder in zip(names, folder_names(names), strict=True):
        plans.append(make_plan(name, options, record, engines.tokenizer(), folder=folder, several=several))
        console.print(plans[-1].report.summary())
        warn_if_few(console, _short(name), len(plans[-1].problems))
    if not record and (assumed := assumptions(options, plans[0], engines.tokenizer())):
        console.print(assumed, soft_wrap=True)
    stores = [
        None if plan.output is None else SampleStore(plan.output, plan.settings, force=options.force) for plan in plans
    ]
    summaries: dict[str, Summary] = {}
    max_length = max(max(plan.prompt_lengths) + plan.sampling["max_new_tokens"] for plan in plans)
    with progress_bar(console) as bar:
        bars = Bars(bar)
        for plan, store in zip(plans, stores, strict=True):
            if store is not None and (finished := store.finished()) is not None:
                console.print(f"already evaluated, nothing sampled: {store.folder}")
                summaries[plan.name] = read_summary(store.folder) | finished.summary()
                continue
            _refuse_beyond_context(plan, engines.context())
            console.print(f"{_short(plan.name)}: sampling {options.model} with {options.engine}", soft_wrap=True)
            with nullcontext() if store is None else runfolder.one_writer(store.folder):
                summaries[plan.name] = _evaluate(plan, store, engines, max_length, bars, console)
    if options.json:
        print_json(_document(summaries))
    else:
        standard_output().print(summary_table(summaries))
    kept = [str(store.folder) for store in stores if store is not None]
    where = f"samples saved to {', '.join(kept)}" if kept else "samples not saved: pass --output FOLDER to save them"
    console.print(where, soft_wrap=True)
    return 0


def engines_of(options: argparse.Namespace) -> Engines:
    """The engine that samples from the model, from the options."""
    return Engines(
        options.engine,
        options.model,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        server={
            "base_url": options.base_url,
            "concurrency": 16 if options.concurrency is None else options.concurrency,
        },
        served_model=options.served_model,
    )


def _evaluate(
    plan: Plan, store: SampleStore | None, engines: Engines, max_length: int, bars: Bars, console: Console
) -> Summary:
    k, batch_size = plan.settings["samples_per_problem"], plan.settings["batch_size"]
    sampler = engines.sampler(plan.sampling, batch_size=batch_size, max_length=max_length, progress=bars.within)
    name, total = _short(plan.name), len(plan.problems) * k
    done = [] if store is None else store.resume(batch_size=batch_size, total=total)
    if done:
        console.print(f"{name}: resuming after {len(done):,} of {total:,} samples", soft_wrap=True)
    count = len(done)
    bars.show(name, count, total)

    def keep(batch: Sequence[Sample]) -> None:
        nonlocal count
        if store is not None:
            store.append(batch)
        count += len(batch)
        bars.show(name, count, total)

    result = evaluate(
        sampler,
        plan.problems,
        plan.renderer,
        plan.verifier,
        k=k,
        seed=plan.settings["seed"],
        shown=plan.shown,
        batch_size=batch_size,
        done=done,
        on_batch=keep,
    )
    about = {**plan.about, "sgsd": __version__}
    if engines.engine == "openai":
        about["base_url"] = public_url(engines.server["base_url"])
    if store is not None:
        store.finish(result, **about)
    return {**plan.settings, **about, **result.summary()}


def _refuse_beyond_context(plan: Plan, context: int | None) -> None:
    length = plan.sampling["max_new_tokens"]
    if context is None:
        return
    if length >= context:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {length}",
            expected=f"less than {context}, and room for the prompts",
            remedy="pass --max_completion_length",
        )
    what = "plain prompts" if plan.shown is None else "prompts with skills"
    refuse_long_prompts(plan.prompt_lengths, context - length, what)


def _document(summaries: Mapping[str, Summary]) -> Summary:
    """The JSON to print: the summary of one data set, or those of several with their mean."""
    if len(summaries) == 1:
        return next(iter(summaries.values()))
    means = {name: _mean(summaries, name) for name in _estimates(summaries)}
    return {"datasets": dict(summaries), "mean": {name: mean for name, mean in means.items() if mean is not None}}


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """A table with a column per data set and one for their mean. Intervals are 95 %, over problems."""
    every = list(summaries.values())
    several = len(every) > 1
    heads = [*distinct_tails(list(summaries)), *(["mean"] if several else [])]
    made = table("", "", *heads, right=heads)

    def add(label: str, cells: Sequence[str], mean: str = "") -> None:
        made.add_row(label, *cells, *([mean] if several else []))

    add("problems", [f"{summary['problems']:,}" for summary in every])
    add("samples of each", [f"{summary['samples_per_problem']:,}" for summary in every])
    ks = {summary["samples_per_problem"] for summary in every}
    for name in _estimates(summaries):
        label = name if name != "accuracy" else f"avg@{max(ks)}" if len(ks) == 1 else "avg@k"
        mean = _mean(summaries, name)
        add(label, [_percent(summary, name) for summary in every], "" if mean is None else f"{100 * mean:.1f} %")
    add("truncated", [f"{100 * summary['truncated']:.1f} %" for summary in every])
    answerless = [f"{100 * one['no_answer']:.1f} %" if one["verifier"] in NAMES else "–" for one in every]
    add("no answer", answerless)  # reward functions return no answers
    add("undecided", [f"{100 * summary['undecided']:.1f} %" for summary in every])
    for name, label in (("mean", "tokens, mean"), ("median", "median"), ("p90", "90th percentile")):
        add(label, [f"{summary[f'{name}_tokens']:,.0f}" for summary in every])
    made.caption, made.caption_justify = "In brackets: 95 % interval over problems.", "left"
    return made


def _estimates(summaries: Mapping[str, Summary]) -> list[str]:
    """The estimates in the summaries: accuracy, then each pass@k and maj@k, ordered by k."""
    names = {name for summary in summaries.values() for name in summary if name.startswith(("pass@", "maj@"))}
    names = {name for name in names if not name.endswith("_ci95")}
    return ["accuracy", *sorted(names, key=lambda name: (not name.startswith("pass"), int(name.partition("@")[2])))]


def _mean(summaries: Mapping[str, Summary], name: str) -> float | None:
    """The unweighted mean over data sets; ``None`` unless all have the estimate."""
    if not all(name in summary for summary in summaries.values()):
        return None
    return statistics.fmean(summary[name] for summary in summaries.values())


def _percent(summary: Summary, name: str) -> str:
    if name not in summary:
        return ""
    low, high = summary["ci95" if name == "accuracy" else f"{name}_ci95"]
    return f"{100 * summary[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _short(dataset: str) -> str:
    """A data set's name without its folder or owner."""
    return dataset.rsplit("/", 1)[-1]
