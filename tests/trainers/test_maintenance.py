"""Online maintenance: what the window holds, what an update does, and what a bad writer cannot do."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from sgsd import runfolder
from sgsd.bank.writing import FIELDS, WriteRequest, Written
from sgsd.errors import CheckpointError, ConfigError, ServerError
from sgsd.trainers.maintenance import refuse_partitioned_policy

from ..conftest import make_model
from ..serving import chat, serving
from .tiny import PROBLEMS, make_bank, make_trainer, quoting_model, unlike

FREQUENCY = 5


class StubWriter:
    """Writes two items a memory, from the request alone; never merges."""

    name = "stub"

    def __init__(self):
        self.asked = Counter()

    def write(self, requests):
        return [Written(request.key, self.text(request), None, 10, 5) for request in requests]

    def text(self, request):
        stage = request.key.split("-")[0]
        self.asked[stage] += 1
        if stage != "extract":
            return '{"items": []}'
        names = request.schema["properties"]["items"]["items"]["properties"]
        kind = "skill" if FIELDS["skill"][0] in names else "mistake"
        digest = hashlib.sha256(request.messages[-1]["content"].encode()).hexdigest()
        items = [dict(zip(FIELDS[kind], (f"t{n}", f"Do {digest[:4]}{n}.", "Now."), strict=True)) for n in range(2)]
        return json.dumps({"items": items})


def run(folder, *, writer=None, use_policy=False, **settings):
    defaults = {
        "max_steps": 6 * FREQUENCY,
        "maintenance_frequency": FREQUENCY,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "num_teachers": 2,
        "max_completion_length": 6,
        "trace_steps": 0,
    }
    settings = defaults | settings
    if settings["maintenance_frequency"] and not use_policy:
        settings["writer"] = writer or StubWriter()
    return make_trainer(folder, **settings)


def log_of(folder):
    return [json.loads(line) for line in (folder / runfolder.MAINTENANCE).read_text().splitlines()]


def logged(trainer, name):
    return [
        entry[f"sgsd/maintenance/{name}"] for entry in trainer.state.log_history if f"sgsd/maintenance/{name}" in entry
    ]


def test_six_checks_of_a_bank(tmp_path, monkeypatch):
    monkeypatch.setattr("sgsd.bank.maintain.MAX_DYNAMIC", 12)
    trainer = run(tmp_path)
    banks = [trainer.bank]
    check = trainer.maintenance.check

    def watched(*call):
        metrics = check(*call)
        banks.append(trainer.bank)
        return metrics

    trainer.maintenance.check = watched
    trainer.train()
    assert trainer.bank is banks[-1]
    assert len(banks) == 7
    meaning = {}
    for before, after in itertools.pairwise(banks):
        assert after.static.to_json() == make_bank().to_json()
        assert after != before
        for new, old in (
            (after.dynamic.skills, before.dynamic.skills),
            (after.dynamic.mistakes, before.dynamic.mistakes),
        ):
            assert len(new) <= 12
            assert len(new) - len(old) <= 5
        for item in after.items:
            # One that was evicted may be written again, from other rollouts.
            said = (item.title, item.text, item.note)
            assert meaning.setdefault(item.id, said) == said
    assert len(banks[-1].dynamic.skills) == len(banks[-1].dynamic.mistakes) == 12
    checks = log_of(tmp_path)
    assert [check["step"] for check in checks] == [5, 10, 15, 20, 25, 30]
    assert [check["records"] for check in checks] == [FREQUENCY * 4] * 6
    assert [check["bank"] for check in checks] == [bank.digest for bank in banks[1:]]
    assert logged(trainer, "records") == [FREQUENCY * 4.0] * 6
    assert logged(trainer, "updates") == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert logged(trainer, "skipped") == [0.0] * 6
    rates = [entry["success_rate"] for entry in trainer.state.log_history if "success_rate" in entry]
    for number, check in enumerate(checks):
        assert check["success_rate"] == pytest.approx(sum(rates[5 * number : 5 * number + 5]) / 5, abs=1e-6)


def test_new_items_can_be_followed_down_to_rollouts_of_the_window(tmp_path):
    trainer = run(tmp_path, max_steps=FREQUENCY)
    trainer.train()
    (check,) = log_of(tmp_path)
    memories = {memory["id"]: memory for memory in check["memories_kept"]}
    assert {parent for item in trainer.bank.dynamic.items for parent in item.parents} == set(memories)
    assert {memory["problem_id"] for memory in memories.values()} <= {problem.id for problem in PROBLEMS}
    outcomes = {memory["outcome"] for memory in memories.values()}
    assert outcomes == {"correct", "incorrect"}
    for item in trainer.bank.dynamic.skills:
        assert {memories[parent]["outcome"] for parent in item.parents} == {"correct"}


def test_the_next_step_retrieves_from_the_new_bank(tmp_path):
    trainer = run(tmp_path, max_steps=8, maintenance_frequency=2, bank=make_bank(1))
    trainer.train()
    online = {item.id for item in trainer.bank.dynamic.items}
    assert online & set(trainer.ledger.items)


@pytest.mark.parametrize("save", [8, 10])
def test_a_run_resumed_between_two_checks_ends_with_the_same_bank_log_and_ledger(tmp_path, save):
    settings = {"max_steps": 15, "save_strategy": "steps", "save_steps": save}
    straight = run(tmp_path, **settings)
    straight.train()
    log, ledger = (tmp_path / runfolder.MAINTENANCE).read_text(), straight.ledger
    shutil.rmtree(tmp_path / "checkpoint-15", ignore_errors=True)
    resumed = run(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save}"))
    assert resumed.bank == straight.bank
    assert resumed.bank.to_json() == straight.bank.to_json()
    assert (tmp_path / runfolder.MAINTENANCE).read_text() == log
    assert resumed.ledger == ledger
    assert logged(resumed, "updates")[-1] == 3.0
    assert unlike(resumed.model, straight.model) == []


def test_a_checkpoint_holds_the_window(tmp_path):
    trainer = run(tmp_path, max_steps=8, save_strategy="steps", save_steps=8)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-8" / "sgsd" / "window.json").read_text())
    assert state["rollouts"] == 3 * 4
    assert {memory["source"].split(",")[0] for memory in state["memories"]} == {f"training step {n}" for n in (6, 7, 8)}
    assert (state["counts"]["updated"], state["counts"]["skipped"]) == (1, 0)
    trainer.maintenance.load_state_dict(state)
    assert trainer.maintenance.state_dict() == state
    shorter = [{name: value for name, value in state["memories"][0].items() if name != "outcome"}]
    for other in ({}, {"memories": []}, state | {"memories": 3}, state | {"memories": shorter}):
        with pytest.raises(CheckpointError, match="not a window of rollouts"):
            trainer.maintenance.load_state_dict(other)


def test_a_run_that_has_not_watched_its_rollouts_so_far_begins_to_when_it_goes_on(tmp_path):
    run(tmp_path, max_steps=3, maintenance_frequency=0, save_strategy="steps", save_steps=3, use_policy=True).train()
    resumed = run(tmp_path, max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert log_of(tmp_path)[0]["records"] == 2 * 4


def test_enough_successes_leave_the_bank_as_it_is(tmp_path):
    writer = StubWriter()
    settings = {"stub": True, "maintenance_threshold": 0.3}  # cut rollouts are failures, whatever the reward
    trainer = run(
        tmp_path,
        writer=writer,
        max_steps=4,
        maintenance_frequency=2,
        reward=lambda prompts, **_: [1.0] * len(prompts),
        **settings,
    )
    trainer.train()
    assert trainer.bank == make_bank()
    assert [check["status"] for check in log_of(tmp_path)] == ["enough"] * 2
    assert all(check["success_rate"] >= 0.3 for check in log_of(tmp_path))
    assert not writer.asked


class Raising(StubWriter):
    def write(self, requests):
        raise ServerError("cannot be reached", got="http://localhost:1")


class Broken(StubWriter):
    def write(self, requests):
        return {}["text"]


class Refusing(StubWriter):
    def write(self, requests):
        return [Written(request.key, None, "status 500", 0, 0) for request in requests]


class Rambling(StubWriter):
    def text(self, request):
        return "I would rather not."


class Short(StubWriter):
    def write(self, requests):
        return super().write(requests)[:-1]


class HangingWriter(StubWriter):
    """Does not answer before the tests are over; its thread ends with the process."""

    def write(self, requests):
        threading.Event().wait(60)
        return super().write(requests)


class Half(StubWriter):
    """Every second request fails, whatever its attempt."""

    def write(self, requests):
        return [
            written if int(written.key.split("/")[0][-1], 16) % 2 else Written(written.key, None, "status 500", 0, 0)
            for written in super().write(requests)
        ]


@pytest.mark.parametrize(
    ("writer", "reason"),
    [
        (Raising(), "ServerError: cannot be reached: got http://localhost:1"),
        (Broken(), "KeyError: 'text'"),
        (Refusing(), "no written item could be used"),
        (Rambling(), "no written item could be used"),
        (Short(), "ValueError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, StubWriter) else "",
)
def test_a_failing_writer_costs_the_update_and_not_the_run(tmp_path, writer, reason):
    trainer = run(tmp_path, writer=writer, max_steps=4, maintenance_frequency=2)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.bank == make_bank()
    checks = log_of(tmp_path)
    assert [check["status"] for check in checks] == ["skipped"] * 2
    assert all(check["reason"].startswith(reason) for check in checks)
    assert logged(trainer, "skipped") == [1.0, 2.0]
    assert [check["records"] for check in checks] == [8, 8]


def test_what_part_of_the_requests_gave_is_used_and_the_rest_counted(tmp_path):
    trainer = run(tmp_path, writer=Half(), max_steps=FREQUENCY)
    trainer.train()
    (check,) = log_of(tmp_path)
    assert check["status"] == "updated"
    assert 0 < check["candidates"] < 2 * check["memories"]
    # Groups of the merge may have failed, too.
    assert check["failures"]["status 500"] >= check["memories"] - check["candidates"] // 2


def test_a_writer_that_hangs_is_left_behind(tmp_path):
    trainer = run(tmp_path, writer=HangingWriter(), max_steps=4, maintenance_frequency=2, maintenance_timeout=0.2)
    trainer.train()
    assert [(check["status"], check["reason"]) for check in log_of(tmp_path)] == [
        ("skipped", "no items within 0.2 s")
    ] * 2
    assert max(logged(trainer, "seconds")) < 5
    assert trainer.bank == make_bank()


def test_the_policy_writes_items_without_touching_the_run(tmp_path):
    """The last step's update comes too late to teach: weights are those of a run without maintenance."""
    trainers = []
    for frequency in (0, 2):  # each is seeded when it is made
        settings = {"max_steps": 2, "maintenance_frequency": frequency, "use_policy": True}
        trainers.append(run(tmp_path / str(frequency), model=quoting_model(), **settings))
        trainers[-1].train()
    (check,) = log_of(tmp_path / "2")
    assert check["status"] == "updated"
    assert check["candidates"] >= check["memories"]
    bank = trainers[1].bank
    assert {item.id for item in bank.dynamic.items} == {item["id"] for item in check["added"]} != set()
    assert {parent for item in bank.dynamic.items for parent in item.parents} <= {
        memory["id"] for memory in check["memories_kept"]
    }
    assert unlike(*(trainer.model for trainer in trainers)) == []


def test_a_policy_without_room_for_its_texts_costs_the_update_and_not_the_run(tmp_path):
    model = make_model(max_position_embeddings=600)
    trainer = run(tmp_path, model=model, max_steps=2, maintenance_frequency=2, use_policy=True)
    trainer.train()
    (check,) = log_of(tmp_path)
    assert check["status"] == "skipped"
    assert all(reason.startswith("the context of 600 ended") for reason in check["failures"])
    assert sum(check["failures"].values()) == check["memories"] > 0


def answered_by(stub):
    """A server's script: what the stub writer writes."""

    def script(body, attempt):
        if body["messages"][0]["content"] == "Say hello.":
            return chat("Hello.")
        form = body["response_format"]["json_schema"]["schema"]
        stage = "merge" if "sources" in json.dumps(form) else "extract"
        return chat(stub.text(WriteRequest(f"{stage}-1", body["messages"], form, body["max_tokens"], body["seed"])))

    return script


def served(url):
    return {"use_policy": True, "maintenance_writer_url": url, "maintenance_writer_model": "tiny"}


def test_a_server_writes_in_the_policys_place(tmp_path):
    with serving(answered_by(StubWriter())) as server:
        trainer = run(tmp_path / "server", max_steps=2, maintenance_frequency=2, **served(server.url))
        trainer.train()
    other = run(tmp_path / "stub", max_steps=2, maintenance_frequency=2)
    other.train()
    assert trainer.bank == other.bank != make_bank()
    assert {body["model"] for body in server.bodies} == {"tiny"}


def test_without_maintenance_there_is_nothing_of_it(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.maintenance is None
    assert not (tmp_path / runfolder.MAINTENANCE).exists()
    assert not (tmp_path / "checkpoint-1" / "sgsd" / "window.json").exists()
    assert not any("maintenance" in name for entry in trainer.state.log_history for name in entry)


@pytest.mark.parametrize(
    ("distributed", "zero_stage", "refused"),
    [
        (DistributedType.NO, None, None),
        (DistributedType.MULTI_GPU, None, None),
        (DistributedType.FSDP, None, "FSDP"),
        (DistributedType.DEEPSPEED, 2, None),
        (DistributedType.DEEPSPEED, 3, "ZeRO-3"),
    ],
)
def test_a_partitioned_policy_cannot_write(distributed, zero_stage, refused):
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    accelerator = SimpleNamespace(distributed_type=distributed, state=SimpleNamespace(deepspeed_plugin=plugin))
    expected = nullcontext() if refused is None else pytest.raises(ConfigError, match=rf"{refused}.*another writer")
    with expected:
        refuse_partitioned_policy(accelerator, frequency=25)


def test_an_item_that_gives_its_problem_s_answer_away_is_left_out(tmp_path):
    class Telltale(StubWriter):
        def text(self, request):
            answers = " ".join(f"The answer is {problem.answer}." for problem in PROBLEMS)
            return super().text(request).replace("Do ", f"{answers} Do ")

    trainer = run(tmp_path, writer=Telltale(), max_steps=2, maintenance_frequency=2)
    trainer.train()
    (check,) = log_of(tmp_path)
    assert "holds the answer" in check["leaks"][0]
    assert check["status"] == "unchanged"
    assert trainer.bank == make_bank()


@pytest.mark.parametrize("column", [lambda answer: int(answer), lambda answer: f"Long reasoning. #### {answer}"])
def test_leaks_are_looked_for_by_the_problems_answer_whatever_the_row_has_in_that_column(tmp_path, column):
    """Reward functions get the data's own columns: a number, or a whole solution."""

    class Telltale(StubWriter):
        def text(self, request):
            return super().text(request).replace("Do ", "The answer is 5241. Do ")

    problems = [replace(one, answer="5241", columns={"answer": column("5241")}) for one in PROBLEMS]
    trainer = run(tmp_path, writer=Telltale(), problems=problems, max_steps=2, maintenance_frequency=2)
    assert trainer.train_dataset[0]["answer"] == column("5241")
    trainer.train()
    (check,) = log_of(tmp_path)
    assert "holds the answer" in check["leaks"][0]
    assert trainer.bank == make_bank()
