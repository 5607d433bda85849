"""Run folders → values."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from sgsd.bank import Ledger
from sgsd.errors import ConfigError, DataError
from sgsd.report import grouped, load_run, load_runs

from .folders import make_bank, write_run


def test_a_run_is_read_whole(runs):
    run = load_run(runs[3])
    assert (run.method, run.seed, run.name, run.last_step) == ("SGSD", 1, "sgsd-1", 30)
    assert len(run.supports) == 30
    assert len(run.traces) == 6
    assert run.bank_start.digest == make_bank().digest
    assert run.ledger.record(run.bank_start.skills[0].id).uses == 30
    assert set(run.worth.values()) == {"helpful", "misleading"}


def test_a_run_of_another_method_has_no_teachers(runs):
    run = load_run(runs[0])
    assert (run.bank, run.ledger, run.supports, run.traces) == (None, Ledger(), (), ())


def test_runs_that_differ_in_their_seed_alone_are_one_group(runs):
    groups = grouped(load_runs(runs))
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [("GRPO", [0, 1]), ("SGSD", [0, 1])]


def test_what_tells_settings_of_one_method_apart_is_in_their_labels(tmp_path):
    folders = [write_run(tmp_path / name, teacher=name, bank=f"banks/{name}.json") for name in ("live", "frozen")]
    folders.append(write_run(tmp_path / "grpo", method="grpo", skills_in_prompt=True))
    labels = [group.label for group in grouped(load_runs(folders))]
    assert labels == ["SGSD, teacher live, bank live.json", "SGSD, teacher frozen, bank frozen.json", "GRPO+Skill"]


def test_a_file_named_after_the_seed_makes_no_other_setting(tmp_path):
    folders = [write_run(tmp_path / str(seed), seed=seed, bank=f"bank-seed{seed}.json") for seed in (0, 1)]
    assert len(grouped(load_runs(folders))) == 1


def test_a_group_credits_its_items_with_the_uses_of_all_seeds(runs):
    (_, group) = grouped(load_runs(runs))
    skill = make_bank().skills[0].id
    assert group.ledger.record(skill).uses == 60


def test_names_are_the_shortest_ends_that_tell_runs_apart(tmp_path):
    folders = [write_run(tmp_path / a / "run", seed=n) for n, a in enumerate(("one", "two"))]
    folders.append(write_run(tmp_path / "three", seed=2))
    assert [run.name for run in load_runs(folders)] == ["one/run", "two/run", "three"]


def test_values_that_are_no_finite_numbers_are_no_points(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    state = {"log_history": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": math.inf}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert load_run(folder).curve("loss") == [(2, 0.5)]


def test_a_run_under_way_is_read_from_its_last_checkpoint(tmp_path):
    folder = write_run(tmp_path / "run")
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
    (folder / "trainer_state.json").unlink()
    (folder / "ledger.json").unlink()
    (folder / "bank.json").unlink()
    with (folder / "traces.jsonl").open("a") as file:
        file.write('{"step": 31, "tok')  # being written
    run = load_run(folder)
    assert run.last_step == 10
    assert len(run.traces) == 6


def test_lines_end_where_json_says_and_not_where_unicode_does(tmp_path):
    run = load_run(write_run(tmp_path / "run", hostile=True))
    assert "\u2028" in run.traces[0]["problem"]


def test_what_is_no_run_is_refused_in_one_line(tmp_path, runs):
    with pytest.raises(ConfigError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(ConfigError, match="no runs"):
        load_runs([])
    with pytest.raises(ConfigError, match="named twice"):
        load_runs([runs[0], runs[0].parent / "." / "grpo-0"])
    broken = shutil.copytree(runs[0], tmp_path / "broken")
    (broken / "trainer_state.json").write_text("{")
    with pytest.raises(DataError, match=r"trainer_state\.json: malformed JSON"):
        load_run(broken)
    (broken / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run\.json: wrong type: got list"):
        load_run(broken)
    (broken / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="record cannot be read"):
        load_run(broken)
