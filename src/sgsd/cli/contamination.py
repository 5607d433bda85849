"""``sgsd contamination``: find test problems that the training data contains."""

from __future__ import annotations

import argparse

from rich.console import Console

from sgsd.cli.console import print_json, standard_error
from sgsd.data.overlap import Contamination, Overlap, find_overlaps
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import say
from sgsd.evaluation.presets import find_benchmark


def run(options: argparse.Namespace) -> int:
    """Report the overlap of each test source with all training sources together."""
    console = standard_error()
    train = [problem for source in options.train for problem in load_all(source, console, **_choices(options, "train"))]
    reports: dict[str, Contamination] = {}
    for source in options.test:
        test = load_all(source, console, **_choices(options, "test"))
        reports[source] = find_overlaps(train, test, n=options.n)
    if options.json:
        told = {"train": options.train, "test": {source: report.to_dict() for source, report in reports.items()}}
        print_json(told)
        return 0
    for source, report in reports.items():
        _print(source, report, options.show)
    return 0


def _choices(options: argparse.Namespace, side: str) -> dict[str, str | None]:
    names = {"split": "split", "config": "config_name", "adapter": "adapter", "columns": "columns"}
    return {name: vars(options)[f"{side}_{flag}"] for flag, name in names.items()}


def load_all(source: str, console: Console, **choices: str | None) -> list[Problem]:
    """All usable problems of a source or benchmark, duplicates included. A summary is printed on the console."""
    if (benchmark := find_benchmark(source)) is not None:
        source, known = benchmark.hub, {"split": benchmark.split, "config_name": benchmark.config}
        choices |= {name: choices.get(name) or value for name, value in known.items()}
    problems, report = load_problems(source, on_duplicate="keep", on_conflict="keep", **choices)
    console.print(report.summary())
    return problems


def _print(source: str, report: Contamination, show: int) -> None:
    say(f"{source}: {report.test} test problems against {report.train} training problems")
    for count, what in (
        (report.overlapping, f"share {report.n} words in a row (if shorter, all) with a training problem"),
        (report.mostly, "of these share at least half of their words, in a row"),
        (report.exact, "have the same text as a training problem"),
        (report.other_answer, "of these have another answer there"),
    ):
        say(f"  {count:5d}  {100 * count / report.test:5.1f} %  {what}")
    for pair in report.pairs[:show]:
        say(_told(pair))
    if len(report.pairs) > show:
        say(f"  {len(report.pairs) - show} more pairs: --show, or --json for all")


def _told(pair: Overlap) -> str:
    kind = "same text, other answer" if pair.other_answer else "same text" if pair.exact else "overlap"
    answers = f"; answers {pair.test.answer} and {pair.train.answer}" if pair.other_answer else ""
    return (
        f"  {kind}: test {pair.test.id}, training {pair.train.id}; {pair.length} words, "
        f"{100 * pair.share:.0f} % of the test problem{answers}\n      {pair.shared}"
    )
