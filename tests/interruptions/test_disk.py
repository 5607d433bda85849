"""A disk that is full: one line with the last complete checkpoint, from which the run goes on once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from sgsd.bank import SkillBank
from sgsd.trainers import callbacks, checkpoint, record
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint

from .recorded import differences


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB of its own, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_room_lets_it_go_on(sgsd, flags, tmp_path, small_disk):
    run, whole = small_disk / "run", tmp_path / "whole"
    result = sgsd("train", *flags, "--output_dir", run)
    assert result.code == 2
    last = last_complete_checkpoint(run)
    assert last is not None
    assert result.error == (
        f"sgsd: error: the run cannot be written: got No space left on device in {run}; "
        f"the last complete checkpoint is {last}: make room, then go on with --resume"
    )
    cut_off = {folder.name for folder in run.glob("checkpoint-*")} - {
        path.name for path in complete_checkpoints(run).values()
    }
    assert len(cut_off) <= 1

    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert sgsd("train", *flags, "--output_dir", run, "--resume").code == 0
    assert sgsd("train", *flags, "--output_dir", whole).code == 0
    assert differences(run, whole) == []


@pytest.mark.parametrize(
    "stage", ["records", "parts of a checkpoint", "mark of a checkpoint", "final model", "final bank"]
)
def test_each_file_of_a_run(sgsd, flags, tmp_path, monkeypatch, stage):
    run = tmp_path / "run"
    trainer = "sgsd.trainers.base.VerifiedTrainer"
    if stage == "records":
        append = record.append_lines
        fails = [append, append, append, full]
        monkeypatch.setattr(record, "append_lines", lambda *call: fails.pop(0)(*call))
    elif stage == "final model":
        monkeypatch.setattr(f"{trainer}.save_state", full)
    elif stage == "final bank":
        save = SkillBank.save

        def saved(bank, path, **options):
            if Path(path) == run / "bank.json":
                monkeypatch.setattr(os, "replace", full)
            return save(bank, path, **options)

        monkeypatch.setattr(SkillBank, "save", saved)
    else:
        save_parts = checkpoint.save_parts
        what = (os, "fsync") if stage == "parts of a checkpoint" else (os, "replace")

        def saved_parts(folder, *parts, **options):
            if folder.name == "checkpoint-4":
                monkeypatch.setattr(*what, full)
            return save_parts(folder, *parts, **options)

        monkeypatch.setattr(callbacks, "save_parts", saved_parts)
    result = sgsd("train", *flags, "--output_dir", run, "--max_steps", "4")
    assert result.code == 2
    assert "the run cannot be written: got No space left on device" in result.error
    step = 4 if stage.startswith("final") else 2
    assert f"the last complete checkpoint is {run / f'checkpoint-{step}'}: make room" in result.error
    monkeypatch.undo()


def test_another_failure_is_not_taken_for_a_full_disk(tmp_path):
    for error in (OSError(errno.ECONNRESET, "reset"), RuntimeError("CUDA out of memory")):
        with pytest.raises(type(error), match=str(error).split("]")[-1].strip()), checkpoint.refused_writes(tmp_path):
            raise error
