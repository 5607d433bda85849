"""The repository's examples as modules. ``sgsd demo`` and ``sgsd lab`` are examples.

In a checkout, the path of this package includes the folder ``examples/``. A wheel contains only the demo
(``force-include`` in pyproject.toml).
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
"""Modules of the commands; their ``main`` is called."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run an example; returns the exit code.

    Args:
        command: one of ``COMMANDS``.
        arguments: of the command.

    Raises:
        ConfigError: the example is not installed.
    """
    if importlib.util.find_spec(f"{__name__}.{command}") is None:
        raise ConfigError(
            f"sgsd {command} is not in this installation",
            expected=f"a checkout of the repository, which has examples/{command}",
            remedy="run pip install -e . in one",
        )
    return importlib.import_module(f"{__name__}.{COMMANDS[command]}").main(arguments)
