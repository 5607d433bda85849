"""``sgsd bank build``: a model in process, a writer behind a server of a few lines, one folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
from itertools import cycle
from pathlib import Path

import pytest
import yaml

from sgsd.bank import SkillBank
from sgsd.bank.build import BANK, CANDIDATES, FAILURES, MEMORIES, ROLLOUTS
from sgsd.bank.items import ancestors
from sgsd.cli.bank_settings import BuildSettings, read_settings
from sgsd.cli.engines import Engines
from sgsd.cli.settings import read_yaml, resolve_config
from sgsd.errors import ConfigError

from ..bank.builds import digest
from ..bank.writers import reply
from ..engines.test_broken_servers import BROKEN, KEY
from ..serving import chat, serving

FILES = (ROLLOUTS, MEMORIES, CANDIDATES, FAILURES, BANK)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def writes(body, attempt, **usage):
    """One item about whatever is asked, the same for the same request; groups are merged where that is asked for."""
    asked = body["messages"][-1]["content"]
    if asked.startswith("Say hello."):
        return chat('{"items": []}')
    mixed = digest(asked, body["seed"])
    kind = "skill" if '"principle"' in asked else "mistake"
    sources = {"sources": [1, 2]} if "Find the sets" in asked else {}
    return chat(reply(kind, (mixed[:6], f"Look at {mixed[6:10]} twice.", "Always."), **sources), **usage)


@pytest.fixture
def config(tiny_folder, problems, tmp_path) -> Path:
    file = tmp_path / "build.yaml"
    settings = {
        "model_name_or_path": str(tiny_folder),
        "dataset": str(problems),
        "max_completion_length": 6,
        "batch_size": 3,
        "samples": 2,
        "verifier": "exact",
        "truncated": "undecided",
        "writer_engine": "openai",
        "retries": 0,
        "group_size": 4,
        "writer_batch_size": 4,
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def build(sgsd, config, tmp_path):
    """``build(*arguments, action="build")`` into ``tmp_path / "bank"``."""

    def call(*arguments, action="build", output=tmp_path / "bank"):
        return sgsd("bank", action, "--config", config, "--output", output, *arguments)

    return call


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_one_command_or_four_make_the_same_bank_and_tell_what_they_made(build, tmp_path):
    with serving(writes) as server:
        given = ("--truncated", "incorrect", "--writer_base_url", server.url)
        one = build(*given)
        assert one.code == 0, one.err
        for action in ("sample", "verify", "extract", "merge"):
            four = build(*given, "--json", action=action, output=tmp_path / "4")
            assert four.code == 0, four.err
        asked = len(server.bodies)
        again = build(*given, "--json")
        assert len(server.bodies) == asked
    assert contents(tmp_path / "bank") == contents(tmp_path / "4")
    manifest = json.loads((tmp_path / "4" / "manifest.json").read_text())
    assert json.loads(four.out) == manifest
    assert json.loads(again.out) == json.loads((tmp_path / "bank" / "manifest.json").read_text())

    assert manifest["finished"] == ["sample", "verify", "extract", "merge"]
    assert manifest["config"]["group_size"] == 4
    assert manifest["inputs"]["problems"] == 8
    assert {"torch", "transformers", "trl", "python"} <= manifest["versions"].keys()
    assert manifest["rollouts"]["total"] == 16 == manifest["memories"]["total"]
    assert len(manifest["files"]["memories.jsonl"]) == 64
    bank = SkillBank.load(tmp_path / "bank" / BANK)
    assert bank.mistakes
    lineage = json.loads((tmp_path / "bank" / "lineage.json").read_text())
    memories = {memory["id"] for memory in lines(tmp_path / "bank" / MEMORIES)}
    for item in bank.items:
        assert item.origin == "cold_start"
        assert set(item.parents) == {id for id in ancestors(item.id, lineage) if id in memories}

    assert "warning: the bank has no skills (0 memories are correct)" in one.err
    for words in ("incorrect", "truncated", "candidates", "mistakes: ", "tokens"):
        assert words in one.out
    assert "extraction will take 16 requests" in one.err
    assert "in the bank" not in one.err


def test_a_stage_before_its_turn_says_what_to_run(build):
    assert "stage sample is not finished" in build("--writer_base_url", "http://localhost:1/v1", action="verify").error


def test_it_ends_in_one_line_without_a_server_and_goes_on_with_one(build, tmp_path):
    gone = build("--truncated", "incorrect", "--writer_base_url", "http://127.0.0.1:9/v1")
    assert gone.code == 2
    assert "no usable answer from http://127.0.0.1:9/v1" in gone.error
    before = (tmp_path / "bank" / MEMORIES).read_bytes()
    with serving(writes) as server:
        assert build("--truncated", "incorrect", "--writer_base_url", server.url).code == 0
    assert (tmp_path / "bank" / MEMORIES).read_bytes() == before


@pytest.mark.parametrize("name", BROKEN)
def test_after_a_broken_server_the_folder_goes_on_with_a_good_one(build, name, monkeypatch, tmp_path):
    answer, _ = BROKEN[name]
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with serving(lambda body, attempt: answer) as broken:
        url = broken.url.replace("//", "//me:pass-word@") + "?api-key=sesame-1"
        refused = build("--truncated", "incorrect", "--timeout", "1", "--writer_base_url", url)
    assert (refused.code, refused.error.startswith("sgsd: error: ")) == (2, True), refused.err
    assert f"http://127.0.0.1:{broken.server_address[1]}/v1" in refused.error
    with serving(writes) as good:
        made = build("--truncated", "incorrect", "--writer_base_url", good.url)
    assert made.code == 0, made.err
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for secret in (KEY, "pass-word", "sesame-1"):
        assert secret.encode() not in kept
        assert secret not in refused.err + refused.out


def test_a_kept_answer_that_is_none_is_asked_for_again(build, tmp_path):
    with serving(writes) as server:
        given = ("--truncated", "incorrect", "--writer_base_url", server.url)
        assert build(*given).code == 0
        bank, asked = contents(tmp_path / "bank"), len(server.bodies)
        with sqlite3.connect(tmp_path / "bank" / "build.sqlite") as store:
            values = ['[["x"], 1, 2]', '["x", "y", 2]', "null", "{", '["x", -1, 2]', "[" * 200_000]
            for (request,), value in zip(store.execute("SELECT request FROM answers").fetchall(), cycle(values)):
                store.execute("UPDATE answers SET value = ? WHERE request = ?", (value, request))
            store.execute("DELETE FROM documents WHERE name IN ('stage extract', 'stage merge')")
            store.execute("DELETE FROM rows WHERE name IN ('candidates.jsonl', 'failures.jsonl')")
            store.execute("DELETE FROM documents WHERE name IN ('bank.json', 'lineage.json')")
        again = build(*given)
        assert again.code == 0, again.err
        assert len(server.bodies) >= 2 * asked - 1
    assert contents(tmp_path / "bank") == bank


def test_changed_settings_data_and_weights_are_refused_by_name(build, problems, tmp_path, config, tiny_folder):
    url = ("--writer_base_url", "http://localhost:1/v1")
    assert build(*url, action="sample").code == 0
    before = (tmp_path / "bank" / ROLLOUTS).read_bytes()
    changed = build(*url, "--seed", "1", action="sample")
    assert "results of stage sample with another seed: got 1; expected 0" in changed.error
    assert "another samples: got 3; expected 2" in build(*url, "--samples", "3").error
    rows = lines(problems)
    fewer, other = tmp_path / "fewer.jsonl", tmp_path / "more.jsonl"
    fewer.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    gone = build(*url, "--dataset", fewer)
    assert "rollouts.jsonl:1: its problem is missing from the data set: got 'sum-0'" in gone.error
    other.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "id": "new", "problem": "2 + 5?"}]))
    assert 'another dataset: got "9 problems' in build(*url, "--dataset", other).error
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    assert build(*url, "--model_name_or_path", moved, action="verify").code == 0
    (moved / "generation_config.json").write_text("{}")
    assert "another model_name_or_path" in build(*url, "--model_name_or_path", moved).error
    assert (tmp_path / "bank" / ROLLOUTS).read_bytes() == before


def test_a_model_writes_in_process_what_fits_the_schema(build, tmp_path):
    from ..conftest import make_model, make_tokenizer

    make_model(max_position_embeddings=8192).save_pretrained(tmp_path / "roomy")
    make_tokenizer().save_pretrained(tmp_path / "roomy")
    given = ("--model_name_or_path", tmp_path / "roomy", "--writer_engine", "transformers", "--max_items", 1)
    made = build(*given, "--truncated", "incorrect", "--dataset_limit", 2, "--samples", 1, "--attempts", 1, "--json")
    assert made.code == 0, made.err
    manifest = json.loads(made.out)
    extraction = manifest["extraction"]
    assert extraction["written_about"] + sum(extraction["failed"].values()) == 2
    assert manifest["tokens"]["extract"]["completion"] > 0
    SkillBank.load(tmp_path / "bank" / BANK)


def test_without_verdicts_the_bank_is_empty_and_says_so(build, tmp_path):
    made = build("--writer_base_url", "http://localhost:1/v1")
    assert made.code == 0
    assert made.err.count("warning: the bank has no") == 2
    undecided = [failure for failure in lines(tmp_path / "bank" / FAILURES) if failure["stage"] == "verify"]
    assert undecided
    assert {failure["reason"] for failure in undecided} <= {"truncated"}


def test_settings_are_checked_where_they_are_read(build, config, tmp_path):
    url = ("--writer_base_url", "http://localhost:1/v1")
    assert "unknown argument of sgsd bank build: got --sampels=3; did you mean --samples?" in build("--sampels=3").error
    cannot = "sgsd bank build: samples: cannot be used"
    assert f'{cannot}: got "many"; expected a valid integer' in build(*url, "--samples", "many").error
    assert f'{cannot}: got "0"; expected greater than or equal to 1' in build(*url, "--samples", "0").error
    assert "engine openai needs writer_base_url" in build().error
    assert "expected 'order' or 'embedding'" in build(*url, "--group_by", "meaning").error
    assert "unknown configuration" in build(*url, "--config", "bnak").error
    config.write_text("sampels: 3")
    assert f"{config}: unknown key: got 'sampels'; expected 'samples'" in build(*url).error
    config.write_text("samples: three")
    assert f'{config}: samples: cannot be used: got "three"; expected a valid integer' in build(*url).error
    assert "dataset is missing" in build(*url, "--config", "bank").error
    file = tmp_path / "file"
    file.write_text("")
    config.write_text("dataset: x\nmodel_name_or_path: y")
    assert "--output is not a folder" in build(*url, output=file).error


def test_the_writer_sees_answers_in_compatibility_with_the_paper_alone():
    least = {"dataset": "d", "model_name_or_path": "m"}
    assert BuildSettings(**least).show_answer is False
    assert BuildSettings(**least, compatibility="paper").show_answer is True
    assert BuildSettings(**least, compatibility="paper", show_answer=False).show_answer is False
    assert read_settings(least, "", {"show_answer": "True"}).show_answer is True
    assert read_settings(least | {"temperature": 1}, "", {}).temperature == 1.0
    assert read_settings(least, "", {"benchmarks": "aime24, amc23"}).benchmarks == ["aime24", "amc23"]
    with pytest.raises(ConfigError, match="show_answer: cannot be used"):
        read_settings(least, "", {"show_answer": "maybe"})
    with pytest.raises(ConfigError, match="seed: "):
        read_settings(least, "", {"seed": "-1"})


def test_the_preset_is_readable_and_its_groups_fit_its_context():
    settings = read_settings(read_yaml(resolve_config("bank")), "bank", {"dataset": "d"})
    assert settings.model_name_or_path == "local:smollm2-135m-instruct"
    assert settings.group_size == 8


def test_no_address_or_limit_of_a_server_decides_what_a_folder_holds(build, tmp_path):
    assert build("--writer_base_url", "http://localhost:1/v1", action="sample").code == 0
    other = ("--writer_base_url", "http://localhost:2/v1", "--concurrency", 2, "--timeout", 5)
    assert build(*other, action="sample").code == 0
    assert os.path.exists(tmp_path / "bank" / "manifest.json")


class VLLM:
    """In place of vLLM's sampler, engine and writer: keeps what it was made with."""

    def __init__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        self.engine = self


@pytest.fixture
def vllm(monkeypatch):
    for name in ("VLLMSampler", "VLLMEngine", "VLLMWriter"):
        monkeypatch.setattr(f"sgsd.engines.vllm_offline.{name}", type(name, (VLLM,), {}))


WRITING = {"base_url": None, "batch_size": 1, "options": {"temperature": 0.7}}


def test_what_vllm_has_loaded_to_sample_writes_too_and_is_loaded_once(vllm, tiny_folder):
    engines = Engines("vllm", str(tiny_folder), dtype="bfloat16")
    sampler = engines.sampler({"top_p": 0.95}, batch_size=1, max_length=50, progress=print)
    assert sampler.options | {"progress": 0} == {"max_model_len": 50, "dtype": "bfloat16", "top_p": 0.95, "progress": 0}
    writer = engines.writer("vllm", str(tiny_folder), **WRITING)
    assert writer.arguments[0] is sampler
    assert writer.options["temperature"] == 0.7
    other = Engines("transformers", str(tiny_folder))
    first, second = (other.writer("vllm", str(tiny_folder), **WRITING) for _ in range(2))
    assert first.arguments[0] is second.arguments[0]


def test_vllm_samples_and_another_model_writes(tiny_folder):
    engines = Engines("vllm", "other", server={"base_url": None, "retries": 0}, served_model="served")
    writer = engines.writer("openai", str(tiny_folder), **(WRITING | {"base_url": "http://localhost:1/v1"}))
    assert writer.name == f"openai {tiny_folder}"


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_a_package_that_is_missing_is_told_before_the_work(monkeypatch, build, engine):
    monkeypatch.setattr("sgsd.cli.engines.importlib.util.find_spec", lambda name: None)
    refused = build("--writer_engine", engine, "--writer_base_url", "http://localhost:1/v1")
    assert f"the package {engine} is not installed" in refused.error


def test_a_writer_that_cannot_be_made_is_refused_before_a_rollout_is_sampled(monkeypatch, build, tmp_path):
    def refuse(*arguments, **options):
        raise ValueError("no such tokenizer")

    monkeypatch.setattr("llguidance.hf.from_tokenizer", refuse)
    refused = build("--writer_engine", "transformers")
    assert "this tokenizer does not support constrained decoding" in refused.error
    assert not (tmp_path / "bank" / ROLLOUTS).exists()
    assert build("--writer_engine", "transformers", action="sample").code == 0


def test_a_served_model_samples_too(config, build, tmp_path):
    def both(body, attempt):
        if "prompt" not in body:
            return writes(body, attempt)
        ids = [5, 6, 7]
        choice = {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None, "token_ids": ids}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3, "total_tokens": 9}
        return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}

    with serving(both) as server:
        made = build("--engine", "openai", "--base_url", server.url, "--served_model", "tiny", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["memories"]["total"] == 16
    assert {body["model"] for body in server.bodies} == {"tiny"}


def test_the_command_to_continue_with_has_all_that_was_given(sgsd, build):
    given = ("--samples", 1, "--instruction", "Say a number.", "--writer_base_url", "http://localhost:9/v1")
    made = build(*given, action="sample")
    assert made.code == 0, made.err
    said = " ".join(made.err.split())
    command = shlex.split(said.split("continue with: sgsd ")[1])
    assert command[:2] == ["bank", "verify"]
    assert command[command.index("--instruction") + 1] == "Say a number."
    assert sgsd(*command).code == 0
