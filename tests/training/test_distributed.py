"""Two gloo processes on the CPU against one: what they learn, and that neither waits for the other for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sgsd.bank import Ledger

from ..serving import serving
from .test_maintenance import StubWriter, answered_by
from .tiny import make_bank

SCRIPT = Path(__file__).parent / "scripts" / "ranks.py"
pytestmark = pytest.mark.slow


def launch(folder: Path, processes: int, **settings) -> list[dict]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nproc-per-node", str(processes), "--master-port", str(port)),
        *(str(SCRIPT), str(folder), json.dumps(settings)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
    assert [rank["processes"] for rank in ranks] == [processes] * processes
    return ranks


@pytest.mark.parametrize(
    "settings",
    [
        {"num_generations": 1},
        {"num_generations": 2, "gradient_accumulation_steps": 2},  # shared prompts: two forwards a step under DDP
        {"num_generations": 2, "grpo_weight": 0.5, "loss_type": "grpo", "teacher": "ema", "log_completions": True},
        {"num_generations": 1, "lora": True, "teacher": "frozen"},
        {"method": "grpo", "num_generations": 2, "loss_type": "grpo"},
        {"method": "opsd", "num_generations": 2, "gradient_accumulation_steps": 2, "divergence": "jsd"},
        {"method": "opsd", "num_generations": 1, "lora": True},
    ],
    ids=["single", "groups", "grpo-ema", "lora-frozen", "grpo", "opsd-groups", "opsd-lora"],
)
def test_two_processes_learn_what_one_does_with_twice_the_batch(tmp_path, settings):
    two = launch(tmp_path / "two", 2, per_device_train_batch_size=2, **settings)
    (one,) = launch(tmp_path / "one", 1, per_device_train_batch_size=4, **settings)
    for mine, other in zip(two[0]["weights"], two[1]["weights"], strict=True):
        assert torch.equal(mine, other)
    assert max(gradient.abs().max() for gradient in one["gradients"]) > 1e-3
    for rank in two:
        torch.testing.assert_close(rank["gradients"], one["gradients"], rtol=1e-4, atol=1e-5)
    shared = [
        name
        for name in one["logs"][0]
        if name in ("sgsd/loss", "success_rate", "sgsd/teachers_per_rollout", "opsd/loss", "loss", "reward")
    ]
    for step in range(2):
        for name in shared:
            assert two[0]["logs"][step][name] == pytest.approx(one["logs"][step][name], abs=1e-4), name
    if settings.get("method", "sgsd") == "sgsd":
        ledgers = [Ledger.from_json((tmp_path / n / "run" / "ledger.json").read_text()) for n in ("one", "two")]
        assert set(ledgers[0].items) == set(ledgers[1].items)
        for id, record in ledgers[0].items.items():
            assert ledgers[1].record(id).counts == record.counts
            assert ledgers[1].record(id).support_failure == pytest.approx(record.support_failure, abs=1e-3)
        assert len({(tmp_path / n / "run" / "supports.jsonl").read_text() for n in ("one", "two")}) == 1


def test_ranks_whose_prompts_need_unequal_chunks_make_equally_many_forwards(tmp_path):
    """A sharded model gathers its weights in every forward: a rank that makes fewer hangs the others."""
    ranks = launch(tmp_path / "two", 2, per_device_train_batch_size=2, max_tokens_per_chunk=700)
    assert ranks[0]["own_chunks"] != ranks[1]["own_chunks"], "these prompts would not show the defect"
    assert ranks[0]["forwards"] == ranks[1]["forwards"]
    assert ranks[0]["forwards"] == [max(pair) for pair in zip(*(rank["own_chunks"] for rank in ranks), strict=True)]
    for mine, other in zip(*(rank["weights"] for rank in ranks), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("writer", "timeout", "renewed"),
    [
        ("stub", 60.0, True),
        ("hanging", 1.0, False),
        ("policy", 60.0, True),
        ("server", 60.0, True),
        ("hanging server", 1.0, False),
    ],
)
def test_processes_renew_one_bank_whatever_becomes_of_the_writer(tmp_path, writer, timeout, renewed):
    def script(body, attempt):
        if writer == "hanging server":
            threading.Event().wait(20)
        return answered_by(StubWriter())(body, attempt)

    settings = {"max_steps": 6, "maintenance_frequency": 2, "maintenance_timeout": timeout}
    with serving(script) as server:
        if "server" in writer:
            settings |= {"maintenance_writer_url": server.url, "maintenance_writer_model": "tiny"}
        else:
            settings["writer"] = writer
        first, second = launch(tmp_path / "two", 2, per_device_train_batch_size=2, **settings)
    assert ("server" in writer) == bool(server.bodies)
    assert first["bank"] == second["bank"]
    assert (first["bank"] != make_bank(3).digest) == renewed
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)
    log = (tmp_path / "two" / "run" / "maintenance.jsonl").read_text().splitlines()
    checks = [json.loads(line) for line in log]
    assert [check["records"] for check in checks] == [2 * 4] * 3
    assert checks[-1]["bank"] == first["bank"]


def test_processes_retire_the_same_items_of_one_ledger(tmp_path):
    first, second = launch(
        tmp_path / "two",
        2,
        per_device_train_batch_size=2,
        max_steps=24,
        num_teachers=1,
        support_threshold=0.0,
        retire_below=0.95,
        retire_frequency=2,
        retire_min_active=2,
        retire_static=True,
    )
    log = (tmp_path / "two" / "run" / "retirements.jsonl").read_text().splitlines()
    assert log, "nothing was retired: the test shows nothing"
    assert len({json.loads(line)["id"] for line in log}) == len(log)
    assert first["bank"] == second["bank"] != make_bank(3).digest
