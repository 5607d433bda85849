"""The root of all errors and that of settings. ``sgsd.errors`` adds the others: the verifiers stand alone."""

from __future__ import annotations


class SGSDError(Exception):
    """Root of every error this package raises on purpose.

    The message is one line: ``what: got X; expected Y; remedy``. The command line prints it and exits with code 2.

    Args:
        what: what is wrong, without a final stop.
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
            details.append(f"got {got}")
        if expected is not None:
            details.append(f"expected {expected}")
        if remedy is not None:
            details.append(remedy)
        message = ": ".join([what, "; ".join(details)]) if details else what
        super().__init__("\\n".join(message.splitlines()))  # what was found may have line breaks


class ConfigError(SGSDError, ValueError):
    """A setting, command-line flag or configuration file that cannot be used."""
