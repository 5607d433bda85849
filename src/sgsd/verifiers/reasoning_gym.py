r"""Judges answers to reasoning-gym's data sets, with scorers of this package.

reasoning-gym's own scorers (0.1.25, 106 data sets) are not called. Some evaluate the answer as Python
(``spiral_matrix``, ``n_queens``, ``string_insertion``, ``binary_matrix``) or with SymPy (``countdown``, ``puzzle24``,
the integrals, products of polynomials). Some accept the problem as its own answer, or give the full score to wrong
answers. Here, a data set with one right answer has a *reader*, which turns a text into the value that is compared with
the reference. A data set with many right answers has a *scorer*, which checks an answer by itself. Both parse by a
grammar of the task, never evaluate text, and raise one of ``_UNREADABLE`` on an answer that they cannot read. Other
data sets are refused by name.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, cast

from sgsd.verifiers import phrases
from sgsd.verifiers.extract import NO_ANSWER, Extraction, extract_answer, extract_lines
from sgsd.verifiers.numerals import read_unit
from sgsd.verifiers.tidy import names
from sgsd.verifiers.verdict import UNREADABLE, Grader, Outcome, Verdict

Entry = Mapping[str, Any]
"""``question``, ``answer`` and ``metadata`` of an item of a data set."""
MAX_CHARACTERS = 20_000
_MAX_DEPTH = 30
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)

_SPELLINGS = (
    (re.compile(r"\{,\}|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\$|\\[()\[\],;!]|\\(?:left|right|quad)(?![A-Za-z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"[×·⋅∙∗✕]|\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"÷|\\div(?![A-Za-z])"), "/"),
    (re.compile(r"[−–]"), "-"),
)
_BROKEN = re.compile(r"[0-9.]\s+[0-9.]")
_DEGREES = re.compile(r"°|\^\{?\\circ\}?|(?<=[0-9]) degrees?$")
_DECIMAL = r"[+-]?(?=[.,]?[0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,200})?(?:\.[0-9]{0,200})?"
_COMPLEX = r"\(?(?P<real>[+-]?[\d.]{1,50}(?![\d.]*[ij]))?(?:(?P<sign>[+-]?)(?P<imaginary>[\d.]{0,50})\*?[ij])?\)?"


def _plain(text: str) -> str:
    """The text with plain operators in place of TeX's and Unicode's, without white space and delimiters."""
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    if _BROKEN.search(text.strip()):
        raise ValueError("two numbers without an operator")
    return "".join(text.split())


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    return found


# ---- readers: an answer is right if it reads as the reference does


def rows(text: str) -> list[str]:
    """The lines that are not blank, white space collapsed."""
    return [" ".join(line.replace(",", ", ").split()).replace(" ,", ",") for line in text.splitlines() if line.strip()]


def caseless(text: str) -> list[str]:
    """``rows`` in lower case and without final full stops, which the extractor drops as those of the sentence."""
    return [row.rstrip(". ") for row in rows(text.casefold())]


def letters(text: str) -> str:
    """The text without white space, which cannot be seen in a figlet picture."""
    return "".join(text.split()).casefold()


def number(text: str) -> Decimal:
    """A decimal, with or without thousands separators."""
    return Decimal(_match(_DECIMAL, _plain(_DEGREES.sub("", text)))[0].replace(",", ""))


def grid(text: str) -> list[list[Decimal]]:
    """Decimals in rows: coordinates, matrices, lists."""
    bare = re.sub(r"[()\[\]'\",$]|\\(?:left|right)(?![A-Za-z])", " ", _DEGREES.sub("", text.strip()))
    return [[number(part) for part in row.split()] for row in rows(bare)]


def numbers(text: str) -> list[Decimal]:
    return [value for row in grid(text) for value in row]


def roots(text: str) -> list[Decimal]:
    """Decimals in any order."""
    return sorted(numbers(text))


def hexadecimal(text: str) -> int:
    found = _match(r"([+-]?)0x([0-9a-f]{1,500})", text.strip().strip("$`"))
    return int(found[1] + found[2], 16)


def fraction(text: str) -> tuple[int, int]:
    """Numerator and denominator as written: a reducible fraction differs from the reduced one."""
    found = _match(r"(-?)(?:\\frac\{(\d{1,50})\}\{(\d{1,50})\}|\(?(\d{1,50})/(\d{1,50})\)?)", _plain(text))
    return int(found[1] + (found[2] or found[4])), int(found[3] or found[5])


def complex_number(text: str) -> tuple[Decimal, Decimal]:
    found = _match(_COMPLEX, _plain(text))
    real, imaginary = found["real"], found["imaginary"]
    if (real is None and imaginary is None) or (real is not None and imaginary is not None and not found["sign"]):
        raise ValueError(text)
    return number(real or "0"), number("0" if imaginary is None else found["sign"] + (imaginary or "1"))


def read_json(text: str) -> Any:
    """JSON with double or single quotation marks; 1 equals 1.0, and neither equals true."""

    def exact(digits: str) -> tuple[str, Decimal]:
        return "number", Decimal(digits)

    try:
        return json.loads(text, parse_float=exact, parse_int=exact)
    except ValueError:
        return json.loads(text.replace("'", '"'), parse_float=exact, parse_int=exact)


def json_value(text: str) -> Any:
    """A JSON value, or the ``rows`` of a text that is not JSON, which equal no list of JSON's."""
    try:
        return read_json(text)
    except ValueError:
        return tuple(rows(text))


def partitions(text: str) -> Counter[tuple[str, ...]]:
    """Lists of texts, in any order."""
    found = read_json(text)
    if not isinstance(found, list) or not all(isinstance(part, list) for part in cast(list[Any], found)):
        raise ValueError(text)
    return Counter(tuple(part) for part in cast(list[list[str]], found))


def groups(text: str) -> Counter[tuple[str, ...]]:
    """Lists of words, in any order, each in any order."""
    return Counter(tuple(sorted(part)) for part in partitions(text).elements())


def factors(text: str) -> list[int]:
    """Prime factors in any order."""
    return sorted(int(_match(r"[0-9]{1,50}", part)[0]) for part in re.split("[*x]", _plain(text)))


def roles(text: str) -> list[str]:
    """``Zoey is a knight, and Ada is a knave``, in any order."""
    parts = re.split(r",(?: ?and)? | and ", " ".join(text.casefold().split()).rstrip("."))
    return sorted(_match(r"[^\W\d_]+ is an? [a-z]+", part)[0].replace(" an ", " a ") for part in parts)


_READERS: dict[Callable[[str], object], str] = {
    rows: (
        "ab arc_1d arc_agi bf binary_matrix caesar_cipher circuit_logic futoshiki manipulate_matrix mini_sudoku"
        " modulo_grid path_star rearc rotate_matrix spiral_matrix string_insertion string_manipulation string_splitting"
        " string_synthesis sudoku survo time_intervals word_sequence_reversal word_sorting"
    ),
    caseless: (
        "acre base_conversion calendar_arithmetic color_cube_rotation course_schedule emoji_mystery"
        " family_relationships game_of_life_halting isomorphic_strings letter_jumble mahjong_puzzle needle_haystack"
        " ransom_note sentence_reordering spell_backward syllogism tsumego zebra_puzzles"
    ),
    letters: "figlet_font",
    number: (
        "aiw basic_arithmetic binary_alternation chain_sum count_bits count_primes decimal_arithmetic decimal_chain_sum"
        " gcd gsm_symbolic largest_island lcm leg_counting letter_counting maze number_format number_sequence products"
        " rectangle_count rotten_oranges self_reference simple_equations simple_geometry"
    ),
    grid: "advanced_geometry pool_matrix",
    numbers: "number_filtering number_sorting",
    roots: "polynomial_equations",
    hexadecimal: "bitwise_arithmetic",
    fraction: "dice fraction_simplification",
    complex_number: "complex_arithmetic",
    json_value: "codeio game_of_life list_functions",
    groups: "group_anagrams",
    partitions: "palindrome_partitioning",
    factors: "prime_factorization",
    roles: "knights_knaves",
}

# ---- scorers: more than one answer is right


def _scientific(text: str) -> Decimal:
    found = _match(r"(?P<m>[^*e]+?)(?:(?:e|\*10\^)\{?(?P<x>[+-]?[0-9]{1,5})\}?)?", _plain(text))
    return Decimal(f"{number(found['m'])}e{int(found['x'] or 0)}")  # exact, whatever the context's precision


def _rounds(given: Decimal, exact: Fraction, digits: int) -> bool:
    """Whether a decimal equals ``exact``, or rounds it to at least ``digits`` significant digits."""
    _, shown, exponent = given.as_tuple()
    off = abs(exact - Fraction(given))
    return off == 0 or (len(shown) >= digits and off * 2 <= Fraction(10) ** int(exponent))


def is_probability(answer: str, entry: Entry) -> bool:
    """Whether an answer is the probability, as a fraction or rounded to at least four significant digits."""
    ratio = entry["metadata"]["rational"]
    exact = Fraction(int(ratio["numerator"]), int(ratio["denominator"]))
    if "/" in answer or "frac" in answer:
        return Fraction(*fraction(answer)) == exact
    return _rounds(_scientific(answer), exact, 4)


def is_power(answer: str, entry: Entry) -> bool:
    """Whether an answer is the power to at least three significant digits, as the question asks."""
    return _rounds(_scientific(answer), Fraction(_scientific(entry["answer"])), 3)


def reaches(answer: str, numbers: list[int], target: int) -> bool:
    r"""Whether an expression of ``+ - * /``, ``\frac`` and brackets uses each number once and equals the target."""
    text, equals, stated = _plain(answer).partition("=")
    if len(text) > 1_000 or (equals and stated != str(target)):
        return False
    tokens = deque(re.findall(r"[0-9]+|\\frac|.", text))
    used: list[int] = []

    def take(wanted: str) -> str:
        return tokens.popleft() if tokens and tokens[0] in wanted else ""

    def total(depth: int) -> Fraction:
        value = -product(depth) if take("-") else product(depth)
        while sign := take("+-"):
            value = value + product(depth) if sign == "+" else value - product(depth)
        return value

    def product(depth: int) -> Fraction:
        value = factor(depth)
        while sign := take("*/"):
            value = value * factor(depth) if sign == "*" else value / factor(depth)
        return value

    def factor(depth: int) -> Fraction:
        token = tokens.popleft()
        if token == "\\frac":
            return group("{", depth) / group("{", depth)
        if token in "([":
            tokens.appendleft(token)
            return group(token, depth)
        if not re.fullmatch("0|[1-9][0-9]{0,19}", token):
            raise ValueError(token)
        used.append(int(token))
        return Fraction(int(token))

    def group(bracket: str, depth: int) -> Fraction:
        if depth == _MAX_DEPTH or not take(bracket):
            raise ValueError(bracket)
        value = total(depth + 1)
        if not take({"(": ")", "[": "]", "{": "}"}[bracket]):
            raise ValueError(bracket)
        return value

    return total(0) == target and not tokens and Counter(used) == Counter(map(int, numbers))


def is_palindrome(answer: str, entry: Entry) -> bool:
    """Whether an answer is a palindrome of exactly the given letters."""
    text = answer.strip().lower()
    return text == text[::-1] and Counter(text) == Counter("".join(entry["metadata"]["letters"]).lower())


def _equal(reader: Callable[[str], object]) -> Callable[[str, Entry], bool]:
    return lambda text, entry: reader(text) == reader(entry["answer"])


_SCORERS: dict[str, Callable[[str, Entry], bool]] = {
    **{name: _equal(reader) for reader, sets in _READERS.items() for name in names(sets)},
    "coin_flip": is_probability,
    "countdown": lambda text, entry: reaches(text, entry["metadata"]["numbers"], entry["metadata"]["target"]),
    "n_queens": lambda text, entry: rows(text) in map(rows, entry["metadata"]["valid_answers"]),
    "palindrome_generation": is_palindrome,
    "power_function": is_power,
    "puzzle24": lambda text, entry: reaches(text, entry["metadata"]["numbers"], 24),
}

_REFUSED = {
    **dict.fromkeys(
        names(
            "cryptarithm graph_color jugs kakurasu knight_swap quantum_lock shortest_path sokoban tower_of_hanoi"
            " word_ladder"
        ),
        "it needs a checker of moves or states of its own",
    ),
    **dict.fromkeys(
        ("polynomial_multiplication", "simple_integration"),
        "no ordinary comparison tells a polynomial written out from the problem",
    ),
    **dict.fromkeys(
        ("boxnet", "rush_hour"), "its scorer skips moves that are not allowed, and there is no reference answer"
    ),
    "composite": "its items carry the names of the data sets they come from",
    "intermediate_integration": "its reference answers are integrals still to be solved",
    "propositional_logic": "its scorer accepts a premise as the conclusion",
    "rubiks_cube": "there is no reference answer",
}

# ---- the grader


@lru_cache(maxsize=256)  # the rollouts of a problem come together
def _read(answer: str) -> tuple[Entry, str | None]:
    """The entry in a reference, and the reason why no completion can be right by it (``None``: one can)."""
    try:
        entry: dict[str, Any] = json.loads(answer)
        name, own = entry["metadata"]["source_dataset"], entry["answer"]
        if name in _SCORERS:
            return entry, None if own.strip() and _is_right(own, entry) else UNREADABLE.reason
        return {}, f"reasoning-gym's data set {name} is refused: {_REFUSED.get(name, 'its scorer has not been read')}"
    except _UNREADABLE:
        return {}, UNREADABLE.reason


def why_unreadable(answer: str) -> str | None:
    """The reason why no completion can be right by this reference; ``None`` if one can."""
    return _read(answer)[1]


def _is_right(text: str, entry: Entry) -> bool:
    try:
        return len(text) <= MAX_CHARACTERS and _SCORERS[entry["metadata"]["source_dataset"]](text, entry)
    except _UNREADABLE:
        return False


_TAGGED = re.compile(r"<answer>((?:[^<]|<(?!/?answer>))*+)</answer>")
_LAST_LINE = re.compile(r" {0,3}(?:\*\*)?(?:final )?answer: ?(?:\*\*)?(.+?)(?:\*\*)?", re.IGNORECASE)
# 12; 3 times; 418 + 77 - 31 = 464
_NUMBER = re.compile(r"\$?(?:([\d.,+*/×÷() -]{1,200})= ?)?(-?[\d.,]{0,40}\d)\$?((?: [a-z]{1,20})?)\.?")


def _at_the_end(completion: str) -> Extraction | None:
    """The exact text in tags at the end or in a last line ``Answer: …``, or a completion that is a list or object.

    In such a text the extractor would take words such as "not" and "which" for a denial or a comment.
    """
    text = completion.strip()
    if text.endswith("</answer>"):
        before = text[: text.rfind("<answer>")]
        if phrases.NOT_BEFORE.search(before[-80:]) or phrases.WRONG_BEFORE.search(before[-80:]):
            return None
        tagged = {part.strip() for part in _TAGGED.findall(text)}
        return Extraction(tagged.pop()) if len(tagged) == 1 else Extraction(None, reason="several answers")
    if (line := _LAST_LINE.fullmatch(text.rpartition("\n")[2])) is not None:
        return Extraction(line[1])
    return Extraction(text) if text[:1] in ("[", "{") and text[-1:] in ("]", "}") else None


def _stated_number(completion: str) -> str:
    """The number in a single sentence: ``The GCD is 12.``, ``3 times``; the right side of an equation."""
    stated = extract_answer(completion)
    found = _NUMBER.fullmatch(stated.text or "") if stated.reason is None and not stated.several else None
    if found is None or (read_unit(found[3]) or ())[:2] != (False, 1):
        return ""
    terms = [int(term) for term in re.findall(r"[0-9]+", found[1] or "")]
    try:
        return found[2] if not found[1] or reaches(found[1], terms, int(found[2])) else ""
    except _UNREADABLE:
        return ""


def make_grader() -> Grader:
    """A grader: correct if the data set's reader or scorer accepts the extracted answer."""

    def grade(completion: str, answer: str) -> Verdict:
        entry, why = _read(answer)
        if why is not None:
            return Verdict(Outcome.UNDECIDED, why)
        found = extract_lines(completion, lines=len(entry["answer"].strip().splitlines()))
        if found.reason is None or not found.reason.startswith("unclosed"):
            found = _at_the_end(completion) or found
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        right = found.reason is None and _is_right(found.text, entry)
        if not right and found.reason is None and entry["metadata"]["source_dataset"] in names(_READERS[number]):
            right = _is_right(_stated_number(completion), entry)
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, found.reason, found.text[:200])

    return grade
