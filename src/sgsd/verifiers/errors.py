"""The root of all errors, and the error of settings. They are here because the verifiers do not import
``sgsd.errors``, which has the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sgsd.display import one_line, without_credentials


class SGSDError(Exception):
    """Root of every error this package raises on purpose.

    The message is one line of visible text: ``what: got X; expected Y; remedy``. The command line prints it and exits
    with code 2.

    Args:
        what: what is wrong, without a full stop.
        got: what was found.
        expected: what would have been accepted.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.remedy = remedy
        details: list[str] = []
        if got is not None:
            details.append(f"got {_shown(got)}")
        if expected is not None:
            details.append(f"expected {_shown(expected)}")
        if remedy is not None:
            details.append(_shown(remedy))
        what = _shown(what)
        super().__init__(": ".join([what, "; ".join(details)]) if details else what)


def _shown(part: object) -> str:
    return one_line(without_credentials(str(part)))


class ConfigError(SGSDError, ValueError):
    """A setting, command-line flag or configuration file that cannot be used."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The remedy for a misspelt name; ``None`` if no known name resembles it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else None


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices.

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
