"""``sgsd bank ledger`` and ``restore``: the ranking, by phase and by a step; the way back of retired items."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sgsd.bank import Ledger, Mistake, Origin, Skill, SkillBank, history
from sgsd.bank.credit import credit, credit_within, lasting_bound, positive_share
from sgsd.bank.retire import RetirementRule, retire
from sgsd.cli import main

WORTH = {"helpful": 0.9, "misleading": 0.2}
STEPS = 60


@pytest.fixture
def run(tmp_path):
    """A run of 60 steps in which helpful items were right in 90 % of all cases, misleading ones in 20 %.

    One skill was evicted, one retired, one never used.
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
    for step in range(1, STEPS + 1):
        pairs = [[pair] for pair in zip((s.id for s in skills), (m.id for m in mistakes), strict=True)]
        outcome = rng.choice([-1, 0, 1], len(pairs), p=[0.5, 0.1, 0.4])
        right = rng.random(len(pairs)) < [WORTH[kind] for kind in kinds]
        stance = np.where(right, 1, -1) * np.where(outcome == 0, 1, outcome)
        support = (0.3 * stance)[:, None]
        ledger = ledger.credited(pairs, support=support, stance=stance[:, None], outcome=outcome, step=step)
    retired, gone = retire(start, ledger, RetirementRule(0.5, min_active=20, static=True, keep=7), step=50)
    assert not gone
    retired, gone = retire(start, ledger, RetirementRule(0.5, min_active=20, static=True, keep=6), step=50)
    assert len(gone) == 1
    end = retired.without([mistakes[0].id])
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
        assert item["positive_share"]["value"] == positive_share(record).value
        assert item["bound"] == lasting_bound(record)
        assert item["within_phases"]["value"] == credit_within(ledger.by_phase(item["id"])).value
        assert [(phase["first"], phase["last"]) for phase in item["phases"]] == [(1, 25), (26, 50), (51, 75)]
        assert sum(phase["uses"] for phase in item["phases"]) == record.uses
    assert shown["totals"]["uses"] == ledger.total.uses == 12 * STEPS
    assert [start.get(id).text for id in shown["unused"]] == ["Never."]
    states = [item["state"] for item in items]
    assert (states.count("retired"), states.count("evicted")) == (1, 1)
    (apart,) = shown["separation"]
    assert (apart["better"], apart["worse"], apart["credit"]) == ("helpful", "misleading", 1.0)


def test_the_ranking_for_people(sgsd, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = sgsd("bank", "ledger", run, "--phases").out
    assert "[b]Skill" in shown
    assert shown.count("retired") >= 1
    assert "helpful above misleading (area under the ROC curve): by credit 1.000" in shown
    assert "Never used: 1." in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if line[:1] in "┃│")


def test_whom_a_limit_would_retire(sgsd, run):
    shown = json.loads(sgsd("bank", "ledger", run, "--retire_below", 0.5, "--json").out)
    worth = {item["id"]: item["worth"] for item in shown["items"]}
    present = {item.id for item in SkillBank.load(run / "bank.json").items}
    assert shown["would_retire"]
    assert {worth[id] for id in shown["would_retire"]} == {"misleading"}
    assert set(shown["would_retire"]) - present == {item["id"] for item in shown["items"] if item["state"] == "retired"}
    assert f"below 0.5: {len(shown['would_retire'])} items" in sgsd("bank", "ledger", run, "--retire_below", 0.5).out
    assert json.loads(sgsd("bank", "ledger", run, "--json").out)["would_retire"] is None


@pytest.mark.parametrize("sort", ["uses", "active", "support", "positive_share", "within_phases"])
def test_other_orders(sgsd, run, sort):
    items = json.loads(sgsd("bank", "ledger", run, "--sort", sort, "--json").out)["items"]
    keys = {
        "support": lambda item: item["mean_support_success"] - item["mean_support_failure"],
        "within_phases": lambda item: item["within_phases"]["value"],
        "positive_share": lambda item: item["positive_share"]["value"],
    }
    values = [keys.get(sort, lambda item: item[sort])(item) for item in items]
    assert values == sorted(values, reverse=True)


def test_the_ranking_as_it_was_at_a_step(sgsd, run):
    shown = json.loads(sgsd("bank", "ledger", run, "--until", 50, "--json").out)
    assert shown["totals"]["uses"] == 12 * 50
    assert all(len(item["phases"]) == 2 for item in shown["items"])


def test_a_checkpoint_and_a_bank_given_by_name(sgsd, run, tmp_path):
    saved = tmp_path / "checkpoint-1" / "sgsd"
    saved.mkdir(parents=True)
    (run / "ledger.json").rename(saved / "ledger.json")
    plain = json.loads(sgsd("bank", "ledger", saved.parent, "--json").out)
    assert {(item["title"], item["state"]) for item in plain["items"]} == {(None, None)}
    assert plain["separation"] == []
    named = json.loads(sgsd("bank", "ledger", saved.parent, "--bank", run / "bank-start.json", "--json").out)
    assert {item["state"] for item in named["items"]} == {"in bank"}


def test_evicted_online_items_have_the_titles_that_maintenance_logged(sgsd, run):
    ledger = Ledger().credited([[("skill-x", "m")]], support=[[1.0]], stance=[[1]], outcome=[1])
    (run / "ledger.json").write_text(ledger.to_json())
    entry = {"action": "added", "kind": "skill", "id": "skill-x", "title": "Was here", "reason": "new"}
    (run / "maintenance.jsonl").write_text(json.dumps({"step": 10, "items": [entry]}) + "\n")
    items = {item["id"]: item for item in json.loads(sgsd("bank", "ledger", run, "--json").out)["items"]}
    assert (items["skill-x"]["title"], items["skill-x"]["origin"], items["skill-x"]["state"]) == (
        "Was here",
        "online",
        "evicted",
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ledger", "nowhere"], "no ledger"),
        (["ledger", "{run}", "--until", "3"], "no phase had ended"),
        (["ledger", "{run}", "--sort", "age"], "unknown --sort"),
        (["ledger", "{run}", "--retire_below", "2"], "out of range"),
        (["restore", "{run}/bank-start.json"], "nothing to bring back"),
        (["restore", "{run}", "skill-0"], "no such item among the retired"),
        (["restore", "{run}", "--output", "{run}/bank-start.json"], "the output exists"),
    ],
)
def test_refusals_are_one_line(run, capsys, arguments, complaint):
    assert main(["bank", *(argument.format(run=run) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_a_damaged_ledger_is_one_line(run, capsys):
    (run / "ledger.json").write_bytes(b"\xff")
    assert main(["bank", "ledger", str(run)]) == 2
    assert "the ledger cannot be read" in capsys.readouterr().err


def test_retired_items_come_back_as_the_bank_s_next_version(sgsd, run, tmp_path):
    before = SkillBank.load(run / "bank.json")
    done = json.loads(sgsd("bank", "restore", run, "--json").out)
    after = SkillBank.load(run / "bank.json")
    assert [item.id for item in before.diff(after).added] == done["restored"]
    assert "retired" not in after.metadata
    assert history.read(run / "bank.json").versions[-1].action == "restore"
    sgsd("bank", "rollback", run / "bank.json", 1)
    assert SkillBank.load(run / "bank.json").digest == before.digest
    sgsd("bank", "restore", run, *done["restored"], "--output", tmp_path / "other.json")
    assert SkillBank.load(tmp_path / "other.json").digest == after.digest


@pytest.mark.slow
def test_credit_tells_the_lab_s_helpful_items_from_misleading_ones(sgsd, tmp_path):
    flags = ["--output", tmp_path / "lab", "--accuracy_steps", "150", "--json", "--", "--max_steps", "150"]
    assert sgsd("lab", "run", "calibrated", *flags).code == 0
    (apart,) = json.loads(sgsd("bank", "ledger", tmp_path / "lab", "--json").out)["separation"]
    assert (apart["better"], apart["worse"]) == ("helpful", "misleading")
    assert apart["credit"] >= 0.9
