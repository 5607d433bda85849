"""Log-probabilities of given completions under many prompts, in chunks: the hot path.

Prompts are padded on the left and completions on the right, with explicit position ids, so that every completion
token is predicted from its true predecessor and a batched score equals the unpadded one. Only completion positions
reach the head. Token ids are scored as sampled, never re-tokenised, and masked by length, never by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgsd.objectives.logprobs import selected_logps

_FILLER_ID = 0  # stands at padded positions; any id would do, since attention and masks go by length


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, T the longest of them.

    Attributes:
        logps: ``[N, T]``, float32, natural log, 0 where ``mask`` is False.
        mask: ``[N, T]``, bool, True on completion tokens.
        entropy: ``[N, T]``, float32, in nats, of the distribution each token was drawn from; ``None`` unless asked for.
        top_ids: ``[N, T, M]``, int64, each distribution's M likeliest tokens; ``None`` unless asked for.
        top_logps: ``[N, T, M]``, float32, theirs.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None
    top_ids: Tensor | None = None
    top_logps: Tensor | None = None


def completion_logits(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    share_prompts: bool,
) -> Tensor:
    """The logits that predict each completion token; carries a gradient where gradients are on.

    Args:
        model: a causal language model, wrapped (DDP, FSDP, DeepSpeed) or not, taking ``logits_to_keep``.
        prompts: N token id sequences.
        completion_ids, completion_mask: ``[N, T]``, padded on the right.
        share_prompts: forward each distinct prompt once and continue its key-value cache: always two forwards, on
            every rank alike. Needs a model that keeps a cache, hence no gradient checkpointing. Otherwise one forward.

    Returns:
        ``[N, T, V]``: at ``t``, the logits that predict completion token ``t``.
    """
    device, T = completion_ids.device, completion_ids.shape[1]
    if not share_prompts:
        prompt_ids, prompt_mask = _padded(prompts, "left", device)
        attention_mask = torch.cat([prompt_mask, completion_mask.to(torch.long)], dim=1)
        logits = model(
            input_ids=torch.cat([prompt_ids, completion_ids], dim=1),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=T + 1,  # the last prompt position predicts the first completion token
            use_cache=False,
        ).logits
        return logits[:, -T - 1 : -1]

    distinct = list(dict.fromkeys(map(tuple, prompts)))
    position = {prompt: row for row, prompt in enumerate(distinct)}
    of_row = torch.tensor([position[tuple(prompt)] for prompt in prompts], device=device)
    prompt_ids, prompt_mask = _padded(distinct, "left", device)
    first = model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=1,
        use_cache=True,
    )
    cache = first.past_key_values
    cache.batch_select_indices(of_row)
    rest = model(
        input_ids=completion_ids,
        attention_mask=torch.cat([prompt_mask[of_row], completion_mask.to(torch.long)], dim=1),
        position_ids=prompt_mask.sum(1)[of_row].unsqueeze(1) + torch.arange(T, device=device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first.logits[of_row], rest.logits[:, :-1]], dim=1)


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
    share_prompts: bool = True,
    min_chunks: int = 1,
) -> Scores:
    """Log-probabilities of ``completions[n]`` after ``prompts[n]``, full vocabulary, without gradient.

    Equals scoring each pair alone and unpadded. Pairs with one prompt share its keys and values: the G rollouts of a
    problem cost each teacher one prompt. Prompts are sorted by length and scored, with all their completions, in
    chunks of about ``max_tokens_per_chunk`` tokens, padding included, so memory does not grow with N.

    Args:
        model: a causal language model that takes ``logits_to_keep`` and, for shared prompts, a key-value cache. Its
            training mode is left as it is.
        prompts: N token id sequences, each of one token or more.
        completions: N token id sequences, as sampled.
        temperature: divides the logits; 1.0 scores the model's own distribution.
        max_tokens_per_chunk: the budget of one chunk. A pair longer than it makes a chunk of its own.
        with_entropy: also return entropies.
        top_tokens: M, also return the M likeliest tokens of each distribution; 0: none. At most the vocabulary's.
        share_prompts: see ``completion_logits``; False where no two pairs have one prompt saves a forward per chunk.
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
    M = top_tokens
    top_ids = torch.zeros(N, T, M, dtype=torch.long, device=device)
    top_logps = torch.zeros(N, T, M, device=device)
    lengths = torch.tensor([len(completion) for completion in completions], device=device)
    for rows in _chunks(prompts, completions, max_tokens_per_chunk, min_chunks):
        completion_ids, completion_mask = _padded([completions[n] for n in rows], "right", device)
        logits = completion_logits(
            model, [prompts[n] for n in rows], completion_ids, completion_mask, share_prompts=share_prompts
        )
        likeliest = logits.topk(M).indices
        chunk_logps, chunk_entropy = selected_logps(
            logits,
            torch.cat([completion_ids.unsqueeze(-1), likeliest], dim=-1),
            temperature=temperature,
            with_entropy=with_entropy,
        )
        width = completion_ids.shape[1]
        logps[rows, :width] = chunk_logps[..., 0].float()
        top_ids[rows, :width] = likeliest
        top_logps[rows, :width] = chunk_logps[..., 1:].float()
        if entropy is not None and chunk_entropy is not None:
            entropy[rows, :width] = chunk_entropy.float()
    mask = torch.arange(T, device=device) < lengths.unsqueeze(1)
    return Scores(
        logps=logps.masked_fill(~mask, 0.0),
        mask=mask,
        entropy=None if entropy is None else entropy.masked_fill(~mask, 0.0),
        top_ids=top_ids if M else None,
        top_logps=top_logps if M else None,
    )


def chunk_count(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, max_tokens_per_chunk: int = 8192
) -> int:
    """How many chunks ``score_completions`` makes. The maximum over ranks is every rank's ``min_chunks``."""
    return len(_chunks(prompts, completions, max_tokens_per_chunk, 1))


def _chunks(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], max_tokens: int, min_chunks: int
) -> list[list[int]]:
    """Row numbers of each chunk, longest prompts first; rows of one prompt side by side.

    A chunk of R rows over U distinct prompts, P and T the longest prompt and completion, costs U·P + R·T tokens.
    """
    order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), tuple(prompts[n]), -len(completions[n])))
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


def _padded(sequences: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(1, max(map(len, sequences)))
    ids = torch.full((len(sequences), width), _FILLER_ID, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            where = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, where] = 1
    return ids.to(device), mask.to(device)
