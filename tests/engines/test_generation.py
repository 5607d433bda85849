"""Sampling in process: reproducible, without side effects, and of what was asked for alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sgsd.engines.generation import TransformersSampler
from sgsd.errors import PromptError
from sgsd.rollouts import StopReason

from ..conftest import make_model
from ..trainers.tiny import LORA

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [20, 21], [30, 31, 32]]
END = 1


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sampler(model, tokenizer, **options):
    return TransformersSampler(model, tokenizer, **{"max_new_tokens": 12, "batch_size": 2} | options)


def ids(rollouts):
    return [rollout.completion_ids for rollout in rollouts]


def test_a_seed_gives_the_same_rollouts_and_another_seed_others(model, tokenizer):
    draw = sampler(model, tokenizer)
    first, again, other = (draw.sample(PROMPTS, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert ids(first) != ids(other)
    assert [rollout.prompt_ids for rollout in first] == [tuple(prompt) for prompt in PROMPTS]


def test_the_global_random_state_is_left_alone(model, tokenizer):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler(model, tokenizer).sample(PROMPTS, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_mode_comes_back_after_a_failure_too(model, tokenizer):
    counts = []

    def fail(done):
        assert not model.training
        counts.append(done)
        if done == len(PROMPTS):
            raise RuntimeError("stop")

    model.train()
    with pytest.raises(RuntimeError, match="stop"):
        sampler(model, tokenizer, progress=fail).sample(PROMPTS, seed=0)
    assert model.training
    assert counts == [2, 4, 5]
    model.eval()
    sampler(model, tokenizer).sample(PROMPTS, seed=0)
    assert not model.training


def test_what_does_not_fit_the_models_context_is_refused_before_anything_is_sampled(model, tokenizer):
    limit = model.config.max_position_embeddings
    told = []
    draw = sampler(model, tokenizer, progress=told.append)
    with pytest.raises(PromptError, match=f"1 of 2 prompts are too long: got up to {limit - 11} tokens") as refused:
        draw.sample([[5], [5] * (limit - 11)], seed=0)
    assert "\n" not in str(refused.value)
    assert told == []
    [rollout] = draw.sample([[5] * (limit - 12)], seed=0)
    assert len(rollout.completion_ids) <= 12


def greedy_by_hand(model, prompt, length):
    row = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
            if row[-1] == END:
                break
    return tuple(row[len(prompt) :])


def test_temperature_zero_is_greedy_whatever_the_batch(model, tokenizer):
    expected = [greedy_by_hand(model, prompt, 12) for prompt in PROMPTS]
    for batch_size in (1, 2, 5):
        draw = sampler(model, tokenizer, temperature=0, batch_size=batch_size)
        assert ids(draw.sample(PROMPTS, seed=0)) == expected
        assert ids(draw.sample(PROMPTS, seed=1)) == expected


def test_stop_reasons_where_padding_and_end_are_one_id(model, tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    with torch.no_grad():
        model.lm_head.weight[END] *= 0
        model.lm_head.weight[END] += model.lm_head.weight[2:].mean(0)
    rollouts = sampler(model, tokenizer, temperature=3.0, max_new_tokens=150, batch_size=8).sample(PROMPTS * 4, seed=0)
    ended = [rollout for rollout in rollouts if rollout.stop_reason is StopReason.END]
    cut = [rollout for rollout in rollouts if rollout.stop_reason is StopReason.LENGTH]
    assert ended
    assert cut
    for rollout in ended:
        assert rollout.completion_ids[-1] == END
        assert END not in rollout.completion_ids[:-1]
        assert "<|im_end|>" not in rollout.text
    for rollout in cut:
        assert END not in rollout.completion_ids
        assert len(rollout.completion_ids) == 150


def test_every_end_of_the_model_ends_a_completion(model, tokenizer):
    first = greedy_by_hand(model, PROMPTS[0], 4)
    model.generation_config.eos_token_id = [END, first[2]]
    (rollout,) = sampler(model, tokenizer, temperature=0).sample(PROMPTS[:1], seed=0)
    assert rollout.completion_ids == first[: first.index(first[2]) + 1]
    assert rollout.stop_reason is StopReason.END


def test_the_models_own_generation_settings_do_not_apply(model, tokenizer):
    plain = sampler(model, tokenizer).sample(PROMPTS, seed=0)
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_p": 0.9,
        "typical_p": 0.2,
        "suppress_tokens": list(range(2, 130)),
        "min_new_tokens": 11,
        "top_k": 1,
        "temperature": 0.1,
        "top_h": 0.1,
        "watermarking_config": {"bias": 9.0, "seeding_scheme": "lefthash"},
        "prompt_lookup_num_tokens": 3,
        "return_dict_in_generate": True,
        "output_scores": True,
        "cache_implementation": "static",
        "renormalize_logits": True,
        "penalty_alpha": 0.6,
        "dola_layers": "high",
        "token_healing": True,
    }.items():
        setattr(model.generation_config, name, value)
    assert sampler(model, tokenizer).sample(PROMPTS, seed=0) == plain


def test_an_adapted_models_head_is_given_one_block_of_memory(tokenizer):
    """As views with gaps its frozen weights are copied once for each row."""
    adapted = get_peft_model(make_model(), LoraConfig(**LORA))
    head = adapted.get_output_embeddings()
    given = []
    with head.register_forward_hook(lambda _, inputs, output: given.append(inputs[0].is_contiguous())):
        TransformersSampler(adapted, tokenizer, max_new_tokens=2).sample([[5, 6, 7], [5, 6, 8]], seed=0)
        assert given == [True, True]
        adapted.generate(input_ids=torch.tensor([[5, 6, 7], [5, 6, 8]]), max_new_tokens=2)
    assert False in given  # outside it is as it was
