"""Rehearsal: regularisation against forgetting, on texts that the model writes before training.

Before the first step the model samples a user turn after the opening of its chat template (Magpie, arXiv 2406.08464),
and an answer to it (self-synthesized rehearsal, arXiv 2403.01244). Each step adds KL(initial model ‖ student) on some
of these texts to the loss, over the full vocabulary (learning without forgetting, arXiv 1606.09282): the mean over a
text's tokens, then over texts. No data set is needed. Half of the user turns begin with the first two words of a
training problem, and half end with the run's instruction, since training changes the model most near its own prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sgsd.data.problems import Problem
from sgsd.engines.generation import TransformersSampler
from sgsd.errors import ConfigError, PromptError
from sgsd.prompts import PromptRenderer, user_turn_ids
from sgsd.rollouts import Rollout, StopReason
from sgsd.scoring.logprobs import hidden_states
from sgsd.trainers.config import VerifiedConfig
from sgsd.trainers.rows import all_text

TURN_TOKENS = 48
"""The most tokens of a user turn, and of an answer."""
ROLLOUTS_PER_TEXT = 4
"""An optimizer step reads one text for this many of a process's rollouts."""
_BATCH = 16
_STARTING_WORDS = 2
_TOP_P = 0.95


class Rehearsal:
    """The rehearsal texts of one process.

    Args:
        renderer: of the run's prompts.
        problems: texts of training problems.
        count: number of texts; at most one for each of ``prompts``.
        seed: of the texts and of the draw at each step; different on each process.
        prompts: token ids of the prompts to answer; ``None``: the model writes user turns, too.

    Raises:
        ConfigError: the tokenizer has no chat template, and there are no ``prompts``.
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
        if prompts is not None:
            self._around_turn = [(ids, list[int]()) for ids in draw.sample(prompts, min(count, len(prompts)))]
        elif self._tokenizer.chat_template:
            self._around_turn = [
                user_turn_ids(
                    self._tokenizer,
                    start=" ".join(draw.choice(problems).split()[:_STARTING_WORDS]) if number % 4 < 2 else "",
                    end=renderer.instruction if number % 2 else "",
                    **renderer.student_kwargs,
                )
                for number in range(count)
            ]
        else:
            expected = "a tokenizer with one, rehearsal_dataset, or weight 0"
            raise ConfigError("rehearsal_weight needs a chat template", expected=expected)
        self._count = len(self._around_turn)
        self._seed = seed
        self.texts: list[list[int]] = []
        """Token ids of the texts, after the opening of the user turn; empty before ``prepare``."""
        self._hidden: list[Tensor] = []

    def prepare(self, model: nn.Module, sampling: Callable[[], AbstractContextManager[Any]]) -> None:
        """Write the texts, and compute the initial model's hidden states on them.

        Args:
            model: the policy, with its initial weights.
            sampling: a context that yields the unwrapped model for generation.
        """
        with sampling() as unwrapped:
            sampler = TransformersSampler(
                unwrapped, self._tokenizer, max_new_tokens=TURN_TOKENS, top_p=_TOP_P, batch_size=_BATCH
            )
            openings = [opening for opening, _ in self._around_turn]
            turns: list[list[int]] = [[] for _ in openings]
            if self._writes_turns:
                written = sampler.sample(openings, seed=self._seed)
                closings = [closing for _, closing in self._around_turn]
                turns = [[*_without_end(turn), *closing] for turn, closing in zip(written, closings, strict=True)]
            asked = [[*opening, *turn] for opening, turn in zip(openings, turns, strict=True)]
            answers = sampler.sample(asked, seed=self._seed + 1)
        self.texts = [[*turn, *answer.completion_ids] for turn, answer in zip(turns, answers, strict=True)]
        with torch.no_grad():
            for first in range(0, self._count, _BATCH):
                texts = self.texts[first : first + _BATCH]
                openings = [opening for opening, _ in self._around_turn[first : first + _BATCH]]
                hidden = hidden_states(model, openings, texts)
                self._hidden += hidden.split([len(text) for text in texts])

    def batch(self, count: int, step: tuple[int, int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The texts for a micro-batch.

        Args:
            count: how many, at most all.
            step: numbers of the optimizer step and the micro-batch, which seed the draw.
            device: of the result.

        Returns:
            A batch in TRL's layout, with ``prompt_ids`` and ``prompt_mask`` ``[R, P]`` (the opening of the user turn)
            and ``completion_ids`` and ``completion_mask`` ``[R, T]`` (the text); and the initial model's hidden states
            ``[n, H]`` that predict the texts' n tokens.
        """
        drawn = random.Random(f"{self._seed} {step}").sample(range(self._count), min(count, self._count))
        inputs: dict[str, Tensor] = {}
        for part, side, rows in (
            ("prompt", "left", [self._around_turn[number][0] for number in drawn]),
            ("completion", "right", [self.texts[number] for number in drawn]),
        ):
            ids = [torch.tensor(row, device=device) for row in rows]
            for name, values in (("ids", ids), ("mask", [torch.ones_like(row) for row in ids])):
                inputs[f"{part}_{name}"] = pad_sequence(values, batch_first=True, padding_side=side)
        return inputs, torch.cat([self._hidden[number] for number in drawn])


def texts_of_step(rollouts: int, part: int, parts: int) -> tuple[int, int]:
    """The number of texts that an optimizer step reads, and of those that its micro-batch ``part`` reads.

    Args:
        rollouts: of each micro-batch.
        part: number of the micro-batch, from 0. The first reads one or more.
        parts: micro-batches of the step.
    """
    total = max(1, rollouts * parts // ROLLOUTS_PER_TEXT)
    until, before = (-(-total * end // parts) for end in (part + 1, part))  # rounded up
    return total, until - before


def rehearsal_prompts(
    problems: Sequence[Problem], tokenizer: Any, args: VerifiedConfig, max_prompt_length: int
) -> list[list[int]]:
    """Token ids of the prompts of ``args.rehearsal_dataset``, without the run's instruction.

    Raises:
        PromptError: a prompt leaves no room for an answer; the message has the id of the first one.
    """
    renderer = PromptRenderer(
        tokenizer,
        instruction="",
        thinking=args.thinking,
        chat_template_kwargs=args.chat_template_kwargs,
        text_only=all_text(problems),
    )
    prompts = [renderer.student_ids(problem) for problem in problems]
    room = max_prompt_length - max(0, TURN_TOKENS - args.max_completion_length)  # answers may be longer
    long = [(problem.id, len(prompt)) for problem, prompt in zip(problems, prompts, strict=True) if len(prompt) > room]
    if long:
        raise PromptError(
            "prompts of rehearsal_dataset are too long",
            got=f"{len(long)} of {len(prompts)}, such as {long[0][0]} of {long[0][1]} tokens",
            expected=f"at most {room}",
        )
    return prompts


def _without_end(rollout: Rollout) -> tuple[int, ...]:
    return rollout.completion_ids[: -1 if rollout.stop_reason is StopReason.END else None]
