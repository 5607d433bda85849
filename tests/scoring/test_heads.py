from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM

from sgsd.errors import ConfigError
from sgsd.scoring.heads import add_scoring, head_logits
from sgsd.scoring.logprobs import hidden_states, score_completions

from ..conftest import make_model
from ..families.models import make, make_swallowing
from .passes import assert_gradients, loop_gradients, student_pass
from .test_logprobs import unequal_pairs, unpadded_logps
from .test_student import weights_for

HEADS = {
    "plain": ("llama", {}),
    "scaled": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 8.0}),
    "capped": ("gemma-2", {"final_logit_softcapping": 3.0}),
    "scaled before": ("minicpm3", {}),
}


class Cut(LlamaForCausalLM):
    """Fewer logits than its head makes."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits[..., :250]
        return output


class Biased(LlamaForCausalLM):
    """Tokens of its own liking."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits + torch.linspace(0, 9, 264)
        return output


class Forbidding(LlamaForCausalLM):
    """Tokens that never come."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits.masked_fill(torch.arange(264) >= 250, float("-inf"))
        return output


class Doubting(LlamaForCausalLM):
    """More between backbone and head than a scale."""

    def forward(self, input_ids=None, **inputs):
        hidden = self.model(input_ids=input_ids, **inputs).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden.tanh()))


OTHERS = {"Cut": Cut, "Biased": Biased, "Forbidding": Forbidding, "Doubting": Doubting}


def other_model(name: str):
    torch.manual_seed(0)
    return OTHERS[name](make_model().config).eval()


def assert_right(model, seed: int = 4, **options) -> None:
    prompts, completions = unequal_pairs(seed, n=3)
    completions = [[token % 240 for token in completion] for completion in completions]
    scores = score_completions(model, prompts, completions, **options)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, _ = unpadded_logps(model, prompt, completion)
        torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("tiles_of_four_rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_what_a_model_does_around_its_head_is_not_lost(head, dtype):
    name, settings = HEADS[head]
    model = make(name, dtype=dtype, **settings)
    prompts, completions = unequal_pairs(4, n=3)
    scores = score_completions(model, prompts, completions, share_prompts=False)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, _ = unpadded_logps(model, prompt, completion)
        off = 1e-4 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=off)


@pytest.mark.usefixtures("tiles_of_four_rows")
@pytest.mark.parametrize("head", HEADS)
def test_gradients_pass_through_what_a_model_does_around_its_head(head):
    name, settings = HEADS[head]

    def fresh():
        return make(name, **settings)

    model, (prompts, completions) = fresh(), unequal_pairs(4, n=3)
    weights = weights_for(completions)
    student = student_pass(model, prompts, completions)
    (student.spread(student.kept[0])[..., 0] * weights).sum().backward()
    assert_gradients(model, loop_gradients(fresh, prompts, completions, weights.double()))


@pytest.mark.parametrize("zeros", ["token 0", "head"])
@pytest.mark.parametrize("head", HEADS)
def test_zeros_hide_nothing_of_what_a_model_does_around_its_head(head, zeros):
    """A1: token 0's embedding is zero where it is the padding; heads begin at zero in some models."""
    name, settings = HEADS[head]
    model = make(name, pad_id=0, tie_word_embeddings=False, **settings)
    assert not model.get_input_embeddings().weight[0].any()
    if zeros == "head":
        weight = model.get_output_embeddings().weight.data
        before = weight.clone()
        weight.zero_()
        assert_right(model)
        weight.copy_(before)
    assert_right(model)


@pytest.mark.usefixtures("tiles_of_four_rows")
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_whatever_a_model_does_around_its_head_is_its_own_code(name, share_prompts):
    assert_right(other_model(name), share_prompts=share_prompts)


@pytest.mark.parametrize("name", OTHERS)
def test_and_it_learns_through_it(name):
    model = other_model(name)
    prompts, completions = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13]]
    weights = weights_for(completions)
    student = student_pass(model, prompts, completions)
    (student.spread(student.kept[0])[..., 0] * weights).sum().backward()
    assert_gradients(model, loop_gradients(lambda: other_model(name), prompts, completions, weights.double()))


@pytest.mark.parametrize("share_prompts", [True, False])
def test_a_model_that_gives_all_logits_whatever_is_asked_is_scored_at_the_right_positions(share_prompts):
    """A2."""
    assert_right(make_swallowing(), share_prompts=share_prompts)


@pytest.mark.parametrize("head", HEADS)
def test_hidden_states_and_the_head_give_the_models_logits(head):
    name, settings = HEADS[head]
    model, prompts, completions = make(name, **settings), [[5, 6, 7], [8]], [[9, 10], [11, 12, 13]]
    hidden = hidden_states(model, prompts, completions)
    assert not hidden.requires_grad
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        torch.testing.assert_close(head_logits(model, hidden), torch.cat(rows), rtol=0, atol=1e-4)


# ---- what scoring leaves behind


def test_a_forward_that_fails_leaves_the_model_as_it_was(model):
    ids = torch.tensor([[5, 6]])
    before = model(input_ids=ids).logits
    for asked in ({}, {"top_tokens": 999}):
        with pytest.raises(RuntimeError, match=r"out of (bounds|range)"):
            score_completions(model, [[3]], [[4 if asked else 999]], **asked)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_right(model)


def test_scoring_is_added_once_and_the_forward_keeps_its_signature(model):
    signature = inspect.signature(model.forward)
    add_scoring(model)
    forward = model.forward
    score_completions(model, [[5]], [[6]])
    assert model.forward == forward
    assert inspect.signature(model.forward) == signature  # generation refuses what is not in it


def test_a_copy_of_a_scored_model_computes_with_its_own_weights(model):
    score_completions(model, [[5]], [[6]])
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    ids = torch.tensor([[5, 6]])
    fresh = make_model()
    fresh.load_state_dict(copied.state_dict())
    assert torch.equal(copied(input_ids=ids).logits, fresh(input_ids=ids).logits)
    scores = [score_completions(each, [[5, 6]], [[7, 8]]).logps for each in (copied, fresh)]
    assert torch.equal(*scores)


def test_what_is_no_language_model_is_refused():
    with pytest.raises(ConfigError, match="not a transformers model"):
        add_scoring(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_under_autocast_are_float32_of_the_forwards_that_training_makes(dtype):
    model = make_model().to(dtype)
    prompts, completions = unequal_pairs(4, n=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_completions(model, prompts, completions, with_entropy=True)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            logps, _ = unpadded_logps(model, prompt, completion)
            torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=0.15)
    assert scores.logps.dtype == scores.entropy.dtype == torch.float32


@pytest.mark.parametrize("tuning", [True, False])
def test_attention_whose_temperature_goes_by_the_cache_is_not_shared(tuning):
    """Llama-4; seen before the mend: 0.2 nats off where prompts of unequal length are shared."""
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        intermediate_size_mlp=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.3,
        num_local_experts=4,
        attention_chunk_size=512,
        no_rope_layers=[1, 0],
        floor_scale=16,
        attn_scale=0.5,
        attn_temperature_tuning=tuning,
        pad_token_id=0,
    )
    model = transformers.Llama4ForCausalLM(config).eval()
    prompts = [[5 + n % 7 for n in range(30)], [9, 3, 4, 200, 17]] * 2
    completions = [[10, 11, 12, 13, 14, 15]] * 2 + [[30, 31, 32, 1]] * 2
    scores = score_completions(model, prompts, completions)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, _ = unpadded_logps(model, prompt, completion)
        torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=1e-4)
