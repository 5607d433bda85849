"""What the tests of this folder compare with, and the student's pass as TRL calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sgsd.scoring.heads import Select
from sgsd.scoring.logprobs import flat_targets
from sgsd.scoring.student import StudentPass

from ..conftest import make_model
from ..reference import exact_copy

VOCABULARY = 264
SWITCH = 40  # tokens; longer rows have other rotary frequencies
ROPES = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [9.0, 7.0, 5.0, 3.0]},
    "dynamic": {"factor": 4.0},
}


def rope_model(kind: str):
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    if kind == "longrope":
        parameters["original_max_position_embeddings"] = SWITCH
    return make_model(max_position_embeddings=SWITCH if kind == "dynamic" else 4 * SWITCH, rope_parameters=parameters)


class LargestTensor(TorchDispatchMode):
    """The most elements that the result of any operation has, forward and backward; views count by their own size."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        found = result if isinstance(result, tuple | list) else [result]
        sizes = [tensor.numel() for tensor in found if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def padded(rows: Sequence[Sequence[int]], side: str, width: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, as TRL's batches have them."""
    width = max(width, *map(len, rows))
    filled = [[*row, *[1] * (width - len(row))] if side == "right" else [1] * (width - len(row)) + row for row in rows]
    at = [[t < len(row) if side == "right" else t >= width - len(row) for t in range(width)] for row in rows]
    return torch.tensor(filled), torch.tensor(at).long()


def student_pass(
    model, prompts, completions, *, temperatures=(1.0,), others=None, mask=None, reduction=None, inputs=None, **more
) -> StudentPass:
    """The pass after TRL's call: prompts filled up on the left, completions on the right.

    Args:
        mask: ``[B, T]`` in place of the completions' own.
        inputs: others of the model.
        reduction: in place of ``Select``'s log-probabilities of ``completions`` and others.
    """
    prompt_ids, prompt_mask = padded(prompts, "left")
    ids, own_mask = padded(completions, "right")
    mask = own_mask if mask is None else mask
    reduction = reduction or (lambda flat: Select(flat_targets(ids, others, flat), temperatures))
    student = StudentPass(model, mask, reduction, **more)
    student.output = student(
        input_ids=torch.cat([prompt_ids, ids], dim=1),
        attention_mask=torch.cat([prompt_mask, mask], dim=1),
        labels=None,
        fused_lm_head=True,
        **inputs or {},
    )
    return student


def loop_gradients(
    make: Callable[[], torch.nn.Module], prompts, completions, weights, temperature: float = 1.0
) -> dict[str, torch.Tensor]:
    """Gradients of Σ weight · logp in float64, each pair alone and unpadded, by a model that has seen no other row."""
    total: dict[str, torch.Tensor] = {}
    for prompt, completion, row in zip(prompts, completions, weights, strict=True):
        exact = exact_copy(make()).double()
        logits = exact(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
        logps = (logits / temperature).log_softmax(-1)
        (logps[range(len(completion)), completion] * row[: len(completion)]).sum().backward()
        for name, parameter in exact.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    return total


def assert_gradients(model, expected: dict[str, torch.Tensor]) -> None:
    assert expected
    for name, parameter in model.named_parameters():
        if name in expected:
            wanted = expected[name].float()
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
