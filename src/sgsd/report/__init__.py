"""Run folders → tables, curves, rollouts: one HTML page."""

from sgsd.report.page import write_report
from sgsd.report.runs import Group, Run, grouped, load_run, load_runs

__all__ = ["Group", "Run", "grouped", "load_run", "load_runs", "write_report"]
