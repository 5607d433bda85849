"""Charts and tables hold the numbers of the runs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from statistics import fmean
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import ItemRecord, Ledger, Mistake, Skill
from sgsd.evaluation import compare_runs
from sgsd.report import curves, grouped, load_runs, tables

from .folders import write_run

VALUES = st.one_of(st.floats(-1e30, 1e30), st.floats(-10, 10), st.floats(1, 1 + 1e-12), st.floats(0, 1e-30))


@pytest.fixture(scope="module")
def groups(runs):
    return grouped(load_runs(runs))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400))
def test_stretches_keep_the_mean_and_order_of_a_curve(values):
    points = curves.binned(list(enumerate(values, 1)), len(values), 10)
    assert len(points) == min(10, len(values))
    steps = [step for step, _ in points]
    assert steps == sorted(steps)
    assert 0 < steps[0] <= steps[-1] <= len(values) + 0.5
    if len(values) % 10 == 0:
        assert math.isclose(fmean(value for _, value in points), fmean(values), abs_tol=1e-9)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=3), st.integers(1, 10**7))
def test_whatever_was_logged_can_be_drawn(values, last):
    bands = [curves.Band(last * (n + 1), *sorted([a, (a + b) / 2, b])) for n, (a, b) in enumerate(values)]
    figure = curves._figure("it", {"loss": [curves.Line("a < b", "red", "1 0", bands)]}, shares=False)
    (chart,) = figure.charts
    assert "NaN" not in chart.svg
    assert len(ElementTree.fromstring(chart.svg).findall(".//{*}path[@stroke='red']")) == 1
    assert len(chart.table.rows) == len(values)


def test_bands_are_mean_lowest_and_highest_at_the_steps_of_all_seeds(groups):
    first, last = curves.bands_over_seeds([[(0, 0.2), (10, 0.4)], [], [(0, 0.4), (5, 0.9), (10, 0.8)]])
    assert first == curves.Band(0, pytest.approx(0.3), 0.2, 0.4)
    assert last == curves.Band(10, pytest.approx(0.6), 0.4, 0.8)
    assert len(curves.binned([(step, 0.5) for step in range(1, 20_001)], 20_000)) == 60
    assert len(curves.metric_bands(groups[0], "entropy")) == 30


def test_a_chart_says_where_every_group_begins_and_ends(groups, runs):
    accuracy, success = curves.learning_figure(groups).charts
    assert "GRPO: 20.0 % at step 0, 45.0 % at step 30, lowest 20.0 %, highest 45.0 %." in accuracy.summary
    assert accuracy.table.columns == ("step", "GRPO", "SGSD")
    assert [row[0] for row in accuracy.table.rows] == ["0", "10", "20", "30"]
    assert accuracy.table.rows[-1][1:] == ("45.0 % (40.0 % to 50.0 %)", "65.0 % (60.0 % to 70.0 %)")
    assert len(success.table.rows) == 30
    one_seed = curves.learning_figure(grouped(load_runs(runs[:1])))  # has its own interval as band
    assert one_seed.charts[0].table.rows[-1] == ("30", "40.0 % (35.0 % to 45.0 %)")


def test_seeds_that_ended_at_different_steps_are_told(tmp_path):
    """The accuracy of step 20 was said to be that of step 30."""
    folders = [write_run(tmp_path / str(seed), seed=seed, steps=steps) for seed, steps in enumerate((30, 20))]
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        record["settings"]["max_steps"] = 30
        (folder / "run.json").write_text(json.dumps(record))
    ((_, seeds, steps, accuracy, _),) = curves.outcome_table(grouped(load_runs(folders))).rows
    assert (seeds, steps, accuracy) == (2, "20 to 30", "20.0 % → 45.0 % (40.0 % to 50.0 %)")


def test_neighbours_have_the_same_axes_and_no_half_steps(tmp_path):
    folder = write_run(tmp_path / "run", steps=3)
    state = json.loads((folder / "trainer_state.json").read_text())
    shares = {"success_rate": [0.2, 0.3, 0.3], "eval_accuracy": [0.5, 0.7, 0.9]}
    state["log_history"] = [{"step": n + 1, **{name: of[n] for name, of in shares.items()}} for n in range(3)]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    charts = curves.learning_figure(grouped(load_runs([folder]))).charts
    ticks = [re.findall(r">([\d.,]+(?: %)?)</text>", str(chart.svg)) for chart in charts]
    assert len(ticks) == 2
    assert sorted(ticks[0]) == sorted(ticks[1])
    assert {"0", "1", "2", "3", "100 %"} <= set(ticks[0])
    assert not [tick for tick in ticks[0] if "." in tick]


def test_lines_are_means_and_bands_go_from_the_lowest_to_the_highest_seed(groups):
    svg = ElementTree.fromstring(curves.learning_figure(groups).charts[0].svg)
    (line,) = svg.findall(".//{*}path[@stroke='var(--series1)']")
    (band,) = svg.findall(".//{*}polygon[@fill='var(--series1)']")
    heights = [
        float(text.partition(",")[2]) for text in re.findall(r"[\d.]+,[\d.]+", f"{line.get('d')} {band.get('points')}")
    ]
    start, end = heights[0], heights[3]
    shares = [0.2 + 0.45 * (height - start) / (end - start) for height in heights]
    assert shares[:4] == pytest.approx([0.2, 0.35, 0.5, 0.65], abs=0.002)
    assert shares[4:] == pytest.approx([0.2, 1.1 / 3, 1.6 / 3, 0.7, 0.6, 1.4 / 3, 1 / 3, 0.2], abs=0.002)


def test_each_group_is_a_row_with_the_number_of_its_seeds(groups):
    assert [row[:3] for row in curves.outcome_table(groups).rows] == [("GRPO", 2, 30), ("SGSD", 2, 30)]


def test_what_no_run_recorded_has_no_figure(groups):
    grpo = groups[:1]
    assert curves.polarity_figure(grpo) is None
    assert len(curves.signs_figure(grpo).charts) == 3  # no teachers, hence no stances
    assert len(curves.signs_figure(groups).charts) == 4


def test_polarity_shares_add_up_at_every_step(groups):
    (chart,) = curves.polarity_figure(groups).charts
    assert chart.title == "SGSD"
    assert len(chart.table.rows) == 30
    for _, *shares in chart.table.rows:
        assert sum(float(share.split()[0]) for share in shares) == pytest.approx(100, abs=0.2)


def test_items_are_the_ledgers_best_first(groups):
    rows = tables.item_table(groups[1]).rows
    credits = [row[3].mean for row in rows if row[3] is not None]
    assert len(credits) > 3
    assert credits == sorted(credits, reverse=True)
    uses = {id: record.uses for id, record in groups[1].ledger.items.items()}
    assert {row[0].id: row[2] for row in rows if row[2]} == uses
    assert rows[-1][2:4] == (0, None)  # an item that came at the end
    assert {type(row[0]): row[1] for row in rows} == {Skill: "skill", Mistake: "mistake"}


def test_an_item_that_supports_every_rollout_has_no_credit_though_most_of_its_uses_are_positive(groups):
    bland, useful = list(groups[1].items)[:2]
    of_bland = {"positive_success": 80, "negative_failure": 20}
    of_useful = {"positive_success": 9, "negative_success": 1, "positive_failure": 9, "negative_failure": 1}
    outcomes = {"uses": 100, "successes": 80, "failures": 20}
    records = {
        bland: ItemRecord(active=100, positive=80, negative=20, **outcomes, **of_bland),
        useful: ItemRecord(active=20, positive=18, negative=2, neutral=80, **outcomes, **of_useful),
        "gone": ItemRecord(),
    }
    rows = tables.item_table(replace(groups[1], runs=(replace(groups[1].runs[0], ledger=Ledger(records)),))).rows
    assert [row[0].id for row in rows[:2]] == [useful, bland]
    assert rows[1][3].text.startswith("0.5")
    assert tables.order_note(tables.Table((), rows)).startswith("The intervals of 1 of 2 items exclude 0.5")
    assert tables.order_note(tables.Table((), rows[1:])).startswith("Every item's interval contains 0.5")
    assert rows[-1][:2] == ("gone: not in the bank at the start or at the end", None)


def test_settings_that_differ_come_first_and_the_others_are_not_repeated(runs):
    loaded = load_runs(runs)
    apart, shared = tables.setting_tables(loaded)
    assert apart.columns == ("setting", "grpo-0", "grpo-1", "sgsd-0", "sgsd-1")
    assert {row[0] for row in apart.rows} == {"method", "seed", "output_dir"}
    assert {row[0] for row in shared.rows} >= {*loaded[0].settings} - {"method", "seed", "output_dir"}
    assert {("version: torch", "2.13.0"), ("data: kept", "28")} <= set(shared.rows)


def test_the_comparison_has_the_figures_of_sgsd_compare(runs):
    comparison = compare_runs(runs)
    table = tables.comparison_table(comparison)
    assert table.columns == ("method", "seeds", "sums, 20 problems", "sums, difference to GRPO")
    for row, (label, seeds, accuracy, _) in zip(comparison.rows, table.rows, strict=True):
        assert (label, seeds, accuracy.mean, accuracy.middle) == (row.label, 2, row.cells[0].mean, False)
        assert accuracy.text.startswith(f"{100 * row.cells[0].mean:.1f} % (")
    none, difference = (row[3] for row in table.rows)
    assert none is None
    assert difference.text.startswith("+45.0 % (+")
    assert 0.5 < difference.low < difference.mean < difference.high == 1.0  # above the middle, which is no difference


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (-0.04, "+.1f", "+0.0"),
        (-0.4, ".0f", "0"),
        (-0.0004, "+.1%", "+0.0 %"),
        (-1.25, "+.1f", "−1.2"),
        (None, ".1%", "–"),
    ],
)
def test_a_figure_has_no_minus_before_zero(value, spec, text):
    assert tables.figure(value, spec) == text
