"""Figures hold the numbers of the runs: in their specification, their words and their tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import ItemRecord, Ledger
from sgsd.evaluation import compare_runs
from sgsd.report import grouped, load_runs
from sgsd.report.curves import accuracy_figure, signs_figure, success_figure
from sgsd.report.headline import comparison_figure
from sgsd.report.series import bands_over_seeds, in_stretches, metric_bands
from sgsd.report.tables import bank_changes, item_rows, outcome_table, setting_differences, worth_table
from sgsd.report.teaching import (
    bin_names,
    item_figure,
    polarity_figure,
    support_counts,
    support_figure,
    support_map_figure,
)

from .folders import write_run


@pytest.fixture(scope="module")
def groups(runs):
    return grouped(load_runs(runs))


def values_of(spec):
    """Every inline record of a specification; all of a figure's layers share one list."""
    return spec["data"]["values"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400))
def test_stretches_keep_the_mean_and_order_of_a_curve(values):
    curve = [(step, value) for step, value in enumerate(values, 1)]
    points = in_stretches(curve, len(values), 10)
    assert len(points) == min(10, len(values))
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert all(0 < step <= len(values) + 0.5 for step, _ in points)
    if len(values) % 10 == 0:
        assert math.isclose(fmean(value for _, value in points), fmean(values), abs_tol=1e-9)


def test_bands_are_mean_lowest_and_highest_at_the_steps_of_all_seeds():
    (first, last) = bands_over_seeds([[(0, 0.2), (10, 0.4)], [(0, 0.4), (5, 0.9), (10, 0.8)]])
    assert (first.step, first.mean, first.low, first.high) == (0, pytest.approx(0.3), 0.2, 0.4)
    assert (last.step, last.mean, last.low, last.high) == (10, pytest.approx(0.6), 0.4, 0.8)


def test_a_long_history_becomes_at_most_sixty_points(groups):
    run = groups[0].runs[0]
    assert len(in_stretches([(step, 0.5) for step in range(1, 20_001)], 20_000)) == 60
    assert len(metric_bands(groups[0], "entropy")) == run.last_step == 30


def test_the_accuracy_figure_says_where_every_group_begins_and_ends(groups):
    figure = accuracy_figure(groups)
    assert "GRPO: 20.0 % at step 0, 45.0 % at step 30" in figure.panels[0].summary
    assert figure.table.columns == ("step", "GRPO", "SGSD")
    assert figure.table.rows[-1] == ("30", "45.0 % (40.0 to 50.0)", "65.0 % (60.0 to 70.0)")
    last = [record for record in values_of(figure.panels[0].spec) if record["step"] == 30 and record["group"] == "SGSD"]
    assert [record["mean"] for record in last] == [pytest.approx(0.65)]


def test_one_seed_has_its_own_interval_as_band(groups, runs):
    (alone,) = grouped(load_runs(runs[:1]))
    figure = accuracy_figure([alone])
    assert figure.table.rows[-1] == ("30", "40.0 % (35.0 to 45.0)")


def test_a_metric_that_no_run_logged_makes_no_figure(groups):
    grpo = groups[:1]
    assert polarity_figure(grpo) is None
    assert support_figure(grpo) is None
    assert support_map_figure(grpo) is None
    assert item_figure(groups[0], "x") is None
    assert len(signs_figure(grpo).panels) == 3  # no teachers, hence no stances
    assert success_figure(groups) is not None


def test_polarity_shares_add_up_at_every_step(groups):
    (panel,) = polarity_figure(groups).panels
    by_step = {}
    for record in values_of(panel.spec):
        by_step.setdefault(record["step"], []).append(record["share"])
    assert len(by_step) == 30
    assert all(math.isclose(sum(shares), 1.0) and len(shares) == 3 for shares in by_step.values())


def test_support_counts_are_those_of_the_lines(groups):
    runs = groups[1].runs
    for outcome in ("success", "failure"):
        whole = support_counts(runs, outcome, 1)[0]
        assert whole.tolist() == [
            sum(line[outcome][n] for run in runs for line in run.supports) for n in range(len(whole))
        ]
        for stretches in (3, 7, 30):
            assert support_counts(runs, outcome, stretches).sum(0).tolist() == whole.tolist()


def test_the_shares_of_a_histogram_add_up_to_one_for_each_outcome(groups):
    for panel in support_figure(groups).panels:
        totals = {}
        for record in values_of(panel.spec):
            totals[record["rollout"]] = totals.get(record["rollout"], 0.0) + record["share"]
        assert sorted(totals) == ["failure", "success"]
        assert all(math.isclose(total, 1.0) or total == 0.0 for total in totals.values())


def test_bins_have_names_without_gaps():
    assert bin_names((-0.5, 0.0, 2)) == ("below −0.5", "−0.5 to 0", "0 to 2", "above 2")


def test_item_rows_are_the_ledgers_best_first(groups):
    rows = item_rows(groups[1])
    values = [row.credit.value for row in rows if row.credit is not None]
    assert len(values) > 3
    assert values == sorted(values, reverse=True)
    assert all((row.credit is None) == (row.record.active == 0) for row in rows)
    assert {row.id: row.record for row in rows if row.record.uses} == dict(groups[1].ledger.items)
    assert rows[-1].record.uses == 0  # an item that came at the end


def test_an_item_that_supports_every_rollout_has_no_credit_though_most_of_its_uses_are_positive(groups):
    group = groups[1]
    bland, useful = list(group.items)[:2]
    of_bland = {"positive_success": 80, "negative_failure": 20}
    of_useful = {"positive_success": 9, "negative_success": 1, "positive_failure": 9, "negative_failure": 1}
    outcomes = {"uses": 100, "successes": 80, "failures": 20}
    records = {
        bland: ItemRecord(active=100, positive=80, negative=20, **outcomes, **of_bland),
        useful: ItemRecord(active=20, positive=18, negative=2, neutral=80, **outcomes, **of_useful),
    }
    group = replace(group, runs=(replace(group.runs[0], ledger=Ledger(records)),))
    assert [row.id for row in item_rows(group)][:2] == [useful, bland]
    shown = {row[0]: row for row in item_figure(group, "items").table.rows}
    assert [row[1] for row in shown.values()] == [20, 100]
    assert list(shown.values())[1][4].startswith("0.5")


def test_the_worth_table_adds_up_each_runs_own_items(groups):
    table = worth_table(groups[1])
    assert [row[0] for row in table.rows] == ["helpful", "misleading"]
    assert sum(row[2] for row in table.rows) == sum(record.uses for record in groups[1].ledger.items.values())


def test_bank_changes_name_what_came_and_what_went(groups):
    hostile, plain = bank_changes([run for group in groups for run in group.runs])
    assert (hostile.runs, plain.runs) == (("sgsd-0",), ("sgsd-1",))
    assert [item.title for item in plain.diff.added] == ["Estimates"]
    assert [item.text for item in plain.diff.removed] == ["Losing term 1."]


def test_settings_that_differ_come_first_and_the_others_are_not_repeated(groups):
    runs = [run for group in groups for run in group.runs]
    names = [row[0] for row in setting_differences(runs).rows]
    assert {"method", "seed", "output_dir"} == set(names)


def test_the_comparison_has_the_figures_of_sgsd_compare(runs, groups):
    comparison = compare_runs(runs)
    figure = comparison_figure(comparison, [group.label for group in groups])
    assert [panel.title for panel in figure.panels] == ["sums, 20 problems", "sums, difference to GRPO"]
    means = {record["group"]: record["mean"] for record in values_of(figure.panels[0].spec)}
    assert means == {row.label: row.cells[0].mean for row in comparison.rows}
    assert figure.table.rows[0][0] == "GRPO"


def test_colours_are_names_that_every_theme_has(groups):
    figures = [accuracy_figure(groups), polarity_figure(groups), support_figure(groups), support_map_figure(groups)]
    text = json.dumps([panel.spec for figure in figures for panel in figure.panels])
    assert "#" not in text
    assert "$series1" in text


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.07, 1000])
def test_the_map_of_supports_speaks_of_the_runs_own_dead_zone(tmp_path, threshold):
    """At 029fdea it was 0.05 whatever the run had."""
    write_run(tmp_path / "run", support_threshold=threshold)
    (group,) = grouped(load_runs([tmp_path / "run"]))
    figure = support_map_figure([group])
    run = group.runs[0]
    for panel, outcome in zip(figure.panels, ("success", "failure"), strict=True):
        bins = support_counts([run], outcome, 1)[0]
        lower, upper = (-math.inf, *run.edges), (*run.edges, math.inf)
        above = sum(n for n, least in zip(bins, lower, strict=True) if least >= threshold) / sum(bins)
        below = sum(n for n, most in zip(bins, upper, strict=True) if most <= -threshold) / sum(bins)
        least = "" if threshold in run.edges else "at least "
        assert f"{least}{100 * above:.1f} % of teachers had a support above {threshold:g}, " in panel.summary
        assert f"{least}{100 * below:.1f} % one below −{threshold:g}." in panel.summary


def test_seeds_are_counted(runs):
    """At 029fdea a run of seed 0 had "0" under "seeds"."""
    alone, both = runs[0], runs[:2]
    for folders, count in (([alone], 1), (both, 2)):
        table = outcome_table(grouped(load_runs(folders)))
        assert [row[table.columns.index("seeds")] for row in table.rows] == [count]
        figure = comparison_figure(compare_runs(folders), [])
        assert [row[figure.table.columns.index("seeds")] for row in figure.table.rows] == [count]
