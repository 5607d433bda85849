"""OpenAI-compatible servers (vLLM, SGLang, llama.cpp …): a client and a sampler.

Servers are not trusted: a reply may be slow, endless, a decompression bomb, a redirect or malformed. ``LimitedClient``
limits the time and the size of a reply, and ``read_reply`` validates it by a schema; nothing else of it is used.

Deviations from the usual use of such servers:

- Prompts go as token ids to ``/v1/completions``, so the server applies no template and adds no second BOS.
- Every request sets what a server would otherwise choose itself (top-k, min-p, penalties).
- A reply to another prompt, or one that is cut before the length limit, is an error.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import math
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sgsd.display import keep_secret, masked, one_line, public_url
from sgsd.errors import ConfigError, ServerError, SGSDError
from sgsd.rollouts import Rollout, StopReason, completion_seed
from sgsd.validation import refusal
from sgsd.verifiers.thinking import CompletionText

try:
    import httpx2
    from openai import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AsyncOpenAI,
        DefaultAsyncHttpxClient,
        OpenAIError,
    )
except ImportError as error:
    raise ConfigError("the package openai is not installed", remedy="run: pip install 'sgsd[server]'") from error

T = TypeVar("T")
ReplyT = TypeVar("ReplyT", bound="Reply")

KEY_VARIABLE = "OPENAI_API_KEY"
MOST_BYTES = 4 << 20  # of a reply: 131,072 tokens of prompt and as many of completion, as ids and text, are 3 MiB
_SECRET_NAME = re.compile("key|token|sig|secret|code|pass|auth", re.IGNORECASE)  # of a value in an address's query
_GRACE = 1.0  # seconds: silent replies meet the timeout of openai first, which retries; this is for slow ones
_QUOTED = 100_000  # bytes: the error for a longer reply does not name the field


class UnusableReplyError(SGSDError, ValueError):
    """A complete reply that does not follow the API."""


class ReplyLimitError(OpenAIError):
    """A reply beyond the limits. An ``OpenAIError``, because the package ``openai`` does not retry those."""


class RefusedError(ServerError):
    """The server refused a request; to retry is of no use. ``status`` is the HTTP status."""

    def __init__(self, what: str, *, status: int, got: object, remedy: str | None) -> None:
        self.status = status
        super().__init__(what, got=got, remedy=remedy)


class LimitedClient(DefaultAsyncHttpxClient):
    """An HTTP client that reads whole, uncompressed replies of at most ``MOST_BYTES`` and follows no redirects.

    Args:
        timeout: seconds for one reply.
        auth: user and password, if the server asks for them.
    """

    def __init__(self, *, timeout: float, auth: tuple[str, str] | None) -> None:
        super().__init__(timeout=timeout, auth=auth, headers={"Accept-Encoding": "identity"})
        self._seconds = timeout

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        options |= {"stream": True, "follow_redirects": False}
        content = bytearray()
        try:
            async with asyncio.timeout(self._seconds + _GRACE):
                response = await super().send(request, **options)
                try:
                    coding = response.headers.get("content-encoding", "identity")
                    if coding != "identity":
                        raise ReplyLimitError(f"a reply with content encoding {coding}, which was not requested")
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > MOST_BYTES:
                            raise ReplyLimitError(f"a reply of more than {MOST_BYTES >> 20} MiB")
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise ReplyLimitError(f"a reply that is incomplete after {self._seconds:g} s") from error
        return httpx2.Response(response.status_code, headers=response.headers, content=bytes(content), request=request)


# ---- schemas: strict types; unknown keys are ignored

Count = Annotated[int, Field(ge=0, lt=2**31)]
MaskedText = Annotated[str, AfterValidator(masked)]
"""A text without secrets: a server may repeat the key that it was sent."""
Ids = list[Count] | None


class Reply(BaseModel):
    """A reply, or a part of one."""

    model_config = ConfigDict(strict=True, frozen=True)


class Usage(Reply):
    prompt_tokens: Count
    completion_tokens: Count


class CompletionChoice(Reply):
    text: MaskedText
    finish_reason: Literal["stop", "length"]
    token_ids: Ids = None
    prompt_token_ids: Ids = None


class Completion(Reply):
    """A reply of ``/v1/completions``."""

    choices: tuple[CompletionChoice]
    usage: Usage | None = None
    prompt_token_ids: Ids = None


class Message(Reply):
    content: MaskedText | None = None
    refusal: MaskedText | None = None


class ChatChoice(Reply):
    message: Message
    finish_reason: Literal["stop", "length", "content_filter"]


class Chat(Reply):
    """A reply of ``/v1/chat/completions``."""

    choices: tuple[ChatChoice]
    usage: Usage


class Model(Reply):
    id: MaskedText


class Models(Reply):
    """A reply of ``/v1/models``."""

    data: list[Model]


def read_reply(content: bytes, kind: type[ReplyT]) -> ReplyT:
    """Validate a reply.

    Raises:
        UnusableReplyError: the reply is not JSON, or does not fit the schema; names the first such field.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        said = error.errors(include_input=False)[0]
        begins = repr(content[:80].decode(errors="replace"))
        if said["type"] == "json_invalid":
            refused: SGSDError = UnusableReplyError("an unusable reply", got=begins, expected="JSON")
        elif len(content) > _QUOTED:
            refused = UnusableReplyError("an unusable reply", got=begins, expected=said["msg"])
        else:
            refused = refusal(error, "an unusable reply", UnusableReplyError)
    raise refused  # outside of ``except``: pydantic's error holds the whole reply


# ---- the client


class ServerClient:
    """A client of one OpenAI-compatible server: concurrent requests, replies in order.

    The package ``openai`` retries transient failures: status 408, 409, 429 and 5xx, timeouts, broken connections and
    incomplete bodies. It waits exponentially longer, or as ``Retry-After`` asks, if that is at most two minutes; where
    more is asked for it does not retry. Other refusals, redirects, replies beyond the limits and unusable replies are
    final.

    The key is read from ``OPENAI_API_KEY``; a server on this machine or network needs none. The key and secrets in the
    address are neither shown nor stored: ``base_url`` is the address without them.

    Args:
        base_url: such as ``http://localhost:8000/v1``.
        concurrency: the maximum number of concurrent requests.
        timeout: seconds for one whole reply.
        retries: the maximum number of retries per request.

    Raises:
        ConfigError: the address is invalid, a remote server has no key, or the key is not printable ASCII.
    """

    def __init__(self, base_url: str, *, concurrency: int = 16, timeout: float = 600.0, retries: int = 5) -> None:
        for name, value, fits, expected in (
            ("concurrency", concurrency, concurrency >= 1, "1 or more"),
            ("timeout", timeout, 0 < timeout < math.inf, "seconds, above 0"),
            ("retries", retries, retries >= 0, "0 or more"),
        ):
            if not fits:
                raise ConfigError(f"{name} is out of range", got=value, expected=expected)
        address = _address(base_url)
        self.base_url = public_url(base_url).rstrip("/")
        self._key = _api_key(address.hostname or "")
        self._login = None if address.username is None else (unquote(address.username), unquote(address.password or ""))
        self._query = dict(parse_qsl(address.query, keep_blank_values=True))
        secrets = [value for name, value in self._query.items() if _SECRET_NAME.search(name)]
        for secret in (self._key, *(self._login or ())[1:], *secrets):
            keep_secret(secret)
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries

    def ask(
        self,
        requests: Sequence[Callable[[AsyncOpenAI], Awaitable[T]]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[T]:
        """The answers, in the order of the requests.

        Args:
            requests: each makes one call of the client and reads its reply.
            progress: called with the number of answers so far, after each.

        Raises:
            ServerError: the first request that failed for good (``RefusedError`` where the server refused it); the
                others are cancelled.
        """
        return _run(self._ask_all(requests, progress, keep_errors=False))

    def ask_each(self, requests: Sequence[Callable[[AsyncOpenAI], Awaitable[T]]]) -> list[T | ServerError]:
        """As ``ask``, but a request that failed for good gives its error and does not stop the others."""
        return _run(self._ask_all(requests, None, keep_errors=True))

    async def _ask_all(
        self,
        requests: Sequence[Callable[[AsyncOpenAI], Awaitable[Any]]],
        progress: Callable[[int], object] | None,
        *,
        keep_errors: bool,
    ) -> list[Any]:
        room, done = asyncio.Semaphore(self._concurrency), itertools.count(1)

        async def answer(client: AsyncOpenAI, request: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Any:
            async with room:
                try:
                    said = await self._ask(client, request)
                except ServerError as error:
                    if not keep_errors:
                        raise
                    said = error
            if progress is not None:
                progress(next(done))
            return said

        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key,
            default_query=self._query,
            timeout=self._timeout,
            max_retries=self._retries,
            http_client=LimitedClient(timeout=self._timeout, auth=self._login),
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(answer(client, request)) for request in requests]
            except ExceptionGroup as failures:  # the first failure ends the group, so it is the one to report
                raise failures.exceptions[0] from failures.exceptions[0].__cause__
        return [task.result() for task in tasks]

    async def _ask(self, client: AsyncOpenAI, request: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        try:
            return await request(client)
        except OpenAIError as error:
            raise await self._failure(client, error) from error
        except (ValueError, RecursionError) as error:  # UnusableReplyError, and of what the package reads as JSON
            raise ServerError(
                f"no usable answer from {self.base_url}",
                got=error,
                remedy="check that the address is the API's, such as http://localhost:8000/v1",
            ) from error

    async def _failure(self, client: AsyncOpenAI, error: OpenAIError) -> ServerError:
        """The error of a request that failed for good."""
        tries = f"{self._retries + 1} tries" if self._retries else "1 try"
        what = f"no usable answer from {self.base_url} in {tries}"
        if isinstance(error, APITimeoutError):
            got = f"no answer within {self._timeout:g} s"
            return ServerError(what, got=got, remedy="raise the timeout or lower the concurrency")
        if isinstance(error, APIConnectionError):
            broken = error.__cause__ or error
            got = _beginning(f"no connection ({type(broken).__name__}) {broken}")
            return ServerError(what, got=got, remedy="check that a server runs there")
        if not isinstance(error, APIStatusError):  # ReplyLimitError
            return ServerError(f"no usable answer from {self.base_url}", got=error)
        status = error.status_code
        got = f"HTTP {status}: " + _beginning(error.message.removeprefix(f"Error code: {status} - "))
        if status in (408, 409, 429) or status >= 500:
            return ServerError(what, got=got, remedy="lower the concurrency, or look at the server's log")
        models = await _models(client) if status == 404 else []
        remedies = {
            401: f"set {KEY_VARIABLE} to a key that this server knows",
            403: f"set {KEY_VARIABLE} to a key that this server knows",
            404: f"it serves {', '.join(models)}" if models else "check the model's name and the address's /v1",
        }
        redirected = "give the final address; redirects are not followed"
        remedy = redirected if status < 400 else remedies.get(status)
        return RefusedError(f"{self.base_url} refused a request", status=status, got=got, remedy=remedy)


class OpenAISampler:
    """A served model as ``rollouts.Sampler``.

    Completion ids are the server's where it returns them (vLLM; SGLang since July 2026), and ``text`` is decoded from
    them. Other servers (llama.cpp) return only text. It is tokenised once, the rollout is
    ``retokenised``, and its count of tokens is the server's.

    Args:
        model_name: as the server knows it; a LoRA adapter has a name of its own there.
        tokenizer: the served model's.
        base_url, concurrency, timeout, retries: as for ``ServerClient``, and so are errors.
        max_new_tokens: the length limit.
        temperature: 0 is greedy decoding.
        top_p, top_k: 1.0 and 0 switch them off.
        progress: called with the number of prompts done after each.
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Any,
        *,
        base_url: str,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Callable[[int], object] | None = None,
        **client: Any,
    ) -> None:
        self._client = ServerClient(base_url, **client)
        self._tokenizer = tokenizer
        self._text = CompletionText(tokenizer)
        self._progress = progress
        self._max_new_tokens = max_new_tokens
        self._end_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self._options: dict[str, Any] = {
            "model": model_name,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            # Beyond OpenAI's own API. Left to themselves, llama.cpp takes top-k 40 and min-p 0.05, and vLLM what the
            # model's generation_config.json says. All read -1 as no top-k, and SGLang refuses 0.
            "extra_body": {
                "top_k": top_k or -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "stop_token_ids": list(self._end_ids),
                "return_token_ids": True,
            },
        }

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        """See ``Sampler.sample``. Runs may still differ if the server's rounding depends on its batches.

        Raises:
            ServerError: no usable reply, a reply to another prompt, or one that is cut before the length limit.
        """
        requests = [self._request(prompt, completion_seed(seed, index)) for index, prompt in enumerate(prompts)]
        return self._client.ask(requests, progress=self._progress)

    def _request(self, prompt: Sequence[int], seed: int) -> Callable[[AsyncOpenAI], Awaitable[Rollout]]:
        async def request(client: AsyncOpenAI) -> Rollout:
            reply = await client.completions.with_raw_response.create(prompt=list(prompt), seed=seed, **self._options)
            return self._rollout(tuple(prompt), read_reply(reply.content, Completion))

        return request

    def _rollout(self, prompt: tuple[int, ...], reply: Completion) -> Rollout:
        (choice,) = reply.choices
        ids, limit = choice.token_ids, self._max_new_tokens
        prompt_ids = choice.prompt_token_ids or reply.prompt_token_ids
        counted = len(prompt) if reply.usage is None else reply.usage.prompt_tokens
        seen = counted if prompt_ids is None else len(prompt_ids)
        if seen != len(prompt) or (prompt_ids is not None and tuple(prompt_ids) != prompt):
            raise ServerError(
                f"{self._client.base_url} read another prompt than the one sent",
                got=f"{seen} tokens",
                expected=f"the {len(prompt)} token ids as sent",
                remedy="the server must take token ids, and neither add to them nor cut them",
            )
        length = (reply.usage and reply.usage.completion_tokens) if ids is None else len(ids)
        if length is None:
            raise UnusableReplyError("an unusable reply", got="neither token_ids nor usage.completion_tokens")
        if length > limit:
            raise UnusableReplyError("an unusable reply", got=f"{length} tokens", expected=f"at most {limit}")
        if ids and max(ids) >= len(self._tokenizer):
            expected = f"a vocabulary of {len(self._tokenizer)}"
            raise UnusableReplyError("an unusable reply", got=f"token id {max(ids)}", expected=expected)
        has_ended = choice.finish_reason == "stop"
        if not has_ended and length < limit:
            raise ServerError(
                f"{self._client.base_url} cut a completion before the length limit",
                got=f"{length} tokens",
                expected=limit,
                remedy="give the server a longer context, or lower the completion length",
            )
        if ids is None:
            completion = (*self._tokenizer.encode(choice.text, add_special_tokens=False), *self._end_ids * has_ended)
            text = self._text.from_text(prompt, choice.text)
        else:
            completion, text = tuple(ids), self._text.after(prompt, ids)
        return Rollout(
            prompt_ids=prompt,
            completion_ids=completion,
            text=text,
            stop_reason=StopReason.END if has_ended else StopReason.LENGTH,
            retokenised=ids is None,
            counted=length if ids is None else None,
        )


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, also inside a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _address(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        is_one = bool(parts.hostname) and parts.scheme in ("http", "https") and base_url.isprintable()
        _ = parts.port
    except ValueError:
        is_one = False
    if not is_one:
        got = repr(public_url(base_url))
        raise ConfigError("not a server's address", got=got, expected="such as http://localhost:8000/v1")
    return parts


def _api_key(host: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and _is_local(host):
        return "no-key-needed"  # the client requires one
    if not key:
        raise ConfigError(f"no key for {host}", remedy=f"set the environment variable {KEY_VARIABLE}")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in {KEY_VARIABLE} cannot be sent", expected="printable ASCII in one line")
    return key


def _beginning(text: str) -> str:
    return one_line(" ".join(text.split()), 200)


def _is_local(host: str) -> bool:
    """Whether the host is this machine, in a private network, or a name without a domain, as on a cluster."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


async def _models(client: AsyncOpenAI) -> list[str]:
    try:
        reply = await client.models.with_raw_response.list()
        return [model.id for model in read_reply(reply.content, Models).data]
    except (OpenAIError, UnusableReplyError):
        return []
