"""The settings of ``sgsd bank build``. Pydantic checks their types and ranges."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from sgsd.cli.flags import COLDEST, HOTTEST, MOST, SAMPLE_BATCHES, metavar
from sgsd.errors import ConfigError
from sgsd.validation import parse_json, refusal

WRITE_BATCHES = {"transformers": 8, "vllm": 256, "openai": 64}


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def _temperature(value: float) -> float:
    if value and value < COLDEST:
        raise ValueError(f"0 (greedy), or {COLDEST} or more")
    return value


def _mapping(value: object) -> object:
    if isinstance(value, str):
        return parse_json(value, "a JSON object", ConfigError)
    return value


def _names(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Engine = Literal["transformers", "vllm", "openai"]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_number), Field(ge=1, le=MOST)]
Natural = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Temperature = Annotated[float, BeforeValidator(_number), Field(ge=0, le=HOTTEST), AfterValidator(_temperature)]
Mapped = Annotated[dict[str, Any], BeforeValidator(_mapping)]
Names = Annotated[list[str], BeforeValidator(_names)]


def _setting(default: Any, help_text: str, stage: str | None = None) -> Any:
    """A setting. ``stage`` is the stage whose results depend on it, unless a digest of data or weights covers it."""
    return field(default=default, metadata={"help": help_text, "stage": stage})


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class BuildSettings:
    """Every setting of a build."""

    # Data.
    dataset: str = _setting(MISSING, "problems: file, folder, hub name, or reasoning_gym:TASK?option=value")
    dataset_split: str | None = _setting(None, "split (train, or the only one)")
    dataset_config: str | None = _setting(None, "configuration of a hub data set")
    dataset_adapter: str | None = _setting(None, "row format (found by its columns)")
    dataset_columns: str | None = _setting(None, "names of the columns, such as problem=question,answer=gold")
    dataset_limit: Count | None = _setting(None, "most problems to read")
    # Rollouts.
    model_name_or_path: str = _setting(MISSING, "model to sample: hub name, folder, adapter, or local:NAME", "sample")
    engine: Engine = _setting("transformers", "what samples", "sample")
    dtype: str | None = _setting(None, "of the weights (float32; auto for vllm)", "sample")
    device: str | None = _setting(None, "for engine transformers (the GPU if there is one)")
    trust_remote_code: bool = _setting(False, "run code that comes with the model", "sample")
    base_url: str | None = _setting(None, "address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    served_model: str | None = _setting(None, "name of the model on the server (that of the model)", "sample")
    samples: Size = _setting(1, "rollouts per problem", "sample")
    batch_size: Count | None = _setting(
        None, "rollouts to draw and save at a time (32 for transformers, 512 for vllm, 256 for openai)", "sample"
    )
    max_completion_length: Count = _setting(1024, "most new tokens of a rollout", "sample")
    temperature: Temperature = _setting(1.0, "sampling temperature; 0 is greedy", "sample")
    top_p: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)] = _setting(
        0.95, "nucleus sampling; 1 is off", "sample"
    )
    top_k: Natural = _setting(0, "top-k sampling; 0 is off", "sample")
    instruction: str | None = _setting(None, "text at the end of every prompt (that of training)", "sample")
    chat_template_kwargs: Mapped | None = _setting(None, "arguments of the model's chat template, JSON", "sample")
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)] = _setting(
        0, "of rollouts, writing and groups", "sample"
    )
    # Verdicts.
    verifier: str = _setting("math", "math, exact, choice, reasoning_gym, or a TRL reward function", "verify")
    verifier_options: Mapped | None = _setting(None, "options of the verifier, JSON", "verify")
    truncated: Literal["incorrect", "undecided"] = _setting(
        "incorrect", "verdict on a rollout that reaches max_completion_length", "verify"
    )
    # Extraction.
    writer_engine: Engine | None = _setting(None, "what runs the writer (that of engine)", "extract")
    writer_model: str | None = _setting(
        None, "model that writes skills and mistakes (that of model_name_or_path)", "extract"
    )
    writer_base_url: str | None = _setting(None, "address of the writer's server (that of base_url)")
    writer_temperature: Temperature = _setting(0.7, "sampling temperature of the writer; 0 is greedy", "extract")
    writer_batch_size: Count | None = _setting(
        None, "requests to answer and save at a time (8 for transformers, 256 for vllm, 64 for openai)", "extract"
    )
    writer_chat_template_kwargs: Mapped | None = _setting(
        None, "arguments of the writer's chat template, JSON", "extract"
    )
    compatibility: Literal["none", "paper"] = _setting(
        "none", "paper: as the paper's authors do, which shows the answers to the writer", "extract"
    )
    show_answer: bool | None = _setting(None, "show the reference answers to the writer (false)", "extract")
    max_items: Size = _setting(3, "most skills or mistakes per memory", "extract")
    attempts: Size = _setting(3, "most attempts to get a valid answer from the writer", "extract")
    # Merge and scan.
    group_by: Literal["order", "embedding"] = _setting(
        "order", "how candidates are grouped for the writer to merge", "merge"
    )
    embedder: str = _setting(
        "Qwen/Qwen3-Embedding-0.6B", "for group_by embedding: hub name, folder, or local:all-minilm-l6-v2", "merge"
    )
    group_size: Annotated[int, BeforeValidator(_number), Field(ge=2)] = _setting(
        32, "most candidates in a group", "merge"
    )
    patience: Count = _setting(3, "layers without a merge after which merging stops", "merge")
    benchmarks: Names | None = _setting(None, "test problems that no item may leak: aime24 …, or files", "merge")
    leak_words: Annotated[int, BeforeValidator(_number), Field(ge=5)] = _setting(
        13, "length of a word n-gram shared with a problem that is a leak", "merge"
    )
    name: str = _setting("", "of the bank", "merge")
    # Servers.
    concurrency: Count = _setting(16, "parallel requests to a server")
    timeout: Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)] = _setting(
        600.0, "seconds to wait for an answer of a server"
    )
    retries: Natural = _setting(5, "most repetitions of a request to a server after errors")

    def __post_init__(self) -> None:
        self.writer_engine = self.writer_engine or self.engine
        self.writer_model = self.writer_model or self.model_name_or_path
        self.writer_base_url = self.writer_base_url or self.base_url
        if self.show_answer is None:
            self.show_answer = self.compatibility == "paper"
        self.batch_size = self.batch_size or SAMPLE_BATCHES[self.engine]
        self.writer_batch_size = self.writer_batch_size or WRITE_BATCHES[self.writer_engine]
        for name, engine in (("base_url", self.engine), ("writer_base_url", self.writer_engine)):
            if engine == "openai" and vars(self)[name] is None:
                raise ConfigError(f"engine openai needs {name}", expected="such as http://localhost:8000/v1")

    def of_stage(self, stage: str) -> dict[str, Any]:
        """The settings on which the results of a stage depend, without data and weights."""
        return {item.name: vars(self)[item.name] for item in fields(self) if item.metadata["stage"] == stage}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting. Flags have no defaults, so that only given flags override the file."""
    parser.add_argument("--config", help="YAML file of settings, or the preset bank; flags override it")
    parser.add_argument("--output", required=True, help="folder of the build; a build in it is resumed")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    settings = parser.add_argument_group("settings")
    hints = get_type_hints(BuildSettings)
    for item in fields(BuildSettings):
        default = "" if item.default in (None, "", MISSING) else f" (default: {item.default})"
        help_text = (item.metadata["help"] + default).replace("%", "%%")
        flags = [f"--{item.name}", *(["--columns"] if item.name == "dataset_columns" else [])]
        settings.add_argument(*flags, metavar=metavar(hints[item.name]), help=help_text)


def read_settings(content: Mapping[str, Any], where: str, flags: Mapping[str, str | None]) -> BuildSettings:
    """The settings of a configuration file, overridden by flags.

    Args:
        content: values in the file, by setting.
        where: the file, for errors.
        flags: texts of the flags, by setting; ``None`` for a flag that was not given.

    Raises:
        ConfigError: an unknown or unusable setting.
    """
    given = {name: text for name, text in flags.items() if text is not None}
    try:
        return BuildSettings(**{**content, **given})
    except ValidationError as error:
        known = [item.name for item in fields(BuildSettings)]
        is_flag = any(place in given for place in error.errors()[0]["loc"])
        raise refusal(error, "sgsd bank build" if is_flag or not where else where, ConfigError, known=known) from error
