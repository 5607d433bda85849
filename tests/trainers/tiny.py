"""A trainer of a tiny model on six problems, with rollouts that depend on the prompt alone where that is wanted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import torch

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.problems import Problem
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.config import CONFIGS, VerifiedConfig
from sgsd.trainers.methods import TRAINERS

from ..conftest import make_model, make_tokenizer

EOS = 1
PROBLEMS = [Problem(id=f"p{n}", text=f"{n} + {n * n}?", answer=str(n + n * n)) for n in range(1, 7)]
SOLVED = [replace(problem, solution=f"It is {problem.answer}{'!' * n}") for n, problem in enumerate(PROBLEMS)]


def make_bank(pairs: int = 4, label: str = "") -> SkillBank:
    """Short items of unequal lengths: byte-level prompts are long enough."""
    return SkillBank(
        tuple(Skill.new(f"{label}add" + " more" * n, origin=Origin.SEED) for n in range(pairs)),
        tuple(Mistake.new(f"{label}slip" + " so" * n, origin=Origin.SEED) for n in range(pairs)),
        name="tiny",
    )


def quoting_model():
    """A model that is sure of nothing but quotation marks: held to a schema, it writes short texts soon."""
    model = make_model(max_position_embeddings=4096)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)  # so that all hidden states are one and the same
        hidden = model(torch.tensor([[2]]), output_hidden_states=True).hidden_states[-1][0, 0]
        head = model.get_output_embeddings().weight.zero_()
        head[make_tokenizer().convert_tokens_to_ids('"')] = 4.0 * hidden / hidden.square().sum()
    return model


def by_parity(completion_ids, **_):
    """A success where the ids' sum is even, undecided where it divides by five."""
    return [None if sum(ids) % 5 == 0 else float(sum(ids) % 2 == 0) for ids in completion_ids]


def make_config(output_dir, *, method="sgsd", **settings) -> VerifiedConfig:
    defaults = {
        "output_dir": str(output_dir),
        "retriever": "random",
        "max_completion_length": 8,
        "instruction": "Go.",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "max_steps": 1,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    if method == "sgsd":
        defaults["num_teachers"] = 3
    if method == "grpo":
        defaults["num_generations"] = 2
    return CONFIGS[method](**defaults | settings)


def make_trainer(
    output_dir, *, method="sgsd", model=None, problems=None, reward=by_parity, stub=False, **settings
) -> VerifiedTrainer:
    """``stub``: rollouts that depend on the prompt alone. Arguments of the trainer and settings alike by name."""
    own = ("bank", "retriever_object", "verifier_object", "peft_config", "eval_dataset", "callbacks", "writer")
    arguments = {name: settings.pop(name) for name in own if name in settings}
    for name in ("retriever", "verifier"):
        if f"{name}_object" in arguments:
            arguments[name] = arguments.pop(f"{name}_object")
    if problems is None:
        problems = SOLVED if method == "opsd" else PROBLEMS
    args = make_config(output_dir, method=method, **settings)
    if args.uses_bank:
        arguments.setdefault("bank", make_bank())
    trainer = TRAINERS[method](
        model=make_model() if model is None else model,
        args=args,
        train_dataset=problems,
        processing_class=make_tokenizer(),
        reward_funcs=reward,
        **arguments,
    )
    if stub:
        trainer._generate_single_turn = prompted_rollouts
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def prompted_rollouts(prompt_ids, images=None, multimodal_fields=None, num_generations=1, has_tool_images=False):
    """In place of sampling: the n-th rollout of a prompt is always the same. Two of three end, the others are cut."""
    seen = Counter()
    rollouts = []
    for prompt in prompt_ids:
        digest = hashlib.sha256(bytes(str((list(prompt), seen[tuple(prompt)])), "ascii")).digest()
        seen[tuple(prompt)] += 1
        body = [2 + byte % 250 for byte in digest[1:9]]
        rollouts.append(body if digest[0] % 3 == 0 else [*body[: 2 + digest[0] % 5], EOS])
    return rollouts, None


def rows(trainer: VerifiedTrainer, numbers) -> list[dict]:
    return [trainer.train_dataset[n] for n in numbers]


def weights_of(model) -> list:
    return [parameter.detach().clone() for parameter in model.parameters()]


def forget_files(checkpoint):
    """The mark of a checkpoint takes its files as they are: what is wrong with one is left to those who read it."""
    file = checkpoint / "sgsd" / "state.json"
    state = json.loads(file.read_text())
    there = {name: checkpoint / name for name in state["sizes"]}
    sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in there.items()}
    file.write_text(json.dumps(state | {"sizes": sizes}))
