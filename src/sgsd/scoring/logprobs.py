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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sgsd.errors import ConfigError
from sgsd.objectives.logprobs import selected_logps, tile_rows

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

    Called on a tile it returns, for each temperature, ``[r, M]`` log-probabilities and ``[r]`` entropies without
    gradient; then ``[r, L]`` ids, likeliest first, and their log-probabilities at the first temperature.
    """

    targets: Tensor
    temperatures: tuple[float, ...] = (1.0,)
    top_tokens: int = 0

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        targets, M = self.targets[rows], self.targets.shape[1]
        top_ids = logits.detach().topk(self.top_tokens).indices
        found: list[Tensor] = []
        top_logps = logits.new_zeros(top_ids.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
        for number, temperature in enumerate(self.temperatures):
            asked = torch.cat([targets, top_ids], dim=1) if number == 0 else targets
            logps, entropy = selected_logps(logits, asked, temperature=temperature, with_entropy=True)
            assert entropy is not None
            found += [logps[:, :M], entropy.detach()]
            if number == 0:
                top_logps = logps[:, M:]
        return (*found, top_ids, top_logps)


@dataclass(frozen=True)
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
        weight = module.weight
        if isinstance(weight, Tensor) and not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(weight.dtype)  # recurrent models keep their residual stream in float32
        return module(hidden if self.before == 1 else hidden * self.before)

    def behind(self, product: Tensor) -> Tensor:
        if self.scale == 1 and self.cap is None:
            return product
        logits = product.to(torch.promote_types(product.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


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


@torch.no_grad()
def _head_of(causal: PreTrainedModel, forward: Callable[..., Any], device: torch.device) -> _Head | None:
    """What a model does before and behind its head; ``None`` where it is something else than scale and cap.

    Read off one forward of one token, in which the backbone and the head hand out known numbers.
    """
    if causal in _HEADS:
        return _HEADS[causal]
    head, backbone = causal.get_output_embeddings(), causal.base_model
    _HEADS[causal] = None
    if head is None or backbone is causal:
        return None
    seen: dict[str, Tensor] = {}

    def hand_out_hidden(_: Any, inputs: Any, outputs: Any) -> Any:
        seen["hidden"] = torch.linspace(0.5, 1.5, outputs[0].shape[-1], device=device, dtype=torch.float32)
        outputs["last_hidden_state"] = seen["hidden"].to(outputs[0].dtype).expand(outputs[0].shape).clone()
        return outputs

    def hand_out_product(_: Any, inputs: tuple[Tensor, ...], product: Tensor) -> Tensor:
        seen["input"] = inputs[0].reshape(-1, inputs[0].shape[-1])[-1].float()
        numbers = torch.linspace(-60, 60, product.shape[-1], device=device, dtype=torch.float32)
        numbers[0], numbers[1] = _SMALL, _LARGE
        seen["product"] = numbers
        return numbers.expand(product.shape).clone()

    hooks = [backbone.register_forward_hook(hand_out_hidden), head.register_forward_hook(hand_out_product)]
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = forward(input_ids=token, use_cache=False).logits[0, -1].float()
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
    same_input = torch.allclose(seen["input"], seen["hidden"] * before, rtol=1e-2)
    if same_input and scale and torch.allclose(found.behind(seen["product"]), logits, rtol=1e-4, atol=1e-4):
        _HEADS[causal] = found
    return _HEADS[causal]


def add_scoring(model: nn.Module) -> None:
    """Let the model's ``forward`` take ``score``, a ``Request``; once, before anything wraps the model or later.

    Raises:
        ConfigError: see ``causal_model``.
    """
    causal = causal_model(model)
    if getattr(causal.forward, "takes_score", False):
        return
    original = causal.forward

    @functools.wraps(original)
    def forward(self: PreTrainedModel, *args: Any, score: Request | None = None, **kwargs: Any) -> Any:
        if score is None:
            return original(*args, **kwargs)
        head = _head_of(self, original, score.index.device)
        if head is None:
            if score.reduction is None:
                raise ConfigError("this model's logits are not its head's", got=type(self).__name__)
            outputs = original(*args, **kwargs)
            logits = outputs.logits.flatten(0, 1)[score.index]
            kept = score.reduction(logits, slice(0, len(logits)))
        else:
            outputs = self.base_model(*args, **kwargs)
            hidden = outputs.last_hidden_state.flatten(0, 1)[score.index]
            kept = _tiled(self, head, hidden, score.reduction)
        return Output(kept, outputs.get("past_key_values"), outputs.get("router_logits"))

    forward.takes_score = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    causal.forward = types.MethodType(forward, causal)


@torch.compiler.disable
def _tiled(causal: PreTrainedModel, head: _Head, hidden: Tensor, reduction: Reduction | None) -> tuple[Tensor, ...]:
    """The reduction of every tile's logits; where gradients are on, a tile's logits are made again in the backward."""
    if reduction is None:
        return (hidden,)
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
    if causal._is_stateful or config.get_text_config() is not config:
        return False
    if causal.is_activation_checkpointing and causal.training:
        return False
    if "position_ids" not in inspect.signature(causal.base_model.forward).parameters:
        return False
    layers: list[Any] = []
    with suppress(Exception):  # a configuration of which no cache can be made
        layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@dataclass(frozen=True)
class _Rope:
    """Rotary frequencies that depend on the length of what is forwarded.

    Attributes:
        switch: the longest row of the first kind; ``None`` where lengths do not matter.
        by_length: beyond it, every length has frequencies of its own (dynamic NTK), or all have the same (longrope).
    """

    switch: int | None
    by_length: bool

    def kind(self, length: int) -> int:
        """Rows of one kind may be forwarded together."""
        if self.switch is None or length <= self.switch:
            return 0
        return length if self.by_length else 1


def _rope(causal: PreTrainedModel) -> _Rope:
    config = causal.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for part in each:
        if part.get("rope_type") in ("longrope", "dynamic"):
            switch = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return _Rope(int(switch), part["rope_type"] == "dynamic")
    return _Rope(None, False)


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
    the right. Equal pairs are scored once. Pairs with one prompt share its keys and values where model and cache can.
    Prompts are sorted by length and scored, with all their completions, in chunks of about ``max_tokens_per_chunk``
    tokens, padding included, so memory does not grow with N.

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
    N, T = len(prompts), max(1, max(map(len, completions)))
    M, L = 0 if others is None else others.shape[-1], top_tokens
    rope = _rope(causal)
    first = _first_of_equals(prompts, completions, others)
    distinct = sorted(set(first))
    chunks = _chunks(prompts, completions, max_tokens_per_chunk, distinct, rope)
    shares = share_prompts and _shares_prompts(causal)

    logps, entropy = torch.zeros(N, T, device=device), torch.zeros(N, T, device=device)
    top_ids, top_logps = torch.zeros(N, T, L, dtype=torch.long, device=device), torch.zeros(N, T, L, device=device)
    other_logps = torch.zeros(N, T, M, device=device)
    tokens = 0
    fillers = [[distinct[0]]] * max(0, min_chunks - len(chunks))  # scored once more: only the number counts
    for rows in [*chunks, *fillers]:
        parts = [prompts[n] for n in rows], [completions[n] for n in rows]
        longest = max(len(prompt) + len(completion) for prompt, completion in zip(*parts, strict=True))
        together = shares and (rope.switch is None or longest <= rope.switch)
        if rope.by_length and longest > (rope.switch or 0):  # frequencies of a longer row may still be in the model
            model(input_ids=torch.full((1, 1), _FILLER_ID, device=device), use_cache=False)
        forwards = _shared(model, *parts, device) if together else _rows_alone(model, *parts, device)
        for places, forward in forwards:
            flat_rows, columns = _flat([rows[place] for place in places[0]], places[1], device)
            targets = _ids_at(completions, rows, places, device)
            if others is not None:
                targets = torch.cat([targets, others[flat_rows, columns]], dim=1)
            kept = forward(Select(targets, (temperature,), L))
            where = flat_rows, columns
            logps[where], other_logps[where] = kept[0][:, 0].float(), kept[0][:, 1:].float()
            entropy[where], top_ids[where], top_logps[where] = kept[1].float(), kept[2], kept[3].float()
        tokens += sum(map(len, parts[1])) + sum(
            map(len, set(map(tuple, parts[0])) if together else parts[0])  # a shared prompt is forwarded once
        )
    lengths = torch.tensor([len(completion) for completion in completions])
    mask = (torch.arange(T) < lengths.unsqueeze(1)).to(device)
    if first != list(range(N)):
        again = torch.tensor(first, device=device)
        logps, entropy, other_logps = logps[again], entropy[again], other_logps[again]
        top_ids, top_logps = top_ids[again], top_logps[again]
    return Scores(logps, mask, entropy if with_entropy else None, top_ids, top_logps, other_logps, tokens)


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
    return len(_chunks(prompts, completions, max_tokens_per_chunk, distinct, _rope(causal_model(model))))


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
    alike = _rope(causal_model(model)).switch is None
    batches = [range(len(prompts))] if alike else [[row] for row in range(len(prompts))]
    kept: list[Tensor] = []
    for rows in batches:
        for _, forward in _rows_alone(model, [prompts[n] for n in rows], [completions[n] for n in rows], device):
            kept += forward(None)
    return torch.cat(kept)


_Places = tuple[list[int], list[int]]
"""Rows of a chunk, and positions in their completions, of each value that a forward keeps."""
_Forward = Callable[["Reduction | None"], tuple[Tensor, ...]]


def _rows_alone(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> Iterable[tuple[_Places, _Forward]]:
    """One forward of prompts and completions without a gap, filled up on the right: no token sees what fills it up."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    ids, _ = _padded(rows, "right")
    width = ids.shape[1]
    places = _token_places(completions)
    index = [row * width + len(prompts[row]) - 1 + t for row, t in zip(*places, strict=True)]

    def forward(reduction: Reduction | None) -> tuple[Tensor, ...]:
        request = Request(torch.tensor(index, dtype=torch.long).to(device), reduction)
        return cast(Output, model(input_ids=ids.to(device), use_cache=False, score=request)).kept

    yield places, forward


def _shared(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> Iterable[tuple[_Places, _Forward]]:
    """A forward of each distinct prompt, then one of all completions, which continue the keys and values."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: row for row, prompt in enumerate(distinct)}
    of_row = [number[tuple(prompt)] for prompt in prompts]
    prompt_ids, prompt_mask = _padded(distinct, "left")
    P = prompt_ids.shape[1]
    state: dict[str, Any] = {}
    started = [row for row, completion in enumerate(completions) if len(completion)]

    def first(reduction: Reduction | None) -> tuple[Tensor, ...]:
        index = torch.tensor([of_row[row] * P + P - 1 for row in started], dtype=torch.long)
        output: Output = model(
            input_ids=prompt_ids.to(device),
            attention_mask=prompt_mask.to(device),
            position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0).to(device),
            use_cache=True,
            score=Request(index.to(device), reduction),
        )
        state["cache"] = output.past_key_values
        return output.kept

    yield (started, [0] * len(started)), first

    ids, mask = _padded(completions, "right")
    rows, columns = _token_places(completions)
    later = [(row, t) for row, t in zip(rows, columns, strict=True) if t > 0]
    width = ids.shape[1]

    def rest(reduction: Reduction | None) -> tuple[Tensor, ...]:
        cache = state["cache"]
        cache.batch_select_indices(torch.tensor(of_row, device=device))
        before = prompt_mask[of_row]
        output: Output = model(
            input_ids=ids.to(device),
            attention_mask=torch.cat([before, mask], dim=1).to(device),
            position_ids=(before.sum(1, keepdim=True) + torch.arange(width)).to(device),
            past_key_values=cache,
            use_cache=True,
            score=Request(
                torch.tensor([row * width + t - 1 for row, t in later], dtype=torch.long).to(device), reduction
            ),
        )
        return output.kept

    yield ([row for row, _ in later], [t for _, t in later]), rest


def _token_places(completions: Sequence[Sequence[int]]) -> _Places:
    rows = [row for row, completion in enumerate(completions) for _ in completion]
    return rows, [t for completion in completions for t in range(len(completion))]


def _flat(rows: list[int], columns: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(rows, dtype=torch.long).to(device), torch.tensor(columns, dtype=torch.long).to(device)


def _ids_at(completions: Sequence[Sequence[int]], rows: list[int], places: _Places, device: torch.device) -> Tensor:
    """``[n, 1]``, the completions' tokens at these places."""
    ids = [int(completions[rows[row]][t]) for row, t in zip(*places, strict=True)]
    return torch.tensor(ids, dtype=torch.long).to(device).unsqueeze(1)


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
    rope: _Rope,
) -> list[list[int]]:
    """Row numbers of each chunk, longest prompts first; rows of one prompt side by side, of one rope kind together.

    A chunk of R rows over U distinct prompts, P and T the longest prompt and completion, costs U·P + R·T tokens.
    """

    def kind(n: int) -> int:
        return rope.kind(len(prompts[n]) + len(completions[n]))

    chunks: list[list[int]] = []
    distinct: set[tuple[int, ...]] = set()
    P = T = 0
    for n in sorted(among, key=lambda n: (kind(n), -len(prompts[n]), tuple(prompts[n]), -len(completions[n]))):
        P, T = max(P, len(prompts[n])), max(T, len(completions[n]))
        distinct.add(tuple(prompts[n]))
        fits = chunks and len(distinct) * P + (len(chunks[-1]) + 1) * T <= max_tokens
        alike = chunks and kind(n) == kind(chunks[-1][0])
        padded_over = rope.switch is not None and not kind(n) and rope.switch < P + T
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
        # One host sync: lengths are asked for once, and all indices are made of them.
        lengths, T = mask.sum(1).tolist(), mask.shape[1]
        self.flat = torch.cat([torch.arange(int(n)) + b * T for b, n in enumerate(lengths)]).to(mask.device)
        self._rope = _rope(causal_model(model))
        self.kept: tuple[Tensor, ...] = ()
        self.aux_loss: Tensor | None = None

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **inputs: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        inputs.pop("fused_lm_head")
        (B, W), T = input_ids.shape, self._shape[1]
        rows, columns = self.flat // T, self.flat % T
        if self._rope.switch is not None and self._rope.switch < W:
            output = self._row_by_row(input_ids, attention_mask, rows, columns, inputs)
        else:
            request = Request(rows * W + (W - T - 1) + columns, self._reduction(self.flat))
            output = self._model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, score=request, **inputs
            )
        self.kept = output.kept
        logps, entropy = (output.kept[number] for number in self._returned)
        if logps.ndim == 2:
            logps = logps[:, 0]
        whole = [self.spread(values, (B, W - 1), rows * (W - 1) + (W - T - 1) + columns) for values in (logps, entropy)]
        if inputs.get("output_router_logits"):
            config = causal_model(self._model).config.get_text_config()
            alone = self._rope.switch is not None and self._rope.switch < W  # without padding, hence without a mask
            self.aux_loss = _router_loss(config, output, None if alone else attention_mask)
        return FusedCausalLMOutput(log_probs=whole[0], entropy=whole[1], aux_loss=self.aux_loss)

    def _row_by_row(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor, inputs: dict[str, Any]
    ) -> Output:
        """Each row alone, without its padding: rotary frequencies would go by the padded length of all."""
        (B, W), T = input_ids.shape, self._shape[1]
        outputs: list[Output] = []
        for row in range(B):
            start, end = (int(position) for position in attention_mask[row].nonzero()[[0, -1], 0])
            mine = rows == row
            request = Request(columns[mine] + (W - T - 1 - start), self._reduction(self.flat[mine]))
            part = slice(start, end + 1)
            alone = {"input_ids": input_ids[row : row + 1, part], "attention_mask": attention_mask[row : row + 1, part]}
            outputs.append(self._model(**alone, use_cache=False, score=request, **inputs))
        routers = [output.router_logits for output in outputs if output.router_logits is not None]
        return Output(
            tuple(map(torch.cat, zip(*(output.kept for output in outputs), strict=True))),
            router_logits=tuple(map(torch.cat, zip(*routers, strict=True))) if routers else None,
        )

    def spread(self, values: Tensor, shape: tuple[int, ...] | None = None, at: Tensor | None = None) -> Tensor:
        """Flat values ``[n, ...]`` as ``[B, T, ...]``, 0 where nothing was scored."""
        shape = tuple(self._shape) if shape is None else shape
        whole = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
        whole = whole.index_copy(0, self.flat if at is None else at, values)
        return whole.unflatten(0, shape)


def _router_loss(config: Any, output: Output, attention_mask: Tensor | None) -> Tensor:
    """The load-balancing loss of a mixture of experts, as transformers' families compute it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    loss = load_balancing_loss_func(
        output.router_logits, config.num_experts, config.num_experts_per_tok, attention_mask
    )
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
