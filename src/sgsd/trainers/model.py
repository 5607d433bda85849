"""The model before the first step: checks of arguments and adapters, changes to its configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from sgsd.engines.models import load_configs, load_model, load_tokenizer
from sgsd.errors import ConfigError
from sgsd.trainers.tokens import check_tokens


def check_arguments(trainer: str, kind: type, **given: Any) -> None:
    """Check the types of a trainer's arguments before anything is loaded.

    Args:
        trainer: its name.
        kind: class of its configuration.
        given: the arguments, by name.

    Raises:
        ConfigError: an argument is missing or has the wrong type.
    """
    for name, what in (("args", "a configuration"), ("train_dataset", "a data set")):
        if given[name] is None:
            raise ConfigError(f"{trainer} needs {name}", expected=what)
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
            raise ConfigError(f"{trainer} cannot use this {name}", got=got, expected=what)
    model = given["model"]
    if isinstance(model, nn.Module) and (not hasattr(model, "generation_config") or model.config.is_encoder_decoder):
        got, what = type(model).__name__, "a causal language model with its head"
        raise ConfigError(f"{trainer} cannot use this model", got=got, expected=what)


class NamedModel:
    """A model that is given by its name: its configurations, and later its weights, with ``args.model_init_kwargs``.

    Attributes:
        config, generation_config: of the model, or of an adapter's base model.
    """

    def __init__(self, name: str, args: Any, quantization_config: Any = None) -> None:
        self._name = name
        self._options = dict(args.model_init_kwargs or {})
        if quantization_config is not None:
            self._options["quantization_config"] = quantization_config
        trusted = self._options.setdefault("trust_remote_code", args.trust_remote_code)
        self._reading = {"trust_remote_code": trusted, "revision": self._options.get("revision")}
        self.config, self.generation_config = load_configs(name, **self._reading)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self._name, **self._reading)

    def load(self, tokenizer: Any, ends: Sequence[int]) -> Any:
        """The model, once ``check_tokens`` has passed; an adapter may have more tokens than its base model."""
        if not Path(self._name, "adapter_config.json").is_file():
            check_tokens(self.config.get_text_config().vocab_size, tokenizer, ends)
        return load_model(self._name, trainable_adapter=True, **self._options)


def settle_config(model_config: Any) -> None:
    """Change a model's configuration in place for TRL.

    ``return_dict`` is set, and ``num_experts``, which Granite-4 names ``num_local_experts``.
    """
    config = model_config.get_text_config()
    model_config.return_dict = config.return_dict = True
    local = getattr(config, "num_local_experts", None)
    if local is not None and getattr(config, "num_experts", None) is None:
        config.num_experts = local


def has_routers(model: nn.Module) -> bool:
    """Whether some layer routes tokens to experts, which TRL takes from the configuration.

    Families of mixtures have dense members (Granite-4.0-Micro, Jamba-Reasoning-3B) with the same configuration class. A
    model that does not say which modules are its routers counts as a mixture.
    """
    routers = [
        router if isinstance(router, type) else router.target_class
        for part in model.modules()
        if isinstance(part, PreTrainedModel) and "router_logits" in part.can_record_outputs
        for router in _as_list(part.can_record_outputs["router_logits"])
    ]
    return not routers or any(isinstance(module, tuple(routers)) for module in model.modules())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ---- the model's generation config

# These have no effect without sampling, or without beam search, and transformers then refuses to save them.
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups", "constraints")
# TRL sets these for every rollout.
_SET_BY_TRL = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length")
# These have no effect if false.
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
_UNRELATED_TO_SAMPLING = (
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "use_mtp", "prefill_chunk_size"),
    *("continuous_batching_config", "transformers_version"),
)


def settle_generation_config(config: Any) -> str | None:
    """Remove values without effect from a model's generation config, in place, so that it can be saved.

    Args:
        config: ``model.generation_config``.

    Returns:
        A line with the values that were removed, and those that ``without_model_sampling`` will not apply, if any.

    Raises:
        ConfigError: the config cannot be saved even so.
    """
    idle = (*([] if config.do_sample else _SAMPLING_ONLY), *([] if (config.num_beams or 1) > 1 else _BEAMS_ONLY))
    removed = {name: value for name, value in _changed(config).items() if name in idle}
    for name in removed:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ConfigError(
            "the model's generation config could not be saved",
            got=" ".join(str(error).split()),
            remedy="correct generation_config.json in the model's folder",
        ) from error
    not_applied = {
        name: value
        for name, value in _changed(config).items()
        if name not in (*_UNRELATED_TO_SAMPLING, *_SET_BY_TRL) and (value or name not in _OUTPUTS)
    }
    groups = {"removed, as they have no effect": removed, "not applied to rollouts": not_applied}
    lines = [f"{what}: {', '.join(f'{k} {v}' for k, v in values.items())}" for what, values in groups.items() if values]
    return f"sampling settings in the model's generation config, {'; '.join(lines)}" if lines else None


@contextmanager
def without_model_sampling(config: Any) -> Iterator[None]:
    """Context in which a model's generation config has no sampling settings: ``generate`` uses its arguments only."""
    values = {name: value for name, value in _public(config).items() if name not in _UNRELATED_TO_SAMPLING}
    for name in values:
        setattr(config, name, None)
    try:
        yield
    finally:
        for name, value in values.items():
            setattr(config, name, value)


def _public(config: Any) -> Mapping[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _changed(config: Any) -> dict[str, Any]:
    """The values of a generation config that differ from the defaults of ``generate``."""
    defaults = config._get_default_generation_params()
    return {n: value for n, value in _public(config).items() if value is not None and value != defaults.get(n)}


# ---- adapters


def refuse_prompt_learning(model: Any, peft_config: Any = None) -> None:
    """Refuse adapters with virtual tokens before the prompt, whose prefix would replace the shared prompt cache.

    Raises:
        ConfigError: prefix tuning, prompt tuning, p-tuning or a similar adapter.
    """
    carried = [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []
    for config in [*carried, *([] if peft_config is None else [peft_config])]:
        if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
            raise ConfigError(
                "adapters of virtual tokens are not supported",
                got=str(getattr(config.peft_type, "value", config.peft_type)),
                expected="LoRA or another adapter of the weights",
            )


@contextmanager
def unadaptable_in_one_line(model: nn.Module) -> Iterator[None]:
    """Context of a forward that fails if LoRA adapts a layer that is linear by its class but not by its forward.

    ``all-linear`` takes the routers of Llama-4 and Phi-MoE for such layers: they return tuples.

    Raises:
        ConfigError: naming the layer.
    """
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        odd: dict[str, nn.Linear] = {}
        for name, layer in model.named_modules():
            base = layer.get_base_layer() if isinstance(layer, LoraLayer) else None
            if isinstance(base, nn.Linear) and type(base).forward is not nn.Linear.forward:
                odd[name] = base
        for name, base in odd.items():
            raise ConfigError(
                "the model fails with its adapter",
                got=f"{name.removeprefix('base_model.model.')}, a {type(base).__name__}: {error}",
                remedy=f"LoraConfig(exclude_modules={sorted({each.split('.')[-1] for each in odd})})",
            ) from error
        raise


def is_initial_without_adapter(model: Any, peft_config: Any) -> bool:
    """Whether disabling a new adapter gives the initial policy at any time in training.

    This is so for a LoRA adapter that is initially zero, if only the adapter is trained. If biases (``bias: all`` or
    ``lora_only``) or base weights are trained as well, a frozen teacher needs a copy.

    Args:
        model: the policy with its new adapter.
        peft_config: the adapter's; ``None`` if the model came with an adapter, or has none.
    """
    if not (isinstance(model, PeftModel) and isinstance(peft_config, LoraConfig)):
        return False
    if peft_config.init_lora_weights not in (True, "gaussian") or peft_config.bias != "none":
        return False
    parts = ("lora_", "modules_to_save.", "trainable_tokens_")
    return all(any(part in name for part in parts) for name, weight in model.named_parameters() if weight.requires_grad)
