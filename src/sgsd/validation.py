"""Checks JSON documents and settings against their types with pydantic, and refuses them in one line."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sgsd.errors import DataError, SGSDError

T = TypeVar("T")
MOST_DEPTH = 100
MOST_BITS = 1000  # of an integer: a float holds 1,024
MOST_YAML = 1 << 20  # characters of settings, which people write
_SHOWN = 80  # characters of a value in an error
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(
    text: str | bytes, where: str, kind: type[SGSDError] = DataError, *, finite: bool = True
) -> dict[str, Any]:
    """Parse a text that is a JSON object.

    Args:
        text: UTF-8.
        where: the file and line, for the error.
        kind: the class of the error.
        finite: whether to refuse NaN and infinities, which transformers logs.

    Raises:
        SGSDError: of class ``kind``; as ``parse_any_json``, or the value is not an object.
    """
    found = parse_any_json(text, where, kind, finite=finite)
    if not isinstance(found, dict):
        raise kind(f"{where}: wrong type", got=type(found).__name__, expected="a JSON object")
    return cast(dict[str, Any], found)


def parse_any_json(text: str | bytes, where: str, kind: type[SGSDError] = DataError, *, finite: bool = True) -> object:
    """Parse a text that is any JSON value; arguments as for ``parse_json``.

    Raises:
        SGSDError: of class ``kind``; malformed JSON (with line and column), a repeated key, or an unusable value:
            nested deeper than ``MOST_DEPTH``, a number that is not finite or too large for a float, a lone surrogate.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            repeated = _repeated(key for key, _ in pairs)
            raise kind(f"{where}: a JSON object repeats a key", got=_short(repr(repeated)), expected="each key once")
        return document

    try:
        found: object = json.loads(text, object_pairs_hook=unique)
        _refuse_unusable(found, finite=finite)
    except json.JSONDecodeError as error:
        raise kind(
            f"{where}: malformed JSON",
            got=f"{error.msg} at line {error.lineno} column {error.colno}",
            expected="a JSON value",
            remedy="a LaTeX backslash must be doubled in JSON" if "escape" in error.msg else None,
        ) from error
    except SGSDError:
        raise
    except (ValueError, RecursionError) as error:  # too many digits, not UTF-8, too deep
        said = " ".join(str(error).split()).partition("; use sys.")[0]  # which is Python's advice to its programmers
        raise kind(f"{where}: malformed JSON", got=said) from error
    return found


def is_no_json(error: SGSDError) -> bool:
    """Whether ``parse_any_json`` refused a text because it is not JSON, and not because of a value in it."""
    return isinstance(error.__cause__, (json.JSONDecodeError, UnicodeDecodeError))


def _refuse_unusable(document: object, *, finite: bool, null: bool = True) -> None:
    """Refuse a value with which some later step could not compute, or which it could not write or traverse.

    Args:
        document: plain data.
        finite: whether to refuse NaN and infinities.
        null: whether texts may hold U+0000, which no file name can.

    Raises:
        ValueError: naming the value.
    """
    level = [document]
    for _ in range(MOST_DEPTH):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if _SURROGATE.search(value):
                    raise ValueError("a lone surrogate")
                if not null and "\0" in value:
                    raise ValueError("the character U+0000")
            elif isinstance(value, int):
                if value.bit_length() > MOST_BITS:
                    raise ValueError("a number too large for a float")
            elif isinstance(value, float) and finite and not math.isfinite(value):
                raise ValueError(f"{value}, not a finite number")
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


# PyYAML's events have no types.
# pyright: reportUnknownMemberType=false


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses aliases (a few bytes can expand without end), tags, and repeated keys of a mapping.

    Numbers are those of YAML 1.2: ``1e-6`` is a number; ``1:30`` and ``010`` are text, not 90 and 8. Dates are text,
    and ``<<`` is an ordinary key.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast(Any, self.peek_event())
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            what = "an alias" if isinstance(event, yaml.AliasEvent) else f"the tag {event.tag}"
            raise yaml.YAMLError(f"{what}, at line {event.start_mark.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):  # compared by value: 1 and 1.0 are one key
            repeated = _repeated(cast(Any, self.construct_object(key)) for key, _ in node.value)
            raise yaml.YAMLError(f"the key {repeated} twice, at line {node.start_mark.line + 1}")
        return mapping


_TAG = "tag:yaml.org,2002:"
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(f"{_TAG}int", re.compile(r"\A[-+]?(?:0|[1-9][0-9_]*)\Z"), list("-+0123456789"))
_PlainLoader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"\A[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|[0-9][0-9_]*e[-+]?[0-9]+|\.(?:inf|nan))\Z",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str, kind: type[SGSDError] = DataError) -> dict[str, Any]:
    """Parse a YAML text that is a mapping; an empty text is an empty mapping.

    Args:
        text: the content of the file.
        where: the file, for the error.
        kind: the class of the error.

    Raises:
        SGSDError: of class ``kind``; malformed YAML, aliases, tags, a repeated key, a value that ``parse_any_json``
            would refuse, or the value is not a mapping.
    """
    try:
        if len(text) > MOST_YAML:
            raise ValueError(f"{len(text):,} characters, more than {MOST_YAML:,}")
        found: object = _PlainLoader(text).get_single_data()
        _refuse_unusable(found, finite=True, null=False)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # "\U00110000", 5,000 digits
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at").partition("; use sys.")[0]
        raise kind(f"{where}: not YAML", got=said) from error
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
    """Validate a value and convert it to the adapter's type.

    Args:
        adapter: of a pydantic model, a dataclass or any type.
        value: plain data, such as ``parse_json`` returns.
        where: the file and line, for the error.
        kind: the class of the error.
        known: the keys to suggest for an unknown one.

    Raises:
        SGSDError: of class ``kind``, for the first invalid field.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise refusal(error, where, kind, known=known) from error


def refusal(
    error: ValidationError, where: str, kind: type[SGSDError] = DataError, *, known: Iterable[str] = ()
) -> SGSDError:
    """The first of pydantic's errors as an error of this package.

    Args:
        error: pydantic's error.
        where: the file, or another name of the value.
        kind: the class of the error.
        known: the keys to suggest for an unknown one.
    """
    # An unknown key first: it may be the misspelling of a missing one.
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
    """The known names that contain or resemble ``name``, or else the first 12: the ``expected`` part of an error."""
    names = list(dict.fromkeys(known))
    holding = [candidate for candidate in names if name and name.lower() in candidate.lower()][:3]
    close = list(dict.fromkeys(holding + difflib.get_close_matches(name, names, n=3, cutoff=0.6)))
    return " or ".join(map(repr, close)) if close else "one of " + ", ".join(map(repr, names[:12]))


def _path(place: Iterable[str | int]) -> str:
    """``skills[3].text`` for pydantic's ``("skills", 3, "text")``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _repeated(keys: Iterable[Any]) -> Any:
    return next((key for key, count in Counter(keys).items() if count > 1), None)


def short_json(value: object) -> str:
    """A setting as JSON for an error, a long one cut."""
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
