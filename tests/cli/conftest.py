"""What the command-line tests share: the command line in process, a small data set, a quiet machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sgsd.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a refusal prints last."""
        assert "Traceback" not in self.err
        return self.err.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def _one_thread():
    """A model this small is a hundred times slower with more threads than free cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sgsd(capsys) -> Callable[..., Result]:
    """``sgsd(*arguments)`` in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"id": f"sum-{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def flags(tiny_folder, problems) -> list[str]:
    """A complete, small training run but for its output_dir."""
    settings = {
        "model_name_or_path": tiny_folder,
        "dataset": problems,
        "bank": "seed:mental-arithmetic",
        "retriever": "bm25",
        "num_teachers": 2,
        "verifier": "exact",
        "instruction": "Answer with a number.",
        "max_steps": 3,
        "save_steps": 2,
        "max_completion_length": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "bf16": "false",
        "gradient_checkpointing": "false",
        "report_to": "none",
        "disable_tqdm": "true",
        "logging_steps": 1,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def flags_of(flags) -> Callable[..., list[str]]:
    """``flags_of(method, skills=False)``: the same run by another method."""

    def call(method: str, *, skills: bool = False) -> list[str]:
        own = {name: value for name, value in zip(flags[::2], flags[1::2], strict=True) if name != "--num_teachers"}
        if not skills:
            del own["--bank"]
        parts = [part for pair in own.items() for part in pair] + ["--method", method]
        parts += ["--num_generations", "2"] if method == "grpo" else ["--reference", "answer"]
        return [*parts, "--skills_in_prompt"] if skills else parts

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory, flags, problems) -> Path:
    """A finished run with checkpoints 2 and 3. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    extra = ["--output_dir", str(folder), "--eval_dataset", str(problems), "--hub_token", "hf_secret"]
    try:
        assert main(["train", *flags, *extra]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder
