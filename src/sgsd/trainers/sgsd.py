"""SGSD: skill-conditioned gated self-distillation (arXiv 2605.28791).

One step, top to bottom:

1. sample and verify: TRL samples rollouts, a verifier decides their outcomes (``base.VerifiedTrainer``);
2. retrieve: the skill–mistake pairs of each problem (``retrieve``), from the current ``trainer.bank``;
3. score K teachers: the model itself, with a pair in its prompt, scores the rollout (``score_teachers``);
4. loss: the objective compares the student with its teachers (``_compute_loss``);
5. ledger: each item is credited with its teachers' stances (``_credit``).
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from trl.models import unwrap_model_for_generation

from sgsd.bank import Ledger, SkillBank
from sgsd.bank.documents import without_items
from sgsd.controls import uncounted_token_ids
from sgsd.display import logger
from sgsd.objectives import (
    OBJECTIVES,
    OwnStances,
    Rollouts,
    StudentScores,
    TeacherScores,
    stance_metrics,
    stances,
    supports,
)
from sgsd.objectives.base import Metrics
from sgsd.retrieval import Retrieval
from sgsd.scoring.heads import Select
from sgsd.scoring.logprobs import Scores, chunk_count, flat_targets, score_completions
from sgsd.scoring.student import StudentPass
from sgsd.scoring.teachers import (
    TeacherPool,
    build_pool,
    control_prompt,
    control_scores,
    from_batch,
    teacher_scores,
    teachers_to_run,
    to_batch,
)
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.config import SGSDConfig, context_of
from sgsd.trainers.ledger import TrainingLedger
from sgsd.trainers.maintenance import Maintenance, maintenance_of
from sgsd.trainers.names import card_name
from sgsd.trainers.record import RunRecorder
from sgsd.trainers.rehearsal import Rehearsal, rehearsal_prompts, texts_of_step
from sgsd.trainers.rewards import VerifierReward
from sgsd.trainers.rows import prompt_of
from sgsd.trainers.signs import FIRST_PROBLEMS, check_teachers
from sgsd.verifiers.reward import text_of

_log = logger(__name__)


class SGSDTrainer(VerifiedTrainer):
    """Skill-conditioned gated self-distillation (arXiv 2605.28791), used like TRL's ``GRPOTrainer``.

    ```python
    from sgsd import SGSDConfig, SGSDTrainer

    trainer = SGSDTrainer(
        model="Qwen/Qwen3-1.7B",
        args=SGSDConfig(output_dir="runs/sgsd", bank="seed:competition-mathematics"),
        train_dataset=dataset,  # columns such as problem and answer
    )
    trainer.train()
    ```

    Arguments and errors: see ``trainers.base.VerifiedTrainer``. ``args`` is an ``SGSDConfig``.
    """

    method = "sgsd"
    _tag_names = ["trl", "sgsd"]  # noqa: RUF012 (TRL's own attribute)
    _name = "SGSD"
    _paper = {  # noqa: RUF012
        "title": "Skill-Conditioned Gated Self-Distillation for LLM Reasoning",
        "id": "2605.28791",
        "citation": textwrap.dedent("""\
            @article{huang2026skill,
                title   = {{Skill-Conditioned Gated Self-Distillation for LLM Reasoning}},
                author  = {Huang, Jiazhen and Chen, Xiao and Luo, Xiao and Dai, Yong and Hu, Senkang and Zhao, Yuzhi},
                journal = {arXiv preprint arXiv:2605.28791},
                year    = 2026,
            }"""),
    }

    def _set_up(self) -> None:
        args: SGSDConfig = self.args
        main = self.accelerator.is_main_process
        self._name = card_name(vars(args))
        self.objective = OBJECTIVES[args.objective].from_config(args)
        assert self.bank is not None
        self._context = context_of(vars(args), self.bank)
        self._K = 1 if self._context == "document" else args.num_teachers
        self._rules: tuple[str, SkillBank] | None = None  # a bank's digest, and its rules in the document's text
        self._control = self.objective.needs.control or args.support_baseline == "control"
        uncounted = sorted(uncounted_token_ids(self.processing_class))
        self._uncounted = torch.tensor(uncounted, device=self.accelerator.device)
        ledger = self.training_ledger = self.parts["ledger"] = TrainingLedger(self.num_generations, args.teacher_trust)
        self.recorder = RunRecorder(
            Path(args.output_dir),
            self.processing_class,
            ledger,
            self._log_ledger,
            trace_steps=args.trace_steps,
            writes=main,
        )
        self.add_callback(self.recorder)
        self.maintenance: Maintenance | None = None
        if args.maintenance_frequency:
            self.maintenance = self.parts["window"] = maintenance_of(
                self, args, self._writer, self._bank, ledger.credit_of, self._log_step
            )
            self.add_callback(self.maintenance)
        if args.rehearsal_weight:
            seed, problems = args.seed + self.accelerator.process_index, self.train_dataset["problem"]
            prompts = None
            if self._rehearsed is not None:
                prompts = rehearsal_prompts(self._rehearsed, self.processing_class, args, self.max_prompt_length)
            self.rehearsal = Rehearsal(self.renderer, problems, count=args.rehearsal_texts, seed=seed, prompts=prompts)
        first = [self.train_dataset[n] for n in range(min(FIRST_PROBLEMS, len(self.train_dataset)))]
        warning = check_teachers(self.retrieve(first), self.max_prompt_length)
        if warning and main:
            _log.warning("%s", warning)

    @property
    def ledger(self) -> Ledger:
        """The uses and stances of each bank item so far."""
        return self.training_ledger.so_far

    # ---- 1 to 3: sample, verify, retrieve, score K teachers

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._mode == "eval":
            if self.log_completions:  # every column of TRL's table needs a row for each completion
                self._logs["extra"]["pairs"].extend([] for _ in range(len(inputs) * self.accelerator.num_processes))
            return output
        output["score_mask"] = output["counted"] & ~torch.isin(output["completion_ids"], self._uncounted)
        pools = self.retrieve(inputs)
        output |= to_batch(self.score_teachers(pools, inputs, output))
        output["items"] = self.training_ledger.numbers(pools, self.bank, self._K).to(output["counted"].device)
        self.recorder.rollouts(inputs, output["row"].tolist())
        self._log_pools(pools)
        return output

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.maintenance is not None and self._mode == "train":
            self.maintenance.observe(
                self.state.global_step + 1,
                inputs,
                [self._answers.get((str(row["problem_id"]), row["problem"]), "") for row in inputs],
                list(map(text_of, completions)),
                self._truncated.tolist(),
                self._outcome.tolist(),
                next((reward.verdicts for reward in self.reward_funcs if isinstance(reward, VerifierReward)), None),
            )
        return rewards

    def retrieve(self, inputs: Sequence[dict[str, Any]]) -> list[TeacherPool]:
        """The teachers of each rollout, from the current bank; the G rollouts of a prompt share a pool."""
        assert self.retriever is not None
        assert self.bank is not None
        distinct = {_group(row): row for row in inputs}
        problems = list(dict.fromkeys(row["problem"] for row in distinct.values()))
        alone = {} if self._context == "pairs" else {"alone": True}  # a user's retriever may take no such argument
        bank = self._in_document(self.bank) if self._context == "document" else self.bank
        found = self.retriever.retrieve(problems, bank, self.args.num_teachers, **alone)
        if self._context == "document":
            found = [self._one_rule(retrieval, problem) for retrieval, problem in zip(found, problems, strict=True)]
        retrieved = dict(zip(problems, found, strict=True))
        pools = {
            key: build_pool(
                prompt_of(row),
                retrieved[row["problem"]],
                self.renderer,
                num_teachers=self._K,
                max_prompt_length=self.max_prompt_length,
                document=self._document,
            )
            for key, row in distinct.items()
        }
        return [pools[_group(row)] for row in inputs]

    @property
    def _document(self) -> str | None:
        """With ``teacher_context`` ``document``, the text that all teachers are shown."""
        assert self.bank is not None
        return str(self.bank.metadata["document"]) if self._context == "document" else None

    def _in_document(self, bank: SkillBank) -> SkillBank:
        """The rules that the document's text has: leaving out another one would change nothing."""
        if self._rules is None or self._rules[0] != bank.digest:
            whole = self._document
            others = [item.id for item in bank.items if without_items(bank, {item.id}) == whole]
            self._rules = bank.digest, bank.without(others) if len(others) < len(bank.items) else bank
        return self._rules[1]

    def _one_rule(self, retrieval: Retrieval, problem: str) -> Retrieval:
        """The rule that is left out of the control's document at this step: one of the K best, drawn by weight."""
        draw = random.Random(f"{self.args.seed} {self.state.global_step} {problem}")
        [pair] = draw.choices(retrieval.pairs, retrieval.weights)
        return Retrieval((pair,), (1.0,))

    def score_teachers(
        self, pools: Sequence[TeacherPool], inputs: Sequence[dict[str, Any]], output: dict[str, Any]
    ) -> TeacherScores:
        """Score B rollouts with their teachers, and with a control where the objective or the stances need one.

        Run are the teachers that the objective reads; for the ledger, a share of the problems has all teachers run.

        Args:
            pools, inputs: the teachers and the data row of each rollout.
            output: TRL's batch.
        """
        ids, lengths = output["completion_ids"].tolist(), output["completion_mask"].sum(1).tolist()
        completions = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        outcomes = [outcome if length else 0 for outcome, length in zip(self._outcome.tolist(), lengths, strict=True)]
        needs, trust = self.objective.needs, self.training_ledger.trust(pools)
        places = teachers_to_run(
            pools,
            outcomes,
            trust,
            read=needs.outcomes if self.args.sgsd_weight else (),
            by_trust=needs.by_trust,
            whole=list(map(self._drawn_for_ledger, inputs)),
        )
        vocabulary = self.model.config.get_text_config().vocab_size
        top_tokens = min(self.args.teacher_top_tokens, vocabulary) if needs.top_tokens else 0
        prompts = [pools[b].prompts[k] for b, k in places]
        scores = self._score(prompts, [completions[b] for b, _ in places], inputs, top_tokens=top_tokens)
        T = output["completion_ids"].shape[1]
        teachers = teacher_scores(pools, trust, places, scores, num_teachers=self._K, length=T)
        tokens = scores.tokens
        if self._control:
            rows = sorted({b for b, _ in places})
            scores = self._score_control(rows, pools, inputs, completions, teachers)
            teachers = replace(teachers, **control_scores(teachers, rows, scores))
            tokens += scores.tokens
        self.metrics.share("sgsd/teacher_tokens", tokens, len(pools))
        self.metrics.share("sgsd/scored_share", len(places), sum(len(pool.prompts) for pool in pools))
        return teachers

    def _drawn_for_ledger(self, row: dict[str, Any]) -> bool:
        """Whether all teachers score this problem's rollouts at this step; the same on all processes."""
        draw = random.Random(f"{self.args.seed} {self.state.global_step} {row['prompt']!r}")
        return draw.random() < self.args.ledger_share

    def _score_control(
        self,
        rows: Sequence[int],
        pools: Sequence[TeacherPool],
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[list[int]],
        teachers: TeacherScores,
    ) -> Scores:
        """Scores of the rollouts ``rows`` under a control teacher; without other items its prompt is the plain one."""
        assert self.bank is not None
        drawn = {
            _group(inputs[b]): control_prompt(
                prompt_of(inputs[b]),
                pools[b],
                self.bank,
                self.renderer,
                max_prompt_length=self.max_prompt_length,
                seed=f"{self.args.seed + self.state.global_step} {inputs[b]['problem']}",
                document=self._document,
            )
            for b in rows
        }
        controls = [drawn[_group(inputs[b])] for b in rows]
        self.metrics.share("sgsd/control_is_plain", controls.count(None), len(rows))
        prompts = [
            ids or self.renderer.student_ids(prompt_of(inputs[b])) for b, ids in zip(rows, controls, strict=True)
        ]
        others = None
        if teachers.top_ids is not None:
            others = teachers.top_ids.transpose(1, 2).flatten(2)[list(rows)]  # [n, T, K · M]
        return self._score(prompts, [completions[b] for b in rows], inputs, others=others)

    def _score(
        self,
        prompts: list[list[int]],
        completions: list[list[int]],
        inputs: Sequence[dict[str, Any]],
        *,
        top_tokens: int = 0,
        others: Tensor | None = None,
    ) -> Scores:
        """Score completions with the teachers' weights; all processes run equally many chunks."""
        limit, device = self.args.max_tokens_per_chunk, self.accelerator.device
        idle, chunks = not prompts, 0
        if not idle:
            chunks = chunk_count(self.model, prompts, completions, max_tokens_per_chunk=limit, others=others)
        if self.accelerator.num_processes > 1:
            chunks = int(gather(torch.tensor([chunks], device=device)).amax())
        nothing = Scores.of_nothing(device, top_tokens=top_tokens, others=0 if others is None else others.shape[-1])
        if not chunks:
            return nothing
        if idle:  # the other processes need its forwards, for sharded weights
            prompts = [self.renderer.student_ids(prompt_of(inputs[0]))]
            completions, others = [prompts[0][:1]], None
        with self._teaching():
            scores = score_completions(
                self.model,
                prompts,
                completions,
                temperature=self.args.teacher_temperature or self.args.score_temperature,
                max_tokens_per_chunk=limit,
                top_tokens=top_tokens,
                others=others,
                min_chunks=chunks,
            )
        return nothing if idle else scores

    # ---- 4: loss

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        if self._mode == "eval":  # evaluations have no teachers
            return torch.tensor(torch.nan, device=inputs["completion_ids"].device)
        student, loss = self.score_student(model, inputs)
        teachers = from_batch(inputs)
        rollouts = Rollouts(
            ids=inputs["completion_ids"],
            mask=inputs["score_mask"],
            outcome=inputs["outcome"],
            advantages=inputs["advantages"],
        )
        rows, metrics = self.objective.loss(student, teachers, rollouts)
        metrics = self._credit(inputs, student, teachers, rollouts) | metrics
        self.metrics.add({f"sgsd/{name}": value for name, value in metrics.items()})
        self.metrics.mean("sgsd/loss", rows)
        total = self.args.sgsd_weight * rows.mean()
        if self.args.rehearsal_weight:
            total = total + self.args.rehearsal_weight * self._rehearsal_loss(model, len(rows))
        return loss + total / self.current_gradient_accumulation_steps

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """TRL's, but old and reference log-probabilities, too, come from a ``StudentPass``, as the student's do."""
        forward = model if isinstance(model, StudentPass) else partial(self._pass, model, logits_to_keep)
        return super()._get_per_token_logps_and_entropies(
            forward, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _pass(self, model: Any, T: int, *, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        """TRL's forward of some rows whose last T tokens are scored, at GRPO's temperature."""
        ids, mask = input_ids[:, -T:], attention_mask[:, -T:]
        student = StudentPass(model, mask, lambda flat: Select(flat_targets(ids, None, flat), (self.temperature,)))
        return student(input_ids=input_ids, attention_mask=attention_mask, **inputs)

    def score_student(self, model: Any, inputs: dict[str, Tensor]) -> tuple[StudentScores, Tensor]:
        """The student's log-probabilities, with gradient, and TRL's loss of the same forward; see ``_student_pass``.

        Without GRPO's loss, only rollouts that a teacher scored are forwarded, unless the objective reads others.
        """
        top_ids = inputs.get("teacher_top_ids")
        others = None if top_ids is None else top_ids.transpose(1, 2).flatten(2)  # [B, T, K · M]
        weight = self.args.grpo_weight
        temperatures = tuple(dict.fromkeys([self.args.score_temperature, *([self.temperature] if weight else [])]))

        def reduction(flat: Tensor) -> Select:
            return Select(flat_targets(inputs["completion_ids"], others, flat), temperatures)

        mask, scored = inputs["counted"], None
        if not (weight or self.objective.needs.unscored):
            read = from_batch(inputs).scored.any(1, keepdim=True)
            scored, mask = inputs["completion_mask"] * read, mask & read
        last = 2 * (len(temperatures) - 1)  # GRPO's temperature comes last, and TRL reads the tensors of it
        passed, loss = self._student_pass(
            model, inputs, reduction, scored=scored, returned=(last, last + 1), grpo_weight=weight
        )
        lengths = inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)
        self.metrics.mean("sgsd/student_tokens", lengths * passed.forwarded)
        logps, entropy = passed.spread(passed.kept[0]), passed.spread(passed.kept[1])
        self.metrics.mean("sampled_logp", logps[..., 0], mask)
        if not weight:
            self.metrics.mean("entropy", entropy, mask)
        top_logps = None
        if top_ids is not None:
            top_logps = logps[..., 1:].unflatten(-1, (top_ids.shape[1], -1)).transpose(1, 2)  # [B, K, T, M]
        return StudentScores(logps=logps[..., 0], top_logps=top_logps), loss

    def _rehearsal_loss(self, model: Any, rollouts: int) -> Tensor:
        """KL(initial model ‖ student) on rehearsal texts, for a micro-batch of ``rollouts`` rollouts.

        The mean over a step's micro-batches is the mean over its texts. 0 for a micro-batch without texts.
        """
        if not self.rehearsal.texts:
            gather = self.args.ds3_gather_for_generation
            with self._teaching():
                self.rehearsal.prepare(
                    self.model,
                    lambda: unwrap_model_for_generation(
                        self.model_wrapped, self.accelerator, gather_deepspeed3_params=gather
                    ),
                )
        parts = self.current_gradient_accumulation_steps
        total, count = texts_of_step(rollouts, self._step % parts, parts)
        if not count:
            return torch.zeros((), device=self.accelerator.device)
        step = (self.state.global_step, self._step % self.args.gradient_accumulation_steps)
        inputs, hidden = self.rehearsal.batch(count, step, self.accelerator.device)
        divergence = self._divergence_from(hidden)
        student = StudentPass(model, inputs["completion_mask"], lambda flat: divergence)
        self._forward(student, inputs)
        rows = student.spread(student.kept[0]).sum(1) / inputs["completion_mask"].bool().sum(1)
        self.metrics.mean("sgsd/rehearsal", rows)
        tokens = inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()
        self.metrics.add({"sgsd/student_tokens": (tokens, torch.zeros_like(tokens))})
        return rows.mean() * (count * parts / total)

    # ---- 5: ledger

    def _credit(
        self, inputs: dict[str, Tensor], student: StudentScores, teachers: TeacherScores, rollouts: Rollouts
    ) -> Metrics:
        """Pass supports and stances to the ledger, each rollout once, and return their metrics."""
        args, logps, mask = self.args, student.logps.detach(), rollouts.mask
        baseline = None
        if args.support_baseline == "control":
            assert teachers.control_logps is not None
            baseline = supports(logps, teachers.control_logps.unsqueeze(1), mask, clip=args.support_clip).squeeze(1)
        if isinstance(self.objective, OwnStances):
            support, stance = self.objective.stances(student, teachers, rollouts)
        else:
            support, stance = stances(
                logps,
                teachers.logps,
                mask,
                clip=args.support_clip,
                threshold=args.support_threshold,
                baseline=baseline,
                scored=teachers.scored,
            )
        # Only the first of several passes over a batch (num_iterations).
        if self._step % (args.steps_per_generation * self.num_iterations) < args.steps_per_generation:
            outcome, scored = inputs["outcome"], teachers.scored
            self.training_ledger.observe(inputs["row"], inputs["items"], outcome, scored, support, stance)
            self.recorder.observe(self.state.global_step + 1, inputs, logps, teachers, support, stance)
        real = teachers.scored & (teachers.weights > 0)
        return stance_metrics(support, stance, inputs["outcome"], real, baseline=baseline)

    # ---- logs

    def _log_pools(self, pools: Sequence[TeacherPool]) -> None:
        self.metrics.share("sgsd/teachers_per_rollout", sum(len(pool.pairs) for pool in pools), len(pools))
        self.metrics.share("sgsd/pairs_too_long", sum(pool.too_long for pool in pools), len(pools))
        if self.log_completions:
            names = [[" ".join(item.id for item in pair.items) for pair in pool.pairs] for pool in pools]
            self._logs["extra"]["pairs"].extend(gather_object(names))

    def _log_ledger(self) -> None:
        assert self.bank is not None
        for name, total in self.training_ledger.totals(self.bank).items():
            self._metrics["train"][f"sgsd/ledger/{name}"] = [total]  # totals since the run began, not means over steps


def _group(row: dict[str, Any]) -> tuple[str, str]:
    """The key of a group of rollouts: its prompt, and the problem that pairs are retrieved for."""
    return repr(row["prompt"]), row["problem"]
