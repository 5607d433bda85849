"""Where the extractor finds the answer of a completion."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgsd.verifiers import Extraction, extract_answer
from sgsd.verifiers.choice import affirmed
from sgsd.verifiers.extract import extract_choice, extract_lines


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (r"So \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"\boxed{\text{a {nested} box}}", r"\text{a {nested} box}"),
        (r"First \fbox{7}.", "7"),
        (r"\boxed{3} and again \boxed{3}", "3"),
        (r"\boxed{3} or \boxed{4}", "3, 4"),
        (r"\boxed{255}. Final Answer: The final answer is $10$. I hope it is correct.", "$10$"),
        (r"\boxed{255}. The answer is 10.", "255, 10"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("#### 12", "12"),
        ("The answer is 5 apples.", "5 apples"),
        ("<answer> 5 </answer>", "5"),
        ("x^2 + 1", "x^2 + 1"),
        ("Yes", "Yes"),
        ("There are 3.\nSo we get 28 + 28", "28 + 28"),
        ("He counts 54, 55, 56.", "54, 55, 56."),
        ("So it is $x+1$.\nWell done", "x+1"),
    ],
)
def test_it_finds_the_answer(completion: str, text: str):
    assert (extract_answer(completion).text or "").rstrip(".") == text.rstrip(".")


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no answer"),
        (" \n ", "no answer"),
        ("<think>5", "unclosed think tag"),
        ("<think>a</think>b<think>5", "unclosed think tag"),
        ("<think>5</think>", "no answer"),
        (r"\boxed{5", "unclosed box"),
        (r"\boxed{}", "empty box"),
        (r"\boxed{4} \boxed{}", "empty box"),
        ("The answer is not 5", "denied answer"),
        (r"\boxed{5} is wrong", "denied answer"),
        ("```python\nprint(5)\n```", "no answer"),
    ],
)
def test_it_says_why_there_is_no_answer(completion: str, reason: str):
    extraction = extract_answer(completion)
    assert (extraction.text, extraction.reason) == (None, reason)


def test_only_the_text_after_the_last_think_tag_counts():
    assert extract_answer(r"<think>\boxed{1}</think>\boxed{2}</think>The answer is 3").text == "3"


def test_a_choice_may_stand_in_the_last_line():
    assert extract_choice("We think.\nIt is (B).").text == "It is (B)."
    assert extract_choice(r"\boxed{C} then (B)").text == "C"


def test_texts_of_several_lines_are_kept_whole():
    grid = "1 2\n3 4"
    assert extract_lines(f"Here you are.\nAnswer:\n{grid}\n", lines=2).text == grid
    assert extract_lines(f"Here you are.\n```\n{grid}\n```", lines=2).text == grid
    assert extract_lines(f"\\boxed{{{grid}}}", lines=2).text == grid
    assert extract_lines(f"<answer>{grid}</answer>", lines=2).text == grid
    assert extract_lines("olleh", lines=1).text == "olleh"
    words = "some words of a longer text that is the answer by itself"
    assert extract_lines(words, lines=1).text == words


def test_a_statement_affirms_what_it_neither_excludes_nor_asks_nor_gives_as_a_reason():
    assert affirmed("not (A), rather (C)") == ["C"]
    assert affirmed("D because A and B are too small") == ["D"]
    assert affirmed("not A because it is small, therefore B") == ["B"]
    assert affirmed("C, or D") == ["C", "D"]
    assert affirmed("A? D. Wait, that is wrong.") == []


@pytest.mark.parametrize(
    "text",
    [
        "so 5 " + "( " * 22 + "7",
        "so 5 " + "- " * 22 + "7",
        "so 5 " + "or to " * 22 + "7",
        "so $1$" + " " * 400 + "q $2$",
        "The answer to" + " " * 400 + "z",
        "\\boxed{1" + "\u2003" * 1_000 + "q}",
        "final answer" + " " * 1_500 + "z",
        "\\boxed{{{{1}}}}" * 200,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_short_texts_that_took_for_ever_take_no_time(text: str):
    start = time.process_time()
    extract_answer(text)
    extract_choice(text)
    assert time.process_time() - start < 1  # exponential ones took minutes


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300))
def test_it_never_raises(text: str):
    assert isinstance(extract_answer(text), Extraction)
    assert isinstance(extract_answer(rf"\boxed{{{text}}} Answer: {text}"), Extraction)


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30))
@example("AA0AA0AA0AA0AA0AA")  # letters beside digits are no words of a sentence
def test_what_is_boxed_is_found(text: str):
    assert extract_answer(rf"It is $\boxed{{{text}}}$.").text == text
