"""Whether each rule of the verifiers changes a verdict: ``python benchmarks/verifier_rules.py [MODULE …]``.

A rule is a condition in the source: an ``if``, an operand of ``and`` or ``or``, a conditional expression, a filter of a
comprehension. It is taken out, and the cases that execute it are judged again, until a verdict changes. Cases: those
of ``tests/verifiers/cases``, and the files in ``SGSD_DATA``, if that is set. Printed are the rules that no case
executes or whose absence changes no verdict, and their number by module.

Limits of size and time are among them: cases that need those would take minutes.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.verifier_agreement import read_row
from tests.verifiers import test_cases as judges
from tests.verifiers.read_cases import Case, read_cases, read_forms

from sgsd.verifiers.expressions import close_evaluation
from sgsd.verifiers.worker import _LAZY

MODULES = (
    *("extract", "spans", "tidy", "thinking", "phrases", "numerals", "reading", "expressions", "values", "equality"),
    *("math", "choice", "exact", "reasoning_gym"),
)
FILES = ("verifier_cases", "verifier_cases_2", "responses", "responses_2")
SECONDS = 3.0  # for a case
GIGABYTES = 6

Judged = tuple[Callable[[Case], Any], Case]


@dataclass(frozen=True)
class Rule:
    """A condition, and how to take it out.

    Attributes:
        function: the names that lead to the function it stands in, from the module.
        line: of the first thing that happens if the condition matters.
        text: what is taken out.
        node: number of the node to change, in the order of ``ast.walk``.
        change: from the node to what replaces it.
    """

    function: tuple[str, ...]
    line: int
    text: str
    node: int
    change: Callable[[Any], ast.AST]


def read_all() -> list[Judged]:
    """Every case with the function that judges it."""
    found: list[Judged] = []
    for name in ("completions", "near_misses", "hacks", "honest", "pairs"):
        found += [(judges.alone, case) for case in read_cases(name)]
    found += [(judge, case) for case in read_cases("pairs") for judge in (judges.boxed, judges.announced)]
    found += [(judges.extracted, case) for case in read_cases("answers")]
    found += [(judges.alone, case) for case in read_forms()]
    folder = os.environ.get("SGSD_DATA")
    for path in [Path(folder) / f"{name}.jsonl" for name in FILES] if folder else []:
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            row = json.loads(line)
            for boxed in (False, True) if "pred" in row else (False,):
                completion, reference, _ = read_row(row, boxed=boxed)
                found.append((judges.alone, Case(row.get("verifier") or "math", reference, completion, "")))
    return found


class LateError(BaseException):
    """Passes every ``except Exception``."""


def late(*_: object) -> None:
    raise LateError


def outcome(judged: Judged, seconds: float = SECONDS) -> str:
    """The outcome, or what kept it from coming."""
    judge, case = judged
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return str(judge(case).outcome)
    except LateError:
        return "late"
    except Exception as error:  # noqa: BLE001 - a verifier without a rule may raise anything
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def forget() -> None:
    """Clear the caches of all modules, and make the graders anew."""
    judges.GRADERS |= {
        "choice": judges.choice.make_grader(),
        "exact": judges.exact.make_grader(ignore_case=True),
        "reasoning_gym": judges.reasoning_gym.make_grader(),
    }
    for name in MODULES:
        for value in vars(sys.modules[f"sgsd.verifiers.{name}"]).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def executed(cases: list[Judged], paths: set[str]) -> dict[tuple[str, int], list[int]]:
    """The cases that execute each line of the files."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    lines: set[tuple[str, int]] = set()

    def local(frame: types.FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    for number, judged in enumerate(cases):
        forget()
        lines.clear()
        sys.settrace(lambda frame, *_: local if frame.f_code.co_filename in paths else None)
        try:
            outcome(judged, 10 * SECONDS)
        finally:
            sys.settrace(None)
        for line in lines:
            found[line].append(number)
    return found


def rules_of(tree: ast.Module) -> Iterator[Rule]:
    """The rules in a module's functions and methods."""
    number = {id(node): place for place, node in enumerate(ast.walk(tree))}
    owners = [((node.name,), node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        owners += [((kind.name, node.name), node) for node in kind.body if isinstance(node, ast.FunctionDef)]

    def always(value: bool) -> Callable[[Any], ast.AST]:
        return lambda node: ast.copy_location(ast.Constant(value), node)

    def without(place: int) -> Callable[[Any], ast.AST]:
        def change(node: ast.BoolOp) -> ast.AST:
            left = node.values[:place] + node.values[place + 1 :]
            return left[0] if len(left) == 1 else ast.copy_location(ast.BoolOp(node.op, left), node)

        return change

    for name, function in owners:
        for node in ast.walk(function):
            said = ast.unparse(node) if isinstance(node, ast.expr) else ""
            if isinstance(node, ast.If):
                said, test = ast.unparse(node.test), number[id(node.test)]
                yield Rule(name, node.body[0].lineno, f"if {said}", test, always(False))
                if node.orelse:
                    yield Rule(name, node.orelse[0].lineno, f"else of if {said}", test, always(True))
            elif isinstance(node, ast.IfExp):
                for value in (True, False):
                    yield Rule(name, node.lineno, f"{not value} in {said}", number[id(node.test)], always(value))
            elif isinstance(node, ast.BoolOp):
                for place, value in enumerate(node.values):
                    text = f"{ast.unparse(value)} in {said}"
                    yield Rule(name, value.lineno, text, number[id(node)], without(place))
            elif isinstance(node, ast.comprehension):
                for test in node.ifs:
                    yield Rule(name, test.lineno, f"filter {ast.unparse(test)}", number[id(test)], always(True))


def code_without(rule: Rule, tree: ast.Module, path: str) -> types.CodeType:
    """The function's code, without the rule."""
    changed = copy.deepcopy(tree)
    target = next(node for place, node in enumerate(ast.walk(changed)) if place == rule.node)

    class Change(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return rule.change(node) if node is target else self.generic_visit(node)

    code = compile(ast.fix_missing_locations(Change().visit(changed)), path, "exec")
    for name in rule.function:
        code = next(part for part in code.co_consts if isinstance(part, types.CodeType) and part.co_name == name)
    return code


def function_of(module: types.ModuleType, names: tuple[str, ...]) -> types.FunctionType:
    """The function below its decorators."""
    found: Any = functools.reduce(lambda owner, name: vars(owner)[name], names, module)
    while not isinstance(found, types.FunctionType):
        for inner in ("fget", "func", "__func__", "__wrapped__"):
            if hasattr(found, inner):
                found = getattr(found, inner)
                break
    return found


def is_needed(function: types.FunctionType, code: types.CodeType, cases: list[Judged], expected: list[str]) -> bool:
    """Whether an outcome changes, in a process of its own; one that does not end has changed."""
    child = os.fork()
    if child == 0:
        changed = True
        try:
            resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
            function.__code__ = code
            forget()
            changed = any(outcome(case) != known for case, known in zip(cases, expected, strict=True))
        finally:
            os._exit(int(changed))
    deadline = time.monotonic() + 30 + 0.02 * len(cases)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=MODULES, help="such as extract; default: all")
    options = parser.parse_args()
    sys.setrecursionlimit(4_000)
    signal.signal(signal.SIGALRM, late)
    modules = {name: importlib.import_module(f"sgsd.verifiers.{name}") for name in MODULES}
    for name in _LAZY:
        importlib.import_module(f"sympy.{name}")
    close_evaluation()
    cases = read_all()
    expected = list(map(outcome, cases))
    lines = executed(cases, {str(module.__file__) for module in modules.values()})
    draw = random.Random(0)
    totals: Counter[str] = Counter()
    for name in options.modules:
        path = str(modules[name].__file__)
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        for rule in rules_of(tree):
            chosen = lines[path, rule.line]
            draw.shuffle(chosen)
            function, code = function_of(modules[name], rule.function), code_without(rule, tree, path)
            needed = is_needed(function, code, [cases[n] for n in chosen], [expected[n] for n in chosen])
            totals[f"{name}, rules"] += 1
            if not needed:
                totals[f"{name}, without a case"] += 1
                print(f"{name}.py:{rule.line} {'.'.join(rule.function)}: {rule.text} ({len(chosen)} cases)", flush=True)
    print(f"\n{len(cases)} cases", *(f"{what}: {count}" for what, count in totals.items()), sep="\n")


if __name__ == "__main__":
    main()
