"""A whole build over stubs, in process or as a process of its own: ``python -m tests.bank.builds FOLDER SECONDS``.

What the stubs answer depends on all they are asked at once, as rounding does in a batch: work that is cut into other
chunks after an interruption comes out differently.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from sgsd import runfolder
from sgsd.bank.build import RESULTS, export, extract, merge_and_scan, refuse_changed_problems, sample, verify
from sgsd.bank.manifest import MANIFEST, make_manifest
from sgsd.bank.store import open_store
from sgsd.bank.writing import FIELDS, Written
from sgsd.data.problems import Problem
from sgsd.rollouts import Rollout, StopReason
from sgsd.verifiers import Outcome, Verdict

SETTINGS = {"sample": {"seed": 0}, "verify": {"verifier": "stub"}, "extract": {"writer": "stub"}, "merge": {"group": 4}}


def problems(count=12):
    return [Problem(f"p{i}", f"A farmer has {i + 40} cows. How many?", str(7000 + i)) for i in range(count)]


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def wait(seconds):
    if seconds:
        time.sleep(seconds)


class Sampler:
    def __init__(self, delay=0.0, outcomes=("right", "wrong", "wrong", "unclear"), cut=True):
        self.delay = delay
        self.outcomes = outcomes
        self.cut = cut
        self.calls = []

    def sample(self, prompts, *, seed):
        self.calls.append(len(prompts))
        wait(self.delay)
        rollouts = []
        for index in range(len(prompts)):
            mixed = digest(seed, prompts, index)
            text = f"{self.outcomes[int(mixed[0], 16) % len(self.outcomes)]} {mixed[:8]}\nthen “{mixed[8:16]}”"
            reason = StopReason.LENGTH if self.cut and mixed[1] == "0" else StopReason.END
            rollouts.append(Rollout(tuple(prompts[index]), (1, 2, 3), text, reason))
        return rollouts


class Verifier:
    def verify_many(self, completions, answers):
        outcomes = {"right": Outcome.CORRECT, "wrong": Outcome.INCORRECT, "unclear": Outcome.UNDECIDED}
        verdicts = []
        for completion in completions:
            outcome = outcomes[completion.split()[0]]
            verdicts.append(Verdict(outcome, "timeout" if outcome is Outcome.UNDECIDED else None, "5"))
        return verdicts


class Writer:
    """Writes items; now and then nonsense, an error, or what gives the answer away."""

    name = "stub"

    def __init__(self, delay=0.0):
        self.delay = delay
        self.asked = []

    def write(self, requests):
        wait(self.delay)
        self.asked += [request.key for request in requests]
        keys = [request.key for request in requests]
        return [self._one(request, digest(keys, index)) for index, request in enumerate(requests)]

    def _one(self, request, mixed):
        if digest(request)[0] in "01":  # an error is not kept, and so must not depend on the batch
            return Written(request.key, None, "no luck", 10, 0)
        if mixed[0] == "2":
            return Written(request.key, "no JSON", None, 10, 5)
        text = json.dumps(request.schema)
        kind = "skill" if "principle" in text else "mistake"
        title, words, note = mixed[:6], f"Look at x{mixed[6:10]}.", "Always."
        if mixed[3] in "01234567":
            words = f"The answer is {7000 + int(mixed[4], 16) % 12}."
        item = dict(zip(FIELDS[kind], (title, words, note), strict=True))
        if "sources" in text:
            items = [item | {"sources": [1, 2]}] if mixed[5] in "0123456789" else []
        else:
            items = [item, item | {FIELDS[kind][0]: mixed[10:16]}][: 1 + (mixed[2] in "01234567")]
        return Written(request.key, json.dumps({"items": items}), None, 10, len(mixed))


def build(path, *, asked=None, sampler=None, writer=None, delay=0.0, settings=SETTINGS, samples=2):
    asked = problems() if asked is None else asked
    sampler, writer = sampler or Sampler(delay), writer or Writer(delay)
    with open_store(Path(path), RESULTS) as store:
        refuse_changed_problems(store, asked)
        store.check_settings(settings, {"config": "whole"})
        sample(store, asked, lambda problem: list(problem.text.encode()), sampler, samples=samples, chunk=5)
        verify(store, asked, Verifier())
        extract(store, writer, chunk=3)
        merge_and_scan(store, writer, asked, name="stub", group_size=4, chunk=3)
        export(store)
        manifest = make_manifest(store, config={"whole": True})
        runfolder.write_json(store.folder / MANIFEST, manifest)
    return manifest


def results(path):
    """The bytes of everything that must not depend on interruptions."""
    return {name: (Path(path) / name).read_bytes() for name in RESULTS}


if __name__ == "__main__":
    build(sys.argv[1], delay=float(sys.argv[2]))
