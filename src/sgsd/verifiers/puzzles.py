r"""Scorers of our own for reasoning-gym's data sets: text in, right or wrong out.

Where there is one answer, a *reader* makes of a text what is compared with the reference; where there are many, a
*scorer* tries the answer out. Both read by a grammar of the task (digits, operators, its own names) and compute with
what they read. None evaluates text, none tolerates what is nearly right, and a problem restated is no answer. On what
they cannot read they raise ``ValueError`` or its like (``KeyError``, ``TypeError``, ``ArithmeticError`` …).
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
Reader = Callable[[str], object]
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
_SCIENTIFIC = r"(?P<m>[^*e]+?)(?:(?:e|\*10\^)\{?(?P<x>[+-]?[0-9]{1,5})\}?)?"


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


# ---- readers: an answer is right if it reads as the reference does


def rows(text: str) -> list[str]:
    """The lines that are not blank, white space collapsed."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def caseless(text: str) -> list[str]:
    return [row.casefold() for row in rows(text)]


def sentence(text: str) -> str:
    """Without the final stop, which an extractor takes for the sentence's around it."""
    return " ".join(text.split()).casefold().rstrip(". ")


def letters(text: str) -> str:
    """Without spaces: of a picture nobody can tell where they are."""
    return "".join(text.split()).casefold()


def items(text: str) -> list[str]:
    """Texts with commas between them, in order."""
    return [" ".join(part.split()) for part in text.split(",")]


def number(text: str) -> Decimal:
    return decimal(_DEGREES.sub("", text))


def numbers(text: str) -> list[list[Decimal]]:
    """Coordinates, grids of decimals."""
    lines = rows(re.sub(r"[()\[\],$]|\\(?:left|right)(?![A-Za-z])", " ", _DEGREES.sub("", text.strip())))
    return [[decimal(part) for part in line.split()] for line in lines]


def roots(text: str) -> Counter[Decimal]:
    """Decimals, in any order."""
    return Counter(decimal(part) for part in text.split(","))


def hexadecimal(text: str) -> int:
    found = _match(r"([+-]?)0x([0-9a-f]{1,500})", text.strip().strip("$`").lower())
    return int(found[1] + found[2], 16)


def fraction(text: str) -> tuple[int, int]:
    """Numerator and denominator: a fraction that could be reduced is another."""
    found = _match(r"(-?)(?:\\frac\{(\d{1,50})\}\{(\d{1,50})\}|\(?(\d{1,50})/(\d{1,50})\)?)", mathematics(text))
    return int(found[1] + (found[2] or found[4])), int(found[3] or found[5])


def complex_number(text: str) -> tuple[Decimal, Decimal]:
    found = _match(
        r"\(?(?P<real>[+-]?[\d.]{1,50}(?![\d.]*[ij]))?(?:(?P<sign>[+-]?)(?P<imaginary>[\d.]{0,50})\*?[ij])?\)?",
        mathematics(text),
    )
    real, imaginary = found["real"], found["imaginary"]
    if (real is None and imaginary is None) or (real is not None and imaginary is not None and not found["sign"]):
        raise ValueError(text)
    return decimal(real or "0"), decimal("0" if imaginary is None else found["sign"] + (imaginary or "1"))


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    return found


def read_json(text: str) -> Any:
    """JSON, with the quotation marks of either kind."""
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        return json.loads(text.replace("'", '"'), parse_float=Decimal)


def _list(text: str) -> list[Any]:
    found = read_json(text)
    if not isinstance(found, list):
        raise ValueError(text)
    return cast(list[Any], found)


def json_value(text: str) -> Any:
    """A JSON value: 1 is 1.0, and neither is true. What is none is a text."""
    try:
        return _typed(read_json(text))
    except ValueError:
        return rows(text)


def _typed(value: Any) -> Any:
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_typed(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def number_list(text: str) -> list[Decimal]:
    return [decimal(str(item)) for item in _list(text)]


def groups(text: str) -> Counter[tuple[str, ...]]:
    """Lists of words: neither the order of the lists nor that in a list counts."""
    return Counter(tuple(sorted(words)) for words in _lists_of_words(text))


def partitions(text: str) -> Counter[tuple[str, ...]]:
    """Lists of parts: the order of the lists does not count."""
    return Counter(tuple(parts) for parts in _lists_of_words(text))


def _lists_of_words(text: str) -> list[list[str]]:
    found = _list(text)
    if not all(
        isinstance(group, list) and all(isinstance(word, str) for word in cast(list[Any], group)) for group in found
    ):
        raise ValueError(text)
    return found


def factors(text: str) -> Counter[int]:
    """Prime factors in any order."""
    return Counter(int(_match(r"[0-9]{1,50}", part)[0]) for part in re.split(r"[*x]", mathematics(text)))


def roles(text: str) -> Counter[str]:
    """``Zoey is a knight, and Ada is a knave``, in any order."""
    parts = re.split(r",(?: ?and)? | and ", " ".join(text.casefold().split()).rstrip("."))
    if not all(re.fullmatch(r"[^\W\d_]+ is an? [a-z]+", part) for part in parts):
        raise ValueError(text)
    return Counter(part.replace(" an ", " a ") for part in parts)


# ---- numbers that may be rounded


def is_probability(answer: str, entry: Entry) -> bool:
    """The fraction, or a decimal: exact, or rounded to four significant digits or more."""
    ratio = entry["metadata"]["rational"]
    exact = Fraction(int(ratio["numerator"]), int(ratio["denominator"]))
    if "/" in answer or "frac" in answer:
        return Fraction(*fraction(answer)) == exact
    return _states(_scientific(answer), exact, digits=4)


def is_power(answer: str, entry: Entry) -> bool:
    """To three significant digits, as the question asks, or to more."""
    return _states(_scientific(answer), Fraction(_scientific(entry["answer"])), digits=3)


def _scientific(text: str) -> Decimal:
    found = _match(_SCIENTIFIC, mathematics(text))
    return Decimal(f"{decimal(found['m'])}e{int(found['x'] or 0)}")  # exact, whatever the context's precision


def _states(given: Decimal, exact: Fraction, *, digits: int) -> bool:
    _, shown, exponent = given.as_tuple()
    if Fraction(given) == exact:
        return True
    return len(shown) >= digits and abs(exact - Fraction(given)) * 2 <= Fraction(10) ** int(exponent)


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


def antiderivative(text: str) -> Polynomial:
    """Without the constant, which may be a number or ``C``."""
    constants: tuple[object, ...] = ((), (("C", 1),), (("c", 1),))
    return {names: value for names, value in polynomial(text).items() if names not in constants}


# ---- puzzles with more than one solution


def is_board(answer: str, entry: Entry) -> bool:
    return rows(answer) in [rows(board) for board in entry["metadata"]["valid_answers"]]


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
    if rows(answer) == rows(entry["answer"]) or entry["answer"] == "infeasible":
        return rows(answer) == rows(entry["answer"])
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
