"""Loads problems from the hub, from local files and from reasoning-gym; ``adapters`` and ``curation`` have the rules.

Local files are read here and not by ``datasets``: the error names a malformed line, a column may mix numbers and
strings, and nothing is copied to a cache. ``datasets`` loads hub names and directories.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from yaml import YAMLError

from sgsd import runfolder
from sgsd.data.adapters import adapt, read_mapping
from sgsd.data.curation import DataReport, OnConflict, OnDuplicate, curate
from sgsd.data.problems import Problem, Row
from sgsd.errors import ConfigError, DataError, did_you_mean
from sgsd.validation import is_no_json, nearest, parse_any_json

FILE_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
GYM = "reasoning_gym:"
HUB_PATIENCE_S = 5.0  # for the first reply; the hub client itself gives up after 23 s
ROWS_PER_BATCH = 1000
_PREFERRED = ("test", "validation", "train")  # of several splits
MOST_DATA = 1 << 30  # bytes of a .json file, and of a Parquet file's rows: both are read whole


class _Table(NamedTuple):
    """An opened data set."""

    rows: Iterable[Row | DataError]
    """An unusable row is replaced by the error that says why."""
    columns: Sequence[str]
    source: str
    stem: str
    """The start of generated ids."""


def load_problems(
    source: str | Path,
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    columns: str | None = None,
    limit: int | None = None,
    on_duplicate: OnDuplicate = "drop",
    on_conflict: OnConflict = "drop_all",
    readable: Callable[[str], bool] | None = None,
    seed: int = 0,
    shuffle: bool = False,
    needs_answer: bool = True,
    held_out: bool = False,
) -> tuple[list[Problem], DataReport]:
    """Read a data set, adapt its rows, and drop what cannot be used.

    Args:
        source: a file (of one of ``FILE_KINDS``), a directory (of such files, or written by ``save_to_disk``),
            ``reasoning_gym:<task>?size=200&seed=1&…``, or a hub name. What exists on disk wins over the hub.
        split: the split; ``None`` takes ``train``, or the only one. A file has one split, ``train``.
        config_name: the configuration of a hub data set that has several.
        revision: a branch, tag or commit on the hub.
        adapter: a name in ``adapters.ADAPTERS``; ``None`` detects it from the columns.
        columns: the columns by name, instead of an adapter: ``problem=question,answer=gold``.
        limit: the number of problems to keep; rows are used in order until it is reached.
        on_duplicate, on_conflict, readable: as in ``curation.curate``.
        seed: the seed of the shuffle, and of reasoning-gym if the source names none.
        shuffle: shuffle the rows before the limit applies. Of duplicates, the first after the shuffle is kept.
        needs_answer: ``False`` keeps rows without an answer, for reward functions that need none.
        held_out: for data beside training data: the split ``None`` takes ``test``, else ``validation``, else as above,
            and ``columns`` apply if the data has them all.

    Returns:
        The problems, and a report on every row.

    Raises:
        ConfigError: an unknown adapter, policy, task or option; a setting that does not apply to the source.
        DataError: no such file, split or data set; a malformed row; the hub cannot be reached; no usable problem.
    """
    name = str(source)
    if not name.strip():  # as a path it would be the current folder
        raise DataError("no data set", got=repr(name), expected="a file, a folder, a hub name, or reasoning_gym:TASK")
    path = Path(os.path.expanduser(name))
    preferred = _PREFERRED if held_out else _PREFERRED[-1:]
    if name.startswith(GYM):
        _refuse(name, "a reasoning-gym task", split=split, config_name=config_name, revision=revision)
        table = _gym_table(name, seed)
    elif os.path.isfile(path):
        _refuse(name, "a file", split=None if split == "train" else split, config_name=config_name, revision=revision)
        table = _file_table(path)
    elif os.path.isdir(path):
        table = _directory_table(path, split, config_name, preferred)
    elif _looks_like_a_path(name):
        raise _missing_file(path)
    else:
        table = _hub_table(name, split, config_name, revision, preferred)

    rows, names, origin, stem = table
    if held_out and columns is not None and not {*names}.issuperset(read_mapping(columns).values()):
        columns = None
    adapted = adapt(rows, names, stem=stem, source=origin, adapter=adapter, mapping=columns, needs_answer=needs_answer)
    problems = list(adapted.problems)
    if shuffle:
        random.Random(seed).shuffle(problems)
    kept, report = curate(
        problems,
        readable=readable,
        on_duplicate=on_duplicate,
        on_conflict=on_conflict,
        limit=limit,
        needs_answer=needs_answer,
    )
    report = report.including(adapted, source=origin)
    if not kept:
        first = report.dropped[0]
        raise DataError(
            f"no usable problems in {origin}",
            got=report.summary(),
            expected="at least one row with a text" + (" and an answer" if needs_answer else ""),
            remedy=f"rows were read with adapter {adapted.adapter}; check the columns ({', '.join(names)}); "
            f"the first dropped row, {first.id}: {first.why or first.reason}",
        )
    return kept, report


def _refuse(source: str, kind: str, **settings: str | None) -> None:
    for setting, value in settings.items():
        if value is not None:
            raise ConfigError(
                f"{setting} has no meaning for {kind}", got=f"{value} for {source}", remedy="leave it out"
            )


# ---- files


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or Path(name).suffix in FILE_KINDS


def _missing_file(path: Path) -> DataError:
    folder = path.parent
    if os.path.lexists(path):
        return DataError("data file cannot be read", got=f"{path} (a broken link, a pipe or a device)")
    if not os.path.isdir(folder):
        return DataError("no such data file", got=path, remedy=f"the directory {folder} does not exist either")
    there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in FILE_KINDS or entry.is_dir())
    return DataError("no such data file", got=path, remedy=did_you_mean(path.name, there))


def _file_table(path: Path) -> _Table:
    readers: dict[str, Callable[[Path], list[Row | DataError]]] = {
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".parquet": _read_parquet,
        ".csv": _read_csv,
        ".tsv": _read_csv,
    }
    if path.suffix not in readers:
        raise DataError("unknown kind of data file", got=path, expected="one of " + ", ".join(FILE_KINDS))
    try:
        rows = readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError("data file is not UTF-8", got=f"{path} ({error.reason} at byte {error.start})") from error
    if not rows:
        raise DataError("data file holds no rows", got=path)
    columns = list(dict.fromkeys(column for row in rows if not isinstance(row, DataError) for column in row))
    if not columns:
        raise next((row for row in rows if isinstance(row, DataError)), DataError("rows without columns", got=path))
    return _Table(rows, columns, path.name, path.stem)


def _rows_of(texts: Iterable[tuple[str, str]]) -> list[Row | DataError]:
    """Parse a row from each (place, JSON text). A row with an unusable value is its error; malformed JSON raises."""
    rows: list[Row | DataError] = []
    for where, text in texts:
        try:
            row = parse_any_json(text, where)
        except DataError as error:
            if is_no_json(error):
                raise
            rows.append(error)
            continue
        if not isinstance(row, dict):
            raise DataError(f"{where}: wrong type", got=type(row).__name__, expected='a row, as {"problem": …}')
        rows.append(cast(Row, row))
    return rows


def _read_json_lines(path: Path) -> list[Row | DataError]:
    return _rows_of((where, line.decode("utf-8-sig")) for where, line in runfolder.read_raw_lines(path))


def _read_json(path: Path) -> list[Row | DataError]:
    """Read a list of rows, an object with one list of rows, one row, or JSON lines in a ``.json`` file."""
    text = runfolder.read_text(path, most=MOST_DATA)
    if rows := _elements(text):
        return _rows_of((f"{path}, row {place}", row) for place, row in enumerate(rows))
    try:
        content = parse_any_json(text, str(path))
    except DataError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data":
            return _read_json_lines(path)
        raise
    if isinstance(content, dict) and not all(isinstance(value, list) for value in content.values()):
        return [content]
    if content == []:
        return []
    raise DataError("JSON file is not a list of rows", got=path, expected="one list, or an object that holds one")


# The first row of a list; a message of a prompt is none.
_ROW = re.compile(r'\s*\{(?!\s*"(?:role|content)"\s*:)')
_JSON_PART = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},]', re.DOTALL)


def _elements(text: str) -> list[str]:
    """The texts of the rows of a JSON document that is a list of rows, or an object with one list; else empty.

    Rows are separated before they are parsed: one that is nested too deeply for the parser costs only itself.
    """
    outside = 0 if text.lstrip().startswith("[") else 1
    depth = lists = start = 0
    found: list[str] = []
    for part in _JSON_PART.finditer(text):
        mark = part[0]
        if mark == "[" and depth == outside and (outside == 0 or _ROW.match(text, part.end())):
            lists, start = lists + 1, part.end()
        elif start and mark in (",", "]") and depth == outside + 1:
            found.append(text[start : part.start()])
            start = part.end() if mark == "," else 0
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark, 0)
        if depth == 0:
            return found if lists == 1 and any(map(str.strip, found)) and not text[part.end() :].strip() else []
    return []


def _read_parquet(path: Path) -> list[Row | DataError]:
    import pyarrow
    import pyarrow.parquet

    rows: list[Row | DataError] = []
    room = MOST_DATA
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_repeated(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                room -= batch.nbytes
                if room < 0:
                    raise DataError("data file is too large", got=path, expected=f"at most {MOST_DATA >> 20} MiB")
                rows += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: impossible dates
        raise DataError("malformed Parquet file", got=f"{path} ({error})") from error
    return rows


def _read_csv(path: Path) -> list[Row | DataError]:
    """Read fields between commas, semicolons or tabs, whichever the header has most of outside of quotes."""
    rows: list[Row | DataError] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = _csv_lines(path, file)
        header = next(lines, "")
        delimiter = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
        reader = csv.DictReader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
        try:
            _refuse_repeated(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    got = f"{path}:{reader.line_num}"
                    raise DataError("CSV row and header differ in their number of fields", got=got)
                rows.append(row)
        except csv.Error as error:
            raise DataError("malformed CSV", got=f"{error} at {path}:{reader.line_num}") from error
    return rows


def _csv_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file, none of which is too long for the memory."""
    while line := file.readline(runfolder.MOST_BYTES + 1):
        if len(line) > runfolder.MOST_BYTES:
            raise DataError(f"{path}: a line is too long", expected=f"at most {runfolder.MOST_BYTES >> 20} MiB")
        yield line


def _refuse_repeated(path: Path, columns: Iterable[str]) -> None:
    """Refuse two columns of one name, of which a row would keep the last."""
    repeated = [column for column, count in Counter(columns).items() if column and count > 1]
    if repeated:
        raise DataError(f"{path}: a column twice", got=repeated[0], expected="each name once")


# ---- the datasets library


def _directory_table(path: Path, split: str | None, config_name: str | None, preferred: Sequence[str]) -> _Table:
    import datasets

    if not ((path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()):
        return _from_datasets(_load_dataset(str(path), config_name, split, None), path.name, split, preferred)
    _refuse(str(path), "a directory written by save_to_disk", config_name=config_name)
    try:
        loaded = datasets.load_from_disk(str(path))
        parts: Iterable[Any] = loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]
        _refuse_outside(path, (str(one["filename"]) for part in parts for one in part.cache_files))
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever its JSON files cause
        raise DataError(f"data set {path} cannot be read", got=" ".join(str(error).split())) from error
    splits = list(map(str, loaded)) if isinstance(loaded, datasets.DatasetDict) else ["train"]
    if split not in (None, *splits):
        raise DataError("no such split", got=split, expected="one of " + ", ".join(splits))
    if split is not None and isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[split]
    return _from_datasets(loaded, path.name, split, preferred)


def _hub_table(
    name: str, split: str | None, config_name: str | None, revision: str | None, preferred: Sequence[str]
) -> _Table:
    import datasets.config

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError("not a file, and not a hub name", got=name, expected="owner/name, or a path to a file")
    if not datasets.config.HF_HUB_OFFLINE and hub_answers():
        return _from_datasets(_load_dataset(name, config_name, split, revision), name, split, preferred)
    if revision is not None:  # datasets would return any cached revision
        got = f"revision {revision} of {name}, and the hub is out of reach"
        raise DataError("a pinned revision cannot be checked offline", got=got, remedy="pass a local copy instead")
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True  # a copy in the local cache is used at once
    try:
        return _from_datasets(_load_dataset(name, config_name, split, revision), name, split, preferred)
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub replies to one request within a time limit; the client's own retries cannot be limited."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import httpx

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE_S)
    except httpx.TransportError:
        return False
    return True


def _load_dataset(path: str, config_name: str | None, split: str | None, revision: str | None) -> Any:
    import datasets
    import datasets.exceptions
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    remedy = "check the name and the network, or pass a local copy: --dataset path/to/file.jsonl"
    try:
        if os.path.isdir(path):
            named: Any = datasets.load_dataset_builder(path, config_name).config.data_files or {}
            _refuse_outside(Path(path), (str(file) for files in named.values() for file in files))
        return datasets.load_dataset(path, config_name, split=split, revision=revision)
    except DataError:
        raise
    except (ConnectionError, httpx.TransportError) as error:  # OfflineModeIsEnabled is a ConnectionError
        why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else f"no answer within {HUB_PATIENCE_S:.0f} s"
        got = f"{why}, and no copy in the local cache"
        raise DataError(f"cannot reach the hub for data set {path}", got=got, remedy=remedy) from error
    except datasets.exceptions.DatasetGenerationError as error:
        remedy = "pass the file itself to learn which line is broken"
        raise DataError(f"data set {path} cannot be read", got=error.__cause__ or error, remedy=remedy) from error
    except (OSError, ValueError, HfHubHTTPError) as error:  # not found, no such configuration or split, refused
        raise DataError(f"data set {path} cannot be opened", got=" ".join(str(error).split()), remedy=remedy) from error
    except (RuntimeError, TypeError, KeyError, AttributeError, YAMLError) as error:  # whatever its README.md causes
        raise DataError(f"data set {path} cannot be opened", got=" ".join(str(error).split()), remedy=remedy) from error


def _refuse_outside(folder: Path, files: Iterable[str]) -> None:
    """Refuse files that a folder's own metadata name outside of it, or at an address. Links are followed: a snapshot of
    the hub consists of them.
    """
    root = os.path.abspath(folder)
    for file in files:
        if "://" in file or not Path(os.path.abspath(file)).is_relative_to(root):
            raise DataError("a data folder names a file outside of it", got=f"{file} in {folder}", remedy="remove it")


def _from_datasets(loaded: Any, name: str, split: str | None, preferred: Sequence[str]) -> _Table:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        there = list(map(str, loaded))
        split = there[0] if len(there) == 1 else next((one for one in preferred if one in there), preferred[-1])
        if split not in loaded:
            raise DataError(
                f"data set {name} has several splits",
                got=", ".join(map(str, loaded)),
                remedy="name one with --dataset_split",
            )
        loaded = loaded[split]
    part = split or "train"
    if len(loaded) == 0:
        raise DataError("data set holds no rows", got=f"{name}, split {part}")
    stem = f"{name.rsplit('/', 1)[-1]}-{part}"
    return _Table(loaded.with_format(None), loaded.column_names, f"{name}:{part}", stem)


# ---- reasoning-gym


_MOST_TASKS = 10_000_000


def _gym_table(source: str, seed: int) -> _Table:
    """The entries of ``reasoning_gym:<task>?option=value&…``; options are the fields of the task's configuration."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        remedy = "install it: pip install 'sgsd[demo]'"
        raise DataError("reasoning-gym is not installed", got=source, remedy=remedy) from error

    task, _, query = source.removeprefix(GYM).partition("?")
    if task not in factory.DATASETS:
        raise ConfigError("unknown reasoning-gym task", got=task, expected=nearest(task, factory.DATASETS))
    known = [field.name for field in dataclasses.fields(factory.DATASETS[task][1])]
    options: dict[str, Any] = {"seed": seed}
    for setting in filter(None, query.split("&")):
        key, equals, value = setting.partition("=")
        if key not in known or not equals:
            raise ConfigError(
                f"unknown option of {GYM}{task}",
                got=setting,
                expected="option=value with one of " + ", ".join(known),
                remedy=did_you_mean(key, known),
            )
        options[key] = _literal(value)
    if isinstance(options.get("size"), int) and options["size"] > _MOST_TASKS:
        raise ConfigError(f"too many tasks of {GYM}{task}", got=options["size"], expected=f"at most {_MOST_TASKS:,}")
    try:
        entries = factory.create_dataset(task, **options)
        size = len(entries)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{GYM}{task} refuses its options", got=f"{options} ({error or 'no reason given'})"
        ) from error
    columns = ("question", "answer", "metadata")
    rows = ({column: entries[place][column] for column in columns} for place in range(size))
    return _Table(rows, columns, source, f"{task}-{options['seed']}")


def _literal(value: str) -> Any:
    """The value of an option: a number, true, false, none, a list in ``[]`` or ``()``; else the text itself."""
    if len(value) > 1_000:
        return value
    spelt = value.replace("'", '"').replace("(", "[").replace(")", "]").replace(",]", "]")
    try:
        read = json.loads({"true": "true", "false": "false", "none": "null"}.get(value.lower(), spelt))
    except (ValueError, RecursionError):
        return value
    return tuple(cast(list[Any], read)) if isinstance(read, list) else read
