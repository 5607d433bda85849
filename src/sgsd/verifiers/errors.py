"""The root of all errors and that of settings. ``sgsd.errors`` adds the others: the verifiers stand alone."""

from __future__ import annotations

from sgsd.display import one_line


class SGSDError(Exception):
    """Root of every error this package raises on purpose.

    The message is one line of visible text: ``what: got X; expected Y; remedy``. The command line prints it and exits
    with code 2.

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
            details.append(f"got {one_line(str(got))}")
        if expected is not None:
            details.append(f"expected {one_line(str(expected))}")
        if remedy is not None:
            details.append(one_line(remedy))
        what = one_line(what)
        super().__init__(": ".join([what, "; ".join(details)]) if details else what)


class ConfigError(SGSDError, ValueError):
    """A setting, command-line flag or configuration file that cannot be used."""
