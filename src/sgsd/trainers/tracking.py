"""Logs to trackio and wandb beside the metrics: a table of token gaps, the certificate as an artefact.

transformers logs the metrics, TRL the table of completions (``log_completions``). Both trackers have one interface.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainingArguments

from sgsd import runfolder

TRACKERS = ("trackio", "wandb")


def log_gaps(report_to: Sequence[str], step: int, traces: Sequence[Mapping[str, Any]]) -> None:
    """Log traces (lines of ``traces.jsonl``) as the table ``token_gaps``: a row per token, rollout and teacher."""
    for tracker in _trackers(report_to):
        table = tracker.Table(dataframe=pd.DataFrame(_rows(traces)))
        tracker.log({"token_gaps": table, "train/global_step": step})


def end_run(report_to: Sequence[str]) -> None:
    """End the run in wandb, which transformers leaves open."""
    if "wandb" in report_to:
        importlib.import_module("wandb").finish()


def log_certificate(args: TrainingArguments, folder: Path) -> None:
    """Log a folder's certificate, JSON and page, as an artefact of a separate run in the training's project."""
    name = f"certificate-{re.sub(r'[^a-zA-Z0-9_.-]', '-', folder.name)}"
    projects = {
        "wandb": {"project": os.environ.get("WANDB_PROJECT", "huggingface")},  # transformers' default
        "trackio": {
            "project": args.project,
            "space_id": args.trackio_space_id,
            "bucket_id": args.trackio_bucket_id,
            "private": args.hub_private_repo,
        },
    }
    for tracker in _trackers(args.report_to):
        tracker.init(name=name, **projects[tracker.__name__])
        artifact = tracker.Artifact(name, type="certificate")
        for file in (runfolder.CERTIFICATE, runfolder.CERTIFICATE_PAGE):
            artifact.add_file(str(folder / file))
        tracker.log_artifact(artifact)
        tracker.finish()


def _trackers(report_to: Sequence[str]) -> Iterator[Any]:
    return (importlib.import_module(name) for name in TRACKERS if name in report_to)


def _rows(traces: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    of_rollout, of_teacher = ("step", "problem_id", "outcome"), ("skill", "mistake", "support", "stance", "polarity")
    for trace in traces:
        for teacher in trace["teachers"]:
            shared = {name: trace[name] for name in of_rollout} | {name: teacher[name] for name in of_teacher}
            tokens = zip(trace["tokens"], trace["counted"], trace["student_logps"], teacher["gaps"], strict=True)
            for position, values in enumerate(tokens):
                columns = zip(("token", "counted", "student_logp", "gap"), values, strict=True)
                yield {**shared, "position": position, **dict(columns)}
