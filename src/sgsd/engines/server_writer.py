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

# How a request may be put: what it calls the length limit, and what it holds the answer to. OpenAI's reasoning models
# refuse the first name, and all other servers know it; not every server knows schemas.
WAYS = (
    ("max_tokens", "json_schema"),
    ("max_completion_tokens", "json_schema"),
    ("max_tokens", "json_object"),
    ("max_tokens", "text"),
)
_NOT_THIS_WAY = (400, 422)
_HELLO = WriteRequest("hello", [{"role": "user", "content": "Say hello."}], {}, 16, 0)

_log = logger(__name__)


class ServerWriter:
    """A served chat model; the server applies its chat template, and holds the text to the schema if it can.

    Temperature, seed and length limit are sent; nuclei and penalties are the server's. Tokens are counted by its
    ``usage``; what it spends on answers that never arrive is not known.

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
        self._way: tuple[str, str] | None = None

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned cut.

        Raises:
            ServerError: no request was answered, and neither is one of a few tokens; the first call begins with it.
        """
        if not requests:
            return []
        way = self._way or self._find_way(requests[0])
        answers = self._ask(requests, way)
        if all(isinstance(answer, ServerError) for answer in answers) and (found := self._find_way(requests[0])) != way:
            answers = self._ask(requests, found)
        return [
            Written(request.key, None, f"no answer from the server: {answer.got}", 0, 0)
            if isinstance(answer, ServerError)
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _find_way(self, request: WriteRequest) -> tuple[str, str]:
        """The first way in which the server answers, asked for a few tokens in the form of the request.

        Raises:
            ServerError: in none.
        """
        hello = replace(_HELLO, schema=request.schema)
        for way in WAYS:
            (answer,) = self._ask([hello], way)
            if isinstance(answer, Written):
                if way != (self._way or WAYS[0]):
                    _log.warning("%s: asked by %s and %s from here on", self._client.base_url, *way)
                self._way = way
                return way
            if not (isinstance(answer, RefusedError) and answer.status in _NOT_THIS_WAY):
                raise answer
        raise answer

    def _ask(self, requests: Sequence[WriteRequest], way: tuple[str, str]) -> list[Written | ServerError]:
        return self._client.ask_each([self._request(request, *way) for request in requests])

    def _request(self, request: WriteRequest, length: str, held_to: str) -> Callable[[AsyncOpenAI], Awaitable[Written]]:
        options = self._options | {length: request.max_tokens, "seed": request.seed}
        if held_to == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            options["response_format"] = {"type": held_to, "json_schema": schema}
        elif held_to == "json_object":
            options["response_format"] = {"type": held_to}

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
