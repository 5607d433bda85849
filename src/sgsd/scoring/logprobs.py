"""Log-probabilities of given completions under many prompts, in chunks: the hot path.

Equal pairs are scored once, and pairs with one prompt share its keys and values. Token ids are scored as sampled, never
re-tokenised, and masked by length, never by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgsd.scoring.forwards import completion_columns, first_of_equals, padded, row_bytes


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, T the longest of them.

    Attributes:
        logps: ``[N, T]``, float32, natural log, 0 where ``mask`` is False.
        mask: ``[N, T]``, bool, True on completion tokens.
        entropy: ``[N, T]``, float32, in nats, of the distribution each token was drawn from; ``None`` unless asked for.
        top_ids: ``[N, T, L]``, int64, each distribution's L likeliest tokens, the likeliest first.
        top_logps: ``[N, T, L]``, float32, theirs. What stands where ``mask`` is False has no meaning.
        other_logps: ``[N, T, M]``, float32, of the tokens asked about, with no meaning there either.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None
    top_ids: Tensor
    top_logps: Tensor
    other_logps: Tensor


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
) -> Scores:
    """Log-probabilities of ``completions[n]`` after ``prompts[n]``, full vocabulary, without gradient.

    Equals scoring each pair alone and unpadded. Equal pairs are scored once: a policy that is sure gives one answer
    several times. Pairs with one prompt share its keys and values: the G rollouts of a problem cost each teacher one
    prompt. Prompts are sorted by length and scored, with all their completions, in chunks of about
    ``max_tokens_per_chunk`` tokens, padding included, so memory does not grow with N.

    Args:
        model: a causal language model that takes ``logits_to_keep`` and, for shared prompts, a key-value cache. Its
            training mode is left as it is.
        prompts: N token id sequences, each of one token or more.
        completions: N token id sequences, as sampled.
        temperature: divides the logits; 1.0 scores the model's own distribution.
        max_tokens_per_chunk: the budget of one chunk. A pair longer than it makes a chunk of its own.
        with_entropy: also return entropies.
        top_tokens: L, also return the L likeliest tokens of each distribution, at most the vocabulary's.
        others: ``[N, T, M]``, token ids that are scored in each completion token's place, too.
        share_prompts: see ``forwards.completion_logits``; False where no two pairs have one prompt saves a forward per
            chunk.
        min_chunks: make at least this many chunks (at most N), so that all ranks of a sharded model can make the
            same number; see ``chunk_count``.

    Raises:
        ValueError: if the counts differ, nothing is given, or a prompt is empty.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"one prompt per completion, and at least one: got {len(prompts)} prompts, {len(completions)} completions"
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt must have at least one token: nothing predicts the first completion token otherwise")
    device = next(model.parameters()).device
    N, T = len(prompts), max(1, max(map(len, completions)))
    logps = torch.zeros(N, T, device=device)
    entropy = torch.zeros(N, T, device=device) if with_entropy else None
    L = top_tokens
    top_ids, top_logps = torch.zeros(N, T, L, dtype=torch.long, device=device), torch.zeros(N, T, L, device=device)
    asked = torch.zeros(N, T, 0, dtype=torch.long, device=device) if others is None else others
    M = asked.shape[-1]
    other_logps = torch.zeros(N, T, M, device=device)
    lengths = torch.tensor([len(completion) for completion in completions], device=device)
    first = first_of_equals(map(tuple, prompts), map(tuple, completions), *_rows_of(others))
    if len(set(first)) < min_chunks:  # too few to make chunks of
        first = list(range(N))
    for rows in chunk_rows(prompts, completions, max_tokens_per_chunk, min_chunks, among=set(first)):
        completion_ids, completion_mask = padded([completions[n] for n in rows], "right", device)
        columns = completion_columns(
            model,
            [prompts[n] for n in rows],
            completion_ids,
            completion_mask,
            torch.cat([completion_ids.unsqueeze(-1), asked[rows, : completion_ids.shape[1]]], dim=-1),
            share_prompts=share_prompts,
            temperatures=[temperature],
            with_entropy=with_entropy,
            top_tokens=L,
        ).float()
        width = completion_ids.shape[1]
        logps[rows, :width] = columns[..., 0]
        other_logps[rows, :width] = columns[..., 1 : 1 + M]
        top_logps[rows, :width] = columns[..., 1 + M : 1 + M + L]
        top_ids[rows, :width] = columns[..., columns.shape[-1] - L :].long()
        if entropy is not None:
            entropy[rows, :width] = columns[..., 1 + M + L]
    mask = torch.arange(T, device=device) < lengths.unsqueeze(1)
    return Scores(
        logps=logps[first].masked_fill(~mask, 0.0),
        mask=mask,
        entropy=None if entropy is None else entropy[first].masked_fill(~mask, 0.0),
        top_ids=top_ids[first],
        top_logps=top_logps[first],
        other_logps=other_logps[first],
    )


def _rows_of(others: Tensor | None) -> list[list[bytes]]:
    return [] if others is None else [row_bytes(others)]


def chunk_count(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    max_tokens_per_chunk: int = 8192,
    others: Tensor | None = None,
) -> int:
    """How many chunks ``score_completions`` makes. The maximum over ranks is every rank's ``min_chunks``."""
    among = set(first_of_equals(map(tuple, prompts), map(tuple, completions), *_rows_of(others)))
    return len(chunk_rows(prompts, completions, max_tokens_per_chunk, 1, among=among))


def chunk_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    max_tokens: int,
    min_chunks: int,
    *,
    among: Iterable[int] | None = None,
) -> list[list[int]]:
    """Row numbers of each chunk, all or those ``among`` them, longest prompts first; rows of one prompt side by side.

    A chunk of R rows over U distinct prompts, P and T the longest prompt and completion, costs U·P + R·T tokens.
    """
    rows = range(len(prompts)) if among is None else sorted(among)
    order = sorted(rows, key=lambda n: (-len(prompts[n]), tuple(prompts[n]), -len(completions[n])))
    chunks: list[list[int]] = []
    distinct: set[tuple[int, ...]] = set()
    P = T = 0
    for n in order:
        P, T = max(P, len(prompts[n])), max(T, len(completions[n]))
        distinct.add(tuple(prompts[n]))
        if chunks and len(distinct) * P + (len(chunks[-1]) + 1) * T <= max_tokens:
            chunks[-1].append(n)
        else:
            chunks.append([n])
            distinct = {tuple(prompts[n])}
            P, T = len(prompts[n]), len(completions[n])
    while len(chunks) < min(min_chunks, len(order)):
        widest = max(range(len(chunks)), key=lambda c: len(chunks[c]))
        rows = chunks.pop(widest)
        half = len(rows) // 2
        chunks[widest:widest] = [rows[:half], rows[half:]]
    return chunks
