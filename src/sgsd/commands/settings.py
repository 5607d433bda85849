"""Flags and YAML files → TRL's dataclasses, with errors that name the nearest setting; and the record of a run."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.metadata
import importlib.resources
import json
import platform
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import ModelConfig, TrlParser

from sgsd import __version__
from sgsd.errors import ConfigError
from sgsd.training.config import SGSDConfig

RUN_FILE = "run.json"
METHODS = ("sgsd",)
_SECRETS = ("hub_token", "push_to_hub_token")
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify", "numpy")


@dataclass
class RunArguments:
    """What a run takes beside TRL's training and model arguments."""

    dataset: str | None = field(
        default=None, metadata={"help": "Training data: file, folder, hub name, or reasoning_gym:TASK?option=value."}
    )
    dataset_split: str | None = field(default=None, metadata={"help": "Split; default: train, or the only one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_adapter: str | None = field(default=None, metadata={"help": "Row format; default: found by its columns."})
    dataset_limit: int | None = field(default=None, metadata={"help": "Problems at most."})
    languages: list[str] | None = field(default=None, metadata={"help": "Keep problems in these languages (en zh …)."})
    on_duplicate: str = field(default="drop", metadata={"help": "Same text and answer: drop, keep or error."})
    on_conflict: str = field(
        default="drop_all", metadata={"help": "Same text, other answer: drop_all, keep_first, keep or error."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Data of evaluations during training."})
    method: str = field(default="sgsd", metadata={"help": f"Training method: {', '.join(METHODS)}."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last complete checkpoint in output_dir, if there is one."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Resolve and print everything, count the data, show prompts; no weights."}
    )


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy="see sgsd train --help")


def parse_settings(arguments: Sequence[str]) -> tuple[RunArguments, SGSDConfig, ModelConfig]:
    """``sgsd train``'s arguments; ``--config`` takes a YAML file or a preset's name, flags override it.

    Raises:
        ConfigError: an unknown or unusable setting; names the nearest known one.
    """
    # TRL's own default sets it; nothing a user of this command line could change.
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
    arguments = list(arguments)
    parser = _Parser((RunArguments, SGSDConfig, ModelConfig), prog="sgsd train")  # pyright: ignore[reportArgumentType]
    if "--config" in arguments:
        at = arguments.index("--config") + 1
        if at >= len(arguments):
            raise ConfigError("--config needs a YAML file or a preset", expected=", ".join(presets()))
        path = resolve_config(arguments[at])
        arguments[at] = str(path)
        known = known_settings(parser)
        for key in _read_yaml(path):
            if key not in known and key != "env":
                raise unknown_setting(key, known, where=str(path))
    arguments = [_spelled(argument) for argument in arguments]
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag != "--config" and flag not in parser._option_string_actions:
            raise unknown_setting(flag[2:], known_settings(parser))
    try:
        run, training, model = parser.parse_args_and_config(arguments)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # TRL's own checks of its own settings
        raise ConfigError("the settings cannot be used", got=" ".join(str(error).split())) from error
    if run.method not in METHODS:
        raise unknown_choice("method", run.method, METHODS)
    return run, training, model


def presets() -> list[str]:
    """Names of the shipped configurations."""
    folder = importlib.resources.files("sgsd") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def resolve_config(name: str) -> Path:
    """A YAML file by path, or a shipped one by name.

    Raises:
        ConfigError: there is neither; names the nearest preset.
    """
    if Path(name).is_file():
        return Path(name)
    if name in presets():
        return Path(str(importlib.resources.files("sgsd") / "configs" / f"{name}.yaml"))
    raise unknown_choice("configuration", name, presets(), expected="a YAML file, or one of ")


def known_settings(parser: argparse.ArgumentParser) -> list[str]:
    """Every setting the parser takes."""
    return sorted({action.dest for action in parser._actions} - {"help"})


def unknown_setting(name: str, known: Iterable[str], *, where: str = "") -> ConfigError:
    """The error for a misspelt setting."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return ConfigError(
        f"unknown setting{f' in {where}' if where else ''}",
        got=name,
        remedy=f"did you mean {near[0]}?" if near else "see sgsd train --help",
    )


def unknown_choice(what: str, name: str, choices: Sequence[str], *, expected: str = "") -> ConfigError:
    """The error for a value that is none of the choices."""
    near = difflib.get_close_matches(name, choices, n=1)
    return ConfigError(
        f"unknown {what}",
        got=repr(name),
        expected=expected + ", ".join(choices),
        remedy=f"did you mean {near[0]}?" if near else None,
    )


def settings_as_dict(*parts: Any) -> dict[str, Any]:
    """Every setting of these dataclasses that is plain data, in one mapping."""
    merged: dict[str, Any] = {}
    for part in parts:
        for item in dataclasses.fields(part):
            value = getattr(part, item.name)
            value = value.value if isinstance(value, Enum) else value
            if item.init and item.name not in _SECRETS and _is_plain(value):
                merged[item.name] = value
    return merged


def record_run(folder: Path, settings: dict[str, Any], **extra: Any) -> None:
    """Write ``run.json``: all settings, package versions, and whatever else is told."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    record = {
        "sgsd": __version__,
        "python": platform.python_version(),
        "versions": versions,
        **extra,
        "settings": settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")


def read_run(folder: Path) -> dict[str, Any] | None:
    """The settings of the run a folder belongs to (its own, or the run's around a checkpoint), if it is one.

    Raises:
        ConfigError: a ``run.json`` that cannot be read.
    """
    for candidate in (folder / RUN_FILE, folder.parent / RUN_FILE):
        if candidate.is_file():
            try:
                return json.loads(candidate.read_text())["settings"]
            except (json.JSONDecodeError, KeyError) as error:
                raise ConfigError("the run's record cannot be read", got=str(candidate)) from error
    return None


def refuse_used_folder(folder: Path) -> None:
    """A run never mixes with what another one left.

    Raises:
        ConfigError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "output_dir is not empty",
            got=str(folder),
            remedy="pass --resume to go on with that run, or choose another output_dir",
        )


def _spelled(argument: str) -> str:
    """``--dry-run`` and ``--dry_run`` are one flag."""
    flag, equals, value = argument.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag.startswith("--") else argument


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("the configuration is not YAML", got=f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError("the configuration is not a mapping", got=str(path), expected="lines such as key: value")
    return content


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
