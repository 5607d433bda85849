"""Settings of ``sgsd train`` from flags and YAML files, as TRL's dataclasses; settings when a run is resumed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import json
import os
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import ModelConfig, TrlParser

from sgsd import runfolder
from sgsd.cli.flags import expand_home, metavar, with_underscores
from sgsd.data.sources import hub_answers
from sgsd.display import SECRETS
from sgsd.engines.models import LOCAL_PREFIX, refuse_missing_folder, weights_digest
from sgsd.errors import ConfigError, check_choice, did_you_mean
from sgsd.evaluation.recorded import method_settings
from sgsd.trainers.config import CONFIGS, SWITCHES, VerifiedConfig
from sgsd.validation import parse_yaml

_GROUPS = {
    "RunArguments": "the run and its data",
    "ModelConfig": "the model (TRL's ModelConfig)",
    "SGSDConfig": "method sgsd",
    "OPSDConfig": "method opsd",
    "GRPOBaselineConfig": "method grpo",
    "DistillationConfig": "the teacher's weights (methods sgsd and opsd)",
    "_BaseConfig": "training (what TRL changes)",
    "GRPOConfig": "GRPO (TRL's GRPOConfig)",
    "VerifiedConfig": "prompts, verdicts, skills; sampling and optimisation of every method",
    "TrainingArguments": "training (transformers' TrainingArguments)",
}
_INHERITED = ("ModelConfig", "_BaseConfig", "GRPOConfig", "TrainingArguments")
_EVERYDAY = (
    *("model_name_or_path", "dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_target_modules"),
    *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("gradient_checkpointing", "bf16", "save_steps", "eval_steps", "logging_steps", "report_to", "seed", "use_vllm"),
)
"""Inherited settings that the short help shows as well."""
# Settings that may change when a run is resumed: they concern its length, its evaluation or its hardware.
_MAY_CHANGE = ("max_steps", "num_train_epochs", "guard", "use_cpu", "gradient_checkpointing", "deepspeed")
_MAY_CHANGE_STARTS = ("eval_", "dataloader_", "ddp_", "fsdp", "torch_compile", "accelerator_", "torch_empty")


def _setting(default: Any, help_text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **more})


@dataclass
class RunArguments:
    """Settings of a run in addition to TRL's training and model arguments."""

    dataset: str | None = _setting(None, "Training data: file, folder, hub name, or reasoning_gym:TASK?option=value.")
    dataset_split: str | None = _setting(None, "Split; default: train, or the only one.")
    dataset_config: str | None = _setting(None, "Configuration of a hub data set.")
    dataset_adapter: str | None = _setting(None, "Row format; default: found by its columns.")
    dataset_columns: str | None = _setting(
        None, "Names of the columns, such as problem=question,answer=gold.", aliases=["--columns"]
    )
    dataset_limit: int | None = _setting(None, "Most problems to read.")
    on_duplicate: str = _setting("drop", "What to do with a problem of the same text and answer: drop or keep.")
    on_conflict: str = _setting(
        "drop_all", "What to do with problems of the same text and different answers: drop_all or keep."
    )
    eval_dataset: str | None = _setting(None, "Data for evaluations during training: as dataset, or aime24 …")
    method: str = _setting("sgsd", f"Training method: {', '.join(CONFIGS)}. It decides which settings exist.")
    resume: bool = _setting(False, "Resume from the last complete checkpoint in output_dir, if there is one.")
    dry_run: bool = _setting(False, "Check all settings, count the data and show prompts, without loading weights.")
    doctor: bool = _setting(
        False, "Sample some rollouts, say whether the bank will help (see sgsd doctor), and do not train."
    )


class _Parser(TrlParser):
    """TRL's parser with grouped help.

    Args:
        parts: the dataclasses.
        whole: show every inherited setting in the help, not only ``_EVERYDAY``.
        options: of ``TrlParser``.
    """

    def __init__(self, parts: Sequence[Any], *, whole: bool, **options: Any) -> None:
        self._whole = whole
        super().__init__(parts, **options)

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = typing.get_type_hints(dtype)
        owners = {
            item.name: next(one for one in dtype.__mro__ if item.name in vars(one).get("__annotations__", {}))
            for item in dataclasses.fields(dtype)
            if item.init
        }
        for owner in dict.fromkeys(one for one in dtype.__mro__ if one in owners.values()):
            group = self.add_argument_group(_GROUPS[owner.__name__])
            for item in dataclasses.fields(dtype):
                if owners.get(item.name) is owner:
                    item.type = hints[item.name]  # resolve the annotation, as the base class does
                    self._parse_dataclass_field(group, item)
            if owner.__name__ in _INHERITED and not self._whole:
                hidden = [action for action in group._group_actions if action.dest not in _EVERYDAY]
                group.description = f"the most used; {len(hidden)} more with --help all"
                for action in hidden:
                    action.help = argparse.SUPPRESS
        for action in self._actions:
            action.option_strings = [flag for flag in action.option_strings if "-" not in flag[2:]]  # one spelling
            if action.choices is None and action.dest in owners and action.nargs != 0:
                action.metavar = metavar(hints[action.dest])

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy=f"see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            raise ConfigError("unknown argument of sgsd train", got=rest[0], expected="--setting value")
        return parsed, rest


def parse_settings(arguments: Sequence[str]) -> tuple[RunArguments, VerifiedConfig, ModelConfig]:
    """Parse the arguments of ``sgsd train``.

    ``--config`` names a YAML file or a preset; flags override it. ``--method`` decides the class of the configuration
    and so which settings are known.

    Raises:
        ConfigError: an unknown or unusable setting; it names the nearest known one.
    """
    ignore_deprecations()
    arguments = [with_underscores(argument) for argument in arguments]
    name = pop_flag(arguments, "--config")  # TRL's YAML reader accepts repeated keys and reads 1e-4 as text
    if name == "":
        raise ConfigError("--config needs a YAML file or a preset", expected=", ".join(presets()))
    path = None if name is None else resolve_config(name)
    content = {} if path is None else read_yaml(path)
    method = pop_flag([*arguments], "--method") or content.get("method", RunArguments.method)
    check_choice("method", method, tuple(CONFIGS))
    parts = _parts(method)
    name = f"sgsd train --method {method}"
    whole = ["--help", "all"] in [arguments[at : at + 2] for at in range(len(arguments))]
    usage = f"{name} [--config FILE|PRESET] [--SETTING VALUE …]"
    about = f"Train a model by method {method} on problems whose answers can be verified."
    parser = _Parser(parts, whole=whole, prog=name, usage=usage, description=about)
    known = sorted({action.dest for action in parser._actions} - {"help"})
    for key in content:
        if key not in known and key != "env":
            raise _unknown(str(key), known, method=method, where=str(path))
    if path is not None:
        _check_types(content, parts, path)
        if not isinstance(content.get("env", {}), dict):
            raise ConfigError(f"wrong type in {path}", got=f"env: {content['env']}", expected="a mapping: NAME: value")
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag not in parser._option_string_actions:
            raise _unknown(flag[2:], known, method=method)
    try:
        os.environ.update({name: str(value) for name, value in content.pop("env", {}).items()})
        parser.set_defaults_with_config(**content)
        run, model, training = parser.parse_args_into_dataclasses(arguments)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:  # TRL's own checks; OSError: names in env
        raise ConfigError("the settings cannot be used", got=" ".join(str(error).split())) from error
    return run, training, model


def _parts(method: str) -> tuple[Any, ...]:
    return RunArguments, ModelConfig, CONFIGS[method]


def flags_of(method: str) -> frozenset[str]:
    """The flags of a method's settings, such as ``--max_steps`` and ``--no_resume``."""
    ignore_deprecations()
    return frozenset(_Parser(_parts(method), whole=True)._option_string_actions)


def ignore_deprecations() -> None:
    """Silence warnings about deprecated names in transformers that TRL and PEFT use; users cannot change those."""
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_\w+)?` is deprecated", FutureWarning)


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Within this context, load a model from the local cache if the hub does not answer.

    Otherwise the client would retry every file for a minute.
    """
    from huggingface_hub import constants

    # A folder without config.json may hold an adapter, whose base model may be on the hub.
    is_local = name.startswith(LOCAL_PREFIX) or any(map(os.path.isfile, (name, os.path.join(name, "config.json"))))
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or (not is_local and not hub_answers())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def presets() -> list[str]:
    """The names of the shipped configurations."""
    folder = importlib.resources.files("sgsd") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def resolve_config(name: str) -> Path:
    """The path of a YAML file, given by its path or by the name of a shipped configuration."""
    if os.path.isfile(name):
        return Path(name)
    if name in presets():
        return Path(str(importlib.resources.files("sgsd") / "configs" / f"{name}.yaml"))
    raise ConfigError(
        "unknown configuration",
        got=repr(name),
        expected="a YAML file, or one of " + ", ".join(presets()),
        remedy=did_you_mean(name, presets()),
    )


def _unknown(name: str, known: Iterable[str], *, method: str, where: str = "") -> ConfigError:
    """The error for a misspelt setting, or for a setting of other methods."""
    others = [other for other, config in CONFIGS.items() if name in {item.name for item in dataclasses.fields(config)}]
    return ConfigError(
        f"unknown setting{f' in {where}' if where else ''}",
        got=name,
        expected=f"a setting of method {method}; this is one of {' and '.join(others)}" if others else None,
        remedy=did_you_mean(name, known) or f"see sgsd train --method {method} --help",
    )


def resumed_so_far(checkpoint: str | None, settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The entry ``resumed`` of a run's record: the checkpoint of each resumption and the settings that changed there.

    Raises:
        ConfigError: the data or a setting changed on which the steps so far depend.
    """
    file = None if checkpoint is None else Path(checkpoint).parent / runfolder.RUN
    if file is None or not file.is_file():
        return {}
    record: dict[str, Any] = {**runfolder.read_json(file, runfolder.RUN_RECORD, ConfigError)}
    before, now = (
        method_settings(told) | {name: told.get(name) for name in ("seed", "data_seed")}
        for told in (record["settings"], json.loads(json.dumps(settings)))
    )
    if "digest" in (record.get("data") or {}):
        before["data"], now["data"] = record["data"]["digest"], data["digest"]
    if "model_digest" in record:
        _compare_weights(record, settings, before, now)
    # A setting that only one of them has belongs to another version of sgsd.
    names = [name for name in now if name in before and before[name] != now[name]]
    changed = {name: [before[name], now[name]] for name in names}
    for name, (told, other) in changed.items():
        if name not in _MAY_CHANGE and not name.startswith(_MAY_CHANGE_STARTS):
            raise ConfigError(
                f"the run began with {'other data' if name == 'data' else f'another {name}'}",
                got=json.dumps(other),
                expected=json.dumps(told),
                remedy="restore it, or start a new run in another output_dir",
            )
    return {"resumed": [*record.get("resumed", []), {"from": Path(str(checkpoint)).name, "changed": changed}]}


def _compare_weights(
    record: Mapping[str, Any], settings: Mapping[str, Any], before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Compare model folders by their weights, wherever they are; hub names are compared as names."""
    name = "model_name_or_path"
    told, other = record["settings"].get(name), settings.get(name)
    refuse_missing_folder(str(other))
    digests = record["model_digest"], weights_digest(Path(str(other)))
    if any(digests):
        same = digests[0] == digests[1]
        before[name], now[name] = (told, told) if same else ([told, digests[0]], [other, digests[1]])


def read_run(folder: Path) -> dict[str, Any] | None:
    """The settings of the run whose folder or checkpoint this is; ``None`` for any other folder."""
    for candidate in (folder / runfolder.RUN, folder.parent / runfolder.RUN):
        if candidate.is_file():
            return dict(runfolder.read_json(candidate, runfolder.RUN_RECORD, ConfigError)["settings"])
    return None


def refuse_used_folder(folder: Path, *, resuming: bool = False) -> None:
    """Raise ``ConfigError`` if the folder holds files of another run."""
    if runfolder.is_unused(folder):
        return
    if resuming:
        raise ConfigError(
            "nothing to resume from in output_dir, and it is not empty",
            got=str(folder),
            expected="a complete checkpoint-N, or an empty folder",
        )
    remedy = "pass --resume to continue that run, or choose another output_dir"
    raise ConfigError("output_dir is not empty", got=str(folder), remedy=remedy)


def pop_flag(arguments: list[str], flag: str) -> str | None:
    """Remove a flag from the arguments; return its last value, ``""`` without a value, ``None`` without the flag."""
    value = None
    while found := [at for at, one in enumerate(arguments) if one.partition("=")[0] == flag]:
        _, equals, value = arguments.pop(found[0]).partition("=")
        if not equals and found[0] < len(arguments):
            value = arguments.pop(found[0])
    return value


def _check_types(content: dict[str, Any], parts: Iterable[Any], path: Path) -> None:
    """Check the types of a YAML file's values; argparse checks only texts, and not those that a flag overrides."""
    hints = {name: hint for part in parts for name, hint in typing.get_type_hints(part).items()}
    for key, value in content.items():
        if key == "env" or (key in SWITCHES and isinstance(value, bool)):
            continue
        hint = hints[key]
        if _is_a(value, hint) or (isinstance(value, str) and _is_a([value], hint)):  # a single value of a list
            continue
        shown = "(key)" if key in SECRETS else json.dumps(value, default=str)
        # YAML reads a bare `no` as false and a bare 5 as a number.
        quoted = "(key)" if key in SECRETS else "no" if value is False else value
        raise ConfigError(
            f"wrong type in {path}",
            got=f"{key}: {shown}",
            expected=hint.__name__ if isinstance(hint, type) else str(hint),
            remedy=f'put it in quotes: {key}: "{quoted}"' if _is_a("text", hint) else None,
        )


def _is_a(value: Any, hint: Any) -> bool:
    """Whether pydantic can convert the value to the type. A boolean is not accepted as a number."""
    try:
        read = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    return isinstance(read, bool) or not isinstance(value, bool)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a configuration file.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping.
    """
    content = parse_yaml(runfolder.read_text(path, ConfigError), str(path), ConfigError)
    if not content:
        raise ConfigError(f"{path}: not a mapping", got="nothing", expected="lines such as key: value")
    return {name: expand_home(value) for name, value in content.items()}
