"""From problems to judged samples."""

from __future__ import annotations

import json
import random

import pytest

from sgsd.bank import SkillBank
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError, DataError, PromptError
from sgsd.evaluation import Evaluation, evaluate
from sgsd.evaluation.run import SampleStore, batch_seed, sample_lines
from sgsd.prompts import PromptRenderer
from sgsd.rollouts import Rollout, StopReason
from sgsd.verifiers import Outcome, Verdict, get_verifier

PROBLEMS = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in (3, 1, 2)]


class Script:
    """A sampler that says what it is told, in order, and remembers what it was asked."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.asked: list[tuple[int, ...]] = []
        self.seeds: list[int] = []

    def sample(self, prompts, *, seed):
        self.asked += map(tuple, prompts)
        self.seeds.append(seed)
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                completion_ids=(5,) * len(line),
                text=line.removesuffix("…"),
                stop_reason=StopReason.LENGTH if line.endswith("…") else StopReason.END,
            )
            for prompt, line in zip(prompts, self.lines, strict=True)
        ]


class Reader:
    """A verifier that takes the text for the answer, and cannot decide on a question mark."""

    def verify(self, completion, answer):
        if completion == "?":
            return Verdict(Outcome.UNDECIDED, "timeout", None)
        right = completion == answer
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, None if right else "different", completion)

    def verify_many(self, completions, answers):
        return [self.verify(*pair) for pair in zip(completions, answers, strict=True)]


@pytest.fixture
def renderer(tokenizer):
    return PromptRenderer(tokenizer)


def test_truncated_is_incorrect_and_undecided_is_not_correct(renderer):
    result = evaluate(Script("3", "1…", "?"), PROBLEMS, renderer, Reader())
    assert [sample.outcome for sample in result.samples] == ["correct", "incorrect", "undecided"]
    assert [sample.reason for sample in result.samples] == [None, "truncated", "timeout"]
    assert result.accuracies == {"p3": 1.0, "p1": 0.0, "p2": 0.0}
    summary = result.summary()
    assert summary["accuracy"] == pytest.approx(1 / 3)
    for share in ("truncated", "undecided", "no_answer"):
        assert summary[share] == pytest.approx(1 / 3)
    assert summary["mean_tokens"] == pytest.approx((1 + 2 + 1) / 3)


def test_two_problems_of_one_id_are_refused(renderer):
    """Their accuracy was 2."""
    with pytest.raises(ValueError, match="one id"):
        evaluate(Script("3", "3"), [PROBLEMS[0], PROBLEMS[0]], renderer, Reader())


def test_samples_come_by_problem_in_the_order_of_the_problems(renderer):
    sampler = Script("3", "9", "1", "1", "9", "9")
    result = evaluate(sampler, PROBLEMS, renderer, Reader(), k=2, seed=7)
    assert [(sample.problem_id, sample.sample) for sample in result.samples] == [
        *[("p3", 0), ("p3", 1), ("p1", 0), ("p1", 1), ("p2", 0), ("p2", 1)]
    ]
    assert list(result.accuracies.items()) == [("p3", 0.5), ("p1", 1.0), ("p2", 0.0)]
    assert result.accuracy.mean == pytest.approx(0.5)
    assert sampler.seeds == [7]
    assert sampler.asked == [tuple(renderer.student_ids(p.text)) for p in PROBLEMS for _ in range(2)]


def test_long_prompts_are_refused_before_anything_is_sampled(renderer):
    sampler = Script()
    with pytest.raises(PromptError, match="3 of 3 plain prompts are too long"):
        evaluate(sampler, PROBLEMS, renderer, Reader(), max_prompt_length=4)
    assert sampler.asked == []


def test_what_is_saved_can_be_read_back(renderer, tmp_path):
    result = evaluate(Script("3", "1…", "∞"), PROBLEMS, renderer, Reader())
    result.save(tmp_path / "new" / "folder", model="m")
    rows = [json.loads(line) for line in (tmp_path / "new/folder/samples.jsonl").read_text("utf-8").splitlines()]
    assert [row["completion"] for row in rows] == ["3", "1", "∞"]
    assert rows[1]["stop_reason"] == "length"
    summary = json.loads((tmp_path / "new/folder/summary.json").read_text("utf-8"))
    assert summary == {"model": "m", **result.summary()}
    assert summary["ci95"][0] <= summary["accuracy"] <= summary["ci95"][1]


# ---- batches, and going on


class Dice:
    """A sampler whose answers depend on seed, prompt and place in the batch, and that may be cut off."""

    def __init__(self, calls: int = 1000) -> None:
        self.calls = calls
        self.seeds: list[int] = []

    def sample(self, prompts, *, seed):
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.seeds.append(seed)
        draw = random.Random(seed)
        texts = [str(draw.randint(1, 3)) for _ in prompts]
        return [Rollout(tuple(p), (5,), text, StopReason.END) for p, text in zip(prompts, texts, strict=True)]


SETTINGS = {"model": "m", "seed": 3}


def kept(folder, renderer, sampler, *, settings=SETTINGS, batch_size=4, k=3):
    """An evaluation as ``sgsd eval`` makes it, in batches that a store keeps."""
    store = SampleStore(folder, settings)
    done = store.resume(batch_size=batch_size, total=len(PROBLEMS) * k)
    result = evaluate(
        sampler, PROBLEMS, renderer, Reader(), k=k, seed=3, batch_size=batch_size, done=done, on_batch=store.append
    )
    store.finish(result)
    return result


@pytest.mark.parametrize("torn", ["", '{"problem_id": "p1", "sam', "a whole line of an unfinished batch"])
def test_an_evaluation_that_was_cut_off_goes_on_to_the_very_same_samples(renderer, tmp_path, torn):
    straight = kept(tmp_path / "straight", renderer, sampler := Dice())
    assert len(set(sampler.seeds)) == 3  # 9 samples in batches of 4, each with a seed of its own
    assert sampler.seeds == [batch_seed(3, index) for index in range(3)]
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        kept(cut, renderer, Dice(calls=1))
    assert not (cut / "summary.json").exists()
    with pytest.raises(DataError, match="not finished"):
        Evaluation.load(cut)
    with (cut / "samples.jsonl").open("a") as file:
        file.write(sample_lines([straight.samples[4]]) if torn.startswith("a") else torn)
    assert kept(cut, renderer, again := Dice()) == straight
    assert again.seeds == sampler.seeds[1:]
    assert (cut / "samples.jsonl").read_bytes() == (tmp_path / "straight/samples.jsonl").read_bytes()
    assert Evaluation.load(cut) == straight


def test_a_finished_evaluation_is_found_and_other_settings_are_refused(renderer, tmp_path):
    assert SampleStore(tmp_path, SETTINGS).finished() is None
    result = kept(tmp_path, renderer, Dice())
    assert SampleStore(tmp_path, SETTINGS).finished() == result
    with pytest.raises(ConfigError, match=r"other seed, top_p: got seed 4; expected 3, as stored"):
        SampleStore(tmp_path, {"model": "m", "seed": 4, "top_p": 0.9})
    forced = SampleStore(tmp_path, {"model": "n"}, force=True)
    assert forced.finished() is None
    assert len(list(tmp_path.iterdir())) == 3  # nothing is lost before the new evaluation can begin
    assert forced.resume(batch_size=4, total=9) == []
    assert list(tmp_path.iterdir()) == []
    result.save(tmp_path)  # no settings
    with pytest.raises(ConfigError, match="settings are unknown"):
        SampleStore(tmp_path, SETTINGS)


def test_an_evaluation_that_another_process_made_meanwhile_is_not_taken(renderer, tmp_path):
    """The settings were compared only before either had written: one data set got the other's results."""
    late = SampleStore(tmp_path, {**SETTINGS, "prompts": "other"})
    kept(tmp_path, renderer, Dice())
    with pytest.raises(ConfigError, match="holds an evaluation with other prompts"):
        late.finished()
    with pytest.raises(ConfigError, match="holds an evaluation with other prompts"):
        late.resume(batch_size=4, total=9)


def test_samples_of_another_evaluation_are_not_gone_on_from(renderer):
    other = evaluate(Dice(), PROBLEMS[::-1], renderer, Reader())
    with pytest.raises(ValueError, match="not the first samples of this evaluation"):
        evaluate(Dice(), PROBLEMS, renderer, Reader(), batch_size=1, done=other.samples[:1])


def test_the_first_batch_has_the_seed_itself_and_all_seeds_are_distinct():
    assert batch_seed(7, 0) == 7
    seeds = {batch_seed(seed, batch) for seed in range(20) for batch in range(1, 200)}
    assert len(seeds) == 20 * 199
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("broken", ["{", '{"problem_id": "p1"}', "[1]"])
def test_a_broken_line_in_the_middle_is_named(renderer, tmp_path, broken):
    kept(tmp_path, renderer, Dice())
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    (tmp_path / "samples.jsonl").write_text("\n".join([lines[0], broken, *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=r"samples.jsonl:2"):
        Evaluation.load(tmp_path)


def test_loading_what_is_not_there_or_not_whole(renderer, tmp_path):
    with pytest.raises(DataError, match="holds no evaluation"):
        Evaluation.load(tmp_path / "gone")
    kept(tmp_path, renderer, Dice())
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    (tmp_path / "samples.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="samples are missing: got 8"):
        Evaluation.load(tmp_path)
    (tmp_path / "samples.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Evaluation.load(tmp_path)


# ---- skills in the prompt, summary, another verifier


def test_skills_in_the_prompt(renderer):
    bank = SkillBank.load("seed:mental-arithmetic")
    pairs = [[(bank.skills[i], bank.mistakes[i])] for i in range(3)]
    sampler = Script("3", "1", "2")
    evaluate(sampler, PROBLEMS, renderer, Reader(), shown=pairs)
    assert sampler.asked == [
        tuple(renderer.skilled_ids(problem.text, own)) for problem, own in zip(PROBLEMS, pairs, strict=True)
    ]
    with pytest.raises(PromptError, match="no skills to show"):
        evaluate(Script(), PROBLEMS, renderer, Reader(), shown=[pairs[0], [], pairs[2]])
    with pytest.raises(PromptError, match="3 of 3 prompts with skills are too long"):
        evaluate(Script(), PROBLEMS, renderer, Reader(), shown=pairs, max_prompt_length=4)


def test_the_summary_of_several_samples(renderer):
    lines = ["3", "3", "9", "1…", "1…", "1", "9", "8", "?"]
    summary = evaluate(Script(*lines), PROBLEMS, renderer, Reader(), k=3).summary()
    assert summary["accuracy"] == pytest.approx(3 / 9)
    assert summary["pass@2"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert summary["pass@3"] == pytest.approx(2 / 3)
    assert summary["maj@2"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert summary["maj@3"] == pytest.approx(2 / 3)  # the truncated 1s have no vote: the one whole 1 wins
    low, high = summary["pass@2_ci95"]
    assert low <= summary["pass@2"] <= high
    assert (summary["median_tokens"], summary["p90_tokens"]) == (1.0, 2.0)


def test_lengths_are_interpolated(renderer):
    lengths = (10, 30, 20)
    summary = evaluate(Script(*("x" * length for length in lengths)), PROBLEMS, renderer, Reader()).summary()
    assert (summary["mean_tokens"], summary["median_tokens"]) == (20.0, 20.0)
    assert summary["p90_tokens"] == pytest.approx(20 + 0.8 * 10)  # position 0.9 · 2 = 1.8 of the sorted list


def test_other_verdicts_leave_truncated_samples_incorrect(renderer, tmp_path):
    evaluate(Script("3", "1…", "9"), PROBLEMS, renderer, Reader()).save(tmp_path)
    generous = [Verdict(Outcome.CORRECT, None, "x")] * 3
    again = Evaluation.load(tmp_path).under(generous)
    assert [sample.outcome for sample in again.samples] == ["correct", "incorrect", "correct"]
    assert [sample.reason for sample in again.samples] == [None, "truncated", None]
    assert [sample.reference for sample in again.samples] == ["3", "1", "2"]


def test_a_reward_function_is_told_what_it_is_told_in_training(renderer, tmp_path, monkeypatch):
    (tmp_path / "evaluated_rewards.py").write_text(
        "def told(prompts, completions, completion_ids, answer, solution, problem_id, level, **kwargs):\n"
        "    (prompt,), (completion,), (ids,) = prompts, completions, completion_ids\n"
        "    right = prompt[-1]['content'].startswith(f'What is {answer[0]}?')\n"
        "    right = right and completion[0]['role'] == 'assistant'\n"
        "    return [float(right and ids == [5] and solution == answer and level == ['l' + problem_id[0]])]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    problems = [Problem(f"p{i}", f"What is {i}?", str(i), columns={"level": f"lp{i}", "answer": "raw"}) for i in (3, 1)]
    with get_verifier("evaluated_rewards:told", workers=1) as verifier:
        result = evaluate(Script("a", "b"), problems, renderer, verifier)
    assert [sample.outcome for sample in result.samples] == ["correct", "correct"]
