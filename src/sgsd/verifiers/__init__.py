"""Verifiers: they judge whether a completion's answer is right.

``get_verifier("math").verify(completion, answer)`` → ``Verdict(outcome, reason, extracted)``, and
``get_verifier("math").reward`` is a reward function for TRL's ``GRPOTrainer``. Every verification runs in a worker
process under a hard timeout; ``docs/answers.md`` says what counts as a right answer, ``docs/security.md`` what the
workers may do.

This package imports nothing else of sgsd but ``display``. Names are imported on first use, because ``sgsd.errors``
imports from here and must not load the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgsd.verifiers.errors import ConfigError
    from sgsd.verifiers.extract import Extraction, extract_answer
    from sgsd.verifiers.verdict import Context, Outcome, Verdict, Verifier
    from sgsd.verifiers.verifier import PooledVerifier, get_verifier

__all__ = [
    "ConfigError",
    "Context",
    "Extraction",
    "Outcome",
    "PooledVerifier",
    "Verdict",
    "Verifier",
    "extract_answer",
    "get_verifier",
]

_HOMES = {
    "ConfigError": "errors",
    **dict.fromkeys(("Extraction", "extract_answer"), "extract"),
    **dict.fromkeys(("Context", "Outcome", "Verdict", "Verifier"), "verdict"),
    **dict.fromkeys(("PooledVerifier", "get_verifier"), "verifier"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sgsd.verifiers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sgsd.verifiers.{_HOMES[name]}"), name)
