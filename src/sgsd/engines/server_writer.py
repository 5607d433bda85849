"""A chat model behind an OpenAI-compatible server as ``bank.writing.Writer``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sgsd.bank.writing import WriteRequest, Written
from sgsd.display import logger
from sgsd.engines.servers import Chat, RefusedError, ServerClient, read_reply
from sgsd.errors import ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Request formats in the order of trial: the name of the length limit, and the type of ``response_format``. OpenAI's
# reasoning models refuse ``max_tokens``, which all other servers know. Not every server knows schemas.
FORMATS = (
    ("max_tokens", "json_schema"),
    ("max_completion_tokens", "json_schema"),
    ("max_tokens", "json_object"),
    ("max_completion_tokens", "json_object"),
    ("max_tokens", "text"),
    ("max_completion_tokens", "text"),
)
_FORMAT_REFUSED = (400, 422)
# Reasoning models fail where the limit cuts off their thoughts; servers may ask for the word JSON in JSON's mode.
_TEST = WriteRequest("hello", [{"role": "user", "content": 'Say hello. Reply with JSON: {"items": []}'}], {}, 2048, 0)

_log = logger(__name__)


class ServerWriter:
    """A chat model on a server, which applies its chat template and enforces the schema if it can.

    Requests set temperature, seed and length limit; top-p and penalties are the server's. Tokens are counted by
    ``usage`` of the replies; those of replies that never arrive are unknown.

    Args:
        model_name: as the server knows it.
        base_url, client: as for ``ServerClient``, and so are errors.
        temperature: 0 is greedy decoding; ``None`` leaves it to the server (some models take no other).
        chat_template_kwargs: such as ``{"enable_thinking": False}``; sent only where given (vLLM, SGLang, llama.cpp).
    """

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str,
        temperature: float | None = 0.7,
        chat_template_kwargs: dict[str, Any] | None = None,
        **client: Any,
    ) -> None:
        self.name = f"openai {model_name}"
        self._client = ServerClient(base_url, **client)
        self._options: dict[str, Any] = {"model": model_name}
        if temperature is not None:
            self._options["temperature"] = temperature
        if chat_template_kwargs:
            self._options["extra_body"] = {"chat_template_kwargs": chat_template_kwargs}
        self._format: tuple[str, str] | None = None

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned truncated.

        Raises:
            ServerError: the server answers neither the requests nor a short test request (sent at the first call).
        """
        if not requests:
            return []
        format = self._format or self._find_format(requests[0])
        answers = self._ask(requests, format)
        failed = all(isinstance(answer, ServerError) for answer in answers)
        if failed and (found := self._find_format(requests[0])) != format:
            answers = self._ask(requests, found)
        return [
            Written(request.key, None, f"no answer from the server: {answer.got}", 0, 0)
            if isinstance(answer, ServerError)
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _find_format(self, request: WriteRequest) -> tuple[str, str]:
        """The first format in which the server answers a short test request with the schema of ``request``.

        Raises:
            ServerError: it answers in none.
        """
        test = replace(_TEST, schema=request.schema)
        for format in FORMATS:
            (answer,) = self._ask([test], format)
            if isinstance(answer, Written):
                if format != (self._format or FORMATS[0]):
                    _log.warning("%s: requests now use %s and response format %s", self._client.base_url, *format)
                self._format = format
                return format
            if not (isinstance(answer, RefusedError) and answer.status in _FORMAT_REFUSED):
                raise answer
        raise answer

    def _ask(self, requests: Sequence[WriteRequest], format: tuple[str, str]) -> list[Written | ServerError]:
        return self._client.ask_each([self._request(request, *format) for request in requests])

    def _request(self, request: WriteRequest, limit: str, kind: str) -> Callable[[AsyncOpenAI], Awaitable[Written]]:
        options = self._options | {limit: request.max_tokens, "seed": request.seed}
        if kind == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            options["response_format"] = {"type": kind, "json_schema": schema}
        elif kind == "json_object":
            options["response_format"] = {"type": kind}

        async def ask(client: AsyncOpenAI) -> Written:
            reply = await client.chat.completions.with_raw_response.create(messages=request.messages, **options)
            return _written(request.key, read_reply(reply.content, Chat))

        return ask


def _written(key: str, reply: Chat) -> Written:
    (choice,) = reply.choices
    message, finish = choice.message, choice.finish_reason
    error = None
    if message.refusal or finish == "content_filter":
        error = f"the model refused: {message.refusal or 'content filter'}"
    elif not message.content:
        error = f"the server sent no text: finish_reason {finish!r}"
    text = message.content if error is None else None
    return Written(key, text, error, reply.usage.prompt_tokens, reply.usage.completion_tokens)
