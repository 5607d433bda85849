from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig

from sgsd.errors import ConfigError, PromptError
from sgsd.prompts import PromptRenderer, user_turn_ids
from sgsd.trainers.rehearsal import TURN_TOKENS, Rehearsal

from ..conftest import make_model, make_tokenizer
from ..reference import exact_copy
from .tiny import EOS, LORA, always, batch_of, logged_means, make_trainer, plain_distributions

FROZEN = {"teacher": "frozen", "objective": "correction", "reward": always(0.0), "stub": True}


def rehearsing(folder, weight=1.0, *, lora=False, **settings):
    peft_config = LoraConfig(**LORA) if lora else None
    texts = {"rehearsal_texts": 5} if weight else {}
    return make_trainer(folder, peft_config=peft_config, **FROZEN | {"rehearsal_weight": weight} | texts | settings)


def shaken(model):
    """Other weights, of what is trained."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def plain(model):
    """Its weights, without adapter layers."""
    copy = exact_copy(model)
    return copy.merge_and_unload() if hasattr(copy, "merge_and_unload") else copy


@pytest.mark.parametrize(("lora", "bf16"), [(False, False), (True, False), (False, True)])
def test_the_loss_is_the_mean_kl_from_the_start_in_plain_loops(tmp_path, lora, bf16):
    trainer = rehearsing(tmp_path, 3.0, lora=lora, bf16=bf16)
    began = plain(trainer.model)
    batch = batch_of(trainer, [0, 1, 2, 3, 4, 5, 0, 1])  # two texts
    trainer._compute_loss(trainer.model, batch)
    shaken(trainer.model)
    if bf16:  # the head is computed for both sides in one autocast region
        head = trainer.model.get_output_embeddings().weight
        head.data.add_(0.5 * torch.randn_like(head))
    found = {}
    for weight in (0.0, 3.0):
        trainer.args.rehearsal_weight = weight
        found[weight] = trainer._compute_loss(trainer.model, batch)
    read = trainer.rehearsal.batch(2, (0, 0), torch.device("cpu"))[0]
    now, rows = plain(trainer.model), []
    for number in range(2):
        prompt, written = (
            read[f"{part}_ids"][number][read[f"{part}_mask"][number].bool()].tolist()
            for part in ("prompt", "completion")
        )
        p, q = (plain_distributions(model, prompt, written) for model in (began, now))
        rows.append(sum(float((p[t].exp() * (p[t] - q[t])).sum()) for t in range(len(written))) / len(written))
    assert read["prompt_ids"].shape[0] == 2
    assert min(rows) > 1e-3
    assert (found[3.0] - found[0.0]).item() == pytest.approx(3.0 * sum(rows) / len(rows), rel=0.02 if bf16 else 1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_nothing_is_forgotten_before_the_first_step(tmp_path, lora):
    trainer = rehearsing(tmp_path, lora=lora)
    kl = trainer._rehearsal_loss(trainer.model, 4)
    assert abs(kl.item()) < 1e-6
    kl.backward()
    assert max(float(p.grad.abs().max()) for p in trainer.model.parameters() if p.grad is not None) < 1e-5


def kl_after_training(folder, weight):
    texts = {"rehearsal_texts": 8} if weight else {}
    trainer = rehearsing(folder, weight, max_steps=12, learning_rate=5e-3, teacher_trust="equal", **texts)
    trainer.train()
    if not weight:
        trainer.rehearsal = Rehearsal(trainer.renderer, ["1 + 1?"], count=8, seed=trainer.args.seed)
    return trainer._rehearsal_loss(trainer.model, 32).item(), trainer


def test_a_run_that_rehearses_stays_nearer_to_its_start(tmp_path):
    without, _ = kl_after_training(tmp_path / "without", 0.0)
    rehearsed, trainer = kl_after_training(tmp_path / "with", 10.0)
    assert rehearsed < without / 2
    logged = [row["sgsd/rehearsal"] for row in trainer.state.log_history if "sgsd/rehearsal" in row]
    assert len(logged) == 12
    assert logged[0] < 1e-6 < logged[-1]


def test_texts_are_turns_and_answers_written_by_the_model_as_it_began(tmp_path):
    trainer = rehearsing(tmp_path, lora=True)
    shaken(trainer.model)  # the adapter: no part of the beginning
    trainer._rehearsal_loss(trainer.model, 4)
    other = rehearsing(tmp_path, lora=True)
    other._rehearsal_loss(other.model, 4)
    texts = trainer.rehearsal.texts
    assert texts == other.rehearsal.texts
    assert len(set(map(tuple, texts))) == 5
    for (_, closing), text in zip(trainer.rehearsal._around_turn, trainer.rehearsal.texts, strict=True):
        places = [n for n in range(len(text)) if text[n : n + len(closing)] == closing]
        assert places
        assert places[0] <= TURN_TOKENS
        assert 1 <= len(text) - places[0] - len(closing) <= TURN_TOKENS


def test_what_a_step_reads_follows_from_seed_and_step(tmp_path):
    trainer = rehearsing(tmp_path)
    trainer._rehearsal_loss(trainer.model, 4)
    read = [
        trainer.rehearsal.batch(2, (step, 0), torch.device("cpu"))[0]["completion_ids"].tolist()
        for step in (1, 1, 2, 3)
    ]
    assert read[0] == read[1]
    assert len({str(ids) for ids in read}) > 1
    assert len(trainer.rehearsal.batch(100, (1, 0), torch.device("cpu"))[0]["prompt_ids"]) == 5  # there are no more


@pytest.mark.parametrize(
    ("rollouts", "parts", "texts"),
    [(1, 8, [1, 0, 0, 0, 1, 0, 0, 0]), (1, 2, [1, 0]), (2, 3, [1, 0, 0]), (6, 2, [2, 1]), (8, 2, [2, 2]), (5, 1, [1])],
)
def test_a_step_reads_a_quarter_as_many_texts_as_rollouts_whatever_its_micro_batches(tmp_path, rollouts, parts, texts):
    trainer = rehearsing(tmp_path, rehearsal_texts=8, gradient_accumulation_steps=parts, steps_per_generation=1)
    trainer._rehearsal_loss(trainer.model, 4)
    shaken(trainer.model)
    logged_means(trainer)
    trainer.current_gradient_accumulation_steps = parts
    read = []
    batch = trainer.rehearsal.batch
    trainer.rehearsal.batch = lambda count, *others: [read.append(count), batch(count, *others)][1]
    losses, counts = [], []
    for trainer._step in range(3 * parts, 4 * parts):
        before = len(read)
        losses.append(trainer._rehearsal_loss(trainer.model, rollouts).item())
        counts.append(sum(read[before:]))
    assert counts == texts
    assert sum(losses) / parts == pytest.approx(logged_means(trainer)["sgsd/rehearsal"], rel=1e-5)
    assert sum(losses) > 0.01


@pytest.mark.parametrize(
    ("start", "end"), [("", ""), ("What is", ""), ("", "Go."), ("What is", "Finish with a number.")]
)
def test_a_turn_is_what_stands_around_the_users_words(start, end):
    tokenizer = make_tokenizer()
    words = f"{start} Hello".strip() + f"\n\n{end}".rstrip()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
    )
    around = user_turn_ids(tokenizer, start=start, end=end)
    assert [tokenizer.decode(part) for part in around] == re.split("Hello", rendered)


def test_half_of_the_turns_begin_as_tasks_do_and_half_end_with_the_instruction(tmp_path):
    trainer = rehearsing(tmp_path, rehearsal_texts=8)
    around = [[make_tokenizer().decode(part) for part in parts] for parts in trainer.rehearsal._around_turn]
    assert [re.search(r"\d \+ ?$", opening) is not None for opening, _ in around] == [True, True, False, False] * 2
    assert [closing.lstrip().startswith("Go.") for _, closing in around] == [False, True] * 4


@pytest.mark.parametrize("teacher", ["live", "ema", "periodic"])
def test_a_start_that_nobody_keeps_is_refused(tmp_path, teacher):
    with pytest.raises(ConfigError, match="rehearsal_weight needs other settings"):
        make_trainer(tmp_path, rehearsal_weight=1.0, teacher=teacher)


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="rehearsal_weight needs a chat template"):
        Rehearsal(PromptRenderer(tokenizer, text_only=True), ["1 + 1?"], count=2, seed=0)


def test_ends_of_turns_are_no_words_of_theirs(tmp_path):
    model = make_model()
    model.generation_config.eos_token_id = [EOS, *range(100, 250)]  # so that turns end soon
    trainer = rehearsing(tmp_path, model=model)
    trainer._rehearsal_loss(trainer.model, 4)
    for (_, closing), text in zip(trainer.rehearsal._around_turn, trainer.rehearsal.texts, strict=True):
        place = next(n for n in range(len(text)) if text[n : n + len(closing)] == closing)
        assert place < TURN_TOKENS
        assert not {EOS, *range(100, 250)} & set(text[:place])


def test_the_model_answers_prompts_of_a_data_set(tmp_path):
    file = tmp_path / "prompts.jsonl"
    asked = [f"Say {word}." for word in ("one", "two", "three", "four", "five", "six", "seven")]
    file.write_text("".join(json.dumps({"problem": one}) + "\n" for one in asked))
    trainer = rehearsing(tmp_path, rehearsal_dataset=str(file))
    assert abs(trainer._rehearsal_loss(trainer.model, 4).item()) < 1e-6
    read, _ = trainer.rehearsal.batch(2, (0, 0), torch.device("cpu"))
    plain = PromptRenderer(make_tokenizer(), instruction="", thinking=trainer.args.thinking)
    rendered = [plain.student_ids(one) for one in asked]
    for prompt, mask in zip(read["prompt_ids"], read["prompt_mask"], strict=True):
        assert prompt[mask.bool()].tolist() in rendered  # without the run's instruction
    assert len(trainer.rehearsal.texts) == 5
    assert all(1 <= len(text) <= TURN_TOKENS for text in trainer.rehearsal.texts)
    small = rehearsing(tmp_path, rehearsal_dataset=str(file), rehearsal_texts=20)
    small._rehearsal_loss(small.model, 4)
    assert len(small.rehearsal.texts) == len(asked)


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"problem": one}) + "\n" for one in ("Say one.", "word " * 900)))
    with pytest.raises(PromptError, match="too long: got 1 of 2, such as prompts-1 of "):
        rehearsing(tmp_path, rehearsal_dataset=str(file))


@pytest.mark.parametrize("lora", [False, True])
def test_text_prompts_are_answered_as_they_are_and_resume_alike(tmp_path, lora):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} and "}) + "\n" for n in range(6)))
    texts = []
    for _ in range(2):
        trainer = rehearsing(tmp_path, lora=lora, rehearsal_dataset=str(file))
        assert abs(trainer._rehearsal_loss(trainer.model, 4).item()) < 1e-6
        texts.append(trainer.rehearsal.texts)
        openings = [make_tokenizer().decode(opening) for opening, _ in trainer.rehearsal._around_turn]
        assert {text[-4:] for text in openings} == {"and "}
        assert not any("user" in text for text in openings)
    assert texts[0] == texts[1]
