"""A run that turns to NaN stops, saves nothing of it, and names the last good checkpoint."""

from __future__ import annotations

import pytest
import torch

from sgsd.trainers.checkpoint import refuse_damage
from sgsd.trainers.sgsd import SGSDTrainer

COMPUTE_LOSS = SGSDTrainer._compute_loss


def spoilt(what):
    """``_compute_loss`` that breaks ``what`` from the seventh step on."""

    def compute_loss(trainer, model, inputs):
        if trainer.state.global_step < 6 or not model.training:
            return COMPUTE_LOSS(trainer, model, inputs)
        if what == "weights":
            with torch.no_grad():
                next(model.parameters())[:] = torch.nan
        loss = COMPUTE_LOSS(trainer, model, inputs)
        if what == "loss":
            return loss * torch.nan
        if what == "gradient":
            parameter = next(p for p in model.parameters() if p.requires_grad)
            return loss + (parameter.flatten()[0] - parameter.flatten()[0].detach()).abs().sqrt()  # 0, of slope inf
        return loss

    return compute_loss


@pytest.mark.parametrize(("what", "said"), [("loss", "norm is nan"), ("gradient", "norm is nan"), ("weights", "nan")])
def test_a_run_that_turns_to_nan_stops_and_names_the_last_good_checkpoint(
    sgsd, flags, tmp_path, monkeypatch, what, said
):
    run = tmp_path / "run"
    monkeypatch.setattr(SGSDTrainer, "_compute_loss", spoilt(what))
    result = sgsd("train", *flags, "--output_dir", run, "--save_total_limit", "2")
    assert result.code == 2
    good = run / "checkpoint-6" if what != "weights" else run / "checkpoint-4"
    assert result.error.startswith("sgsd: error: the guard stopped the run at step 7: got ")
    assert said in result.error
    assert result.error.endswith(f"the last sound checkpoint is {good}")
    refuse_damage(good)
    assert not (run / "model.safetensors").exists()
