from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sgsd.objectives import logprobs, selected_logps
from sgsd.scoring.forwards import completion_logits, completion_logps
from sgsd.scoring.logprobs import score_completions

from ..conftest import make_model
from ..reference import exact_copy
from .test_scoring import unequal_pairs, unpadded_logps


def test_shared_prompts_give_the_gradient_of_separate_ones(model):
    prompts = [[5, 6, 7], [5, 6, 7], [8, 9]]
    ids = torch.tensor([[10, 11, 12], [13, 1, 1], [14, 15, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    gradients = []
    for share_prompts in (True, False):
        model.zero_grad()
        logits = completion_logits(model, prompts, ids, mask, share_prompts=share_prompts)
        (selected_logps(logits, ids)[0] * mask).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.fixture
def tiles_of_four_rows(monkeypatch):
    monkeypatch.setitem(logprobs._TILE_LOGITS, "cpu", 4 * 264)


class LargestTensor(TorchDispatchMode):
    """The most elements that the result of any operation has, forward and backward; views count by their own size."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        found = result if isinstance(result, tuple | list) else [result]
        sizes = [tensor.numel() for tensor in found if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


LONG = [[5, 6, 7], [5, 6, 7], [8, 9], [10, 11]], torch.arange(2, 82).view(4, 20)  # 80 rows of a vocabulary of 264


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_rows_times_vocabulary_is_never_held_whole(model, tiles_of_four_rows, share_prompts, with_gradient):
    prompts, ids = LONG
    ones, whole = torch.ones_like(ids), ids.numel() * 264
    with LargestTensor() as largest:
        if with_gradient:
            [(logps, _)] = completion_logps(model, prompts, ids, ones, with_entropy=True, share_prompts=share_prompts)
            logps.sum().backward()
        else:
            score_completions(model, prompts, ids.tolist(), with_entropy=True, share_prompts=share_prompts)
    assert largest.elements < whole / 2
    with LargestTensor() as largest:
        completion_logits(model, prompts, ids, ones, share_prompts=share_prompts)
    assert largest.elements >= whole * 0.95, "the measure would not see it"


def loop_gradients(model, prompts, completions, weights, temperature=1.0):
    """Gradients of Σ weight · logp, each pair alone and unpadded, float64."""
    exact = exact_copy(model).double()
    exact.zero_grad()
    for prompt, completion, row in zip(prompts, completions, weights, strict=True):
        logits = exact(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1)
        (logps[range(len(completion)), completion] * row[: len(completion)]).sum().backward()
    return {name: parameter.grad for name, parameter in exact.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_gradients_of_tiles_equal_those_of_unpadded_float64_loops(tiles_of_four_rows, share_prompts, tie):
    model = make_model(tie_word_embeddings=tie, initializer_range=0.1)
    prompts, completions = unequal_pairs()
    width = max(map(len, completions))
    ids = torch.tensor([completion + [0] * (width - len(completion)) for completion in completions])
    mask = torch.tensor([[1] * len(completion) + [0] * (width - len(completion)) for completion in completions])
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))
    passes = completion_logps(model, prompts, ids, mask, temperatures=[1.0, 0.7], share_prompts=share_prompts)
    sum((logps * weights * mask).sum() for logps, _ in passes).backward()
    expected = [loop_gradients(model, prompts, completions, weights.double(), at) for at in (1.0, 0.7)]
    for name, parameter in model.named_parameters():
        wanted = (expected[0][name] + expected[1][name]).float()
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("share_prompts", [True, False])
def test_equal_rows_are_forwarded_once_and_their_gradients_add_up(model, share_prompts):
    prompts, completions = [[5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7]], [[10, 11], [10, 11], [10, 11], [10, 12]]
    ids, mask = torch.tensor(completions), torch.ones(4, 2, dtype=torch.long)
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))
    rows: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    [(logps, _)] = completion_logps(model, prompts, ids, mask, share_prompts=share_prompts)
    hook.remove()
    assert rows[-2:] == ([2, 3] if share_prompts else [1, 3])  # before them, a token that tells what the head is
    (logps * weights).sum().backward()
    expected = loop_gradients(model, prompts, completions, weights.double())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].float(), rtol=1e-4, atol=1e-5)


def test_rows_whose_other_tokens_differ_are_not_equal(model):
    others = torch.tensor([[[20, 21]], [[20, 22]]])
    ids, mask = torch.tensor([[10], [10]]), torch.ones(2, 1, dtype=torch.long)
    [(logps, _)] = completion_logps(model, [[5, 6]] * 2, ids, mask, others=others, share_prompts=True)
    assert torch.equal(logps[0, 0, :2], logps[1, 0, :2])
    assert logps[0, 0, 2] != logps[1, 0, 2]


@pytest.mark.parametrize("where", ["attention", "adapter"])
def test_equal_rows_that_draw_dropout_of_their_own_are_not_merged(where):
    model = make_model(attention_dropout=0.5 if where == "attention" else 0.0)
    if where == "adapter":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(lora_dropout=0.5, init_lora_weights=False, target_modules="all-linear")
        )
    ids, mask = torch.tensor([[10, 11]] * 2), torch.ones(2, 2, dtype=torch.long)

    def rows() -> torch.Tensor:
        return completion_logps(model, [[5, 6, 7]] * 2, ids, mask, share_prompts=False)[0][0]

    torch.manual_seed(0)
    model.train()
    assert not torch.equal(*rows())
    model.eval()
    assert torch.equal(*rows())


def test_one_tile_gives_the_bits_of_whole_logits(model):
    prompts, ids = LONG
    ones = torch.ones_like(ids)
    found = []
    for tiles in (True, False):
        model.zero_grad()
        if tiles:
            [(logps, entropy)] = completion_logps(model, prompts, ids, ones, with_entropy=True, share_prompts=True)
        else:
            logits = completion_logits(model, prompts, ids, ones, share_prompts=True)
            logps, entropy = selected_logps(logits, ids, with_entropy=True)
        logps.sum().backward()
        found.append([logps, entropy, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def reworked_models():
    """Models that do more to their logits than their head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

    class Cut(LlamaForCausalLM):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits[..., :250]
            return output

    size = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 1}
    torch.manual_seed(0)
    yield Gemma2ForCausalLM(Gemma2Config(**size, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0))
    yield GraniteForCausalLM(GraniteConfig(**size, logits_scaling=4.0))
    yield Cut(make_model().config)


@pytest.mark.parametrize("number", range(3))
def test_what_a_model_does_after_its_head_is_not_lost(tiles_of_four_rows, number):
    model = list(reworked_models())[number].eval()
    prompts, completions = unequal_pairs(4, n=3)
    completions = [[token % 240 for token in completion] for completion in completions]
    scores = score_completions(model, prompts, completions)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, _ = unpadded_logps(model, prompt, completion)
        torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", [None, 0])
def test_no_logits_are_made_of_what_lies_between_the_ends_of_unequal_prompts(monkeypatch, tiles_of_four_rows, number):
    """They would be most of all: rows are contiguous, so completions stand where the longer prompts still go on."""
    model = make_model() if number is None else list(reworked_models())[number].eval()
    product, rows = torch.nn.functional.linear, []

    def spy(inputs, weight, bias=None):
        rows.append(inputs.shape[:-1].numel() if len(weight) == 264 else 0)
        return product(inputs, weight, bias)

    prompts, ids = [[5] * 3, [6] * 200], torch.arange(2, 10).view(2, 4)
    completion_logps(model, prompts, ids, torch.ones_like(ids), share_prompts=False)  # tries the head once
    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    for make in (completion_logits, completion_logps):
        rows.clear()
        make(model, prompts, ids, torch.ones_like(ids), share_prompts=False)
        assert sum(rows) == ids.numel()


def test_an_adapter_on_the_head_is_part_of_it_and_learns(model, tiles_of_four_rows):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    prompts, ids = LONG
    ones, gradients = torch.ones_like(ids), []
    for tiles in (True, False):
        adapted.zero_grad()
        if tiles:
            [(logps, _)] = completion_logps(adapted, prompts, ids, ones, share_prompts=False)
        else:
            logps, _ = selected_logps(completion_logits(adapted, prompts, ids, ones, share_prompts=False), ids)
        logps.sum().backward()
        gradients.append([logps, *(p.grad.clone() for p in adapted.parameters() if p.requires_grad)])
    assert len(gradients[0]) == 3
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_head_is_itself_again_afterwards(model):
    before = model(input_ids=torch.tensor([[5, 6]])).logits
    score_completions(model, [[3, 4]], [[5]])
    with pytest.raises(IndexError):
        completion_logps(model, [[3]], torch.tensor([[999]]), torch.ones(1, 1), share_prompts=False)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6]])).logits, before)


def test_nothing_to_score_still_reaches_every_weight(model, tiles_of_four_rows):
    prompts, ids = LONG
    [(logps, _)] = completion_logps(model, prompts, ids, torch.zeros_like(ids), share_prompts=False)
    logps.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
