"""The settings of ``sgsd bank build``, for the command line before any framework is imported."""

from __future__ import annotations

import argparse
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from sgsd.errors import ConfigError, check_choice, did_you_mean

ACTIONS = {
    "build": "a bank from a model's own rollouts: sample, verify, extract, merge; goes on where it was cut off",
    "sample": "the first stage of build alone: rollouts",
    "verify": "the second: rollouts to memories",
    "extract": "the third: memories to candidates",
    "merge": "the last: candidates to a bank without leaks",
}
ENGINES = ("transformers", "vllm", "openai")
# Requests at a time: what is lost at most when a build is cut off. Engines that batch by themselves are slow at the end
# of each call, so theirs are large.
SAMPLE_BATCHES = {"transformers": 32, "vllm": 512, "openai": 256}
WRITE_BATCHES = {"transformers": 8, "vllm": 256, "openai": 64}


def _setting(default: Any, help_text: str, stage: str | None = None) -> Any:
    """``stage``: the one whose results depend on it, but for settings that the digest of data or weights covers."""
    return field(default=default, metadata={"help": help_text, "stage": stage})


@dataclass(kw_only=True)
class BuildSettings:
    """Every setting of a build.

    Raises:
        ConfigError: a value out of range.
    """

    # Data.
    dataset: str | None = _setting(None, "problems: file, folder, hub name, or reasoning_gym:TASK?option=value")
    dataset_split: str | None = _setting(None, "split (train, or the only one)")
    dataset_config: str | None = _setting(None, "configuration of a hub data set")
    dataset_adapter: str | None = _setting(None, "row format (found by its columns)")
    dataset_limit: int | None = _setting(None, "problems at most")
    # Rollouts.
    model_name_or_path: str | None = _setting(
        None, "whose rollouts: hub name, folder, adapter, or local:NAME", "sample"
    )
    engine: str = _setting("transformers", f"who samples: {', '.join(ENGINES)}", "sample")
    dtype: str | None = _setting(None, "of the weights (float32; auto for vllm)", "sample")
    device: str | None = _setting(None, "of transformers (the GPU if there is one)")
    trust_remote_code: bool = _setting(False, "run code that comes with the model", "sample")
    base_url: str | None = _setting(None, "of an OpenAI-compatible server, such as http://localhost:8000/v1")
    served_model: str | None = _setting(None, "the server's name for the model (the model)", "sample")
    samples: int = _setting(1, "rollouts of each problem", "sample")
    batch_size: int | None = _setting(None, "rollouts drawn and kept at a time (32, 512, 256)", "sample")
    max_completion_length: int = _setting(1024, "tokens of a rollout at most", "sample")
    temperature: float = _setting(1.0, "0 is greedy", "sample")
    top_p: float = _setting(0.95, "1 is off", "sample")
    top_k: int = _setting(0, "0 is off", "sample")
    instruction: str | None = _setting(None, "ends every prompt (that of training)", "sample")
    chat_template_kwargs: dict[str, Any] | None = _setting(None, "of the model's chat template, JSON", "sample")
    seed: int = _setting(0, "of rollouts, writing and groups", "sample")
    # Verdicts.
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function", "verify")
    verifier_options: dict[str, Any] | None = _setting(None, "JSON", "verify")
    truncated: str = _setting("incorrect", "a rollout cut at the length limit is incorrect or undecided", "verify")
    # Extraction.
    writer_engine: str | None = _setting(None, f"who writes: {', '.join(ENGINES)} (engine)", "extract")
    writer_model: str | None = _setting(None, "the writer's model (the rollouts' model)", "extract")
    writer_base_url: str | None = _setting(None, "of the writer's server (base_url)")
    writer_temperature: float = _setting(0.7, "0 is greedy", "extract")
    writer_batch_size: int | None = _setting(None, "requests written and kept at a time (8, 256, 64)", "extract")
    writer_chat_template_kwargs: dict[str, Any] | None = _setting(
        None, "of the writer's chat template, JSON", "extract"
    )
    compatibility: str = _setting("none", "paper: as the paper's authors do; shows the writer the answers", "extract")
    show_answer: bool | None = _setting(None, "show the writer the reference answers (false)", "extract")
    max_items: int = _setting(3, "skills or mistakes of a memory at most", "extract")
    attempts: int = _setting(3, "how often a request is sent until its answer fits", "extract")
    # Merge and scan.
    group_by: str = _setting("order", "what the writer sees together: neighbours by order or by embedding", "merge")
    embedder: str = _setting("Qwen/Qwen3-Embedding-0.6B", "of group_by embedding, or local:all-minilm-l6-v2", "merge")
    group_size: int = _setting(32, "candidates the writer sees together at most", "merge")
    patience: int = _setting(3, "layers without a merge after which merging ends", "merge")
    benchmarks: list[str] | None = _setting(None, "test data that no item may hold: aime24 …, or files", "merge")
    leak_words: int = _setting(13, "words of a problem in a row that no item may hold", "merge")
    name: str = _setting("", "of the bank", "merge")
    # Servers.
    concurrency: int = _setting(16, "requests to a server at a time")
    timeout: float = _setting(600.0, "seconds to wait for one answer of a server")
    retries: int = _setting(5, "how often a request to a server is repeated after an error")
    token_budget: int | None = _setting(None, "tokens that the writer may take at most, in and out")
    price_in: float | None = _setting(None, "of a million tokens that the writer reads, for the estimate")
    price_out: float | None = _setting(None, "of a million tokens that the writer writes")

    def __post_init__(self) -> None:
        self.writer_engine = self.writer_engine or self.engine
        self.writer_model = self.writer_model or self.model_name_or_path
        self.writer_base_url = self.writer_base_url or self.base_url
        for name, choices in (
            ("engine", ENGINES),
            ("writer_engine", ENGINES),
            ("truncated", ("incorrect", "undecided")),
            ("compatibility", ("none", "paper")),
            ("group_by", ("order", "embedding")),
        ):
            check_choice(name, vars(self)[name], choices)
        if self.show_answer is None:
            self.show_answer = self.compatibility == "paper"
        self.batch_size = self.batch_size or SAMPLE_BATCHES[self.engine]
        self.writer_batch_size = self.writer_batch_size or WRITE_BATCHES[self.writer_engine]
        self._check_ranges()
        for name in ("dataset", "model_name_or_path"):
            if not vars(self)[name]:
                raise ConfigError(f"no {name}", remedy=f"give it in --config or as --{name}")
        for name, engine in (("base_url", self.engine), ("writer_base_url", self.writer_engine)):
            if engine == "openai" and vars(self)[name] is None:
                raise ConfigError(f"engine openai needs {name}", expected="such as http://localhost:8000/v1")

    def _check_ranges(self) -> None:
        at_least_one = "dataset_limit samples batch_size max_completion_length writer_batch_size max_items attempts"
        bounds: dict[str, tuple[Callable[[Any], bool], str]] = {
            **dict.fromkeys(at_least_one.split(), (lambda value: value >= 1, "1 or more")),
            **dict.fromkeys(("patience", "concurrency", "token_budget"), (lambda value: value >= 1, "1 or more")),
            **dict.fromkeys(("temperature", "writer_temperature"), (lambda value: 0 <= value < math.inf, "0 or more")),
            **dict.fromkeys(("top_k", "retries"), (lambda value: value >= 0, "0 or more")),
            "top_p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
            "group_size": (lambda value: value >= 2, "2 or more"),
            "leak_words": (lambda value: value >= 5, "5 or more"),
            "timeout": (lambda value: 0 < value < math.inf, "seconds, above 0"),
        }
        for name, (fits, expected) in bounds.items():
            value = vars(self)[name]
            if value is not None and not fits(value):
                raise ConfigError(f"{name} is out of range", got=value, expected=expected)

    def of_stage(self, stage: str) -> dict[str, Any]:
        """What the stage's results depend on, but for data and weights."""
        return {item.name: vars(self)[item.name] for item in fields(self) if item.metadata["stage"] == stage}


HINTS = typing.get_type_hints(BuildSettings)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag a setting; none has a default here, so that only those given override the file."""
    parser.add_argument("--config", help="YAML file of settings, or the preset bank; flags override it")
    parser.add_argument("--output", required=True, help="folder of the build; goes on with what is there")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    settings = parser.add_argument_group("settings")
    for item in fields(BuildSettings):
        help_text = item.metadata["help"].replace("%", "%%")
        settings.add_argument(f"--{item.name}", metavar=_plain_type(item.name).__name__.upper(), help=help_text)


def read_settings(content: Mapping[str, Any], where: str, flags: Mapping[str, str | None]) -> BuildSettings:
    """A configuration file's content under the flags.

    Args:
        content: setting → value.
        where: the file, for errors.
        flags: setting → text, ``None`` where it was not given.

    Raises:
        ConfigError: an unknown setting, a wrong type, a value out of range.
    """
    known = [item.name for item in fields(BuildSettings)]
    for name, value in content.items():
        if name not in known:
            raise ConfigError(f"unknown setting in {where}", got=name, remedy=did_you_mean(str(name), known))
        if not _fits(name, value):
            raise ConfigError(f"wrong type in {where}", got=f"{name}: {json.dumps(value)}", expected=_type_name(name))
    given = {name: _parsed(name, text) for name, text in flags.items() if text is not None}
    values = {name: _number(name, value) for name, value in {**content, **given}.items()}
    return BuildSettings(**values)


def _plain_type(name: str) -> type:
    """``int`` for ``int | None``, ``dict`` for ``dict[str, Any] | None``."""
    hint = HINTS[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _fits(name: str, value: Any) -> bool:
    kind = _plain_type(name)
    if value is None:
        return isinstance(HINTS[name], types.UnionType)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is list:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in cast(list[Any], value))
    return isinstance(value, (int, float) if kind is float else kind)


def _number(name: str, value: Any) -> Any:
    """YAML's 1 is a float where the setting is one: it would be another value in the record."""
    return float(value) if _plain_type(name) is float and isinstance(value, int) else value


def _parsed(name: str, text: str) -> Any:
    kind = _plain_type(name)
    if kind is str:
        return text
    if kind is list:
        return [part.strip() for part in text.split(",")]
    try:
        value = json.loads(text.lower() if kind is bool else text)
    except ValueError:
        value = text
    if not _fits(name, value):
        raise ConfigError(f"--{name} cannot be read", got=repr(text), expected=_type_name(name))
    return value


def _type_name(name: str) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list of names"}
    return names.get(_plain_type(name), "a JSON object")
