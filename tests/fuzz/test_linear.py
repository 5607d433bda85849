"""Texts of strangers take time linear in their length: every regular expression of the package, found in its source and
tried on repeats of what it repeats itself; and the functions that read whole texts in the calling process.

``tests/verifiers/test_linear.py`` tries extraction, grading and references.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
import re._constants as sre
import signal
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from re._parser import parse
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from sgsd.bank import Origin, Skill, SkillBank
from sgsd.bank.documents import read_document, write_document
from sgsd.bank.leaks import held_answer
from sgsd.bank.writing import UnfitError, refuse_faults
from sgsd.controls import disarmer
from sgsd.data.adapters import _DAPO_TAIL as DAPO
from sgsd.data.adapters import adapt
from sgsd.data.curation import curate
from sgsd.data.overlap import find_overlaps
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.errors import BankError
from sgsd.memories import compact_steps
from sgsd.verifiers import get_verifier

from ..conftest import ROOT
from ..verifiers.repeats import FRAGMENTS

SOURCES = sorted((ROOT / "src" / "sgsd").rglob("*.py"))
SECONDS = 1.0
pytestmark = pytest.mark.slow
SIZES = 500, 2_000, 8_000
LENGTHS = 1_500, 6_000, 24_000
TIMES = 9
"""Beyond which a time grows too fast where the text grows fourfold: quadratic is 16 times."""

# ---- how long something takes


class TooSlowError(BaseException):
    """Passes every ``except Exception``."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within, no more of the processor's time: neighbours on the machine don't count. ``re`` looks for signals."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seconds(call: Callable[[str], object], text: str) -> float:
    """The processor's time of a call, over so many that the clock's steps of 4 ms don't count; infinity beyond
    ``SECONDS``."""
    start, calls = time.process_time(), 0
    try:
        with limited(SECONDS):
            while (spent := time.process_time() - start) < 0.04:
                call(text)
                calls += 1
    except TooSlowError:
        return math.inf
    return spent / calls


def grows(
    call: Callable[[str], object], make: Callable[[int], str], sizes: tuple[int, ...] = SIZES, quick: float = 0.001
) -> bool:
    """Whether the time grows faster than the size. Sizes grow fourfold; what is ``quick`` at the second is linear."""
    texts = [make(size) for size in sizes]
    start = time.perf_counter()
    with suppress(TooSlowError), limited(SECONDS):
        call(texts[1])
    if time.perf_counter() - start < quick:
        return False
    times = [seconds(call, texts[0])]
    for text in texts[1:]:
        times.append(seconds(call, text))
        if times[-1] < TIMES * min(times[-2], SECONDS):
            return False
    return True


# ---- every regular expression

LOOKS = {
    "match": re.Pattern.match,
    "fullmatch": re.Pattern.fullmatch,
    **dict.fromkeys(("search", "split", "sub", "subn", "findall", "finditer"), re.Pattern.findall),
}
# How many are made in functions: of tokens that are escaped, or of what the module gives them.
MADE = {
    "sgsd.bank.leaks": 1,
    "sgsd.controls": 3,
    "sgsd.verifiers.extract": 1,  # of a capital letter
    "sgsd.verifiers.math": 1,  # of a letter
    "sgsd.verifiers.numerals": 1,  # of the module's own patterns
    "sgsd.verifiers.phrases": 1,
    "sgsd.verifiers.reasoning_gym": 1,
}
PUZZLES = "_match"  # of sgsd.verifiers.reasoning_gym, which fullmatches the pattern that it is given


def named_patterns(value: object) -> Iterator[re.Pattern[str]]:
    """The patterns that a module's value is or holds."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from named_patterns([*value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from named_patterns(part)


@cache
def expressions() -> tuple[dict[re.Pattern[str], dict[str, str]], Counter[str]]:
    """Every pattern → how it is asked (``search`` where that is not seen) and where it stands; and how many of each
    module are made only when it runs."""
    found: defaultdict[re.Pattern[str], dict[str, str]] = defaultdict(dict)
    made: Counter[str] = Counter()
    for file in SOURCES:
        text = file.read_text()
        name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        if ("re." not in text and "phrases." not in text) or "__main__" in name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the modules import
            module = importlib.import_module(name)

        def value(node: ast.expr, scope: dict[str, object]) -> object:
            calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
            if any(not isinstance(call, ast.Attribute) or call.attr != "join" for call in calls):
                return None  # nothing is run
            try:
                return eval(ast.unparse(node), dict(scope))
            except (NameError, AttributeError):
                return None

        for pattern in named_patterns([*vars(module).values()]):
            found[pattern].setdefault("", name)
        tree = ast.parse(text)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        resolvers = {part for node in calls if ast.unparse(node.func).endswith("_resolver") for part in node.args}
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        later = {node for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            asked = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            owner = value(node.func.value, vars(module)) if isinstance(node.func, ast.Attribute) else None
            where = f"{name}:{node.lineno}"
            if isinstance(owner, re.Pattern):
                found[owner][asked] = where
            elif (owner is re and asked in {*LOOKS, "compile"}) or asked == PUZZLES:
                arguments = [value(one, vars(module)) for one in (*node.args, *(k.value for k in node.keywords))]
                flags = [one for one in arguments if isinstance(one, re.RegexFlag)]
                if isinstance(arguments[0], str):
                    asked = {PUZZLES: "fullmatch", "compile": "match" if node in resolvers else ""}.get(asked, asked)
                    found[re.compile(arguments[0], *flags)].setdefault(asked, where)
                elif node in later:
                    made[name] += 1
    return {pattern: looks for pattern, looks in found.items() if isinstance(pattern.pattern, str)}, made


UNITS = [
    *" \u2003\n([{$*\"'1a中-",
    *("- ", "to ", "$ ", "or to ", "answer to" + " " * 50, "\\boxed{", "1,", "a ", "9/", "```\n", "\\\\", "\\(", "<|"),
]
CLASSES = {
    sre.CATEGORY_DIGIT: "1", sre.CATEGORY_SPACE: " ", sre.CATEGORY_WORD: "a",
    sre.CATEGORY_NOT_DIGIT: "a", sre.CATEGORY_NOT_SPACE: "a", sre.CATEGORY_NOT_WORD: " ",
}  # fmt: skip
REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)


def inner(op: object, value: Any) -> list[Any]:
    """The patterns inside an element of a pattern."""
    if op in REPEATS:
        return [value[2]]
    if op is sre.BRANCH:
        return [*value[1]]
    return (
        [value[-1]] if op in (sre.SUBPATTERN, sre.ASSERT, sre.ASSERT_NOT) else [value] if op is sre.ATOMIC_GROUP else []
    )


def characters(members: Any) -> list[str]:
    """Characters of a class, one a member."""
    if members[0][0] is sre.NEGATE:
        plain = "".join(characters(members[1:])) if members[1:] else ""
        return [char for char in "a1 (-\n\u2003" if char not in plain][:4]
    return [
        CLASSES[value] if op is sre.CATEGORY else chr(value if op is sre.LITERAL else value[0]) for op, value in members
    ]


def sample(pattern: Any) -> str:
    """A text that a pattern would match, but for what it wants around it; what may be left out is left out."""
    text = ""
    for op, value in pattern:
        if op is sre.LITERAL:
            text += chr(value)
        elif op in (sre.ANY, sre.NOT_LITERAL):
            text += "a"
        elif op is sre.IN:
            text += characters(value)[0]
        elif op not in (sre.ASSERT, sre.ASSERT_NOT):
            text += "".join(map(sample, inner(op, value)[:1])) * (min(value[0], 20) if op in REPEATS else 1)
    return text


def ways(pattern: Any) -> list[str]:
    """Texts that a pattern would match: of a choice at its beginning, one each."""
    (op, value), *rest = [*pattern] or [(sre.AT, None)]
    if op is sre.IN:
        return [char + sample(rest) for char in characters(value)[:6]]
    firsts = [way for part in inner(op, value) for way in ways(part)] or [sample([(op, value)])]
    return [way + sample(rest) for way in firsts[:12]]


def pumps(pattern: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """(what stands before, what may be repeated there without end), of every repeat in a pattern."""
    for op, value in pattern:
        if op in REPEATS and value[1] >= 20:
            yield from ((before, way) for way in ways(value[2]) if way)
        for part in inner(op, value):
            yield from pumps(part, before)
        before += sample([(op, value)])


def attacks(pattern: re.Pattern[str]) -> list[tuple[str, str, str]]:
    """(start, what is repeated, end): what a pattern repeats, each and two by two, its words, and what is usual."""
    tree = parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    own = [*dict.fromkeys(pumps(tree))]
    own += [(start, unit + other) for (start, unit), (_, other) in pairwise(own) if unit != other]
    own = own[:: 1 + len(own) // 20] + [("", text) for text in {sample(tree), *(start for start, _ in own[:3])} if text]
    return [(*one, end) for one in dict.fromkeys(own) for end in ("", "\x01\n")] + [
        ("", unit, "\x01") for unit in UNITS
    ]


def slow(pattern: re.Pattern[str], asked: str) -> list[tuple[str, str, str]]:
    """The first attack on a pattern for which it takes more than linear time, if there is one."""
    look = LOOKS.get(asked, re.Pattern.findall)
    found = (one for one in attacks(pattern) if grows(lambda text: look(pattern, text), partial(repeated, one)))
    return [*islice(found, 1)]


def repeated(attack: tuple[str, str, str], size: int) -> str:
    start, unit, end = attack
    return start + unit * (size // len(unit)) + end


PARTS = {
    "verifiers": lambda where: ".verifiers" in where,
    "bank": lambda where: ".bank" in where,
    "the rest": lambda where: ".verifiers" not in where and ".bank" not in where,
}


@pytest.mark.parametrize("part", PARTS)
def test_no_regular_expression_takes_more_than_linear_time(part):
    found = {
        f"{where} {pattern.pattern[:60]}": attacked
        for pattern, looks in expressions()[0].items()
        for asked, where in looks.items()
        if (asked or len(looks) == 1) and PARTS[part](where) and (attacked := slow(pattern, asked))
    }
    assert found == {}


def test_every_regular_expression_is_found():
    found, made = expressions()
    assert len(found) > 250
    assert made == MADE


@pytest.mark.parametrize(
    "source", [r"\s*x\s*\Z", r"(?:a|b|ab)*c", r"^#+ ?(\S.*?)[ \t]*$", r"(\d+)*x", r"<[^>]*>|\(.*?\)", "-\\S*\\b.*\\d"]
)
def test_the_trial_finds_what_it_looks_for(source):
    assert slow(re.compile(source), "search")


# ---- whole texts


def adapted(**columns: str) -> object:
    return adapt([columns], columns, stem="row", source="data")


def checked(text: str) -> None:
    with suppress(BankError):  # a lone surrogate
        SkillBank((Skill.new(f"x{text}", title="x", origin=Origin.SEED),), ()).check()


def overlap(text: str) -> object:
    return find_overlaps([Problem("p", text, text)], [Problem("q", f"{text} x", "1")])


def faults(text: str) -> None:
    with suppress(UnfitError):
        refuse_faults({"title": "x", "text": text}, problem=text, shown=[text], template=text)


def imported(text: str) -> None:
    """A document of that text, which may have no rule or too many lines."""
    with TemporaryDirectory() as folder, suppress(BankError):
        file = Path(folder) / "SKILL.md"
        file.write_text(text, encoding="utf-8", errors="replace")
        write_document(read_document(file))


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "a problem with a solution": lambda text: adapted(problem=text, solution=text),
    "GSM8K": lambda text: adapted(question="q", answer=f"#### {text}"),
    "a prompt": lambda text: adapted(prompt=f"{text}{DAPO}", answer=text),
    "curation": lambda text: curate([Problem("p", text, text), Problem("q", f"{text} ", text)]),
    "overlap": overlap,
    "an answer in an item": lambda text: (held_answer(text, "alpha beta"), held_answer(text, "7")),
    "an item's answer": lambda text: held_answer("a 7", text),
    "memory": compact_steps,
    "bank check": checked,
    "faults of written items": faults,
    "document": imported,
    "controls": lambda text: disarmer(["<|im_end|>", "</s>"])(text),
}
MORE = ["\\boxed{{1}", "#### 5\n", "- a\n", "# a\n", "Abc ", "a:\n", "|a|b|\n|-|-|\n", "#### 5\n ", "- a\n  "]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_text_takes_more_than_linear_time(name):
    attacks = [(start, unit, end) for unit in (*FRAGMENTS[::2], *MORE) for start, end in (("", ""), ("so 5 ", " z"))]
    call = FUNCTIONS[name]
    assert [attack for attack in attacks if grows(call, partial(repeated, attack), LENGTHS, 0.02)] == []


def test_a_row_whose_reference_takes_too_long_is_named_and_dropped(tmp_path):
    file = tmp_path / "rows.jsonl"
    slow_one = {"id": "slow", "problem": "Integrate.", "answer": r"\int_0^\infty \frac{\sin(x^x)}{x^x} dx"}
    rows = {"id": "p", "problem": "1 + 1?", "answer": "2"}, slow_one
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with get_verifier("math", workers=1, timeout=2) as verifier:
        problems, report = load_problems(file, readable=verifier.readable)
    assert [problem.id for problem in problems] == ["p"]
    assert report.ids("unreadable") == ("slow",)


@pytest.mark.parametrize("make", [lambda n: f"w{n} a b", lambda n: f"x{n // 2} y", lambda n: f"{'a b c d e f g'} w{n}"])
def test_items_are_compared_with_those_that_may_resemble_them(make):
    items = [Skill.new(make(n), title=str(n), origin=Origin.SEED) for n in range(1_000)]
    assert seconds(lambda _: SkillBank(tuple(items), ()).check(), "") < SECONDS
