"""The start-up check: what would fail late or teach nothing is one line before the first step; what is sound passes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from sgsd.engines.models import end_of_completion_ids
from sgsd.errors import ConfigError, DataError
from sgsd.trainers.config import CONFIGS, SGSDConfig
from sgsd.trainers.rewards import VerifierReward
from sgsd.trainers.startup import (
    IDLE_WITHOUT_GRPO,
    LOSS_TYPES,
    check_batch,
    check_pieces,
    check_reward,
    check_tokens,
    check_verifier,
    refuse_idle_settings,
    refuse_prompt_learning,
    sampling_as_asked,
    settle_generation_config,
    stands_still_without_adapter,
    thinking_of,
)
from sgsd.verifiers import get_verifier

from ..conftest import make_model, make_tokenizer
from .tiny import EOS, make_config

# ---- settings alone


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1.0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"max_steps": 0},
        {"max_steps": -1, "num_train_epochs": 0},
        {"weight_decay": -0.1},
        {"adam_beta2": 1.0},
        {"adam_epsilon": -1.0},
        {"adam_epsilon": 0.0},
        {"neftune_noise_alpha": -1.0},
        {"pad_to_multiple_of": 0},
        {"dataloader_prefetch_factor": 0, "dataloader_num_workers": 2},
        {"remove_unused_columns": True},
        {"save_strategy": "best"},
        {"sync_ref_model": True, "grpo_weight": 1.0, "num_generations": 2},
        {"max_completion_length": None},
        {"temperature": math.inf},
        {"gate_tau": math.inf},
        {"success_threshold": math.nan},
        {"reward_weights": [math.nan]},
        {"num_iterations": 0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"lr_scheduler_type": "cosine_with_min_lr"},  # without its min_lr
        {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
    ],
    ids=str,
)
def test_settings_that_could_not_train_are_refused_with_the_configuration(tmp_path, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))) as refused:
        make_config(tmp_path, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["loss_type", "scale_rewards", "importance_sampling_level", "multi_objective_aggregation"]
)
def test_a_kind_that_trl_would_not_know_in_its_first_step_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"unknown {name}"):
        make_config(tmp_path, method="grpo", **{name: "tokens"})


def test_every_loss_that_trl_knows_passes(tmp_path):
    for name in LOSS_TYPES:
        assert make_config(tmp_path, method="grpo", loss_type=name).loss_type == name


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}, "warmup_steps": 0.1},
        {"max_steps": -1, "num_train_epochs": 0.5},
        {"weight_decay": 0.0, "top_k": 0, "min_p": 0.05},
        {"scale_rewards": True, "grpo_weight": 1.0, "num_generations": 2},
    ],
    ids=str,
)
def test_settings_that_train_pass(tmp_path, settings):
    make_config(tmp_path, **settings)


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_an_instruction_of_blanks_is_empty(tmp_path, instruction):
    assert make_config(tmp_path, instruction=instruction).instruction == ""


def test_no_instruction_stays_none(tmp_path):
    """It ends problems then, and leaves alone the prompts that the data bring in full."""
    assert make_config(tmp_path, instruction=None).instruction is None


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


def changed(name):
    default = {field.name: field.default for field in dataclasses.fields(SGSDConfig)}[name]
    if name in CHANGED:
        return CHANGED[name]
    return not default if isinstance(default, bool) else 0.5 * (default or 1.0)


@pytest.mark.parametrize("name", IDLE_WITHOUT_GRPO)
def test_a_setting_that_nothing_reads_is_refused(name):
    idle = SGSDConfig()
    setattr(idle, name, changed(name))
    with pytest.raises(ConfigError, match=f"without effect.*{name} "):
        refuse_idle_settings(idle, uses_grpo_loss=False)
    refuse_idle_settings(idle, uses_grpo_loss=True)


def test_what_shapes_advantages_is_read_by_a_loss_of_advantages():
    args = SGSDConfig()
    args.scale_rewards, args.multi_objective_aggregation = "none", "normalize_then_sum"
    refuse_idle_settings(args, uses_grpo_loss=False, uses_advantages=True)
    args.epsilon = 0.1
    with pytest.raises(ConfigError, match=r"got epsilon 0\.1;"):
        refuse_idle_settings(args, uses_grpo_loss=False, uses_advantages=True)


@pytest.mark.parametrize(
    ("method", "settings", "refused"),
    [
        ("sgsd", {}, True),
        ("opsd", {}, True),
        ("grpo", {}, False),
        ("sgsd", {"grpo_weight": 1.0, "num_generations": 2}, False),
        ("sgsd", {"guard": "grpo", "num_generations": 2}, False),  # GRPO's loss may take over
    ],
)
def test_configurations_refuse_idle_settings_by_their_loss(tmp_path, method, settings, refused):
    if refused:
        with pytest.raises(ConfigError, match="without effect"):
            make_config(tmp_path, method=method, loss_type="dr_grpo", **settings)
    else:
        assert make_config(tmp_path, method=method, loss_type="dr_grpo", **settings).loss_type == "dr_grpo"


def test_what_trl_and_transformers_refuse_of_a_configuration_is_one_line(tmp_path):
    for settings in ({"generation_batch_size": 6}, {"top_p": None}, {"accelerator_config": {"nonsense": 1}}):
        with pytest.raises(ConfigError, match="the settings cannot be used: got ") as refused:
            make_config(tmp_path, **settings)
        assert "\n" not in str(refused.value)


GRPO_TOO = {"grpo_weight": 1.0, "num_generations": 2}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim_args": "nonsense"}, "optim_args nonsense"),
        ({"optim": "adamw_8bit"}, "package these settings need is missing: got .*bitsandbytes"),
        (
            {"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"x": 1}},
            "gradient_checkpointing_kwargs",
        ),
        ({"generation_kwargs": {"num_return_sequences": 2}}, "generation_kwargs with num_return_sequences: got 2"),
        ({"generation_kwargs": {"return_dict_in_generate": True}}, "generation_kwargs with return_dict_in_generate"),
        ({"cache_implementation": "nonsense"}, "cache_implementation nonsense cannot be used"),
        (
            {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": {"x": 1}},
            "transformers_continuous_batching_config {'x': 1} cannot be used",
        ),
        ({"use_liger_kernel": True}, "use_liger_kernel needs a package that is missing"),
        ({"use_vllm": True}, "use_vllm needs a package that is missing"),
        ({"sync_ref_model": True, "beta": 0.1, **GRPO_TOO}, "sync_ref_model does not go with an adapter"),
    ],
    ids=str,
)
def test_pieces_that_could_not_be_built_are_refused_by_their_setting(tmp_path, monkeypatch, settings, said):
    for package in ("liger_kernel", "vllm"):
        monkeypatch.setattr(f"sgsd.trainers.startup.is_{package}_available", lambda: False)
    args = make_config(tmp_path, **settings)
    with pytest.raises(ConfigError, match=said) as refused:
        check_pieces(args, adapted=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adafactor"},
        {"optim": "adamw_torch", "optim_args": "amsgrad=True"},
        {"optim": "galore_adamw"},  # looks at the model
        {"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"generation_kwargs": {"num_beams": 2, "num_return_sequences": 1}},
        {"sync_ref_model": True, "beta": 0.1, **GRPO_TOO},
    ],
    ids=str,
)
def test_pieces_that_can_be_built_pass(tmp_path, settings):
    check_pieces(make_config(tmp_path, **settings), adapted=False)


# ---- the device


@pytest.mark.parametrize("method", CONFIGS)
def test_a_configuration_of_defaults_works_without_a_gpu(tmp_path, monkeypatch, method):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for settings in ({}, {"bf16": True}, {"fp16": False}):
        args = CONFIGS[method](output_dir=str(tmp_path), **settings)
        assert args.use_cpu
        assert args.device.type == "cpu"


@pytest.mark.parametrize(
    ("capability", "bf16"), [("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx2", False)]
)
def test_bfloat16_is_used_where_the_processor_computes_in_it(tmp_path, monkeypatch, capability, bf16):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x", capability: True})
    assert SGSDConfig(output_dir=str(tmp_path)).bf16 is bf16
    assert SGSDConfig(output_dir=str(tmp_path), bf16=not bf16).bf16 is not bf16  # what is said stays


def test_an_accelerator_is_not_left_unused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    for bf16 in (True, False):
        monkeypatch.setattr("sgsd.trainers.startup.is_torch_bf16_gpu_available", lambda bf16=bf16: bf16)
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda bf16=bf16: bf16)
        args = SGSDConfig(output_dir=str(tmp_path))
        assert (args.use_cpu, args.bf16) == (False, bf16)


# ---- data


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, 6),
        ({"per_device_train_batch_size": 4, "num_generations": 4}, 1),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "num_generations": 2}, 6),
        ({"per_device_train_batch_size": 4, "generation_batch_size": 16, "num_generations": 2}, 8),
        ({"per_device_train_batch_size": 4, "steps_per_generation": 3}, 12),
    ],
    ids=str,
)
def test_a_batch_needs_as_many_problems_as_trl_s_sampler_draws_at_once(tmp_path, settings, needed):
    args = make_config(tmp_path, **settings)
    check_batch(needed, args)
    with pytest.raises(DataError, match=rf"got {needed - 1}; expected at least {needed} \(") as refused:
        check_batch(needed - 1, args)
    assert "\n" not in str(refused.value)
    for rows, batches in ((needed - 1, 0), (needed, 1)):  # what TRL makes of it
        sampler = trl.trainer.utils.RepeatSampler(
            range(rows), args.num_generations, args.generation_batch_size // args.num_generations
        )
        assert len(sampler) // args.generation_batch_size == batches


def test_the_batch_counts_every_process(tmp_path):
    args = make_config(tmp_path, per_device_train_batch_size=4)
    four = SimpleNamespace(**vars(args) | {"generation_batch_size": 16}, world_size=4)
    with pytest.raises(DataError, match=r"got 15; expected at least 16 \(.*processes 4"):
        check_batch(15, four)


# ---- tokens


def templated(name):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    return tokenizer


def test_tokens_of_a_model_and_its_own_tokenizer_pass(tokenizer):
    check_tokens(264, tokenizer, [EOS, 263])


def test_a_padding_token_beyond_the_vocabulary_is_one_line():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|filler|>"})
    with pytest.raises(ConfigError, match=r"the padding token is not in the .*<\|filler\|>.*ids below 260") as refused:
        check_tokens(260, tokenizer, [EOS])
    assert "\n" not in str(refused.value)


def test_an_end_token_beyond_the_vocabulary_is_one_line(tokenizer):
    with pytest.raises(ConfigError, match="an end token is not in the model's vocabulary: got 700"):
        check_tokens(264, tokenizer, [EOS, 700])


@pytest.mark.parametrize("token", [-1, "2"])
def test_an_end_token_that_is_no_id_is_one_line(tokenizer, token):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=token))
    with pytest.raises(ConfigError, match=f"an end token is not in the model's vocabulary: got {token!r};"):
        check_tokens(264, tokenizer, end_of_completion_ids(model, tokenizer))


def test_a_tokenizer_without_a_chat_template_passes():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    check_tokens(264, tokenizer, [EOS])
    assert not thinking_of(tokenizer).thinks


def test_a_template_of_tokens_beyond_the_vocabulary_is_one_line():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(ConfigError, match=r"a token of the template is not in .*<\|turn\|>"):
        check_tokens(260, tokenizer, [EOS])


@pytest.mark.parametrize(("missing", "said"), [("pad_token", "no padding token"), ("eos_token", "no end token")])
def test_unknown_padding_and_end_are_one_line(missing, said):
    tokenizer = make_tokenizer()
    setattr(tokenizer, missing, None)
    with pytest.raises(ConfigError, match=said):
        check_tokens(264, tokenizer, [EOS])


# ---- the checkpoint's own sampling


def hot(**settings):
    """As vicuna and its kin ship it, and touched as TRL does: transformers saves it only while it is as loaded."""
    config = GenerationConfig.from_dict({"eos_token_id": EOS, **settings})
    config.pad_token_id = EOS
    return config


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.65, "top_p": 0.85},
        {"top_k": 10, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4},
        {"early_stopping": True, "length_penalty": 0.8},
    ],
)
def test_a_generation_config_that_could_not_be_saved_is_mended(tmp_path, settings):
    config = hot(**settings)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        config.save_pretrained(tmp_path)
    line = settle_generation_config(config)
    assert all(name in line for name in settings)
    assert "\n" not in line
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == EOS


def test_what_cannot_be_mended_is_refused_in_a_line():
    config = hot()
    config.num_return_sequences = 3
    with pytest.raises(ConfigError, match="could not be saved") as refused:
        settle_generation_config(config)
    assert "\n" not in str(refused.value)


def test_a_plain_generation_config_is_left_as_it_is():
    config = hot(do_sample=True, temperature=0.6, top_p=0.95, top_k=20)  # TRL names these itself
    before = config.to_dict()
    assert settle_generation_config(config) is None
    assert config.to_dict() == before


SHIPPED = {
    "do_sample": True,
    "temperature": 0.3,
    "min_p": 0.9,
    "num_beams": 2,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(2, 200)),
    "eta_cutoff": 0.2,
    "typical_p": 0.2,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("do_sample", "temperature")])
def test_rollouts_are_sampled_as_asked_whatever_the_checkpoint_says(name):
    sampling = {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
    }
    tokens = {"max_new_tokens": 24, "pad_token_id": EOS, "eos_token_id": [EOS]}
    asked = GenerationConfig(**sampling, **tokens, disable_compile=True)  # as TRL makes it
    prompt = torch.arange(2, 12).repeat(4, 1)

    def sampled(model):
        torch.manual_seed(0)
        sampled = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=asked)
        return sampled.tolist() if isinstance(sampled, torch.Tensor) else sampled

    model, plain = make_model(), sampled(make_model())
    model.generation_config = GenerationConfig(
        eos_token_id=EOS, pad_token_id=EOS, do_sample=True, **{name: SHIPPED[name]}
    )
    if name != "repetition_penalty":  # which TRL names
        assert sampled(model) != plain
    before = model.generation_config.to_dict()
    with sampling_as_asked(model.generation_config):
        assert sampled(model) == plain
    assert model.generation_config.to_dict() == before  # and is saved with the model
    line = settle_generation_config(model.generation_config)
    assert name == "repetition_penalty" or f"not applied to rollouts: {name} {SHIPPED[name]}" in line


def test_an_adapter_s_model_samples_as_asked_too():
    model = make_model()
    model.generation_config.min_p = 0.9
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with sampling_as_asked(adapted.generation_config):
        assert model.generation_config.min_p is None
        adapted.generate(input_ids=torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)
    assert model.generation_config.min_p == 0.9


# ---- thinking


@pytest.mark.parametrize(
    ("template", "kwargs", "thinks", "off"),
    [
        ("qwen3", {}, True, {"enable_thinking": False}),
        ("qwen3", {"enable_thinking": True}, True, {"enable_thinking": False}),
        ("qwen3", {"enable_thinking": False}, False, {}),
        ("qwen3_5_think", {}, True, {"enable_thinking": False}),
        ("qwen3_5_nothink", {}, False, {}),
        ("qwen3_5_nothink", {"enable_thinking": True}, True, {"enable_thinking": False}),
        ("nemotron_3_nano", {}, True, {"enable_thinking": False}),
        ("glm4moe", {}, True, {"enable_thinking": False}),
        ("glm4moe", {"enable_thinking": False}, False, {}),
        ("gemma4", {}, False, {}),
        ("gemma4", {"enable_thinking": True}, True, {"enable_thinking": False}),
        ("deepseekv3", {}, True, {}),
        ("gptoss", {}, True, {}),
        ("qwen2_5", {}, False, {}),
        ("qwen3_instruct_2507", {}, False, {}),
        ("llama3", {}, False, {}),
    ],
)
def test_the_template_says_whether_rollouts_think_and_how_not_to(template, kwargs, thinks, off):
    state = thinking_of(templated(template), kwargs)
    assert (state.thinks, dict(state.off)) == (thinks, off)


def test_a_switch_of_another_name_is_found():
    tokenizer = make_tokenizer()
    off = "{% if thinking is defined and not thinking %}"
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>" + off + "</think>{% else %}<think>{% endif %}"
    assert thinking_of(tokenizer).off == {"thinking": False}
    assert "chat_template_kwargs: {thinking: false}" in thinking_of(tokenizer).warning(64)
    assert not thinking_of(tokenizer, {"thinking": False}).thinks


def test_a_budget_too_short_to_think_in_is_one_line_with_the_remedy():
    line = thinking_of(templated("qwen3")).warning(1024)
    assert "max_completion_length 1024" in line
    assert "set thinking: off" in line
    assert "\n" not in line
    assert "4096 or more" in thinking_of(templated("deepseekv3")).warning(1024)


def test_room_to_think_and_templates_that_do_not_think_need_no_warning():
    assert thinking_of(templated("qwen3")).warning(4096) is None
    assert thinking_of(templated("qwen3"), {"enable_thinking": False}).warning(64) is None
    assert thinking_of(templated("llama3")).warning(64) is None


# ---- rewards

ROW = {"prompt": [{"role": "user", "content": "Add 2 and 3."}], "answer": "5", "problem": "Add 2 and 3."}


def checked(*functions, row=ROW):
    check_reward(functions, row, make_tokenizer(), EOS)


def test_a_reward_function_is_given_what_trl_gives():
    seen = {}

    def reward(prompts, completions, completion_ids, **columns):
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids)
        columns["log_extra"]("x", [1, 2])
        columns["log_metric"]("y", 1.0)
        return [0.0, None]

    checked(reward)
    assert seen["prompts"] == [ROW["prompt"]] * 2
    assert [message["role"] for (message,) in seen["completions"]] == ["assistant"] * 2
    assert seen["answer"] == ["5", "5"]
    assert seen["trainer_state"].global_step == 0
    text = make_tokenizer().decode(seen["ids"][0], skip_special_tokens=True)
    assert text == seen["completions"][0][0]["content"]
    assert seen["ids"][0][-1] == EOS


def test_a_prompt_of_text_gets_completions_of_text():
    def reward(prompts, completions, **_):
        return [float(len(prompt + completion)) for prompt, completion in zip(prompts, completions, strict=True)]

    checked(reward, row={"prompt": "Add 2 and 3."})


def raising(completions, numbers, **_):
    return [1.0 for _ in completions]


async def raising_later(completions, numbers, **_):
    return [1.0 for _ in completions]


class Judge:
    def __init__(self, rewards):
        self.rewards = rewards

    async def __call__(self, **_):
        return self.rewards


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raising, r"raising fails on a made-up completion.*TypeError.*numbers.*columns of the data: answer, problem"),
        (raising_later, r"raising_later fails .*TypeError"),
        (functools.partial(raising, numbers=1), None),
        (lambda **_: 1 / 0, "ZeroDivisionError"),
        (lambda **_: 1.0, "returns no list: got 1.0"),
        (lambda **_: None, "returns no list: got None"),
        (lambda **_: [1.0], "returns 1 rewards"),
        (lambda **_: [1.0] * 3, "returns 3 rewards"),
        (lambda **_: ["good", "bad"], "returns what is no number: got 'good'"),
        (lambda **_: [[1.0], [1.0]], "returns what is no number"),
        (lambda **_: [math.inf, 0.0], "returns what is no number: got inf"),
        (lambda **_: [math.nan, None], None),
        (lambda **_: (True, 1), None),
        (lambda **_: torch.tensor([0.5, 1.0]), None),
        (Judge([1.0, 0.0]), None),
        (Judge([1.0]), "Judge returns 1 rewards"),
        (torch.nn.Linear(1, 1), None),  # a reward model is TRL's to call
    ],
)
def test_a_reward_function_that_would_fail_stops_at_once(function, said):
    if said is None:
        checked(function)
        return
    with pytest.raises(ConfigError, match=said) as refused:
        checked(function)
    assert "\n" not in str(refused.value)


def test_an_asynchronous_function_is_awaited_inside_a_notebook_s_loop_too():
    async def notebook():
        checked(Judge([1.0, 0.0]))

    asyncio.run(notebook())


def test_every_function_is_called_not_only_the_first():
    with pytest.raises(ConfigError, match="raising"):
        checked(lambda **_: [0.0, 1.0], raising)


@pytest.mark.parametrize(("name", "said"), [("math", None), ("json:loads", "json:loads fails on a made-up completion")])
def test_a_verifier_whose_every_verdict_is_an_error_stops_at_once(name, said):
    verifier = get_verifier(name, workers=1)
    reward = VerifierReward(verifier, name=name, end_ids={EOS}, truncated="incorrect")
    if said is None:
        checked(reward)
    else:
        with pytest.raises(ConfigError, match=said):
            checked(reward)


def test_what_cannot_verify_is_refused_by_what_it_is():
    for thing, got in (("math", "'math'"), (3, "int")):
        with pytest.raises(ConfigError, match=f"verifier cannot verify: got {got};"):
            check_verifier(thing)
    check_verifier(get_verifier("exact"))
    check_verifier(raising)  # a reward function is taken


# ---- adapters


def biased_model():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
    ).eval()  # fmt: skip


@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")  # PEFT's own word for it
@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({}, True),
        ({"init_lora_weights": "gaussian"}, True),
        ({"use_dora": True}, True),
        ({"use_rslora": True}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"trainable_token_indices": [3, 5]}, True),
        ({"bias": "lora_only"}, False),
        ({"bias": "all"}, False),
    ],
    ids=str,
)
def test_a_teacher_without_the_adapter_stands_still_exactly_where_it_is_said_to(settings, still):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings)
    model = get_peft_model(biased_model(), config).eval()
    assert stands_still_without_adapter(model, config) is still
    ids = torch.tensor([[1, 3, 5, 7]])
    with torch.no_grad():
        start = model(input_ids=ids).logits
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
        with model.disable_adapter():
            moved = (model(input_ids=ids).logits - start).abs().max()
    assert bool(moved < 1e-6) is still


VIRTUAL = {
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "P_TUNING": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_adapters_of_virtual_tokens_are_refused_new_and_loaded(kind):
    with pytest.raises(ConfigError, match=f"virtual tokens are not supported: got {kind}"):
        refuse_prompt_learning(biased_model(), VIRTUAL[kind])
    with pytest.raises(ConfigError, match=f"got {kind}"):
        refuse_prompt_learning(get_peft_model(biased_model(), VIRTUAL[kind]))


def test_adapters_of_weights_pass():
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    refuse_prompt_learning(biased_model())
    refuse_prompt_learning(biased_model(), lora)
    refuse_prompt_learning(get_peft_model(biased_model(), lora))
