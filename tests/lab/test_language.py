"""The lab's language and what its models are shown."""

import pytest

from sgsd.lab.language import (
    MAX_COMPLETION,
    MISTAKE_TEXTS,
    RULE_NAMES,
    RULES,
    SKILL_TEXTS,
    SYMBOLS,
    Question,
    make_tokenizer,
    mistake,
    skill,
)
from sgsd.prompts import PromptRenderer
from sgsd.verifiers import get_verifier


def test_a_solution_works_from_the_left():
    question = Question("@", (3, 5, 2))
    assert question.text == "3 @ 5 @ 2"
    assert question.answer("triple") == 4
    assert question.solution("triple") == "triple 3 5 = 8 ; triple 8 2 = 4 ; Answer: 4"


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_every_rule_maps_digits_to_a_digit(rule):
    assert {RULES[rule](a, b) for a in range(10) for b in range(10)} <= set(range(10))


def test_no_two_rules_agree_everywhere():
    tables = {tuple(RULES[rule](a, b) for a in range(10) for b in range(10)) for rule in RULE_NAMES}
    assert len(tables) == len(RULE_NAMES) == 10


def test_every_prompt_is_made_of_known_tokens_and_of_one_length():
    renderer = PromptRenderer(make_tokenizer(), instruction="")
    lengths = set()
    for g in range(len(SKILL_TEXTS)):
        for e in range(len(MISTAKE_TEXTS)):
            ids = renderer.teacher_ids("3 @ 5 @ 2", skill(SYMBOLS[g], "sum", g), mistake(SYMBOLS[e], "min", e))
            assert renderer.tokenizer.unk_token_id not in ids
            lengths.add(len(ids))
    assert len(lengths) == 1
    assert renderer.tokenizer.unk_token_id not in renderer.student_ids("3 @ 5 @ 2")


def test_a_solution_fits_and_the_verifier_reads_its_answer():
    tokenizer = make_tokenizer()
    text = Question("#", (9, 9, 9)).solution("product")
    assert len(tokenizer(text)["input_ids"]) < MAX_COMPLETION
    with get_verifier("exact", workers=1) as verifier:
        assert verifier.verify(text, "9").outcome == "correct"
        assert verifier.verify(text, "1").outcome == "incorrect"
