"""Nothing in ``sgsd.verifiers`` takes more than its share of time on a text that repeats itself.

``tests/fuzz/test_linear.py`` tries its patterns.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 280


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("part", ["extraction", "grading", "references"])
def test_time_grows_with_the_text(part: str):
    script = Path(__file__).with_name("repeats.py")
    try:
        done = subprocess.run(
            [sys.executable, str(script), part], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else (late.stdout or "")
        pytest.fail(f"over {SECONDS} s; at the end:\n" + "\n".join(printed.splitlines()[-30:]))
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = done.stdout.splitlines()
    assert lines[-1] == "done"
    bad = [line for line in lines if line.startswith(("SLOW", "UNDECIDED"))]
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:60])
