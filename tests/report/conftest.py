"""Runs of two methods and two seeds, one of them hostile, and their page."""

from __future__ import annotations

from pathlib import Path

import pytest

from .folders import write_run

pytest.importorskip("ziaplot", reason="the extra 'report' is not installed")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    return [
        write_run(place / "grpo-0", method="grpo", seed=0, accuracy=0.4),
        write_run(place / "grpo-1", method="grpo", seed=1, accuracy=0.5),
        write_run(place / "sgsd-0", seed=0, accuracy=0.6, hostile=True),
        write_run(place / "sgsd-1", seed=1, accuracy=0.7),
    ]


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory) -> Path:
    from sgsd.report.page import write_report

    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html")
