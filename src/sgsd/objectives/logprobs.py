"""Log-probabilities of chosen tokens, in float32, from logits without a second tensor of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

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


def upcast_rows(logits: Tensor) -> Iterator[slice]:
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


def tile_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits ``[rows, vocabulary]`` that are held at a time on a device."""
    return max(1, _TILE_LOGITS.get(device.type, _TILE_LOGITS_ELSEWHERE) // vocabulary)
