"""The process in which answers are judged: ``python -m sgsd.verifiers.worker``. JSON lines in, JSON lines out.

Requests: ``{"load": grader}`` → ``{"ready": true}`` or ``{"failed": text}``; ``{"grader": …, "completion": …, "answer":
…, "limit": seconds}`` → ``{"outcome": …, "reason": …, "extracted": …}``. It ends when its input does, that is when its
parent dies, and an alarm ends it when an item takes longer than its limit even if no parent is there to kill it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from sgsd.verifiers.verdict import Outcome, Verdict

Grader = Callable[[str, str], Verdict]
GRACE = 2.0
"""Seconds that the alarm leaves the parent to kill this process itself."""

_FACTORIES = {
    "math": "sgsd.verifiers.math",
    "exact": "sgsd.verifiers.exact",
    "choice": "sgsd.verifiers.choice",
    "reasoning_gym": "sgsd.verifiers.reasoning_gym",
    "reward": "sgsd.verifiers.reward",
}


def load(grader: str) -> Grader:
    """The grader of a description ``{"kind": …, options…}`` in JSON: ``make_grader(**options)`` of its module."""
    options = json.loads(grader)
    module = importlib.import_module(_FACTORIES[options.pop("kind")])
    return module.make_grader(**options)


def limit_memory(gigabytes: float) -> None:
    """Cap this process's address space and forbid core dumps, where the system can."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    for limit, value in ((resource.RLIMIT_AS, int(gigabytes * 2**30)), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def respond(request: dict[str, Any], graders: dict[str, Grader]) -> dict[str, Any]:
    """The reply to one request."""
    if "load" in request:
        try:
            graders[request["load"]] = load(request["load"])
        except Exception as error:  # noqa: BLE001 - importing a grader runs third-party code; the parent reports it
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
        return {"ready": True}
    try:
        verdict = graders[request["grader"]](request["completion"], request["answer"])
    except MemoryError:
        return {"outcome": Outcome.UNDECIDED, "reason": "out of memory", "restart": True}
    except Exception as error:  # noqa: BLE001 - a third-party grader may raise anything; the item is undecided, not lost
        return {"outcome": Outcome.UNDECIDED, "reason": f"verifier error: {type(error).__name__}: {error}"[:300]}
    return {"outcome": verdict.outcome, "reason": verdict.reason, "extracted": verdict.extracted}


def main() -> None:
    """Serve until the input ends. Arguments: the address-space limit in gigabytes."""
    limit_memory(float(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the process group's signals are for the parent, which ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever the interpreter is doing
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    sys.setrecursionlimit(4_000)
    warnings.simplefilter("ignore")
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what a grader prints must not end up among the replies
        graders: dict[str, Grader] = {}
        for line in requests:
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, request["limit"] + GRACE if "limit" in request else 0)
            reply = respond(request, graders)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
    replies.close()


if __name__ == "__main__":
    main()
