"""Overlap of training and test problems against brute force."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.cli import main
from sgsd.data.curation import DataReport
from sgsd.data.overlap import find_overlaps, words
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems


def problems(*texts: str, name: str = "data", answer: str = "1") -> list[Problem]:
    return [
        Problem(f"{name}-{place}", text, answer, source=f"{name}.jsonl#{place}") for place, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$.", "find x"),
        (r"$\dfrac{1}{2}\,x$", r"\frac{1}{2} x"),
        (r"$a \cdot b$ and \(a \times b\)", "a * b and a × b"),
        (r"\left( 1{,}000 \right)", "(1,000)"),
        ("1,000 ducks", "1000 ducks"),
        (r"x \leq 3", r"x \le 3"),
        (r"\text{two-digit}~number", "two digit number"),
        ("ﬁnd x²", "find x2"),
        ("x^{2}", "x^2"),
    ],
)
def test_spelling_makes_no_difference(one, other):
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 4", "3 - 4"), ("3 < 4", "3 = 4"), ("x = 12", "x = 1 2"), ("1.5", "15"), ("4 times as many", "4 * as many")],
)
def test_what_is_another_problem_stays_another(one, other):
    assert words(one) != words(other)


def test_chinese_characters_are_words():
    assert words("求x的值") == ("求", "x", "的", "值")


def brute(train: list[str], test: list[str], n: int) -> dict[tuple[int, int], int]:
    """(test, train) → words of the longest run in both, where that is n or more or all of both."""
    found: dict[tuple[int, int], int] = {}
    for i, a in enumerate(map(words, test)):
        for j, b in enumerate(map(words, train)):
            runs = [
                size
                for size in range(n, min(len(a), len(b)) + 1)
                for at in range(len(a) - size + 1)
                if any(a[at : at + size] == b[there : there + size] for there in range(len(b) - size + 1))
            ]
            if a == b:
                runs.append(len(a))
            if runs:
                found[i, j] = max(runs)
    return found


texts = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=5)


@given(train=texts, test=texts, n=st.integers(1, 4))
def test_pairs_and_lengths_are_those_of_brute_force(train, test, n):
    report = find_overlaps(problems(*train, name="train"), problems(*test, name="test"), n=n)
    found = {(int(pair.test.id[5:]), int(pair.train.id[6:])): pair for pair in report.pairs}
    assert {places: pair.length for places, pair in found.items()} == brute(train, test, n)
    assert len(found) == len(report.pairs)
    for (i, j), pair in found.items():
        assert pair.exact == (words(train[j]) == words(test[i]))
        assert f" {pair.shared} " in f" {test[i]} "
        assert f" {pair.shared} " in f" {train[j]} "
    assert report.overlapping == len({i for i, _ in found})


def test_a_common_ending_is_told_from_a_common_problem():
    ending = "can be written as m over n where m and n are relatively prime positive integers find m plus n"
    body = "a fair coin is tossed until it shows heads twice in a row and then it is put away for good by Ann who waits"
    train = problems(f"{body}. The chance {ending}.", name="train")
    test = problems(
        f"The area of a square inside of a circle inside of a square inside of a circle inside of a square and so on, "
        f"until the squares are too small to be drawn by hand, {ending}.",
        f"{body}: how often?",
        "Something else.",
        name="test",
    )
    report = find_overlaps(train, test)
    assert (report.overlapping, report.mostly, report.exact) == (2, 1, 0)
    assert report.pairs[0].test.id == "test-1"  # the larger share first
    assert report.pairs[1].shared == ending


def test_a_problem_of_few_words_must_be_equal_and_may_have_another_answer():
    train = problems("What is 3 + 4?", answer="8", name="train") + problems("What is 3 + 4?", answer="7", name="more")
    train += problems("What is 3 + 5 today?", name="other")
    report = find_overlaps(train, problems("what is 3+4", "What is 3 + 5", answer="7", name="test"))
    assert (report.exact, report.other_answer) == (1, 1)
    assert [pair.other_answer for pair in report.pairs] == [True, False]


def test_ten_thousand_problems_take_seconds():
    draw = random.Random(0)
    vocabulary = [f"w{chr(97 + a)}{chr(97 + b)}" for a in range(26) for b in range(26)]
    train = problems(*(" ".join(draw.choices(vocabulary, k=60)) for _ in range(10_000)), name="train")
    test = problems(*(problem.text for problem in train[:500]), name="test")
    start = time.perf_counter()
    assert find_overlaps(train, test).exact == 500
    assert time.perf_counter() - start < 20


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_reports_each_test_source(tmp_path, capsys):
    train = write(
        tmp_path / "train.jsonl",
        [
            {"id": "a", "problem": "What is 3 + 4?", "answer": "7"},
            {"id": "b", "problem": "What is 3 + 4?", "answer": "8"},
        ],
    )
    test = write(tmp_path / "test.jsonl", [{"id": "t", "problem": "what is 3+4", "answer": "7"}])
    other = write(tmp_path / "other.jsonl", [{"id": "o", "problem": "What is 5 + 6?", "answer": "11"}])
    assert main(["contamination", "--train", str(train), "--test", str(test), str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["test"]
    assert told[str(test)]["exact"] == told[str(test)]["other_answer"] == 1
    assert [(pair["train_id"], pair["other_answer"]) for pair in told[str(test)]["pairs"]] == [
        ("a", False),
        ("b", True),
    ]
    assert told[str(other)]["overlapping"] == 0
    assert main(["contamination", "--train", str(train), "--test", str(test), "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "1  100.0 %  have the same text as a training problem" in out
    assert "same text: test t, training a; 5 words, 100 % of the test problem" in out
    assert "1 more pairs" in out


def test_the_command_knows_the_benchmarks_of_eval_by_name(tmp_path, capsys, monkeypatch):
    asked = []

    def load(source, *, split, config_name, **_):
        asked.append((source, split, config_name))
        return problems("What is 3 + 4?"), DataReport(rows=1, kept=1)

    monkeypatch.setattr("sgsd.cli.contamination.load_problems", load)
    assert main(["contamination", "--train", "mine", "--test", "aime24", "gsm8k"]) == 0
    expected = [("HuggingFaceH4/aime_2024", "train", None), ("openai/gsm8k", "test", "main")]
    assert asked == [("mine", None, None), *expected]
    assert "aime24: 1 test problems against 1 training problems" in capsys.readouterr().out


def test_what_the_command_refuses(tmp_path, capsys):
    assert main(["contamination", "--train", str(tmp_path / "no.jsonl"), "--test", "x.jsonl"]) == 2
    assert "no.jsonl" in capsys.readouterr().err
    file = write(tmp_path / "some.jsonl", [{"problem": "1 + 1?", "answer": "2"}])
    assert main(["contamination", "--train", str(file), "--test", str(file), "--n", "0"]) == 2
    assert main(["contamination", "--train", str(file), "--test", str(file), "--show", "-1"]) == 2


def test_real_data_overlaps(shared_data):
    train, _ = load_problems(shared_data / "dapo_math_sample.jsonl", on_duplicate="keep", on_conflict="keep")
    test, _ = load_problems(shared_data / "math_sample.jsonl", on_duplicate="keep", on_conflict="keep")
    report = find_overlaps(train, test)
    assert report.exact == 12
    assert report.exact <= report.mostly <= report.overlapping < 60
