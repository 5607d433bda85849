"""The methods' settings, on top of TRL's ``GRPOConfig``.

``VerifiedConfig`` has those of all methods: prompts, verifier, sampling, lengths, optimisation. The defaults of
sampling and optimisation are those of SGSD's paper, except for ``thinking`` (docs/deviations.md). A setting's type
annotation contains its range or choices, which ``settings.check_annotations`` checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from trl import GRPOConfig

from sgsd.bank import SkillBank
from sgsd.bank.documents import load_bank
from sgsd.errors import BankError, ConfigError, in_one_line
from sgsd.objectives import DIVERGENCES, OBJECTIVES
from sgsd.prompts import BOXED_INSTRUCTION, thinking_kwargs
from sgsd.retrieval import ITEM_TEXTS
from sgsd.scoring.weights import TEACHERS
from sgsd.trainers.settings import (
    check_annotations,
    check_ranges,
    check_settings,
    default_device,
    refuse_eval_loss,
    refuse_idle_settings,
)
from sgsd.validation import parse_json

RETRIEVERS = ("embedding", "bm25", "random")
TRUNCATED = ("incorrect", "undecided")
LONG_PROMPTS = ("error", "drop")
SWITCHES = ("thinking", "guard")
"""Settings whose values off and on YAML reads as false and true."""
GUARD_ACTIONS = ("off", "warn", "stop")
TRUSTS = ("worth", "cautious", "ledger", "vouched", "equal")
CONTEXTS = ("pairs", "rules", "document")
BASELINES = ("none", "control")
REFERENCES = ("solution", "answer")

Whole: TypeAlias = Annotated[int, "1 or more"]
Size: TypeAlias = Annotated[int, "1 to 1,000,000"]
"""Of what is held in memory at once."""
Positive: TypeAlias = Annotated[float, "above 0"]
NotNegative: TypeAlias = Annotated[float, "0 or more"]
Share: TypeAlias = Annotated[float, "above 0, at most 1"]

# TRL refuses one rollout per prompt in its configuration, although its trainer can handle it; a test pins the message.
_SINGLE_ROLLOUT_REFUSAL = "GRPO requires at least 2 generations per prompt"
_GROUPS = {"got": "num_generations 1", "expected": "2 or more: one rollout has no advantage"}
_TEACHER_HELP = (
    "The teachers' weights: live, the policy's; frozen, its initial ones; ema, their moving average; periodic, a copy "
    "renewed every teacher_sync_steps."
)


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class VerifiedConfig(GRPOConfig):
    r"""Settings of all methods: TRL's ``GRPOConfig``, prompts, verdicts, and skills in the prompt.

    Raises:
        ConfigError: a setting cannot be used, or would have no effect.
    """

    # TRL's settings, with the paper's defaults.
    learning_rate: float = _setting(5e-6, "Initial learning rate of AdamW.")
    max_grad_norm: float = _setting(0.1, "Gradient clipping norm.")
    num_generations: Size = _setting(1, "G, rollouts per prompt; 1 or more.")
    max_completion_length: Whole = _setting(1024, "Most new tokens of a rollout.")
    temperature: Positive = _setting(1.1, "Sampling temperature of rollouts.")
    top_p: Share = _setting(0.95, "Nucleus of rollout sampling.")
    top_k: int = _setting(20, "Top-k of rollout sampling; 0 switches it off.")
    vllm_importance_sampling_correction: bool = _setting(
        False, "TRL's correction between vLLM and trainer; biased by the kept mass under top-p or top-k, hence off."
    )

    # Prompts and verdicts.
    instruction: str | None = _setting(
        None,
        f"Ends every prompt, the student's and the teachers'. None: {BOXED_INSTRUCTION!r} ends problems, and complete "
        "prompts of the data set stay unchanged.",
    )
    thinking: str = _setting(
        "off",
        "The template's enable_thinking: off or on for all; template: left to the template or chat_template_kwargs; "
        "paper: student off, teachers on.",
    )
    max_prompt_length: Whole | None = _setting(
        None, "Most tokens of a prompt, also a teacher's; None: the model's context less max_completion_length."
    )
    long_prompts: Annotated[str, LONG_PROMPTS] = _setting(
        "error", "Rows whose prompt is longer than max_prompt_length: error, or drop them with a warning."
    )
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function by dotted path.")
    verifier_options: dict[str, Any] | str | None = _setting(None, "Options of the verifier, as JSON or a mapping.")
    truncated: Annotated[str, TRUNCATED] = _setting(
        "incorrect", f"The outcome of a rollout cut at max_completion_length: {' or '.join(TRUNCATED)}."
    )
    success_threshold: Annotated[float, "a finite number"] = _setting(
        0.5, "With reward_funcs: a rollout succeeds if its weighted sum of rewards is at least this."
    )

    guard: Annotated[str, GUARD_ACTIONS] = _setting(
        "warn",
        "Action when the success rate collapses: off, nothing is checked; warn; stop the run. With warn and stop, a "
        "gradient that is not finite stops the run.",
    )

    # Skills.
    bank: str | None = _setting(None, "Skill bank: a file, or a shipped one as seed:NAME.")
    retriever: Annotated[str, RETRIEVERS] = _setting("embedding", f"How pairs are found: {', '.join(RETRIEVERS)}.")
    embedder: str = _setting(
        "Qwen/Qwen3-Embedding-0.6B", "Embedder of retriever 'embedding': hub name, folder, or local:all-minilm-l6-v2."
    )
    retrieval_text: Annotated[str, ITEM_TEXTS] = _setting(
        "topic",
        "The parts of an item that are compared with problems: topic, its title, text and a skill's when; full, also a "
        "mistake's avoid.",
    )
    skills_in_prompt: bool = _setting(
        False, "Methods grpo and opsd: show each problem's best pairs in the rollout's prompt."
    )
    skills_in_prompt_pairs: Size = _setting(1, "With skills_in_prompt: skill-mistake pairs per prompt.")

    def __post_init__(self) -> None:
        with in_one_line():  # errors of TRL and transformers, and of settings of another type
            self._finish()

    def _finish(self) -> None:
        for name in SWITCHES:
            if isinstance(vars(self)[name], bool):
                setattr(self, name, "on" if vars(self)[name] else "off")
        if isinstance(self.verifier_options, str):
            self.verifier_options = parse_json(self.verifier_options, "verifier_options", ConfigError)
        if not isinstance(self.verifier_options, dict | None):
            raise ConfigError("verifier_options is not a mapping", got=self.verifier_options, expected="a JSON object")
        if self.instruction is not None and not self.instruction.strip():
            self.instruction = ""
        check_annotations(self)
        check_ranges(self, {"1 or more": ("per_device_train_batch_size", "gradient_accumulation_steps")})
        self._check()
        default_device(self)
        try:
            super().__post_init__()
        except ValueError as error:
            # TRL raises this at the end of its checks; only that of vLLM's clip range comes later.
            if not (self.num_generations == 1 and str(error).startswith(_SINGLE_ROLLOUT_REFUSAL)):
                raise
        if not isinstance(self.chat_template_kwargs or {}, dict):  # TRL has parsed its JSON
            got = repr(self.chat_template_kwargs)
            raise ConfigError("chat_template_kwargs is not a mapping", got=got, expected="a JSON object")
        thinking_kwargs(self.thinking, self.chat_template_kwargs or {})
        check_settings(self)
        refuse_idle_settings(self)

    def _check(self) -> None:
        """Refuse incompatible settings."""
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint would save checkpoints from which no run can resume",
                remedy="leave it out: sgsd train saves at SIGTERM; in Python, pass callbacks=[StopOnSignal()]",
            )
        if not all(map(math.isfinite, self.reward_weights or ())):
            raise ConfigError("reward_weights are not finite", got=self.reward_weights, expected="finite numbers")
        if self.use_vllm and self.off_policy_mask_threshold is not None and (self.top_p < 1 or self.top_k > 0):
            raise ConfigError(
                "off_policy_mask_threshold with vLLM compares with probabilities of top-p and top-k's tokens alone",
                got=f"top_p {self.top_p}, top_k {self.top_k}",
                expected="top_p 1.0 and top_k 0",
            )
        if self.vllm_importance_sampling_cap is not None:  # TRL would ignore it with one rollout per prompt
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
        return self.uses_grpo_loss

    @property
    def policy_writes(self) -> bool:
        """Whether the policy writes bank items, for which it needs a chat template."""
        return False

    @property
    def uses_grpo_loss(self) -> bool:
        """Whether TRL's GRPO loss is part of this method's."""
        return False


@dataclass
class GRPOBaselineConfig(VerifiedConfig):
    """Configuration of ``GRPOBaselineTrainer``: TRL's GRPO on the rows, prompts and verdicts of the other methods.

    Raises:
        ConfigError: a setting cannot be used, or would have no effect.
    """

    num_generations: Size = _setting(8, "G, rollouts per prompt; 2 or more.")

    @property
    def uses_grpo_loss(self) -> bool:
        return True

    def _check(self) -> None:
        super()._check()
        if self.num_generations == 1:
            raise ConfigError("GRPO needs groups", **_GROUPS)


@dataclass
class DistillationConfig(VerifiedConfig):
    """Settings of the methods with teachers."""

    teacher: Annotated[str, TEACHERS] = _setting("live", _TEACHER_HELP)
    teacher_ema_decay: Annotated[float, "0 to below 1"] = _setting(
        0.99, "For teacher 'ema': weights = decay * weights + (1 - decay) * policy."
    )
    teacher_sync_steps: Whole = _setting(25, "For teacher 'periodic': optimizer steps between copies of the policy.")
    score_temperature: Positive = _setting(1.0, "Temperature of the student's and the teachers' log-probabilities.")

    def _check(self) -> None:
        super()._check()
        for name in ("entropy_coef", "use_adaptive_entropy"):  # the entropy of the student's pass has no gradient
            if vars(self)[name]:
                raise ConfigError(f"{name} is not supported", got=vars(self)[name], remedy="leave it out")
        refuse_eval_loss(self)


@dataclass
class OPSDConfig(DistillationConfig):
    """Configuration of ``OPSDTrainer``. ``num_generations`` may be 1.

    Raises:
        ConfigError: a setting cannot be used, or would have no effect.
    """

    teacher: Annotated[str, TEACHERS] = _setting("frozen", _TEACHER_HELP)
    reference: Annotated[str, REFERENCES] = _setting(
        "solution", f"The column that the teacher's prompt shows: {' or '.join(REFERENCES)}."
    )
    divergence: Annotated[str, DIVERGENCES] = _setting(
        "forward_kl", f"Per-token divergence from the teacher: {', '.join(DIVERGENCES)}."
    )
    divergence_clip: Positive | None = _setting(
        None, "The largest summand of one vocabulary entry in a token's divergence, in nats; None: no limit."
    )


@dataclass
class SGSDConfig(DistillationConfig):
    r"""Configuration of ``SGSDTrainer``: TRL's ``GRPOConfig`` with SGSD's own settings and the paper's defaults.

    ``num_generations`` may be 1. ``sgsd train --help`` and docs/settings.md describe each setting.

    Raises:
        ConfigError: a setting cannot be used, or would have no effect.
    """

    # Teachers.
    num_teachers: Size = _setting(8, "K, skill-mistake pairs per problem, each a teacher.")
    teacher_context: Annotated[str, CONTEXTS] | None = _setting(
        None,
        "What a teacher is shown: pairs, a skill and a mistake; rules, one item alone; document, the whole text that "
        "the bank was read from. None: rules for a bank that was read from a document, pairs for any other.",
    )
    max_tokens_per_chunk: Whole = _setting(16384, "Most tokens of one teacher forward, padding included.")
    ledger_share: Share = _setting(
        0.125,
        "Share of the problems whose rollouts are scored by all teachers, for the ledger; on the others only the "
        "teachers that the objective reads are run.",
    )

    # Objective.
    objective: Annotated[str, tuple(OBJECTIVES)] = _setting(
        "gated",
        "gated: the paper's loss; local: its variant on each teacher's likeliest tokens; correction: distil the "
        "likeliest tokens of trusted teachers on failed rollouts; reweight: GRPO's advantages, scaled token by token "
        "by the teachers.",
    )
    teacher_trust: Annotated[str, TRUSTS] = _setting(
        "worth",
        "For objectives 'correction' and 'reweight': a teacher's trust, from its items' ledger. worth: how well their "
        "stances told successes from failures; cautious: the same, at the lower end of its interval; ledger: the "
        "confidence that they do; vouched: 1 until the ledger shows that they do not; equal: 1.",
    )
    teacher_top_tokens: Size = _setting(
        20, "For objectives 'local' and 'correction': the number of each teacher's likeliest tokens."
    )
    teacher_temperature: Positive | None = _setting(
        None,
        "For objective 'correction' with support_baseline 'control': temperature of the teachers' and the control's "
        "log-probabilities; None: score_temperature. Below 1 their distributions are sharper.",
    )
    teacher_guidance: NotNegative = _setting(
        0.0,
        "For objective 'correction' with teacher 'frozen' and support_baseline 'control': strength of classifier-free "
        "guidance, in which a teacher's log-ratio to the control is added this many times; 0: none.",
    )
    gate_tau: Positive = _setting(1.0, "Width of the gate, in squared nats.")
    support_clip: Positive = _setting(3.0, "Clip of each token's gap in the support, in nats.")
    support_threshold: NotNegative = _setting(
        0.05, "Dead zone, in nats: a teacher whose support is at most this in absolute value takes no stance."
    )
    support_baseline: Annotated[str, BASELINES] = _setting(
        "none",
        "What is subtracted from supports: none; control, the support of a teacher with a random pair, which removes "
        "the effect of any skill prompt on style and costs one teacher more.",
    )
    sgsd_weight: NotNegative = _setting(1.0, "Weight of the objective's loss.")
    grpo_weight: NotNegative = _setting(0.0, "Weight of TRL's GRPO loss on the same rollouts; not in the paper.")
    rehearsal_weight: NotNegative = _setting(
        0.0,
        "For teacher 'frozen': weight of KL(initial model || student) on texts that the model wrote before training, "
        "which reduces forgetting; not in the paper.",
    )
    rehearsal_dataset: str | None = _setting(
        None,
        "With rehearsal_weight: a file or data set of prompts that the model answers before training; None: it writes "
        "prompts, too.",
    )
    rehearsal_texts: Size = _setting(64, "With rehearsal_weight: texts per process.")
    trace_steps: Annotated[int, "0 or more"] = _setting(
        25, "Optimizer steps between traces, rollouts that are saved token by token for sgsd report; 0: none."
    )

    # Online maintenance of the bank.
    maintenance_frequency: Annotated[int, "0 or more"] = _setting(
        0, "Optimizer steps between checks whether the bank needs new items; 0: never; 25 in the paper."
    )
    maintenance_threshold: Share = _setting(
        0.8, "New items are written if the success rate since the last check is below this."
    )
    maintenance_timeout: Positive = _setting(
        900.0, "Seconds that an update of the bank may take; a longer one is skipped."
    )
    maintenance_writer_url: str | None = _setting(
        None, "An OpenAI-compatible server that writes new items, such as http://localhost:8000/v1; None: the policy."
    )
    maintenance_writer_model: str | None = _setting(None, "The server's name of the model that writes.")

    @property
    def uses_bank(self) -> bool:
        return True

    @property
    def policy_writes(self) -> bool:
        return self.maintenance_frequency > 0 and self.maintenance_writer_url is None

    @property
    def uses_grpo_loss(self) -> bool:
        return self.grpo_weight > 0

    @property
    def uses_advantages(self) -> bool:
        return self.uses_grpo_loss or OBJECTIVES[self.objective].from_config(self).needs.groups

    def _check(self) -> None:
        super()._check()
        if self.support_baseline == "control" and self.objective == "local":
            raise ConfigError(
                "support_baseline 'control' does not work with it", got="objective local", expected="another objective"
            )
        if self.teacher_temperature is not None:  # other supports compare teachers with a student at another one
            self._demand("teacher_temperature", objective="correction", support_baseline="control")
        if self.teacher_guidance:
            needed = {"objective": "correction", "support_baseline": "control", "teacher": "frozen"}
            self._demand("teacher_guidance", remedy="why: docs/method.md, Guidance", **needed)
        if self.rehearsal_weight:
            self._demand("rehearsal_weight", teacher="frozen")
        if self.teacher_context == "document":  # the worth of a rule is what the document loses without it
            self._demand("teacher_context 'document'", support_baseline="control")
        needs, what = OBJECTIVES[self.objective].from_config(self).needs, f"objective '{self.objective}'"
        if needs.frozen_teacher:
            self._demand(what, teacher="frozen")
        if (needs.groups or self.grpo_weight) and self.num_generations == 1:
            raise ConfigError(f"{what if needs.groups else 'grpo_weight'} needs groups", **_GROUPS)
        if needs.groups and self.num_iterations > 1:
            raise ConfigError(
                f"{what} learns from each rollout once",
                got=f"num_iterations {self.num_iterations}",
                expected="num_iterations 1",
            )
        if (self.maintenance_writer_url is None) != (self.maintenance_writer_model is None):
            given = {name: vars(self)[name] for name in ("maintenance_writer_url", "maintenance_writer_model")}
            raise ConfigError("the server that writes new items is incomplete", got=given, expected="url and model")
        if self.skills_in_prompt:
            raise ConfigError(
                "skills_in_prompt does not work with method sgsd",
                expected="method grpo or opsd",
                remedy="leave it out: SGSD's student learns without the skills that its teachers are shown",
            )
        if not self.sgsd_weight and not self.grpo_weight:
            raise ConfigError("sgsd_weight and grpo_weight are both 0", expected="one of them above 0")

    def _demand(self, what: str, *, remedy: str | None = None, **needed: str) -> None:
        """Refuse ``what`` unless other settings have the values in ``needed``."""
        unmet = {name: value for name, value in needed.items() if vars(self)[name] != value}
        if unmet:
            raise ConfigError(
                f"{what} needs other settings",
                got=", ".join(f"{name} {vars(self)[name]}" for name in unmet),
                expected=", ".join(f"{name} {value}" for name, value in unmet.items()),
                remedy=remedy,
            )


CONFIGS: dict[str, type[VerifiedConfig]] = {"sgsd": SGSDConfig, "grpo": GRPOBaselineConfig, "opsd": OPSDConfig}
"""Method → configuration class; ``trainers.methods.TRAINERS`` has the trainers."""


def resolve_bank(args: VerifiedConfig, bank: SkillBank | str | Path | None = None) -> SkillBank | None:
    """The initial bank of a run; ``None`` if the method uses none.

    Args:
        args: the run's settings.
        bank: a bank, a file, or ``seed:NAME``; overrides ``args.bank``.

    Raises:
        ConfigError: a bank is needed and none is given, or one is given that would have no effect.
        BankError: the bank cannot be read, or has no pairs.
    """
    given = args.bank if bank is None else bank
    if not args.uses_bank:
        if given is not None:
            raise ConfigError(
                "the skill bank would have no effect", expected="skills_in_prompt: true, or no bank with this method"
            )
        return None
    if given is None:
        raise ConfigError("no skill bank", expected="bank: a file, or a shipped one, seed:competition-mathematics")
    resolved = given if isinstance(given, SkillBank) else load_bank(given)
    context_of(vars(args), resolved)  # raises if the settings do not fit the bank
    return resolved


def context_of(settings: Mapping[str, Any], bank: SkillBank) -> str:
    """What prompts show of a bank, one of ``CONTEXTS``: the setting ``teacher_context``, or its default for the bank.

    Raises:
        ConfigError: ``document``, but the bank was not read from a document.
        BankError: ``pairs``, but the bank has no skills or no mistakes; or the bank is empty.
    """
    context = settings.get("teacher_context") or ("rules" if "document" in bank.metadata else "pairs")
    if context == "document" and "document" not in bank.metadata:
        raise ConfigError(
            "teacher_context document needs a document", got=f"bank {bank.name!r}", expected="a Markdown file as bank"
        )
    if context == "pairs":
        bank.require_pairs()
    elif not bank.items:
        raise BankError(f"bank {bank.name!r} has no items", expected="at least one")
    return str(context)
