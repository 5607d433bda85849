"""The whole of ``sgsd.verifiers`` on repeats of one fragment: ``python repeats.py PART``.

A process of its own, since one bad text would hang the tests: it prints what it is about to try, and a line ``SLOW``
or ``UNDECIDED`` for whatever grows faster than its text.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

SHORT, LONG = 2_000, 8_000
RATIO = 6.0
ROUNDS = 40
CUT_OFF = 3.0  # seconds of the processor for one call: what is linear takes at most 0.1
LIMIT = 1.0  # seconds of the processor that the best call of the longer text may take
FLOOR = 0.01  # seconds that no ratio is taken of: ten times the clock's noise

FRAGMENTS = [
    " ", "\t", "\n", "\r\n", " \n", "\xa0", "\u2003", "\u3000", "\u200b", "~", "\\,", "\\ ", "\\quad ", "(", ")",
    "( ", "{", "}", "{}", "[", "]", "\\{", "\\left(", "|", "$", "$$", "\\(", "\\[", "<", "&", "\\\\", "\\", "-", "- ",
    "+", "= ", "^", "^9", "/", "*", ",", ", ", ".", ":", "; ", "'", '"', "%", "!", "?", "_", "#", "≈", "·", "to ",
    "or ", "and ", "not ", "is ", "no ", "the ", "answer ", "the answer is ", "final answer ", "Answer: ", "答案是",
    "ответ ", "x", "a ", "A ", "A, ", "B) ", "one hundred ", "twenty-", "wrong ", "percent ", "e\u0301", "\ud800",
    "9", "9 ", "1,", "1,000", "1/", "0.", "5-", "1:", "\\%", "9^{", "10!", "e9", "\\boxed{", "\\boxed{1} ", "\\boxed",
    "\\fbox{", "\\frac{", "\\frac{1}{2}", "\\text{", "\\text{a}", "\\sqrt", "\\sqrt{", "\\begin{pmatrix}", "\\left",
    "\\color{a}", "x_", "x_{", "\\cdot ", "\\circ", "\\mathbf{", "```\n", "```", "<think>", "</think>", "<answer>",
    "</answer>", "<|", "<|im_end|>", "[THINK]", "◁think▷", "<<", "#### ", '{"answer": ', '{"a":[', "| 1 ", "\nuser: ",
    "**", "* ", "1. ", "> ", "1 = ", "x=", "√(", "\\in ", "\\mid ", "x<", "\\approx ", "\\pm ", "\\cup ", "{,}",
    "sqrt(", "sin(", "f(", "(since ", "million ", "km ", "1/2 ", "或", "10^", "<answer>1</answer>", "$1$ and ",
    "I hope",
]  # fmt: skip
AROUND = [("", ""), ("so 5 ", "7 q"), ("\\boxed{", ""), ("answer is ", "7 q")]


def texts() -> Iterator[tuple[str, Callable[[int], str]]]:
    """A name, and the text of a given length, for each fragment and what stands around it."""
    for fragment in FRAGMENTS:
        for before, after in AROUND:

            def make(size: int, before: str = before, fragment: str = fragment, after: str = after) -> str:
                return before + fragment * (size // len(fragment)) + after

            yield ascii(f"{before}|{fragment}|{after}"), make


def seconds(action: Callable[[str], object], text: str) -> float:
    """Processor seconds of one call: the thread's clock, since the process's has steps of 4 ms while a timer is armed.

    Raises:
        OverTimeError: it took more than ``CUT_OFF``.
    """
    signal.setitimer(signal.ITIMER_VIRTUAL, CUT_OFF)
    try:
        start = time.thread_time()
        action(text)
        return time.thread_time() - start
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class OverTimeError(Exception):
    """A call took more than ``CUT_OFF``."""


def over_time(_number: int, _frame: FrameType | None) -> None:
    raise OverTimeError


def check(label: str, action: Callable[[str], object], make: Callable[[int], str]) -> bool:
    """Whether the longer text takes no more than its share; prints a line if not.

    Both texts are timed in turn and the best of each is compared, until the ratio is good: others share the machine.
    """
    short = long = float("inf")
    try:
        for _ in range(ROUNDS):
            long = min(long, seconds(action, make(LONG)))
            if long < FLOOR:
                return True
            short = min(short, seconds(action, make(SHORT)))
            if long <= min(LIMIT, RATIO * short):
                return True
        print(f"SLOW {label}: {short:.4f} s at {SHORT}, {long:.4f} s at {LONG}", flush=True)
    except OverTimeError:
        print(f"SLOW {label}: cut off", flush=True)
    return False


def try_extraction() -> None:
    from sgsd.verifiers.extract import extract_answer, extract_choice, extract_lines

    actions: dict[str, Callable[[str], object]] = {
        "extract_answer": extract_answer,
        "extract_choice": extract_choice,
        "extract_lines": lambda text: extract_lines(text, lines=3),
    }
    for name, action in actions.items():
        print(f"trying {name}", flush=True)
        for label, make in texts():
            check(f"{name} on {label}", action, make)


def try_grading() -> None:
    from sgsd.verifiers.math import make_grader
    from sgsd.verifiers.verdict import Outcome

    grader = make_grader()
    for reference in ("56", r"\frac{x+1}{2}"):
        for label, make in texts():
            print(f"trying {reference} on {label}", flush=True)
            verdicts = []
            check(f"{reference} on {label}", lambda text, r=reference, v=verdicts: v.append(grader(text, r)), make)
            if any(verdict.outcome is not Outcome.INCORRECT for verdict in verdicts):
                print(f"UNDECIDED {reference} on {label}: {verdicts[0]}")


def try_references() -> None:
    """``readable`` of a repeat as a reference: what of it runs in the calling process."""
    from sgsd.verifiers import get_verifier

    for name in ("math", "exact", "choice", "reasoning_gym"):
        with get_verifier(name, workers=1, timeout=2) as verifier:
            for label, make in texts():
                print(f"trying readable {name} {label}", flush=True)
                check(f"readable {name} on {label}", verifier.readable, make)


PARTS = {"extraction": try_extraction, "grading": try_grading, "references": try_references}

if __name__ == "__main__":
    signal.signal(signal.SIGVTALRM, over_time)
    PARTS[sys.argv[1]]()
    print("done")
