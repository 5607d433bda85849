"""A TRL GRPO script with a system prompt, reward functions of its own and further columns, as SGSD by three lines."""

from __future__ import annotations

import json
import re

import datasets
import pytest
from peft import LoraConfig
from trl import GRPOTrainer

from sgsd import SGSDTrainer
from sgsd.bank import SkillBank
from sgsd.cli.settings import read_run
from sgsd.data.problems import Problem
from sgsd.evaluation.recorded import method_settings
from sgsd.report.runs import load_runs
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.record import settings_of_script
from sgsd.verifiers import get_verifier

from ..conftest import ROOT, make_model, make_tokenizer

SUMS = [
    {"left": n, "right": 3 * n, "level": ("easy", "hard")[n % 2], "note": None if n == 1 else f"n{n}"}
    for n in range(1, 5)
]


def scripts() -> dict[str, str]:
    """Both sides of the documentation's diff."""
    (block,) = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "from-grpo.md").read_text(), re.DOTALL)
    lines = block.splitlines()
    return {
        name: "\n".join(line[1:] for line in lines if line[:1] in ("", " ", own))
        for name, own in (("grpo", "-"), ("sgsd", "+"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(max_position_embeddings=4096).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs one of the scripts for two steps, on rollouts that depend on the prompt alone; what rewards were given."""
    tokenizer = make_tokenizer()

    def rollouts(self, prompt_ids, *args, **kwargs):
        completions = []
        for n, ids in enumerate(prompt_ids):
            left, right = map(int, re.findall(r"What is (\d+) \+ (\d+)\?", tokenizer.decode(ids))[-1])
            reply = f"<answer>{left + right + n % 2}</answer>" + "!" * (n % 3)
            completions.append([*tokenizer(reply)["input_ids"], tokenizer.eos_token_id])
        seen["prompts"] += map(tokenizer.decode, prompt_ids)
        return completions, None

    seen: dict[str, list] = {}
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", rollouts)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(SUMS))

    def script(name):
        seen.clear()
        seen.update(prompts=[], rewards=[])
        text = scripts()[name].replace("Qwen/Qwen3-1.7B", str(folder))
        settings = (
            f'output_dir="{tmp_path / name}", use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, '
            'max_steps=2, save_strategy="no", logging_steps=1, per_device_train_batch_size=8, seed=3, '
            "gradient_checkpointing=False,"
        )
        text = text.replace('output_dir="runs/first",', settings).replace("trainer.train()", "")
        names: dict = {"__name__": "script"}
        exec(compile(text, f"{name}.py", "exec"), names)
        trainer = names["trainer"]
        for place, reward in enumerate(trainer.reward_funcs):

            def recorded(*, reward=reward, **given):
                given = {key: value for key, value in given.items() if not callable(value) and key != "trainer_state"}
                seen["rewards"].append((reward.__name__, given, reward(**given)))
                return seen["rewards"][-1][-1]

            trainer.reward_funcs[place] = recorded
        trainer.train()
        return trainer, dict(seen)

    return script


def test_three_lines_differ():
    grpo, sgsd = (text.splitlines() for text in scripts().values())
    assert len(grpo) == len(sgsd)
    assert sum(ours != theirs for ours, theirs in zip(grpo, sgsd, strict=True)) == 3


def test_prompts_columns_and_rewards_are_those_of_trl(run):
    theirs, expected = run("grpo")
    ours, found = run("sgsd")
    assert found["prompts"] == expected["prompts"]
    assert all("Reason inside <think></think>, then" in prompt for prompt in found["prompts"])
    assert not any("boxed" in prompt for prompt in found["prompts"])
    assert [(name, rewards) for name, _, rewards in found["rewards"]] == [
        (name, rewards) for name, _, rewards in expected["rewards"]
    ]
    assert len({reward for _, _, rewards in found["rewards"] for reward in rewards}) > 3
    for (_, given, _), (_, trls, _) in zip(found["rewards"], expected["rewards"], strict=True):
        assert {key: given[key] for key in trls} == trls
        assert set(given) - set(trls) == {"problem", "problem_id"}
        assert given["problem"] == [prompt[-1]["content"] for prompt in given["prompts"]]
    for name in ("reward", "reward_std"):
        logged = [[entry[name] for entry in trainer.state.log_history if name in entry] for trainer in (theirs, ours)]
        assert logged[0] == logged[1]
        assert len(logged[0]) == 2


def test_its_teachers_are_shown_skills_in_the_last_user_message(run):
    trainer, found = run("sgsd")
    row = trainer.train_dataset[0]
    (pool,) = trainer.retrieve([row])
    assert len(pool.pairs) == trainer.args.num_teachers
    plain = trainer.renderer.text(trainer.renderer.student_ids(row["prompt"]))
    assert plain in found["prompts"]
    system, user = plain.split("<|im_start|>user\n")
    for ids in pool.prompts:
        taught = trainer.renderer.text(ids)
        assert taught.startswith(system + "<|im_start|>user\nExperience from similar problems")
        assert taught.endswith("\n\n" + user)
    assert trainer.state.log_history[0]["sgsd/teacher_tokens"] > 0


def test_its_folder_has_the_record_that_eval_and_report_read(run, tmp_path):
    trainer, _ = run("sgsd")
    record = json.loads((tmp_path / "sgsd" / "run.json").read_text())
    settings = record["settings"]
    assert settings["method"] == "sgsd"
    assert settings["model_name_or_path"] == trainer.model.name_or_path
    assert settings["num_teachers"] == trainer.args.num_teachers
    assert settings["verifier"] == ", ".join(f"script:{name}" for name in trainer.reward_func_names)
    assert record["bank_digest"] == SkillBank.load(tmp_path / "sgsd" / "bank-start.json").digest == trainer.bank.digest
    (found,) = load_runs([tmp_path / "sgsd"])
    assert found.items
    assert read_run(tmp_path / "sgsd" / "checkpoint-2") == settings


def test_a_script_that_resumes_leaves_the_record_it_began_with(folder, tmp_path):
    def trainer(**settings):
        args = SGSDConfig(
            str(tmp_path / "run"),
            objective="correction",
            teacher="frozen",
            bank="seed:mental-arithmetic",
            retriever="bm25",
            num_teachers=1,
            verifier="exact",
            per_device_train_batch_size=2,
            max_completion_length=4,
            gradient_accumulation_steps=1,
            save_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **settings,
        )
        problems = [Problem(str(n), f"What is {n} + 1?", str(n + 1)) for n in range(4)]
        return SGSDTrainer(str(folder), args=args, train_dataset=problems)

    trainer(max_steps=1).train()
    record = (tmp_path / "run" / "run.json").read_text()
    trainer(max_steps=2).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "run.json").read_text() == record
    trainer(max_steps=1, learning_rate=1e-3).train()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["learning_rate"] == 1e-3


def test_scripts_that_differ_in_data_or_adapter_are_no_seeds_of_one_method():
    args, problems = SGSDConfig("x", use_cpu=True), [Problem("1", "What is 1 + 1?", "2"), Problem("2", "2 + 2?", "4")]
    given = {"verifier": None, "reward_funcs": None, "peft_config": LoraConfig(r=4, target_modules={"b", "a"})}
    told = settings_of_script(args, "sgsd", "a/b", problems, **given)
    assert (told["verifier"], told["peft_r"], told["peft_target_modules"]) == ("math", 4, ["a", "b"])
    assert method_settings(told) == method_settings(
        settings_of_script(SGSDConfig("y", use_cpu=True, seed=1), "sgsd", "a/b", problems, **given)
    )
    others = (
        settings_of_script(args, "sgsd", "a/b", problems[:1], **given),
        settings_of_script(args, "sgsd", "a/b", problems, **{**given, "peft_config": LoraConfig(r=8)}),
        settings_of_script(args, "sgsd", "a/b", problems, **{**given, "verifier": get_verifier("exact")}),
        settings_of_script(args, "sgsd", "a/b", problems, **{**given, "reward_funcs": [len]}),
    )
    assert all(method_settings(told) != method_settings(other) for other in others)
    assert [other["verifier"] for other in others] == ["math", "math", "exact", "builtins:len"]
