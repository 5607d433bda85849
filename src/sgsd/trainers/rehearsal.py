"""Rehearsal: while it learns new answers, a model goes on saying what it said elsewhere.

Before the first step it writes texts of its own: a user's turn, sampled behind the opening of its chat template
(Magpie, arXiv 2406.08464), and the answer to it (self-synthesized rehearsal, arXiv 2403.01244). Each step reads some of
them again and adds KL(as it began ‖ as it is), over the full vocabulary, to the loss (learning without forgetting,
arXiv 1606.09282): the mean over a text's tokens, and over texts. No data is needed. Half of the turns begin with the
first two words of a training problem, and half end with the run's instruction: what is learnt spreads there first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sgsd.engines.generation import TransformersSampler
from sgsd.errors import ConfigError
from sgsd.prompts import PromptRenderer, user_turn_ids
from sgsd.rollouts import Rollout, StopReason
from sgsd.scoring.logprobs import hidden_states

TURN_TOKENS = 48
"""The most of each turn."""
ROLLOUTS_A_TEXT = 4
"""A micro-batch reads one text for so many of its rollouts."""
_BATCH = 16
_STARTING_WORDS = 2
_TOP_P = 0.95


class Rehearsal:
    """The texts of one process.

    Args:
        renderer: of the run's prompts, whose chat template opens and closes turns.
        problems: texts of training problems.
        count: of texts, at most one for each of ``prompts``.
        seed: of their sampling, another one on every process, and of what a step reads.
        prompts: token ids of prompts to answer, in place of turns that the model writes.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        renderer: PromptRenderer,
        problems: Sequence[str],
        *,
        count: int,
        seed: int,
        prompts: Sequence[list[int]] | None = None,
    ) -> None:
        self._tokenizer: Any = renderer.tokenizer
        draw = random.Random(seed)
        self._writes_turns = prompts is None
        if prompts is None:
            if not self._tokenizer.chat_template:
                raise ConfigError(
                    "rehearsal_weight without a chat template", expected="a tokenizer with one, or rehearsal_dataset"
                )
            self._around = [
                user_turn_ids(
                    self._tokenizer,
                    start=" ".join(draw.choice(problems).split()[:_STARTING_WORDS]) if number % 4 < 2 else "",
                    end=renderer.instruction if number % 2 else "",
                    **renderer.student_kwargs,
                )
                for number in range(count)
            ]
        else:
            drawn = draw.sample(range(len(prompts)), min(count, len(prompts)))
            self._around = [(prompts[number], list[int]()) for number in drawn]
        self._count = len(self._around)
        self._seed = seed
        self.texts: list[list[int]] = []
        """Token ids of what was written; empty before the first step."""
        self._hidden: list[Tensor] = []

    def prepare(self, model: nn.Module, sampling: Callable[[], AbstractContextManager[Any]]) -> None:
        """Write the texts, by the model as training began with it; ``sampling`` gives the one to sample from."""
        with sampling() as unwrapped:
            sampler = TransformersSampler(
                unwrapped, self._tokenizer, max_new_tokens=TURN_TOKENS, top_p=_TOP_P, batch_size=_BATCH
            )
            openings = [opening for opening, _ in self._around]
            turns: list[list[int]] = [[] for _ in openings]
            if self._writes_turns:
                turns = [
                    [*_without_end(turn), *closing]
                    for (_, closing), turn in zip(self._around, sampler.sample(openings, seed=self._seed), strict=True)
                ]
            asked = [[*opening, *turn] for opening, turn in zip(openings, turns, strict=True)]
            answers = sampler.sample(asked, seed=self._seed + 1)
        self.texts = [[*turn, *answer.completion_ids] for turn, answer in zip(turns, answers, strict=True)]
        with torch.no_grad():
            for first in range(0, self._count, _BATCH):
                texts = self.texts[first : first + _BATCH]
                openings = [opening for opening, _ in self._around[first : first + _BATCH]]
                hidden = hidden_states(model, openings, texts)
                self._hidden += hidden.split([len(text) for text in texts])

    def batch(self, rollouts: int, step: tuple[int, int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The texts that a micro-batch of so many rollouts reads, drawn by the numbers of step and micro-batch.

        Returns:
            as TRL lays out rollouts, ``prompt_ids``, ``prompt_mask`` ``[R, P]`` (a turn's opening), ``completion_ids``,
            ``completion_mask`` ``[R, T]`` (what was written behind it); and ``[n, H]``, the hidden states that
            predicted the n tokens before training.
        """
        wanted = min(max(1, rollouts // ROLLOUTS_A_TEXT), self._count)
        drawn = random.Random(f"{self._seed} {step}").sample(range(self._count), wanted)
        inputs: dict[str, Tensor] = {}
        for part, side, rows in (
            ("prompt", "left", [self._around[number][0] for number in drawn]),
            ("completion", "right", [self.texts[number] for number in drawn]),
        ):
            ids = [torch.tensor(row, device=device) for row in rows]
            for name, values in (("ids", ids), ("mask", [torch.ones_like(row) for row in ids])):
                inputs[f"{part}_{name}"] = pad_sequence(values, batch_first=True, padding_side=side)
        return inputs, torch.cat([self._hidden[number] for number in drawn])


def _without_end(rollout: Rollout) -> tuple[int, ...]:
    return rollout.completion_ids[: -1 if rollout.stop_reason is StopReason.END else None]
