"""Worker processes with hard timeouts. Each runs ``python -m sgsd.verifiers.worker``; the thread that uses it talks to
it over two pipes. No threads run between calls, so any thread may call, and a forked child starts workers of its own.

Why not ``multiprocessing`` or pebble: docs/verifier.md.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sgsd.verifiers.errors import ConfigError
from sgsd.verifiers.verdict import Outcome, Verdict

STARTUP_SECONDS = 300.0
"""The longest time for a worker to start and import a grader (torch is slow on a cold disk)."""

TIMEOUT, DIED, OUT_OF_MEMORY = "timeout", "worker died", "out of memory"

_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_NEEDED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "OPENBLAS_CORETYPE", "SYSTEMROOT", "LANG", "LC_ALL", "LC_CTYPE")
"""The environment variables that Python needs to start. Fenced workers get no others, so no keys or tokens."""

T = TypeVar("T")


class _Worker:
    """One process in a session of its own, with a folder for its temporary files."""

    def __init__(self, memory_gb: float, fenced: bool) -> None:
        self.loaded: set[str] = set()
        self._fenced = fenced
        self._folder = tempfile.mkdtemp(prefix="sgsd-verifier-")
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        mode = "fenced" if fenced else "free"
        kept = {name: os.environ[name] for name in _NEEDED if name in os.environ} if fenced else dict(os.environ)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sgsd.verifiers.worker", str(memory_gb), mode, self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=self._folder if fenced else None,
                env={**kept, **_THREADS, "PYTHONPATH": path, "TMPDIR": self._folder},
                start_new_session=True,
            )
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._input, False)

    def load(self, grader: str) -> None:
        """Load a grader if that has not been done.

        Raises:
            ConfigError: if the grader cannot be loaded.
        """
        if grader in self.loaded:
            return
        remedy = f"check {grader}"
        try:
            # The caller's sys.path or current folder may have changed since the worker started. A reward function is
            # imported as the caller would import it, from the current folder last.
            path = [*map(os.path.abspath, sys.path), *([] if self._fenced else [os.getcwd()])]
            message = {"load": grader, "path": path}
            failed = self.ask(message, STARTUP_SECONDS).get("failed")
        except TimeoutError:
            failed = f"{grader} takes too long"
        except EOFError:
            failed, remedy = f"{DIED} while loading {grader}", "raise memory_gb"
        if failed is not None:
            raise ConfigError("the verifier cannot be loaded", got=failed, remedy=remedy)
        self.loaded.add(grader)

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a message.

        Raises:
            TimeoutError: no reply in time. The process must be killed.
            EOFError: the process has ended.
        """
        deadline = time.monotonic() + seconds
        data = memoryview(json.dumps(message).encode() + b"\n")
        received = bytearray()
        try:
            while data:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self._input, data) :]
                    continue
                _wait(self._input, select.POLLOUT, deadline)
            while not received.endswith(b"\n"):
                _wait(self._output, select.POLLIN, deadline)
                chunk = os.read(self._output, 1 << 16)
                if not chunk:
                    raise EOFError
                received += chunk
            return json.loads(bytes(received))
        except (BrokenPipeError, ConnectionResetError, ValueError) as error:
            raise EOFError from error

    def is_alive(self) -> bool:
        if sys.platform == "darwin":  # has no waitid
            return self.process.poll() is None
        # With WNOWAIT it stays a zombie until ``kill``, so that its process group id is not reused.
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # other code has waited for it
            return False

    def kill(self) -> None:
        """End the process and all it started, and remove its folder."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._release_pipes()
        shutil.rmtree(self._folder, ignore_errors=True)

    def disown(self) -> None:
        """After a fork, in the child: the process belongs to the parent."""
        self._release_pipes()
        self.process.returncode = 0

    def _release_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        raise TimeoutError


class Pool:
    """Up to ``workers`` processes of ``memory_gb`` address space each, started when first needed.

    ``fenced`` processes run only graders of this package, see ``fence``.
    """

    def __init__(self, workers: int, memory_gb: float, *, fenced: bool) -> None:
        self.workers = workers
        self.memory_gb = memory_gb
        self.fenced = fenced
        self._reset()

    def _reset(self) -> None:
        self._slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._warming = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closings = 0

    def warm_up(self, grader: str) -> None:
        """Start all workers and load the grader in each, so that the first batch does not wait for it.

        Raises:
            ConfigError: if the grader cannot be loaded.
        """
        with self._warming, contextlib.ExitStack() as stack:
            workers = [stack.enter_context(self._worker()) for _ in range(self.workers)]
            self._each(lambda worker: worker.load(grader), workers)

    def close(self) -> None:
        """End the workers; one in use ends after its item. A later call starts new ones."""
        with self._lock:
            self._closings += 1
            idle, self._idle = self._idle, []
        for worker in idle:
            self._discard(worker)

    def run(self, grader: str, messages: Sequence[dict[str, Any]], timeout: float) -> list[Verdict]:
        """One verdict per message, in order. An item that takes more than ``timeout`` seconds or kills its worker is
        undecided; other items are not affected.

        Raises:
            ConfigError: if the grader, a description in JSON, cannot be loaded.
        """
        return self._each(lambda message: self._judge(grader, message, timeout), messages)

    def _each(self, function: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """Apply a function to each item, in as many threads as there are workers, the caller's thread among them."""
        results: list[Any] = [None] * len(items)
        waiting = deque(range(len(items)))
        failures: list[BaseException] = []

        def work() -> None:
            while waiting and not failures:
                try:
                    position = waiting.popleft()
                except IndexError:  # another thread took the last item
                    return
                try:
                    results[position] = function(items[position])
                except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                    failures.append(error)

        others = [threading.Thread(target=work, daemon=True) for _ in range(min(self.workers, len(items)) - 1)]
        for thread in others:
            thread.start()
        work()
        if not failures:  # after a failure or an interrupt the others are not waited for, and end after their item
            for thread in others:
                thread.join()
        if failures:
            raise failures[0]
        return results

    def _judge(self, grader: str, message: dict[str, Any], timeout: float) -> Verdict:
        for _ in range(2):  # a worker may also be killed from outside, as by the kernel when memory is short
            try:
                with self._worker() as worker:
                    worker.load(grader)
                    reply = worker.ask({**message, "grader": grader, "limit": timeout}, timeout)
                    if reply.get("restart"):
                        raise MemoryError
            except TimeoutError:
                return Verdict(Outcome.UNDECIDED, TIMEOUT)
            except MemoryError:
                return Verdict(Outcome.UNDECIDED, OUT_OF_MEMORY)
            except EOFError:
                continue
            return Verdict(Outcome(reply["outcome"]), reply["reason"], reply.get("extracted"))
        return Verdict(Outcome.UNDECIDED, DIED)

    @contextmanager
    def _worker(self) -> Generator[_Worker]:
        """A worker for one thread. It is killed if the body of the ``with`` raises."""
        with self._slots:
            closings = self._closings
            worker = self._take()
            try:
                yield worker
            except BaseException:
                self._discard(worker)
                raise
            with self._lock:
                keep = self._closings == closings
                if keep:
                    self._idle.append(worker)
            if not keep:
                self._discard(worker)

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                if not self._idle:
                    worker = _Worker(self.memory_gb, self.fenced)
                    self._all.add(worker)
                    return worker
                worker = self._idle.pop()
            if worker.is_alive():
                return worker
            self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._all.discard(worker)


_shared: dict[tuple[int, float, bool], Pool] = {}
_shared_lock = threading.Lock()


def shared_pool(workers: int, memory_gb: float, *, fenced: bool) -> Pool:
    """The pool of this size that all verifiers of this process share."""
    with _shared_lock:
        if (workers, memory_gb, fenced) not in _shared:
            _shared[workers, memory_gb, fenced] = Pool(workers, memory_gb, fenced=fenced)
        return _shared[workers, memory_gb, fenced]


def _close_all() -> None:
    for pool in list(_shared.values()):
        pool.close()
        for worker in list(pool._all):  # pyright: ignore[reportPrivateUsage]  # those of threads that still run
            worker.kill()


def _after_fork() -> None:
    """In a forked child: the workers are the parent's, and their pipes must not be held open here."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_shared.values()):
        for worker in pool._all:  # pyright: ignore[reportPrivateUsage]
            worker.disown()
        pool._reset()  # pyright: ignore[reportPrivateUsage]


atexit.register(_close_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
