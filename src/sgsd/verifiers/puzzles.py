r"""Scorers of our own for reasoning-gym's data sets: text in, right or wrong out.

A scorer reads an answer by a grammar of its task (digits, operators, its own names) and computes with what it read.
None evaluates text, none tolerates what is nearly right, and a problem restated is no answer. They raise ``ValueError``
and its kin (``KeyError``, ``TypeError``, ``ArithmeticError`` …) on what they cannot read.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

Entry = Mapping[str, Any]
"""``question``, ``answer`` and ``metadata`` of an item of a data set."""
Scorer = Callable[[str, Entry], bool]

MAX_CHARACTERS = 20_000
MAX_MOVES = 2_000
_MAX_DEPTH = 30
_MAX_POLYNOMIAL = 5_000

_SPELLINGS = (
    (re.compile(r"\{,\}|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\$|\\[()\[\],;!]|\\(?:left|right|quad)(?![A-Za-z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"[×·⋅∙∗✕]|\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"÷|\\div(?![A-Za-z])"), "/"),
    (re.compile(r"[−–]"), "-"),
)
_BROKEN = re.compile(r"[0-9.]\s+[0-9.]")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,200})?(?:\.[0-9]{0,200})?")
_DEGREES = re.compile(r"°|\^\{?\\circ\}?|(?<=[0-9]) degrees?$")
_SCIENTIFIC = re.compile(r"(?P<m>[^*eE]+?)(?:(?:[eE]|\*10\^)\{?(?P<x>[+-]?[0-9]{1,5})\}?)?")


def mathematics(text: str) -> str:
    """Plain operators in place of TeX's and Unicode's; no white space, no delimiters."""
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    if _BROKEN.search(text.strip()):
        raise ValueError("two numbers without an operator")
    return "".join(text.split())


def decimal(text: str) -> Decimal:
    """A decimal numeral, thousands in groups or not."""
    text = mathematics(text)
    if not _DECIMAL.fullmatch(text) or not any(map(str.isdigit, text)):
        raise ValueError(text)
    return Decimal(text.replace(",", ""))


# ---- texts, numbers, lists


def rows(text: str) -> list[str]:
    """The lines that are not blank, white space collapsed."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def same_text(answer: str, entry: Entry) -> bool:
    return rows(answer) == rows(entry["answer"])


def same_caseless(answer: str, entry: Entry) -> bool:
    return [row.casefold() for row in rows(answer)] == [row.casefold() for row in rows(entry["answer"])]


def same_sentence(answer: str, entry: Entry) -> bool:
    """Without the final stop, which an extractor takes for the sentence's around it."""
    given, expected = (" ".join(text.split()).casefold().rstrip(". ") for text in (answer, entry["answer"]))
    return given == expected


def same_letters(answer: str, entry: Entry) -> bool:
    """Without spaces: of a picture nobody can tell where they are."""
    return "".join(answer.split()).casefold() == "".join(entry["answer"].split()).casefold()


def same_number(answer: str, entry: Entry) -> bool:
    return decimal(_DEGREES.sub("", answer)) == decimal(entry["answer"])


def same_numbers(answer: str, entry: Entry) -> bool:
    """Coordinates, angles, grids of decimals."""
    return _decimals(answer) == _decimals(entry["answer"])


def _decimals(text: str) -> list[list[Decimal]]:
    lines = rows(re.sub(r"[()\[\],$]|\\(?:left|right)(?![A-Za-z])", " ", _DEGREES.sub("", text.strip())))
    return [[decimal(part) for part in line.split()] for line in lines]


def same_roots(answer: str, entry: Entry) -> bool:
    """Decimals to four places, in any order."""
    return _roots(answer) == _roots(entry["answer"])


def _roots(text: str) -> Counter[Decimal]:
    return Counter(round(decimal(part), 4) for part in text.split(","))


def same_hexadecimal(answer: str, entry: Entry) -> bool:
    return _hexadecimal(answer) == _hexadecimal(entry["answer"])


def _hexadecimal(text: str) -> int:
    found = re.fullmatch(r"([+-]?)0x([0-9a-f]{1,500})", text.strip().strip("$`").lower())
    if found is None:
        raise ValueError(text)
    return int(found[1] + found[2], 16)


def same_fraction(answer: str, entry: Entry) -> bool:
    """The same numerator and denominator: a fraction that could be reduced is another."""
    return _fraction(answer) == _fraction(entry["answer"])


def _fraction(text: str) -> tuple[int, int]:
    found = re.fullmatch(
        r"(-?)(?:\\frac\{(\d{1,50})\}\{(\d{1,50})\}|\(?(\d{1,50})/(\d{1,50})\)?)", mathematics(text), re.ASCII
    )
    if found is None:
        raise ValueError(text)
    return int(found[1] + (found[2] or found[4])), int(found[3] or found[5])


def same_probability(answer: str, entry: Entry) -> bool:
    """The fraction, or a decimal: exact, or rounded to four significant digits or more."""
    ratio = entry["metadata"]["rational"]
    exact = Fraction(int(ratio["numerator"]), int(ratio["denominator"]))
    text = mathematics(answer)
    if "/" in text or "frac" in text:
        return Fraction(*_fraction(text)) == exact
    given = _scientific(text)
    return Fraction(given) == exact or (_significant(given) >= 4 and _rounds_to(exact, given))


def _significant(number: Decimal) -> int:
    return len(number.as_tuple().digits) if number else 0


def _rounds_to(exact: Fraction, given: Decimal) -> bool:
    exponent = given.as_tuple().exponent
    return isinstance(exponent, int) and abs(exact - Fraction(given)) * 2 <= Fraction(10) ** exponent


def same_power(answer: str, entry: Entry) -> bool:
    """To three significant digits, as the question asks, or to more."""
    given, exact = _scientific(answer), _scientific(entry["answer"])
    return given == exact or (_significant(given) >= 3 and _rounds_to(Fraction(exact), given))


def _scientific(text: str) -> Decimal:
    found = _SCIENTIFIC.fullmatch(mathematics(text))
    if found is None:
        raise ValueError(text)
    return decimal(found["m"]).scaleb(int(found["x"] or 0))


def same_complex(answer: str, entry: Entry) -> bool:
    return _complex(answer) == _complex(entry["answer"])


def _complex(text: str) -> tuple[Decimal, Decimal]:
    found = re.fullmatch(r"\(?([+-]?[\d.]+(?![\d.]*[ij]))?(?:([+-]?)([\d.]*)\*?[ij])?\)?", mathematics(text), re.ASCII)
    if found is None or (found[1] is None and found[3] is None):
        raise ValueError(text)
    if found[1] is not None and found[3] is not None and not found[2]:
        raise ValueError(text)
    imaginary = Decimal(0) if found[3] is None else decimal(found[2] + (found[3] or "1"))
    return decimal(found[1] or "0"), imaginary


def same_items(answer: str, entry: Entry) -> bool:
    """Texts with commas between them, in order."""
    return _items(answer) == _items(entry["answer"])


def _items(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split(",")]


def read_json(text: str) -> Any:
    """JSON, with the quotation marks of either kind."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text.replace("'", '"'))


def same_json(answer: str, entry: Entry) -> bool:
    """The same JSON value: 1 is 1.0, and neither is true. A reference that is none is a text."""
    try:
        expected = read_json(entry["answer"])
    except ValueError:
        return same_text(answer, entry)
    return _typed(read_json(answer)) == _typed(expected)


def _typed(value: Any) -> Any:
    """A value in which true and 1 differ."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_typed(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def same_number_list(answer: str, entry: Entry) -> bool:
    given, expected = ([decimal(str(item)) for item in _list(text)] for text in (answer, entry["answer"]))
    return given == expected


def _list(text: str) -> list[Any]:
    found = read_json(text)
    if not isinstance(found, list):
        raise ValueError(text)
    return cast(list[Any], found)


def same_groups(answer: str, entry: Entry) -> bool:
    """Lists of words: neither the order of the lists nor that in a list counts."""
    return _groups(read_json(answer), ordered=False) == _groups(entry["metadata"]["solution"], ordered=False)


def same_partitions(answer: str, entry: Entry) -> bool:
    """Lists of parts: the order of the lists does not count."""
    return _groups(read_json(answer), ordered=True) == _groups(entry["metadata"]["solution"], ordered=True)


def _groups(value: Any, *, ordered: bool) -> Counter[tuple[str, ...]]:
    if not all(isinstance(word, str) for group in value for word in group) or not all(
        isinstance(g, list) for g in value
    ):
        raise ValueError(value)
    return Counter(tuple(group if ordered else sorted(group)) for group in value)


def same_factors(answer: str, entry: Entry) -> bool:
    """Prime factors in any order."""
    return _factors(answer) == _factors(entry["answer"])


def _factors(text: str) -> Counter[int]:
    parts = re.split(r"[*x]", mathematics(text))
    if not all(re.fullmatch(r"[0-9]{1,50}", part) for part in parts):
        raise ValueError(text)
    return Counter(map(int, parts))


def same_roles(answer: str, entry: Entry) -> bool:
    """``Zoey is a knight, and Ada is a knave``, in any order."""
    return _roles(answer) == _roles(entry["answer"])


def _roles(text: str) -> Counter[str]:
    parts = re.split(r",(?: ?and)? | and ", " ".join(text.casefold().split()).rstrip("."))
    if not all(re.fullmatch(r"[^\W\d_]+ is an? [a-z]+", part) for part in parts):
        raise ValueError(text)
    return Counter(part.replace(" an ", " a ") for part in parts)


def one_of_boards(answer: str, entry: Entry) -> bool:
    return rows(answer) in [rows(board) for board in entry["metadata"]["valid_answers"]]


# ---- arithmetic with given numbers


def reaches_target(answer: str, entry: Entry) -> bool:
    """Countdown: each of the numbers once, and the target's value."""
    metadata = entry["metadata"]
    return _makes(answer, metadata["numbers"], metadata["target"])


def reaches_24(answer: str, entry: Entry) -> bool:
    return _makes(answer, entry["metadata"]["numbers"], 24)


def _makes(answer: str, numbers: list[int], target: int) -> bool:
    text, equals, stated = mathematics(answer).partition("=")
    if equals and stated != str(target):
        return False
    value, used = _Arithmetic(text).read()
    return value == target and Counter(used) == Counter(map(int, numbers))


class _Arithmetic:
    r"""Whole numbers, ``+ - * /``, ``\frac`` and brackets; nothing else."""

    def __init__(self, text: str) -> None:
        self._tokens = re.findall(r"[0-9]+|\\frac|.", text if len(text) <= 1_000 else "?")
        self._used: list[int] = []
        self._depth = 0

    def read(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._tokens:
            raise ValueError(self._tokens[0])
        return value, self._used

    def _next(self, *wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

    def _sum(self) -> Fraction:
        value = -self._product() if self._next("-") else self._product()
        while sign := self._next("+", "-"):
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._next("*", "/"):
            value = value * self._factor() if sign == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_DEPTH or not self._tokens:
            raise ValueError("brackets")
        token = self._tokens.pop(0)
        if token.isdecimal() and len(token) <= 20 and (token == "0" or token[0] != "0"):
            self._used.append(int(token))
            value = Fraction(int(token))
        elif token in ("(", "["):
            value = self._enclosed(")" if token == "(" else "]")
        elif token == "\\frac":
            value = self._group() / self._group()
        else:
            raise ValueError(token)
        self._depth -= 1
        return value

    def _group(self) -> Fraction:
        if not self._next("{"):
            raise ValueError("group")
        return self._enclosed("}")

    def _enclosed(self, close: str) -> Fraction:
        value = self._sum()
        if not self._next(close):
            raise ValueError("brackets")
        return value


# ---- polynomials, written out


Polynomial = dict[tuple[tuple[str, int], ...], Fraction]
_TERM = re.compile(r"[+-]?(?:\\frac\{[^{}]*\}\{[0-9]+\}|\([^()]*\)|\^\{[0-9]+\}|[^-+(){}\\])+")
_FACTOR = re.compile(
    r"(?P<number>[0-9]{1,60}(?:\.[0-9]{1,30})?)|(?P<letter>[A-Za-z])(?:(?:\^|\*\*)[{(]?(?P<power>[0-9]{1,3})[)}]?)?"
)


def polynomial(text: str) -> Polynomial:
    """A sum of monomials with rational coefficients. No monomial occurs twice: there is nothing left to compute."""
    text = mathematics(text[: _MAX_POLYNOMIAL + 1])
    if len(text) > _MAX_POLYNOMIAL:
        raise ValueError("too long")
    found: Polynomial = {}
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None or (position and term[0][0] not in "+-"):
            raise ValueError(text)
        names, coefficient = _monomial(term[0])
        if names in found:
            raise ValueError("a monomial twice")
        found[names] = coefficient
        position = term.end()
    if not found:
        raise ValueError(text)
    return {names: value for names, value in found.items() if value}


def _monomial(term: str) -> tuple[tuple[tuple[str, int], ...], Fraction]:
    sign, body = (-1, term[1:]) if term[0] == "-" else (1, term.removeprefix("+"))
    body = (
        re.sub(r"\\frac\{([^{}]*)\}\{([0-9]+)\}\*?|\(([0-9]+)/([0-9]+)\)\*?", _inline, body)
        .rstrip("·")
        .replace("·", "*")
    )
    powers: Counter[str] = Counter()
    coefficient = Fraction(sign)
    operator, position = "*", 0
    while position < len(body):
        factor = _FACTOR.match(body, position)
        if factor is None or (factor["number"] and position and body[position - 1] not in "*/"):
            raise ValueError(term)
        if factor["letter"]:
            if operator == "/" or factor["letter"] in powers:
                raise ValueError(term)
            powers[factor["letter"]] += int(factor["power"] or 1)
        else:
            number = Fraction(factor["number"])
            coefficient = coefficient * number if operator == "*" else coefficient / number
        position = factor.end()
        operator = "*"
        if position < len(body) and body[position] in "*/":
            operator, position = body[position], position + 1
            if position == len(body):
                raise ValueError(term)
    if not body:
        raise ValueError(term)
    return tuple(sorted(item for item in powers.items() if item[1])), coefficient


def _inline(fraction: re.Match[str]) -> str:
    above, below = (fraction[1], fraction[2]) if fraction[1] is not None else (fraction[3], fraction[4])
    return f"{above}/{below}·"


def same_polynomial(answer: str, entry: Entry) -> bool:
    return polynomial(answer) == polynomial(entry["answer"])


def same_antiderivative(answer: str, entry: Entry) -> bool:
    """The same polynomial up to a constant, which may be a number or ``C``."""
    return _without_constant(answer) == _without_constant(entry["answer"])


def _without_constant(text: str) -> Polynomial:
    constants: tuple[object, ...] = ((), (("C", 1),), (("c", 1),))
    return {names: value for names, value in polynomial(text).items() if names not in constants}


# ---- puzzles with more than one solution


def fills_kakurasu(answer: str, entry: Entry) -> bool:
    metadata = entry["metadata"]
    grid = [row.split() for row in rows(answer)]
    if len(grid) != metadata["n_rows"] or any(len(row) != metadata["n_cols"] for row in grid):
        return False
    if any(cell not in ("0", "1") for row in grid for cell in row):
        return False
    across = [sum(j for j, cell in enumerate(row, 1) if cell == "1") for row in grid]
    down = [sum(i for i, cell in enumerate(column, 1) if cell == "1") for column in zip(*grid, strict=True)]
    return across == metadata["row_sums"] and down == metadata["col_sums"]


def solves_cryptarithm(answer: str, entry: Entry) -> bool:
    metadata = entry["metadata"]
    pairs = [re.fullmatch(r"([A-Z])=([0-9])", part) for part in "".join(answer.split()).split(",")]
    digits = {pair[1]: pair[2] for pair in pairs if pair}
    words: list[str] = [*metadata["words_letters"], metadata["result_letters"]]
    if len(digits) != len(pairs) or len(set(digits.values())) != len(digits) or set(digits) != set("".join(words)):
        return False
    numerals = ["".join(digits[letter] for letter in word) for word in words]
    if not metadata.get("allow_leading_zero") and any(len(n) > 1 and n[0] == "0" for n in numerals):
        return False
    *summands, total = map(int, numerals)
    return sum(summands) == total


def colors_graph(answer: str, entry: Entry) -> bool:
    puzzle = entry["metadata"]["puzzle"]
    found = read_json(answer)
    given = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if set(given) != {str(vertex) for vertex in puzzle["vertices"]}:
        return False
    if any(type(color) is not int or color not in puzzle["color_options"] for color in given.values()):
        return False
    return all(given[str(one)] != given[str(other)] for one, other in puzzle["edges"])


def _moves(answer: str) -> list[str]:
    moves = _list(answer)
    if len(moves) > MAX_MOVES or not all(isinstance(move, str) for move in moves):
        raise ValueError(answer)
    return moves


def fills_jug(answer: str, entry: Entry) -> bool:
    puzzle = entry["metadata"]["puzzle"]
    capacities: list[int] = puzzle["jug_capacities"]
    amounts = [0] * len(capacities)
    for move in _moves(answer):
        found = re.fullmatch(r"(fill|empty|pour) ([A-Z])(?:->([A-Z]))?", move)
        if found is None or (found[1] == "pour") != (found[3] is not None):
            return False
        jug = ord(found[2]) - ord("A")
        if found[1] != "pour":
            amounts[jug] = capacities[jug] if found[1] == "fill" else 0
            continue
        other = ord(found[3]) - ord("A")
        poured = min(amounts[jug], capacities[other] - amounts[other]) if jug != other else 0
        amounts[jug] -= poured
        amounts[other] += poured
    return puzzle["target"] in amounts


def swaps_knights(answer: str, entry: Entry) -> bool:
    metadata = entry["metadata"]
    if not metadata["is_possible"]:
        return answer.strip().strip("\"'.").lower() == "no"
    pieces: dict[str, str | None] = dict(metadata["pieces"])
    turn = metadata["start_turn"]
    moves = _moves(answer)
    for move in moves:
        color, start, end = move.split(",")
        if color != turn or pieces[start] != color or end not in metadata["board"][start] or pieces[end] is not None:
            return False
        pieces[start], pieces[end] = None, color
        turn = "B" if turn == "w" else "w"
    swapped = {"w": "B", "B": "w", None: None}
    return len(moves) <= len(metadata["solution"]) and all(
        pieces[place] == swapped[piece] for place, piece in metadata["pieces"].items()
    )


def opens_lock(answer: str, entry: Entry) -> bool:
    """As short a sequence as the reference's, of buttons that can be pressed, to the target."""
    metadata = entry["metadata"]
    pressed = re.split(r"→|->|,|\\to|\\rightarrow", "".join(answer.replace("$", "").split()))
    buttons = {button["name"]: button for button in metadata["buttons"]}
    value, light = metadata["initial_value"], metadata["initial_state"]
    if len(pressed) != len(metadata["solution_path"]):
        return False
    for name in pressed:
        button = buttons[name]
        if button["active_state"] not in (light, "any"):
            return False
        amount = button["value"]
        value = {"add": value + amount, "subtract": value - amount, "multiply": value * amount}[button["type"]]
        light = "green" if light == "red" else "red"
    return value == metadata["target_value"]


_STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def is_shortest_path(answer: str, entry: Entry) -> bool:
    if same_text(answer, entry) or entry["answer"] == "infeasible":
        return same_text(answer, entry)
    grid: list[list[str]] = entry["metadata"]["matrix"]
    row, column = next((r, c) for r, line in enumerate(grid) for c, cell in enumerate(line) if cell == "*")
    steps = answer.split()
    if len(steps) != len(entry["answer"].split()):
        return False
    for step in steps:
        down, right = _STEPS[step]
        row, column = row + down, column + right
        if not (0 <= row < len(grid) and 0 <= column < len(grid[0])) or grid[row][column] == "X":
            return False
    return grid[row][column] == "#"


def solves_sokoban(answer: str, entry: Entry) -> bool:
    """``*`` and ``%`` the player, ``@`` and ``$`` boxes, ``X`` a goal, ``+`` a wall; the second of a pair on a goal."""
    board = {
        (r, c): cell
        for r, line in enumerate(entry["metadata"]["gamestr"].splitlines())
        for c, cell in enumerate("".join(line.split()))
    }
    moves = "".join(answer.split())
    if len(moves) > MAX_MOVES or not re.fullmatch(r"[UDLR]+", moves):
        return False
    walls, goals, boxes = ({place for place, cell in board.items() if cell in kind} for kind in ("+", "X$%", "@$"))
    row, column = next(place for place, cell in board.items() if cell in "*%")
    for move in moves:
        down, right = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}[move]
        target, beyond = (row + down, column + right), (row + 2 * down, column + 2 * right)
        if target in boxes:
            if beyond in boxes or beyond in walls or beyond not in board:
                continue
            boxes.remove(target)
            boxes.add(beyond)
        if target in board and target not in walls:
            row, column = target
    return boxes <= goals


def moves_tower(answer: str, entry: Entry) -> bool:
    """As few moves as the reference's, each allowed, all disks on the target peg."""
    metadata = entry["metadata"]
    pegs: dict[int, list[int]] = {peg: [] for peg in range(1, metadata["num_pegs"] + 1)}
    disks = list(range(metadata["num_disks"], 0, -1))
    pegs[metadata["start_peg"]] = list(disks)
    moves = rows(answer)
    if len(moves) > metadata["solution_length"]:
        return False
    for move in moves:
        found = re.fullmatch(
            r"Move disk (\d{1,3}) from Peg (\d{1,3}) to Peg (\d{1,3})\.?", move, re.ASCII | re.IGNORECASE
        )
        if found is None:
            return False
        disk, start, end = (int(found[group]) for group in (1, 2, 3))
        if pegs[start][-1] != disk or (pegs[end] and pegs[end][-1] < disk):
            return False
        pegs[end].append(pegs[start].pop())
    return pegs[metadata["target_peg"]] == disks


def is_palindrome(answer: str, entry: Entry) -> bool:
    """A palindrome of exactly the given letters."""
    text = answer.strip().lower()
    return text == text[::-1] and Counter(text) == Counter("".join(entry["metadata"]["letters"]).lower())


def climbs_ladder(answer: str, entry: Entry) -> bool:
    """Known words, each a letter away from the one before."""
    words = [word.strip() for word in answer.upper().split(",")]
    ends = (entry["metadata"]["start_word"], entry["metadata"]["end_word"])
    if len(words) < 2 or (words[0], words[-1]) != ends or len(set(words)) < len(words):
        return False
    steps = pairwise(words)
    return _dictionary().issuperset(words) and all(
        len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1 for one, other in steps
    )


@lru_cache(maxsize=1)
def _dictionary() -> frozenset[str]:
    """reasoning-gym's words, read from its file; none of its code is run."""
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or found.origin is None:
        raise ValueError("reasoning-gym is not installed")
    with (Path(found.origin).parent / "data" / "words.csv").open(encoding="utf-8") as file:
        return frozenset(word.upper() for row in csv.reader(file) for word in row if word)
