from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from sgsd.errors import CheckpointError
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint
from sgsd.trainers.guard import CollapseGuard

from ..conftest import make_model
from .tiny import EOS, make_bank, make_trainer

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.1}
NEW_BANK = make_bank(5, label="new ")
STATE = {"step": 3, "initial_bank": None, "bank": None, "teacher": "ema"}
BAD_FILES = [json.dumps(STATE | {"files": files}) for files in (3, None, [1], {"model.safetensors": 1})]


class ChangeBank(TrainerCallback):
    """The bank changes after step 2, as online maintenance will have it."""

    def __init__(self):
        self.trainer = None

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            self.trainer.bank = NEW_BANK


def by_length(completion_ids, **_):
    return [float(len(ids) % 2 == 0) for ids in completion_ids]


def run(folder, *, teacher="live", lora=False, change_bank=True, **settings):
    """A trainer that samples for real: random states are part of what must come back."""
    model = make_model()
    model.generation_config.eos_token_id = [EOS, *range(200, 250)]  # so that rollouts end, at unequal lengths
    change = ChangeBank()
    defaults = {
        "max_steps": 6,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "teacher_ema_decay": 0.6,
        "teacher_sync_steps": 2,
    }
    trainer = make_trainer(
        folder,
        model=model,
        reward=by_length,
        teacher=teacher,
        peft_config=LoraConfig(**LORA) if lora else None,
        callbacks=[change] if change_bank else [],
        **defaults | settings,
    )
    change.trainer = trainer
    return trainer


def interrupt(folder: Path) -> None:
    """What is left of a run that was cut off after step 3."""
    shutil.rmtree(folder / "checkpoint-6")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("teacher", ["live", "frozen", "ema", "periodic"])
def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(tmp_path, teacher, lora):
    straight = run(tmp_path, teacher=teacher, lora=lora)
    straight.train()
    final = {name: value.clone() for name, value in straight.model.state_dict().items()}
    start = run(tmp_path / "other", teacher=teacher, lora=lora)
    assert any(not torch.equal(final[name], value) for name, value in start.model.state_dict().items())

    interrupt(tmp_path)
    resumed = run(tmp_path, teacher=teacher, lora=lora)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert [name for name, value in resumed.model.state_dict().items() if not torch.equal(final[name], value)] == []
    for held, other in zip(resumed.teacher_weights._held, straight.teacher_weights._held, strict=True):
        assert torch.equal(held, other)
    assert resumed.bank == straight.bank == NEW_BANK
    losses = [
        [entry["sgsd/loss"] for entry in trainer.state.log_history if "sgsd/loss" in entry]
        for trainer in (straight, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("save_steps", [2, 4])
def test_a_run_resumed_within_an_epoch_goes_on_with_the_same_problems(tmp_path, save_steps):
    straight = run(tmp_path, save_steps=save_steps)
    straight.train()
    interrupt(tmp_path)
    resumed = run(tmp_path, save_steps=save_steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_steps}"))
    final = straight.model.state_dict()
    assert [name for name, value in resumed.model.state_dict().items() if not torch.equal(final[name], value)] == []


def test_the_comparison_above_would_see_a_lost_bank_and_lost_teacher_weights(tmp_path):
    straight = run(tmp_path, teacher="ema")
    straight.train()
    interrupt(tmp_path)
    for lost in ("bank", "teacher"):
        resumed = run(tmp_path, teacher="ema", change_bank=False)
        original_bank, original_held = resumed.bank, [held.clone() for held in resumed.teacher_weights._held]

        class Lose(TrainerCallback):
            def on_train_begin(self, *_, lost=lost, resumed=resumed, bank=original_bank, held=original_held, **__):
                if lost == "bank":
                    resumed.bank = bank
                else:
                    resumed.teacher_weights._held = held

        resumed.add_callback(Lose())
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        final = straight.model.state_dict()
        assert any(not torch.equal(final[name], value) for name, value in resumed.model.state_dict().items())
        shutil.rmtree(tmp_path / "checkpoint-6")


@pytest.fixture
def stopped(tmp_path):
    """A run of three steps of an EMA teacher, with one checkpoint a step."""
    run(tmp_path, teacher="ema", max_steps=3, save_steps=1).train()
    return tmp_path


def resume(folder, where=True, **settings):
    trainer = run(folder, **{"teacher": "ema", "max_steps": 4} | settings)
    trainer.train(resume_from_checkpoint=where)
    return trainer


def refused(message, folder, where=True, **settings):
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(folder, where, **settings)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_holds_step_banks_teacher_and_the_digests_of_its_files(stopped):
    state = json.loads((stopped / "checkpoint-3" / "sgsd" / "state.json").read_text())
    digests = state.pop("files")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(digests)
    assert {"sgsd/bank.json", "sgsd/ledger.json", "sgsd/guard.json", "sgsd/teacher-00000.safetensors"} < set(digests)
    for name, digest in digests.items():
        assert hashlib.sha256((stopped / "checkpoint-3" / name).read_bytes()).hexdigest() == digest
    assert state == {
        "step": 3,
        "initial_bank": make_bank().digest,
        "bank": NEW_BANK.digest,
        "teacher": "ema",
        "method": "sgsd",
        "version": 3,
    }
    assert json.loads((stopped / "checkpoint-1" / "sgsd" / "state.json").read_text())["bank"] == make_bank().digest


def test_a_checkpoint_that_was_cut_off_is_skipped_and_refused_by_path(stopped):
    (stopped / "checkpoint-3" / "sgsd" / "state.json").unlink()
    assert last_complete_checkpoint(stopped) == stopped / "checkpoint-2"
    refused("not a complete sgsd checkpoint", stopped, str(stopped / "checkpoint-3"))
    trainer = resume(stopped)
    assert trainer.state.global_step == 4
    assert len([entry for entry in trainer.state.log_history if "sgsd/loss" in entry]) == 4


def test_checkpoints_are_ordered_by_number_not_by_name(stopped):
    shutil.copytree(stopped / "checkpoint-3", stopped / "checkpoint-10")
    (stopped / "checkpoint-20").mkdir()
    assert last_complete_checkpoint(stopped) == stopped / "checkpoint-10"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": 3, "unknown": 1}', "\xff", *BAD_FILES])
def test_a_damaged_state_file_is_refused(stopped, content):
    (stopped / "checkpoint-3" / "sgsd" / "state.json").write_text(content, encoding="latin-1")
    refused("not a complete sgsd checkpoint", stopped, str(stopped / "checkpoint-3"))


def without_digests(checkpoint):
    """As a checkpoint of before version 3."""
    file = checkpoint / "sgsd" / "state.json"
    state = json.loads(file.read_text())
    del state["files"]
    file.write_text(json.dumps(state | {"version": 2}))


def test_a_checkpoint_of_before_there_were_digests_is_resumed(stopped):
    without_digests(stopped / "checkpoint-3")
    assert resume(stopped).state.global_step == 4


def test_a_newer_checkpoint_is_refused(stopped):
    file = stopped / "checkpoint-3" / "sgsd" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 4}))
    refused("newer than this sgsd", stopped)


def test_another_bank_is_refused(stopped):
    trainer = run(stopped, teacher="ema", bank=make_bank(label="other "))
    with pytest.raises(CheckpointError, match="another bank"):
        trainer.train(resume_from_checkpoint=True)


def test_a_trainer_whose_own_bank_has_changed_can_resume(stopped):
    """The bank a run began with is what counts, not the one it has now."""
    trainer = run(stopped, teacher="ema", max_steps=4)
    trainer.bank = NEW_BANK
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_another_kind_of_teacher_is_refused(stopped):
    refused("another teacher: got teacher live; expected ema", stopped, teacher="live")


@pytest.mark.parametrize("damage", ["cut", "missing", "foreign"])
def test_damaged_teacher_weights_are_refused(stopped, damage):
    without_digests(stopped / "checkpoint-3")
    file = stopped / "checkpoint-3" / "sgsd" / "teacher-00000.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "missing":
        file.unlink()
    else:
        from safetensors.torch import save_file

        save_file({"00000": torch.zeros(2, 2)}, file)
    refused("teacher weights", stopped)


def test_a_damaged_bank_is_refused(stopped):
    without_digests(stopped / "checkpoint-3")
    file = stopped / "checkpoint-3" / "sgsd" / "bank.json"
    file.write_text(file.read_text()[:50])
    refused("bank", stopped)


def test_a_bank_that_is_not_the_checkpoints_is_refused(stopped):
    without_digests(stopped / "checkpoint-3")
    make_bank().save(stopped / "checkpoint-3" / "sgsd" / "bank.json")
    refused("bank", stopped)


@pytest.mark.parametrize(("limit", "left"), [(1, [2, 6]), (3, [2, 5, 6]), (None, [1, 2, 3, 4, 5, 6])])
def test_the_limit_counts_complete_checkpoints_whatever_the_clock_says(tmp_path, limit, left, monkeypatch):
    """The sound checkpoint is kept; a folder that was cut off goes first; the clock goes back an hour a step."""
    trainer = run(tmp_path, save_steps=1, save_total_limit=limit)
    monkeypatch.setattr(CollapseGuard, "sound_until", 2)
    (tmp_path / "checkpoint-7").mkdir()

    class Past(TrainerCallback):
        def on_save(self, args, state, control, **_):
            folder = tmp_path / f"checkpoint-{state.global_step}"
            os.utime(folder, (1e9 - 3600 * state.global_step,) * 2)

    trainer.add_callback(Past())
    trainer.train()
    assert sorted(complete_checkpoints(tmp_path)) == left
    assert (tmp_path / "checkpoint-7").exists() == (limit is None)
    assert trainer.args.save_total_limit == limit


def test_no_checkpoint_goes_before_the_next_one_is_complete(tmp_path, monkeypatch):
    trainer = run(tmp_path, save_steps=2, save_total_limit=1)
    seen = []

    class Look(TrainerCallback):  # it comes after the files are written, before they are marked as complete
        def on_save(self, args, state, control, **_):
            seen.append(sorted(complete_checkpoints(tmp_path)))

    trainer.callback_handler.callbacks.insert(0, Look())
    trainer.train()
    assert seen == [[], [2], [4]]
    assert sorted(complete_checkpoints(tmp_path)) == [6]


def test_a_checkpoint_that_is_written_once_more_is_not_complete_meanwhile(stopped):
    trainer = run(stopped, teacher="ema", max_steps=3, save_steps=1)
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **_):
            seen.append(sorted(complete_checkpoints(stopped)))

    trainer.callback_handler.callbacks.insert(0, Look())
    trainer.train(resume_from_checkpoint=str(stopped / "checkpoint-1"))
    assert seen == [[1, 3], [1, 2]]


def test_a_checkpoint_without_an_optimizer_is_not_resumed_from(tmp_path):
    run(tmp_path, max_steps=2, save_steps=1, save_only_model=True).train()
    assert (tmp_path / "checkpoint-2").is_dir()
    refused("no complete checkpoint", tmp_path, teacher="live")
    refused("not a complete sgsd checkpoint", tmp_path, str(tmp_path / "checkpoint-2"), teacher="live")


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_resume_is_an_error(tmp_path, made):
    folder = tmp_path / "new"
    if made:
        (folder / "checkpoint-5").mkdir(parents=True)
    refused("no complete checkpoint to resume from", folder)


def test_a_new_run_in_a_used_folder_begins_with_its_own_bank(stopped):
    trainer = run(stopped, teacher="ema", max_steps=1, change_bank=False)
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.bank == make_bank()
