"""A served model as writer: what it is asked, what becomes of bad answers, and of a proxy that fails."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from sgsd.bank.extract import extraction_request, read_extraction
from sgsd.bank.writing import WriteFailure, WriteRequest, write_until_fit
from sgsd.data.problems import Problem
from sgsd.engines.server_writer import FORMATS, ServerWriter
from sgsd.errors import ServerError
from sgsd.memories import memory_of
from sgsd.verifiers import Outcome, Verdict

from ..bank.writers import reply
from ..serving import chat, failing, serving

SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
REQUESTS = [WriteRequest(f"key-{n}", [{"role": "user", "content": f"Write {n}."}], SCHEMA, 50, n) for n in range(3)]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def writer(url, **options):
    defaults = {"base_url": url, "retries": 2, "timeout": 5.0}
    return ServerWriter("tiny", **defaults | options)


def is_hello(body):
    return body["messages"][0]["content"].startswith("Say hello.")


def answers(text="{}", **more):
    """A script: what the server says to real requests; hello is answered in kind."""
    return lambda body, attempt: chat('{"items": []}') if is_hello(body) else chat(text, **more)


def test_requests_go_with_their_schema_and_all_that_they_say():
    with serving(answers("{}", prompt_tokens=11, completion_tokens=7)) as server:
        asked = writer(server.url, temperature=0.3, concurrency=1, chat_template_kwargs={"enable_thinking": False})
        written = asked.write(REQUESTS)
    assert [(w.key, w.text, w.error) for w in written] == [(r.key, "{}", None) for r in REQUESTS]
    assert {(w.prompt_tokens, w.completion_tokens) for w in written} == {(11, 7)}
    hello, *bodies = server.bodies
    assert is_hello(hello)
    assert bodies == [
        {
            "model": "tiny",
            "messages": request.messages,
            "max_tokens": 50,
            "seed": request.seed,
            "temperature": 0.3,
            "chat_template_kwargs": {"enable_thinking": False},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
            },
        }
        for request in REQUESTS
    ]
    assert asked.name == "openai tiny"


def test_without_requests_nothing_is_asked():
    assert writer("http://localhost:1/v1").write([]) == []


def test_temperature_may_be_left_to_the_server():
    with serving(answers()) as server:
        writer(server.url, temperature=None).write(REQUESTS)
    assert not any("temperature" in body for body in server.bodies)


def by(body):
    """How a request was put."""
    length = next(name for name in ("max_tokens", "max_completion_tokens") if name in body)
    return length, body.get("response_format", {}).get("type", "text")


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("known", range(len(FORMATS)))
def test_how_requests_are_put_is_found_out_once_and_remembered(known, status):
    def script(body, attempt):
        if by(body) in (FORMATS[known], (FORMATS[known][0], "text")):
            return answers()(body, attempt)
        return {"content": {"error": {"message": "not this way"}}, "status": status}

    with serving(script) as server:
        asked = writer(server.url)
        assert [w.text for w in asked.write(REQUESTS)] == ["{}"] * 3
        tried = len(server.bodies)
        assert [w.text for w in asked.write(REQUESTS)] == ["{}"] * 3
    assert [by(body) for body in server.bodies[tried:]] == [FORMATS[known]] * 3


def test_one_request_that_is_refused_changes_nothing_for_the_others():
    def script(body, attempt):
        if body["messages"][0]["content"] == "Write 1.":
            return {"content": {"error": {"message": "too long"}}, "status": 400}
        return answers()(body, attempt)

    with serving(script) as server:
        asked = writer(server.url)
        asked.write(REQUESTS)
        tried = len(server.bodies)
        asked.write(REQUESTS[:1])
    assert [by(body) for body in server.bodies[tried:]] == [FORMATS[0]]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"content": b"<html>Sign in</html>", "kind": "text/html"}, "unusable reply.*Sign in.*address is the API's"),
        ({"content": {"error": {"message": "no tinny"}}, "status": 404}, "no tinny.*it serves tiny"),
        ({"content": {"error": {"message": "who?"}}, "status": 401}, "who?.*OPENAI_API_KEY"),
        ({"content": {"error": {"message": "broken"}}, "status": 500}, "3 tries: got HTTP 500: broken"),
    ],
    ids=["html", "404", "401", "500"],
)
def test_a_server_that_answers_nothing_is_one_line_after_hello(failure, message):
    with serving(lambda body, attempt: failure) as server, pytest.raises(ServerError, match=message) as info:
        writer(server.url).write(REQUESTS)
    assert server.url in str(info.value)
    assert "\n" not in str(info.value)
    assert all(map(is_hello, server.bodies))


def test_an_unreachable_server_is_one_line():
    with serving(answers()) as server:
        url = server.url
    with pytest.raises(ServerError, match="check that a server runs there"):
        writer(url).write(REQUESTS)


BAD = {
    "refused": ({"content": {"error": {"message": "too long"}}, "status": 400}, "HTTP 400: too long"),
    "broken": ({"content": {"error": {"message": "broken"}}, "status": 500}, "HTTP 500: broken"),
    "html": ({"content": b"<html>", "kind": "text/html"}, "an unusable reply: got '<html>'; expected JSON"),
    "no usage": (chat("{}") | {"usage": None}, "usage: cannot be used: got null"),
    "filter": (chat("{}", finish="content_filter"), "the model refused: content filter"),
    "no text": (chat(None), "no text: finish_reason 'stop'"),
    "parts": (chat([{"type": "text", "text": "{}"}]), "message.content: cannot be used"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
def test_a_request_that_fails_for_good_is_an_error_and_the_others_go_on(answer, reason):
    def script(body, attempt):
        return answer if body["messages"][0]["content"] == "Write 1." else answers()(body, attempt)

    with serving(script) as server:
        written = writer(server.url).write(REQUESTS)
    assert [w.text for w in written] == ["{}", None, "{}"]
    assert reason in written[1].error
    assert "\n" not in written[1].error
    assert written[0].error is written[2].error is None


def test_where_none_is_answered_hello_tells_whether_the_server_is_gone():
    broken = {"content": {"error": {"message": "broken"}}, "status": 500}
    script = lambda body, attempt: answers()(body, attempt) if is_hello(body) else broken  # noqa: E731
    with serving(script) as server:
        asked = writer(server.url, retries=0)
        assert all("broken" in w.error for w in asked.write(REQUESTS))
        assert sum(map(is_hello, server.bodies)) == 2
        server.script = lambda body, attempt: broken
        with pytest.raises(ServerError, match="no usable answer"):
            asked.write(REQUESTS)


def test_a_cut_text_is_handed_on_as_it_is():
    with serving(answers('{"title": "A', finish="length", completion_tokens=50)) as server:
        (written, *_) = writer(server.url).write(REQUESTS)
    assert (written.text, written.completion_tokens) == ('{"title": "A', 50)


# ---- a proxy that fails, between extraction and the server


def memories(count):
    outcomes = (Outcome.CORRECT, Outcome.INCORRECT)
    made = [
        memory_of(
            Problem(id=f"p{n}", text=f"{n} + {n}?", answer=str(2 * n)),
            f"It is {2 * n + n % 2}.",
            Verdict(outcomes[n % 2], None, str(2 * n + n % 2)),
            truncated=False,
            source=f"rollout {n}",
        )
        for n in range(count)
    ]
    assert len({memory.id for memory in made}) == count
    return made


def item(body, attempt):
    """One item of the kind that is asked for, its text from the request; hello is answered in kind."""
    if is_hello(body):
        return chat('{"items": []}')
    kind = "skill" if "principle" in json.dumps(body["response_format"]) else "mistake"
    digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
    return chat(reply(kind, (digest[:6], f"Do {digest[6:15]}.", "Now.")))


def test_behind_a_failing_proxy_every_memory_is_accounted_for_and_none_twice():
    pool = memories(80)
    seen: Counter[str] = Counter()
    with serving(failing(item, 1.5, seen)) as server:
        asked = writer(server.url, timeout=1.0, retries=3, concurrency=16)
        results, counts = write_until_fit(
            asked,
            [extraction_request(memory) for memory in pool],
            [lambda written, memory=memory: read_extraction(memory, written) for memory in pool],
        )
    assert len(results) == len(pool)
    failed = [result for result in results if isinstance(result, WriteFailure)]
    written = [candidates for candidates in results if not isinstance(candidates, WriteFailure)]
    assert len(written) + len(failed) == 80
    for memory, result in zip(pool, results, strict=True):
        if isinstance(result, WriteFailure):
            assert (result.key, result.attempts) == (extraction_request(memory).key, 3)
            assert result.reason
        else:
            assert [candidate.parents for candidate in result] == [(memory.id,)]
    assert len({candidate.id for candidates in written for candidate in candidates}) == len(written)
    # A request is repeated three times and asked for anew twice: one in four thousand fails for good.
    assert len(failed) <= 1
    assert seen.total() >= 1.6 * 80
    for fate, share in (("500", 0.3), ("hang", 0.1), ("cut", 0.1)):
        assert seen[fate] / seen.total() == pytest.approx(share, abs=0.1)
    assert counts["requests"] >= 80
    assert counts["completion_tokens"] == 5 * len(written)
