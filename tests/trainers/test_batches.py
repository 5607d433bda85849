"""Rollouts of several generation batches in one optimizer step, and what a rollout's environment wrote."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from datasets import Dataset

from sgsd.bank import Ledger
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.scoring.heads import Select
from sgsd.scoring.logprobs import flat_targets
from sgsd.scoring.student import StudentPass

from .tiny import EOS, SOLVED, batch_of, make_bank, make_trainer


def of_prompt(prompt_ids, *_, **__):
    return [[50 + n, 60 + sum(ids) % 7, 61, EOS] for n, ids in enumerate(prompt_ids)], None


def thirds(problem, **_):
    """A third of the problems is solved."""
    return [float(int(text.split()[0]) % 3 == 0) for text in problem]


@pytest.mark.parametrize(("generation", "accumulation"), [(4, 4), (2, 4), (1, 4), (3, 2), (4, 2)])
def test_the_ledger_counts_every_rollout_under_its_own_outcome(tmp_path, generation, accumulation):
    """Seen before the mend: rollouts of the second batch joined those of the first, under their outcome."""
    trainer = make_trainer(
        tmp_path,
        problems=[Problem(id=f"p{n}", text=f"{n} + {n}?", answer=str(2 * n)) for n in range(24)],
        reward=thirds,
        steps_per_generation=generation,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=2,
        max_steps=2,
        num_teachers=3,
        support_threshold=0.0,
        log_completions=True,
    )
    trainer._generate_single_turn = of_prompt
    seen: Counter[int] = Counter()
    numbers: list[list[int]] = [[]]
    observe, end_step = trainer.training_ledger.observe, trainer.training_ledger.end_step

    def watched(rows, items, outcome, scored, support, stance):
        numbers[-1] += rows.tolist()
        for sign, count in zip(outcome.tolist(), scored.sum(1).tolist(), strict=True):
            seen[sign] += 2 * count  # a teacher's skill and its mistake
        observe(rows, items, outcome, scored, support, stance)

    def ended():
        numbers.append([])
        return end_step()

    trainer.training_ledger.observe, trainer.training_ledger.end_step = watched, ended
    trainer.train()
    records = trainer.ledger.items.values()
    assert sum(record.successes for record in records) == seen[1] > 0
    assert sum(record.failures for record in records) == seen[-1] > 0
    assert all(len(set(step)) == len(step) for step in numbers)


def clustered(tmp_path, **settings):
    """A trainer of four rollouts a problem, all with one outcome and all unlike other problems'."""
    trainer = make_trainer(
        tmp_path,
        problems=[Problem(id=f"p{n}", text=f"{n} + {n}?", answer=str(2 * n)) for n in range(24)],
        reward=lambda problem, **_: [float(int(text.split()[0]) % 2) for text in problem],
        num_generations=4,
        per_device_train_batch_size=2,
        learning_rate=1e-12,
        bank=make_bank(1),
        num_teachers=1,
        support_threshold=0.0,
        shuffle_dataset=False,
        **settings,
    )
    trainer._generate_single_turn = lambda prompts, *_, **__: ([[5 + len(ids) % 7, 9, EOS] for ids in prompts], None)
    return trainer


@pytest.mark.parametrize(("generation", "accumulation"), [(4, 1), (4, 3), (8, 2), (6, 4)])
def test_a_problems_rollouts_are_one_cluster_whatever_the_steps_that_train_on_them(tmp_path, generation, accumulation):
    """Seen before the mend: with a batch spread over four steps, a problem's four rollouts counted as four problems."""
    trainer = clustered(
        tmp_path,
        steps_per_generation=generation,
        gradient_accumulation_steps=accumulation,
        max_steps=24 // accumulation,
    )
    trainer.train()
    at_once = clustered(tmp_path, steps_per_generation=4, gradient_accumulation_steps=4, max_steps=6)
    at_once.train()
    for id, record in at_once.ledger.items.items():
        assert record.products[4] == 4 * record.positive_success + 4 * record.negative_success > 0
        spread = trainer.ledger.items[id]
        assert (spread.counts, spread.products) == (record.counts, record.products)


def test_a_checkpoint_within_a_generation_batch_has_the_rollouts_so_far(tmp_path):
    settings = {"steps_per_generation": 4, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    trainer = clustered(tmp_path, **settings)
    trainer.train()
    assert trainer.ledger.total.uses == 2 * 12
    assert trainer.training_ledger.ledger.total.uses == 2 * 8
    assert Ledger.load(tmp_path / "ledger.json") == trainer.ledger
    resumed = clustered(tmp_path, **settings | {"max_steps": 10})
    resumed.restore(tmp_path / "checkpoint-6")
    assert resumed.training_ledger.ledger == trainer.ledger
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.ledger.total.uses == 2 * 20
    assert resumed.ledger == resumed.training_ledger.ledger  # new rollouts of whole batches


def environment(prompts, trainer):
    """The model wrote the first and the last two tokens."""
    render = trainer.processing_class.apply_chat_template
    ids = [render(p, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"] for p in prompts]
    completions = [[50 + n, 60, 61, 62, 63, EOS] for n in range(len(ids))]
    masks = [[1, 0, 0, 0, 1, 1] for _ in ids]
    logps = [[-1.0] * 6 for _ in ids]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logps, "env_mask": masks}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sgsd", {"support_threshold": 0.0}),
        ("sgsd", {"objective": "correction", "teacher_trust": "equal", "teacher": "frozen"}),
        ("sgsd", {"objective": "reweight", "teacher_trust": "equal", "num_generations": 2}),
        ("opsd", {}),
        ("grpo", {"num_generations": 2}),
    ],
)
def test_tokens_that_an_environment_wrote_have_no_gradient(tmp_path, method, settings):
    trainer = make_trainer(
        tmp_path,
        method=method,
        problems=SOLVED,
        reward=lambda completion_ids, **_: [float(n % 2) for n, _ in enumerate(completion_ids)],
        **settings,
    )
    trainer.rollout_func = environment
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    kept: list[torch.Tensor] = []

    def keep(_, __, hidden):
        if hidden.requires_grad:
            hidden.retain_grad()
            kept.append(hidden)

    trainer.model.model.norm.register_forward_hook(keep)
    trainer._compute_loss(trainer.model, batch).backward()
    (hidden,) = kept
    start = int(batch["prompt_mask"][0].sum()) - 1  # the state before a token predicts it
    of_tokens = hidden.grad[:, start : start + 6].abs().sum((0, 2)) > 0
    ends = method != "sgsd"  # SGSD does not count the token that ends a completion
    assert of_tokens.tolist() == [True, False, False, False, True, ends]
    assert not hidden.grad[:, start + 6 :].any()


def test_two_problems_under_one_prompt_have_their_own_teachers(tmp_path):
    rows = [{"prompt": "Solve it.", "problem": f"problem {n}", "answer": "1"} for n in range(4)]
    trainer = make_trainer(tmp_path, problems=Dataset.from_list(rows), reward=thirds_of_two)
    asked = []
    retrieve = trainer.retriever.retrieve
    trainer.retriever.retrieve = lambda problems, *rest: asked.extend(problems) or retrieve(problems, *rest)
    pools = trainer.retrieve([dict(row) for row in trainer.train_dataset])
    assert asked == [row["problem"] for row in rows]
    assert len({id(pool) for pool in pools}) == 4


def thirds_of_two(completions, **_):
    return [0.0 for _ in completions]


def test_a_run_none_of_whose_teachers_fits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no teacher's prompt of the first 6 problems fits: got room for 40 tokens"):
        make_trainer(tmp_path, max_prompt_length=40)


def test_a_head_in_float32_stays_so_under_autocast(tmp_path):
    ids, mask = torch.randint(2, 250, (4, 24)), torch.ones(4, 24, dtype=torch.long)
    off = {}
    for asked in (False, True):
        settings = {"method": "grpo", "num_generations": 2, "bf16": True, "cast_lm_head_to_fp32": asked}
        trainer = make_trainer(tmp_path / str(asked), **settings)
        with torch.no_grad():
            completion = ids[:, -12:]
            student = StudentPass(
                trainer.model,
                mask[:, -12:].bool(),
                lambda flat, completion=completion: Select(flat_targets(completion, None, flat), (1.0,)),
            )
            scored, _, _ = trainer._get_per_token_logps_and_entropies(student, ids, mask, 12, compute_entropy=True)
            with trainer.accelerator.autocast():
                hidden = trainer.model.model(input_ids=ids).last_hidden_state[:, -13:-1]
            logits = torch.nn.functional.linear(hidden.float(), trainer.model.lm_head.weight.float())
            right = logits.log_softmax(-1).gather(-1, completion[..., None]).squeeze(-1)
        off[asked] = float((scored - right).abs().max())
    assert off[True] < 1e-5 < 1e-3 < off[False]


def test_the_reference_models_head_is_in_float32_too(tmp_path, tiny_folder):
    trainer = make_trainer(
        tmp_path,
        stub=True,
        model=str(tiny_folder),
        bf16=True,
        cast_lm_head_to_fp32=True,
        num_generations=2,
        grpo_weight=1.0,
        num_iterations=2,
        beta=0.1,
    )
    batch = batch_of(trainer, [0, 0, 1, 1])
    torch.testing.assert_close(batch["ref_per_token_logps"], batch["old_per_token_logps"], rtol=0, atol=1e-6)


def test_the_table_of_an_evaluation_shows_no_teachers(tmp_path):
    trainer = make_trainer(
        tmp_path, eval_dataset=SOLVED[:2], log_completions=True, max_steps=2, eval_strategy="steps", eval_steps=1
    )
    trainer._generate_single_turn = of_prompt
    trainer.train()
    trainer.evaluate()
    logs = trainer._logs
    assert len(logs["extra"]["pairs"]) == len(logs["prompt"])
    assert not any(list(logs["extra"]["pairs"])[-2:])
