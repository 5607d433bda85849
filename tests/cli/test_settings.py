"""What a configuration file may say."""

from __future__ import annotations

import re

import pytest

from sgsd.cli.settings import parse_settings
from sgsd.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: three", "expected int"),
        ("seed: 1.5", "expected int"),
        ("loss_type: no", 'put it in quotes: loss_type: "no"'),
        ("run_name: 5", 'put it in quotes: run_name: "5"'),
        ("report_to: 5", "expected None | str | list[str]"),
        ("learning_rate: [1e-5]", "expected float"),
        (
            "accelerator_config: 0",
            "expected dict | str | None",
        ),  # transformers would read, and close, the standard input
        ("model_init_kwargs: [a]", "expected dict[str, typing.Any] | str | None"),
        ("lora_target_modules: {q_proj: true}", "expected list[str] | None"),
        ("lora_target_modules: [q_proj, 3]", "expected list[str] | None"),
        ("reward_weights: [1, heavy]", "expected list[float] | None"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_is_refused_by_name(tmp_path, line, expected):
    file = tmp_path / "run.yaml"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(expected)) as refused:
        parse_settings(["--config", str(file), "--bf16", "false", "--output_dir", "unused"])
    assert f"wrong type in {file}: got {line.split(':')[0]}: " in str(refused.value)


def test_lists_and_mappings_of_a_file_reach_the_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "lora_target_modules: [q_proj, v_proj]\nreward_weights: [1, 0.5]\nreport_to: [none]\n"
        "debug: [underflow_overflow]\npad_to_multiple_of: 8\n"
        "accelerator_config: {split_batches: false}\nmodel_init_kwargs: {attn_implementation: eager}\n"
    )
    _, training, model = parse_settings(["--config", str(file), "--bf16", "false", "--output_dir", "unused"])
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert training.reward_weights == [1, 0.5]
    assert training.pad_to_multiple_of == 8
    assert training.model_init_kwargs == {"attn_implementation": "eager"}
    assert training.accelerator_config.split_batches is False
