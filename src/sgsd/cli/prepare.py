"""The parts of a run that are made before weights are loaded, for ``sgsd train``, its dry run and its doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, get_quantization_config

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.cli.flags import DTYPES
from sgsd.cli.settings import RunArguments, hub_or_cache, resumed_so_far
from sgsd.data.curation import DataReport
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.engines.embedders import find_embedder
from sgsd.errors import ConfigError, check_choice
from sgsd.evaluation.presets import find_benchmark
from sgsd.retrieval import Retriever
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint, refuse_damage
from sgsd.trainers.config import VerifiedConfig, resolve_bank
from sgsd.trainers.record import digest_of, settings_as_dict
from sgsd.trainers.rewards import check_reward_arguments
from sgsd.trainers.settings import check_constructible
from sgsd.trainers.tokens import check_batch
from sgsd.verifiers import Verifier, get_verifier


@dataclass(frozen=True)
class Parts:
    """The parts of a run without the weights.

    Attributes:
        bank: ``None`` for a method without skills.
        problems, eval_problems: to train and to evaluate on.
        rehearsed: the prompts of ``rehearsal_dataset``.
        report: how many rows of the training data were kept, and why others were dropped.
        further: the same of the other data sets that dropped any.
        name: of the model.
        options: of ``load_model``.
        settings, data, resumed: entries of the run's record.
    """

    bank: SkillBank | None
    problems: list[Problem]
    eval_problems: list[Problem] | None
    rehearsed: list[Problem] | None
    report: DataReport
    further: tuple[DataReport, ...]
    name: str
    options: dict[str, Any]
    settings: dict[str, Any]
    data: dict[str, Any]
    resumed: dict[str, Any]

    @property
    def reading(self) -> dict[str, Any]:
        """Options of ``load_tokenizer`` and ``load_configs``."""
        return {name: self.options[name] for name in ("trust_remote_code", "revision")}


def prepare(
    run: RunArguments,
    training: VerifiedConfig,
    model: ModelConfig,
    resume_from: str | None = None,
    verifier: Verifier | None = None,
) -> Parts:
    """Read the bank and the data, and check the settings as far as possible without the model.

    Raises:
        SGSDError: a setting, the bank or the data cannot be used.
    """
    bank = resolve_bank(training)
    if not run.dataset:
        raise ConfigError("no training data", expected="dataset: a file, a hub name, or reasoning_gym:TASK")
    verifier = verifier or get_verifier(training.verifier, **(training.verifier_options or {}))
    problems, report = load_problems(
        run.dataset,
        split=run.dataset_split,
        config_name=run.dataset_config,
        adapter=run.dataset_adapter,
        columns=run.dataset_columns,
        limit=run.dataset_limit,
        on_duplicate=run.on_duplicate,
        on_conflict=run.on_conflict,
        readable=verifier.readable,
    )
    eval_problems = rehearsed = None
    further: list[DataReport] = []
    if run.eval_dataset:
        eval_problems, evaluated = load_eval_dataset(run.eval_dataset, run.dataset_columns, verifier)
        further.append(evaluated)
    elif training.eval_strategy != "no":
        raise ConfigError(
            "no data to evaluate on",
            got=f"eval_strategy {training.eval_strategy.value}",
            expected="eval_dataset: a file, a hub name, or reasoning_gym:TASK",
        )
    if (prompts := vars(training).get("rehearsal_dataset")) is not None:
        rehearsed, answered = load_problems(prompts, needs_answer=False)
        further.append(answered)
    if not run.doctor:
        check_batch(len(problems), training)
    settings = settings_as_dict(run, training, model)
    data = {**json.loads(report.to_json()), "digest": digest_of(problems)}
    resumed = resumed_so_far(resume_from, settings, data)
    options = _model_options(training, model)
    _refuse_missing_trackers(training)
    if not model.model_name_or_path:
        raise ConfigError("no model", expected="model_name_or_path: a hub name, a folder, or local:NAME")
    return Parts(
        bank=bank,
        problems=problems,
        eval_problems=None if training.eval_strategy == "no" else eval_problems,  # then only sgsd eval uses it
        rehearsed=rehearsed,
        report=report,
        further=tuple(one for one in further if one.dropped),
        name=model.model_name_or_path,
        options=options,
        settings=settings,
        data=data,
        resumed=resumed,
    )


def load_eval_dataset(name: str, columns: str | None, verifier: Verifier) -> tuple[list[Problem], DataReport]:
    """The problems of the setting ``eval_dataset``: a benchmark by name, or data beside the training data.

    Raises:
        DataError: the data cannot be read.
    """
    if (known := find_benchmark(name)) is not None:
        return load_problems(known.hub, split=known.split, config_name=known.config, readable=verifier.readable)
    return load_problems(name, columns=columns, readable=verifier.readable, held_out=True)


def check_before_loading(
    training: VerifiedConfig, model: ModelConfig, resume_from: str | None, *, retriever: Retriever | None = None
) -> None:
    """Raise an error for a damaged checkpoint, an embedder that is missing, and settings that work with no model.

    Args:
        training, model: the settings.
        resume_from: a checkpoint.
        retriever: used instead of the one that the settings describe.
    """
    if resume_from:
        refuse_damage(Path(resume_from))
    check_reward_arguments(training, None)
    check_constructible(training, adapted=model.use_peft)
    if retriever is None:
        check_embedder(training)


def check_embedder(training: VerifiedConfig) -> None:
    """Raise ``ConfigError`` if the run needs an embedder that is neither here nor on the hub."""
    if training.uses_bank and training.retriever == "embedding":
        with hub_or_cache(training.embedder):
            find_embedder(training.embedder)


def resume_point(run: RunArguments, training: VerifiedConfig) -> str | None:
    """The checkpoint to resume from; ``None`` to start from the beginning."""
    if training.resume_from_checkpoint:
        return training.resume_from_checkpoint
    if not run.resume:
        return None
    output = Path(training.output_dir)
    found = last_complete_checkpoint(output)
    if found is None and output.is_dir() and any(output.glob("checkpoint-*")) and not cut_off_early(output, training):
        raise ConfigError(
            "no complete checkpoint to resume from", got=training.output_dir, remedy="start again in another output_dir"
        )
    return None if found is None else str(found)


def cut_off_early(output: Path, training: VerifiedConfig) -> bool:
    """Whether a run in this folder ended before its first complete checkpoint; ``--resume`` then starts it again."""
    results = [*output.glob("*.safetensors"), *output.glob(runfolder.STATE), *complete_checkpoints(output)]
    return (output / runfolder.RUN).is_file() and not results and not training.save_only_model


_MOST_RANK = 65_536  # no layer is wider


def _model_options(training: VerifiedConfig, model: ModelConfig) -> dict[str, Any]:
    # PEFT checks these only after loading.
    if model.use_peft and not (1 <= model.lora_r <= _MOST_RANK and 0 <= model.lora_dropout < 1):
        raise ConfigError(
            "unusable LoRA settings",
            got=f"lora_r {model.lora_r}, lora_dropout {model.lora_dropout}",
            expected=f"lora_r from 1 to {_MOST_RANK:,}, lora_dropout from 0 to below 1",
        )
    if model.dtype is not None:
        check_choice("dtype", model.dtype, DTYPES)  # argparse checks flags, but no files
    options: dict[str, Any] = {
        "dtype": model.dtype,
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
    }
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    quantization = get_quantization_config(model)
    if quantization is not None:
        options["quantization_config"] = quantization
    return options | dict(training.model_init_kwargs or {})


def _refuse_missing_trackers(training: VerifiedConfig) -> None:
    available = get_available_reporting_integrations()
    missing = [str(name) for name in training.report_to or () if name not in available]  # a YAML null is None
    if missing:
        raise ConfigError(
            "report_to names an integration that is not installed",
            got=", ".join(missing),
            expected=", ".join(["none", *available]),
            remedy=f"pip install {' '.join(missing)}",
        )
