"""``sgsd eval --regrade``: judge stored responses again with another verifier, without sampling."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from sgsd import runfolder
from sgsd.cli.console import print_json, standard_output, table
from sgsd.cli.eval_plan import refuse_idle_flags
from sgsd.display import say
from sgsd.errors import ConfigError
from sgsd.evaluation.regrade import DISAGREEMENT, agreement, disagreements, read_responses, regrade, stored_samples
from sgsd.evaluation.run import Evaluation, read_summary, verifier_of
from sgsd.verifiers import Outcome, get_verifier

_FLAGS = ("command", "module", "regrade", "verifier", "output", "force", "json", "show")
_WIDTH = 40
_DISAGREEMENTS = "disagreements.jsonl"


def run(options: argparse.Namespace) -> int:
    """Judge the responses of a file or an evaluation again; print the agreement, and save it with ``--output``."""
    path: Path = options.regrade
    if options.model is not None:
        raise ConfigError("--regrade samples nothing", got=f"the model {options.model}", remedy="leave the model out")
    refuse_idle_flags(options, _FLAGS, "with --regrade, which samples nothing")
    _check_output(options.output, path, force=options.force)
    evaluation = Evaluation.load(path) if (path / runfolder.SUMMARY).is_file() else None
    before = {} if evaluation is None else read_summary(path)
    name = verifier_of(options.verifier, before)
    given = (before.get("verifier_options") or {}) if name == before.get("verifier") else {}
    responses = read_responses(path) if evaluation is None else stored_samples(evaluation.samples)
    with get_verifier(name, **given) as verifier:
        judged = regrade(responses, verifier)
    changed, counts = disagreements(judged), agreement(judged)
    about: dict[str, object] = {"responses_from": str(path), "verifier": name}
    kept = {_DISAGREEMENTS: changed}
    if evaluation is not None:
        before_accuracy = evaluation.accuracy.mean
        evaluation = evaluation.under(list(judged["verdict"]))
        about |= {"accuracy_before": before_accuracy, "accuracy": evaluation.accuracy.mean}
        if options.output is not None:
            kept_entries = {key: value for key, value in before.items() if not key.startswith("maj@")}
            judge = {"verifier": name, "verifier_options": given, "regraded_from": str(path)}
            evaluation.save(options.output, **{**kept_entries, **judge})
    elif options.output is not None:
        kept["verdicts.jsonl"] = judged[list(DISAGREEMENT)]
        runfolder.write_json(options.output / runfolder.SUMMARY, {**about, **counts})
    if options.output is not None:
        (options.output / runfolder.SETTINGS).unlink(missing_ok=True)  # else sgsd eval would take it for its own
        for file, frame in kept.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dict("records"))
            runfolder.write_text(options.output / file, "".join(lines))
    if options.json:
        print_json({**about, **counts, "disagreements": changed.to_dict("records")})
        return 0
    _print(judged, counts, name, path, options)
    if evaluation is not None:
        now, was = evaluation.accuracy, before_accuracy
        mean, low, high, was = (100 * value for value in (now.mean, now.low, now.high, was))
        say(f"avg@{evaluation.k} {mean:.1f} %, 95 % interval {low:.1f} to {high:.1f} %; it was {was:.1f} %")
    return 0


def _check_output(output: Path | None, path: Path, *, force: bool) -> None:
    if output is None:
        return
    runfolder.refuse_unwritable(output, "--output")
    if runfolder.real(path) == runfolder.real(output):
        raise ConfigError("--output is the evaluation itself", got=str(output), remedy="give another folder")
    if output.exists() and any(output.iterdir()) and not force:
        raise ConfigError("--output is not empty", got=str(output), remedy="give another folder, or --force")


def _print(
    judged: pd.DataFrame, counts: dict[str, Any], verifier: str, path: Path, options: argparse.Namespace
) -> None:
    outcomes = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in ("correct", "incorrect", "undecided"))
    say(f"{path}: {len(judged):,} responses under verifier {verifier}: {outcomes}")
    if not counts["with_stored_verdict"]:
        say("no stored verdicts to compare with")
        return
    say(
        f"{counts['agreed']:,} of {counts['with_stored_verdict']:,} ({100 * counts['agreement']:.2f} %) agree with the "
        f"stored verdict; {counts['now_correct']} now correct, {counts['no_longer_correct']} no longer correct"
    )
    console = standard_output()
    if counts["by_format"]:
        heads = ("responses", "agree", "share")
        formats = table("agreement by answer format", "answer format", *heads, right=heads)
        for name, own in counts["by_format"].items():
            share = "" if own["agreement"] is None else f"{100 * own['agreement']:.2f} %"
            formats.add_row(name, f"{own['responses']:,}", f"{own['agreed']:,}", share)
        console.print(formats)
    changed = judged[judged["differs"].astype(bool)]
    if len(changed) and options.show:
        columns = DISAGREEMENT[:6]
        shown = table("disagreements", *columns)
        for row in changed.head(options.show).to_dict("records"):
            if row["two_valued"] and row["stored"] != Outcome.CORRECT:
                row["stored"] = "not correct"
            shown.add_row(*(_cell(row[column]) for column in columns))
        console.print(shown)
    if len(changed) > options.show:
        left = len(changed) - options.show
        say(f"{left:,} more: --show {len(changed)}, or --output FOLDER for all with their responses")
    if options.output is not None:
        say(f"saved to {options.output}: {_DISAGREEMENTS} and more")


def _cell(text: str | None) -> str:
    """The text on one line; the end of a long one, where answers are."""
    flat = " ".join((text or "").split())
    return flat if len(flat) <= _WIDTH else "…" + flat[1 - _WIDTH :]
