"""``sgsd report``: write one HTML page about runs."""

from __future__ import annotations

import argparse

from sgsd.display import say
from sgsd.errors import ConfigError


def run(options: argparse.Namespace) -> int:
    """Write the page and print its path and size."""
    try:
        from sgsd.report.page import write_report
    except ImportError as error:
        raise ConfigError(
            "sgsd report needs packages that are not installed", got=error.name, remedy="pip install 'sgsd[report]'"
        ) from error
    file = write_report(options.runs, options.output)
    say(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0
