"""HTML pages: the report on runs (``page``), which needs ziaplot, and the certificate, which does not."""

from sgsd.report.runs import Group, Run, grouped, load_runs

__all__ = ["Group", "Run", "grouped", "load_runs"]
