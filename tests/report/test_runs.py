"""Run folders → values."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from sgsd.bank import Ledger
from sgsd.errors import ConfigError, DataError
from sgsd.report import grouped, load_runs

from .folders import make_bank, write_run


def test_a_run_is_read_whole(runs):
    other, run = load_runs([runs[0], runs[3]])
    assert (run.method, run.settings["seed"], run.name) == ("SGSD", 1, "sgsd-1")
    assert len(run.traces) == 6
    skill = make_bank().skills[0]
    assert run.items[skill.id] == skill
    assert run.ledger.record(skill.id).uses == 30
    assert (other.items, other.ledger, other.traces) == ({}, Ledger(), [])


def test_runs_that_differ_in_their_seed_alone_are_one_group(runs, tmp_path):
    groups = grouped(load_runs(runs))
    assert [(group.label, [run.settings["seed"] for run in group.runs], group.last_step) for group in groups] == [
        ("GRPO", [0, 1], 30),
        ("SGSD", [0, 1], 30),
    ]
    assert groups[1].ledger.record(make_bank().skills[0].id).uses == 60
    # A file named after the seed makes no other setting.
    folders = [write_run(tmp_path / str(seed), seed=seed, bank=f"bank-seed{seed}.json") for seed in (0, 1)]
    assert len(grouped(load_runs(folders))) == 1


def test_banks_in_files_of_one_name_make_two_groups(tmp_path):
    """They were drawn as seeds of one method."""
    folders = [write_run(tmp_path / name, seed=seed, bank=f"{name}/bank.json") for seed, name in enumerate("ab")]
    record = json.loads((folders[1] / "run.json").read_text())
    (folders[1] / "run.json").write_text(json.dumps({**record, "bank_digest": "cd" * 32}))
    assert [group.label for group in grouped(load_runs(folders))] == [
        "SGSD, bank a/bank.json",
        "SGSD, bank b/bank.json",
    ]


def test_what_tells_settings_of_one_method_apart_is_in_their_labels(tmp_path):
    folders = [write_run(tmp_path / name, teacher=name, bank=f"banks/{name}.json") for name in ("live", "frozen")]
    folders.append(write_run(tmp_path / "grpo", method="grpo", skills_in_prompt=True))
    labels = [group.label for group in grouped(load_runs(folders))]
    assert labels == ["SGSD, teacher live, bank live.json", "SGSD, teacher frozen, bank frozen.json", "GRPO+Skill"]


def test_names_are_paths_from_the_folder_that_holds_all(tmp_path):
    folders = [write_run(tmp_path / name, seed=n) for n, name in enumerate(("one/run", "two/run", "three"))]
    assert [run.name for run in load_runs(folders)] == ["one/run", "two/run", "three"]
    assert [run.name for run in load_runs(folders[:1])] == ["run"]


def test_values_that_are_no_finite_numbers_are_no_points(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    state = {"log_history": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": math.inf}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert load_runs([folder])[0].curve("loss") == [(2, 0.5)]


def test_a_run_under_way_is_read_from_its_last_checkpoint(tmp_path):
    folder = write_run(tmp_path / "run", hostile=True)
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
    for name in ("trainer_state.json", "ledger.json", "bank.json"):
        (folder / name).unlink()
    with (folder / "traces.jsonl").open("a") as file:
        file.write('{"step": 31, "tok')  # being written
    [run] = load_runs([folder])
    assert [entry["step"] for entry in run.history] == [10]
    assert len(run.traces) == 6
    assert "\u2028" in run.traces[0]["problem"]  # lines end where JSON says and not where Unicode does


def test_what_is_no_run_is_refused_in_one_line(tmp_path, runs):
    with pytest.raises(ConfigError, match="not a run folder"):
        load_runs([tmp_path])
    with pytest.raises(ConfigError, match="no runs"):
        load_runs([])
    with pytest.raises(ConfigError, match="named twice"):
        load_runs([runs[0], runs[0].parent / "." / "grpo-0"])
    broken = shutil.copytree(runs[0], tmp_path / "broken")
    for text, said in (("[]", r"run\.json: wrong type: got list"), ("{}", "settings is missing")):
        (broken / "run.json").write_text(text)
        with pytest.raises(DataError, match=said):
            load_runs([broken])


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("trainer_state.json", lambda run: len(run.history)),
        ("ledger.json", lambda run: len(run.ledger.items)),
        ("bank.json", lambda run: len(run.items)),
        ("bank-start.json", lambda run: len(run.items)),
        ("traces.jsonl", lambda run: len(run.traces)),
    ],
)
def test_what_cannot_be_read_is_left_out_and_named(tmp_path, runs, name, left):
    """One damaged file took the whole page."""
    broken = shutil.copytree(runs[3], tmp_path / "broken")
    (broken / name).write_text('{"x": 1}}\n')
    run, whole = load_runs([broken, runs[3]])
    assert left(run) < left(whole)
    (note,) = run.notes
    assert name in note
