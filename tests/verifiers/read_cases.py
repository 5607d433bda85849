"""The lists of cases under ``cases/``: one row a case, or in ``forms.jsonl`` a reference, with a verdict that
is known.

Long texts that repeat themselves are written as pieces: a text, or a text and how often it comes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("cases")


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        verifier: that judges it.
        reference: what it is judged by. For reasoning_gym the entry in JSON; in the file, a name in ``entries.jsonl``.
        completion: what is judged. ``@CANARY@`` in it stands for a path that nothing may write.
        expected: the outcome.
        kind: what it tries.
        why: what is wrong with it, where it is wrong.
    """

    verifier: str
    reference: str
    completion: str
    expected: str
    kind: str = ""
    why: str = ""


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file. A text may hold what ``splitlines`` takes for an end of line."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


def read_cases(name: str, verifier: str | None = None) -> list[Case]:
    """The cases of a file, of one verifier or of all."""
    entries = {row["name"]: json.dumps(row["entry"]) for row in rows("entries")}
    cases: list[Case] = []
    for row in rows(name):
        if verifier not in (None, row["verifier"]):
            continue
        reference, completion = _written_out(row["reference"]), _written_out(row["completion"])
        if row["verifier"] == "reasoning_gym":
            reference = entries.get(reference, reference)
        cases.append(Case(**{**row, "reference": reference, "completion": completion}))
    return cases


def read_forms() -> list[Case]:
    """The cases of ``forms.jsonl``: many completions for a reference in a row."""
    return [
        Case(row["verifier"], row["reference"], completion, row["expected"])
        for row in rows("forms")
        for completion in row["completions"]
    ]


def _written_out(text: str | list[Any]) -> str:
    if isinstance(text, str):
        return text
    return "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in text)
