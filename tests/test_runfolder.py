"""One reader and one writer for the files of a run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgsd import runfolder
from sgsd.errors import ConfigError, DataError

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


def test_what_is_appended_follows_no_link(tmp_path):
    runfolder.append_text(tmp_path / "traces.jsonl", "a\n")
    runfolder.append_text(tmp_path / "traces.jsonl", "é\ud800\n")
    assert (tmp_path / "traces.jsonl").read_text() == "a\né?\n"
    for target in ("elsewhere", "traces.jsonl"):  # one that is not there, too
        link = tmp_path / f"link-to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(OSError, match="symbolic links"):
            runfolder.append_text(link, "x")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [runfolder.read_json, lambda file: list(runfolder.read_lines(file))])
def test_what_never_ends_or_is_huge_is_not_read(tmp_path, monkeypatch, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(DataError, match="not a plain file"):
            read(tmp_path / name)
    monkeypatch.setattr(runfolder, "MOST_BYTES", 1000)
    (tmp_path / "large").write_text('{"a": "' + "x" * 1000 + '"}\n')
    with pytest.raises(DataError, match=r"too l(arge|ong)"):
        read(tmp_path / "large")


def test_one_process_writes_a_folder(tmp_path):
    folder = tmp_path / "a" / "run"
    other = (
        f"from pathlib import Path\nfrom sgsd import runfolder\nwith runfolder.one_writer(Path({str(folder)!r})): pass"
    )
    with runfolder.one_writer(folder):
        assert runfolder.is_unused(folder)
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert f"another process writes to this folder: got {folder}" in done.stderr
        assert [entry.name for entry in folder.iterdir()] == ["_writer"]  # the other one left it there
    assert not folder.exists()  # nothing was written
    with runfolder.one_writer(folder):
        runfolder.write_text(folder / "run.json", "{}")
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]
    assert not runfolder.is_unused(folder)


def test_a_folder_that_was_there_stays_and_a_link_in_the_place_of_the_mark_is_not_followed(tmp_path):
    with runfolder.one_writer(tmp_path):
        pass
    assert tmp_path.exists()
    (tmp_path / "_writer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be written"), runfolder.one_writer(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ConfigError, match="cannot be written"), runfolder.one_writer(tmp_path / ("n" * 300)):
        pass


RUN = {"settings": {"method": "sgsd", "seed": 1, "zeta": 1, "bank": None}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"settings": None}, "settings"),
        ({"settings": {"seed": "x"}}, "settings.seed"),
        ({"settings": {"bank": [1]}}, "settings.bank"),
        ({"settings": {"verifier_options": 3}}, "settings.verifier_options"),
        ({"versions": []}, "versions"),
        ({"resumed": 3}, "resumed"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_file(tmp_path, change, field):
    file = tmp_path / "run.json"
    runfolder.write_json(file, RUN)
    assert list(runfolder.read_json(file, runfolder.RUN_RECORD)["settings"]) == list(RUN["settings"])  # in their order
    runfolder.write_json(file, RUN | change)
    with pytest.raises(DataError, match=rf"run\.json: {field}: cannot be used"):
        runfolder.read_json(file, runfolder.RUN_RECORD)


def test_names_of_a_run_are_spelt_here_and_nowhere_else():
    constants = [value for name, value in vars(runfolder).items() if name.isupper()]
    names = {value for value in constants if isinstance(value, str) and "." in value}
    assert "run.json" in names
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name == "runfolder.py":
            continue
        spelt = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)} & names
        assert spelt <= SHARED.get(file.relative_to(SOURCE).as_posix(), set()), file


SHARED = {
    "bank/build.py": {"bank.json"},  # a build names its own
    "report/certificate.py": {"certificate.html"},  # of its template
}


def test_nothing_else_replaces_files_or_follows_links():
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name != "runfolder.py":
            assert "os.replace(" not in file.read_text(), file
            assert not re.search(r"(?<!__file__\))\.resolve\(", file.read_text()), file  # fails at a link to itself


def test_a_folder_with_a_pipe_or_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with runfolder.one_writer(tmp_path):
        pass
    os.mkfifo(tmp_path / "trainer_state.json")
    with (
        pytest.raises(ConfigError, match=r"a pipe or a device: got .*trainer_state.json"),
        runfolder.one_writer(tmp_path),
    ):
        pass
    for place in ("loop", "loop/x"):
        with pytest.raises(ConfigError, match=r"is not a folder: .*loop is a broken link"):
            runfolder.refuse_unwritable(tmp_path / place, "--output")


def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError, match="not a plain file"):
            runfolder.write_text(tmp_path / name, "x")
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
