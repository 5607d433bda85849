"""Shared by the benchmarks: Markdown tables and the peak of resident memory."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

GB = 1e9


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a Markdown table."""
    print(f"{title and f'### {title}'}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def reset_peak() -> bool:
    """Reset the peak of resident memory; only Linux can. Returns whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(was_reset: bool) -> int:
    """The peak of this process's resident memory, since ``reset_peak`` if that worked."""
    return resident("VmHWM") if was_reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident(field: str = "VmRSS") -> int:
    """Bytes of resident memory, by a field of Linux's status file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024
