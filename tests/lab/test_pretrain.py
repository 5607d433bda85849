"""Lab models: how they are made, and what the shipped ones can do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sgsd.engines.models import LOCAL_MODELS, load_model, load_tokenizer
from sgsd.lab.experiment import TRUE_RULES
from sgsd.lab.language import RULE_NAMES, SYMBOLS, Question, make_tokenizer
from sgsd.lab.pretrain import VARIANTS, Corpus, pretrain, prior
from sgsd.lab.probe import probe


@pytest.fixture(scope="module")
def corpus_rows():
    """Decoded prompts and solutions of 2,000 rows at obedience 0.6."""
    tokenizer = make_tokenizer()
    corpus = Corpus(tokenizer)
    ids, mask = corpus.batch(np.random.default_rng(0), 2000, 0.6)
    rows = []
    for row, kept in zip(ids, mask, strict=True):
        prompt = tokenizer.decode(row[: corpus.prompt_length][kept[: corpus.prompt_length] == 1])
        rows.append((prompt, tokenizer.decode(row[corpus.prompt_length :])))
    return rows


def test_every_solution_of_the_corpus_is_right_by_the_rule_it_names(corpus_rows):
    for prompt, solution in corpus_rows:
        words = prompt.split()
        at = words.index("<assistant>")
        a, symbol, b, again, c = words[at - 5 : at]
        assert symbol == again
        question = Question(symbol, (int(a), int(b), int(c)))
        assert solution == question.solution(solution.split()[0]) + " <end>"


def test_a_stated_rule_is_followed_as_often_as_asked_and_a_slip_never(corpus_rows):
    followed, avoided = [], []
    for prompt, solution in corpus_rows:
        if "Skill:" not in prompt:
            continue
        problem = prompt.split(" <assistant>")[0].split()[-2]
        stated = prompt.split("Skill:")[1].split("Common mistake:")[0].split()
        warned = prompt.split("Common mistake:")[1].split("Do not mention")[0].split()
        if problem in stated:
            followed.append(solution.split()[0] in stated)
        if problem in warned:
            avoided.append(solution.split()[0] not in warned)
    assert len(followed) > 1000
    assert np.mean(followed) == pytest.approx(0.6, abs=0.04)
    assert all(avoided)


def test_a_reference_is_right_by_one_rule_and_followed_as_often_as_asked(corpus_rows):
    followed = []
    for prompt, solution in corpus_rows:
        if "A reference" in prompt and "Answer:" in prompt:
            reference = prompt.split("your own words:")[1].split("Do not mention")[0].strip()
            words = prompt.split(" <assistant>")[0].split()
            question = Question(words[-2], (int(words[-5]), int(words[-3]), int(words[-1])))
            assert reference == question.solution(reference.split()[0])
            followed.append(solution.split()[0] == reference.split()[0])
    assert len(followed) > 100
    assert np.mean(followed) == pytest.approx(0.6, abs=0.12)


def test_without_a_skill_rules_are_used_by_the_symbol_s_prior_which_favours_three_true_rules(corpus_rows):
    chances = prior()
    assert chances.sum(1) == pytest.approx(np.ones(len(SYMBOLS)))
    assert (chances == 0.2).sum(1).tolist() == [2] * len(SYMBOLS)
    true = [row[RULE_NAMES.index(TRUE_RULES[symbol])] for symbol, row in zip(SYMBOLS, chances, strict=True)]
    assert sorted(true) == pytest.approx([0.075] * 6 + [0.2] * 3)
    favoured = []
    for prompt, solution in corpus_rows:
        if "Skill:" not in prompt and "reference" not in prompt:
            symbol = prompt.split(" <assistant>")[0].split()[-2]
            favoured.append(chances[SYMBOLS.index(symbol), RULE_NAMES.index(solution.split()[0])] == 0.2)
    assert len(favoured) > 300
    assert np.mean(favoured) == pytest.approx(0.4, abs=0.08)


def test_pre_training_depends_on_its_seed_alone_and_says_how_it_was_made(tmp_path):
    variant = replace(VARIANTS["sharp"], steps=2, batch_size=8)
    for name in ("a", "b"):
        pretrain(variant, tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a" / "lab.json").read_text())["variant"]["steps"] == 2
    assert load_tokenizer(str(tmp_path / "a")).eos_token == "<end>"
    assert load_model(str(tmp_path / "a")).dtype is torch.float32


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shipped_models_are_small_and_made_as_the_code_says(name):
    from importlib.resources import files

    folder = files("sgsd.lab") / "models" / name
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 3e6
    made = json.loads((folder / "lab.json").read_text())["variant"]
    assert made == {field: getattr(VARIANTS[name], field) for field in made}
    assert f"lab-{name}" in LOCAL_MODELS
    assert (folder / "tokenizer.json").read_text() == make_tokenizer().backend_tokenizer.to_str(pretty=True)


@pytest.mark.parametrize(("name", "lowest", "highest"), [("sharp", 0.8, 1.0), ("calibrated", 0.45, 0.65)])
def test_the_shipped_models_guess_without_a_skill_and_follow_one(name, lowest, highest):
    torch.set_num_threads(1)
    accuracy = {prompt: estimate.mean for prompt, estimate in probe(f"local:lab-{name}", problems=1800).items()}
    assert 0.15 <= accuracy["plain"] <= 0.30
    assert lowest <= accuracy["helpful skill"] <= highest
    assert accuracy["misleading skill"] < accuracy["plain"] - 0.01
    assert abs(accuracy["irrelevant skill"] - accuracy["plain"]) < 0.08
