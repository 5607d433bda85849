from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from sgsd.bank.documents import read_document
from sgsd.data.problems import Problem
from sgsd.errors import BankError, ConfigError, DataError, PromptError
from sgsd.prompts import describe_mistake, describe_skill
from sgsd.retrieval import BM25Retriever
from sgsd.scoring import logprobs
from sgsd.scoring.heads import Select
from sgsd.scoring.logprobs import flat_targets
from sgsd.trainers.sgsd import SGSDTrainer

from ..conftest import make_model, make_tokenizer
from ..families.models import LONGROPE_SWITCH, make
from ..families.training import lora
from ..reference import exact_copy, plain_logps, plain_row_loss
from .tiny import (
    EIGHT,
    EOS,
    LORA,
    PROBLEMS,
    WeightedRetriever,
    always,
    assert_close,
    batch_of,
    by_first_id,
    cut,
    logged_means,
    loss_and_gradients,
    make_bank,
    make_config,
    make_trainer,
    moved,
    prompted_rollouts,
    render,
    rows,
    trls_own,
    weights_of,
)

# ---- the loss


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_teachers": 6},  # two more than the bank has pairs
        {"max_tokens_per_chunk": 300, "score_temperature": 0.8},
        {"gate_tau": 0.4, "support_clip": 0.5, "support_threshold": 0.1, "sgsd_weight": 3.0},
        {"num_generations": 2},
        {"support_baseline": "control", "num_generations": 2},  # its pair is the one of the bank's four that is left
    ],
)
def test_the_loss_equals_plain_loops_over_pairs_scored_one_by_one(tmp_path, settings):
    trainer = make_trainer(tmp_path, stub=True, reward=by_first_id, retriever_object=WeightedRetriever(), **settings)
    G = settings.get("num_generations", 1)
    problems = [PROBLEMS[n] for n in (0, 1, 2, 3) for _ in range(G)]
    batch = batch_of(trainer, [n for n in (0, 1, 2, 3) for _ in range(G)])
    assert not batch["teacher_logps"].requires_grad
    loss = trainer._compute_loss(trainer.model, batch).item()

    # from here on nothing of the trainer's is used but its weights
    bank = make_bank()
    uncounted = make_tokenizer().convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "Ċ", "č"])
    K = min(trainer.args.num_teachers, 4)
    weights = [(1.0 + k) / sum(1.0 + n for n in range(K)) for k in range(K)]
    temperature = settings.get("score_temperature", 1.0)
    prompts = [render(f"{problem.text}\n\nGo.") for problem in problems]
    completions, _ = prompted_rollouts(prompts)
    expected, stances, outcomes = [], [], []
    for problem, prompt, completion in zip(problems, prompts, completions, strict=True):
        outcome = 1 if completion[0] % 2 == 0 and completion[-1] == EOS else -1
        shown = [
            plain_logps(
                trainer.model,
                render(
                    "Experience from similar problems, to use where it applies:\n\n"
                    f"Skill: {describe_skill(bank.skills[k])}\nCommon mistake: {describe_mistake(bank.mistakes[k])}\n\n"
                    f"Do not mention this experience in the answer.\n\n{problem.text}\n\nGo."
                ),
                completion,
                temperature,
            )
            for k in range(4)
        ]
        teachers = shown[:K]
        row, stance = plain_row_loss(
            plain_logps(trainer.model, prompt, completion, temperature),
            teachers,
            weights,
            [token not in uncounted for token in completion],
            outcome,
            tau=settings.get("gate_tau", 1.0),
            clip=settings.get("support_clip", 3.0),
            threshold=settings.get("support_threshold", 0.05),
            control=shown[3] if "support_baseline" in settings else None,
        )
        expected.append(row)
        stances += stance
        outcomes.append(outcome)
    assert set(outcomes) == {1, -1}, "the rollouts must not leave a sign untested"
    assert set(stances) >= {1, -1}
    assert loss == pytest.approx(settings.get("sgsd_weight", 1.0) * sum(expected) / len(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("context", ["rules", "document"])
def test_a_documents_teachers_are_shown_it_and_its_ledger_credits_single_rules(tmp_path, context):
    file = tmp_path / "SKILL.md"
    file.write_text("# Sums\n\n- Add 1 and 1 first.\n- Never add 2.\n- Say please.\n- Count to 3.\n", encoding="utf-8")
    bank = read_document(file)
    settings = {"teacher_context": context, "support_baseline": "control", "num_teachers": 2}
    trainer = make_trainer(
        tmp_path, stub=True, reward=by_first_id, retriever_object=BM25Retriever(), bank=bank, **settings
    )
    pools = trainer.retrieve(rows(trainer, [0, 1]))
    for pool in pools:
        assert len(pool.pairs) == (1 if context == "document" else 2)
        assert all(len(pair.items) == 1 for pair in pool.pairs)
        for pair, prompt in zip(pool.pairs, pool.prompts, strict=True):
            text = trainer.renderer.text(prompt)
            shown = [item.text in text for item in bank.items]
            assert sum(shown) == (4 if context == "document" else 1)
            assert pair.items[0].text in text
    batch = batch_of(trainer, [0, 1, 2, 3])
    trainer._compute_loss(trainer.model, batch)
    trainer.training_ledger.end_step()
    used = trainer.ledger.total.uses
    assert used == sum(1 for outcome in batch["outcome"].tolist() if outcome) * (1 if context == "document" else 2)
    assert set(trainer.ledger.items) <= {item.id for item in bank.items}


def test_the_rule_that_a_control_lacks_is_one_of_the_documents_text(tmp_path):
    """Without a rule of a linked file the document is as it was: control and teacher would be the same."""
    (tmp_path / "more.md").write_text("- Add 1 and 1 before all else.\n- What is 1 + 1 is asked here.\n")
    file = tmp_path / "SKILL.md"
    file.write_text("# Sums\n\nSee [more](more.md).\n\n- Say please.\n- Count to 3.\n", encoding="utf-8")
    bank = read_document(file)
    linked = {item.id for item in bank.items if "1" in item.text}
    assert linked
    settings = {"teacher_context": "document", "support_baseline": "control", "num_teachers": 2}
    trainer = make_trainer(tmp_path, stub=True, retriever_object=BM25Retriever(), bank=bank, **settings)
    for _ in range(4):
        for pool in trainer.retrieve(rows(trainer, [0, 1, 2])):
            assert not linked & {item.id for pair in pool.pairs for item in pair.items}
        trainer.state.global_step += 1


@pytest.mark.parametrize(("G", "grpo_weight"), [(1, 0.0), (2, 0.0), (4, 0.0), (2, 0.7), (4, 0.7)])
def test_accumulation_does_not_change_loss_or_gradient(tmp_path, G, grpo_weight):
    trainer = make_trainer(
        tmp_path,
        stub=True,
        reward=by_first_id,
        num_generations=G,
        per_device_train_batch_size=8,
        problems=EIGHT,
        grpo_weight=grpo_weight,
        **({"loss_type": "grpo"} if grpo_weight else {}),
    )
    batch = batch_of(trainer, [n for n in range(8 // G) for _ in range(G)] if G > 1 else [0, 1, 2, 3, 4, 5, 0, 1])
    whole, whole_gradient = loss_and_gradients(trainer, [batch])
    assert max(gradient.abs().max() for gradient in whole_gradient) > 1e-3
    for size in (1, 2, 4):
        total, gradient = loss_and_gradients(trainer, cut(batch, size), steps=8 // size)
        assert total == pytest.approx(whole, abs=1e-5)
        assert_close(gradient, whole_gradient)


def test_sharing_prompts_changes_neither_loss_nor_gradient(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, stub=True, num_generations=4, per_device_train_batch_size=8)
    shared_batch = batch_of(trainer, [0] * 4 + [1] * 4)
    shared = loss_and_gradients(trainer, [shared_batch])
    monkeypatch.setattr(logprobs, "_can_share", lambda _: False)
    separate_batch = batch_of(trainer, [0] * 4 + [1] * 4)
    assert shared_batch["teacher_logps"].abs().max() > 0
    assert_close(shared_batch["teacher_logps"], separate_batch["teacher_logps"], 1e-4)
    separate = loss_and_gradients(trainer, [separate_batch])
    assert shared[0] == pytest.approx(separate[0], abs=1e-5)
    assert_close(shared[1], separate[1])


def test_the_rollouts_of_a_problem_cost_each_teacher_one_prompt(tmp_path):
    trainer = make_trainer(
        tmp_path,
        stub=True,
        reward=by_first_id,
        num_generations=4,
        num_generations_eval=1,
        per_device_train_batch_size=4,
    )
    batch_of(trainer, [0] * 4)  # the first time that a head is used, one token is forwarded to know it
    seen = []
    handle = trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    batch_of(trainer, [0] * 4)
    handle.remove()
    assert seen == [3, 12]  # three teachers' prompts, then twelve completions


def test_gradient_checkpointing_gives_the_same_loss_and_gradient(tmp_path):
    results = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, stub=True, num_generations=2, activation_checkpointing=checkpointing)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()
        batch = batch_of(trainer, [0, 0, 1, 1])
        assert trainer.model.is_gradient_checkpointing == checkpointing
        results.append(loss_and_gradients(trainer, [batch]))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("score_temperature", [1.0, 1.1])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_grpo_weight_adds_trls_own_loss_on_the_same_rollouts(tmp_path, score_temperature, loss_type):
    settings = {"num_generations": 4, "per_device_train_batch_size": 8, "loss_type": loss_type}
    trainer = make_trainer(
        tmp_path,
        stub=True,
        reward=by_first_id,
        grpo_weight=0.6,
        sgsd_weight=0.5,
        score_temperature=score_temperature,
        **settings,
    )
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    assert batch["advantages"].abs().max() > 0
    both, both_gradient = loss_and_gradients(trainer, [batch])

    plain = trls_own(tmp_path, trainer.train_dataset, **settings)
    grpo, grpo_gradient = loss_and_gradients(plain, [batch])

    trainer.args.grpo_weight, trainer.args.sgsd_weight = 0.0, 1.0
    sgsd, sgsd_gradient = loss_and_gradients(trainer, [batch])
    assert both == pytest.approx(0.6 * grpo + 0.5 * sgsd, abs=1e-5)
    assert max(gradient.abs().max() for gradient in grpo_gradient) > 1e-3
    assert_close(both_gradient, [0.6 * g + 0.5 * s for g, s in zip(grpo_gradient, sgsd_gradient, strict=True)], 1e-4)


@pytest.mark.parametrize(
    ("name", "adapter"), [("llama", False), ("gpt-2", False), ("phi-3", False), ("gpt-2", True), ("phi-3", True)]
)
def test_before_anything_is_learnt_old_and_reference_probabilities_are_the_students(tmp_path, name, adapter):
    """Positions of padded rows are others in GPT-2, and Phi-3's frequencies depend on the longest row."""
    make(name).save_pretrained(tmp_path / "model")
    trainer = make_trainer(
        tmp_path,
        stub=True,
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        problems=[replace(problem, text=problem.text + " please" * n) for n, problem in enumerate(PROBLEMS)],
        instruction="",
        reward=by_first_id,
        num_generations=2,
        grpo_weight=1.0,
        num_iterations=2,
        beta=0.1,
        peft_config=lora(name) if adapter else None,
    )
    batch = batch_of(trainer, [0, 0, 5, 5])
    lengths = batch["prompt_mask"].sum(1).tolist()
    assert lengths[0] + 8 <= LONGROPE_SWITCH < lengths[2]
    old, ref = batch["old_per_token_logps"], batch["ref_per_token_logps"]
    for b in range(4):
        prompt = batch["prompt_ids"][b, batch["prompt_mask"][b].bool()].tolist()
        completion = batch["completion_ids"][b, batch["completion_mask"][b].bool()].tolist()
        expected = plain_logps(trainer.model, prompt, completion, trainer.temperature)
        for found in (old, ref):
            assert found[b, : len(completion)].tolist() == pytest.approx(expected, abs=1e-3)
    student, _ = trainer._student_pass(
        trainer.model,
        batch,
        lambda flat: Select(flat_targets(batch["completion_ids"], None, flat), (trainer.temperature,)),
        grpo_weight=1.0,
    )
    ratio = (student.spread(student.kept[0])[..., 0] - old).exp()[batch["completion_mask"].bool()]
    assert_close(ratio, torch.ones_like(ratio), 1e-4)
    assert trainer._metrics["train"]["kl"] == pytest.approx([0.0], abs=1e-4)
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]


# ---- steps


@pytest.mark.parametrize("reward", [0.0, 1.0, None])
def test_a_step_moves_the_weights_where_polarity_is_not_zero(tmp_path, reward):
    trainer = make_trainer(tmp_path, stub=True, reward=always(reward), truncated="undecided", weight_decay=0.0)
    before = weights_of(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == (reward is not None)
    assert (trainer.state.log_history[0]["grad_norm"] > 0) == (reward is not None)


# ---- outcomes


@pytest.mark.parametrize(("truncated", "sign"), [("incorrect", -1), ("undecided", 0)])
def test_a_truncated_rollout_has_the_configured_outcome_whatever_its_reward(tmp_path, truncated, sign):
    trainer = make_trainer(
        tmp_path,
        reward=lambda completion_ids, **_: [1.0, 0.0, None, 1.0, 0.0, None][: len(completion_ids)],
        truncated=truncated,
    )
    ended, full = [50, 60, EOS], [50] * 8
    trainer._generate_single_turn = lambda *_, **__: ([full] * 3 + [ended] * 3, None)
    batch = batch_of(trainer, range(6))
    assert batch["outcome"].tolist() == [sign] * 3 + [1, -1, 0]


@pytest.mark.parametrize("verified", [False, True])
def test_a_rollout_that_ends_without_an_end_token_below_the_limit_is_judged(tmp_path, caplog, verified):
    """A stop string or an environment ended it. Of the full length, it was cut."""
    right = make_tokenizer()("\\boxed{2}")["input_ids"]
    trainer = make_trainer(
        tmp_path,
        reward=None if verified else always(1.0),
        problems=[Problem(id="p", text="1 + 1?", answer="2")],
        per_device_train_batch_size=1,
        max_completion_length=len(right) + 1,
    )
    trainer._generate_single_turn = lambda *_, **__: ([right, right], None)
    assert batch_of(trainer, [0, 0])["outcome"].tolist() == [1, 1]
    assert "CUT OFF" not in caplog.text
    trainer._generate_single_turn = lambda *_, **__: ([right, [50, *right]], None)
    assert batch_of(trainer, [0, 0])["outcome"].tolist() == [1, -1]
    assert logged_means(trainer)["_truncated"] == 0.25


def test_eos_that_is_also_the_padding_ends_a_rollout_and_does_not_count(tmp_path):
    trainer = make_trainer(tmp_path, reward=always(1.0))
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    newline, space = tokenizer("\n")["input_ids"][0], tokenizer(" ")["input_ids"][0]
    trainer._generate_single_turn = lambda *_, **__: ([[50, EOS], [newline, space, 60, 50, EOS]], None)
    batch = batch_of(trainer, [0, 1])
    assert batch["outcome"].tolist() == [1, 1]
    assert batch["completion_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["score_mask"].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 1, 1, 0]]


def test_every_end_token_of_the_model_ends_a_rollout(tmp_path):
    model = make_model()
    model.generation_config.eos_token_id = [EOS, 77]
    trainer = make_trainer(tmp_path, model=model, reward=always(1.0), max_completion_length=2)
    trainer._generate_single_turn = lambda *_, **__: ([[50, 77], [50, EOS], [50, 60]], None)
    assert batch_of(trainer, [0, 1, 2])["outcome"].tolist() == [1, 1, -1]


@pytest.mark.parametrize("reward", [0.7, 0.9, 0.6, 0.1, 0.35])
def test_a_reward_equal_to_the_threshold_is_a_success(tmp_path, reward):
    """TRL has rewards in float32: 0.7 there is below 0.7 in Python."""
    trainer = make_trainer(tmp_path, reward=always(reward), success_threshold=reward)
    trainer._generate_single_turn = lambda *_, **__: ([[50, EOS]], None)
    assert batch_of(trainer, [0])["outcome"].tolist() == [1]
    trainer = make_trainer(tmp_path, reward=always(reward - 1e-6), success_threshold=reward)
    trainer._generate_single_turn = lambda *_, **__: ([[50, EOS]], None)
    assert batch_of(trainer, [0])["outcome"].tolist() == [-1]


def test_several_rewards_are_weighed_and_compared_with_the_threshold(tmp_path):
    first, second = (
        lambda c, v=v: [v[n] for n in range(len(c))] for v in ([1.0, 1.0, None, None], [0.0, 1.0, 1.0, None])
    )
    trainer = make_trainer(
        tmp_path,
        reward=[
            lambda completion_ids, **_: first(completion_ids),
            lambda completion_ids, **_: second(completion_ids),
        ],
        reward_weights=[0.3, 0.4],
        success_threshold=0.35,
    )
    trainer._generate_single_turn = lambda *_, **__: ([[50, EOS]] * 4, None)
    assert batch_of(trainer, range(4))["outcome"].tolist() == [-1, 1, 1, 0]


@pytest.mark.parametrize(
    ("verifier", "truncated"), [("exact", "incorrect"), ("math", "incorrect"), ("exact", "undecided")]
)
def test_the_verifier_decides_the_outcome(tmp_path, verifier, truncated):
    encode = lambda text: make_tokenizer()(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    right = [f"\\boxed{{{problem.answer}}}" for problem in PROBLEMS[:2]]
    settings = {"truncated": truncated, "max_completion_length": len(encode(right[0]))}
    trainer = make_trainer(tmp_path, reward=None, verifier=verifier, **settings)
    assert trainer.reward_func_names == [verifier]
    completions = [[*encode(right[0]), EOS], [*encode("\\boxed{7}"), EOS], encode(right[0])]
    trainer._generate_single_turn = lambda *_, **__: (completions, None)
    batch = batch_of(trainer, [0, 1, 0])
    undecided = truncated == "undecided"
    assert batch["outcome"].tolist() == [1, -1, 0 if undecided else -1]
    rewards = list(trainer._logs["rewards"][verifier])
    assert rewards[:2] == [1.0, 0.0]
    assert math.isnan(rewards[2]) if undecided else rewards[2] == 0
    assert list(trainer._logs["extra"]["outcome"]) == ["correct", "incorrect", truncated]
    assert list(trainer._logs["extra"]["reason"])[2] == "truncated"


# ---- teachers


def teacher_scores(trainer, model, numbers):
    """What the teachers' log-probabilities should be, were ``model`` the teacher."""
    completions, _ = prompted_rollouts([render(f"{PROBLEMS[n].text}\n\nGo.") for n in numbers])
    pools = trainer.retrieve(rows(trainer, numbers))
    T = max(map(len, completions))
    out = torch.zeros(len(numbers), trainer.args.num_teachers, T)
    for b, (pool, completion) in enumerate(zip(pools, completions, strict=True)):
        for k, prompt in enumerate(pool.prompts):
            out[b, k, : len(completion)] = torch.tensor(plain_logps(model, prompt, completion))
    return out


@pytest.mark.parametrize("adapter", ["none", "new", "trained"])
def test_a_frozen_teacher_stays_the_initial_policy(tmp_path, adapter):
    model = make_model()
    if adapter == "trained":
        model = get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False))
    settings = {"model": model, "peft_config": LoraConfig(**LORA) if adapter == "new" else None, "max_steps": 2}
    trainer = make_trainer(tmp_path, stub=True, reward=by_first_id, teacher="frozen", **settings)
    assert (trainer.teacher_weights._held == []) == (adapter == "new")  # the base model is the teacher, without a copy
    initial = exact_copy(trainer.model)
    trainer.train()
    trained = weights_of(trainer.model)
    assert moved(weights_of(initial), trainer.model)
    batch = batch_of(trainer, [0, 1])
    assert_close(batch["teacher_logps"], teacher_scores(trainer, initial, [0, 1]), 1e-4)
    assert (batch["teacher_logps"] - teacher_scores(trainer, trainer.model, [0, 1])).abs().max() > 1e-3
    assert not moved(trained, trainer.model)


def test_an_ema_teacher_follows_every_optimizer_step_of_a_run(tmp_path):
    seen = []
    trainer = make_trainer(
        tmp_path,
        stub=True,
        teacher="ema",
        teacher_ema_decay=0.5,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    follow = trainer.teacher_weights.after_optimizer_step
    trainer.teacher_weights.after_optimizer_step = lambda step: (
        seen.append((step, weights_of(trainer.model))),
        follow(step),
    )
    average = weights_of(trainer.model)
    trainer.train()
    assert [step for step, _ in seen] == [1, 2]
    for _, policy in seen:
        average = [0.5 * old + 0.5 * new for old, new in zip(average, policy, strict=True)]
    with trainer.teacher_weights.in_place():
        assert_close(weights_of(trainer.model), average, 1e-6)


@pytest.mark.parametrize("kind", ["live", "frozen", "ema", "periodic"])
def test_every_kind_of_teacher_teaches_a_policy_in_bfloat16(tmp_path, kind):
    model = make_model(initializer_range=0.1).bfloat16()
    trainer = make_trainer(tmp_path, model=model, stub=True, reward=by_first_id, teacher=kind)
    batch = batch_of(trainer, [0, 1, 2])
    assert batch["teacher_logps"].dtype == torch.float32
    assert_close(batch["teacher_logps"], teacher_scores(trainer, trainer.model, [0, 1, 2]), 0.1)
    before = weights_of(trainer.model)
    trainer.train()
    assert moved(before, trainer.model)
    assert math.isfinite(trainer.state.log_history[0]["sgsd/loss"])


def test_teachers_score_without_dropout_and_the_student_goes_on_training(tmp_path):
    model = make_model(attention_dropout=0.5)
    trainer = make_trainer(tmp_path, model=model, stub=True, reward=by_first_id)
    scores = [batch_of(trainer, [0, 1])["teacher_logps"] for _ in range(2)]
    assert torch.equal(*scores)
    assert trainer.model.training


# ---- retrieval and the bank


def test_a_changed_bank_is_seen_by_the_next_rollouts(tmp_path):
    trainer = make_trainer(tmp_path, stub=True, log_completions=True)
    before = batch_of(trainer, [0, 1])
    trainer.bank = make_bank(label="new ")
    after = batch_of(trainer, [0, 1])
    assert (before["teacher_logps"] - after["teacher_logps"]).abs().max() > 1e-3
    names = list(trainer._logs["extra"]["pairs"])
    ids = {item.id for item in trainer.bank.items}
    assert not any(set(name.split()) & ids for row in names[:2] for name in row)
    assert all(set(name.split()) <= ids for row in names[2:] for name in row)


def test_pairs_that_do_not_fit_are_counted_and_training_goes_on(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    pools = whole.retrieve([whole.train_dataset[n] for n in range(6)])
    shortest = min(len(prompt) for pool in pools for prompt in pool.prompts)
    trainer = make_trainer(tmp_path, stub=True, max_prompt_length=shortest)  # most teachers do not fit
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["sgsd/pairs_too_long"] + logged["sgsd/teachers_per_rollout"] == 3
    assert logged["sgsd/pairs_too_long"] > 2


# ---- logs, tables, cards, evaluation


METRICS = {
    "support",
    "support/success",
    "support/failure",
    "active_share",
    "polarity/positive_share",
    "polarity/negative_share",
    "polarity/neutral_share",
    "undecided_share",
    "gate",
    "clipped_share",
    "loss",
    "teachers_per_rollout",
    "pairs_too_long",
    "teacher_tokens",
    "student_tokens",
    "scored_share",
    *(f"ledger/{name}" for name in ("items", "uses", "active", "positive", "negative", "neutral")),
    "ledger/credit",
}


def test_metrics_are_all_there_finite_and_shares_are_shares(tmp_path):
    trainer = make_trainer(tmp_path, stub=True, reward=by_first_id, per_device_train_batch_size=6)
    trainer.train()
    logged = {k.removeprefix("sgsd/"): v for k, v in trainer.state.log_history[0].items() if k.startswith("sgsd/")}
    assert set(logged) == METRICS
    completions, _ = prompted_rollouts([render(f"{problem.text}\n\nGo.") for problem in PROBLEMS])
    succeeded = [ids[0] % 2 == 0 and ids[-1] == EOS for ids in completions]
    assert trainer.state.log_history[0]["success_rate"] == pytest.approx(sum(succeeded) / 6)
    assert all(torch.tensor(value).isfinite() for value in logged.values())
    shares = [value for name, value in logged.items() if name.endswith(("share", "rate"))]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(logged[f"polarity/{kind}_share"] for kind in ("positive", "negative", "neutral")) == pytest.approx(1)
    assert logged["loss"] == pytest.approx(trainer.state.log_history[0]["loss"], abs=1e-5)
    assert logged["teachers_per_rollout"] == 3
    assert trainer.state.log_history[0]["entropy"] > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_completions_table_has_outcomes_and_pairs(tmp_path, accumulation):
    trainer = make_trainer(
        tmp_path,
        stub=True,
        reward=None,
        verifier="exact",
        log_completions=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        num_teachers=6,
    )
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert len(table) == 2 * accumulation
    assert {"outcome", "reason", "pairs"} <= set(table.columns)
    assert set(table["outcome"]) <= {"correct", "incorrect", "undecided"}
    ids = {item.id for item in trainer.bank.items}
    for _, row in table.iterrows():
        assert len(row["pairs"]) == 4  # as many as the bank has
        assert all(set(pair.split()) <= ids for pair in row["pairs"])


def test_an_evaluation_between_steps_of_one_batch_leaves_its_table_alone(tmp_path):
    """With num_iterations above 1 a batch is trained on again after an evaluation of another size."""
    trainer = make_trainer(
        tmp_path,
        stub=True,
        log_completions=True,
        eval_dataset=PROBLEMS[:2],
        num_iterations=3,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=3,
    )
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("method", ["sgsd", "opsd"])
def test_evaluation_runs_no_teacher(tmp_path, method):
    """At 029fdea SGSD made five forwards in this evaluation beside its sampling, for nothing but logs."""
    trainer = make_trainer(tmp_path, method=method, stub=True, eval_dataset=PROBLEMS[:4])
    forwards = []
    trainer.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    metrics = trainer.evaluate()
    assert forwards == []
    assert math.isnan(metrics["eval_loss"])
    batch_of(trainer.train() and trainer, [0])
    assert forwards, "the hook would not see it"


# ---- data and banks


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"problems": []}, DataError, "empty"),
        ({"problems": iter(PROBLEMS)}, DataError, "cannot be used"),
        ({"max_prompt_length": 20}, PromptError, "6 of 6 plain prompts are too long"),
        ({"max_prompt_length": 1020}, ConfigError, "do not fit the model's context"),
        ({"max_completion_length": 1024}, ConfigError, "do not fit the model's context"),
        ({"bank": make_bank(1).without([make_bank(1).mistakes[0].id])}, BankError, "no mistakes"),
        ({"bank": "seed:no-such-bank"}, BankError, "no-such-bank"),
        ({"bank": None}, ConfigError, "no skill bank"),
        ({"verifier": "maths", "reward": None}, ConfigError, "maths"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path, change, error, message):
    with pytest.raises(error, match=message) as caught:
        make_trainer(tmp_path, **change)
    assert "\n" not in str(caught.value)


def test_arguments_have_the_places_they_have_in_trls_trainer(tmp_path):
    """At 029fdea the second was the configuration: "'function' object has no attribute 'bank'"."""
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    ours = inspect.signature(SGSDTrainer.__init__).parameters
    positional = [name for name, parameter in ours.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == theirs
    args = make_config(tmp_path, bank="seed:mental-arithmetic", num_teachers=2)
    rows = Dataset.from_list([{"problem": problem.text, "answer": problem.answer} for problem in PROBLEMS])
    trainer = SGSDTrainer(make_model(), by_first_id, args, rows, processing_class=make_tokenizer())
    before = weights_of(trainer.model)
    trainer.train()
    assert moved(before, trainer.model)


def test_a_writer_that_nobody_would_ask_is_refused(tmp_path):
    for method in ("sgsd", "grpo"):
        with pytest.raises(ConfigError, match="maintenance_frequency"):
            make_trainer(tmp_path, method=method, writer=lambda *_: None)


def test_prompts_may_fill_what_the_completion_leaves_of_the_context(tmp_path):
    assert make_trainer(tmp_path, max_completion_length=24).max_prompt_length == 1000
    assert make_trainer(tmp_path, max_prompt_length=300).max_prompt_length == 300


# ---- models by name


@pytest.mark.parametrize("adapter", [False, True])
def test_a_folder_trains_by_name(tmp_path, tiny_folder, adapter):
    folder = tiny_folder
    if adapter:
        base, folder = make_model(), tmp_path / "adapter"
        base.name_or_path = base.config._name_or_path = str(tiny_folder)
        get_peft_model(base, LoraConfig(**LORA, init_lora_weights=False)).save_pretrained(folder)
    make_bank().save(tmp_path / "bank.json")
    trainer = SGSDTrainer(str(folder), by_first_id, make_config(tmp_path), PROBLEMS, bank=tmp_path / "bank.json")
    trainer._generate_single_turn = prompted_rollouts
    assert trainer.bank == make_bank()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert not adapter or all("lora" in name for name in changed)
