"""The errors users see: one root, one line each, saying what, got, expected and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from sgsd.verifiers.errors import ConfigError, SGSDError

__all__ = [
    "BankError",
    "CheckpointError",
    "CollapseError",
    "ConfigError",
    "DataError",
    "PromptError",
    "SGSDError",
    "ServerError",
    "check_choice",
    "did_you_mean",
    "in_one_line",
]


class DataError(SGSDError, ValueError):
    """A data set or a row of one that cannot be used."""


class BankError(SGSDError, ValueError):
    """A skill bank that cannot be read, or cannot serve what is asked of it."""


class PromptError(SGSDError, ValueError):
    """A prompt that cannot be rendered, or does not fit."""


class CheckpointError(SGSDError, ValueError):
    """A checkpoint that cannot be written, resumed or read."""


class CollapseError(SGSDError, RuntimeError):
    """The collapse guard stopped a training run."""


class ServerError(SGSDError, RuntimeError):
    """A model server that cannot be reached, refuses, or answers something else than it was asked."""


@contextmanager
def in_one_line(what: str = "the settings cannot be used") -> Generator[None]:
    """Within, what other libraries refuse is one line too.

    Args:
        what: cannot be used, as far as is known.

    Raises:
        ConfigError: with their message; a package they miss is named as such.
    """
    try:
        yield
    except SGSDError:
        raise
    except ImportError as error:
        raise ConfigError("a package these settings need is missing", got=" ".join(str(error).split())) from error
    except (TypeError, ValueError, NotImplementedError, AssertionError, RecursionError) as error:
        raise ConfigError(what, got=" ".join(str(error).split()) or type(error).__name__) from error


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The remedy for a misspelt name, if one of the known ones resembles it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else None


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ConfigError: naming the choices, and the nearest one.
    """
    if value not in choices:
        raise ConfigError(
            f"unknown {what}",
            got=repr(value),
            expected="one of " + ", ".join(choices),
            remedy=did_you_mean(str(value), choices),
        )
