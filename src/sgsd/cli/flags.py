"""Spelling of flags and their metavars. This module imports no framework."""

from __future__ import annotations

import os
import types
from typing import Any, Literal, Union, get_args, get_origin

# Engine → samples per call. They are saved together, so this is the most that an interruption loses. vLLM and servers
# batch by themselves and have idle slots at the end of each call, so their calls are large.
DTYPES = ("auto", "bfloat16", "float16", "float32")
SAMPLE_BATCHES = {"transformers": 32, "vllm": 512, "openai": 256}

MOST = 1_000_000
"""The most samples of a problem, and of whatever else is listed in memory."""
COLDEST, HOTTEST = 1e-6, 1e6
"""Temperatures by which logits can be divided."""


def with_underscores(argument: str) -> str:
    """Replace ``-`` by ``_`` in a flag's name, so that ``--dry-run`` is ``--dry_run``. Values are left as they are."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def expand_home(value: Any) -> Any:
    """Expand ``~/`` as a shell does: in a text, in each text of a list, and in the value of ``--flag=~/file``."""
    if isinstance(value, list):
        return [expand_home(one) for one in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.partition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + (os.path.expanduser(path) if path.startswith("~/") else path)


def metavar(hint: Any) -> str:
    """The metavar of a type in a help text: ``INT``, ``JSON``, ``{a,b}`` for a ``Literal``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"{{{','.join(inner)}}}"
    if origin in (Union, types.UnionType, list):
        return metavar(inner[0])
    names = {str: "TEXT", int: "INT", float: "FLOAT", bool: "BOOL", dict: "JSON"}
    return names.get(origin or hint, "TEXT")
