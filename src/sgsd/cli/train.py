"""``sgsd train``: settings, data and model checked; trained; saved."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, get_peft_config, get_quantization_config

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.cli.console import standard_error, standard_output
from sgsd.cli.doctor import diagnose_run, show
from sgsd.cli.parser import spelled
from sgsd.cli.settings import (
    RunArguments,
    digest_of,
    hub_or_cache,
    parse_settings,
    record_run,
    refuse_unwritable,
    refuse_used_folder,
    resumed_so_far,
    settings_as_dict,
)
from sgsd.data.curation import DataReport
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import keep_secret, say
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import CollapseError, ConfigError, in_one_line
from sgsd.retrieval import Retriever
from sgsd.trainers.callbacks import StopOnSignal
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint, refuse_damage, refused_writes
from sgsd.trainers.config import SGSDConfig, VerifiedConfig, resolve_bank
from sgsd.trainers.guard import sound_checkpoint
from sgsd.trainers.reward_check import check_reward_arguments
from sgsd.trainers.settings import check_pieces
from sgsd.trainers.signs import summary_of
from sgsd.trainers.tokens import check_batch
from sgsd.verifiers import Verifier, get_verifier

_LAUNCH_FLAGS = (
    *("--accelerate_config", "--num_processes", "--num_machines", "--machine_rank"),
    *("--main_process_ip", "--main_process_port"),
)


def train(arguments: Sequence[str]) -> int:
    """Train as the arguments say; relaunches itself through accelerate where they ask for it.

    Returns:
        The exit code: 0, or 75 (``EX_TEMPFAIL``) for a run that a signal ended and that can be gone on with.
    """
    launch, rest = _split_launch_flags(list(arguments))
    if launch:
        _relaunch(launch, rest)
    run, training, model = parse_settings(rest)
    if training.hub_token:
        training.hub_token = training.hub_token.strip()
        keep_secret(training.hub_token)
    console = standard_error()
    if run.dry_run:
        from sgsd.cli.dry_run import dry_run

        dry_run(run, training, model, console)
        return 0
    if run.doctor:
        _doctor(run, training, model, console)
        return 0
    stop = StopOnSignal()
    run_training(run, training, model, console, stop=stop)
    return 0 if stop.stopped is None else os.EX_TEMPFAIL


def run_training(
    run: RunArguments,
    training: VerifiedConfig,
    model: ModelConfig,
    console: Console,
    *,
    retriever: Retriever | None = None,
    verifier: Verifier | None = None,
    callbacks: Sequence[Any] = (),
    before: Callable[[Any], None] | None = None,
    stop: StopOnSignal | None = None,
) -> Any:
    """Load everything, train, save; returns the trainer.

    Args:
        run, training, model: the settings.
        console: told what was loaded and saved.
        retriever, verifier: in place of those that the settings describe.
        callbacks: for the trainer.
        before: called with the trainer before the first step.
        stop: for the trainer, too. Where it ended the run, no final model is saved.

    Raises:
        SGSDError: whatever cannot be used; before anything is written.
    """
    from sgsd.trainers.methods import TRAINERS

    output = Path(training.output_dir)
    is_main = training.process_index == 0
    refuse_unwritable(output, "output_dir")
    with runfolder.one_writer(output) if is_main else nullcontext():  # the first process looks
        resume_from = resume_point(run, training)
        own = resume_from is not None and output.resolve() in Path(resume_from).resolve().parents
        # One process looks, before any can have written: another would see what the first has begun.
        if is_main and not own and not (run.resume and _cut_off_early(output, training)):
            refuse_used_folder(output, resuming=run.resume)
        parts = prepare(run, training, model, resume_from, verifier)
        if is_main:
            console.print(parts.report.summary())
        training.model_init_kwargs = None  # TRL would warn that it makes no use of them
        if training.device.type == "cpu":
            training.dataloader_pin_memory = False  # torch would warn
        with in_one_line(), hub_or_cache(parts.name):
            check_before_loading(training, model, resume_from)
            tokenizer = load_tokenizer(parts.name, **parts.reading)
            trainer = TRAINERS[run.method](
                model=load_model(parts.name, trainable_adapter=True, **parts.options),
                args=training,
                train_dataset=parts.problems,
                eval_dataset=parts.eval_problems,
                bank=parts.bank,
                retriever=retriever,
                verifier=verifier,
                processing_class=tokenizer,
                callbacks=[*callbacks, *([] if stop is None else [stop])],
                peft_config=get_peft_config(model),
            )
            if resume_from:  # refuse another run's checkpoint before this run's record replaces its own
                trainer.restore(Path(resume_from))
        if is_main:
            digest = None if parts.bank is None else parts.bank.digest
            with refused_writes(output):
                record_run(output, parts.settings, bank_digest=digest, data=parts.data, **parts.resumed)
                if parts.bank is not None:
                    parts.bank.save(output / runfolder.BANK_START)
        if before is not None:
            before(trainer)
        trainer.train(resume_from_checkpoint=resume_from)
        _refuse_collapse(trainer, output)
        if stop is not None and stop.stopped is not None:
            if is_main:
                say(_farewell(stop.stopped.name, trainer.state, output), error=True)
            return trainer
        with refused_writes(output):
            # The card first: PEFT goes on with what is there.
            trainer.create_model_card(model_name=output.name, dataset_name=run.dataset)
            trainer.save_model(training.output_dir)
            trainer.save_state()
            if is_main and trainer.bank is not None:
                trainer.bank.save(output / runfolder.BANK)
        if is_main:
            for sign in summary_of(trainer.state.log_history, grouped=training.num_generations > 1):
                console.print(sign, soft_wrap=True)
            console.print(f"model and record saved to {output}")
        if training.push_to_hub:
            trainer.push_to_hub(dataset_name=run.dataset)
        return trainer


# ---- before weights are loaded, for a run, a dry run and the doctor


@dataclass(frozen=True)
class Parts:
    """What a run is made of, but weights.

    Attributes:
        bank, problems, eval_problems: to train with, to evaluate on.
        report: what became of every row.
        name: of the model.
        options: of ``load_model``.
        settings, data, resumed: for the run's record.
    """

    bank: SkillBank | None
    problems: list[Problem]
    eval_problems: list[Problem] | None
    report: DataReport
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
    """Bank and data read; settings checked as far as that goes without the model."""
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
        languages=run.languages,
        on_duplicate=run.on_duplicate,
        on_conflict=run.on_conflict,
        readable=verifier.readable,
    )
    eval_problems = None
    if run.eval_dataset:
        eval_problems, _ = load_problems(run.eval_dataset, readable=verifier.readable)
    elif training.eval_strategy != "no":
        raise ConfigError(
            "no data to evaluate on",
            got=f"eval_strategy {training.eval_strategy.value}",
            expected="eval_dataset: a file, a hub name, or reasoning_gym:TASK",
        )
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
        eval_problems=None if training.eval_strategy == "no" else eval_problems,  # else it is for sgsd eval
        report=report,
        name=model.model_name_or_path,
        options=options,
        settings=settings,
        data=data,
        resumed=resumed,
    )


def check_before_loading(training: VerifiedConfig, model: ModelConfig, resume_from: str | None) -> None:
    """Refuse a damaged checkpoint, and settings that no model could train with."""
    if resume_from:
        refuse_damage(Path(resume_from))
    check_reward_arguments(training, None)
    check_pieces(training, adapted=model.use_peft)


def resume_point(run: RunArguments, training: VerifiedConfig) -> str | None:
    """The checkpoint to go on from, if the run is to and there is one."""
    if training.resume_from_checkpoint:
        return training.resume_from_checkpoint
    if not run.resume:
        return None
    output = Path(training.output_dir)
    found = last_complete_checkpoint(output)
    if found is None and output.is_dir() and any(output.glob("checkpoint-*")) and not _cut_off_early(output, training):
        raise ConfigError(
            "no complete checkpoint to resume from", got=training.output_dir, remedy="start anew in another output_dir"
        )
    return None if found is None else str(found)


def _cut_off_early(output: Path, training: VerifiedConfig) -> bool:
    """Whether a run in this folder ended before its first checkpoint was complete: with ``--resume`` it starts anew."""
    results = [*output.glob("*.safetensors"), *output.glob(runfolder.STATE), *complete_checkpoints(output)]
    return (output / runfolder.RUN).is_file() and not results and not training.save_only_model


def _model_options(training: VerifiedConfig, model: ModelConfig) -> dict[str, Any]:
    if model.use_peft and not (model.lora_r >= 1 and 0 <= model.lora_dropout < 1):  # PEFT looks once weights are loaded
        raise ConfigError(
            "no such LoRA adapter",
            got=f"lora_r {model.lora_r}, lora_dropout {model.lora_dropout}",
            expected="lora_r of 1 or more, lora_dropout from 0 to below 1",
        )
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
    missing = [str(name) for name in training.report_to or () if name not in available]  # YAML has null
    if missing:
        raise ConfigError(
            "report_to names what is not installed",
            got=", ".join(missing),
            expected=", ".join(["none", *available]),
            remedy=f"pip install {' '.join(missing)}",
        )


# ---- after training


def _refuse_collapse(trainer: Any, output: Path) -> None:
    """A policy at which the guard stopped is not saved as the run's result."""
    alarm = trainer.guard and trainer.guard.alarm
    if alarm is None or (alarm.finite and trainer.args.guard != "stop"):
        return
    sound = sound_checkpoint(output, alarm.sound_until)
    raise CollapseError(
        f"the guard stopped the run at step {alarm.step}",
        got=alarm.what,
        expected="a policy that does not collapse (docs/training.md)",
        remedy="no checkpoint is older than that" if sound is None else f"the last sound checkpoint is {sound}",
    )


def _farewell(name: str, state: Any, output: Path) -> str:
    """One line of a run that a signal ended: where it is, and how to go on."""
    saved = complete_checkpoints(output).get(state.global_step)
    if saved is None:  # save_only_model
        then = "no checkpoint holds what it takes to go on"
    else:
        then = f"saved in {saved}; go on with the same command and --resume"
    return f"sgsd: {name} ended the run after step {state.global_step} of {state.max_steps}: {then}"


# ---- the doctor, several processes


def _doctor(run: RunArguments, training: VerifiedConfig, model: ModelConfig, console: Console) -> None:
    """``sgsd doctor`` with the settings of a run."""
    if not isinstance(training, SGSDConfig):
        raise ConfigError("the doctor looks at teachers", got=f"method {run.method}", expected="method sgsd")
    with get_verifier(training.verifier, **(training.verifier_options or {})) as verifier, in_one_line():
        parts = prepare(run, training, model, verifier=verifier)
        console.print(parts.report.summary())
        with hub_or_cache(parts.name):
            tokenizer = load_tokenizer(parts.name, **parts.reading)
            policy = load_model(parts.name, device=str(training.device), **parts.options)
        assert parts.bank is not None
        found = diagnose_run(training, policy, tokenizer, parts.problems, parts.bank, verifier, console)
    show(found, standard_output())


def _split_launch_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    launch: list[str] = []
    rest: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        flag, equals, value = spelled(argument).partition("=")
        if flag not in _LAUNCH_FLAGS:
            rest.append(argument)
            continue
        if not equals and not arguments:
            raise ConfigError(f"{flag} needs a value")
        launch += [flag, value if equals else arguments.pop(0)]
    return launch, rest


def _relaunch(launch: list[str], rest: list[str]) -> None:
    """Replace this process by ``accelerate launch``; ``--accelerate_config`` takes a file or a name TRL ships."""
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    try:
        resolved = resolve_accelerate_config_argument(launch)
    except ValueError as error:
        raise ConfigError("unusable --accelerate_config", got=" ".join(str(error).split())) from error
    command = [sys.executable, "-m", "accelerate.commands.launch", *resolved, "-m", "sgsd.cli", "train", *rest]
    os.execv(sys.executable, command)
