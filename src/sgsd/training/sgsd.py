"""SGSD on TRL's GRPO trainer.

How it deviates from GRPO, whose generation, vLLM, PEFT, logging, cards and resume it keeps:

- a rollout's reward decides its outcome (success, failure, undecided); advantages go unused unless ``grpo_weight``;
- after sampling, K skill-conditioned teachers score every rollout without gradient
  (``_generate_and_score_completions``);
- the loss is one student forward and the gated, polarity-signed distillation of the K teachers (``_compute_loss``).

Retrieval happens inside the step, so a changed ``trainer.bank`` is seen by the next rollouts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from sgsd.bank import SkillBank
from sgsd.engines.embedders import build_retriever
from sgsd.engines.models import end_of_completion_ids, load_model, load_tokenizer
from sgsd.errors import CheckpointError, ConfigError
from sgsd.objectives import SGSDLoss, selected_logps, sgsd_loss
from sgsd.problems import Problem
from sgsd.prompts import PromptRenderer, uncounted_token_ids
from sgsd.retrieval import Retriever
from sgsd.scoring import chunk_count, completion_logits, score_completions
from sgsd.teachers import TeacherPool, build_pool
from sgsd.training.callbacks import StateCallback
from sgsd.training.config import SGSDConfig, resolve_bank
from sgsd.training.rewards import VerifierReward, is_truncated, outcome_of
from sgsd.training.rows import training_rows
from sgsd.training.state import TeacherWeights, last_complete_checkpoint, load_state, refuse_partitioned_copies
from sgsd.verifiers import get_verifier

_STANCE_SIGNS = {-1: "-", 0: "0", 1: "+"}


class SGSDTrainer(GRPOTrainer):
    """Skill-conditioned gated self-distillation (arXiv 2605.28791), used like any TRL trainer.

    ```python
    from sgsd import SGSDConfig, SGSDTrainer

    trainer = SGSDTrainer(
        model="Qwen/Qwen3-1.7B",
        args=SGSDConfig(output_dir="runs/sgsd", bank="seed:competition-mathematics"),
        train_dataset=dataset,  # columns such as problem and answer
    )
    trainer.train()
    ```

    Args:
        model: a hub name or folder (also what ``engines.models.load_model`` knows), a model, or a PEFT model.
        args: configuration.
        train_dataset: a ``datasets.Dataset`` in any format that ``sgsd.problems`` knows, or a list of ``Problem``.
        eval_dataset: likewise; ``evaluate()`` logs its plain-prompt success rate as ``eval_reward``.
        bank: overrides ``args.bank``.
        retriever: overrides ``args.retriever``.
        reward_funcs: TRL reward functions in place of ``args.verifier``. Their weighted sum decides the outcome:
            at least ``args.success_threshold`` is a success, NaN or ``None`` undecided.
        processing_class, callbacks, optimizers, quantization_config, peft_config: as in TRL.

    Raises:
        ConfigError, BankError, DataError, PromptError: what cannot be used, in one line.
    """

    _tag_names = ["trl", "sgsd"]  # noqa: RUF012 (TRL's own attribute)
    _name = "SGSD"
    _paper = {  # noqa: RUF012
        "title": "Skill-Conditioned Gated Self-Distillation for LLM Reasoning",
        "id": "2605.28791",
        "citation": textwrap.dedent("""\
            @article{sgsd2026,
                title  = {{Skill-Conditioned Gated Self-Distillation for LLM Reasoning}},
                year   = 2026,
                eprint = {arXiv:2605.28791},
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SGSDConfig,
        train_dataset: Dataset | Sequence[Problem],
        eval_dataset: Dataset | Sequence[Problem] | None = None,
        *,
        bank: SkillBank | str | Path | None = None,
        retriever: Retriever | None = None,
        reward_funcs: Callable[..., list[float | None]] | list[Callable[..., list[float | None]]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        self.bank = resolve_bank(bank if bank is not None else args.bank)
        self._bank_at_start = self.bank
        self.retriever = retriever or build_retriever(
            args.retriever,
            embedder=args.embedder if args.retriever == "embedding" else None,
            temperature=args.retrieval_temperature,
            seed=args.seed,
            query_prompt=args.retrieval_query_prompt,
        )
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
        rows = {"train_dataset": training_rows(train_dataset, self.renderer, max_prompt_length=self.max_prompt_length)}
        if eval_dataset is not None:
            rows["eval_dataset"] = training_rows(eval_dataset, self.renderer, max_prompt_length=self.max_prompt_length)
        fresh_adapter = isinstance(peft_config, LoraConfig) and peft_config.init_lora_weights in (True, "gaussian")
        if reward_funcs is None:
            reward_funcs = [
                VerifierReward(
                    get_verifier(args.verifier, **(args.verifier_options or {})),
                    name=args.verifier,
                    end_ids=end_of_completion_ids(model, processing_class),
                    truncated=args.truncated,
                )
            ]
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
        refuse_partitioned_copies(args.teacher, self.accelerator, fresh_adapter=fresh_adapter)
        self.teacher_weights = TeacherWeights(
            self.model,
            args.teacher,
            fresh_adapter=fresh_adapter,
            ema_decay=args.teacher_ema_decay,
            sync_steps=args.teacher_sync_steps,
        )
        self._uncounted = torch.tensor(sorted(uncounted_token_ids(processing_class)), device=self.accelerator.device)
        self._outcome = torch.empty(0)  # of the local rollouts of the latest batch
        # By mode, of all ranks' rollouts of the latest batch, for the table: a batch may be trained on again after an
        # evaluation.
        self._stance_cells: dict[str, list[list[str]]] = {}
        self._student_pass: tuple[Tensor, Tensor | None] | None = None
        self.add_callback(StateCallback(self))

    # ---- resume

    @property
    def initial_bank(self) -> str:
        """Digest of the bank the run began with; a checkpoint of a run that began with another is refused."""
        return self._bank_at_start.digest

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As TRL's; ``True`` resumes from the last checkpoint in ``output_dir`` that was written to its end.

        Raises:
            CheckpointError: no such checkpoint, or one that is not this run's (see ``training.state.load_state``).
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise CheckpointError("no complete checkpoint to resume from", got=self.args.output_dir)
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            _, self.bank = load_state(
                Path(resume_from_checkpoint),
                bank=self._bank_at_start,
                teacher=self.teacher_weights,
                rank=self.accelerator.process_index,
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def skip_epochs(self, epochs: int) -> None:
        """Bring the order of the problems to where a resumed run left it.

        TRL's sampler draws one permutation an epoch, and would draw the first epoch's once more.
        """
        for _ in range(epochs if self.shuffle_dataset else 0):
            torch.randperm(len(self.train_dataset), generator=self._train_sampler.generator)

    # ---- rollouts, verdicts, teachers: overrides of TRL's private methods, pinned by test_trl_contract.py

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
        output = super()._generate_and_score_completions(inputs)
        pools = self._teacher_pools([row["problem"] for row in inputs])
        mask = output["completion_mask"].bool()
        completions = [ids[kept].tolist() for ids, kept in zip(output["completion_ids"], mask, strict=True)]
        teacher_logps, teacher_entropy = self._score_teachers(pools, completions)
        B, _, T = teacher_logps.shape
        width = output["completion_ids"].shape[1]
        output["teacher_logps"] = torch.nn.functional.pad(teacher_logps, (0, width - T))
        output["teacher_weights"] = torch.tensor([pool.weights for pool in pools], device=teacher_logps.device)
        output["outcome"] = self._outcome
        output["score_mask"] = mask & ~torch.isin(output["completion_ids"], self._uncounted)
        output["row"] = torch.arange(B, device=teacher_logps.device) + self.accelerator.process_index * B

        mode = "train" if self.model.training else "eval"
        self._log_means(
            mode,
            {
                "success_rate": (self._outcome > 0).float().mean(),
                "teachers_per_rollout": (output["teacher_weights"] > 0).float().sum(1).mean(),
                "pairs_too_long": torch.tensor(float(sum(pool.too_long for pool in pools)), device=mask.device),
                "teacher_entropy": teacher_entropy,
            },
        )
        if self.log_completions:
            # The stances become known with the student's forward; each cell is filled in then.
            self._stance_cells[mode] = [[] for _ in range(B * self.accelerator.num_processes)]
            self._logs["extra"]["stances"].extend(self._stance_cells[mode])
            names = [[f"{pair.skill.id} {pair.mistake.id}" for pair in pool.pairs] for pool in pools]
            self._logs["extra"]["pairs"].extend(gather_object(names))
        return output

    def _teacher_pools(self, problems: list[str]) -> list[TeacherPool]:
        """One pool per rollout; the G rollouts of a problem share one."""
        distinct = list(dict.fromkeys(problems))
        retrievals = self.retriever.retrieve(distinct, self.bank, self.args.num_teachers)
        pools = {
            problem: build_pool(
                problem,
                retrieval,
                self.renderer,
                num_teachers=self.args.num_teachers,
                max_prompt_length=self.max_prompt_length,
            )
            for problem, retrieval in zip(distinct, retrievals, strict=True)
        }
        return [pools[problem] for problem in problems]

    def _score_teachers(self, pools: list[TeacherPool], completions: list[list[int]]) -> tuple[Tensor, Tensor]:
        """``[B, K, T]`` log-probabilities, and the real teachers' mean entropy over completion tokens."""
        K = self.args.num_teachers
        prompts = [prompt for pool in pools for prompt in pool.prompts]
        repeated = [completion for completion in completions for _ in range(K)]
        budget = self.args.max_tokens_per_chunk
        share_prompts = self._share_prompts  # asked before the teachers' weights put the model into evaluation mode
        own_chunks = torch.tensor(
            [chunk_count(prompts, repeated, max_tokens_per_chunk=budget)], device=self.accelerator.device
        )
        with (
            self.teacher_weights.in_place(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.autocast(),
        ):
            scores = score_completions(
                self.model,
                prompts,
                repeated,
                temperature=self.args.score_temperature,
                max_tokens_per_chunk=budget,
                with_entropy=self.args.log_teacher_entropy,
                share_prompts=share_prompts,
                min_chunks=int(gather(own_chunks).max()),
            )
        real = torch.tensor([weight > 0 for pool in pools for weight in pool.weights], device=scores.logps.device)
        counted = scores.mask & real.unsqueeze(1)
        entropy = torch.tensor(torch.nan) if scores.entropy is None else scores.entropy[counted].mean()
        return scores.logps.view(len(pools), K, -1), entropy

    # ---- loss

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        prompts = [
            ids[kept].tolist() for ids, kept in zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
        ]
        logits = completion_logits(
            model,
            prompts,
            inputs["completion_ids"],
            inputs["completion_mask"],
            share_prompts=self._share_prompts and not self.args.gradient_checkpointing,
        )
        student_logps, entropy = selected_logps(
            logits, inputs["completion_ids"], temperature=self.args.score_temperature, with_entropy=True
        )
        result = sgsd_loss(
            student_logps,
            inputs["teacher_logps"],
            inputs["score_mask"],
            inputs["outcome"],
            inputs["teacher_weights"],
            tau=self.args.gate_tau,
            clip=self.args.support_clip,
            threshold=self.args.support_threshold,
        )
        mode = "train" if self.model.training else "eval"
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        loss = self.args.sgsd_weight * result.loss / steps
        if self.args.grpo_weight:
            loss = loss + self.args.grpo_weight * self._grpo_loss(model, inputs, logits, student_logps, entropy)
        else:
            counted = inputs["completion_mask"].bool()
            self._metrics[mode]["entropy"].append(gather(entropy[counted].mean()).nanmean().item())
        self._log_means(mode, result.metrics | {"loss": result.loss.detach()})
        self._fill_stances(mode, inputs["row"], result)
        return loss

    def _grpo_loss(
        self, model: Any, inputs: dict[str, Tensor], logits: Tensor, logps: Tensor, entropy: Tensor | None
    ) -> Tensor:
        """TRL's own GRPO loss, already divided by the accumulation steps, on the student's forward made above."""
        if self.temperature != self.args.score_temperature:
            logps, entropy = selected_logps(
                logits, inputs["completion_ids"], temperature=self.temperature, with_entropy=True
            )
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

    # ---- logs

    def _log_means(self, mode: str, values: dict[str, Tensor]) -> None:
        """Append each value's mean over ranks under ``sgsd/``; a NaN (a mean over nothing) counts on no rank."""
        stacked = torch.stack([value.detach().float().to(self.accelerator.device) for value in values.values()])
        means = gather(stacked).view(-1, len(values)).nanmean(0)
        for name, mean in zip(values, means.tolist(), strict=True):
            self._metrics[mode][f"sgsd/{name}"].append(mean)

    @property
    def _share_prompts(self) -> bool:
        """Whether a batch holds several rollouts of one prompt: a matter of configuration, the same on all ranks."""
        return (self.num_generations if self.model.training else self.num_generations_eval) > 1

    def _fill_stances(self, mode: str, rows: Tensor, result: SGSDLoss) -> None:
        """Write each teacher's stance into the completions table: ``+`` supports, ``-`` suppresses, ``0`` neither."""
        if not self.log_completions:
            return
        for row, stances in zip(gather(rows).tolist(), gather(result.stance.contiguous()).tolist(), strict=True):
            self._stance_cells[mode][row][:] = [_STANCE_SIGNS[int(stance)] for stance in stances]


def prompt_budget(model_config: Any, args: SGSDConfig) -> int:
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
