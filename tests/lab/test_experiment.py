"""Ground truth of an experiment: the bank's worth, what is retrieved, how verdicts are flipped."""

from collections import Counter

import pytest

from sgsd.errors import ConfigError
from sgsd.lab.experiment import TRUE_RULES, BankShares, NoisyVerifier, TopicEmbedder, Worth, make_bank, questions
from sgsd.lab.language import RULE_NAMES, SYMBOLS
from sgsd.retrieval import EmbeddingRetriever
from sgsd.verifiers import Outcome, Verdict


def test_every_symbol_has_another_true_rule():
    assert set(TRUE_RULES) == set(SYMBOLS)
    assert len(set(TRUE_RULES.values())) == len(SYMBOLS)


@pytest.mark.parametrize("shares", [BankShares(2, 2, 0), BankShares(1, 3, 2), BankShares(0, 0, 4), BankShares(8, 8, 8)])
def test_a_problem_retrieves_pairs_of_one_worth_in_the_shares_asked_for(shares):
    made = make_bank(shares, seed=3)
    retriever = EmbeddingRetriever(TopicEmbedder(made.topics))
    for symbol in SYMBOLS:
        found = retriever.retrieve([f"1 {symbol} 2 {symbol} 3"], made.bank, shares.total)[0].pairs
        kinds = [made.worth[pair.skill.id] for pair in found]
        assert kinds == [made.worth[pair.mistake.id] for pair in found]
        assert Counter(kinds) == Counter(
            {
                worth: count
                for worth, count in zip(Worth, (shares.helpful, shares.misleading, shares.irrelevant), strict=True)
                if count
            }
        )
        for pair, kind in zip(found, kinds, strict=True):
            stated = next(rule for rule in RULE_NAMES if rule in pair.skill.text.split())
            warned = next(rule for rule in RULE_NAMES if rule in pair.mistake.text.split())
            about = symbol in pair.skill.text.split()
            assert about == (kind is not Worth.IRRELEVANT)
            if kind is Worth.HELPFUL:
                assert stated == TRUE_RULES[symbol] != warned
            if kind is Worth.MISLEADING:
                assert warned == TRUE_RULES[symbol] != stated


def test_the_order_of_helpful_and_misleading_pairs_is_not_fixed():
    made = make_bank(BankShares(1, 1, 0), seed=0)
    retriever = EmbeddingRetriever(TopicEmbedder(made.topics))
    first = [retriever.retrieve([f"1 {s} 2 {s} 3"], made.bank, 1)[0].pairs[0].skill.id for s in SYMBOLS]
    assert {made.worth[id] for id in first} == {Worth.HELPFUL, Worth.MISLEADING}


def test_a_bank_depends_on_its_seed_alone():
    assert make_bank(BankShares(), seed=1).bank.digest == make_bank(BankShares(), seed=1).bank.digest
    assert make_bank(BankShares(), seed=1).bank.digest != make_bank(BankShares(), seed=2).bank.digest


def test_questions_are_distinct_balanced_and_apart_from_those_held_out():
    held_out = questions(90, seed=1, prefix="test")
    asked = questions(900, seed=2, prefix="train", without=frozenset(problem.text for problem in held_out))
    assert len({problem.text for problem in asked}) == 900
    assert not {problem.text for problem in asked} & {problem.text for problem in held_out}
    assert set(Counter(problem.text.split()[1] for problem in asked).values()) == {100}
    with pytest.raises(ConfigError, match="more questions than there are"):
        questions(9001, seed=0, prefix="x")


class _AlwaysCorrect:
    def verify(self, completion, answer):
        return Verdict(Outcome.CORRECT)

    def verify_many(self, completions, answers):
        return [Verdict(Outcome.UNDECIDED if answer == "?" else Outcome.CORRECT) for answer in answers]

    def readable(self, answer):
        return True


def test_flips_are_as_many_as_asked_for_repeatable_and_never_touch_undecided():
    verifier = NoisyVerifier(_AlwaysCorrect(), flips=0.2, seed=1)
    completions, answers = [f"c{n}" for n in range(5000)], ["1"] * 5000
    outcomes = [verdict.outcome for verdict in verifier.verify_many(completions, answers)]
    assert 0.18 < outcomes.count(Outcome.INCORRECT) / 5000 < 0.22
    assert outcomes == [verdict.outcome for verdict in verifier.verify_many(completions, answers)]
    other = NoisyVerifier(_AlwaysCorrect(), flips=0.2, seed=2).verify_many(completions, answers)
    assert outcomes != [verdict.outcome for verdict in other]
    undecided = verifier.verify_many(completions, ["?"] * 5000)
    assert {verdict.outcome for verdict in undecided} == {Outcome.UNDECIDED}


def test_equal_rollouts_of_a_group_are_flipped_apart():
    verdicts = NoisyVerifier(_AlwaysCorrect(), flips=0.3).verify_many(["same"] * 200, ["1"] * 200)
    assert len({verdict.outcome for verdict in verdicts}) == 2


@pytest.mark.parametrize("settings", [{"helpful": -1}, {"helpful": 9}, {"helpful": 0, "misleading": 0}])
def test_a_bank_that_cannot_be_made_is_refused(settings):
    with pytest.raises(ConfigError):
        BankShares(**settings)
    with pytest.raises(ConfigError, match="flips"):
        NoisyVerifier(_AlwaysCorrect(), flips=0.7)


@pytest.mark.parametrize(("seed", "symbols"), [(0, 2), (1, 3), (2, 3)])
def test_pairs_of_other_symbols_name_the_true_rule_for_few_symbols(seed, symbols):
    """docs/evidence.md says for how many."""
    bank = make_bank(BankShares(0, 0, 4), seed=seed)
    found = {
        symbol
        for text, (symbol, _) in bank.topics.items()
        if any(TRUE_RULES[symbol] in skill.text.split() and skill.text in text for skill in bank.bank.skills)
    }
    assert len(found) == symbols
