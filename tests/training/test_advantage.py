"""The stabilised form in the trainer: TRL's loss with the teachers in its advantage, trust from the ledger."""

from __future__ import annotations

import shutil

import pytest
import torch
from trl import GRPOTrainer

from sgsd.bank import ItemRecord, Ledger
from sgsd.bank.credit import credit, trust
from sgsd.errors import ConfigError

from ..conftest import make_model, make_tokenizer
from .test_resume import run
from .test_sgsd import WeightedRetriever, assert_close, batch_of, by_first_id, loss_and_gradients
from .tiny import make_config, make_trainer

HELPS = ItemRecord(uses=40, active=40, positive=38, negative=2, positive_success=19, negative_success=1,
                   positive_failure=19, negative_failure=1, successes=20, failures=20)  # fmt: skip
HARMS = ItemRecord(uses=40, active=40, positive=2, negative=38, positive_success=1, negative_success=19,
                   positive_failure=1, negative_failure=19, successes=20, failures=20)  # fmt: skip


def advantage_trainer(folder, **settings):
    defaults = {"num_generations": 4, "per_device_train_batch_size": 8, "objective": "advantage", "stub": True}
    return make_trainer(folder, reward=by_first_id, **defaults | {"grpo_weight": 0.6, "sgsd_weight": 0.5} | settings)


def plain_grpo(folder, trainer, **settings):
    plain = GRPOTrainer(
        model=make_model(),
        reward_funcs=by_first_id,
        args=make_config(folder, method="grpo", num_generations=4, per_device_train_batch_size=8, **settings),
        train_dataset=trainer.train_dataset,
        processing_class=make_tokenizer(),
    )
    plain.current_gradient_accumulation_steps = 1
    plain.model.train()
    return plain


def with_ledger(trainer, *records):
    """The first pair of the bank has the first record, and so on."""
    items = {}
    for skill, mistake, record in zip(trainer.bank.skills, trainer.bank.mistakes, records, strict=False):
        items |= {skill.id: record, mistake.id: record}
    trainer.recorder.ledger = Ledger(items)
    return trainer


@pytest.mark.parametrize("score_temperature", [1.0, 1.1])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_loss_is_trls_with_the_teachers_in_its_advantage(tmp_path, score_temperature, loss_type):
    trainer = advantage_trainer(tmp_path, score_temperature=score_temperature, loss_type=loss_type)
    with_ledger(trainer, HELPS, HARMS, HELPS)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    got, gradient = loss_and_gradients(trainer, [batch])

    # The advantage by loops over floats, from the scores in the batch and a student's forward of its own.
    ids, kept = batch["completion_ids"], batch["completion_mask"].bool()
    B, T = ids.shape
    expected = torch.zeros(B, T)
    with torch.no_grad():
        for b in range(B):
            prompt = batch["prompt_ids"][b][batch["prompt_mask"][b].bool()]
            whole = torch.cat([prompt, ids[b][kept[b]]]).unsqueeze(0)
            logps = (trainer.model(whole).logits[0] / score_temperature).log_softmax(-1)
            alphas = batch["teacher_weights"][b].tolist()
            taus = batch["teacher_trust"][b].tolist()
            total = sum(alpha * tau for alpha, tau in zip(alphas, taus, strict=True))
            for t in range(T):
                if batch["score_mask"][b, t]:
                    student = logps[len(prompt) + t - 1, ids[b, t]].item()
                    for k, (alpha, tau) in enumerate(zip(alphas, taus, strict=True)):
                        gap = max(-3.0, min(3.0, batch["teacher_logps"][b, k, t].item() - student))
                        expected[b, t] += max(taus) * alpha * tau / total * gap
    assert expected.abs().max() > 0.01
    advantages = 0.6 * batch["advantages"].unsqueeze(1) + 0.5 * expected
    plain = plain_grpo(tmp_path, trainer, loss_type=loss_type)
    loss, plain_gradient = loss_and_gradients(plain, [batch | {"advantages": advantages}])
    assert got == pytest.approx(loss, abs=1e-5)
    assert_close(gradient, plain_gradient, 1e-4)


def test_without_the_teachers_weight_it_is_grpo(tmp_path):
    trainer = advantage_trainer(tmp_path, grpo_weight=1.0, sgsd_weight=0.0)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    got = loss_and_gradients(trainer, [batch])
    expected = loss_and_gradients(plain_grpo(tmp_path, trainer), [batch])
    assert batch["advantages"].abs().max() > 0
    assert got[0] == pytest.approx(expected[0], abs=1e-6)
    assert_close(got[1], expected[1])


def test_trust_is_the_ledgers_of_before_the_batch_and_that_of_the_worse_item(tmp_path):
    trainer = advantage_trainer(tmp_path, retriever="bm25")
    skill, mistake = trainer.bank.skills[0], trainer.bank.mistakes[0]
    trainer.recorder.ledger = Ledger({skill.id: HELPS, mistake.id: HARMS})
    seen = batch_of(trainer, [0] * 8)["teacher_trust"]
    assert seen.shape == (8, 3)
    assert bool(((seen >= 0) & (seen <= 1)).all())
    assert trust(ItemRecord()) == 0.5
    assert trust(HELPS) > 0.999
    assert trust(HELPS, HARMS) == trust(HARMS) < 0.001
    assert (trust(HELPS) > 0.975) == (credit(HELPS).low > 0.5)
    assert trainer._trust(trainer._teacher_pools([trainer.train_dataset[0]["problem"]])[0], 99) == 1.0  # padding
    equal = advantage_trainer(tmp_path, teacher_trust="equal")
    equal.recorder.ledger = Ledger({skill.id: HARMS, mistake.id: HARMS})
    assert batch_of(equal, [0] * 8)["teacher_trust"].eq(1).all()


def test_a_trusted_teacher_draws_the_policy_towards_itself(tmp_path):
    """Without any reward: the gap to the trusted teacher closes, that to the other need not."""
    trainer = advantage_trainer(
        tmp_path,
        grpo_weight=0.0,
        sgsd_weight=1.0,
        teacher="frozen",
        num_teachers=2,
        retriever_object=WeightedRetriever(),
    )
    with_ledger(trainer, HELPS, HARMS, HARMS, HARMS)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    gaps = []
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    for _ in range(8):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, batch).backward()
        gaps.append(trainer._metrics["train"]["sgsd/teacher_advantage"][-1])
        optimizer.step()
    assert gaps[-1] < gaps[0]


def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(tmp_path):
    settings = {"objective": "advantage", "grpo_weight": 1.0, "teacher": "frozen"}
    straight = run(tmp_path, **settings)
    straight.train()
    final = {name: value.clone() for name, value in straight.model.state_dict().items()}
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = run(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert [name for name, value in resumed.model.state_dict().items() if not torch.equal(final[name], value)] == []
    assert resumed.ledger == straight.ledger
    trusted = [entry["sgsd/trust"] for entry in straight.state.log_history if "sgsd/trust" in entry]
    assert len(set(trusted)) > 1  # the ledger had its say


def test_unknown_objectives_and_trusts_are_refused(tmp_path):
    for setting in ({"objective": "loss"}, {"teacher_trust": "blind"}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            make_config(tmp_path, **setting)
