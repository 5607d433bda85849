"""Early abstention, and a number of teachers that changes, in the trainer."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter

import pytest
import torch

from sgsd.errors import ConfigError
from sgsd.objectives import sgsd_loss

from ..conftest import make_model
from .launching import launch
from .test_distributed import CONFIGURATIONS, of
from .tiny import EOS, make_bank, make_config, make_trainer, rows

HOT, DEAD_ZONE = 20.0, 0.02


def long_rollouts(prompt_ids, images=None, multimodal_fields=None, num_generations=1, has_tool_images=False):
    """In place of sampling: 20 to 70 tokens that depend on the prompt, and on how often it was seen."""
    seen = Counter()
    rollouts = []
    for prompt in prompt_ids:
        seed = hashlib.sha256(bytes(str((list(prompt), seen[tuple(prompt)])), "ascii")).digest()
        seen[tuple(prompt)] += 1
        g = torch.Generator().manual_seed(int.from_bytes(seed[:4], "big"))
        length = 20 + seed[5] % 50
        rollouts.append([*torch.randint(2, 250, (length,), generator=g).tolist(), EOS])
    return rollouts, None


def by_parity(completion_ids, **_):
    return [float(sum(ids) % 2) for ids in completion_ids]


def make(folder, **settings):
    """A model of random weights has enormous gaps; at a high temperature they are a tenth of a nat."""
    defaults = {
        "max_completion_length": 80,
        "score_temperature": HOT,
        "support_threshold": DEAD_ZONE,
        "abstain_error": 0.4,
        "abstain_first_look": 8,
        "bank": make_bank(4),
        "num_teachers": 4,
    }
    trainer = make_trainer(folder, reward=by_parity, **defaults | settings)
    trainer._generate_single_turn = long_rollouts
    return trainer


def batch_of(trainer):
    return trainer._generate_and_score_completions(rows(trainer, [0, 1, 2, 3, 4, 5]))


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_chunk": 400}, {"teacher": "ema"}, {"num_teachers": 6}])
def test_the_loss_is_that_of_full_scoring_without_the_stopped_teachers(tmp_path, settings):
    early, full = make(tmp_path / "early", abstain_early=True, **settings), make(tmp_path / "full", **settings)
    batch, whole = batch_of(early), batch_of(full)
    stopped = batch["stopped"]
    real = whole["teacher_weights"] > 0
    assert stopped[real].any(), "nobody was stopped: nothing would show"
    assert not stopped[real].all()
    assert not stopped[:, 0].any(), "the scout is scored in full"
    kept = ~stopped.unsqueeze(-1) & whole["completion_mask"].bool().unsqueeze(1)
    torch.testing.assert_close(batch["teacher_logps"][kept], whole["teacher_logps"][kept], rtol=0, atol=1e-4)

    loss, gradients = loss_and_gradients(early, batch)
    removed = whole | {"teacher_weights": whole["teacher_weights"].masked_fill(stopped, 0.0)}
    expected, expected_gradients = loss_and_gradients(full, removed)
    assert loss == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


def test_what_certainly_stays_in_the_dead_zone_changes_nothing(tmp_path):
    early = make(tmp_path / "early", abstain_early=True, abstain_error=0.0, support_threshold=1.0, support_clip=1.2)
    full = make(tmp_path / "full", support_threshold=1.0, support_clip=1.2)
    batch = batch_of(early)
    assert batch["stopped"].any()
    loss, gradients = loss_and_gradients(early, batch)
    expected, expected_gradients = loss_and_gradients(full, batch_of(full))
    assert loss == expected == 0.0
    torch.testing.assert_close(gradients, expected_gradients)


def test_a_stopped_teacher_takes_no_stance_wherever_the_student_has_moved(tmp_path):
    trainer = make(tmp_path, abstain_early=True, log_completions=True)
    batch = batch_of(trainer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    trainer._compute_loss(trainer.model, batch)
    cells = [list(cell) for cell in trainer._stance_cells["train"]]
    stopped = batch["stopped"].tolist()
    assert all(
        stance == "0"
        for row, gone in zip(cells, stopped, strict=True)
        for stance, was in zip(row, gone, strict=True)
        if was
    )
    assert any(stance != "0" for row in cells for stance in row), "the student has not moved enough to show anything"


def test_supports_of_stopped_teachers_are_their_estimates(tmp_path):
    trainer = make(tmp_path, abstain_early=True)
    batch = batch_of(trainer)
    with torch.no_grad():
        student, _ = trainer._student_logps(trainer.model, batch, [HOT])[0]
        result = sgsd_loss(
            student,
            trainer._teacher_logps(batch, student),
            batch["score_mask"],
            batch["outcome"],
            batch["teacher_weights"],
            threshold=DEAD_ZONE,
        )
    stopped = batch["stopped"]
    torch.testing.assert_close(result.support[stopped], batch["settled_support"][stopped], rtol=0, atol=1e-5)
    assert not result.stance[stopped].any()
    assert batch["settled_support"][stopped].abs().max() > 1e-4


@pytest.mark.parametrize("num_generations", [1, 2])
def test_savings_are_counted_with_what_they_cost(tmp_path, num_generations):
    trainer = make(tmp_path, abstain_early=True, num_teachers=6, num_generations=num_generations)
    batch = trainer._generate_and_score_completions(
        rows(trainer, [n for n in (0, 1, 2) for _ in range(num_generations)])
    )
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    lengths = batch["completion_mask"].sum(1)
    pools = trainer._teacher_pools([row["problem"] for row in rows(trainer, [0, 1, 2])])
    tokens = saved = 0
    for row in range(len(lengths)):
        for k in range(4):  # of six, two are padding
            tokens += int(lengths[row])
            if batch["stopped"][row, k]:
                saved += int(lengths[row]) - stopped_after(trainer, batch, row, k)
    shown = sum(len(prompt) for pool in pools for prompt in pool.prompts[:4])
    plain = sum(len(trainer.renderer.student_ids(row["problem"])) for row in rows(trainer, [0, 1, 2]))
    assert metrics["sgsd/abstention/tokens_saved"] == pytest.approx(saved / tokens, abs=1e-6)
    once_more = int(lengths.sum()) + plain
    assert metrics["sgsd/abstention/work_saved"] == pytest.approx((saved - once_more) / (tokens + shown), abs=1e-6)
    assert metrics["sgsd/abstention/stopped_share"] == pytest.approx(
        float(batch["stopped"][:, :4].float().mean()), abs=1e-6
    )


def stopped_after(trainer, batch, row, k):
    """The last token whose log-probability is no stand-in, by what stands in: the student's and a constant."""
    with torch.no_grad():
        student, _ = trainer._student_logps(trainer.model, batch, [HOT])[0]
    off = batch["teacher_logps"][row, k] - student[row] - batch["settled_support"][row, k]
    return next(
        look for look in (8, 16, 32, 64) if off[look : int(batch["completion_mask"][row].sum())].abs().max() < 1e-4
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"abstain_early": True, "objective": "correction"}, "does not go with objective"),
        ({"abstain_early": True, "objective": "local"}, "does not go with objective"),
        ({"abstain_early": True, "support_threshold": 0.0}, "dead zone"),
        ({"abstain_early": True, "num_teachers": 1}, "nobody to stop"),
        ({"abstain_error": 0.5}, "abstain_error"),
        ({"abstain_error": -0.1}, "abstain_error"),
        ({"abstain_first_look": 0}, "abstain_first_look"),
        ({"target_active_teachers": 3.0}, "target_active_teachers"),
        ({"target_active_teachers": 0.0}, "target_active_teachers"),
        ({"target_active_teachers": 2.0, "min_teachers": 4}, "min_teachers"),
        ({"min_teachers": 2}, "min_teachers without"),
        ({"target_active_teachers": 2.0, "min_teachers": 0}, "min_teachers"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **settings)


# ---- a number of teachers that changes


def sampling_run(folder, **settings):
    """Samples for real, and saves: random states are part of what must come back."""
    model = make_model()
    model.generation_config.eos_token_id = [EOS, *range(200, 250)]
    defaults = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "num_generations": 2,
        "score_temperature": HOT,
        "support_threshold": DEAD_ZONE,
        "bank": make_bank(5),
        "num_teachers": 5,
        "target_active_teachers": 1.0,
    }
    return make_trainer(folder, model=model, reward=by_parity, **defaults | settings)


def test_the_number_of_teachers_follows_the_active_share_and_a_resumed_run_goes_on_with_it(tmp_path):
    straight = sampling_run(tmp_path)
    straight.train()
    logged = [entry["sgsd/teachers_per_rollout"] for entry in straight.state.log_history if "sgsd/loss" in entry]
    assert logged[0] == 5
    assert len(set(logged)) > 1, "the number never changes: nothing would show"
    final = {name: value.clone() for name, value in straight.model.state_dict().items()}

    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = sampling_run(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    again = [entry["sgsd/teachers_per_rollout"] for entry in resumed.state.log_history if "sgsd/loss" in entry]
    assert again == logged
    assert resumed.pool_size.to_json() == straight.pool_size.to_json()
    assert [name for name, value in resumed.model.state_dict().items() if not torch.equal(final[name], value)] == []


def test_the_controller_counts_real_teachers_and_stances_of_training_alone(tmp_path):
    trainer = make(tmp_path, num_teachers=6, target_active_teachers=2.0)
    batch = batch_of(trainer)
    trainer.model.eval()
    trainer._compute_loss(trainer.model, batch)
    assert (trainer.pool_size._new_active, trainer.pool_size._new_real) == (0, 0)
    trainer.model.train()
    trainer._compute_loss(trainer.model, batch)
    share = trainer._metrics["train"]["sgsd/active_share"][-1]
    assert trainer.pool_size._new_real == 6 * 4
    assert trainer.pool_size._new_active == pytest.approx(share * 24)
    assert trainer._metrics["train"]["sgsd/active_per_rollout"][-1] == pytest.approx(share * 4)


def test_everything_is_scored_at_once_where_nobody_could_be_stopped(tmp_path):
    one = make(tmp_path / "one", abstain_early=True, target_active_teachers=1.0)
    one.pool_size.size = 1
    short = make(tmp_path / "short", abstain_early=True, abstain_first_look=80)
    for trainer, K in ((one, 1), (short, 4)):
        batch = batch_of(trainer)
        assert "stopped" not in batch
        assert batch["teacher_logps"].shape[1] == K
        assert "sgsd/abstention/work_saved" not in trainer._metrics["train"]
        trainer._compute_loss(trainer.model, batch).backward()


# ---- several processes

# The rollouts have nine tokens at most: what is certain stops some of their teachers after two, four or eight.
CERTAIN = {"abstain_early": True, "abstain_error": 0.0, "abstain_first_look": 2, "support_threshold": 2.0}
CASES = {
    "early": {"num_generations": 1, **CERTAIN},
    "early, groups": {"num_generations": 2, "gradient_accumulation_steps": 2, **CERTAIN},
    "early, short on odd ranks": {"rollouts": "short on odd ranks", **CERTAIN},
    "early, unequally many": {"retrieves": "one", "max_tokens_per_chunk": 700, **CERTAIN},
    "adaptive": {"num_generations": 1, "target_active_teachers": 1.0, "support_threshold": 0.3},
}


@pytest.fixture(scope="module", params=["DDP", "FSDP2"])
def two(request, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "DDP":
        return launch(folder, 2, **of(2, CASES))
    flags = ("--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "--mixed_precision", "no")
    return launch(folder, 2, *flags, **of(2, CASES) | {"shard_on_cpu": True})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_call_the_same_collectives_whoever_is_stopped_on_each(two, case):
    """A sharded model gathers its weights in every forward: a rank that makes fewer hangs the others."""
    first, second = two[case]
    assert first["collectives"] == second["collectives"]
    assert first["forwards"] == second["forwards"]
    assert all(first["forwards"])
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(mine, other)
    logged = first["logs"][:3]
    if "early" in case:
        assert any(0 < entry["sgsd/abstention/tokens_saved"] < 1 for entry in logged), "nobody was stopped"
    else:
        assert len({entry["sgsd/teachers_per_rollout"] for entry in logged}) > 1, "the number never changes"


@pytest.mark.slow
def test_two_processes_stop_the_teachers_that_one_does(two, tmp_path):
    cases = {name: CASES[name] for name in ("early", "adaptive")}
    ones = launch(tmp_path, 1, **of(1, cases))
    for name, (one,) in ones.items():
        for rank in two[name]:
            torch.testing.assert_close(rank["gradients"][0], one["gradients"][0], rtol=0, atol=1e-5)
            for metric in ("sgsd/teachers_per_rollout", "sgsd/active_per_rollout", "sgsd/loss"):
                logged = [run["logs"][0].get(metric) for run in (rank, one)]
                assert logged[0] == pytest.approx(logged[1], abs=1e-5)
