"""One forward of prompts and completions: the log-probability of every completion token.

A prompt and its completion are one row without a gap, filled up on the right, so that every completion token is
predicted from its true predecessor and a batch gives what each row alone does; where rows continue a prompt's keys and
values, prompts are padded on the left, with a mask and explicit position ids. Only completion positions reach the
head, a tile at a time: rows × vocabulary is never held whole.
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
        first = first_of_equals(map(tuple, prompts), row_bytes(targets), row_bytes(completion_mask))
    rows = sorted(set(first))
    columns = completion_columns(
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


def completion_columns(
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


def _output_head(model: nn.Module) -> nn.Module | None:
    causal = _causal_model(model)
    return None if causal is None else causal.get_output_embeddings()


def _selected_logits(model: nn.Module, select: _Select, width: int, **inputs: Any) -> tuple[Tensor, Any]:
    """``select(model(**inputs).logits)``, ``[N, width, V]``, and the output.

    Unequal prompts keep more positions than one more than that: then the head's product is made of none but those
    selected.
    """
    head = _output_head(model)
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
    causal, head = _causal_model(model), _output_head(model)
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


def first_of_equals(*parts: Iterable[Hashable]) -> list[int]:
    """For each row, given by its parts, the number of the first one that equals it."""
    numbers: dict[tuple[Hashable, ...], int] = {}
    return [numbers.setdefault(row, n) for n, row in enumerate(zip(*parts, strict=True))]


def row_bytes(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.cpu().numpy()]


def _draws_dropout(model: nn.Module) -> bool:
    """Whether two equal rows may differ: a model that is trained with dropout, in modules or in its attention."""
    draws = any(isinstance(module, nn.Dropout) and module.training and module.p > 0 for module in model.modules())
    causal = _causal_model(model)
    attention = 0 if causal is None else causal.config.get_text_config().to_dict().get("attention_dropout")
    return draws or bool(model.training and attention)


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
