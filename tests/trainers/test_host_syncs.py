"""A micro-batch's loss seldom makes the host wait for the device, and never processes for each other.

Counted by ``benchmarks/host_syncs.py``. TRL's GRPO loss has its own, which are told apart by file.
"""

from __future__ import annotations

import pytest

from ..benchmarks.test_host_syncs import host_syncs
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
