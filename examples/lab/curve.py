"""Held-out accuracy while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sgsd.data.problems import Problem
from sgsd.engines.generation import TransformersSampler
from sgsd.evaluation.run import Evaluation, evaluate
from sgsd.prompts import PromptRenderer
from sgsd.verifiers import Verifier


class AccuracyCallback(TrainerCallback):
    """Plain-prompt accuracy every so many steps, at the start and at the end, in the trainer's log.

    The log gets ``eval_accuracy``, ``eval_accuracy_low`` and ``eval_accuracy_high``: avg@1 and its 95 % interval over
    problems. Training is not disturbed: the random state is left as it was. Every process evaluates (a sharded model
    needs them all); the first one writes.

    Args:
        problems: held out.
        renderer: makes the prompts.
        verifier: judges.
        every: optimizer steps between evaluations.
        sampling: options of ``TransformersSampler``.
        seed: of the sampling, the same at every evaluation.
        save_to: folder where the last evaluation is kept.
        listener: called with the step and each evaluation.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        renderer: PromptRenderer,
        verifier: Verifier,
        *,
        every: int,
        sampling: dict[str, Any],
        seed: int = 0,
        save_to: Path | None = None,
        listener: Callable[[int, Evaluation], None] | None = None,
    ) -> None:
        self._asked = (problems, renderer, verifier)
        self._every, self._sampling, self._seed = every, sampling, seed
        self._save_to, self._listener = save_to, listener
        self._last_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._evaluate(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            self._evaluate(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self._last_step:
            self._evaluate(state, kwargs["model"])

    def _evaluate(self, state: Any, model: Any) -> None:
        sampler = TransformersSampler(model, self._asked[1].tokenizer, **self._sampling)
        result = evaluate(sampler, *self._asked, seed=self._seed)
        self._last_step, accuracy = state.global_step, result.accuracy
        logged = {
            "eval_accuracy": accuracy.mean,
            "eval_accuracy_low": accuracy.low,
            "eval_accuracy_high": accuracy.high,
        }
        state.log_history.append({"epoch": state.epoch or 0.0, **logged, "step": state.global_step})
        if self._listener is not None:
            self._listener(state.global_step, result)
        if self._save_to is not None and state.is_world_process_zero:
            result.save(self._save_to, step=state.global_step, seed=self._seed, **self._sampling)
