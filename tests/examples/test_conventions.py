"""The conventions of an invented library: what is asked, what is kept apart, and which lines are right."""

from __future__ import annotations

import ast
import inspect
import re
import sys

import pytest

from sgsd.bank.documents import read_document
from sgsd.examples import conventions
from sgsd.verifiers import Outcome, get_verifier

NOTE = 'log.note("the disk is full")'
PULL = 'cfg.pull("retry", otherwise=3)'
SEAL = 'seal.shut(total, key="spring", most=-2)'

RIGHT = [
    (NOTE, NOTE),
    (f"  {NOTE}\n", NOTE),
    ("log.note('the disk is full')", NOTE),
    ('log.note( "the disk is full" , )', NOTE),
    ('log.note("the disk " "is full")', NOTE),
    ('log.note(("the disk is full"))', NOTE),
    (f"({NOTE})", NOTE),
    (f"{NOTE};", NOTE),
    (f"{NOTE}  # said once", NOTE),
    (f"done = {NOTE}", NOTE),
    (f"`{NOTE}`", NOTE),
    (f"```python\n{NOTE}\n```", NOTE),
    (f"```\n{NOTE}\n```", NOTE),
    (f"```py\n\n  {NOTE}\n\n```", NOTE),
    (f"```{NOTE}```", NOTE),
    (f"```python\r\n{NOTE}\r\n```", NOTE),
    (f"```python\n{NOTE}", NOTE),
    (f"Here it is:\n\n```python\n{NOTE}\n```\n\nIt logs the message.", NOTE),
    (PULL, PULL),
    ("cfg.pull('retry', otherwise = 0x3)", PULL),
    ("retry = cfg.pull('retry', otherwise=3)", PULL),
    (SEAL, SEAL),
    ('seal.shut(total, most=-2, key="spring")', SEAL),
    ('sealed = seal.shut(total, most=- 2, key="spring")', SEAL),
    ('rows.dig("books", 7)', "rows.dig('books', 7)"),
]

WRONG = [
    ("", NOTE),
    ("`", NOTE),
    ("```", NOTE),
    ("``````", NOTE),
    ("log.note", NOTE),
    ("log.note()", NOTE),
    ('note("the disk is full")', NOTE),
    ('logs.note("the disk is full")', NOTE),
    ('log.note("the disk is full.")', NOTE),
    ("log.note(the disk is full)", NOTE),
    ('log.note(f"the disk is full")', NOTE),
    ('log.note(b"the disk is full")', NOTE),
    ('log.note(message="the disk is full")', NOTE),
    ('log.note("the disk is full", 1)', NOTE),
    ('log.note(*["the disk is full"])', NOTE),
    (f"print({NOTE})", NOTE),
    (f"await {NOTE}", NOTE),
    (f"x.y = {NOTE}", NOTE),
    (f"x = y = {NOTE}", NOTE),
    (f"x += {NOTE}", NOTE),
    (f"{NOTE} or 1", NOTE),
    (f"[{NOTE}]", NOTE),
    (f"if 1: {NOTE}", NOTE),
    (f"lambda: {NOTE}", NOTE),
    (f"{NOTE}; {NOTE}", NOTE),
    (f"{NOTE}\n{NOTE}", NOTE),
    (f"{NOTE}\nlog.fret(1)", NOTE),
    (f"# {NOTE}", NOTE),
    (f'"""{NOTE}"""', NOTE),
    (f"The line is {NOTE}", NOTE),
    (f"```python\nprint(1)\n```\n```python\n{NOTE}\n```", NOTE),
    (f"```python\n{NOTE}\n```\n```python\n{NOTE}\n```", NOTE),
    (f"```python\nimport log\n{NOTE}\n```", NOTE),
    ('cfg.pull("retry", 3)', PULL),
    ('cfg.pull("retry", otherwise=True)', PULL),
    ('cfg.pull("retry", otherwise=3.0)', PULL),
    ('cfg.pull("retry", otherwise="3")', PULL),
    ('cfg.pull("retry", otherwise=3, **{})', PULL),
    ('cfg.pull("retry", otherwise=3, otherwise=3)', PULL),
    ('rows.dig(7, "books")', 'rows.dig("books", 7)'),
    ('log.note("\ud800")', NOTE),
    (f"{NOTE}\0", NOTE),
    ("(" * 390, NOTE),
    ("-" * 390 + "1", NOTE),
    ("f(" * 190 + ")" * 190, NOTE),
    ("x" + ".x" * 190 + "()", NOTE),
    ("(" * 100_000, NOTE),
    ("-" * 1_000_000, NOTE),
    ("9" * 100_000, NOTE),
    ("```" * 100_000, NOTE),
    ("`" + "a" * 1_000_000 + "`", NOTE),
    (NOTE + " " * 100 + "#" * 400, NOTE),
    ('__import__("os").abort()', NOTE),
    ("1 / 0", NOTE),
]


@pytest.mark.parametrize(("expected", "cases"), [(1.0, RIGHT), (0.0, WRONG)], ids=["right", "wrong"])
def test_a_line_is_right_if_its_call_is_the_answers(expected, cases):
    given, answers = zip(*cases, strict=True)
    rewards = conventions.reward(list(given), list(answers))
    assert [case for case, reward in zip(cases, rewards, strict=True) if reward != expected] == []
    messages = [[{"role": "assistant", "content": text}] for text in given]
    assert conventions.reward(messages, list(answers), prompts=[""] * len(given)) == rewards


def test_an_answer_that_is_no_call_decides_nothing():
    assert conventions.reward([NOTE] * 3, ["", "log.note", "x ="]) == [None] * 3


def test_deep_lines_are_judged_deep_in_the_stack():
    """A line's parse needs frames of its own; where there are none left it is wrong, and no error."""

    def at_depth(left: int) -> list[float | None]:
        return at_depth(left - 1) if left else conventions.reward(["-" * 390 + "1"], [NOTE])

    used = len(inspect.stack(0))
    for left in (300, 100, 50):
        assert at_depth(sys.getrecursionlimit() - used - left) == [0.0]


def test_it_is_a_verifier_by_its_name():
    with get_verifier("sgsd.examples.conventions:reward") as verifier:
        verdicts = verifier.verify_many([f"```python\n{NOTE}\n```", "print(1)"], [NOTE, NOTE])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.INCORRECT]


def words_of(rows):
    """Names and literals of the answers, but for what the rules fix, and each constant's own words."""
    found = set()
    for row in rows:
        call = ast.parse(row["answer"]).body[0].value
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            text = argument.id if isinstance(argument, ast.Name) else argument.value
            assert str(text) in row["problem"]
            found.add(text)
    return found


def test_training_held_out_and_document_share_no_name_and_no_literal():
    parts = {part: words_of(conventions.tasks(600, 0, part)) for part in ("train", "held-out")}
    parts["document"] = words_of(
        [{"problem": line, "answer": line.split("`")[1]} for line in conventions.document().splitlines() if "`" in line]
    )
    assert all(len(words) >= 10 for words in parts.values())
    assert not parts["train"] & parts["held-out"]
    assert not parts["document"] & (parts["train"] | parts["held-out"])


@pytest.mark.parametrize("part", ["train", "held-out"])
def test_tasks_are_the_same_each_time_all_different_and_as_many_of_every_rule(part):
    rows = conventions.tasks(300, 1, part)
    assert rows == conventions.tasks(300, 1, part) != conventions.tasks(300, 2, part)
    assert len({row["problem"] for row in rows}) == 300
    assert conventions.reward([row["answer"] for row in rows], [row["answer"] for row in rows]) == [1.0] * 300
    shapes = [re.sub(r'(?<=[( ])(".*?"|\d+|\w+)(?=[,)])', "_", row["answer"]) for row in rows]
    shapes = [re.sub(r'=("\w+"|\d+)', "=_", shape) for shape in shapes]
    assert {shape: shapes.count(shape) for shape in shapes} == dict.fromkeys(shapes, 10)
    with pytest.raises(ValueError, match="no 100000 different tasks"):
        conventions.tasks(100_000, 0, part)


def test_the_document_has_a_rule_a_line_and_its_import_an_item_a_rule(tmp_path):
    lines = [line for line in conventions.document().splitlines() if line.startswith("- ")]
    assert len(lines) == len(set(lines)) == sum(map(len, conventions.RULES.values())) == 30
    (tmp_path / "AGENTS.md").write_text(conventions.document())
    bank = read_document(tmp_path / "AGENTS.md")
    assert [f"- {skill.text}" for skill in bank.skills[1:]] == lines  # the first is what stands above them
    assert not bank.mistakes
