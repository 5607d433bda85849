"""What TRL's trainer takes, these take as well, or refuse in one line before anything is loaded."""

from __future__ import annotations

import asyncio
import functools

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import LlavaProcessor, T5Config, T5ForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from trl import GRPOConfig

from sgsd import GRPOBaselineTrainer, OPSDTrainer, SGSDTrainer
from sgsd.errors import ConfigError, DataError, SGSDError
from sgsd.verifiers import get_verifier

from ..conftest import make_model, make_tokenizer
from .tiny import EOS, PROBLEMS, SOLVED, by_parity, make_bank, make_config, make_trainer

SUMS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"{n} + {n}?"}], "level": n, "answer": [n, 2 * n]} for n in range(8)]
)
TEXTS = Dataset.from_list([{"prompt": f"{n} + {n} ="} for n in range(8)])


# ---- reward functions


def by_the_schedule(completion_ids, trainer_state, **_):
    done = trainer_state.global_step / trainer_state.max_steps + trainer_state.epoch / trainer_state.num_train_epochs
    return [done for _ in completion_ids]


def of_whole_groups(completions, **_):
    assert len(completions) % 4 == 0
    return [1.0 for _ in completions]


def naming_columns(prompts, completions, completion_ids, level, answer, trainer_state, log_extra, log_metric):
    return [float(sum(ids) % 2) for ids in completion_ids]


async def naming_columns_later(prompts, completions, completion_ids, level, answer, trainer_state, **logs):
    return [float(sum(ids) % 2) for ids in completion_ids]


async def waiting(completions, completion_ids, level, answer, prompts, trainer_state, log_extra, log_metric):
    return [1.0 for _ in completions]


@pytest.mark.parametrize(
    ("reward", "settings"),
    [
        (by_the_schedule, {}),
        (by_the_schedule, {"max_steps": -1, "num_train_epochs": 0.5}),
        (of_whole_groups, {"num_generations": 4}),
        (naming_columns, {}),
        (naming_columns_later, {}),
        (waiting, {}),
        (functools.partial(naming_columns), {}),
    ],
)
@pytest.mark.parametrize("method", ["sgsd", "grpo"])
def test_reward_functions_that_trl_trains_with_train_here(tmp_path, reward, settings, method):
    trainer = make_trainer(tmp_path, method=method, reward=reward, problems=SUMS, **settings)
    assert trainer.train().global_step == trainer.state.max_steps


def test_an_asynchronous_judge_stays_on_one_loop(tmp_path):
    """A semaphore that had to wait belongs to the loop it waited on."""
    semaphore = asyncio.Semaphore(1)
    loops = set()

    async def judged(ids):
        async with semaphore:
            await asyncio.sleep(0.001)
            loops.add(asyncio.get_running_loop())
            return float(sum(ids) % 2)

    async def judge(completion_ids, **_):
        return await asyncio.gather(*map(judged, completion_ids))

    trainer = make_trainer(tmp_path, reward=judge)
    trainer.train()
    assert loops == {trainer.async_loop}


def test_what_a_rollout_function_returns_besides_reaches_rewards(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def rollouts(prompts, trainer):
        ids = [trainer.renderer.student_ids(prompt) for prompt in prompts]
        ends = [[60, 61, EOS] for _ in ids]
        return {"prompt_ids": ids, "completion_ids": ends, "logprobs": [[-1.0] * 3] * len(ids), "won": [1.0] * len(ids)}

    seen = []

    def reward(completions, won, **_):
        seen.extend(won)
        return won

    make_trainer(tmp_path, reward=reward, rollout_func=rollouts).train()
    assert seen == [1.0] * 4


@pytest.mark.parametrize(
    ("reward", "settings", "verifier", "said"),
    [
        (get_verifier("exact"), {}, None, "reward_funcs contains no reward function: got PooledVerifier"),
        ("math", {}, None, "reward_funcs contains no reward function: got 'math'"),
        ((by_parity,), {}, None, "reward_funcs contains no reward function: got tuple"),
        ([], {}, None, "reward_funcs is empty"),
        (by_parity, {}, get_verifier("exact"), "verifier would have no effect beside reward_funcs"),
        (
            by_parity,
            {"reward_weights": [1.0, 2.0]},
            None,
            "differ in number: got 2 weights; expected 1",
        ),
        (None, {"reward_weights": [1.0]}, None, "no effect where a verifier judges"),
        (None, {"success_threshold": 0.7}, None, "no effect where a verifier judges"),
        (by_parity, {"verifier": "exact"}, None, "no effect beside reward_funcs: got verifier exact"),
        (by_parity, {"verifier_options": {"timeout": 3}}, None, "no effect beside reward_funcs: got verifier math"),
    ],
)
def test_rewards_that_nothing_could_make_of(tmp_path, reward, settings, verifier, said):
    with pytest.raises(ConfigError, match=said) as refused:
        make_trainer(tmp_path, reward=reward, verifier_object=verifier, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["sgsd", "grpo"])
def test_a_function_as_verifier_is_a_reward_function(tmp_path, method):
    """Seen before the mend: "reward function math fails on a made-up completion: … no attribute 'verify_many'"."""
    given = {"reward": None, "problems": SUMS, "success_threshold": 0.7}
    trainer = make_trainer(tmp_path, method=method, verifier_object=naming_columns, **given)
    assert trainer.reward_func_names == ["naming_columns"]
    trainer.train()


# ---- arguments of another kind


@pytest.mark.parametrize("name", ["tools", "environment_factory"])
def test_tools_and_environments_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} is not supported: leave it out") as refused:
        SGSDTrainer("no/such-model", by_parity, make_config(tmp_path), PROBLEMS, **{name: [print]})
    assert "\n" not in str(refused.value)


def configuration(tmp_path):
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")


@pytest.mark.parametrize("trainer", [SGSDTrainer, OPSDTrainer, GRPOBaselineTrainer])
def test_a_configuration_of_another_class(tmp_path, trainer):
    others = [make_config(tmp_path, method=method) for method in ("sgsd", "opsd", "grpo") if method != trainer.method]
    for args in (configuration(tmp_path), {"output_dir": "x"}, "runs/x", *others):
        with pytest.raises(ConfigError, match=f"{trainer.__name__} cannot use this args: got .*; expected"):
            trainer(model="no/such-model", args=args, train_dataset=SOLVED)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"model": None}, ConfigError, "cannot use this model: got None"),
        ({"model": make_model().model}, ConfigError, "cannot use this model: got .*; expected a causal language model"),
        (
            {
                "model": T5ForConditionalGeneration(
                    T5Config(vocab_size=264, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
                )
            },
            ConfigError,
            "cannot use this model: got T5ForConditionalGeneration",
        ),
        ({"processing_class": "folder"}, ConfigError, "cannot use this processing_class: got 'folder'"),
        ({"peft_config": {"r": 8}}, ConfigError, "cannot use this peft_config: got dict"),
        ({"train_dataset": [{"prompt": "a"}] * 8}, DataError, "got list of dict; expected datasets.Dataset"),
        ({"train_dataset": "openai/gsm8k"}, DataError, "got str; expected datasets.Dataset"),
    ],
)
def test_arguments_of_another_kind(tmp_path, given, error, said):
    arguments = {"model": "no/such-model", "reward_funcs": by_parity, "train_dataset": PROBLEMS, "bank": make_bank()}
    with pytest.raises(error, match=said) as refused:
        SGSDTrainer(args=make_config(tmp_path), **arguments | given)
    assert "\n" not in str(refused.value)


# ---- tokenizers, prompts, evaluation


def test_the_tokenizer_of_a_processor_is_used(tmp_path):
    processor = LlavaProcessor(CLIPImageProcessorPil(), make_tokenizer(), patch_size=14)
    trainer = make_trainer(tmp_path, tokenizer=processor)
    trainer.train()
    assert trainer.processing_class is processor.tokenizer


def test_a_tokenizer_without_padding_pads_with_the_end_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    trainer = make_trainer(tmp_path, tokenizer=tokenizer)
    assert trainer.processing_class.pad_token_id == EOS
    trainer.train()


@pytest.mark.parametrize("method", ["sgsd", "grpo"])
def test_text_needs_no_chat_template(tmp_path, method):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    trainer = make_trainer(tmp_path, method=method, tokenizer=tokenizer, problems=TEXTS, instruction=None)
    assert trainer.train_dataset["prompt"] == TEXTS["prompt"]
    trainer.train()
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        make_trainer(tmp_path, tokenizer=tokenizer, problems=SUMS)


def test_a_policy_that_writes_bank_items_needs_a_chat_template(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        make_trainer(tmp_path, tokenizer=tokenizer, problems=TEXTS, maintenance_frequency=1)


def test_several_evaluation_sets_by_name(tmp_path):
    halves = {"low": SUMS.select(range(2)), "high": SUMS.select(range(2, 4))}
    trainer = make_trainer(tmp_path, problems=SUMS, eval_dataset=halves)
    trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "eval_reward" in entry]  # as TRL logs them
    assert ["eval_low_loss" in entry for entry in logs] == [True, False]
    assert ["eval_high_loss" in entry for entry in logs] == [False, True]


def test_the_tokenizer_is_loaded_as_the_model_is(tmp_path, monkeypatch):
    seen = {}

    def tokenizer(name, **options):
        seen["tokenizer"] = options
        return make_tokenizer()

    def model(name, **options):
        seen["model"] = options
        return make_model()

    def configs(name, **options):
        seen["configs"] = options
        return make_model().config, make_model().generation_config

    monkeypatch.setattr("sgsd.trainers.model.load_tokenizer", tokenizer)
    monkeypatch.setattr("sgsd.trainers.model.load_configs", configs)
    monkeypatch.setattr("sgsd.trainers.model.load_model", model)
    given = {"trust_remote_code": True, "revision": "v1.5"}
    args = make_config(tmp_path, model_init_kwargs=given)
    SGSDTrainer("org/model", by_parity, args, PROBLEMS, bank=make_bank())
    assert seen["tokenizer"] == seen["configs"] == given
    assert given.items() <= seen["model"].items()


@pytest.mark.parametrize(
    ("reward", "settings", "tokenizer", "said"),
    [
        (lambda **_: 1 / 0, {}, None, "ZeroDivisionError"),
        (by_parity, {"max_prompt_length": 5}, None, "plain prompts are too long"),
        (by_parity, {}, "larger", "the padding token is not in the model's vocabulary"),
    ],
)
def test_a_model_by_name_is_loaded_after_the_checks(
    tmp_path, tiny_folder, monkeypatch, reward, settings, tokenizer, said
):
    """Seen before the mend: the weights were loaded first."""

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("sgsd.trainers.model.load_model", refuse)
    args, own = make_config(tmp_path, **settings), None
    if tokenizer:
        own = make_tokenizer()
        own.add_tokens([f"<step{n}>" for n in range(9)])
        own.add_special_tokens({"pad_token": "<|filler|>"})
    with pytest.raises(SGSDError, match=said):
        SGSDTrainer(str(tiny_folder), reward, args, PROBLEMS, processing_class=own, bank=make_bank())


def test_a_model_that_returns_tuples_is_made_to_return_names(tmp_path):
    model = make_model()
    model.config.return_dict = False
    make_trainer(tmp_path, model=model).train()


def test_what_the_libraries_refuse_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"settings cannot be used: got Target modules .* not found") as refused:
        make_trainer(tmp_path, peft_config=LoraConfig(target_modules=["nonsense"]))
    assert "\n" not in str(refused.value)
