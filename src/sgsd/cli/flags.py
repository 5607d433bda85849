"""How flags are spelled, for the command line before any framework is imported."""

from __future__ import annotations


def spelled(argument: str) -> str:
    """``--dry-run`` and ``--dry_run`` are one flag; values and other words stay as they are."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument
