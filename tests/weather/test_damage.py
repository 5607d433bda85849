"""A checkpoint of which one file is not as long as it was saved: the resume names it and the checkpoint before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FILES = [
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("sgsd/bank.json", "sgsd/ledger.json", "sgsd/window.json", "sgsd/guard.json"),
    *("sgsd/teacher.json", "sgsd/teacher-00000.safetensors"),
]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGES = {"cut off": cut, "too long": lengthen, "missing": Path.unlink}


@pytest.fixture(scope="module")
def finished_here(tmp_path_factory):
    """Filled by the first test that asks: ``flags`` are per test."""
    return tmp_path_factory.mktemp("damage") / "run"


@pytest.fixture
def run(finished_here, sgsd, flags, tmp_path):
    """A copy of a run of four steps, with checkpoints 2 and 4."""
    if not finished_here.exists():
        assert sgsd("train", *flags, "--output_dir", finished_here, "--max_steps", "4").code == 0
    return Path(shutil.copytree(finished_here, tmp_path / "run"))


@pytest.mark.parametrize(
    "damage",
    ["cut off", pytest.param("too long", marks=pytest.mark.slow), pytest.param("missing", marks=pytest.mark.slow)],
)
def test_each_file_is_named_with_the_checkpoint_to_go_back_to(sgsd, flags, run, damage):
    for name in FILES:
        file = run / "checkpoint-4" / name
        kept, size = file.read_bytes(), file.stat().st_size
        DAMAGES[damage](file)
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        result = sgsd("train", *flags, "--output_dir", run, "--max_steps", "6", "--resume")
        assert result.code == 2
        what = "missing" if damage == "missing" else "cut short or changed"
        left = {"cut off": size // 2, "too long": size + 1, "missing": 0}[damage]
        expected = f"a file of the checkpoint is {what}: got {file}, {left} bytes; expected {size} bytes"
        assert f"sgsd: error: {expected}" in result.error
        assert result.error.endswith(f"--resume_from_checkpoint {run / 'checkpoint-2'}")
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        file.write_bytes(kept)
    again = sgsd("train", *flags, "--output_dir", run, "--max_steps", "6", "--resume")
    assert again.code == 0


def test_the_checkpoint_that_is_named_can_be_gone_on_from(sgsd, flags, run):
    cut(run / "checkpoint-4" / "optimizer.pt")
    result = sgsd("train", *flags, "--output_dir", run, "--max_steps", "4", "--resume")
    flag, value = result.error.split()[-2:]
    assert sgsd("train", *flags, "--output_dir", run, "--max_steps", "4", flag, value).code == 0
    assert sgsd("train", *flags, "--output_dir", run, "--max_steps", "4", "--resume").code == 0  # it is whole again


def test_without_an_earlier_checkpoint_that_is_said(sgsd, flags, run):
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-4" / "sgsd" / "bank.json").write_text('{"skills": [')
    result = sgsd("train", *flags, "--output_dir", run, "--max_steps", "6", "--resume")
    assert result.error.endswith("there is no earlier complete checkpoint beside it")


def test_a_mark_that_cannot_be_read(sgsd, flags, run):
    cut(run / "checkpoint-4" / "sgsd" / "state.json")
    result = sgsd("train", *flags, "--output_dir", run, "--max_steps", "6", "--resume")
    assert result.code == 2
    assert "not a complete sgsd checkpoint" in result.error
    assert result.error.endswith(f"--resume_from_checkpoint {run / 'checkpoint-2'}")


def test_what_no_resume_reads_may_change(sgsd, flags, run):
    (run / "checkpoint-4" / "README.md").write_text("my notes")
    (run / "checkpoint-4" / "notes.txt").write_text("more of them")
    assert sgsd("train", *flags, "--output_dir", run, "--max_steps", "5", "--resume").code == 0
