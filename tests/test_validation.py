"""What the readers of JSON and YAML let through: nothing that a later step could not walk, compute with or write."""

from __future__ import annotations

import time

import pytest

from sgsd.errors import DataError
from sgsd.validation import parse_json, parse_yaml

DEEP = "[" * 150 + "]" * 150
DIGITS = "9" * 400


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"a": 1, "a": 2}', "repeats a key: got 'a'"),
        ('{"b": {"a": 1, "a": 1}}', "repeats a key"),
        ('{"a": NaN}', "not a finite number"),
        ('{"a": -Infinity}', "not a finite number"),
        ('{"a": [1e999]}', "not a finite number"),
        (f'{{"a": {DIGITS}}}', "too large for a float"),
        (f'{{"a": -{DIGITS}}}', "too large for a float"),
        (f'{{"a": {"9" * 5000}}}', "digits"),
        (f'{{"a": {DEEP}}}', "nested deeper"),
        (f'{{"a": {"[" * 100_000}}}', "depth"),
        ('{"a": "\\ud800"}', "a lone surrogate"),
        ('{"\\uDFFF": 1}', "a lone surrogate"),
        (b'{"a": "\xed\xa0\x80"}', "a lone surrogate"),
        (b'{"a": "\xff"}', "malformed JSON"),
        ("[1]", "wrong type: got list"),
        ("", "malformed JSON"),
    ],
)
def test_json_of_no_use_is_refused_by_file(text, fragment):
    with pytest.raises(DataError, match=f"^a.json: .*{fragment}"):
        parse_json(text, "a.json")


def test_json_that_is_fine_is_read():
    assert parse_json('{"a": [1, -2.5, null, true, "\\ud83d\\ude42é"]}', "f") == {"a": [1, -2.5, None, True, "🙂é"]}
    assert parse_json(f'{{"a": {"9" * 300}}}', "f") == {"a": int("9" * 300)}


def test_many_keys_are_compared_in_linear_time():
    text = "{" + ",".join(f'"{n % 100_000}": 1' for n in range(200_000)) + "}"
    began = time.perf_counter()
    with pytest.raises(DataError, match="repeats a key"):
        parse_json(text, "f")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("2E+3", 2000.0), ("-1.5e3", -1500.0), (".5", 0.5), ("1_000", 1000), ("+3", 3), ("0", 0),
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("-190:20:30", "-190:20:30"), ("010", "010"), ("0x1f", "0x1f"),
        ("2001-01-01", "2001-01-01"), ("yes", True), ("off", False), ("~", None), ("1.2.3", "1.2.3"),
        ("{min_lr: 2e-7}", {"min_lr": 2e-7}), ("[1e1, a]", [10.0, "a"]), ("'1e-6'", "1e-6"), ("=", "="),
    ],
)  # fmt: skip
def test_numbers_of_yaml_are_those_that_people_mean(text, value):
    read = parse_yaml(f"a: {text}", "f")["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: &x [1]\nb: *x", "an alias, at line 2"),
        ("a: &a [*a]", "an alias"),
        ("a: &a0 [x,x]\nb: &a1 [*a0,*a0]\nc: [*a1,*a1]", "an alias, at line 2"),
        ("<<: &x {a: 1}\nb: {<<: *x}", "an alias"),
        ("a: 1\nb: 2\na: 3", "the key a twice"),
        ("a: 1\n'a': 3", "the key a twice"),
        ("b: {1: x, 1.0: y}", "the key 1 twice"),
        ("a: !!python/object/apply:os.system [x]", "the tag"),
        ("a: !!int '1:30'", "the tag"),
        ("a: !!float x", "the tag"),
        ("a: !!timestamp x", "the tag"),
        ("a: .inf", "not a finite number"),
        ("a: .NaN", "not a finite number"),
        ("a: 1e999", "not a finite number"),
        (f"a: {DIGITS}", "too large for a float"),
        (f"a: {'9' * 5000}", "digits"),
        (f"a: {DEEP}", "nested deeper"),
        ("[" * 50_000, "depth"),
        ('a: "\\ud800"', "a lone surrogate"),
        ('a: "b\\0c"', r"the character U\+0000"),
        ('a: "\\U00110000"', "not YAML"),
        ("? [a]\n: 1", "unhashable key at line 1"),
        ("a: [1\nb: 2", "at line 2, column 2"),
        ("- a", "not a mapping"),
        ("a: '" + "x" * (1 << 20) + "'", "more than 1,048,576"),
    ],
)
def test_yaml_of_no_use_is_refused_by_file_and_line(text, fragment):
    with pytest.raises(DataError, match=f"^a.yaml: .*{fragment}") as refused:
        parse_yaml(text, "a.yaml")
    assert len(str(refused.value)) < 400
    assert "unicode string" not in str(refused.value)
