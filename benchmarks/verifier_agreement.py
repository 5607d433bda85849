"""Agreement of the verifiers with known verdicts: ``python benchmarks/verifier_agreement.py FILE [FILE …]``.

Files are JSON lines. Rows with ``gold``, ``pred``, ``equal`` (and ``kind``: a bare ``answer`` or a whole
``completion``) are judged as they stand, ``verify(pred, gold)``. With ``--boxed``, bare answers that have no box of
their own are put in one first. Rows with ``answer``, ``response``, ``correct``: ``verify(response, answer)``. A row's
own ``verifier`` is used where it names one. Rows marked ``doubtful`` are counted apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from sgsd.verifiers import Outcome, Verdict, get_verifier


def read_row(row: dict[str, Any], *, boxed: bool) -> tuple[str, str, bool]:
    """Completion, reference and known verdict of a row."""
    if "response" in row:
        return row["response"], row["answer"], bool(row["correct"])
    given = row["pred"]
    if boxed and row.get("kind") == "answer" and "boxed" not in given and len(given) < 150:
        given = f"\\boxed{{{given}}}"
    return given, row["gold"], bool(row["equal"])


def judge(rows: list[dict[str, Any]], cases: list[tuple[str, str, bool]], default: str) -> tuple[list[Verdict], float]:
    """A verdict for each row by the row's own verifier, and the seconds it took, warm, on one worker."""
    names = [row.get("verifier") or default for row in rows]
    verdicts: list[Verdict] = [Verdict(Outcome.UNDECIDED)] * len(rows)
    seconds = 0.0
    for name in sorted(set(names)):
        chosen = [index for index, own in enumerate(names) if own == name]
        with get_verifier(name, workers=1) as verifier:
            verifier.warm_up()
            start = time.perf_counter()
            judged = verifier.verify_many([cases[i][0] for i in chosen], [cases[i][1] for i in chosen])
            seconds += time.perf_counter() - start
        for index, verdict in zip(chosen, judged, strict=True):
            verdicts[index] = verdict
    return verdicts, seconds


def share(agreed: list[bool]) -> str:
    """``195 of 200, 97.50 %``."""
    return f"{sum(agreed)} of {len(agreed)}, {100 * sum(agreed) / max(1, len(agreed)):.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--verifier", default="math", help="the verifier of rows that name none")
    parser.add_argument("--boxed", action="store_true", help="put bare answers in a box")
    parser.add_argument("--quiet", action="store_true", help="print no disagreements")
    arguments = parser.parse_args()
    kinds: dict[str, list[bool]] = defaultdict(list)
    groups: dict[str, dict[str, list[bool]]] = {"source": defaultdict(list), "format": defaultdict(list)}
    wrong: dict[str, int] = defaultdict(int)
    for file in arguments.files:
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        cases = [read_row(row, boxed=arguments.boxed) for row in rows]
        verdicts, seconds = judge(rows, cases, arguments.verifier)
        sure: list[bool] = []
        for row, (completion, answer, expected), verdict in zip(rows, cases, verdicts, strict=True):
            agreed = (verdict.outcome is Outcome.CORRECT) == expected
            doubtful = bool(row.get("doubtful"))
            if not agreed and not arguments.quiet:
                print(f"{row.get('id')}: expected {'correct' if expected else 'not correct'}, got {verdict}")
                print(f"    reference {answer[-120:]!r}\n    completion {completion[-120:]!r}")
                print(f"    {'doubtful; ' if doubtful else ''}{row.get('note', '')} [{row.get('source', '')}]")
            if doubtful:
                kinds["doubtful"].append(agreed)
                continue
            sure.append(agreed)
            kinds["responses" if "response" in row else "cases"].append(agreed)
            wrong["called correct, and is not"] += not agreed and not expected
            wrong["not called correct, and is"] += not agreed and expected
            wrong["undecided"] += verdict.outcome is Outcome.UNDECIDED
            groups["source"][row.get("source", "unknown").split("@")[0].split(" ")[0]].append(agreed)
            groups["format"][row.get("answer_format", row.get("kind", "unknown"))].append(agreed)
        print(f"{file.name}: {share(sure)} agree, {1000 * seconds / len(rows):.2f} ms a row on one worker")
    for name, agreed in kinds.items():
        print(f"all {name}: {share(agreed)}")
    print(", ".join(f"{count} {name}" for name, count in wrong.items()))
    for group, members in groups.items():
        print(f"by {group}:")
        for name, agreed in sorted(members.items(), key=lambda member: sum(member[1]) / len(member[1])):
            print(f"    {name}: {share(agreed)}")


if __name__ == "__main__":
    main()
