"""The gradient of every family's gated loss equals plain loops: rows one by one, unpadded, the model's own log-softmax.

The trainer makes its step as ever, rollouts of prompts of unequal lengths in one batch; a callback reads the gradients
before the optimizer does. The loops know the model, the token ids, and equations (1) to (6) of docs/method.md.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback

from sgsd.controls import uncounted_token_ids
from sgsd.retrieval import Pair, Retrieval

from ..conftest import make_tokenizer
from .models import EOS, FAMILIES, ODD, make, make_swallowing
from .training import BANK, make_trainer

pytestmark = pytest.mark.families

WEIGHTS = 0.75, 0.25
THRESHOLD = 1e-3  # some families' logits are flat
# Of the largest entry: families compute norms, softmax and rotations in float32 within float64. The delta rule adds up
# logarithms of decays there; in float64 its gradients differ a hundred times less.
TOLERANCE = {"qwen3.5": 5e-4, "qwen3-next": 5e-4}
# As a mask, float64's lowest number overflows in these families' float32.
IN_FLOAT32 = {"gemma-2", "bloom"}


class Fixed:
    """Two pairs of unequal weight, for every problem."""

    name = "fixed"

    def retrieve(self, queries, bank, k):
        pairs = tuple(Pair(bank.skills[n], bank.mistakes[n], 0.5) for n in range(2))
        return [Retrieval(pairs, WEIGHTS) for _ in queries]


class Gradients(TrainerCallback):
    """A copy of every gradient, before the optimizer's step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.of = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
            for name, weight in model.named_parameters()
        }


def own_logps(model, prompt: list[int], completion: list[int]) -> list[torch.Tensor]:
    """The model's log-probability of each token, one row alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    logps = logits.log_softmax(-1)
    return [logps[len(prompt) - 1 + t, token] for t, token in enumerate(completion)]


def row_loss(student: list[torch.Tensor], teachers: list[list[float]], counted: list[int], outcome: int):
    """Equations (1) to (6), τ = 1, c = 3, θ = 0.001."""
    loss = torch.zeros((), dtype=torch.float64)
    for weight, teacher in zip(WEIGHTS, teachers, strict=True):
        gaps = [teacher[t] - student[t] for t in counted]
        support = sum(max(-3.0, min(3.0, gap.item())) for gap in gaps) / max(1, len(counted))
        stance = 0 if abs(support) <= THRESHOLD else math.copysign(1, support)
        gate = sum(math.log(2) - (1 + (-gap.square() / 2).exp()).log() for gap in gaps) / max(1, len(counted))
        loss = loss + weight * outcome * stance * gate
    return loss


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize("name", [*FAMILIES, *ODD, "swallows logits_to_keep"])
def test_the_gradient_is_that_of_plain_loops(name, G, tmp_path):
    """Measured: at most 1e-4 of the largest entry with the delta rule, 1e-5 with the others.

    Seen on 029fdea: no step at G = 4 (B2: qwen3.5, qwen3-next, granite-4, falcon-h1, lfm2, nemotron-h, bamba, jamba);
    another gradient with pad id 0 (A1: gemma-2, -3, -4, granite, granite-4, cohere, cohere-2, falcon-h1), on
    both sides of a switch (A5: phi-3), and where all logits are given whatever is asked (A2).
    """
    pad_id = 0 if G == 1 else EOS
    room = {"max_position_embeddings": 256} if name == "llama-ntk" else {}

    def fresh():
        if name not in FAMILIES | ODD:
            return make_swallowing()
        dtype = torch.float32 if name in IN_FLOAT32 else torch.float64
        options = {"experts_implementation": "eager"}  # the others have no float64
        zeros = None if name == "gemma-3n" else pad_id  # whose own gradient is NaN at embeddings of zeros
        return make(name, dtype=dtype, pad_id=zeros, implementation=options, **room)

    gradients = Gradients()
    trainer, rollouts = make_trainer(
        tmp_path,
        fresh(),
        "gated",
        G=G,
        pad_id=pad_id,
        retriever=Fixed(),
        callbacks=[gradients],
        support_threshold=THRESHOLD,
        max_grad_norm=1e9,  # not clipped
        router_aux_loss_coef=0.0,  # its test is another
    )
    trainer.train()

    model = fresh()
    uncounted = uncounted_token_ids(make_tokenizer())
    losses = []
    for problem, completion in zip(rollouts.problems, rollouts.completions, strict=True):
        prompt = trainer.renderer.student_ids(problem)
        with torch.no_grad():
            teachers = [
                [logp.item() for logp in own_logps(model, shown, completion)]
                for pair in zip(BANK.skills[:2], BANK.mistakes[:2], strict=True)
                for shown in [trainer.renderer.teacher_ids(problem, [pair])]
            ]
        counted = [t for t, token in enumerate(completion) if token not in uncounted]
        # All are cut off, hence failures.
        losses.append(row_loss(own_logps(model, prompt, completion), teachers, counted, outcome=-1))
    assert len(losses) == 4
    loss = sum(losses) / len(losses)
    loss.backward()

    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-5)
    expected = {
        parameter: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for parameter, weight in model.named_parameters()
    }
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-3
    off = max((gradients.of[parameter] - expected[parameter]).abs().max() for parameter in expected)
    assert off / largest < TOLERANCE.get(name, 2e-5)
