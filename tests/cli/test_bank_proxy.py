"""``sgsd bank build`` whose writer's server stands behind a proxy that fails half of the time."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from sgsd.bank.build import CANDIDATES, FAILURES, MEMORIES

from ..serving import failing, serving
from .test_bank_build import lines, writes


@pytest.mark.slow
def test_every_memory_is_accounted_for_and_none_twice(sgsd, tiny_folder, problems, tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    seen: Counter[str] = Counter()
    flags = {
        "output": tmp_path / "bank",
        "dataset": problems,
        "model_name_or_path": tiny_folder,
        "max_completion_length": 4,
        "samples": 8,
        "verifier": "exact",
        "writer_engine": "openai",
        "timeout": 1.0,
        "retries": 1,
        "attempts": 2,
        "group_size": 8,
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    with serving(failing(writes, 1.5, seen)) as server:
        for _ in range(10):  # where nothing gets through for a while the build stops, and goes on when run again
            done = sgsd("bank", "build", *arguments, "--writer_base_url", server.url, "--json")
            if done.code == 0:
                break
            assert "no usable answer" in done.error
    assert done.code == 0, done.err
    memories = [memory["id"] for memory in lines(tmp_path / "bank" / MEMORIES)]
    assert len(memories) == len(set(memories)) == 64
    written = Counter(parent for candidate in lines(tmp_path / "bank" / CANDIDATES) for parent in candidate["parents"])
    failed = Counter(row["id"] for row in lines(tmp_path / "bank" / FAILURES) if row["stage"] == "extract")
    assert written + failed == Counter(memories)
    assert 0 < failed.total() < 20
    extraction = json.loads(done.out)["extraction"]
    assert extraction["written_about"] + sum(extraction["failed"].values()) == 64
    assert seen.total() > 100
    for fate, share in (("500", 0.3), ("hang", 0.1), ("cut", 0.1)):
        assert seen[fate] / seen.total() == pytest.approx(share, abs=0.1)
