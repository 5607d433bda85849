"""The repository's examples as modules: the folder ``examples/`` of a checkout, or what a wheel carries of it.

``sgsd demo`` and ``sgsd lab`` are examples. In a checkout this package's path goes on to ``examples/``; a wheel has the
demo's file beside this one (``force-include`` in pyproject.toml), and no lab.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sgsd.errors import ConfigError

_CHECKOUT = Path(__file__).resolve().parents[3] / "examples"
if (_CHECKOUT / "demo.py").is_file():
    __path__.append(str(_CHECKOUT))

COMMANDS = {"demo": "demo", "lab": "lab.command"}
"""Command of ``sgsd`` → the module here whose ``main`` it is."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run an example; returns the exit code.

    Args:
        command: one of ``COMMANDS``.
        arguments: what stands behind it.

    Raises:
        ConfigError: this installation does not have it.
    """
    if importlib.util.find_spec(f"{__name__}.{command}") is None:
        raise ConfigError(
            f"sgsd {command} is not in this installation",
            expected=f"a checkout of the repository, which has examples/{command}",
            remedy="run pip install -e . in one",
        )
    return importlib.import_module(f"{__name__}.{COMMANDS[command]}").main(arguments)
