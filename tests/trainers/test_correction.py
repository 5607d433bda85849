"""Objectives on teachers' likeliest tokens: their values by loops, trust from the ledger, GRPO beside them, resume."""

from __future__ import annotations

import math

import pytest
import torch

from sgsd.bank import ItemRecord, Ledger
from sgsd.bank.credit import cautious_worth, sure_worth, trust, worth
from sgsd.scoring.teachers import control_prompt

from .tiny import (
    WeightedRetriever,
    assert_close,
    batch_of,
    by_first_id,
    cut,
    logged_means,
    loss_and_gradients,
    make_trainer,
    plain_distributions,
    rows,
    trls_own,
)

HELPS = ItemRecord(uses=40, active=40, positive=38, negative=2, positive_success=19, negative_success=1,
                   positive_failure=19, negative_failure=1, successes=20, failures=20)  # fmt: skip
HARMS = ItemRecord(uses=40, active=40, positive=2, negative=38, positive_success=1, negative_success=19,
                   positive_failure=1, negative_failure=19, successes=20, failures=20)  # fmt: skip


GROUPS = {"num_generations": 4, "per_device_train_batch_size": 8}


def correction_trainer(folder, **settings):
    defaults = {**GROUPS, "objective": "correction", "stub": True}
    return make_trainer(folder, reward=by_first_id, retriever_object=WeightedRetriever(), **defaults | settings)


def with_ledger(trainer, *records):
    """The first pair of the bank has the first record, and so on."""
    items = {}
    for skill, mistake, record in zip(trainer.bank.skills, trainer.bank.mistakes, records, strict=False):
        items |= {skill.id: record, mistake.id: record}
    trainer.training_ledger.ledger = Ledger(items)
    return trainer


def plain_student(trainer, batch, b, temperature):
    """A row's completion, its distributions after the plain prompt, and which of its tokens count."""
    kept = batch["completion_mask"][b].bool()
    completion = batch["completion_ids"][b][kept].tolist()
    prompt = batch["prompt_ids"][b][batch["prompt_mask"][b].bool()].tolist()
    distributions = plain_distributions(trainer.model, prompt, completion, temperature)
    return completion, distributions, batch["score_mask"][b][kept].tolist()


GUIDED = {"support_baseline": "control", "teacher_guidance": 1.5, "teacher": "frozen"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score_temperature": 0.8, "teacher_top_tokens": 3},
        {"support_baseline": "control"},
        {"ledger_share": 1.0},
        {**GUIDED, "support_clip": 0.2, "score_temperature": 0.8, "teacher_temperature": 0.5},
        {**GUIDED, "support_clip": 0.2, "teacher_top_tokens": 6, "max_tokens_per_chunk": 300},
        {**GUIDED, "support_clip": 0.2, "pad_to_multiple_of": 16},  # the batch is longer than what teachers score
    ],
)
def test_the_loss_equals_plain_loops(tmp_path, settings):
    trainer = with_ledger(correction_trainer(tmp_path, **settings), HELPS, HARMS, HELPS)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    got, _ = loss_and_gradients(trainer, [batch])
    temperature = settings.get("score_temperature", 1.0)
    of_teachers = settings.get("teacher_temperature", temperature)
    asked = rows(trainer, [0] * 4 + [1] * 4)
    pools = trainer.retrieve(asked)
    total = 0.0
    for b, pool in enumerate(pools):
        if int(batch["outcome"][b]) >= 0:
            continue
        completion, student, counted = plain_student(trainer, batch, b, temperature)
        taus = batch["teacher_trust"][b].tolist()
        shares = [alpha * tau for alpha, tau in zip(pool.weights, taus, strict=True)]
        limits = {"max_prompt_length": trainer.max_prompt_length, "seed": trainer.args.seed}
        other = control_prompt(asked[b]["prompt"], pool, trainer.bank, trainer.renderer, **limits)
        control = plain_distributions(trainer.model, other, completion, of_teachers)
        for k, teacher_prompt in enumerate(pool.prompts):
            teacher = plain_distributions(trainer.model, teacher_prompt, completion, of_teachers)
            weight = max(taus) * shares[k] / sum(shares)
            for t in range(len(completion)):
                if counted[t]:
                    likeliest = teacher[t].sort(descending=True).indices[: settings.get("teacher_top_tokens", 20)]
                    p = teacher[t, likeliest].exp().tolist()
                    if "teacher_guidance" in settings:
                        ratios = (teacher[t, likeliest] - control[t, likeliest]).clamp(-0.2, 0.2).exp().tolist()
                        raised = [a * r**1.5 if a >= 0.1 * max(p) else a for a, r in zip(p, ratios, strict=True)]
                        p = [sum(p) * a / sum(raised) for a in raised]
                    q = student[t, likeliest].exp().tolist()
                    buckets = [*zip(p, q, strict=True), (1 - sum(p), 1 - sum(q))]  # the last one is all the rest
                    total += weight * sum(p_v * math.log(p_v / q_v) for p_v, q_v in buckets) / sum(counted)
    assert set(batch["outcome"].tolist()) == {-1, 1}
    assert abs(total) > 1e-4
    assert got == pytest.approx(total / len(pools), rel=1e-3, abs=1e-7)


def test_the_local_variant_is_fed_each_teachers_likeliest_tokens_and_the_sampled_one(tmp_path):
    trainer = correction_trainer(
        tmp_path, objective="local", teacher_top_tokens=4, gate_tau=0.3, support_threshold=0.01
    )
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    credited = []
    trainer.training_ledger.observe = lambda *observed: credited.append(observed[-2:])
    got, _ = loss_and_gradients(trainer, [batch])
    logged = logged_means(trainer)
    supports, stances = [], []
    pools = trainer.retrieve(rows(trainer, [0] * 4 + [1] * 4))
    total = 0.0
    for b, pool in enumerate(pools):
        completion, student, counted = plain_student(trainer, batch, b, 1.0)
        for k, teacher_prompt in enumerate(pool.prompts):
            teacher = plain_distributions(trainer.model, teacher_prompt, completion, 1.0)
            gaps, gates = [], []
            for t, token in enumerate(completion):
                if not counted[t]:
                    continue
                support = sorted({token, *teacher[t].topk(4).indices.tolist()})
                log_p = dict(zip(support, teacher[t][support].log_softmax(0).tolist(), strict=True))
                log_q = dict(zip(support, student[t][support].log_softmax(0).tolist(), strict=True))
                gaps.append(max(-3.0, min(3.0, log_p[token] - log_q[token])))
                divergence = sum(math.exp(log_p[v]) * (log_p[v] - log_q[v]) for v in support)
                gates.append(math.log(2) - math.log1p(math.exp(-(divergence**2) / 0.6)))
            mean = sum(gaps) / len(gaps)
            stance = math.copysign(1, mean) if abs(mean) > 0.01 else 0
            supports.append(mean)
            stances.append(stance)
            total += pool.weights[k] * int(batch["outcome"][b]) * stance * sum(gates) / len(gates)
    [(support, stance)] = credited
    assert_close(support.flatten(), torch.tensor(supports), 1e-4)
    assert stance.flatten().tolist() == stances
    assert logged["sgsd/support"] == pytest.approx(sum(supports) / len(supports), rel=1e-3)
    assert abs(total) > 1e-6
    assert got == pytest.approx(total / len(pools), rel=1e-3, abs=1e-8)


def test_grpo_and_the_correction_add_up_and_accumulate(tmp_path):
    trainer = correction_trainer(tmp_path, grpo_weight=1.0, sgsd_weight=2.0, loss_type="grpo")
    with_ledger(trainer, HELPS, HELPS, HELPS)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    both = loss_and_gradients(trainer, [batch])
    grpo = loss_and_gradients(trls_own(tmp_path, trainer.train_dataset, loss_type="grpo", **GROUPS), [batch])
    trainer.args.grpo_weight = 0.0
    correction = loss_and_gradients(trainer, [batch])
    assert correction[0] != 0
    assert both[0] == pytest.approx(grpo[0] + correction[0], abs=1e-6)
    assert_close(both[1], [a + b for a, b in zip(grpo[1], correction[1], strict=True)])
    parts = loss_and_gradients(trainer, cut(batch, 2), steps=4)
    assert parts[0] == pytest.approx(correction[0], abs=1e-6)
    assert_close(parts[1], correction[1])


def test_without_failures_there_is_nothing_to_correct(tmp_path):
    trainer = correction_trainer(tmp_path)
    batch = batch_of(trainer, [0] * 8)
    _, gradients = loss_and_gradients(trainer, [batch | {"outcome": batch["outcome"].abs()}])
    assert not any(gradient.any() for gradient in gradients)
    assert batch["teacher_top_ids"].shape == (8, 3, batch["completion_ids"].shape[1], 20)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"objective": "reweight", "grpo_weight": 0.0},
        {"objective": "gated"},
    ],
)
def test_the_control_s_support_is_logged_whatever_the_objective(tmp_path, more):
    trainer = correction_trainer(tmp_path, support_baseline="control", **more)
    with_ledger(trainer, HELPS, HELPS, HELPS)
    batch = batch_of(trainer, [0] * 4 + [1] * 4)
    trainer._compute_loss(trainer.model, batch)
    logged = logged_means(trainer)["sgsd/support/control"]
    student = trainer.score_student(trainer.model, batch)[0].logps.detach().double()
    gaps = (batch["teacher_control_logps"].double() - student).clamp(-3, 3)
    rows = batch["teacher_scored"].any(1) & (batch["outcome"] != 0)
    of_rows = [gap[mask].mean() for gap, mask in zip(gaps[rows], batch["score_mask"][rows], strict=True)]
    assert logged == pytest.approx(float(torch.stack(of_rows).mean()), abs=1e-6)
    assert logged != 0


@pytest.mark.parametrize("kind", ["worth", "cautious"])
def test_while_no_item_is_known_to_be_worth_anything_the_step_is_grpos(tmp_path, kind):
    """Unknown items, and those that suppressed everything while nothing succeeded."""
    mute = ItemRecord(uses=40, active=40, positive=40, positive_failure=40, failures=40)
    for records in ((), (mute, mute, mute)):
        trainer = correction_trainer(tmp_path, grpo_weight=1.0, loss_type="grpo", teacher_trust=kind)
        with_ledger(trainer, *records)
        batch = batch_of(trainer, [0] * 4 + [1] * 4)
        both = loss_and_gradients(trainer, [batch])
        grpo = loss_and_gradients(trls_own(tmp_path, trainer.train_dataset, loss_type="grpo", **GROUPS), [batch])
        assert both[0] == pytest.approx(grpo[0], abs=1e-7)
        assert_close(both[1], grpo[1])
        sure = correction_trainer(tmp_path, grpo_weight=1.0, loss_type="grpo", teacher_trust="ledger")
        with_ledger(sure, *records)
        surely = loss_and_gradients(sure, [batch_of(sure, [0] * 4 + [1] * 4)])
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(surely[1], grpo[1], strict=True))


def worth_in_this_bank(*records):
    return worth(*records, prior=sure_worth([HELPS, HARMS]))


def cautious_in_this_bank(*records):
    return cautious_worth(*records, prior=sure_worth([HELPS, HARMS]))


@pytest.mark.parametrize(
    ("kind", "measure", "unknown"),
    [
        ("ledger", trust, 0.5),
        ("worth", worth_in_this_bank, pytest.approx(sure_worth([HELPS]))),
        ("cautious", cautious_in_this_bank, pytest.approx(sure_worth([HELPS]))),
    ],
)
def test_trust_is_the_ledgers_of_before_the_batch_and_that_of_the_worse_item(tmp_path, kind, measure, unknown):
    trainer = correction_trainer(tmp_path, retriever="bm25", teacher_trust=kind, ledger_share=1.0)
    skill, mistake = trainer.bank.skills[0], trainer.bank.mistakes[0]
    trainer.training_ledger.ledger = Ledger({skill.id: HELPS, mistake.id: HARMS})
    seen = batch_of(trainer, [0] * 8)["teacher_trust"]
    assert seen.shape == (8, 3)
    assert bool(((seen >= 0) & (seen <= 1)).all())
    pools = trainer.retrieve(rows(trainer, [0]))
    pairs = [[trainer.ledger.record(id) for id in (pair.skill.id, pair.mistake.id)] for pair in pools[0].pairs]
    assert seen[0].tolist() == pytest.approx([measure(*pair) for pair in pairs])
    assert measure(ItemRecord()) == unknown
    assert measure(HELPS) > (0.65 if kind == "cautious" else 0.8)
    assert measure(HELPS, HARMS) == measure(HARMS) < (0.06 if kind == "cautious" else 0.001)  # of 20 uses each
    wide = correction_trainer(tmp_path, retriever="bm25", teacher_trust=kind, num_teachers=6)
    assert batch_of(wide, [0] * 8)["teacher_trust"][:, 4:].eq(1).all()  # padding
    equal = correction_trainer(tmp_path, teacher_trust="equal", ledger_share=1.0)
    equal.training_ledger.ledger = Ledger({skill.id: HARMS, mistake.id: HARMS})
    assert batch_of(equal, [0] * 8)["teacher_trust"].eq(1).all()
