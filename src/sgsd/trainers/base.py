"""What the methods' trainers share, on TRL's GRPO trainer.

All see the same rows, prompts, sampling and verdicts; each module beside this one adds one method's signal:

- a rollout's reward decides its outcome: success, failure, undecided (``_calculate_rewards``);
- ``success_rate`` is logged, whatever the loss makes of the outcomes;
- checkpoints hold what TRL's do not: bank, teacher weights, the place in the order of problems;
- ``_student_logps`` is one forward on the rollouts' own prompts, which ``_grpo_loss`` lends to TRL's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from sgsd.bank import Ledger, SkillBank
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import end_of_completion_ids, load_model, load_tokenizer, named_by_folder
from sgsd.errors import CheckpointError, ConfigError
from sgsd.problems import Problem
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Retriever
from sgsd.scoring.forwards import completion_logits, completion_logps
from sgsd.trainers.callbacks import StateCallback
from sgsd.trainers.checkpoint import (
    TeacherWeights,
    last_complete_checkpoint,
    load_state,
    refuse_damage,
    refuse_partitioned_copies,
    refused_writes,
    saved_guard,
    unmark,
)
from sgsd.trainers.config import DistillationConfig, VerifiedConfig, resolve_bank
from sgsd.trainers.guard import CollapseGuard, GuardCallback, sound_checkpoint
from sgsd.trainers.rewards import VerifierReward, is_truncated, outcome_of
from sgsd.trainers.rows import SkillPairs, problems_of, skill_pairs, training_rows
from sgsd.verifiers import Verifier, get_verifier


class VerifiedTrainer(GRPOTrainer):
    """The base of this package's trainers, each used like any TRL trainer.

    Args:
        model: a hub name or folder (also what ``engines.models.load_model`` knows), a model, or a PEFT model.
        args: configuration.
        train_dataset: a ``datasets.Dataset`` in any format that ``sgsd.problems`` knows, or a list of ``Problem``.
        eval_dataset: likewise; ``evaluate()`` logs its plain-prompt success rate as ``eval_reward``.
        bank: overrides ``args.bank``.
        retriever: overrides ``args.retriever``.
        verifier: overrides ``args.verifier``.
        reward_funcs: TRL reward functions in place of a verifier. Their weighted sum decides the outcome: at least
            ``args.success_threshold`` is a success, NaN or ``None`` undecided.
        processing_class, callbacks, optimizers, quantization_config, peft_config: as in TRL.

    Raises:
        ConfigError, BankError, DataError, PromptError: what cannot be used, in one line.
    """

    method: str
    """The name that ``sgsd train --method`` takes."""

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VerifiedConfig,
        train_dataset: Dataset | Sequence[Problem],
        eval_dataset: Dataset | Sequence[Problem] | None = None,
        *,
        bank: SkillBank | str | Path | None = None,
        retriever: Retriever | None = None,
        verifier: Verifier | None = None,
        reward_funcs: Callable[..., list[float | None]] | list[Callable[..., list[float | None]]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        self.bank = resolve_bank(args, bank)
        self._bank_at_start = self.bank
        self.retriever = retriever or (None if self.bank is None else self._build_retriever(args))
        if isinstance(model, str):
            options = dict(args.model_init_kwargs or {})
            if quantization_config is not None:
                options["quantization_config"] = quantization_config
            processing_class = processing_class or load_tokenizer(model, trust_remote_code=args.trust_remote_code)
            model = load_model(model, trainable_adapter=True, trust_remote_code=args.trust_remote_code, **options)
        processing_class = processing_class or load_tokenizer(model.name_or_path)
        self.renderer = PromptRenderer(
            processing_class,
            instruction=args.instruction,
            thinking=args.thinking,
            chat_template_kwargs=args.chat_template_kwargs,
        )
        self.max_prompt_length = prompt_budget(model.config, args)
        problems = problems_of(train_dataset)
        # Retrieved once, from the bank the run begins with.
        skills = (
            skill_pairs(problems, self.retriever, self.bank, args.skills_in_prompt_pairs)
            if args.skills_in_prompt
            else None
        )
        rows = {"train_dataset": self._training_rows(args, problems, skills)}
        if eval_dataset is not None:
            rows["eval_dataset"] = training_rows(
                problems_of(eval_dataset), self.renderer, max_prompt_length=self.max_prompt_length
            )
        fresh_adapter = isinstance(peft_config, LoraConfig) and peft_config.init_lora_weights in (True, "gaussian")
        if reward_funcs is None:
            reward_funcs = [
                VerifierReward(
                    verifier or get_verifier(args.verifier, **(args.verifier_options or {})),
                    name=args.verifier,
                    end_ids=end_of_completion_ids(model, processing_class),
                    truncated=args.truncated,
                )
            ]
        adapted = peft_config is not None or isinstance(model, PeftModel)  # without its adapter it is the reference
        with named_by_folder(model) if args.beta and not adapted else nullcontext():
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                **rows,
            )
        self.chat_template_kwargs = self.renderer.student_kwargs
        self.teacher_weights: TeacherWeights | None = None
        if isinstance(args, DistillationConfig):
            refuse_partitioned_copies(args.teacher, self.accelerator, fresh_adapter=fresh_adapter)
            self.teacher_weights = TeacherWeights(
                self.model,
                args.teacher,
                fresh_adapter=fresh_adapter,
                ema_decay=args.teacher_ema_decay,
                sync_steps=args.teacher_sync_steps,
            )
        self.save_total_limit = args.save_total_limit
        self._undamaged: Path | None = None  # the checkpoint whose files have been looked at
        self.grad_norm = 0.0  # of the latest optimizer step, before clipping
        self._outcome = torch.empty(0)  # of the local rollouts of the latest batch
        self._student_pass: tuple[Tensor, Tensor | None] | None = None
        self.add_callback(StateCallback(self))
        self.guard: CollapseGuard | None = None
        if args.guard != "off":
            rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
            self.guard = CollapseGuard(args.guard_window, rollouts * self.accelerator.num_processes)
            self.add_callback(GuardCallback(self, self.guard, args.guard))
        self._set_up()

    def _set_up(self) -> None:
        """What a method keeps of its own; called once everything else of the trainer is there."""

    def _build_retriever(self, args: VerifiedConfig, *, temperature: float = 1.0) -> Retriever:
        return build_retriever(
            args.retriever,
            embedder=args.embedder if args.retriever == "embedding" else None,
            temperature=temperature,
            seed=args.seed,
            query_prompt=args.retrieval_query_prompt,
            item_text=args.retrieval_text,
        )

    def _training_rows(self, args: VerifiedConfig, problems: list[Problem], skills: list[SkillPairs] | None) -> Dataset:
        """The rows to train on, with ``skills`` in their prompts; those of evaluations are always plain."""
        return training_rows(problems, self.renderer, max_prompt_length=self.max_prompt_length, skills=skills)

    # ---- resume

    @property
    def initial_bank(self) -> str | None:
        """Digest of the bank the run began with; a checkpoint of a run that began with another is refused."""
        return None if self._bank_at_start is None else self._bank_at_start.digest

    @property
    def ledger(self) -> Ledger | None:
        """What became of each bank item so far, of methods that keep a ledger."""
        return None

    @property
    def window(self) -> str | None:
        """What online maintenance keeps for the next check, as text, of methods that have it and runs that use it."""
        return None

    @property
    def sound_checkpoint(self) -> Path | None:
        """The last checkpoint of before the policy got worse, as far as the guard can tell by now."""
        return None if self.guard is None else sound_checkpoint(Path(self.args.output_dir), self.guard.sound_until)

    def restore(self, checkpoint: Path) -> None:
        """Take over bank and teacher weights of a checkpoint; ``train`` does so itself.

        Raises:
            CheckpointError: one that is damaged, or not this run's (see ``trainers.checkpoint.load_state``).
        """
        if self.accelerator.is_main_process and checkpoint != self._undamaged:  # a large one takes a while to read
            refuse_damage(checkpoint)
            self._undamaged = checkpoint
        _, self.bank = load_state(
            checkpoint,
            method=self.method,
            bank=self._bank_at_start,
            teacher=self.teacher_weights,
            rank=self.accelerator.process_index,
        )
        if self.guard is not None and (seen := saved_guard(checkpoint)) is not None:
            self.guard.restore(seen, source=str(checkpoint))
            if self.guard.alarm is not None and self.args.guard == "grpo":
                self.hand_over()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As TRL's; ``True`` resumes from the last checkpoint in ``output_dir`` that was written to its end.

        Raises:
            CheckpointError: no such checkpoint, one that is damaged or not this run's (see
                ``trainers.checkpoint.load_state``); the disk takes no more.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise CheckpointError("no complete checkpoint to resume from", got=self.args.output_dir)
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            self.restore(Path(resume_from_checkpoint))
        # StateCallback deletes old checkpoints: transformers would before a new one is complete, and by their time.
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with refused_writes(Path(self.args.output_dir)):
                return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.args.save_total_limit = self.save_total_limit

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # A run that goes on from an earlier checkpoint comes to write over later ones.
        if self.accelerator.is_main_process:
            unmark(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def skip_epochs(self, epochs: int) -> None:
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
        self._log_means({"success_rate": (self._outcome > 0).float().mean()})
        return output

    # ---- forwards

    def _student_logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """``[B, T, V]``: the logits that predict each completion token after the rollout's own prompt."""
        return self._completion_logits(
            model, inputs["prompt_ids"], inputs["prompt_mask"], inputs, share_prompts=self._student_shares_prompts
        )

    def _student_logps(
        self, model: Any, inputs: dict[str, Tensor], temperatures: Sequence[float], others: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each temperature log-probabilities, ``[B, T]`` or with others ``[B, T, 1 + M]``, and entropies.

        ``others``, ``[B, T, M]``, are tokens that might have stood in the completion tokens' places.
        """
        return completion_logps(
            model,
            _unpadded(inputs["prompt_ids"], inputs["prompt_mask"]),
            inputs["completion_ids"],
            inputs["completion_mask"],
            others=others,
            temperatures=temperatures,
            with_entropy=True,
            share_prompts=self._student_shares_prompts,
        )

    @property
    def _student_shares_prompts(self) -> bool:
        return self._share_prompts and not self.args.gradient_checkpointing

    def _completion_logits(
        self, model: Any, prompt_ids: Tensor, prompt_mask: Tensor, inputs: dict[str, Tensor], *, share_prompts: bool
    ) -> Tensor:
        return completion_logits(
            model,
            _unpadded(prompt_ids, prompt_mask),
            inputs["completion_ids"],
            inputs["completion_mask"],
            share_prompts=share_prompts,
        )

    @contextmanager
    def _teaching(self, weights: TeacherWeights | None = None) -> Iterator[None]:
        """The model computes with the teachers' weights, or others, without gradient, inside this context."""
        weights = weights or self.teacher_weights
        assert weights is not None
        with (
            torch.no_grad(),
            weights.in_place(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            yield

    def _grpo_loss(self, model: Any, inputs: dict[str, Tensor], logps: Tensor, entropy: Tensor) -> Tensor:
        """TRL's own GRPO loss, already divided by the accumulation steps, on a student's forward made before.

        Args:
            model, inputs: as for ``_compute_loss``.
            logps, entropy: ``[B, T]``, of ``_student_logps`` at the sampling temperature.
        """
        self._student_pass = logps, entropy
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._student_pass = None

    def _get_per_token_logps_and_entropies(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._student_pass is not None:
            return *self._student_pass, None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    @property
    def _share_prompts(self) -> bool:
        """Whether a batch holds several rollouts of one prompt: a matter of configuration, the same on all ranks."""
        return (self.num_generations if self.model.training else self.num_generations_eval) > 1

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = float(norm)
        return norm

    # ---- logs

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_means(self, values: dict[str, Tensor]) -> None:
        """Log each value's mean over ranks; a NaN (a mean over nothing) counts on no rank."""
        stacked = torch.stack([value.detach().float().to(self.accelerator.device) for value in values.values()])
        means = gather(stacked).view(-1, len(values)).nanmean(0)
        for name, mean in zip(values, means.tolist(), strict=True):
            self._metrics[self._mode][name].append(mean)


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]


def prompt_budget(model_config: Any, args: VerifiedConfig) -> int:
    """The most tokens a prompt may have: ``max_prompt_length``, or what the context leaves.

    Raises:
        ConfigError: if the context has no room for prompts.
    """
    context = model_config.get_text_config().max_position_embeddings
    room = context - args.max_completion_length
    if room < 1 or (args.max_prompt_length or 0) > room:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {args.max_completion_length}, max_prompt_length {args.max_prompt_length}",
            expected=f"at most {context} tokens together",
        )
    return args.max_prompt_length or room
