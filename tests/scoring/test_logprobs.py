from __future__ import annotations

import pytest
import torch

from sgsd.scoring.logprobs import chunk_count, score_completions

from ..conftest import make_model
from ..families.models import make
from .passes import ROPES, SWITCH, rope_model

PAD_AND_EOS = 1


def unpadded(model, prompt, completion, temperature=1.0) -> torch.Tensor:
    """``[T, V]``: one pair alone, no padding, no chunks, float64 log-softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    return logits[len(prompt) - 1 :][: len(completion)].log_softmax(-1)


def unpadded_logps(model, prompt, completion, temperature=1.0):
    """Log-probabilities and entropies of a pair alone."""
    logps = unpadded(model, prompt, completion, temperature)
    own = logps.gather(-1, torch.tensor(completion, dtype=torch.long).unsqueeze(-1)).squeeze(-1)
    return own.float(), torch.special.entr(logps.exp()).sum(-1).float()


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
@pytest.mark.parametrize(("temperature", "beyond"), [(1.0, 0), (0.7, 0), (1.0, 3)])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_batched_scores_equal_unpadded_ones(model, budget, temperature, beyond, share_prompts):
    """``beyond``: tokens by which a completion of the batch that is not scored is longer."""
    prompts, completions = unequal_pairs()
    prompts, completions = [*prompts, prompts[1]], [*completions, completions[1]]  # equal to another, asked otherwise
    T = max(map(len, completions))
    others = torch.randint(0, 264, (len(prompts), T + beyond, 3), generator=torch.Generator().manual_seed(1))
    options = {"temperature": temperature, "max_tokens_per_chunk": budget, "share_prompts": share_prompts}
    scores = score_completions(model, prompts, completions, with_entropy=True, top_tokens=5, others=others, **options)
    assert scores.logps.shape == (len(prompts), T)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected, t = unpadded(model, prompt, completion, temperature), len(completion)
        likeliest = expected.topk(5)
        own = torch.tensor(completion, dtype=torch.long).unsqueeze(-1)
        for found, wanted in (
            (scores.logps, expected.gather(-1, own).squeeze(-1)),
            (scores.entropy, torch.special.entr(expected.exp()).sum(-1)),
            (scores.other_logps, expected.gather(-1, others[row, :t])),
            (scores.top_logps, likeliest.values),
        ):
            torch.testing.assert_close(found[row, :t], wanted.float(), rtol=0, atol=1e-4)
            assert not found[row, t:].any()
        assert torch.equal(scores.top_ids[row, :t], likeliest.indices)
        assert scores.mask[row].tolist() == [True] * t + [False] * (T - t)
    plain = score_completions(model, prompts, completions, **options)
    torch.testing.assert_close(plain.logps, scores.logps, rtol=0, atol=1e-5)
    assert plain.entropy is None
    assert plain.top_ids.shape[-1] == plain.other_logps.shape[-1] == 0


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


def record_forwards(model, prompts, completions, **options):
    """How many tokens each forward sees; two forwards make a chunk."""
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


def test_chunks_respect_their_budget(model):
    prompts, completions = unequal_pairs(3)
    sizes = record_forwards(model, prompts, completions, max_tokens_per_chunk=120)
    chunks = [prompt + completion for prompt, completion in zip(sizes[::2], sizes[1::2], strict=True)]
    assert max(chunks) <= 120
    assert len(chunks) < len(prompts)


def test_a_shared_prompt_is_forwarded_once(model):
    prompt, completions = list(range(5, 35)), [[7, 8], [9], [10, 11]]
    assert record_forwards(model, [prompt] * 3, completions) == [30, 6]
    assert score_completions(model, [prompt] * 3, completions).tokens == 30 + 5
    assert score_completions(model, [prompt] * 3, completions, share_prompts=False).tokens == 90 + 5


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


@pytest.mark.slow
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
