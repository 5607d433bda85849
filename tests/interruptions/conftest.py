"""A run of the command line that samples, maintains its bank through a server and saves often."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sgsd.bank.writing import FIELDS

from ..cli.conftest import _one_thread, problems, sgsd  # noqa: F401
from ..conftest import make_model, make_tokenizer
from ..serving import chat, serving


def written(body, attempt):
    """Two items a request, from the request alone; nothing is ever merged."""
    if body["messages"][0]["content"] == "Say hello.":
        return chat("Hello.")
    schema = body["response_format"]["json_schema"]["schema"]
    names = schema["properties"]["items"]["items"]["properties"]
    fields = FIELDS["skill"] if FIELDS["skill"][0] in names else FIELDS["mistake"]
    if not set(fields) <= set(names):
        return chat('{"items": []}')
    digest = hashlib.sha256(body["messages"][-1]["content"].encode()).hexdigest()
    items = [dict(zip(fields, (f"t{n}", f"Do {digest[:4]}{n}.", "Now."), strict=True)) for n in range(2)]
    return chat(json.dumps({"items": items}))


@pytest.fixture(scope="session")
def writer():
    """Its address."""
    with serving(written) as server:
        yield server.url


@pytest.fixture(scope="session")
def ending_model(tmp_path_factory) -> Path:
    """A model whose rollouts end by themselves, at unequal lengths."""
    folder = tmp_path_factory.mktemp("ending")
    model = make_model()
    model.generation_config.eos_token_id = [1, *range(200, 250)]
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def flags(ending_model, problems, writer, monkeypatch) -> list[str]:  # noqa: F811
    """A complete run but for its output_dir: 12 steps, a check of the bank every 5, a checkpoint every 2."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    settings = {
        "model_name_or_path": ending_model,
        "dataset": problems,
        "bank": "seed:mental-arithmetic",
        "retriever": "bm25",
        "num_teachers": 2,
        "teacher": "ema",
        "verifier": "rewards:by_length",
        "instruction": "Go.",
        "max_steps": 12,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "max_completion_length": 8,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "maintenance_frequency": 5,
        "maintenance_writer_url": writer,
        "maintenance_writer_model": "m",
        "trace_steps": 1,
        "bf16": "false",
        "gradient_checkpointing": "false",
        "report_to": "none",
        "disable_tqdm": "true",
        "logging_steps": 1,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
