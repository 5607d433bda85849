"""The worker processes: timeouts, deaths, threads, forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sgsd.errors import ConfigError
from sgsd.verifiers import Outcome, PooledVerifier, get_verifier
from sgsd.verifiers.worker import GRACE

REWARDS = """
import os, time

def hang(completions, **kwargs):
    while completions[0][0]["content"] == "hang":
        pass
    return [1.0 for _ in completions]

def die(completions, **kwargs):
    if completions[0][0]["content"] == "die":
        os._exit(3)
    return [1.0 for _ in completions]

def noisy(completions, answer):
    print("{not json}", flush=True)
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]

def fussy(completions, solution, **kwargs):
    values = {"none": None, "nan": float("nan"), "half": 0.5, "low": 0.49}
    if completions[0][0]["content"] == "raise":
        raise RuntimeError("no")
    return [values[c[0]["content"]] for c in completions]

def greedy(completions, **kwargs):
    return [float(len(bytearray(10**11)))]

slow_import = noisy

async def awaited(completions, answer, **kwargs):
    import asyncio
    await asyncio.sleep(0.01)
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]
"""

GRADER = """
import os
from sgsd.verifiers import Outcome, Verdict

def behave(text):
    while text == "hang":
        pass
    if text == "die":
        os._exit(3)
    if text == "eat":
        bytearray(10**11)
    if text == "raise":
        raise RuntimeError("no")

def make_grader():
    def grade(completion, answer):
        behave(completion)
        behave(answer)
        return Verdict(Outcome.CORRECT)
    return grade

def why_unreadable(answer):
    behave(answer)
"""


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rewards_for_tests.py").write_text(REWARDS)
    (tmp_path / "slow_rewards_for_tests.py").write_text("import time\ntime.sleep(2)\n" + REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    for workers in (1, 2):  # another test's workers look for modules elsewhere
        get_verifier("rewards_for_tests:noisy", workers=workers).close()
    return "rewards_for_tests"


@pytest.fixture
def graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grader of the package that fails in every way: ``sgsd.verifiers.grader_for_tests`` in the workers."""
    (tmp_path / "grader_for_tests.py").write_text(GRADER)
    (tmp_path / "sitecustomize.py").write_text(
        "import sgsd.verifiers\nsgsd.verifiers.__path__.append(" + repr(str(tmp_path)) + ")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def math():
    with get_verifier("math", workers=2, timeout=3) as verifier:
        verifier.warm_up()
        yield verifier


def outcomes(verifier: PooledVerifier, completions: list[str], answer: str = "5") -> list[str]:
    return [verdict.outcome.value for verdict in verifier.verify_many(completions, [answer] * len(completions))]


def test_verdicts_come_in_order(math: PooledVerifier):
    numbers = [str(n) for n in range(200)]
    verdicts = math.verify_many([rf"\boxed{{{n}}}" for n in numbers], numbers)
    assert all(verdict.outcome is Outcome.CORRECT for verdict in verdicts)
    assert [verdict.extracted for verdict in verdicts] == numbers


def test_a_batch_must_be_as_long_as_its_answers(math: PooledVerifier):
    with pytest.raises(ValueError, match=r"longer|shorter"):
        math.verify_many(["5"], [])
    assert math.verify_many([], []) == []


def test_a_tower_of_powers_is_incorrect_and_its_neighbours_are_judged():
    with get_verifier("math", workers=2, timeout=1) as verifier:
        tower = r"\boxed{9^{9^{9^{9}}}}"
        assert outcomes(verifier, [r"\boxed{2\pi}", tower, r"\boxed{\pi 2}", tower, r"\boxed{3\pi}"], r"2\pi") == [
            "correct",
            "incorrect",
            "correct",
            "incorrect",
            "incorrect",
        ]


def test_what_the_completion_causes_is_incorrect_and_the_reference_undecided(
    graders: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with get_verifier("math", workers=2, timeout=1, memory_gb=3.9) as verifier:
        monkeypatch.setattr(verifier, "_grader", json.dumps({"kind": "grader_for_tests"}))
        completions = ["hang", "die", "eat", "raise", "fine"]
        reasons = ["timeout", "worker died", "out of memory", "verifier error: RuntimeError: no", None]
        verdicts = verifier.verify_many(completions, ["5"] * 5)
        assert [verdict.outcome.sign for verdict in verdicts] == [-1, -1, -1, -1, 1]
        assert [verdict.reason for verdict in verdicts] == reasons
        verdicts = verifier.verify_many(completions[:4], ["hang", "die", "eat", "raise"])
        assert [verdict.outcome.sign for verdict in verdicts] == [0, 0, 0, 0]
        assert [verdict.reason for verdict in verdicts] == reasons[:4]
        said = [record.message for record in caplog.records]
        assert len(said) == 1  # twice judged, once said: a fault of the grader's own
        assert said[0].startswith("verifier math raised RuntimeError: no; the completion is incorrect")
        assert verifier.readable("6")
        assert [verifier.readable(answer) for answer in ("fine", "hang", "die", "eat", "raise")] == [True] + [False] * 4


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{10^{10^{10}}!}",
        "{" * 100_000,
        "\x00" * 1000,
        "\ud800\udfff",
        "(" * 50_000 + "5" + ")" * 50_000,
        "9" * 3_000_000,
        r"\boxed{" + "9" * 100_000 + "}",
        r"\frac{1}{" * 10_000,
        r"\boxed{" + r"\sqrt{" * 900 + "5" + "}" * 901,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_hostile_text_is_not_right_for_a_number(math: PooledVerifier, text: str):
    assert math.verify(text, "5").outcome is Outcome.INCORRECT
    assert math.verify(text, r"\frac{m}{n}").outcome in {Outcome.INCORRECT, Outcome.UNDECIDED}
    assert math.verify("5", text).outcome in {Outcome.INCORRECT, Outcome.UNDECIDED}
    assert math.verify(r"\boxed{5}", "5").outcome is Outcome.CORRECT


def test_references_that_can_be_read(math: PooledVerifier):
    assert math.readable("5")
    assert math.readable(r"\frac{m}{n}")
    assert math.readable("#### 5")
    assert math.readable("Mrs. Hilt")
    assert not math.readable("")
    assert not math.readable(r"\frac{1}{")
    assert not math.readable(r"x^")


def test_an_item_that_hangs_or_dies_harms_no_other(rewards: str):
    for name, word, reason in (("hang", "hang", "timeout"), ("die", "die", "worker died")):
        with get_verifier(f"{rewards}:{name}", workers=2, timeout=1) as verifier:
            verdicts = verifier.verify_many(["a", word, "b", word, "c"], ["5"] * 5)
        assert [verdict.outcome.sign for verdict in verdicts] == [1, 0, 1, 0, 1]  # whose doing it was is not known
        assert verdicts[1].reason == verdicts[3].reason == reason


def test_a_worker_that_dies_between_batches_is_replaced(rewards: str):
    with get_verifier(f"{rewards}:noisy", workers=1) as verifier:
        assert outcomes(verifier, ["5"]) == ["correct"]
        worker = verifier._pool._idle[0]
        worker.process.kill()
        worker.process.wait()
        assert outcomes(verifier, ["5", "6"]) == ["correct", "incorrect"]


def test_what_a_grader_prints_is_no_reply(rewards: str):
    with get_verifier(f"{rewards}.noisy", workers=1) as verifier:
        assert outcomes(verifier, ["5", "4"]) == ["correct", "incorrect"]


def test_memory_is_limited(rewards: str):
    with get_verifier(f"{rewards}:greedy", workers=1, memory_gb=2) as verifier:
        verdicts = verifier.verify_many(["a", "b"], ["5", "5"])
    assert [verdict.reason for verdict in verdicts] == ["out of memory", "out of memory"]


def test_rewards_that_are_none_or_nan_or_raise_are_undecided(rewards: str):
    with get_verifier(f"{rewards}:fussy", workers=1) as verifier:
        verdicts = verifier.verify_many(["none", "nan", "raise", "half", "low"], ["5"] * 5)
    assert [verdict.outcome.sign for verdict in verdicts] == [0, 0, 0, 1, -1]
    assert verdicts[2].reason == "verifier error: RuntimeError: no"
    with get_verifier(f"{rewards}:fussy", workers=1, threshold=0.4) as verifier:
        assert outcomes(verifier, ["low"]) == ["correct"]


def test_the_time_to_load_a_grader_is_not_the_items_time(rewards: str):
    with get_verifier(f"slow_{rewards}:noisy", workers=1, timeout=1) as verifier:
        assert outcomes(verifier, ["5"]) == ["correct"]


def test_a_grader_that_cannot_be_loaded_is_a_configuration_error(rewards: str):
    for path in ("no_such_package.rewards:accuracy", f"{rewards}:missing"):
        with get_verifier(path, workers=1) as verifier, pytest.raises(ConfigError, match="cannot be loaded"):
            verifier.verify("5", "5")


def test_threads_share_the_workers(math: PooledVerifier):
    results: dict[int, list[str]] = {}

    def work(number: int) -> None:
        results[number] = outcomes(math, [rf"\boxed{{{number}}}"] * 50, str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: ["correct"] * 50 for number in range(6)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own(math: PooledVerifier):
    assert outcomes(math, ["5"]) == ["correct"]
    child = os.fork()
    if child == 0:
        right = outcomes(math, ["5", "6"]) == ["correct", "incorrect"]
        math.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert outcomes(math, ["5", "6"]) == ["correct", "incorrect"]


def test_a_closed_verifier_starts_again():
    with get_verifier("math", workers=1) as verifier:
        assert outcomes(verifier, ["5"]) == ["correct"]
        verifier.close()
        assert outcomes(verifier, ["5"]) == ["correct"]


def run(script: str, **options: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        **options,
    )


def is_gone(pid: int) -> bool:
    """It does not run: there is no such process, or only what nobody has waited for."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


HANGING = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is inherited, and ignored behind a shell's &
from sgsd.verifiers import get_verifier
workers, timeout = 2, {timeout}
verifier = get_verifier("rewards_for_tests:hang", workers=workers, timeout=timeout)
verifier.warm_up()
print(*(worker.process.pid for worker in verifier._pool._all), flush=True)
"""


BATCH = 'verifier.verify_many(["hang"] * 6, ["5"] * 6)\n'
THREAD = 'threading.Thread(target=verifier.verify, args=("hang", "5"), daemon=True).start()\ntime.sleep(0.3)\n'


@pytest.mark.parametrize(
    ("rest", "ending", "timeout"),
    [
        (BATCH, signal.SIGKILL, 2),  # in the middle of an item
        (BATCH, signal.SIGINT, 200),  # an interrupt ends a batch at once
        (THREAD, None, 200),  # a thread that is still verifying does not hold up the end
    ],
)
def test_workers_end_with_their_parent(rewards: str, rest: str, ending: signal.Signals | None, timeout: int):
    with run(HANGING.format(timeout=timeout) + rest, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if ending is not None:
            time.sleep(0.5)
            parent.send_signal(ending)
        assert parent.wait(60) == {None: 0, signal.SIGKILL: -9}.get(ending, parent.returncode)
        assert ("KeyboardInterrupt" in parent.stderr.read()) == (ending is signal.SIGINT)
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("handled", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_worker_that_nobody_ends_ends_itself(rewards: str, tmp_path: Path, handled: signal.Handlers):
    """Its pipes stay open, and nobody looks at the clock for it; it may inherit that alarms are to be passed over."""
    grader = json.dumps({"kind": "reward", "path": f"{rewards}.hang", "threshold": 0.5})
    item = {"grader": grader, "completion": "fine", "answer": "", "limit": 0.2}
    worker = subprocess.Popen(
        [sys.executable, "-m", "sgsd.verifiers.worker", "4", "free", str(tmp_path / "temporary")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        preexec_fn=lambda: signal.signal(signal.SIGALRM, handled),
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        for message, reply in (({"load": grader, "path": []}, b"ready"), (item, b"correct")):
            worker.stdin.write(json.dumps(message).encode() + b"\n")
            worker.stdin.flush()
            assert reply in worker.stdout.readline()
        time.sleep(0.3 + GRACE)  # no alarm while it waits
        worker.stdin.write(json.dumps(item | {"completion": "hang"}).encode() + b"\n")
        worker.stdin.flush()
        assert worker.wait(60) == -signal.SIGALRM
    finally:
        worker.kill()
        worker.communicate()


def test_a_script_without_a_main_guard_works(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("from sgsd.verifiers import get_verifier\nprint(get_verifier('math').verify('5', '5').outcome)\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("correct\n", "")


def test_importing_the_package_is_cheap():
    script = """
        import sys
        import sgsd.verifiers
        heavy = {"sympy", "torch", "numpy", "math_verify", "latex2sympy2_extended", "reasoning_gym", "multiprocessing"}
        print(sorted(heavy & set(sys.modules)))
    """
    with run(script) as child:
        assert child.stdout is not None
        assert child.stdout.read() == "[]\n"


def test_an_item_whose_worker_is_killed_from_outside_is_judged_by_another(math: PooledVerifier):
    killed = threading.Event()

    def kill_one() -> None:
        while not killed.is_set():
            for worker in list(math._pool._all):
                if worker not in math._pool._idle:
                    os.kill(worker.process.pid, signal.SIGKILL)
                    killed.set()
                    return

    thread = threading.Thread(target=kill_one)
    thread.start()
    completions = [rf"\boxed{{x+{n}\sqrt{{2}}}}" for n in range(1, 60)]
    references = [rf"{n}\sqrt{{2}}+x" for n in range(1, 60)]
    verdicts = math.verify_many(completions, references)
    killed.set()
    thread.join()
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


def test_close_ends_the_workers_and_removes_their_folders():
    with get_verifier("exact", workers=2, memory_gb=3.8) as verifier:
        verifier.warm_up()
        workers = list(verifier._pool._all)
        assert len(workers) == 2
        assert all(Path(worker._folder).is_dir() for worker in workers)
    assert not any(Path(worker._folder).exists() for worker in workers)
    assert not any(Path(f"/proc/{worker.process.pid}").exists() for worker in workers)


def test_descriptors_and_processes_do_not_grow(rewards: str):
    with get_verifier(f"{rewards}:die", workers=2) as verifier:
        verifier.verify("a", "5")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            verifier.verify_many(["a", "die", "a", "die"], ["5"] * 4)
        assert len(verifier._pool._all) <= 2
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # the pipes of a second worker
