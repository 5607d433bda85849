"""A dry run builds what trains: the same rows, prompts, checks; no weights, nothing written."""

from __future__ import annotations

import json

import pytest
import yaml

from sgsd.commands.settings import presets, resolve_config

OF_TRAINING = [name for name in presets() if "method" in yaml.safe_load(resolve_config(name).read_text())]


@pytest.fixture
def bracketed(tmp_path):
    """Problems with what a terminal library might take for markup."""
    texts = [rf"Solve [/bold] \[x^2 = {n}\] [red]now[/red] :smile:" for n in range(64)]
    rows = [{"problem": text, "answer": "2", "solution": "It is 2."} for text in texts]
    file = tmp_path / "brackets.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("method", ["sgsd", "grpo", "opsd"])
def test_a_problem_in_brackets_is_shown_as_it_is(sgsd, flags, flags_of, bracketed, tmp_path, method):
    """At 029fdea the formula was gone from the prompt shown, or the closing bracket ended in a traceback."""
    own = flags if method == "sgsd" else flags_of(method)
    flags = [*own, "--dataset", bracketed, "--output_dir", tmp_path / "run", "--dry_run"]
    result = sgsd("train", *flags)
    assert result.code == 0, result.err
    shown = " ".join(result.out.split())
    for part in ("[/bold]", r"\[x^2 = 0\]", "[red]now[/red]", ":smile:"):
        assert part in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", OF_TRAINING)
def test_every_preset_passes_a_dry_run_without_a_gpu(sgsd, tiny_folder, bracketed, tmp_path, preset):
    """At 029fdea: "Your setup doesn't support bf16/gpu"."""
    given = {
        "model_name_or_path": tiny_folder,
        "dataset": bracketed,
        "output_dir": tmp_path / "run",
        "max_completion_length": 16,
        "use_peft": "false",
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    settings = yaml.safe_load(resolve_config(preset).read_text())
    if settings.get("dataset_adapter"):  # the authors' wrapper stays: the data are DAPO's
        pytest.skip("needs rows of DAPO-Math-17k")
    result = sgsd("train", "--config", preset, *flags, "--dry_run")
    assert result.code == 0, result.err
    assert "max_completion_length" in result.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--learning_rate", "-1"), "learning_rate"),
        (("--max_steps", "0"), "max_steps"),
        (("--per_device_train_batch_size", "512"), "512"),
        (("--max_completion_length", "100000"), "context"),
    ],
)
def test_what_could_not_train_is_one_line_in_a_dry_run_too(sgsd, flags, bracketed, tmp_path, wrong, named):
    """At 029fdea the dry run passed, and the run ended in a traceback after loading, or trained nothing."""
    given = [*flags, "--dataset", bracketed, "--output_dir", tmp_path / "run", *wrong, "--dry_run"]
    result = sgsd("train", *given)
    assert result.code == 2
    assert named in result.error
    assert len(result.err.strip().splitlines()) == 1
