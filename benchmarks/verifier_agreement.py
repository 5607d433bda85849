"""How far a verifier agrees with verdicts that are known: ``python benchmarks/verifier_agreement.py FILE [FILE …]``.

Files are JSON lines. Rows with ``gold``, ``pred``, ``equal`` (and ``kind``: a bare ``answer`` or a whole
``completion``) are judged as they stand, ``verify(pred, gold)``. With ``--boxed``, bare answers that have no box of
their own are put in one first. Rows with ``answer``, ``response``, ``correct``: ``verify(response, answer)``. A row's
own ``verifier`` goes before ``--verifier``; rows marked ``doubtful`` are left out. The halves are by the row's place,
odd or even: rules that were designed on one half can be measured on the other.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from sgsd.verifiers import Outcome, Verdict, get_verifier

UNJUDGED = Verdict(Outcome.UNDECIDED)


def read_row(row: dict[str, str], *, boxed: bool) -> tuple[str, str, bool]:
    """Completion, reference and known verdict of a row."""
    if "response" in row:
        return row["response"], row["answer"], bool(row["correct"])
    given = row["pred"]
    if boxed and row.get("kind") == "answer" and "boxed" not in given and len(given) < 150:
        given = f"\\boxed{{{given}}}"
    return given, row["gold"], bool(row["equal"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--verifier", default="math")
    parser.add_argument("--boxed", action="store_true", help="put bare answers in a box")
    parser.add_argument("--quiet", action="store_true", help="print no disagreements")
    arguments = parser.parse_args()
    for file in arguments.files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if not row.get("doubtful")]
        cases = [read_row(row, boxed=arguments.boxed) for row in rows]
        kinds = [row.get("verifier", arguments.verifier) for row in rows]
        verdicts: list[Verdict] = [UNJUDGED] * len(rows)
        seconds = 0.0
        for kind in sorted(set(kinds)):
            chosen = [place for place, name in enumerate(kinds) if name == kind]
            with get_verifier(kind) as verifier:
                verifier.warm_up()
                start = time.perf_counter()
                judged = verifier.verify_many([cases[n][0] for n in chosen], [cases[n][1] for n in chosen])
                seconds += time.perf_counter() - start
            for place, verdict in zip(chosen, judged, strict=True):
                verdicts[place] = verdict
        agreed = [
            (verdict.outcome is Outcome.CORRECT) == expected
            for (_, _, expected), verdict in zip(cases, verdicts, strict=True)
        ]
        for row, (completion, answer, expected), verdict, agrees in zip(rows, cases, verdicts, agreed, strict=True):
            if not agrees and not arguments.quiet:
                print(f"{row.get('id')}: expected {'correct' if expected else 'not correct'}, got {verdict}")
                print(f"    reference {answer[-120:]!r}\n    completion {completion[-120:]!r}")
        halves = " and ".join(f"{100 * sum(half) / max(1, len(half)):.1f}" for half in (agreed[::2], agreed[1::2]))
        share = 100 * sum(agreed) / max(1, len(rows))
        print(
            f"{file.name}: {sum(agreed)} of {len(rows)} agree ({share:.2f} %; halves {halves} %),"
            f" {1000 * seconds / max(1, len(rows)):.2f} ms each"
        )


if __name__ == "__main__":
    main()
