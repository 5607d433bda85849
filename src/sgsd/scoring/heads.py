"""Logits computed and reduced tile by tile: the only module that knows a model's output head and its wrappers.

A forward computes hidden states, then logits in tiles, only at positions that predict completion tokens. The full
tensor of rows × vocabulary never exists. ``add_scoring`` gives a model's ``forward`` one more keyword, ``score``, as
TRL's fused head does. A call therefore passes through whatever wraps the model (PEFT, DDP, FSDP, DeepSpeed,
torch.compile) like any other forward.

Some models change their logits (Gemma caps them, Cohere and Granite scale them). To include this, a tile's logits come
from the model's own forward, in which the backbone returns the tile's hidden states.
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

# ---- requests and reductions


class Reduction(Protocol):
    """A function of a tile's logits, whose results are kept."""

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """``logits`` ``[r, V]`` of positions number ``rows`` among all that are scored → tensors ``[r, ...]``."""
        ...


@dataclass(frozen=True)
class Select:
    """Log-probabilities of given tokens, entropies, likeliest tokens.

    Attributes:
        targets: ``[n, M]``, token ids at each position.
        temperatures: each divides the logits.
        top_tokens: L, the number of likeliest tokens to find.
        with_entropy: compute entropies; they are 0 otherwise.

    For a tile it returns, for each temperature, log-probabilities ``[r, M]`` and entropies ``[r]`` without gradient;
    then ids of the likeliest tokens ``[r, L]``, likeliest first, and their log-probabilities at the first temperature.
    """

    targets: Tensor
    temperatures: tuple[float, ...] = (1.0,)
    top_tokens: int = 0
    with_entropy: bool = True

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        targets, M = self.targets[rows], self.targets.shape[1]
        top_ids = logits.detach().topk(self.top_tokens).indices
        results: list[Tensor] = []
        for temperature in self.temperatures:
            ids = targets if results else torch.cat([targets, top_ids], dim=1)
            logps, entropy = selected_logps(logits, ids, temperature=temperature, with_entropy=self.with_entropy)
            results += [logps, logps.new_zeros(len(logps)) if entropy is None else entropy.detach()]
        return results[0][:, :M], *results[1:], top_ids, results[0][:, M:]


@dataclass(frozen=True)
class DivergenceFrom:
    """Divergence of the student from a teacher, with gradient, and both entropies: ``[r]`` each for a tile.

    Attributes:
        model: the teacher.
        hidden: ``[n, H]``, the teacher's hidden states at the student's positions; see ``logprobs.hidden_states``.
        teaching: context in which the output head has the teacher's weights.
        kind, clip, temperature: see ``objectives.token_divergence``.
    """

    model: nn.Module
    hidden: Tensor
    teaching: Callable[[], AbstractContextManager[None]]
    kind: str = "forward_kl"
    clip: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.teaching():
            teacher = head_logits(self.model, self.hidden[rows])
        return token_divergence(logits, teacher, kind=self.kind, clip=self.clip, temperature=self.temperature)


@dataclass
class Request:
    """The positions to score in one forward, and what to compute there.

    Attributes:
        index: ``[n]``, positions in the flattened ``[N · L]`` hidden states.
        reduction: of their logits; ``None`` returns the hidden states themselves, ``[n, H]``.
    """

    index: Tensor
    reduction: Reduction | None


@dataclass
class Output:
    """What a model's forward returns for a ``Request``.

    Attributes:
        kept: the reduction's tensors, ``[n, ...]``, or the hidden states.
        past_key_values: the cache, if there is one.
        router_logits: of a mixture of experts, if ``output_router_logits`` is set.
    """

    kept: tuple[Tensor, ...]
    past_key_values: Any = None
    router_logits: Any = None


# ---- the forward


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside its wrappers.

    Raises:
        ConfigError: there is none, or a PEFT adapter adds virtual tokens to every prompt.
    """
    if any(getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values()):
        raise ConfigError(
            "prompt-learning adapters are not supported",
            got=type(model).__name__,
            expected="LoRA, or no adapter: prefix and prompt tuning put virtual tokens before every prompt",
        )
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise ConfigError("not a transformers model", got=type(model).__name__)
    return found


def backbone(causal: PreTrainedModel) -> tuple[str, nn.Module]:
    """The submodule that computes hidden states, and its dotted name; in a few families not ``base_model_prefix``.

    Raises:
        ConfigError: there is none.
    """
    base, embedding = causal.base_model, causal.get_input_embeddings()
    for name, part in causal.named_children():
        if part is base:
            return name, part
        if base is causal and isinstance(part, PreTrainedModel) and any(each is embedding for each in part.modules()):
            if part.get_output_embeddings() is None:
                return name, part
            inner, found = backbone(part)  # a causal language model beside a vision model: Llama-4
            return f"{name}.{inner}", found
    raise ConfigError("not a causal language model of transformers", got=type(causal).__name__)


def add_scoring(model: nn.Module) -> None:
    """Let the model's ``forward`` take ``score``, a ``Request``. The model may be wrapped; later calls do nothing.

    Raises:
        ConfigError: see ``causal_model``.
    """
    causal = causal_model(model)
    bound = causal.forward
    if getattr(bound, "takes_score", False):
        return
    # Unbound, so that a deep copy of the model computes with its own weights.
    original = bound.__func__ if isinstance(bound, types.MethodType) else lambda _, *args, **kw: bound(*args, **kw)

    @functools.wraps(type(causal).forward)  # generation reads the signature
    def forward(self: PreTrainedModel, *args: Any, score: Request | None = None, **kwargs: Any) -> Any:
        if score is None:
            return original(self, *args, **kwargs)
        _reset_dynamic_rope(self)
        return _scored(self, backbone(self)[1](*args, **kwargs), score)

    forward.takes_score = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    causal.forward = types.MethodType(forward, causal)


@torch.compiler.disable
def _scored(causal: PreTrainedModel, outputs: Any, score: Request) -> Output:
    """The output for a request. Not compiled: positions and reductions differ from call to call."""
    hidden = outputs.last_hidden_state.flatten(0, 1)[score.index]
    kept = (hidden,) if score.reduction is None else _reduced_in_tiles(causal, hidden, score.reduction)
    return Output(kept, outputs.get("past_key_values"), outputs.get("router_logits"))


def _reduced_in_tiles(causal: PreTrainedModel, hidden: Tensor, reduction: Reduction) -> tuple[Tensor, ...]:
    """The reduction of each tile's logits, concatenated. With gradients, the backward pass recomputes the logits."""

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
    """Logits ``[n, V]`` of hidden states ``[n, H]``, by the model's own forward with its backbone replaced.

    Raises:
        ConfigError: the model's forward does not call its backbone.
    """
    causal = causal_model(model)
    path, part = backbone(causal)
    parent, _, name = path.rpartition(".")
    owner = causal.get_submodule(parent)
    in_float32 = causal in _FLOAT32_HEADS
    fixed = _FixedBackbone(part, (hidden.float() if in_float32 else hidden).unsqueeze(0))
    unused_ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    owner._modules[name] = cast(nn.Module, fixed)
    try:
        with torch.autocast(hidden.device.type, enabled=False) if in_float32 else nullcontext():
            logits = type(causal).forward(causal, input_ids=unused_ids, use_cache=False).logits[0]
    finally:
        owner._modules[name] = part
    if not fixed.called:
        raise ConfigError(
            "the model's output head cannot be computed alone",
            got=type(causal).__name__,
            expected=f"a forward that calls {path!r}",
        )
    return logits


class _FixedBackbone:
    """Replaces a backbone, and returns given hidden states; so does a model inside it (OPT calls ``model.decoder``)."""

    def __init__(self, backbone: nn.Module, hidden: Tensor) -> None:
        self._backbone = backbone
        self._hidden = hidden
        self.called = False

    def __call__(self, *_: Any, **__: Any) -> _Outputs:
        self.called = True
        return _Outputs(last_hidden_state=cast(torch.FloatTensor, self._hidden))

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._backbone, name)
        return self if isinstance(part, PreTrainedModel) else part


class _Outputs(BaseModelOutput):
    """A backbone's outputs: hidden states, and ``None`` for every other field that a model family may read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


_FLOAT32_HEADS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def keep_head_in_float32(model: nn.Module) -> None:
    """Compute the output head in float32 even under autocast, as TRL's ``cast_lm_head_to_fp32`` does."""
    _FLOAT32_HEADS.add(causal_model(model))


# ---- rotary frequencies that depend on the sequence length


def rope_switch(causal: PreTrainedModel) -> tuple[str, int] | None:
    """``rope_type`` and the length above which rotary frequencies change: once (longrope), or with every length
    (dynamic NTK); ``None`` for other models.
    """
    config = causal.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    for part in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if part.get("rope_type") in ("longrope", "dynamic"):
            switch = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return part["rope_type"], int(switch)
    return None


def rope_kind(causal: PreTrainedModel) -> Callable[[int], int]:
    """A function: sequence length → kind, 0 up to ``rope_switch``. Rows of one kind have the same frequencies."""
    rope = rope_switch(causal)
    if rope is None:
        return lambda length: 0
    name, switch = rope
    return lambda length: 0 if length <= switch else 1 if name == "longrope" else length


@torch.compiler.disable
def _reset_dynamic_rope(causal: PreTrainedModel) -> None:
    """Make the next forward compute its own frequencies: transformers keeps those of the longest row so far."""
    if (rope_switch(causal) or ("",))[0] != "dynamic":
        return
    for module in causal.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)
