"""A TRL GRPO script with a system prompt, reward functions of its own and further columns, as SGSD by three lines."""

from __future__ import annotations

import re

import datasets
import pytest
from trl import GRPOTrainer

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
        names: dict = {}
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
