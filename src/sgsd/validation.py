"""JSON documents and settings against their types: pydantic says what is wrong, one line says where."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sgsd.errors import DataError, SGSDError

T = TypeVar("T")
_SHOWN = 80  # characters of a value in an error


def parse_json(
    text: str | bytes, where: str, kind: type[SGSDError] = DataError, *, finite: bool = True
) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        text: UTF-8.
        where: the file and line, for the error.
        kind: of the error.
        finite: whether NaN and infinities, as transformers logs them, are refused.

    Raises:
        SGSDError: of ``kind``; malformed JSON (with line and column), a repeated key, a number that is not finite,
            nesting too deep to read, or another value than an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = min(key for key in keys if keys.count(key) > 1)
            raise kind(f"{where}: a JSON object repeats a key", got=repr(repeated), expected="each key once per object")
        return document

    def refuse(constant: str) -> object:
        raise kind(f"{where}: not valid JSON", got=constant, expected="finite numbers")

    try:
        found: object = json.loads(text, object_pairs_hook=unique, parse_constant=refuse if finite else None)
    except json.JSONDecodeError as error:
        raise kind(
            f"{where}: malformed JSON",
            got=f"{error.msg} at line {error.lineno} column {error.colno}",
            expected="a JSON object",
            remedy="a LaTeX backslash must be doubled in JSON" if "escape" in error.msg else None,
        ) from error
    except SGSDError:
        raise
    except (ValueError, RecursionError) as error:  # too many digits, not UTF-8, too deep
        raise kind(f"{where}: malformed JSON", got=" ".join(str(error).split())) from error
    if not isinstance(found, dict):
        raise kind(f"{where}: wrong type", got=type(found).__name__, expected="a JSON object")
    return cast(dict[str, Any], found)


# PyYAML's events have no types.
# pyright: reportUnknownMemberType=false


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which a few bytes can make endless, and without a key twice in one mapping."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, at line {self.peek_event().start_mark.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := next((key for key, count in Counter(keys).items() if count > 1), None):
            raise yaml.YAMLError(f"the key {repeated} twice, at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str, kind: type[SGSDError] = DataError) -> dict[str, Any]:
    """The mapping that a YAML text is; an empty text is an empty one.

    Args:
        text: of the file.
        where: the file, for the error.
        kind: of the error.

    Raises:
        SGSDError: of ``kind``; no YAML, aliases, a repeated key, or another value than a mapping.
    """
    try:
        found: object = _PlainLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # "\U00110000", 2001-99-99
        raise kind(f"{where}: not YAML", got=" ".join(str(error).split())) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise kind(f"{where}: not a mapping", got=type(found).__name__, expected="lines such as key: value")
    return cast(dict[str, Any], found)


def validated(
    adapter: TypeAdapter[T],
    value: object,
    where: str,
    kind: type[SGSDError] = DataError,
    *,
    known: Iterable[str] = (),
) -> T:
    """The value as the adapter's type.

    Args:
        adapter: of a pydantic model, a dataclass or any type.
        value: plain data, such as ``parse_json`` gives.
        where: the file and line, for the error.
        kind: of the error.
        known: keys that an unknown one is compared with.

    Raises:
        SGSDError: of ``kind``, for the first field that does not fit.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise refusal(error, where, kind, known=known) from error


def refusal(
    error: ValidationError, where: str, kind: type[SGSDError] = DataError, *, known: Iterable[str] = ()
) -> SGSDError:
    """The first of pydantic's complaints as an error of this package.

    Args:
        error: pydantic's.
        where: the file, or what else the value is.
        kind: of the error.
        known: keys that an unknown one is compared with.
    """
    # An unknown key first: it may be what another one is missing.
    ranks = {"extra_forbidden": 0, "unexpected_keyword_argument": 0, "missing": 2}
    said: ErrorDetails = min(error.errors(include_url=False), key=lambda one: ranks.get(one["type"], 1))
    place = _path(said["loc"])
    if ranks.get(said["type"]) == 0:
        inner = _path(said["loc"][:-1])
        return kind(
            f"{where}{inner and f': {inner}'}: unknown key",
            got=repr(said["loc"][-1]),
            expected=nearest(str(said["loc"][-1]), known) if known else None,
        )
    if said["type"] == "missing":
        return kind(f"{where}: {place} is missing")
    own = said.get("ctx", {}).get("error")
    if isinstance(own, SGSDError):
        at = f"{where}: {place}" if place else where
        return kind(f"{at}: {own.what}", got=own.got, expected=own.expected, remedy=own.remedy)
    expected = said["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = re.sub(r"valid dictionary( or instance of \w+)?", "JSON object", expected)
    expected = expected.replace("valid list", "JSON array")
    shown = json.dumps(said["input"], ensure_ascii=False, default=repr)
    return kind(f"{where}{place and f': {place}'}: cannot be used", got=_short(shown), expected=expected)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that hold or resemble ``name``, or else all (at most 12): the ``expected`` part of an error."""
    names = list(dict.fromkeys(known))
    holding = [candidate for candidate in names if name and name.lower() in candidate.lower()][:3]
    close = list(dict.fromkeys(holding + difflib.get_close_matches(name, names, n=3, cutoff=0.6)))
    return " or ".join(map(repr, close)) if close else "one of " + ", ".join(map(repr, names[:12]))


def _path(place: Iterable[str | int]) -> str:
    """``skills[3].text`` of pydantic's ``("skills", 3, "text")``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
