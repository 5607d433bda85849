"""A bank file's versions: nothing is lost, whoever writes and wherever a write is cut off."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank, history
from sgsd.errors import BankError

from .test_skills import BANKS

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ADD = Skill.new("Add the ones first.", title="Ones first", origin=Origin.SEED)
CARRY = Skill.new("Carry the ten.", title="Carry", origin=Origin.ONLINE, parents=("memory-1",))
SLIP = Mistake.new("Drops the carry.", title="Carry lost", avoid="Write it down.", origin=Origin.COLD_START)
FIRST = SkillBank((ADD,), (SLIP,), "tiny", {"b": 1, "a": [2.5, None]})
SECOND = FIRST.with_items([CARRY])
THIRD = SECOND.without([ADD.id])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bank.json"


def save(file: Path, bank: SkillBank, action: str = "merge") -> int:
    return history.save(file, bank, action=action, time=NOW)


def log_lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in history.log_file(file).read_text().splitlines()]


# ---- versions


def test_every_version_is_numbered_logged_and_found_again(file: Path) -> None:
    assert [save(file, bank) for bank in (FIRST, SECOND, THIRD)] == [1, 2, 3]
    found = history.read(file)
    assert [(v.version, v.action, v.time, v.removed) for v in found.versions] == [
        (1, "merge", "2026-01-02T03:04:05Z", ()),
        (2, "merge", "2026-01-02T03:04:05Z", ()),
        (3, "merge", "2026-01-02T03:04:05Z", (ADD.id,)),
    ]
    assert [v.added.items for v in found.versions] == [(ADD, SLIP), (CARRY,), ()]
    assert [(v.before, v.after) for v in found.versions] == [
        (None, FIRST.digest),
        (FIRST.digest, SECOND.digest),
        (SECOND.digest, THIRD.digest),
    ]
    assert [history.load(f"{file}@{n}") for n in (1, 2, 3)] == [FIRST, SECOND, THIRD]
    assert history.load(file) == THIRD


def test_what_is_the_last_version_already_makes_no_new_one(file: Path) -> None:
    save(file, FIRST)
    before = history.log_file(file).read_bytes()
    assert save(file, FIRST) == 1
    assert history.log_file(file).read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        SkillBank(FIRST.skills, FIRST.mistakes, "renamed", FIRST.metadata),
        SkillBank(FIRST.skills, FIRST.mistakes, "tiny", {"a": [2.5, None], "b": 1}),
        SkillBank(FIRST.skills, FIRST.mistakes, "tiny", {"b": 1.0, "a": [2.5, None]}),
        SkillBank((Skill(ADD.id, ADD.title, ADD.text, "Now", ADD.origin),), FIRST.mistakes, "tiny"),
        SkillBank((), (SLIP, Mistake(ADD.id, "", "A mistake under the skill's id.")), "tiny"),
        SkillBank((CARRY, ADD), (SLIP,), "tiny"),
    ],
    ids=[
        "name",
        "metadata order",
        "a number's type",
        "another item under an id",
        "another kind under an id",
        "new item in front",
    ],
)
def test_what_a_file_shows_is_kept_to_the_last_byte(file: Path, other: SkillBank) -> None:
    assert [save(file, FIRST), save(file, other)] == [1, 2]
    assert history.read(file).at(2).to_json() == other.to_json() == file.read_text()


@settings(deadline=None, max_examples=25)
@given(st.lists(BANKS, min_size=1, max_size=5))
def test_any_version_is_rebuilt_from_the_log_alone_and_saving_loading_saving_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, banks: list[SkillBank]
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    file, again = folder / "bank.json", folder / "again.json"
    written: dict[int, bytes] = {}
    for bank in banks:
        number = save(file, bank)
        written[number] = file.read_bytes()
    file.unlink()
    versions = history.read(file).banks
    assert [bank.to_json().encode() for bank in versions] == [written[n] for n in range(1, len(versions) + 1)]
    for bank in versions:
        save(again, bank)
        once = again.read_bytes()
        assert history.load(again).save(folder / "copy.json").read_bytes() == once == bank.to_json().encode()


def test_a_rollback_is_a_new_version_and_can_be_rolled_back(file: Path) -> None:
    for bank in (FIRST, SECOND, THIRD):
        save(file, bank)
    assert history.rollback(file, 1, time=NOW) == 4
    assert file.read_text() == FIRST.to_json()
    assert history.read(file).versions[3].message == "to version 1"
    assert history.rollback(file, 3, message="no, after all", time=NOW) == 5
    assert file.read_text() == THIRD.to_json()
    assert history.rollback(file, 3, time=NOW) == 5
    assert len(history.read(file).versions) == 5


def test_a_version_that_is_not_there_is_refused_with_those_that_are(file: Path) -> None:
    save(file, FIRST)
    for number in (0, 2):
        with pytest.raises(BankError, match=f"no such version.*@{number}; expected 1 to 1"):
            history.load(f"{file}@{number}")
    with pytest.raises(BankError, match=r"expected a bank with a log, other\.log\.jsonl"):
        history.load(f"{file.with_name('other.json')}@1")


def test_a_file_whose_very_name_ends_like_a_version_is_that_file(tmp_path: Path) -> None:
    FIRST.save(tmp_path / "bank@2")
    assert history.load(tmp_path / "bank@2") == FIRST
    assert history.split_version("seed:x@2") == ("seed:x@2", None)
    assert history.split_version("bank.json@x") == ("bank.json@x", None)


def test_times_are_utc_and_actions_one_word(file: Path) -> None:
    abroad = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    history.save(file, FIRST, action="merge", time=abroad)
    assert history.read(file).versions[0].time == "2026-01-02T03:04:05Z"
    for action, time in (("two words", NOW), ("merge", NOW.replace(tzinfo=None))):
        with pytest.raises(ValueError, match="must be a word"):
            history.save(file, FIRST, action=action, time=time)
    with pytest.raises(BankError, match=r"U\+0000"):
        history.save(file, FIRST, action="merge", message="a\0b", time=NOW)


def test_a_shipped_bank_is_loaded_and_never_written() -> None:
    assert history.load("seed:mental-arithmetic") == SkillBank.load("seed:mental-arithmetic")
    with pytest.raises(BankError, match="read-only and have no versions"):
        save(Path("seed:mental-arithmetic"), FIRST)


# ---- changed by another hand


def test_what_another_hand_changed_is_an_edit_at_the_next_write(file: Path) -> None:
    save(file, FIRST)
    file.write_text(json.dumps(json.loads(SECOND.to_json())))  # other spacing, too
    assert history.changed_outside(history.read(file))
    assert save(file, THIRD) == 3
    assert [version.action for version in history.read(file).versions] == ["merge", "edit", "merge"]
    assert [history.load(f"{file}@{n}") for n in (1, 2, 3)] == [FIRST, SECOND, THIRD]
    assert not history.changed_outside(history.read(file))


def test_spacing_alone_is_no_edit(file: Path) -> None:
    save(file, FIRST)
    file.write_text(json.dumps(json.loads(FIRST.to_json())))
    assert not history.changed_outside(history.read(file))
    assert save(file, SECOND) == 2


def test_an_edit_that_is_saved_as_it_is_stays_an_edit(file: Path) -> None:
    save(file, FIRST)
    SECOND.save(file)
    assert save(file, SECOND) == 2
    assert history.read(file).versions[1].action == "edit"


def test_a_file_without_a_log_is_the_first_version_before_it_is_replaced(file: Path) -> None:
    FIRST.save(file)
    assert save(file, SECOND) == 2
    assert [(v.action, v.message) for v in history.read(file).versions] == [("edit", "as found"), ("merge", "")]
    assert history.load(f"{file}@1") == FIRST


def test_a_file_without_a_log_that_is_the_new_content_already_has_one_version(file: Path) -> None:
    FIRST.save(file, format="common")
    assert save(file, SkillBank.load(file), "restore") == 1
    assert history.read(file).versions[0].action == "restore"
    assert file.read_text() == SkillBank.load(file).to_json()


def test_a_file_edited_into_something_else_is_not_written_over(file: Path) -> None:
    save(file, FIRST)
    document = json.loads(FIRST.to_json())
    document["mistakes"][0]["id"] = ADD.id
    file.write_text(json.dumps(document))
    before = file.read_bytes(), history.log_file(file).read_bytes()
    for write in (lambda: save(file, SECOND), lambda: history.rollback(file, 1, time=NOW)):
        with pytest.raises(BankError, match="an id cannot change its meaning"):
            write()
    assert (file.read_bytes(), history.log_file(file).read_bytes()) == before
    file.unlink()
    assert history.rollback(file, 1, time=NOW) == 2
    assert history.load(file) == FIRST


def test_what_is_no_bank_gets_no_log(file: Path) -> None:
    file.write_text("notes")
    with pytest.raises(BankError, match="malformed JSON"):
        save(file, FIRST)
    assert not history.log_file(file).exists()
    assert file.read_text() == "notes"


def test_a_link_to_a_bank_has_the_banks_log(file: Path, tmp_path: Path) -> None:
    save(file, FIRST)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.json"
    link.symlink_to(file)
    assert save(link, SECOND) == 2
    assert link.is_symlink()
    assert history.load(f"{link}@1") == FIRST
    assert file.read_text() == SECOND.to_json()


# ---- damage


def test_a_last_line_that_was_cut_off_is_dropped_with_a_notice(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(file, FIRST)
    save(file, SECOND)
    FIRST.save(file)
    log = history.log_file(file)
    log.write_bytes(log.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert len(history.read(file).versions) == 1
    assert "bank.log.jsonl: the last line was cut off and is dropped" in caplog.text
    assert log.read_bytes().endswith(b"\n")
    assert save(file, SECOND) == 2
    assert history.load(f"{file}@2") == SECOND


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[2]], r"line 2: a version is missing: got 3; expected 2"),
        (lambda lines: [lines[0], "{", lines[2]], r"line 2: malformed JSON"),
        (lambda lines: [lines[0], "[]", lines[2]], r"line 2: wrong type"),
        (lambda lines: [lines[0], lines[1].replace('"added"', '"aded"'), lines[2]], "line 2: unknown key: got 'aded'"),
        (lambda lines: [lines[0].replace('"merge"', "7"), *lines[1:]], "line 1: not a version of a bank"),
        (lambda lines: [lines[0], lines[1].replace("Carry the", "Keep the"), lines[2]], "line 2: another bank comes"),
        (lambda lines: [lines[0], lines[1].replace('"order": null', '"order": ["x"]'), lines[2]], "line 2: the order"),
        (lambda lines: [*lines[:2], lines[2].replace(ADD.id, "gone")], "line 3: no such item in the bank: got 'gone'"),
        (lambda lines: [lines[0].replace('"schema_version": 1', '"schema_version": 2'), *lines[1:]], "newer version"),
        (lambda lines: ["\ud8ff", *lines], "not UTF-8"),
    ],
)
def test_a_damaged_log_is_refused_in_one_line_that_says_where(
    file: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    for bank in (FIRST, SECOND, THIRD):
        save(file, bank)
    log = history.log_file(file)
    lines = change(log.read_text().splitlines())
    log.write_text("".join(line + "\n" for line in lines), errors="surrogatepass")
    damaged = log.read_bytes()
    with pytest.raises(BankError, match=message) as error:
        history.load(f"{file}@3")
    assert "\n" not in str(error.value)
    with pytest.raises(BankError, match=message):
        save(file, FIRST)
    assert log.read_bytes() == damaged
    assert history.load(file) == THIRD  # to read the bank itself takes no log
    assert file.read_text() == THIRD.to_json()


@pytest.mark.parametrize("broken", ["fsync", "pwrite", "open"])
def test_a_full_disk_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    save(file, FIRST)
    before = file.read_bytes(), history.log_file(file).read_bytes()
    if broken == "open":
        history._next_file(file).mkdir()
    else:
        monkeypatch.setattr(os, broken, _fails_when_full(getattr(os, broken)))
    with pytest.raises(BankError, match="cannot be written") as error:
        save(file, SECOND)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    if broken == "open":
        history._next_file(file).rmdir()
    assert (file.read_bytes(), history.log_file(file).read_bytes()) == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["bank.json", "bank.log.jsonl"]
    assert save(file, SECOND) == 2


def _fails_when_full(function: Callable[..., object]) -> Callable[..., object]:
    def fails(descriptor: int, *arguments: Any) -> object:
        if arguments:  # a part of it gets through
            content, size = arguments
            function(descriptor, content[: len(content) // 2], size)
        raise OSError(28, "No space left on device")

    return fails


# ---- crashes and other processes


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it, and nothing is cleaned up."""


def crash_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """The ``number``-th operation on the disk, from 0, is cut off: half a write, or none of a rename."""
    done = 0

    def counted(function: Callable[..., object], cut: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object) -> object:
            nonlocal done
            done += 1
            if done > number:
                cut(*arguments)
                raise Crash
            return function(*arguments)

        return operation

    pwrite, fsync, replace = os.pwrite, os.fsync, os.replace
    patch.setattr(os, "pwrite", counted(pwrite, lambda fd, text, at: pwrite(fd, text[: len(text) // 2], at)))
    patch.setattr(os, "fsync", counted(fsync, lambda fd: None))
    patch.setattr(os, "replace", counted(replace, lambda *_: None))


def edited(file: Path) -> None:
    save(file, FIRST)
    file.write_text(json.dumps(json.loads(SECOND.to_json())))


STARTS: dict[str, Callable[[Path], object]] = {
    "no file": lambda file: None,
    "a file without a log": lambda file: SECOND.save(file),
    "a version": lambda file: save(file, SECOND),
    "an edited file": edited,
}


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("torn", [False, True], ids=["file whole", "file torn"])
def test_after_a_crash_at_any_step_the_old_state_is_there_or_the_new_one(
    file: Path, start: str, number: int, torn: bool
) -> None:
    STARTS[start](file)
    old = SkillBank.load(file) if file.exists() else None
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, number)
        if number < 5:
            with pytest.raises(Crash):
                save(file, THIRD)
        else:
            save(file, THIRD)
    waiting = history._next_file(file)
    if torn and number == 0:
        waiting.write_bytes(waiting.read_bytes()[:-30])
    now = None
    with suppress(BankError):  # no such file, where there was none
        now = history.load(file)
    found = history.read(file)
    assert now in (old, THIRD)
    assert now == THIRD or number < 3
    if now == THIRD:
        assert found.last == THIRD
    else:
        assert all(bank != THIRD for bank in found.banks)
        # Half of two lines may be the edit whole.
        assert found.last in (None, FIRST, old)
    assert not waiting.exists()
    # It goes on as if nothing had been.
    save(file, THIRD)
    assert history.load(file) == history.read(file).last == THIRD
    assert old is None or old in history.read(file).banks


def test_what_another_hand_wrote_after_a_crash_is_not_written_over(file: Path) -> None:
    save(file, FIRST)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, 3)  # the line is there, the file is not yet
        with pytest.raises(Crash):
            save(file, SECOND)
    assert history._next_file(file).exists()
    THIRD.save(file)
    assert history.load(file) == THIRD
    assert not history._next_file(file).exists()
    assert save(file, FIRST) == 4
    assert [version.action for version in history.read(file).versions] == ["merge", "merge", "edit", "merge"]
    assert history.read(file).banks == (FIRST, SECOND, THIRD, FIRST)


def test_what_another_hand_broke_after_a_crash_is_left_as_it_is(file: Path) -> None:
    save(file, FIRST)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, 3)
        with pytest.raises(Crash):
            save(file, SECOND)
    file.write_text("{")
    assert history.read(file).last == SECOND
    assert file.read_text() == "{"
    with pytest.raises(BankError, match="malformed JSON"):
        history.load(file)
    file.unlink()
    assert history.rollback(file, 2, time=NOW) == 3
    assert history.load(file) == SECOND


def test_a_log_that_cannot_be_opened_is_refused(file: Path) -> None:
    FIRST.save(file)
    history.log_file(file).mkdir()
    with pytest.raises(BankError, match=r"log cannot be opened.*Is a directory"):
        save(file, SECOND)
    assert SkillBank.load(file) == FIRST


WRITER = """
import sys
from datetime import datetime, UTC
from sgsd.bank import Origin, Skill, SkillBank, history
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    bank = SkillBank((Skill.new(f"{sys.argv[2]} {n}", origin=Origin.ONLINE),))
    history.save(sys.argv[1], bank, action="online", message=f"{sys.argv[2]} {n}", time=datetime.now(UTC))
    print(n, flush=True)
"""


def writer(file: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_that_save_at_once_are_both_in_the_log(file: Path) -> None:
    with writer(file, "one", 25) as one, writer(file, "two", 25) as two:
        begin(one, two)
        one.communicate()
        two.communicate()
    assert (one.returncode, two.returncode) == (0, 0)
    found = history.read(file)
    messages = [version.message for version in found.versions]
    assert sorted(messages) == sorted(f"{name} {n}" for name in ("one", "two") for n in range(25))
    assert found.last == SkillBank.load(file)
    assert [bank.skills[0].text for bank in found.banks] == messages


def test_a_killed_writer_leaves_a_whole_version(file: Path) -> None:
    for kills in range(3):
        with writer(file, f"life {kills}", 100_000) as process:
            begin(process)
            assert process.stdout is not None
            for _ in range(5 + 7 * kills):
                told = process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        last_told = int(rest[-1] if rest else told)
        found = history.read(file)
        assert not history._next_file(file).exists()
        assert found.last == SkillBank.load(file)
        # What was said to be saved is saved; at most the one at work is there beside it.
        mine = [version.message for version in found.versions if version.message.startswith(f"life {kills} ")]
        assert mine == [f"life {kills} {n}" for n in range(len(mine))]
        assert last_told + 1 <= len(mine) <= last_told + 2
