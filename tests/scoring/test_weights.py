from __future__ import annotations

import io

import peft
import pytest
import torch
from torch import nn

from sgsd.errors import CheckpointError
from sgsd.scoring.logprobs import score_completions
from sgsd.scoring.weights import TEACHERS, TeacherWeights

from ..conftest import make_model
from ..reference import exact_copy

STEP, DECAY = 0.002, 0.99


def trained(model: nn.Module, by: float = 0.01) -> None:
    """As if by an optimizer."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


def adapted(**settings) -> nn.Module:
    return peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules="all-linear", **settings))


def parameters_in_place(weights: TeacherWeights, model: nn.Module) -> list[torch.Tensor]:
    with weights.in_place():
        return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_average_of_many_small_steps_is_that_of_plain_float64(dtype):
    """A3: in bfloat16, a hundredth of a small step rounds to nothing."""
    model = nn.Linear(4, 4, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    teacher = TeacherWeights(model, "ema", ema_decay=DECAY)
    policy = exact = 1.0
    for step in range(1, 501):
        policy += STEP
        with torch.no_grad():
            model.weight.fill_(policy)
        exact = DECAY * exact + (1 - DECAY) * model.weight[0, 0].double().item()
        teacher.after_optimizer_step(step)
    assert exact > 1.7
    [average] = teacher.state_dict().values()
    torch.testing.assert_close(average, torch.full_like(average, exact), rtol=0, atol=1e-4)
    [held] = parameters_in_place(teacher, model)
    assert held.dtype == dtype
    assert torch.equal(held, average.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", TEACHERS)
def test_the_policys_very_tensors_are_back_afterwards_even_after_an_error(kind, dtype):
    model = make_model().to(dtype).train()
    teacher = TeacherWeights(model, kind)
    trained(model)
    before = [(parameter, parameter.data_ptr(), parameter.detach().clone()) for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), teacher.in_place():  # noqa: PT012
        assert not model.training
        moved = [not torch.equal(parameter, kept) for parameter, _, kept in before]
        raise ZeroDivisionError
    assert all(moved) == any(moved) == (kind != "live")
    assert model.training
    for parameter, (same, pointer, kept) in zip(model.parameters(), before, strict=True):
        assert parameter is same
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, kept)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", TEACHERS)
def test_within_autocast_each_side_scores_with_its_own_weights(kind, tied):
    """Autocast keeps casts by parameter: without care the teacher scores with the policy's, or the other way round."""
    model = make_model(tie_word_embeddings=tied)
    initial, teacher = exact_copy(model), TeacherWeights(model, kind)
    trained(model, 0.05)

    def logps(of: nn.Module) -> torch.Tensor:
        return score_completions(of, [[5, 6, 7]], [[40, 50, 60]]).logps

    def alone(of: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return logps(of)

    own, taught = alone(model), alone(model if kind == "live" else initial)
    assert torch.equal(own, taught) == (kind == "live")
    for first in (True, False):  # whoever scores first
        with torch.autocast("cpu", torch.bfloat16):
            if first:
                assert torch.equal(logps(model), own)
            with teacher.in_place():
                assert torch.equal(logps(model), taught)
            assert torch.equal(logps(model), own)


def test_an_optimizer_made_before_goes_on_with_the_policy():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    teacher = TeacherWeights(model, "frozen")
    first = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        with teacher.in_place():
            score_completions(model, [[5, 6]], [[7]])
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.logsumexp(-1).sum().backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, parameters_in_place(teacher, model), strict=True))


@pytest.mark.parametrize("init", [True, False], ids=["adapter of zeros", "adapter that changes the model"])
@pytest.mark.parametrize("adapter_off", [True, False])
def test_a_frozen_teacher_of_an_adapter_is_the_base_or_the_adapter_as_it_was(adapter_off, init):
    model = adapted(init_lora_weights=init)
    pair = [[5, 6, 7]], [[8, 9, 10]]
    as_it_was = score_completions(model, *pair).logps
    teacher = TeacherWeights(model, "frozen", adapter_off=adapter_off)
    trained(model, 0.05)
    with teacher.in_place():
        scores = score_completions(model, *pair).logps
    base = score_completions(make_model(), *pair).logps
    torch.testing.assert_close(scores, base if adapter_off else as_it_was, rtol=0, atol=1e-5)
    assert ((as_it_was - base).abs().max() > 1e-2) == (not init)
    assert (score_completions(model, *pair).logps - scores).abs().max() > 1e-3
    assert len(teacher.state_dict()) == (0 if adapter_off else sum(part.requires_grad for part in model.parameters()))


@pytest.mark.parametrize("kind", ["frozen", "ema", "periodic"])
def test_copies_are_of_what_is_trained_and_nothing_else(kind):
    model = adapted()
    teacher = TeacherWeights(model, kind)
    held, own = teacher.state_dict(), [part for part in model.parameters() if part.requires_grad]
    assert [part.shape for part in held.values()] == [part.shape for part in own]
    assert sum(part.numel() for part in held.values()) < sum(part.numel() for part in model.parameters()) / 2


def test_a_periodic_teacher_changes_at_multiples_of_its_period_only():
    model = nn.Linear(2, 2)
    first = [part.detach().clone() for part in model.parameters()]
    teacher = TeacherWeights(model, "periodic", sync_steps=3)
    for step in range(1, 8):
        with torch.no_grad():
            for part in model.parameters():
                part.fill_(step)
        teacher.after_optimizer_step(step)
        held = parameters_in_place(teacher, model)
        expected = first if step < 3 else [torch.full_like(part, 3 if step < 6 else 6) for part in first]
        assert all(torch.equal(a, b) for a, b in zip(held, expected, strict=True))


@pytest.mark.parametrize("kind", ["frozen", "ema", "periodic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_checkpoint_gives_back_the_bits_of_a_teacher(kind, dtype):
    model = make_model().to(dtype)
    teacher = TeacherWeights(model, kind, sync_steps=2)
    for step in (1, 2, 3):
        trained(model)
        teacher.after_optimizer_step(step)
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    again = TeacherWeights(make_model(seed=1).to(dtype), kind, sync_steps=2)
    again.load_state_dict(torch.load(file, weights_only=True))
    for old, new in zip(teacher.state_dict().values(), again.state_dict().values(), strict=True):
        assert old.dtype == new.dtype
        assert torch.equal(old, new)
        assert old.data_ptr() != new.data_ptr()
    assert teacher.saved == (kind != "frozen")


def test_a_checkpoint_of_another_model_is_refused():
    teacher = TeacherWeights(make_model(), "ema")
    for other in (make_model(hidden_size=16), make_model(num_hidden_layers=1)):
        with pytest.raises(CheckpointError, match="do not fit the model"):
            teacher.load_state_dict(TeacherWeights(other, "ema").state_dict())
    with pytest.raises(CheckpointError):
        teacher.load_state_dict({})
