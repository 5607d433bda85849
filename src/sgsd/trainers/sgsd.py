"""SGSD: skill-conditioned gated self-distillation (arXiv 2605.28791).

One step, top to bottom: TRL samples rollouts and a verifier judges them (``base``); each problem's skill–mistake pairs
are retrieved; the model itself, with a pair in its prompt, scores the rollout as a teacher (``score_teachers``); the
objective compares teachers and student (``_compute_loss``); the ledger notes what each pair was worth.

Retrieval happens inside the step, so a changed ``trainer.bank`` is seen by the next rollouts.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor

from sgsd.bank import Ledger
from sgsd.bank.writing import Writer
from sgsd.objectives import OBJECTIVES, Rollouts, StudentScores, TeacherScores, stance_metrics, stances
from sgsd.prompts import uncounted_token_ids
from sgsd.retrieval import Retriever
from sgsd.scoring.logprobs import Scores, Select, chunk_count, flat_targets, score_completions
from sgsd.scoring.teachers import TeacherPool, build_pool, control_prompt
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.ledger import Scored, TrainingLedger
from sgsd.trainers.maintenance import Maintenance, MaintenanceCallback, maintenance_of, window_records
from sgsd.trainers.record import LEDGER_FILE, OUTCOMES, LedgerCallback, RunRecorder, rounded
from sgsd.trainers.rewards import VerifierReward, is_truncated, text_of
from sgsd.trainers.rows import prompt_of

_STANCE_SIGNS = {-1: "-", 0: "0", 1: "+"}


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
            @article{huang2026skill,
                title   = {{Skill-Conditioned Gated Self-Distillation for LLM Reasoning}},
                author  = {Huang, Jiazhen and Chen, Xiao and Luo, Xiao and Dai, Yong and Hu, Senkang and Zhao, Yuzhi},
                journal = {arXiv preprint arXiv:2605.28791},
                year    = 2026,
            }"""),
    }

    def __init__(self, *positional: Any, writer: Writer | None = None, **named: Any) -> None:
        self._writer = writer
        super().__init__(*positional, **named)

    def _set_up(self) -> None:
        args: SGSDConfig = self.args
        self.objective = OBJECTIVES[args.objective].from_config(args)
        self._control = self.objective.needs.control or args.support_baseline == "control"
        self._uncounted = torch.tensor(
            sorted(uncounted_token_ids(self.processing_class)), device=self.accelerator.device
        )
        self.training_ledger = self.parts["ledger"] = TrainingLedger(self.num_generations, args.teacher_trust)
        main, folder = self.accelerator.is_main_process, Path(args.output_dir)
        self.recorder = RunRecorder(folder, self.processing_class, trace_steps=args.trace_steps, writes=main)
        file = folder / LEDGER_FILE if main else None
        self.add_callback(LedgerCallback(self.training_ledger, self.recorder, file, self._after_step))
        self._asked: list[dict[str, Any]] = []  # this process's rows of the latest batch
        self._stance_cells: list[list[str]] = []  # of all processes' rollouts of the latest batch, for the table
        self.maintenance: Maintenance | None = None
        if args.maintenance_frequency:
            self.maintenance = self.parts["window"] = maintenance_of(self, args, self._writer)
            self.add_callback(
                MaintenanceCallback(self.maintenance, self._bank, self.training_ledger.credit_of, self._log_step)
            )

    @property
    def ledger(self) -> Ledger:
        """What became of each bank item so far."""
        return self.training_ledger.ledger

    def hand_over(self) -> None:
        """Go on with GRPO's loss alone; the teachers are still scored, for the ledger."""
        self.args.sgsd_weight, self.args.grpo_weight = 0.0, self.args.grpo_weight or 1.0

    def _build_retriever(self, args: SGSDConfig) -> Retriever:
        return super()._build_retriever(args, temperature=args.retrieval_temperature)

    # ---- sample, verify

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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._mode == "eval":
            return output
        mask = output["completion_mask"].bool()
        output["score_mask"] = mask & ~torch.isin(output["completion_ids"], self._uncounted)
        pools = self.retrieve(inputs)
        output |= self.score_teachers(pools, inputs, output)
        self._asked = inputs
        self._log_rollouts(pools)
        return output

    # ---- retrieve

    def retrieve(self, inputs: Sequence[dict[str, Any]]) -> list[TeacherPool]:
        """One pool of teachers a rollout; the G rollouts of a prompt share one."""
        assert self.retriever is not None
        assert self.bank is not None
        distinct = {repr(row["prompt"]): row for row in inputs}
        problems = list(dict.fromkeys(row["problem"] for row in distinct.values()))
        found = self.retriever.retrieve(problems, self.bank, self.args.num_teachers)
        retrieved = dict(zip(problems, found, strict=True))
        pools = {
            key: build_pool(
                prompt_of(row),
                retrieved[row["problem"]],
                self.renderer,
                num_teachers=self.args.num_teachers,
                max_prompt_length=self.max_prompt_length,
            )
            for key, row in distinct.items()
        }
        return [pools[repr(row["prompt"])] for row in inputs]

    # ---- score K teachers

    def score_teachers(
        self, pools: Sequence[TeacherPool], inputs: Sequence[dict[str, Any]], output: dict[str, Any]
    ) -> dict[str, Tensor]:
        """What the teachers say of the rollouts, as tensors of the batch: ``TeacherScores``, and ``items``.

        Run are the teachers that the objective reads, and all of them on the problems that the ledger draws.
        """
        B, K = len(pools), self.args.num_teachers
        T, device = output["completion_ids"].shape[1], output["completion_ids"].device
        lengths = output["completion_mask"].sum(1).tolist()
        completions = [ids[:n] for ids, n in zip(output["completion_ids"].tolist(), lengths, strict=True)]
        trust = [self.training_ledger.trust(pool.pairs) for pool in pools]
        places = self._read(pools, trust, inputs, lengths)
        needs, L = self.objective.needs, self._top_tokens
        scored = torch.zeros(B, K, dtype=torch.bool)
        logps = torch.zeros(B, K, T, device=device)
        top_ids, top_logps = (torch.zeros(B, K, T, L, dtype=dtype, device=device) for dtype in (torch.long, None))
        at = tuple(torch.tensor(numbers, dtype=torch.long) for numbers in zip(*places, strict=True)) if places else None
        prompts = [pools[b].prompts[k] for b, k in places]
        scores = self._score(prompts, [completions[b] for b, _ in places], inputs, top_tokens=L)
        if scores is not None and at is not None:
            scored[at] = True
            at = tuple(numbers.to(device) for numbers in at)
            width = scores.logps.shape[1]
            logps[at[0], at[1], :width] = scores.logps
            top_ids[at[0], at[1], :width], top_logps[at[0], at[1], :width] = scores.top_ids, scores.top_logps
        weights, trusts = torch.zeros(B, K), torch.ones(B, K)
        for b, pool in enumerate(pools):
            weights[b, : len(pool.weights)] = torch.tensor(pool.weights)
            trusts[b, : len(pool.weights)] = torch.tensor(trust[b])
        batch = {
            "teacher_logps": logps,
            "teacher_weights": weights.to(device),
            "teacher_trust": trusts.to(device),
            "teacher_scored": scored.to(device),
            "items": self.training_ledger.numbers(pools, self.bank, K).to(device),  # pyright: ignore[reportArgumentType]
        }
        if needs.top_tokens:
            batch |= {"teacher_top_ids": top_ids, "teacher_top_logps": top_logps}
        tokens = 0 if scores is None else scores.tokens
        if self._control:
            control, spent = self._score_control(pools, inputs, completions, sorted({b for b, _ in places}), top_ids)
            batch |= control
            tokens += spent
        rollouts = torch.tensor(float(B), device=device)
        self.metrics.add(
            {
                "sgsd/teacher_tokens": (torch.tensor(float(tokens), device=device), rollouts),
                "sgsd/scored_share": (scored.sum().to(device), (weights > 0).sum().to(device)),
            }
        )
        return batch

    def _read(
        self,
        pools: Sequence[TeacherPool],
        trust: Sequence[Sequence[float]],
        inputs: Sequence[dict[str, Any]],
        lengths: Sequence[int],
    ) -> list[tuple[int, int]]:
        """Rollouts and teachers to run: those that the loss reads, and all of a share of the problems, drawn anew."""
        needs, step = self.objective.needs, self.state.global_step
        places: list[tuple[int, int]] = []
        for b, (pool, outcome) in enumerate(zip(pools, self._outcome.tolist(), strict=True)):
            if not lengths[b] or not outcome:
                continue
            draw = random.Random(f"{self.args.seed} {step} {inputs[b]['prompt']!r}").random()
            for_ledger = draw < self.args.ledger_share
            for k in range(len(pool.prompts)):
                reads = self.args.sgsd_weight > 0 and int(outcome) in needs.outcomes
                if for_ledger or (reads and not (needs.by_trust and not trust[b][k])):
                    places.append((b, k))
        return places

    @property
    def _top_tokens(self) -> int:
        """M; 0 where the objective asks for none."""
        vocabulary = self.model.config.get_text_config().vocab_size
        return min(self.args.teacher_top_tokens, vocabulary) if self.objective.needs.top_tokens else 0

    def _score_control(
        self,
        pools: Sequence[TeacherPool],
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[list[int]],
        rows: Sequence[int],
        top_ids: Tensor,
    ) -> tuple[dict[str, Tensor], int]:
        """The control teacher of the rollouts that any teacher is run on, and the tokens it took."""
        seed = self.args.seed + self.state.global_step
        drawn = {
            repr(inputs[b]["prompt"]): control_prompt(
                prompt_of(inputs[b]),
                pools[b],
                self.bank,  # pyright: ignore[reportArgumentType]
                self.renderer,
                max_prompt_length=self.max_prompt_length,
                seed=seed,
            )
            for b in rows
        }
        plain = [self.renderer.student_ids(prompt_of(inputs[b])) for b in rows]
        found = [drawn[repr(inputs[b]["prompt"])] for b in rows]
        prompts = [ids or own for ids, own in zip(found, plain, strict=True)]
        B, K, T, M = top_ids.shape
        others = top_ids.transpose(1, 2).flatten(2)[list(rows)]  # [n, T, K · M]
        scores = self._score(prompts, [completions[b] for b in rows], inputs, others=others if M else None)
        logps, top_logps = top_ids.new_zeros(B, T, dtype=torch.float32), torch.zeros_like(top_ids, dtype=torch.float32)
        if scores is not None:
            width = scores.logps.shape[1]
            at = torch.tensor(list(rows), device=logps.device)
            logps[at, :width] = scores.logps
            if M:
                top_logps[at, :, :width] = scores.other_logps.unflatten(-1, (K, M)).transpose(1, 2)
        share = torch.tensor(float(sum(ids is None for ids in found))), torch.tensor(float(len(rows)))
        self.metrics.add({"sgsd/control_is_plain": tuple(part.to(logps.device) for part in share)})  # pyright: ignore[reportArgumentType]
        batch = {"control_logps": logps} | ({"control_top_logps": top_logps} if M else {})
        return batch, 0 if scores is None else scores.tokens

    def _score(
        self,
        prompts: list[list[int]],
        completions: list[list[int]],
        inputs: Sequence[dict[str, Any]],
        *,
        top_tokens: int = 0,
        others: Tensor | None = None,
    ) -> Scores | None:
        """By the teachers' weights, in as many forwards as any process needs; ``None`` with nothing to score."""
        asked = len(prompts)
        limit = self.args.max_tokens_per_chunk
        chunks = 0
        if asked:
            chunks = chunk_count(self.model, prompts, completions, max_tokens_per_chunk=limit, others=others)
        if self.accelerator.num_processes > 1:
            chunks = int(gather(torch.tensor([chunks], device=self.accelerator.device)).amax())
            if chunks and not asked:  # others score: this process makes the same forwards
                prompts = [self.renderer.student_ids(prompt_of(inputs[0]))]
                completions = [prompts[0][:1]]
        if not chunks:
            return None
        with self._teaching():
            scores = score_completions(
                self.model,
                prompts,
                completions,
                temperature=self.args.score_temperature,
                max_tokens_per_chunk=limit,
                top_tokens=top_tokens,
                others=others if asked else None,
                min_chunks=chunks,
            )
        return scores if asked else None

    # ---- loss

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        if self._mode == "eval":  # plain-prompt success is what evaluations are for
            return torch.tensor(torch.nan, device=inputs["completion_ids"].device)
        student, loss = self.score_student(model, inputs)
        teachers = TeacherScores(
            logps=inputs["teacher_logps"],
            weights=inputs["teacher_weights"],
            trust=inputs["teacher_trust"],
            scored=inputs["teacher_scored"],
            top_ids=inputs.get("teacher_top_ids"),
            top_logps=inputs.get("teacher_top_logps"),
            control_logps=inputs.get("control_logps"),
            control_top_logps=inputs.get("control_top_logps"),
        )
        rollouts = Rollouts(
            ids=inputs["completion_ids"],
            mask=inputs["score_mask"],
            outcome=inputs["outcome"],
            advantages=inputs["advantages"],
        )
        rows, metrics = self.objective.loss(student, teachers, rollouts)
        support, stance = self._note(inputs, student, teachers)
        real = teachers.scored & (teachers.weights > 0)
        metrics = stance_metrics(support, stance, rollouts.outcome, real) | metrics
        self.metrics.add({f"sgsd/{name}": value for name, value in metrics.items()})
        self.metrics.mean("sgsd/loss", rows)
        return loss + self.args.sgsd_weight * rows.mean() / self.current_gradient_accumulation_steps

    def score_student(self, model: Any, inputs: dict[str, Tensor]) -> tuple[StudentScores, Tensor]:
        """The student's log-probabilities, with gradient, and what TRL makes of the same forward (GRPO's loss …)."""
        top_ids = inputs.get("teacher_top_ids")
        others = None if top_ids is None else top_ids.transpose(1, 2).flatten(2)  # [B, T, K · M]
        weight = self.args.grpo_weight
        temperatures = tuple(dict.fromkeys([self.args.score_temperature, *([self.temperature] if weight else [])]))

        def reduction(flat: Tensor) -> Select:
            return Select(flat_targets(inputs["completion_ids"], others, flat), temperatures)

        of_grpo = 2 * (len(temperatures) - 1)  # GRPO's own temperature comes last
        passed, loss = self._student_pass(model, inputs, reduction, returned=(of_grpo, of_grpo + 1), grpo_weight=weight)
        logps, entropy = passed.spread(passed.kept[0]), passed.spread(passed.kept[1])
        mask = inputs["completion_mask"].bool()
        self.metrics.mean("sampled_logp", logps[..., 0], mask)
        if not weight:
            self.metrics.mean("entropy", entropy, mask)
        top_logps = None
        if top_ids is not None:
            top_logps = logps[..., 1:].unflatten(-1, (top_ids.shape[1], -1)).transpose(1, 2)  # [B, K, T, M]
        return StudentScores(logps=logps[..., 0], top_logps=top_logps), loss

    # ---- ledger, logs

    def _note(
        self, inputs: dict[str, Tensor], student: StudentScores, teachers: TeacherScores
    ) -> tuple[Tensor, Tensor]:
        """Supports and stances ``[B, K]``. The ledger counts each rollout once, when it is first trained on."""
        args = self.args
        support, stance = stances(
            student.logps.detach(),
            teachers.logps,
            inputs["score_mask"],
            clip=args.support_clip,
            threshold=args.support_threshold,
            control_logps=teachers.control_logps if args.support_baseline == "control" else None,
            scored=teachers.scored,
        )
        if self._step % (args.steps_per_generation * self.num_iterations) >= args.steps_per_generation:
            return support, stance
        outcome, scored = inputs["outcome"], teachers.scored
        self.training_ledger.observe(inputs["row"], inputs["items"], outcome, scored, support, stance)
        step = self.state.global_step + 1
        if self.recorder.traces(step):
            for b in range(len(outcome)):
                self._trace(step, b, inputs, student.logps[b].detach(), support[b].tolist(), stance[b].tolist())
        return support, stance

    def _trace(
        self,
        step: int,
        b: int,
        inputs: dict[str, Tensor],
        student: Tensor,
        support: list[float],
        stance: list[float],
    ) -> None:
        row = self._asked[int(inputs["row"][b]) - self.accelerator.process_index * len(self._asked)]
        n, outcome = int(inputs["completion_mask"][b].sum()), int(inputs["outcome"][b])
        teachers: list[dict[str, Any]] = []
        for k in inputs["teacher_scored"][b].nonzero().flatten().tolist():
            skill, mistake = self.training_ledger.ids(*inputs["items"][b, k].tolist())
            teachers.append(
                {
                    "skill": skill,
                    "mistake": mistake,
                    "weight": round(float(inputs["teacher_weights"][b, k]), 4),
                    "support": round(support[k], 4),
                    "stance": int(stance[k]),
                    "polarity": outcome * int(stance[k]),
                    "gaps": rounded(inputs["teacher_logps"][b, k, :n] - student[:n]),
                }
            )
        rollout = {
            "step": step,
            "problem_id": str(row["problem_id"]),
            "problem": str(row["problem"]),
            "answer": str(row.get("answer")),
            "outcome": OUTCOMES[outcome],
            "counted": inputs["score_mask"][b, :n].int().tolist(),
        }
        self.recorder.trace(rollout, inputs["completion_ids"][b, :n].tolist(), student[:n], teachers)

    def _after_step(self, scored: Scored) -> None:
        """Log the ledger's totals, and the stances in the table of completions."""
        self._log_step({f"sgsd/ledger/{name}": value for name, value in self._ledger_totals().items()})
        for row, stance in zip(scored.rows.tolist(), scored.stance.tolist(), strict=True):
            if row < len(self._stance_cells):
                self._stance_cells[row].append(_STANCE_SIGNS[stance])

    def _ledger_totals(self) -> dict[str, float]:
        for name in [name for name in self._metrics["train"] if name.startswith("sgsd/ledger/")]:
            del self._metrics["train"][name]  # totals are no means over steps
        assert self.bank is not None
        return self.training_ledger.totals(self.bank)

    def _log_rollouts(self, pools: Sequence[TeacherPool]) -> None:
        device = self.accelerator.device
        rollouts = torch.tensor(float(len(pools)), device=device)
        counts = partial(torch.tensor, dtype=torch.float32, device=device)
        self.metrics.add(
            {
                "sgsd/teachers_per_rollout": (counts(sum(len(pool.pairs) for pool in pools)), rollouts),
                "sgsd/pairs_too_long": (counts(sum(pool.too_long for pool in pools)), rollouts),
            }
        )
        if self.log_completions:
            # The stances become known with the student's forward; each cell is filled in then.
            self._stance_cells = [[] for _ in range(len(pools) * self.accelerator.num_processes)]
            self._logs["extra"]["stances"].extend(self._stance_cells)
            names = [[f"{pair.skill.id} {pair.mistake.id}" for pair in pool.pairs] for pool in pools]
            self._logs["extra"]["pairs"].extend(gather_object(names))
