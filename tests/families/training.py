"""One optimizer step of any method on a tiny model, with rollouts sampled from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from sgsd import (
    GRPOBaselineConfig,
    GRPOBaselineTrainer,
    OPSDConfig,
    OPSDTrainer,
    SGSDConfig,
    SGSDTrainer,
    SkillBank,
)
from sgsd.bank import Mistake, Origin, Skill

from ..conftest import make_tokenizer
from .models import FAMILIES, ODD

ROWS = [
    {"problem": "+".join("1" * n) + "?", "answer": str(n), "solution": "It is " + "!" * n + f"{n}."}
    for n in range(1, 9)
]
"""Prompts of unequal lengths, some of which a completion takes across the switch of ``phi-3``'s positions."""

BANK = SkillBank(
    tuple(Skill.new("add" + " more" * n, origin=Origin.SEED) for n in range(3)),
    tuple(Mistake.new("slip" + " so" * n, origin=Origin.SEED) for n in range(3)),
    name="tiny",
)
METHODS: dict[str, dict[str, Any]] = {
    "gated": {"support_threshold": 0.0},  # every teacher takes a stance
    "correction": {
        "objective": "correction",
        "teacher": "frozen",
        "teacher_trust": "equal",
        "teacher_top_tokens": 4,
        "rehearsal_weight": 1.0,
        "rehearsal_texts": 2,
    },
    "reweight": {"objective": "reweight", "teacher_trust": "equal"},
    "gated and grpo": {"support_threshold": 0.0, "grpo_weight": 1.0},
    "opsd": {},
    "grpo": {},
}
"""Method → what sets it apart in its configuration."""


@dataclass
class Rollouts:
    """What a reward function was given the last time: each rollout's token ids and problem."""

    completions: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def reward(self, completion_ids, problem, **_: Any) -> list[float]:
        """Every other rollout is right."""
        self.completions, self.problems = [*map(list, completion_ids)], [*problem]
        return [float(n % 2) for n in range(len(completion_ids))]


@dataclass
class Step:
    """What one step left behind.

    Attributes:
        trainer: after the step.
        logged: everything logged about it.
        rollouts: sampled in it.
        moved, still: names of the weights that the step changed, and did not.
    """

    trainer: Any
    logged: dict[str, float]
    rollouts: Rollouts
    moved: set[str]
    still: set[str]

    @property
    def frozen(self) -> set[str]:
        return {name for name, weight in self.trainer.model.named_parameters() if not weight.requires_grad}


def make_trainer(output_dir, model, method: str, *, G: int, peft_config=None, pad_id: int = 1, **settings):
    """A trainer of the model, and what will be sampled; ``retriever`` and ``callbacks`` are the trainer's, too."""
    rollouts = Rollouts()
    tokenizer = make_tokenizer()
    tokenizer.pad_token_id = pad_id
    config, trainer = {
        "opsd": (OPSDConfig, OPSDTrainer),
        "grpo": (GRPOBaselineConfig, GRPOBaselineTrainer),
    }.get(method, (SGSDConfig, SGSDTrainer))
    arguments = {name: settings.pop(name) for name in ("retriever", "callbacks") if name in settings}
    own: dict[str, Any] = dict(METHODS[method])
    if config is SGSDConfig:
        own |= {"num_teachers": 2, "retriever": "random"}
        arguments["bank"] = BANK
    defaults = {
        "output_dir": str(output_dir),
        "num_generations": G,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "max_steps": 1,
        "learning_rate": 0.01,
        "instruction": "Go.",
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return (
        trainer(
            model=model,
            reward_funcs=rollouts.reward,
            args=config(**defaults | own | settings),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=peft_config,
            **arguments,
        ),
        rollouts,
    )


def one_step(output_dir, model, method: str, **settings) -> Step:
    trainer, rollouts = make_trainer(output_dir, model, method, **settings)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    logged: dict[str, float] = {}
    for entry in trainer.state.log_history:
        logged |= {name: value for name, value in entry.items() if isinstance(value, int | float)}
    assert trainer.state.global_step == 1
    same = {name: torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters()}
    return Step(
        trainer,
        logged,
        rollouts,
        moved={name for name, equal in same.items() if not equal},
        still={name for name, equal in same.items() if equal},
    )


def lora(name: str) -> LoraConfig:
    family = (FAMILIES | ODD)[name]
    by_columns = family.architecture == "GPT2LMHeadModel"  # its weights are transposed
    return LoraConfig(r=4, target_modules=family.lora, fan_in_fan_out=by_columns, task_type="CAUSAL_LM")


def check(step: Step, *, adapted: bool) -> None:
    """A finite loss and gradient; some weight that is trained moved, and none that is frozen."""
    assert math.isfinite(step.logged["loss"])
    assert math.isfinite(step.logged["grad_norm"])
    assert step.logged["grad_norm"] > 0
    assert len(step.rollouts.completions) == 4
    assert step.moved
    assert not step.moved & step.frozen
    assert bool(step.frozen) == adapted
    assert all(weight.isfinite().all() for weight in step.trainer.model.parameters())
