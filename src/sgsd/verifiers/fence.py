"""Limits of a worker process: address space, CPU time, files, no core dumps.

Workers that run graders of this package are also *fenced*: they have no network, and cannot write a file, start a
process, import a new package or compile text. The graders need none of that; the fence is a second line of defence.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import site
import sys
import sysconfig
from typing import Any

try:
    import resource
except ImportError:  # not a POSIX system: there are no limits, only the fence
    resource = None

OPEN_FILES = 64
OPEN_FILES_REWARD = 4_096
FILE_BYTES_REWARD = 2**30

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_SYMPY = re.compile(
    rb"from sympy import \*|def monomial_\w+\([ABk, ]+\):\n(?!.*__)[\w\s(),=\[\]<>:+*/-]*"
    rb"|(?:(?:Integer|Float|Symbol|Rational) ?\(\s*'?[\w.+-]{1,4300}'?\s*\)|[A-Z]|pi|[-+*/(), ])+",
    re.DOTALL,
)
"""The source texts that sympy itself compiles: constructors of numbers and symbols, and its tables of monomials."""

_REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.chflags", "os.chdir", "os.utime", "os.putenv", "os.unsetenv", "os.setxattr", "shutil.", "tempfile.",
    "ctypes.", "urllib.", "http.", "ftplib.", "smtplib.", "sqlite3.", "pickle.", "mmap.", "resource.",
    "signal.pthread_kill", "sys.setprofile", "sys.settrace", "builtins.input", "webbrowser.",
)  # fmt: skip


def limit(name: str, value: int, *, for_good: bool = True) -> None:
    """Lower one of this process's limits (``RLIMIT_`` + name), if there is one; ``for_good``: the hard limit, too."""
    if resource is None:
        return
    number: int = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(number)[1]
    lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(number, (lower, lower if for_good else hard))


def limit_process(memory_gb: float, *, fenced: bool) -> None:
    """Set the limits that hold for the life of this process."""
    limit("AS", int(memory_gb * 2**30))
    limit("CORE", 0)
    limit("NOFILE", OPEN_FILES if fenced else OPEN_FILES_REWARD)
    if not fenced:
        limit("FSIZE", FILE_BYTES_REWARD)


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after so many more seconds of CPU time."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit("CPU", int(used.ru_utime + used.ru_stime + seconds) + 1, for_good=False)


def leave_network() -> bool:
    """Move this process into an empty network namespace of its own. Returns whether the kernel allowed it."""
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return unshare(_CLONE_NEWNET) == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


class Fence:
    """An audit hook, which Python code cannot remove. It is open while graders load, closed while items are judged."""

    def __init__(self) -> None:
        self.closed = False
        self._readable: tuple[str, ...] = ()
        self._modules = 0
        self._packages: frozenset[str] = frozenset()
        sys.addaudithook(self._check)

    def set(self, *, closed: bool) -> None:
        """Close or open the fence. From the first closing on, this process cannot write files or start processes."""
        if closed and not self._modules:
            limit("FSIZE", 0)
            limit("NPROC", 0)
        if closed and len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            self._packages = frozenset(name.partition(".")[0] for name in sys.modules)
            roots = {*sys.path, *sysconfig.get_paths().values(), *site.getsitepackages(), sys.prefix, sys.base_prefix}
            self._readable = tuple({os.path.join(os.path.realpath(root), "") for root in roots if root})
        self.closed = closed

    def _check(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.closed:
            return
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            passes = not writes and self._is_library(path)
        elif event == "import":
            passes = str(arguments[0]).partition(".")[0] in self._packages
        elif event == "compile":
            source, filename = arguments
            of_sympy = isinstance(source, bytes) and _SYMPY.fullmatch(source) is not None
            passes = of_sympy or self._is_library(filename)
        else:
            passes = not event.startswith(_REFUSED)
        if not passes:
            raise PermissionError(f"refused: {event}")

    def _is_library(self, path: object) -> bool:
        """Whether a path is a file of Python or of an installed package, which loaded modules may still read."""
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        return os.path.isabs(name) and os.path.realpath(name).startswith(self._readable)
