"""Log-probabilities of chosen tokens, in float32: from logits without a second tensor of their size, and from hidden
states without ever holding the logits of more than one tile of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

# Logits upcast at a time, in whole rows. On a CPU they stay in a core's cache between the passes over them: 5 rows of a
# 49k vocabulary; elsewhere 220 rows of a 152k vocabulary are 134 MB in float32.
_UPCAST_LOGITS = {"cpu": 2**18}
_UPCAST_LOGITS_ELSEWHERE = 2**25

# Logits of a head's product held at a time. On a CPU they stay small enough for the allocator to use their memory
# again: 128 rows of a 49k vocabulary; elsewhere large enough to keep the device busy: 441 rows of a 152k vocabulary.
_TILE_LOGITS = {"cpu": 6 * 2**20}
_TILE_LOGITS_ELSEWHERE = 2**26


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """May be the logits themselves: not to be written to."""
    return logits if temperature == 1 else logits / temperature


def _upcast_rows(logits: Tensor) -> Iterator[slice]:
    """Rows of ``[N, V]`` that are upcast together, in turn."""
    step = max(1, _UPCAST_LOGITS.get(logits.device.type, _UPCAST_LOGITS_ELSEWHERE) // logits.shape[-1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


class _SelectedLogps(torch.autograd.Function):
    """log softmax(logits / temperature)[ids], M ids a row; keeps logits and log-sum-exp only, and goes by tiles.

    With p = softmax(logits / temperature), d logp / d logits = (onehot(ids) − p) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logps = torch.empty(ids.shape, dtype=dtype, device=logits.device)
        log_sum_exp = torch.empty(len(ids), dtype=dtype, device=logits.device)
        entropy = torch.empty_like(log_sum_exp) if with_entropy else None
        for rows in _upcast_rows(logits):
            tile = _scaled(logits[rows].to(dtype), temperature)
            log_sum_exp[rows] = tile.logsumexp(-1)
            logps[rows] = tile.gather(-1, ids[rows]) - log_sum_exp[rows, None]
            if entropy is not None:
                # H = logsumexp(x) − Σ_v p_v x_v
                probabilities = (tile - log_sum_exp[rows, None]).exp_()
                entropy[rows] = log_sum_exp[rows] - probabilities.mul_(tile).sum(-1)
        ctx.save_for_backward(logits, ids, log_sum_exp)
        ctx.temperature = temperature
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        logits, ids, log_sum_exp = ctx.saved_tensors
        grad = grad_outputs[0] / ctx.temperature
        grad_logits = torch.empty_like(logits)
        for rows in _upcast_rows(logits):
            tile = _scaled(logits[rows].to(log_sum_exp.dtype), ctx.temperature)
            tile = (tile - log_sum_exp[rows, None]).exp_().mul_(-grad[rows].sum(-1, keepdim=True))
            tile.scatter_add_(-1, ids[rows], grad[rows])
            grad_logits[rows] = tile.to(logits.dtype)
        return grad_logits, None, None, None


def selected_logps(
    logits: Tensor, ids: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Full-vocabulary log-probabilities of given tokens: ``log softmax(logits / temperature)[ids]``.

    Args:
        logits: ``[..., V]``, any floating type; upcast tile by tile to float32 (float64 stays).
        ids: ``[...]`` or, several tokens a distribution, ``[..., M]``; integer, in ``[0, V)``.
        temperature: divides the logits.
        with_entropy: also return the entropy, in nats, of each distribution. It carries no gradient.

    Returns:
        ``(logps, entropy)``: ``logps`` of the shape of ``ids``; ``entropy``, ``[...]``, is ``None`` unless asked for.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.
    """
    shape = logits.shape[:-1]
    if ids.shape != shape and ids.shape[:-1] != shape:
        raise ValueError(
            f"ids must have the shape of logits without its last axis, or one more: got {ids.shape}, {logits.shape}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive: got {temperature}")
    apply = cast("Callable[..., tuple[Tensor, Tensor | None]]", _SelectedLogps.apply)  # pyright: ignore[reportUnknownMemberType]
    rows = shape.numel()
    flat = logits.reshape(rows, logits.shape[-1]), ids.reshape(rows, ids.numel() // max(1, rows))
    logps, entropy = apply(*flat, temperature, with_entropy)
    return logps.reshape(ids.shape), None if entropy is None else entropy.reshape(shape)


def head_logps(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    select: Callable[[Tensor], Tensor],
    vocabulary: int,
    temperatures: Sequence[float] = (1.0,),
    with_entropy: bool = False,
    top_tokens: int = 0,
) -> Tensor:
    """What ``logps_columns`` makes of ``select(head(hidden))``, rows × vocabulary never held whole.

    One tile's logits are in memory at a time; where gradients are on, they are made again in the backward, and the
    gradients of tiles add up. What fits one tile is not cut, and gives the very numbers of the plain product.

    Args:
        head: from hidden states ``[..., H]`` to logits ``[..., V]``, each row by itself.
        hidden: ``[n, t, H]``.
        ids, mask: ``[N, T, M]``, ``[N, T]``; several tiles leave out, and fill with zeros, what ``mask`` leaves out.
        select: which rows predict ``ids``: from ``[n, t, ...]`` to ``[N, T, ...]``.
        vocabulary: V.
        temperatures, with_entropy, top_tokens: as for ``logps_columns``.

    Returns:
        ``[N, T, C]``, as ``logps_columns``.
    """
    tile = max(1, _TILE_LOGITS.get(hidden.device.type, _TILE_LOGITS_ELSEWHERE) // vocabulary)
    columns_of = partial(logps_columns, temperatures=temperatures, with_entropy=with_entropy, top_tokens=top_tokens)
    if max(hidden.shape[:2].numel(), mask.numel()) <= tile:
        return columns_of(select(head(hidden)), ids)
    kept = mask.bool()
    rows, chosen = select(hidden)[kept], ids[kept]

    def of_tile(rows: Tensor, chosen: Tensor) -> Tensor:
        return columns_of(head(rows), chosen)

    columns: list[Tensor] = []
    for start in range(0, max(1, len(rows)), tile):
        part = rows[start : start + tile], chosen[start : start + tile]
        columns.append(
            cast("Tensor", checkpoint(of_tile, *part, use_reentrant=False))
            if torch.is_grad_enabled()
            else of_tile(*part)
        )
    found = torch.cat(columns)
    whole = found.new_zeros(*mask.shape, found.shape[-1])
    whole[kept] = found
    return whole


def logps_columns(
    logits: Tensor,
    ids: Tensor,
    *,
    temperatures: Sequence[float] = (1.0,),
    with_entropy: bool = False,
    top_tokens: int = 0,
) -> Tensor:
    """``selected_logps`` at several temperatures in one tensor.

    Args:
        logits, ids: ``[..., V]``, ``[..., M]``.
        temperatures, with_entropy: as for ``selected_logps``.
        top_tokens: L, the likeliest tokens are selected as well; as numbers of float32, which hold every id below 2²⁴.

    Returns:
        ``[..., C]``: for each temperature M + L log-probabilities and, where asked for, the entropy; then L ids.
    """
    likeliest = logits.topk(top_tokens).indices
    ids = torch.cat([ids, likeliest], dim=-1)
    columns: list[Tensor] = []
    for temperature in temperatures:
        logps, entropy = selected_logps(logits, ids, temperature=temperature, with_entropy=with_entropy)
        columns += [logps] if entropy is None else [logps, entropy.unsqueeze(-1)]
    return torch.cat([*columns, likeliest.to(columns[0].dtype)], dim=-1)
