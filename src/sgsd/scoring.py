"""Log-probabilities of given completions under many prompts, in chunks: the hot path.

A prompt and its completion are one row without a gap, filled up on the right, so that every completion token is
predicted from its true predecessor and a batched score equals the unpadded one; where rows continue a prompt's keys and
values, prompts are padded on the left, with a mask and explicit position ids. Only completion positions
reach the head, a tile at a time: rows × vocabulary is never held whole. Token ids are scored as sampled, never
re-tokenised, and masked by length, never by id.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgsd.objectives.logprobs import head_logps, logps_columns

_Select = Callable[[Tensor], Tensor]

_FILLER_ID = 0  # stands at padded positions; any id would do, since attention and masks go by length


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

    def forward(ids: Tensor, mask: Tensor, select: _Select, **inputs: Any) -> tuple[Tensor, Any]:
        return _selected_logits(model, select, mask.shape[1], **inputs)

    return _forwards(forward, prompts, completion_ids, completion_mask, completion_ids, share_prompts=share_prompts)


def completion_logps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    others: Tensor | None = None,
    temperatures: Sequence[float] = (1.0,),
    with_entropy: bool = False,
    share_prompts: bool,
) -> list[tuple[Tensor, Tensor | None]]:
    """Log-probabilities of each completion token, and entropies, without ever holding all rows' logits.

    They carry a gradient where gradients are on; entropies never do. Equal rows are forwarded once, and their gradients
    add up, unless the model draws dropout.

    Args:
        model, prompts, completion_ids, completion_mask, share_prompts: as for ``completion_logits``.
        others: ``[N, T, M]``, token ids that are scored in each completion token's place, too.
        temperatures: each divides the logits.
        with_entropy: also return entropies.

    Returns:
        For each temperature ``(logps, entropy)``, in float32, nats, anything where the mask is False: ``logps`` is
        ``[N, T]``, or ``[N, T, 1 + M]`` with others; ``entropy``, ``[N, T]``, is ``None`` unless asked for.
    """
    ids = completion_ids.unsqueeze(-1)
    targets = ids if others is None else torch.cat([ids, others], dim=-1)
    first = list(range(len(prompts)))
    if not _draws_dropout(model):
        first = _first_of_equals(map(tuple, prompts), _row_bytes(targets), _row_bytes(completion_mask))
    rows = sorted(set(first))
    columns = _columns(
        model,
        [prompts[row] for row in rows],
        completion_ids[rows],
        completion_mask[rows],
        targets[rows],
        share_prompts=share_prompts,
        temperatures=temperatures,
        with_entropy=with_entropy,
    )[[rows.index(row) for row in first]]
    passes: list[tuple[Tensor, Tensor | None]] = []
    for part in columns.chunk(len(temperatures), dim=-1):
        logps, entropy = (part[..., :-1], part[..., -1].detach()) if with_entropy else (part, None)
        passes.append((logps.squeeze(-1) if others is None else logps, entropy))
    return passes


def _columns(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    targets: Tensor,
    *,
    share_prompts: bool,
    **asked: Any,
) -> Tensor:
    """``[N, T, C]`` of the ``[N, T, M]`` targets, as ``objectives.logprobs.logps_columns`` has it."""

    def forward(ids: Tensor, mask: Tensor, select: _Select, **inputs: Any) -> tuple[Tensor, Any]:
        return forward_logps(model, ids, mask, select, asked=asked, **inputs)

    return _forwards(forward, prompts, completion_ids, completion_mask, targets, share_prompts=share_prompts)


def forward_logps(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    select: _Select,
    *,
    asked: dict[str, Any],
    **inputs: Any,
) -> tuple[Tensor, Any]:
    """One forward of ``model(**inputs)``, and the log-probabilities of ``ids`` in the logits' place.

    Inside the forward the output head gives log-probabilities tile by tile, so that whatever a wrapper does around
    model and head (gathering their weights, say) is done. Where the model does more to its logits than its head
    (Gemma caps them, Granite and Cohere scale them), they are made whole.

    Args:
        model: as for ``completion_logits``.
        ids, mask: ``[N, T, M]``, tokens to score, and ``[N, T]``.
        select: from ``[n, t, ...]``, the positions that ``inputs`` keeps, to the ``[N, T, ...]`` that predict ``ids``.
        asked: keyword arguments of ``objectives.logprobs.logps_columns``.
        inputs: of the model.

    Returns:
        ``[N, T, C]`` as ``objectives.logprobs.logps_columns`` has it, and the model's output; its ``logits`` are not
        to be used.
    """
    head = _plain_head(model, ids.device)
    if head is None:
        logits, output = _selected_logits(model, select, mask.shape[1], **inputs)
        return logps_columns(logits, ids, **asked), output

    def scored(product: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        return head_logps(product, hidden, ids, mask, select=select, vocabulary=head.vocabulary, **asked)

    with _replaced_forward(head.module, scored):
        output = model(**inputs)
    return output.logits, output


def _forwards(
    forward: Callable[..., tuple[Tensor, Any]],
    prompts: Sequence[Sequence[int]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    targets: Tensor,
    *,
    share_prompts: bool,
) -> Tensor:
    """``[N, T, ...]`` of the one or two forwards that ``completion_logits`` describes."""
    device, T = completion_ids.device, completion_ids.shape[1]
    if not share_prompts:
        ids, kept, predicting = _contiguous(prompts, completion_ids)
        # No token sees what fills its row up on the right: without a mask, attention keeps to its causal kernels.
        return forward(targets, completion_mask, predicting, input_ids=ids, logits_to_keep=kept, use_cache=False)[0]

    first, cache, prompt_mask = forward_prompts(forward, prompts, targets[:, :1], completion_mask[:, :1])
    rest, _ = forward(
        targets[:, 1:],
        completion_mask[:, 1:],
        lambda kept: kept[:, :-1],
        input_ids=completion_ids,
        attention_mask=torch.cat([prompt_mask, completion_mask.to(torch.long)], dim=1),
        position_ids=prompt_mask.sum(1, keepdim=True) + torch.arange(T, device=device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, rest], dim=1)


def _contiguous(prompts: Sequence[Sequence[int]], completion_ids: Tensor) -> tuple[Tensor, int, _Select]:
    """Prompts and completions without a gap between them, filled up on the right.

    Returns:
        ``[N, P + T]``, P the longest prompt; how many of the last positions there are from the first one on that
        predicts a completion token; and what selects, from these, the ``[N, T, ...]`` that do.
    """
    (N, T), device = completion_ids.shape, completion_ids.device
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    prompt_ids, prompt_mask = padded(prompts, "right", device)
    positions = prompt_mask.sum(1, keepdim=True) + torch.arange(T, device=device)
    ids = torch.nn.functional.pad(prompt_ids, (0, T), value=_FILLER_ID).scatter(1, positions, completion_ids)

    def predicting(kept: Tensor) -> Tensor:
        if shortest == longest:
            return kept[:, :T]
        return kept[torch.arange(N, device=device).unsqueeze(1), positions - shortest]

    return ids, longest + T - shortest + 1, predicting


def forward_prompts(
    forward: Callable[..., tuple[Tensor, Any]], prompts: Sequence[Sequence[int]], first_ids: Tensor, first_mask: Tensor
) -> tuple[Tensor, Any, Tensor]:
    """One forward of each distinct prompt, to be continued by every row that has it.

    Args:
        forward: as ``forward_logps`` with all but ids, mask, select and inputs given.
        prompts: N token id sequences.
        first_ids, first_mask: ``[N, 1, M]``, ``[N, 1]``, what to score in the place of the completions' first tokens.

    Returns:
        ``[N, 1, ...]`` of the first tokens; the cache, of N rows; ``[N, P]``, the mask of the prompts in it.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    position = {prompt: row for row, prompt in enumerate(distinct)}
    of_row = torch.tensor([position[tuple(prompt)] for prompt in prompts], device=first_ids.device)
    prompt_ids, prompt_mask = padded(distinct, "left", first_ids.device)
    first, output = forward(
        first_ids,
        first_mask,
        lambda kept: kept[of_row],
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=1,
        use_cache=True,
    )
    output.past_key_values.batch_select_indices(of_row)
    return first, output.past_key_values, prompt_mask[of_row]


@dataclass(frozen=True)
class _Head:
    """The module that makes a model's logits out of hidden states, and how many there are."""

    module: nn.Module
    vocabulary: int


# Of each output head that has been used: whether its product is the model's logits.
_PLAIN_HEADS: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def _causal_model(model: nn.Module) -> PreTrainedModel | None:
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)


def _selected_logits(model: nn.Module, select: _Select, width: int, **inputs: Any) -> tuple[Tensor, Any]:
    """``select(model(**inputs).logits)``, ``[N, width, V]``, and the output.

    Unequal prompts keep more positions than one more than that: then the head's product is made of none but those
    selected.
    """
    causal = _causal_model(model)
    head = None if causal is None else causal.get_output_embeddings()
    if head is None or inputs.get("logits_to_keep", 0) <= width + 1:
        output = model(**inputs)
        return select(output.logits), output
    with _replaced_forward(head, lambda product, hidden: product(select(hidden))):
        output = model(**inputs)
    return output.logits, output


def _plain_head(model: nn.Module, device: torch.device) -> _Head | None:
    """The model's output head, if its product is the model's logits just as it is.

    Known from one forward of one token, the first time that a head is seen: no list of model families would be whole.
    """
    causal = _causal_model(model)
    head = None if causal is None else causal.get_output_embeddings()
    if causal is None or head is None:
        return None
    if head not in _PLAIN_HEADS:
        products: list[Tensor] = []

        def kept(product: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
            products.append(product(hidden))
            return products[-1]

        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), _replaced_forward(head, kept):
            token = torch.full((1, 1), _FILLER_ID, device=device)
            logits = model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False).logits
        _PLAIN_HEADS[head] = len(products) == 1 and torch.equal(products[0].float(), logits.float())
    return _Head(head, causal.config.get_text_config().vocab_size) if _PLAIN_HEADS[head] else None


@contextmanager
def _replaced_forward(
    module: nn.Module, forward: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Iterator[None]:
    """Inside, the module's forward is ``forward``, which is given the original one and its input."""
    original, is_own = module.forward, "forward" in module.__dict__
    module.forward = partial(forward, original)
    try:
        yield
    finally:
        if is_own:
            module.forward = original
        else:
            del module.forward


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
    L = top_tokens
    top_ids, top_logps = torch.zeros(N, T, L, dtype=torch.long, device=device), torch.zeros(N, T, L, device=device)
    asked = torch.zeros(N, T, 0, dtype=torch.long, device=device) if others is None else others
    M = asked.shape[-1]
    other_logps = torch.zeros(N, T, M, device=device)
    lengths = torch.tensor([len(completion) for completion in completions], device=device)
    first = _first_of_equals(map(tuple, prompts), map(tuple, completions), *_rows_of(others))
    if len(set(first)) < min_chunks:  # too few to make chunks of
        first = list(range(N))
    for rows in chunk_rows(prompts, completions, max_tokens_per_chunk, min_chunks, among=set(first)):
        completion_ids, completion_mask = padded([completions[n] for n in rows], "right", device)
        columns = _columns(
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


def _first_of_equals(*parts: Iterable[Hashable]) -> list[int]:
    """For each row, given by its parts, the number of the first one that equals it."""
    numbers: dict[tuple[Hashable, ...], int] = {}
    return [numbers.setdefault(row, n) for n, row in enumerate(zip(*parts, strict=True))]


def _rows_of(others: Tensor | None) -> list[list[bytes]]:
    return [] if others is None else [_row_bytes(others)]


def _row_bytes(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.cpu().numpy()]


def _draws_dropout(model: nn.Module) -> bool:
    """Whether two equal rows may differ: a model that is trained with dropout, in modules or in its attention."""
    draws = any(isinstance(module, nn.Dropout) and module.training and module.p > 0 for module in model.modules())
    causal = _causal_model(model)
    attention = 0 if causal is None else causal.config.get_text_config().to_dict().get("attention_dropout")
    return draws or bool(model.training and attention)


def chunk_count(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    max_tokens_per_chunk: int = 8192,
    others: Tensor | None = None,
) -> int:
    """How many chunks ``score_completions`` makes. The maximum over ranks is every rank's ``min_chunks``."""
    among = set(_first_of_equals(map(tuple, prompts), map(tuple, completions), *_rows_of(others)))
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


def padded(sequences: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, each ``[N, longest]``, int64; filled up on the ``left`` or the ``right``."""
    width = max(1, max(map(len, sequences)))
    ids = torch.full((len(sequences), width), _FILLER_ID, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            where = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, where] = 1
    return ids.to(device), mask.to(device)
