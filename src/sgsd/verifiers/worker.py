"""The process in which answers are judged: ``python -m sgsd.verifiers.worker``. JSON lines in, JSON lines out.

``{"load": grader, "path": sys.path}`` → ``{"ready": true}`` or ``{"failed": text}``. ``{"grader": …, "completion": …,
"answer": …, "context": [fields], "limit": seconds}`` or ``{"grader": …, "check": answer, "limit": seconds}`` (can this
reference be read?) → a verdict. The process ends with its input. If an item exceeds its limit and no parent kills the
process, an alarm or the kernel's limit of CPU seconds ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from sgsd.verifiers.fence import Fence, leave_network, limit_cpu, limit_process
from sgsd.verifiers.verdict import Grader, Outcome

GRACE = 2.0
"""Seconds after the limit that the alarm waits, so that the parent can kill this process first."""
ERROR = "verifier error: "
"""The start of the reason if a grader raised."""


class Loaded(NamedTuple):
    """A grader, and the function that says why a reference cannot be read (``None``: it can)."""

    grade: Grader
    why_unreadable: Callable[[str], str | None]


_LAZY = (
    *("integrals.heurisch", "integrals.manualintegrate", "integrals.risch"),
    *("combinatorics", "sets.handlers.issubset", "sets.setexpr", "tensor.tensor"),
)
"""Modules that sympy imports on first use. Their dataclasses compile code, which the closed fence refuses."""


def load(grader: str) -> Loaded:
    """The grader of a description ``{"kind": …, options…}`` in JSON. Only the modules that it needs are imported."""
    options: dict[str, Any] = json.loads(grader)
    kind = options.pop("kind")
    module = importlib.import_module(f"sgsd.verifiers.{kind}")
    if kind == "math":
        from sgsd.verifiers.expressions import close_evaluation

        for name in _LAZY:
            importlib.import_module(f"sympy.{name}")
        close_evaluation()
    return Loaded(module.make_grader(**options), module.why_unreadable)


def respond(request: dict[str, Any], graders: dict[str, Loaded]) -> dict[str, Any]:
    """The reply to one request."""
    if "load" in request:
        sys.path[:] = dict.fromkeys([*request["path"], *sys.path])
        try:
            graders[request["load"]] = load(request["load"])
        except Exception as error:  # noqa: BLE001 - importing a grader runs third-party code; the parent reports it
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
        return {"ready": True}
    try:
        loaded = graders[request["grader"]]
        if "check" in request:
            why = loaded.why_unreadable(request["check"])
            return {"outcome": Outcome.CORRECT if why is None else Outcome.UNDECIDED, "reason": why}
        verdict = loaded.grade(request["completion"], request["answer"], *request.get("context", ()))
    except MemoryError:
        return {"outcome": Outcome.UNDECIDED, "reason": "out of memory", "restart": True}
    except Exception as error:  # noqa: BLE001 - a grader may raise anything; the parent decides what it means
        return {"outcome": Outcome.UNDECIDED, "reason": f"{ERROR}{type(error).__name__}: {error}"[:300]}
    return {"outcome": verdict.outcome, "reason": verdict.reason, "extracted": verdict.extracted}


def main() -> None:
    """Serve until the input ends. Arguments: GiB of address space; ``fenced`` or ``free``; a folder to remove then."""
    memory_gb, mode, folder = sys.argv[1:]
    fenced = mode != "free"
    limit_process(float(memory_gb), fenced=fenced)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the parent, which ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever the interpreter is doing
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    sys.setrecursionlimit(4_000)
    warnings.simplefilter("ignore")
    fence = Fence() if fenced else None
    if fenced:
        leave_network()
    cores = 1 if fenced else os.cpu_count() or 1
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    graders: dict[str, Loaded] = {}
    with open(os.devnull, "r+b") as nowhere:
        for standard in (0, 1):  # what a grader prints must not mix with the replies
            os.dup2(nowhere.fileno(), standard)
        for line in requests:
            request = json.loads(line)
            is_item = "load" not in request
            if is_item:
                signal.setitimer(signal.ITIMER_REAL, request["limit"] + GRACE)
                limit_cpu((request["limit"] + GRACE) * cores)
            if fence is not None:
                fence.set(closed=is_item)
            reply = respond(request, graders)
            if fence is not None:
                fence.set(closed=False)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
    shutil.rmtree(folder, ignore_errors=True)  # the parent is gone, and cannot do it
    os.killpg(os.getpid(), signal.SIGKILL)  # also ends what a reward function started


if __name__ == "__main__":
    main()
