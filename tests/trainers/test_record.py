"""What a run records: every teacher of every micro-batch, and nothing twice after a resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import TrainerState

from sgsd.bank import Ledger
from sgsd.objectives import stances
from sgsd.retrieval import Pair
from sgsd.scoring.logprobs import Scores
from sgsd.scoring.teachers import TeacherPool, from_batch, teacher_scores, to_batch
from sgsd.trainers.ledger import TrainingLedger
from sgsd.trainers.record import RunRecorder, token_pieces

from .tiny import by_first_id, make_bank, make_trainer

BANK = make_bank(3)
K = 3


def pool(*ranks: int) -> TeacherPool:
    """Teachers of the n-th skill and mistake each."""
    pairs = tuple(Pair(BANK.skills[n], BANK.mistakes[n], 1.0 - n / 10) for n in ranks)
    return TeacherPool(
        prompts=tuple([5, 6] for _ in pairs),
        weights=(1 / len(pairs),) * len(pairs) if pairs else (),
        pairs=pairs,
        too_long=0,
    )


class Run:
    """Ledger and recorder of a run, as the trainer has them."""

    def __init__(self, folder, tokenizer, **settings):
        self.ledger = TrainingLedger(1, "equal")
        settings = {"trace_steps": 2, "writes": True} | settings
        self.recorder = RunRecorder(folder, tokenizer, self.ledger, lambda: None, **settings)

    def step(self, number, pools, outcomes, *, micro_batches=1, seed=0):
        """One optimizer step: rollouts, shuffled and split as TRL does it, their scores and their stances."""
        data = [{"problem_id": f"p{n}", "problem": f"{n} + 1?", "answer": str(n + 1)} for n in range(len(pools))]
        self.recorder.rollouts(data, range(len(pools)))
        inputs, student = batch(pools, outcomes, seed=seed)
        inputs["items"] = self.ledger.numbers(pools, BANK, K)
        teachers = from_batch(inputs)
        support, stance = stances(student, teachers.logps, inputs["score_mask"], clip=3.0, threshold=0.05)
        for chosen in torch.randperm(len(pools), generator=torch.Generator().manual_seed(seed)).chunk(micro_batches):
            part = {name: value[chosen] for name, value in inputs.items()}
            of_part = from_batch(part)
            self.ledger.observe(
                part["row"], part["items"], part["outcome"], of_part.scored, support[chosen], stance[chosen]
            )
            self.recorder.observe(number, part, student[chosen], of_part, support[chosen], stance[chosen])
        self.recorder.end_step(number)
        return inputs, student, support, stance


def batch(pools, outcomes, *, seed=0, T=5):
    """Inputs of a loss and the student's log-probabilities, of random numbers; all teachers there are were run."""
    generator = torch.Generator().manual_seed(seed)
    B = len(pools)
    student = -torch.rand(B, T, generator=generator) * 3
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    mask = torch.arange(T) < lengths.unsqueeze(1)
    score_mask = mask.clone()
    score_mask[torch.arange(B), lengths - 1] = False  # the end token does not count
    places = [(b, k) for b, pool in enumerate(pools) for k in range(len(pool.prompts))]
    logps = student.unsqueeze(1) + torch.randn(B, K, T, generator=generator) / 3
    scores = replace(Scores.of_nothing(logps.device), logps=logps[tuple(zip(*places, strict=True))])
    trust = [[1.0] * len(pool.pairs) for pool in pools]
    teachers = teacher_scores(pools, trust, places, scores, num_teachers=K, length=T)
    inputs = {
        "outcome": torch.tensor(outcomes),
        "row": torch.arange(B),
        "completion_ids": torch.randint(40, 60, (B, T), generator=generator),
        "completion_mask": mask.long(),
        "score_mask": score_mask,
    }
    return inputs | to_batch(teachers), student


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


POOLS = [pool(0, 1, 2), pool(2, 0), pool(), pool(1)]
OUTCOMES = [1, -1, 1, 0]


def test_the_ledger_is_the_same_whatever_the_micro_batches_and_their_order(tmp_path, tokenizer):
    whole, parts = Run(tmp_path / "a", tokenizer), Run(tmp_path / "b", tokenizer)
    for made in (whole, parts):
        made.recorder.on_train_begin(None, TrainerState(), None)
    _, _, support, stance = whole.step(1, POOLS, OUTCOMES)
    parts.step(1, POOLS, OUTCOMES, micro_batches=4)
    pairs = [[(pair.skill.id, pair.mistake.id) for pair in pool.pairs] for pool in POOLS]
    expected = Ledger().credited(pairs, support=support, stance=stance, outcome=OUTCOMES, problems=range(4))
    for made in (whole.ledger, parts.ledger):
        assert set(made.ledger.items) == set(expected.items)
        for id, record in expected.items.items():
            assert made.ledger.record(id).counts == record.counts
            assert made.ledger.record(id).support_success == pytest.approx(record.support_success)
            assert made.ledger.record(id).support_failure == pytest.approx(record.support_failure)


def test_a_trace_holds_the_gaps_of_each_teacher_that_was_run(tmp_path, tokenizer):
    made = Run(tmp_path, tokenizer)
    made.recorder.on_train_begin(None, TrainerState(), None)
    inputs, student, support, stance = made.step(1, POOLS, OUTCOMES, micro_batches=2)
    success, failure = lines(tmp_path / "traces.jsonl")
    assert (success["outcome"], failure["outcome"]) == ("success", "failure")
    assert (success["step"], success["problem_id"], success["problem"], success["answer"]) == (1, "p0", "0 + 1?", "1")
    length = int(inputs["completion_mask"][0].sum())
    assert success["counted"] == inputs["score_mask"][0, :length].int().tolist()
    assert "".join(success["tokens"]) == tokenizer.decode(inputs["completion_ids"][0, :length])
    assert success["student_logps"] == pytest.approx(student[0, :length].tolist(), abs=6e-4)
    assert [teacher["skill"] for teacher in success["teachers"]] == [skill.id for skill in BANK.skills]
    assert [teacher["skill"] for teacher in failure["teachers"]] == [BANK.skills[2].id, BANK.skills[0].id]
    for k, teacher in enumerate(failure["teachers"]):
        width = len(failure["tokens"])
        gaps = inputs["teacher_logps"][1, k, :width] - student[1, :width]
        assert teacher["gaps"] == pytest.approx(gaps.tolist(), abs=6e-4)
        assert teacher["weight"] == pytest.approx(0.5)
        assert teacher["support"] == pytest.approx(float(support[1, k]), abs=6e-5)
        assert teacher["polarity"] == -teacher["stance"] == -int(stance[1, k])


@pytest.mark.parametrize(
    ("outcomes", "traced"),
    [
        ([1, 1, 1], ["success", "success"]),
        ([-1, 1, 1], ["success", "failure"]),
        ([0, 0, -1], ["failure", "undecided"]),
        ([0, 0, 0], ["undecided", "undecided"]),
    ],
)
def test_traces_prefer_one_success_and_one_failure(tmp_path, tokenizer, outcomes, traced):
    made = Run(tmp_path, tokenizer)
    made.recorder.on_train_begin(None, TrainerState(), None)
    made.step(2, [pool(0)] * 3, outcomes, micro_batches=3)
    assert [trace["outcome"] for trace in lines(tmp_path / "traces.jsonl")] == traced


@pytest.mark.parametrize(("trace_steps", "traced"), [(3, [1, 3, 6]), (0, [])])
def test_traces_are_of_the_first_step_and_every_so_many(tmp_path, tokenizer, trace_steps, traced):
    made = Run(tmp_path, tokenizer, trace_steps=trace_steps)
    made.recorder.on_train_begin(None, TrainerState(), None)
    for number in range(1, 8):
        made.step(number, [pool(0)], [1])
    file = tmp_path / "traces.jsonl"
    assert [trace["step"] for trace in lines(file)] == traced if traced else not file.exists()
    Run(tmp_path, tokenizer).recorder.on_train_begin(None, TrainerState(), None)  # another run begins in this folder
    assert not file.exists() or lines(file) == []


def test_other_processes_write_nothing(tmp_path, tokenizer):
    made = Run(tmp_path / "run", tokenizer, writes=False)
    made.recorder.on_train_begin(None, TrainerState(), None)
    made.step(2, POOLS, OUTCOMES)
    assert not (tmp_path / "run").exists()
    assert made.ledger.ledger.items


def test_characters_of_several_tokens_stand_at_the_last_of_them(tokenizer):
    text = "3√2 ≠ é<think>"
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert pieces[:4] == ["3", "", "", "√"]
    assert pieces[-1] == "<think>"


def test_a_completion_cut_inside_a_character_shows_that_something_is_missing(tokenizer):
    ids = tokenizer("a√")["input_ids"][:-1]
    assert token_pieces(tokenizer, ids) == ["a", "", "�"]


def test_a_trainer_records_every_rollout_once_and_resumes_its_records_exactly(tmp_path):
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "trace_steps": 3,
        "bank": BANK,
    }
    unbroken = make_trainer(tmp_path / "a", stub=True, reward=by_first_id, **settings)
    unbroken.train()
    assert unbroken.state.global_step == 4
    ledger = Ledger.from_json((tmp_path / "a" / "ledger.json").read_text())
    assert ledger == unbroken.ledger
    rollouts = 4 * 2 * 2
    assert sum(ledger.record(skill.id).uses for skill in BANK.skills) == rollouts * K
    logged = [entry for entry in unbroken.state.log_history if "sgsd/polarity/positive_share" in entry]
    positive = sum(ledger.record(skill.id).positive for skill in BANK.skills) / (rollouts * K)
    assert positive == pytest.approx(sum(e["sgsd/polarity/positive_share"] for e in logged) / len(logged))
    traces = lines(tmp_path / "a" / "traces.jsonl")
    assert {trace["step"] for trace in traces} == {1, 3}
    for trace in traces:
        for teacher in trace["teachers"]:
            gaps = [gap for gap, counted in zip(teacher["gaps"], trace["counted"], strict=True) if counted]
            clipped = [max(-3.0, min(3.0, gap)) for gap in gaps]
            assert teacher["support"] == pytest.approx(sum(clipped) / max(len(clipped), 1), abs=2e-3)
            sign = {"success": 1, "failure": -1, "undecided": 0}[trace["outcome"]]
            assert teacher["polarity"] == sign * teacher["stance"]

    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    for name in ("ledger.json", "traces.jsonl"):  # a run that was killed after step 4
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    with (tmp_path / "b" / "traces.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')  # in the middle of a line
    resumed = make_trainer(tmp_path / "b", stub=True, reward=by_first_id, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for name in ("ledger.json", "traces.jsonl"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()


def rollouts_of(ledger, bank):
    return sum(ledger.record(skill.id).uses for skill in bank.skills)


def test_a_batch_that_several_steps_train_on_twice_is_counted_once(tmp_path):
    """Two optimizer steps a pass, two passes: the rollouts of each step count in the first pass."""
    trainer = make_trainer(
        tmp_path,
        stub=True,
        reward=by_first_id,
        bank=BANK,
        per_device_train_batch_size=2,
        steps_per_generation=2,
        num_iterations=2,
        max_steps=4,
    )
    seen: dict[int, list[int]] = {}
    observe = trainer.training_ledger.observe

    def noted(rows, *others):
        seen.setdefault(trainer.state.global_step, []).extend(rows.tolist())
        observe(rows, *others)

    trainer.training_ledger.observe = noted
    trainer.train()
    assert list(seen) == [0, 1]
    assert sorted(seen[0] + seen[1]) == [0, 1, 2, 3]
    assert rollouts_of(trainer.ledger, BANK) == 4 * K
