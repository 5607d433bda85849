"""Gloo processes on one CPU: two and four learn what one does, and none waits for the others for ever."""

from __future__ import annotations

import importlib.util
import json
import threading
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from accelerate import DistributedType

from sgsd.bank import Ledger
from sgsd.errors import ConfigError
from sgsd.scoring.weights import refuse_partitioned_copies

from ..serving import serving
from .launching import GLOO, SCRIPTS, free_port, launch, watched
from .test_maintenance import StubWriter, answered_by
from .tiny import make_bank

pytestmark = pytest.mark.timeout(900)
ROWS = 4  # of a micro-batch, on all processes
SEED = 24  # its first batch has successes and failures, within groups too, on every rank that is to learn alone
GROUPS = {"num_generations": 2, "gradient_accumulation_steps": 2}  # shared prompts: two forwards a step under DDP
CORRECTION = {"objective": "correction", "teacher_trust": "equal"}  # by worth, a new ledger silences it
GUIDED = {"support_baseline": "control", "teacher_guidance": 1.5, "teacher": "frozen"}
ALIKE = {
    "single": {"num_generations": 1},
    "groups": GROUPS,
    "grpo-ema": {
        "num_generations": 2,
        "grpo_weight": 0.5,
        "loss_type": "grpo",
        "teacher": "ema",
        "log_completions": True,
    },
    "lora-frozen": {"num_generations": 1, "lora": True, "teacher": "frozen"},
    "local": {"objective": "local", "num_generations": 1},
    "correction": {**CORRECTION, "num_generations": 1},
    "correction-groups": {**CORRECTION, "grpo_weight": 1.0, "teacher": "frozen", **GROUPS},
    "control": {"support_baseline": "control", **GROUPS},
    "guided correction": {**CORRECTION, **GUIDED, **GROUPS},
    "correction-lora": {**CORRECTION, "grpo_weight": 1.0, "num_generations": 2, "lora": True},
    "grpo": {"method": "grpo", "num_generations": 2, "loss_type": "grpo"},
    "opsd-groups": {"method": "opsd", "divergence": "jsd", **GROUPS},
    "opsd-lora": {"method": "opsd", "num_generations": 1, "lora": True},
}
# One step of length 1 against the gradient: the weights show it where no process holds it.
DESCENT = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 1, "num_generations": 1}
DESCENTS = {"descent": DESCENT, "descent, correction": {**DESCENT, **CORRECTION}}
UNLIKE = {
    "unequally many teachers": {"retrieves": "one"},
    "no teachers on odd ranks": {"retrieves": "nothing"},
    "no teachers on odd ranks, correction": {"retrieves": "nothing", **CORRECTION},
    "no teachers on odd ranks, control": {"retrieves": "nothing", "support_baseline": "control"},
    "no teachers on odd ranks, guided": {"retrieves": "nothing", "lora": True, **CORRECTION, **GUIDED},
    "every rank rehearses its own": {
        "rehearsal_weight": 1.0,
        "rehearsal_texts": 3,
        "lora": True,
        **CORRECTION,
        **GUIDED,
    },
    "odd ranks undecided": {"reward": "undecided on odd ranks"},
    "odd ranks undecided, groups": {
        "reward": "undecided on odd ranks",
        "grpo_weight": 0.5,
        "log_completions": True,
        **GROUPS,
    },
    "all undecided": {"reward": "undecided", "truncated": "undecided"},
    "odd ranks stop early": {"rollouts": "short on odd ranks", **CORRECTION},
    "sampled rollouts": {"rollouts": "sampled", **GROUPS},
    "nothing at all on odd ranks": {
        "retrieves": "nothing",
        "reward": "undecided on odd ranks",
        "rollouts": "short on odd ranks",
    },
    "unequal chunks": {"max_tokens_per_chunk": 700, "num_generations": 1},
}


def of(processes: int, cases: dict[str, dict]) -> dict[str, dict]:
    """The same rows, divided among so many processes."""
    common = {"per_device_train_batch_size": ROWS // processes, "seed": SEED}
    return {name: common | settings for name, settings in cases.items()}


def compared_metrics(logged: dict[str, float], settings: dict) -> list[str]:
    """Names of what is a mean, or a total, over all rollouts of a step, however they are divided among processes."""
    own = {name for name in logged if name.startswith(("sgsd/", "opsd/"))} | {"success_rate"}
    if settings.get("method", "sgsd") != "grpo" and not settings.get("grpo_weight"):
        own.add("entropy")  # beside GRPO's loss it is TRL's, a mean of the processes' means
    # Prompts that rollouts share are forwarded once for those of a process.
    return ["loss", "reward", *sorted(own - {"sgsd/teacher_tokens", "sgsd/student_tokens"})]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("one")
    return folder, launch(folder, 1, **of(1, ALIKE | DESCENTS))


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory) -> tuple[int, Path, dict]:
    folder = tmp_path_factory.mktemp(f"{request.param}-processes")
    return request.param, folder, launch(folder, request.param, **of(request.param, ALIKE | UNLIKE))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_several_processes_learn_what_one_does_with_the_same_rows(alone, together, case):
    processes, folder, ranks = together[0], together[1], together[2][case]
    one_folder, (one,) = alone[0], alone[1][case]
    assert {rank["distributed"] for rank in ranks} == {"DistributedType.MULTI_CPU"}
    for rank in ranks[1:]:
        for mine, other in zip(ranks[0]["weights"], rank["weights"], strict=True):
            assert torch.equal(mine, other)
    assert max(gradient.abs().max() for gradient in one["gradients"][0]) > 1e-3
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"][0], one["gradients"][0], rtol=0, atol=1e-5)
    for name in compared_metrics(one["logs"][0], ALIKE[case]):
        logged = [[entry.get(name, torch.nan) for entry in run["logs"][:3]] for run in (*ranks, one)]
        for values in logged:
            assert values[0] == pytest.approx(logged[-1][0], abs=1e-5, nan_ok=True), name
            # Adam makes steps of equal size of small gradients too, hence of their rounding errors.
            assert values[1:] == pytest.approx(logged[-1][1:], abs=1e-3, nan_ok=True), name
    if ALIKE[case].get("method", "sgsd") == "sgsd":
        ledgers = [Ledger.from_json((path / case / "run" / "ledger.json").read_text()) for path in (one_folder, folder)]
        assert set(ledgers[0].items) == set(ledgers[1].items)
        for id, record in ledgers[0].items.items():
            assert ledgers[1].record(id).counts == record.counts
            assert ledgers[1].record(id).support_failure == pytest.approx(record.support_failure, abs=1e-3)
    assert processes == len(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNLIKE)
def test_ranks_whose_rollouts_are_nothing_alike_call_the_same_collectives(together, case):
    """A sharded model gathers its weights in every forward: a rank that makes fewer hangs the others."""
    ranks = together[2][case]
    for rank in ranks:
        assert rank["collectives"] == ranks[0]["collectives"]
        assert rank["forwards"] == ranks[0]["forwards"]
        for mine, other in zip(ranks[0]["weights"], rank["weights"], strict=True):
            assert torch.equal(mine, other)
            assert other.isfinite().all()
    assert len(ranks[0]["gradients"]) == 3
    assert len(ranks[0]["collectives"]) > 30
    moved = [gradient.abs().max() > 0 for rank in ranks for gradient in rank["gradients"][0]]
    assert any(moved) == (case != "all undecided")
    if "chunks" in case or "teachers" in case:
        assert any(rank["own_chunks"] != ranks[0]["own_chunks"] for rank in ranks), "the ranks' work is alike"
        most = [max(needed) for needed in zip(*(rank["own_chunks"] for rank in ranks), strict=True)]
        assert all(made >= needed for made, needed in zip(ranks[0]["forwards"], most, strict=True))


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes(tmp_path):
    run = {"teacher": "ema", "num_generations": 1}
    saved = run | {"save_strategy": "steps", "save_steps": 1}
    launch(tmp_path, 1, **of(1, {"first": saved, "second": saved}))
    (one,) = launch(tmp_path, 1, **of(1, {"on": run | {"resume": "first", "max_steps": 4}}))["on"]
    ranks = launch(tmp_path, 2, **of(2, {"on": run | {"resume": "second", "max_steps": 4}}))["on"]
    assert any(gradient.abs().max() > 0 for gradient in one["gradients"][0])
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], one["gradients"], rtol=0, atol=1e-5)
        torch.testing.assert_close(rank["weights"], one["weights"], rtol=0, atol=1e-5)


# ---- FSDP2 and DeepSpeed

CONFIGURATIONS = Path(trl.__file__).parent / "accelerate_configs"
BROKEN = {"broken_step": 2, "max_grad_norm": 0.1, "num_generations": 1}
SHARDED = {
    name: ALIKE[name] for name in ("single", "groups", "lora-frozen", "correction", "correction-lora", "opsd-lora")
} | {
    "saved": {"num_generations": 1, "save_strategy": "steps", "save_steps": 1},
    "resumed": {"num_generations": 1, "resume": "saved", "max_steps": 4},
    "broken": BROKEN,
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    """TRL's FSDP2 configuration on two gloo processes."""
    flags = ("--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "--mixed_precision", "no")
    cases = of(2, SHARDED | UNLIKE) | {"shard_on_cpu": True}
    return launch(tmp_path_factory.mktemp("fsdp2"), 2, *flags, **cases)


@pytest.fixture(scope="module", params=[2, 3])
def zero(request, tmp_path_factory) -> dict:
    """TRL's DeepSpeed configurations on two gloo processes."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    flags = ("--config_file", str(CONFIGURATIONS / f"zero{request.param}.yaml"), "--mixed_precision", "no")
    alike = {name: ALIKE[name] for name in ("groups", "lora-frozen", "correction-lora")}
    cases = of(2, DESCENTS | alike | UNLIKE | {"broken": BROKEN})
    gloo = {"use_cpu": False, "ddp_backend": "gloo"}  # DeepSpeed is for devices: to it, the CPU is one
    cases = {name: settings | gloo for name, settings in cases.items()}
    return launch(tmp_path_factory.mktemp(f"zero{request.param}"), 2, *flags, **cases)


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in SHARDED if name in ALIKE])
def test_two_shards_learn_what_one_process_does(alone, sharded, case):
    (one,) = alone[1][case]
    assert {rank["distributed"] for rank in sharded[case]} == {"DistributedType.FSDP"}
    for rank in sharded[case]:
        torch.testing.assert_close(rank["gradients"][0], one["gradients"][0], rtol=0, atol=1e-5)
        for name in ("loss", "grad_norm"):
            assert rank["logs"][0][name] == pytest.approx(one["logs"][0][name], abs=1e-5), name
            assert rank["logs"][2][name] == pytest.approx(one["logs"][2][name], rel=1e-2, abs=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("case", UNLIKE)
def test_shards_whose_rollouts_are_nothing_alike_call_the_same_collectives(sharded, case):
    first, second = sharded[case]
    assert first["collectives"] == second["collectives"]
    assert first["forwards"] == second["forwards"]
    assert len(first["gradients"]) == 3


@pytest.mark.slow
def test_shards_save_a_checkpoint_and_go_on_from_it(sharded):
    assert [entry["step"] for entry in sharded["resumed"][0]["logs"]][:4] == [1, 2, 3, 4]
    assert len(sharded["resumed"][0]["gradients"]) == 1
    # The three steps before it were those of the run without checkpoints.
    for mine, other in zip(sharded["saved"][0]["weights"], sharded["single"][0]["weights"], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", DESCENTS)
def test_deepspeeds_gradient_is_that_of_one_process(alone, zero, case):
    (one,) = alone[1][case]
    for rank in zero[case]:
        assert rank["distributed"] == "DistributedType.DEEPSPEED"
        torch.testing.assert_close(rank["weights"], one["weights"], rtol=0, atol=1e-5)
        assert rank["logs"][0]["loss"] == pytest.approx(one["logs"][0]["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["groups", "lora-frozen", "correction-lora"])
def test_deepspeeds_losses_are_those_of_one_process(alone, zero, case):
    (one,) = alone[1][case]
    for rank in zero[case]:
        losses = [[entry["loss"] for entry in run["logs"][:3]] for run in (rank, one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNLIKE)
def test_partitions_whose_rollouts_are_nothing_alike_call_the_same_collectives(zero, case):
    first, second = zero[case]
    assert first["collectives"] == second["collectives"]
    assert first["forwards"] == second["forwards"]
    assert all(weight.isfinite().all() for weight in first["weights"])


def stopped_before_the_update(ranks) -> None:
    for rank in ranks:
        assert rank["alarm"].startswith("the gradient's norm is")
        assert rank["logs"][-1]["step"] == 2
        assert all(weight.isfinite().all() for weight in rank["weights"])


@pytest.mark.slow
def test_a_gradient_that_is_no_number_stops_shards_before_the_update(sharded):
    stopped_before_the_update(sharded["broken"])


@pytest.mark.slow
def test_a_gradient_that_is_no_number_stops_deepspeed_before_the_update(zero):
    """DeepSpeed steps inside its backward, before the guard's hook; it leaves such an update out itself."""
    stopped_before_the_update(zero["broken"])


@pytest.mark.parametrize(
    ("kind", "needs_copy", "distributed", "zero_stage", "refused"),
    [
        ("frozen", True, DistributedType.FSDP, None, "FSDP"),
        ("ema", True, DistributedType.FSDP, None, "FSDP"),
        ("periodic", True, DistributedType.DEEPSPEED, 3, "DeepSpeed ZeRO-3"),
        ("frozen", False, DistributedType.FSDP, None, None),
        ("live", False, DistributedType.FSDP, None, None),
        ("ema", True, DistributedType.DEEPSPEED, 2, None),
        ("frozen", True, DistributedType.MULTI_GPU, None, None),
    ],
)
def test_teachers_that_need_copies_are_refused_where_parameters_are_partitioned(
    kind, needs_copy, distributed, zero_stage, refused
):
    """Under FSDP a frozen teacher was the live policy, without a word: its copies were of parameters no longer used."""
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    accelerator = SimpleNamespace(distributed_type=distributed, state=SimpleNamespace(deepspeed_plugin=plugin))
    if refused is None:
        refuse_partitioned_copies(kind, accelerator, needs_copy=needs_copy)
    else:
        with pytest.raises(ConfigError, match=f"teacher '{kind}' does not work under {refused}"):
            refuse_partitioned_copies(kind, accelerator, needs_copy=needs_copy)


# ---- the watchdog


def test_the_watchdog_reports_ranks_that_wait_for_each_other(tmp_path):
    """One rank leaves out a collective: what happens to a method that asks for one by what its own rollouts are."""
    with pytest.raises(pytest.fail.Exception, match="deadlock: 2 processes were not done after 2 s") as failure:
        watched(tmp_path, 2, SCRIPTS / "collectives.py", str(tmp_path), "unequal", timeout=2)
    assert str(failure.value).count("in ask_the_others") == 1, "the stack of the rank that waits"
    assert str(failure.value).count("in go_on_alone") == 1, "and of the one that does not come"


@pytest.mark.slow
def test_two_machines_find_each_other(tmp_path):
    """Two launchers on this one, with the flags that docs/scaling.md gives to two machines."""
    with ThreadPool(2) as pool:
        flags = [(*GLOO[True], "--num_machines", "2", "--machine_rank", str(rank)) for rank in range(2)]
        meeting = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
        said = pool.starmap(
            lambda rank, flags: watched(
                tmp_path / str(rank),
                2,
                SCRIPTS / "collectives.py",
                str(tmp_path / str(rank)),
                "equal",
                flags=(*flags, *meeting),
                timeout=120,
            ),
            enumerate(flags),
        )
    assert [text.count("done") for text in said] == [1, 1]


# ---- bank and ledger


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "timeout", "renewed"),
    [
        ("stub", 60.0, True),
        ("hanging", 1.0, False),
        ("policy", 60.0, True),
        ("server", 60.0, True),
        ("hanging server", 1.0, False),
    ],
)
def test_processes_renew_one_bank_whatever_becomes_of_the_writer(tmp_path, writer, timeout, renewed):
    def script(body, attempt):
        if writer == "hanging server":
            threading.Event().wait(20)
        return answered_by(StubWriter())(body, attempt)

    settings = {"max_steps": 6, "maintenance_frequency": 2, "maintenance_timeout": timeout}
    with serving(script) as server:
        if "server" in writer:
            settings |= {"maintenance_writer_url": server.url, "maintenance_writer_model": "tiny"}
        else:
            settings["writer"] = writer
        first, second = launch(tmp_path, 2, **of(2, {"two": settings}))["two"]
    assert ("server" in writer) == bool(server.bodies)
    assert first["bank"] == second["bank"]
    assert (first["bank"] != make_bank(3).digest) == renewed
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)
    log = (tmp_path / "two" / "run" / "maintenance.jsonl").read_text().splitlines()
    checks = [json.loads(line) for line in log]
    assert [check["records"] for check in checks] == [2 * 4] * 3
    assert checks[-1]["bank"] == first["bank"]


@pytest.mark.slow
def test_processes_evaluate_each_rollout_once_although_the_last_batch_is_filled_up(tmp_path):
    settings = {"reward": "first problem alone", "max_steps": 1, "truncated": "undecided", "rollouts": "ended"}
    cases = {
        f"{problems} {G}": {**settings, "eval_problems": problems, "num_generations_eval": G}
        for problems, G in ((3, 1), (5, 1), (3, 2), (5, 4))
    }
    for name, ranks in launch(tmp_path, 2, **of(2, cases)).items():
        for rank in ranks:
            assert rank["evaluated"]["eval_success_rate"] == pytest.approx(1 / int(name.split()[0])), name
