"""reasoning-gym's data sets, by scorers of our own.

Its scorers were read (0.1.25, 106 data sets). They evaluate answers as Python (``spiral_matrix``, ``n_queens``,
``string_insertion``, ``binary_matrix``) or as SymPy's (``countdown``, ``puzzle24``, the integrals, products of
polynomials), take the problem for its answer, or give the full score to what is nearly or not at all right
(``game_of_life_halting`` to any text). So none is called: ``_READERS`` and ``_SCORERS`` say how an answer is read.
Other data sets are refused by name.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, cast

from sgsd.verifiers import puzzles
from sgsd.verifiers.extract import NO_ANSWER, Extraction, Found, extract_answer, extract_lines
from sgsd.verifiers.puzzles import MAX_CHARACTERS, Reader, Scorer
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

_READERS: dict[Reader, str] = {
    puzzles.rows: (
        "ab arc_1d arc_agi bf binary_matrix caesar_cipher circuit_logic futoshiki manipulate_matrix mini_sudoku"
        " modulo_grid path_star rearc rotate_matrix spiral_matrix string_insertion string_manipulation string_splitting"
        " string_synthesis sudoku survo time_intervals"
    ),
    puzzles.caseless: (
        "acre base_conversion calendar_arithmetic color_cube_rotation course_schedule family_relationships"
        " game_of_life_halting isomorphic_strings letter_jumble mahjong_puzzle needle_haystack ransom_note"
        " spell_backward syllogism tsumego zebra_puzzles"
    ),
    puzzles.sentence: "emoji_mystery sentence_reordering",
    puzzles.letters: "figlet_font",
    puzzles.items: "word_sequence_reversal word_sorting",
    puzzles.number: (
        "aiw basic_arithmetic binary_alternation chain_sum count_bits count_primes decimal_arithmetic decimal_chain_sum"
        " gcd gsm_symbolic largest_island lcm leg_counting letter_counting maze number_format number_sequence products"
        " rectangle_count rotten_oranges self_reference simple_equations simple_geometry"
    ),
    puzzles.numbers: "advanced_geometry pool_matrix",
    puzzles.roots: "polynomial_equations",
    puzzles.hexadecimal: "bitwise_arithmetic",
    puzzles.fraction: "dice fraction_simplification",
    puzzles.complex_number: "complex_arithmetic",
    puzzles.json_value: "codeio game_of_life list_functions",
    puzzles.number_list: "number_filtering number_sorting",
    puzzles.groups: "group_anagrams",
    puzzles.partitions: "palindrome_partitioning",
    puzzles.factors: "prime_factorization",
    puzzles.roles: "knights_knaves",
}


def _equal(reader: Reader) -> Scorer:
    return lambda text, entry: reader(text) == reader(entry["answer"])


_SCORERS: dict[str, Scorer] = {
    **{name: _equal(reader) for reader, names in _READERS.items() for name in names.split()},
    "coin_flip": puzzles.is_probability,
    "countdown": puzzles.reaches_target,
    "n_queens": puzzles.is_board,
    "palindrome_generation": puzzles.is_palindrome,
    "power_function": puzzles.is_power,
    "puzzle24": puzzles.reaches_24,
}

_TAGGED = re.compile(r"<answer>((?:[^<]|<(?!/?answer>))*+)</answer>")
_LAST_LINE = re.compile(r" {0,3}(?:\*\*)?(?:final )?answer: ?(?:\*\*)?(.+?)(?:\*\*)?", re.IGNORECASE)

_NUMBERS = frozenset(_READERS[puzzles.number].split())
# 12; 3 times; 418 + 77 - 31 = 464
_NUMBER = re.compile(r"\$?(?:[\d.,+*/×÷() -]{1,200}= ?)?(-?[\d.,]{0,40}\d)\$?(?: [a-z]{1,20})?\.?")

_ALGEBRA = "no ordinary comparison tells a polynomial written out from the problem"
_OWN_RULES = "it needs a checker of moves or states of its own"
_REFUSED = {
    "cryptarithm": _OWN_RULES,
    "graph_color": _OWN_RULES,
    "jugs": _OWN_RULES,
    "kakurasu": _OWN_RULES,
    "knight_swap": _OWN_RULES,
    "quantum_lock": _OWN_RULES,
    "shortest_path": _OWN_RULES,
    "sokoban": _OWN_RULES,
    "tower_of_hanoi": _OWN_RULES,
    "word_ladder": _OWN_RULES,
    "boxnet": "its scorer skips moves that are not allowed, and there is no reference answer",
    "composite": "its items carry the names of the data sets they come from",
    "intermediate_integration": "its reference answers are integrals still to be solved",
    "polynomial_multiplication": _ALGEBRA,
    "propositional_logic": "its scorer accepts a premise as the conclusion",
    "rubiks_cube": "there is no reference answer",
    "simple_integration": _ALGEBRA,
    "rush_hour": "its scorer skips moves that are not allowed, and there is no reference answer",
}


def read_entry(answer: str) -> dict[str, Any] | None:
    """The data set entry of a reference; ``None`` if it is not the JSON of one."""
    try:
        entry: Any = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    fields = cast(dict[str, Any], entry)
    if not {"question", "answer", "metadata"} <= fields.keys():
        return None
    metadata = fields["metadata"]
    named = isinstance(metadata, dict) and isinstance(cast(dict[str, Any], metadata).get("source_dataset"), str)
    return fields if named else None


@lru_cache(maxsize=256)  # the rollouts of a problem come together
def why_unreadable(answer: str) -> str | None:
    """Why no completion could be right by this reference: it is no entry, its data set is refused, or its own answer
    is not right. ``None`` if one could."""
    entry = read_entry(answer)
    if entry is None:
        return "unreadable reference"
    name = entry["metadata"]["source_dataset"]
    if name not in _SCORERS:
        return f"reasoning-gym's data set {name} is refused: {_REFUSED.get(name, 'its scorer has not been read')}"
    own = entry["answer"]
    return None if isinstance(own, str) and own.strip() and _is_right(own, entry) else "unreadable reference"


def _is_right(text: str, entry: dict[str, Any]) -> bool:
    scorer = _SCORERS[entry["metadata"]["source_dataset"]]
    try:
        return len(text) <= MAX_CHARACTERS and scorer(text, entry)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration):
        return False


def _at_the_end(completion: str) -> Extraction | None:
    """What stands as it is in tags at the very end, in a last line ``Answer: …``, or alone as a list or object.

    An extractor that looks for mathematics takes words such as "not" and "which" for more than texts.
    """
    text = completion.strip()
    if text.endswith("</answer>"):
        tagged = {part.strip() for part in _TAGGED.findall(text)}
        return Extraction(tagged.pop()) if len(tagged) == 1 else Extraction(None, reason="several answers")
    last = text.rpartition("\n")[2]
    if (line := _LAST_LINE.fullmatch(last)) is not None:
        return Extraction(line[1])
    return Extraction(text) if text[:1] in ("[", "{") and text[-1:] in ("]", "}") else None


def _stated_number(completion: str) -> str:
    """The number that a single sentence states: ``The GCD is 12.``, ``3 times``; of an equation its right side."""
    stated = extract_answer(completion)
    found = _NUMBER.fullmatch(stated.text or "") if stated.reason is None and not stated.several else None
    return found[1] if found else ""


def make_grader() -> Grader:
    """Correct if the data set's scorer takes the extracted answer. What it cannot read is incorrect, if it can read the
    entry's own answer."""

    def grade(completion: str, answer: str) -> Verdict:
        why = why_unreadable(answer)
        entry = read_entry(answer)
        if why is not None or entry is None:
            return Verdict(Outcome.UNDECIDED, why)
        found = extract_lines(completion, lines=len(entry["answer"].strip().splitlines()))
        if found.reason is None or not found.reason.startswith("unclosed"):
            found = _at_the_end(completion) or found
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        right = found.reason is None and _is_right(found.text, entry)
        if not right and found.found is Found.WHOLE and entry["metadata"]["source_dataset"] in _NUMBERS:
            right = _is_right(_stated_number(completion), entry)
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, found.reason, found.text[:200])

    return grade
