from __future__ import annotations

import pytest
from trl import GRPOConfig

from sgsd.errors import ConfigError
from sgsd.trainers.config import CONFIGS, SGSDConfig

GUIDED = {"objective": "correction", "teacher": "frozen", "support_baseline": "control", "teacher_guidance": 2.0}


def config(**settings) -> SGSDConfig:
    return SGSDConfig(**{"output_dir": "unused", "bf16": False, "use_cpu": True, "report_to": "none"} | settings)


def test_defaults_are_the_papers():
    args = config()
    paper = {
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
    }
    assert {name: getattr(args, name) for name in paper} == paper


def test_what_the_paper_leaves_open_is_the_safe_choice():
    args = config()
    assert args.thinking == "off"
    assert args.truncated == "incorrect"
    assert args.vllm_importance_sampling_correction is False


@pytest.mark.parametrize("steps", [1, 4])
def test_one_rollout_a_prompt_is_accepted_and_everything_else_of_trl_is_set(steps):
    args = config(num_generations=1, gradient_accumulation_steps=steps, per_device_train_batch_size=2)
    assert args.steps_per_generation == steps
    assert args.generation_batch_size == 2 * steps
    assert args.scale_rewards == "group"


def test_trl_still_refuses_one_rollout_with_the_message_that_the_config_looks_for():
    with pytest.raises(ValueError, match=r"^GRPO requires at least 2 generations per prompt"):
        GRPOConfig(output_dir="unused", num_generations=1, bf16=False, use_cpu=True, report_to="none")


def test_trls_other_refusals_still_stand():
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        config(num_generations=3, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="can not be both configured"):
        config(num_generations=1, steps_per_generation=2, generation_batch_size=8)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"teacher": "mirror"}, "teacher"),
        ({"retriever": "bm52"}, "retriever"),
        ({"truncated": "correct"}, "truncated"),
        ({"thinking": "matched"}, "thinking: matched is now called template"),
        ({"thinking": "no"}, "thinking"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "enable_thinking"),
        ({"long_prompts": "cut"}, "long_prompts"),
        ({"num_teachers": 0}, "num_teachers"),
        ({"num_generations": 0}, "num_generations"),
        ({"teacher_sync_steps": 0}, "teacher_sync_steps"),
        ({"max_tokens_per_chunk": 0}, "max_tokens_per_chunk"),
        ({"max_prompt_length": 0}, "max_prompt_length"),
        ({"score_temperature": 0.0}, "score_temperature"),
        ({"gate_tau": -1.0}, "gate_tau"),
        ({"gate_tau": float("nan")}, "gate_tau"),
        ({"support_clip": 0.0}, "support_clip"),
        ({"support_threshold": -0.1}, "support_threshold"),
        ({"support_threshold": float("nan")}, "support_threshold"),
        ({"sgsd_weight": -1.0}, "sgsd_weight"),
        ({"sgsd_weight": 0.0}, "sgsd_weight"),
        ({"grpo_weight": -1.0}, "grpo_weight"),
        ({"grpo_weight": 1.0}, "grpo_weight"),
        ({"retrieval_temperature": 0.0}, "retrieval_temperature"),
        ({"teacher_ema_decay": 1.0}, "teacher_ema_decay"),
        ({"teacher_ema_decay": -0.1}, "teacher_ema_decay"),
        ({"verifier_options": "{not json"}, "verifier_options"),
        ({"verifier_options": "[1]"}, "verifier_options"),
        # TRL's terms that are part of its own loss would be left out without a word
        ({"beta": 0.1}, "beta"),
        ({"entropy_coef": 0.01}, "entropy_coef"),
        ({"entropy_coef": 0.01, "grpo_weight": 1.0, "num_generations": 2}, "entropy_coef"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy"),
        ({"support_baseline": "plain"}, "support_baseline"),
        ({"support_baseline": "control", "objective": "local"}, "local"),
        ({"ledger_share": 0.0}, "ledger_share"),
        ({"ledger_share": 1.5}, "ledger_share"),
        ({**GUIDED, "teacher_guidance": -1.0}, "teacher_guidance"),
        ({**GUIDED, "support_baseline": "none"}, "support_baseline control"),
        ({**GUIDED, "objective": "gated"}, "objective correction"),
        ({**GUIDED, "teacher": "live"}, "teacher frozen"),
        ({**GUIDED, "teacher": "ema"}, "teacher frozen"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_name_in_one_line(settings, named):
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message


def test_a_guided_teacher_that_stands_still_is_accepted():
    assert config(**GUIDED).teacher_guidance == 2


def test_grpo_weight_needs_groups_and_takes_them():
    with pytest.raises(ConfigError, match="groups"):
        config(grpo_weight=0.5)
    args = config(grpo_weight=0.5, num_generations=2, beta=0.1)
    assert args.grpo_weight == 0.5
    assert config(sgsd_weight=0.0, grpo_weight=1.0, num_generations=4).sgsd_weight == 0


def test_verifier_options_may_be_json_or_a_mapping():
    assert config(verifier_options='{"ignore_case": false}').verifier_options == {"ignore_case": False}
    assert config(verifier_options={"ignore_case": False}).verifier_options == {"ignore_case": False}
    assert config().verifier_options is None


OF_GRPOS_LOSS = [
    {"loss_type": "grpo"},
    {"epsilon": 0.1},
    {"epsilon_high": 0.28},
    {"delta": 4.0},
    {"top_entropy_quantile": 0.2},
    {"importance_sampling_level": "sequence"},
    {"off_policy_mask_threshold": 0.5},
    {"use_bias_correction_kl": False},
    {"sapo_temperature_pos": 2.0},
]
OF_ITS_ADVANTAGES = [{"scale_rewards": "none"}, {"multi_objective_aggregation": "normalize_then_sum"}]


@pytest.mark.parametrize("settings", [*OF_GRPOS_LOSS, *OF_ITS_ADVANTAGES])
@pytest.mark.parametrize("method", ["sgsd", "opsd"])
def test_what_only_grpos_loss_reads_is_refused_where_that_loss_is_off(method, settings):
    """At 029fdea these were accepted, and without effect."""
    own = {"output_dir": "unused", "bf16": False, "use_cpu": True, "report_to": "none", "num_generations": 2}
    with pytest.raises(ConfigError, match="without effect") as caught:
        CONFIGS[method](**own, **settings)
    assert next(iter(settings)) in str(caught.value)
    assert "\n" not in str(caught.value)
    for reads in ({"method": "grpo"}, {"method": "sgsd", "grpo_weight": 0.5}):
        args = CONFIGS[reads.pop("method")](**own, **settings, **reads)
        assert vars(args)[next(iter(settings))] == next(iter(settings.values()))


@pytest.mark.parametrize("settings", [*OF_GRPOS_LOSS, *OF_ITS_ADVANTAGES])
def test_an_objective_of_advantages_takes_what_shapes_them_and_refuses_the_rest(settings):
    make = lambda: config(objective="reweight", num_generations=2, **settings)  # noqa: E731
    if settings in OF_ITS_ADVANTAGES:
        assert make().objective == "reweight"
    else:
        with pytest.raises(ConfigError, match=next(iter(settings))):
            make()
