"""``sgsd compare`` in its four forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..evaluation.recorded import solved, write_evaluation, write_run


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    base = write_evaluation(tmp_path / "base" / "sums_1", solved(20, of=60)).parent
    better = write_run(tmp_path / "sgsd", {"sums_1": solved(40, of=60)})
    alike = write_run(tmp_path / "grpo", {"sums_1": solved(21, of=60)}, method="grpo")
    return [base, better, alike]


def test_markdown_marks_a_difference_that_is_none(sgsd, folders):
    result = sgsd("compare", *folders, "--markdown")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "| avg@2 | sums_1 (60) |"
    assert lines[2].startswith("| Base | 33.3 [")
    assert lines[6] == "| difference to Base | sums_1 (60) |"
    assert lines[8].startswith("| SGSD | +33.3 [+")
    assert lines[9].startswith("| GRPO | ~+1.7 [−")
    assert "- One seed: SGSD; GRPO. Such an interval says nothing of other seeds." in lines


def test_latex_escapes_and_has_booktabs(sgsd, folders):
    result = sgsd("compare", *folders, "--latex")
    assert r"avg@2 & sums\_1 (60) \\" in result.out
    assert result.out.count(r"\midrule") == 4 - 1
    assert r"GRPO & $\sim$+1.7 {\footnotesize [$-$" in result.out
    body = [line for line in result.out.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lr}"
    assert not any("−" in line or "_1" in line.replace(r"\_1", "") for line in body)


def test_json_has_fractions(sgsd, folders):
    table = json.loads(sgsd("compare", *folders, "--json").out)
    assert table["rows"][1]["cells"]["sums_1"]["mean"] == pytest.approx(2 / 3)
    assert table["rows"][1]["differences"]["sums_1"]["low"] > 0


def test_the_terminal_shows_both_tables_and_the_notes(sgsd, folders):
    out = sgsd("compare", *folders, "--baseline", "GRPO").out
    assert "difference to GRPO" in out
    assert "33.3" in out
    assert "the final one of every run" in out


def test_what_is_refused_is_one_line(sgsd, folders, tmp_path):
    assert "neither a run nor an evaluation" in sgsd("compare", tmp_path / "nothing").error
    assert sgsd("compare", *folders, "--checkpoint", 50).code == 2
    assert "did you mean SGSD?" in sgsd("compare", *folders, "--baseline", "SGDS").error
    assert "not allowed with" in sgsd("compare", *folders, "--json", "--latex").error
