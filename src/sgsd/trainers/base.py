"""The base of the trainers, on TRL's ``GRPOTrainer``.

All methods have the same rows, prompts, sampling and verdicts; each trainer adds its loss. Differences from TRL:

- a rollout's reward decides its outcome: success, failure, undecided (``_calculate_rewards``);
- the student's forward is TRL's, and also returns what the objective needs of the logits (``_student_pass``);
- metrics are means over all rollouts of an optimizer step, of all micro-batches and processes (``metrics``);
- checkpoints also contain bank, teacher weights, ledger and guard (``parts``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.bank.writing import Writer
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import SECRETS, logger, visible, without_secrets
from sgsd.engines.embedders import retriever_of
from sgsd.engines.generation import contiguous_head
from sgsd.engines.models import end_of_completion_ids, load_tokenizer, named_by_folder
from sgsd.errors import CheckpointError, ConfigError, in_one_line
from sgsd.prompts import PromptRenderer, mapped
from sgsd.retrieval import Retriever
from sgsd.scoring.heads import DivergenceFrom, Reduction, causal_model, keep_head_in_float32
from sgsd.scoring.student import StudentPass
from sgsd.scoring.weights import TeacherWeights, refuse_partitioned_copies
from sgsd.trainers import guard, names
from sgsd.trainers.callbacks import CheckpointCallback, ContextCallback, StepCallback, StepMetrics
from sgsd.trainers.checkpoint import (
    BankState,
    Part,
    last_complete_checkpoint,
    load_parts,
    refuse_damage,
    refused_writes,
    unmark,
)
from sgsd.trainers.config import CONFIGS, DistillationConfig, VerifiedConfig, context_of, resolve_bank
from sgsd.trainers.guard import CollapseGuard, GuardCallback
from sgsd.trainers.model import (
    NamedModel,
    check_arguments,
    has_routers,
    is_initial_without_adapter,
    refuse_prompt_learning,
    settle_config,
    settle_generation_config,
    without_model_sampling,
)
from sgsd.trainers.record import record_run, settings_of_script
from sgsd.trainers.rewards import (
    VerifierReward,
    check_reward,
    check_reward_arguments,
    is_awaited,
    is_reward_function,
    is_truncated,
    outcome_of,
    without_added_columns,
)
from sgsd.trainers.rows import all_text, columns_of, problems_of, skill_pairs, training_rows
from sgsd.trainers.settings import check_constructible, refuse_eval_loss
from sgsd.trainers.signs import FirstSteps
from sgsd.trainers.tokens import check_batch, check_tokens, prompt_budget, sampling_budget, thinking_of
from sgsd.verifiers import Verifier, get_verifier
from sgsd.verifiers.thinking import CompletionText

RewardFunction = Callable[..., Any]

_log = logger(__name__)


class VerifiedTrainer(GRPOTrainer):
    """The base of this package's trainers, with the arguments of TRL's ``GRPOTrainer`` in the same order.

    Args:
        model: a hub name, a folder or another name that ``engines.models.load_model`` takes; a model; a PEFT model.
        reward_funcs: TRL reward functions. Their weighted sum decides the outcome: a success if it is at least
            ``args.success_threshold``, undecided if it is NaN or ``None``. Without reward functions, ``args.verifier``
            compares completions with the column ``answer``.
        args: configuration.
        train_dataset: a ``datasets.Dataset`` with TRL's column ``prompt`` or in another format that
            ``sgsd.data.adapters`` reads, or a list of ``Problem``.
        eval_dataset: the same, or a dictionary of them; ``evaluate()`` logs the success rate on plain prompts as
            ``eval_success_rate``.
        processing_class, reward_processing_classes, callbacks, optimizers: as in TRL; of a processor the tokenizer is
            used.
        quantization_config, peft_config, rollout_func: as in TRL.
        tools, environment_factory: not supported; nor are images.
        bank: overrides ``args.bank``.
        retriever: overrides ``args.retriever``.
        verifier: overrides ``args.verifier``; excludes ``reward_funcs``. A function is taken as ``reward_funcs``.
        writer: writes new bank items in place of the policy; only for ``SGSDTrainer`` with online maintenance.

    Raises:
        ConfigError, BankError, DataError, PromptError: an argument, setting, bank or data set cannot be used.
    """

    method: str
    """The value of ``sgsd train --method``."""

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunction | list[RewardFunction] | None = None,
        args: VerifiedConfig | None = None,
        train_dataset: Dataset | Sequence[Problem] | None = None,
        eval_dataset: Dataset | Sequence[Problem] | dict[str, Dataset | Sequence[Problem]] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        bank: SkillBank | str | Path | None = None,
        retriever: Retriever | None = None,
        verifier: Verifier | RewardFunction | None = None,
        writer: Writer | None = None,
    ) -> None:
        for name, value in {"tools": tools, "environment_factory": environment_factory}.items():
            if value:
                raise ConfigError(f"{name} is not supported", remedy="leave it out, or train with TRL's GRPOTrainer")
        given = {"args": args, "model": model, "processing_class": processing_class, "peft_config": peft_config}
        check_arguments(type(self).__name__, CONFIGS[self.method], **given, train_dataset=train_dataset)
        assert args is not None
        assert train_dataset is not None
        if writer is not None and not vars(args).get("maintenance_frequency"):
            raise ConfigError("writer would have no effect", expected="method sgsd with maintenance_frequency above 0")
        self._writer = writer
        if reward_funcs is None and is_reward_function(verifier):
            reward_funcs, verifier = verifier, None
        verified = reward_funcs is None
        check_reward_arguments(args, reward_funcs, verifier)
        adapted = peft_config is not None or isinstance(model, PeftModel)
        check_constructible(args, adapted=adapted, loaded=not isinstance(model, str))

        problems = problems_of(train_dataset, verified=verified)
        self._answers: dict[tuple[str, str], str] = {}
        if vars(args).get("maintenance_frequency"):
            # Rows may have another answer, such as a verifier's whole reference, or one that is no text.
            for problem in problems:
                columns = columns_of(problem, verified)
                self._answers[str(columns["problem_id"]), columns["problem"]] = problem.answer
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        eval_problems = {
            name: problems_of(data, verified=verified) for name, data in evaluated.items() if data is not None
        }
        rehearsed = vars(args).get("rehearsal_dataset")
        self._rehearsed = load_problems(rehearsed, needs_answer=False)[0] if rehearsed is not None else None
        self._bank = BankState(resolve_bank(args, bank))
        self._initial_bank = self.bank
        self._settings = settings_of_script(
            args,
            self.method,
            model,
            problems,
            verifier=verifier,
            reward_funcs=reward_funcs,
            peft_config=peft_config,
        )
        self._recorded = False
        self.retriever = retriever_of(args) if retriever is None and self.bank is not None else retriever

        refuse_prompt_learning(model, peft_config)
        named = NamedModel(model, args, quantization_config) if isinstance(model, str) else None
        if processing_class is None:
            processing_class = named.tokenizer() if named else load_tokenizer(model.name_or_path)
        if isinstance(processing_class, ProcessorMixin):
            processing_class = processing_class.tokenizer
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        described = named or model
        ends = end_of_completion_ids(described, processing_class)

        self.renderer = PromptRenderer(
            processing_class,
            instruction=args.instruction,
            thinking=args.thinking,
            chat_template_kwargs=args.chat_template_kwargs,
            text_only=all(map(all_text, (problems, *eval_problems.values())))
            and not (args.policy_writes and writer is None),
        )
        self.max_prompt_length = prompt_budget(described.config, args)
        rows, eval_rows = self._rows(args, problems, eval_problems, verified=verified)
        if reward_funcs is None:
            reward_funcs = self._verifier_reward(args, verifier, processing_class, ends)
        functions = list(map(without_added_columns, reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]))
        reward_check: dict[str, Any] = {"end_id": ends[0], "count": max(2, args.num_generations)}
        if rollout_func is None:  # with it, reward functions may read further columns that it returns
            check_reward([one for one in functions if not is_awaited(one)], rows[0], processing_class, **reward_check)
        if named is not None:
            model = named.load(processing_class, ends)
        adapted = adapted or isinstance(model, PeftModel)
        refuse_prompt_learning(model, peft_config)
        settle_config(model.config)
        if warning := settle_generation_config(model.generation_config):
            _log.warning("%s", warning)
        check_tokens(model.config.get_text_config().vocab_size, processing_class, ends)
        model.generation_config.eos_token_id = ends
        with in_one_line(), named_by_folder(model) if args.beta and not adapted else nullcontext():
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=args,
                train_dataset=rows,
                eval_dataset=(eval_rows if isinstance(eval_dataset, dict) else eval_rows[""]) if eval_rows else None,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                rollout_func=rollout_func,
            )
        if args.use_vllm:  # which reads the end tokens in the model's folder, and not those of the chat template
            options = self.vllm_generation.generation_kwargs
            self.vllm_generation.generation_kwargs = {"stop_token_ids": ends, **options}
        if self.aux_loss_enabled and not has_routers(self.model):
            if args.router_aux_loss_coef:
                raise ConfigError(
                    "router_aux_loss_coef would have no effect",
                    got=f"{type(causal_model(self.model)).__name__} without experts",
                    expected="a mixture of experts",
                )
            self.aux_loss_enabled = False
        if args.cast_lm_head_to_fp32:
            for each in filter(None, (self.model, self.ref_model)):
                keep_head_in_float32(each)
        if rollout_func is None and (awaited := list(filter(is_awaited, functions))):
            check_reward(awaited, rows[0], processing_class, loop=self.async_loop, **reward_check)
        self.chat_template_kwargs = self.renderer.student_kwargs
        self._generation_config = causal_model(self.model).generation_config
        thinking = thinking_of(processing_class, self.renderer.student_kwargs)
        if warning := thinking.warning(args.max_completion_length):
            _log.warning("%s", warning)
        self._first_steps = FirstSteps(
            args.max_completion_length,
            thinking,
            grouped=args.uses_advantages,
            corrects=vars(args).get("objective") == "correction",
        )
        self._outcome = torch.empty(0)  # of this process's rollouts in the latest batch
        self._truncated = torch.empty(0)  # likewise
        self._numbers = range(0)  # of all processes' rollouts in the latest batch
        self._epochs_behind = 0  # epochs that a resumed run has completed
        self.grad_norm = 0.0  # of the latest optimizer step, before clipping
        self._step_means: dict[str, float] = {}
        self.metrics = StepMetrics()
        self.parts: dict[str, Part] = {"bank": self._bank}
        self.teacher_weights = self._teacher_weights(args, peft_config)
        self.add_callback(ContextCallback(self.model, processing_class, self.accelerator, padded=not args.use_vllm))
        self.add_callback(StepCallback(self.metrics, self._log_means, self.accelerator, self.teacher_weights))
        self._set_up()
        self._add_guard_and_checkpoints(args)

    def _rows(
        self,
        args: VerifiedConfig,
        problems: Sequence[Problem],
        eval_problems: Mapping[str, Sequence[Problem]],
        *,
        verified: bool,
    ) -> tuple[Dataset, dict[str, Dataset]]:
        """TRL's rows of the training problems, and those of each evaluation set, whose prompts are always plain."""
        options: dict[str, Any] = {
            "max_prompt_length": self.max_prompt_length,
            "max_student_length": sampling_budget(args, self.max_prompt_length),
            "long_prompts": args.long_prompts,
            "verified": verified,
        }
        skills = None
        if args.skills_in_prompt:  # retrieved once, from the initial bank
            context = context_of(vars(args), self.bank)
            skills = skill_pairs(problems, self.retriever, self.bank, args.skills_in_prompt_pairs, context)
        references = self._references(args, problems)
        rows = training_rows(problems, self.renderer, skills=skills, references=references, **options)
        eval_rows = {name: training_rows(each, self.renderer, **options) for name, each in eval_problems.items()}
        check_batch(len(rows), args)
        return rows, eval_rows

    def _verifier_reward(
        self, args: VerifiedConfig, verifier: Verifier | None, tokenizer: PreTrainedTokenizerBase, ends: list[int]
    ) -> VerifierReward:
        # The end of a conversation's prompt, which may open a thought; text prompts have no such end.
        ending = self.renderer.student_ids("?")[-32:] if tokenizer.chat_template else []
        return VerifierReward(
            verifier or get_verifier(args.verifier, **(args.verifier_options or {})),
            name=args.verifier if verifier is None else getattr(verifier, "name", type(verifier).__name__),
            end_ids=ends,
            max_length=args.max_completion_length,
            truncated=args.truncated,
            text=CompletionText(tokenizer),
            prompt_end=self.renderer.text(ending),
        )

    def _add_guard_and_checkpoints(self, args: VerifiedConfig) -> None:
        self.guard: CollapseGuard | None = None
        if args.guard != "off":
            # New ones in an optimizer step, on average: with num_iterations, some steps have none.
            rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps / args.num_iterations
            self.guard = self.parts["guard"] = CollapseGuard(guard.WINDOW, rollouts * self.accelerator.num_processes)
            self.add_callback(GuardCallback(self.guard, args.guard, self._vitals, lambda: self.grad_norm))
        kind = None if self.teacher_weights is None else self.teacher_weights.kind
        # A run resumes only from checkpoints with the same header.
        self._header = {"method": self.method, "bank": self._bank.initial, "teacher": kind}
        self.add_callback(
            CheckpointCallback(self.parts, self._header, self.accelerator, args.save_total_limit, self.guard)
        )

    def _references(self, args: VerifiedConfig, problems: Sequence[Problem]) -> list[str] | None:
        """The reference that each problem's teacher is shown, for methods with references."""
        return None

    def _set_up(self) -> None:
        """Create the method's own state; called near the end of ``__init__``."""

    def _teacher_weights(self, args: VerifiedConfig, peft_config: PeftConfig | None) -> TeacherWeights | None:
        if not isinstance(args, DistillationConfig):
            return None
        adapter_off = args.teacher == "frozen" and is_initial_without_adapter(self.model, peft_config)
        needs_copy = args.teacher != "live" and not adapter_off
        refuse_partitioned_copies(args.teacher, self.accelerator, needs_copy=needs_copy)
        weights = TeacherWeights(
            self.model,
            args.teacher,
            adapter_off=adapter_off,
            ema_decay=args.teacher_ema_decay,
            sync_steps=args.teacher_sync_steps,
        )
        if weights.saved:
            self.parts["teacher"] = weights
        return weights

    @property
    def bank(self) -> SkillBank | None:
        """The bank that the next rollouts retrieve from."""
        return self._bank.bank

    @bank.setter
    def bank(self, bank: SkillBank | None) -> None:
        self._bank.bank = bank

    # ---- training, resume, saving

    def record(self, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Write ``run.json`` and the bank at the start to ``output_dir``, for ``sgsd eval`` and ``sgsd report``.

        ``train`` calls it first, unless it was called before, or the run resumes and has the record that it began with.

        Args:
            settings: of the run; ``None``: those of the trainer's arguments.
            more: further entries of ``run.json``.

        Raises:
            CheckpointError: the disk is full.
        """
        self._recorded = True
        if self.accelerator.is_main_process:
            with refused_writes(folder := Path(self.args.output_dir)):
                record_run(folder, settings or self._settings, self._initial_bank, **more)

    def restore(self, checkpoint: Path) -> None:
        """Load the parts of a checkpoint; ``train`` does this when it resumes.

        Raises:
            CheckpointError: the checkpoint is incomplete, or another run's (see ``trainers.checkpoint``).
        """
        if self.accelerator.is_main_process:
            refuse_damage(checkpoint)
        load_parts(checkpoint, self.parts, self._header)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As TRL's; ``True`` resumes from the last complete checkpoint in ``output_dir``.

        Raises:
            CheckpointError: there is no such checkpoint, it is incomplete or another run's, or the disk is full.
            ConfigError: the best evaluation is asked for by a loss that evaluations do not have.
        """
        if isinstance(self.args, DistillationConfig):
            named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            refuse_eval_loss(self.args, callbacks=self.callback_handler.callbacks, eval_sets=named)
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise CheckpointError("no complete checkpoint to resume from", got=self.args.output_dir)
            resume_from_checkpoint = str(found)
        self._epochs_behind = 0
        if resume_from_checkpoint:
            self.restore(Path(resume_from_checkpoint))
            state = runfolder.read_json(Path(resume_from_checkpoint) / runfolder.STATE)
            self._epochs_behind = int(state.get("epoch") or 0)
        if not (self._recorded or (resume_from_checkpoint and (Path(self.args.output_dir) / runfolder.RUN).is_file())):
            self.record()
        # CheckpointCallback deletes old checkpoints. transformers would delete them before the new one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with refused_writes(Path(self.args.output_dir)):
                return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """TRL's sampler, advanced to the epoch of a resumed run, which would otherwise repeat the first permutation."""
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self._epochs_behind if self.shuffle_dataset else 0):
            torch.randperm(len(self.train_dataset), generator=sampler.generator)
        return sampler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; the table of completions, which is printed, has its control characters replaced."""
        kept = self._logs
        if self.log_completions:
            self._logs = mapped(kept, visible)
        super().log(logs, start_time)
        self._logs = kept

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        args = self.args
        self.args = copy.copy(args)  # transformers pickles the arguments beside the weights: without secrets
        kept = without_secrets({name: value for name, value in vars(args).items() if isinstance(value, (str, dict))})
        vars(self.args).update(dict.fromkeys(SECRETS & vars(args).keys()), **kept)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = args

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # A run that resumed from an earlier checkpoint overwrites later ones.
        if self.accelerator.is_main_process:
            unmark(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """As TRL's, with data, verifier, objective and bank; ``dataset_name`` may be a file name."""
        super().create_model_card(model_name, names.hub_name(dataset_name), tags)
        if self.is_world_process_zero():
            facts = names.card_facts(
                {**vars(self.args), "method": self.method, "steps": self.state.global_step},
                dataset=dataset_name,
                problems=len(self.train_dataset),
                verifier=", ".join(self.reward_func_names),
                bank=self.bank,
            )
            names.complete_card(Path(self.args.output_dir), facts)

    # ---- rollouts and verdicts: overrides of TRL's private methods, pinned by test_trl_contract.py

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        local = rewards_per_func[first : first + len(prompts)]
        weighted = (local * self.reward_weights.to(local.device)).nansum(1)
        weighted[local.isnan().all(1)] = torch.nan
        outcomes = [outcome_of(reward, self.args.success_threshold) for reward in weighted.tolist()]
        of_truncated = {"incorrect": -1, "undecided": 0}[self.args.truncated]
        limit = self.max_completion_length
        truncated = [is_truncated(ids, self.eos_token_ids, limit) for ids in completion_ids_list]
        self._truncated = torch.tensor(truncated, device=local.device)
        self._outcome = torch.tensor(
            [of_truncated if cut else outcome for outcome, cut in zip(outcomes, truncated, strict=True)],
            device=local.device,
        )
        if self._mode == "train":
            self.metrics.mean("_truncated", self._truncated)
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with three more entries.

        ``outcome``: ``[B]`` in {−1, 0, 1}. ``row``: ``[B]``, a number of each rollout, unique within the step.
        ``counted``: ``[B, T]``, bool, True on tokens that the model wrote.
        """
        with without_model_sampling(self._generation_config), contiguous_head(self.model):
            output = super()._generate_and_score_completions(inputs)
        B = len(inputs)
        output["outcome"] = self._outcome
        if self._mode == "train":
            self._numbers = self._next_numbers(B)
        output["counted"] = output["completion_mask"].bool()
        if "tool_mask" in output:  # from a rollout_func; False on tokens of its environment
            output["counted"] &= output["tool_mask"].bool()
        first = self._numbers.start + self.accelerator.process_index * B
        output["row"] = torch.arange(first, first + B, device=self._outcome.device)
        if self._mode == "train":
            self.metrics.mean("success_rate", self._outcome > 0)
            self._check_first_steps()
        else:
            successes = self.accelerator.gather((self._outcome > 0).float())
            # One value for each rollout: TRL logs the mean of the list.
            self._metrics["eval"]["success_rate"] += self._without_repeats(successes).tolist()
        return output

    def _without_repeats(self, gathered: Tensor) -> Tensor:
        """Values of an evaluation batch, without those of rollouts that fill up the last one for all processes.

        accelerate's ``gather_for_metrics`` would count rows of the data set, and not the rollouts of each.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader:
            return gathered
        loader = state.active_dataloader
        rollouts = len(loader.dataset) * self.num_generations_eval
        return gathered[: (rollouts - 1) % loader.total_batch_size + 1]

    def _next_numbers(self, rollouts: int) -> range:
        """Numbers of all processes' rollouts in the next batch, of ``rollouts`` per process.

        Numbers start at 0 again only after as many batches as one optimizer step can draw on.
        """
        args, of_all = self.args, rollouts * self.accelerator.num_processes
        batches = 1 + -(-args.gradient_accumulation_steps // args.steps_per_generation)
        first = self._numbers.stop if self._numbers.stop < batches * of_all else 0
        return range(first, first + of_all)

    def _check_first_steps(self) -> None:
        if self._first_steps.done:
            return
        truncated = gather(self._truncated).float().mean().item()
        zero_std = self._metrics["train"]["frac_reward_zero_std"][-1]
        for warning in self._first_steps.observe(truncated, gather(self._outcome).tolist(), zero_std):
            if self.accelerator.is_main_process:
                _log.warning("%s", warning)

    # ---- forwards

    def _student_pass(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        reduction: Callable[[Tensor], Reduction],
        *,
        scored: Tensor | None = None,
        returned: tuple[int, int] = (0, 1),
        grpo_weight: float = 0.0,
    ) -> tuple[StudentPass, Tensor]:
        """TRL's forward of the rollouts, and TRL's losses on it.

        Args:
            model, inputs: as for ``_compute_loss``.
            scored: ``[B, T]``, the tokens to score, all or none of a rollout's; ``None``: all.
            reduction, returned: see ``StudentPass``.
            grpo_weight: weight of TRL's GRPO loss.

        Returns:
            The pass, with the reduction's tensors; and TRL's loss divided by the accumulation steps: the weighted GRPO
            loss plus the router auxiliary loss of a mixture of experts.
        """
        mask = inputs["completion_mask"] if scored is None else scored
        student = StudentPass(model, mask, reduction, returned=returned)
        steps = self.current_gradient_accumulation_steps
        if grpo_weight:
            loss = grpo_weight * super()._compute_loss(student, inputs)
            if student.aux_loss is not None:  # the auxiliary loss keeps weight 1
                loss = loss + (1 - grpo_weight) * self.router_aux_loss_coef * student.aux_loss / steps
            return student, loss
        self._forward(student, inputs, compute_aux_loss=self.aux_loss_enabled)
        if student.aux_loss is None:
            return student, torch.zeros((), device=self.accelerator.device)
        self.metrics.mean("aux_loss", student.aux_loss)
        return student, self.router_aux_loss_coef * student.aux_loss / steps

    def _forward(self, student: StudentPass, inputs: dict[str, Tensor], *, compute_aux_loss: bool = False) -> None:
        """TRL's forward of ``prompt_ids`` and ``completion_ids`` with their masks; ``student`` acts as the model."""
        self._get_per_token_logps_and_entropies(
            student,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=compute_aux_loss,
        )

    def _divergence_from(self, hidden: Tensor, **options: Any) -> DivergenceFrom:
        """The reduction for the student's divergence from a teacher with hidden states ``[n, H]``."""
        head = causal_model(self.model).get_output_embeddings()
        # The head needs the teacher's weights only if it is trained; otherwise both sides share it.
        teaching = self._teaching if any(part.requires_grad for part in head.parameters()) else nullcontext
        return DivergenceFrom(self.model, hidden, teaching, **options)

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Context in which the model has the teachers' weights, without gradient."""
        assert self.teacher_weights is not None
        with (
            torch.no_grad(),
            self.teacher_weights.in_place(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            yield

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = 0.0 if norm is None else float(norm)  # DeepSpeed may have none
        return norm

    # ---- logs

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_means(self, means: dict[str, float]) -> None:
        self._step_means = means
        self._log_step(means)

    def _vitals(self) -> dict[str, float]:
        """The guard's vitals of the last optimizer step."""
        entropy = self._metrics["train"].get("entropy") or [torch.nan]
        means = self._step_means
        success, truncated = means.get("success_rate", torch.nan), means.get("_truncated", torch.nan)
        return {"success": success, "truncated": truncated, "entropy": entropy[-1]}

    def _log_step(self, means: dict[str, float]) -> None:
        for name, mean in means.items():
            if not name.startswith("_"):  # only the guard reads these
                self._metrics["train"][name].append(mean)
