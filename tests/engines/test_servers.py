"""The client of OpenAI-compatible servers, against a server of a few lines in this process."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time

import pytest

from sgsd.engines.servers import OpenAISampler, RefusedError, ServerClient
from sgsd.errors import ConfigError, ServerError
from sgsd.rollouts import Rollout, StopReason, completion_seed

from ..serving import serving

END = 1
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def completion(body, *, ids=(70, 71, END), finish="stop", text="hi", prompt_ids=None, **usage):
    """What vLLM answers."""
    prompt = body["prompt"] if prompt_ids is None else prompt_ids
    choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": list(ids), "prompt_token_ids": prompt}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": 0} | usage
    return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def text_alone(body, text="hi", finish="stop", **usage):
    """What llama.cpp answers."""
    answer = completion(body, text=text, finish=finish, **usage)
    del answer["choices"][0]["token_ids"], answer["choices"][0]["prompt_token_ids"]
    return answer


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def sampler(url, tokenizer, **options):
    defaults = {"base_url": url, "max_new_tokens": 3, "retries": 2, "timeout": 5.0}
    return OpenAISampler("tiny", tokenizer, **defaults | options)


def failing_first(failure):
    """A script that fails at the first attempt of every prompt."""
    return lambda body, attempt: failure(body) if attempt == 0 else completion(body)


def test_a_rollout_is_what_the_server_sampled(tokenizer):
    def script(body, attempt):
        return completion(body) if body["prompt"] != [8] else completion(body, ids=(70, 71, 72), finish="length")

    with serving(script) as server:
        rollouts = sampler(server.url, tokenizer).sample(PROMPTS, seed=0)
    cut = Rollout((8,), (70, 71, 72), tokenizer.decode([70, 71, 72]), StopReason.LENGTH)
    ended = [Rollout(tuple(ids), (70, 71, END), tokenizer.decode([70, 71]), StopReason.END) for ids in PROMPTS]
    assert rollouts == [ended[0], cut, ended[2]]


def test_prompts_go_as_ids_with_every_setting_and_a_seed_each(tokenizer):
    with serving(lambda body, attempt: completion(body)) as server:
        sampler(server.url, tokenizer, temperature=0.6, top_p=0.9, concurrency=1).sample(PROMPTS, seed=4)
    assert [body["prompt"] for body in server.bodies] == PROMPTS
    assert [body["seed"] for body in server.bodies] == [completion_seed(4, index) for index in range(3)]
    assert {key: value for key, value in server.bodies[0].items() if key not in ("prompt", "seed")} == {
        "model": "tiny",
        "max_tokens": 3,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "stop_token_ids": [END],
        "return_token_ids": True,
    }


def test_a_position_s_seed_never_changes():
    assert [completion_seed(0, 0), completion_seed(0, 1), completion_seed(1, 0)] == [1484405855, 1982462498, 917752063]


def test_rollouts_come_in_the_order_of_the_prompts_however_the_answers_come(tokenizer):
    prompts = [[n] for n in range(2, 14)]

    def script(body, attempt):
        time.sleep(0.004 * (14 - body["prompt"][0]))
        return completion(body, ids=[body["prompt"][0], END])

    counts: list[int] = []
    with serving(script) as server:
        rollouts = sampler(server.url, tokenizer, progress=counts.append).sample(prompts, seed=0)
    assert [rollout.completion_ids[0] for rollout in rollouts] == [prompt[0] for prompt in prompts]
    assert counts == list(range(1, 13))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_than_allowed_are_under_way(tokenizer, concurrency):
    def script(body, attempt):
        time.sleep(0.02)
        return completion(body)

    with serving(script) as server:
        sampler(server.url, tokenizer, concurrency=concurrency).sample([[n] for n in range(2, 14)], seed=0)
    assert server.peak == concurrency


def test_text_without_ids_is_tokenised_once_and_as_long_as_the_server_says(tokenizer):
    with serving(lambda body, attempt: text_alone(body, "hi", completion_tokens=7)) as server:
        (rollout,) = sampler(server.url, tokenizer, max_new_tokens=8).sample([[5]], seed=0)
    assert rollout.retokenised
    assert rollout.text == "hi"
    assert rollout.completion_ids == (*tokenizer.encode("hi", add_special_tokens=False), END)
    assert rollout.tokens == 7 != len(rollout.completion_ids)
    uncounted = serving(lambda body, attempt: text_alone(body, "hi") | {"usage": None})
    refused = pytest.raises(ServerError, match=r"neither token_ids nor usage\.completion_tokens")
    with uncounted as server, refused:
        sampler(server.url, tokenizer, retries=0).sample([[5]], seed=0)


FAILURES = {
    "408": lambda body: {"content": {"error": {"message": "slow"}}, "status": 408},
    "409": lambda body: {"content": {"error": {"message": "locked"}}, "status": 409},
    "429": lambda body: {"content": {"error": {"message": "busy"}}, "status": 429},
    "500": lambda body: {"content": {"error": {"message": "broken"}}, "status": 500},
    "503 in HTML": lambda body: {"content": b"<h1>Loading</h1>", "status": 503, "kind": "text/html"},
    "silence": lambda body: time.sleep(0.5) or completion(body),
    "body cut off": lambda body: {"content": b'{"choices": [{"te', "missing": 40},
}
BAD_REPLIES = {
    "JSON cut off": lambda body: {"content": b'{"choices": [{"te'},
    "HTML": lambda body: {"content": b"<html>Sign in</html>", "kind": "text/html"},
    "no choice": lambda body: {"choices": []},
    "an error with status 200": lambda body: {"error": {"message": "broken"}},
    "a list": lambda body: {"content": [1]},
    "not text": lambda body: {"content": b"\xff\xfe\xfa"},
    "abort": lambda body: completion(body, finish="abort"),
    "a list as finish_reason": lambda body: completion(body, finish=["stop"]),
    "no text": lambda body: completion(body, text=None),
    "ids as text": lambda body: completion(body, ids=("a", "b")),
    "an id below 0": lambda body: completion(body, ids=(-1, END)),
    "an id beyond the vocabulary": lambda body: completion(body, ids=(10**6, END)),
    "an id of 30 digits": lambda body: completion(body, ids=(10**30,)),
    "half an id": lambda body: completion(body, ids=(1.5,)),
    "no id": lambda body: completion(body, ids=(None,)),
    "more ids than asked for": lambda body: completion(body, ids=(70,) * 4),
    "more tokens than asked for": lambda body: text_alone(body, completion_tokens=4),
    "prompt ids as a number": lambda body: completion(body, prompt_ids="5"),
    "usage as text": lambda body: completion(body) | {"usage": "x"},
    "200,000 deep": lambda body: {"content": b'{"id": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"},
    "5,000 digits": lambda body: {"content": b'{"choices": [], "created": ' + b"9" * 5000 + b"}"},
    "NaN": lambda body: {"content": b'{"choices": NaN}'},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_passing_failure_is_repeated(tokenizer, failure):
    with serving(failing_first(failure)) as server:
        rollouts = sampler(server.url, tokenizer, timeout=0.3).sample(PROMPTS, seed=0)
    assert [rollout.completion_ids for rollout in rollouts] == [(70, 71, END)] * 3
    assert set(server.attempts.values()) == {2}
    assert len({body["seed"] for body in server.bodies}) == 3  # a repetition keeps its seed


@pytest.mark.parametrize(("name", "failure"), (FAILURES | BAD_REPLIES).items(), ids=FAILURES | BAD_REPLIES)
def test_a_failure_that_stays_is_one_error_naming_the_server(tokenizer, name, failure):
    with (
        serving(lambda body, attempt: failure(body)) as server,
        pytest.raises(ServerError, match=f"no usable answer from {server.url}") as info,
    ):
        sampler(server.url, tokenizer, timeout=0.3).sample(PROMPTS[:1], seed=0)
    assert "\n" not in str(info.value)
    assert (name == "silence") == ("no answer within 0.3 s" in str(info.value))
    assert ("in 3 tries" in str(info.value)) == (name in FAILURES)
    assert len(server.bodies) == (3 if name in FAILURES else 1)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_final(tokenizer, status):
    answer = {"content": {"error": {"message": "the model `tiny` will not"}}, "status": status}
    with serving(lambda body, attempt: answer) as server, pytest.raises(ServerError, match="will not") as info:
        sampler(server.url, tokenizer, concurrency=1).sample(PROMPTS, seed=0)
    assert len(server.bodies) == 1
    assert f"HTTP {status}" in str(info.value)


def test_a_wrong_model_is_told_what_is_served(tokenizer):
    answer = {"content": {"error": {"message": "no model tinny"}}, "status": 404}
    with serving(lambda body, attempt: answer) as server, pytest.raises(ServerError, match="it serves tiny"):
        sampler(server.url, tokenizer).sample(PROMPTS, seed=0)


def test_a_server_out_of_reach_is_one_error(tokenizer):
    with serving(lambda body, attempt: completion(body)) as server:
        url = server.url
    with pytest.raises(ServerError, match="check that a server runs there") as info:
        sampler(url, tokenizer).sample(PROMPTS, seed=0)
    assert url in str(info.value)
    assert "no connection (ConnectError)" in str(info.value)


@pytest.mark.parametrize("prompt_ids", [[0, 5, 6, 7], [6, 7], [5, 6, 8], None])
def test_an_answer_to_another_prompt_is_an_error(tokenizer, prompt_ids):
    def script(body, attempt):  # a second BOS shows in the count of tokens
        return completion(body, prompt_ids=prompt_ids) if prompt_ids else text_alone(body, prompt_tokens=4)

    with serving(script) as server, pytest.raises(ServerError, match="another prompt"):
        sampler(server.url, tokenizer).sample(PROMPTS[:1], seed=0)


@pytest.mark.parametrize(
    "script",
    [
        lambda body, attempt: completion(body, ids=(70, 71), finish="length"),
        lambda body, attempt: text_alone(body, finish="length", completion_tokens=2),
    ],
    ids=["with ids", "text alone"],
)
def test_a_completion_cut_before_the_length_limit_is_an_error(tokenizer, script):
    with serving(script) as server, pytest.raises(ServerError, match="cut a completion"):
        sampler(server.url, tokenizer).sample(PROMPTS[:1], seed=0)


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(tokenizer, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1234")

    def script(body, attempt):
        return {"content": {"error": {"message": "no such key: sk-secret-1234"}}, "status": 401 if attempt else 500}

    with (
        caplog.at_level(logging.DEBUG),
        serving(script) as server,
        pytest.raises(ServerError, match="OPENAI_API_KEY") as info,
    ):
        sampler(server.url, tokenizer).sample(PROMPTS[:1], seed=0)
    assert server.keys == ["Bearer sk-secret-1234"] * 2
    assert "secret" not in str(info.value)
    assert "secret" not in " ".join(record.getMessage() for record in caplog.records)


def test_a_remote_server_needs_a_key_and_one_nearby_none():
    for host in ("localhost", "10.1.2.3", "[::1]", "node17"):
        ServerClient(f"http://{host}:8000/v1")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        ServerClient("https://api.example.com/v1")


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://localhost/v1", "http://", "http://[::1/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="address"):
        ServerClient(url)


@pytest.mark.parametrize("option", [{"concurrency": 0}, {"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}])
def test_settings_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match="out of range"):
        ServerClient("http://localhost:8000/v1", **option)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "sgsd.engines.servers")
    with pytest.raises(ConfigError, match=r"pip install 'sgsd\[server\]'"):
        importlib.import_module("sgsd.engines.servers")


def test_no_prompts_give_no_rollouts(tokenizer):
    assert sampler("http://localhost:1/v1", tokenizer).sample([], seed=0) == []


def test_sampling_works_where_a_loop_runs_already(tokenizer):
    async def notebook(draw):
        return draw.sample(PROMPTS, seed=0)

    with serving(lambda body, attempt: completion(body)) as server:
        rollouts = asyncio.run(notebook(sampler(server.url, tokenizer)))
    assert len(rollouts) == 3


def test_asked_each_for_itself_a_failing_request_stops_no_other(tokenizer):
    def script(body, attempt):
        if body["prompt"] == PROMPTS[0]:
            return FAILURES["500"](body)
        return (
            {"content": {"error": {"message": "no"}}, "status": 422}
            if body["prompt"] == PROMPTS[1]
            else completion(body)
        )

    def request(prompt):
        return lambda api: api.completions.create(model="tiny", prompt=prompt)

    with serving(script) as server:
        client = ServerClient(server.url, retries=1, concurrency=1)
        broken, refused, answered = client.ask_each([request(prompt) for prompt in PROMPTS])
    assert isinstance(broken, ServerError)
    assert not isinstance(broken, RefusedError)
    assert "2 tries: got HTTP 500" in str(broken)
    assert isinstance(refused, RefusedError)
    assert refused.status == 422
    assert answered.choices[0].text == "hi"
