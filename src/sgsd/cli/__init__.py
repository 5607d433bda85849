"""The command line: one module a command, each composing the rest of the package; ``parser`` has the flags."""

from sgsd.cli.parser import build_parser, main

__all__ = ["build_parser", "main"]
