"""The lab's language and models, and the ground truth of an experiment."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from sgsd.engines.models import LOCAL_MODELS, load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.examples.lab.experiment import TRUE_RULES, BankShares, NoisyVerifier, TopicEmbedder, make_bank, questions
from sgsd.examples.lab.language import (
    MAX_COMPLETION,
    MISTAKE_TEXTS,
    RULE_NAMES,
    SKILL_TEXTS,
    SYMBOLS,
    Question,
    make_tokenizer,
    mistake,
    skill,
)
from sgsd.examples.lab.pretrain import VARIANTS, Corpus, pretrain, prior, probe
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import EmbeddingRetriever
from sgsd.verifiers import Outcome, Verdict, get_verifier

from ..conftest import ROOT

MODELS = ROOT / "examples" / "lab" / "models"

# ---- language


def test_a_solution_works_from_the_left_fits_and_can_be_verified():
    question = Question("@", (3, 5, 2))
    assert question.text == "3 @ 5 @ 2"
    assert question.solution("triple") == "triple 3 5 = 8 ; triple 8 2 = 4 ; Answer: 4"
    assert len(make_tokenizer()(question.solution("triple"))["input_ids"]) < MAX_COMPLETION
    with get_verifier("exact", workers=1) as verifier:
        assert verifier.verify(question.solution("triple"), "4").outcome == "correct"
        assert verifier.verify(question.solution("triple"), "1").outcome == "incorrect"


def test_every_prompt_is_made_of_known_tokens_and_of_one_length():
    renderer = PromptRenderer(make_tokenizer(), instruction="")
    prompts = [
        renderer.teacher_ids("3 @ 5 @ 2", [(skill(SYMBOLS[g], "sum", g), mistake(SYMBOLS[e], "min", e))])
        for g in range(len(SKILL_TEXTS))
        for e in range(len(MISTAKE_TEXTS))
    ]
    assert len(set(map(len, prompts))) == 1
    assert renderer.tokenizer.unk_token_id not in {id for ids in prompts for id in ids}


# ---- experiment


@pytest.mark.parametrize("shares", [(2, 2, 0), (1, 3, 2), (0, 0, 4), (0, 0, 8), (8, 8, 8)])
def test_a_problem_retrieves_pairs_of_one_worth_in_the_shares_asked_for(shares):
    made = make_bank(BankShares(*shares), seed=3)
    retriever = EmbeddingRetriever(TopicEmbedder(made.topics))
    firsts = set()
    for symbol, true_rule in TRUE_RULES.items():
        found = retriever.retrieve([f"1 {symbol} 2 {symbol} 3"], made.bank, sum(shares))[0].pairs
        kinds = [made.worth[pair.skill.id] for pair in found]
        firsts.add(kinds[0])
        assert kinds == [made.worth[pair.mistake.id] for pair in found]
        assert Counter(kinds) == +Counter(dict(zip(("helpful", "misleading", "irrelevant"), shares, strict=True)))
        for pair, kind in zip(found, kinds, strict=True):
            stated = next(rule for rule in RULE_NAMES if rule in pair.skill.text.split())
            warned = next(rule for rule in RULE_NAMES if rule in pair.mistake.text.split())
            about = symbol in pair.skill.text.split()
            expected = {
                "helpful": about and stated == true_rule != warned,
                "misleading": about and warned == true_rule != stated,
                "irrelevant": not about and true_rule not in (stated, warned),
            }
            assert expected[kind]
    assert len(firsts) > 1 or sum(map(bool, shares)) == 1, "helpful pairs must not come first always"
    assert made.bank.digest == make_bank(BankShares(*shares), seed=3).bank.digest
    assert made.bank.digest != make_bank(BankShares(*shares), seed=2).bank.digest


def test_questions_are_distinct_balanced_and_apart_from_those_held_out():
    assert set(TRUE_RULES) == set(SYMBOLS)
    assert len(set(TRUE_RULES.values())) == len(SYMBOLS)
    held_out = {problem.text for problem in questions(90, seed=1, prefix="test")}
    asked = {problem.text for problem in questions(900, seed=2, prefix="train", without=frozenset(held_out))}
    assert len(asked) == 900
    assert not asked & held_out
    assert set(Counter(text.split()[1] for text in asked).values()) == {100}


class _AlwaysCorrect:
    def verify_many(self, completions, answers):
        return [Verdict(Outcome.UNDECIDED if answer == "?" else Outcome.CORRECT) for answer in answers]


def test_flips_are_as_many_as_asked_for_repeatable_and_never_touch_undecided():
    def outcomes(completions, answer, **settings):
        verdicts = NoisyVerifier(_AlwaysCorrect(), **settings).verify_many(completions, [answer] * len(completions))
        return [verdict.outcome for verdict in verdicts]

    completions = [f"c{n}" for n in range(5000)]
    found = outcomes(completions, "1", flips=0.2, seed=1)
    assert 0.18 < found.count(Outcome.INCORRECT) / 5000 < 0.22
    assert found == outcomes(completions, "1", flips=0.2, seed=1) != outcomes(completions, "1", flips=0.2, seed=2)
    assert set(outcomes(completions, "?", flips=0.2)) == {Outcome.UNDECIDED}
    assert len(set(outcomes(["same"] * 200, "1", flips=0.3))) == 2, "equal rollouts of a group are flipped apart"


@pytest.mark.parametrize(
    "make",
    [
        lambda: BankShares(helpful=-1),
        lambda: BankShares(helpful=9),
        lambda: BankShares(0, 0),
        lambda: NoisyVerifier(_AlwaysCorrect(), flips=0.7),
        lambda: questions(9001, seed=0, prefix="x"),
    ],
)
def test_what_cannot_be_made_is_refused(make):
    with pytest.raises(ConfigError):
        make()


# ---- models


@pytest.fixture(scope="module")
def corpus_rows():
    """Words of the prompt and of the solution, and the question, of 2,000 rows at obedience 0.6."""
    tokenizer = make_tokenizer()
    corpus = Corpus(tokenizer)
    ids, mask = corpus.batch(np.random.default_rng(0), 2000, 0.6)
    rows = []
    for row, kept in zip(ids, mask, strict=True):
        prompt = tokenizer.decode(row[: corpus.prompt_length][kept[: corpus.prompt_length] == 1])
        a, symbol, b, _, c = prompt.split(" <assistant>")[0].split()[-5:]
        question = Question(symbol, (int(a), int(b), int(c)))
        rows.append((prompt, tokenizer.decode(row[corpus.prompt_length :]), question))
    return rows


def test_solutions_are_right_by_the_rule_they_name_and_follow_what_is_stated_as_often_as_asked(corpus_rows):
    followed, avoided, referred, favoured = [], [], [], []
    chances = prior()
    for prompt, solution, question in corpus_rows:
        rule = solution.split()[0]
        assert solution == question.solution(rule) + " <end>"
        if "Skill:" in prompt:
            stated, warned = prompt.split("Skill:")[1].split("Do not mention")[0].split("Common mistake:")
            if question.symbol in stated.split():
                followed.append(rule in stated.split())
            if question.symbol in warned.split():
                avoided.append(rule not in warned.split())
        elif "A reference" in prompt and "Answer:" in prompt:
            reference = prompt.split("your own words:")[1].split("Do not mention")[0].strip()
            assert reference == question.solution(reference.split()[0])
            referred.append(rule == reference.split()[0])
        elif "reference" not in prompt:
            favoured.append(chances[SYMBOLS.index(question.symbol), RULE_NAMES.index(rule)] == 0.2)
    assert len(followed) > 1000
    assert np.mean(followed) == pytest.approx(0.6, abs=0.04)
    assert all(avoided)
    assert len(referred) > 100
    assert np.mean(referred) == pytest.approx(0.6, abs=0.12)
    assert len(favoured) > 300
    assert np.mean(favoured) == pytest.approx(0.4, abs=0.08)


def test_the_prior_favours_two_rules_a_symbol_and_three_true_ones():
    chances = prior()
    assert chances.sum(1) == pytest.approx(np.ones(len(SYMBOLS)))
    assert (chances == 0.2).sum(1).tolist() == [2] * len(SYMBOLS)
    true = [row[RULE_NAMES.index(TRUE_RULES[symbol])] for symbol, row in zip(SYMBOLS, chances, strict=True)]
    assert sorted(true) == pytest.approx([0.075] * 6 + [0.2] * 3)


def test_pre_training_depends_on_its_seed_alone_and_says_how_it_was_made(tmp_path):
    variant = replace(VARIANTS["sharp"], steps=2, batch_size=8)
    for name in ("a", "b"):
        pretrain(variant, tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a" / "lab.json").read_text())["variant"]["steps"] == 2
    assert load_tokenizer(str(tmp_path / "a")).eos_token == "<end>"
    assert load_model(str(tmp_path / "a")).dtype is torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lowest", "highest"), [("sharp", 0.8, 1.0), ("calibrated", 0.45, 0.65)])
def test_the_models_are_made_as_the_code_says_guess_without_a_skill_and_follow_one(name, lowest, highest):
    made = json.loads((MODELS / name / "lab.json").read_text())["variant"]
    assert made == {field: getattr(VARIANTS[name], field) for field in made}
    assert (MODELS / name / "tokenizer.json").read_text() == make_tokenizer().backend_tokenizer.to_str(pretty=True)
    assert sum(file.stat().st_size for file in (MODELS / name).iterdir()) < 3e6
    assert f"lab-{name}" in LOCAL_MODELS
    torch.set_num_threads(1)
    accuracy = {prompt: estimate.mean for prompt, estimate in probe(f"local:lab-{name}", problems=1800).items()}
    assert 0.15 <= accuracy["plain"] <= 0.30
    assert lowest <= accuracy["helpful skill"] <= highest
    assert accuracy["misleading skill"] < accuracy["plain"] - 0.01
    assert abs(accuracy["irrelevant skill"] - accuracy["plain"]) < 0.08
