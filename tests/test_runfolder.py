"""One reader and one writer for the files of a run."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from sgsd import runfolder
from sgsd.errors import DataError

SOURCE = Path(runfolder.__file__).parent


def test_a_file_is_written_whole_in_a_folder_that_is_made(tmp_path):
    file = tmp_path / "a" / "b.json"
    runfolder.write_json(file, {"ü": 1})
    assert file.read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'
    runfolder.write_text(file, "new")
    assert file.read_text() == "new"
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        runfolder.write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    link = tmp_path / "bank.json"
    link.symlink_to(elsewhere)
    runfolder.write_text(link, "ours")
    assert elsewhere.read_text() == "theirs"
    assert not link.is_symlink()
    assert link.read_text() == "ours"


def test_links_laid_where_a_part_might_be_written_are_never_used(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    for name in (
        ".bank.json.part",
        f".bank.json.{os.getpid()}.part",
        ".bank.json",
        ".bank.json.next",
        "bank.log.jsonl",
    ):
        (tmp_path / name).symlink_to(elsewhere)
    runfolder.write_text(tmp_path / "bank.json", "ours")
    assert elsewhere.read_text() == "theirs"


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_what_cannot_be_written_changes_nothing_and_leaves_nothing(tmp_path, monkeypatch, fails):
    file = tmp_path / "file"
    file.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync" if fails == "write" else "replace", full)
    with pytest.raises(OSError, match="No space"):
        runfolder.write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"{", "malformed JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "wrong type: got list; expected a JSON object"),
        (b"[" * 200_000, "malformed JSON"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path, content, fragment):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=fragment) as refused:
        runfolder.read_json(file)
    assert "run.json" in str(refused.value)


def test_lines_are_read_but_for_one_that_is_still_being_written(tmp_path):
    file = tmp_path / "traces.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        list(runfolder.read_lines(file))
    file.write_bytes('{"a": "\u2028"}\n{"a": 2}\n{"a": '.encode())
    assert [line for _, line in runfolder.read_lines(file)] == [{"a": "\u2028"}, {"a": 2}]
    for broken in (b"{}\n[]\n", b"{}\n{\n", b"{}\n" + b"[" * 200_000 + b"\n"):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=r"traces\.jsonl:2"):
            list(runfolder.read_lines(file))


def test_names_of_a_run_are_spelt_here_and_nowhere_else():
    constants = [value for name, value in vars(runfolder).items() if name.isupper()]
    names = {value for value in constants if isinstance(value, str) and "." in value}
    assert "run.json" in names
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name == "runfolder.py":
            continue
        spelt = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)} & names
        assert spelt <= SHARED.get(file.relative_to(SOURCE).as_posix(), set()), file


SHARED = {"bank/build.py": {"bank.json"}}  # a build names its own


def test_nothing_else_replaces_files():
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name != "runfolder.py":
            assert "os.replace(" not in file.read_text(), file


def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError, match="not a plain file"):
            runfolder.write_text(tmp_path / name, "x")
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
