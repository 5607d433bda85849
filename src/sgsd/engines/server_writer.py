"""A chat model behind an OpenAI-compatible server as ``bank.writing.Writer``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from sgsd.bank.writing import WriteRequest, Written
from sgsd.display import logger
from sgsd.engines.servers import RefusedError, ServerClient
from sgsd.errors import ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from sgsd.engines.replies import Chat

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
        base_url, concurrency, timeout, retries: as for ``ServerClient``.
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
    ) -> None:
        self.name = f"openai {model_name}"
        self._client = ServerClient(base_url, concurrency=concurrency, timeout=timeout, retries=retries)
        self._options: dict[str, Any] = {"model": model_name}
        if temperature is not None:
            self._options["temperature"] = temperature
        if chat_template_kwargs:
            self._options["extra_body"] = {"chat_template_kwargs": chat_template_kwargs}
        self._way = 0
        self._has_answered = False

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. A text that reaches ``max_tokens`` is returned cut.

        Raises:
            ServerError: no request was answered, and neither is one of a few tokens; the first call begins with it.
        """
        if not requests:
            return []
        if not self._has_answered:
            self._say_hello()
        before = self._way
        answers = self._ask(requests, before)
        for way in range(before + 1, len(WAYS)):
            refused = [index for index, answer in enumerate(answers) if _not_this_way(answer)]
            for index, answer in zip(refused, self._ask([requests[index] for index in refused], way), strict=True):
                if isinstance(answer, Written):
                    answers[index] = answer
                    self._way = way
        if self._way > before:
            _log.warning("%s: asked by %s and %s from here on", self._client.base_url, *WAYS[self._way])
        if all(isinstance(answer, ServerError) for answer in answers):
            self._say_hello(refusal_is_answer=False)
        return [
            Written(request.key, None, f"no answer from the server: {answer.got}", 0, 0)
            if isinstance(answer, ServerError)
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _say_hello(self, *, refusal_is_answer: bool = True) -> None:
        """Raises a ``ServerError`` where there is no answer; a server that dislikes the question is there."""
        lengths = dict.fromkeys((WAYS[self._way][0], *(length for length, _ in WAYS)))
        for length in lengths:
            (answer,) = self._client.ask_each([self._request(_HELLO, length, "text")])
            refused = _not_this_way(answer)
            if isinstance(answer, ServerError) and not refused:
                raise answer
            if not refused or refusal_is_answer:
                self._has_answered = True
                return
        raise answer

    def _ask(self, requests: Sequence[WriteRequest], way: int) -> list[Written | ServerError]:
        length, held_to = WAYS[way]
        return self._client.ask_each([self._request(request, length, held_to) for request in requests])

    def _request(self, request: WriteRequest, length: str, held_to: str) -> Callable[[AsyncOpenAI], Awaitable[Written]]:
        from sgsd.engines.replies import Chat, read_reply

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


def _not_this_way(answer: Written | ServerError) -> bool:
    return isinstance(answer, RefusedError) and answer.status in _NOT_THIS_WAY


def _written(key: str, reply: Chat) -> Written:
    (choice,) = reply.choices
    message, finish = choice.message, choice.finish_reason
    read, wrote = reply.usage.prompt_tokens, reply.usage.completion_tokens
    if message.refusal or finish == "content_filter":
        error = f"the model refused: {message.refusal or 'content filter'}"
    elif not message.content:
        error = f"the server sent no text: finish_reason {finish!r}"
    else:
        return Written(key, message.content, None, read, wrote)
    return Written(key, None, error, read, wrote)
