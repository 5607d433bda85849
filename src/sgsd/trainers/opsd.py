"""The OPSD baseline: on-policy self-distillation (arXiv 2601.18734).

The teacher is the same model on a prompt that contains the problem's reference. The loss is the per-token divergence of
teacher and student on the student's rollouts, over the full vocabulary. Deviations from the paper's public code:

- prompts, sampling, verifier and data are those of the other methods; the wording of the teacher's prompt is ours;
- the loss is a mean over rows of means over tokens, not one mean over a micro-batch's tokens;
- verdicts are computed and logged, but not part of the loss.

The teacher's hidden states are computed for each micro-batch; both sides' logits exist one tile at a time. With
``skills_in_prompt`` (OPSD+Skill) both prompts show each problem's best skill–mistake pairs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sgsd.data.problems import Problem
from sgsd.errors import DataError
from sgsd.scoring.logprobs import hidden_states
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.config import OPSDConfig


class OPSDTrainer(VerifiedTrainer):
    """On-policy self-distillation (arXiv 2601.18734), used like TRL's ``GRPOTrainer``.

    ```python
    from sgsd import OPSDConfig, OPSDTrainer

    trainer = OPSDTrainer(
        model="Qwen/Qwen3-1.7B",
        args=OPSDConfig(output_dir="runs/opsd", reference="answer"),
        train_dataset=dataset,  # columns such as problem, answer and, for reference "solution", solution
    )
    trainer.train()
    ```

    Arguments and errors: see ``trainers.base.VerifiedTrainer``. ``args`` is an ``OPSDConfig``. Evaluation problems need
    no reference; ``eval_loss`` is NaN.
    """

    method = "opsd"
    _tag_names = ["trl", "opsd"]  # noqa: RUF012 (TRL's own attribute)
    _name = "OPSD"
    _paper = {  # noqa: RUF012
        "title": "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
        "id": "2601.18734",
        "citation": textwrap.dedent("""\
            @article{zhao2026self,
                title  = {{Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models}},
                author = {Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and
                          Aditya Grover},
                year   = 2026,
                eprint = {arXiv:2601.18734},
            }"""),
    }

    def _references(self, args: OPSDConfig, problems: Sequence[Problem]) -> list[str]:
        return references(problems, args.reference)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._mode == "train":
            device = output["completion_ids"].device
            prompts = [torch.tensor(row["teacher_prompt"], device=device) for row in inputs]
            for name, values in (("ids", prompts), ("mask", [torch.ones_like(prompt) for prompt in prompts])):
                output[f"teacher_prompt_{name}"] = pad_sequence(values, batch_first=True, padding_side="left")
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        if self._mode == "eval":
            return torch.tensor(torch.nan, device=inputs["completion_ids"].device)
        args = self.args
        divergence = self._divergence_from(
            self._teacher_hidden_states(inputs),
            kind=args.divergence,
            clip=args.divergence_clip,
            temperature=args.score_temperature,
        )
        student, loss = self._student_pass(model, inputs, lambda flat: divergence)
        tokens, student_entropy, teacher_entropy = map(student.spread, student.kept)  # [B, T]
        counted = inputs["counted"]
        rows = torch.where(counted, tokens, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)
        self.metrics.mean("entropy", student_entropy, counted)
        self.metrics.mean("opsd/divergence", tokens, counted)
        self.metrics.mean("opsd/teacher_entropy", teacher_entropy, counted)
        self.metrics.mean("opsd/loss", rows)
        return loss + rows.mean() / self.current_gradient_accumulation_steps

    def _teacher_hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """``[n, H]``: the hidden states that predict each completion token after the teacher's prompt."""
        # Two host syncs. Prompts are padded on the left and completions on the right, so lengths remove the padding.
        rows = torch.cat([inputs["teacher_prompt_ids"], inputs["completion_ids"]], dim=1).tolist()
        lengths = torch.stack([inputs[f"{name}_mask"].sum(1) for name in ("teacher_prompt", "completion")], 1).tolist()
        width = inputs["teacher_prompt_ids"].shape[1]
        prompts = [row[width - P : width] for row, (P, _) in zip(rows, lengths, strict=True)]
        completions = [row[width : width + T] for row, (_, T) in zip(rows, lengths, strict=True)]
        with self._teaching():
            return hidden_states(self.model, prompts, completions)


def references(problems: Sequence[Problem], kind: str) -> list[str]:
    """Each problem's reference: its ``solution``, or its ``answer``, as ``kind`` says.

    Raises:
        DataError: some problems have none; with their number.
    """
    found = [problem.solution if kind == "solution" else problem.answer for problem in problems]
    missing = sum(not (reference and reference.strip()) for reference in found)
    if missing:
        raise DataError(
            f"{missing} of {len(problems)} problems have no reference {kind}",
            got=f"reference: {kind}",
            expected=f"a {kind} for every problem" if kind == "solution" else "an answer for every problem",
            remedy="filter the data" + (", or set reference: answer" if kind == "solution" else ""),
        )
    return [reference or "" for reference in found]
