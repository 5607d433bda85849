"""Servers that break their word: each is one line, in time, in little memory, and leaves nothing behind."""

from __future__ import annotations

import gzip
import re
import sys
import time
import zlib
from pathlib import Path

import pytest

from sgsd.engines.servers import OpenAISampler, ServerClient
from sgsd.errors import ConfigError, ServerError

from ..serving import serving
from .test_servers import completion

KEY = "sk-live-0123456789"
TIMEOUT = 1.0


def trickle():
    for _ in range(200):
        yield b" "
        time.sleep(0.1)


def endless():
    while True:
        yield b" " * 1_000_000


def bomb():
    """400 MB of spaces in a kilobyte."""
    packer = zlib.compressobj(wbits=31)
    return gzip.compress(b"".join(packer.compress(b" " * 1_000_000) for _ in range(400)) + packer.flush())


def peak():
    """The most memory held since the last call, in MiB."""
    (line,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    return int(line) >> 10


BOMB = bomb()
# name: the answer, what the line says
BROKEN = {
    "trickle": ({"content": b"", "chunks": trickle}, "a reply that is incomplete after 1 s"),
    "trickle in an error": ({"content": b"", "chunks": trickle, "status": 400}, "a reply that is incomplete after 1 s"),
    "endless": ({"content": b"", "chunks": endless}, "a reply of more than 4 MiB"),
    "endless in an error": ({"content": b"", "chunks": endless, "status": 500}, "a reply of more than 4 MiB"),
    "bomb": (
        {"content": BOMB, "headers": {"content-encoding": "gzip, gzip"}},
        "a reply with content encoding gzip, gzip",
    ),
    "another coding": ({"content": BOMB, "headers": {"content-encoding": "br"}}, "a reply with content encoding br"),
    "redirect": (
        {"content": b"", "status": 307, "headers": {"location": "{elsewhere}"}},
        "HTTP 307.*the final address",
    ),
    "redirect to a file": ({"content": b"", "status": 302, "headers": {"location": "file:///etc/passwd"}}, "HTTP 302"),
    "wrong schema": ({"choices": [{"text": ["7"], "finish_reason": "stop"}]}, r"choices\[0\]\.text: cannot be used"),
    "many brackets": ({"content": b'{"choices": [' + b"[]," * 40_000 + b"[]]}"}, "an unusable reply"),
    "echo": ({"content": {"error": {"message": f"bad key Bearer {KEY}"}}, "status": 401}, r"bad key Bearer \(key\)"),
    "echo in escapes": ({"content": {"error": {"message": f"\x1b]0;{KEY}\x07"}}, "status": 400}, r"\(key\)"),
    "echo instead of a reply": ({"content": KEY.encode()}, r"got '\(key\)'; expected JSON"),
}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def sample(url, tokenizer, prompts=((5, 6, 7),)):
    return OpenAISampler("tiny", tokenizer, base_url=url, max_new_tokens=3, timeout=TIMEOUT).sample(prompts, seed=0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("answer", "line"), BROKEN.values(), ids=BROKEN)
def test_a_broken_server_is_one_line_in_time_and_in_little_memory(tokenizer, answer, line):
    with serving(lambda body, attempt: completion(body)) as elsewhere:
        headers = {k: v.format(elsewhere=elsewhere.url) for k, v in answer.get("headers", {}).items()}
        answer = answer if "headers" not in answer else answer | {"headers": headers}
        with serving(lambda body, attempt: answer) as server:
            peak()
            before, began = peak(), time.monotonic()
            with pytest.raises(ServerError, match=line) as info:
                sample(server.url, tokenizer)
        assert elsewhere.bodies == []
    assert time.monotonic() - began < TIMEOUT + 2
    assert peak() - before < 500
    assert str(info.value).isprintable()
    assert KEY not in str(info.value)


def test_a_key_that_a_reply_repeats_is_not_kept(tokenizer):
    def script(body, attempt):
        reply = completion(body, text=f"You sent {KEY}.", completion_tokens=3)
        del reply["choices"][0]["token_ids"]
        return reply

    with serving(script) as server:
        (rollout,) = sample(server.url, tokenizer)
    assert server.keys == [f"Bearer {KEY}"]
    assert rollout.text == "You sent (key)."


@pytest.mark.parametrize("key", ["sk-live-01\n23456789", "sk-live-\x1b[31m", "sk-live-é"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="the key in OPENAI_API_KEY cannot be sent") as info:
        ServerClient("http://localhost:8000/v1")
    assert "sk-live" not in str(info.value)


def test_what_an_address_may_hold_in_secret_is_sent_and_not_shown(tokenizer):
    refusal = {"content": {"error": {"message": "no: hunter22, sesame-1 of user (preview)"}}, "status": 400}
    with serving(lambda body, attempt: refusal) as server:
        url = server.url.replace("http://", "http://user:hunter22@") + "?api-key=sesame-1&api-version=preview"
        with pytest.raises(ServerError) as info:
            sample(url, tokenizer)
    assert str(info.value).startswith(
        f"{server.url} refused a request: got HTTP 400: no: (key), (key) of user (preview)"
    )
    assert server.keys[0].startswith("Basic ")
    assert server.paths == ["/v1/completions?api-key=sesame-1&api-version=preview"]


@pytest.mark.parametrize("url", ["ftp://me:{}@h/v1", "http://me:{}@[::1/v1", "http://:{}@", "http://h:x/?key={}"])
def test_an_address_that_is_none_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError, match="not a server's address") as info:
        ServerClient(url.format("pass-word"))
    assert "pass-word" not in str(info.value)
