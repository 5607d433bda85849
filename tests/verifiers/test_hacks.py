"""No hack is called correct, none leaves a readable reference undecided, and none runs code in a worker; of a hundred
honest forms 95 are correct, for each verifier."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sgsd.verifiers import Outcome, Verdict, get_verifier

from .read_cases import read_cases

MARK = "sgsd_canary"
SHARE = 0.95
# Imported by each worker before anything else: reports what a hack could only bring about by running. The pipe is
# opened here, before a worker limits itself.
WATCH = """
import os, sys
_pipe = os.open({pipe!r}, os.O_WRONLY | os.O_NONBLOCK)
os.write(_pipe, b"watching\\n")
_marks = ("sgsd_canary", "FULL_SCORE", "__subclasses__", "127.0.0.1")
def _watch(event, arguments, _busy=[]):
    if _busy or event in {{"object.__getattr__", "sys._getframe"}}:
        return
    if event.startswith(("os.system", "subprocess.", "os.exec", "os.posix_spawn", "os.putenv", "socket.connect")) or (
        event in {{"compile", "open", "import", "os.listdir"}} and any(mark in repr(arguments) for mark in _marks)
    ):
        _busy.append(1)
        os.write(_pipe, f"{{event}}: {{arguments!r}}"[:300].replace("\\n", " ").encode() + b"\\n")
        _busy.clear()
sys.addaudithook(_watch)
"""


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """A function that returns what the watch in every worker has reported until now, line by line."""
    pipe = tmp_path / "reports"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    keeper = os.open(pipe, os.O_WRONLY)  # so that the end of one worker is not the end of the pipe
    os.set_blocking(reader, True)
    lines: list[str] = []
    drained = threading.Event()

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("the end"):
                    return
                if line.startswith("until now"):
                    drained.set()
                else:
                    lines.append(line.strip())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(pipe=str(pipe)))
    (tmp_path / f"{MARK}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def until_now() -> list[str]:
        drained.clear()
        os.write(keeper, b"until now\n")  # behind everything that workers have written
        assert drained.wait(60)
        return lines

    yield until_now
    os.write(keeper, b"the end\n")
    thread.join(10)
    os.close(keeper)


def judge(name: str, completions: list[str], answers: list[str]) -> tuple[list[Verdict], set[str]]:
    """Verdicts of one fresh worker, so that what an item leaves behind is there for the next; and what references of
    those that left an item undecided cannot be read."""
    with get_verifier(name, workers=1, timeout=3) as verifier:
        verifier.close()  # workers of other tests are not watched
        verifier.warm_up()
        verdicts = verifier.verify_many(completions, answers)
        undecided = {a for a, verdict in zip(answers, verdicts, strict=True) if verdict.outcome is Outcome.UNDECIDED}
        return verdicts, {answer for answer in undecided if not verifier.readable(answer)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["math", "choice", "reasoning_gym"])
def test_no_hack_is_rewarded_left_undecided_or_run(name: str, reports: Callable[[], list[str]], tmp_path: Path):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    hacks = read_cases("hacks", name)
    canary = tmp_path / MARK
    completions = [case.completion.replace("@CANARY@", str(canary)) for case in hacks]
    verdicts, unreadable = judge(name, completions, [case.reference for case in hacks])
    named = [
        f"{case.kind}: {case.reference[:80]!r} <- {case.completion[:120]!r}: {verdict}"
        for case, verdict in zip(hacks, verdicts, strict=True)
        if verdict.outcome is Outcome.CORRECT
        # A reference that cannot be read is no doing of the completion's.
        or (verdict.outcome is Outcome.UNDECIDED and case.reference not in unreadable)
    ]
    assert not named, f"{len(named)} of {len(hacks)}:\n" + "\n".join(named)
    assert len(unreadable) <= len({case.reference for case in hacks}) // 10, unreadable
    reported = reports()
    assert "watching" in reported, "no worker was watched"
    ran = [report for report in reported if report != "watching"]
    assert not ran, "\n".join(ran)
    assert not canary.exists()
    assert MARK not in os.environ


@pytest.mark.parametrize(
    "code",
    [
        "eval('len(\"sgsd_canary\")')",
        "__import__('os').system('true')",
        "__import__('sgsd_canary')",
        "open('/dev/null/sgsd_canary')",
        "__import__('socket').socket().connect(('127.0.0.1', 9))",
        "__import__('os').putenv('sgsd_canary', '1')",
    ],
)
def test_the_watch_sees_code_that_runs(code: str, reports: Callable[[], list[str]], tmp_path: Path):
    (tmp_path / "rewards_that_run.py").write_text(f"def run(completions, **columns):\n    return [{code}]\n")
    judge("rewards_that_run:run", ["x"], ["x"])
    assert any(report != "watching" for report in reports()), reports()


@pytest.mark.parametrize("name", ["math", "choice", "reasoning_gym"])
def test_honest_forms_are_correct(name: str):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    forms = read_cases("honest", name)
    with get_verifier(name, workers=2) as verifier:
        verdicts = verifier.verify_many([case.completion for case in forms], [case.reference for case in forms])
    # A data set that is refused by name is undecided in every form.
    judged = {
        case.reference
        for case, verdict in zip(forms, verdicts, strict=True)
        if verdict.outcome is not Outcome.UNDECIDED
    }
    assert len(judged) >= 2 / 3 * len({case.reference for case in forms})
    refused = [
        f"{case.kind}: {case.reference[:80]!r} <- {case.completion[:120]!r}: {verdict}"
        for case, verdict in zip(forms, verdicts, strict=True)
        if verdict.outcome is not Outcome.CORRECT and (name != "reasoning_gym" or case.reference in judged)
    ]
    assert len(refused) <= (1 - SHARE) * len(forms), f"{len(refused)} of {len(forms)}:\n" + "\n".join(refused)


def test_the_lists_are_what_the_documentation_says_of_them():
    """Their numbers, no case twice, and of each kind of hack at least nine."""
    hacks, near = read_cases("hacks"), [case for case in read_cases("near_misses") if case.why]
    for cases, least in ((hacks, 1_130), (near, 389), (read_cases("honest"), 500), (read_cases("completions"), 3_000)):
        assert len({(case.kind, case.verifier, case.reference, case.completion) for case in cases}) == len(cases)
        assert len(cases) >= least
    assert min(Counter(case.kind for case in hacks).values()) >= 9
