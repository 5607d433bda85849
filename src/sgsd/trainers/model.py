"""The model before the first step: what the trainers take, its configurations made ready, its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from sgsd.errors import ConfigError


def check_arguments(trainer: str, kind: type, **given: Any) -> None:
    """Refuse a trainer's arguments that are of no use to it, by what they are, before anything is loaded.

    Args:
        trainer: its name.
        kind: of its configuration.
        given: the arguments, by name.

    Raises:
        ConfigError: one line.
    """
    for name, what in (("args", "args=, a configuration"), ("train_dataset", "a data set")):
        if given[name] is None:
            raise ConfigError(f"{trainer} without {name}", expected=what)
    expected: dict[str, tuple[Any, str]] = {
        "args": (kind, kind.__name__),
        "model": ((str, nn.Module), "a hub name, a folder or a model"),
        "processing_class": ((PreTrainedTokenizerBase, ProcessorMixin, NoneType), "a tokenizer"),
        "peft_config": ((PeftConfig, NoneType), "a configuration of PEFT, such as LoraConfig"),
    }
    for name, (kinds, what) in expected.items():
        value = given[name]
        if not isinstance(value, kinds):
            got = repr(value) if value is None or isinstance(value, str) else type(value).__name__
            raise ConfigError(f"{trainer} takes no such {name}", got=got, expected=what)
    model = given["model"]
    if isinstance(model, nn.Module) and (not hasattr(model, "generation_config") or model.config.is_encoder_decoder):
        got, what = type(model).__name__, "a causal language model with its head"
        raise ConfigError(f"{trainer} takes no such model", got=got, expected=what)


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
_RETURNED = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
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
    idle = (*([] if config.do_sample else _SAMPLING_ONLY), *([] if (config.num_beams or 1) > 1 else _BEAMS_ONLY))
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
    aside = {
        name: value
        for name, value in _set_of(config).items()
        if name not in (*_NO_SAMPLING, *_NAMED_BY_TRL) and (value or name not in _RETURNED)
    }
    said = {"without effect and taken out": out, "not applied to rollouts": aside}
    lines = [f"{what}: {', '.join(f'{k} {v}' for k, v in values.items())}" for what, values in said.items() if values]
    return f"sampling settings that come with the model, {'; '.join(lines)}" if lines else None


@contextmanager
def sampling_as_asked(config: Any) -> Iterator[None]:
    """Within, a model's generation config sets nothing of how it samples: ``generate`` does what it is asked for."""
    held = {name: value for name, value in _public(config).items() if name not in _NO_SAMPLING}
    for name in held:
        setattr(config, name, None)
    try:
        yield
    finally:
        for name, value in held.items():
            setattr(config, name, value)


def _public(config: Any) -> Mapping[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _set_of(config: Any) -> dict[str, Any]:
    """What a generation config sets away from what ``generate`` does by itself."""
    defaults = config._get_default_generation_params()
    return {n: value for n, value in _public(config).items() if value is not None and value != defaults.get(n)}


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


def is_initial_without_adapter(model: Any, peft_config: Any) -> bool:
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
