"""What the methods' trainers share, on TRL's GRPO trainer.

All see the same rows, prompts, sampling and verdicts; each module beside this one adds one method's signal:

- a rollout's reward decides its outcome: success, failure, undecided (``_calculate_rewards``);
- the student's forward is TRL's own, with whatever else the method wants to know of its logits (``_student_pass``);
- means are logged over all rollouts of an optimizer step, of all micro-batches and processes (``metrics``);
- checkpoints hold what TRL's do not: bank, teacher weights, ledger, the place in the order of problems (``parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from sgsd.bank import SkillBank
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import end_of_completion_ids, load_model, load_tokenizer, named_by_folder
from sgsd.errors import CheckpointError, ConfigError
from sgsd.problems import Problem
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Retriever
from sgsd.scoring.logprobs import Reduction, StudentPass, causal_model
from sgsd.scoring.weights import TeacherWeights, refuse_partitioned_copies, trains_base
from sgsd.trainers.callbacks import CheckpointCallback, StepCallback
from sgsd.trainers.checkpoint import (
    BankState,
    Part,
    last_complete_checkpoint,
    load_parts,
    refuse_damage,
    refused_writes,
    unmark,
)
from sgsd.trainers.config import DistillationConfig, VerifiedConfig, resolve_bank
from sgsd.trainers.guard import CollapseGuard, GuardCallback, sound_checkpoint
from sgsd.trainers.metrics import StepMetrics
from sgsd.trainers.rewards import VerifierReward, is_truncated, outcome_of
from sgsd.trainers.rows import SkillPairs, problems_of, skill_pairs, training_rows
from sgsd.verifiers import Verifier, get_verifier

RewardFunction = Callable[..., Any]


class VerifiedTrainer(GRPOTrainer):
    """The base of this package's trainers, each used like TRL's ``GRPOTrainer``: the same arguments in the same order.

    Args:
        model: a hub name or folder (also what ``engines.models.load_model`` knows), a model, or a PEFT model.
        reward_funcs: TRL reward functions. Their weighted sum decides the outcome: at least ``args.success_threshold``
            is a success, NaN or ``None`` undecided. Without any, ``args.verifier`` compares with the column ``answer``.
        args: configuration.
        train_dataset: a ``datasets.Dataset``, with a ``prompt`` column as TRL has it or in any format that
            ``sgsd.problems`` knows, or a list of ``Problem``.
        eval_dataset: likewise; ``evaluate()`` logs its plain-prompt success rate as ``eval_reward``.
        processing_class, reward_processing_classes, callbacks, optimizers, quantization_config, peft_config,
            rollout_func: as in TRL. ``tools`` and ``environment_factory`` are refused.
        bank: overrides ``args.bank``.
        retriever: overrides ``args.retriever``.
        verifier: overrides ``args.verifier``; a function is taken for a reward function.

    Raises:
        ConfigError, BankError, DataError, PromptError: what cannot be used, in one line.
    """

    method: str
    """The name that ``sgsd train --method`` takes."""

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunction | list[RewardFunction] | None = None,
        args: VerifiedConfig | None = None,
        train_dataset: Dataset | Sequence[Problem] | None = None,
        eval_dataset: Dataset | Sequence[Problem] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
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
    ) -> None:
        args = self._checked(args, train_dataset, tools=tools, environment_factory=environment_factory)
        if verifier is not None and not hasattr(verifier, "verify_many"):
            reward_funcs, verifier = verifier if reward_funcs is None else reward_funcs, None
        verified = reward_funcs is None
        self._bank = BankState(resolve_bank(args, bank))
        self.retriever = retriever or (None if self.bank is None else self._build_retriever(args))
        if isinstance(model, str):
            options = dict(args.model_init_kwargs or {})
            if quantization_config is not None:
                options["quantization_config"] = quantization_config
            processing_class = processing_class or load_tokenizer(model, trust_remote_code=args.trust_remote_code)
            model = load_model(model, trainable_adapter=True, trust_remote_code=args.trust_remote_code, **options)
        processing_class = processing_class or load_tokenizer(model.name_or_path)
        causal_model(model)
        self.renderer = PromptRenderer(
            processing_class,
            instruction=args.instruction,
            thinking=args.thinking,
            chat_template_kwargs=args.chat_template_kwargs,
        )
        self.max_prompt_length = prompt_budget(model.config, args)
        problems = problems_of(train_dataset, verified=verified)
        # Retrieved once, from the bank the run begins with.
        skills = (
            skill_pairs(problems, self.retriever, self.bank, args.skills_in_prompt_pairs)
            if args.skills_in_prompt
            else None
        )
        rows = {"train_dataset": self._training_rows(args, problems, skills, verified=verified)}
        if eval_dataset is not None:
            rows["eval_dataset"] = training_rows(
                problems_of(eval_dataset, verified=verified),
                self.renderer,
                max_prompt_length=self.max_prompt_length,
                verified=verified,
            )
        ends = end_of_completion_ids(model, processing_class)
        model.generation_config.eos_token_id = ends
        if verified:
            reward_funcs = [
                VerifierReward(
                    verifier or get_verifier(args.verifier, **(args.verifier_options or {})),
                    name=args.verifier,
                    end_ids=ends,
                    truncated=args.truncated,
                )
            ]
        fresh_adapter = isinstance(peft_config, LoraConfig) and peft_config.init_lora_weights in (True, "gaussian")
        adapted = peft_config is not None or isinstance(model, PeftModel)  # without its adapter it is the reference
        with named_by_folder(model) if args.beta and not adapted else nullcontext():
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                rollout_func=rollout_func,
                **rows,
            )
        causal_model(self.model)
        self.chat_template_kwargs = self.renderer.student_kwargs
        self.metrics = StepMetrics()
        self.parts: dict[str, Part] = {"bank": self._bank}
        self._step_callback = StepCallback(self.metrics, self._log_step, self.accelerator)
        self.add_callback(self._step_callback)
        self.teacher_weights: TeacherWeights | None = None
        if isinstance(args, DistillationConfig):
            copied = args.teacher != "live" and not (args.teacher == "frozen" and fresh_adapter)
            refuse_partitioned_copies(args.teacher, self.accelerator, needs_copy=copied or trains_base(self.model))
            self.teacher_weights = self._step_callback.teacher = TeacherWeights(
                self.model,
                args.teacher,
                fresh_adapter=fresh_adapter,
                ema_decay=args.teacher_ema_decay,
                sync_steps=args.teacher_sync_steps,
            )
            if self.teacher_weights.saved:
                self.parts["teacher"] = self.teacher_weights
        self._outcome = torch.empty(0)  # of the local rollouts of the latest batch
        self._set_up()
        self._add_guard(args)
        self.add_callback(
            CheckpointCallback(
                self.parts, self._header, self.accelerator, args.save_total_limit, lambda: self.sound_checkpoint
            )
        )
        self.add_callback(_SkipEpochs(self))

    def _checked(self, args: VerifiedConfig | None, train_dataset: Any, **refused: Any) -> VerifiedConfig:
        for name, value in refused.items():
            if value:
                raise ConfigError(f"{name} is not supported", remedy="leave it out, or train with TRL's GRPOTrainer")
        if args is None:
            raise ConfigError(f"{type(self).__name__} without args", expected="args=, a configuration")
        if train_dataset is None:
            raise ConfigError(f"{type(self).__name__} without train_dataset", expected="a data set")
        return args

    def _set_up(self) -> None:
        """What a method keeps of its own; called once everything else of the trainer is there."""

    def _add_guard(self, args: VerifiedConfig) -> None:
        self.guard: CollapseGuard | None = None
        self.grad_norm = 0.0  # of the latest optimizer step, before clipping
        if args.guard == "off":
            return
        rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.guard = self.parts["guard"] = CollapseGuard(args.guard_window, rollouts * self.accelerator.num_processes)
        self.add_callback(GuardCallback(self, self.guard, args.guard))

    def _build_retriever(self, args: VerifiedConfig, *, temperature: float = 1.0) -> Retriever:
        return build_retriever(
            args.retriever,
            embedder=args.embedder if args.retriever == "embedding" else None,
            temperature=temperature,
            seed=args.seed,
            query_prompt=args.retrieval_query_prompt,
        )

    def _training_rows(
        self,
        args: VerifiedConfig,
        problems: list[Problem],
        skills: list[SkillPairs] | None,
        *,
        verified: bool,
        **more: Any,
    ) -> Dataset:
        """The rows to train on, with ``skills`` in their prompts; those of evaluations are always plain."""
        return training_rows(
            problems,
            self.renderer,
            max_prompt_length=self.max_prompt_length,
            skills=skills,
            long_prompts=args.long_prompts,
            verified=verified,
            **more,
        )

    @property
    def bank(self) -> SkillBank | None:
        """The bank that the next rollouts retrieve from."""
        return self._bank.bank

    @bank.setter
    def bank(self, bank: SkillBank | None) -> None:
        self._bank.bank = bank

    # ---- resume

    @property
    def _header(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that wrote a checkpoint."""
        teacher = None if self.teacher_weights is None else self.teacher_weights.kind
        return {"method": self.method, "bank": self._bank.initial, "teacher": teacher}

    @property
    def sound_checkpoint(self) -> Path | None:
        """The last checkpoint of before the policy got worse, as far as the guard can tell by now."""
        return None if self.guard is None else sound_checkpoint(Path(self.args.output_dir), self.guard.sound_until)

    def restore(self, checkpoint: Path) -> None:
        """Take over the parts of a checkpoint; ``train`` does so itself.

        Raises:
            CheckpointError: one that is cut short, or not this run's (see ``trainers.checkpoint``).
        """
        if self.accelerator.is_main_process:
            refuse_damage(checkpoint)
        load_parts(checkpoint, self.parts, self._header, rank=self.accelerator.process_index)
        if self.guard is not None and self.guard.alarm is not None and self.args.guard == "grpo":
            self.hand_over()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As TRL's; ``True`` resumes from the last checkpoint in ``output_dir`` that was written to its end.

        Raises:
            CheckpointError: no such checkpoint, one that is cut short or not this run's; the disk takes no more.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise CheckpointError("no complete checkpoint to resume from", got=self.args.output_dir)
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            self.restore(Path(resume_from_checkpoint))
        # CheckpointCallback deletes old checkpoints: transformers would before a new one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with refused_writes(Path(self.args.output_dir)):
                return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # A run that goes on from an earlier checkpoint comes to write over later ones.
        if self.accelerator.is_main_process:
            unmark(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _skip_epochs(self, epochs: int) -> None:
        """Bring the order of the problems to where a resumed run left it.

        TRL's sampler draws one permutation an epoch, and would draw the first epoch's once more.
        """
        for _ in range(epochs if self.shuffle_dataset else 0):
            torch.randperm(len(self.train_dataset), generator=self._train_sampler.generator)

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
        cut = {"incorrect": -1, "undecided": 0}[self.args.truncated]
        self._outcome = torch.tensor(
            [
                cut if is_truncated(ids, self.eos_token_ids) else outcome
                for outcome, ids in zip(outcomes, completion_ids_list, strict=True)
            ],
            device=local.device,
        )
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, and each rollout's ``outcome`` and its ``row`` among all ranks' rollouts."""
        output = super()._generate_and_score_completions(inputs)
        B = len(inputs)
        output["outcome"] = self._outcome
        output["row"] = torch.arange(B, device=self._outcome.device) + self.accelerator.process_index * B
        if self._mode == "train":
            self.metrics.mean("success_rate", self._outcome > 0)
        else:
            rates = self.accelerator.gather((self._outcome > 0).float())
            self._metrics["eval"]["success_rate"].append(rates.mean().item())
        return output

    # ---- forwards

    def _student_pass(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        reduction: Callable[[Tensor], Reduction],
        *,
        returned: tuple[int, int] = (0, 1),
        grpo_weight: float = 0.0,
    ) -> tuple[StudentPass, Tensor]:
        """TRL's forward of the rollouts, and the loss of what TRL makes of it.

        Args:
            model, inputs: as for ``_compute_loss``.
            reduction, returned: see ``StudentPass``.
            grpo_weight: of TRL's GRPO loss.

        Returns:
            The pass, with what the reduction kept; TRL's loss, divided by the accumulation steps: its GRPO loss by
            weight, and the routers' auxiliary loss of a mixture of experts.
        """
        student = StudentPass(model, inputs["completion_mask"], reduction, returned=returned)
        steps = self.current_gradient_accumulation_steps
        if grpo_weight:
            loss = grpo_weight * super()._compute_loss(student, inputs)
            if student.aux_loss is not None:  # whatever GRPO's weight is
                loss = loss + (1 - grpo_weight) * self.router_aux_loss_coef * student.aux_loss / steps
            return student, loss
        self._get_per_token_logps_and_entropies(
            student,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        if student.aux_loss is None:
            return student, torch.zeros((), device=self.accelerator.device)
        self.metrics.mean("aux_loss", student.aux_loss)
        return student, self.router_aux_loss_coef * student.aux_loss / steps

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """The model computes with the teachers' weights, without gradient, inside this context."""
        assert self.teacher_weights is not None
        with (
            torch.no_grad(),
            self.teacher_weights.in_place(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            yield

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = float(norm)
        return norm

    # ---- logs

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_step(self, means: dict[str, float]) -> None:
        for name, mean in means.items():
            self._metrics["train"][name].append(mean)


class _SkipEpochs(TrainerCallback):
    """Tells a trainer that goes on how many epochs are behind it."""

    def __init__(self, trainer: VerifiedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._skip_epochs(int(state.epoch))


def prompt_budget(model_config: Any, args: VerifiedConfig) -> int:
    """The most tokens a prompt may have: ``max_prompt_length``, or what the context leaves.

    Raises:
        ConfigError: if the context has no room for prompts.
    """
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context is None:  # positions without a limit (ALiBi, recurrent models)
        return args.max_prompt_length or 2**31
    room = context - args.max_completion_length
    if room < 1 or (args.max_prompt_length or 0) > room:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {args.max_completion_length}, max_prompt_length {args.max_prompt_length}",
            expected=f"at most {context} tokens together",
        )
    return args.max_prompt_length or room
