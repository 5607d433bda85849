"""The methods' settings, on top of TRL's.

What all methods share is in ``VerifiedConfig``: prompts, verifier, sampling, lengths, optimisation. Sampling and
optimisation defaults are those of SGSD's paper; ``thinking`` is not (see docs/deviations.md). A setting's range or
choices are part of its type.
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
from sgsd.trainers.settings import check_marks, check_ranges, check_settings, default_device, refuse_idle_settings
from sgsd.validation import parse_json

RETRIEVERS = ("embedding", "bm25", "random")
TRUNCATED = ("incorrect", "undecided")
LONG_PROMPTS = ("error", "drop")
SWITCHES = ("thinking", "guard")
"""Settings whose bare off and on YAML reads as false and true."""
GUARD_ACTIONS = ("off", "warn", "stop")
TRUSTS = ("worth", "ledger", "vouched", "equal")
CONTEXTS = ("pairs", "rules", "document")
BASELINES = ("none", "control")
REFERENCES = ("solution", "answer")

Whole: TypeAlias = Annotated[int, "1 or more"]
Positive: TypeAlias = Annotated[float, "above 0"]
NotNegative: TypeAlias = Annotated[float, "0 or more"]
Share: TypeAlias = Annotated[float, "above 0, at most 1"]

# TRL's refusal of one rollout per prompt, which its runtime handles; pinned by a test.
_SINGLE_ROLLOUT_REFUSAL = "GRPO requires at least 2 generations per prompt"
_GROUPS = {"got": "num_generations 1", "expected": "2 or more: one rollout has no advantage"}


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class VerifiedConfig(GRPOConfig):
    r"""What all methods share: everything of TRL's ``GRPOConfig``, prompts, verdicts, and skills in the prompt.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    # The paper's values for settings that TRL has under other defaults.
    learning_rate: float = _setting(5e-6, "Initial learning rate of AdamW.")
    max_grad_norm: float = _setting(0.1, "Gradient clipping norm.")
    num_generations: Whole = _setting(1, "G, rollouts per prompt; 1 or more.")
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
        f"Ends every prompt, the student's and the teachers'. None: {BOXED_INSTRUCTION!r} ends problems, and prompts "
        "that the data bring in full are left as they are.",
    )
    thinking: str = _setting(
        "off",
        "The template's enable_thinking: off or on for all; template: as the template or chat_template_kwargs have it; "
        "paper: student off, teachers on.",
    )
    max_prompt_length: Whole | None = _setting(
        None, "Most tokens of a student's or teacher's prompt; None: what the model's context leaves to prompts."
    )
    long_prompts: Annotated[str, LONG_PROMPTS] = _setting(
        "error", f"A row whose prompt is longer: {' or '.join(LONG_PROMPTS)}, with its id and a count."
    )
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function by dotted path.")
    verifier_options: dict[str, Any] | str | None = _setting(None, "Options of the verifier, as JSON or a mapping.")
    truncated: Annotated[str, TRUNCATED] = _setting(
        "incorrect", f"A rollout cut at max_completion_length is {' or '.join(TRUNCATED)}."
    )
    success_threshold: Annotated[float, "a finite number"] = _setting(
        0.5, "With reward_funcs of your own: a weighted sum of rewards of at least this is a success."
    )

    guard: Annotated[str, GUARD_ACTIONS] = _setting(
        "warn",
        f"What a collapse does: {', '.join(GUARD_ACTIONS)}. A gradient that is not finite stops the run, unless off.",
    )

    # Skills.
    bank: str | None = _setting(None, "Skill bank: a file, or a shipped one as seed:NAME.")
    retriever: Annotated[str, RETRIEVERS] = _setting("embedding", f"How pairs are found: {', '.join(RETRIEVERS)}.")
    embedder: str = _setting(
        "Qwen/Qwen3-Embedding-0.6B", "Embedder of retriever 'embedding': hub name, folder, or local:all-minilm-l6-v2."
    )
    retrieval_text: Annotated[str, ITEM_TEXTS] = _setting(
        "topic",
        "What of an item is compared with problems: topic: title, text, a skill's when; full: a mistake's avoid too.",
    )
    skills_in_prompt: bool = _setting(
        False, "Show each problem's best pairs in the rollout's prompt; of methods grpo and opsd."
    )
    skills_in_prompt_pairs: Whole = _setting(1, "Skill-mistake pairs that skills_in_prompt shows.")

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
        check_marks(self)
        check_ranges(self, {"1 or more": ("per_device_train_batch_size", "gradient_accumulation_steps")})
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
        refuse_idle_settings(self, uses_grpo_loss=self._uses_grpo_loss, uses_advantages=self.uses_advantages)

    def _check(self) -> None:
        """Refuse settings that do not go together."""
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint would save checkpoints that nothing can go on from",
                remedy="sgsd train saves at SIGTERM as it is; from Python, pass callbacks=[StopOnSignal()]",
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
    def _uses_grpo_loss(self) -> bool:
        """Whether TRL's GRPO loss is part of this method's."""
        return False


@dataclass
class GRPOBaselineConfig(VerifiedConfig):
    """Configuration of ``GRPOBaselineTrainer``: TRL's GRPO on the rows, prompts and verdicts of the other methods.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    num_generations: Whole = _setting(8, "G, rollouts per prompt; 2 or more.")

    @property
    def _uses_grpo_loss(self) -> bool:
        return True

    def _check(self) -> None:
        super()._check()
        if self.num_generations == 1:
            raise ConfigError("GRPO needs groups", **_GROUPS)


@dataclass
class DistillationConfig(VerifiedConfig):
    """What the methods with teachers share."""

    teacher: Annotated[str, TEACHERS] = _setting("live", f"Whose weights teach: {', '.join(TEACHERS)}.")
    teacher_ema_decay: Annotated[float, "0 to below 1"] = _setting(
        0.99, "For teacher 'ema': weights = decay * weights + (1 - decay) * policy."
    )
    teacher_sync_steps: Whole = _setting(25, "For teacher 'periodic': optimizer steps between copies of the policy.")
    score_temperature: Positive = _setting(1.0, "Both sides' log-probabilities are taken at this temperature.")

    def _check(self) -> None:
        super()._check()
        for name in ("entropy_coef", "use_adaptive_entropy"):  # the student's forward keeps no gradient for the entropy
            if vars(self)[name]:
                raise ConfigError(f"{name} is not supported", got=vars(self)[name], remedy="leave it out")


@dataclass
class OPSDConfig(DistillationConfig):
    """Configuration of ``OPSDTrainer``. ``num_generations`` may be 1.

    Raises:
        ConfigError: a setting of this package's own that cannot be used.
    """

    teacher: Annotated[str, TEACHERS] = _setting("frozen", f"Whose weights teach: {', '.join(TEACHERS)}.")
    reference: Annotated[str, REFERENCES] = _setting(
        "solution", f"What the teacher's prompt holds: {' or '.join(REFERENCES)}."
    )
    divergence: Annotated[str, DIVERGENCES] = _setting(
        "forward_kl", f"Per-token divergence from the teacher: {', '.join(DIVERGENCES)}."
    )
    jsd_beta: Annotated[float, "between 0 and 1"] = _setting(
        0.5, "For divergence 'jsd': the teacher's share of the mixture, between 0 and 1."
    )
    divergence_clip: Positive | None = _setting(
        None, "Most nats that one vocabulary entry may add to a token's divergence; None: no limit."
    )

    def _check(self) -> None:
        super()._check()
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
    num_teachers: Whole = _setting(8, "K, skill-mistake pairs per problem, each a teacher.")
    teacher_context: Annotated[str, CONTEXTS] | None = _setting(
        None,
        "What a teacher is shown: pairs, a skill and a mistake; rules, one item alone; document, the whole text that "
        "the bank was read from. None: rules of a document, pairs of any other bank.",
    )
    retrieval_temperature: Positive = _setting(
        1.0, "Temperature of the softmax over similarities that weighs teachers."
    )
    max_tokens_per_chunk: Whole = _setting(16384, "Token budget of one teacher forward, padding included.")
    ledger_share: Share = _setting(
        0.125,
        "Share of the problems whose rollouts all teachers score, for the ledger, whatever the objective reads.",
    )

    # Objective.
    objective: Annotated[str, tuple(OBJECTIVES)] = _setting(
        "gated",
        "gated: the paper's loss; local: its variant on each teacher's likeliest tokens; correction: what trusted "
        "teachers find likeliest is distilled where a rollout failed; reweight: GRPO's advantages, sized token by "
        "token by the teachers.",
    )
    teacher_trust: Annotated[str, TRUSTS] = _setting(
        "worth",
        "For objectives that trust teachers, by the ledger: worth, how far the items told successes from failures; "
        "ledger, how sure it is that they do; vouched, wholly, until it shows that they do not; equal, all the same.",
    )
    teacher_top_tokens: Whole = _setting(20, "For objectives 'local' and 'correction': a teacher's likeliest tokens.")
    teacher_temperature: Positive | None = _setting(
        None,
        "For objective 'correction' with support_baseline 'control': temperature of the teachers' and the control's "
        "log-probabilities; None: score_temperature. Below 1 a small model's teachers are surer.",
    )
    teacher_guidance: NotNegative = _setting(
        0.0,
        "For objective 'correction' with teacher 'frozen' and support_baseline 'control': what sets a teacher apart "
        "from the control counts so much more than once.",
    )
    gate_tau: Positive = _setting(1.0, "Width of the gate, in squared nats.")
    support_clip: Positive = _setting(3.0, "Clip of the token gap inside the support, in nats.")
    support_threshold: NotNegative = _setting(0.05, "Dead zone: a support of at most this takes no stance, in nats.")
    support_baseline: Annotated[str, BASELINES] = _setting(
        "none",
        "What a support is measured against: none, the student's plain prompt; control, also a teacher whose pair was "
        "drawn at random, so that what any skill prompt does to style is no stance; costs one teacher more.",
    )
    sgsd_weight: NotNegative = _setting(1.0, "Weight of the teachers' loss, whichever the objective.")
    grpo_weight: NotNegative = _setting(0.0, "Weight of TRL's GRPO loss on the same rollouts; not in the paper.")
    rehearsal_weight: NotNegative = _setting(
        0.0,
        "For teacher 'frozen': weight of KL(the model as it began || the student) on texts that the model wrote itself "
        "before training, so that it forgets less; not in the paper.",
    )
    rehearsal_texts: Whole = _setting(64, "Such texts, on each process.")
    trace_steps: Annotated[int, "0 or more"] = _setting(
        25, "Optimizer steps between rollouts kept token by token, for sgsd report; 0: none."
    )

    # Online maintenance of the bank.
    maintenance_frequency: Annotated[int, "0 or more"] = _setting(
        0, "Optimizer steps between checks whether the bank needs new items; 0: never; the paper's is 25."
    )
    maintenance_threshold: Share = _setting(
        0.8, "New items are made where less than this share of the rollouts since the last check succeeded."
    )
    maintenance_timeout: Positive = _setting(
        900.0, "Seconds a writer may take; an update that takes longer is skipped."
    )
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
    def _uses_grpo_loss(self) -> bool:
        return self.grpo_weight > 0

    @property
    def uses_advantages(self) -> bool:
        return self._uses_grpo_loss or OBJECTIVES[self.objective].from_config(self).needs.groups

    def _check(self) -> None:
        super()._check()
        if self.support_baseline == "control" and self.objective == "local":
            raise ConfigError(
                "support_baseline 'control' does not go with it", got="objective local", expected="another objective"
            )
        if self.teacher_temperature is not None:  # supports compare teachers with the student, whose it is not
            self._demand("teacher_temperature", objective="correction", support_baseline="control")
        if self.teacher_guidance:
            needed = {"objective": "correction", "support_baseline": "control", "teacher": "frozen"}
            self._demand("teacher_guidance", remedy="why: docs/method.md, Guidance", **needed)
        if self.rehearsal_weight:
            self._demand("rehearsal_weight", teacher="frozen")
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
        if self.beta and not self.grpo_weight:
            raise ConfigError("beta is part of TRL's GRPO loss", got=self.beta, expected="grpo_weight above 0")

    def _demand(self, what: str, *, remedy: str | None = None, **needed: str) -> None:
        """Refuse ``what`` where other settings have not the values that it needs."""
        unmet = {name: value for name, value in needed.items() if vars(self)[name] != value}
        if unmet:
            raise ConfigError(
                f"{what} does not go with it",
                got=", ".join(f"{name} {vars(self)[name]}" for name in unmet),
                expected=", ".join(f"{name} {value}" for name, value in unmet.items()),
                remedy=remedy,
            )


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
