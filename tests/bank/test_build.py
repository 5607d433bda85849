"""From experience to a bank: numbers that add up, and interruptions that cannot be seen in what comes out."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from sgsd.bank import SkillBank
from sgsd.bank.build import (
    BANK,
    CANDIDATES,
    FAILURES,
    LINEAGE,
    MEMORIES,
    RESULTS,
    ROLLOUTS,
    Stage,
    extract,
    merge_and_scan,
    requests_left,
    sample,
    verify,
)
from sgsd.bank.items import ancestors
from sgsd.bank.manifest import MANIFEST
from sgsd.bank.store import STORE, Store, open_store, refused_writes
from sgsd.data.problems import Problem
from sgsd.errors import BankError, ConfigError, DataError, SGSDError

from .builds import SETTINGS, Sampler, Verifier, Writer, build, problems, results

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Nothing but the operating system ends a process like this."""


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    """A process that dies loses nothing that it wrote; waiting for the disk is for machines that die."""
    connect = sqlite3.connect

    def quick(*given, **options):
        connection = connect(*given, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite3, "connect", quick)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A build that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "build"
    build(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_number_of_the_manifest_adds_up(whole):
    m = json.loads((whole / MANIFEST).read_text())
    rollouts, memory_rows, candidate_rows, failures = (lines(whole / name) for name in RESULTS[:4])
    memories, extraction, merged, bank = m["memories"], m["extraction"], m["merge"], m["bank"]
    stages = Counter(failure["stage"] for failure in failures)

    assert m["rollouts"]["total"] == len(rollouts) == 24
    assert m["rollouts"]["total"] == memories["total"] + sum(memories["undecided"].values())
    assert memories["total"] == len(memory_rows) == memories["correct"] + memories["incorrect"]
    assert memories["incorrect"] == sum(memories["failure_modes"].values())
    assert sum(memories["undecided"].values()) == stages["verify"] > 0
    assert memories["total"] == extraction["written_about"] + sum(extraction["failed"].values())
    assert sum(extraction["failed"].values()) == stages["extract"]
    assert extraction["requests"] == extraction["written_about"] + sum(extraction["rejected"].values())
    assert {"no luck", "no JSON object"} <= extraction["rejected"].keys()
    candidates = extraction["candidates"]
    assert candidates["total"] == len(candidate_rows) == candidates["skills"] + candidates["mistakes"]

    ends = {}
    for layer in merged["layers"]:
        start = len({c["id"] for c in candidate_rows if c["kind"] == layer["kind"]})
        assert layer["before"] == ends.get(layer["kind"], start)
        ends[layer["kind"]] = layer["after"]
    assert sum(ends.values()) == merged["merged"] < extraction["distinct"]
    assert sum(layer["failed"] for layer in merged["layers"]) == sum(merged["failed"].values()) == stages["merge"]
    groups = sum(layer["groups"] for layer in merged["layers"])
    assert merged["requests"] == groups - stages["merge"] + sum(merged["rejected"].values())
    quarantined = sum(bank["quarantined"].values())
    assert merged["merged"] == bank["skills"] + bank["mistakes"] + quarantined
    assert quarantined == stages["quarantine"] > 0
    assert set(bank["quarantined"]) == {"answer"}
    for entry in failures:
        if entry["stage"] == "quarantine":
            assert entry["id"] == entry["item"]["id"]
            assert "holds the answer" in entry["reason"]

    assert m["tokens"]["sample"]["completion"] == 3 * len(rollouts)
    with sqlite3.connect(whole / STORE) as store:
        errors = extraction["rejected"]["no luck"] + merged["rejected"]["no luck"]
        texts = store.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert texts == extraction["requests"] + merged["requests"] - errors
    assert m["finished"] == list(Stage)


def test_items_are_of_the_cold_start_and_lead_down_to_memories(whole):
    bank = SkillBank.load(whole / BANK)
    lineage = json.loads((whole / LINEAGE).read_text())
    memories = {memory["id"] for memory in lines(whole / MEMORIES)}
    assert bank.items
    for item in bank.items:
        assert item.origin == "cold_start"
        assert set(item.parents) == {id for id in ancestors(item.id, lineage) if id in memories} != set()
    deep = [id for item in bank.items for id in lineage[item.id] if id not in memories]
    assert deep, "no item was merged: the test says nothing"


@pytest.mark.parametrize("name", [None, *RESULTS])
def test_building_again_asks_nobody_and_writes_what_is_lost(whole, copy, name):
    if name:
        (copy / name).unlink()
    sampler, writer = Sampler(), Writer()
    build(copy, sampler=sampler, writer=writer)
    assert results(copy) == results(whole)
    assert not sampler.calls
    assert not writer.asked


def test_a_bank_that_was_edited_stays(copy):
    edited = SkillBank.load(copy / BANK).without([SkillBank.load(copy / BANK).items[0].id])
    edited.save(copy / BANK)
    build(copy)
    assert SkillBank.load(copy / BANK) == edited


@pytest.mark.parametrize("before", [True, False])
def test_cut_off_at_any_transaction_it_ends_the_same(whole, tmp_path, monkeypatch, before):
    """Dies before or after the 1st, 2nd, … chunk or group of answers is on the disk; then goes on."""
    for method in ("commit", "keep"):
        true, deaths = getattr(Store, method), 0
        for moment in range(int(before), 100, 2):
            count = iter(range(1000))

            def dying(store, *given, count=count, moment=moment, true=true):
                dies = next(count) == moment
                if not (dies and before):
                    true(store, *given)
                if dies:
                    raise Killed

            folder = tmp_path / f"{method}{moment}"
            with monkeypatch.context() as patched:
                patched.setattr(Store, method, dying)
                try:
                    build(folder)
                except Killed:
                    deaths += 1
                else:
                    break
            build(folder)
            assert results(folder) == results(whole), moment
        assert deaths > 5


def test_killed_at_random_moments_it_ends_the_same(whole, tmp_path):
    folder = tmp_path / "killed"
    moments = random.Random(0)
    kills = 0
    while kills < 6:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bank.builds", str(folder), "0.02"], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        before = written(folder)
        limit = time.monotonic() + 20
        while written(folder) == before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)  # until it is at work
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    build(folder)
    assert results(folder) == results(whole)


def written(folder: Path) -> int:
    """When the store was written to last."""
    return (folder / STORE).stat().st_mtime_ns if (folder / STORE).exists() else 0


def test_another_process_in_the_folder_is_refused(copy):
    with open_store(copy), pytest.raises(BankError, match="another process builds in this folder"):
        build(copy)
    build(copy)


def test_on_a_full_disk_nothing_is_lost(whole, tmp_path, monkeypatch):
    """The store may grow to so many pages; later there is room again."""
    connect = sqlite3.connect
    for pages in (1, 6, 9, 12):
        folder = tmp_path / str(pages)

        def small(*given, pages=pages, **options):
            connection = connect(*given, **options)
            connection.execute(f"PRAGMA max_page_count = {pages}")
            return connection

        with monkeypatch.context() as patched:
            patched.setattr("sgsd.bank.store.sqlite3.connect", small)
            with pytest.raises(BankError, match=r"the disk is full: got .*build\.sqlite; what was finished is kept"):
                build(folder)
        build(folder)
        assert results(folder) == results(whole)


def test_a_folder_that_holds_something_else_is_refused(copy, tmp_path):
    (tmp_path / MEMORIES).write_text("{}\n")
    with pytest.raises(BankError, match="results of unknown settings"):
        build(tmp_path)
    assert (tmp_path / MEMORIES).read_text() == "{}\n"
    with sqlite3.connect(copy / STORE) as store:
        store.execute("PRAGMA user_version = 7")
    with pytest.raises(BankError, match="written by another version of sgsd: got version 7"):
        build(copy)
    (copy / STORE).write_bytes(b"no database" * 100)
    with pytest.raises(BankError, match="the store of a build is damaged"):
        build(copy)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BankError, match="cannot be written"):
        build(file / "below")
    with pytest.raises(BankError, match="cannot be written"), refused_writes(file):  # its number is SQLITE_FULL
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    "value",
    ["null", "{}", '{"done": "x"}', "[" * 100_000, b"\xff", None, 7],
    ids=str,
)
@pytest.mark.parametrize(
    ("table", "column", "where"),
    [
        ("documents", "value", "name = 'stage merge'"),
        ("rows", "value", "name = 'rollouts.jsonl' AND number = 1"),
        ("rows", "value", "name = 'memories.jsonl' AND number = 1"),
        ("rows", "value", "name = 'candidates.jsonl' AND number = 1"),
        ("rows", "value", "name = 'failures.jsonl' AND number = 1"),
        ("documents", "value", "name = 'settings'"),
        ("documents", "value", "name = 'bank.json'"),
        ("documents", "value", "name = 'lineage.json'"),
    ],
)
def test_a_stranger_s_store_is_refused_in_one_line(copy, table, column, where, value):
    """It was read without a schema: KeyError, TypeError, RecursionError."""
    with sqlite3.connect(copy / STORE) as store:
        if value is None:
            store.execute(f"DELETE FROM {table} WHERE {where}")
        else:
            store.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,))
    for name in RESULTS:
        (copy / name).unlink()
    fits = where == "name = 'lineage.json'" and value in (None, "{}")
    fits |= value is None and (table == "rows" or where == "name = 'stage merge'")
    with nullcontext() if fits else pytest.raises(SGSDError, match=r"^.*$"):
        build(copy)


@pytest.mark.parametrize("name", [STORE, f"{STORE}-journal", BANK])
def test_a_link_out_of_a_build_s_folder_is_not_written_through(tmp_path, name):
    """SQLite follows links: another database got our tables, and one that was not there was made."""
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="a link leads out of the output folder"):
        build(folder)
    assert not (tmp_path / "theirs").exists()


def test_a_changed_setting_is_refused_by_name_once_its_stage_has_begun(tmp_path):
    folder = tmp_path / "b"
    with open_store(folder) as store:
        store.check_settings(SETTINGS, {})
        sample(store, problems(), lambda problem: [1], Sampler(), samples=2, chunk=5)
    build(folder, settings=SETTINGS | {"extract": {"writer": "another"}})
    with pytest.raises(
        ConfigError, match=r"results of stage extract with another writer: got \"stub\"; expected \"ano"
    ):
        build(folder)
    with pytest.raises(ConfigError, match="results of stage sample with another seed: got 1; expected 0"):
        build(folder, settings=SETTINGS | {"sample": {"seed": 1}})


def test_a_stage_before_its_turn_is_refused(tmp_path):
    with open_store(tmp_path / "b") as store:
        with pytest.raises(BankError, match=r"stage sample is not finished .* run sgsd bank sample first"):
            verify(store, problems(), Verifier())
        with pytest.raises(DataError, match="nothing to sample"):
            sample(store, [], lambda problem: [1], Sampler())
        sample(store, problems(), lambda problem: [1], Sampler())
        with pytest.raises(BankError, match="stage verify is not finished"):
            extract(store, Writer())
        with pytest.raises(BankError, match="stage extract is not finished"):
            merge_and_scan(store, Writer(), problems())


@pytest.mark.parametrize("outcomes", [("right",), ("wrong",), ("unclear",)])
def test_one_sided_experience_gives_a_bank_with_an_empty_list(tmp_path, outcomes):
    m = build(tmp_path / "b", sampler=Sampler(outcomes=outcomes, cut=False))
    bank = SkillBank.load(tmp_path / "b" / BANK)
    assert bool(bank.skills) == ("right" in outcomes)
    assert bool(bank.mistakes) == ("wrong" in outcomes)
    assert m["memories"]["total"] == m["memories"]["correct"] + m["memories"]["incorrect"]


def test_a_problem_that_is_gone_or_another_is_named(whole, copy):
    gone = [problem for problem in problems() if problem.id != "p4"]
    with pytest.raises(DataError, match=r"memories\.jsonl:\d+: its problem is missing from the data set: got 'p4'"):
        build(copy, asked=gone)
    other = [Problem(p.id, p.text, "1") if p.id == "p4" else p for p in problems()]
    with pytest.raises(DataError, match="'p4' with another text or answer"):
        build(copy, asked=other)
    assert results(copy) == results(whole)


def test_what_extraction_will_ask_is_known_before_it_asks(tmp_path):
    writer = Writer()
    with open_store(tmp_path / "b") as store:
        sample(store, problems(), lambda problem: [1], Sampler())
        verify(store, problems(), Verifier())
        known = [request.key for request in requests_left(store, max_items=2, seed=4)]
        extract(store, writer, max_items=2, seed=4, chunk=3)
        assert not list(requests_left(store, max_items=2, seed=4))
    assert known == [key for key in writer.asked if "/" not in key]


def test_text_with_half_a_surrogate_pair_is_kept_as_far_as_a_file_can(tmp_path):
    class Odd(Sampler):
        def sample(self, prompts, *, seed):
            return [
                rollout.__class__(rollout.prompt_ids, rollout.completion_ids, "wrong \ud83d", rollout.stop_reason)
                for rollout in super().sample(prompts, seed=seed)
            ]

    build(tmp_path / "b", sampler=Odd())
    assert lines(tmp_path / "b" / ROLLOUTS)[0]["completion"] == "wrong ?"
    assert not [row for row in lines(tmp_path / "b" / FAILURES) if row["stage"] == "extract" and "cut" in row["reason"]]
    assert lines(tmp_path / "b" / CANDIDATES)
