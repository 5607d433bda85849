"""Hostile texts, drawn from a grammar: ``python benchmarks/verifier_fuzz.py --cases 100000 --seed 0``.

Completions and references are strings of pieces of LaTeX, plain mathematics, JSON, words, marks and code, some of them
repeated or cut off. Counted are crashes of a verifier, items undecided though their reference can be read, references
that take longer than the timeout, processes left behind, and the memory of the workers. The exit status is 1 if any of
these is not zero, or a worker grew by more than ``--growth`` megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from sgsd.verifiers import Outcome, get_verifier

PIECES = [
    *"0123456789+-*/^_=<>(){}[]|\\$%&#,.;:!?'\"~`@ \n\txyzabnkABCDeid",
    *"π√°½²－１٣∞中é\u200b\u202e\ufeff\ud800\x00≈≤×·−",
    "\\frac{", "\\frac12", "\\sqrt{", "\\sqrt[3]{", "\\text{", "\\mathrm{", "\\mathbf{", "\\left(", "\\right)",
    "\\overline{", "\\begin{pmatrix}", "\\end{pmatrix}", "\\begin{cases}", "\\end{cases}", "\\begin{array}{c}",
    "\\end{array}", "&", "\\\\", "\\cdot ", "\\times ", "\\div ", "\\pm ", "\\cup ", "\\in ", "\\approx ", "\\leq ",
    "\\neq ", "\\infty", "\\pi", "\\circ", "\\int_0^1 ", "\\sum_{k=1}^{n} ", "\\prod_{k=1}^{9} ", "\\lim_{x\\to 0} ",
    "\\binom{", "\\log_2 ", "\\sin ", "\\ln ", "dx", "\\boxed{", "}", "}", "}", "\\fbox{", "\\(", "\\)", "\\[",
    "\\]", "$$", "^{", "_{", "\\%", "\\{", "\\}", "\\,", "\\quad ", "9^{9^{9^{9}}}", "9**9**9", "10^{10^{10}}",
    "1e999999999", "99999999!", "\\binom{10^9}{10^8}", "(x+1)^{99999}", "1/0", "0^0", "{\"answer\": ", "[1, 2]",
    "null", "true", "\"x\"", "{}", "NaN", "```\n", "```json\n", "| 1 | 2 |\n", "- ", "1. ", "**", "The answer is ",
    "Answer: ", "#### ", "final answer ", " or ", " and ", "not ", "no, ", "wait, ", "答案是", "Ответ: ", "respuesta ",
    "<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "<|channel|>analysis<|message|>", "[THINK]",
    "[/THINK]", "<<1+1=2>>", "open('/x','w')", "__import__('os')", "eval(", "lambda: 0", ".__class__", "sqrt(",
    "expand(", "Integral(x, x)", "len('a')", "Symbol('x')", "(A)", "B.", "option C", "all of them", "neither",
    "one hundred", "km", "\\$5", "12:30", "1,000", "0.5", "3 1/2", "-7", "x+1", "2\\pi",
]  # fmt: skip
REFERENCES = {
    "math": [
        "0", "7", "-12", "1/2", "0.25", "1{,}000", "\\frac{3}{8}", "2\\sqrt{3}", "\\pi", "3\\pi+1", "e^{2}",
        "\\ln 2", "50\\%", "x+1", "x^2-4x+1", "\\frac{x}{y}", "y=2x+1", "x^2+y^2=9", "(1,2)", "[0,1)",
        "(-\\infty,2]\\cup[3,\\infty)", "\\{1,2\\}", "1, 2, 3", "\\pm 2", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
        "\\text{Monday}", "odd", "\\text{(B)}", "30^\\circ", "5\\text{ cm}", "2^{n}-1", "\\binom{n}{2}", "\\sin x",
        "3:4", "x>2", "1+2i", "\\infty", "n!", "12:30", "\\$5", "10^{-9}", "2^{100}",
    ],
    "choice": [
        "A", "B", "C", "(D)",
    ],
    "exact": [
        "blue", "Paris", "x = 1",
    ],
}  # fmt: skip
ENTRIES = [
    {"answer": "464", "metadata": {"source_dataset": "chain_sum", "expression": "418 + 77 - 31"}},
    {"answer": "3 6", "metadata": {"source_dataset": "spiral_matrix", "matrix": [[3], [6]], "solution": [3, 6]}},
    {"answer": "5*20 + 15", "metadata": {"source_dataset": "countdown", "numbers": [5, 20, 15], "target": 115}},
    {"answer": "9 + 5 + 7 + 3", "metadata": {"source_dataset": "puzzle24", "numbers": [9, 5, 7, 3]}},
    {"answer": "2 × 3 × 5", "metadata": {"source_dataset": "prime_factorization", "number": 30, "factors": [2, 3, 5]}},
    {"answer": "9.96875", "metadata": {"source_dataset": "decimal_arithmetic", "decimal_places": 5}},
]  # fmt: skip


def piecewise(draw: random.Random, most: int) -> str:
    """Pieces in a row, now and then one of them many times."""
    pieces = [draw.choice(PIECES) for _ in range(draw.randint(1, most))]
    if draw.random() < 0.1:
        at = draw.randrange(len(pieces))
        pieces[at] *= draw.choice([3, 30, 300])
    return "".join(pieces)


def completion(draw: random.Random, reference: str) -> str:
    """An answer: pieces, a changed reference, or a reference among pieces; bare, boxed, tagged, or in a sentence."""
    kind = draw.random()
    if kind < 0.4:
        text = piecewise(draw, 14)
    elif kind < 0.7:
        start, end = sorted((draw.randint(0, len(reference)), draw.randint(0, len(reference))))
        text = reference[:start] + draw.choice([piecewise(draw, 2), "", reference[start:end] * 2]) + reference[end:]
    else:
        text = draw.choice([reference + piecewise(draw, 4), piecewise(draw, 4) + reference])
    wrap = draw.choice(
        ["%s", "\\boxed{%s}", "\\boxed{%s}", "Answer: %s", "<answer>%s</answer>", "$%s$", '{"answer": "%s"}', "So %s."]
    )
    return wrap.replace("%s", text)


def case(name: str, seed: int, number: int) -> tuple[str, str]:
    """Completion and reference of one case: the same for the same seed and number."""
    draw = random.Random(f"{name}-{seed}-{number}")
    if name == "reasoning_gym":
        entry = {"question": "?", **draw.choice(ENTRIES)}
        return completion(draw, str(entry["answer"])), json.dumps(entry)
    known = REFERENCES[name]
    reference = piecewise(draw, 6) if name == "math" and draw.random() < 0.15 else draw.choice(known)
    return completion(draw, reference), reference


def descendants() -> dict[int, int]:
    """Process ids below this process, each with its memory in megabytes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: dict[int, int] = {}
    queue = [os.getpid()]
    while queue:
        parent = queue.pop()
        for child in [pid for pid, above in parents.items() if above == parent]:
            queue.append(child)
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except OSError:
                continue
            resident = [int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS")]
            if resident:
                found[child] = resident[0]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--growth", type=int, default=300, help="megabytes a worker may grow by")
    arguments = parser.parse_args()
    shares = {"math": 0.7, "choice": 0.1, "exact": 0.05, "reasoning_gym": 0.15}
    bad: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    before = set(descendants())
    begun = time.monotonic()
    for name, share in shares.items():
        count = max(1, round(share * arguments.cases))
        slowest, largest, smallest = 0.0, 0, 1 << 30
        with get_verifier(name, workers=arguments.workers, timeout=arguments.timeout) as verifier:
            verifier.warm_up()
            for first in range(0, count, 500):
                cases = [case(name, arguments.seed, n) for n in range(first, min(count, first + 500))]
                start = time.monotonic()
                verdicts = verifier.verify_many([given for given, _ in cases], [reference for _, reference in cases])
                slowest = max(slowest, time.monotonic() - start)
                memory = [size for pid, size in descendants().items() if pid not in before]
                largest, smallest = max([largest, *memory]), min([smallest, *memory])
                doubtful = [index for index, verdict in enumerate(verdicts) if verdict.outcome is Outcome.UNDECIDED]
                for index, verdict in enumerate(verdicts):
                    outcomes[f"{name} {verdict.outcome}"] += 1
                    reason = verdict.reason or ""
                    if reason.startswith("verifier error") or "died" in reason:
                        bad["crashed"] += 1
                        print(f"crashed: {name} {first + index}: {cases[index]!a}: {reason}")
                for index in doubtful:
                    reason = verdicts[index].reason or ""
                    if verifier.readable(cases[index][1]):
                        bad["undecided"] += 1
                        print(f"undecided: {name} {first + index}: {cases[index]!a}: {reason}")
                    elif reason in {"timeout", "out of memory"}:
                        bad["slow reference"] += 1
                        print(f"slow reference: {name} {first + index}: {cases[index]!a}")
        print(
            f"{name}: {count} cases, slowest batch of 500 {slowest:.1f} s, workers {smallest} to {largest} MB",
            flush=True,
        )
        if largest - smallest > arguments.growth:
            bad["memory"] += 1
    time.sleep(0.5)
    left = set(descendants()) - before
    bad["left behind"] += len(left)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    print(
        f"{arguments.cases} cases in {time.monotonic() - begun:.0f} s; "
        + (", ".join(f"{n} {k}" for k, n in bad.items()))
    )
    return 1 if any(bad.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
