"""From experience to a bank: numbers that add up, and interruptions that cannot be seen in what comes out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sgsd.bank import SkillBank
from sgsd.bank.build import (
    FAILURES,
    LAYOUTS,
    MEMORIES,
    ROLLOUTS,
    Stage,
    extract,
    merge_and_scan,
    requests_left,
    sample,
    verify,
)
from sgsd.bank.lineage import ancestors
from sgsd.bank.manifest import MANIFEST
from sgsd.bank.recording import WritingStoppedError
from sgsd.bank.records import LOG_FILE, Records, open_folder
from sgsd.data.problems import Problem
from sgsd.errors import BankError, ConfigError, DataError, ServerError

from .builds import SETTINGS, Sampler, Verifier, Writer, build, problems, results

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Nothing but the operating system ends a process like this."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A process that dies loses nothing that it wrote; fsync is for machines that die."""
    monkeypatch.setattr("sgsd.bank.records.os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A build that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "build"
    build(folder)
    return folder


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_number_of_the_manifest_adds_up(whole):
    m = json.loads((whole / MANIFEST).read_text())
    files = {
        name: lines(whole / f"{name}.jsonl") for name in ("rollouts", "memories", "candidates", "written", "failures")
    }
    memories, extraction, merged, bank = m["memories"], m["extraction"], m["merge"], m["bank"]
    stages = Counter(failure["stage"] for failure in files["failures"])

    assert m["rollouts"]["total"] == len(files["rollouts"]) == 24
    assert m["rollouts"]["total"] == memories["total"] + sum(memories["undecided"].values())
    assert memories["total"] == len(files["memories"]) == memories["correct"] + memories["incorrect"]
    assert memories["incorrect"] == sum(memories["failure_modes"].values())
    assert sum(memories["undecided"].values()) == stages["verify"] > 0
    assert memories["total"] == extraction["written_about"] + sum(extraction["failed"].values())
    assert sum(extraction["failed"].values()) == stages["extract"] > 0
    assert extraction["requests"] == extraction["written_about"] + sum(extraction["rejected"].values())
    candidates = extraction["candidates"]
    assert candidates["total"] == len(files["candidates"]) == candidates["skills"] + candidates["mistakes"]
    assert len(files["written"]) == extraction["requests"] + merged["requests"]

    ends = {}
    for layer in merged["layers"]:
        start = len({c["id"] for c in files["candidates"] if c["kind"] == layer["kind"]})
        assert layer["before"] == ends.get(layer["kind"], start)
        ends[layer["kind"]] = layer["after"]
    assert sum(ends.values()) == merged["merged"] < extraction["distinct"]
    assert sum(layer["failed"] for layer in merged["layers"]) == sum(merged["failed"].values()) == stages["merge"]
    quarantined = sum(bank["quarantined"].values())
    assert merged["merged"] == bank["skills"] + bank["mistakes"] + quarantined
    assert quarantined == stages["quarantine"] > 0
    assert set(bank["quarantined"]) == {"answer"}

    for stage in ("extract", "merge"):
        part = (
            files["written"][: extraction["requests"]]
            if stage == "extract"
            else files["written"][extraction["requests"] :]
        )
        for name in ("prompt", "completion"):
            assert m["tokens"][stage][name] == sum(written[f"{name}_tokens"] for written in part)
    assert m["tokens"]["sample"]["completion"] == 3 * len(files["rollouts"])
    assert m["finished"] == list(Stage)


def test_items_are_of_the_cold_start_and_lead_down_to_memories(whole):
    bank = SkillBank.load(whole / "bank.json")
    lineage = json.loads((whole / "lineage.json").read_text())
    memories = {memory["id"] for memory in lines(whole / MEMORIES)}
    assert bank.items
    for item in bank.items:
        assert item.origin == "cold_start"
        assert item.parents
        assert set(item.parents) <= memories
        assert set(item.parents) <= set(ancestors(item.id, lineage))
    deep = [id for item in bank.items for id in lineage[item.id] if id not in memories]
    assert deep, "no item was merged: the test says nothing"


def test_what_is_quarantined_is_kept_whole_with_its_reason(whole):
    bank = SkillBank.load(whole / "bank.json")
    taken = [failure for failure in lines(whole / FAILURES) if failure["stage"] == "quarantine"]
    for entry in taken:
        assert entry["id"] not in {item.id for item in bank.items}
        assert entry["item"]["id"] == entry["id"]
        assert "holds the answer" in entry["reason"]
        assert entry["item"]["parents"]


def test_building_again_changes_nothing_and_asks_nobody(whole, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    sampler, writer = Sampler(), Writer()
    build(folder, sampler=sampler, writer=writer)
    assert results(folder) == results(whole)
    assert not sampler.calls
    assert not writer.asked


@pytest.mark.parametrize(("torn", "every"), [(0.5, 1), (0.0, 3), (1.0, 3)])
def test_cut_off_at_any_write_it_ends_the_same(whole, tmp_path, monkeypatch, torn, every):
    """Dies at the 1st, 2nd, … write, with nothing, half or all of it on the disk; then goes on."""
    expected, write = results(whole), os.write
    deaths = 0
    for moment in range(0, 1000, every):
        folder = tmp_path / str(moment)
        count = iter(range(1000))

        def dying(descriptor, data, count=count, moment=moment):
            if next(count) == moment:
                write(descriptor, bytes(data)[: int(len(data) * torn)])
                raise Killed
            return write(descriptor, data)

        monkeypatch.setattr("sgsd.bank.records.os.write", dying)
        try:
            build(folder)
        except Killed:
            deaths += 1
        else:
            break
        finally:
            monkeypatch.setattr("sgsd.bank.records.os.write", write)
        notices = []
        build(folder, notice=notices.append)
        assert results(folder) == expected, moment
        assert len(notices) <= 3
        shutil.rmtree(folder)
    assert deaths > 60 / every


def test_killed_at_random_moments_it_ends_the_same(whole, tmp_path):
    folder = tmp_path / "killed"
    moments = random.Random(0)
    kills = 0
    while kills < 6:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bank.builds", str(folder), "0.02"], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        before = size(folder)
        limit = time.monotonic() + 20
        while size(folder) == before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)  # until it is at work
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    build(folder)
    assert results(folder) == results(whole)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.json*")) if folder.exists() else 0


@pytest.mark.parametrize(
    "name", ["rollouts.jsonl", "memories.jsonl", "candidates.jsonl", "written.jsonl", "failures.jsonl"]
)
@pytest.mark.parametrize("cut", [7, 600])
def test_a_finished_build_whose_files_lost_their_end_is_made_whole_again(whole, tmp_path, name, cut):
    folder = tmp_path / "torn"
    shutil.copytree(whole, folder)
    file = folder / name
    os.truncate(file, file.stat().st_size - cut)
    notices = []
    writer = Writer()
    build(folder, writer=writer, notice=notices.append)
    assert results(folder) == results(whole)
    assert any(name in notice for notice in notices)
    if name != "written.jsonl":
        assert not writer.asked, "answers that were there were asked for again"


@pytest.mark.parametrize("name", ["bank.json", "lineage.json", MANIFEST])
def test_a_lost_result_is_written_again(whole, tmp_path, name):
    folder = tmp_path / "lost"
    shutil.copytree(whole, folder)
    (folder / name).unlink()
    build(folder)
    assert results(folder) == results(whole)
    assert (folder / MANIFEST).exists()


def test_a_broken_line_is_named(whole, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    text = (folder / MEMORIES).read_bytes().split(b"\n")
    text[2] = b"{" + b" " * (len(text[2]) - 1)
    (folder / MEMORIES).write_bytes(b"\n".join(text))
    with pytest.raises(DataError, match=r"memories\.jsonl:3: not a JSON object"):
        build(folder)


def test_another_process_in_the_folder_is_refused(tmp_path):
    build(tmp_path / "b")
    with (tmp_path / "b" / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BankError, match="another process builds in this folder"):
            build(tmp_path / "b")
    build(tmp_path / "b")


def test_a_changed_setting_is_refused_by_name_once_its_stage_has_begun(tmp_path):
    folder = tmp_path / "b"
    with open_folder(folder, LAYOUTS, notice=print) as opened:
        opened.hold(SETTINGS, {})
        sample(opened, problems(), lambda problem: [1], Sampler(), samples=2, chunk=5)
    build(folder, settings=SETTINGS | {"extract": {"writer": "another"}})
    with pytest.raises(
        ConfigError, match=r"results of stage extract with another writer: got \"stub\"; expected \"ano"
    ):
        build(folder)
    with pytest.raises(ConfigError, match="results of stage sample with another seed: got 1; expected 0"):
        build(folder, settings=SETTINGS | {"sample": {"seed": 1}})


def test_a_stage_before_its_turn_is_refused(tmp_path):
    with open_folder(tmp_path / "b", LAYOUTS, notice=print) as folder:
        folder.hold(SETTINGS, {})
        with pytest.raises(BankError, match=r"stage sample is not finished .* run sgsd bank sample first"):
            verify(folder, problems(), Verifier())
        with pytest.raises(DataError, match="nothing to sample"):
            sample(folder, [], lambda problem: [1], Sampler())
        sample(folder, problems(), lambda problem: [1], Sampler())
        with pytest.raises(BankError, match="stage verify is not finished"):
            extract(folder, Writer())
        with pytest.raises(BankError, match="stage extract is not finished"):
            merge_and_scan(folder, Writer(), problems())


@pytest.mark.parametrize("outcomes", [("right",), ("wrong",), ("unclear",)])
def test_one_sided_experience_gives_a_bank_with_an_empty_list(tmp_path, outcomes):
    m = build(tmp_path / "b", sampler=Sampler(outcomes=outcomes, cut=False))
    bank = SkillBank.load(tmp_path / "b" / "bank.json")
    assert bool(bank.skills) == ("right" in outcomes)
    assert bool(bank.mistakes) == ("wrong" in outcomes)
    assert m["memories"]["total"] == m["memories"]["correct"] + m["memories"]["incorrect"]


def test_a_problem_that_is_gone_or_another_is_named(whole, tmp_path):
    folder = tmp_path / "gone"
    shutil.copytree(whole, folder)
    gone = [problem for problem in problems() if problem.id != "p4"]
    with pytest.raises(DataError, match=r"memories\.jsonl:\d+: its problem is gone from the data set: got 'p4'"):
        build(folder, asked=gone)
    other = [Problem(p.id, p.text, "1") if p.id == "p4" else p for p in problems()]
    with pytest.raises(DataError, match="'p4' with another text or answer"):
        build(folder, asked=other)
    assert results(folder) == results(whole)


@pytest.mark.parametrize("version", [2, "x"])
def test_a_folder_of_another_version_is_refused(whole, tmp_path, version):
    folder = tmp_path / "newer"
    shutil.copytree(whole, folder)
    log = (folder / LOG_FILE).read_text().replace('"schema_version": 1', f'"schema_version": {json.dumps(version)}', 1)
    (folder / LOG_FILE).write_text(log)
    with pytest.raises(BankError, match=f"written by another version of sgsd: got schema_version {version}"):
        build(folder)


def test_results_without_a_log_are_not_touched(tmp_path):
    (tmp_path / MEMORIES).write_text("{}\n")
    with pytest.raises(BankError, match="results of unknown settings"):
        build(tmp_path)
    assert (tmp_path / MEMORIES).read_text() == "{}\n"


def test_on_a_full_disk_nothing_is_lost(whole, tmp_path, monkeypatch):
    """The disk takes half of a write, then nothing; later there is room again."""
    write = os.write
    for moment in range(0, 60, 7):
        folder = tmp_path / str(moment)
        count = iter(range(1000))

        def filling(descriptor, data, count=count, moment=moment):
            at = next(count)
            if at == moment:
                return write(descriptor, bytes(data)[: len(data) // 2])
            if at > moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr("sgsd.bank.records.os.write", filling)
        with pytest.raises(BankError, match=r"the disk is full: got .*json.? \(No space left on device\); what was"):
            build(folder)
        monkeypatch.setattr("sgsd.bank.records.os.write", write)
        build(folder)
        assert results(folder) == results(whole)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    records = Records(tmp_path / "rows.jsonl")
    records.append([{"a": 1}])
    write = os.write

    def filling(descriptor, data):
        if len(data) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, bytes(data)[:30])

    monkeypatch.setattr("sgsd.bank.records.os.write", filling)
    with pytest.raises(BankError, match=r"rows\.jsonl \(No space left"):
        records.append([{"b": "x" * 40}])
    assert records.path.read_text() == '{"a": 1}\n'


def test_where_the_writer_stops_within_a_group_its_beginning_is_kept(whole, tmp_path):
    class Spent(Writer):
        def write(self, requests):
            if len(self.asked) > 9:
                raise WritingStoppedError(super().write(requests)[:1], "no more", got="all")
            return super().write(requests)

    stopped, again = Spent(), Writer()
    with pytest.raises(WritingStoppedError, match="no more: got all"):
        build(tmp_path / "b", writer=stopped)
    kept = [values["key"] for values in lines(tmp_path / "b" / "written.jsonl")]
    m = build(tmp_path / "b", writer=again)
    assert kept[-1] in stopped.asked
    assert not set(kept) & set(again.asked)
    assert m["memories"] == json.loads((whole / MANIFEST).read_text())["memories"]


def test_what_extraction_will_ask_is_known_before_it_asks(tmp_path):
    writer = Writer()
    with open_folder(tmp_path / "b", LAYOUTS, notice=print) as folder:
        folder.hold(SETTINGS, {})
        sample(folder, problems(), lambda problem: [1], Sampler())
        verify(folder, problems(), Verifier())
        known = [request.key for request in requests_left(folder, max_items=2, seed=4)]
        extract(folder, writer, max_items=2, seed=4, chunk=3)
        assert not list(requests_left(folder, max_items=2, seed=4))
    assert known == [key for key in writer.asked if "/" not in key]


@pytest.mark.parametrize("name", ["written.jsonl", LOG_FILE])
def test_a_line_of_another_kind_is_named(tmp_path, name):
    class Gone(Writer):
        def write(self, requests):
            raise ServerError("no usable answer")

    with pytest.raises(ServerError):
        build(tmp_path / "b", writer=Gone())
    with (tmp_path / "b" / name).open("a") as file:
        file.write('{"some": "thing"}\n')
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')}:\d+: not a"):
        build(tmp_path / "b")


def test_a_writer_out_of_reach_ends_it_and_what_was_written_stays(whole, tmp_path):
    class Gone(Writer):
        def write(self, requests):
            if len(self.asked) > 9:
                raise ServerError("no usable answer")
            return super().write(requests)

    writer = Gone()
    with pytest.raises(ServerError):
        build(tmp_path / "b", writer=writer)
    again = Writer()
    build(tmp_path / "b", writer=again)
    assert not set(writer.asked) & set(again.asked)
    assert results(tmp_path / "b") == results(whole)


def test_text_with_half_a_surrogate_pair_is_kept(tmp_path):
    class Odd(Sampler):
        def sample(self, prompts, *, seed):
            return [
                rollout.__class__(rollout.prompt_ids, rollout.completion_ids, "wrong \ud83d", rollout.stop_reason)
                for rollout in super().sample(prompts, seed=seed)
            ]

    build(tmp_path / "b", sampler=Odd())
    assert lines(tmp_path / "b" / ROLLOUTS)[0]["completion"] == "wrong \ud83d"
