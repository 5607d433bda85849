"""Which teachers are run on which rollouts, and that nothing else is read: not by the loss, the ledger or the log."""

from __future__ import annotations

import pytest
import torch

from sgsd.bank import Ledger
from sgsd.trainers import sgsd as module

from .test_correction import HARMS, HELPS, with_ledger
from .tiny import (
    EIGHT,
    WeightedRetriever,
    assert_close,
    batch_of,
    by_first_id,
    by_parity,
    cut,
    logged_means,
    loss_and_gradients,
    make_bank,
    make_trainer,
    prompted_rollouts,
    render,
    rows,
    trls_own,
)

NUMBERS = [0] * 4 + [1] * 4 + [2] * 4
NEVER = 1e-9  # a share of the problems, as good as none


def trainer_of(folder, **settings):
    """Teachers of the bank's first three pairs, of which the second is known to do harm: trust 0."""
    defaults = {"num_generations": 4, "per_device_train_batch_size": 12, "ledger_share": NEVER, "stub": True}
    settings = defaults | settings
    if settings.get("objective", "gated") in ("gated", "local") and settings.get("sgsd_weight", 1.0):
        del settings["ledger_share"]  # all teachers are run: it is refused
    trainer = make_trainer(folder, retriever_object=WeightedRetriever(), problems=EIGHT, **settings)
    return with_ledger(trainer, HELPS, HARMS, HELPS)


GUIDED = {"objective": "correction", "support_baseline": "control", "teacher_guidance": 1.0, "teacher": "frozen"}
CASES = {
    "gated": ({}, {1, -1}, False),
    "gated, control": ({"support_baseline": "control"}, {1, -1}, False),
    "local": ({"objective": "local"}, {1, -1}, False),
    "correction": ({"objective": "correction"}, {-1}, True),
    "correction, guided": (GUIDED, {-1}, True),
    "correction, trust equal": ({"objective": "correction", "teacher_trust": "equal"}, {-1}, False),
    "reweight": ({"objective": "reweight"}, {1, -1}, True),
    "reweight, control": ({"objective": "reweight", "support_baseline": "control"}, {1, -1}, True),
    "GRPO alone": ({"sgsd_weight": 0.0, "grpo_weight": 1.0}, set(), False),
}


@pytest.fixture
def asked(monkeypatch):
    """Prompts and completions of each call of the scoring."""
    calls = []
    original = module.score_completions

    def record(model, prompts, completions, **options):
        calls.append(list(zip(map(tuple, prompts), map(tuple, completions), strict=True)))
        return original(model, prompts, completions, **options)

    monkeypatch.setattr(module, "score_completions", record)
    return calls


@pytest.mark.parametrize("share", [NEVER, 1.0])
@pytest.mark.parametrize(("settings", "outcomes", "by_trust"), CASES.values(), ids=CASES)
def test_run_are_the_teachers_that_the_loss_reads_and_all_of_the_ledgers_share(
    tmp_path, asked, settings, outcomes, by_trust, share
):
    trainer = trainer_of(tmp_path, ledger_share=share, **settings)
    if by_trust:
        assert trainer.training_ledger.trust(trainer.retrieve(rows(trainer, [0])))[0][1] == 0
    batch = batch_of(trainer, NUMBERS)
    outcome = batch["outcome"].tolist()
    assert set(outcome) == {-1, 0, 1}
    expected = [
        [value != 0 and (share == 1 or (value in outcomes and not (by_trust and k == 1))) for k in range(3)]
        for value in outcome
    ]
    assert batch["teacher_scored"].tolist() == expected

    pools = trainer.retrieve(rows(trainer, NUMBERS))
    completions, _ = prompted_rollouts([render(f"{EIGHT[n].text}\n\nGo.") for n in NUMBERS])
    pairs = [
        (tuple(pool.prompts[k]), tuple(completion))
        for pool, completion, wanted in zip(pools, completions, expected, strict=True)
        for k in range(3)
        if wanted[k]
    ]
    control = "support_baseline" in settings and pairs
    assert len(asked) == bool(pairs) + bool(control)
    if pairs:
        assert asked[0] == pairs
    if control:
        shown = [tuple(completion) for completion, wanted in zip(completions, expected, strict=True) if any(wanted)]
        assert [completion for _, completion in asked[1]] == shown


@pytest.mark.parametrize("share", [NEVER, 1.0])
@pytest.mark.parametrize("settings", [settings for settings, _, _ in CASES.values()], ids=CASES)
def test_nothing_is_read_of_a_teacher_that_was_not_run(tmp_path, settings, share):
    """Loss, gradient, log and ledger are the same, bit by bit, with NaN in place of all that was not scored."""
    trainer = trainer_of(tmp_path, ledger_share=share, **settings)
    batch = batch_of(trainer, NUMBERS)
    scored = batch["teacher_scored"]
    assert not scored.all()
    poisoned = dict(batch)
    for name in ("logps", "top_logps", "control_top_logps", "weights", "trust"):
        if (values := batch.get(f"teacher_{name}")) is not None:
            where = scored.reshape(*scored.shape, *[1] * (values.ndim - 2))
            poisoned[f"teacher_{name}"] = torch.where(where, values, torch.nan)
    if "teacher_control_logps" in batch:
        poisoned["teacher_control_logps"] = torch.where(
            scored.any(1, keepdim=True), batch["teacher_control_logps"], torch.nan
        )
    found, ledger = [], trainer.ledger
    for each in (batch, poisoned):
        trainer.training_ledger.ledger = ledger
        loss, gradients = loss_and_gradients(trainer, [each])
        means = {name: str(value) for name, value in logged_means(trainer).items()}
        trainer.training_ledger.end_step()
        found.append((loss, gradients, means, trainer.ledger.to_json()))
    first, second = found
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert first[3] == second[3]
    same = {name for name in first[2] if name in second[2]}
    assert {name: first[2][name] for name in same} == {name: second[2][name] for name in same}


@pytest.mark.parametrize("objective", ["correction", "reweight", "gated", "local"])
def test_what_the_ledger_wants_to_know_does_not_change_the_step(tmp_path, objective):
    steps = []
    for share in (NEVER, 1.0):
        trainer = trainer_of(tmp_path / str(share), objective=objective, ledger_share=share)
        batch = batch_of(trainer, NUMBERS)
        steps.append((int(batch["teacher_scored"].sum()), *loss_and_gradients(trainer, [batch])))
    (few, loss, gradients), (all_of_them, same_loss, same_gradients) = steps
    assert (few < all_of_them) == (objective in ("correction", "reweight"))
    assert abs(loss) > 1e-6
    assert loss == pytest.approx(same_loss, abs=1e-6)
    assert_close(gradients, same_gradients, 1e-6)


@pytest.mark.parametrize("numbers", [NUMBERS, [3] * 4])
def test_rollouts_that_no_teacher_scored_are_not_forwarded(tmp_path, numbers):
    trainer = trainer_of(tmp_path, objective="correction", per_device_train_batch_size=len(numbers))
    batch = batch_of(trainer, numbers)
    if len(numbers) == 4:  # as if all had succeeded
        batch["outcome"], batch["teacher_scored"] = batch["outcome"].abs(), batch["teacher_scored"] & False
    forwarded = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda _, __, kwargs: forwarded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    _, gradients = loss_and_gradients(trainer, [batch])
    hook.remove()
    scored = int(batch["teacher_scored"].any(1).sum())
    assert forwarded == [max(scored, 1)]
    assert scored < len(numbers)
    assert any(gradient.any() for gradient in gradients) == (scored > 0)
    assert ("entropy" in logged_means(trainer)) == (scored > 0)


def test_problems_are_drawn_for_the_ledger_alike_on_all_processes_and_anew_each_step(tmp_path):
    first, second = (trainer_of(tmp_path / name, objective="correction", ledger_share=0.3) for name in "ab")
    prompts = [{"prompt": [{"role": "user", "content": f"{n}?"}]} for n in range(2000)]
    drawn = [first._drawn_for_ledger(row) for row in prompts]
    second.accelerator.state.process_index = 3  # nothing of a process enters, nor what was drawn before
    assert [second._drawn_for_ledger(row) for row in reversed(prompts)] == drawn[::-1]
    assert sum(drawn) / len(drawn) == pytest.approx(0.3, abs=0.04)
    first.state.global_step = 1
    other = [first._drawn_for_ledger(row) for row in prompts]
    both = sum(a and b for a, b in zip(drawn, other, strict=True)) / len(drawn)
    assert both == pytest.approx(0.09, abs=0.03)


def test_all_rollouts_of_a_drawn_problem_are_scored(tmp_path):
    trainer = trainer_of(tmp_path, objective="correction", ledger_share=0.5, seed=1)
    batch = batch_of(trainer, NUMBERS)
    drawn = [trainer._drawn_for_ledger(row) for row in rows(trainer, NUMBERS)]
    assert len(set(drawn)) == 2, "the seed must leave neither case untested"
    for whole, scored, outcome in zip(drawn, batch["teacher_scored"], batch["outcome"], strict=True):
        assert not whole or scored.all() == (outcome != 0)
        assert whole or scored.tolist() == [bool(outcome < 0), False, bool(outcome < 0)]


# ---- the control


def test_a_control_that_is_the_plain_prompt_is_counted(tmp_path):
    """At 029fdea the control became the plain prompt unseen: support 0 where nothing was measured, and no metric."""
    settings = {"support_baseline": "control", "per_device_train_batch_size": 12, "stub": True, "num_generations": 4}
    settings |= {"retriever_object": WeightedRetriever(), "reward": by_parity, "problems": EIGHT}
    lengths = [len(trainer_of(tmp_path).renderer.teacher_ids(EIGHT[0].text, [pair])) for pair in pairs_of(make_bank(4))]
    cases = {
        "other pairs": ({"bank": make_bank(4)}, 0.0),
        "no other pair": ({"bank": make_bank(3)}, 1.0),
        "one that does not fit": ({"bank": make_bank(4), "max_prompt_length": lengths[3] - 1}, 1.0),
    }
    for case, (change, share) in cases.items():
        trainer = make_trainer(tmp_path / case, **settings | change)
        batch = batch_of(trainer, NUMBERS)
        student = trainer.score_student(trainer.model, batch)[0].logps
        rollouts = batch["teacher_scored"].any(1)
        plain = (batch["teacher_control_logps"] - student).abs().amax(1)[rollouts] < 1e-4
        assert logged_means(trainer)["sgsd/control_is_plain"] == plain.float().mean() == share, case


def pairs_of(bank):
    return list(zip(bank.skills, bank.mistakes, strict=True))


# ---- means over all rollouts of a step


@pytest.mark.parametrize("objective", ["gated", "local", "correction", "reweight"])
def test_logged_means_do_not_depend_on_how_rollouts_are_split(tmp_path, objective):
    """At 029fdea they were means of micro-batches' means. Two processes are tried in test_distributed."""
    trainer = trainer_of(tmp_path, objective=objective, ledger_share=1.0)
    batch = batch_of(trainer, NUMBERS)
    once = logged_means(trainer)  # what was logged of the sampling
    assert once["sgsd/scored_share"] == (batch["outcome"] != 0).float().mean()
    logged = []
    for size in (12, 3, 1):
        loss_and_gradients(trainer, cut(batch, size), steps=12 // size)
        logged.append(logged_means(trainer))
        del logged[-1]["sgsd/student_tokens"]  # each micro-batch forwards a row, scored or not
    assert {"sgsd/support/failure", "sgsd/loss", "entropy", "sampled_logp"} <= set(logged[0])
    for other in logged[1:]:
        assert other == pytest.approx(logged[0], rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("baseline", ["none", "control"])
def test_reweight_without_a_trusted_teacher_is_grpo_of_every_rollout(tmp_path, baseline):
    """Teachers without trust are not run; the rollouts that none scored are forwarded all the same."""
    settings = {"objective": "reweight", "support_baseline": baseline, "ledger_share": NEVER, "reward": by_first_id}
    trainer = trainer_of(tmp_path, teacher_trust="worth", **settings)
    trainer.training_ledger.ledger = Ledger()
    batch = batch_of(trainer, [0] * 4 + [1] * 4 + [2] * 4)
    assert not batch["teacher_scored"].any()
    assert batch["advantages"].any()
    _, gradients = loss_and_gradients(trainer, [batch])
    same = {"num_generations": 4, "per_device_train_batch_size": 12, "temperature": trainer.args.score_temperature}
    grpo = trls_own(tmp_path, trainer.train_dataset, loss_type="grpo", **same)
    _, expected = loss_and_gradients(grpo, [batch | {"completion_mask": batch["score_mask"].long()}])
    assert_close(gradients, expected)


@pytest.mark.parametrize("objective", ["correction", "reweight"])
def test_student_tokens_are_those_of_the_rollouts_that_are_forwarded(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective)
    batch = batch_of(trainer, NUMBERS)
    logged_means(trainer)
    loss_and_gradients(trainer, [batch])
    lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
    scored = batch["teacher_scored"].any(1).tolist()
    assert not all(scored)
    read = [length for length, one in zip(lengths, scored, strict=True) if one or objective == "reweight"]
    assert logged_means(trainer)["sgsd/student_tokens"] == pytest.approx(sum(read) / len(lengths))
