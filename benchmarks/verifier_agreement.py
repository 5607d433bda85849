"""How far the verifiers agree with verdicts that are known: ``python benchmarks/verifier_agreement.py FILE [FILE …]``.

Files are JSON lines. Rows with ``gold``, ``pred``, ``equal`` (and ``kind``: a bare ``answer`` or a whole
``completion``) are judged as they stand, ``verify(pred, gold)``. With ``--boxed``, bare answers that have no box of
their own are put in one first. Rows with ``answer``, ``response``, ``correct``: ``verify(response, answer)``. A row's
``verifier`` judges it, else ``--verifier``; ``--kind`` and ``--sure`` leave rows out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from sgsd.verifiers import Outcome, get_verifier


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
    parser.add_argument("--kind", choices=("answer", "completion"), help="only rows of this kind")
    parser.add_argument("--sure", action="store_true", help="without rows marked doubtful")
    parser.add_argument("--quiet", action="store_true", help="print no disagreements")
    arguments = parser.parse_args()
    for file in arguments.files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if arguments.kind in (None, row.get("kind"))]
        rows = [row for row in rows if not (arguments.sure and row.get("doubtful"))]
        agreed, seconds = 0, 0.0
        for name in dict.fromkeys(row.get("verifier", arguments.verifier) for row in rows):
            own = [row for row in rows if row.get("verifier", arguments.verifier) == name]
            cases = [read_row(row, boxed=arguments.boxed) for row in own]
            with get_verifier(name) as verifier:
                verifier.warm_up()
                start = time.perf_counter()
                verdicts = verifier.verify_many([case[0] for case in cases], [case[1] for case in cases])
                seconds += time.perf_counter() - start
            for row, (completion, answer, expected), verdict in zip(own, cases, verdicts, strict=True):
                if (verdict.outcome is Outcome.CORRECT) == expected:
                    agreed += 1
                elif not arguments.quiet:
                    print(f"{row.get('id')}: expected {'correct' if expected else 'not correct'}, got {verdict}")
                    print(f"    reference {answer[-120:]!r}\n    completion {completion[-120:]!r}")
        share = 100 * agreed / max(1, len(rows))
        print(f"{file.name}: {agreed} of {len(rows)} agree ({share:.2f} %), {len(rows) / seconds:.0f} a second")


if __name__ == "__main__":
    main()
