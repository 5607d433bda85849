from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from sgsd.bank import SkillBank
from sgsd.errors import CheckpointError
from sgsd.trainers.checkpoint import complete_checkpoints, last_complete_checkpoint
from sgsd.trainers.guard import CollapseGuard

from ..conftest import make_model
from .tiny import EOS, LORA, forget_files, make_bank, make_trainer, moved, unlike, weights_of

NEW_BANK = make_bank(5, label="new ")
BAD_SIZES = [json.dumps({"version": 4, "sizes": sizes}) for sizes in (3, None, [1], {"model.safetensors": "1"})]


class ChangeBank(TrainerCallback):
    """The bank changes after step 2, as online maintenance will have it."""

    def __init__(self):
        self.trainer = None

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            self.trainer.bank = NEW_BANK


def by_length(completion_ids, **_):
    return [float(len(ids) % 2 == 0) for ids in completion_ids]


def run(folder, *, method="sgsd", lora=False, change_bank=True, **settings):
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
    }
    defaults |= {"ema": {"teacher_ema_decay": 0.6}, "periodic": {"teacher_sync_steps": 2}}.get(
        settings.get("teacher"), {}
    )
    trainer = make_trainer(
        folder,
        method=method,
        model=model,
        reward=by_length,
        peft_config=LoraConfig(**LORA, lora_dropout=0.1) if lora else None,
        callbacks=[change] if change_bank else [],
        **defaults | settings,
    )
    change.trainer = trainer
    return trainer


def interrupt(folder: Path) -> None:
    """What is left of a run that was cut off after step 3."""
    shutil.rmtree(folder / "checkpoint-6")


CORRECTION = {"objective": "correction", "grpo_weight": 1.0, "teacher": "frozen"}
PLAIN = {"method": "grpo", "change_bank": False}
OPSD = {"method": "opsd", "change_bank": False}
CASES = [
    *(
        {"teacher": teacher, "lora": lora}
        for teacher in ("live", "frozen", "ema", "periodic")
        for lora in (False, True)
    ),
    CORRECTION,
    {**CORRECTION, "support_baseline": "control"},
    {**CORRECTION, "support_baseline": "control", "teacher_guidance": 1.5},
    {**CORRECTION, "rehearsal_weight": 2.0, "rehearsal_texts": 3},
    {**CORRECTION, "rehearsal_weight": 2.0, "rehearsal_texts": 3, "lora": True},
    PLAIN,
    {**PLAIN, "lora": True},
    {**PLAIN, "skills_in_prompt": True},
    OPSD,
    {**OPSD, "lora": True},
    {**OPSD, "teacher": "ema"},
    {**OPSD, "skills_in_prompt": True, "teacher": "periodic"},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(tmp_path, settings):
    straight = run(tmp_path, **settings)
    first = weights_of(straight.model)
    straight.train()
    assert moved(first, straight.model)
    state = state_of(tmp_path / "checkpoint-3")
    assert state["method"] == settings.get("method", "sgsd")
    assert state["bank"] == (make_bank().digest if straight.args.uses_bank else None)

    interrupt(tmp_path)
    resumed = run(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert unlike(resumed.model, straight.model) == []
    assert resumed.bank == straight.bank
    if "method" in settings:
        return
    assert straight.bank == NEW_BANK
    assert resumed.ledger == straight.ledger
    for held, other in zip(resumed.teacher_weights._held, straight.teacher_weights._held, strict=True):
        assert torch.equal(held, other)
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
    assert unlike(resumed.model, straight.model) == []


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three-steps")
    run(folder, teacher="ema", max_steps=3, save_steps=1).train()
    return folder


@pytest.fixture
def stopped(three_steps, tmp_path):
    """A run of three steps of an EMA teacher, with one checkpoint a step."""
    return Path(shutil.copytree(three_steps, tmp_path / "stopped"))


def resume(folder, where=True, **settings):
    trainer = run(folder, **{"teacher": "ema", "max_steps": 4} | settings)
    trainer.train(resume_from_checkpoint=where)
    return trainer


def refused(message, folder, where=True, **settings):
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(folder, where, **settings)
    assert "\n" not in str(caught.value)


def state_of(checkpoint):
    return json.loads((checkpoint / "sgsd" / "state.json").read_text())


def test_a_checkpoint_says_which_run_it_is_of_and_how_long_its_files_are(stopped):
    state = state_of(stopped / "checkpoint-3")
    sizes = state.pop("sizes")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(sizes)
    parts = {f"sgsd/{name}.json" for name in ("bank", "ledger", "guard", "teacher")}
    assert {name for name in sizes if name.startswith("sgsd/")} == parts | {"sgsd/teacher-00000.safetensors"}
    for name, size in sizes.items():
        assert (stopped / "checkpoint-3" / name).stat().st_size == size
    assert state == {"version": 4, "method": "sgsd", "bank": make_bank().digest, "teacher": "ema"}


def test_a_checkpoints_bank_is_the_one_of_its_step_and_can_be_loaded_as_a_bank(stopped):
    saved = [SkillBank.load(stopped / f"checkpoint-{step}" / "sgsd" / "bank.json") for step in (1, 3)]
    assert saved == [make_bank(), NEW_BANK]


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


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "4"}', "\xff", *BAD_SIZES])
def test_a_damaged_state_file_is_refused(stopped, content):
    (stopped / "checkpoint-3" / "sgsd" / "state.json").write_text(content, encoding="latin-1")
    refused("not a complete sgsd checkpoint", stopped, str(stopped / "checkpoint-3"))


def remark(checkpoint, **values):
    """Another mark of completeness; a value of ``None`` is taken out of it."""
    marked = {name: value for name, value in (state_of(checkpoint) | values).items() if value is not None}
    (checkpoint / "sgsd" / "state.json").write_text(json.dumps(marked))


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_a_checkpoint_of_another_version_is_refused(stopped, version):
    """Versions 1 and 2 knew nothing of files, version 3 their digests."""
    files = {"files": {"model.safetensors": "0" * 64}} if version == 3 else {}
    remark(stopped / "checkpoint-3", version=version, sizes=None, step=3, initial_bank=make_bank().digest, **files)
    refused(f"written by another version of sgsd: got version {version}; expected version 4; start a new run", stopped)


def test_another_bank_is_refused(stopped):
    trainer = run(stopped, teacher="ema", bank=make_bank(label="other "))
    with pytest.raises(CheckpointError, match="another bank"):
        trainer.train(resume_from_checkpoint=True)


def test_another_kind_of_teacher_is_refused(stopped):
    refused("trained with another teacher: got live; expected ema", stopped, teacher="live")


@pytest.mark.parametrize("name", ["sgsd/teacher-00000.safetensors", "sgsd/bank.json", "optimizer.pt"])
def test_a_file_that_is_shorter_or_missing_is_named_with_both_sizes(stopped, name):
    file = stopped / "checkpoint-3" / name
    size = file.stat().st_size
    os.truncate(file, size - 1)
    refused(f"cut short or changed: got {file}, {size - 1} bytes; expected {size} bytes; the last comp", stopped)
    file.unlink()
    refused(f"missing: got {file}, 0 bytes; expected {size} bytes; the last complete one before it", stopped)


@pytest.mark.parametrize("damage", ["cut", "missing", "foreign"])
def test_teacher_weights_that_cannot_be_read_are_refused(stopped, damage):
    file = stopped / "checkpoint-3" / "sgsd" / "teacher-00000.safetensors"
    if damage == "cut":
        os.truncate(file, 1000)
    elif damage == "missing":
        file.unlink()
    else:
        save_file({"00000": torch.zeros(2, 2)}, file)
    forget_files(stopped / "checkpoint-3")
    refused("teacher cannot be read" if damage == "cut" else "teacher weights do not fit", stopped)


def test_a_process_that_the_stopped_run_did_not_have_resumes_with_its_teacher(stopped, monkeypatch):
    trainer = run(stopped, teacher="ema")
    monkeypatch.setattr(Accelerator, "process_index", 1)
    trainer.restore(stopped / "checkpoint-3")
    saved = load_file(stopped / "checkpoint-3" / "sgsd" / "teacher-00000.safetensors")
    assert all(torch.equal(held, saved[name]) for name, held in trainer.teacher_weights.state_dict().items())


@pytest.mark.parametrize("name", ["bank", "ledger", "guard"])
@pytest.mark.parametrize("content", ["[]", "{", '{"skills": 3}', "null"])
def test_a_part_that_cannot_be_read_is_refused_by_name(stopped, name, content):
    (stopped / "checkpoint-3" / "sgsd" / f"{name}.json").write_text(content)
    forget_files(stopped / "checkpoint-3")
    refused(f"the checkpoint's {name}", stopped)


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
