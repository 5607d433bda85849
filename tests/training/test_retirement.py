"""Retirement and the ledger's totals in the trainer: who goes, what is logged, and that a resumed run is the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sgsd.bank.retire import restore, retired_items
from sgsd.errors import ConfigError
from sgsd.training.maintenance import LOG_FILE
from sgsd.training.retirement import RETIREMENTS_FILE, ledger_metrics

from .test_maintenance import StubWriter
from .tiny import make_bank, make_config, make_trainer


def run(folder, **settings):
    """Half of the items of a bank of random worth are below the middle; the limit is set to catch some."""
    defaults = {
        "max_steps": 24,
        "bank": make_bank(6),
        "num_teachers": 2,
        "retire_below": 0.9,
        "retire_frequency": 6,
        "retire_min_active": 5,
        "retire_static": True,
        "support_threshold": 0.0,
        "trace_steps": 0,
    }
    return make_trainer(folder, stub=True, **defaults | settings)


def log_of(folder):
    return [json.loads(line) for line in (folder / RETIREMENTS_FILE).read_text().splitlines()]


def ledger_logs(trainer):
    return [
        {name.removeprefix("sgsd/ledger/"): value for name, value in entry.items() if name.startswith("sgsd/ledger/")}
        for entry in trainer.state.log_history
        if "sgsd/ledger/uses" in entry
    ]


def test_retired_items_leave_retrieval_are_logged_and_can_come_back(tmp_path):
    trainer = run(tmp_path)
    trainer.train()
    lines = log_of(tmp_path)
    assert lines, "nothing was retired: the test shows nothing"
    assert {line["step"] for line in lines} <= {6, 12, 18, 24}
    assert [line["id"] for line in lines] == [item.id for item in retired_items(trainer.bank)]
    for line in lines:
        assert line["bound"] < line["limit"] == 0.9
        assert line["low"] <= line["credit"] <= line["high"]
        assert line["active"] >= 5
    assert not {line["id"] for line in lines} & {item.id for item in trainer.bank.items}
    assert min(len(trainer.bank.skills), len(trainer.bank.mistakes)) >= 2
    assert restore(trainer.bank).to_json() == make_bank(6).to_json()


def test_a_retired_item_teaches_no_more(tmp_path):
    trainer = run(tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    first = [line["id"] for line in log_of(tmp_path) if line["step"] == 6]
    assert first
    ledgers = [
        json.loads((tmp_path / f"checkpoint-{step}" / "sgsd" / "ledger.json").read_text())["items"] for step in (6, 24)
    ]
    assert all(ledgers[0][id] == ledgers[1][id] for id in first)
    assert ledgers[0] != ledgers[1]


def test_a_resumed_run_ends_with_the_same_bank_log_and_ledger(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 9}
    straight = run(tmp_path, **settings)
    straight.train()
    log, totals = (tmp_path / RETIREMENTS_FILE).read_text(), ledger_logs(straight)
    assert {json.loads(line)["step"] for line in log.splitlines()} - {6}, "nothing was retired after the interruption"
    assert any(json.loads(line)["step"] == 6 for line in log.splitlines()), "nothing was retired before it"
    shutil.rmtree(tmp_path / "checkpoint-18")
    resumed = run(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert resumed.bank.to_json() == straight.bank.to_json()
    assert (tmp_path / RETIREMENTS_FILE).read_text() == log
    assert resumed.ledger.to_json() == straight.ledger.to_json()
    assert ledger_logs(resumed) == totals
    for mine, other in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_static_items_stay_unless_it_is_said(tmp_path):
    trainer = run(tmp_path, retire_static=False, max_steps=6)
    trainer.train()
    assert trainer.bank == make_bank(6)
    assert not (tmp_path / RETIREMENTS_FILE).exists()


def test_by_default_nothing_is_retired_and_totals_are_logged(tmp_path):
    trainer = run(tmp_path, retire_below=None, max_steps=4, logging_steps=2)
    trainer.train()
    assert not (tmp_path / RETIREMENTS_FILE).exists()
    assert trainer.bank.to_json() == make_bank(6).to_json()
    logs = ledger_logs(trainer)
    assert len(logs) == 2
    # 4 rollouts a step, 2 teachers each, 2 items a teacher: totals, not means over the logged steps.
    assert [entry["uses"] for entry in logs] == [2 * 16, 4 * 16]
    for entry in logs:
        assert entry["uses"] == entry["positive"] + entry["negative"] + entry["neutral"] + entry["undecided"]
    last = ledger_metrics(trainer.ledger, trainer.bank)
    assert logs[-1] == last
    assert last["items"] == len(trainer.ledger.items)
    assert 0 < last["credit"] < 1
    assert last["retired"] == 0


@pytest.mark.parametrize(
    "settings",
    [{"retire_below": 0}, {"retire_below": 1.0}, {"retire_frequency": 0}, {"retire_min_active": 0}],
)
def test_unusable_settings_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_config(tmp_path, **settings)


def test_online_items_are_written_and_retired_in_one_run_the_same_when_resumed(tmp_path):
    settings = {
        "writer": StubWriter(),
        "max_steps": 30,
        "maintenance_frequency": 6,
        "retire_static": False,
        "retire_below": 0.95,
        "retire_min_active": 3,
        "bank": make_bank(1),
        "num_teachers": 2,
        "save_strategy": "steps",
        "save_steps": 15,
    }
    straight = run(tmp_path, **settings)
    straight.train()
    log, checks = ((tmp_path / name).read_text() for name in (RETIREMENTS_FILE, LOG_FILE))
    retired = [json.loads(line) for line in log.splitlines()]
    assert retired, "nothing was retired: the test shows nothing"
    assert {line["item"]["origin"] for line in retired} == {"online"}
    assert straight.bank.static.items == make_bank(1).items
    shutil.rmtree(tmp_path / "checkpoint-30")
    resumed = run(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert resumed.bank.to_json() == straight.bank.to_json()
    assert resumed.ledger.to_json() == straight.ledger.to_json()
    assert [(tmp_path / name).read_text() for name in (RETIREMENTS_FILE, LOG_FILE)] == [log, checks]
