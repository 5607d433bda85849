"""``sgsd eval --regrade``: stored responses under another verifier; nothing is sampled."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table

from sgsd import runfolder
from sgsd.cli.console import standard_output
from sgsd.errors import ConfigError
from sgsd.evaluation.regrade import (
    Agreement,
    Regraded,
    Regrading,
    is_evaluation,
    read_responses,
    regrade,
    stored_samples,
)
from sgsd.evaluation.run import Evaluation, read_summary, verifier_of
from sgsd.evaluation.statistics import Estimate
from sgsd.verifiers import get_verifier

_WIDTH = 40
_DISAGREEMENTS = "disagreements.jsonl"


def regrade_stored(options: argparse.Namespace) -> int:
    """Judge all responses of a file or an evaluation again; print agreement and disagreements, keep them if asked."""
    path: Path = options.regrade
    if options.model is not None:
        raise ConfigError("--regrade samples nothing", got=f"the model {options.model}", remedy="leave the model out")
    if options.show < 0:
        raise ConfigError("--show is out of range", got=options.show, expected="0 or more")
    _check_output(options.output, path, force=options.force)
    before = read_summary(path) if is_evaluation(path) else {}
    name = verifier_of(options.verifier, before)
    stored_options = before.get("verifier_options")
    same = name == before.get("verifier") and isinstance(stored_options, dict)
    evaluation = Evaluation.load(path) if is_evaluation(path) else None
    responses = read_responses(path) if evaluation is None else stored_samples(evaluation.samples)
    with get_verifier(name, **(stored_options if same else {})) as verifier:  # pyright: ignore[reportCallIssue]
        result = regrade(responses, verifier)
    about: dict[str, object] = {"responses_from": str(path), "verifier": name}
    if evaluation is not None:
        evaluation = evaluation.under([row.verdict for row in result.rows])
        about |= {"accuracy_before": before.get("accuracy"), "accuracy": evaluation.accuracy.mean}
    if options.output is not None:
        if evaluation is not None:
            evaluation.save(options.output, **{**before, "verifier": name, "regraded_from": str(path)})
        _keep(options.output, result, about, rows=evaluation is None)
    if options.json:
        rows = [row.to_json() for row in result.disagreements]
        print(json.dumps({**about, **result.summary(), "disagreements": rows}, indent=2, ensure_ascii=False))
        return 0
    _print(result, name, path, options)
    if evaluation is not None:
        accuracy: Estimate = evaluation.accuracy
        was = 100 * float(str(before["accuracy"]))
        print(
            f"avg@{evaluation.k} {100 * accuracy.mean:.1f} %, 95 % interval {100 * accuracy.low:.1f} to "
            f"{100 * accuracy.high:.1f} %; it was {was:.1f} %"
        )
    return 0


def _check_output(output: Path | None, path: Path, *, force: bool) -> None:
    if output is None:
        return
    from sgsd.cli.settings import refuse_unwritable  # with TRL, which takes seconds

    refuse_unwritable(output, "--output")
    if path.resolve() == output.resolve():
        raise ConfigError("--output is the evaluation itself", got=str(output), remedy="give another folder")
    if output.exists() and any(output.iterdir()) and not force:
        raise ConfigError("--output is not empty", got=str(output), remedy="give another folder, or --force")


def _keep(folder: Path, result: Regrading, about: dict[str, object], *, rows: bool) -> None:
    """The disagreements, and for a file of responses every verdict and the counts."""
    kept = {_DISAGREEMENTS: result.disagreements}
    if rows:
        kept["verdicts.jsonl"] = result.rows
        runfolder.write_json(folder / runfolder.SUMMARY, {**about, **result.summary()})
    for name, written in kept.items():
        lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in written)
        runfolder.write_text(folder / name, lines)


def _print(result: Regrading, verifier: str, path: Path, options: argparse.Namespace) -> None:
    summary, agreement = result.summary(), result.agreement
    judged = ", ".join(f"{summary[outcome]:,} {outcome}" for outcome in ("correct", "incorrect", "undecided"))
    print(f"{path}: {len(result.rows):,} responses under verifier {verifier}: {judged}")
    if not agreement.compared:
        print("no stored verdicts to compare with")
        return
    print(
        f"{_of(agreement)} agree with the stored verdict; {summary['now_correct']} now correct, "
        f"{summary['no_longer_correct']} no longer correct"
    )
    console = standard_output()
    if result.by_format:
        table = Table(title="agreement by answer format", title_justify="left")
        table.add_column("answer format")
        for column in ("responses", "agree", "share"):
            table.add_column(column, justify="right")
        for name, own in result.by_format.items():
            share = "" if own.share is None else f"{100 * own.share:.2f} %"
            table.add_row(name, f"{own.compared:,}", f"{own.agreed:,}", share)
        console.print(table)
    shown = result.disagreements[: options.show]
    if shown:
        console.print(_disagreement_table(shown))
    left = len(result.disagreements) - len(shown)
    if left:
        print(f"{left:,} more: --show {len(result.disagreements)}, or --output FOLDER for all with their responses")
    if options.output is not None:
        print(f"kept in {options.output}: {_DISAGREEMENTS} and more")


def _disagreement_table(rows: tuple[Regraded, ...]) -> Table:
    table = Table(title="disagreements", title_justify="left")
    for column in ("id", "stored", "new", "reference", "extracted", "reason"):
        table.add_column(column, overflow="fold")
    for row in rows:
        stored = "not correct" if row.stored.two_valued and row.stored.outcome != "correct" else row.stored.outcome
        verdict = row.verdict
        cells = (row.stored.id, stored, verdict.outcome, row.stored.reference, verdict.extracted, verdict.reason)
        table.add_row(*(_cell(None if cell is None else str(cell)) for cell in cells))
    return table


def _of(agreement: Agreement) -> str:
    return f"{agreement.agreed:,} of {agreement.compared:,} ({100 * agreement.agreed / agreement.compared:.2f} %)"


def _cell(text: str | None) -> str:
    """One line, its end where it is long (an answer stands at the end)."""
    flat = " ".join((text or "").split())
    return flat if len(flat) <= _WIDTH else "…" + flat[1 - _WIDTH :]
