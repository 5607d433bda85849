"""The counter of host syncs counts what waits, once each, and says where."""

from __future__ import annotations

import importlib.util
import sys

import accelerate.utils
import pytest
import torch
from accelerate.utils import gather, gather_object

from ..conftest import ROOT


def load_benchmark():
    spec = importlib.util.spec_from_file_location("host_syncs", ROOT / "benchmarks" / "host_syncs.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


host_syncs = load_benchmark()


class Stub:
    """A trainer whose loss is a function of one tensor."""

    model = None

    def __init__(self, loss):
        self._compute_loss = lambda model, inputs: loss(inputs["x"])


def kinds(places):
    return {place.kind: sum(n for other, n in places.items() if other.kind == place.kind) for place in places}


@pytest.mark.parametrize(
    ("loss", "kind", "times"),
    [
        (lambda x: x.sum().item(), "item", 1),
        (lambda x: float(x[0]), "item", 1),
        (lambda x: x if x.any() else -x, "item", 1),
        (lambda x: [int(value) for value in x], "item", 4),
        (lambda x: x.tolist(), "tolist", 1),
        (lambda x: x.cpu(), "cpu", 1),
        (lambda x: x[x > 0].mean(), "nonzero", 1),
        (lambda x: (x > 0).nonzero(), "nonzero", 1),
        (lambda x: torch.equal(x, x + 1), "equal", 1),
        (lambda x: x.unique(), "unique", 1),
        (lambda x: x.masked_select(x > 0), "masked_select", 1),
    ],
)
def test_each_sync_counts_once(loss, kind, times):
    tolist = torch.Tensor.tolist
    counted = host_syncs.count(Stub(loss), {"x": torch.tensor([1.0, -1.0, 2.0, 3.0])})
    assert kinds(counted.syncs) == {kind: times}
    assert not counted.collectives
    assert f"{times} syncs" in counted.table()
    assert all("test_host_syncs.py" in str(place) for place in counted.syncs)
    assert torch.Tensor.tolist is tolist


def test_arithmetic_on_the_device_counts_nothing():
    def loss(x):
        y = torch.where(x > 0, x, 0.0).clone()
        y[x > 1] = 0.0  # a fill: the mask is not looked at
        return (y * (x > 0)).sum() / (x > 0).sum().clamp(min=1)

    counted = host_syncs.count(Stub(loss), {"x": torch.tensor([1.0, -1.0, 2.0])})
    assert not counted.syncs
    assert not counted.collectives


def test_collectives_count_once_however_they_were_imported():
    accelerate.PartialState()

    def loss(x):
        gather(x)
        accelerate.utils.gather({"a": x, "b": x})
        gather_object(["a"])
        return accelerate.Accelerator(cpu=True).reduce(x)

    counted = host_syncs.count(Stub(loss), {"x": torch.ones(3)})
    assert kinds(counted.collectives) == {"gather": 2, "gather_object": 1, "reduce": 1}
    assert accelerate.utils.gather is gather
