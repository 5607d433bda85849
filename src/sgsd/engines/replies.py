"""Replies of OpenAI-compatible servers: how long and large one may be, where it comes from, what must stand in it.

A server may trickle, never end, pack gigabytes into kilobytes, send the client elsewhere, or answer with anything at
all. ``LimitedClient`` reads a reply under limits, and ``read_reply`` by a schema; nothing else of it is looked at.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, TypeVar

import httpx2
from openai import DefaultAsyncHttpxClient, OpenAIError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sgsd.display import masked
from sgsd.errors import SGSDError
from sgsd.validation import refusal

MOST_BYTES = 4 << 20  # of a reply: 131,072 tokens of prompt and as many of completion, as ids and text, are 3 MiB
_GRACE = 1.0  # seconds: silence is the package's own timeout, which it may try again after; this is for what trickles
_BEGINNING = 80  # of a reply, in bytes, in an error
_QUOTED = 100_000  # bytes of a reply that an error looks through

ReplyT = TypeVar("ReplyT", bound="Reply")


class UnusableReplyError(SGSDError, ValueError):
    """A reply that came whole but is not what the API promises."""


class EndlessReplyError(OpenAIError):
    """A reply beyond the limits. The package ``openai`` hands on errors of its own without another try."""


class LimitedClient(DefaultAsyncHttpxClient):
    """Whole replies of at most ``MOST_BYTES``, uncompressed, from the address itself.

    Args:
        timeout: seconds for one reply.
        auth: user and password, if the server asks for them.
    """

    def __init__(self, *, timeout: float, auth: tuple[str, str] | None) -> None:
        super().__init__(timeout=timeout, auth=auth, headers={"Accept-Encoding": "identity"})
        self._seconds = timeout

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        options |= {"stream": True, "follow_redirects": False}
        try:
            async with asyncio.timeout(self._seconds + _GRACE):
                response = await super().send(request, **options)
                try:
                    content = await _content(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise EndlessReplyError(f"a reply that is not whole after {self._seconds:g} s") from error
        return httpx2.Response(response.status_code, headers=response.headers, content=content, request=request)


async def _content(response: httpx2.Response) -> bytes:
    coding = response.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise EndlessReplyError(f"a reply packed with {coding}, which was not asked for")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MOST_BYTES:
            raise EndlessReplyError(f"a reply of more than {MOST_BYTES >> 20} MiB")
    return bytes(content)


# ---- schemas: strict, with room for whatever else a server says

Count = Annotated[int, Field(ge=0, lt=2**31)]
Said = Annotated[str, AfterValidator(masked)]
"""A text; a server may repeat the key that it was sent."""
Ids = list[Count] | None


class Reply(BaseModel):
    """Of any kind."""

    model_config = ConfigDict(strict=True, frozen=True)


class Usage(Reply):
    """Tokens that the server counted."""

    prompt_tokens: Count
    completion_tokens: Count


class CompletionChoice(Reply):
    """What was sampled."""

    text: Said
    finish_reason: Literal["stop", "length"]
    token_ids: Ids = None
    prompt_token_ids: Ids = None


class Completion(Reply):
    """Of ``/v1/completions``."""

    choices: tuple[CompletionChoice]
    usage: Usage | None = None
    prompt_token_ids: Ids = None


class Message(Reply):
    """What was written."""

    content: Said | None = None
    refusal: Said | None = None


class ChatChoice(Reply):
    """A message, and why it ended."""

    message: Message
    finish_reason: Literal["stop", "length", "content_filter"]


class Chat(Reply):
    """Of ``/v1/chat/completions``."""

    choices: tuple[ChatChoice]
    usage: Usage


class Model(Reply):
    """One of those served."""

    id: Said


class Models(Reply):
    """Of ``/v1/models``."""

    data: list[Model]


def read_reply(content: bytes, kind: type[ReplyT]) -> ReplyT:
    """The reply as its kind.

    Raises:
        UnusableReplyError: it is no JSON object, or the first field that does not fit.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        refused = _refused(error, content)
    raise refused  # without pydantic's error, which holds the whole reply


def _refused(error: ValidationError, content: bytes) -> SGSDError:
    said = error.errors(include_input=False)[0]
    begins = repr(content[:_BEGINNING].decode(errors="replace"))
    if said["type"] == "json_invalid":
        return UnusableReplyError("an unusable reply", got=begins, expected="JSON")
    if len(content) > _QUOTED:
        return UnusableReplyError("an unusable reply", got=begins, expected=said["msg"])
    return refusal(error, "an unusable reply", UnusableReplyError)
