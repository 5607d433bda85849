"""``sgsd train``."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec

import yaml
from datasets import Dataset
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, get_peft_config, get_quantization_config

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.cli.console import standard_error, standard_output
from sgsd.cli.doctor import diagnose_with_bar, show
from sgsd.cli.flags import spelled
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
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import keep_secret, say
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import (
    check_buildable,
    end_of_completion_ids,
    load_configs,
    load_model,
    load_tokenizer,
)
from sgsd.errors import CollapseError, ConfigError, SGSDError, in_one_line
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Retriever
from sgsd.scoring.teachers import TeacherPool, build_pool
from sgsd.trainers.callbacks import StopOnSignal
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint, refuse_damage, refused_writes
from sgsd.trainers.config import OPSDConfig, SGSDConfig, VerifiedConfig, context_of, resolve_bank
from sgsd.trainers.model import settle_generation_config
from sgsd.trainers.names import method_name
from sgsd.trainers.rewards import VerifierReward, check_reward, check_reward_arguments
from sgsd.trainers.rows import all_text, prompt_of, skill_pairs, training_rows
from sgsd.trainers.settings import check_pieces
from sgsd.trainers.signs import FIRST_PROBLEMS, check_teachers, summary_of
from sgsd.trainers.tokens import check_batch, check_tokens, context_length, prompt_budget, thinking_of
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
        _dry_run(run, training, model, console)
        return 0
    if run.doctor:
        _doctor(run, training, model, console)
        return 0
    stop = StopOnSignal()
    run_training(run, training, model, console, stop=stop)
    return 0 if stop.stopped is None else os.EX_TEMPFAIL


_Rest = ParamSpec("_Rest")


def _alone(
    train: Callable[Concatenate[RunArguments, VerifiedConfig, _Rest], Any],
) -> Callable[Concatenate[RunArguments, VerifiedConfig, _Rest], Any]:
    """A run as the only one in its folder; its first process looks."""

    @functools.wraps(train)
    def locked(run: RunArguments, training: VerifiedConfig, *rest: _Rest.args, **options: _Rest.kwargs) -> Any:
        output = Path(training.output_dir)
        refuse_unwritable(output, "output_dir")
        with runfolder.one_writer(output) if training.process_index == 0 else nullcontext():
            return train(run, training, *rest, **options)

    return locked


@_alone
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
    output = Path(training.output_dir)
    main = training.process_index == 0
    resume_from = _resume_point(run, training)
    # One process looks, before any can have written: another would see what the first has begun.
    own = resume_from is not None and output.resolve() in Path(resume_from).resolve().parents
    if main and not own and not (run.resume and _cut_off_early(output, training)):
        refuse_used_folder(output, resuming=run.resume)
    bank = resolve_bank(training)
    problems, report = _problems(run, training, verifier)
    eval_problems = _eval_problems(run, training)
    if main:
        console.print(report.summary())
    check_batch(len(problems), training)

    from sgsd.trainers.methods import TRAINERS

    settings = settings_as_dict(run, training, model)
    data = {**json.loads(report.to_json()), "digest": digest_of(problems)}
    resumed = resumed_so_far(resume_from, settings, data)
    options = _model_options(training, model)
    _refuse_missing_trackers(training)
    training.model_init_kwargs = None  # TRL would warn that it makes no use of them
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # torch would warn
    with _refusals(output), hub_or_cache(_model_name(model)):
        if resume_from:
            refuse_damage(Path(resume_from))
        check_reward_arguments(training, None)
        check_pieces(training, adapted=model.use_peft)
        read = {"trust_remote_code": options["trust_remote_code"], "revision": options["revision"]}
        tokenizer = load_tokenizer(_model_name(model), **read)
        trainer = TRAINERS[run.method](
            model=load_model(_model_name(model), trainable_adapter=True, **options),
            args=training,
            train_dataset=problems,
            eval_dataset=eval_problems,
            bank=bank,
            retriever=retriever,
            verifier=verifier,
            processing_class=tokenizer,
            callbacks=[*callbacks, *([] if stop is None else [stop])],
            peft_config=get_peft_config(model),
        )
        if resume_from:  # refuse another run's checkpoint before this run's record replaces its own
            trainer.restore(Path(resume_from))
    if main:
        digest = None if bank is None else bank.digest
        with refused_writes(output):
            record_run(output, settings, bank_digest=digest, data=data, **resumed)
            if bank is not None:
                bank.save(output / runfolder.BANK_START)
    if before is not None:
        before(trainer)
    trainer.train(resume_from_checkpoint=resume_from)
    _refuse_collapse(trainer, output)
    if stop is not None and stop.stopped is not None:
        if main:
            say(_farewell(stop.stopped.name, trainer.state, output), error=True)
        return trainer
    with refused_writes(output):
        trainer.create_model_card(model_name=output.name, dataset_name=run.dataset)  # PEFT goes on with what is there
        trainer.save_model(training.output_dir)
        trainer.save_state()
        if main and trainer.bank is not None:
            trainer.bank.save(output / runfolder.BANK)
    if main:
        for sign in summary_of(trainer.state.log_history, grouped=training.num_generations > 1):
            console.print(sign, soft_wrap=True)
        console.print(f"model and record saved to {output}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=run.dataset)
    return trainer


def _refuse_collapse(trainer: Any, output: Path) -> None:
    """A policy at which the guard stopped is not saved as the run's result."""
    alarm = trainer.guard and trainer.guard.alarm
    if alarm is None or (alarm.finite and trainer.args.guard != "stop"):
        return
    sound = last_complete_checkpoint(output, alarm.sound_until)
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


@contextmanager
def _refusals(output: Path) -> Iterator[None]:
    """What TRL and its kin refuse while they are set up is one line too, and leaves no empty folder behind."""
    existed = output.exists()
    try:
        with in_one_line():
            yield
    except SGSDError:
        if not existed and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise


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


def _resume_point(run: RunArguments, training: VerifiedConfig) -> str | None:
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


def _problems(
    run: RunArguments, training: VerifiedConfig, verifier: Verifier | None = None
) -> tuple[list[Problem], Any]:
    if not run.dataset:
        raise ConfigError("no training data", expected="dataset: a file, a hub name, or reasoning_gym:TASK")
    verifier = verifier or get_verifier(training.verifier, **(training.verifier_options or {}))
    return load_problems(
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


def _eval_problems(run: RunArguments, training: VerifiedConfig) -> list[Problem] | None:
    if not run.eval_dataset:
        if training.eval_strategy == "no":
            return None
        raise ConfigError(
            "no data to evaluate on",
            got=f"eval_strategy {training.eval_strategy.value}",
            expected="eval_dataset: a file, a hub name, or reasoning_gym:TASK",
        )
    verifier = get_verifier(training.verifier, **(training.verifier_options or {}))
    problems, _ = load_problems(run.eval_dataset, readable=verifier.readable)
    return None if training.eval_strategy == "no" else problems  # then it is for sgsd eval


def _model_name(model: ModelConfig) -> str:
    if not model.model_name_or_path:
        raise ConfigError("no model", expected="model_name_or_path: a hub name, a folder, or local:NAME")
    return model.model_name_or_path


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


def _dry_run(run: RunArguments, training: VerifiedConfig, model: ModelConfig, console: Console) -> None:
    """Everything that a run builds but the weights, by the functions that build it there; one prompt of each kind."""
    bank = resolve_bank(training)
    problems, report = _problems(run, training)
    eval_problems = _eval_problems(run, training)
    check_batch(len(problems), training)
    options = _model_options(training, model)
    _refuse_missing_trackers(training)
    resume_from = _resume_point(run, training)
    resumed_so_far(resume_from, settings_as_dict(run, training, model), {"digest": digest_of(problems)})
    if resume_from is not None:
        refuse_damage(Path(resume_from))
    check_reward_arguments(training, None)
    check_pieces(training, adapted=model.use_peft)
    name = _model_name(model)
    read = {"trust_remote_code": options["trust_remote_code"], "revision": options["revision"]}
    with in_one_line(), hub_or_cache(name):
        tokenizer = load_tokenizer(name, **read)
        config, generation_config = load_configs(name, **read)
        check_buildable(name, config, get_peft_config(model), **options)
    renderer = PromptRenderer(
        tokenizer,
        instruction=training.instruction,
        thinking=training.thinking,
        chat_template_kwargs=training.chat_template_kwargs,
        text_only=all(map(all_text, (problems, eval_problems or ()))) and not training.policy_writes,
    )
    sampling = settle_generation_config(generation_config)
    budget = prompt_budget(config, training)
    built = _Built(training, renderer, bank, budget)
    rows = built.rows(problems)
    if eval_problems is not None:
        training_rows(eval_problems, renderer, max_prompt_length=budget, long_prompts=training.long_prompts)
    check_batch(len(rows), training)
    ends = end_of_completion_ids(SimpleNamespace(generation_config=generation_config), tokenizer)
    check_tokens(config.get_text_config().vocab_size, tokenizer, ends)
    with get_verifier(training.verifier, **(training.verifier_options or {})) as verifier:
        reward = VerifierReward(verifier, name=training.verifier, end_ids=ends, truncated=training.truncated)
        check_reward([reward], rows[0], tokenizer, ends[0])

    out = standard_output()
    settings = settings_as_dict(run, training, model)
    chosen = {name: value for name, value in settings.items() if value != _default(name, run, training, model)}
    out.print(yaml.safe_dump(chosen, allow_unicode=True) + f"# {len(settings) - len(chosen)} others have the defaults")
    for line in report.lines():
        out.print(line)
    if bank is not None:
        shown = training.num_teachers if isinstance(training, SGSDConfig) else training.skills_in_prompt_pairs
        context = context_of(vars(training), bank)
        most = bank.max_pairs if context == "pairs" else len(bank.items)
        what = "the whole document" if context == "document" else f"{min(shown, most)} {context} a rollout"
        out.print(
            f"bank {training.bank}: {len(bank.skills)} skills, {len(bank.mistakes)} mistakes, digest "
            f"{bank.digest[:12]}; {what}",
        )
    for title, ids in built.prompts(rows[0]).items():
        heading = Text(f"{title}: {len(ids)} tokens, {rows[0]['problem_id']}")
        out.print(Panel(Text(renderer.text(ids)), title=heading))
    lengths = [len(renderer.student_ids(prompt_of(row))) for row in rows]
    thinking = thinking_of(tokenizer, renderer.student_kwargs)
    context = context_length(config)
    out.print(f"prompts: {min(lengths)} to {max(lengths)} tokens; {_room(context, budget)}")
    out.print(
        f"completions: at most {training.max_completion_length} tokens (max_completion_length); by its chat template "
        f"the model {'thinks' if thinking.thinks else 'does not think'}"
    )
    if sampling is not None:
        out.print(sampling)
    warnings = [thinking.warning(training.max_completion_length)]
    if isinstance(training, SGSDConfig):
        warnings.append(check_teachers(built.pools([rows[n] for n in range(min(FIRST_PROBLEMS, len(rows)))]), budget))
    for warning in filter(None, warnings):
        out.print(f"WARNING: {warning}")
    console.print(f"method: {method_name(settings_as_dict(run, training))}")
    console.print("dry run: no weights were loaded, nothing was written")


def _default(name: str, *parts: Any) -> Any:
    """Of a setting, before the others had their say in it."""
    (item,) = {item.name: item for part in parts for item in fields(part) if item.name == name}.values()
    value = item.default_factory() if callable(item.default_factory) else item.default
    return value.value if isinstance(value, Enum) else value


def _doctor(run: RunArguments, training: VerifiedConfig, model: ModelConfig, console: Console) -> None:
    """``sgsd doctor`` with the settings of a run."""
    if not isinstance(training, SGSDConfig):
        raise ConfigError("the doctor looks at teachers", got=f"method {run.method}", expected="method sgsd")
    bank = resolve_bank(training)
    assert bank is not None
    name, options = _model_name(model), _model_options(training, model)
    with get_verifier(training.verifier, **(training.verifier_options or {})) as verifier, in_one_line():
        problems, report = _problems(run, training, verifier)
        console.print(report.summary())
        retriever = build_retriever(
            training.retriever,
            embedder=training.embedder if training.retriever == "embedding" else None,
            temperature=training.retrieval_temperature,
            seed=training.seed,
            item_text=training.retrieval_text,
        )
        read = {"trust_remote_code": options["trust_remote_code"], "revision": options["revision"]}
        with hub_or_cache(name):
            tokenizer = load_tokenizer(name, **read)
            policy = load_model(name, device=str(training.device), **options)
        found = diagnose_with_bar(
            console,
            policy,
            tokenizer,
            problems,
            bank,
            renderer=PromptRenderer(
                tokenizer,
                instruction=training.instruction,
                thinking=training.thinking,
                chat_template_kwargs=training.chat_template_kwargs,
                text_only=all_text(problems),
            ),
            verifier=verifier,
            retriever=retriever,
            max_new_tokens=training.max_completion_length,
            max_prompt_length=prompt_budget(policy.config, training),
            contexts=[training.teacher_context] if training.teacher_context else None,
            temperature=training.temperature,
            top_p=training.top_p,
            top_k=training.top_k,
            seed=training.seed,
            num_teachers=training.num_teachers,
            support_clip=training.support_clip,
            support_threshold=training.support_threshold,
        )
    show(found, standard_output())


def _room(context: int | None, budget: int) -> str:
    if context is None:
        return "the model's configuration names no limit of its context"
    return f"at most {budget} fit beside a completion into the context of {context}"


@dataclass(frozen=True)
class _Built:
    """Rows and prompts of a run whose embedder stays unloaded: pairs are BM25's where they would be the embedder's."""

    training: VerifiedConfig
    renderer: PromptRenderer
    bank: SkillBank | None
    budget: int

    @property
    def _retriever(self) -> Retriever:
        args = self.training
        name = "bm25" if args.retriever == "embedding" else args.retriever
        return build_retriever(name, embedder=None, seed=args.seed, item_text=args.retrieval_text)

    def rows(self, problems: list[Problem]) -> Dataset:
        """What the trainer makes of the problems."""
        args, skills, shown = self.training, None, {}
        if args.skills_in_prompt:
            assert self.bank is not None
            skills = skill_pairs(
                problems, self._retriever, self.bank, args.skills_in_prompt_pairs, context_of(vars(args), self.bank)
            )
        if isinstance(args, OPSDConfig):
            from sgsd.trainers.opsd import references

            shown = {"references": references(problems, args.reference)}
        return training_rows(
            problems,
            self.renderer,
            max_prompt_length=self.budget,
            skills=skills,
            long_prompts=args.long_prompts,
            **shown,
        )

    def pools(self, rows: Sequence[dict[str, Any]]) -> list[TeacherPool]:
        """The teachers of some rows, of method sgsd."""
        assert self.bank is not None
        context = context_of(vars(self.training), self.bank)
        document = str(self.bank.metadata["document"]) if context == "document" else None
        K = 1 if document else vars(self.training)["num_teachers"]
        found = self._retriever.retrieve([row["problem"] for row in rows], self.bank, K, alone=context != "pairs")
        return [
            build_pool(
                prompt_of(row),
                one,
                self.renderer,
                num_teachers=K,
                max_prompt_length=self.budget,
                document=document,
            )
            for row, one in zip(rows, found, strict=True)
        ]

    def prompts(self, row: dict[str, Any]) -> dict[str, list[int]]:
        """A row's prompts, by title."""
        args = self.training
        source = "random" if args.retriever == "random" else "BM25's first"
        title = f"student, with {source} pairs" if args.skills_in_prompt else "student"
        prompts = {title: self.renderer.student_ids(prompt_of(row))}
        if isinstance(args, SGSDConfig):
            (pool,) = self.pools([row])
            title = f"teacher, with {source} pair"
            if pool.too_long:
                title += f" ({pool.too_long} of {pool.too_long + len(pool.pairs)} pairs are too long)"
            if pool.prompts:
                prompts[title] = pool.prompts[0]
        if isinstance(args, OPSDConfig):
            prompts[f"teacher, with the {args.reference}"] = row["teacher_prompt"]
        return prompts


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
