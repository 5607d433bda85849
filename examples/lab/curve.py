"""A callback that evaluates on held-out problems during training."""

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

_SEED = 0  # of the sampling, the same at every evaluation


class AccuracyCallback(TrainerCallback):
    """Logs the accuracy with the plain prompt at the start, every ``every`` steps, and at the end.

    The log gets ``eval_accuracy``, ``eval_accuracy_low`` and ``eval_accuracy_high``: avg@1 and its 95 % interval over
    problems. The random state of training is not changed. Every process evaluates, as a sharded model requires; the
    first one writes.

    Args:
        problems: held-out problems.
        renderer: makes the prompts.
        verifier: judges the answers.
        every: optimizer steps between evaluations.
        sampling: options of ``TransformersSampler``.
        save_to: folder for the last evaluation.
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
        save_to: Path,
        listener: Callable[[int, Evaluation], None],
    ) -> None:
        self._asked = (problems, renderer, verifier)
        self._every, self._sampling = every, sampling
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
        result = evaluate(sampler, *self._asked, seed=_SEED)
        self._last_step, accuracy = state.global_step, result.accuracy
        logged = {
            "eval_accuracy": accuracy.mean,
            "eval_accuracy_low": accuracy.low,
            "eval_accuracy_high": accuracy.high,
        }
        state.log_history.append({"epoch": state.epoch or 0.0, **logged, "step": state.global_step})
        self._listener(state.global_step, result)
        if state.is_world_process_zero:
            result.save(self._save_to, step=state.global_step, seed=_SEED, **self._sampling)
