from __future__ import annotations

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from sgsd.objectives import selected_logps
from sgsd.scoring.logprobs import hidden_states, score_completions

from ..conftest import make_model
from ..families.models import FAMILIES, ODD, make
from .passes import (
    ROPES,
    SWITCH,
    VOCABULARY,
    LargestTensor,
    assert_gradients,
    loop_gradients,
    padded,
    rope_model,
    student_pass,
)
from .test_logprobs import drawn, unequal_pairs, unpadded_logps

LONG = [[5, 6, 7], [5, 6, 7], [8, 9], [10, 11]], torch.arange(2, 82).view(4, 20).tolist()  # 80 rows of logits
tiled = pytest.mark.usefixtures("tiles_of_four_rows")


def weights_for(completions) -> torch.Tensor:
    ids, mask = padded(completions, "right")
    return torch.randn(ids.shape, generator=torch.Generator().manual_seed(0)) * mask


@tiled
@pytest.mark.parametrize("tie", [True, False])
def test_gradients_of_tiles_equal_those_of_unpadded_float64_loops(tie):
    def make():
        return make_model(tie_word_embeddings=tie, initializer_range=0.1)

    model, (prompts, completions) = make(), unequal_pairs()
    weights = weights_for(completions)
    student = student_pass(model, prompts, completions, temperatures=(1.0, 0.7))
    sum((student.spread(student.kept[at])[..., 0] * weights).sum() for at in (0, 2)).backward()
    loops = [loop_gradients(make, prompts, completions, weights.double(), temperature) for temperature in (1.0, 0.7)]
    assert_gradients(model, {name: loops[0][name] + loops[1][name] for name in loops[0]})


def test_log_probabilities_and_entropies_are_those_of_each_row_alone(model):
    prompts, completions = unequal_pairs()
    student = student_pass(model, prompts, completions, temperatures=(1.0, 0.7), returned=(2, 3))
    T = max(map(len, completions))
    W = max(map(len, prompts)) + T - 1
    assert student.output.log_probs.shape == (len(prompts), W)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        for at, temperature in ((0, 1.0), (2, 0.7)):
            logps, entropy = unpadded_logps(model, prompt, completion, temperature)
            found = student.spread(student.kept[at])[row, : len(completion), 0], student.spread(student.kept[at + 1])
            torch.testing.assert_close(found[0], logps, rtol=0, atol=1e-4)
            torch.testing.assert_close(found[1][row, : len(completion)], entropy, rtol=0, atol=1e-4)
        # where TRL reads them, at the temperature that it trains with, and nothing beside them
        torch.testing.assert_close(student.output.log_probs[row, -T:][: len(completion)], logps, rtol=0, atol=1e-4)
        torch.testing.assert_close(student.output.entropy[row, -T:][: len(completion)], entropy, rtol=0, atol=1e-4)
        assert not student.output.log_probs[row, : W - T].any()
        assert not student.output.log_probs[row, W - T + len(completion) :].any()
    assert student.kept[0].requires_grad
    assert not student.kept[1].requires_grad


@tiled
@pytest.mark.parametrize("scored", [[1, 3], [0], [2, 4], []])
def test_rows_without_a_scored_token_are_not_forwarded(model, scored):
    prompts, completions = unequal_pairs()
    weights = weights_for(completions)
    mask = padded(completions, "right")[1] * torch.tensor([[row in scored] for row in range(len(prompts))])
    whole, part = (student_pass(model, prompts, completions, mask=each) for each in (None, mask))
    expected = whole.spread(whole.kept[0])[..., 0] * mask
    found = part.spread(part.kept[0])[..., 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    gradients = []
    for logps in (expected, found):
        model.zero_grad()
        (logps * weights).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_gradients(model, gradients[0])
    rows = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    student_pass(model, prompts, completions, mask=mask)
    hook.remove()
    assert rows == [max(1, len(scored))]


@tiled
def test_other_tokens_learn_in_each_ones_place(model):
    prompts, completions = unequal_pairs(2, n=4)
    ids, mask = padded(completions, "right")
    others = torch.randint(0, VOCABULARY, (*ids.shape, 2), generator=torch.Generator().manual_seed(1))
    student = student_pass(model, prompts, completions, others=others)
    scores = score_completions(model, prompts, completions, others=others)
    logps = student.spread(student.kept[0])
    torch.testing.assert_close(logps[..., 1:], scores.other_logps * mask.unsqueeze(-1), rtol=0, atol=1e-4)
    logps[..., 1].sum().backward()
    swapped = [others[row, : len(completion), 0].tolist() for row, completion in enumerate(completions)]
    total: dict[str, torch.Tensor] = {}
    for prompt, completion, other in zip(prompts, completions, swapped, strict=True):
        exact = make_model().double()
        at = exact(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        at[range(len(other)), other].sum().backward()
        for name, parameter in exact.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad
    assert_gradients(model, total)


@tiled
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_rows_times_vocabulary_is_never_held_whole(model, share_prompts, with_gradient):
    prompts, completions = LONG
    whole = 80 * VOCABULARY
    with LargestTensor() as largest:
        if with_gradient:
            student_pass(model, prompts, completions).kept[0].sum().backward()
        else:
            score_completions(model, prompts, completions, with_entropy=True, top_tokens=3, share_prompts=share_prompts)
    assert largest.elements < whole / 2
    with LargestTensor() as largest:
        model(input_ids=torch.tensor(completions))
    assert largest.elements >= whole, "the measure would not see it"


@tiled
def test_no_logits_are_kept_for_the_backward(model):
    """Tiles that are small one by one are whole together."""
    kept: list[int] = []

    def note(tensor):
        kept.append(tensor.numel() if tensor.shape[-1:] == (VOCABULARY,) else 0)
        return tensor

    prompts, completions = LONG
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student_pass(model, prompts, completions)
    assert sum(kept) == 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(input_ids=torch.tensor(completions)).logits.log_softmax(-1)
    assert sum(kept) >= 80 * VOCABULARY, "the measure would not see it"


@tiled
def test_an_adapter_on_the_head_is_part_of_it_and_learns(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    prompts, completions = LONG
    gradients = []
    for tiles in (True, False):
        adapted.zero_grad()
        if tiles:
            logps = student_pass(adapted, prompts, completions).kept[0][:, 0]
        else:
            rows = [
                adapted(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
            logps, _ = selected_logps(torch.cat(rows), torch.tensor(completions).flatten())
        logps.sum().backward()
        gradients.append([logps, *(part.grad.clone() for part in adapted.parameters() if part.requires_grad)])
    assert len(gradients[0]) == 3
    assert all(part.any() for part in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", [None, *ROPES])
def test_a_micro_batch_that_is_masked_whole_gives_every_weight_a_gradient_of_zeros(rope):
    """Another process has something to score, and waits for these gradients."""
    model = make_model() if rope is None else rope_model(rope)
    prompts, completions = ([[5] * SWITCH, [6, 7]], [[8, 9], [10]]) if rope else LONG
    student = student_pass(model, prompts, completions, mask=torch.zeros(padded(completions, "right")[0].shape).long())
    assert not student.output.log_probs.any()
    student.output.log_probs.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


# ---- routers


@pytest.mark.parametrize("name", [name for name, family in (FAMILIES | ODD).items() if family.experts])
def test_routers_loss_is_the_models_own(name):
    """B3."""
    model = make(name)
    prompts, completions = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13]]
    student = student_pass(model, prompts, completions, inputs={"output_router_logits": True})
    ids, mask = (
        torch.cat(pair, dim=1) for pair in zip(padded(prompts, "left"), padded(completions, "right"), strict=True)
    )
    own = model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    assert own > 0.5
    torch.testing.assert_close(student.output.aux_loss, own)
    student.output.aux_loss.backward()
    routers = [part for at, part in model.named_parameters() if "router" in at or ".gate." in at]
    assert routers
    assert all(part.grad is not None and part.grad.any() for part in routers)


# ---- models that recompute activations


def checkpointed_by_the_model(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def checkpointed_by_a_wrapper(model):
    """As FSDP's plugin does it: the model does not know."""
    apply_activation_checkpointing(model, check_fn=lambda module: module in list(model.model.layers))


@pytest.mark.parametrize("checkpointed", [checkpointed_by_the_model, checkpointed_by_a_wrapper])
def test_models_that_recompute_activations_are_scored_and_learn_as_others(checkpointed):
    """B4."""
    prompts, completions = unequal_pairs()
    weights, found = weights_for(completions), []
    for model in (make_model(), make_model()):
        if found:
            checkpointed(model)
        model.train()
        scores = score_completions(model, prompts, completions)
        student = student_pass(model, prompts, completions)
        (student.spread(student.kept[0])[..., 0] * weights).sum().backward()
        assert model.training
        found.append([scores.logps, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


# ---- rotary frequencies that depend on length


ON_BOTH_SIDES = drawn([(10, 3), (38, 4), (60, 2), (33, 9)])
ROWS = {
    "rows on both sides": ON_BOTH_SIDES,
    "the switch itself": drawn([(36, 3), (36, 4), (36, 5)]),
    "the switch itself, alone": drawn([(30, 10), (29, 9)]),
    "short rows, padded over it": drawn([(36, 2), (4, 12)]),
    "long rows, shorter ones last": drawn([(70, 2), (60, 2), (50, 2)]),
    "masked rows among them": drawn([(70, 2), (60, 0), (50, 2)]),
}


@tiled
@pytest.mark.parametrize("after_a_longer_row", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rope", ROPES)
def test_a_row_learns_by_the_positions_of_its_own_length(rope, rows, after_a_longer_row):
    """A5."""
    model, (prompts, completions) = rope_model(rope), ROWS[rows]
    if after_a_longer_row:
        score_completions(model, [[5] * 3 * SWITCH], [[6]])
    weights = weights_for(completions)
    student = student_pass(model, prompts, completions)
    logps = student.spread(student.kept[0])[..., 0]
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected, _ = unpadded_logps(rope_model(rope), prompt, completion)
        torch.testing.assert_close(logps[row, : len(completion)].detach(), expected, rtol=0, atol=1e-4)
    (logps * weights).sum().backward()
    assert_gradients(model, loop_gradients(lambda: rope_model(rope), prompts, completions, weights.double()))


@pytest.mark.parametrize("rope", [None, *ROPES])
def test_a_reduction_is_told_the_numbers_of_the_batchs_tokens_however_rows_are_forwarded(rope):
    """A teacher's hidden states are looked up by them."""
    model = make_model() if rope is None else rope_model(rope)
    prompts, completions = ON_BOTH_SIDES
    told: list[int] = []

    def reduction(logits, rows):
        told.extend(range(*rows.indices(18)))
        return logits[:, 0], logits[:, 0].detach()

    student = student_pass(model, prompts, completions, reduction=lambda flat: reduction)
    assert told == list(range(18))
    hidden = hidden_states(model, prompts, completions)
    head = model.get_output_embeddings()
    torch.testing.assert_close(head(hidden)[:, 0], student.kept[0], rtol=0, atol=1e-4)
