"""``sgsd bank build`` through a real server: llama.cpp's, serving SmolLM2. Run by ``make test-server``.

The variable SGSD_SERVER_PYTHON names a Python that has the package xllamacpp; without it there is nothing to run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from sgsd.bank import SkillBank
from sgsd.bank.extract import extraction_request, read_extraction
from sgsd.bank.writing import WriteFailure, write_until_fit
from sgsd.cli import main
from sgsd.data.problems import Problem
from sgsd.engines.models import LOCAL_MODELS
from sgsd.engines.server_writer import ServerWriter
from sgsd.memories import memory_of
from sgsd.verifiers import Outcome, Verdict

MODEL = "smollm2-135m-instruct"
PROBLEMS = 32
pytestmark = [pytest.mark.server, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def url():
    python = os.environ.get("SGSD_SERVER_PYTHON")
    if python is None:
        pytest.skip("SGSD_SERVER_PYTHON is not set; run: make test-server")
    _, module, file = LOCAL_MODELS[MODEL]
    weights = Path(find_spec(module).submodule_search_locations[0]) / file
    command = [python, str(Path(__file__).parent / "serve.py"), str(weights), str(max(1, (os.cpu_count() or 1) // 2))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            address = server.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), "the server did not start"
            with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
                assert json.load(answer) == {"status": "ok"}
            yield f"{address}/v1"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, request):
    """Word problems: shared ones where they are there, else some made here."""
    try:
        return request.getfixturevalue("shared_data") / "asdiv.jsonl"
    except pytest.skip.Exception:
        file = tmp_path_factory.mktemp("data") / "problems.jsonl"
        texts = [
            (f"Ann has {n} apples and buys {n + 3} more. How many does she have?", 2 * n + 3) for n in range(2, 40)
        ]
        file.write_text("".join(json.dumps({"problem": text, "answer": str(value)}) + "\n" for text, value in texts))
        return file


def test_every_request_is_answered_by_what_fits_its_schema(url):
    outcomes = (Outcome.CORRECT, Outcome.INCORRECT)
    pool = [
        memory_of(
            Problem(id=f"p{n}", text=f"Ann has {n} apples and buys {n}. How many are there?", answer=str(2 * n)),
            f"She has {n} and buys {n}. Together that makes {2 * n + n % 2}.",
            Verdict(outcomes[n % 2], None, str(2 * n + n % 2)),
            truncated=False,
            source=f"rollout {n}",
        )
        for n in range(4)
    ]
    writer = ServerWriter("smollm2", base_url=url, concurrency=4)
    results, counts = write_until_fit(
        writer,
        [extraction_request(memory, max_items=1) for memory in pool],
        [lambda written, memory=memory: read_extraction(memory, written, max_items=1) for memory in pool],
    )
    assert writer.name == "openai smollm2"
    assert not any(isinstance(result, WriteFailure) for result in results)
    assert [[candidate.kind for candidate in result] for result in results] == [["skill"], ["mistake"]] * 2
    assert counts["prompt_tokens"] > 4 * 50
    assert counts["completion_tokens"] > 4 * 10


def test_a_bank_is_built_and_every_number_adds_up(url, dataset, tmp_path, capsys):
    arguments = [
        *("--output", str(tmp_path), "--dataset", str(dataset), "--dataset_limit", str(PROBLEMS), "--json"),
        *("--model_name_or_path", f"local:{MODEL}", "--engine", "openai", "--base_url", url),
        *("--served_model", "smollm2", "--concurrency", "4", "--max_completion_length", "96", "--max_items", "1"),
    ]
    assert main(["bank", "build", *arguments]) == 0
    manifest = json.loads(capsys.readouterr().out)
    with capsys.disabled():
        print({name: manifest[name] for name in ("rollouts", "memories", "extraction", "merge", "bank", "tokens")})
    memories, extraction = manifest["memories"], manifest["extraction"]
    assert manifest["rollouts"]["total"] == PROBLEMS
    undecided = sum(memories["undecided"].values())
    assert memories["correct"] + memories["incorrect"] + undecided == PROBLEMS
    # One item a memory: all were written, and all fit.
    assert extraction["failed"] == {}
    assert extraction["candidates"]["total"] == memories["correct"] + memories["incorrect"]
    assert extraction["candidates"]["skills"] == memories["correct"]
    bank = SkillBank.load(str(tmp_path / "bank.json"))
    assert (len(bank.skills), len(bank.mistakes)) == (manifest["bank"]["skills"], manifest["bank"]["mistakes"])
    kept = {json.loads(line)["id"] for line in (tmp_path / "memories.jsonl").read_text().splitlines()}
    assert len(kept) == PROBLEMS - undecided
    assert {parent for item in bank.items for parent in item.parents} <= kept
