from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from sgsd.data.problems import Problem
from sgsd.errors import DataError
from sgsd.objectives import logprobs as tiles
from sgsd.prompts import REFERENCE_BLOCK
from sgsd.scoring import heads

from ..conftest import make_model
from ..reference import exact_copy
from .tiny import (
    EIGHT_SOLVED,
    EOS,
    LORA,
    PROBLEMS,
    SOLVED,
    always,
    batch_of,
    cut,
    loss_and_gradients,
    make_trainer,
    plain_distributions,
    prompted_rollouts,
    render,
    rows,
)


def opsd(folder, **settings):
    return make_trainer(folder, method="opsd", **{"stub": True} | settings)


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
        {"divergence": "jsd", "score_temperature": 0.8},
        {"divergence_clip": 0.02, "num_generations": 2},
    ],
)
def test_the_loss_equals_plain_loops_over_prompts_written_out_by_hand(tmp_path, settings):
    trainer = opsd(tmp_path, teacher="live", **settings)
    numbers = [0, 0, 1, 1] if "num_generations" in settings else [0, 1, 2, 3]
    loss = trainer._compute_loss(trainer.model, batch_of(trainer, numbers)).item()

    # from here on nothing of the trainer's is used but its weights
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
        sides = [plain_distributions(trainer.model, p, completion, temperature).tolist() for p in (prompt, teacher)]
        tokens = [
            plain_token(
                q,
                p,
                settings.get("divergence", "forward_kl"),
                0.5,
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
    settings = {"num_generations": G, "per_device_train_batch_size": 8, "divergence": divergence}
    trainer = opsd(tmp_path, problems=EIGHT_SOLVED, **settings)
    batch = batch_of(trainer, [n for n in range(4) for _ in range(2)] if G > 1 else [0, 1, 2, 3, 4, 5, 0, 1])
    whole, whole_gradient = loss_and_gradients(trainer, [batch])
    assert max(gradient.abs().max() for gradient in whole_gradient) > 1e-3
    for size in (1, 2, 4):
        total, gradient = loss_and_gradients(trainer, cut(batch, size), steps=8 // size)
        assert total == pytest.approx(whole, abs=1e-5)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outcome", [None, 0.0, 1.0])
def test_verdicts_do_not_enter_the_loss(tmp_path, outcome):
    losses = [
        opsd(tmp_path, truncated="undecided", reward=always(None)),
        opsd(tmp_path, reward=always(outcome)),
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


# ---- teachers


class Sides:
    """What the divergence was given: logits of both sides, tile by tile."""

    def __init__(self, monkeypatch):
        self.student, self.teacher = [], []
        original = heads.token_divergence

        def record(student, teacher, *arguments, **options):
            self.student.append(student)
            self.teacher.append(teacher)
            return original(student, teacher, *arguments, **options)

        monkeypatch.setattr(heads, "token_divergence", record)


def test_no_gradient_reaches_the_teacher_and_dropout_is_off_for_it(tmp_path, monkeypatch):
    model = make_model(attention_dropout=0.5)
    trainer = opsd(tmp_path, model=model, teacher="live")
    batch = batch_of(trainer, [0, 1])
    sides = Sides(monkeypatch)
    for _ in range(2):
        trainer._compute_loss(trainer.model, batch)
    first, second = sides.teacher
    assert not first.requires_grad
    assert sides.student[0].requires_grad
    assert torch.equal(first, second)
    assert not torch.equal(*sides.student)


# ---- tiles


@pytest.fixture
def tiles_of_three_rows(monkeypatch):
    monkeypatch.setitem(tiles._TILE_LOGITS, "cpu", 3 * 264)


class LargestTensor(TorchDispatchMode):
    """The most elements that the result of any operation has, forward and backward; views count by their own size."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        found = result if isinstance(result, tuple | list) else [result]
        sizes = [tensor.numel() for tensor in found if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("teacher", ["live", "frozen"])
def test_rows_times_vocabulary_is_never_held_whole(tmp_path, monkeypatch, teacher):
    """At 029fdea both sides' logits were: two tensors of rows times vocabulary, the student's kept for the way back."""
    vocabulary = 8192  # so large that nothing else of the model comes near
    model = make_model(vocab_size=vocabulary)
    trainer = opsd(tmp_path, model=model, teacher=teacher, per_device_train_batch_size=6, max_completion_length=64)
    trainer._generate_single_turn = lambda *_, **__: ([[40 + n] * 63 + [EOS] for n in range(6)], None)
    batch = batch_of(trainer, range(6))
    tokens = int(batch["completion_mask"].sum())
    largest = {}
    for tile in (3, tokens):
        monkeypatch.setitem(tiles._TILE_LOGITS, "cpu", tile * vocabulary)
        with LargestTensor() as seen:
            trainer._compute_loss(trainer.model, batch).backward()
        largest[tile] = seen.elements
    assert largest[tokens] >= tokens * vocabulary, "the measure would not see it"
    assert largest[3] < tokens * vocabulary / 2


def divergence_gradients(student, teacher, prompts, teacher_prompts, completions, *, divergence="forward_kl"):
    """Gradients, by parameter, of the mean over rows of the mean over tokens of the divergence: float64, row by row."""
    exact, fixed = exact_copy(student).double().eval(), exact_copy(teacher).double().eval()
    exact.zero_grad()
    for prompt, shown, completion in zip(prompts, teacher_prompts, completions, strict=True):
        log_q = exact(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        with torch.no_grad():
            logits = fixed(input_ids=torch.tensor([[*shown, *completion]])).logits[0, len(shown) - 1 : -1]
        log_p = logits.log_softmax(-1)
        if divergence == "forward_kl":
            tokens = (log_p.exp() * (log_p - log_q)).sum(-1)
        else:
            tokens = (log_q.exp() * (log_q - log_p)).sum(-1)
        (tokens.mean() / len(prompts)).backward()
    return {name: parameter.grad for name, parameter in exact.named_parameters() if parameter.requires_grad}


def nudge(model, by):
    """Move the trainable parameters, as training does."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


ADAPTERS = {
    "whole": None,
    "LoRA": LORA,
    "LoRA and its head": {**LORA, "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("teacher", ["live", "frozen", "ema", "periodic"])
@pytest.mark.parametrize(("adapter", "tied"), [*((name, False) for name in ADAPTERS), ("whole", True), ("LoRA", True)])
def test_the_gradient_equals_float64_loops_whoever_teaches_and_whatever_is_trained(
    tmp_path, tiles_of_three_rows, teacher, adapter, tied, checkpointing
):
    """The head teaches with the teacher's weights where it is trained, in the backward's tiles too."""
    model = make_model(tie_word_embeddings=tied, initializer_range=0.1)
    peft_config = LoraConfig(**ADAPTERS[adapter]) if ADAPTERS[adapter] else None
    trainer = opsd(
        tmp_path,
        model=model,
        teacher=teacher,
        peft_config=peft_config,
        **{"ema": {"teacher_ema_decay": 0.25}, "periodic": {"teacher_sync_steps": 2}}.get(teacher, {}),
        divergence="reverse_kl" if teacher == "ema" else "forward_kl",
        activation_checkpointing=checkpointing,
    )
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    taught_by = {"frozen": exact_copy(trainer.model)}
    for step in (1, 2):
        nudge(trainer.model, 0.05 * step)
        trainer.teacher_weights.after_optimizer_step(step)
        if step == 2:
            taught_by["periodic"] = exact_copy(trainer.model)
    if teacher == "ema":
        taught_by["ema"] = exact_copy(trainer.model)
        trained = [parameter for parameter in taught_by["ema"].parameters() if parameter.requires_grad]
        for parameter, held in zip(trained, trainer.teacher_weights._held, strict=True):
            parameter.data.copy_(held)
    nudge(trainer.model, 0.02)
    batch = batch_of(trainer, [0, 1, 2])
    _, gradients = loss_and_gradients(trainer, [batch])

    completions = [ids[kept.bool()].tolist() for ids, kept in zip(batch["completion_ids"], batch["completion_mask"])]  # noqa: B905
    expected = divergence_gradients(
        trainer.model,
        taught_by.get(teacher, trainer.model),
        [trainer.renderer.student_ids(row["prompt"]) for row in rows(trainer, [0, 1, 2])],
        [row["teacher_prompt"] for row in rows(trainer, [0, 1, 2])],
        completions,
        divergence=trainer.args.divergence,
    )
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for (name, parameter), gradient in zip(trainer.model.named_parameters(), gradients, strict=True):
        if parameter.requires_grad:
            wanted = expected[name].float()
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 * max(1e-2, wanted.abs().max().item()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_under_autocast_too_the_teachers_head_is_the_teachers(tmp_path, tiles_of_three_rows, teacher, tied):
    model = make_model(tie_word_embeddings=tied, initializer_range=0.1)
    trainer = opsd(tmp_path, model=model, teacher=teacher, bf16=True)
    initial = exact_copy(trainer.model)
    head = trainer.model.get_output_embeddings().weight
    with torch.no_grad():
        head.add_(0.3 * torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch_of(trainer, [0, 1, 2])
    loss, gradients = loss_and_gradients(trainer, [batch])

    prompts = [trainer.renderer.student_ids(row["prompt"]) for row in rows(trainer, [0, 1, 2])]
    taught = [row["teacher_prompt"] for row in rows(trainer, [0, 1, 2])]
    completions = [ids[kept.bool()].tolist() for ids, kept in zip(batch["completion_ids"], batch["completion_mask"])]  # noqa: B905
    divergences = []
    for prompt, shown, completion in zip(prompts, taught, completions, strict=True):
        q = plain_distributions(trainer.model, prompt, completion)
        p = plain_distributions(initial, shown, completion)
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
    assert loss == pytest.approx(sum(divergences) / 3, rel=0.02)
    expected = divergence_gradients(trainer.model, initial, prompts, taught, completions)
    for (name, _), gradient in zip(trainer.model.named_parameters(), gradients, strict=True):
        wanted = expected[name].float()
        assert (gradient - wanted).norm() < 0.1 * wanted.norm(), name


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
