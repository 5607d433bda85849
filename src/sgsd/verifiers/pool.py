"""Worker processes with hard timeouts.

Not ``multiprocessing``: spawn and forkserver import the user's ``__main__`` again, which breaks scripts without a main
guard, and a fork after torch has started its threads may deadlock. Each worker is ``python -m sgsd.verifiers.worker``
on two pipes. There are no background threads: the calling thread drives the workers it holds, so that the pool can be
used from any thread, and survives a fork of its process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgsd.errors import ConfigError
from sgsd.verifiers.verdict import Outcome, Verdict

STARTUP_SECONDS = 300.0
"""How long a worker may take to start and to import a grader (torch is slow on a cold disk)."""

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One item: which grader (a JSON description), what to judge, and how many seconds it may take."""

    grader: str
    completion: str
    answer: str
    timeout: float


class _Worker:
    """One process, driven by whichever thread holds it."""

    def __init__(self, memory_gb: float) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sgsd.verifiers.worker", str(memory_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
        )
        self.loaded: set[str] = set()
        self.loading: str | None = None
        self.item: int | None = None
        self.deadline = 0.0
        self._received = bytearray()

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, message: dict[str, Any], seconds: float) -> bool:
        """Whether the message could be delivered; it cannot to a process that is gone."""
        assert self.process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[self.process.stdin.write(data) or 0 :]
        except (BrokenPipeError, OSError):
            return False
        self.deadline = time.monotonic() + seconds
        return True

    def receive(self) -> dict[str, Any] | None:
        """The reply, once it is complete. Raises ``EOFError`` when the process is gone."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            raise EOFError
        self._received += chunk
        if not self._received.endswith(b"\n"):
            return None
        reply = json.loads(bytes(self._received))
        self._received.clear()
        return reply

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.release_pipes()

    def release_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def disown(self) -> None:
        """After a fork, in the child: the process belongs to the parent."""
        self.release_pipes()
        self.process.returncode = 0


class Pool:
    """Judges requests in worker processes, each item under a hard timeout.

    Args:
        workers: how many processes at most; they start when first needed.
        memory_gb: address space of each, in gigabytes.
    """

    def __init__(self, workers: int, memory_gb: float) -> None:
        self.workers = workers
        self.memory_gb = memory_gb
        self._forget()
        _pools.add(self)

    def _forget(self) -> None:
        self._condition = threading.Condition()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._count = 0
        self._waiting = 0
        self._closed = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, grader: str) -> None:
        """Start all workers and load the grader in each, so that the first batch does not wait for it."""
        self._drive([], [grader] * self.workers)

    def close(self) -> None:
        """End the workers (those in use, when their batch is done). A later request starts new ones."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            self._discard(worker)

    def run(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order.

        An item that exceeds its timeout or kills its worker is undecided; the others are not affected.

        Raises:
            ConfigError: if a grader cannot be loaded.
        """
        return self._drive(requests, [])

    # Holding workers

    def _acquire(self, want: int) -> list[_Worker]:
        with self._condition:
            self._closed = False
            self._waiting += 1
            try:
                while not self._idle and self._count >= self.workers:
                    self._condition.wait()
            finally:
                self._waiting -= 1
            held: list[_Worker] = []
            try:
                while len(held) < want and (self._idle or self._count < self.workers):
                    if self._idle:
                        held.append(self._idle.pop())
                    else:
                        self._count += 1
                        held.append(self._start())
            except OSError:
                self._idle += held
                self._condition.notify_all()
                raise
            return held

    def _start(self) -> _Worker:
        try:
            worker = _Worker(self.memory_gb)
        except OSError:
            self._count -= 1
            raise
        self._all.add(worker)
        return worker

    def _release(self, worker: _Worker) -> None:
        with self._condition:
            if not self._closed:
                self._idle.append(worker)
                self._condition.notify()
                return
        self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        worker.kill()
        with self._condition:
            self._all.discard(worker)
            self._count -= 1
            self._condition.notify()

    def _replace(self, worker: _Worker) -> _Worker:
        worker.kill()
        with self._condition:
            self._all.discard(worker)
            return self._start()

    # Driving them

    def _drive(self, requests: Sequence[Request], warm: list[str]) -> list[Verdict]:
        batch = _Batch(requests, deque(warm))
        if not requests and not warm:
            return []
        held = self._acquire(min(self.workers, len(requests) or len(warm)))
        try:
            with selectors.DefaultSelector() as selector:
                for worker in held:
                    selector.register(worker, selectors.EVENT_READ)
                while True:
                    for worker in list(held):
                        self._feed(worker, batch, held, selector)
                    if not any(worker.item is not None or worker.loading for worker in held):
                        break
                    self._collect(batch, held, selector)
        finally:
            for worker in held:
                if worker.item is None and worker.loading is None:
                    self._release(worker)
                else:
                    self._discard(worker)
        return [
            verdict if verdict is not None else Verdict(Outcome.UNDECIDED, "worker died") for verdict in batch.verdicts
        ]

    def _feed(self, worker: _Worker, batch: _Batch, held: list[_Worker], selector: selectors.BaseSelector) -> None:
        """Give an idle worker its next item, or hand it back if others wait for one."""
        if worker.item is not None or worker.loading is not None:
            return
        if self._waiting and len(held) > 1:
            selector.unregister(worker)
            held.remove(worker)
            self._release(worker)
            return
        for attempt in range(3):
            if batch.warm:
                grader: str | None = batch.warm[0]
                if grader in worker.loaded:
                    batch.warm.popleft()
                    return
                sent = worker.send({"load": grader}, STARTUP_SECONDS)
                worker.loading = grader if sent else None
                if sent:
                    batch.warm.popleft()
            elif batch.pending:
                sent = self._send_item(worker, batch)
            else:
                return
            if sent:
                return
            # It died while idle: nobody's fault, the item has not been seen yet.
            worker = self._exchange(worker, held, selector)
            if attempt == 2:
                raise ConfigError(
                    "the verifier's worker process does not start", remedy="run `python -m sgsd.verifiers.worker 4`"
                )

    def _send_item(self, worker: _Worker, batch: _Batch) -> bool:
        item = batch.pending[0]
        request = batch.requests[item]
        if request.grader not in worker.loaded:
            sent = worker.send({"load": request.grader}, STARTUP_SECONDS)
            worker.loading = request.grader if sent else None
            return sent
        message = {
            "grader": request.grader,
            "completion": request.completion,
            "answer": request.answer,
            "limit": request.timeout,
        }
        if worker.send(message, request.timeout):
            worker.item = item
            batch.pending.popleft()
            return True
        return False

    def _exchange(self, worker: _Worker, held: list[_Worker], selector: selectors.BaseSelector) -> _Worker:
        selector.unregister(worker)
        position = held.index(worker)
        del held[position]
        fresh = self._replace(worker)
        held.insert(position, fresh)
        selector.register(fresh, selectors.EVENT_READ)
        return fresh

    def _collect(self, batch: _Batch, held: list[_Worker], selector: selectors.BaseSelector) -> None:
        """Wait for a reply or the next deadline."""
        busy = [worker for worker in held if worker.item is not None or worker.loading is not None]
        wait = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        ready = {key.fileobj for key, _ in selector.select(wait)}
        now = time.monotonic()
        for worker in busy:
            if worker in ready:
                try:
                    reply = worker.receive()
                except (EOFError, OSError, ValueError):
                    self._lost(worker, batch, held, selector, "worker died")
                    continue
                if reply is not None and self._accept(worker, batch, reply):
                    self._exchange(worker, held, selector)
            elif now >= worker.deadline:
                self._lost(worker, batch, held, selector, "timeout")

    def _accept(self, worker: _Worker, batch: _Batch, reply: dict[str, Any]) -> bool:
        """Take a reply in; whether the worker must be replaced."""
        if worker.loading is not None:
            grader, worker.loading = worker.loading, None
            if "failed" in reply:
                raise ConfigError("the verifier cannot be loaded", got=reply["failed"], remedy=f"check {grader}")
            worker.loaded.add(grader)
            return False
        assert worker.item is not None
        batch.verdicts[worker.item] = Verdict(Outcome(reply["outcome"]), reply["reason"], reply.get("extracted"))
        worker.item = None
        return bool(reply.get("restart"))

    def _lost(
        self, worker: _Worker, batch: _Batch, held: list[_Worker], selector: selectors.BaseSelector, reason: str
    ) -> None:
        item, grader = worker.item, worker.loading
        worker.item = worker.loading = None
        self._exchange(worker, held, selector)
        if item is not None:
            batch.verdicts[item] = Verdict(Outcome.UNDECIDED, reason)
        else:
            batch.failed_loads += 1
            if batch.failed_loads > 2:
                raise ConfigError(
                    "the verifier cannot be loaded", got=f"{reason} while loading {grader}", remedy="raise memory_gb"
                )


class _Batch:
    def __init__(self, requests: Sequence[Request], warm: deque[str]) -> None:
        self.requests = requests
        self.warm = warm
        self.pending = deque(range(len(requests)))
        self.verdicts: list[Verdict | None] = [None] * len(requests)
        self.failed_loads = 0


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_shared: dict[tuple[int, float], Pool] = {}
_shared_lock = threading.Lock()


def shared_pool(workers: int, memory_gb: float) -> Pool:
    """The pool of this size that all verifiers of this process share."""
    with _shared_lock:
        if (workers, memory_gb) not in _shared:
            _shared[workers, memory_gb] = Pool(workers, memory_gb)
        return _shared[workers, memory_gb]


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _after_fork() -> None:
    """In a forked child: the workers are the parent's, and their pipes must not be held open here."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        for worker in pool._all:  # pyright: ignore[reportPrivateUsage]
            worker.disown()
        pool._forget()  # pyright: ignore[reportPrivateUsage]


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
