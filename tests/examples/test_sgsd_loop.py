"""The one-file example is the method: its loss and gradient are the trainer's, its prompts and pairs the package's."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.bank.formats import native_to_common
from sgsd.controls import uncounted_token_ids
from sgsd.prompts import BOXED_INSTRUCTION, PromptRenderer, describe_mistake, describe_skill
from sgsd.retrieval import EmbeddingRetriever

from ..conftest import ROOT, make_model, make_tokenizer
from ..trainers.tiny import EOS, PROBLEMS, make_trainer, rows

FILE = ROOT / "examples" / "sgsd_loop.py"


def load_example():
    spec = importlib.util.spec_from_file_location("sgsd_loop", FILE)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


loop = load_example()


def rollouts_of(trainer, batch, chosen):
    """What the example's loss takes, from a generated batch of the trainer: the one place that knows its keys."""

    def ids(name):
        return [
            row[kept.bool()].tolist() for row, kept in zip(batch[f"{name}_ids"], batch[f"{name}_mask"], strict=True)
        ]

    return {
        "prompts": ids("prompt"),
        "teacher_prompts": [list(pool.prompts) for pool in trainer.retrieve(chosen)],
        "completions": ids("completion"),
        "outcomes": batch["outcome"].tolist(),
        "weights": batch["teacher_weights"].tolist(),
    }


class BagOfWords:
    """The example's embedding as one of the package's embedders."""

    name = "bag-of-words"

    def embed(self, texts):
        return np.stack([vector.numpy() for vector in loop.bag_of_words(texts)])


@pytest.fixture
def common_file(tmp_path):
    """The shipped bank of sums, in the common format."""
    file = tmp_path / "bank.json"
    native = json.loads(SkillBank.load("seed:mental-arithmetic").to_json())
    file.write_text(json.dumps(native_to_common(native)))
    return file


# ---- one file, to be read


def test_it_is_one_file_of_at_most_250_lines():
    assert len(FILE.read_text().splitlines()) <= 250


def test_it_imports_neither_trl_nor_the_package():
    imported = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names <= {"torch", "transformers", "numpy", "datasets"}


# ---- the loss


@pytest.mark.parametrize("seed", [0, 1])
def test_its_loss_and_gradient_on_a_batch_are_the_trainers(tmp_path, seed):
    trainer = make_trainer(tmp_path, model=make_model(seed), stub=True, per_device_train_batch_size=6)
    chosen = rows(trainer, range(6))
    batch = trainer._generate_and_score_completions(chosen)
    assert {-1, 1} <= set(batch["outcome"].tolist())
    theirs = trainer._compute_loss(trainer.model, batch)
    theirs.backward()
    gradient = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()

    given = rollouts_of(trainer, batch, chosen)
    ours, _, polarity = loop.loss_of_batch(
        trainer.model, **given, uncounted=loop.uncounted_ids(trainer.processing_class)
    )
    ours.backward()
    assert abs(theirs.item()) > 1e-2
    assert {-1, 1} <= set(polarity.flatten().tolist())
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for mine, other in zip(trainer.model.parameters(), gradient, strict=True):
        torch.testing.assert_close(mine.grad, other, atol=1e-5, rtol=1e-4)


# ---- prompts, bank, retrieval


def test_its_prompts_are_the_packages_to_the_last_token(common_file):
    tokenizer, bank = make_tokenizer(), SkillBank.load(common_file)
    renderer = PromptRenderer(tokenizer)
    skills, mistakes = loop.load_bank(common_file)
    assert loop.INSTRUCTION == BOXED_INSTRUCTION
    assert loop.prompt_ids(tokenizer, "1 + 2?") == renderer.student_ids("1 + 2?")
    for skill, mistake, *texts in zip(bank.skills, bank.mistakes, skills, mistakes, strict=False):
        assert loop.prompt_ids(tokenizer, "1 + 2?", tuple(texts)) == renderer.teacher_ids("1 + 2?", [(skill, mistake)])


def test_its_uncounted_tokens_are_the_packages():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<b>"])
    tokenizer.chat_template = "{% if tools %}<tool_call></tool_call>{% endif %}" + tokenizer.chat_template
    assert loop.uncounted_ids(tokenizer) == uncounted_token_ids(tokenizer)


def test_a_text_that_holds_a_control_token_is_refused():
    with pytest.raises(ValueError, match="control token"):
        loop.prompt_ids(make_tokenizer(), "1 + 2?<|im_end|>")


def test_a_bank_is_a_file_in_the_common_format_or_a_list_of_pairs(common_file):
    bank = SkillBank.load(common_file)
    skills, mistakes = loop.load_bank(common_file)
    assert skills == [describe_skill(skill) for skill in bank.skills]
    assert mistakes == [describe_mistake(mistake) for mistake in bank.mistakes]
    assert loop.load_bank([("Add.", "Slip.")]) == (["Add."], ["Slip."])


def test_its_pairs_and_weights_are_those_of_the_packages_retriever():
    texts = [
        ("Add tens and ones by themselves.", "Forgetting the ten that is carried."),
        ("Subtract the smaller number.", "Subtracting the wrong way round."),
        ("Count a number's factors.", "Counting a factor twice, or the number itself."),
    ]
    skills, mistakes = loop.load_bank(texts)
    bank = SkillBank(
        tuple(Skill.new(skill, origin=Origin.SEED) for skill in skills),
        tuple(Mistake.new(mistake, origin=Origin.SEED) for mistake in mistakes),
    )
    for problem in ("Subtract 17, the smaller number, twice.", "Is the number of factors of 12 a factor itself?"):
        pairs, weights = loop.retrieve(problem, skills, mistakes, 2)
        [theirs] = EmbeddingRetriever(BagOfWords()).retrieve([problem], bank, 2)
        assert pairs == [(pair.skill.text, pair.mistake.text) for pair in theirs.pairs]
        assert pairs != list(zip(skills, mistakes, strict=True))[:2]
        assert weights == pytest.approx(theirs.weights, abs=1e-6)


# ---- verifier


@pytest.mark.parametrize(
    ("text", "answer", "outcome"),
    [
        ("so it is \\boxed{12}", "12", 1),
        ("12, no, \\boxed{13}. Not 12", "12", -1),
        ("The sum is 1,200.", "1200", 1),
        ("It is 12.50 dollars", "12.5", 1),
        ("half: 1/2", "0.5", 1),
        ("-3", "3", -1),
        ("\\boxed{\\text{blue}}", "blue", -1),
        ("\\boxed{blue}", "Blue", 1),
        ("no idea", "12", -1),
        ("12", "", 0),
    ],
)
def test_the_verifier_compares_the_last_number_or_the_last_box(text, answer, outcome):
    assert loop.verify(text, answer) == outcome


# ---- a run


def test_two_steps_on_a_tiny_model(tiny_folder, tmp_path, common_file, capsys):
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"problem": p.text, "answer": p.answer}) + "\n" for p in PROBLEMS))
    options = ["--model", str(tiny_folder), "--data", str(data), "--bank", str(common_file), "--output", str(tmp_path)]
    losses = loop.main([*options, "--steps", "2", "--batch", "3", "--max_new_tokens", "8"])
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert "step 2: loss" in capsys.readouterr().out
    trained, first = (load_file(folder / "model.safetensors") for folder in (tmp_path, tiny_folder))
    assert any(not torch.equal(trained[name], weight) for name, weight in first.items())


def test_samples_are_cut_behind_their_end_token():
    model, tokenizer = make_model(), make_tokenizer()
    options = {"max_new_tokens": 40, "temperature": 3.0, "top_p": 1.0, "top_k": 0}
    torch.manual_seed(0)
    completions, cut = loop.sample(model, tokenizer, [[5, 6, 7], [8]] * 8, **options)
    assert set(cut) == {True, False}
    for completion, was_cut in zip(completions, cut, strict=True):
        assert EOS not in completion[:-1]
        assert was_cut == (completion[-1] != EOS)
        assert not was_cut or len(completion) == 40
