"""The regression tool tells rounding from change."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "tools" / "regression.py"


@pytest.fixture(scope="module")
def regression():
    spec = importlib.util.spec_from_file_location("regression", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["regression"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["regression"]


def run(regression, *, noise=(), other=()):
    """A record of three steps: noise by step, relative to the change; how many of 64 samples differ, by step."""
    draw = np.random.default_rng(1)
    changes, shift = draw.standard_normal((5000, 3)), draw.standard_normal((5000, 3))
    for step, size in enumerate(noise):
        changes[:, step] += size * shift[:, step]
    seen = regression.projections(changes)
    samples = [[f"{n:04x}" for n in range(64)] for _ in range(3)]
    for step, count in enumerate(other):
        samples[step][:count] = ["ffff"] * count
    return {
        "sha256": str((*noise, *other)),
        "accuracy": [0.2],
        "projections": {str(step): regression.packed(row) for step, row in enumerate(seen.T, 1)},
        "samples": ["".join(row) for row in samples],
    }


def test_the_size_of_a_difference_is_read_off_its_projections(regression):
    was, now = run(regression)["projections"], run(regression, noise=(1e-6, 1e-3, 0.1))["projections"]
    for step, size in (("1", 1e-6), ("2", 1e-3), ("3", 0.1)):
        assert regression.relative(was[step], now[step]) == pytest.approx(size, rel=0.4)


def test_before_anything_is_learnt_there_is_no_difference(regression):
    zeros, some = regression.packed(np.zeros(4)), regression.packed(np.ones(4))
    assert regression.relative(zeros, zeros) == 0
    assert regression.relative(zeros, some) == float("inf")


@pytest.mark.parametrize(
    ("noise", "other", "state"),
    [
        ((), (), "same"),
        ((1e-6, 2e-6, 2e-6), (), "rounding"),
        ((1e-6, 3e-4, 3e-4), (), "CHANGED"),  # without another sample it is no accident
        ((3e-4, 3e-4, 3e-4), (), "CHANGED"),
        ((1e-6, 0.1, 0.3), (0, 2, 9), "rounding"),  # a sample fell the other way
        ((1e-6, 0.1, 0.3), (0, 40, 60), "CHANGED"),  # many at once did not fall
        ((0.1, 0.1, 0.3), (2, 9, 9), "CHANGED"),  # the first are drawn from equal weights
    ],
)
def test_rounding_stays_small_until_a_sample_falls_the_other_way(regression, noise, other, state):
    assert regression.compare("run", run(regression), run(regression, noise=noise, other=other)).state == state


def test_what_is_not_of_numbers_is_the_same_or_changed(regression):
    assert regression.compare("table", {"lines": 3, "sha256": "a"}, {"lines": 3, "sha256": "a"}).state == "same"
    finding = regression.compare("table", {"lines": 3, "sha256": "a"}, {"lines": 4, "sha256": "b"})
    assert (finding.state, finding.note) == ("CHANGED", "lines: 3 → 4")
    assert (
        regression.compare("command", {"exit": 0, "sha256": "a"}, {"exit": 2, "sha256": "a"}).note == "exit code 0 → 2"
    )
    assert regression.compare("run", run(regression), {"failed": "no such setting"}).note == "no such setting"
    verdicts = [
        {"outcomes": letters, "counts": {letter: letters.count(letter) for letter in "ciu"}}
        for letters in ("cci", "cui")
    ]
    assert regression.compare("verdicts", *verdicts).note.startswith("1 rows")
    assert regression.compare("verdicts", *verdicts).note.endswith("[2]")


def test_a_listed_change_is_expected_with_its_reason_and_a_list_without_need_says_so(regression, monkeypatch):
    monkeypatch.setattr(regression, "EXPECTED", {"run sharp/*": "the ledger counts by problem"})
    changed = regression.judged(regression.Finding("run sharp/guided", "CHANGED", "1e-2"))
    assert (changed.state, changed.note) == ("expected", "the ledger counts by problem [1e-2]")
    assert regression.judged(regression.Finding("run calibrated/guided", "CHANGED")).state == "CHANGED"
    assert regression.judged(regression.Finding("run sharp/grpo", "same")).note == "listed as expected, without need"


def test_numbers_of_a_document_are_compared_and_its_labels_are_not(regression):
    assert regression.numbers('{"a": [1, {"label": "x", "b": 2.5}], "c": true, "d": null}') == [1, 2.5]
    assert regression.words("┃ 1 │ skill-0a ┃\n└──┘ 0.50") == ["1", "skill-0a", "0.50"]
