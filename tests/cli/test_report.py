from __future__ import annotations

import pytest

from ..report.folders import write_run

pytest.importorskip("ziaplot", reason="the extra 'report' is not installed")


def test_report_writes_the_page_and_says_where(sgsd, tmp_path):
    runs = [write_run(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    result = sgsd("report", *runs, "--output", tmp_path / "pages" / "report.html")
    assert result.code == 0
    assert result.out.startswith(str(tmp_path / "pages" / "report.html"))
    assert (tmp_path / "pages" / "report.html").stat().st_size > 20_000


def test_report_refuses_what_is_no_run_in_one_line(sgsd, tmp_path):
    result = sgsd("report", tmp_path / "nothing", "--output", tmp_path / "report.html")
    assert result.code == 2
    assert "not a run folder" in result.error


def test_report_without_its_packages_says_what_to_install(sgsd, tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("sgsd.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ziaplot", None)
    result = sgsd("report", tmp_path)
    assert result.code == 2
    assert "pip install 'sgsd[report]'" in result.error
