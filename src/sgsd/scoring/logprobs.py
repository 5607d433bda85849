"""Log-probabilities of given completions after given prompts, without gradient, in chunks of bounded memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sgsd.prompts import shared_start
from sgsd.scoring.heads import (
    Output,
    Reduction,
    Request,
    Select,
    add_scoring,
    backbone,
    causal_model,
    rope_kind,
    rope_switch,
)

_FILLER_ID = 0  # at padded positions, which are masked; any id would do

_Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of its completion."""


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, T the longest of them.

    Attributes:
        logps: ``[N, T]``, float32, natural log, 0 where ``mask`` is False.
        mask: ``[N, T]``, bool, True on completion tokens.
        entropy: ``[N, T]``, float32, in nats, of each token's distribution; ``None`` without ``with_entropy``.
        top_ids: ``[N, T, L]``, int64, each distribution's L likeliest tokens, the likeliest first.
        top_logps: ``[N, T, L]``, float32, of ``top_ids``; 0 where ``mask`` is False.
        other_logps: ``[N, T, M]``, float32, of the tokens in ``others``; 0 where ``mask`` is False.
        tokens: how many tokens were forwarded, prompts and completions without padding.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None
    top_ids: Tensor
    top_logps: Tensor
    other_logps: Tensor
    tokens: int = 0

    @classmethod
    def of_nothing(cls, device: torch.device, *, top_tokens: int = 0, others: int = 0) -> Scores:
        """The scores of no completions: N is 0."""
        logps, top_logps = torch.zeros(0, 1, device=device), torch.zeros(0, 1, top_tokens, device=device)
        other_logps = torch.zeros(0, 1, others, device=device)
        return cls(logps, logps.bool(), None, top_logps.long(), top_logps, other_logps)


@torch.no_grad()
def score_completions(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    max_tokens_per_chunk: int = 8192,
    with_entropy: bool = False,
    top_tokens: int = 0,
    others: Tensor | None = None,
    share_prompts: bool = True,
    min_chunks: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Log-probabilities of ``completions[n]`` after ``prompts[n]``, full vocabulary, without gradient.

    The result equals that of scoring each pair alone and unpadded. A prompt and its completion are one row, padded on
    the right. Equal pairs are scored once. Pairs whose prompts are equal, or begin with the same tokens, share the keys
    and values of these tokens, if the model's cache allows it. Prompts are sorted by length and scored in chunks of
    about ``max_tokens_per_chunk`` tokens, padding included, so memory does not grow with N.

    Args:
        model: a causal language model of transformers, wrapped or not. Its training mode does not change.
        prompts: N sequences of token ids, each of one token or more.
        completions: N sequences of token ids, as sampled.
        temperature: divides the logits; 1.0 scores the model's own distribution.
        max_tokens_per_chunk: the budget of one chunk. A longer pair is a chunk of its own.
        with_entropy: also return entropies.
        top_tokens: L, also return the L likeliest tokens of each distribution; at most the vocabulary's size.
        others: ``[N, T or more, M]``, further token ids to score at each completion token's position; those beyond the
            longest completion are not read.
        share_prompts: let pairs share the keys and values of their prompts.
        min_chunks: run at least this many chunks, so that all ranks of a sharded model make equally many forwards; see
            ``chunk_count``.
        progress: called after each chunk with the numbers of chunks done and in all.

    Raises:
        ValueError: the counts differ, there is no pair, a prompt is empty, or ``others`` has another shape.
        ConfigError: see ``causal_model``.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"one prompt per completion, and at least one: got {len(prompts)} prompts, {len(completions)} completions"
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt must have at least one token: nothing predicts the first completion token otherwise")
    add_scoring(model)
    device = next(model.parameters()).device
    others = _within(completions, others)
    pairs, first, chunks = _planned(model, prompts, completions, max_tokens_per_chunk, others)
    chunks += [[0]] * (min_chunks - len(chunks))  # repeats of the first pair, only for their number of forwards
    kind = rope_kind(causal_model(model))
    can_share = share_prompts and _can_share(causal_model(model))
    ids, mask = (part.to(device) for part in _padded(completions, "right"))
    T = ids.shape[1]

    def select(flat: Tensor) -> Select:
        return Select(flat_targets(ids, others, flat), (temperature,), top_tokens, with_entropy)

    results: list[tuple[Tensor, ...]] = []
    tokens = 0
    for done, numbers in enumerate(chunks, 1):
        rows = [pairs[n] for n in numbers]
        shares = can_share and kind(max(map(_length, rows))) == 0
        if can_share and not shares:  # other ranks make two forwards for this chunk
            model(input_ids=torch.full((1, 1), _FILLER_ID, device=device), use_cache=False)
        cuts = _shared_lengths(rows) if shares else [0] * len(rows)
        tokens += _forwarded_tokens(rows, cuts)
        results += _forward(model, rows, cuts, torch.tensor(numbers, device=device) * T, select)
        if progress is not None:
            progress(done, len(chunks))
    flat, *kept = map(torch.cat, zip(*results, strict=True))

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(len(ids) * T, *values.shape[1:])
        whole[flat] = values
        return whole.unflatten(0, (len(ids), T))[first]

    logps, entropy, top_ids, top_logps = map(spread, kept)
    return Scores(
        logps=logps[..., 0].float(),
        mask=mask.bool(),
        entropy=entropy.float() if with_entropy else None,
        top_ids=top_ids,
        top_logps=top_logps.float(),
        other_logps=logps[..., 1:].float(),
        tokens=tokens,
    )


def chunk_count(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    max_tokens_per_chunk: int = 8192,
    others: Tensor | None = None,
) -> int:
    """How many chunks ``score_completions`` runs. The maximum over ranks is every rank's ``min_chunks``."""
    return len(_planned(model, prompts, completions, max_tokens_per_chunk, _within(completions, others))[2])


@torch.no_grad()
def hidden_states(model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """``[n, H]``: the last layer's hidden state that predicts each completion token, row after row.

    ``head_logits`` turns them into logits.

    Args:
        model, prompts, completions: as for ``score_completions``.

    Raises:
        ConfigError: see ``causal_model``.
    """
    add_scoring(model)
    pairs = _pairs(prompts, completions)
    causal, device = causal_model(model), next(model.parameters()).device
    longest = max(map(_length, pairs))
    one_kind = rope_kind(causal)(widest(longest, device) if rope_switch(causal) else longest) == 0
    starts = torch.zeros(len(pairs), dtype=torch.long, device=device)  # not used
    batches = [pairs] if one_kind else [[pair] for pair in pairs]
    kept = [_forward(model, batch, [0] * len(batch), starts, lambda flat: None) for batch in batches]
    return torch.cat([hidden for [(_, hidden)] in kept])


@torch.no_grad()
def context_errors(model: nn.Module, ids: Sequence[int]) -> tuple[float, float]:
    """How much hidden states change with padding on the left, and with later tokens: 0 but for rounding, else wrong.

    Args:
        model: as for ``score_completions``, in evaluation mode.
        ids: a sequence of two tokens or more.

    Returns:
        Means over positions of the relative change; about 1 where states have nothing to do with each other.
    """
    add_scoring(model)
    causal = causal_model(model)
    positions = "position_ids" in inspect.signature(backbone(causal)[1].forward).parameters
    positions &= causal.config.get_text_config() is causal.config  # multimodal ones have further dimensions
    device = next(model.parameters()).device

    def states(tokens: Sequence[int], padding: int = 0) -> Tensor:
        rows = torch.tensor([[_FILLER_ID] * padding + list(tokens)], device=device)
        mask = torch.tensor([[0] * padding + [1] * len(tokens)], device=device)
        index = torch.arange(padding, rows.shape[1], device=device)
        inputs = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if positions else {}
        output = model(input_ids=rows, attention_mask=mask, use_cache=False, score=Request(index, None), **inputs)
        return output.kept[0].float()

    def change(one: Tensor, other: Tensor) -> float:
        return ((one - other).norm(dim=1) / other.norm(dim=1)).mean().item()

    alone, half = states(ids), len(ids) // 2
    return change(states(ids, padding=8), alone), change(states(ids[:half]), alone[:half])


def flat_targets(ids: Tensor, others: Tensor | None, flat: Tensor) -> Tensor:
    """``[n, 1 + M]``: the sampled token of ``ids`` ``[B, T]`` and those of ``others`` ``[B, T, M]`` at the flat
    indices ``b · T + t``.

    Raises:
        ValueError: ``others`` has another B or T.
    """
    if others is not None and others.shape[:2] != ids.shape:
        raise ValueError(f"others must be [B, T, M] of ids [B, T]: got {tuple(others.shape)} and {tuple(ids.shape)}")
    sampled = ids.flatten()[flat].unsqueeze(1)
    return sampled if others is None else torch.cat([sampled, others.flatten(0, 1)[flat]], dim=1)


def token_places(lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Row and position of each token in completions of these lengths, row after row, on the CPU."""
    ranges = [torch.arange(length) for length in lengths]
    rows = [torch.full_like(positions, row) for row, positions in enumerate(ranges)]
    return torch.cat(rows), torch.cat(ranges)


def widest(width: int, device: torch.device) -> int:
    """The largest width over all processes, which must make equally many forwards."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return width
    widest = torch.tensor(width, device=device)
    torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
    return int(widest)


# ---- chunks


def _within(completions: Sequence[Sequence[int]], others: Tensor | None) -> Tensor | None:
    """``others`` up to the longest completion: longer ones of the batch may not be scored."""
    return None if others is None else others[:, : max(map(len, completions))]


def _planned(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    max_tokens: int,
    others: Tensor | None,
) -> tuple[list[_Pair], list[int], list[list[int]]]:
    """The pairs; for each pair the number of the first equal one; and these numbers, divided into chunks.

    Pairs are sorted by rope kind, then by prompt, the longest first. A chunk of R rows with U distinct prompts costs
    U·P + R·T tokens, where P and T are the lengths of its longest prompt and completion.
    """
    pairs = _pairs(prompts, completions)
    other_bytes = [b""] * len(pairs) if others is None else [row.tobytes() for row in others.cpu().numpy()]
    numbers: dict[Hashable, int] = {}
    first = [numbers.setdefault(row, n) for n, row in enumerate(zip(pairs, other_bytes, strict=True))]

    kind = rope_kind(causal_model(model))
    kinds = {n: kind(_length(pairs[n])) for n in numbers.values()}

    def order(n: int) -> Any:
        prompt, completion = pairs[n]
        return kinds[n], -len(prompt), prompt, -len(completion)

    chunks: list[list[int]] = []
    distinct: set[tuple[int, ...]] = set()
    P = T = 0
    for n in sorted(kinds, key=order):
        prompt, completion = pairs[n]
        distinct.add(prompt)
        P, T = max(P, len(prompt)), max(T, len(completion))
        same_kind = chunks and kinds[n] == kinds[chunks[-1][0]] and (kinds[n] or not kind(P + T))
        if same_kind and len(distinct) * P + (len(chunks[-1]) + 1) * T <= max_tokens:
            chunks[-1].append(n)
        else:
            chunks.append([n])
            distinct, P, T = {prompt}, len(prompt), len(completion)
    return pairs, first, chunks


def _pairs(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[_Pair]:
    return [(tuple(prompt), tuple(completion)) for prompt, completion in zip(prompts, completions, strict=True)]


def _length(pair: _Pair) -> int:
    return len(pair[0]) + len(pair[1])


# ---- shared keys and values


def _can_share(causal: PreTrainedModel) -> bool:
    """Whether several rows can continue the cached keys and values of one prompt.

    Every layer must cache plain keys and values by position. Recurrent states and multimodal positions are excluded.
    """
    config = causal.config
    if config.get_text_config() is not config:
        return False
    if vars(config).get("attn_temperature_tuning"):  # Llama-4's depends on cache positions, padding included
        return False
    if causal.is_activation_checkpointing and causal.training:
        return False
    if "position_ids" not in inspect.signature(backbone(causal)[1].forward).parameters:
        return False
    layers: list[Any] = []
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # configurations that do not fit DynamicCache
        layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _shared_lengths(rows: Sequence[_Pair]) -> list[int]:
    """The length of each prompt's prefix that is forwarded once for all rows that begin with it.

    The prefix is the whole prompt, or the common prefix of all prompts (a document before many problems) where that
    saves a quarter of the tokens or more. The common prefix excludes a prompt's last token, which predicts the
    completion's first.
    """
    prompts = {prompt for prompt, _ in rows}
    whole = [len(prompt) for prompt, _ in rows]
    common = [min(shared_start(min(prompts), max(prompts)), min(whole) - 1)] * len(rows)
    return common if 4 * _forwarded_tokens(rows, common) <= 3 * _forwarded_tokens(rows, whole) else whole


def _forwarded_tokens(rows: Sequence[_Pair], cuts: Sequence[int]) -> int:
    """How many tokens are forwarded, without padding, if prefixes of these lengths are shared."""
    prefixes = {prompt[:cut] for (prompt, _), cut in zip(rows, cuts, strict=True)}
    return sum(map(len, prefixes)) + sum(map(_length, rows)) - sum(cuts)


def _forward(
    model: nn.Module,
    rows: Sequence[_Pair],
    cuts: Sequence[int],
    starts: Tensor,
    reduction: Callable[[Tensor], Reduction | None],
) -> list[tuple[Tensor, ...]]:
    """For each forward, the flat indices of the completion tokens it scored, and the reduction's tensors.

    The first forward is of the distinct prefixes ``prompt[:cut]``, padded on the left. The second is of everything
    after them, padded on the right, and continues their keys and values. If all cuts are 0, there is only the second.

    Args:
        starts: ``[R]``, the flat index of each row's first completion token.
        reduction: flat indices → reduction.
    """
    device = starts.device
    prefixes = [prompt[:cut] for (prompt, _), cut in zip(rows, cuts, strict=True)]
    rest = [(*prompt[cut:], *completion) for (prompt, completion), cut in zip(rows, cuts, strict=True)]
    row, t = token_places(len(completion) for _, completion in rows)
    prompt_left = torch.tensor([len(prompt) - cut for (prompt, _), cut in zip(rows, cuts, strict=True)])
    at = prompt_left[row] + t - 1  # the position in ``rest`` that predicts a token; −1 is the end of its prefix
    ids, mask = (part.to(device) for part in _padded(rest, "right"))
    kept: list[tuple[Tensor, ...]] = []

    def forward(chosen: Tensor | slice, position: Tensor, **inputs: Any) -> Output:
        flat = starts[row[chosen].to(device)] + t[chosen].to(device)
        output: Output = model(**inputs, score=Request(position[chosen].to(device), reduction(flat)))
        kept.append((flat, *output.kept))
        return output

    if not any(cuts):
        forward(slice(None), row * ids.shape[1] + at, input_ids=ids, use_cache=False)
        return kept
    distinct = {prefix: number for number, prefix in enumerate(dict.fromkeys(prefixes))}
    number = torch.tensor([distinct[prefix] for prefix in prefixes])
    prefix_ids, prefix_mask = (part.to(device) for part in _padded(list(distinct), "left"))
    cache = forward(
        at < 0,
        (number[row] + 1) * prefix_ids.shape[1] - 1,
        input_ids=prefix_ids,
        attention_mask=prefix_mask,
        position_ids=(prefix_mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
    ).past_key_values
    if not isinstance(cache, DynamicCache):  # the model returns no cache, although its configuration promises one
        return _forward(model, rows, [0] * len(rows), starts, reduction)
    number = number.to(device)
    cache.batch_select_indices(number)
    prefix_mask = prefix_mask[number]
    forward(
        at >= 0,
        row * ids.shape[1] + at,
        input_ids=ids,
        attention_mask=torch.cat([prefix_mask, mask], dim=1),
        position_ids=prefix_mask.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=device),
        past_key_values=cache,
        use_cache=True,
    )
    return kept


def _padded(sequences: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, each ``[N, longest]``, int64, on the CPU, padded on the ``left`` or the ``right``."""
    width = max(1, max(map(len, sequences)))
    ids = torch.full((len(sequences), width), _FILLER_ID, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            where = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, where] = 1
    return ids, mask
