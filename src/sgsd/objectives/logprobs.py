"""Log-probabilities of chosen tokens, in float32, without a second tensor of the logits' size in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

# Rows of logits upcast at a time: 256 rows of a 152k vocabulary are 156 MB in float32.
_TILE_ROWS = 256


class _SelectedLogps(torch.autograd.Function):
    """log softmax(logits / temperature)[ids] of M ids a row; keeps logits and log-sum-exp only, and goes by tiles.

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
        for start in range(0, len(ids), _TILE_ROWS):
            rows = slice(start, start + _TILE_ROWS)
            tile = logits[rows].to(dtype) / temperature
            log_sum_exp[rows] = tile.logsumexp(-1)
            logps[rows] = tile.gather(-1, ids[rows]) - log_sum_exp[rows, None]
            if entropy is not None:
                # H = logsumexp(x) − Σ_v p_v x_v
                probabilities = (tile - log_sum_exp[rows, None]).exp_()
                entropy[rows] = log_sum_exp[rows] - (probabilities * tile).sum(-1)
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
        for start in range(0, len(ids), _TILE_ROWS):
            rows = slice(start, start + _TILE_ROWS)
            tile = logits[rows].to(log_sum_exp.dtype) / ctx.temperature
            tile = tile.sub_(log_sum_exp[rows, None]).exp_().mul_(-grad[rows].sum(-1, keepdim=True))
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
    logps, entropy = apply(
        logits.reshape(rows, logits.shape[-1]),
        ids.reshape(rows, ids.numel() // max(1, rows)),
        temperature,
        with_entropy,
    )
    return logps.reshape(ids.shape), None if entropy is None else entropy.reshape(shape)
