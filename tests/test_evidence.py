"""docs/evidence.md shows what is stored in results/lab, and nothing else."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

import pytest

from sgsd.cli import build_parser

ROOT = Path(__file__).parents[1]


def benchmark(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def evidence():
    return benchmark("lab_evidence")


def test_the_page_holds_the_tables_that_the_command_prints(evidence, tmp_path, monkeypatch):
    page, shown = tmp_path / "evidence.md", evidence.PAGE.read_text()
    page.write_text(re.sub(r"(?s)(<!-- (table|sweeps) -->).*?(<!-- end of \2 -->)", r"\1\n\n\3", shown))
    assert len(page.read_text()) < len(shown) - 4000
    monkeypatch.setattr(evidence, "PAGE", page)
    evidence.page(argparse.Namespace(labs=list(evidence.LABS), cells=None, learning_rates=[5e-5, 1e-4, 2e-4]))
    assert page.read_text() == shown, "python benchmarks/lab_evidence.py page"


def test_every_stored_run_is_of_a_cell_and_no_run_is_there_twice(evidence):
    runs = [json.loads(line) for file in evidence.RESULTS.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len({run["command"] for run in runs}) == len(runs)
    for run in runs:
        assert run["command"] == evidence.command(run["cell"], run["lab"], run["learning_rate"], run["seed"])
        assert list(run["accuracy"]) == [str(step) for step in range(0, 301, 25)]


def test_every_cell_is_a_command_that_is_understood(evidence):
    for name, cell in evidence.CELLS.items():
        for lab in evidence.LABS:
            arguments = evidence.flags(cell, lab, learning_rate=1e-4, seed=0)
            options = build_parser().parse_args(arguments[: arguments.index("--")])
            assert options.helpful + options.misleading + options.irrelevant >= 1, name


def test_steps_to_a_goal_are_the_first_at_or_above_it_and_say_who_never_gets_there(evidence):
    curves = [{0: 0.2, 25: 0.6, 50: 0.5}, {0: 0.2, 25: 0.4, 50: 0.7}, {0: 0.2, 25: 0.3, 50: 0.3}]
    assert evidence.first_steps(curves, 0.6) == "25, 50; 1 never"
    assert evidence.first_steps(curves, 0.9) == "3 never"
    assert evidence.first_steps(curves, 0.2) == "0 ± 0"


def test_intervals_are_students_over_seeds(evidence):
    assert evidence.interval([1.0, 2.0, 3.0]) == "2 ± 2"  # 4.303 · 1 / √3 = 2.48
    assert evidence.interval([10.0, 30.0]) == "10, 30"


def test_house_rules_hold_out_other_things_and_only_helpful_pairs_say_the_true_shelf(tmp_path):
    house_rules = benchmark("house_rules")
    files = house_rules.problems(tmp_path)
    train, test = (
        {row["problem"]: row["answer"] for row in map(json.loads, file.read_text().splitlines())} for file in files
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
