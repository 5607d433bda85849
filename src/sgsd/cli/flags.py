"""How flags are spelled, and what their help calls their values; without any framework."""

from __future__ import annotations

import os
import types
from typing import Any, Literal, Union, get_args, get_origin

# Samples at a time: what is lost at most when the work is cut off. Engines that batch by themselves are slow at the end
# of each call, so theirs are large.
SAMPLE_BATCHES = {"transformers": 32, "vllm": 512, "openai": 256}


def spelled(argument: str) -> str:
    """``--dry-run`` and ``--dry_run`` are one flag; values and other words stay as they are."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def at_home(value: Any) -> Any:
    """A path below ``~/`` as the shell would have it, in a setting, in a list of them, and behind ``--flag=``."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.partition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + (os.path.expanduser(path) if path.startswith("~/") else path)


def metavar(hint: Any) -> str:
    """What help calls a value of this type: ``INT``, ``JSON``, ``{a,b}`` where there is a choice."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"{{{','.join(inner)}}}"
    if origin in (Union, types.UnionType, list):
        return metavar(inner[0])
    names = {str: "TEXT", int: "INT", float: "FLOAT", bool: "BOOL", dict: "JSON"}
    return names.get(origin or hint, "TEXT")
