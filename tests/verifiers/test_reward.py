"""Reward functions as verifiers, and verifiers as reward functions."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from sgsd.errors import ConfigError
from sgsd.verifiers import Context, Outcome, PooledVerifier, get_verifier
from sgsd.verifiers.reward import text_of
from sgsd.verifiers.verifier import contexts_of, verify_in_context

FUNCTIONS = """
import asyncio

def from_the_prompt(prompts, completions, **kwargs):
    assert len(prompts) == len(completions) == 1
    prompt = prompts[0] if isinstance(prompts[0], str) else prompts[0][-1]["content"]
    text = completions[0] if isinstance(completions[0], str) else completions[0][0]["content"]
    return [float(text == prompt.upper())]

def long_enough(completions, completion_ids):
    return [float(len(ids) >= 2) for ids in completion_ids]

def from_a_column(completions, numbers, answer, **kwargs):
    return [float(sum(n) == int(a)) for n, a in zip(numbers, answer)]

def with_everything(prompts, completions, completion_ids, level, trainer_state=None, log_extra=None, log_metric=None):
    log_extra("level", level)
    log_metric("level", 1.0)
    return [float(level == ["hard"] and trainer_state is None)]

_loops = set()

async def awaited(completions, answer, **kwargs):
    await asyncio.sleep(0.01)
    _loops.add(id(asyncio.get_running_loop()))
    return [float(c[0]["content"] == a and len(_loops) == 1) for c, a in zip(completions, answer)]

def of_objects(completions, picture=None, **kwargs):
    return [float(picture is None)]

def always_raises(completions, **kwargs):
    raise KeyError("price")

def per_token(completions, **kwargs):
    return [1.0, 0.0] if completions[0][0]["content"] == "a" else [1.0]

def raises_on_a(completions, **kwargs):
    if completions[0][0]["content"] == "a":
        raise KeyError("price")
    return [1.0]
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)


def made(name: str, **options: object) -> PooledVerifier:
    return get_verifier(f"reward_functions:{name}", workers=1, **options)


CALLS = {
    "from_the_prompt": (
        {"prompts": ["abc", "abc"], "completions": ["ABC", "abc"], "completion_ids": [[1], [1]], "answer": ["", ""]},
        [1.0, 0.0],
    ),
    "from_the_prompt of a conversation": (
        {
            "prompts": [[{"role": "system", "content": "x"}, {"role": "user", "content": "abc"}]] * 2,
            "completions": [[{"role": "assistant", "content": text}] for text in ("ABC", "abc")],
            "answer": ["5", "5"],
        },
        [1.0, 0.0],
    ),
    "long_enough": ({"completions": ["a", "a"], "completion_ids": [[1, 2], [1]], "answer": ["5", "5"]}, [1.0, 0.0]),
    "from_a_column": ({"completions": ["a", "a"], "numbers": [[2, 3], [2, 2]], "solution": ["5", "5"]}, [1.0, 0.0]),
    "with_everything": (
        {
            "prompts": ["a", "b"],
            "completions": ["a", "b"],
            "completion_ids": [[1], [2]],
            "target": ["5", "5"],
            "level": ["hard", "easy"],
            "trainer_state": object(),
            "log_extra": print,
        },
        [1.0, 0.0],
    ),
    "of_objects": ({"completions": ["a"], "answer": ["5"], "picture": [object()]}, [1.0]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_reward_function_gets_what_trl_gives_it(name: str):
    columns, rewards = CALLS[name]
    with made(name.partition(" ")[0]) as verifier:
        assert verifier.reward(**columns) == rewards
        assert verifier.reward.__name__ == name.partition(" ")[0]


def test_asynchronous_functions_are_awaited_in_one_loop():
    with made("awaited") as verifier:
        verdicts = verifier.verify_many(["5", "6", "5"], ["5"] * 3)
    assert [verdict.outcome.sign for verdict in verdicts] == [1, -1, 1]


@pytest.mark.parametrize(
    ("name", "needs"),
    [("from_the_prompt", "prompts"), ("long_enough", "completion_ids"), ("from_a_column", "numbers")],
)
def test_what_a_function_needs_and_does_not_get_is_said_at_once(name: str, needs: str):
    with (
        made(name) as verifier,
        pytest.raises(ConfigError, match=f"cannot judge: got the reward function needs {needs};"),
    ):
        verifier.verify("a", "5", Context(columns={"level": "hard"}))


def test_a_function_that_raises_each_time_is_seen_at_once():
    with made("always_raises") as verifier:
        assert verifier.verify("a", "5").outcome is Outcome.UNDECIDED  # once is not each time
        with pytest.raises(ConfigError, match="always_raises raises on every completion: got KeyError: 'price'"):
            verifier.verify_many(["a", "b"], ["5", "5"])


def test_a_function_that_has_worked_may_raise():
    with made("raises_on_a") as verifier:
        assert [v.outcome.sign for v in verifier.verify_many(["a", "b"], ["5", "5"])] == [0, 1]
        assert [v.outcome.sign for v in verifier.verify_many(["a", "a"], ["5", "5"])] == [0, 0]


def test_a_reward_is_one_number():
    with get_verifier("reward_functions:per_token", workers=1) as verifier:
        one, two = verifier.verify_many(["b", "a"], ["5"] * 2)
    assert one.outcome is Outcome.CORRECT
    assert two.reason == "verifier error: ValueError: 2 rewards for one completion"


def test_contexts_must_be_as_many_as_completions():
    with made("long_enough") as verifier, pytest.raises(ValueError, match=r"longer|shorter"):
        verifier.verify_many(["a", "b"], ["5", "5"], [Context(completion_ids=[1])])


def test_only_a_reward_function_is_given_a_context():
    asked: list[str] = []
    with get_verifier("exact", workers=1) as exact:
        assert not exact.takes_context
        assert verify_in_context(exact, ["5"], ["5"], lambda: asked.append("") or [])[0].outcome is Outcome.CORRECT
    assert asked == []
    with made("long_enough") as verifier:
        verdicts = verify_in_context(verifier, ["a"], ["5"], lambda: [Context(completion_ids=[1, 2])])
    assert verdicts[0].outcome is Outcome.CORRECT


def test_contexts_are_made_of_the_columns_that_are_lists():
    contexts = contexts_of(
        ["a", "b"], prompts=["p", "q"], completion_ids=[[1], [2]], level=["x", "y"], trainer_state=3, short=["z"]
    )
    assert contexts[1] == Context("q", "b", [2], {"level": "y"})
    assert contexts_of(["a"]) == [Context(None, "a")]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("5", "5"),
        ([{"role": "assistant", "content": "5"}], "5"),
        ([{"role": "tool", "content": "x"}, {"role": "assistant", "content": "5"}], "5"),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "5"}]}],
            "It is 5",
        ),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_text_of_a_completion(completion: object, text: str):
    assert text_of(completion) == text


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth", "target"])
def test_a_verifier_is_a_reward_function(column: str):
    with get_verifier("math", workers=1) as verifier:
        completions = [[{"role": "assistant", "content": r"\boxed{5}"}], "6", "5"]
        columns = {column: ["5", "5", "x^"], "trainer_state": None, "prompts": ["a"] * 3, "completion_ids": [[1]] * 3}
        assert verifier.reward(completions=completions, **columns) == [1.0, 0.0, None]
        assert verifier.reward.__name__ == "math"
        assert verifier.reward is verifier.reward
        assert not inspect.iscoroutinefunction(verifier.reward)


def test_a_row_without_a_reference_is_undecided():
    """Seen before the mend: the word None was the reference."""
    with get_verifier("exact", workers=1) as verifier:
        assert verifier.reward(completions=["None", "5"], answer=[None, "5"]) == [None, 1.0]


def test_a_verifier_without_references_is_no_reward_function():
    with pytest.raises(ConfigError, match="verifier math has no references: expected a column answer or solution"):
        get_verifier("math").reward(completions=["5"], question=["?"])


def test_trl_trains_with_it(tmp_path: Path):
    """The whole of what docs/verifier.md promises, with a model of a few thousand parameters."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    from ..conftest import make_model, make_tokenizer

    rows = [{"prompt": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 5)]
    args = GRPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    with get_verifier("math", workers=1) as verifier:
        trainer = GRPOTrainer(
            model=make_model(),
            reward_funcs=verifier.reward,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=make_tokenizer(),
        )
        trainer.train()
    assert any("rewards/math/mean" in log for log in trainer.state.log_history)


def test_the_trainers_hand_everything_on():
    from sgsd.trainers.rewards import VerifierReward

    given = {
        "prompts": [[{"role": "user", "content": "abc"}]] * 3,
        "completions": [[{"role": "assistant", "content": text}] for text in ("ABC", "abc", "ABC")],
        "completion_ids": [[2, 1], [2], [2, 2]],
        "answer": ["5"] * 3,
        "level": ["easy"] * 3,
        "trainer_state": object(),
        "log_extra": lambda name, values: None,
    }
    with made("from_the_prompt") as verifier:
        reward = VerifierReward(verifier, name="mine", end_ids={1}, max_length=2, truncated="undecided")
        assert reward(**given) == [1.0, 0.0, None]
        assert [verdict.reason for verdict in reward.verdicts] == ["reward 1", "reward 0", "truncated"]
    with (
        made("from_a_column") as verifier,
        pytest.raises(ConfigError, match="needs numbers; columns of the data: level"),
    ):
        VerifierReward(verifier, name="mine", end_ids={1}, max_length=2, truncated="undecided")(**given)


def test_a_function_is_found_by_a_worker_that_started_before_the_path_grew(tmp_path, monkeypatch):
    with get_verifier("exact", workers=1) as exact:
        assert exact.verify("1", "1").outcome == "correct"
        folder = tmp_path / "later"
        folder.mkdir()
        (folder / "later_functions.py").write_text("def one(completions, **_):\n    return [1.0] * len(completions)\n")
        monkeypatch.syspath_prepend(folder)
        with get_verifier("later_functions:one", workers=1) as later:
            assert later.verify("x", "").outcome == "correct"


def test_a_module_of_the_current_folder_is_found_after_all_others(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "rewards_of_here.py").write_text("def right(completions, **kwargs):\n    return [1.0]\n")
    (here / "json.py").write_text("raise RuntimeError('a stranger')\n")
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    with get_verifier("math_verify.parser:parse", workers=3) as elsewhere:
        elsewhere.warm_up()  # workers that started in another folder are used again
    monkeypatch.chdir(here)
    with get_verifier("rewards_of_here:right", workers=3) as verifier:
        assert verify_in_context(verifier, ["x"], ["1"], lambda: [Context()])[0].outcome is Outcome.CORRECT
