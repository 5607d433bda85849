from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from sgsd.errors import DataError, PromptError
from sgsd.problems import Problem
from sgsd.prompts import REFERENCE_BLOCK

from ..conftest import make_model, make_tokenizer
from ..reference import exact_copy
from .tiny import EOS, PROBLEMS, SOLVED, make_trainer, prompted_rollouts, rows, weights_of

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def opsd(folder, **settings):
    return make_trainer(folder, method="opsd", **{"stub": True} | settings)


def batch_of(trainer, numbers):
    return trainer._generate_and_score_completions(rows(trainer, numbers))


def loss_and_gradients(trainer, parts, steps=1):
    trainer.current_gradient_accumulation_steps = steps
    trainer.model.zero_grad()
    total = 0.0
    for part in parts:
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in trainer.model.parameters()]


def cut(batch, size):
    B = batch["completion_ids"].shape[0]
    return [
        {name: value[at : at + size] if value.ndim else value for name, value in batch.items()}
        for at in range(0, B, size)
    ]


def plain_distributions(model, prompt, completion, temperature):
    """``[T][V]`` log-probabilities of one pair alone, in float64."""
    with torch.no_grad():
        logits = exact_copy(model).double().eval()(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1).tolist()


def plain_token(log_q, log_p, kind, beta, clip):
    total = 0.0
    for q, p in zip(log_q, log_p, strict=True):
        m = math.log(beta * math.exp(p) + (1 - beta) * math.exp(q))
        summand = {
            "forward_kl": math.exp(p) * (p - q),
            "reverse_kl": math.exp(q) * (q - p),
            "jsd": beta * math.exp(p) * (p - m) + (1 - beta) * math.exp(q) * (q - m),
        }[kind]
        total += summand if clip is None else min(summand, clip)
    return total


# ---- the loss


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"divergence": "reverse_kl", "reference": "answer"},
        {"divergence": "jsd", "jsd_beta": 0.3, "score_temperature": 0.8},
        {"divergence_clip": 0.02, "num_generations": 2},
    ],
)
def test_the_loss_equals_plain_loops_over_prompts_written_out_by_hand(tmp_path, settings):
    trainer = opsd(tmp_path, teacher="live", **settings)
    numbers = [0, 0, 1, 1] if "num_generations" in settings else [0, 1, 2, 3]
    loss = trainer._compute_loss(trainer.model, batch_of(trainer, numbers)).item()

    # from here on nothing of the trainer's is used but its weights
    tokenizer = make_tokenizer()
    render = lambda text: tokenizer.apply_chat_template(  # noqa: E731
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    prompts = [render(f"{SOLVED[n].text}\n\nGo.") for n in numbers]
    completions, _ = prompted_rollouts(prompts)
    temperature = settings.get("score_temperature", 1.0)
    expected = []
    for n, prompt, completion in zip(numbers, prompts, completions, strict=True):
        reference = SOLVED[n].answer if settings.get("reference") == "answer" else SOLVED[n].solution
        teacher = render(
            "A reference for this problem, to be worked out in your own words:\n\n"
            f"{reference}\n\nDo not mention this reference in the answer.\n\n{SOLVED[n].text}\n\nGo."
        )
        sides = [plain_distributions(trainer.model, p, completion, temperature) for p in (prompt, teacher)]
        tokens = [
            plain_token(
                q,
                p,
                settings.get("divergence", "forward_kl"),
                settings.get("jsd_beta", 0.5),
                settings.get("divergence_clip"),
            )
            for q, p in zip(*sides, strict=True)
        ]
        expected.append(sum(tokens) / len(tokens))
    assert abs(loss) > 1e-3
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("G", [1, 2])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_accumulation_does_not_change_loss_or_gradient(tmp_path, G, divergence):
    trainer = opsd(tmp_path, num_generations=G, per_device_train_batch_size=8, divergence=divergence)
    batch = batch_of(trainer, [n for n in range(4) for _ in range(2)] if G > 1 else [0, 1, 2, 3, 4, 5, 0, 1])
    whole, whole_gradient = loss_and_gradients(trainer, [batch])
    assert max(gradient.abs().max() for gradient in whole_gradient) > 1e-3
    for size in (1, 2, 4):
        total, gradient = loss_and_gradients(trainer, cut(batch, size), steps=8 // size)
        assert total == pytest.approx(whole, abs=1e-5)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_loss_and_gradient(tmp_path):
    results = []
    for checkpointing in (False, True):
        trainer = opsd(tmp_path, num_generations=2, activation_checkpointing=checkpointing)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()
        results.append(loss_and_gradients(trainer, [batch_of(trainer, [0, 0, 1, 1])]))
        assert trainer.model.is_gradient_checkpointing == checkpointing
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outcome", [None, 0.0, 1.0])
def test_verdicts_do_not_enter_the_loss(tmp_path, outcome):
    losses = [
        opsd(tmp_path, truncated="undecided", reward=lambda completion_ids, **_: [None] * len(completion_ids)),
        opsd(tmp_path, reward=lambda completion_ids, **_: [outcome] * len(completion_ids)),
    ]
    first, second = (trainer._compute_loss(trainer.model, batch_of(trainer, [0, 1, 2])) for trainer in losses)
    assert torch.equal(first, second)


def test_padding_is_never_read_and_every_token_of_a_rollout_counts_its_end_too(tmp_path):
    trainer = opsd(tmp_path)
    trainer._generate_single_turn = lambda *_, **__: ([[50, EOS], [50, 60, 70, 80, EOS]], None)
    batch = batch_of(trainer, [0, 1])
    loss = trainer._compute_loss(trainer.model, batch)
    padded = batch | {"completion_ids": batch["completion_ids"].masked_fill(batch["completion_mask"] == 0, 99)}
    assert torch.equal(trainer._compute_loss(trainer.model, padded), loss)
    shorter = batch | {"completion_mask": batch["completion_mask"].clone()}
    shorter["completion_mask"][0, 1] = 0
    assert not torch.equal(trainer._compute_loss(trainer.model, shorter), loss)


def test_the_teachers_logits_are_not_part_of_the_batch(tmp_path):
    trainer = opsd(tmp_path)
    batch = batch_of(trainer, [0, 1, 2])
    vocabulary = trainer.model.config.vocab_size
    assert all(vocabulary not in tensor.shape for tensor in batch.values() if isinstance(tensor, torch.Tensor))


def test_training_brings_the_student_nearer_to_its_teacher(tmp_path):
    trainer = opsd(tmp_path, problems=SOLVED[:1], per_device_train_batch_size=1, max_steps=15, weight_decay=0.0)
    trainer.train()
    curve = [entry["opsd/divergence"] for entry in trainer.state.log_history if "opsd/divergence" in entry]
    assert len(curve) == 15
    assert curve[-1] < 0.7 * curve[0]


# ---- teachers


@pytest.mark.parametrize("teacher", ["live", "frozen", "ema", "periodic"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_policy_is_back_bitwise_after_its_teacher(tmp_path, teacher, adapter):
    trainer = opsd(tmp_path, teacher=teacher, peft_config=LoraConfig(**LORA) if adapter else None)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.01)
    before = weights_of(trainer.model)
    trainer._compute_loss(trainer.model, batch_of(trainer, [0, 1])).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.model.training


def test_the_default_teacher_is_the_initial_policy(tmp_path):
    trainer = opsd(tmp_path, max_steps=2)
    assert trainer.args.teacher == "frozen"
    initial = exact_copy(trainer.model)
    trainer.train()
    batch = batch_of(trainer, [0])
    seen = {}
    original = trainer._completion_logits

    def record(model, *arguments, **options):
        logits = original(model, *arguments, **options)
        seen.setdefault("teacher", logits.detach())
        return logits

    trainer._completion_logits = record
    trainer._compute_loss(trainer.model, batch)
    completion = batch["completion_ids"][0][batch["completion_mask"][0].bool()].tolist()
    prompt = trainer.renderer.reference_ids(SOLVED[0].text, SOLVED[0].solution)
    expected = plain_distributions(initial, prompt, completion, 1.0)
    torch.testing.assert_close(
        seen["teacher"][0].log_softmax(-1), torch.tensor(expected), rtol=1e-4, atol=1e-4, check_dtype=False
    )


def test_no_gradient_reaches_the_teacher_and_dropout_is_off_for_it(tmp_path):
    model = make_model(attention_dropout=0.5)
    trainer = opsd(tmp_path, model=model, teacher="live")
    batch = batch_of(trainer, [0, 1])
    seen = []
    original = trainer._completion_logits

    def record(*arguments, **options):
        seen.append(original(*arguments, **options))
        return seen[-1]

    trainer._completion_logits = record
    for _ in range(2):
        trainer._compute_loss(trainer.model, batch)
    first_teacher, first_student, second_teacher, second_student = seen
    assert not first_teacher.requires_grad
    assert first_student.requires_grad
    assert torch.equal(first_teacher, second_teacher)
    assert not torch.equal(first_student, second_student)


# ---- references


def test_the_teacher_sees_the_reference_and_the_student_does_not(tmp_path):
    for reference, shown in (("solution", [p.solution for p in SOLVED]), ("answer", [p.answer for p in SOLVED])):
        trainer = opsd(tmp_path, reference=reference)
        for row, text in zip(trainer.train_dataset, shown, strict=True):
            block = REFERENCE_BLOCK.format(reference=text)
            assert block in trainer.renderer.text(row["teacher_prompt"])
            assert "reference" not in str(row["prompt"])


@pytest.mark.parametrize(
    ("problems", "reference", "message"),
    [
        (PROBLEMS, "solution", "6 of 6 problems have no reference solution"),
        ([*SOLVED[:4], *PROBLEMS[4:]], "solution", "2 of 6 problems have no reference solution"),
        ([replace(SOLVED[0], solution="  "), *SOLVED[1:]], "solution", "1 of 6 problems have no reference solution"),
        ([Problem(id="a", text="x?", answer="", reference="{}"), *SOLVED], "answer", "1 of 7 .* no reference answer"),
    ],
)
def test_a_missing_reference_is_refused_with_counts_and_never_replaced(tmp_path, problems, reference, message):
    with pytest.raises(DataError, match=message) as caught:
        opsd(tmp_path, problems=problems, reference=reference)
    assert "\n" not in str(caught.value)


def test_a_reference_that_does_not_fit_is_refused_with_counts(tmp_path):
    long = [replace(SOLVED[0], solution="so " * 400), *SOLVED[1:]]
    with pytest.raises(PromptError, match="1 of 6 teacher prompts are too long"):
        opsd(tmp_path, problems=long)


# ---- logs


def test_metrics_are_all_there_and_finite(tmp_path):
    trainer = opsd(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    trainer.train()
    logged = trainer.state.log_history[0]
    names = {"opsd/divergence", "opsd/teacher_entropy", "opsd/loss", "entropy", "success_rate"}
    assert names <= set(logged)
    assert all(math.isfinite(logged[name]) for name in names)
    assert logged["loss"] == pytest.approx(logged["opsd/loss"], abs=1e-5)
    assert logged["opsd/divergence"] > 0
    assert not any(name.startswith("sgsd/") for name in logged)


def test_the_model_card_names_the_method_and_its_paper(tmp_path):
    trainer = opsd(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    assert "2601.18734" in card
    assert "- opsd" in card
