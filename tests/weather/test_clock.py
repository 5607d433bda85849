"""The clock of the wall jumps by days during a run: no result, timeout or order depends on it."""

from __future__ import annotations

import ast
import itertools
import time

from sgsd.trainers.checkpoint import complete_checkpoints

from ..conftest import ROOT
from .recorded import differences

DAY = 86_400


def test_a_clock_that_jumps_by_days_changes_no_result(sgsd, flags, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert sgsd("train", *flags, "--output_dir", whole, "--save_total_limit", "2").code == 0
    true = time.time
    jumps = itertools.cycle([0, 3 * DAY, -5 * DAY, 400 * DAY, -9000 * DAY])
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: true() + next(jumps))
        assert sgsd("train", *flags, "--output_dir", run, "--save_total_limit", "2").code == 0
    assert differences(run, whole) == []
    assert sorted(complete_checkpoints(run)) == sorted(complete_checkpoints(whole)) == [10, 12]


def test_only_what_is_about_the_time_of_day_asks_for_it():
    """Timeouts and durations are the monotonic clock's."""
    asks = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "datetime.now",
                "datetime.utcnow",
            ):
                asks.add(file.relative_to(ROOT / "src" / "sgsd").as_posix())
            if isinstance(node, ast.Attribute) and node.attr in ("st_mtime", "st_ctime", "getmtime"):
                asks.add(file.relative_to(ROOT / "src" / "sgsd").as_posix())
    assert asks == {"report/page.py"}  # which is dated
