"""Log-probabilities of chosen tokens in float32, computed from logits without a second tensor of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

# How many logits are upcast at a time, in whole rows. On a CPU they fit a core's cache: 5 rows of a 49k vocabulary.
# Elsewhere 220 rows of a 152k vocabulary take 134 MB in float32.
_UPCAST_LOGITS = {"cpu": 2**18}
_UPCAST_LOGITS_ELSEWHERE = 2**25

# How many logits the output head computes at a time. On a CPU they are few enough for the allocator to reuse memory:
# 128 rows of a 49k vocabulary. Elsewhere they are enough to keep the device busy: 441 rows of a 152k vocabulary.
_TILE_LOGITS = {"cpu": 6 * 2**20}
_TILE_LOGITS_ELSEWHERE = 2**26


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """May return ``logits`` itself, so the result must not be modified in place."""
    return logits if temperature == 1 else logits / temperature


def upcast_rows(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``[N, V]`` that are upcast together."""
    step = max(1, _UPCAST_LOGITS.get(logits.device.type, _UPCAST_LOGITS_ELSEWHERE) // logits.shape[-1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


class _SelectedLogps(torch.autograd.Function):
    """log softmax(logits / temperature)[ids] for M ids per row, tile by tile; saves only logits and log-sum-exp.

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
        for rows in upcast_rows(logits):
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
        for rows in upcast_rows(logits):
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
        ids: ``[...]`` or, for several tokens per distribution, ``[..., M]``; integer, in ``[0, V)``.
        temperature: divides the logits.
        with_entropy: also return the entropy of each distribution, in nats, without gradient.

    Returns:
        ``(logps, entropy)``: ``logps`` of the shape of ``ids``; ``entropy``, ``[...]``, or ``None`` without
        ``with_entropy``.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
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


def tile_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits ``[rows, vocabulary]`` are computed at a time on a device."""
    return max(1, _TILE_LOGITS.get(device.type, _TILE_LOGITS_ELSEWHERE) // vocabulary)
