"""A transformers model as ``bank.writing.Writer``, with constrained decoding."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.generation import context_length, generate, generating
from sgsd.engines.models import end_of_completion_ids
from sgsd.errors import ConfigError
from sgsd.prompts import message_ids


class TransformersWriter:
    """A causal language model in this process; llguidance constrains every token to the schema.

    The text of a request depends on its seed and, up to rounding, not on its batch. A text that reaches the end of the
    model's context gives an error.

    Args:
        model, tokenizer: the model, and its fast tokenizer with a chat template.
        name: the name in records.
        temperature: 0 is greedy decoding.
        batch_size: requests per call of ``generate``.
        chat_template_kwargs: such as ``{"enable_thinking": False}``.

    Raises:
        ConfigError: the tokenizer is not a fast one.
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
        import llguidance.hf

        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._temperature = temperature
        self._batch_size = batch_size
        self._template_kwargs = chat_template_kwargs or {}
        self._context = context_length(model.config) or sys.maxsize
        self._end_ids = end_of_completion_ids(model, tokenizer)
        vocabulary = model.config.get_text_config().vocab_size
        try:
            self._vocabulary = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=self._end_ids)
        except ValueError as error:
            raise ConfigError(
                "this tokenizer does not support constrained decoding",
                got=f"{type(tokenizer).__name__}: {error}",
                expected="a fast tokenizer of transformers",
            ) from error

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned truncated."""
        with generating(self._model):
            return [
                written
                for start in range(0, len(requests), self._batch_size)
                for written in self._batch(requests[start : start + self._batch_size])
            ]

    def _batch(self, requests: Sequence[WriteRequest]) -> list[Written]:
        prompts = [message_ids(self._tokenizer, request.messages, **self._template_kwargs) for request in requests]
        rooms = [max(self._context - len(prompt), 0) for prompt in prompts]
        chosen = [index for index, room in enumerate(rooms) if room]
        rows: list[list[int]] = [[] for _ in requests]
        if chosen:
            asked, kept = [requests[index] for index in chosen], [prompts[index] for index in chosen]
            constraint = _Constraint(self._vocabulary, asked, self._temperature, max(map(len, kept)), self._end_ids[0])
            written = generate(
                self._model,
                self._tokenizer,
                kept,
                logits_processor=[constraint],
                max_new_tokens=max(min(requests[index].max_tokens, rooms[index]) for index in chosen),
                eos_token_id=self._end_ids,
            )
            for index, row in zip(chosen, written, strict=True):
                rows[index] = row
        return list(map(self._written, requests, prompts, rows, rooms))

    def _written(self, request: WriteRequest, prompt: list[int], row: list[int], room: int) -> Written:
        limit = min(request.max_tokens, room)
        end = next((position for position, token in enumerate(row) if token in self._end_ids), len(row))
        tokens = row[: min(end, limit)]
        if end >= limit and room < request.max_tokens:
            error = f"the context of {self._context} ended after a prompt of {len(prompt)} and {len(tokens)} tokens"
            return Written(request.key, None, error, len(prompt), len(tokens))
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Written(request.key, text, None, len(prompt), len(tokens))


class _Constraint:
    """Logits processor: masks tokens that do not fit a row's schema, and samples by Gumbel noise of the row's seed."""

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
            if matcher.is_stopped():  # the JSON is complete: only the end token may follow
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
