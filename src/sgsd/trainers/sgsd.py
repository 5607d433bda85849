"""SGSD: skill-conditioned gated self-distillation (arXiv 2605.28791).

How it deviates from GRPO, whose generation, vLLM, PEFT, logging, cards and resume it keeps:

- after sampling, K skill-conditioned teachers score every rollout without gradient
  (``_generate_and_score_completions``);
- the loss is one student forward and the gated, polarity-signed distillation of the K teachers, or the correction of
  failures by those that are trusted (``_compute_loss``);
- advantages go unused unless ``grpo_weight``.

Retrieval happens inside the step, so a changed ``trainer.bank`` is seen by the next rollouts.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor

from sgsd.bank import Ledger
from sgsd.bank.credit import credit, sure_worth, trust, worth
from sgsd.bank.writing import Writer
from sgsd.objectives import SGSDLoss, guided_logps
from sgsd.prompts import uncounted_token_ids
from sgsd.retrieval import Pair, Retriever
from sgsd.scoring.logprobs import Scores, chunk_count, score_completions
from sgsd.scoring.teachers import TeacherPool, build_pool, control_prompt
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.checkpoint import TeacherWeights, saved_ledger, saved_window
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.ledger import LedgerCallback
from sgsd.trainers.losses import correction, published_loss
from sgsd.trainers.maintenance import Maintenance, MaintenanceCallback, Window, window_records
from sgsd.trainers.record import RecordCallback, RunRecorder
from sgsd.trainers.rewards import VerifierReward, is_truncated, text_of
from sgsd.trainers.writer import policy_writer, served_writer

_STANCE_SIGNS = {-1: "-", 0: "0", 1: "+"}


class SGSDTrainer(VerifiedTrainer):
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

    Arguments and errors: see ``trainers.base.VerifiedTrainer``. ``args`` is an ``SGSDConfig``; ``writer``, a
    ``bank.writing.Writer``, writes new items in the policy's place during online maintenance.
    """

    method = "sgsd"
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

    def __init__(self, *args: Any, writer: Writer | None = None, **kwargs: Any) -> None:
        self._writer = writer
        super().__init__(*args, **kwargs)

    def _set_up(self) -> None:
        self._uncounted = torch.tensor(
            sorted(uncounted_token_ids(self.processing_class)), device=self.accelerator.device
        )
        # By mode, of all ranks' rollouts of the latest batch, for the table: a batch may be trained on again after an
        # evaluation.
        self._stance_cells: dict[str, list[list[str]]] = {}
        self.recorder = RunRecorder(
            Path(self.args.output_dir),
            self.processing_class,
            trace_steps=self.args.trace_steps,
            trace_rollouts=self.args.trace_rollouts,
            writes=self.accelerator.is_main_process,
        )
        self.add_callback(RecordCallback(self.recorder))
        self.add_callback(LedgerCallback(self))
        self._policy = TeacherWeights(self.model, "live")  # where the student is scored like a teacher
        self.maintenance = self._build_maintenance() if self.args.maintenance_frequency else None
        if self.maintenance is not None:
            self.add_callback(MaintenanceCallback(self, self.maintenance))

    @property
    def ledger(self) -> Ledger:
        """What became of each bank item so far."""
        return self.recorder.ledger

    def restore(self, checkpoint: Path) -> None:
        super().restore(checkpoint)
        self.recorder.ledger = saved_ledger(checkpoint)
        if self.maintenance is not None and (window := saved_window(checkpoint)) is not None:
            self.maintenance.window = Window.from_json(window, source=str(checkpoint))

    def hand_over(self) -> None:
        """Go on with GRPO's loss alone; the teachers are still scored, for the ledger."""
        self.args.sgsd_weight, self.args.grpo_weight = 0.0, self.args.grpo_weight or 1.0

    def _build_retriever(self, args: SGSDConfig) -> Retriever:
        return super()._build_retriever(args, temperature=args.retrieval_temperature)

    # ---- online maintenance of the bank

    @property
    def window(self) -> str | None:
        """The rollouts since the last check, as text; ``None`` without maintenance."""
        return None if self.maintenance is None else self.maintenance.window.to_json()

    def renew_bank(self, step: int) -> None:
        """Check whether the bank needs new items after ``step`` optimizer steps; the next rollouts retrieve from it."""
        assert self.maintenance is not None
        self.bank, metrics = self.maintenance.check(step, self.bank, self._credit)
        for name, value in metrics.items():
            self._metrics["train"][f"sgsd/maintenance/{name}"].append(value)

    def _credit(self, id: str) -> float | None:
        """What an item has been worth."""
        record = self.ledger.record(id)
        return credit(record).value if record.positive + record.negative else None

    def _build_maintenance(self) -> Maintenance:
        writer = self._writer or served_writer(self.args)
        own_process = writer is None
        if writer is None:
            policy = self.accelerator.unwrap_model(self.model)
            writer = policy_writer(policy, self.processing_class, self.args, self.accelerator)
        return Maintenance(
            Path(self.args.output_dir),
            writer,
            frequency=self.args.maintenance_frequency,
            threshold=self.args.maintenance_threshold,
            timeout=self.args.maintenance_timeout,
            own_process=own_process,
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            seed=self.args.seed,
        )

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.maintenance is not None and self._mode == "train":
            self.maintenance.observe(
                window_records(
                    inputs,
                    [text_of(completion) for completion in completions],
                    [is_truncated(ids, self.eos_token_ids) for ids in completion_ids_list],
                    [int(outcome) for outcome in self._outcome.tolist()],
                    next((reward.verdicts for reward in self.reward_funcs if isinstance(reward, VerifierReward)), None),
                    step=self.state.global_step + 1,
                    rank=self.accelerator.process_index,
                )
            )
        return rewards

    # ---- teachers

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        problems = [row["problem"] for row in inputs]
        pools = self._teacher_pools(problems)
        mask = output["completion_mask"].bool()
        completions = [ids[kept].tolist() for ids, kept in zip(output["completion_ids"], mask, strict=True)]
        output["score_mask"] = mask & ~torch.isin(output["completion_ids"], self._uncounted)
        teacher_logps, teacher_entropy = self._score_teachers(pools, completions, output)
        B, _, T = teacher_logps.shape
        missing = output["completion_ids"].shape[1] - T
        output["teacher_logps"] = torch.nn.functional.pad(teacher_logps, (0, missing))
        if self.args.support_baseline == "control":
            output["control_logps"] = torch.nn.functional.pad(
                self._score_control(problems, pools, completions, output), (0, missing)
            )
        for name in ("teacher_top_ids", "teacher_top_logps"):
            output[name] = torch.nn.functional.pad(output[name], (0, 0, 0, missing))
        output["teacher_weights"] = torch.tensor([pool.weights for pool in pools], device=teacher_logps.device)
        output["teacher_trust"] = torch.tensor(self._trust(pools), device=teacher_logps.device)
        if self._mode == "train":
            first_row = self.accelerator.process_index * B
            output["items"] = self.recorder.rollouts(pools, self.bank, inputs, first_row=first_row).to(mask.device)
        self._log_means(
            {
                "sgsd/teachers_per_rollout": (output["teacher_weights"] > 0).float().sum(1).mean(),
                "sgsd/pairs_too_long": torch.tensor(float(sum(pool.too_long for pool in pools)), device=mask.device),
                "sgsd/teacher_entropy": teacher_entropy,
            }
        )
        if self.log_completions:
            # The stances become known with the student's forward; each cell is filled in then.
            self._stance_cells[self._mode] = [[] for _ in range(B * self.accelerator.num_processes)]
            self._logs["extra"]["stances"].extend(self._stance_cells[self._mode])
            names = [[f"{pair.skill.id} {pair.mistake.id}" for pair in pool.pairs] for pool in pools]
            self._logs["extra"]["pairs"].extend(gather_object(names))
        return output

    @property
    def _num_teachers(self) -> int:
        """K, the same on all processes."""
        return self.args.num_teachers

    def _trust(self, pools: list[TeacherPool]) -> list[list[float]]:
        """``[B][K]``, by what the ledger knows before this batch; the same on all processes."""
        if self.args.teacher_trust == "equal":
            return [[1.0] * self._num_teachers for _ in pools]
        prior = sure_worth(self.ledger.items.values())

        def of_pair(pair: Pair) -> float:
            records = self.ledger.record(pair.skill.id), self.ledger.record(pair.mistake.id)
            return worth(*records, prior=prior) if self.args.teacher_trust == "worth" else trust(*records)

        padding = [[1.0] * (self._num_teachers - len(pool.pairs)) for pool in pools]
        return [[*map(of_pair, pool.pairs), *missing] for pool, missing in zip(pools, padding, strict=True)]

    def _teacher_pools(self, problems: list[str]) -> list[TeacherPool]:
        """One pool per rollout; the G rollouts of a problem share one."""
        distinct = list(dict.fromkeys(problems))
        retrievals = self.retriever.retrieve(distinct, self.bank, self._num_teachers)
        pools = {
            problem: build_pool(
                problem,
                retrieval,
                self.renderer,
                num_teachers=self._num_teachers,
                max_prompt_length=self.max_prompt_length,
            )
            for problem, retrieval in zip(distinct, retrievals, strict=True)
        }
        return [pools[problem] for problem in problems]

    def _control_prompts(self, problems: list[str], pools: list[TeacherPool]) -> list[list[int]]:
        """One per rollout; the G rollouts of a problem share one, drawn anew at each step."""
        prompts = {
            problem: control_prompt(
                problem,
                pool,
                self.bank,
                self.renderer,
                max_prompt_length=self.max_prompt_length,
                seed=self.args.seed + self.state.global_step,
            )
            for problem, pool in dict(zip(problems, pools, strict=True)).items()
        }
        return [prompts[problem] for problem in problems]

    def _score_teachers(
        self, pools: list[TeacherPool], completions: list[list[int]], output: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """``[B, K, T]`` log-probabilities, and the real teachers' mean entropy over completion tokens.

        ``output`` gets what each teacher finds likeliest, ``[B, K, T, M]``; nothing where the objective asks for none.
        """
        B, K = len(pools), self._num_teachers
        prompts = [prompt for pool in pools for prompt in pool.prompts]
        repeated = [completion for completion in completions for _ in range(K)]
        top_tokens = min(self.args.teacher_top_tokens, self.model.config.get_text_config().vocab_size)
        scores = self._score(
            prompts,
            repeated,
            with_entropy=self.args.log_teacher_entropy,
            top_tokens=0 if self.args.objective == "gated" else top_tokens,
        )
        output["teacher_top_ids"] = scores.top_ids.unflatten(0, (B, K))
        output["teacher_top_logps"] = scores.top_logps.unflatten(0, (B, K))
        return scores.logps.unflatten(0, (B, K)), self._mean_entropy(pools, [scores])

    def _score_control(
        self, problems: list[str], pools: list[TeacherPool], completions: list[list[int]], output: dict[str, Any]
    ) -> Tensor:
        """``[B, T]``, a control teacher's log-probabilities; guides what teachers find likeliest, in ``output``."""
        prompts = self._control_prompts(problems, pools)
        if not self.args.teacher_guidance:
            return self._score(prompts, completions).logps
        likeliest = output["teacher_top_ids"]  # [B, K, T, M]
        control = self._score(prompts, completions, others=likeliest.transpose(1, 2).flatten(2))
        output["teacher_top_logps"] = guided_logps(
            output["teacher_top_logps"],
            control.other_logps.unflatten(-1, (-1, likeliest.shape[-1])).transpose(1, 2),
            guidance=self.args.teacher_guidance,
            clip=self.args.support_clip,
        )
        return control.logps

    def _score(
        self,
        prompts: list[list[int]],
        completions: list[list[int]],
        *,
        weights: TeacherWeights | None = None,
        with_entropy: bool = False,
        top_tokens: int = 0,
        others: Tensor | None = None,
    ) -> Scores:
        """In full, by the teachers' weights or others, in as many forwards as any rank needs."""
        share_prompts = self._share_prompts  # asked before the teachers' weights put the model into evaluation mode
        limit = self.args.max_tokens_per_chunk
        (chunks,) = self._on_all_ranks(chunk_count(prompts, completions, max_tokens_per_chunk=limit, others=others))
        with self._teaching(weights):
            return score_completions(
                self.model,
                prompts,
                completions,
                temperature=self.args.score_temperature,
                max_tokens_per_chunk=limit,
                with_entropy=with_entropy,
                top_tokens=top_tokens,
                others=others,
                share_prompts=share_prompts,
                min_chunks=chunks,
            )

    def _on_all_ranks(self, *counts: int) -> list[int]:
        """The most of each count on any rank."""
        return gather(torch.tensor([counts], device=self.accelerator.device)).amax(0).tolist()

    def _mean_entropy(self, pools: list[TeacherPool], scored: list[Scores]) -> Tensor:
        """Of real teachers, over the tokens scored; ``scored`` are of the next one or more teachers of each pool."""
        entropies: list[Tensor] = []
        first = 0
        for scores in scored:
            K = scores.logps.shape[0] // len(pools)
            weights = [weight for pool in pools for weight in pool.weights[first : first + K]]
            first += K
            if scores.entropy is not None:
                real = torch.tensor(weights, device=scores.logps.device) > 0
                entropies.append(scores.entropy[scores.mask & real.unsqueeze(1)])
        return torch.cat(entropies).mean() if entropies else torch.tensor(torch.nan)

    # ---- loss

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        likeliest = inputs["teacher_top_ids"].transpose(1, 2).flatten(2)  # [B, K, T, M] to [B, T, K · M]
        passes = self._student_logps(model, inputs, self._temperatures, others=likeliest)
        logps, _ = passes[0]
        student_logps = logps[..., 0]
        result = published_loss(self.args, inputs, logps, inputs["teacher_logps"])
        teaching = result.loss
        if self.args.objective == "correction":
            teaching, logged = correction(self.args, inputs, logps)
            self._log_means(logged)
        steps = self.current_gradient_accumulation_steps if self._mode == "train" else 1
        loss = self.args.sgsd_weight * teaching / steps
        grpo_logps, entropy = passes[-1]  # at the temperature of GRPO's loss, where that is part of it
        if self.args.grpo_weight:
            loss = loss + self.args.grpo_weight * self._grpo_loss(model, inputs, grpo_logps[..., 0], entropy)
        else:
            self._log_means({"entropy": entropy[inputs["completion_mask"].bool()].mean()})
        self._log_means({"sampled_logp": student_logps[inputs["completion_mask"].bool()].mean()})
        self._log_means({f"sgsd/{name}": value for name, value in (result.metrics | {"loss": result.loss}).items()})
        self._fill_stances(inputs["row"], result)
        if self._mode == "train":
            self.recorder.observe(self.state.global_step + 1, inputs, result, student_logps)
        return loss

    @property
    def _temperatures(self) -> list[float]:
        """Of the student's log-probabilities: the teachers' own and then, where it counts and differs, GRPO's."""
        own = self.args.score_temperature
        return list(dict.fromkeys([own, self.temperature])) if self.args.grpo_weight else [own]

    # ---- logs

    def log_totals(self, totals: dict[str, float]) -> None:
        """Log values that are no means over steps."""
        self._metrics["train"].update({name: [value] for name, value in totals.items()})

    def _fill_stances(self, rows: Tensor, result: SGSDLoss) -> None:
        """Write each teacher's stance into the completions table: ``+`` supports, ``-`` suppresses, ``0`` neither."""
        if not self.log_completions:
            return
        cells = self._stance_cells[self._mode]
        for row, stances in zip(gather(rows).tolist(), gather(result.stance.contiguous()).tolist(), strict=True):
            cells[row][:] = [_STANCE_SIGNS[int(stance)] for stance in stances]
