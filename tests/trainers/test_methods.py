"""What all methods share: prompts, verdicts, the metric of success, skills in the prompt, resume, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, EarlyStoppingCallback

from sgsd.errors import BankError, CheckpointError, ConfigError, PromptError
from sgsd.prompts import describe_mistake, describe_skill
from sgsd.retrieval import BM25Retriever, RandomRetriever
from sgsd.trainers.methods import TRAINERS
from sgsd.verifiers import Outcome, Verdict

from .test_resume import run
from .tiny import (
    EOS,
    PROBLEMS,
    SOLVED,
    always,
    make_bank,
    make_config,
    make_trainer,
    moved,
    prompted_rollouts,
    rows,
    unlike,
    weights_of,
)

METHODS = tuple(TRAINERS)
WITH_SKILLS = ("grpo", "opsd")


def seen_by(trainer, numbers):
    """Prompt ids and verdicts of one generation batch, rollouts stubbed."""
    prompts = []

    def sample(prompt_ids, *arguments, **options):
        prompts.extend(map(tuple, prompt_ids))
        return prompted_rollouts(prompt_ids, *arguments, **options)

    trainer._generate_single_turn = sample
    batch = trainer._generate_and_score_completions(rows(trainer, numbers))
    return prompts, batch


@pytest.mark.parametrize("thinking", ["off", "paper"])
@pytest.mark.parametrize("reward", ["by_parity", "verifier"])
def test_all_methods_see_the_same_prompts_and_give_the_same_verdicts(tmp_path, thinking, reward):
    numbers = [0, 0, 1, 1, 2, 2]
    options = {"reward": None, "verifier": "exact"} if reward == "verifier" else {}
    seen = [
        seen_by(
            make_trainer(
                tmp_path / method,
                method=method,
                problems=SOLVED,
                thinking=thinking,
                num_generations=2,
                per_device_train_batch_size=6,
                **options,
            ),
            numbers,
        )
        for method in METHODS
    ]
    first_prompts, first = seen[0]
    assert len(set(first["outcome"].tolist())) > 1 or reward == "verifier"
    for prompts, batch in seen[1:]:
        assert prompts == first_prompts
        for name in ("prompt_ids", "completion_ids", "completion_mask", "outcome", "advantages", "row"):
            assert torch.equal(batch[name], first[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_logs_the_share_of_successful_rollouts(tmp_path, method):
    reward = lambda completion_ids, **_: [None, 1.0, 0.0, 1.0][: len(completion_ids)]  # noqa: E731
    trainer = make_trainer(tmp_path, method=method, reward=reward, num_generations=2)
    trainer._generate_single_turn = lambda prompt_ids, *_, **__: ([[50 + n, EOS] for n in range(len(prompt_ids))], None)
    trainer.train()
    assert trainer.state.log_history[0]["success_rate"] == 0.5
    assert math.isfinite(trainer.state.log_history[0]["entropy"])


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        (
            "sgsd",
            {},
            [
                *("2605.28791", "- sgsd", "trained with SGSD, a method introduced in [Skill-Conditioned"),
                *("| method | SGSD |", "| data | 6 problems |", "| verifier | by_parity |", "| bank | tiny, 8 items, "),
                "| objective | objective gated, sgsd_weight 1.0, teacher live, num_teachers 3 |",
                "| training | steps 1, num_generations 2, temperature 1.1, max_completion_length 8, ",
            ],
        ),
        (
            "sgsd",
            {"objective": "correction", "teacher": "frozen", "grpo_weight": 1.0},
            [
                "trained with GRPO + correction, which builds on SGSD, a method introduced in [Skill-Conditioned",
                "grpo_weight 1.0, teacher frozen, num_teachers 3, loss_type dapo |",
            ],
        ),
        ("opsd", {}, ["2601.18734", "- opsd", "| objective | teacher frozen, reference solution, "]),
        ("grpo", {}, ["2402.03300", "| objective | loss_type dapo |"]),
    ],
)
def test_the_model_card_names_the_method_and_its_paper(tmp_path, method, settings, said):
    settings = {"num_generations": 2, "save_strategy": "steps", "save_steps": 1, **settings}
    make_trainer(tmp_path, method=method, stub=True, **settings).train()
    card = (tmp_path / "README.md").read_text()
    assert all(text in card for text in said)
    assert ("trained with SGSD" in card) == (said[0] == "2605.28791")
    assert "None" not in card


@pytest.mark.parametrize(
    ("dataset", "told", "on_the_hub"),
    [
        ("openai/gsm8k", "6 problems of openai/gsm8k", True),
        ("reasoning_gym:sums?n=3", "6 problems of reasoning_gym:sums?n=3", False),
        ("{folder}/a|b.jsonl", r"6 problems of a\|b.jsonl", False),
    ],
)
def test_the_model_card_names_the_data_and_links_what_the_hub_has(tmp_path, dataset, told, on_the_hub):
    (tmp_path / "a|b.jsonl").touch()
    trainer = make_trainer(tmp_path)
    trainer.create_model_card("mine", dataset.format(folder=tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert f"| data | {told} |" in card
    assert (f"datasets/{dataset}" in card) == on_the_hub
    assert str(tmp_path) not in card


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_needs_nothing_but_problems(tmp_path, method):
    trainer = make_trainer(
        tmp_path,
        method=method,
        stub=True,
        eval_dataset=PROBLEMS[:4],
        reward=always(1.0),
        num_generations=2,
        truncated="undecided",
    )
    before = weights_of(trainer.model)
    metrics = trainer.evaluate()
    assert not moved(before, trainer.model)
    assert not trainer._metrics["train"]
    assert metrics["eval_reward"] == 1.0
    assert 0 < metrics["eval_success_rate"] <= 1
    assert math.isnan(metrics["eval_loss"]) == (method != "grpo")  # no teacher, no loss


def first_problem_alone(problem, **_):
    return [float(text == PROBLEMS[0].text) for text in problem]


@pytest.mark.parametrize(("problems", "batch", "G"), [(3, 2, 1), (5, 3, 1), (3, 4, 2), (4, 2, 2)])
def test_the_success_rate_of_an_evaluation_is_a_share_of_all_its_rollouts(tmp_path, problems, batch, G):
    trainer = make_trainer(
        tmp_path,
        eval_dataset=PROBLEMS[:problems],
        reward=first_problem_alone,
        per_device_eval_batch_size=batch,
        num_generations_eval=G,
    )
    trainer._generate_single_turn = lambda prompt_ids, *_, **__: ([[50, EOS]] * len(prompt_ids), None)
    for _ in range(2):
        assert trainer.evaluate()["eval_success_rate"] == pytest.approx(1 / problems)


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
REMEDY = "; metric_for_best_model: success_rate, with greater_is_better: true$"


def best_after_step_two(completion_ids, trainer_state, **_):
    return [float(trainer_state.global_step == 2 or ids[0] % 2) for ids in completion_ids]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_of_the_highest_success_rate_is_loaded_at_the_end(tmp_path, method):
    trainer = make_trainer(
        tmp_path,
        method=method,
        reward=best_after_step_two,
        max_steps=6,
        num_generations=2,
        eval_dataset=SOLVED[:2],
        load_best_model_at_end=True,
        metric_for_best_model="success_rate",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        **EACH_STEP,
    )
    trainer._generate_single_turn = lambda prompts, *_, **__: ([[50 + n, EOS] for n, _ in enumerate(prompts)], None)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.best_metric) == (4, 1.0)
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    assert not unlike(trainer.model, AutoModelForCausalLM.from_pretrained(best))


@pytest.mark.parametrize("metric", [None, "loss", "eval_loss"])
@pytest.mark.parametrize("method", ["sgsd", "opsd"])
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type reduce_lr_on_plateau"),
    ],
)
def test_the_best_by_a_loss_that_evaluations_do_not_have_is_refused(tmp_path, method, metric, settings, what):
    said = f"^{what} cannot go by eval_loss, which is NaN with teachers: got metric_for_best_model {metric}; .*{REMEDY}"
    with pytest.raises(ConfigError, match=said):
        make_config(tmp_path, method=method, metric_for_best_model=metric, **EACH_STEP | settings)


def test_the_best_checkpoints_by_a_loss_that_evaluations_do_not_have_are_refused(tmp_path):
    settings = EACH_STEP | {"save_strategy": "best", "metric_for_best_model": "loss"}
    with pytest.raises(ConfigError, match=f"^save_strategy best cannot go by eval_loss.*{REMEDY}"):
        make_config(tmp_path, **settings)


@pytest.mark.parametrize("metric", [None, "loss", "eval_a_loss"])
def test_early_stopping_by_a_loss_that_evaluations_do_not_have_is_refused(tmp_path, metric):
    settings = {"metric_for_best_model": metric, "eval_dataset": {"a": PROBLEMS[:2], "b": PROBLEMS[2:4]}}
    trainer = make_trainer(tmp_path, **settings, **EACH_STEP)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    with pytest.raises(ConfigError, match=f"^EarlyStoppingCallback cannot go by eval_loss.*{REMEDY}"):
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_its_seed(tmp_path, method):
    final = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = make_trainer(tmp_path / name, method=method, seed=seed, num_generations=2, max_steps=3)
        trainer.train()
        final.append(weights_of(trainer.model))
    same = lambda left, right: all(torch.equal(a, b) for a, b in zip(left, right, strict=True))  # noqa: E731
    assert same(final[0], final[1])
    assert not same(final[0], final[2])


class Flipped:
    """A verifier of one's own: calls every answer what its question's number says."""

    def verify_many(self, completions, answers):
        return [Verdict(Outcome.CORRECT if answer == "2" else Outcome.INCORRECT, None, None) for answer in answers]


@pytest.mark.parametrize("method", METHODS)
def test_the_verifier_may_be_ones_own(tmp_path, method):
    trainer = make_trainer(tmp_path, method=method, reward=None, verifier_object=Flipped())
    assert trainer.reward_func_names == ["Flipped"]
    trainer._generate_single_turn = lambda prompt_ids, *_, **__: ([[50, EOS]] * len(prompt_ids), None)
    batch = trainer._generate_and_score_completions(rows(trainer, [0, 0, 1, 1]))
    assert batch["outcome"].tolist() == [1, 1, -1, -1]


# ---- skills in the prompt


@pytest.mark.parametrize("method", WITH_SKILLS)
@pytest.mark.parametrize("pairs", [1, 3])
def test_skills_in_the_prompt_change_the_training_prompts_and_nothing_else(tmp_path, method, pairs):
    options = {"method": method, "stub": True, "eval_dataset": PROBLEMS[:2], "problems": SOLVED, "num_generations": 2}
    plain = make_trainer(tmp_path / "plain", **options)
    skilled = make_trainer(
        tmp_path / "skilled", skills_in_prompt=True, skills_in_prompt_pairs=pairs, retriever="bm25", **options
    )
    bank = make_bank()
    found = BM25Retriever().retrieve([problem.text for problem in SOLVED], bank, pairs)
    for row, other, retrieval in zip(skilled.train_dataset, plain.train_dataset, found, strict=True):
        block = (
            "Experience from similar problems, to use where it applies:\n\n"
            + "\n\n".join(
                f"Skill: {describe_skill(pair.skill)}\nCommon mistake: {describe_mistake(pair.mistake)}"
                for pair in retrieval.pairs
            )
            + "\n\nDo not mention this experience in the answer.\n\n"
        )
        assert len(retrieval.pairs) == pairs
        assert row["prompt"] == [{"role": "user", "content": block + other["prompt"][0]["content"]}]
        differing = {name for name, value in row.items() if value != other[name]}
        assert differing == ({"prompt"} if method == "grpo" else {"prompt", "teacher_prompt"})
        if method == "opsd":
            show = skilled.renderer.text
            assert show(row["teacher_prompt"]).replace(block, "", 1) == show(other["teacher_prompt"])
            assert block in show(row["teacher_prompt"])
    assert list(skilled.eval_dataset["prompt"]) == list(plain.eval_dataset["prompt"])
    skilled.train()
    assert skilled.state.global_step == 1


def test_the_rollouts_are_sampled_from_the_skilled_prompt(tmp_path):
    trainer = make_trainer(tmp_path, method="grpo", skills_in_prompt=True)
    prompts, _ = seen_by(trainer, [0, 0])
    bank = make_bank()
    (retrieval,) = RandomRetriever(seed=trainer.args.seed).retrieve([PROBLEMS[0].text], bank, 1)
    pair = retrieval.pairs[0]
    assert set(prompts) == {tuple(trainer.renderer.skilled_ids(PROBLEMS[0].text, [(pair.skill, pair.mistake)]))}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"skills_in_prompt_pairs": 5}, ConfigError, "at most 4"),
        ({"max_prompt_length": 60}, PromptError, "6 of 6 prompts with skills are too long"),
        ({"bank": make_bank(1).without([make_bank(1).mistakes[0].id])}, BankError, "no mistakes"),
        ({"bank": None}, ConfigError, "no skill bank"),
    ],
)
@pytest.mark.parametrize("method", WITH_SKILLS)
def test_skills_that_cannot_be_shown_are_refused_in_one_line(tmp_path, method, change, error, message):
    with pytest.raises(error, match=message) as caught:
        make_trainer(tmp_path, method=method, skills_in_prompt=True, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", WITH_SKILLS)
def test_a_bank_that_nothing_would_read_is_refused(tmp_path, method):
    with pytest.raises(ConfigError, match="would have no effect"):
        make_trainer(tmp_path, method=method, bank=make_bank())


@pytest.mark.parametrize("method", WITH_SKILLS)
def test_no_retriever_is_built_where_no_skills_are_shown(tmp_path, method):
    """Neither needs an embedder: the default's weights are not on this machine."""
    trainer = make_trainer(tmp_path, method=method, retriever="embedding")
    assert (trainer.bank, trainer.retriever) == (None, None)


# ---- resume


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        ("opsd", {}, "another method: got opsd; expected grpo"),
        ("sgsd", {}, "another method: got sgsd; expected grpo"),
        ("grpo", {"skills_in_prompt": True}, f"another bank: got {make_bank().digest[:12]}; expected none"),
    ],
)
def test_a_checkpoint_of_another_method_or_bank_is_refused(tmp_path, other, settings, message):
    run(tmp_path, method="grpo", max_steps=1, save_steps=1, change_bank=False).train()
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, method=other, change_bank=False, **settings).train(resume_from_checkpoint=True)
