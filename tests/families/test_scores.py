"""Scores of every family equal those of one row alone: no padding, no cache, no chunk, the model's own log-softmax.

Seen on 029fdea, with the text of defects.md's kinds A1, A2, A4, A5, B2 and B4: named at each test.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from sgsd.errors import ConfigError
from sgsd.scoring.logprobs import score_completions

from .models import EOS, FAMILIES, LONGROPE_SWITCH, NTK_SWITCH, ODD, make, make_swallowing

pytestmark = pytest.mark.families

LIKELIEST, ASKED = 3, 2
EXACT = 1e-4  # nats, float32


def draw(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(2, 250, (count,), generator=generator).tolist()


def rollouts(G: int, prompt_lengths=(3, 11, 24, 7), longest: int = 10, seed: int = 0):
    """Prompts of these lengths, each G times over, and completions of unequal lengths; one of them empty.

    Pad and end ids stand inside prompts and completions, where they count like any other.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts, completions = [], []
    for length in prompt_lengths:
        prompt = draw(length, generator)
        for _ in range(G):
            prompts.append(prompt)
            completions.append(draw(int(torch.randint(1, longest + 1, (1,), generator=generator)), generator))
    prompts[0][1:2] = [EOS]
    completions[0] = [9, EOS, 0, 11, EOS]
    completions[-1] = [] if G > 1 else completions[-1]
    return prompts, completions


def alone(model, prompt, completion) -> torch.Tensor:
    """``[T, V]``: the model's own log-probabilities of one row by itself, normalised in float64."""
    # A copy: positions of dynamic NTK depend on the rows that a model has seen before.
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :][: len(completion)].double().log_softmax(-1)


def deviation(model, prompts, completions, **options) -> float:
    """The most nats by which any score, entropy, likeliest token or other token is off."""
    T = max(map(len, completions))
    others = torch.randint(2, 250, (len(prompts), T, ASKED), generator=torch.Generator().manual_seed(1))
    expected = [alone(model, *pair) for pair in zip(prompts, completions, strict=True)]
    scores = score_completions(
        model, prompts, completions, with_entropy=True, top_tokens=LIKELIEST, others=others, **options
    )
    assert scores.logps.shape == (len(prompts), T)
    assert scores.logps.dtype == torch.float32
    off = []
    for row, (completion, own) in enumerate(zip(completions, expected, strict=True)):
        t = len(completion)
        assert scores.mask[row].tolist() == [True] * t + [False] * (T - t)
        if not t:
            continue
        logps = own.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
        off += [
            scores.logps[row, :t] - logps,
            scores.entropy[row, :t] + (own.exp() * own).sum(-1),
            scores.other_logps[row, :t] - own.gather(-1, others[row, :t]),
            scores.top_logps[row, :t] - own.topk(LIKELIEST).values,
            scores.top_logps[row, :t] - own.gather(-1, scores.top_ids[row, :t]),
        ]
    worst = torch.stack([part.abs().max() for part in off])
    return float("inf") if worst.isnan().any() else worst.max().item()


@pytest.mark.parametrize("pad_id", [0, EOS])
@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize("name", [*FAMILIES, *ODD])
def test_scores_are_those_of_each_row_alone(name, G, pad_id):
    model = make(name, pad_id=pad_id)
    assert deviation(model, *rollouts(G), share_prompts=G > 1) < EXACT
