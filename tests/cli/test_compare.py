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


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_marks_a_difference_that_is_none(sgsd, folders):
    result = sgsd("compare", *folders, "--markdown")
    assert result.code == 0
    lines = result.out.splitlines()
    assert cells(lines[0]) == ["avg@2", "sums_1 (60)"]
    assert cells(lines[2]) == ["Base", "33.3 [22.7, 45.9]"]
    assert cells(lines[6]) == ["difference to Base", "sums_1 (60)"]
    assert cells(lines[8]) == ["SGSD", "+33.3 [+20.5, +46.2]"]
    assert cells(lines[9]) == ["GRPO", "~+1.7 [−3.9, +7.3]"]
    assert "- One seed: SGSD; GRPO. Such an interval says nothing of other seeds." in lines


def test_a_bar_in_a_setting_makes_no_column(sgsd, folders, tmp_path):
    folders.append(write_run(tmp_path / "other", {"sums_1": solved(9, of=60)}, bank="a|b"))
    assert r"bank a\|b" in sgsd("compare", *folders, "--markdown").out


def test_latex_escapes_and_has_booktabs(sgsd, folders):
    result = sgsd("compare", *folders, "--latex")
    body = [line for line in result.out.splitlines() if line and not line.startswith("%")]
    assert body[:3] == [r"\begin{tabular}{lr}", r"\toprule", r"avg@2 & sums\_1 (60) \\"]
    assert r"Base & $33.3$ {\footnotesize $[22.7, 45.9]$} \\" in body
    assert r"GRPO & ${\sim}+1.7$ {\footnotesize $[-3.9, +7.3]$} \\" in body
    assert body.count(r"\bottomrule") == 2
    assert not any("−" in line for line in body)


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
    assert "no such folder" in sgsd("compare", tmp_path / "nothing").error
    assert sgsd("compare", *folders, "--checkpoint", 50).code == 2
    assert "did you mean SGSD?" in sgsd("compare", *folders, "--baseline", "SGDS").error
    assert "not allowed with" in sgsd("compare", *folders, "--json", "--latex").error
