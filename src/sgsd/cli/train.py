"""``sgsd train``: check settings, data and model; train; save."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from trl import ModelConfig, get_peft_config

from sgsd import runfolder
from sgsd.cli.console import standard_error, standard_output
from sgsd.cli.doctor import diagnose_run, show
from sgsd.cli.dry_run import check_without_weights, dry_run
from sgsd.cli.flags import with_underscores
from sgsd.cli.prepare import check_before_loading, check_embedder, cut_off_early, prepare, resume_point
from sgsd.cli.settings import (
    RunArguments,
    hub_or_cache,
    parse_settings,
    refuse_used_folder,
)
from sgsd.display import keep_secret, say
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import CollapseError, ConfigError, in_one_line
from sgsd.retrieval import Retriever
from sgsd.trainers.callbacks import StopOnSignal
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint, refused_writes
from sgsd.trainers.config import SGSDConfig, VerifiedConfig
from sgsd.trainers.signs import summary_of
from sgsd.verifiers import Verifier, get_verifier

_LAUNCH_FLAGS = (
    *("--accelerate_config", "--num_processes", "--num_machines", "--machine_rank"),
    *("--main_process_ip", "--main_process_port"),
)


def train(arguments: Sequence[str]) -> int:
    """Train with these arguments. Flags of ``accelerate launch`` restart the process under accelerate.

    Returns:
        The exit code: 0, or 75 (``EX_TEMPFAIL``) if a signal stopped the run, which can then be resumed.
    """
    launch, rest = _split_launch_flags(list(arguments))
    if launch:
        _relaunch(launch, rest)
    run, training, model = settings_of(rest)
    console = standard_error()
    if run.dry_run:
        dry_run(run, training, model, console)
        return 0
    if run.doctor:
        _doctor(run, training, model, console)
        return 0
    stop = StopOnSignal()
    run_training(run, training, model, console, stop=stop)
    return 0 if stop.stopped is None else os.EX_TEMPFAIL


def settings_of(arguments: Sequence[str]) -> tuple[RunArguments, VerifiedConfig, ModelConfig]:
    """``parse_settings``, with the hub's token stripped, and masked in all that is shown from now on."""
    run, training, model = parse_settings(arguments)
    if training.hub_token:
        training.hub_token = training.hub_token.strip()
        keep_secret(training.hub_token)
    return run, training, model


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
        console: where to print what was loaded and saved.
        retriever, verifier: used instead of those that the settings describe.
        callbacks: further callbacks of the trainer.
        before: called with the trainer before the first step.
        stop: a callback that stops at a signal. No final model is saved if it stopped the run.

    Raises:
        CollapseError: the guard stopped the run.
        SGSDError: a setting, the data or the model cannot be used. Nothing was written then.
    """
    from sgsd.trainers.methods import TRAINERS

    output = Path(training.output_dir)
    is_main = training.process_index == 0
    runfolder.refuse_unwritable(output, "output_dir")
    with runfolder.one_writer(output) if is_main else nullcontext():
        resume_from = resume_point(run, training)
        own = resume_from is not None and runfolder.real(output) in runfolder.real(resume_from).parents
        # Only the main process checks the folder: others could see files that the main process has just written.
        if is_main and not own and not (run.resume and cut_off_early(output, training)):
            refuse_used_folder(output, resuming=run.resume)
        parts = prepare(run, training, model, resume_from, verifier)
        if is_main:
            for report in (parts.report, *parts.further):
                console.print(report.summary())
        training.model_init_kwargs = None  # TRL would warn that it ignores them
        if training.device.type == "cpu":
            training.dataloader_pin_memory = False  # torch would warn
        with in_one_line(), hub_or_cache(parts.name):
            check_before_loading(training, model, resume_from, retriever=retriever)
            verifier = verifier or get_verifier(training.verifier, **(training.verifier_options or {}))
            tokenizer = check_without_weights(parts, training, verifier, with_skills=False).tokenizer
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
            if resume_from:  # before run.json is replaced: a checkpoint of another run raises an error
                trainer.restore(Path(resume_from))
        trainer.record(parts.settings, data=parts.data, **parts.resumed)
        if before is not None:
            before(trainer)
        trainer.train(resume_from_checkpoint=resume_from)
        _refuse_collapse(trainer, output)
        if stop is not None and stop.stopped is not None:
            if is_main:
                say(_how_to_resume(stop.stopped.name, trainer.state, output), error=True)
            return trainer
        with refused_writes(output):
            # First the card: PEFT adds to a card that exists.
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


# ---- after training


def _refuse_collapse(trainer: Any, output: Path) -> None:
    """Raise ``CollapseError`` if the guard stopped the run, so that its policy is not saved as the result."""
    alarm = trainer.guard and trainer.guard.alarm
    if alarm is None or (alarm.finite and trainer.args.guard != "stop"):
        return
    sound = last_complete_checkpoint(output, alarm.sound_until)
    raise CollapseError(
        f"the guard stopped the run at step {alarm.step}",
        got=alarm.what,
        expected="a policy that does not collapse (docs/metrics.md)",
        remedy="no checkpoint is older than that" if sound is None else f"the last sound checkpoint is {sound}",
    )


def _how_to_resume(signal: str, state: Any, output: Path) -> str:
    """A line about a run that a signal stopped: its last step, its checkpoint, and how to resume."""
    saved = complete_checkpoints(output).get(state.global_step)
    if saved is None:  # save_only_model
        then = "no checkpoint has what resuming needs"
    else:
        then = f"saved in {saved}; resume with the same command and --resume"
    return f"sgsd: {signal} ended the run after step {state.global_step} of {state.max_steps}: {then}"


# ---- the doctor, several processes


def _doctor(run: RunArguments, training: VerifiedConfig, model: ModelConfig, console: Console) -> None:
    """``sgsd doctor`` with the settings of a run."""
    if not isinstance(training, SGSDConfig):
        raise ConfigError("the doctor needs teachers", got=f"method {run.method}", expected="method sgsd")
    with get_verifier(training.verifier, **(training.verifier_options or {})) as verifier, in_one_line():
        parts = prepare(run, training, model, verifier=verifier)
        for report in (parts.report, *parts.further):
            console.print(report.summary())
        check_embedder(training)
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
        flag, equals, value = with_underscores(argument).partition("=")
        if flag not in _LAUNCH_FLAGS:
            rest.append(argument)
            continue
        if not equals and not arguments:
            raise ConfigError(f"{flag} needs a value")
        launch += [flag, value if equals else arguments.pop(0)]
    return launch, rest


def _relaunch(launch: list[str], rest: list[str]) -> None:
    """Replace this process by ``accelerate launch``. ``--accelerate_config`` is a file or the name of one in TRL."""
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    try:
        resolved = resolve_accelerate_config_argument(launch)
    except ValueError as error:
        raise ConfigError("unusable --accelerate_config", got=" ".join(str(error).split())) from error
    command = [sys.executable, "-m", "accelerate.commands.launch", *resolved, "-m", "sgsd.cli", "train", *rest]
    os.execv(sys.executable, command)
