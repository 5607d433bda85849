"""One training step of every family: rollouts sampled, teachers scored, a loss, a weight moved.

The product of families, types, methods, rollouts a prompt, adapters, pad ids and ways to recompute activations is too
large; in these cases every two values of every two of them meet.
"""

from __future__ import annotations

import itertools

import peft
import pytest
import torch

from sgsd.errors import ConfigError

from .models import EOS, FAMILIES, ODD, make, make_swallowing
from .pairs import all_pairs
from .training import METHODS, check, lora, make_trainer, one_step

pytestmark = [
    pytest.mark.families,
    # PEFT, where all linear layers are adapted and experts are no linear layers.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

FACTORS = {
    "family": [*FAMILIES],
    # GRPO's part needs groups.
    "method": [
        ("gated", 1),
        ("gated", 4),
        ("correction", 1),
        ("correction", 4),
        ("reweight", 4),
        ("opsd", 1),
        ("opsd", 4),
        ("grpo", 4),
    ],
    "dtype": [torch.float32, torch.bfloat16],
    "tuning": ["lora", "full"],
    "pad_id": [0, EOS],
    "checkpointing": ["none", "arguments", "model"],
}
CASES = all_pairs(FACTORS)


def named(case) -> str:
    method, G = case["method"]
    dtype = str(case["dtype"]).removeprefix("torch.")
    return f"{case['family']}-{method}-G{G}-{dtype}-{case['tuning']}-pad{case['pad_id']}-{case['checkpointing']}"


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_any_two_values_of_any_two_factors_meet():
    for one, two in itertools.combinations(FACTORS, 2):
        met = {(case[one], case[two]) for case in CASES}
        assert met == set(itertools.product(FACTORS[one], FACTORS[two]))
    assert all_pairs(FACTORS) == CASES
    assert len(CASES) < 200  # of 3,840


@pytest.mark.parametrize("case", CASES, ids=named)
def test_one_step(case, tmp_path):
    """Seen on 029fdea, at G = 4 with teachers: no step of qwen3.5, qwen3-next, granite-4, falcon-h1 and lfm2 (B2), nor
    of any family whose activations the model recomputes unasked (B4); none of granite-4 with method grpo,
    whose configuration has no ``num_experts``."""
    name, (method, G) = case["family"], case["method"]
    model = make(name, dtype=case["dtype"], pad_id=case["pad_id"])
    if case["checkpointing"] == "model":
        model.gradient_checkpointing_enable()
    step = one_step(
        tmp_path,
        model,
        method,
        G=G,
        pad_id=case["pad_id"],
        peft_config=lora(name) if case["tuning"] == "lora" else None,
        activation_checkpointing=case["checkpointing"] == "arguments",
    )
    check(step, adapted=case["tuning"] == "lora")


@pytest.mark.parametrize("method", ["gated", "opsd", "grpo"])
@pytest.mark.parametrize("name", ODD)
def test_one_step_of_odd_families(name, method, tmp_path):
    """TRL's GRPO has no step of Llama-4 beside a vision model: its forward reads hidden states that there are none of.

    Seen on 029fdea: no step of nemotron-h, bamba and jamba with teachers (B2), nor of any whose configuration has no
    ``max_position_embeddings``: recurrent-gemma, mamba-2, bloom."""
    if (name, method) == ("llama-4", "grpo"):
        pytest.skip("not a step of TRL's")
    room = {"max_position_embeddings": 256} if name == "llama-ntk" else {}
    pad_id = None if name == "gemma-3n" else 0  # its own gradient is NaN at embeddings of zeros
    step = one_step(tmp_path, make(name, pad_id=pad_id, **room), method, G=4, pad_id=0, peft_config=lora(name))
    check(step, adapted=True)


@pytest.mark.parametrize(("method", "G"), [case for case in FACTORS["method"] if case[0] != "grpo"])
def test_a_model_that_gives_all_logits_whatever_is_asked_trains(method, G, tmp_path):
    """A2. Seen on 029fdea: shapes that do not fit, at G = 4."""
    check(one_step(tmp_path, make_swallowing(), method, G=G), adapted=False)


@pytest.mark.parametrize("method", ["reweight", "gated and grpo", "grpo"])
def test_methods_that_need_groups_say_so(method, tmp_path):
    with pytest.raises(ConfigError, match="groups") as refused:
        make_trainer(tmp_path, make("llama"), method, G=1)
    assert "num_generations 1" in str(refused.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "adapter",
    [
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["prefix tuning", "prompt tuning"],
)
def test_adapters_that_learn_a_prompt_are_refused_before_anything_is_sampled(adapter, method, tmp_path):
    """A4. Seen on 029fdea: taken by all methods."""
    with pytest.raises(ConfigError) as refused:
        make_trainer(tmp_path, make("llama"), method, G=4, peft_config=adapter)
    assert "\n" not in str(refused.value)


# ---- mixtures of experts: the router's loss


@pytest.mark.parametrize("name", [name for name, family in (FAMILIES | ODD).items() if family.experts])
@pytest.mark.parametrize("method", METHODS)
def test_the_routers_loss_is_in_the_loss_as_trl_has_it(name, method, tmp_path):
    """B3: of the same rollouts every method adds the loss that GRPO adds. Where it has no weight, nothing is added.

    Seen on 029fdea: dropped in all methods with teachers; ``float * NoneType`` where GRPO's loss is a part.
    """
    by_trl = one_step(tmp_path / "grpo", make(name), "grpo", G=4, router_aux_loss_coef=1.0)
    step = one_step(tmp_path / "with", make(name), method, G=4, router_aux_loss_coef=1.0)
    without = one_step(tmp_path / "without", make(name), method, G=4, router_aux_loss_coef=0.0)
    assert step.rollouts == by_trl.rollouts == without.rollouts
    expected = by_trl.logged["aux_loss"]
    assert expected > 0.5  # 1 per token and expert, and more where experts are chosen unequally
    assert step.logged["aux_loss"] == pytest.approx(expected, abs=1e-4)
    assert step.logged["loss"] - without.logged["loss"] == pytest.approx(expected, abs=2e-3)
    routers = {weight for weight in step.moved if "router" in weight or "mlp.gate." in weight}
    assert routers
