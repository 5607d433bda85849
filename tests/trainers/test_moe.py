"""Mixtures of experts: the routers' load-balancing loss is TRL's, whatever the method and GRPO's weight."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from .tiny import assert_close, batch_of, by_first_id, logged_means, loss_and_gradients, make_trainer, trls_own

NUMBERS = [0] * 4 + [1] * 4
G = {"num_generations": 4, "per_device_train_batch_size": 8}


def make_moe():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,
        router_aux_loss_coef=0.001,
    )
    return Qwen3MoeForCausalLM(config).eval()


def aux_of(plain, batch):
    """TRL's auxiliary loss of a batch and its gradients."""
    plain.model.zero_grad()
    _, _, aux = plain._get_per_token_logps_and_entropies(
        plain.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        compute_aux_loss=True,
    )
    aux.backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in plain.model.parameters()]
    return aux.item(), gradients


CASES = {
    "SGSD": {"method": "sgsd"},
    "SGSD and half of GRPO": {"method": "sgsd", "grpo_weight": 0.5},
    "SGSD and GRPO": {"method": "sgsd", "grpo_weight": 1.0},
    "correction": {"method": "sgsd", "objective": "correction", "grpo_weight": 1.0, "teacher_trust": "equal"},
    "OPSD": {"method": "opsd"},
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_routers_loss_is_trls_at_its_coefficient_once(tmp_path, settings, steps):
    """At 029fdea it was dropped without a word, and with grpo_weight step 1 died: float * NoneType."""
    trainer = make_trainer(tmp_path, model=make_moe(), stub=True, reward=by_first_id, **G, **settings)
    assert (trainer.aux_loss_enabled, trainer.router_aux_loss_coef) == (True, 0.001)
    batch = batch_of(trainer, NUMBERS)
    found = []
    for coefficient in (0.0, 0.7):
        trainer.router_aux_loss_coef = coefficient
        found.append(loss_and_gradients(trainer, [batch], steps=steps))
    (without, gradients), (with_it, more_gradients) = found
    aux, aux_gradients = aux_of(trls_own(tmp_path, trainer.train_dataset, model=make_moe(), **G), batch)
    assert with_it - without == pytest.approx(0.7 * aux / steps, rel=1e-3)
    added = [(b - a) / (0.7 / steps) for a, b in zip(gradients, more_gradients, strict=True)]
    routers = [n for n, (name, _) in enumerate(trainer.model.named_parameters()) if "mlp.gate.weight" in name]
    assert len(routers) == 2
    assert all(aux_gradients[n].abs().max() > 1e-2 for n in routers)
    assert_close(added, aux_gradients, 1e-3)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_with_grpo_the_step_is_the_weighted_sum_and_the_routers_loss_is_not_weighted(tmp_path, weight):
    settings = {"loss_type": "grpo", "router_aux_loss_coef": 0.2}
    trainer = make_trainer(
        tmp_path, model=make_moe(), stub=True, reward=by_first_id, grpo_weight=weight, **G, **settings
    )
    batch = batch_of(trainer, NUMBERS)
    both = loss_and_gradients(trainer, [batch])
    plain = trls_own(tmp_path, trainer.train_dataset, model=make_moe(), **G, **settings)
    grpo = loss_and_gradients(plain, [batch])
    aux, aux_gradients = aux_of(plain, batch)
    trainer.args.grpo_weight = trainer.router_aux_loss_coef = 0.0
    trainer.aux_loss_enabled = False
    sgsd = loss_and_gradients(trainer, [batch])
    assert both[0] == pytest.approx(weight * grpo[0] + (1 - weight) * 0.2 * aux + sgsd[0], abs=1e-5)
    parts = zip(grpo[1], aux_gradients, sgsd[1], strict=True)
    assert_close(both[1], [weight * g + (1 - weight) * 0.2 * a + s for g, a, s in parts], 1e-4)


@pytest.mark.parametrize("settings", [{"method": "sgsd"}, {"method": "opsd"}, {"method": "grpo"}], ids=str)
def test_it_is_logged(tmp_path, settings):
    trainer = make_trainer(tmp_path, model=make_moe(), stub=True, reward=by_first_id, num_generations=2, **settings)
    batch = batch_of(trainer, [0, 0, 1, 1])
    aux, _ = aux_of(trls_own(tmp_path, trainer.train_dataset, model=make_moe(), **G), batch)
    trainer._compute_loss(trainer.model, batch)
    logged = (
        logged_means(trainer)
        if settings["method"] != "grpo"
        else {name: values[-1] for name, values in trainer._metrics["train"].items()}
    )
    assert logged["aux_loss"] == pytest.approx(aux, rel=1e-4)
    trainer.train()
    assert trainer.state.log_history[0]["aux_loss"] > 0


def test_teachers_of_a_mixture_pay_nothing_for_their_routing(tmp_path):
    """The auxiliary loss is the student's, of the prompts that rollouts were sampled from."""
    trainer = make_trainer(tmp_path, model=make_moe(), stub=True, reward=by_first_id, **G)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(bool(kwargs.get("output_router_logits"))), with_kwargs=True
    )
    batch = batch_of(trainer, NUMBERS)
    assert seen
    assert not any(seen)
    trainer._compute_loss(trainer.model, batch)
    assert seen[-1]
