"""A user's text is shown as it is."""

from __future__ import annotations

import ast
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


def test_nothing_else_makes_a_console_or_prints_markup():
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name == "console.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                made = ast.unparse(node)
                assert (
                    not made.startswith(("Console(", "TextColumn(", "rich.print(")) or made == "Console(quiet=True)"
                ), file
