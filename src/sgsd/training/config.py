"""SGSD's settings, on top of TRL's.

The objective's, the teachers' and the sampling defaults are the paper's; ``thinking`` is not (see docs/deviations.md).
The presets hold the paper's batch size and steps too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from sgsd.bank import SkillBank
from sgsd.errors import ConfigError, check_choice
from sgsd.prompts import BOXED_INSTRUCTION, Thinking

TEACHERS = ("live", "frozen", "ema", "periodic")
RETRIEVERS = ("embedding", "bm25", "random")
TRUNCATED = ("incorrect", "undecided")

# TRL's refusal of one rollout per prompt, which its runtime handles; pinned by a test.
_SINGLE_ROLLOUT_REFUSAL = "GRPO requires at least 2 generations per prompt"


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class SGSDConfig(GRPOConfig):
    r"""Configuration of ``SGSDTrainer``.

    Everything of TRL's ``GRPOConfig`` applies to sampling, optimisation, logging and saving; this class adds the
    method's own settings and sets the paper's sampling and optimisation as defaults. ``num_generations`` may be 1.

    Parameters are documented by their ``help`` (``sgsd train --help`` prints it).

    Raises:
        ConfigError: a setting of SGSD's own that cannot be used.
    """

    # The paper's values for settings that TRL has under other defaults.
    learning_rate: float = _setting(5e-6, "Initial learning rate of AdamW.")
    max_grad_norm: float = _setting(0.1, "Gradient clipping norm.")
    num_generations: int = _setting(1, "G, rollouts per prompt; 1 or more.")
    max_completion_length: int = _setting(1024, "Most new tokens of a rollout.")
    temperature: float = _setting(1.1, "Sampling temperature of rollouts.")
    top_p: float = _setting(0.95, "Nucleus of rollout sampling.")
    top_k: int = _setting(20, "Top-k of rollout sampling; 0 switches it off.")
    vllm_importance_sampling_correction: bool = _setting(
        False, "TRL's correction between vLLM and trainer; biased by the kept mass under top-p or top-k, hence off."
    )

    # Teachers.
    bank: str | None = _setting(None, "Skill bank: a file, or a shipped one as seed:NAME.")
    num_teachers: int = _setting(8, "K, skill-mistake pairs per problem, each a teacher.")
    retriever: str = _setting("embedding", f"How pairs are found: {', '.join(RETRIEVERS)}.")
    embedder: str = _setting(
        "Qwen/Qwen3-Embedding-0.6B", "Embedder of retriever 'embedding': hub name, folder, or local:all-minilm-l6-v2."
    )
    retrieval_query_prompt: str = _setting(
        "", "Put before each problem when it is embedded; Qwen3-Embedding wants 'Instruct: <task>\\nQuery:'."
    )
    retrieval_temperature: float = _setting(1.0, "Temperature of the softmax over similarities that weighs teachers.")
    teacher: str = _setting("live", f"Whose weights teach: {', '.join(TEACHERS)}.")
    teacher_ema_decay: float = _setting(0.99, "For teacher 'ema': weights = decay * weights + (1 - decay) * policy.")
    teacher_sync_steps: int = _setting(25, "For teacher 'periodic': optimizer steps between copies of the policy.")
    max_prompt_length: int | None = _setting(
        None, "Most tokens of a student's or teacher's prompt; None: what the model's context leaves to prompts."
    )
    max_tokens_per_chunk: int = _setting(16384, "Token budget of one teacher forward, padding included.")

    # Prompts and verdicts.
    instruction: str = _setting(BOXED_INSTRUCTION, "Ends every prompt, the student's and the teachers'.")
    thinking: str = _setting(
        "matched", "matched: chat_template_kwargs for all; paper: student without thinking, teachers with."
    )
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function by dotted path.")
    verifier_options: dict[str, Any] | str | None = _setting(None, "Options of the verifier, as JSON or a mapping.")
    truncated: str = _setting("incorrect", f"A rollout cut at max_completion_length is {' or '.join(TRUNCATED)}.")
    success_threshold: float = _setting(
        0.5, "With reward_funcs of your own: a weighted sum of rewards of at least this is a success."
    )

    # Objective.
    score_temperature: float = _setting(1.0, "Both sides' log-probabilities are taken at this temperature.")
    gate_tau: float = _setting(1.0, "Width of the gate, in squared nats.")
    support_clip: float = _setting(3.0, "Clip of the token gap inside the support, in nats.")
    support_threshold: float = _setting(0.05, "Dead zone: a support of at most this takes no stance, in nats.")
    sgsd_weight: float = _setting(1.0, "Weight of the SGSD term.")
    grpo_weight: float = _setting(0.0, "Weight of TRL's GRPO loss, added on the same rollouts; not in the paper.")
    log_teacher_entropy: bool = _setting(True, "Log the teachers' entropy; costs a little of each teacher forward.")

    def __post_init__(self) -> None:
        if isinstance(self.verifier_options, str):
            try:
                self.verifier_options = json.loads(self.verifier_options)
            except json.JSONDecodeError as error:
                raise ConfigError("verifier_options is not JSON", got=self.verifier_options) from error
        if not isinstance(self.verifier_options, dict | None):
            raise ConfigError("verifier_options is no mapping", got=self.verifier_options, expected="a JSON object")
        self._check()
        try:
            super().__post_init__()
        except ValueError as error:
            # TRL raises this after everything else of GRPOConfig is set and checked, but for vLLM's clip range.
            if not (self.num_generations == 1 and str(error).startswith(_SINGLE_ROLLOUT_REFUSAL)):
                raise
        if not isinstance(self.chat_template_kwargs or {}, dict):  # JSON until TRL has read it
            got = repr(self.chat_template_kwargs)
            raise ConfigError("chat_template_kwargs is no mapping", got=got, expected="a JSON object")

    def _check(self) -> None:
        for name, allowed in (
            ("retriever", RETRIEVERS),
            ("teacher", TEACHERS),
            ("truncated", TRUNCATED),
            ("thinking", tuple(map(str, Thinking))),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in (
            "num_teachers",
            "num_generations",
            "teacher_sync_steps",
            "max_tokens_per_chunk",
            "max_prompt_length",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", got=getattr(self, name), expected="1 or more")
        # The first four TRL, transformers and torch would refuse only once a step is under way.
        for name in (
            "temperature",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "max_completion_length",
            "score_temperature",
            "gate_tau",
            "support_clip",
            "retrieval_temperature",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive", got=getattr(self, name))
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p is out of range", got=self.top_p, expected="above 0, at most 1")
        for name in ("support_threshold", "sgsd_weight", "grpo_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative", got=getattr(self, name))
        if not self.sgsd_weight and not self.grpo_weight:
            raise ConfigError("sgsd_weight and grpo_weight are both 0", expected="something to learn from")
        if self.grpo_weight and self.num_generations == 1:
            raise ConfigError(
                "grpo_weight needs groups", got="num_generations 1", expected="2 or more: one rollout has no advantage"
            )
        if self.beta and not self.grpo_weight:
            raise ConfigError("beta is part of TRL's GRPO loss", got=self.beta, expected="grpo_weight above 0")
        for name in ("entropy_coef", "use_adaptive_entropy"):
            if getattr(self, name):
                # The student's forward keeps no gradient for the entropy.
                raise ConfigError(f"{name} is not supported", got=getattr(self, name), remedy="leave it out")
        if not 0 <= self.teacher_ema_decay < 1:
            raise ConfigError("teacher_ema_decay is out of range", got=self.teacher_ema_decay, expected="0 to below 1")


def resolve_bank(bank: SkillBank | str | Path | None) -> SkillBank:
    """The bank a run begins with: a value, a file, or a shipped one by name.

    Raises:
        ConfigError: none was named.
        BankError: it cannot be read, or makes no pairs.
    """
    if bank is None:
        raise ConfigError("no skill bank", expected="bank: a file, or a shipped one, seed:competition-mathematics")
    resolved = bank if isinstance(bank, SkillBank) else SkillBank.load(bank)
    resolved.require_pairs()
    return resolved
