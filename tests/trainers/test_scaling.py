"""The commands of docs/scaling.md and docs/training.md, and the configurations that they name, read by real parsers."""

from __future__ import annotations

import argparse
import importlib.resources
import os
import shlex

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from trl.scripts import vllm_serve

from sgsd.cli.settings import parse_settings
from sgsd.cli.train import _split_launch_flags, train
from sgsd.errors import ConfigError

from ..conftest import ROOT
from ..test_commands import commands_of


@pytest.fixture(autouse=True)
def _no_port_is_in_use(monkeypatch):
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)


COMMANDS = [
    shlex.split(command)
    for page in ("docs/scaling.md", "docs/training.md")
    for command in commands_of(page)
    if "--accelerate_config" in command or command.startswith("trl vllm-serve")
]
TRAINING = [command[2:] for command in COMMANDS if command[0] == "sgsd"]
SERVERS = [command[2:] for command in COMMANDS if command[0] == "trl"]


def relaunched(arguments: list[str], monkeypatch) -> list[str]:
    """What ``sgsd train`` hands to ``accelerate launch``."""
    seen: list[list[str]] = []

    def execv(_, command):
        seen.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        train(arguments)
    assert seen[0][1:3] == ["-m", "accelerate.commands.launch"]
    return seen[0][3:]


def understood(command: list[str], monkeypatch) -> tuple[argparse.Namespace, dict[str, str]]:
    """What ``accelerate launch`` makes of its arguments: as it reads them, and the ranks' environment."""
    seen = []
    for launcher in ("deepspeed_launcher", "multi_gpu_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, launcher, seen.append)
    launch.launch_command(launch.launch_command_parser().parse_args(command))
    (read,) = seen
    if read.use_deepspeed:
        return read, prepare_deepspeed_cmd_env(read)[1]
    return read, prepare_multi_gpu_env(read)


def test_there_are_such_commands():
    assert len(TRAINING) >= 5
    assert len(SERVERS) == 2


@pytest.mark.parametrize("arguments", TRAINING, ids=" ".join)
def test_a_launched_command_is_understood_by_accelerate_and_by_sgsd_train(arguments, monkeypatch, tmp_path):
    (tmp_path / "run.yaml").write_text("dataset: problems.jsonl\nmodel_name_or_path: some/model\nbank: bank.json\n")
    monkeypatch.chdir(tmp_path)
    read, environment = understood(relaunched(arguments, monkeypatch), monkeypatch)
    assert (read.module, read.training_script) == (True, "sgsd.cli")
    assert read.training_script_args[0] == "train"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if "--num_machines" in arguments:
        assert (read.num_machines, read.nproc_per_node, read.nnodes) == (2, "8", "2")
        assert (read.rdzv_endpoint, read.node_rank) == ("10.0.0.1:29500", read.machine_rank)
    # A machine without a GPU refuses bfloat16; nothing else is overridden.
    rest = [*read.training_script_args[1:], "--bf16", "false", "--output_dir", str(tmp_path / "unused")]
    run, training, _ = parse_settings(rest)
    rollouts = training.per_device_train_batch_size * training.gradient_accumulation_steps * read.num_processes
    if arguments[0] == "--config" and "qwen3" in arguments[1] and run.method == "sgsd":
        assert rollouts == 16, "the paper's batch"
        assert training.generation_batch_size % training.num_generations == 0
    assert training.use_vllm == ("--use_vllm" in arguments)


@pytest.mark.parametrize("arguments", SERVERS, ids=" ".join)
def test_a_vllm_server_is_started_as_trl_expects_it(arguments):
    (read,) = vllm_serve.make_parser().parse_args_and_config(arguments)
    command = vllm_serve.build_command(read)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    imposed = command[command.index("--weight-transfer-config") :]
    assert imposed[1::2] == ['{"backend": "nccl"}', "processed_logprobs", "-1"]
    for flag, value in zip(imposed[::2], imposed[1::2], strict=True):
        assert f"`{flag} {value}`" in page or f"`{flag} '{value}'`" in page


@pytest.mark.parametrize(
    ("name", "kind", "zero_stage"),
    [
        ("multi_gpu", DistributedType.MULTI_GPU, None),
        ("fsdp2", DistributedType.FSDP, None),
        ("zero2", DistributedType.DEEPSPEED, 2),
        ("zero3", DistributedType.DEEPSPEED, 3),
    ],
)
def test_accelerate_reads_the_configurations_that_the_pages_name(name, kind, zero_stage):
    config = load_config_from_file(str(importlib.resources.files("trl.accelerate_configs") / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert config.mixed_precision == "bf16"
    assert (config.deepspeed_config or {}).get("zero_stage") == zero_stage


def test_fsdp2_shards_as_its_file_says(monkeypatch):
    file = str(importlib.resources.files("trl.accelerate_configs") / "fsdp2.yaml")
    for name, value in understood(["--config_file", file, "script.py"], monkeypatch)[1].items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert str(plugin.state_dict_type) == "StateDictType.FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize("flag", ["--main_process_port", "--machine_rank"])
def test_a_launch_flag_needs_a_value(flag):
    with pytest.raises(ConfigError, match=f"{flag} needs a value"):
        _split_launch_flags(["--config", "internalize", flag])


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"unusable --accelerate_config.*nothing"):
        train(["--config", "internalize", "--accelerate_config", "nothing"])
