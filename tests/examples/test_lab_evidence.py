"""docs/evidence.md shows what is stored in results/lab, and nothing else; house rules are what they say."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re

import numpy as np
import pytest

from sgsd.examples.lab import cells, evidence, pages
from sgsd.examples.lab.command import make_parser

from ..conftest import ROOT

OPTIONS = argparse.Namespace(labs=list(cells.LABS), cells=None, learning_rates=None)


def test_the_pages_hold_what_the_command_prints_each_part_once(tmp_path, monkeypatch):
    shown = {name: vars(pages)[name].read_text(encoding="utf-8") for name in ("PAGE", "DETAILS", "DEMO")}
    for name, text in shown.items():
        emptied = tmp_path / f"{name}.md"
        emptied.write_text(pages.fill(text, dict.fromkeys(pages.TABLES, "")), encoding="utf-8")
        assert len(emptied.read_text(encoding="utf-8")) < len(text) - 500
        monkeypatch.setattr(pages, name, emptied)
    pages.page(OPTIONS)
    for name, text in shown.items():
        assert vars(pages)[name].read_text(encoding="utf-8") == text, "python examples/lab/evidence.py page"
    blocks = re.findall(r"<!-- (\w+) -->", "".join(shown.values()))
    assert sorted(blocks) == sorted(pages.TABLES)


def test_the_page_begins_with_three_answers_and_has_a_table_of_ten_rows_at_most():
    text = pages.PAGE.read_text(encoding="utf-8")
    assert re.match(r"# The evidence\n\n<!-- answers -->", text)
    assert len(re.findall(r"^\*\*“", "\n".join(pages.answers(OPTIONS)), re.MULTILINE)) == 3
    assert len(list(pages.summary(OPTIONS))) <= 2 + 10


def test_every_table_and_answer_is_made_of_the_runs(tmp_path, monkeypatch):
    gains = {"grpo": 0.5, "guided": 0.9, "guided-irrelevant": 0.7, "cautious": 0.8, "cautious-irrelevant": 0.5}
    gains |= {"guided-misleading-4": 0.5, "regime-grpo": 0.4}
    shown = [*pages._SUMMARY, "guided-misleading-4", "cautious-irrelevant", *cells.REGIME, *cells.LONG, *cells.SWEPT]
    for name, cell in {name: cells.CELLS[name] for name in (*shown, "guided-flips-10", "grpo-flips-10")}.items():
        for which in cells.Batch([name], cell.learning_rates, (0, 1, 2, cells.FRESH)).runs(list(cells.LABS)):
            _, lab, learning_rate, seed = which
            steps = [str(step) for step in range(0, cell.steps + 1, 25)]
            last = 0.2 if name == "regime-sgsd" else gains.get(name, 0.6) + 0.01 * seed
            line = {"cell": name, "lab": lab, "learning_rate": learning_rate, "seed": seed}
            line |= {"command": cells.command(*which), "accuracy": dict.fromkeys(steps, 0.3) | {steps[-1]: last}}
            line |= {name: {step: 2.0 * int(step) for step in steps} for name in ("train_seconds", "cpu_seconds")}
            line |= {"pass_at_8": 0.8, "last_25_steps": {"tokens": 15.0, "entropy": 0.1}}
            line["guard"] = {"step": 170, "what": "fell"} if name == "regime-sgsd" else None
            with (tmp_path / f"{lab}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    cells.records.cache_clear()
    made = {name: pages.printed(name, OPTIONS) for name in pages.TABLES}
    cells.records.cache_clear()
    assert "not run" not in "".join(made.values()).lower()
    answers = " ".join(made["answers"].split())
    assert "at step 300 is 50 % [50, 50] in the sharp lab and 50 % [50, 50] in the calibrated lab. With" in answers
    assert "`teacher_trust: cautious` it is 100 % [100, 100] and 100 % [100, 100]** (3 seeds)." in answers
    assert (
        "published is at 20 ± 0 % (sharp) and 20 ± 0 % (calibrated) after 200 steps, from 30.0 %; GRPO with" in answers
    )
    assert "as many rollouts at 41 ± 2 % and 41 ± 2 %.** 6 of 6 runs ended below their start." in answers
    said = " ".join(made["details"].split())
    all_of_it, half = "+40.0 [+40.0, +40.0]", "+20.0 [+20.0, +20.0]"
    assert f"guided correction gains {all_of_it} points over GRPO by step 300, and {half} with pairs of other" in said
    assert "bank, at most 20.0 points from GRPO at any evaluation: **the bank's share is 50 % [50, 50]**; in" in said
    assert "and +0.0 [+0.0, +0.0] with pairs of other problems in place of the bank, at most 0.0 points from" in said
    assert "the bank's share is 100 % [100, 100]**; in the mean of all steps it is 100 % [100, 100] (3 seeds)." in said
    assert said.count("(3 seeds).") == 2
    assert "**after its 200 steps it is at 20 ± 0 %**, from 30.0, and 3 of 3 runs fell" in said
    row = "| sharp | SGSD as published, K = 8 | 8e-05 | 200 | 3 | 30 ± 0 | 0 ± 0 | 20 ± 0 | 3 of 3: 200, 200, 200 |"
    assert f"{row} step 170, step 170, step 170 |" in made["regime"]
    assert "| GRPO + correction, guided | 3 | 91 ± 2 | 0 of 6 | 300 ± 0 | 600 ± 0 | 80 ± 0 | 0.100 |" in made["summary"]
    assert "| sharp | GRPO + correction, guided | 0.0001 | 30.0 | 95.0 | 300 | 600 |" in made["fresh"]


def test_the_banks_share_is_the_difference_of_differences_over_the_gain_over_common_seeds():
    baseline, placebo, true = (
        {0: 70.0, 1: 60.0, 2: 80.0, 3: 1.0},
        {0: 80.0, 1: 80.0, 2: 85.0},
        {0: 99.0, 1: 98.0, 2: 99.0},
    )
    found = pages.bank_share(true, placebo, baseline)
    assert found.gains == (29.0, 38.0, 19.0)
    assert found.placebo_gains == (10.0, 20.0, 5.0)
    assert found.differences == (19.0, 18.0, 14.0)
    assert found.ratio.mean == pytest.approx(51 / 86)
    quantile = 4.302653  # Student's, 2 degrees of freedom
    for end in (found.ratio.low, found.ratio.high):  # Fieller: where Student's test is on the edge
        rest = np.array(found.differences) - end * np.array(found.gains)
        assert abs(rest.mean() / (rest.std(ddof=1) / 3**0.5)) == pytest.approx(quantile, rel=1e-5)
    assert pages.bank_share(true, {}, baseline) == pages.Share((), (), (), None)


def test_a_ratio_is_students_where_the_denominator_is_certain_and_has_no_interval_where_it_may_be_0():
    of_one = pages.ratio_of_means([1.0, 2.0, 6.0], [2.0, 2.0, 2.0])
    student = pages.student([0.5, 1.0, 3.0])
    assert (of_one.mean, of_one.low, of_one.high) == pytest.approx((student.mean, student.low, student.high))
    assert pages.ratio_of_means([1.0, 2.0, 6.0], [-1.0, 1.0, 0.5]) is None
    assert pages.ratio_of_means([1.0], [2.0]) is None


@pytest.mark.parametrize(
    ("accuracies", "fell", "step"),
    [
        ([0.25, 0.3, 0.2, 0.1], True, 50),
        ([0.25, 0.2, 0.3, 0.1], True, 75),
        ([0.25, 0.1, 0.1, 0.25], False, None),
    ],
)
def test_a_run_falls_at_the_step_from_which_on_it_is_below_its_start(accuracies, fell, step):
    run = {"accuracy": {str(25 * n): value for n, value in enumerate(accuracies)}}
    assert (pages.fell(run), pages.fell_at(run)) == (fell, step)


def test_every_stored_run_is_of_a_cell_and_no_run_is_there_twice():
    runs = [json.loads(line) for file in cells.RESULTS.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len({(run["command"], cells.is_former(run)) for run in runs}) == len(runs)
    for run in runs:
        assert run["command"] == cells.command(run["cell"], run["lab"], run["learning_rate"], run["seed"])
        assert list(run["accuracy"]) == [str(step) for step in range(0, cells.CELLS[run["cell"]].steps + 1, 25)]


def test_of_a_changed_method_only_the_present_trainers_runs_count_of_another_both(tmp_path, monkeypatch):
    lines = [
        {"cell": name, "lab": "sharp", "learning_rate": 1e-4, "seed": seed, **({"train_seconds": {}} if new else {})}
        for name in ("grpo", "guided")
        for seed, new in ((0, False), (0, True), (1, False), (cells.FRESH, True))
    ]
    for line in lines:
        line["command"] = cells.command(line["cell"], line["lab"], line["learning_rate"], line["seed"])
        with (tmp_path / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    cells.records.cache_clear()
    rows = {name: cells.stored("sharp", name, 1e-4) for name in ("grpo", "guided")}
    found = {name: [(run["seed"], cells.is_former(run)) for run in runs] for name, runs in rows.items()}
    fresh = [run["seed"] for run in cells.stored("sharp", "guided", 1e-4, fresh=True)]
    cells.records.cache_clear()
    assert found == {"grpo": [(0, False), (1, True)], "guided": [(0, False)]}
    assert fresh == [cells.FRESH]


def test_check_repeats_runs_that_this_processors_instructions_made(monkeypatch, capsys):
    made = {
        f"run {n}": {
            "command": f"run {n}",
            "cell": "grpo",
            "lab": "sharp",
            "learning_rate": n,
            "seed": 0,
            "accuracy": {"0": n},
            "cpu": "AVX2" if n else "NEON",
        }
        for n in range(3)
    }
    monkeypatch.setattr(evidence, "records", lambda: made)
    monkeypatch.setattr(evidence, "instructions", lambda: "AVX2")
    monkeypatch.setattr(evidence, "make", lambda cell, lab, rate, seed: {"accuracy": {"0": rate}})
    options = argparse.Namespace(draw=0)
    evidence.check(options)
    assert sorted(capsys.readouterr().out.splitlines()) == ["run 1: the same", "run 2: the same"]
    monkeypatch.setattr(evidence, "make", lambda cell, lab, rate, seed: {"accuracy": {"0": 1}})
    with pytest.raises(SystemExit):
        evidence.check(options)
    assert "run 2: {'0': 1}" in capsys.readouterr().out
    monkeypatch.setattr(evidence, "instructions", lambda: "VSX")
    with pytest.raises(SystemExit):
        evidence.check(options)
    assert capsys.readouterr().out == "no stored run was made with VSX\n"


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
    assert {goal: pages.first_steps(curves, goal) for goal in shown} == shown
    assert pages.interval([1.0, 2.0, 3.0]) == "2 ± 2"  # 4.303 · 1 / √3 = 2.48
    assert pages.interval([10.0, 30.0]) == "10, 30"


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
