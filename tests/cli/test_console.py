"""A user's text is shown as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from rich.text import Text

from sgsd.cli import console

SOURCE = Path(console.__file__).parents[1]
TEXTS = ["\\\\[x^2 = 4\\\\]", "[/x]", "p[/red]", "[bold]b", "ev[a]b", ":smile: 12:30", "[link=http://x]y[/link]"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stream", ["out", "err"])
def test_brackets_are_text_in_lines_titles_heads_and_cells(capsys, text, stream):
    screen = console.standard_output() if stream == "out" else console.standard_error()
    listing = console.table(text, text)
    listing.add_row(text)
    screen.print(text)
    screen.print(listing)
    screen.print(Text(text))
    assert getattr(capsys.readouterr(), stream).count(text) == 5


@pytest.mark.parametrize("text", TEXTS)
def test_brackets_are_text_beside_a_bar(capsys, text):
    with console.progress_bar(console.standard_error()) as bar:
        bar.add_task(text, total=1)
    assert text in capsys.readouterr().err


ELSEWHERE = re.compile(
    r"(rich\.)?print\(|(rich\.console\.)?Console\((?!quiet=True)|TextColumn\(|getLogger\(|logging\.getLogger\(__|"
    r"(\w+\.)?(from_markup|showwarning|basicConfig)\(|sys\.(__)?std(out|err)(__)?\.(buffer\.)?write"
)
ALLOWED = {"display.py", "console.py", "worker.py"}  # the last one speaks to the process that started it


def offences(source: str) -> list[str]:
    calls = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if ELSEWHERE.match(call)]


def test_nothing_else_prints_logs_makes_a_console_or_reads_markup():
    files = [*SOURCE.rglob("*.py"), *(SOURCE.parents[1] / "examples").rglob("*.py")]
    scripts = {"house_rules.py", "evidence.py", "sgsd_loop.py"}  # no commands; what they print is their own
    found = {file.name: offences(file.read_text()) for file in files if file.name not in ALLOWED | scripts}
    assert len(found) > 100
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "print(x)",
        "Console()",
        "rich.print(x)",
        "Text.from_markup(x)",
        "sys.stderr.write(x)",
        "logging.getLogger(__name__)",
    ],
)
def test_the_check_finds_what_it_looks_for(source):
    assert offences(source)
