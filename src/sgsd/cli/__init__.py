"""The command line. Each command has a module; ``parser`` has the flags."""

from sgsd.cli.parser import build_parser, main

__all__ = ["build_parser", "main"]
