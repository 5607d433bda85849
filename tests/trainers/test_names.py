"""Each method has its own name, made in one place; SGSD is the paper's objective alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sgsd.objectives import OBJECTIVES
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.names import card_name, complete_card, method_name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "SGSD"),
        ({"objective": "gated", "teacher": "frozen"}, "SGSD"),
        ({"grpo_weight": 1.0}, "GRPO + SGSD"),
        ({"support_baseline": "control"}, "SGSD, control"),
        ({"objective": "local"}, "local support"),
        ({"objective": "correction"}, "correction"),
        ({"objective": "correction", "support_baseline": "control"}, "correction"),
        ({"objective": "correction", "grpo_weight": 1.0, "sgsd_weight": 2.0}, "GRPO + correction"),
        ({"objective": "correction", "teacher_guidance": 2.0}, "correction, guided"),
        ({"objective": "correction", "teacher_guidance": 2.0, "grpo_weight": 1}, "GRPO + correction, guided"),
        ({"objective": "reweight"}, "reweight"),
        ({"objective": "correction", "grpo_weight": 1.0, "sgsd_weight": 0.0}, "GRPO + ledger"),
        ({"method": "grpo"}, "GRPO"),
        ({"method": "grpo", "skills_in_prompt": True}, "GRPO+Skill"),
        ({"method": "opsd", "skills_in_prompt": False}, "OPSD"),
        ({"method": "base"}, "Base"),
        ({"method": "base", "skills_in_prompt": True}, "Base+Skill"),
    ],
)
def test_a_method_is_named_by_its_settings(settings, name):
    assert method_name(settings) == name


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"gated"}))
def test_no_other_objective_has_the_papers_name(objective, tmp_path):
    args = SGSDConfig(output_dir=str(tmp_path), objective=objective, num_generations=2, per_device_train_batch_size=2)
    assert "SGSD" not in method_name(vars(args))


def test_a_card_says_what_a_variant_builds_on():
    assert card_name({}) == "SGSD"
    assert card_name({"objective": "correction", "grpo_weight": 1}) == "GRPO + correction, which builds on SGSD"


def test_a_card_links_no_model_of_a_package(tmp_path):
    local = "local:smollm2-135m-instruct"
    (tmp_path / "README.md").write_text(f"fine-tuned from [{local}](https://huggingface.co/{local}), [a](https://b)\n")
    complete_card(tmp_path, {"data": "x"})
    assert (tmp_path / "README.md").read_text().startswith(f"fine-tuned from `{local}`, [a](https://b)\n")


def test_names_need_no_torch():
    code = "import sys, sgsd.trainers.names; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
