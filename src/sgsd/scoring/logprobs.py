"""Log-probabilities of completions: the one place that knows a model's head, its cache and what wraps it.

A forward of the model hands its hidden states to the output head in tiles, at the positions that predict completion
tokens and nowhere else: rows × vocabulary is never held whole. Each model's ``forward`` takes one more keyword,
``score``, from ``add_scoring`` on, as TRL's own fused head does with its own; so whatever wraps the model (PEFT, DDP,
FSDP, DeepSpeed, torch.compile) is passed through as in any forward, and nothing is patched call by call.

What a model does to its logits behind the head (Gemma caps them, Cohere and Granite scale them) is read off the model
itself, once: its head hands out known numbers for one token, and what comes back tells scale and cap. A model whose
logits are none of that is scored on whole logits.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sgsd.display import logger
from sgsd.errors import ConfigError
from sgsd.objectives.divergences import token_divergence
from sgsd.objectives.logprobs import selected_logps, tile_rows
from sgsd.prompts import shared_start

_log = logger(__name__)
_FILLER_ID = 0  # stands at padded positions; any id would do, since attention and masks go by length


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
    """Divergence from a teacher, and both entropies, over the full vocabulary.

    Attributes:
        model: that teaches.
        hidden: ``[n, H]``, the teacher's hidden states at the positions of the student's; see ``hidden_states``.
        teaching: context in which the output head is the teacher's.
        kind, jsd_beta, clip, temperature: see ``objectives.divergences.token_divergence``.

    Called on a tile it returns three tensors ``[r]``: the divergence, with gradient, the student's entropy and the
    teacher's.
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
        result = token_divergence(
            logits.unsqueeze(0),
            teacher.unsqueeze(0),
            torch.ones(1, len(logits), dtype=torch.bool, device=logits.device),
            kind=self.kind,
            jsd_beta=self.jsd_beta,
            clip=self.clip,
            temperature=self.temperature,
        )
        return result.divergence[0], result.student_entropy[0], result.teacher_entropy[0]


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


# ---- heads


@dataclass(frozen=True)
class _Head:
    """logits = cap · tanh(scale · product(before · hidden) / cap), or scale · product(…) without a cap."""

    before: float
    scale: float
    cap: float | None

    def product(self, module: nn.Module, hidden: Tensor) -> Tensor:
        if module in _FLOAT32_HEADS:
            with torch.autocast(hidden.device.type, enabled=False):
                return module(hidden.float() * self.before)
        weight = module.weight
        typed = isinstance(weight, Tensor) and weight.is_floating_point()  # a quantised head takes what it is given
        if typed and not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(weight.dtype)  # recurrent models keep their residual stream in float32
        return module(hidden if self.before == 1 else hidden * self.before)

    def behind(self, product: Tensor) -> Tensor:
        if self.scale == 1 and self.cap is None:
            return product
        logits = product.to(torch.promote_types(product.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


_FLOAT32_HEADS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def keep_head_in_float32(model: nn.Module) -> None:
    """Compute the head's product in float32, whatever autocast says, as TRL's ``cast_lm_head_to_fp32`` does."""
    _FLOAT32_HEADS.add(cast(nn.Module, causal_model(model).get_output_embeddings()))


_SMALL, _LARGE = 1e-3, 1e6  # where a scale, where a cap can be read off
_HEADS: weakref.WeakKeyDictionary[nn.Module, _Head | None] = weakref.WeakKeyDictionary()


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


@torch.compiler.disable
def _head_of(causal: PreTrainedModel, forward: Callable[..., Any], device: torch.device) -> _Head | None:
    """What a model does before and behind its head; ``None`` where it is something else than scale and cap."""
    if causal not in _HEADS:
        _HEADS[causal] = _probed(causal, forward, device)
        if _HEADS[causal] is None:
            _log.warning(
                "%s does more to its logits than scale and cap them: scored on whole logits, which takes more memory",
                type(causal).__name__,
            )
    return _HEADS[causal]


@torch.no_grad()
def _probed(causal: PreTrainedModel, forward: Callable[..., Any], device: torch.device) -> _Head | None:
    """``_head_of`` read off one forward of one token, in which backbone and head hand out known numbers."""
    head, backbone = causal.get_output_embeddings(), causal.base_model
    if head is None or backbone is causal:
        return None
    seen: dict[str, Tensor] = {}

    def hand_out_hidden(_: Any, inputs: Any, outputs: Any) -> Any:
        numbers = torch.linspace(0.5, 1.5, outputs[0].shape[-1]).to(outputs[0])
        seen["hidden"] = numbers.float()
        outputs["last_hidden_state"] = numbers.expand(outputs[0].shape).clone()
        return outputs

    def hand_out_product(_: Any, inputs: tuple[Tensor, ...], product: Tensor) -> Tensor:
        seen["input"] = inputs[0].flatten(0, -2)[-1].float()
        numbers = torch.linspace(-60, 60, product.shape[-1])
        numbers[0], numbers[1] = _SMALL, _LARGE
        seen["product"] = numbers.to(product.device)
        return seen["product"].expand(product.shape).clone()

    hooks = [backbone.register_forward_hook(hand_out_hidden), head.register_forward_hook(hand_out_product)]
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = forward(causal, input_ids=token, use_cache=False).logits[0, -1].float()
    except (TypeError, KeyError):  # outputs of another kind
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if set(seen) != {"hidden", "input", "product"} or seen["input"].shape != seen["hidden"].shape:
        return None
    before, scale, top = float((seen["input"] / seen["hidden"]).mean()), float(logits[0] / _SMALL), float(logits[1])
    cap = top if top < abs(scale) * _LARGE / 2 else None
    found = _Head(*(1.0 if abs(factor - 1) < 1e-3 else factor for factor in (before, scale)), cap)
    if not scale or not torch.allclose(seen["input"], seen["hidden"] * before, rtol=1e-2):
        return None
    expected = found.behind(seen["product"])
    return found if expected.shape == logits.shape and torch.allclose(expected, logits, rtol=1e-4, atol=1e-4) else None


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
        head = _head_of(self, original, score.index.device)
        outputs = original(self, *args, **kwargs) if head is None else self.base_model(*args, **kwargs)
        return _answer(self, head, outputs, score)

    forward.takes_score = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    causal.forward = types.MethodType(forward, causal)


@torch.compiler.disable
def _answer(causal: PreTrainedModel, head: _Head | None, outputs: Any, score: Request) -> Output:
    """What a request asks of a forward. Never compiled: every call asks for tokens and reductions of its own."""
    if head is not None:
        hidden = outputs.last_hidden_state.flatten(0, 1)[score.index]
        kept = (hidden,) if score.reduction is None else _tiled(causal, head, hidden, score.reduction)
    elif score.reduction is None:
        raise ConfigError("this model's logits are not its head's", got=type(causal).__name__)
    else:
        kept = score.reduction(outputs.logits.flatten(0, 1)[score.index], slice(0, len(score.index)))
    return Output(kept, outputs.get("past_key_values"), outputs.get("router_logits"))


def _tiled(causal: PreTrainedModel, head: _Head, hidden: Tensor, reduction: Reduction) -> tuple[Tensor, ...]:
    """The reduction of every tile's logits; where gradients are on, a tile's logits are made again in the backward."""
    module = cast(nn.Module, causal.get_output_embeddings())

    def of_tile(rows: Tensor, start: int) -> tuple[Tensor, ...]:
        return reduction(head.behind(head.product(module, rows)), slice(start, start + len(rows)))

    step = tile_rows(causal.config.get_text_config().vocab_size, hidden.device)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, max(1, len(hidden)), step):
        rows = hidden[start : start + step]
        kept_whole = len(hidden) <= step or not torch.is_grad_enabled()
        parts.append(of_tile(rows, start) if kept_whole else checkpoint(of_tile, rows, start, use_reentrant=False))
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits ``[n, V]`` of hidden states ``[n, H]`` that a ``Request`` without a reduction returned."""
    causal = causal_model(model)
    head = _HEADS[causal]
    assert head is not None
    return head.behind(head.product(cast(nn.Module, causal.get_output_embeddings()), hidden))


# ---- caches and positions


def _shares_prompts(causal: PreTrainedModel) -> bool:
    """Whether rows can continue the keys and values of a prompt that was forwarded once.

    All layers keep plain keys and values by position: no recurrent state, no positions of several modalities.
    """
    config = causal.config
    if config.get_text_config() is not config:
        return False
    if vars(config).get("attn_temperature_tuning"):  # Llama-4's counts places in the cache, padding included
        return False
    if causal.is_activation_checkpointing and causal.training:
        return False
    if "position_ids" not in inspect.signature(causal.base_model.forward).parameters:
        return False
    layers: list[Any] = []
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # a configuration of which no cache can be made
        layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _rope(causal: PreTrainedModel) -> tuple[str, int] | None:
    """Kind and switch of rotary frequencies that depend on how many tokens are forwarded.

    Rows longer than the switch have other frequencies: one set for all (longrope), or one a length (dynamic NTK).
    """
    config = causal.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    for part in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if part.get("rope_type") in ("longrope", "dynamic"):
            switch = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return part["rope_type"], int(switch)
    return None


def _kind_of_length(causal: PreTrainedModel) -> Callable[[int], int]:
    """A row's tokens → its kind, 0 up to the switch. Rows of one kind have the same rotary frequencies."""
    rope = _rope(causal)
    if rope is None:
        return lambda length: 0
    name, switch = rope
    return lambda length: 0 if length <= switch else 1 if name == "longrope" else length


@torch.compiler.disable
def _forget_lengths(causal: PreTrainedModel) -> None:
    """Dynamic NTK keeps the frequencies of the longest row so far; without it, each forward has its own."""
    if (_rope(causal) or ("",))[0] != "dynamic":
        return
    for module in causal.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)


# ---- scoring without gradient


@dataclass(frozen=True)
class Scores:
    """Scores of N completions, T the longest of them.

    Attributes:
        logps: ``[N, T]``, float32, natural log, 0 where ``mask`` is False.
        mask: ``[N, T]``, bool, True on completion tokens.
        entropy: ``[N, T]``, float32, in nats, of the distribution each token was drawn from; ``None`` unless asked for.
        top_ids: ``[N, T, L]``, int64, each distribution's L likeliest tokens, the likeliest first.
        top_logps: ``[N, T, L]``, float32, theirs. 0 where ``mask`` is False.
        other_logps: ``[N, T, M]``, float32, of the tokens asked about; 0 there too.
        tokens: forwarded, prompts and completions, padding left out.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None
    top_ids: Tensor
    top_logps: Tensor
    other_logps: Tensor
    tokens: int = 0

    @classmethod
    def of_nothing(cls, device: torch.device, *, top_tokens: int = 0, others: int = 0) -> Scores:
        """Of no completions: N is 0."""
        logps, top_logps = torch.zeros(0, 1, device=device), torch.zeros(0, 1, top_tokens, device=device)
        other_logps = torch.zeros(0, 1, others, device=device)
        return cls(logps, logps.bool(), None, top_logps.long(), top_logps, other_logps)


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

    Equals scoring each pair alone and unpadded. A prompt and its completion are one row without a gap, filled up on
    the right. Equal pairs are scored once. Pairs with one prompt, or with prompts that begin alike, share its keys and
    values where model and cache can. Prompts are sorted by length and scored, with all their completions, in chunks of
    about ``max_tokens_per_chunk`` tokens, padding included, so memory does not grow with N.

    Args:
        model: a causal language model of transformers, wrapped or not. Its training mode is left as it is.
        prompts: N token id sequences, each of one token or more.
        completions: N token id sequences, as sampled.
        temperature: divides the logits; 1.0 scores the model's own distribution.
        max_tokens_per_chunk: the budget of one chunk. A pair longer than it makes a chunk of its own.
        with_entropy: also return entropies.
        top_tokens: L, also return the L likeliest tokens of each distribution, at most the vocabulary's.
        others: ``[N, T, M]``, token ids that are scored in each completion token's place, too.
        share_prompts: let pairs with one prompt share its keys and values where the model can.
        min_chunks: make exactly this many chunks if there would be fewer, so that all ranks of a sharded model make
            the same number; see ``chunk_count``.

    Raises:
        ValueError: if the counts differ, nothing is given, or a prompt is empty.
        ConfigError: see ``causal_model``.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"one prompt per completion, and at least one: got {len(prompts)} prompts, {len(completions)} completions"
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt must have at least one token: nothing predicts the first completion token otherwise")
    add_scoring(model)
    causal = causal_model(model)
    device = next(model.parameters()).device
    kind = _kind_of_length(causal)
    first = _first_of_equals(prompts, completions, others)
    distinct = sorted(set(first))
    chunks = _chunks(prompts, completions, max_tokens_per_chunk, distinct, kind)
    fillers = [[distinct[0]]] * max(0, min_chunks - len(chunks))  # scored once more: only the number counts
    shares = share_prompts and _shares_prompts(causal)
    ids, mask = (part.to(device) for part in _padded(completions, "right"))

    found: list[tuple[Tensor, ...]] = []
    tokens = 0
    for rows in [*chunks, *fillers]:
        parts = [prompts[n] for n in rows], [completions[n] for n in rows]
        together = shares and kind(max(map(_length, *parts))) == 0
        if shares and not together:  # a chunk is two forwards, on every rank
            model(input_ids=torch.full((1, 1), _FILLER_ID, device=device), use_cache=False)
        numbers = torch.tensor(rows, device=device)

        def select(row: Tensor, t: Tensor, numbers: Tensor = numbers) -> Select:
            targets = ids[numbers[row], t].unsqueeze(1)
            if others is not None:
                targets = torch.cat([targets, others[numbers[row], t]], dim=1)
            return Select(targets, (temperature,), top_tokens, with_entropy)

        forward, forwarded = _cheapest(*parts) if together else (_rows_alone, sum(map(_length, *parts)))
        for row, t, kept in forward(model, *parts, device, select):
            found.append((numbers[row], t, *kept))
        tokens += forwarded
    n, t, *kept = map(torch.cat, zip(*found, strict=True))

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(*ids.shape, *values.shape[1:])
        whole[n, t] = values
        return whole if first == list(range(len(first))) else whole[first]

    logps, entropy, top_ids, top_logps = map(spread, kept)
    return Scores(
        logps=logps[..., 0].float(),
        mask=mask.bool(),
        entropy=entropy.float() if with_entropy else None,
        top_ids=top_ids,
        top_logps=top_logps.float(),
        other_logps=logps[..., 1:].float(),
        tokens=tokens,
    )


def chunk_count(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    max_tokens_per_chunk: int = 8192,
    others: Tensor | None = None,
) -> int:
    """How many chunks ``score_completions`` makes. The maximum over ranks is every rank's ``min_chunks``."""
    distinct = sorted(set(_first_of_equals(prompts, completions, others)))
    return len(_chunks(prompts, completions, max_tokens_per_chunk, distinct, _kind_of_length(causal_model(model))))


@torch.no_grad()
def hidden_states(model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """``[n, H]``: the last hidden states that predict each completion token, row after row; see ``head_logits``.

    Args:
        model, prompts, completions: as for ``score_completions``.

    Raises:
        ConfigError: see ``causal_model``; the model's logits are not its head's.
    """
    add_scoring(model)
    device = next(model.parameters()).device
    kind = _kind_of_length(causal_model(model))
    batches = [range(len(prompts))]
    if kind(max(map(_length, prompts, completions))):
        batches = [[row] for row in range(len(prompts))]
    kept: list[Tensor] = []
    for rows in batches:
        parts = [prompts[n] for n in rows], [completions[n] for n in rows]
        kept += [hidden for *_, (hidden,) in _rows_alone(model, *parts, device, lambda row, t: None)]
    return torch.cat(kept)


_Kept = list[tuple[Tensor, Tensor, tuple[Tensor, ...]]]
"""Rows and positions in their completions of some tokens, each ``[n]``, and what a forward keeps of them."""
_AskedAt = Callable[[Tensor, Tensor], "Reduction | None"]
"""Such rows and positions → what to keep."""
_Forward = Callable[[nn.Module, Sequence[Sequence[int]], Sequence[Sequence[int]], torch.device, _AskedAt], _Kept]


def _rows_alone(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    asked: _AskedAt,
) -> _Kept:
    """One forward of prompts and completions without a gap, filled up on the right: no token sees what fills it up."""
    ids, _ = _padded([[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)], "right")
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    row, t = (part.to(device) for part in _places(map(len, completions)))
    request = Request(row * ids.shape[1] + starts[row] + t - 1, asked(row, t))
    output: Output = model(input_ids=ids.to(device), use_cache=False, score=request)
    return [(row, t, output.kept)]


def _cheapest(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> tuple[_Forward, int]:
    """The way to share keys and values, and its tokens, padding left out.

    A head, as a document before many problems is one, is shared where that saves a quarter of the tokens or more.
    """
    prompts_once = sum(map(len, set(map(tuple, prompts)))) + sum(map(len, completions))
    head = _head_length(prompts)
    head_once = sum(map(_length, prompts, completions)) - (len(prompts) - 1) * head
    return (_shared_head, head_once) if 4 * head_once <= 3 * prompts_once else (_shared_prompts, prompts_once)


def _head_length(prompts: Sequence[Sequence[int]]) -> int:
    """With how many tokens all prompts begin, without the last of any, which predicts a completion's first."""
    distinct = set(map(tuple, prompts))
    return min(shared_start(min(distinct), max(distinct)), min(map(len, distinct)) - 1)


def _shared_prompts(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    asked: _AskedAt,
) -> _Kept:
    """A forward of each distinct prompt, then one of all completions, which continue the keys and values."""
    number = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    of_row = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
    prompt_ids, prompt_mask = (part.to(device) for part in _padded(list(number), "left"))
    P = prompt_ids.shape[1]
    row, t = _places(map(len, completions))
    first, later = ((row[chosen].to(device), t[chosen].to(device)) for chosen in (t == 0, t > 0))
    of_prompts: Output = model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        score=Request(of_row[first[0]] * P + P - 1, asked(*first)),
    )
    cache = of_prompts.past_key_values
    if not isinstance(cache, DynamicCache):  # a model that keeps none, whatever its configuration says
        return _rows_alone(model, prompts, completions, device, asked)
    cache.batch_select_indices(of_row)
    of_completions = _continued(model, cache, prompt_mask[of_row], completions, later, later[1] - 1, asked)
    return [(*first, of_prompts.kept), of_completions]


def _shared_head(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    asked: _AskedAt,
) -> _Kept:
    """A forward of the tokens with which all prompts begin, then one of all that follows them."""
    P = _head_length(prompts)
    ids = torch.tensor([list(prompts[0][:P])], device=device)
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    of_head: Output = model(input_ids=ids, use_cache=True, score=Request(nothing, asked(nothing, nothing)))
    cache = of_head.past_key_values
    if not isinstance(cache, DynamicCache):
        return _rows_alone(model, prompts, completions, device, asked)
    cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
    rest = [[*prompt[P:], *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    row, t = (part.to(device) for part in _places(map(len, completions)))
    starts = torch.tensor([len(prompt) - P for prompt in prompts], device=device)
    before = torch.ones(len(prompts), P, dtype=torch.long, device=device)
    return [_continued(model, cache, before, rest, (row, t), starts[row] + t - 1, asked)]


def _continued(
    model: nn.Module,
    cache: DynamicCache,
    before: Tensor,
    sequences: Sequence[Sequence[int]],
    places: tuple[Tensor, Tensor],
    at: Tensor,
    asked: _AskedAt,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """One forward of sequences that continue keys and values, filled up on the right.

    Args:
        before: ``[N, P]``, mask of what the cache holds.
        places: rows, and positions in their completions, of what is kept, each ``[n]``.
        at: ``[n]``, positions in ``sequences`` that predict it.
    """
    ids, mask = (part.to(before.device) for part in _padded(sequences, "right"))
    T = ids.shape[1]
    output: Output = model(
        input_ids=ids,
        attention_mask=torch.cat([before, mask], dim=1),
        position_ids=before.sum(1, keepdim=True) + torch.arange(T, device=before.device),
        past_key_values=cache,
        use_cache=True,
        score=Request(places[0] * T + at, asked(*places)),
    )
    return *places, output.kept


def _length(prompt: Sequence[int], completion: Sequence[int]) -> int:
    return len(prompt) + len(completion)


def _places(lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Row and position of each token of completions of these lengths, row after row; on the CPU."""
    ranges = [torch.arange(length) for length in lengths]
    rows = [torch.full_like(positions, row) for row, positions in enumerate(ranges)]
    return torch.cat(rows), torch.cat(ranges)


def _first_of_equals(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], others: Tensor | None
) -> list[int]:
    """For each pair, the number of the first one that equals it."""
    asked = [b""] * len(prompts) if others is None else [row.tobytes() for row in others.cpu().numpy()]
    numbers: dict[Any, int] = {}
    rows = zip(map(tuple, prompts), map(tuple, completions), asked, strict=True)
    return [numbers.setdefault(row, n) for n, row in enumerate(rows)]


def _chunks(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    max_tokens: int,
    among: Sequence[int],
    kind: Callable[[int], int],
) -> list[list[int]]:
    """Row numbers of each chunk, longest prompts first; rows of one prompt side by side, of one rope kind together.

    A chunk of R rows over U distinct prompts, P and T the longest prompt and completion, costs U·P + R·T tokens.
    """
    kinds = {n: kind(_length(prompts[n], completions[n])) for n in among}
    chunks: list[list[int]] = []
    distinct: set[tuple[int, ...]] = set()
    P = T = 0
    for n in sorted(among, key=lambda n: (kinds[n], -len(prompts[n]), tuple(prompts[n]), -len(completions[n]))):
        P, T = max(P, len(prompts[n])), max(T, len(completions[n]))
        distinct.add(tuple(prompts[n]))
        fits = chunks and len(distinct) * P + (len(chunks[-1]) + 1) * T <= max_tokens
        alike = chunks and kinds[n] == kinds[chunks[-1][0]]
        padded_over = not kinds[n] and kind(P + T)
        if fits and alike and not padded_over:
            chunks[-1].append(n)
        else:
            chunks.append([n])
            distinct = {tuple(prompts[n])}
            P, T = len(prompts[n]), len(completions[n])
    return chunks


def _padded(sequences: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, each ``[N, longest]``, int64, on the CPU; filled up on the ``left`` or the ``right``."""
    width = max(1, max(map(len, sequences)))
    ids = torch.full((len(sequences), width), _FILLER_ID, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            where = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, where] = 1
    return ids, mask


# ---- the student's forward, by TRL


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
        T = mask.shape[1]
        # One host sync: lengths are asked for once, and all indices are made of them.
        self._lengths: list[int] = mask.sum(1).tolist()
        self._rows, self._columns = (part.to(mask.device) for part in _places(self._lengths))
        self.flat = self._rows * T + self._columns
        self.kept: tuple[Tensor, ...] = ()
        self.aux_loss: Tensor | None = None

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **inputs: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        inputs.pop("fused_lm_head")
        (B, W), T = input_ids.shape, self._shape[1]
        causal = causal_model(self._model)
        reduction = self._reduction(self.flat)
        columns = self._columns + (W - T - 1)  # what predicts a token, in its row of ``[B, W]``
        padded = not _kind_of_length(causal)(_widest(W, input_ids.device) if _rope(causal) else W)
        if padded:
            # Filled up on the right, where no token sees it: learned positions and recurrent states begin with the row.
            left = attention_mask.argmax(1)
            order = (torch.arange(W, device=left.device) + left.unsqueeze(1)) % W
            attention_mask = attention_mask.gather(1, order)
            output: Output = self._model(
                input_ids=input_ids.gather(1, order),
                attention_mask=attention_mask,
                use_cache=False,
                score=Request(self._rows * W + columns - left[self._rows], reduction),
                **inputs,
            )
        else:
            output = self._row_by_row(input_ids, attention_mask, columns, reduction, inputs)
        self.kept = output.kept
        logps, entropy = (output.kept[number] for number in self._returned)
        if logps.ndim == 2:
            logps = logps[:, 0]
        logps, entropy = (
            self._spread(values, (B, W - 1), self._rows * (W - 1) + columns) for values in (logps, entropy)
        )
        if inputs.get("output_router_logits"):
            self.aux_loss = _router_loss(causal, output, attention_mask if padded else None)
        return FusedCausalLMOutput(log_probs=logps, entropy=entropy, aux_loss=self.aux_loss)

    def _row_by_row(
        self, input_ids: Tensor, attention_mask: Tensor, columns: Tensor, reduction: Reduction, inputs: dict[str, Any]
    ) -> Output:
        """Each row alone, without its padding: rotary frequencies would go by the padded length of all."""
        outputs: list[Output] = []
        done = 0
        for row, length in enumerate(self._lengths):
            start, end = (int(position) for position in attention_mask[row].nonzero()[[0, -1], 0])
            alone = {
                "input_ids": input_ids[row : row + 1, start : end + 1],
                "attention_mask": attention_mask[row : row + 1, start : end + 1],
            }

            def of_all(logits: Tensor, rows: slice, done: int = done) -> tuple[Tensor, ...]:
                return reduction(logits, slice(done + rows.start, done + rows.stop))

            request = Request(columns[done : done + length] - start, of_all)
            outputs.append(self._model(**alone, use_cache=False, score=request, **inputs))
            done += length
        routers = [output.router_logits for output in outputs if output.router_logits is not None]
        return Output(
            tuple(map(torch.cat, zip(*(output.kept for output in outputs), strict=True))),
            router_logits=tuple(map(torch.cat, zip(*routers, strict=True))) if routers else None,
        )

    def spread(self, values: Tensor) -> Tensor:
        """Flat values ``[n, ...]`` as ``[B, T, ...]``, 0 where nothing was scored."""
        return self._spread(values, tuple(self._shape), self.flat)

    @staticmethod
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


def _router_loss(causal: PreTrainedModel, output: Output, attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss of a mixture of experts, as transformers' families compute it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = causal.config.get_text_config()
    # Families name it differently; the model that computes the loss itself holds it by one name.
    experts = getattr(causal, "num_experts", None) or config.num_experts
    loss = load_balancing_loss_func(output.router_logits, experts, config.num_experts_per_tok, attention_mask)
    return cast(Tensor, loss)


def flat_targets(ids: Tensor, others: Tensor | None, flat: Tensor) -> Tensor:
    """``[n, 1 + M]``: sampled tokens ``[B, T]`` and ``[B, T, M]`` others at flat places."""
    sampled = ids.flatten()[flat].unsqueeze(1)
    return sampled if others is None else torch.cat([sampled, others.flatten(0, 1)[flat]], dim=1)


__all__ = [
    "Output",
    "Reduction",
    "Request",
    "Scores",
    "Select",
    "StudentPass",
    "add_scoring",
    "causal_model",
    "chunk_count",
    "flat_targets",
    "head_logits",
    "hidden_states",
    "score_completions",
]
