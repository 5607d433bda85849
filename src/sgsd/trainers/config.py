"""The methods' settings, on top of TRL's.

What all methods share is in ``VerifiedConfig``: prompts, verifier, sampling, lengths, optimisation. Sampling and
optimisation defaults are those of SGSD's paper; ``thinking`` is not (see docs/deviations.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from sgsd.bank import SkillBank
from sgsd.bank.documents import load_bank
from sgsd.errors import BankError, ConfigError, check_choice, in_one_line
from sgsd.objectives import DIVERGENCES, OBJECTIVES
from sgsd.prompts import BOXED_INSTRUCTION, thinking_kwargs
from sgsd.retrieval import ITEM_TEXTS
from sgsd.scoring.weights import TEACHERS
from sgsd.trainers.settings import check_ranges, check_settings, default_device, refuse_idle_settings
from sgsd.validation import parse_json

RETRIEVERS = ("embedding", "bm25", "random")
TRUNCATED = ("incorrect", "undecided")
LONG_PROMPTS = ("error", "drop")
SWITCHES = ("thinking", "guard")
"""Settings whose bare off and on YAML reads as false and true."""
GUARD_ACTIONS = ("off", "warn", "stop", "grpo")
TRUSTS = ("worth", "ledger", "vouched", "equal")
CONTEXTS = ("pairs", "rules", "document")
BASELINES = ("none", "control")
REFERENCES = ("solution", "answer")

# TRL's refusal of one rollout per prompt, which its runtime handles; pinned by a test.
_SINGLE_ROLLOUT_REFUSAL = "GRPO requires at least 2 generations per prompt"


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class VerifiedConfig(GRPOConfig):
    r"""What all methods share: everything of TRL's ``GRPOConfig``, prompts, verdicts, and skills in the prompt.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
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

    # Prompts and verdicts.
    instruction: str | None = _setting(
        None,
        f"Ends every prompt, the student's and the teachers'. None: {BOXED_INSTRUCTION!r} ends problems, and prompts "
        "that the data bring in full are left as they are.",
    )
    thinking: str = _setting(
        "off",
        "The template's enable_thinking: off or on for all; template: as the template or chat_template_kwargs have it; "
        "paper: student off, teachers on.",
    )
    max_prompt_length: int | None = _setting(
        None, "Most tokens of a student's or teacher's prompt; None: what the model's context leaves to prompts."
    )
    long_prompts: str = _setting(
        "error", f"A row whose prompt is longer: {' or '.join(LONG_PROMPTS)}, with its id and a count."
    )
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function by dotted path.")
    verifier_options: dict[str, Any] | str | None = _setting(None, "Options of the verifier, as JSON or a mapping.")
    truncated: str = _setting("incorrect", f"A rollout cut at max_completion_length is {' or '.join(TRUNCATED)}.")
    success_threshold: float = _setting(
        0.5, "With reward_funcs of your own: a weighted sum of rewards of at least this is a success."
    )

    # The collapse guard (trainers/guard.py).
    guard: str = _setting(
        "warn",
        f"What a collapse does: {', '.join(GUARD_ACTIONS)}; grpo hands over to GRPO's loss. A gradient that is not "
        "finite stops the run, unless off.",
    )
    guard_window: int = _setting(20, "Optimizer steps whose means the guard compares.")

    # Skills.
    bank: str | None = _setting(None, "Skill bank: a file, or a shipped one as seed:NAME.")
    retriever: str = _setting("embedding", f"How pairs are found: {', '.join(RETRIEVERS)}.")
    embedder: str = _setting(
        "Qwen/Qwen3-Embedding-0.6B", "Embedder of retriever 'embedding': hub name, folder, or local:all-minilm-l6-v2."
    )
    retrieval_query_prompt: str = _setting(
        "", "Put before each problem when it is embedded; Qwen3-Embedding wants 'Instruct: <task>\\nQuery:'."
    )
    retrieval_text: str = _setting(
        "topic",
        "What of an item is compared with problems: topic: title, text, a skill's when; full: a mistake's avoid too.",
    )
    skills_in_prompt: bool = _setting(
        False, "Show each problem's best pairs in the rollout's prompt; of methods grpo and opsd."
    )
    skills_in_prompt_pairs: int = _setting(1, "Skill-mistake pairs that skills_in_prompt shows.")

    def __post_init__(self) -> None:
        with in_one_line():  # a setting of another type, and what TRL and transformers refuse
            self._settle()

    def _settle(self) -> None:
        for name in SWITCHES:
            if isinstance(vars(self)[name], bool):
                setattr(self, name, "on" if vars(self)[name] else "off")
        if isinstance(self.verifier_options, str):
            self.verifier_options = parse_json(self.verifier_options, "verifier_options", ConfigError)
        if not isinstance(self.verifier_options, dict | None):
            raise ConfigError("verifier_options is no mapping", got=self.verifier_options, expected="a JSON object")
        if self.instruction is not None and not self.instruction.strip():
            self.instruction = ""
        self._check()
        default_device(self)
        try:
            super().__post_init__()
        except ValueError as error:
            # TRL raises this after everything else of GRPOConfig is set and checked, but for vLLM's clip range.
            if not (self.num_generations == 1 and str(error).startswith(_SINGLE_ROLLOUT_REFUSAL)):
                raise
        if not isinstance(self.chat_template_kwargs or {}, dict):  # JSON until TRL has read it
            got = repr(self.chat_template_kwargs)
            raise ConfigError("chat_template_kwargs is no mapping", got=got, expected="a JSON object")
        thinking_kwargs(self.thinking, self.chat_template_kwargs or {})
        check_settings(self)
        refuse_idle_settings(
            self,
            uses_grpo_loss=self._uses_grpo_loss or self.guard == "grpo",
            uses_advantages=self.uses_advantages,
        )

    def _check(self) -> None:
        for name, allowed in (
            ("retriever", RETRIEVERS),
            ("retrieval_text", ITEM_TEXTS),
            ("truncated", TRUNCATED),
            ("long_prompts", LONG_PROMPTS),
        ):
            check_choice(name, vars(self)[name], allowed)
        check_choice("guard", self.guard, GUARD_ACTIONS)
        if self.guard == "grpo" and not self._can_hand_over:
            raise ConfigError(
                "nothing to hand over to", got="guard grpo", expected="method sgsd, and num_generations of 2 or more"
            )
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint would save checkpoints that nothing can go on from",
                remedy="sgsd train saves at SIGTERM as it is; from Python, pass callbacks=[StopOnSignal()]",
            )
        check_ranges(
            self,
            {
                "1 or more": (
                    *("num_generations", "max_prompt_length", "skills_in_prompt_pairs", "guard_window"),
                    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length"),
                ),
                "above 0": ("temperature",),
                "above 0, at most 1": ("top_p",),
                "a finite number": ("success_threshold",),
            },
        )
        if not all(map(math.isfinite, self.reward_weights or ())):
            raise ConfigError("reward_weights are no numbers", got=self.reward_weights, expected="finite ones")
        if self.use_vllm and self.vllm_importance_sampling_correction and not self._uses_grpo_loss:
            raise ConfigError(
                "vllm_importance_sampling_correction would correct nothing",
                got="a loss without GRPO's part",
                expected="method grpo, or grpo_weight above 0",
                remedy="TRL corrects GRPO's loss alone; leave it out",
            )
        if self.vllm_importance_sampling_cap is not None:  # TRL would pass over it with one rollout a prompt
            raise ConfigError(
                "vllm_importance_sampling_cap is TRL's old name", expected="vllm_importance_sampling_clip_max"
            )

    @property
    def uses_bank(self) -> bool:
        """Whether a run with these settings reads a skill bank."""
        return self.skills_in_prompt

    @property
    def uses_advantages(self) -> bool:
        """Whether GRPO's group advantages are part of the loss."""
        return self._uses_grpo_loss

    @property
    def policy_writes(self) -> bool:
        """Whether the policy is to write bank items, through its chat template."""
        return False

    @property
    def _can_hand_over(self) -> bool:
        """Whether the guard can go on with GRPO's loss in this method's place."""
        return False

    @property
    def _uses_grpo_loss(self) -> bool:
        """Whether TRL's GRPO loss is part of this method's."""
        return False


@dataclass
class GRPOBaselineConfig(VerifiedConfig):
    """Configuration of ``GRPOBaselineTrainer``: TRL's GRPO on the rows, prompts and verdicts of the other methods.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    num_generations: int = _setting(8, "G, rollouts per prompt; 2 or more.")

    @property
    def _uses_grpo_loss(self) -> bool:
        return True

    def _check(self) -> None:
        super()._check()
        if self.num_generations == 1:
            raise ConfigError(
                "GRPO needs groups", got="num_generations 1", expected="2 or more: one rollout has no advantage"
            )


@dataclass
class DistillationConfig(VerifiedConfig):
    """What the methods with teachers share."""

    teacher: str = _setting("live", f"Whose weights teach: {', '.join(TEACHERS)}.")
    teacher_ema_decay: float = _setting(0.99, "For teacher 'ema': weights = decay * weights + (1 - decay) * policy.")
    teacher_sync_steps: int = _setting(25, "For teacher 'periodic': optimizer steps between copies of the policy.")
    score_temperature: float = _setting(1.0, "Both sides' log-probabilities are taken at this temperature.")

    def _check(self) -> None:
        super()._check()
        check_choice("teacher", self.teacher, TEACHERS)
        check_ranges(
            self,
            {
                "1 or more": ("teacher_sync_steps",),
                "above 0": ("score_temperature",),
                "0 to below 1": ("teacher_ema_decay",),
            },
        )
        for name in ("entropy_coef", "use_adaptive_entropy"):  # the student's forward keeps no gradient for the entropy
            if vars(self)[name]:
                raise ConfigError(f"{name} is not supported", got=vars(self)[name], remedy="leave it out")


@dataclass
class OPSDConfig(DistillationConfig):
    """Configuration of ``OPSDTrainer``. ``num_generations`` may be 1.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    teacher: str = _setting("frozen", f"Whose weights teach: {', '.join(TEACHERS)}.")
    reference: str = _setting("solution", f"What the teacher's prompt holds: {' or '.join(REFERENCES)}.")
    divergence: str = _setting("forward_kl", f"Per-token divergence from the teacher: {', '.join(DIVERGENCES)}.")
    jsd_beta: float = _setting(0.5, "For divergence 'jsd': the teacher's share of the mixture, between 0 and 1.")
    divergence_clip: float | None = _setting(
        None, "Most nats that one vocabulary entry may add to a token's divergence; None: no limit."
    )

    def _check(self) -> None:
        super()._check()
        check_choice("reference", self.reference, REFERENCES)
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_ranges(self, {"between 0 and 1": ("jsd_beta",), "above 0": ("divergence_clip",)})
        if self.beta:
            raise ConfigError("beta is part of TRL's GRPO loss", got=self.beta, expected="method grpo, or no beta")


@dataclass
class SGSDConfig(DistillationConfig):
    r"""Configuration of ``SGSDTrainer``.

    Everything of TRL's ``GRPOConfig`` applies to sampling, optimisation, logging and saving; this class adds the
    method's own settings and sets the paper's sampling and optimisation as defaults. ``num_generations`` may be 1.

    Parameters are documented by their ``help`` (``sgsd train --help`` prints it).

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    # Teachers.
    num_teachers: int = _setting(8, "K, skill-mistake pairs per problem, each a teacher.")
    teacher_context: str | None = _setting(
        None,
        "What a teacher is shown: pairs, a skill and a mistake; rules, one item alone; document, the whole text that "
        "the bank was read from. None: rules of a document, pairs of any other bank.",
    )
    retrieval_temperature: float = _setting(1.0, "Temperature of the softmax over similarities that weighs teachers.")
    max_tokens_per_chunk: int = _setting(16384, "Token budget of one teacher forward, padding included.")
    ledger_share: float = _setting(
        0.125,
        "Share of the problems whose rollouts all teachers score, for the ledger, whatever the objective reads.",
    )

    # Objective.
    objective: str = _setting(
        "gated",
        "gated: the paper's loss; local: its variant on each teacher's likeliest tokens; correction: what trusted "
        "teachers find likeliest is distilled where a rollout failed; reweight: GRPO's advantages, sized token by "
        "token by the teachers.",
    )
    teacher_trust: str = _setting(
        "worth",
        "For objectives that trust teachers, by the ledger: worth, how far the items told successes from failures; "
        "ledger, how sure it is that they do; vouched, wholly, until it shows that they do not; equal, all the same.",
    )
    teacher_top_tokens: int = _setting(20, "For objectives 'local' and 'correction': a teacher's likeliest tokens.")
    teacher_temperature: float | None = _setting(
        None,
        "For objective 'correction' with support_baseline 'control': temperature of the teachers' and the control's "
        "log-probabilities; None: score_temperature. Below 1 a small model's teachers are surer.",
    )
    teacher_guidance: float = _setting(
        0.0,
        "For objective 'correction' with teacher 'frozen' and support_baseline 'control': what sets a teacher apart "
        "from the control counts so much more than once.",
    )
    gate_tau: float = _setting(1.0, "Width of the gate, in squared nats.")
    support_clip: float = _setting(3.0, "Clip of the token gap inside the support, in nats.")
    support_threshold: float = _setting(0.05, "Dead zone: a support of at most this takes no stance, in nats.")
    support_baseline: str = _setting(
        "none",
        "What a support is measured against: none, the student's plain prompt; control, also a teacher whose pair was "
        "drawn at random, so that what any skill prompt does to style is no stance; costs one teacher more.",
    )
    sgsd_weight: float = _setting(1.0, "Weight of the teachers' loss, whichever the objective.")
    grpo_weight: float = _setting(0.0, "Weight of TRL's GRPO loss on the same rollouts; not in the paper.")
    rehearsal_weight: float = _setting(
        0.0,
        "For teacher 'frozen': weight of KL(the model as it began || the student) on texts that the model wrote itself "
        "before training, so that it forgets less; not in the paper.",
    )
    rehearsal_texts: int = _setting(64, "Such texts, on each process.")
    trace_steps: int = _setting(25, "Optimizer steps between rollouts kept token by token, for sgsd report; 0: none.")

    # Online maintenance of the bank.
    maintenance_frequency: int = _setting(
        0, "Optimizer steps between checks whether the bank needs new items; 0: never; the paper's is 25."
    )
    maintenance_threshold: float = _setting(
        0.8, "New items are made where less than this share of the rollouts since the last check succeeded."
    )
    maintenance_timeout: float = _setting(900.0, "Seconds a writer may take; an update that takes longer is skipped.")
    maintenance_writer_url: str | None = _setting(
        None, "An OpenAI-compatible server that writes new items, such as http://localhost:8000/v1; None: the policy."
    )
    maintenance_writer_model: str | None = _setting(None, "The writing model, as that server knows it.")

    @property
    def uses_bank(self) -> bool:
        return True

    @property
    def policy_writes(self) -> bool:
        return self.maintenance_frequency > 0 and self.maintenance_writer_url is None

    @property
    def _can_hand_over(self) -> bool:
        return self.num_generations > 1

    @property
    def _uses_grpo_loss(self) -> bool:
        return self.grpo_weight > 0

    @property
    def uses_advantages(self) -> bool:
        return self._uses_grpo_loss or OBJECTIVES[self.objective].from_config(self).needs.groups

    def _check(self) -> None:
        super()._check()
        check_ranges(
            self,
            {
                "1 or more": ("num_teachers", "max_tokens_per_chunk", "teacher_top_tokens", "rehearsal_texts"),
                "above 0": (
                    *("gate_tau", "support_clip", "retrieval_temperature", "maintenance_timeout"),
                    "teacher_temperature",
                ),
                "0 or more": (
                    *("support_threshold", "sgsd_weight", "grpo_weight", "teacher_guidance", "rehearsal_weight"),
                    *("trace_steps", "maintenance_frequency"),
                ),
                "above 0, at most 1": ("maintenance_threshold", "ledger_share"),
            },
        )
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("teacher_trust", self.teacher_trust, TRUSTS)
        if self.teacher_context is not None:
            check_choice("teacher_context", self.teacher_context, CONTEXTS)
        check_choice("support_baseline", self.support_baseline, BASELINES)
        if self.support_baseline == "control" and self.objective == "local":
            raise ConfigError(
                "support_baseline 'control' does not go with it", got="objective local", expected="another objective"
            )
        measured = {name: vars(self)[name] for name in ("objective", "support_baseline")}
        if self.teacher_temperature is not None and measured != {
            "objective": "correction",
            "support_baseline": "control",
        }:  # supports compare teachers with the student, whose temperature it is not
            raise ConfigError(
                "teacher_temperature does not go with it",
                got=measured,
                expected="objective correction, support_baseline control",
            )
        needed = {"objective": "correction", "support_baseline": "control", "teacher": "frozen"}
        unmet = {name: value for name, value in needed.items() if vars(self)[name] != value}
        if self.teacher_guidance and unmet:
            raise ConfigError(
                "teacher_guidance does not go with it",
                got={name: vars(self)[name] for name in unmet},
                expected=", ".join(f"{name} {value}" for name, value in unmet.items()),
                remedy="why: docs/method.md, Guidance",
            )
        if self.rehearsal_weight and self.teacher != "frozen":
            raise ConfigError(
                "rehearsal_weight does not go with it", got=f"teacher {self.teacher}", expected="teacher frozen"
            )
        needs = OBJECTIVES[self.objective].from_config(self).needs
        if needs.groups and self.num_generations == 1:
            raise ConfigError(
                f"objective '{self.objective}' needs groups", got="num_generations 1", expected="2 or more"
            )
        if needs.groups and self.num_iterations > 1:
            raise ConfigError(
                f"objective '{self.objective}' learns from each rollout once",
                got=f"num_iterations {self.num_iterations}",
                expected="num_iterations 1",
            )
        if needs.still_teacher and self.teacher != "frozen":
            raise ConfigError(
                f"objective '{self.objective}' needs a teacher that stands still",
                got=f"teacher {self.teacher}",
                expected="teacher frozen",
            )
        if (self.maintenance_writer_url is None) != (self.maintenance_writer_model is None):
            given = {name: vars(self)[name] for name in ("maintenance_writer_url", "maintenance_writer_model")}
            raise ConfigError("half a server to write new items", got=given, expected="its address and its model")
        if self.maintenance_writer_url is not None and not self.maintenance_frequency:
            raise ConfigError("maintenance_writer_url without maintenance", expected="maintenance_frequency above 0")
        if self.skills_in_prompt:
            raise ConfigError(
                "skills_in_prompt does not go with SGSD",
                expected="method grpo or opsd",
                remedy="SGSD's student is to learn without the skills that its teachers are shown",
            )
        if not self.sgsd_weight and not self.grpo_weight:
            raise ConfigError("sgsd_weight and grpo_weight are both 0", expected="something to learn from")
        if self.grpo_weight and self.num_generations == 1:
            raise ConfigError(
                "grpo_weight needs groups", got="num_generations 1", expected="2 or more: one rollout has no advantage"
            )
        if self.beta and not self.grpo_weight:
            raise ConfigError("beta is part of TRL's GRPO loss", got=self.beta, expected="grpo_weight above 0")


CONFIGS: dict[str, type[VerifiedConfig]] = {"sgsd": SGSDConfig, "grpo": GRPOBaselineConfig, "opsd": OPSDConfig}
"""Method → its configuration; ``trainers.methods`` has the trainers."""


def resolve_bank(args: VerifiedConfig, bank: SkillBank | str | Path | None = None) -> SkillBank | None:
    """The bank a run begins with, a value, a file, or a shipped one by name; ``None`` where the method takes none.

    Args:
        args: the run's settings.
        bank: in place of ``args.bank``.

    Raises:
        ConfigError: none was named and one is needed, or one was named that nothing would read.
        BankError: it cannot be read, or makes no pairs.
    """
    given = args.bank if bank is None else bank
    if not args.uses_bank:
        if given is not None:
            raise ConfigError(
                "a skill bank that nothing would read", expected="skills_in_prompt: true, or no bank with this method"
            )
        return None
    if given is None:
        raise ConfigError("no skill bank", expected="bank: a file, or a shipped one, seed:competition-mathematics")
    resolved = given if isinstance(given, SkillBank) else load_bank(given)
    context_of(vars(args), resolved)  # refuses a bank that the settings cannot show
    return resolved


def context_of(settings: Mapping[str, Any], bank: SkillBank) -> str:
    """What prompts show of a bank, one of ``CONTEXTS``: as the settings have it, or by what the bank is.

    Raises:
        ConfigError: the whole document of a bank that was read from none.
        BankError: pairs of a bank that makes none, or rules of an empty one.
    """
    context = settings.get("teacher_context") or ("rules" if "document" in bank.metadata else "pairs")
    if context == "document" and "document" not in bank.metadata:
        raise ConfigError(
            "teacher_context document without a document", got=f"bank {bank.name!r}", expected="a Markdown file"
        )
    if context == "pairs":
        bank.require_pairs()
    elif not bank.items:
        raise BankError(f"bank {bank.name!r} has no items", expected="at least one")
    return str(context)
