"""What lies in the folder of a run, an evaluation or a build: the names, the reader, the writer. No torch.

    run.json               every setting, versions, what became of the data
    trainer_state.json     transformers' log
    ledger.json            what each bank item was worth
    supports.jsonl         histograms of the supports
    traces.jsonl           rollouts with their teachers, token by token
    maintenance.jsonl      what each check did to the bank
    guard.json             the collapse that the guard saw
    bank-start.json, bank.json     the bank before and after
    doctor.json            what sgsd doctor found
    checkpoint-N/sgsd/     what a checkpoint holds beyond TRL's
    evaluations/NAME/      settings.json, samples.jsonl, summary.json of an evaluation
    certificate.json       what became of a document taken into weights; certificate.html shows it

A build's folder has ``bank.json`` too, beside what ``bank.build`` names.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sgsd.errors import DataError
from sgsd.validation import parse_json

RUN = "run.json"
STATE = "trainer_state.json"
LEDGER = "ledger.json"
SUPPORTS = "supports.jsonl"
TRACES = "traces.jsonl"
MAINTENANCE = "maintenance.jsonl"
GUARD = "guard.json"
BANK_START = "bank-start.json"
BANK = "bank.json"
DOCTOR = "doctor.json"
PARTS = "sgsd"  # in a checkpoint
EVALUATIONS = "evaluations"
SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
CERTIFICATE = "certificate.json"


def write_text(file: Path, text: str | Iterable[str]) -> None:
    """``write_bytes`` of a text, which may come in parts."""
    write_bytes(file, (part.encode() for part in ([text] if isinstance(text, str) else text)))


def write_bytes(file: Path, parts: Iterable[bytes]) -> None:
    """Write a whole file at once: readers see the old one or the new one, and a crash leaves no part.

    Missing folders are made. A link to a file is replaced, not followed.

    Raises:
        OSError: it cannot be written, or what is there is no plain file but a folder or a device, such as /dev/null;
            nothing is changed, and nothing left behind, as where ``parts`` raise.
    """
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{secrets.token_hex(8)}.part")  # of a name that nobody can lie in wait at
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as out:
            out.writelines(parts)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_json(file: Path, document: Any) -> None:
    """``write_text`` of a JSON document, as people read it; what JSON has no word for becomes text."""
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError("file cannot be read", got=f"{file} ({error.strerror})") from error
    return parse_json(text, str(file), finite=False)


def read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, JSON object) of each line of a file; a last one that is still being written is passed over.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    where = f"{file}:{number}"
                    yield where, parse_json(line, where, finite=False)
    except OSError as error:
        raise DataError("file cannot be read", got=f"{file} ({error.strerror})") from error
