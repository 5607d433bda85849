"""Items that give problems away are found and taken out; clean ones are left alone."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank, seed_banks
from sgsd.bank.items import ancestors
from sgsd.bank.leaks import COMMON, SHORTEST, LeakKind, held_answer, quarantine, scan
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.memories import memory_of
from sgsd.verifiers import Outcome, Verdict

CASES = [json.loads(line) for line in Path(__file__).with_name("leak_cases.jsonl").read_text("utf-8").splitlines()]
PLANTED, CLEAN, KNOWN_MISSES = (
    [(case["text"], case["answer"]) for case in CASES if case["kind"] == kind]
    for kind in ("leak", "clean", "known miss")
)

PROBLEM = Problem(
    "apples",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "72",
)
BENCHMARK = Problem(
    "lake", "Every morning Aya goes for a nine kilometre walk and stops at a coffee shop afterwards.", "204"
)


def a_memory(problem=PROBLEM):
    memory = memory_of(problem, "48 + 24 = 72", Verdict(Outcome.CORRECT), truncated=False, source="test")
    assert memory is not None
    return memory


def a_bank(*texts, parents=()):
    return SkillBank(tuple(Skill.new(text, origin=Origin.COLD_START, parents=parents) for text in texts))


def holds_answer(text, answer):
    return held_answer(text, answer) is not None


@pytest.mark.parametrize(("text", "answer"), PLANTED)
def test_an_answer_is_found_however_it_is_written(text, answer):
    assert holds_answer(text, answer)


@pytest.mark.parametrize(("text", "answer"), [case for case in CLEAN if all(case)])
def test_what_only_looks_like_an_answer_is_not_one(text, answer):
    assert not holds_answer(text, answer)


@pytest.mark.parametrize(("text", "answer"), KNOWN_MISSES)
def test_a_known_miss_is_still_one(text, answer):
    assert not holds_answer(text, answer)


def test_nothing_gives_nothing_away():
    assert not holds_answer("", "72")
    assert not holds_answer("Anything at all.", "")


def in_words(number):
    """English number words, by a definition of its own."""
    small = [
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
        *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    ]
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number < 20:
        return small[number]
    if number < 100:
        return tens[number // 10] + (f"-{small[number % 10]}" if number % 10 else "")
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joint = " and " if 0 < rest < 100 else " "
            return f"{in_words(number // size)} {name}" + (f"{joint}{in_words(rest)}" if rest else "")
    raise AssertionError


@given(st.integers(13, 5 * 10**6), st.integers(13, 5 * 10**6), st.sampled_from(["-", " "]))
def test_a_number_in_words_is_that_number_and_no_other(number, other, hyphen):
    text = f"Then {in_words(number).replace('-', hyphen)} marbles lie there."
    # What is common by itself does not count, such as 60.
    if number not in COMMON:
        assert holds_answer(text, str(number))
        assert holds_answer(text, f"{number:,}.0 marbles")
    if other != number:
        assert not holds_answer(text, str(other))


@given(st.integers(13, 400), st.integers(2, 400), st.integers(13, 400))
def test_fractions_are_compared_by_value(top, bottom, whole):
    value = Fraction(top, bottom)
    if value in COMMON:
        return
    twice = f"\\frac{{{2 * top}}}{{{2 * bottom}}}"
    for text in (f"Then {top}/{bottom} of it.", f"Then {twice} of it.", f"Then {top} over {bottom} of it."):
        assert holds_answer(text, f"\\dfrac{{{top}}}{{{bottom}}}")
        assert not holds_answer(text, f"{top + 1}/{bottom}")
    if value < 1:
        assert holds_answer(f"Then {whole} {top}/{bottom} of it.", f"{whole * bottom + top}/{bottom}")
        # The parts of a mixed number are none by themselves.
        assert not holds_answer(f"Then {whole} {top}/{bottom} of it.", str(whole))
        assert not holds_answer(f"Then {whole} {top}/{bottom} of it.", f"{top}/{bottom}")


def test_what_looks_like_a_number_and_is_none_is_passed_over():
    for text in (
        "Take \\frac{a}{b} or 3/0 or \\frac.",
        "2^999 is large.",
        "Use 3/x.",
        "a hundred thirds",
        "5 * 10 ^ x",
    ):
        assert not holds_answer(text, "777")


def test_planted_leaks_are_all_taken_out_with_their_reasons():
    memory = a_memory()
    answer = Skill.new("Add both months: the total is 72.", origin=Origin.COLD_START, parents=[memory.id])
    problem = Skill.new(
        "When she sold clips to 48 of her friends in April and then she sold half as many, halve first.",
        origin=Origin.COLD_START,
    )
    benchmark = Mistake.new(
        "For: every morning Aya goes for a nine kilometre walk and stops at a coffee shop, forgetting the stop.",
        origin=Origin.COLD_START,
    )
    clean = Skill.new("Read which month each number belongs to.", origin=Origin.COLD_START, parents=[memory.id])
    bank = SkillBank((answer, problem, clean), (benchmark,))
    report = scan(bank, problems=[PROBLEM], memories=[memory], benchmarks={"walks": [BENCHMARK]})
    assert {leak.item: leak.kind for leak in report.leaks} == {
        answer.id: LeakKind.ANSWER,
        problem.id: LeakKind.TRAINING,
        benchmark.id: LeakKind.BENCHMARK,
    }
    kept, taken = quarantine(bank, report)
    assert [item.id for item in kept.items] == [clean.id]
    assert [item.id for item in taken] == [answer.id, problem.id, benchmark.id]
    reasons = [" ".join(report.reasons[item.id]) for item in taken]
    assert "holds the answer '72' of problem apples" in reasons[0]
    assert "training problem apples" in reasons[1]
    assert "benchmark walks, problem lake" in reasons[2]


def test_twelve_words_in_a_row_are_not_thirteen():
    words = [f"word{chr(97 + n)}" for n in range(20)]
    problem = Problem("p", " ".join(words), "1")
    for run, leaks in ((12, 0), (13, 1)):
        report = scan(a_bank(" ".join([*words[2 : 2 + run], "and", "more"])), problems=[problem])
        assert len(report.leaks) == leaks
    with pytest.raises(ConfigError, match="out of range"):
        scan(a_bank("text"), n=SHORTEST - 1)


def test_an_answer_counts_only_for_items_that_came_from_its_problem():
    memory = a_memory()
    stranger = a_bank("The total is 72.")
    assert not scan(stranger, memories=[memory]).leaks
    grandchild = a_bank("The total is 72.", parents=["merged-1"])
    report = scan(grandchild, memories=[memory], lineage={"merged-1": ["merged-2"], "merged-2": [memory.id]})
    assert [leak.kind for leak in report.leaks] == [LeakKind.ANSWER]


def test_items_whose_memories_are_not_at_hand_are_named():
    bank = a_bank("Add first.", parents=["memory-gone"])
    assert scan(bank, memories=[a_memory()]).untraced == (bank.skills[0].id,)


def test_the_shipped_banks_hold_no_problem_of_public_data(shared_data):
    names = ("gsm8k_train", "math_sample", "asdiv", "aime_1983_2023_sample", "dapo_math_sample")
    problems = [
        Problem(f"{name}-{index}", row["problem"], str(row["answer"]))
        for name in names
        for index, line in enumerate((shared_data / f"{name}.jsonl").read_text().strip().split("\n"))
        for row in [json.loads(line)]
    ]
    assert len(problems) > 10_000
    items = [item for name in seed_banks() for item in SkillBank.load(f"seed:{name}").items]
    assert not scan(SkillBank().with_items(items), problems=problems).leaks


WORDS = st.lists(st.sampled_from(["a", "b", "7"]), min_size=1, max_size=9)


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=5), st.integers(SHORTEST, 7))
@settings(max_examples=200, deadline=None)
@example([list("aab7abb"), list("b7a"), list("ab7a")], [list("ab7ab"), list("b7abb"), list("abbab"), list("a7")], 7)
def test_runs_of_words_are_those_that_a_plain_search_finds(texts, problems, n):
    items = {Skill.new(" ".join(text), origin=Origin.COLD_START) for text in texts if text}
    bank = SkillBank().with_items(sorted(items, key=lambda item: item.id))
    asked = [Problem(f"p{number}", " ".join(text), "1") for number, text in enumerate(problems)]
    found = {(leak.item, leak.problem): leak.held for leak in scan(bank, problems=asked, n=n).leaks}

    def longest(problem, item):
        def held(run):
            return f" {' '.join(run)} " in f" {' '.join(item)} "

        runs = [problem[i:j] for i in range(len(problem)) for j in range(i + 1, len(problem) + 1)]
        return max((len(run) for run in runs if held(run)), default=0)

    # The words told are the first run of n or more, which need not be the longest.
    expected, before = {}, []
    for number, problem in enumerate(problems):
        least = min(n, len(problem))
        if problem in before or least < SHORTEST or (least < n and "7" not in problem):
            continue
        before.append(problem)
        for item in bank.items:
            length = longest(problem, item.text.split())
            if length >= least:
                expected[item.id, f"p{number}"] = least, length
    assert found.keys() == expected.keys()
    for (id, number), held in found.items():
        least, length = expected[id, number]
        assert least <= len(held.split()) <= length
        assert f" {held} " in f" {bank.get(id).text} "
        assert f" {held} " in f" {asked[int(number[1:])].text} "


def test_lineage_is_told_to_the_ground_and_circles_do_no_harm():
    parents = {"a": ["b", "c"], "b": ["m1"], "c": ["m2", "b"], "m2": ["a"]}
    assert ancestors("a", parents) == ("b", "m1", "c", "m2", "a")
