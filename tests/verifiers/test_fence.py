"""What a worker may do: limits for all, and for graders of the package no network, files, processes or code."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sgsd.verifiers import Outcome, PooledVerifier, get_verifier

FENCED = """
import sys
from sgsd.verifiers.fence import Fence, limit_process
limit_process(4, fenced=True)
fence = Fence()
import json, os, socket, subprocess, sympy
attempts = json.loads(sys.argv[1])
code = {name: compile(attempt, name, "exec") for name, attempt in attempts.items()}
run = exec
for name in attempts:
    fence.set(closed=True)
    try:
        run(code[name])
        said = "it ran"
    except PermissionError as error:
        said = str(error)
    fence.set(closed=False)
    print(json.dumps([name, said]), flush=True)
"""


def tried(attempts: dict[str, str], folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", FENCED, json.dumps(attempts)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


ATTEMPTS = {
    "eval": ("eval('1 + 1')", "refused: compile"),
    "exec": ("exec('x = 1')", "refused: compile"),
    "compile": ("compile('1', '/tmp/x.py', 'eval')", "refused: compile"),
    "parse_expr": ("sympy.parse_expr('().__class__')", "refused: compile"),
    "sympify": ("sympy.sympify('[].append(1)')", "refused: compile"),
    "new module": ("import sqlite3", "refused: import"),
    "write": ("open('canary', 'w')", "refused: open"),
    "append": ("open('canary', 'a')", "refused: open"),
    "open for writing by number": ("import os; os.open('canary', os.O_WRONLY | os.O_CREAT)", "refused: open"),
    "read elsewhere": ("open('/etc/passwd')", "refused: open"),
    "environment": ("import os; os.environ['CANARY'] = '1'", "refused: os.putenv"),
    "remove": ("import os; os.remove('canary')", "refused: os.remove"),
    "folder": ("import os; os.mkdir('canary')", "refused: os.mkdir"),
    "shell": ("import os; os.system('true')", "refused: os.system"),
    "fork": ("import os; os.fork()", "refused: os.fork"),
    "exec a program": ("import os; os.execv('/bin/true', ['true'])", "refused: os.exec"),
    "signal": ("import os; os.kill(os.getppid(), 0)", "refused: os.kill"),
    "socket": ("import socket; socket.socket()", "refused: socket.__new__"),
    "process": ("import subprocess; subprocess.Popen(['true'])", "refused: subprocess.Popen"),
}


def test_a_closed_fence_lets_nothing_through(tmp_path: Path):
    said = tried({name: attempt for name, (attempt, _) in ATTEMPTS.items()}, tmp_path)
    assert said == {name: expected for name, (_, expected) in ATTEMPTS.items()}
    assert list(tmp_path.iterdir()) == []


def test_sympy_goes_on_working_in_a_closed_fence(tmp_path: Path):
    attempts = [
        "assert sympy.sympify('2.5') == 2.5",
        "assert sympy.factor(sympy.Symbol('x') ** 2 - 1).is_Mul",
        "from sympy.physics import units",
    ]
    assert tried({attempt: attempt for attempt in attempts}, tmp_path) == dict.fromkeys(attempts, "it ran")


REWARD = """
import os, resource, signal, socket, subprocess, sys, tempfile

def about_me(completions, **kwargs):
    name = completions[0][0]["content"]
    return [float({
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0] == 3 * 2**30,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 4096,
        "file size": resource.getrlimit(resource.RLIMIT_FSIZE)[0] <= 2**30,
        "core": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0] < 10_000,
        "key": os.environ.get("A_KEY") == "secret",
        "folder": tempfile.gettempdir().rpartition(os.sep)[2].startswith("sgsd-verifier-"),
        "cwd": os.path.exists("here"),
    }[name])]

def starts_another(completions, **kwargs):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["PIDS"], "a") as file:
        print(child.pid, file=file)
    tempfile.mkstemp()
    if completions[0][0]["content"] == "die":
        os._exit(1)
    return [1.0]
"""


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fence_rewards.py").write_text(REWARD)
    (tmp_path / "here").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    get_verifier("fence_rewards:about_me", workers=1).close()  # another test's workers look for modules elsewhere
    return "fence_rewards"


def test_a_reward_function_has_limits_and_its_surroundings(rewards: str):
    names = ["memory", "files", "file size", "core", "cpu", "key", "folder", "cwd"]
    with get_verifier(f"{rewards}:about_me", workers=1, memory_gb=3) as verifier:
        verdicts = verifier.verify_many(names, ["5"] * len(names))
    assert [name for name, verdict in zip(names, verdicts, strict=True) if verdict.outcome.sign != 1] == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_nothing_that_a_reward_function_starts_outlives_its_worker(rewards: str, tmp_path: Path):
    with get_verifier(f"{rewards}:starts_another", workers=1, timeout=20) as verifier:
        verifier.verify_many(["a", "die"], ["5", "5"])
        folders = [worker._folder for worker in verifier._pool._all]
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3  # one that dies is tried once more
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
    assert not any(Path(folder).exists() for folder in folders)


def limits_of(verifier: PooledVerifier) -> dict[str, str]:
    verifier.verify("5", "5")
    (worker,) = verifier._pool._all
    lines = Path(f"/proc/{worker.process.pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["math", "exact", "sgsd.verifiers.dapo:reward"])
def test_the_graders_of_the_package_write_no_file_and_keep_no_secret(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with get_verifier(name, workers=1, memory_gb=3.5) as verifier:
        limits = limits_of(verifier)
        (worker,) = verifier._pool._all
        environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
        folder = os.readlink(f"/proc/{worker.process.pid}/cwd")
        assert limits["Max file size"] == limits["Max core file size"] == limits["Max processes"] == "0"
        assert limits["Max address space"] == str(int(3.5 * 2**30))
        assert limits["Max open files"] == "64"
        assert int(limits["Max cpu time"]) < 60
        assert b"hf_secret" not in environment
        assert folder == worker._folder
    assert not Path(folder).exists()


@pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="needs Linux")
def test_the_graders_of_the_package_are_off_the_network_where_the_kernel_allows_it():
    allowed = subprocess.run(
        [sys.executable, "-c", "from sgsd.verifiers.fence import leave_network; print(leave_network())"],
        capture_output=True,
        text=True,
        check=True,
    )
    if allowed.stdout != "True\n":
        pytest.skip("the kernel does not")
    with get_verifier("exact", workers=1, memory_gb=3.5) as verifier:
        verifier.verify("5", "5")
        (worker,) = verifier._pool._all
        assert os.readlink(f"/proc/{worker.process.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_a_limit_is_only_ever_lowered():
    script = """
        import resource
        from sgsd.verifiers.fence import limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        limit("NOFILE", 4096)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "(50, 50)\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 50


@pytest.mark.slow
def test_the_fence_changes_no_verdict(shared_data: Path):
    from sgsd.verifiers import math

    cases: list[tuple[str, str]] = []
    for name in ("verifier_cases", "verifier_cases_2"):
        for line in (shared_data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("verifier", "math") == "math":
                given = row["pred"] if row["kind"] == "completion" else rf"\boxed{{{row['pred']}}}"
                cases.append((given, row["gold"]))
    grade = math.make_grader()
    with get_verifier("math", workers=1, timeout=30) as verifier:
        verdicts = verifier.verify_many([case[0] for case in cases], [case[1] for case in cases])
    different = [
        (case, verdict)
        for case, verdict in zip(cases, verdicts, strict=True)
        if grade(*case).outcome is not verdict.outcome and verdict.reason not in ("timeout", "out of memory")
    ]
    assert different == []


CODE = [
    "open('canary', 'w').write('x')",
    "__import__('os').system('touch canary')",
    "exec('raise SystemExit')",
    "().__class__.__base__.__subclasses__()",
    "Symbol('x').__class__",
    "lambda: 5",
    r"\text{__import__('os')._exit(1)}",
    r"\mathrm{exit}()",
    r"\input{/etc/passwd}",
    r"\write18{touch canary}",
    r"x + \operatorname{eval}(1)",
]


@pytest.mark.parametrize(
    ("name", "references"),
    [
        ("math", ["5", r"2\pi", "x+1", r"\{1, 2\}", "Paris"]),
        ("exact", ["5", "Paris"]),
        ("choice", ["B"]),
        ("sgsd.verifiers.dapo:reward", ["5", r"2\pi"]),
    ],
)
def test_code_in_a_completion_is_a_wrong_answer_and_no_more(name: str, references: list[str]):
    cases = [
        (form, reference)
        for reference in references
        for code in CODE
        for form in (code, f"Answer: {code}", rf"\boxed{{{code}}}")
    ]
    with get_verifier(name, workers=1, memory_gb=3.6, timeout=20) as verifier:
        verdicts = verifier.verify_many([form for form, _ in cases], [reference for _, reference in cases])
        (worker,) = verifier._pool._all
        assert os.listdir(worker._folder) == []
    wrong = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome.sign != -1]
    assert [(form, reference) for (form, reference), _ in wrong if "5" not in form or reference != "5"] == []


@pytest.mark.parametrize("hostile", ["9^{9^{9^{9}}}", "10000000!", "(x+1)^{100000}", "2^{2^{40}}"])
def test_the_authors_rule_cannot_be_hung_on_demand(hostile: str):
    with get_verifier("sgsd.verifiers.dapo:reward", workers=1, timeout=1) as verifier:
        assert verifier.verify(rf"\boxed{{{hostile}}}", "5").outcome.sign == -1


def test_a_reference_is_read_within_the_timeout():
    reference = "#### so it is 5 " + "( " * 40 + "7"
    with get_verifier("math", workers=1, timeout=1, memory_gb=3.6) as verifier:
        verifier.warm_up()
        start = time.monotonic()
        verifier.readable(reference)
        assert time.monotonic() - start < 60  # a process of its own can be ended; in this one it would take days


def test_what_sympy_imports_late_is_there_before_the_fence_closes():
    """Seen before the mend: the first integral was refused as code, and every later one of the worker."""
    pairs = [(r"\frac{1}{2}\int_0^1 x dx", r"\int_0^1 x^2 dx"), (r"\{1, 2\} \cup \{3\}", r"\{1, 2, 4\}"), ("5!", "n!")]
    with get_verifier("math", workers=1) as verifier:
        for reference, answer in [*pairs, *((answer, reference) for reference, answer in pairs)]:
            verdict = verifier.verify(rf"\boxed{{{answer}}}", reference)
            assert "refused" not in (verdict.reason or ""), (reference, answer)
            assert verdict.outcome is not Outcome.CORRECT
