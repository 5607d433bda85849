"""Settings: the paper's by default; what could not train, or that nothing would read, is one line."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from trl import GRPOConfig

from sgsd.errors import ConfigError
from sgsd.trainers.config import CONFIGS, SGSDConfig
from sgsd.trainers.settings import EFFECTS, LOSS_TYPES, check_constructible, refuse_idle_settings

from .tiny import make_config

REFUSED = [json.loads(line) for line in Path(__file__).with_name("refused_settings.jsonl").read_text().splitlines()]
GROUPS = {"grpo_weight": 1.0, "num_generations": 2}
GUIDED = {"objective": "correction", "teacher": "frozen", "support_baseline": "control", "teacher_guidance": 2.0}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case['method']} {json.dumps(case['settings'])}")
def test_settings_that_could_not_train_are_one_line(tmp_path, case):
    with pytest.raises(ConfigError, match=case["said"]) as refused:
        make_config(tmp_path, method=case["method"], **case["settings"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *(("grpo", {"loss_type": name}) for name in LOSS_TYPES),
        ("sgsd", {"max_steps": -1, "num_train_epochs": 0.5}),
        ("sgsd", {"weight_decay": 0.0, "top_k": 0, "min_p": 0.05}),
        ("sgsd", {"top_k": -1, "use_vllm": True}),
        ("sgsd", {"max_prompt_length": None}),
        ("opsd", {"divergence_clip": None}),
        ("sgsd", {**GROUPS, "beta": 0.1}),
        ("sgsd", {**GROUPS, "sgsd_weight": 0.0}),
        ("sgsd", GUIDED),
        ("grpo", {"use_vllm": True, "vllm_importance_sampling_correction": True}),
        ("sgsd", {"use_vllm": True, "vllm_importance_sampling_correction": True, **GROUPS}),
    ],
    ids=str,
)
def test_settings_that_train_pass(tmp_path, method, settings):
    args = make_config(tmp_path, method=method, **settings)
    assert {name: vars(args)[name] for name in settings} == settings


def test_defaults_are_the_papers_and_what_it_leaves_open_is_the_safe_choice():
    expected = {
        "learning_rate": 5e-6,
        "max_grad_norm": 0.1,
        "num_generations": 1,
        "num_teachers": 8,
        "temperature": 1.1,
        "top_p": 0.95,
        "top_k": 20,
        "max_completion_length": 1024,
        "gate_tau": 1.0,
        "support_clip": 3.0,
        "support_threshold": 0.05,
        "score_temperature": 1.0,
        "teacher": "live",
        "embedder": "Qwen/Qwen3-Embedding-0.6B",
        "sgsd_weight": 1.0,
        "grpo_weight": 0.0,
        "thinking": "off",
        "truncated": "incorrect",
        "vllm_importance_sampling_correction": False,
    }
    args = SGSDConfig(output_dir="unused", bf16=False, use_cpu=True, report_to="none")
    assert {name: vars(args)[name] for name in expected} == expected


@pytest.mark.parametrize("steps", [1, 4])
def test_one_rollout_a_prompt_is_accepted_and_everything_else_of_trl_is_set(tmp_path, steps):
    args = make_config(tmp_path, num_generations=1, gradient_accumulation_steps=steps, per_device_train_batch_size=2)
    assert (args.steps_per_generation, args.generation_batch_size, args.scale_rewards) == (steps, 2 * steps, "group")


def test_trl_still_refuses_one_rollout_with_the_message_that_the_config_looks_for():
    with pytest.raises(ValueError, match=r"^GRPO requires at least 2 generations per prompt"):
        GRPOConfig(output_dir="unused", num_generations=1, bf16=False, use_cpu=True, report_to="none")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"verifier_options": '{"ignore_case": false}'}, {"verifier_options": {"ignore_case": False}}),
        ({"instruction": "  \n"}, {"instruction": ""}),
        ({"instruction": None}, {"instruction": None}),  # it ends problems, and leaves alone prompts in full
        ({"guard": False, "thinking": True}, {"guard": "off", "thinking": "on"}),
        ({"scale_rewards": True, **GROUPS}, {"scale_rewards": "group"}),
    ],
)
def test_what_a_setting_is_read_as(tmp_path, given, kept):
    args = make_config(tmp_path, **given)
    assert {name: vars(args)[name] for name in kept} == kept


# ---- settings that nothing would read

# A value of the setting's type that is not its default.
CHANGED = {
    "loss_type": "dr_grpo",
    "importance_sampling_level": "sequence",
    "off_policy_mask_threshold": 0.5,
    "delta": 2.0,
    "epsilon_high": 0.28,
    "scale_rewards": "none",
    "multi_objective_aggregation": "normalize_then_sum",
    "vllm_importance_sampling_mode": "token_mask",
    "vllm_importance_sampling_clip_min": 0.1,
}
OF_GRPO_LOSS, OF_ADVANTAGES = (names for names, _, _ in EFFECTS[:2])


@pytest.mark.parametrize("name", [*OF_GRPO_LOSS, *OF_ADVANTAGES])
def test_a_setting_of_trl_that_nothing_reads_is_refused(name):
    default = {field.name: field.default for field in dataclasses.fields(SGSDConfig)}[name]
    changed = not default if isinstance(default, bool) else 0.5 * (default or 1.0) if name not in CHANGED else None
    for read, settings in (
        (False, {}),
        (name in OF_ADVANTAGES, {"objective": "reweight", "num_generations": 2}),
        (True, {**GROUPS, "beta": 0.1}),
    ):
        args = SGSDConfig(**settings)
        setattr(args, name, CHANGED.get(name, changed))
        with nullcontext() if read else pytest.raises(ConfigError, match=f"no effect.*{name} "):
            refuse_idle_settings(args)


CORRECTION, REWEIGHT = {"objective": "correction"}, {"objective": "reweight", "num_generations": 2}
ALONE = {"sgsd_weight": 0.0, **GROUPS}
SERVER = {"maintenance_writer_url": "http://a/v1", "maintenance_writer_model": "tiny"}


@pytest.mark.parametrize(
    ("method", "setting", "idle", "read"),
    [
        ("sgsd", {"gate_tau": 3.0}, [CORRECTION, REWEIGHT, ALONE], [{}, {"objective": "local"}]),
        (
            "sgsd",
            {"teacher_trust": "equal"},
            [{}, {"objective": "local"}, {**ALONE, **CORRECTION}],
            [CORRECTION, REWEIGHT],
        ),
        (
            "sgsd",
            {"teacher_top_tokens": 5},
            [{}, REWEIGHT, {**ALONE, **CORRECTION}],
            [CORRECTION, {"objective": "local"}],
        ),
        ("sgsd", {"ledger_share": 0.9}, [{}, {"objective": "local"}], [CORRECTION, REWEIGHT, ALONE]),
        ("sgsd", {"teacher_ema_decay": 0.5}, [{}, {"teacher": "periodic"}], [{"teacher": "ema"}]),
        ("opsd", {"teacher_sync_steps": 3}, [{}, {"teacher": "ema"}], [{"teacher": "periodic"}]),
        ("grpo", {"embedder": "a/b"}, [{"retriever": "bm25"}, {}], [{"retriever": "embedding"}]),
        ("sgsd", {"retrieval_text": "full"}, [{}], [{"retriever": "bm25"}, {"retriever": "embedding"}]),
        ("sgsd", {"skills_in_prompt_pairs": 3}, [{}], []),
        ("grpo", {"skills_in_prompt_pairs": 3}, [{}], [{"skills_in_prompt": True}]),
        ("sgsd", {"rehearsal_texts": 5}, [{}], [{"rehearsal_weight": 1.0, "teacher": "frozen"}]),
        ("sgsd", {"rehearsal_dataset": "x"}, [{}], [{"rehearsal_weight": 1.0, "teacher": "frozen"}]),
        ("sgsd", {"maintenance_threshold": 0.3}, [{}], [{"maintenance_frequency": 2}]),
        ("sgsd", {"maintenance_timeout": 3.0}, [{}], [{"maintenance_frequency": 2}]),
        ("sgsd", SERVER, [{}], [{"maintenance_frequency": 2}]),
        ("grpo", {"sync_ref_model": True}, [{}], [{"beta": 0.1}]),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused_and_accepted_where_it_has_one(tmp_path, method, setting, idle, read):
    """The settings of tiny.py have retriever random, and one rollout per prompt but for GRPO."""
    for others in idle:
        with pytest.raises(ConfigError, match=f"{' and '.join(setting)} would have no effect: got ") as refused:
            make_config(tmp_path, method=method, **others, **setting)
        assert "\n" not in str(refused.value)
        make_config(tmp_path, method=method, **others)  # at its default it is accepted
    for others in read:
        args = make_config(tmp_path, method=method, **others, **setting)
        assert {name: vars(args)[name] for name in setting} == setting


@pytest.mark.parametrize(
    ("method", "settings", "refused"),
    [
        ("sgsd", {"loss_type": "dr_grpo"}, True),
        ("opsd", {"loss_type": "dr_grpo"}, True),
        ("grpo", {"loss_type": "dr_grpo"}, False),
        ("sgsd", {"loss_type": "dr_grpo", **GROUPS}, False),
        ("sgsd", {"scale_rewards": "none", "num_generations": 2}, True),
        ("sgsd", {"scale_rewards": "none", "objective": "reweight", "num_generations": 2}, False),
        ("sgsd", {"epsilon": 0.1, "objective": "reweight", "num_generations": 2}, True),
    ],
)
def test_configurations_refuse_idle_settings_by_their_loss(tmp_path, method, settings, refused):
    name = next(iter(settings))
    if refused:
        with pytest.raises(ConfigError, match=f"no effect.*{name}"):
            make_config(tmp_path, method=method, **settings)
    else:
        assert vars(make_config(tmp_path, method=method, **settings))[name] == settings[name]


# ---- what settings describe


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim_args": "nonsense"}, "optim_args nonsense"),
        ({"optim": "adamw_8bit"}, "package these settings need is missing: got .*bitsandbytes"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr cannot be built with {}"),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-7}}, "lr_scheduler_type linear cannot be built with {'min_lr': 1e-07}"),
        (
            {"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"x": 1}},
            "gradient_checkpointing_kwargs",
        ),
        ({"generation_kwargs": {"num_return_sequences": 2}}, "generation_kwargs with num_return_sequences: got 2"),
        ({"generation_kwargs": {"return_dict_in_generate": True}}, "generation_kwargs with return_dict_in_generate"),
        ({"generation_kwargs": {"max_new_tokens": 3}}, "max_new_tokens: got 3; expected the setting max_comp"),
        ({"generation_kwargs": {"temperature": 0.3}}, "with temperature: got 0.3; expected the setting temperature"),
        ({"cache_implementation": "nonsense"}, "cache_implementation nonsense cannot be used"),
        ({"use_liger_kernel": True}, "use_liger_kernel needs a package that is missing"),
        ({"use_vllm": True}, "use_vllm needs a package that is missing"),
        ({"sync_ref_model": True, "beta": 0.1, **GROUPS}, "sync_ref_model does not work with an adapter"),
    ],
    ids=str,
)
def test_pieces_that_could_not_be_built_are_refused_by_their_setting(tmp_path, monkeypatch, settings, said):
    for package in ("liger_kernel", "vllm"):
        monkeypatch.setattr(f"sgsd.trainers.settings.is_{package}_available", lambda: False)
    args = make_config(tmp_path, **settings)
    with pytest.raises(ConfigError, match=said) as refused:
        check_constructible(args, adapted=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adafactor"},
        {"optim": "adamw_torch", "optim_args": "amsgrad=True"},
        {"optim": "galore_adamw"},  # looks at the model
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}, "warmup_steps": 0.1},
        {"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"generation_kwargs": {"num_beams": 2, "num_return_sequences": 1}},
        {"generation_kwargs": {"max_new_tokens": 8, "temperature": 1.1}},
        {"sync_ref_model": True, "beta": 0.1, **GROUPS},
    ],
    ids=str,
)
def test_pieces_that_can_be_built_pass(tmp_path, settings):
    check_constructible(make_config(tmp_path, **settings), adapted=False)


# ---- the device


@pytest.mark.parametrize("method", CONFIGS)
def test_a_configuration_of_defaults_works_without_a_gpu(tmp_path, monkeypatch, method):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for settings in ({}, {"bf16": True}, {"fp16": False}):
        args = CONFIGS[method](output_dir=str(tmp_path), **settings)
        assert (args.use_cpu, args.device.type) == (True, "cpu")


@pytest.mark.parametrize(
    ("capability", "bf16"), [("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx2", False)]
)
def test_bfloat16_is_used_where_the_processor_computes_in_it(tmp_path, monkeypatch, capability, bf16):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x", capability: True})
    assert SGSDConfig(output_dir=str(tmp_path)).bf16 is bf16
    assert SGSDConfig(output_dir=str(tmp_path), bf16=not bf16).bf16 is not bf16  # what is said stays


@pytest.mark.parametrize("bf16", [True, False])
def test_an_accelerator_is_not_left_unused(tmp_path, monkeypatch, bf16):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    for module in ("sgsd.trainers.settings", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: bf16)
    args = SGSDConfig(output_dir=str(tmp_path))
    assert (args.use_cpu, args.bf16) == (False, bf16)
