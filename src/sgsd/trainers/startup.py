"""One start-up check: what would fail, or teach nothing, after the weights are loaded is said before the first step.

``check_settings`` and ``refuse_idle_settings`` need the settings alone, ``check_batch`` also the number of problems,
``check_tokens`` and ``thinking_of`` a tokenizer; ``sgsd train --dry_run`` calls all of these. The rest is called by the
trainer's constructor, with the model there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerState,
    get_scheduler,
)
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available, is_torch_xla_available
from trl.import_utils import is_vllm_available
from trl.trainer.utils import is_async_callable

from sgsd.errors import ConfigError, DataError, SGSDError, check_choice, in_one_line
from sgsd.prompts import SWITCH
from sgsd.trainers.rewards import VerifierReward
from sgsd.verifiers import Outcome, Verdict
from sgsd.verifiers.thinking import ends_thoughts, opens_thoughts
from sgsd.verifiers.verifier import NAMES

# ---- settings alone

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo")
_CHOICES = {
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
    "adam_beta1": (lambda value: 0 <= value < 1, "0 to below 1"),
    "adam_beta2": (lambda value: 0 <= value < 1, "0 to below 1"),
    "adam_epsilon": (lambda value: 0 < value < math.inf, "above 0: a weight without gradient would become 0 / 0"),
    "warmup_steps": (lambda value: 0 <= value < math.inf, "0 or more"),
    "num_iterations": (lambda value: value >= 1, "1 or more"),
    "generation_batch_size": (lambda value: value >= 1, "1 or more"),
    "steps_per_generation": (lambda value: value >= 1, "1 or more"),
    "per_device_eval_batch_size": (lambda value: value >= 1, "1 or more"),
    "dataloader_num_workers": (lambda value: value >= 0, "0 or more"),
    "dataloader_prefetch_factor": (lambda value: value >= 1, "1 or more"),
    "pad_to_multiple_of": (lambda value: value >= 1, "1 or more"),
    "neftune_noise_alpha": (lambda value: 0 <= value < math.inf, "0 or more"),
    "seed": (lambda value: 0 <= value < 2**32, "0 to 2**32 - 1"),
    "top_k": (lambda value: value >= 0, "0 (off) or more"),
    "min_p": (lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "above 0"),
    "top_entropy_quantile": (lambda value: 0 <= value <= 1, "0 to 1"),
    "epsilon": (lambda value: 0 <= value < math.inf, "0 or more"),
    "epsilon_high": (lambda value: 0 <= value < math.inf, "0 or more"),
}
"""What torch, transformers and TRL would refuse, or fail at, only after loading or in a step."""


def check_settings(args: Any) -> None:
    """Refuse settings that could not train, whatever the model and data.

    Args:
        args: a ``VerifiedConfig`` whose ``__post_init__`` is done.

    Raises:
        ConfigError: one line, before any weight is loaded.
    """
    for name, (holds, expected) in _RANGES.items():
        value = vars(args)[name]
        if name == "top_k" and args.use_vllm:  # -1 is off there
            continue
        if value is not None and not holds(value):
            raise ConfigError(f"{name} is out of range", got=value, expected=expected)
    for name, choices in _CHOICES.items():
        check_choice(name, vars(args)[name], choices)
    if args.remove_unused_columns:
        raise ConfigError(
            "remove_unused_columns would remove what rewards and teachers read", got=True, expected="false, the default"
        )
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise ConfigError("save_strategy best without metric_for_best_model", expected="a metric, such as reward")
    if args.sync_ref_model and not args.beta:
        raise ConfigError("sync_ref_model without a reference model", got="beta 0", expected="beta above 0")
    if args.max_steps == 0:
        raise ConfigError("max_steps 0 would train nothing", expected="1 or more, or -1 for num_train_epochs")
    if args.max_steps < 0 and not args.num_train_epochs > 0:
        raise ConfigError(
            "num_train_epochs is out of range", got=args.num_train_epochs, expected="above 0, or max_steps"
        )
    _check_scheduler(args)


def _check_scheduler(args: Any) -> None:
    """The learning rate's schedule can be made; its own arguments are read only after loading otherwise."""
    weight = torch.nn.Parameter(torch.zeros(1))
    steps = args.max_steps if args.max_steps > 0 else 1000
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([weight], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler_type {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} cannot be made",
            got=f"lr_scheduler_kwargs {args.lr_scheduler_kwargs or {}}",
            expected=" ".join(str(error).split()),
        ) from error


_OF_A_MODEL = ("galore", "apollo", "lomo", "adalomo")  # optimizers that look at the model's layers
_ONE_A_PROMPT = {"num_return_sequences": 1, "return_dict_in_generate": False}
"""What TRL takes from ``generate``, whatever else ``generation_kwargs`` say."""


def check_pieces(args: Any, *, adapted: bool, loaded: bool = False) -> None:
    """Build what settings describe and training would build, of a toy's size, before any weight is loaded.

    Args:
        args: the run's settings.
        adapted: the policy is an adapter.
        loaded: the weights are there already; whether vLLM is, TRL will see.

    Raises:
        ConfigError: naming the setting, with what the library says; a package that is not installed.
    """
    if args.sync_ref_model and adapted:
        raise ConfigError("sync_ref_model does not go with an adapter", remedy="leave it out, or train all weights")
    for name, module, there in (
        ("use_liger_kernel", "liger-kernel", is_liger_kernel_available),
        ("use_vllm", "vllm", is_vllm_available),
    ):
        if vars(args)[name] and not there() and not (loaded and name == "use_vllm"):
            raise ConfigError(f"{name} needs a package that is missing", got=module, remedy=f"pip install {module}")
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    with in_one_line(
        f"optim {getattr(args.optim, 'value', args.optim)} cannot be made of optim_args {args.optim_args}"
    ):
        if not str(getattr(args.optim, "value", args.optim)).startswith(_OF_A_MODEL):
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            kind([weight], **options)
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        given = args.gradient_checkpointing_kwargs
        with in_one_line(f"gradient_checkpointing_kwargs {given} cannot be used"):
            checkpoint(torch.sin, weight, **{"use_reentrant": False, **given})
    _check_generation(args)


def _check_generation(args: Any) -> None:
    given = dict(args.generation_kwargs or {})
    for name, value in _ONE_A_PROMPT.items():
        if given.get(name, value) not in (None, value):
            raise ConfigError(
                f"generation_kwargs with {name}",
                got=given[name],
                expected=value,
                remedy="leave it out; G is num_generations",
            )
    if args.use_vllm:  # it has its own
        return
    options = {"do_sample": True, "cache_implementation": args.cache_implementation, **given}
    with in_one_line(f"generation_kwargs {given}, cache_implementation {args.cache_implementation} cannot be used"):
        GenerationConfig(**options)
    if args.use_transformers_continuous_batching:
        from transformers.generation import ContinuousBatchingConfig

        batching = dict(args.transformers_continuous_batching_config or {})
        with in_one_line(f"transformers_continuous_batching_config {batching} cannot be used"):
            ContinuousBatchingConfig(**batching)


_OF_GRPO_LOSS = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "top_entropy_quantile"),
    *("off_policy_mask_threshold", "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "entropy_coef", "use_adaptive_entropy"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "beta", "sync_ref_model"),
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "vllm_importance_sampling_correction"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
)
_OF_ADVANTAGES = ("scale_rewards", "multi_objective_aggregation")
IDLE_WITHOUT_GRPO = (*_OF_GRPO_LOSS, *_OF_ADVANTAGES)
"""TRL's settings that only its GRPO loss reads, and those that only group advantages read."""


def refuse_idle_settings(args: Any, *, uses_grpo_loss: bool, uses_advantages: bool = False) -> None:
    """Refuse TRL settings that were changed and that nothing would read.

    Args:
        args: the run's settings.
        uses_grpo_loss: whether TRL's GRPO loss is part of the loss.
        uses_advantages: whether the loss reads GRPO's group advantages.

    Raises:
        ConfigError: naming the settings and what would read them.
    """
    if uses_grpo_loss:
        return
    idle = _OF_GRPO_LOSS if uses_advantages else IDLE_WITHOUT_GRPO
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    changed = {name: vars(args)[name] for name in idle if vars(args)[name] != defaults[name]}
    if changed:
        raise ConfigError(
            "settings without effect where GRPO's loss is no part of the loss",
            got=_listed(changed),
            expected="method grpo, grpo_weight above 0, or the defaults",
        )


def default_device(args: Any) -> None:
    """Fill in ``use_cpu`` and ``bf16`` by what the machine has; call before ``TrainingArguments.__post_init__``.

    Without an accelerator ``use_cpu`` is set. Where neither ``bf16`` nor ``fp16`` is given, bfloat16 is used on devices
    that compute in it, float32 on others.
    """
    if not (torch.accelerator.is_available() or is_torch_xla_available()):
        args.use_cpu = True
    if args.bf16 is None and not args.fp16:
        args.bf16 = computes_in_bfloat16(cpu=args.use_cpu)


def computes_in_bfloat16(*, cpu: bool) -> bool:
    """Whether the processor, or else the accelerator, has instructions for bfloat16."""
    if cpu:
        has = torch.cpu.get_capabilities()
        return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return is_torch_bf16_gpu_available() or is_torch_xla_available()


# ---- data


def check_batch(rows: int, args: Any) -> None:
    """Refuse fewer problems than one generation batch needs: TRL's sampler leaves out what fills none, without a word.

    Args:
        rows: problems to train on.
        args: the run's settings; ``generation_batch_size`` counts the rollouts of all processes.

    Raises:
        DataError: with both numbers.
    """
    needed = args.generation_batch_size // args.num_generations
    if rows < needed:
        parts = {
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "steps_per_generation": args.steps_per_generation,
            "processes": args.world_size,
        }
        product = " x ".join(f"{name} {count}" for name, count in parts.items())
        raise DataError(
            "fewer problems than one batch",
            got=rows,
            expected=f"at least {needed} ({product} / num_generations {args.num_generations})",
            remedy="more problems, or a smaller batch or gradient_accumulation_steps",
        )


# ---- tokens


def context_length(model_config: Any) -> int | None:
    """Tokens that a model's positions allow; ``None`` for models without a limit (ALiBi, recurrent ones)."""
    config = model_config.get_text_config()
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")  # GPT-2's kind: n_positions
    positions = vars(config).get(name)
    return positions if isinstance(positions, int) and positions > 0 else None


def prompt_budget(model_config: Any, args: Any) -> int:
    """The most tokens a prompt may have: ``max_prompt_length``, or what the context leaves, or no limit.

    Raises:
        ConfigError: if the context has no room for prompts.
    """
    context = context_length(model_config)
    if context is None:
        return args.max_prompt_length or sys.maxsize
    room = context - args.max_completion_length
    if room < 1 or (args.max_prompt_length or 0) > room:
        raise ConfigError(
            "prompts and completions do not fit the model's context",
            got=f"max_completion_length {args.max_completion_length}, max_prompt_length {args.max_prompt_length}",
            expected=f"at most {context} tokens together",
        )
    return args.max_prompt_length or room


def check_tokens(vocabulary: int, tokenizer: Any, ends: Sequence[int]) -> None:
    """Refuse padding or end ids that are unknown, and ids that the model has no row for.

    Args:
        vocabulary: rows of the model's embedding.
        tokenizer: of the run.
        ends: what ends a completion (``engines.models.end_of_completion_ids``).

    Raises:
        ConfigError: one line, before the first step.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer has no padding token", remedy="set tokenizer.pad_token")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer names no end token", remedy="set tokenizer.eos_token")
    rendered = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        if tokenizer.chat_template
        else []
    )
    named = {"the padding token": [tokenizer.pad_token_id], "an end token": ends, "a token of the template": rendered}
    for what, ids in named.items():
        outside = {token for token in ids if not (isinstance(token, int) and 0 <= token < vocabulary)}
        if outside:
            raise ConfigError(
                f"{what} is not in the model's vocabulary",
                got=", ".join(_shown(token, tokenizer) for token in sorted(outside, key=repr)),
                expected=f"ids below {vocabulary}",
                remedy="take the tokenizer that belongs to the model, or resize the model's embeddings",
            )


def _shown(token: Any, tokenizer: Any) -> str:
    known = isinstance(token, int) and token >= 0
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" if known else repr(token)


def settle_config(model_config: Any) -> None:
    """Make a model's configuration one that TRL can work with, in place.

    A mixture of experts says how many there are under the name that TRL asks for (Granite-4 has another), and what a
    forward returns has names.
    """
    config = model_config.get_text_config()
    model_config.return_dict = config.return_dict = True
    local = getattr(config, "num_local_experts", None)
    if local is not None and getattr(config, "num_experts", None) is None:
        config.num_experts = local


# ---- the checkpoint's own sampling

# Without sampling, or without beams, these have no effect, and transformers refuses to save them.
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups", "constraints")
# TRL names these itself for every rollout.
_NAMED_BY_TRL = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length")
# Of no effect where they are off.
_RETURNED = (
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
)
_NO_SAMPLING = (
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "use_mtp", "prefill_chunk_size"),
    *("continuous_batching_config", "transformers_version"),
)


def settle_generation_config(config: Any) -> str | None:
    """Make a model's generation config one that can be saved, in place: what has no effect in it is taken out.

    Args:
        config: ``model.generation_config``.

    Returns:
        a line that says what was taken out and what ``sampling_as_asked`` sets aside, if there is either.

    Raises:
        ConfigError: one that cannot be saved all the same.
    """
    idle = [] if config.do_sample else list(_SAMPLING_ONLY)
    idle += [] if (config.num_beams or 1) > 1 else list(_BEAMS_ONLY)
    out = {name: value for name, value in _set_of(config).items() if name in idle}
    for name in out:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ConfigError(
            "the model's generation config could not be saved",
            got=" ".join(str(error).split()),
            remedy="mend generation_config.json in the model's folder",
        ) from error
    aside = {name: value for name, value in _set_of(config).items() if name not in (*_NO_SAMPLING, *_NAMED_BY_TRL)}
    aside = {name: value for name, value in aside.items() if value or name not in _RETURNED}
    said = [f"without effect and taken out: {_listed(out)}"] if out else []
    said += [f"not applied to rollouts: {_listed(aside)}"] if aside else []
    return f"sampling settings that come with the model, {'; '.join(said)}" if said else None


@contextmanager
def sampling_as_asked(config: Any) -> Iterator[None]:
    """Within, a model's generation config sets nothing of how it samples: ``generate`` does what it is asked for."""
    held = {
        name: value for name, value in vars(config).items() if not name.startswith("_") and name not in _NO_SAMPLING
    }
    for name in held:
        setattr(config, name, None)
    try:
        yield
    finally:
        for name, value in held.items():
            setattr(config, name, value)


def _set_of(config: Any) -> dict[str, Any]:
    """What a generation config sets away from what ``generate`` does by itself."""
    defaults = config._get_default_generation_params()
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {name: value for name, value in values.items() if value is not None and value != defaults.get(name)}


# ---- thinking

_SWITCHES = (SWITCH, "thinking")
ROOM_TO_THINK = 4096
"""Tokens below which a completion budget is short for a model that thinks."""


@dataclass(frozen=True, slots=True)
class ThinkingState:
    """Whether rollouts think, by the chat template.

    Attributes:
        thinks: the template opens the model's thinking, or leaves it to the model, which as a rule does.
        off: arguments of the template that switch it off; empty where there are none.
    """

    thinks: bool
    off: Mapping[str, Any]

    def warning(self, max_completion_length: int) -> str | None:
        """One line where the completion budget is short for thinking."""
        if not self.thinks or max_completion_length >= ROOM_TO_THINK:
            return None
        return (
            f"the chat template lets the model think, and max_completion_length {max_completion_length} is short for "
            f"that: most rollouts may be cut off and count as failures; {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What to change, as settings."""
        more = f"max_completion_length of {ROOM_TO_THINK} or more"
        if not self.thinks:
            return "a larger max_completion_length"
        if self.off == {SWITCH: False}:
            return f"set thinking: off, or {more}"
        return f"set chat_template_kwargs: {_as_yaml(self.off)}, or {more}" if self.off else f"set {more}"


def thinking_of(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> ThinkingState:
    """Find out by rendering a prompt whether the model would think after it.

    Args:
        tokenizer: with a chat template.
        template_kwargs: the student's arguments of the template.
    """

    def rendered(**changes: Any) -> str:
        messages = [{"role": "user", "content": "x"}]
        options = {**(template_kwargs or {}), **changes}
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))

    def thinks(text: str, **changes: Any) -> bool:
        if ends_thoughts(text):
            return False
        if opens_thoughts(text):
            return True
        # The model opens its thinking itself, where the template knows how to prevent that.
        prevented = (rendered(**{**changes, switch: False}) for switch in _SWITCHES)
        return any(other != text and ends_thoughts(other) for other in prevented) or (
            rendered(**{**changes, "reasoning_effort": "low"}) != rendered(**{**changes, "reasoning_effort": "high"})
        )

    if not tokenizer.chat_template or not thinks(rendered()):
        return ThinkingState(False, {})
    for switch in _SWITCHES:
        off = {switch: False}
        text = rendered(**off)
        if text != rendered() and not thinks(text, **off):
            return ThinkingState(True, off)
    return ThinkingState(True, {})


# ---- rewards


def check_verifier(verifier: Any) -> None:
    """Refuse a ``verifier`` that is neither a ``Verifier`` nor a reward function, before anything is loaded.

    Raises:
        ConfigError: with what it is.
    """
    if not callable(verifier) and not callable(getattr(verifier, "verify_many", None)):
        raise ConfigError(
            "verifier cannot verify",
            got=repr(verifier) if isinstance(verifier, str) else type(verifier).__name__,
            expected="an object with verify_many, such as get_verifier('math'), or a reward function",
        )


def check_arguments(trainer: str, kind: type, **given: Any) -> None:
    """Refuse a trainer's arguments that are of no use to it, by what they are, before anything is loaded.

    Args:
        trainer: its name.
        kind: of its configuration.
        given: the arguments, by name.

    Raises:
        ConfigError: one line.
    """
    expected: dict[str, tuple[Any, str]] = {
        "args": (kind, kind.__name__),
        "model": ((str, nn.Module), "a hub name, a folder or a model"),
        "processing_class": ((PreTrainedTokenizerBase, ProcessorMixin, NoneType), "a tokenizer"),
        "peft_config": ((PeftConfig, NoneType), "a configuration of PEFT, such as LoraConfig"),
    }
    for name, (kinds, what) in expected.items():
        if not isinstance(given[name], kinds):
            raise ConfigError(f"{trainer} takes no such {name}", got=_kind_of(given[name]), expected=what)
    model = given["model"]
    if isinstance(model, nn.Module) and (not hasattr(model, "generation_config") or model.config.is_encoder_decoder):
        raise ConfigError(
            f"{trainer} takes no such model", got=_kind_of(model), expected="a causal language model with its head"
        )


def check_reward_arguments(args: Any, reward_funcs: Any, verifier: Any = None) -> None:
    """Refuse reward functions, and settings of theirs, that nothing would read or that could not reward.

    Args:
        args: the run's settings.
        reward_funcs: of the trainer; ``None`` where a verifier judges.
        verifier: given beside them.

    Raises:
        ConfigError: one line, before any weight is loaded.
    """
    if reward_funcs is None:
        default = type(args).success_threshold
        if args.reward_weights is not None or args.success_threshold != default:
            raise ConfigError(
                "settings without effect where a verifier judges",
                got=f"reward_weights {args.reward_weights}, success_threshold {args.success_threshold}",
                expected=f"reward_weights None, success_threshold {default}",
                remedy="leave them out, or pass reward_funcs; verifier_options: {threshold: …} is a reward function's",
            )
        return
    if verifier is not None:
        raise ConfigError("a verifier beside reward_funcs would judge nothing", remedy="leave out one of them")
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in functions:
        if not (callable(function) or isinstance(function, str)) or function in NAMES:
            raise ConfigError(
                "reward_funcs cannot reward",
                got=_kind_of(function),
                expected="a reward function, or a list of them",
                remedy="a verifier is passed as verifier, or named in args.verifier",
            )
    if not functions:
        raise ConfigError("reward_funcs is empty", remedy="leave it out, and the verifier judges")
    if args.reward_weights is not None and len(args.reward_weights) != len(functions):
        raise ConfigError(
            "reward_weights of another number",
            got=len(args.reward_weights),
            expected=f"{len(functions)}, as reward_funcs",
        )


def _kind_of(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str) else type(value).__name__


_MADE_UP = "Let me see. The answer is \\boxed{0}."


def check_reward(
    reward_funcs: Sequence[Any],
    row: Mapping[str, Any],
    tokenizer: Any,
    end_id: int,
    *,
    count: int = 2,
    state: TrainerState | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Call each reward function once, on made-up completions of a real row, as TRL will.

    A whole group of the same row, of two or more: a function that returns one reward for a batch is seen. Reward models
    (``nn.Module``) are left to TRL.

    Args:
        reward_funcs: of the trainer.
        row: of the training set: its prompt and columns.
        tokenizer: makes the completions' ids.
        end_id: ends them.
        count: completions, two or more.
        state: what functions are given as ``trainer_state``.
        loop: a running one, which asynchronous functions are called on: what they keep may be bound to it. ``None``:
            one of their own.

    Raises:
        ConfigError: the function raises, returns something else than one number or ``None`` a completion, or asks for
            columns that the data set does not have.
    """
    texts = [_MADE_UP.replace("0", str(n)) for n in range(count)]
    columns = {
        name: [value] * count for name, value in row.items() if name not in ("prompt", "completion", "completion_ids")
    }
    talk = not isinstance(row["prompt"], str)
    given = {
        "prompts": [row["prompt"]] * count,
        "completions": [[{"role": "assistant", "content": text}] if talk else text for text in texts],
        "completion_ids": [[*tokenizer(text, add_special_tokens=False)["input_ids"], end_id] for text in texts],
        **columns,
        "trainer_state": state or first_state(1, 1),
        "log_extra": lambda name, values: None,
        "log_metric": lambda name, value: None,
    }
    for function in reward_funcs:
        if not isinstance(function, nn.Module):
            name = _name_of(function)
            _check_rewards(name, _called(name, function, given, loop), len(texts))
            if isinstance(function, VerifierReward):
                _check_verdicts(name, function.verdicts)


def first_state(max_steps: float, epochs: float) -> TrainerState:
    """The state of a run before its first step, of at least one step and epoch."""
    return TrainerState(epoch=0.0, max_steps=max(1, math.ceil(max_steps)), num_train_epochs=max(1, math.ceil(epochs)))


def steps_of(rows: int, args: Any) -> tuple[float, float]:
    """Optimizer steps and epochs of a run on so many rows, as far as can be told before it."""
    batch = args.generation_batch_size // args.num_generations
    an_epoch = max(1, rows // batch) * args.steps_per_generation * args.num_iterations
    an_epoch = max(1, an_epoch // args.gradient_accumulation_steps)
    if args.max_steps > 0:
        return args.max_steps, args.max_steps / an_epoch
    return args.num_train_epochs * an_epoch, args.num_train_epochs


def _called(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], loop: asyncio.AbstractEventLoop | None
) -> Any:
    try:
        if is_async_callable(function):

            async def awaited() -> Any:
                return await function(**given)

            if loop is not None:
                return asyncio.run_coroutine_threadsafe(awaited(), loop).result()
            with ThreadPoolExecutor(1) as own:  # a notebook's thread has a loop already
                return own.submit(asyncio.run, awaited()).result()
        return function(**given)
    except ConfigError as error:  # a verifier's, which knows what is wrong
        raise ConfigError(f"verifier {name} fails on a made-up completion", got=error.got) from error
    except SGSDError:
        raise
    except Exception as error:  # the function is the user's and may raise anything
        columns = ", ".join(column for column in given if column not in _GIVEN_BY_TRL)
        raise ConfigError(
            f"reward function {name} fails on a made-up completion",
            got=f"{type(error).__name__}: {error}",
            expected=f"a reward for each completion; columns of the data: {columns}",
        ) from error


_GIVEN_BY_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def _check_rewards(name: str, rewards: Any, count: int) -> None:
    expected = f"a list of {count} numbers, one for each completion (None: undecided)"
    try:
        values = list(rewards)
    except TypeError as error:
        raise ConfigError(f"reward function {name} returns no list", got=repr(rewards), expected=expected) from error
    if len(values) != count:
        raise ConfigError(f"reward function {name} returns {len(values)} rewards", expected=expected)
    for value in values:
        if not _is_reward(value):
            raise ConfigError(f"reward function {name} returns what is no number", got=repr(value), expected=expected)


def _is_reward(value: Any) -> bool:
    try:
        return value is None or not (isinstance(value, str) or math.isinf(float(value)))
    except (TypeError, ValueError):
        return False


def _check_verdicts(name: str, verdicts: Sequence[Verdict]) -> None:
    """A verifier in a worker process does not raise: each verdict is undecided, and says why."""
    reasons = Counter(verdict.reason or "" for verdict in verdicts if verdict.outcome is Outcome.UNDECIDED)
    failed = [reason for reason in reasons if reason.startswith("verifier error: ")]
    if verdicts and sum(reasons[reason] for reason in failed) == len(verdicts):
        raise ConfigError(
            f"verifier {name} fails on a made-up completion",
            got=failed[0].removeprefix("verifier error: "),
            expected="a verdict on every completion",
        )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


# ---- adapters


def refuse_prompt_learning(model: Any, peft_config: Any = None) -> None:
    """Refuse adapters that put virtual tokens before the prompt: their prefix would take a shared cache's place.

    Raises:
        ConfigError: prefix tuning, prompt tuning, p-tuning and their kin.
    """
    carried = [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []
    for config in [*carried, *([] if peft_config is None else [peft_config])]:
        if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
            raise ConfigError(
                "adapters of virtual tokens are not supported",
                got=str(getattr(config.peft_type, "value", config.peft_type)),
                expected="LoRA or another adapter of the weights",
            )


def stands_still_without_adapter(model: Any, peft_config: Any) -> bool:
    """Whether switching a new adapter off gives the initial policy, now and after any number of steps.

    It does for a LoRA adapter that starts as nothing and is all that trains. Where biases (``bias: all`` or
    ``lora_only``) or base weights train too, a frozen teacher needs a copy.

    Args:
        model: the policy with its new adapter.
        peft_config: the adapter's; ``None`` where the model came with one, or has none.
    """
    if not (isinstance(model, PeftModel) and isinstance(peft_config, LoraConfig)):
        return False
    if peft_config.init_lora_weights not in (True, "gaussian") or peft_config.bias != "none":
        return False
    parts = ("lora_", "modules_to_save.", "trainable_tokens_")
    return all(any(part in name for part in parts) for name, weight in model.named_parameters() if weight.requires_grad)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _as_yaml(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {str(value).lower()}" for name, value in values.items()) + "}"
