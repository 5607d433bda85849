"""How often a reference with one character changed is called correct.

``python benchmarks/verifier_mutations.py FILE …``

Files are JSON lines with ``answer`` or ``gold``. Of the distinct references that the verifier can read, those that are
no plain integers come first. In each, one digit, one sign and one letter are changed, as far as it has them, and the
mutant is put in a box. All mutants called correct are listed: whether one is truly equal is for a reader to say.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sgsd.verifiers import Outcome, get_verifier

# Letters of commands, environments and units stay: a changed command is no near miss.
_KEPT = re.compile(r"\\(?:begin|end|text\w*|mathrm|mbox|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORDS = re.compile(r"\\text|[A-Za-z]{3}")


def references(files: list[Path], limit: int) -> list[str]:
    """Distinct references, short enough to be an answer."""
    found: dict[str, None] = {}
    for file in files:
        for line in file.open(encoding="utf-8"):
            row = json.loads(line)
            answer = row.get("answer", row.get("gold"))
            if isinstance(answer, str):
                answer = answer.rpartition("####")[2].strip().removeprefix("$").removesuffix("$").strip()
                if 0 < len(answer) <= 120 and "boxed" not in answer and "\n" not in answer:
                    found.setdefault(answer)
    return sorted(found, key=lambda text: re.fullmatch(r"-?\d+", text) is not None)[:limit]


def mutants(text: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(kind of change, changed text), at most one of each kind."""
    kept = [match.span() for match in _KEPT.finditer(text)]
    free = [i for i in range(len(text)) if not any(start <= i < end for start, end in kept)]
    digits = [i for i in free if text[i] in string.digits]
    letters = [i for i in free if text[i] in string.ascii_letters]
    signs = [i for i in free if text[i] in "+-"]
    if digits:
        place = draw.choice(digits)
        yield "digit", text[:place] + draw.choice(string.digits.replace(text[place], "")) + text[place + 1 :]
    if signs:
        place = draw.choice(signs)
        yield "sign", text[:place] + ("-" if text[place] == "+" else "+") + text[place + 1 :]
    elif digits or (letters and not _WORDS.search(text)):  # a dash before words is a bullet
        yield "sign", "-" + text
    if letters:
        place = draw.choice(letters)
        pool = string.ascii_lowercase if text[place].islower() else string.ascii_uppercase
        yield "letter", text[:place] + draw.choice(pool.replace(text[place], "")) + text[place + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--references", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with get_verifier("math") as verifier:
        known = references(arguments.files, 2 * arguments.references)
        own = verifier.verify_many([rf"\boxed{{{text}}}" for text in known], known)
        readable = [text for text, verdict in zip(known, own, strict=True) if verdict.outcome is Outcome.CORRECT]
        chosen = readable[: arguments.references]
        print(f"{len(known)} references, {len(readable)} equal themselves, {len(chosen)} taken")
        for text, verdict in zip(known, own, strict=True):
            if verdict.outcome is not Outcome.CORRECT:
                print(f"    not itself: {text!r}: {verdict.outcome} {verdict.reason}")
        cases = [(text, kind, mutant) for text in chosen for kind, mutant in mutants(text, draw)]
        verdicts = verifier.verify_many([rf"\boxed{{{mutant}}}" for *_, mutant in cases], [case[0] for case in cases])
    made = Counter(kind for _, kind, _ in cases)
    passed = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome is Outcome.CORRECT]
    undecided = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome is Outcome.UNDECIDED]
    for text, kind, mutant in passed:
        print(f"{kind:6} {text!r} <- {mutant!r}")
    for text, kind, mutant in undecided:
        print(f"undecided: {kind:6} {text!r} <- {mutant!r}")
    print(f"{len(cases)} mutants ({', '.join(f'{count} {kind}' for kind, count in made.items())})")
    print(f"{len(passed)} called correct, {100 * len(passed) / max(1, len(cases)):.2f} %; {len(undecided)} undecided")


if __name__ == "__main__":
    main()
