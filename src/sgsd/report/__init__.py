"""Run folders → tables, figures, one HTML page."""

from sgsd.report.page import render, write_report
from sgsd.report.runs import Group, Run, grouped, load_run, load_runs

__all__ = ["Group", "Run", "grouped", "load_run", "load_runs", "render", "write_report"]
