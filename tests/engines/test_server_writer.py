"""A served model as writer: what it is asked, what becomes of bad answers, and of a proxy that fails."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from sgsd.bank.extract import extraction_request, read_extraction
from sgsd.bank.writing import WriteFailure, WriteRequest, write_until_fit
from sgsd.data.problems import Problem
from sgsd.engines.server_writer import ServerWriter
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


def writer(url, **options):
    defaults = {"base_url": url, "retries": 2, "first_wait": 0.01, "timeout": 5.0}
    return ServerWriter("tiny", **defaults | options)


def is_probe(body):
    return body["messages"][0]["content"].startswith("Say hello.")


def held_to(body):
    return body.get("response_format", {}).get("type", "no format")


def answers(text="{}", **more):
    """A script: what the server says to real requests; the probe it answers as one that keeps to schemas."""
    return lambda body, attempt: chat('{"items": []}') if is_probe(body) else chat(text, **more)


def refusing(*formats, status=400):
    """A server that knows none of these formats, and says hello where it is held to nothing."""

    def script(body, attempt):
        if held_to(body) in formats:
            return {"content": {"error": {"message": f"no {held_to(body)} here"}}, "status": status}
        return chat('{"items": []}' if held_to(body) != "no format" else "Hello!" if is_probe(body) else "{}")

    return script


def test_requests_go_with_their_schema_and_all_that_they_say():
    with serving(answers("{}", prompt_tokens=11, completion_tokens=7)) as server:
        asked = writer(server.url, temperature=0.3, concurrency=1, chat_template_kwargs={"enable_thinking": False})
        written = asked.write(REQUESTS)
    assert [(w.key, w.text, w.error) for w in written] == [(r.key, "{}", None) for r in REQUESTS]
    assert {(w.prompt_tokens, w.completion_tokens) for w in written} == {(11, 7)}
    probe, *bodies = server.bodies
    assert is_probe(probe)
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
    assert asked.name == "openai tiny (json_schema)"


def test_without_requests_nothing_is_asked():
    assert writer("http://localhost:1/v1").write([]) == []


def test_temperature_may_be_left_to_the_server():
    with serving(answers()) as server:
        writer(server.url, temperature=None).write(REQUESTS)
    assert not any("temperature" in body for body in server.bodies)


@pytest.mark.parametrize(
    ("formats", "status", "found"),
    [
        ((), 400, "json_schema"),
        (("json_schema",), 400, "json_object"),
        (("json_schema",), 422, "json_object"),
        (("json_schema", "json_object"), 400, "no format"),
    ],
)
def test_what_answers_are_held_to_is_found_out_once_and_remembered(formats, status, found, caplog):
    with serving(refusing(*formats, status=status)) as server:
        asked = writer(server.url)
        for _ in range(2):
            assert [w.text for w in asked.write(REQUESTS)] == ['{"items": []}' if found != "no format" else "{}"] * 3
    assert sum(map(is_probe, server.bodies)) == len(formats) + 1
    real = [body for body in server.bodies if not is_probe(body)]
    assert {held_to(body) for body in real} == {found}
    assert asked.name == f"openai tiny ({found})"
    assert [record.levelname for record in caplog.records if "refused" in record.message] == ["WARNING"] * len(formats)
    for body in real:  # where the server does not know the schema, the model must
        assert (json.dumps(SCHEMA) in body["messages"][-1]["content"]) == (found != "json_schema")


def test_a_format_that_is_taken_and_not_kept_to_is_not_relied_on():
    with serving(lambda body, attempt: chat("Hello!")) as server:
        asked = writer(server.url)
        asked.write(REQUESTS)
    assert asked.name == "openai tiny (no format)"


@pytest.mark.parametrize("said", [chat("{", finish="length", completion_tokens=100), chat(None)], ids=["cut", "none"])
def test_a_probe_that_tells_nothing_is_no_reason_to_do_without_a_schema(said):
    with serving(lambda body, attempt: said if is_probe(body) else chat("{}")) as server:
        asked = writer(server.url)
        asked.write(REQUESTS)
    assert asked.name == "openai tiny (json_schema)"


def test_models_that_call_the_length_limit_otherwise_are_asked_so():
    def script(body, attempt):
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return {"content": {"error": {"message": message}}, "status": 400}
        return answers()(body, attempt)

    with serving(script) as server:
        asked = writer(server.url)
        assert [w.text for w in asked.write(REQUESTS)] == ["{}"] * 3
    assert asked.name == "openai tiny (json_schema)"
    assert {body["max_completion_tokens"] for body in server.bodies[2:]} == {50}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"content": b"<html>Sign in</html>", "kind": "text/html"}, "unusable reply.*Sign in.*address is the API's"),
        ({"content": {"error": {"message": "no tinny"}}, "status": 404}, "no tinny.*it serves tiny"),
        ({"content": {"error": {"message": "who?"}}, "status": 401}, "who?.*OPENAI_API_KEY"),
        ({"content": {"error": {"message": "broken"}}, "status": 500}, "3 tries: got HTTP 500: broken"),
        ({"content": {"error": {"message": "no seeds"}}, "status": 400}, "no seeds"),
    ],
    ids=["html", "404", "401", "500", "400"],
)
def test_a_server_that_answers_nothing_is_one_line_from_the_probe(failure, message):
    with serving(lambda body, attempt: failure) as server, pytest.raises(ServerError, match=message) as info:
        writer(server.url).write(REQUESTS)
    assert server.url in str(info.value)
    assert "\n" not in str(info.value)
    assert all(map(is_probe, server.bodies))


def test_an_unreachable_server_is_one_line():
    with serving(answers()) as server:
        url = server.url
    with pytest.raises(ServerError, match="check that a server runs there"):
        writer(url).write(REQUESTS)


BAD = {
    "refused": ({"content": {"error": {"message": "too long"}}, "status": 400}, "HTTP 400: too long"),
    "broken": ({"content": {"error": {"message": "broken"}}, "status": 500}, "HTTP 500: broken"),
    "cut body": ({"content": b'{"choi', "missing": 9}, "no connection"),
    "html": ({"content": b"<html>", "kind": "text/html"}, "instead of a chat completion"),
    "no choice": ({"choices": []}, "without its one choice"),
    "no usage": (chat("{}") | {"usage": None}, "usage without prompt_tokens"),
    "abort": (chat("{}", finish="abort"), "finish_reason 'abort'"),
    "filter": (chat("{}", finish="content_filter"), "the model refused: content filter"),
    "no text": (chat(None), "no text: finish_reason 'stop'"),
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


def test_where_none_is_answered_the_probe_tells_whether_the_server_is_gone():
    refusal = {"content": {"error": {"message": "too long"}}, "status": 400}
    script = lambda body, attempt: answers()(body, attempt) if is_probe(body) else refusal  # noqa: E731
    with serving(script) as server:
        asked = writer(server.url)
        assert all("too long" in w.error for w in asked.write(REQUESTS))
        assert sum(map(is_probe, server.bodies)) == 2
        server.script = lambda body, attempt: {"content": {}, "status": 500}
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
    """One item of the kind that is asked for, its text from the request; the probe keeps to its schema, too."""
    if is_probe(body):
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
    assert counts.requests >= 80
    assert counts.completion_tokens == 5 * len(written)


def test_where_nothing_gets_through_every_memory_is_a_failure_or_the_server_is_gone():
    pool = memories(6)
    broken = {"content": {"error": {"message": "broken"}}, "status": 500}
    script = lambda body, attempt: answers()(body, attempt) if is_probe(body) else broken  # noqa: E731
    with serving(script) as server:
        results, _ = write_until_fit(
            writer(server.url, retries=0),
            [extraction_request(memory) for memory in pool],
            [lambda written, memory=memory: read_extraction(memory, written) for memory in pool],
        )
    assert [result.key for result in results] == [extraction_request(memory).key for memory in pool]
    assert {result.reason for result in results} == {"no answer from the server: HTTP 500: broken"}
