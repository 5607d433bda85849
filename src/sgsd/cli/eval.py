"""``sgsd eval``: sample, judge, keep, summarise; on one data set or several."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import transformers
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from sgsd import __version__, runfolder
from sgsd.cli.console import print_json, progress_bar, standard_error, standard_output, table
from sgsd.cli.eval_engines import Engine, check_engine
from sgsd.cli.eval_plan import Plan, check_flags, data_sets, make_plan, read_model_run
from sgsd.cli.settings import hub_or_cache, ignore_deprecations
from sgsd.display import public_url
from sgsd.engines.models import load_tokenizer
from sgsd.errors import ConfigError
from sgsd.evaluation import Evaluation, evaluate
from sgsd.evaluation.run import Sample, SampleStore, read_summary
from sgsd.prompts import refuse_long_prompts

Summary = dict[str, Any]


def evaluate_model(options: argparse.Namespace) -> int:
    """Plain-prompt accuracy, or with skills in the prompt; a run's own settings unless told otherwise.

    Everything that can be refused is refused before the model is loaded; an evaluation that is already there, with
    these settings, is shown and not made again.
    """
    if options.model is None:
        raise ConfigError(
            "no model to evaluate",
            expected="a run folder, checkpoint, adapter, hub name or local:NAME; or --regrade PATH",
        )
    ignore_deprecations()
    transformers.utils.logging.disable_progress_bar()  # loading has one line; a second bar would tear this command's
    console = standard_error()
    run = read_model_run(options.model)
    names = data_sets(options, run)
    check_flags(options)
    check_engine(options)
    with hub_or_cache(options.model):
        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    plans: list[Plan] = []
    for name in names:
        plans.append(make_plan(name, options, run, tokenizer, several=len(names) > 1))
        console.print(plans[-1].report.summary())
    stores = [
        None if plan.output is None else SampleStore(plan.output, plan.settings, force=options.force) for plan in plans
    ]
    summaries: dict[str, Summary] = {}
    with progress_bar(console) as bar:
        screen = _Screen(bar)
        room = max(max(plan.prompt_lengths) + plan.sampling["max_new_tokens"] for plan in plans)
        engine = Engine(options, tokenizer, room=room, progress=screen.within_batch)
        for plan, store in zip(plans, stores, strict=True):
            if store is not None and (finished := store.finished()) is not None:
                console.print(f"already there, nothing sampled: {store.folder}")
                summaries[plan.name] = read_summary(store.folder) | finished.summary()
                continue
            _refuse_beyond_context(plan, engine)
            with nullcontext() if store is None else runfolder.one_writer(store.folder):
                summaries[plan.name] = _evaluate(plan, store, engine, screen, console, options)
    kept = [str(store.folder) for store in stores if store is not None]
    if options.json:
        print_json(_document(summaries))
    else:
        standard_output().print(summary_table(summaries))
    where = f"samples kept in {', '.join(kept)}" if kept else "samples not kept: --output FOLDER keeps them"
    console.print(where, soft_wrap=True)
    return 0


def _evaluate(
    plan: Plan,
    store: SampleStore | None,
    engine: Engine,
    screen: _Screen,
    console: Console,
    options: argparse.Namespace,
) -> Summary:
    console.print(f"{_short(plan.name)}: sampling {options.model} with {options.engine}", soft_wrap=True)
    sampler = engine.sampler(plan.sampling, batch_size=plan.batch_size)
    total = len(plan.problems) * plan.k
    done = [] if store is None else store.resume(batch_size=plan.batch_size, total=total)
    if done:
        console.print(f"{_short(plan.name)}: going on after {len(done):,} of {total:,} samples", soft_wrap=True)
    screen.begin(plan.name, total, len(done))

    def keep(batch: Sequence[Sample]) -> None:
        if store is not None:
            store.append(batch)
        screen.finish_batch(len(batch))

    result: Evaluation = evaluate(
        sampler,
        plan.problems,
        plan.renderer,
        plan.verifier,
        k=plan.k,
        seed=plan.seed,
        shown=plan.shown,
        batch_size=plan.batch_size,
        done=done,
        on_batch=keep,
    )
    about = {**plan.about, "sgsd": __version__}
    if options.engine == "openai":
        about["base_url"] = public_url(options.base_url)
    if store is not None:
        store.finish(result, **about)
    return {**plan.settings, **about, **result.summary()}


def _refuse_beyond_context(plan: Plan, engine: Engine) -> None:
    context, length = engine.context, plan.sampling["max_new_tokens"]
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
    """One data set's summary as it is; several under their names, beside their mean."""
    if len(summaries) == 1:
        return next(iter(summaries.values()))
    means = {name: _mean(summaries, name) for name in _estimates(summaries)}
    return {"datasets": dict(summaries), "mean": {name: mean for name, mean in means.items() if mean is not None}}


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """A column a data set, and the mean over several; percentages with their 95 % interval over problems."""
    every = list(summaries.values())
    ks = {summary["samples_per_problem"] for summary in every}
    rows = {"problems": [f"{summary['problems']:,}" for summary in every]}
    rows["samples of each"] = [f"{summary['samples_per_problem']:,}" for summary in every]
    for name in _estimates(summaries):
        label = name if name != "accuracy" else f"avg@{max(ks)}" if len(ks) == 1 else "avg@k"
        mean = _mean(summaries, name)
        rows[label] = [*(_percent(summary, name) for summary in every), "" if mean is None else f"{100 * mean:.1f} %"]
    for name in ("truncated", "no_answer", "undecided"):
        rows[name.replace("_", " ")] = [f"{100 * summary[name]:.1f} %" for summary in every]
    for name, label in (("mean", "tokens, mean"), ("median", "median"), ("p90", "90th percentile")):
        rows[label] = [f"{summary[f'{name}_tokens']:,.0f}" for summary in every]
    heads = [*map(_short, summaries), *(["mean"] if len(summaries) > 1 else [])]
    made = table("", "", *heads, right=heads)
    for label, cells in rows.items():
        made.add_row(label, *cells[: len(heads)])
    made.caption, made.caption_justify = "In brackets: 95 % interval over problems.", "left"
    return made


def _estimates(summaries: Mapping[str, Summary]) -> list[str]:
    """accuracy, then every pass@k and maj@k that a data set has, by k."""
    names = {name for summary in summaries.values() for name in summary if name.startswith(("pass@", "maj@"))}
    names = {name for name in names if not name.endswith("_ci95")}
    return ["accuracy", *sorted(names, key=lambda name: (not name.startswith("pass"), int(name.partition("@")[2])))]


def _mean(summaries: Mapping[str, Summary], name: str) -> float | None:
    """Over data sets, each counting the same; ``None`` unless all have it."""
    if not all(name in summary for summary in summaries.values()):
        return None
    return statistics.fmean(summary[name] for summary in summaries.values())


def _percent(summary: Summary, name: str) -> str:
    if name not in summary:
        return ""
    low, high = summary["ci95" if name == "accuracy" else f"{name}_ci95"]
    return f"{100 * summary[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


class _Screen:
    """One bar a data set: samples done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = TaskID(-1)
        self._done = 0

    def begin(self, name: str, total: int, done: int) -> None:
        """A data set; ``done`` of its samples were there."""
        self._done = done
        self._task = self._bar.add_task(_short(name), total=total, completed=done)

    def within_batch(self, done: int) -> None:
        """So many of the batch under way."""
        self._bar.update(self._task, completed=self._done + done)

    def finish_batch(self, count: int) -> None:
        """A batch is kept."""
        self._done += count
        self.within_batch(0)


def _short(dataset: str) -> str:
    """A data set's name without its folder or owner."""
    return dataset.rsplit("/", 1)[-1]
