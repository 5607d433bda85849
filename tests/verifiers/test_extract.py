"""Where the extractor finds the answer of a completion."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgsd.verifiers import Extraction, Found, extract_answer
from sgsd.verifiers.choice import affirmed
from sgsd.verifiers.extract import extract_choice, extract_lines


@pytest.mark.parametrize(
    ("completion", "text", "found"),
    [
        (r"So \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}", Found.BOX),
        (r"\boxed{\text{a {nested} box}}", r"\text{a {nested} box}", Found.BOX),
        (r"First \fbox{7}.", "7", Found.BOX),
        (r"\boxed{3} and again \boxed{3}", "3", Found.BOX),
        (r"\boxed{3} or \boxed{4}", "3, 4", Found.BOX),
        (r"\boxed{255}. Final Answer: The final answer is $10$. I hope it is correct.", "$10$", Found.PHRASE),
        (r"\boxed{255}. The answer is 10.", "255", Found.BOX),
        ("Answer: 1\nAnswer: 2", "2", Found.PHRASE),
        ("#### 12", "12", Found.PHRASE),
        ("The answer is 5 apples.", "5 apples", Found.PHRASE),
        ("<answer> 5 </answer>", "5", Found.PHRASE),
        ("x^2 + 1", "x^2 + 1", Found.WHOLE),
        ("Yes", "Yes", Found.WHOLE),
        ("There are 3.\nSo we get 28 + 28", "28 + 28", Found.LAST),
        ("He counts 54, 55, 56.", "54, 55, 56.", Found.LAST),
        ("So it is $x+1$.\nWell done", "x+1", Found.LAST),
    ],
)
def test_it_finds_the_answer_and_says_where(completion: str, text: str, found: Found):
    extraction = extract_answer(completion)
    assert (extraction.text or "").rstrip(".") == text.rstrip(".")
    assert extraction.found is found


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
    assert extract_lines("some words of a longer text that is the answer by itself", lines=1).found is Found.WHOLE


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
    assert time.process_time() - start < 0.2


HOSTILE = [
    piece * (100_000 // len(piece))
    for piece in (
        "{", "}", "(", r"\(", r"\[", "$", "=", "#", "\n", " ", "1 ", "1,", "-", "*", "<<", "```", "a", "9", r"\boxed{",
        r"\boxed{1}", r"\text{", r"\frac", "<answer>", "<think>", "</think>", "answer is ", "the answer ",
        "final answer", "$1$ and ", "(1", "A: ", "not ", "\x00", "答案", r"\pm", "1/", "<|im_end|>", "I hope",
        "\u2003", "\t", "( ", ") ", "to ", "or to ", "answer to ", "Answer: ", "####", "because ", ", ", "? ", "정답",
        '{"answer": ', '"answer": "', "```\n", "**", "respuesta ", "to=a", "[THINK]", "assistant", "|", ". A", "x = ",
        "$ ", r"\begin{align}", "1 or ",
    )
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_it_takes_no_time_over_hostile_text(text: str):
    start = time.process_time()
    for extract in (extract_answer, extract_choice, lambda t: extract_lines(t, lines=3)):
        assert isinstance(extract(text), Extraction)
    assert time.process_time() - start < 5


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300))
def test_it_never_raises(text: str):
    assert isinstance(extract_answer(text), Extraction)
    assert isinstance(extract_answer(rf"\boxed{{{text}}} Answer: {text}"), Extraction)


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30))
@example("AA0AA0AA0AA0AA0AA")  # letters beside digits are no words of a sentence
def test_what_is_boxed_is_found(text: str):
    assert extract_answer(rf"It is $\boxed{{{text}}}$.").text == text
