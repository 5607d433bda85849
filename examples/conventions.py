"""Tasks on the conventions of a code base: an AGENTS.md with thirty rules of an invented library, and lines to write.

    python examples/conventions.py --output runs/conventions                      # AGENTS.md and the tasks
    python examples/conventions.py --output runs/conventions --shown document     # the document above every task

No model knows the library. Without the document every answer is therefore wrong, and GRPO has no successes to learn
from. Training tasks, held-out tasks and the document's examples share no name, text or number. ``reward`` parses a line
with ``ast`` and never runs it. docs/evidence.md has the figures.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
from pathlib import Path
from string import Formatter
from typing import Any

from sgsd.runfolder import write_text
from sgsd.verifiers.reward import text_of

INSTRUCTION = "Follow the conventions of the code base. Answer with the line of code alone."
"""The value of ``--instruction``: text at the end of every prompt."""

RULES = {
    "Logging": {
        "logs the message {text}": "log.note({text})",
        "logs the error {text} with code {number}": "log.wail({number}, {text})",
    },
    "Settings": {
        "reads the setting {setting}": "cfg.pull({setting})",
        "reads the setting {setting} with default {number}": "cfg.pull({setting}, otherwise={number})",
        "removes the setting {setting}": "cfg.shed({setting})",
    },
    "Files": {
        "reads the text file {file}": "disk.sip({file})",
        "writes the text {text} to the file {file}": "disk.ink({file}, {text})",
        "deletes the file {file}": "disk.burn({file})",
    },
    "Time": {
        "waits {number} seconds": "clock.nap({number})",
        "starts the timer {key}": "clock.wind({key})",
    },
    "Web": {
        "fetches the page {url}": "net.lure({url})",
        "opens a socket to the host {url}": "net.moor({url})",
    },
    "Tables": {
        "adds the row {variable} to the table {table}": "rows.plant({table}, {variable})",
        "finds row number {number} of the table {table}": "rows.dig({table}, {number})",
        "empties the table {table}": "rows.drain({table})",
        "counts the rows of the table {table}": "rows.tally({table})",
    },
    "Values": {
        "rounds {variable} to {number} places": "num.shave({variable}, places={number})",
        "adds {number} percent to {variable}": "num.swell({variable}, percent={number})",
    },
    "Checks and tests": {
        "checks that {variable} and {variable2} are equal": "must.twin({variable}, {variable2})",
        "checks that {variable} is not None": "must.exist({variable})",
        "marks the test {key} as slow": "trial.snail({key})",
    },
    "Text": {
        "cuts the text {variable} to {number} characters": "txt.snip({variable}, most={number})",
        "encrypts {variable} with the key {key}": "seal.shut({variable}, key={key})",
    },
    "Chance": {
        "rolls a die with {number} sides": "luck.toss({number})",
    },
    "Work": {
        "runs the function {function} in the background": "crew.lend({function})",
        "caches {variable} under the key {key}": "stash.keep({key}, {variable})",
        "takes the key {key} from the cache": "stash.find({key})",
    },
    "Screen and sound": {
        "shows the text {text} on the screen": "pane.cast({text})",
        "hides the window {key}": "pane.veil({key})",
        "plays the sound {file}": "horn.blow({file})",
    },
}
"""The code for each task, by heading. ``{variable}`` and ``{variable2}`` are two values of one kind."""

_INTRODUCTION = (
    "Every line of Python in this code base follows these conventions. All modules named here are imported already."
)
_EXAMPLES = {
    "file": '"plan.doc"',
    "function": "mend_boat",
    "key": '"spring"',
    "number": "100",
    "number2": "200",
    "setting": '"door_width"',
    "table": '"books"',
    "text": '"the lamp is on"',
    "url": '"https://books.example/old"',
    "variable": "age",
    "variable2": "height",
}
"""Values in the document's examples."""
_THINGS = {
    "train": "disk printer upload backup tunnel sensor basket harbor pigeon magnet violin glacier",
    "held-out": "queue mirror index ledger worker ticket lantern walnut kettle orchard saddle meadow",
}
_FORMS = {
    "file": ['"{}.txt"', '"{}.csv"', '"{}.md"', '"{}.json"'],
    "function": ["check_{}", "clean_{}", "sort_{}", "paint_{}"],
    "key": ['"{}_load"', '"{}_sync"', '"{}_scan"', '"{}_build"'],
    "setting": ['"{}_limit"', '"{}_size"', '"{}_rate"', '"{}_depth"'],
    "table": ['"{}s"', '"all_{}s"', '"old_{}s"', '"new_{}s"'],
    "text": ['"the {} is full"', '"the {} is empty"', '"the {} is lost"', '"the {} is late"'],
    "url": ['"https://{}.example/news"', '"https://{}.example/users"', '"https://{}.example/list"'],
    "variable": ["{}_total", "{}_count", "{}_item", "{}_value"],
}
_MOST_TRIES = 1_000
_LONGEST_COMPLETION = 4_000
_LONGEST_LINE = 400


def document() -> str:
    """The conventions as one Markdown document with a line per rule."""
    blocks = ["# AGENTS.md", _INTRODUCTION]
    for heading, rules in RULES.items():
        blocks += [f"## {heading}", "\n".join(_stated(task, call) for task, call in rules.items())]
    return "\n\n".join(blocks) + "\n"


def tasks(count: int, seed: int, part: str) -> list[dict[str, str]]:
    """Distinct problems with the right lines; all rules are equally frequent.

    Args:
        count: number of tasks.
        seed: of the draw.
        part: ``train`` or ``held-out``. The parts share no name, text or number.

    Raises:
        ValueError: there are fewer than ``count`` tasks.
    """
    return [{"problem": problem, "answer": answer} for _, problem, answer in _drawn(count, seed, part)]


def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float | None]:
    """A TRL reward function: 1 for the call in the answer, else 0; ``None`` if the answer is not a call.

    Arguments must be given by position or by keyword as in the answer; the order of keywords is free, and the result
    may be assigned to a name. A completion is the line, alone or in backticks, or contains it in its only fenced block.
    """
    return [
        None if (wanted := _call(right)) is None else float(_call(_line(text_of(completion))) == wanted)
        for completion, right in zip(completions, answer, strict=True)
    ]


def _stated(task: str, call: str) -> str:
    """A rule as the document states it."""
    return f"- A line that {task.format(**_EXAMPLES)}: `{call.format(**_EXAMPLES)}`"


def _drawn(count: int, seed: int, part: str) -> list[tuple[str, str, str]]:
    """(rule as the document states it, problem, answer) of each task."""
    draw = random.Random(f"{part} {seed}")
    calls = {task: call for rules in RULES.values() for task, call in rules.items()}
    order = draw.sample(list(calls), len(calls))
    rows: dict[str, tuple[str, str, str]] = {}
    tries = 0
    while len(rows) < count:
        task = order[len(rows) % len(order)]
        values = _values(task, part, draw)
        problem = f"Write one line of Python that {task.format(**values)}."
        tries = tries + 1 if problem in rows else 0
        if tries == _MOST_TRIES:
            raise ValueError(f"no {count} different tasks in the part {part}: {len(rows)} were found")
        rows.setdefault(problem, (_stated(task, calls[task]), problem, calls[task].format(**values)))
    return list(rows.values())


def _values(task: str, part: str, draw: random.Random) -> dict[str, str]:
    """A value for each placeholder of a task. Things differ; numbers increase."""
    names = [name for _, name, _, _ in Formatter().parse(task) if name]
    things = draw.sample(_THINGS[part].split(), len(names))
    numbers = sorted(draw.sample(range(2 + list(_THINGS).index(part), 90, len(_THINGS)), len(names)))
    values: dict[str, str] = {}
    for name, thing, number in zip(names, things, numbers, strict=True):
        kind = name.rstrip("2")
        values[name] = str(number) if kind == "number" else draw.choice(_FORMS[kind]).format(thing)
    return values


def _line(completion: str) -> str:
    """The line of code in a completion; empty if there is none or more than one."""
    _, fence, rest = completion[:_LONGEST_COMPLETION].partition("```")
    code = completion.strip()
    if fence:
        block, _, after = rest.partition("```")
        language, newline, body = block.partition("\n")
        code = "" if "```" in after else body if newline else language
    elif code[:1] == code[-1:] == "`":
        code = code[1:-1]
    code = code.strip()
    return code if "\n" not in code and len(code) <= _LONGEST_LINE else ""


def _call(line: str) -> str | None:
    """The call in a line, in a form that is equal for equal calls; ``None`` if the line is not a call."""
    try:
        match ast.parse(line).body:
            case [ast.Expr(ast.Call() as call) | ast.Assign([ast.Name()], ast.Call() as call)]:
                call.keywords.sort(key=lambda keyword: keyword.arg or "")
                return ast.dump(call)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/conventions"))
    parser.add_argument("--train", type=int, default=288, help="tasks to train on")
    parser.add_argument("--held-out", type=int, default=48, help="tasks to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", choices=["document", "rule"], help="text above every problem (default: none)")
    options = parser.parse_args()
    write_text(options.output / "AGENTS.md", document())
    for part, count in (("train", options.train), ("held-out", options.held_out)):
        lines = []
        for rule, problem, answer in _drawn(count, options.seed, part):
            shown = {"document": document().strip(), "rule": rule, None: ""}[options.shown]
            row = {"problem": f"{shown}\n\n{problem}".strip(), "answer": answer}
            lines.append(json.dumps(row) + "\n")
        write_text(options.output / f"{part}.jsonl", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
