"""``sgsd bank ledger``: the ranking."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sgsd.bank import Ledger, Mistake, Origin, Skill, SkillBank
from sgsd.bank.credit import credit
from sgsd.cli import main
from sgsd.examples.lab.evidence import areas

WORTH = {"helpful": 0.9, "misleading": 0.2}
STEPS = 60


@pytest.fixture
def run(tmp_path):
    """A run of 60 steps in which helpful items were right in 90 % of all cases, misleading ones in 20 %.

    One mistake was evicted, one skill never used.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    kinds = [kind for kind in WORTH for _ in range(3)]
    skills = [Skill.new(f"Do {n}.", title=f"[b]Skill {n}[/b]", origin=Origin.SEED) for n in range(len(kinds))]
    mistakes = [Mistake.new(f"Slip {n}.", origin=Origin.SEED) for n in range(len(kinds))]
    worth = {item.id: kind for items in (skills, mistakes) for item, kind in zip(items, kinds, strict=True)}
    unused = Skill.new("Never.", title="Unused", origin=Origin.SEED)
    start = SkillBank((*skills, unused), tuple(mistakes), metadata={"worth": worth})
    rng = np.random.default_rng(0)
    ledger = Ledger()
    for _ in range(STEPS):
        pairs = [[pair] for pair in zip((s.id for s in skills), (m.id for m in mistakes), strict=True)]
        outcome = rng.choice([-1, 0, 1], len(pairs), p=[0.5, 0.1, 0.4])
        right = rng.random(len(pairs)) < [WORTH[kind] for kind in kinds]
        stance = np.where(right, 1, -1) * np.where(outcome == 0, 1, outcome)
        support = (0.3 * stance)[:, None]
        ledger = ledger.credited(
            pairs, support=support, stance=stance[:, None], outcome=outcome, problems=range(len(pairs))
        )
    end = start.without([mistakes[0].id])
    start.save(folder / "bank-start.json")
    end.save(folder / "bank.json")
    (folder / "ledger.json").write_text(ledger.to_json())
    return folder


def test_the_ranking_for_programs(sgsd, run):
    ledger = Ledger.from_json((run / "ledger.json").read_text())
    start = SkillBank.load(run / "bank-start.json")
    shown = json.loads(sgsd("bank", "ledger", run, "--json").out)
    items = shown["items"]
    values = [item["credit"]["value"] for item in items]
    assert values == sorted(values, reverse=True)
    assert {item["id"] for item in items} == set(ledger.items)
    for item in items:
        record = ledger.record(item["id"])
        assert item["kind"] == type(start.get(item["id"])).__name__.lower()
        assert (item["uses"], item["positive"], item["undecided"]) == (
            record.uses,
            record.positive,
            record.undecided,
        )
        assert item["mean_support_success"] == record.mean_support_success
        found = credit(record)
        assert item["credit"] == {"value": found.value, "low": found.low, "high": found.high}
        assert item["positive_share"] == record.positive / (record.positive + record.negative)
    assert shown["totals"]["uses"] == ledger.total.uses == 12 * STEPS
    assert [start.get(id).text for id in shown["unused"]] == ["Never."]
    states = [item["state"] for item in items]
    assert (states.count("in bank"), states.count("evicted")) == (11, 1)
    assert areas(items)["misleading"]["credit"] == 1.0


def test_the_ranking_for_people(sgsd, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = sgsd("bank", "ledger", run).out
    assert "[b]Skill" in shown
    assert shown.count("evicted") >= 1
    assert "Never used: 1." in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if line[:1] in "┃│")


def test_a_checkpoint_and_a_bank_given_by_name(sgsd, run, tmp_path):
    saved = tmp_path / "checkpoint-1" / "sgsd"
    saved.mkdir(parents=True)
    (run / "ledger.json").rename(saved / "ledger.json")
    plain = json.loads(sgsd("bank", "ledger", saved.parent, "--json").out)
    assert {(item["title"], item["state"]) for item in plain["items"]} == {(None, None)}
    assert areas(plain["items"]) == {}
    named = json.loads(sgsd("bank", "ledger", saved.parent, "--bank", run / "bank-start.json", "--json").out)
    assert {item["state"] for item in named["items"]} == {"in bank"}


def test_evicted_online_items_have_the_titles_that_maintenance_logged(sgsd, run):
    ledger = Ledger().credited([[("skill-x", "m")]], support=[[1.0]], stance=[[1]], outcome=[1], problems=[0])
    (run / "ledger.json").write_text(ledger.to_json())
    entry = {"action": "added", "kind": "skill", "id": "skill-x", "title": "Was here", "reason": "new"}
    (run / "maintenance.jsonl").write_text(json.dumps({"step": 10, "items": [entry]}) + "\n")
    items = {item["id"]: item for item in json.loads(sgsd("bank", "ledger", run, "--json").out)["items"]}
    assert (items["skill-x"]["title"], items["skill-x"]["origin"], items["skill-x"]["state"]) == (
        "Was here",
        "online",
        "evicted",
    )


def test_no_ledger_or_a_damaged_one_is_one_line(run, capsys):
    assert main(["bank", "ledger", "nowhere"]) == 2
    assert "no ledger" in capsys.readouterr().err
    (run / "ledger.json").write_bytes(b"\xff")
    assert main(["bank", "ledger", str(run)]) == 2
    assert "file is not UTF-8" in capsys.readouterr().err


@pytest.mark.slow
def test_credit_tells_the_lab_s_helpful_items_from_misleading_ones(sgsd, tmp_path):
    flags = ["--output", tmp_path / "lab", "--accuracy_steps", "150", "--json", "--", "--max_steps", "150"]
    assert sgsd("lab", "run", "calibrated", *flags).code == 0
    apart = areas(json.loads(sgsd("bank", "ledger", tmp_path / "lab", "--json").out)["items"])
    assert apart["misleading"]["credit"] >= 0.9
