"""docs/evidence.md shows what is stored in results/lab, and nothing else; house rules are what they say."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re

import pytest

from sgsd.examples.lab import cells, evidence
from sgsd.examples.lab.command import make_parser

from ..conftest import ROOT


def test_the_page_holds_the_tables_that_the_command_prints(tmp_path, monkeypatch):
    page, shown = tmp_path / "evidence.md", evidence.PAGE.read_text()
    page.write_text(re.sub(r"(?s)(<!-- (table|sweeps) -->).*?(<!-- end of \2 -->)", r"\1\n\n\3", shown))
    assert len(page.read_text()) < len(shown) - 4000
    monkeypatch.setattr(evidence, "PAGE", page)
    options = {"labs": list(cells.LABS), "cells": None, "learning_rates": None}
    evidence.page(argparse.Namespace(**options))
    assert page.read_text() == shown, "python examples/lab/evidence.py page"


def test_every_stored_run_is_of_a_cell_and_no_run_is_there_twice():
    runs = [json.loads(line) for file in cells.RESULTS.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len({(run["command"], cells.is_former(run)) for run in runs}) == len(runs)
    for run in runs:
        assert run["command"] == cells.command(run["cell"], run["lab"], run["learning_rate"], run["seed"])
        assert list(run["accuracy"]) == [str(step) for step in range(0, cells.CELLS[run["cell"]].steps + 1, 25)]


def test_a_run_of_the_present_trainer_counts_before_a_former_one_of_its_command(tmp_path, monkeypatch):
    run = {"command": "sgsd lab run", "accuracy": {"0": 0.1}}
    for name, line in (("a-new", run | {"train_seconds": {}}), ("b-old", run), ("c-other", run | {"command": "x"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    cells.records.cache_clear()
    found = cells.records()
    cells.records.cache_clear()
    assert {command: cells.is_former(run) for command, run in found.items()} == {"sgsd lab run": False, "x": True}


def test_plans_run_cells_that_there_are_and_the_reduced_one_is_of_sixty_runs():
    sizes = {}
    for name, batches in cells.PLANS.items():
        runs = [cells.command(*which) for batch in batches for which in batch.runs(list(cells.LABS))]
        sizes[name] = len(set(runs))
        assert len(runs) == len(set(runs)), name
    assert sizes["reduced"] == 60
    doses = [cells.CELLS["regime-sgsd"].learning_rates[0] / 5e-6, 128 / 8, 64 / 4, 2048 / 128]
    assert doses == pytest.approx([16] * 4)


@pytest.mark.parametrize("lab", cells.LABS)
def test_every_cell_is_a_command_that_is_understood(lab):
    for name, cell in cells.CELLS.items():
        _, *arguments = cells.flags(cell, lab, learning_rate=1e-4, seed=0)
        options = make_parser().parse_args(arguments[: arguments.index("--")])
        assert options.helpful + options.misleading + options.irrelevant >= 1, name


def test_steps_to_a_goal_are_the_first_at_or_above_it_and_intervals_are_students():
    curves = [{0: 0.2, 25: 0.6, 50: 0.5}, {0: 0.2, 25: 0.4, 50: 0.7}, {0: 0.2, 25: 0.3, 50: 0.3}]
    shown = {0.6: "25, 50; 1 never", 0.9: "3 never", 0.2: "0 ± 0"}
    assert {goal: evidence.first_steps(curves, goal) for goal in shown} == shown
    assert evidence.interval([1.0, 2.0, 3.0]) == "2 ± 2"  # 4.303 · 1 / √3 = 2.48
    assert evidence.interval([10.0, 30.0]) == "10, 30"


def test_house_rules_hold_out_other_things_and_only_helpful_pairs_say_the_true_shelf(tmp_path):
    spec = importlib.util.spec_from_file_location("house_rules", ROOT / "examples" / "house_rules.py")
    house_rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house_rules)
    train, test = (
        {row["problem"]: row["answer"] for row in map(json.loads, file.read_text().splitlines())}
        for file in house_rules.write(tmp_path)[1:]
    )
    assert len(train) == len(test) == 72
    assert not set(train) & set(test)
    shelves = house_rules.truth()
    assert {(text.split()[-2], answer) for text, answer in (train | test).items()} == {
        (material, str(shelf)) for material, shelf in shelves.items()
    }
    bank = house_rules.bank()
    worth = bank.metadata["worth"]
    for skill, mistake in zip(bank.skills, bank.mistakes, strict=True):
        material = skill.title.split()[0].lower()
        assert worth[skill.id] == worth[mistake.id]
        assert f"a {material} thing on shelf" in mistake.text
        helps = worth[skill.id] == "helpful"
        assert (f"shelf {shelves[material]}." in skill.text) == helps
        assert (f"shelf {shelves[material]}." in mistake.text) != helps
    assert len(house_rules.bank(helpful=False).skills) == len(house_rules.bank(misleading=False).skills) == 12
