"""A chat model behind an OpenAI-compatible server as ``bank.writing.Writer``.

Servers differ in what they hold an answer to. One request of a few tokens finds out, before the first real one: a JSON
schema where the server takes it, else JSON, else nothing; in the last two the schema is written into the prompt. Every
answer is read and checked all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.servers import RefusedError, ServerClient, UnusableReplyError
from sgsd.errors import ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# What OpenAI's own reasoning models call the length limit; they refuse the other name, which all servers else know.
_LENGTH, _LENGTH_OF_REASONING = "max_tokens", "max_completion_tokens"
_NOT_THIS_WAY = (400, 422)
# A schema with every kind of limit that the package's own schemas have; its prompt asks for something else.
_PROBE = WriteRequest(
    key="probe",
    messages=[{"role": "user", "content": "Say hello."}],
    schema={
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "title": {"type": "string", "minLength": 1, "maxLength": 8},
                        "sources": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 1, "maximum": 3},
                            "minItems": 1,
                            "maxItems": 2,
                        },
                    },
                    "required": ["title", "sources"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    },
    max_tokens=100,
    seed=0,
)

_log = logging.getLogger(__name__)


class Format(StrEnum):
    """What a server holds answers to, the most first."""

    SCHEMA = "json_schema"
    OBJECT = "json_object"
    NONE = "no format"


class ServerWriter:
    """A served chat model; the server applies its chat template.

    Temperature, seed and length limit are sent; nuclei and penalties are the server's. Tokens are counted by its
    ``usage``; what it spends on answers that never arrive is not known.

    Args:
        model_name: as the server knows it.
        base_url, concurrency, timeout, retries, first_wait: as for ``ServerClient``.
        temperature: 0 is greedy decoding; ``None`` leaves it to the server (some models take no other).
        chat_template_kwargs: such as ``{"enable_thinking": False}``; sent only where given (vLLM, SGLang, llama.cpp).

    Raises:
        ConfigError: as for ``ServerClient``.
    """

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str,
        temperature: float | None = 0.7,
        chat_template_kwargs: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        retries: int = 5,
        first_wait: float = 0.5,
    ) -> None:
        self._client = ServerClient(
            base_url, concurrency=concurrency, timeout=timeout, retries=retries, first_wait=first_wait
        )
        self._options: dict[str, Any] = {"model": model_name}
        if temperature is not None:
            self._options["temperature"] = temperature
        if chat_template_kwargs:
            self._options["extra_body"] = {"chat_template_kwargs": chat_template_kwargs}
        self._length = _LENGTH
        self._format: Format | None = None

    @property
    def name(self) -> str:
        """Engine and model, and what answers are held to, once that is known."""
        held = "" if self._format is None else f" ({self._format})"
        return f"openai {self._options['model']}{held}"

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned cut.

        Raises:
            ServerError: no request was answered, and neither is one of a few tokens.
        """
        if not requests:
            return []
        if self._format is None:
            self._format = self._find_format()
        answers = self._client.ask_each([self._request(request, self._format) for request in requests])
        if all(isinstance(answer, ServerError) for answer in answers):
            self._why_not(self._format)  # raises where the server is gone
        return [
            Written(request.key, None, f"no answer from the server: {answer.got}", 0, 0)
            if isinstance(answer, ServerError)
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _find_format(self) -> Format:
        for held in Format:
            reason = self._why_not(held)
            if reason is None:
                _log.info("%s: answers are held to %s", self._client.base_url, held)
                return held
            _log.warning("%s: %s", self._client.base_url, reason)
        raise AssertionError("without a format, a server answers or refuses for good")

    def _why_not(self, held: Format) -> str | None:
        """Why answers cannot be held to this; ``None`` where they can.

        Raises:
            ServerError: there is no answer, or a refusal for another reason than the format.
        """
        try:
            (written,) = self._client.ask([self._request(_PROBE, held)])
        except RefusedError as error:
            if error.status not in _NOT_THIS_WAY:
                raise
            if self._length == _LENGTH and _LENGTH_OF_REASONING in str(error.got):
                self._length = _LENGTH_OF_REASONING
                return self._why_not(held)
            if held is Format.NONE:
                raise
            return f"{held} is refused: {error.got}"
        # A text that was cut, or spent on thoughts, tells nothing.
        if held is Format.NONE or written.text is None or written.completion_tokens >= _PROBE.max_tokens:
            return None
        try:
            fits = "items" in json.loads(written.text)
        except (ValueError, TypeError):
            fits = False
        return None if fits else f"{held} is not kept to"

    def _request(self, request: WriteRequest, held: Format) -> Callable[[AsyncOpenAI], Awaitable[Written]]:
        from openai.types.chat import ChatCompletion

        messages = request.messages
        options = self._options | {self._length: request.max_tokens, "seed": request.seed}
        if held is Format.SCHEMA:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            options["response_format"] = {"type": str(held), "json_schema": schema}
        else:
            wanted = f"\n\nAnswer with one JSON object that fits this JSON schema:\n{json.dumps(request.schema)}"
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + wanted}]
        if held is Format.OBJECT:
            options["response_format"] = {"type": str(held)}

        async def ask(client: AsyncOpenAI) -> Written:
            reply: Any = await client.chat.completions.create(messages=messages, **options)
            if not isinstance(reply, ChatCompletion):  # the client hands on what it cannot read
                raise UnusableReplyError(f"{reply!r} instead of a chat completion")
            return _written(request.key, reply.to_dict())

        return ask


def _written(key: str, reply: dict[str, Any]) -> Written:
    try:
        (choice,) = reply["choices"]
        message, finish = choice["message"], choice["finish_reason"]
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnusableReplyError(f"{json.dumps(reply)} without its one choice") from error
    usage = reply.get("usage") or {}
    read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(read, int) or not isinstance(wrote, int):
        raise UnusableReplyError("usage without prompt_tokens and completion_tokens")
    if refusal or finish == "content_filter":
        return Written(key, None, f"the model refused: {refusal or 'content filter'}", read, wrote)
    if finish not in ("stop", "length"):
        raise UnusableReplyError(f"finish_reason {finish!r}, expected 'stop' or 'length'")
    if not text:
        return Written(key, None, f"the server sent no text: finish_reason {finish!r}", read, wrote)
    return Written(key, text, None, read, wrote)
