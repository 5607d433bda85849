"""A trainer of a tiny model on six problems, with rollouts that depend on the prompt alone where that is wanted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import torch
from trl import GRPOTrainer

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.data.problems import Problem
from sgsd.retrieval import Pair, Retrieval
from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.config import CONFIGS, VerifiedConfig
from sgsd.trainers.methods import TRAINERS

from ..conftest import make_model, make_tokenizer
from ..reference import exact_copy

EOS = 1
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
EIGHT = [Problem(id=f"p{n}", text=f"{n} + {n * n}?", answer=str(n + n * n)) for n in range(1, 9)]
PROBLEMS = EIGHT[:6]
EIGHT_SOLVED = [replace(problem, solution=f"It is {problem.answer}{'!' * n}") for n, problem in enumerate(EIGHT)]
SOLVED = EIGHT_SOLVED[:6]


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


def by_first_id(completion_ids, **_):
    """Successes and failures, nothing undecided."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def by_parity(completion_ids, **_):
    """A success where the ids' sum is even, undecided where it divides by five."""
    return [None if sum(ids) % 5 == 0 else float(sum(ids) % 2 == 0) for ids in completion_ids]


def always(reward):
    """A reward function: the same for every rollout."""
    return lambda completion_ids, **_: [reward] * len(completion_ids)


def moved(before, model) -> bool:
    return any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def unlike(model, other) -> list[str]:
    """Names of the weights that are not the same bit by bit."""
    final = other.state_dict()
    return [name for name, value in model.state_dict().items() if not torch.equal(final[name], value)]


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
    output_dir, *, method="sgsd", model=None, tokenizer=None, problems=None, reward=by_parity, stub=False, **settings
) -> VerifiedTrainer:
    """``stub``: rollouts that depend on the prompt alone. Arguments of the trainer and settings alike by name."""
    own = (
        "bank",
        "retriever_object",
        "verifier_object",
        "peft_config",
        "eval_dataset",
        "callbacks",
        "writer",
        "rollout_func",
    )
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
        processing_class=tokenizer or make_tokenizer(),
        reward_funcs=reward,
        **arguments,
    )
    if stub:
        trainer._generate_single_turn = prompted_rollouts
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def trls_own(output_dir, rows, *, model=None, reward=by_first_id, peft_config=None, **settings) -> GRPOTrainer:
    """TRL's trainer on the same rows, ready for a loss."""
    plain = GRPOTrainer(
        model=make_model() if model is None else model,
        reward_funcs=reward,
        args=make_config(output_dir, **{"method": "grpo"} | settings),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )
    plain.current_gradient_accumulation_steps = 1
    plain.model.train()
    return plain


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


def plain_distributions(model, prompt, completion, temperature=1.0) -> torch.Tensor:
    """``[T, V]`` log-probabilities of one pair alone, unpadded, in float64."""
    with torch.no_grad():
        logits = exact_copy(model).double().eval()(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)


def weights_of(model) -> list:
    return [parameter.detach().clone() for parameter in model.parameters()]


def batch_of(trainer: VerifiedTrainer, numbers) -> dict:
    return trainer._generate_and_score_completions(rows(trainer, numbers))


def cut(batch, size) -> list[dict]:
    """Micro-batches of ``size`` rows."""
    B = batch["completion_ids"].shape[0]
    return [
        {name: value[at : at + size] if value.ndim else value for name, value in batch.items()}
        for at in range(0, B, size)
    ]


def loss_and_gradients(trainer, parts, steps=1) -> tuple[float, list[torch.Tensor]]:
    """The sum of the micro-batches' losses, and of their gradients, in one optimizer step of ``steps``."""
    trainer.current_gradient_accumulation_steps = steps
    trainer.model.zero_grad()
    total = 0.0
    for part in parts:
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


def gradients(model) -> list[torch.Tensor]:
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in model.parameters()
    ]


def logged_means(trainer) -> dict[str, float]:
    """What the losses since the last call would log."""
    return trainer.metrics.reduced(trainer.accelerator)


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def render(text: str) -> list[int]:
    """A prompt's ids as the template has them with thinking off, without the package."""
    return make_tokenizer().apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        enable_thinking=False,
    )["input_ids"]


class WeightedRetriever:
    """Pairs of unequal weight: a uniform α would hide an α that is left out."""

    name = "weighted"

    def retrieve(self, queries, bank, k):
        pairs = tuple(Pair(s, m, 0.5) for s, m in zip(bank.skills[:k], bank.mistakes[:k], strict=True))
        weights = [1.0 + n for n in range(len(pairs))]
        return [Retrieval(pairs, tuple(weight / sum(weights) for weight in weights)) for _ in queries]


def forget_files(checkpoint):
    """The mark of a checkpoint takes its files as they are: what is wrong with one is left to those who read it."""
    file = checkpoint / "sgsd" / "state.json"
    state = json.loads(file.read_text())
    there = {name: checkpoint / name for name in state["sizes"]}
    sizes = {name: path.stat().st_size for name, path in there.items() if path.exists()}
    file.write_text(json.dumps(state | {"sizes": sizes}))
