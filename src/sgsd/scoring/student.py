"""The student's forward, run by TRL's code, with the reduction of its logits that an objective needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sgsd.scoring.heads import Output, Reduction, Request, add_scoring, causal_model, rope_kind, rope_switch
from sgsd.scoring.logprobs import token_places, widest


class StudentPass:
    """A callable that TRL's student forward calls in place of the model; it keeps a reduction of the logits.

    Rows without a token to score are not forwarded, but one if there is no other: every process makes a forward.
    TRL passes it all its arguments (masks, ``output_router_logits``, multimodal inputs) and reads ``log_probs``,
    ``entropy`` and ``aux_loss`` from the result.

    Args:
        model: the wrapped model that TRL would call.
        mask: ``[B, T]``, True on the tokens to score: all completion tokens of a row, or none.
        reduction: flat indices ``b · T + t`` of the scored tokens → the reduction of their logits.
        returned: the indices, among the reduction's tensors, of TRL's log-probabilities (``[n]``, or the first column
            of ``[n, 1 + …]``) and entropies.

    Attributes:
        kept: the reduction's tensors ``[n, ...]``, after the call.
        forwarded: ``[B]``, bool, True on rows that were forwarded, after the call.
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
        # The only host sync: all indices are computed from these lengths.
        self._lengths: list[int] = mask.sum(1).tolist()
        self._rows, self._columns = (part.to(mask.device) for part in token_places(self._lengths))
        self.flat = self._rows * mask.shape[1] + self._columns
        self.kept: tuple[Tensor, ...] = ()
        self.forwarded = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        self.aux_loss: Tensor | None = None

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **inputs: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        inputs.pop("fused_lm_head")
        (B, W), T = input_ids.shape, self._shape[1]
        causal = causal_model(self._model)
        # Padding moves to the right: learned positions and recurrent states start at a row's first token.
        first = attention_mask.argmax(1)
        order = (torch.arange(W, device=first.device) + first.unsqueeze(1)) % W
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        columns = self._columns + (W - T - 1)  # the position that predicts a token, in TRL's ``[B, W]``
        # If rotary frequencies depend on the padded length, each row is forwarded alone, without padding.
        alone = bool(rope_kind(causal)(widest(W, input_ids.device) if rope_switch(causal) else W))
        if alone:  # all of them: every process makes equally many forwards
            batches = [[b] for b in range(B)]
        elif inputs.get("output_router_logits"):  # the auxiliary loss reads all rows
            batches = [list(range(B))]
        else:
            batches = [[b for b, length in enumerate(self._lengths) if length] or [0]]

        reduction = self._reduction(self.flat)
        kept = {b for batch in batches for b in batch}
        self.forwarded = torch.tensor([b in kept for b in range(B)]).to(input_ids.device)
        outputs: list[Output] = []
        end = 0
        for batch in batches:
            start, end = end, end + sum(self._lengths[b] for b in batch)
            width = int(attention_mask[batch].sum()) if alone else W

            def of_batch(logits: Tensor, rows: slice, start: int = start) -> tuple[Tensor, ...]:
                return reduction(logits, slice(start + rows.start, start + rows.stop))

            rows = self._rows[start:end]
            place = torch.zeros(B, dtype=torch.long)
            place[batch] = torch.arange(len(batch))
            index = place.to(rows.device)[rows] * width + columns[start:end] - first[rows]
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
        """Values of the scored tokens, ``[n, ...]`` → ``[B, T, ...]``, 0 at other positions."""
        return _spread(values, tuple(self._shape), self.flat)


def _spread(values: Tensor, shape: tuple[int, ...], at: Tensor) -> Tensor:
    whole = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    return whole.index_copy(0, at, values).unflatten(0, shape)


def _router_loss(causal: PreTrainedModel, routers: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss of a mixture of experts, as transformers' models compute it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = causal.config.get_text_config()
    # Configurations name it differently; models that compute the loss have the attribute num_experts.
    experts = getattr(causal, "num_experts", None) or config.num_experts
    loss = load_balancing_loss_func(routers, experts, config.num_experts_per_tok, attention_mask)
    return cast(Tensor, loss)
