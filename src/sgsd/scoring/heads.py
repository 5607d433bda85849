"""What is kept of a forward's logits, tile by tile: the one place that knows a model's output head and what wraps it.

A forward makes hidden states, and logits of them in tiles, at the positions that predict completion tokens and nowhere
else: rows × vocabulary is never held whole. From ``add_scoring`` on each model's ``forward`` takes one more keyword,
``score``, as TRL's own fused head does with its own; so whatever wraps the model (PEFT, DDP, FSDP, DeepSpeed,
torch.compile) is passed through as in any forward, and nothing is patched call by call.

What a model does around its head (Gemma caps its logits, Cohere and Granite scale them) is the model's own code: a
tile's logits are its own forward's, with the tile's hidden states in the place of its backbone's.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sgsd.errors import ConfigError
from sgsd.objectives.divergences import token_divergence
from sgsd.objectives.logprobs import selected_logps, tile_rows

# ---- what a forward is asked for


class Reduction(Protocol):
    """Logits of a tile → what is kept of them."""

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """``logits`` ``[r, V]`` of the positions numbered ``rows`` → tensors ``[r, ...]``."""
        ...


@dataclass(frozen=True)
class Select:
    """Log-probabilities of given tokens, entropies, likeliest tokens.

    Attributes:
        targets: ``[n, M]``, token ids at each position.
        temperatures: each divides the logits.
        top_tokens: L, the likeliest tokens to find.
        with_entropy: make entropies; they are 0 otherwise.

    Called on a tile it returns, for each temperature, ``[r, M]`` log-probabilities and ``[r]`` entropies without
    gradient; then ``[r, L]`` ids, likeliest first, and their log-probabilities at the first temperature.
    """

    targets: Tensor
    temperatures: tuple[float, ...] = (1.0,)
    top_tokens: int = 0
    with_entropy: bool = True

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        targets, M = self.targets[rows], self.targets.shape[1]
        top_ids = logits.detach().topk(self.top_tokens).indices
        found: list[Tensor] = []
        for temperature in self.temperatures:
            asked = targets if found else torch.cat([targets, top_ids], dim=1)
            logps, entropy = selected_logps(logits, asked, temperature=temperature, with_entropy=self.with_entropy)
            found += [logps, logps.new_zeros(len(logps)) if entropy is None else entropy.detach()]
        return found[0][:, :M], *found[1:], top_ids, found[0][:, M:]


@dataclass(frozen=True)
class DivergenceFrom:
    """Divergence from a teacher, with gradient, and the student's and the teacher's entropy; ``[r]`` each of a tile.

    Attributes:
        model: that teaches.
        hidden: ``[n, H]``, the teacher's hidden states at the positions of the student's; see ``hidden_states``.
        teaching: context in which the output head is the teacher's.
        kind, jsd_beta, clip, temperature: see ``objectives.token_divergence``.
    """

    model: nn.Module
    hidden: Tensor
    teaching: Callable[[], AbstractContextManager[None]]
    kind: str = "forward_kl"
    jsd_beta: float = 0.5
    clip: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.teaching():
            teacher = head_logits(self.model, self.hidden[rows])
        return token_divergence(
            logits, teacher, kind=self.kind, jsd_beta=self.jsd_beta, clip=self.clip, temperature=self.temperature
        )


@dataclass
class Request:
    """What one forward is to return.

    Attributes:
        index: ``[n]``, positions in the flattened ``[N · L]`` hidden states.
        reduction: what is kept of their logits; ``None`` keeps the hidden states themselves, ``[n, H]``.
    """

    index: Tensor
    reduction: Reduction | None


@dataclass
class Output:
    """What a model's forward returns for a ``Request``.

    Attributes:
        kept: the reduction's tensors, ``[n, ...]``, or the hidden states.
        past_key_values: the cache, if one was used.
        router_logits: of mixtures of experts, where asked for.
    """

    kept: tuple[Tensor, ...]
    past_key_values: Any = None
    router_logits: Any = None


# ---- the forward


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside whatever wraps it.

    Raises:
        ConfigError: there is none, or an adapter puts tokens of its own before every prompt.
    """
    if any(getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values()):
        raise ConfigError(
            "prompt-learning adapters are not supported",
            got=type(model).__name__,
            expected="LoRA, or no adapter: prefix and prompt tuning put tokens of their own before every prompt",
        )
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise ConfigError("not a transformers model", got=type(model).__name__)
    return found


def backbone(causal: PreTrainedModel) -> tuple[str, nn.Module]:
    """The part of a model that makes hidden states, and its name there: a few families say another prefix than it has.

    Raises:
        ConfigError: there is none.
    """
    base = causal.base_model
    for name, part in causal.named_children():
        if part is base or (base is causal and isinstance(part, PreTrainedModel)):
            return name, part
    raise ConfigError("not a causal language model of transformers", got=type(causal).__name__)


def add_scoring(model: nn.Module) -> None:
    """Let the model's ``forward`` take ``score``, a ``Request``; once, before anything wraps the model or later.

    Raises:
        ConfigError: see ``causal_model``.
    """
    causal = causal_model(model)
    bound = causal.forward
    if getattr(bound, "takes_score", False):
        return
    # Not bound to this model: a deep copy of it has its own weights.
    original = bound.__func__ if isinstance(bound, types.MethodType) else lambda _, *args, **kw: bound(*args, **kw)

    @functools.wraps(type(causal).forward)  # generation reads the signature
    def forward(self: PreTrainedModel, *args: Any, score: Request | None = None, **kwargs: Any) -> Any:
        if score is None:
            return original(self, *args, **kwargs)
        _forget_lengths(self)
        return _answer(self, backbone(self)[1](*args, **kwargs), score)

    forward.takes_score = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    causal.forward = types.MethodType(forward, causal)


@torch.compiler.disable
def _answer(causal: PreTrainedModel, outputs: Any, score: Request) -> Output:
    """What a request asks of a forward. Never compiled: every call asks for tokens and reductions of its own."""
    hidden = outputs.last_hidden_state.flatten(0, 1)[score.index]
    kept = (hidden,) if score.reduction is None else _tiled(causal, hidden, score.reduction)
    return Output(kept, outputs.get("past_key_values"), outputs.get("router_logits"))


def _tiled(causal: PreTrainedModel, hidden: Tensor, reduction: Reduction) -> tuple[Tensor, ...]:
    """The reduction of every tile's logits; where gradients are on, a tile's logits are made again in the backward."""

    def of_tile(rows: Tensor, start: int) -> tuple[Tensor, ...]:
        return reduction(head_logits(causal, rows), slice(start, start + len(rows)))

    step = tile_rows(causal.config.get_text_config().vocab_size, hidden.device)
    if len(hidden) <= step:
        return of_tile(hidden, 0)
    parts = [
        checkpoint(of_tile, rows, number * step, use_reentrant=False)
        if torch.is_grad_enabled()
        else of_tile(rows, number * step)
        for number, rows in enumerate(hidden.split(step))
    ]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits ``[n, V]`` of hidden states ``[n, H]``: the model's own forward, these in the place of its backbone's."""
    causal = causal_model(model)
    name, part = backbone(causal)
    in_float32 = causal in _FLOAT32_HEADS
    given = _Given(part, (hidden.float() if in_float32 else hidden).unsqueeze(0))
    token = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    causal._modules[name] = cast(nn.Module, given)
    try:
        with torch.autocast(hidden.device.type, enabled=False) if in_float32 else nullcontext():
            return type(causal).forward(causal, input_ids=token, use_cache=False).logits[0]
    finally:
        causal._modules[name] = part


class _Given:
    """In a backbone's place: gives hidden states that are there already."""

    def __init__(self, backbone: nn.Module, hidden: Tensor) -> None:
        self._backbone = backbone
        self._hidden = hidden

    def __call__(self, *_: Any, **__: Any) -> _Outputs:
        return _Outputs(last_hidden_state=cast(torch.FloatTensor, self._hidden))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


class _Outputs(BaseModelOutput):
    """Of any backbone: ``None`` for what a family's has besides hidden states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


_FLOAT32_HEADS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def keep_head_in_float32(model: nn.Module) -> None:
    """Compute the head's product in float32, whatever autocast says, as TRL's ``cast_lm_head_to_fp32`` does."""
    _FLOAT32_HEADS.add(causal_model(model))


# ---- rotary frequencies that depend on how many tokens are forwarded


def rope_switch(causal: PreTrainedModel) -> tuple[str, int] | None:
    """Kind and switch: rows longer than it have other frequencies, one set for all (longrope), or one a length
    (dynamic NTK)."""
    config = causal.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    for part in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if part.get("rope_type") in ("longrope", "dynamic"):
            switch = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return part["rope_type"], int(switch)
    return None


def kind_of_length(causal: PreTrainedModel) -> Callable[[int], int]:
    """A row's tokens → its kind, 0 up to the switch. Rows of one kind have the same rotary frequencies."""
    rope = rope_switch(causal)
    if rope is None:
        return lambda length: 0
    name, switch = rope
    return lambda length: 0 if length <= switch else 1 if name == "longrope" else length


@torch.compiler.disable
def _forget_lengths(causal: PreTrainedModel) -> None:
    """Dynamic NTK keeps the frequencies of the longest row so far; without it, each forward has its own."""
    if (rope_switch(causal) or ("",))[0] != "dynamic":
        return
    for module in causal.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)
