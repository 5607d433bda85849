"""Engines as ``bank.writing.Writer``: text that fits a JSON schema."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.generation import NEUTRAL
from sgsd.engines.models import end_of_completion_ids
from sgsd.errors import ConfigError
from sgsd.prompts import message_ids


class TransformersWriter:
    """A causal language model in process; every token is held to the schema (by llguidance).

    A request's text depends on its seed, not on what it is batched with, save for rounding. One whose prompt and
    longest text do not fit the model's context together gives an error.

    Args:
        model, tokenizer: the model, and its fast tokenizer with a chat template.
        name: for records.
        temperature: 0 is greedy decoding.
        batch_size: requests per call of ``generate``.
        chat_template_kwargs: such as ``{"enable_thinking": False}``.

    Raises:
        ConfigError: the package llguidance is missing.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "transformers",
        temperature: float = 0.7,
        batch_size: int = 8,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise ConfigError("the package llguidance is not installed", remedy="run: pip install 'sgsd[writer]'")
        import llguidance.hf

        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._temperature = temperature
        self._batch_size = batch_size
        self._template_kwargs = chat_template_kwargs or {}
        self._end_ids = end_of_completion_ids(model, tokenizer)
        self._vocabulary = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=model.config.get_text_config().vocab_size, eos_token=self._end_ids
        )

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned cut, and read as malformed."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                return [
                    written
                    for start in range(0, len(requests), self._batch_size)
                    for written in self._batch(requests[start : start + self._batch_size])
                ]
        finally:
            self._model.train(training)

    def _batch(self, requests: Sequence[WriteRequest]) -> list[Written]:
        prompts = [message_ids(self._tokenizer, request.messages, **self._template_kwargs) for request in requests]
        context = self._model.config.get_text_config().max_position_embeddings
        fits = [len(prompt) + r.max_tokens <= context for r, prompt in zip(requests, prompts, strict=True)]
        chosen = list(compress(requests, fits)), list(compress(prompts, fits))
        written = iter(self._generated(*chosen) if any(fits) else [])
        return [
            next(written) if fit else _refused(request, len(prompt), context)
            for request, prompt, fit in zip(requests, prompts, fits, strict=True)
        ]

    def _generated(self, requests: Sequence[WriteRequest], prompts: Sequence[list[int]]) -> list[Written]:
        width = max(map(len, prompts))
        filler = self._tokenizer.pad_token_id
        ids = torch.tensor([[filler] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = self._model.generate(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            logits_processor=[_Constraint(self._vocabulary, requests, self._temperature, width, self._end_ids[0])],
            **NEUTRAL
            | {
                "max_new_tokens": max(request.max_tokens for request in requests),
                "eos_token_id": self._end_ids,
                "pad_token_id": filler,
            },
        )[:, width:].tolist()
        return [self._written(*row) for row in zip(requests, prompts, rows, strict=True)]

    def _written(self, request: WriteRequest, prompt: list[int], row: list[int]) -> Written:
        end = next((position for position, token in enumerate(row) if token in self._end_ids), len(row))
        tokens = row[: min(end, request.max_tokens)]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Written(request.key, text, None, len(prompt), len(tokens))


def _refused(request: WriteRequest, length: int, context: int) -> Written:
    error = f"a prompt of {length} tokens and {request.max_tokens} to write exceed the context of {context}"
    return Written(request.key, None, error, length, 0)


class _Constraint:
    """Forbids what does not fit each row's schema, and adds each row's own noise, so that the largest is a sample."""

    def __init__(
        self, vocabulary: Any, requests: Sequence[WriteRequest], temperature: float, width: int, end_id: int
    ) -> None:
        from llguidance import LLMatcher

        self._matchers = [
            LLMatcher(vocabulary, LLMatcher.grammar_from_json_schema(r.schema, defaults={"whitespace_flexible": False}))
            for r in requests
        ]
        self._noise = [np.random.default_rng(request.seed) for request in requests]
        self._temperature = temperature
        self._width = width
        self._end_id = end_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids`` [B, T], ``scores`` [B, V] → scores [B, V]."""
        scores = scores.clone()
        for row, matcher in enumerate(self._matchers):
            if input_ids.shape[1] > self._width and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if matcher.is_stopped():  # after the last bracket: only the end may follow
                scores[row] = -torch.inf
                scores[row, self._end_id] = 0.0
                continue
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = torch.from_numpy(bits[: scores.shape[1]].astype(bool)).to(scores.device)
            if self._temperature > 0:
                gumbel = self._noise[row].gumbel(size=scores.shape[1]).astype(np.float32)
                scores[row] = scores[row].float() / self._temperature + torch.from_numpy(gumbel).to(scores.device)
            scores[row].masked_fill_(~allowed, -torch.inf)
        return scores
