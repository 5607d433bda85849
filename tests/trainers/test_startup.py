"""What would fail late or teach nothing is one line before the first step; what is sound passes."""

from __future__ import annotations

import asyncio
import functools
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import trl
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig

from sgsd.engines.models import end_of_completion_ids
from sgsd.errors import ConfigError, DataError
from sgsd.trainers.model import (
    is_initial_without_adapter,
    refuse_prompt_learning,
    settle_generation_config,
    without_model_sampling,
)
from sgsd.trainers.rewards import VerifierReward, check_reward, check_reward_arguments
from sgsd.trainers.tokens import check_batch, check_tokens, thinking_of
from sgsd.verifiers import Outcome, Verdict, get_verifier

from ..conftest import make_model, make_tokenizer
from ..families.models import make
from .tiny import EOS, LORA, make_config, make_trainer

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


def tokenizer_with(*, special=None, template=None, **changes):
    tokenizer = make_tokenizer()
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.chat_template = template or tokenizer.chat_template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


TURNS = "{% for m in messages %}<|turn|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("tokenizer", "ends", "said"),
    [
        (tokenizer_with(), [EOS, 259], None),
        (tokenizer_with(chat_template=None), [EOS], None),
        (
            tokenizer_with(special={"pad_token": "<|filler|>"}),
            [EOS],
            r"the padding token is not in the .*<\|filler\|>.*ids below 260",
        ),
        (tokenizer_with(), [EOS, 700], "an end token is not in the model's vocabulary: got 700"),
        (tokenizer_with(), [-1], "an end token is not in the model's vocabulary: got -1;"),
        (tokenizer_with(), ["2"], "an end token is not in the model's vocabulary: got '2';"),
        (
            tokenizer_with(special={"additional_special_tokens": ["<|turn|>"]}, template=TURNS),
            [EOS],
            r"a token of the template is not in .*<\|turn\|>",
        ),
        (tokenizer_with(pad_token=None), [EOS], "no padding token"),
        (tokenizer_with(eos_token=None), [EOS], "no end token"),
    ],
)
def test_tokens_that_the_model_has_no_row_for_are_one_line(tokenizer, ends, said):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    ends = end_of_completion_ids(model, tokenizer) if tokenizer.eos_token else ends
    if said is None:
        check_tokens(260, tokenizer, ends)
        return
    with pytest.raises(ConfigError, match=said) as refused:
        check_tokens(260, tokenizer, ends)
    assert "\n" not in str(refused.value)


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
    with without_model_sampling(model.generation_config):
        assert sampled(model) == plain
    assert model.generation_config.to_dict() == before  # and is saved with the model
    line = settle_generation_config(model.generation_config)
    assert name == "repetition_penalty" or f"not applied to rollouts: {name} {SHIPPED[name]}" in line


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


@pytest.mark.parametrize(
    ("template", "kwargs", "budget", "said"),
    [
        ("qwen3", {}, 1024, "max_completion_length 1024 .*set thinking: off"),
        ("deepseekv3", {}, 1024, "set max_completion_length of 4096 or more"),
        ("qwen3", {}, 4096, None),
        ("qwen3", {"enable_thinking": False}, 64, None),
        ("llama3", {}, 64, None),
    ],
)
def test_a_budget_too_short_to_think_in_is_one_line_with_the_remedy(template, kwargs, budget, said):
    line = thinking_of(templated(template), kwargs).warning(budget)
    assert (line is None) if said is None else re.search(said, line)
    assert line is None or "\n" not in line


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


def raising(completions, numbers, **_):
    return [1.0 for _ in completions]


def of_text(prompts, completions, **_):
    return [float(len(prompt + completion)) for prompt, completion in zip(prompts, completions, strict=True)]


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
        (
            raising,
            r"raising fails on a made-up completion.*TypeError.*numbers.*has the columns answer, problem",
        ),
        (raising_later, r"raising_later fails .*TypeError"),
        (functools.partial(raising, numbers=1), None),
        (lambda **_: 1 / 0, "ZeroDivisionError"),
        (lambda **_: 1.0, "does not return a list: got 1.0"),
        (lambda **_: None, "does not return a list: got None"),
        (lambda **_: [1.0], "returns 1 rewards"),
        (lambda **_: [1.0] * 3, "returns 3 rewards"),
        (lambda **_: ["good", "bad"], "returns a wrong value: got 'good'"),
        (lambda **_: [[1.0], [1.0]], "returns a wrong value"),
        (lambda **_: [math.inf, 0.0], "returns a wrong value: got inf"),
        (lambda **_: [math.nan, None], None),
        (lambda **_: (True, 1), None),
        (lambda **_: torch.tensor([0.5, 1.0]), None),
        (Judge([1.0, 0.0]), None),
        (of_text, None),
        (Judge([1.0]), "Judge returns 1 rewards"),
        (torch.nn.Linear(1, 1), None),  # a reward model is TRL's to call
    ],
)
def test_a_reward_function_that_would_fail_stops_at_once(function, said):
    row = {"prompt": "Add 2 and 3."} if function is of_text else ROW
    if said is None:
        checked(function, row=row)
        return
    with pytest.raises(ConfigError, match=said) as refused:
        checked(function, row=row)
    assert "\n" not in str(refused.value)


def test_an_asynchronous_function_is_awaited_inside_a_notebook_s_loop_too():
    async def notebook():
        checked(lambda **_: [0.0, 1.0], Judge([1.0, 0.0]))
        with pytest.raises(ConfigError, match="raising"):  # every function is called
            checked(lambda **_: [0.0, 1.0], raising)

    asyncio.run(notebook())


class Failing:
    """As a verifier whose worker process raises on everything."""

    def verify_many(self, completions, answers):
        return [Verdict(Outcome.UNDECIDED, "verifier error: ValueError: no unit") for _ in completions]


@pytest.mark.parametrize(
    ("verifier", "got"),
    [("math", None), ("json:loads", "the reward function needs s"), (Failing(), "ValueError: no unit")],
)
def test_a_verifier_whose_every_verdict_is_an_error_stops_at_once(verifier, got):
    judge = get_verifier(verifier, workers=1) if isinstance(verifier, str) else verifier
    reward = VerifierReward(judge, name="judge", end_ids={EOS}, max_length=99, truncated="incorrect")
    if got is None:
        checked(reward)
    else:
        with pytest.raises(ConfigError, match=f"verifier judge fails on a made-up completion: got {got}"):
            checked(reward)


def test_what_cannot_verify_is_refused_by_what_it_is(tmp_path):
    for thing, got in (("math", "'math'"), (3, "int")):
        with pytest.raises(ConfigError, match=f"verifier has no verify_many: got {got};"):
            check_reward_arguments(None, None, thing)
    for thing in (get_verifier("exact"), raising):  # a reward function is taken
        check_reward_arguments(make_config(tmp_path), None, thing)


# ---- adapters


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
    model = get_peft_model(make_model(attention_bias=True), config).eval()
    assert is_initial_without_adapter(model, config) is still
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
        refuse_prompt_learning(make_model(), VIRTUAL[kind])
    with pytest.raises(ConfigError, match=f"got {kind}"):
        refuse_prompt_learning(get_peft_model(make_model(), VIRTUAL[kind]))


def test_adapters_of_weights_pass():
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    for model, config in ((make_model(), None), (make_model(), lora), (get_peft_model(make_model(), lora), None)):
        refuse_prompt_learning(model, config)


# ---- a model that computes what scoring takes for granted


@pytest.mark.parametrize(("name", "said"), [("recurrent-gemma", True), ("llama", False), ("mamba-2", False)])
def test_rollouts_that_depend_on_their_padding_are_a_line_before_the_first_step(tmp_path, caplog, name, said):
    make_trainer(tmp_path, model=make(name)).train()
    lines = [record.getMessage() for record in caplog.records if "padding on the left" in record.getMessage()]
    assert len(lines) == said
    assert all("RecurrentGemmaForCausalLM" in line and "\n" not in line for line in lines)


def test_a_model_that_sees_later_tokens_is_refused_before_the_first_step(tmp_path):
    """It would be scored by tokens that it had not seen when it sampled."""
    config = transformers.BertConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_attention_heads=4, initializer_range=0.3
    )
    trainer = make_trainer(tmp_path, model=transformers.BertLMHeadModel(config))
    with pytest.raises(ConfigError, match="tokens attend to later tokens: got BertLMHeadModel"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.model.training


def test_an_adapter_of_a_router_is_one_line_with_the_remedy(tmp_path):
    config = transformers.PhimoeConfig(
        **make_model().config.to_diff_dict() | {"num_local_experts": 4, "router_jitter_noise": 0.0}
    )
    with pytest.raises(ConfigError, match=r"a PhimoeTopKRouter: .*exclude_modules=\['router'\]") as refused:
        make_trainer(tmp_path, model=transformers.PhimoeForCausalLM(config), peft_config=LoraConfig(**LORA)).train()
    assert "\n" not in str(refused.value)
    without = LoraConfig(**LORA, exclude_modules=["router"])
    make_trainer(tmp_path, model=transformers.PhimoeForCausalLM(config), peft_config=without).train()


def test_experts_that_there_are_none_of_have_no_loss(tmp_path):
    """Granite-4.0-Micro: the configuration of a mixture, a dense model. Seen before: no step by any method."""
    trainer = make_trainer(tmp_path, model=make("granite-4-dense"))
    assert trainer.router_aux_loss_coef
    assert not trainer.aux_loss_enabled
    assert make_trainer(tmp_path, model=make("granite-4")).aux_loss_enabled
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef would have no effect: got Granite.* without experts"):
        make_trainer(tmp_path, model=make("granite-4-dense"), router_aux_loss_coef=0.1)
