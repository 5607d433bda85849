"""Reading: files, directories, the hub out of reach, reasoning-gym; the public data where it is there."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sgsd.data.sources import _literal, load_problems
from sgsd.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"problem": f"A farmer has {n} ducks and sells one. How many are left?", "answer": str(n - 1)} for n in range(2, 12)
]
DATA = Path(os.environ.get("SGSD_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the copies ``datasets`` makes out of the user's cache."""
    import datasets

    path = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", path)
    return path


# ---- files


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".lines.json", ".wrapped.json", ".parquet", ".csv", ".tsv"])
def test_every_kind_of_file_reads_alike(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ducks{suffix}"
    if suffix in (".jsonl", ".lines.json"):
        write_lines(path, ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".wrapped.json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["problem", "answer"], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    problems, report = load_problems(path)
    assert [(one.text, one.answer) for one in problems] == [(row["problem"], row["answer"]) for row in ROWS]
    assert problems[3].id == f"{path.stem}-3"
    assert problems[3].source == f"{path.name}#3"
    assert (report.rows, report.kept, report.source, report.adapter) == (10, 10, path.name, "plain")


def test_a_column_may_mix_numbers_and_strings(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mixed.jsonl", [ROWS[0] | {"answer": 1}, ROWS[1], ROWS[2] | {"answer": 3.5}])
    assert [one.answer for one in load_problems(path)[0]] == ["1", "2", "3.5"]


@pytest.mark.parametrize(
    "text",
    [
        'problem;answer\n"Is 1,000; or more";7\n',
        '"problem"\t"answer"\r\n"Is 1,000; or more"\t7\r\n',
        'problem,"answer"\n"Is 1,000; or more",7\n',
        'problem;"answer; or, what, is right";answer\n"Is 1,000; or more";;7\n',
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_header_tells_what_parts_the_fields_of_a_table(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(text.encode())
    ((problem,), _) = load_problems(path)
    assert (problem.text, problem.answer) == ("Is 1,000; or more", "7")


@pytest.mark.parametrize(
    "row",
    [
        ROWS[0] | {"tags": ["a", "b"]},
        ROWS[0] | {"tags": []},
        {"tags": [["a"], ["b"]], **ROWS[0], "steps": ["x", "y"]},
        {"prompt": [{"role": "user", "content": ROWS[0]["problem"]}], "answer": "1"},
    ],
)
def test_a_json_file_of_one_row_may_hold_lists(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row))
    assert [(one.text, one.answer) for one in load_problems(path)[0]] == [(ROWS[0]["problem"], "1")]
    path.write_text(json.dumps({"authors": ["a"], "data": [row]}))
    assert [one.id for one in load_problems(path)[0]] == ["one-0"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ducks.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2"}\n\n{"problem": "1+2", "answer"\n')
    with pytest.raises(DataError, match=r"ducks\.jsonl:3"):
        load_problems(path)
    path.write_text('{"problem": "1+1", "answer": "2"}\n[1]\n')
    with pytest.raises(DataError, match=r"ducks\.jsonl:2: wrong type: got list"):
        load_problems(path)


HOSTILE_ROWS = {
    "too deep": '{"problem": "1 + 1?", "answer": "2", "more": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep objects": '{"problem": "1 + 1?", "answer": "2", "more": ' + '{"[,]": ' * 900 + "1" + "}" * 901,
    "5,000 digits": '{"problem": "1 + 1?", "answer": ' + "9" * 5_000 + "}",
    "400 digits": '{"problem": "1 + 1?", "answer": "2", "id": ' + "9" * 400 + "}",
    "half a pair": r'{"problem": "\ud83d, \\", "answer": "2"}',
    "a key twice": '{"problem": "1 + 1?", "problem": "1 + 2?", "answer": "2"}',
    "no number": '{"problem": "1 + 1?", "answer": NaN}',
}


FORMS = {
    "a.jsonl": ("", "\n", "\n"),
    "a.json": (" [", ",", "]\n"),
    "b.json": ('{"a": {"b": 1, "c": "["}, "d": [', ",\n", "]}"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("row", HOSTILE_ROWS.values(), ids=list(HOSTILE_ROWS))
def test_a_row_of_no_use_is_named_and_dropped(row: str, name: str, tmp_path: Path) -> None:
    """Until 0.1 it cost the file."""
    before, between, after = FORMS[name]
    path = tmp_path / name
    path.write_text(before + between.join([json.dumps(ROWS[0]), row, json.dumps(ROWS[1])]) + after)
    problems, report = load_problems(path)
    assert [one.id for one in problems] == [f"{path.stem}-0", f"{path.stem}-2"]
    assert (report.rows, report.kept, report.ids("malformed")) == (3, 2, (f"{path.stem}-1",))
    assert path.name in report.dropped[0].why
    for text in (before + row + after, before + row + between + json.dumps(ROWS[0])[:-1], "[" * 100_000):
        path.write_text(text)  # nothing else, and a file that was cut off
        with pytest.raises(DataError, match=path.name):
            load_problems(path)


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["x" * 10_000] * 1_000, "answer": ["1"] * 1_000}), path)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr("sgsd.data.sources.MOST_DATA", 1 << 20)
    with pytest.raises(DataError, match=r"too large.* 1 MiB"):
        load_problems(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"[{}]", "rows without columns"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b"[1, 2", r"a\.json: malformed JSON.* line 1"),
        ("a.json", b"3", "not a list of rows"),
        ("a.json", b'{"train": [], "test": []}', "not a list of rows"),
        ("a.json", b'{"problem": "1?", "tags": ["x"]}\n{"answer": "1"}', "no usable problems in a.json: got 0 of 2"),
        ("a.jsonl", '{"problem": "é"}'.encode("latin-1"), "not UTF-8"),
        ("a.parquet", b"PAR", "malformed Parquet"),
        ("a.csv", b"problem,answer\n1,2,3\n", r"number of fields.*a\.csv:2"),
        ("a.csv", b"problem,answer\n1\n", r"number of fields.*a\.csv:2"),
        ("a.csv", b"problem,problem,answer\n1,2,3\n", r"a\.csv: a column twice: got problem"),
        ("a.csv", b"problem,answer\n" + b"x" * 3_000, r"a\.csv: a line is too long"),
        ("a.txt", b"1 + 1 = 2", "unknown kind of data file"),
    ],
)
def test_files_that_cannot_be_read_say_why(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgsd.runfolder.MOST_BYTES", 2_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path / name)


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["1"])] * 3, names=["problem", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: a column twice: got answer"):
        load_problems(tmp_path / "a.parquet")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").symlink_to("b.jsonl")
    for name in ("a.csv", "b.jsonl"):
        with pytest.raises(DataError, match="a broken link, a pipe or a device"):
            load_problems(tmp_path / name)
    with pytest.raises(DataError, match="no data set: got ''"):  # not the current folder
        load_problems("")


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    write_lines(tmp_path / "ducks_train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"ducks_tran\.jsonl; did you mean .*ducks_train\.jsonl\?"):
        load_problems(tmp_path / "ducks_tran.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        load_problems(tmp_path / "nowhere" / "ducks.jsonl")
    with pytest.raises(DataError, match="no such data file"):
        load_problems("ducks.jsonl")


def test_rows_without_answers_are_an_error_with_counts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "ducks.jsonl", [row | {"answer": None} for row in ROWS])
    with pytest.raises(DataError, match=r"no usable problems in ducks\.jsonl: got 0 of 10 rows kept .* 10 no_answer"):
        load_problems(path)


def test_a_file_is_its_own_train_split(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "ducks.jsonl", ROWS)
    assert len(load_problems(path, split="train")[0]) == 10
    with pytest.raises(ConfigError, match="split has no meaning for a file"):
        load_problems(path, split="test")
    with pytest.raises(ConfigError, match="config_name has no meaning"):
        load_problems(path, config_name="main")


def test_shuffles_repeat_and_limits_count_problems(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "ducks.jsonl", [ROWS[0], *ROWS])
    plain, report = load_problems(path, limit=3)
    assert [one.id for one in plain] == ["ducks-0", "ducks-2", "ducks-3"]
    assert report.rows == 11 == report.kept + len(report.dropped) + report.beyond_limit
    first, second = (load_problems(path, shuffle=True, seed=5)[0] for _ in range(2))
    assert first == second
    assert len(first) == 10
    assert first != load_problems(path, shuffle=True, seed=6)[0]


# ---- directories and the hub


def test_directories_written_by_save_to_disk_are_read(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"easy": one, "hard": one.select([5])}).save_to_disk(tmp_path / "two")
    problems, report = load_problems(tmp_path / "one")
    assert len(problems) == 10
    assert problems[0].id == "one-train-0"
    problems, report = load_problems(tmp_path / "two", split="hard")
    assert [one.id for one in problems] == ["two-hard-0"]
    assert problems[0].text == ROWS[5]["problem"]
    assert report.source.endswith("two:hard")
    with pytest.raises(DataError, match="several splits: got easy, hard"):
        load_problems(tmp_path / "two")
    with pytest.raises(DataError, match="expected one of easy, hard"):
        load_problems(tmp_path / "two", split="middling")
    with pytest.raises(DataError, match="no such split: got test; expected one of train"):
        load_problems(tmp_path / "one", split="test")


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        (["train", "test"], "test"),
        (["train", "validation", "test"], "test"),
        (["train", "validation"], "validation"),
        (["train", "more"], "train"),
        (["train"], "train"),
    ],
)
def test_data_beside_training_data_are_of_another_split(tmp_path: Path, splits: list[str], taken: str) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_list(ROWS[place : place + 1]) for place, name in enumerate(splits)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all")
    assert load_problems(tmp_path / "all", held_out=True)[1].source.endswith(f"all:{taken}")
    assert load_problems(tmp_path / "all")[1].source.endswith("all:train")


def test_columns_apply_to_data_beside_training_data_that_have_them(tmp_path: Path) -> None:
    named, usual = tmp_path / "named.jsonl", tmp_path / "usual.jsonl"
    named.write_text('{"q": "1 + 1?", "gold": "2", "answer": "3", "text": "one"}\n')
    usual.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    for file in (named, usual):
        (problem,), _ = load_problems(file, columns="problem=q,answer=gold", held_out=True)
        assert (problem.text, problem.answer) == ("1 + 1?", "2")
    with pytest.raises(DataError, match="no such column"):
        load_problems(usual, columns="problem=q,answer=gold")


@pytest.mark.parametrize(
    "content", ["{", "[]", "1", "{}", '{"features": {"a": {"_type": "Evil"}}}', '{"splits": ["../../etc"]}']
)
def test_a_directory_of_a_stranger_s_is_refused(tmp_path: Path, content: str) -> None:
    for name in ("dataset_info.json", "state.json") if "splits" not in content else ("dataset_dict.json",):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"^data set \S+ cannot be read: .*$"):
        load_problems(tmp_path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs:\n- config_name: default\n  data_files: ../theirs.jsonl", "names a file outside of it: got .*theirs"),
        ("configs:\n- config_name: default\n  data_files: HERE/theirs.jsonl", "names a file outside of it"),
        ("configs: [5]", "cannot be opened"),
        ("a: [", "cannot be opened"),
    ],
)
def test_a_directory_s_card_names_nothing_outside_of_it(tmp_path: Path, cache: Path, card: str, message: str) -> None:
    folder = tmp_path / "ducks"
    folder.mkdir()
    for name in ("ducks/train.jsonl", "theirs.jsonl"):
        write_lines(tmp_path / name, ROWS)
    (folder / "README.md").write_text(f"---\n{card.replace('HERE', str(tmp_path))}\n---\n")
    with pytest.raises(DataError, match=message):
        load_problems(folder)


def test_a_saved_directory_s_state_names_nothing_outside_of_it(tmp_path: Path) -> None:
    import datasets

    for name in ("one", "two"):
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / name)
    state = tmp_path / "one" / "state.json"
    state.write_text(state.read_text().replace('"data-', '"../two/data-'))
    with pytest.raises(DataError, match="names a file outside of it"):
        load_problems(tmp_path / "one")


def test_a_directory_of_files_has_the_splits_of_a_hub_data_set(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "ducks"
    folder.mkdir()
    write_lines(folder / "train.jsonl", ROWS)
    write_lines(folder / "test.jsonl", ROWS[:2])
    problems, report = load_problems(folder)
    assert (len(problems), report.source) == (10, "ducks:train")
    assert [one.id for one in load_problems(folder, split="test")[0]] == ["ducks-test-0", "ducks-test-1"]
    with pytest.raises(DataError, match=r"cannot be opened.*test"):
        load_problems(folder, split="validation")


def _no_route(*_: object, **__: object) -> None:
    from huggingface_hub.utils import httpx

    raise httpx.ConnectError("no route")


def test_an_unreachable_hub_fails_fast_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import datasets
    import huggingface_hub

    class Session:
        head = staticmethod(_no_route)

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot reach the hub .*owner/ducks.*--dataset path/to/file\.jsonl"):
        load_problems("owner/ducks")
    assert time.monotonic() - start < 5
    assert datasets.config.HF_HUB_OFFLINE is False
    with pytest.raises(DataError, match="a pinned revision cannot be checked offline"):
        load_problems("owner/ducks", revision="abc")


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import datasets
    import huggingface_hub

    def asked() -> None:
        raise AssertionError("the hub was asked in offline mode")

    monkeypatch.setattr(huggingface_hub, "get_session", asked)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot reach the hub"):
        load_problems("owner/ducks")


def test_hub_data_sets_go_through_the_same_door(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from sgsd.data import sources as engine

    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS)})
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str | None, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return both if split is None else both[split]

    monkeypatch.setattr(engine, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems, _ = load_problems("owner/ducks", config_name="main", split="test", revision="abc")
    assert asked == [("owner/ducks", "main", "test", "abc")]
    assert (problems[0].id, problems[0].source) == ("ducks-test-0", "owner/ducks:test#0")
    assert load_problems("owner/ducks")[1].source == "owner/ducks:train"
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list([])})
    with pytest.raises(DataError, match="holds no rows"):
        load_problems("owner/ducks")


def test_a_name_that_is_no_name_is_an_error() -> None:
    with pytest.raises(DataError, match="not a hub name"):
        load_problems("owner/my ducks")


# ---- reasoning-gym


def test_reasoning_gym_tasks_are_generated_with_their_options() -> None:
    pytest.importorskip("reasoning_gym")
    source = "reasoning_gym:basic_arithmetic?size=20&seed=1&operators=('+',)&allow_parentheses=false"
    problems, report = load_problems(source)
    assert report.rows == 20
    assert problems[0].id == "basic_arithmetic-1-0"
    entry = json.loads(problems[0].key)
    assert sorted(entry) == ["answer", "metadata", "question"]
    assert (entry["question"], entry["answer"]) == (problems[0].text, problems[0].answer)
    assert all(" - " not in one.text and "(" not in one.text for one in problems)
    assert problems == load_problems(source)[0]
    assert load_problems("reasoning_gym:basic_arithmetic?size=3", seed=7)[0][0].id == "basic_arithmetic-7-0"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning_gym:basic_arithmetik", "got basic_arithmetik; expected 'basic_arithmetic'"),
        ("reasoning_gym:basic_arithmetic?sise=3", "did you mean size"),
        ("reasoning_gym:basic_arithmetic?size", "option=value"),
        ("reasoning_gym:basic_arithmetic?min_digits=-1", "refuses its options"),
        ("reasoning_gym:basic_arithmetic?size=-3", "refuses its options"),
        ("reasoning_gym:basic_arithmetic?size=many", "refuses its options"),
    ],
)
def test_reasoning_gym_mistakes_are_named(source: str, message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=message):
        load_problems(source)


def test_reasoning_gym_tasks_without_an_oracle_have_no_usable_problems() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="2 no_answer"):
        load_problems("reasoning_gym:rush_hour?size=2")


# ---- the public data, where it is


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data is not here; set SGSD_DATA")
class TestPublicData:
    @pytest.mark.parametrize(
        ("name", "adapter", "rows", "counts"),
        [
            ("dapo_math_raw_schema", "dapo_raw", 14, {}),
            ("dapo_math_processed_schema", "dapo_processed", 14, {}),
            ("dapo_math_sample", "plain", 2000, {"duplicate": 15}),
            ("asdiv", "plain", 2215, {"duplicate": 1}),
            ("gsm8k_train", "plain", 7473, {}),
            ("math_sample", "plain", 500, {}),
            ("aime_1983_2023_sample", "plain", 200, {}),
            ("responses", "plain", 1088, {"duplicate": 784}),
        ],
    )
    def test_every_file_loads(self, name: str, adapter: str, rows: int, counts: dict[str, int]) -> None:
        problems, report = load_problems(DATA / f"{name}.jsonl")
        assert (report.adapter, report.rows, report.counts) == (adapter, rows, counts)
        assert len({one.id for one in problems}) == len(problems) == rows - sum(counts.values())
        for one in problems:
            assert "Solve the following math problem step by step." not in one.text
            assert "Remember to put your answer" not in one.text

    def test_both_dapo_schemas_hold_the_same_problems(self) -> None:
        raw, processed = (load_problems(DATA / f"dapo_math_{name}_schema.jsonl")[0] for name in ("raw", "processed"))
        assert [(one.id, one.text, one.answer) for one in raw] == [(one.id, one.text, one.answer) for one in processed]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("0.5", 0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("('+', '-')", ("+", "-")),
        ("[1,2]", (1, 2)),
        ("many", "many"),
        ("__import__('os')", "__import__('os')"),
        ("[" * 900, "[" * 900),
    ],
)
def test_an_option_is_a_number_a_word_of_python_s_or_a_list_and_never_code(text: str, value: object) -> None:
    assert _literal(text) == value
