"""Hostile input, drawn at random: verifiers, data sets, bank files, configuration. No crash, no hang, no wrong answer
called right.

``SGSD_FUZZ_CASES`` is how many cases there are in all: 1,200 by default, always the same; ``make test-fuzz`` draws
100,000 anew.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import time
from fractions import Fraction
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trl import ModelConfig

from sgsd.bank import SkillBank
from sgsd.cli.settings import RunArguments, parse_settings
from sgsd.data.adapters import adapt
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.errors import SGSDError
from sgsd.trainers.config import CONFIGS
from sgsd.verifiers import Outcome, Verdict, get_verifier
from sgsd.verifiers.spans import letters_of
from sgsd.verifiers.verifier import NAMES

from ..verifiers.read_cases import read_cases

CASES = int(os.environ.get("SGSD_FUZZ_CASES", "1200"))
TIMEOUT = 5.0


def share(part: float):
    """Hypothesis settings for a part of all cases."""
    return settings(
        max_examples=max(1, round(part * CASES)),
        deadline=None,
        database=None,
        derandomize="SGSD_FUZZ_CASES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


pytestmark = [
    pytest.mark.timeout(300 + CASES // 20),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

# ---- what is drawn

CASES_BY_HAND = read_cases("near_misses")
KNOWN = [case.completion for case in CASES_BY_HAND if len(case.completion) < 200]
REFERENCES = sorted({case.reference for case in CASES_BY_HAND if case.expected == "incorrect"})
PIECES = [
    *"0123456789+-*/^_=<>(){}[]|\\$%&#,.;:!?'\"~`@ \n\t\r\0xyzabcABCeidπ√°½²－１٣ⅷ∞🙂é中\u200b\u202e\ufeff\ud800",
    "\\boxed{", "\\fbox", "\\frac{", "\\sqrt{", "\\text{", "\\left(", "\\right)", "\\begin{pmatrix}", "\\end{pmatrix}",
    "\\cdot", "\\times", "\\pm", "\\cup", "\\in ", "\\approx", "\\leq", "\\infty", "\\pi", "^{", "_{", "^\\circ", "\\%",
    "\\{", "\\}", "\\\\", "\\(", "\\)", "\\[", "\\]", "$$", "<think>", "</think>", "<answer>", "</answer>", "####",
    "The answer is ", "Answer: ", "Final Answer: ", "I hope it is correct", "not ", " or ", " and ", "答案是", "```",
    "<|im_end|>", "<|im_start|>", "<<3*4=12>>", "1e999999", "10^{10^{10}}", "9^{9^9}", "10**400", "1" * 3000, "0x1F",
    "\\int_0^1 ", "\\sum_{k=1}^{n} ", "\\lim_{x\\to 0} ", "x = ", "56", "-56", "1/0", "\\frac{1}{0}", "0^0", "NaN",
]  # fmt: skip
PIECEWISE = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


@st.composite
def mutated(draw, texts) -> str:
    """A known text with a piece put in, cut out or doubled."""
    text = draw(texts)
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return text[:start] + draw(st.sampled_from([draw(st.sampled_from(PIECES)), "", text[start:end] * 2])) + text[end:]


TEXT = st.one_of(PIECEWISE, mutated(st.sampled_from(KNOWN)), st.text(max_size=80), st.sampled_from(KNOWN))
REFERENCE = st.one_of(st.sampled_from(REFERENCES), mutated(st.sampled_from(REFERENCES)), PIECEWISE)

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(PIECES)


def nested(inner):
    return inner | st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


JSON = nested(nested(LEAF))


def refused(action, *arguments):
    """What an action gives, or the error it is refused with: one of ours, of one line."""
    try:
        return action(*arguments)
    except SGSDError as error:
        refusal = error
    assert str(refusal)
    assert "\n" not in str(refusal)
    return refusal


# ---- verifiers


@share(0.20)
@given(TEXT, REFERENCE)
def test_mathematics_gets_a_verdict_in_time(completion, answer):
    start = time.monotonic()
    verifier = get_verifier("math", workers=2, timeout=TIMEOUT)
    verdict = verifier.verify(completion, answer)
    assert isinstance(verdict, Verdict)
    assert not (verdict.reason or "").startswith("verifier error"), verdict
    assert verdict.outcome is not Outcome.UNDECIDED or not verifier.readable(answer), verdict
    assert time.monotonic() - start < 60  # a worker that died is started anew


@share(0.12)
@given(st.sampled_from([name for name in NAMES if name != "math"]), TEXT, REFERENCE)
def test_the_other_verifiers_too(name, completion, answer):
    if name == "reasoning_gym":
        metadata = {"source_dataset": "basic_arithmetic"}
        answer = json.dumps({"question": "q", "answer": answer, "metadata": metadata})
    verdict = get_verifier(name, workers=2, timeout=TIMEOUT).verify(completion, answer)
    assert not (verdict.reason or "").startswith("verifier error"), verdict
    assert len(letters_of(completion)) <= 26


NUMBERS = st.one_of(
    st.integers(-200, 200).map(Fraction),
    st.integers(-(10**12), 10**12).map(Fraction),
    st.fractions(min_value=-50, max_value=50, max_denominator=60),
    st.builds(lambda n, places: Fraction(n, 10**places), st.integers(-(10**6), 10**6), st.integers(1, 4)),
)


def spelt(value: Fraction) -> list[str]:
    """Exact spellings of a number."""
    if value.denominator == 1:
        n = int(value)
        return [str(n), f"{n}.0", f"{n:,}", f"\\frac{{{n}}}{{1}}", f"{n} \\text{{ cm}}", f"({n})"]
    n, d = value.numerator, value.denominator
    decimal = [format(float(value), "f").rstrip("0")] if 10**4 % d == 0 else []
    return [f"{n}/{d}", f"\\frac{{{n}}}{{{d}}}", f"\\dfrac{{{3 * n}}}{{{3 * d}}}", *decimal]


WRAPS = [
    "\\boxed{%s}", "So it is $\\boxed{%s}$.", "The answer is %s.", "Answer: %s", "#### %s", "<answer>%s</answer>", "%s",
    "$$x = %s$$", "<think>no</think> \\boxed{%s}", "\\[ \\boxed{%s} \\]", "Final Answer: %s",
]  # fmt: skip


@share(0.20)
@given(NUMBERS, NUMBERS, st.sampled_from(WRAPS), st.data())
def test_another_number_is_never_right_and_the_number_itself_is(value, other, wrap, data):
    verifier = get_verifier("math", workers=2, timeout=TIMEOUT)
    reference = data.draw(st.sampled_from(spelt(value)[:4]))
    completions = [wrap % data.draw(st.sampled_from(spelt(number))) for number in (value, other)]
    same, different = verifier.verify_many(completions, [reference] * 2)
    assert same.outcome is Outcome.CORRECT, (completions[0], reference)
    if value != other:
        assert different.outcome is not Outcome.CORRECT, (completions[1], reference)


# ---- data sets

COLUMNS = [
    "problem", "question", "prompt", "answer", "solution", "id", "unique_id", "metadata", "reward_model", "data_source",
    "ground_truth", "target", "level", "messages", "conversations", "extra_info", "source", "style", "content", "role",
]  # fmt: skip
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON | TEXT, max_size=5), max_size=5)
PLAUSIBLE = st.lists(
    st.fixed_dictionaries({"problem": TEXT | JSON, "answer": TEXT | JSON}, optional={"id": JSON, "solution": JSON}),
    min_size=1,
    max_size=4,
)


@share(0.10)
@given(ROWS | PLAUSIBLE)
def test_rows_become_problems_or_are_refused(rows):
    columns = sorted({name for row in rows for name in row})
    adapted = refused(lambda: adapt(rows, columns, stem="row", source="fuzz"))
    if not isinstance(adapted, SGSDError):
        assert all(isinstance(problem, Problem) and isinstance(problem.text, str) for problem in adapted.problems)
        assert len(adapted.problems) <= len(rows)


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({name for row in rows for name in row}))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


@share(0.10)
@given(
    st.one_of(
        st.tuples(st.sampled_from(["jsonl", "json", "csv", "parquet"]), st.binary(max_size=60)),
        st.tuples(st.just("jsonl"), (ROWS | PLAUSIBLE).map(as_lines)),
        st.tuples(st.just("json"), JSON.map(lambda value: json.dumps(value).encode())),
        st.tuples(st.just("csv"), (ROWS | PLAUSIBLE).map(as_csv)),
        st.tuples(st.just("jsonl"), mutated(PLAUSIBLE.map(lambda r: as_lines(r).decode())).map(utf8)),
    )
)
def test_files_become_problems_or_are_refused(tmp_path_factory, drawn):
    suffix, content = drawn
    file = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    file.write_bytes(content)
    refused(load_problems, str(file))


# ---- banks

FIELDS = ["id", "title", "text", "when", "avoid", "origin", "parents", "skill_id", "principle", "description"]
ITEM = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON | TEXT))
BANK = st.fixed_dictionaries(
    {},
    optional={
        "schema_version": st.just(1) | JSON,
        "name": JSON | TEXT,
        "metadata": JSON,
        "skills": st.lists(ITEM, max_size=3) | JSON,
        "mistakes": st.lists(ITEM, max_size=3) | JSON,
        "general_skills": st.lists(ITEM | TEXT, max_size=3) | JSON,
        "common_mistakes": st.lists(ITEM, max_size=3) | JSON,
        "task_specific_skills": st.dictionaries(st.text(max_size=5), st.lists(ITEM, max_size=2), max_size=2) | JSON,
        "x": JSON,
    },
)


@share(0.18)
@given(
    st.one_of(
        BANK.map(json.dumps),
        mutated(BANK.map(json.dumps)),
        JSON.map(json.dumps),
        PIECEWISE,
        st.integers(1, 5_000).map(lambda depth: '{"skills":' + "[" * depth),
    )
)
def test_a_bank_file_is_read_and_written_back_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "fuzz-bank.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    bank = refused(SkillBank.load, file)
    if isinstance(bank, SGSDError):
        return
    refused(bank.check)
    again = file.with_name("fuzz-again.json")
    bank.save(again)
    assert SkillBank.load(again) == bank


# ---- configuration

PARTS = (RunArguments, *CONFIGS.values(), ModelConfig)
SETTINGS = sorted({field.name for part in PARTS for field in dataclasses.fields(part)} | {"nonsense", "env", "config"})
NUMBER = st.integers(-3, 3) | st.integers() | st.floats()
YAML_VALUE = st.one_of(
    JSON,
    NUMBER,
    NUMBER.map(str),
    st.booleans(),
    st.sampled_from(["1e-5", "yes", "null", "~", "sgsd", "math", "steps", "no", [], {}, "!!python/name:os.system"]),
)


@share(0.10)
@given(
    st.one_of(
        st.dictionaries(st.sampled_from(SETTINGS), YAML_VALUE, max_size=4).map(
            lambda content: yaml.safe_dump(content, allow_unicode=True)
        ),
        mutated(st.dictionaries(st.sampled_from(SETTINGS), YAML_VALUE, max_size=3).map(yaml.safe_dump)),
        PIECEWISE,
        st.sampled_from(["!!python/object/apply:os.system ['true']", "a: &a [*a]", "a: *b", "? [x]\n: 1", "- 1", "\t"]),
    )
)
@example('"a\\nb": 3')
@example('verifier_options: "a\\nb"')
@example('instruction: "\\U00110000"')
@example('instruction: "\\U80000000"')
@example("seed: 2001-99-99")
@example("seed: " + "[" * 5000)
@example("env: {'': x}")
@example("accelerator_config: 0")
@example("lora_target_modules: {'': 3}")
@example("reward_weights: [1, x]")
def test_a_configuration_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with mock.patch.dict(os.environ):  # a file may set environment variables
        outcome = refused(parse_settings, ["--config", str(file), "--bf16", "false", "--output_dir", "run"])
    assert not str(outcome).startswith("unknown argument")  # the file is what is read
