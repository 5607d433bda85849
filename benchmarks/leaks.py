"""Misses and false alarms of the leak scan: python benchmarks/leaks.py --data FOLDER

FOLDER holds ``gsm8k_train.jsonl`` and ``math_sample.jsonl`` with ``problem``, ``answer`` and ``solution``. Texts are
the cases of ``tests/bank/leak_cases.jsonl``; the last line of every GSM8K solution, as it is (*worked*) and without
the calculation before an equals sign (*told*); the last sentence of MATH solutions, without the box; and the shipped
seed items. A miss is a text in which the answer of its own problem is not found; a false alarm, one in which another
problem's is found.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sgsd.bank import Origin, Skill, SkillBank, seed_banks
from sgsd.bank.leaks import LeakKind, scan
from sgsd.data.problems import Problem
from sgsd.memories import Memory, memory_of
from sgsd.verifiers import Outcome, Verdict

CASES = Path(__file__).parent.parent / "tests/bank/leak_cases.jsonl"
APART = 997
"""Lines between a text's own problem and the other problem."""


def memory(id: str, answer: str) -> Memory:
    problem = Problem(id, "What is asked?", answer)
    made = memory_of(problem, "done", Verdict(Outcome.CORRECT), truncated=False, source="made")
    assert made is not None
    return made


def alarms(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each (text, answer) is called a leak."""
    memories = [memory(f"p{place}", answer) for place, (_, answer) in enumerate(pairs)]
    items = [
        Skill(f"s{place}", "", text, "", Origin.COLD_START, (source.id,))
        for place, ((text, _), source) in enumerate(zip(pairs, memories, strict=True))
    ]
    leaks = scan(SkillBank(tuple(items)), memories=memories).leaks
    found = {leak.item for leak in leaks if leak.kind is LeakKind.ANSWER}
    return [item.id in found for item in items]


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().strip().split("\n")]


def texts(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(name, (text, answer of its problem))."""
    worked: list[tuple[str, str]] = []
    for row in rows(folder / "gsm8k_train.jsonl"):
        lines = re.sub(r"<<[^>]*>>|####.*", "", row["solution"]).strip().split("\n")
        worked.append((lines[-1], row["answer"]))
    yield "GSM8K, worked", worked
    told = [(re.sub(r"[-\d.,+*/x×$%() ]+=", " ", text), answer) for text, answer in worked]
    yield "GSM8K, told", [(text, answer) for text, answer in told if text.strip()]
    sentences: list[tuple[str, str]] = []
    for row in rows(folder / "math_sample.jsonl"):
        plain = row["solution"].replace("\\boxed", "")
        sentences.append((re.split(r"(?<=[.!?])\s", plain.strip())[-1], row["answer"]))
    yield "MATH", sentences


def show(name: str, own: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]], listed: int) -> None:
    missed = [pair for pair, found in zip(own, alarms(own), strict=True) if not found]
    false = [pair for pair, found in zip(other, alarms(other), strict=True) if found]
    print(
        f"{name:14} missed {len(missed):4} of {len(own):4} ({100 * len(missed) / max(1, len(own)):4.1f} %), "
        f"false alarms {len(false):4} of {len(other):5} ({100 * len(false) / max(1, len(other)):4.1f} %)"
    )
    for what, pairs in (("missed", missed), ("false", false)):
        for text, answer in pairs[:listed]:
            print(f"    {what}: {answer!r} {text[:160]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Misses and false alarms of the leak scan.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="how many misses and false alarms of each kind to print")
    options = parser.parse_args()
    cases = rows(CASES)
    planted, clean = (
        [(case["text"], case["answer"]) for case in cases if case["kind"] == kind and case["text"] and case["answer"]]
        for kind in ("leak", "clean")
    )
    show("cases", planted, clean, options.show)
    answers: list[str] = []
    for name, own in texts(options.data):
        answers += [answer for _, answer in own]
        others = [(text, own[(place + APART) % len(own)][1], answer) for place, (text, answer) in enumerate(own)]
        show(name, own, [(text, other) for text, other, answer in others if other != answer], options.show)
    advice = [item for name in seed_banks() for item in SkillBank.load(f"seed:{name}").items]
    pairs = [
        ("\n".join((item.title, item.text, item.note)), answers[(7 * place + APART * draw) % len(answers)])
        for place, item in enumerate(advice)
        for draw in range(200)
    ]
    show("seed items", [], pairs, options.show)


if __name__ == "__main__":
    main()
