"""A micro-batch's loss seldom makes the host wait for the device, and never processes for each other.

TRL's GRPO loss has its own, which are told apart by file.
"""

from __future__ import annotations

import accelerate.utils
import pytest
import torch
from accelerate.utils import gather, gather_object

from . import host_syncs
from .tiny import EIGHT, EIGHT_SOLVED, WeightedRetriever, batch_of, by_first_id, make_trainer

MOST_SYNCS, MOST_COLLECTIVES = 6, 2
GUIDED = {"objective": "correction", "teacher": "frozen", "support_baseline": "control", "teacher_guidance": 1.0}


def counted(folder, **settings):
    """Places of one micro-batch's loss, of an optimizer step that keeps no trace."""
    trainer = make_trainer(
        folder,
        stub=True,
        reward=by_first_id,
        **{"problems": EIGHT, "retriever_object": WeightedRetriever()} | settings,
    )
    trainer.state.global_step = 1  # a trace is kept of the first step
    return host_syncs.count(trainer, batch_of(trainer, [0, 0, 1, 1]))


def of(places, package):
    return sum(n for place, n in places.items() if place.file.startswith(package))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"support_baseline": "control"},
        {"objective": "local"},
        {"objective": "correction", "teacher_trust": "equal"},
        {**GUIDED, "teacher_trust": "equal"},
        {"objective": "reweight", "num_generations": 2},
        {"method": "opsd", "problems": EIGHT_SOLVED, "retriever_object": None},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())) or "gated",
)
def test_a_micro_batch_waits_seldom(tmp_path, settings):
    """At 029fdea the default made 32 host syncs and 4 collectives in each micro-batch, OPSD 24 and 1."""
    counts = counted(tmp_path, **settings)
    assert counts.syncs.total() <= MOST_SYNCS, counts.table()
    assert counts.collectives.total() <= MOST_COLLECTIVES, counts.table()
    assert counts.syncs.total() > 0, "the lengths are asked for: the count would not see it"


def test_beside_grpos_loss_only_trls_own_lines_wait_more(tmp_path):
    """Ten syncs and six collectives are TRL's; with them it was 40 and 9 at 029fdea."""
    counts = counted(tmp_path, grpo_weight=1.0, num_generations=2)
    assert of(counts.syncs, "sgsd/") <= MOST_SYNCS, counts.table()
    assert of(counts.collectives, "sgsd/") == 0, counts.table()
    assert of(counts.syncs, "trl/") + of(counts.syncs, "sgsd/") == counts.syncs.total(), counts.table()
    assert of(counts.syncs, "trl/") > MOST_SYNCS


def test_an_optimizer_step_ends_in_two_collectives(tmp_path, monkeypatch):
    """One for all means, one for all stances, whatever the number of micro-batches."""
    trainer = make_trainer(tmp_path, stub=True, reward=by_first_id, per_device_train_batch_size=1, max_steps=1)
    gathered = []
    monkeypatch.setattr("sgsd.trainers.ledger.gather", lambda tensor: gathered.append(tensor.shape) or tensor)
    for n in range(4):
        trainer._compute_loss(trainer.model, batch_of(trainer, [n]))
    assert gathered == []
    trainer.training_ledger.end_step()
    assert len(gathered) == 1


# ---- the count itself


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
