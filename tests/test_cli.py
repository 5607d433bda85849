"""The command line as a process of its own: quick to answer, and without a framework on the way."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sgsd.cli import main
from sgsd.cli.parser import _without_debug

LONG = "n" * 300
FRAMEWORKS = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "numpy", "scipy")


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "sgsd.cli", *arguments]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)


def test_help_answers_within_a_second():
    seconds = []
    for _ in range(3):  # the machine may be busy: the best of three
        began = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert "sgsd" in done.stdout
    assert min(seconds) < 1


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["bank", "--help"], ["--version"], ["trian"]])
def test_no_framework_is_imported_to_answer(arguments):
    code = (
        f"import sys\nfrom sgsd.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('IMPORTED', [name for name in {FRAMEWORKS!r} if name in sys.modules])"
    )
    assert "IMPORTED []" in run(code=code).stdout


def test_an_error_is_one_line_on_stderr_and_code_2(tmp_path):
    done = run("bank", "show", str(tmp_path / "gone.json"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sgsd: error: no such bank file: got ")


NET = (
    "import sys\nfrom sgsd.cli import main, parser\n"
    "def fail(arguments):\n    raise {}\nparser._run = fail\nsys.exit(main({!r}))"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("KeyError('step')", "sgsd: error: unexpected KeyError at <string>:4: 'step'; --debug shows the traceback"),
        ("ValueError('a\\nb')", "sgsd: error: unexpected ValueError at <string>:4: a b; --debug shows the traceback"),
        ("RecursionError()", "sgsd: error: unexpected RecursionError at <string>:4: ; --debug shows the traceback"),
        ("MemoryError()", "sgsd: error: unexpected MemoryError at <string>:4: ; --debug shows the traceback"),
        ("OSError(28, 'No space left on device', 'x/y')", "sgsd: error: No space left on device: x/y"),
    ],
)
def test_whatever_is_missed_is_one_line_and_its_traceback_on_request(error, line):
    done = run(code=NET.format(error, ["report", "run"]))
    assert (done.returncode, done.stderr.splitlines()) == (1, [line])
    done = run(code=NET.format(error, ["report", "run", "--debug"]))
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1] == line


def test_an_interruption_is_one_line_and_its_own_code():
    done = run(code=NET.format("KeyboardInterrupt()", ["report", "run"]))
    assert (done.returncode, done.stderr) == (130, "sgsd: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "kept", "debug"),
    [
        ([], [], False),
        (["--debug", "train", "--seed", "1"], ["train", "--seed", "1"], True),
        (["train", "--debug"], ["train"], True),
        (["train", "--debug", "underflow_overflow"], ["train", "--debug", "underflow_overflow"], False),
    ],
)
def test_debug_is_the_command_lines_but_for_the_setting_of_transformers(arguments, kept, debug):
    assert _without_debug(arguments) == (kept, debug)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bank", "show", LONG], ["bank", "show", f"{LONG}.md"], ["compare", LONG], ["report", LONG],
        ["bank", "ledger", LONG], ["eval", LONG, "--dataset", LONG], ["eval", "--regrade", LONG],
        ["contamination", "--train", LONG, "--test", LONG], ["bank", "export", "seed:mental-arithmetic", LONG],
        ["train", "--config", LONG], ["train", "--dataset", LONG, "--bank", LONG, "--bf16", "false"],
        ["bank", "build", "--dataset", LONG, "--model_name_or_path", LONG, "--output", LONG],
    ],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].startswith("sgsd: error: ")
    assert "unexpected" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_command_is_answered_with_the_nearest():
    done = run("trian")
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr


def test_a_reader_that_stops_reading_is_no_error():
    code = (
        "import subprocess, sys\n"
        "command = ['-m', 'sgsd.cli', 'bank', 'show', 'seed:competition-mathematics', '--json']\n"
        "p = subprocess.Popen([sys.executable, *command],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.read(10); p.stdout.close(); print(p.stderr.read().decode(), end=''); p.wait()"
    )
    assert run(code=code).stdout == ""
