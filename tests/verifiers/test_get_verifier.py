"""Names, options, and the verifiers for texts, choices, reasoning-gym and reward functions."""

from __future__ import annotations

import json

import pytest

from sgsd.errors import ConfigError
from sgsd.verifiers import Outcome, get_verifier
from sgsd.verifiers import choice as choice_module
from sgsd.verifiers import exact as exact_module


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match="did you mean math"):
        get_verifier("maths")
    with pytest.raises(ConfigError, match="reasoning_gym"):
        get_verifier("reasoning-gym")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("math", {"timout": 5}),
        ("math", {"ignore_case": True}),
        ("math", {"timeout": 0}),
        ("math", {"timeout": "5"}),
        ("math", {"workers": 0}),
        ("math", {"workers": 1.5}),
        ("math", {"memory_gb": -1}),
        ("exact", {"threshold": 0.5}),
        ("exact", {"ignore_case": "yes"}),
        ("a.b:c", {"threshold": "high"}),
    ],
)
def test_unknown_and_senseless_options_are_refused(name: str, options: dict[str, object]):
    with pytest.raises(ConfigError):
        get_verifier(name, **options)


def test_a_misspelt_option_names_the_right_one():
    with pytest.raises(ConfigError, match="did you mean timeout"):
        get_verifier("math", timout=5)


def test_the_sign_of_an_outcome_is_the_objectives_r():
    assert [Outcome("correct").sign, Outcome("incorrect").sign, Outcome("undecided").sign] == [1, -1, 0]


def test_exact_minds_the_case_when_asked():
    grade = exact_module.make_grader(ignore_case=False)
    assert grade("paris", "Paris").outcome is Outcome.INCORRECT
    assert grade("", "Paris").reason == "no answer"
    assert grade("Paris", " ").outcome is Outcome.UNDECIDED


def test_choice_cannot_read_a_reference_that_is_no_letter():
    assert choice_module.make_grader()("B", "42").outcome is Outcome.UNDECIDED
    with get_verifier("choice") as verifier:
        assert verifier.readable("(C)")
        assert not verifier.readable("42")
        assert not verifier.readable("(A) or (B)")


def entry(name: str, answer: object, **metadata: object) -> str:
    return json.dumps({"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}})


def test_reasoning_gym_wants_the_full_score_of_the_extracted_answer():
    pytest.importorskip("reasoning_gym")
    with get_verifier("reasoning_gym", workers=1, timeout=30) as verifier:
        cases = [
            ("The answer is -4.", entry("chain_sum", "-4"), 1),
            (r"\boxed{-4}", entry("chain_sum", "-4"), 1),
            ("4 - 1 - 7 = -4 or 5", entry("chain_sum", "-4"), -1),
            ("The answer is -4 or -5", entry("chain_sum", "-4"), -1),
            ("-44", entry("chain_sum", "-4"), -1),
            ("five", entry("prime_factorization", "5", number=5, factors=[5]), -1),
            ("Answer:\n1 6\n4 7", entry("rotate_matrix", "1 6\n4 7", solution=[[1, 6], [4, 7]]), 1),
            ("Answer:\n1 6\n4 8", entry("rotate_matrix", "1 6\n4 7", solution=[[1, 6], [4, 7]]), -1),
            ("", entry("chain_sum", "-4"), -1),
            ("5", "not JSON", 0),
            ("5", "[1]", 0),
            ("5", entry("no_such_data_set", "5"), 0),
        ]
        verdicts = verifier.verify_many([case[0] for case in cases], [case[1] for case in cases])
        assert [verdict.outcome.sign for verdict in verdicts] == [case[2] for case in cases]
        assert verifier.readable(entry("chain_sum", "-4"))
        assert not verifier.readable("5")


def test_trls_own_reward_function_is_a_verifier():
    with get_verifier("trl.rewards.accuracy_reward", workers=1, timeout=20) as verifier:
        verdicts = verifier.verify_many([r"\boxed{5}", r"\boxed{6}", r"\boxed{5}"], ["$5$", "$5$", ""])
    assert [verdict.outcome.sign for verdict in verdicts] == [1, -1, 0]
