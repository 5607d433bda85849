"""Checks of settings before anything is loaded: values that cannot train, settings without effect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch.utils.checkpoint import checkpoint
from transformers import EarlyStoppingCallback, GenerationConfig, Trainer, get_scheduler
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available, is_torch_xla_available
from trl.import_utils import is_vllm_available

from sgsd.errors import ConfigError, check_choice, in_one_line
from sgsd.objectives import OBJECTIVES, Needs

# ---- ranges and choices

_RANGES: dict[str, Callable[[float], bool]] = {
    "1 or more": lambda value: value >= 1,
    "1 to 1,000,000": lambda value: 1 <= value <= 1_000_000,
    "0 to 1,024": lambda value: 0 <= value <= 1_024,
    "above 0": lambda value: 0 < value < math.inf,
    "0 or more": lambda value: 0 <= value < math.inf,
    "0 to 1": lambda value: 0 <= value <= 1,
    "0 to below 1": lambda value: 0 <= value < 1,
    "above 0, at most 1": lambda value: 0 < value <= 1,
    "0 to 2**32 - 1": lambda value: 0 <= value < 2**32,
    "a finite number": math.isfinite,
    "0 or more, or inf": lambda value: value >= 0,
}
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo")
_CHOICES = {
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
_OF_TRL = {
    "1 or more": ("num_iterations", "generation_batch_size", "steps_per_generation", "per_device_eval_batch_size"),
    "1 to 1,000,000": ("num_generations_eval", "dataloader_prefetch_factor", "pad_to_multiple_of"),
    "0 to 1,024": ("dataloader_num_workers",),
    "above 0": ("learning_rate", "adam_epsilon", "repetition_penalty"),
    "0 or more": (
        *("weight_decay", "neftune_noise_alpha", "epsilon", "epsilon_high"),
        *("logging_steps", "save_steps", "eval_steps"),
    ),
    "0 or more, or inf": ("max_grad_norm",),
    "0 to 1": ("min_p", "top_entropy_quantile"),
    "0 to below 1": ("adam_beta1", "adam_beta2"),
    "0 to 2**32 - 1": ("seed",),
}
"""Ranges of TRL's settings, which torch, transformers and TRL check only after loading, or not at all."""


_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def check_annotations(args: Any) -> None:
    """Check each setting against the range or the choices in its type annotation.

    Raises:
        ConfigError: naming the setting.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Annotated and (part is hint or vars(args)[name] is not None):
                (allowed,) = part.__metadata__
                if isinstance(allowed, str):
                    _check_range(name, vars(args)[name], allowed)
                else:
                    check_choice(name, vars(args)[name], allowed)


def check_ranges(args: Any, ranges: Mapping[str, Sequence[str]]) -> None:
    """Check numbers against ``ranges``: key of ``_RANGES`` → names of settings.

    Raises:
        ConfigError: naming the setting.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    for expected, names in ranges.items():
        for name in names:  # None is valid unless the default is a number
            if vars(args)[name] is not None or isinstance(defaults[name], int | float):
                _check_range(name, vars(args)[name], expected)


def _check_range(name: str, value: Any, expected: str) -> None:
    if value is None or not _RANGES[expected](value):
        raise ConfigError(f"{name} is out of range", got=value, expected=expected)


def check_settings(args: Any) -> None:
    """Refuse values of TRL's and transformers' settings that cannot train with any model and data.

    Raises:
        ConfigError: naming the setting.
    """
    check_ranges(args, _OF_TRL)
    for name, value in vars(args).items():
        if isinstance(value, float) and value and not math.isinf(value) and not _TINY <= abs(value) <= _HUGE:
            raise ConfigError(f"{name} is out of range", got=value, expected="a number that float32 can hold")
    if not args.use_vllm:
        check_ranges(args, {"0 or more": ("top_k",)})
    for name, choices in _CHOICES.items():
        check_choice(name, vars(args)[name], choices)
    if args.remove_unused_columns:
        raise ConfigError(
            "remove_unused_columns would remove columns that rewards and teachers read",
            got=True,
            expected="false, the default",
        )
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise ConfigError("save_strategy best needs metric_for_best_model", expected="a metric, such as reward")
    if args.max_steps == 0:
        raise ConfigError("max_steps 0 would train nothing", expected="1 or more, or -1 for num_train_epochs")
    if args.max_steps < 0:
        _check_range("num_train_epochs", args.num_train_epochs, "above 0")


# ---- objects that settings describe

_MODEL_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")  # optimizers that need the model's layers
_FIXED_GENERATION_KWARGS = {"num_return_sequences": 1, "return_dict_in_generate": False}
"""The only values of ``generation_kwargs`` with which TRL can read the result of ``generate``."""
_SETTING_OF_GENERATION = {
    **dict.fromkeys(("max_new_tokens", "max_tokens"), "max_completion_length"),
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
}
"""What ``generation_kwargs`` would replace for sampling alone: lengths, scores and records go by the setting."""


def check_constructible(args: Any, *, adapted: bool, loaded: bool = False) -> None:
    """Build optimizer, schedule, checkpointing and generation config of toy size, before any weight is loaded.

    Args:
        args: the run's settings.
        adapted: the policy has a PEFT adapter.
        loaded: the model is loaded already; TRL then checks whether vLLM is installed.

    Raises:
        ConfigError: naming the setting, with the library's message; or a package is not installed.
    """
    if args.sync_ref_model and adapted:
        raise ConfigError("sync_ref_model does not work with an adapter", remedy="leave it out, or train all weights")
    for name, module, is_installed in (
        ("use_liger_kernel", "liger-kernel", is_liger_kernel_available),
        ("use_vllm", "vllm", is_vllm_available),
    ):
        if vars(args)[name] and not is_installed() and not (loaded and name == "use_vllm"):
            raise ConfigError(f"{name} needs a package that is missing", got=module, remedy=f"pip install {module}")
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optim = str(getattr(args.optim, "value", args.optim))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([weight], lr=args.learning_rate)
    with in_one_line(f"optim {optim} cannot be built with optim_args {args.optim_args}"):
        if not optim.startswith(_MODEL_OPTIMIZERS):
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = kind([weight], **options)
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    steps = args.max_steps if args.max_steps > 0 else 1000
    with in_one_line(f"lr_scheduler_type {schedule} cannot be built with {args.lr_scheduler_kwargs or {}}"):
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        given = args.gradient_checkpointing_kwargs
        with in_one_line(f"gradient_checkpointing_kwargs {given} cannot be used"):
            checkpoint(torch.sin, weight, **{"use_reentrant": False, **given})
    _check_generation(args)


def _check_generation(args: Any) -> None:
    options = dict(args.generation_kwargs or {})
    for name, value in _FIXED_GENERATION_KWARGS.items():
        if options.get(name, value) not in (None, value):
            remedy = f"leave {name} out; num_generations sets the rollouts per prompt"
            raise ConfigError(f"generation_kwargs with {name}", got=options[name], expected=value, remedy=remedy)
    for name, setting in _SETTING_OF_GENERATION.items():
        if name in options and options[name] != vars(args)[setting]:
            raise ConfigError(
                f"generation_kwargs with {name}", got=options[name], expected=f"the setting {setting} in its place"
            )
    cache = args.cache_implementation
    if not args.use_vllm:  # vLLM's options are others
        with in_one_line(f"generation_kwargs {options}, cache_implementation {cache} cannot be used"):
            GenerationConfig(**{"do_sample": True, "cache_implementation": cache, **options})


# ---- settings without effect

_OF_GRPO_LOSS = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "top_entropy_quantile"),
    *("off_policy_mask_threshold", "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "entropy_coef", "use_adaptive_entropy"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "beta", "sync_ref_model"),
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "vllm_importance_sampling_correction"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
)
_OF_ADVANTAGES = ("scale_rewards", "multi_objective_aggregation")
_OF_MAINTENANCE = tuple(f"maintenance_{name}" for name in ("threshold", "timeout", "writer_url", "writer_model"))
_WEIGHTED = "sgsd_weight above 0"


EFFECTS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_OF_GRPO_LOSS, lambda args: args.uses_grpo_loss, "method grpo, or grpo_weight above 0"),
    (_OF_ADVANTAGES, lambda args: args.uses_advantages, "method grpo, grpo_weight above 0, or objective reweight"),
    (("sync_ref_model",), lambda args: args.beta > 0, "beta above 0"),
    (("embedder",), lambda args: args.retriever == "embedding", "retriever embedding"),
    (("retrieval_text",), lambda args: args.retriever != "random", "retriever embedding or bm25"),
    (("skills_in_prompt_pairs",), lambda args: args.skills_in_prompt, "skills_in_prompt true, method grpo or opsd"),
    (("teacher_ema_decay",), lambda args: args.teacher == "ema", "teacher ema"),
    (("teacher_sync_steps",), lambda args: args.teacher == "periodic", "teacher periodic"),
    (("gate_tau",), lambda args: _has_gate(args), f"objective gated or local, {_WEIGHTED}"),
    (("teacher_trust",), lambda args: _needs(args).by_trust, f"objective correction or reweight, {_WEIGHTED}"),
    (("teacher_top_tokens",), lambda args: _needs(args).top_tokens, f"objective correction or local, {_WEIGHTED}"),
    (("ledger_share",), lambda args: not _needs_all_teachers(args), "objective correction or reweight"),
    (("rehearsal_dataset", "rehearsal_texts"), lambda args: args.rehearsal_weight > 0, "rehearsal_weight above 0"),
    (_OF_MAINTENANCE, lambda args: args.maintenance_frequency > 0, "maintenance_frequency above 0"),
)
"""Settings, whether a run with these settings reads them, and the settings with which a run does."""


def refuse_idle_settings(args: Any) -> None:
    """Refuse settings that nothing would read, unless they have their defaults.

    Raises:
        ConfigError: naming the settings.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    for names, has_effect, expected in EFFECTS:
        changed = [name for name in names if name in defaults and vars(args)[name] != defaults[name]]
        if changed and not has_effect(args):
            raise ConfigError(
                f"{' and '.join(changed)} would have no effect",
                got=", ".join(f"{name} {vars(args)[name]}" for name in changed),
                expected=f"{expected}; or the default",
            )


def _needs(args: Any) -> Needs:
    """What the objective needs; nothing if its loss is not part of the run's."""
    return OBJECTIVES[args.objective].from_config(args).needs if args.sgsd_weight else Needs(outcomes=frozenset())


def _needs_all_teachers(args: Any) -> bool:
    """Whether the objective reads every teacher of every decided rollout."""
    return _needs(args).outcomes == Needs().outcomes and not _needs(args).by_trust


def _has_gate(args: Any) -> bool:
    """Whether the objective's loss has a gate: it is another objective with another τ."""
    build, others = OBJECTIVES[args.objective].from_config, vars(args) | {"gate_tau": 2 * args.gate_tau}
    return args.sgsd_weight > 0 and build(args) != build(SimpleNamespace(**others))


def refuse_eval_loss(args: Any, *, callbacks: Collection[Any] = (), eval_sets: Collection[str] = ()) -> None:
    """Refuse to compare evaluations of a method with teachers by their loss: they run no teacher, so it is NaN.

    Args:
        args: the run's settings.
        callbacks: the trainer's.
        eval_sets: names of the evaluation sets, if they have names.

    Raises:
        ConfigError: naming what compares them.
    """
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in {"loss", *(f"{name}_loss" for name in eval_sets)}:
        return
    comparing = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy best": args.save_strategy == "best" and metric is not None,
        "lr_scheduler_type reduce_lr_on_plateau": args.lr_scheduler_type == "reduce_lr_on_plateau",
        "EarlyStoppingCallback": any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks),
    }
    for what, compares in comparing.items():
        if compares:
            raise ConfigError(
                f"{what} cannot go by eval_loss, which is NaN with teachers",
                got=f"metric_for_best_model {metric}",
                expected="another metric of evaluations",
                remedy="metric_for_best_model: success_rate, with greater_is_better: true",
            )


# ---- the device


def default_device(args: Any) -> None:
    """Set the defaults of ``use_cpu`` and ``bf16`` for this machine; called before ``TrainingArguments.__post_init__``.

    ``use_cpu`` is true without an accelerator. If neither ``bf16`` nor ``fp16`` is set, ``bf16`` is true on devices
    with bfloat16 instructions.
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
