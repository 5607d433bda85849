"""The command line as a process of its own: quick to answer, and without a framework on the way."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

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
