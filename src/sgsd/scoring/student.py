"""The student's forward, made by TRL, of which an objective keeps what it asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgsd.scoring.heads import Output, Reduction, Request, add_scoring, causal_model, kind_of_length, rope_switch
from sgsd.scoring.logprobs import places


class StudentPass:
    """Stands in a model's place where TRL makes the student's forward, and keeps what the objective asked for.

    TRL calls it with everything of its own (masks, router logits for auxiliary losses, inputs of several modalities)
    and reads ``log_probs``, ``entropy`` and ``aux_loss`` from what it returns.

    Args:
        model: as TRL would call it, wrapped.
        mask: ``[B, T]``, True on completion tokens.
        reduction: what is kept of the logits, made of the flat number ``b · T + t`` of each token that is scored.
        returned: number of the kept tensors that are TRL's log-probabilities ``[n]`` or ``[n, 1 + …]`` and entropies.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Tensor,
        reduction: Callable[[Tensor], Reduction],
        *,
        returned: tuple[int, int] = (0, 1),
    ) -> None:
        add_scoring(model)
        self._model = model
        self._reduction = reduction
        self._returned = returned
        self._shape = mask.shape
        # One host sync: lengths are asked for once, and all indices are made of them.
        self._lengths: list[int] = mask.sum(1).tolist()
        self._rows, self._columns = (part.to(mask.device) for part in places(self._lengths))
        self.flat = self._rows * mask.shape[1] + self._columns
        self.kept: tuple[Tensor, ...] = ()
        self.aux_loss: Tensor | None = None

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **inputs: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        inputs.pop("fused_lm_head")
        (B, W), T = input_ids.shape, self._shape[1]
        causal = causal_model(self._model)
        # Filled up on the right, where no token sees it: learned positions and recurrent states begin with the row.
        first = attention_mask.argmax(1)
        order = (torch.arange(W, device=first.device) + first.unsqueeze(1)) % W
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        columns = self._columns + (W - T - 1)  # what predicts a token, in its row of ``[B, W]`` as TRL has it
        # Rotary frequencies that go by the padded length of all: each row alone, without its padding.
        alone = bool(kind_of_length(causal)(_widest(W, input_ids.device) if rope_switch(causal) else W))
        batches = [slice(b, b + 1) for b in range(B)] if alone else [slice(0, B)]

        reduction = self._reduction(self.flat)
        outputs: list[Output] = []
        end = 0
        for batch in batches:
            start, end = end, end + sum(self._lengths[batch])
            width = int(attention_mask[batch].sum()) if alone else W

            def of_batch(logits: Tensor, rows: slice, start: int = start) -> tuple[Tensor, ...]:
                return reduction(logits, slice(start + rows.start, start + rows.stop))

            rows = self._rows[start:end]
            index = (rows - batch.start) * width + columns[start:end] - first[rows]
            outputs.append(
                self._model(
                    input_ids=input_ids[batch, :width],
                    attention_mask=attention_mask[batch, :width],
                    use_cache=False,
                    score=Request(index, of_batch),
                    **inputs,
                )
            )
        self.kept = tuple(map(torch.cat, zip(*(output.kept for output in outputs), strict=True)))
        logps, entropy = (self.kept[number] for number in self._returned)
        if logps.ndim == 2:
            logps = logps[:, 0]
        at = self._rows * (W - 1) + columns
        if inputs.get("output_router_logits"):
            routers = tuple(map(torch.cat, zip(*(output.router_logits for output in outputs), strict=True)))
            self.aux_loss = _router_loss(causal, routers, None if alone else attention_mask)
        return FusedCausalLMOutput(
            log_probs=_spread(logps, (B, W - 1), at), entropy=_spread(entropy, (B, W - 1), at), aux_loss=self.aux_loss
        )

    def spread(self, values: Tensor) -> Tensor:
        """Flat values ``[n, ...]`` as ``[B, T, ...]``, 0 where nothing was scored."""
        return _spread(values, tuple(self._shape), self.flat)


def _spread(values: Tensor, shape: tuple[int, ...], at: Tensor) -> Tensor:
    whole = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    return whole.index_copy(0, at, values).unflatten(0, shape)


def _widest(width: int, device: torch.device) -> int:
    """The most of all processes, which must make the same forwards."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return width
    widest = torch.tensor(width, device=device)
    torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
    return int(widest)


def _router_loss(causal: PreTrainedModel, routers: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss of a mixture of experts, as transformers' families compute it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = causal.config.get_text_config()
    # Families name it differently; the model that computes the loss itself holds it by one name.
    experts = getattr(causal, "num_experts", None) or config.num_experts
    loss = load_balancing_loss_func(routers, experts, config.num_experts_per_tok, attention_mask)
    return cast(Tensor, loss)
