"""Run folders → tables, curves, rollouts: one HTML page; a certificate → another, which draws without ziaplot."""

from sgsd.report.runs import Group, Run, grouped, load_runs

__all__ = ["Group", "Run", "grouped", "load_runs"]
