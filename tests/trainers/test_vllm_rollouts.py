"""Rollouts from vLLM through TRL: what it is asked, and that they are scored and trained on as any others.

A stand-in takes the place of TRL's ``VLLMGeneration``; the last tests are of vLLM itself, where it is installed. There
run this file with ``-W ignore``: vLLM's imports warn.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgsd.errors import PromptError
from sgsd.scoring.logprobs import score_completions

from ..conftest import make_tokenizer
from .test_sgsd import batch_of, by_first_id, loss_and_gradients
from .tiny import EOS, PROBLEMS, make_trainer, prompted_rollouts, render


class StandIn:
    """Rollouts that depend on the prompt alone, each token's log-probability ``excess`` below the policy's own."""

    asked: dict
    excess = 0.0

    def __init__(self, **options):
        StandIn.asked = options
        self.generation_kwargs = options["generation_kwargs"] or {}
        self.model, self.synchronised, self.batches = options["model"], 0, []

    def sync_weights(self):
        self.synchronised += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        self.batches.append(num_generations)
        completions, _ = prompted_rollouts(prompts)
        scores = score_completions(self.model, prompts, completions, temperature=StandIn.asked["temperature"])
        logps = [
            [[logp - self.excess] for logp in row[kept].tolist()]
            for row, kept in zip(scores.logps, scores.mask, strict=True)
        ]
        return prompts, completions, logps, None


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    monkeypatch.setattr(StandIn, "excess", 0.0)


SAMPLED_AS_SCORED = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
GROUPS = {"num_generations": 4, "per_device_train_batch_size": 8, "reward": by_first_id}
OBJECTIVES = {
    "gated": {"grpo_weight": 0.0},
    "gated with GRPO": {"grpo_weight": 0.5},
    "correction": {"objective": "correction", "teacher_trust": "equal", "grpo_weight": 1.0, "loss_type": "grpo"},
}


COLOCATED = {
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.4,
    "vllm_max_model_length": 900,
    "vllm_tensor_parallel_size": 1,
    "vllm_enable_sleep_mode": True,
    "temperature": 1.1,
    "top_p": 0.9,
    "top_k": 20,
    "max_completion_length": 7,
    "generation_kwargs": {"seed": 3},
}
SERVED = {
    "vllm_mode": "server",
    "vllm_server_base_url": "http://10.0.0.2:8000",
    "vllm_server_timeout": 600.0,
    "vllm_group_port": 51300,
}


@pytest.mark.parametrize("settings", [COLOCATED, SERVED], ids=["colocate", "server"])
def test_vllm_is_asked_as_the_settings_say(tmp_path, settings):
    make_trainer(tmp_path, use_vllm=True, **settings)
    asked = {name.removeprefix("vllm_"): value for name, value in settings.items()} | {"trust_remote_code": False}
    assert {name: StandIn.asked[name] for name in asked} == asked


@pytest.mark.parametrize("given", [None, {"seed": 3}])
def test_vllm_stops_at_the_end_of_a_turn(tmp_path, given):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|im_start|>"  # as a base model's: the chat template ends turns with another token
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, use_vllm=True, generation_kwargs=given)
    assert trainer.vllm_generation.generation_kwargs == {"stop_token_ids": [0, EOS], **(given or {})}


def test_prompts_that_do_not_fit_vllms_context_are_refused_before_it_is_made(tmp_path):
    longest = max(len(render(f"{problem.text}\n\nGo.")) for problem in PROBLEMS)
    settings = {"use_vllm": True, "vllm_mode": "colocate", "max_completion_length": 8}
    make_trainer(tmp_path, vllm_max_model_length=longest + 8, **settings)
    StandIn.asked = {}
    with pytest.raises(PromptError, match=f"plain prompts are too long: got up to {longest} tokens"):
        make_trainer(tmp_path, vllm_max_model_length=longest + 7, **settings)
    assert not StandIn.asked
    make_trainer(tmp_path, vllm_max_model_length=longest + 7, **settings | {"vllm_mode": "server"})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_rollouts_give_the_same_loss_whoever_sampled_them(tmp_path, objective):
    settings = GROUPS | OBJECTIVES[objective] | SAMPLED_AS_SCORED
    plain = make_trainer(tmp_path / "plain", stub=True, **settings)
    served = make_trainer(tmp_path / "vllm", use_vllm=True, **settings)
    StandIn.excess = 0.7  # not looked at, unless asked for
    rows = [0] * 4 + [1] * 4
    plain_batch, batch = batch_of(plain, rows), batch_of(served, rows)
    for name in ("completion_ids", "teacher_logps", "teacher_weights", "score_mask", "outcome"):
        torch.testing.assert_close(batch[name], plain_batch[name], rtol=0, atol=0)
    expected, gradients = loss_and_gradients(plain, [plain_batch])
    got, own_gradients = loss_and_gradients(served, [batch])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(own_gradients, gradients)


@pytest.mark.parametrize(
    ("excess", "mode", "factor"),
    [
        (0.3, "token_truncate", math.exp(0.3)),
        (2.0, "token_truncate", 3.0),  # cut at vllm_importance_sampling_clip_max
        (-0.5, "token_mask", math.exp(-0.5)),
        (2.0, "token_mask", 0.0),  # too far from the policy: not learnt from
    ],
)
def test_grpos_loss_is_corrected_for_vllms_probabilities(tmp_path, excess, mode, factor):
    """Each token's loss is multiplied by policy / sampler, here the same for all, so that the whole loss is."""
    settings = {"use_vllm": True} | GROUPS | OBJECTIVES["correction"] | SAMPLED_AS_SCORED
    settings |= {"sgsd_weight": 0.0, "teacher_trust": "worth"}
    StandIn.excess = excess
    rows = [0] * 4 + [1] * 4
    plain = make_trainer(tmp_path / "plain", **settings)
    plain_loss, plain_gradients = loss_and_gradients(plain, [batch_of(plain, rows)])
    corrected = make_trainer(
        tmp_path / "corrected",
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=3.0,
        **settings,
    )
    loss, gradients = loss_and_gradients(corrected, [batch_of(corrected, rows)])
    assert max(gradient.abs().max() for gradient in plain_gradients) > 1e-3
    torch.testing.assert_close(loss, plain_loss * factor, rtol=1e-4, atol=1e-6)
    for gradient, plain_gradient in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, plain_gradient * factor, rtol=1e-3, atol=1e-5)


def test_weights_go_to_vllm_once_a_step(tmp_path):
    trainer = make_trainer(tmp_path, use_vllm=True, max_steps=3, num_generations=2, reward=by_first_id)
    trainer.train()
    assert trainer.vllm_generation.synchronised == 3
    assert trainer.vllm_generation.batches == [2] * 3


# ---- vLLM itself, of its CPU build


def train_with_vllm(folder: Path, *how: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if torch.cuda.is_available():
        pytest.skip("of vLLM's CPU build")
    command = [sys.executable, str(Path(__file__).parent / "scripts" / "colocated.py"), str(folder), *how]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_vllm_on_a_cpu_samples_from_the_policy_as_it_changes(tmp_path):
    """With its linear layers made to keep their weights; the learning rate would show a step that did not arrive."""
    done = train_with_vllm(tmp_path, "keep")
    assert done.returncode == 0, done.stderr[-4000:]
    logs = json.loads((tmp_path / "logs.json").read_text())
    differences = [entry["sampling/sampling_logp_difference/mean"] for entry in logs[:3]]
    assert max(differences) < 0.3, "nats: vLLM computes in bfloat16"
    assert all(0.8 < entry["sampling/importance_sampling_ratio/mean"] < 1.2 for entry in logs[:3])
    assert [entry["sgsd/teachers_per_rollout"] for entry in logs[:3]] == [3.0] * 3


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_vllm_on_a_cpu_as_it_is_starts_and_cannot_take_new_weights(tmp_path):
    done = train_with_vllm(tmp_path)
    assert done.returncode != 0, "vLLM's CPU build takes weights now: docs/scaling.md says that it does not"
    assert "the engine has started" in done.stdout
    assert "'Parameter' object has no attribute 'weight_loader'" in done.stderr
