"""The errors that users see: one root, and one line each that says what, got, expected and remedy."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from sgsd.verifiers.errors import ConfigError, SGSDError, check_choice, did_you_mean

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
    """A skill bank that cannot be read, or does not have what is asked of it."""


class PromptError(SGSDError, ValueError):
    """A prompt that cannot be rendered, or is too long."""


class CheckpointError(SGSDError, ValueError):
    """A checkpoint that cannot be written, resumed or read."""


class CollapseError(SGSDError, RuntimeError):
    """The collapse guard stopped a training run."""


class ServerError(SGSDError, RuntimeError):
    """A model server that cannot be reached, refuses a request, or sends an unusable reply."""


@contextmanager
def in_one_line(what: str = "the settings cannot be used") -> Generator[None]:
    """A context in which other libraries' exceptions become errors of one line.

    Args:
        what: the first part of the error.

    Raises:
        ConfigError: with the other library's message, or naming the package that is missing.
    """
    try:
        yield
    except SGSDError:
        raise
    except ImportError as error:
        raise ConfigError("a package these settings need is missing", got=" ".join(str(error).split())) from error
    # What other libraries raise about a setting they refuse; anything else is a bug, and keeps its traceback.
    except (TypeError, ValueError, NotImplementedError, AssertionError, RecursionError, re.error) as error:
        raise ConfigError(what, got=" ".join(str(error).split()) or type(error).__name__) from error
