"""Sampling with transformers, in process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from sgsd.engines.models import end_of_completion_ids
from sgsd.prompts import refuse_long_prompts
from sgsd.rollouts import Rollout, StopReason
from sgsd.scoring.heads import causal_model
from sgsd.verifiers.thinking import CompletionText

# ``generate`` takes missing options from the model's generation_config.json, where some models set penalties or top-p.
# Neutral values for all options keep them out of what is measured.
_KEPT = ("transformers_version", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id")
NEUTRAL: dict[str, Any] = {
    **{name: None for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _KEPT},
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
}


def context_length(model_config: Any) -> int | None:
    """The model's maximal sequence length, in tokens; ``None`` without a limit (ALiBi, recurrent models)."""
    config = model_config.get_text_config()
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")  # GPT-2 has n_positions
    positions = vars(config).get(name)
    return positions if isinstance(positions, int) and positions > 0 else None


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """Context in which the output head gets contiguous hidden states.

    ``generate`` passes it the last position of each prompt, a view that is not contiguous. On a CPU torch copies a
    frozen head's weights for each row of such a view: 1 GB for 16 rows of SmolLM2-135M.
    """
    head = causal_model(model).get_output_embeddings()
    if head is None:
        yield
        return
    with head.register_forward_pre_hook(lambda _, inputs: tuple(part.contiguous() for part in inputs)):
        yield


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Context for sampling: evaluation mode, no gradients. The mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), contiguous_head(model):
            yield
    finally:
        model.train(training)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """The new token ids of ``model.generate`` for left-padded prompts, with the padding after an end token."""
    width, filler = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = model.device
    rows = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), **NEUTRAL | {"pad_token_id": filler} | options
    )
    return rows[:, width:].tolist()


class TransformersSampler:
    """A causal language model as ``rollouts.Sampler``; the model's own generation settings do not apply.

    Args:
        model: the model; put into evaluation mode while it samples.
        tokenizer: decodes completions.
        max_new_tokens: the length limit.
        temperature: 0 is greedy decoding.
        top_p, top_k: 1.0 and 0 switch them off.
        batch_size: prompts per call of ``generate``. Prompts are taken in their order, so a batch does not depend on
            their lengths.
        progress: called with the number of prompts done after each batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 32,
        progress: Any = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._text = CompletionText(tokenizer)
        self._batch_size = batch_size
        self._progress = progress
        self._end_ids = end_of_completion_ids(model, tokenizer)
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_token_id": self._end_ids}
        if temperature > 0:
            self._options |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """See ``Sampler.sample``. Leaves the global random state as it was.

        Raises:
            PromptError: a prompt and its completion do not fit the model's context.
        """
        context = context_length(self._model.config)
        if context is not None:
            refuse_long_prompts(map(len, prompts), context - self._options["max_new_tokens"], "prompts")
        rollouts: list[Rollout] = []
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with generating(self._model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self._batch_size):
                batch = prompts[start : start + self._batch_size]
                rows = generate(self._model, self._tokenizer, batch, **self._options)
                rollouts += map(self._rollout, batch, rows)
                if self._progress is not None:
                    self._progress(len(rollouts))
        return rollouts

    def _rollout(self, prompt: Sequence[int], row: list[int]) -> Rollout:
        end = next((position for position, token in enumerate(row) if token in self._end_ids), None)
        completion = row if end is None else row[: end + 1]
        return Rollout(
            prompt_ids=tuple(prompt),
            completion_ids=tuple(completion),
            text=self._text.after(prompt, completion),
            stop_reason=StopReason.LENGTH if end is None else StopReason.END,
        )
