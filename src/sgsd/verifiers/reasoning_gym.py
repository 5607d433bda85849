"""reasoning-gym's data sets, by scorers of our own.

Its scorers were read (0.1.25, 106 data sets). They evaluate answers as Python (``spiral_matrix``, ``n_queens``,
``string_insertion``, ``binary_matrix``) or as SymPy's (``countdown``, ``puzzle24``, the integrals, products of
polynomials), take the problem for its answer, or give the full score to what is nearly or not at all right
(``game_of_life_halting`` to any text). So none is called: ``_SCORERS`` says how an answer is read and compared, and a
data set that is not in it is refused by name.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

from sgsd.verifiers import puzzles
from sgsd.verifiers.extract import NO_ANSWER, extract_lines
from sgsd.verifiers.puzzles import MAX_CHARACTERS, Scorer
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

_SCORERS: dict[str, Scorer] = {
    name: scorer
    for scorer, names in {
        puzzles.same_text: (
            "ab arc_1d arc_agi bf binary_matrix caesar_cipher circuit_logic futoshiki manipulate_matrix"
            " mini_sudoku modulo_grid rearc rotate_matrix spiral_matrix string_insertion string_manipulation"
            " string_splitting string_synthesis sudoku survo path_star time_intervals"
        ),
        puzzles.same_caseless: (
            "acre base_conversion calendar_arithmetic color_cube_rotation course_schedule family_relationships"
            " game_of_life_halting isomorphic_strings letter_jumble mahjong_puzzle needle_haystack ransom_note"
            " spell_backward syllogism tsumego zebra_puzzles"
        ),
        puzzles.same_sentence: "emoji_mystery sentence_reordering",
        puzzles.same_letters: "figlet_font",
        puzzles.same_number: (
            "aiw basic_arithmetic binary_alternation chain_sum count_bits count_primes decimal_arithmetic"
            " decimal_chain_sum gcd gsm_symbolic largest_island lcm leg_counting letter_counting maze number_format"
            " number_sequence products rectangle_count rotten_oranges self_reference simple_equations simple_geometry"
        ),
        puzzles.same_numbers: "advanced_geometry pool_matrix",
        puzzles.same_roots: "polynomial_equations",
        puzzles.same_hexadecimal: "bitwise_arithmetic",
        puzzles.same_fraction: "dice fraction_simplification",
        puzzles.same_probability: "coin_flip",
        puzzles.same_power: "power_function",
        puzzles.same_complex: "complex_arithmetic",
        puzzles.same_items: "word_sequence_reversal word_sorting",
        puzzles.same_json: "codeio game_of_life list_functions",
        puzzles.same_number_list: "number_filtering number_sorting",
        puzzles.same_groups: "group_anagrams",
        puzzles.same_partitions: "palindrome_partitioning",
        puzzles.same_factors: "prime_factorization",
        puzzles.same_roles: "knights_knaves",
        puzzles.same_polynomial: "polynomial_multiplication",
        puzzles.same_antiderivative: "simple_integration",
        puzzles.one_of_boards: "n_queens",
        puzzles.reaches_target: "countdown",
        puzzles.reaches_24: "puzzle24",
        puzzles.fills_kakurasu: "kakurasu",
        puzzles.solves_cryptarithm: "cryptarithm",
        puzzles.colors_graph: "graph_color",
        puzzles.fills_jug: "jugs",
        puzzles.swaps_knights: "knight_swap",
        puzzles.opens_lock: "quantum_lock",
        puzzles.is_shortest_path: "shortest_path",
        puzzles.solves_sokoban: "sokoban",
        puzzles.moves_tower: "tower_of_hanoi",
        puzzles.is_palindrome: "palindrome_generation",
        puzzles.climbs_ladder: "word_ladder",
    }.items()
    for name in names.split()
}

_REFUSED = {
    "boxnet": "its scorer skips moves that are not allowed, and there is no reference answer",
    "composite": "its items carry the names of the data sets they come from",
    "intermediate_integration": "its reference answers are integrals still to be solved",
    "propositional_logic": "its scorer accepts a premise as the conclusion",
    "rubiks_cube": "there is no reference answer",
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
    if own is None and name == "graph_color":
        own = json.dumps(entry["metadata"].get("possible_answer"))
    return None if isinstance(own, str) and own.strip() and _is_right(own, entry) else "unreadable reference"


def _is_right(text: str, entry: dict[str, Any]) -> bool:
    scorer = _SCORERS[entry["metadata"]["source_dataset"]]
    try:
        return len(text) <= MAX_CHARACTERS and scorer(text, entry)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration):
        return False


def make_grader() -> Grader:
    """Correct if the data set's scorer takes the extracted answer. What it cannot read is incorrect, if it can read the
    entry's own answer."""

    def grade(completion: str, answer: str) -> Verdict:
        why = why_unreadable(answer)
        entry = read_entry(answer)
        if why is not None or entry is None:
            return Verdict(Outcome.UNDECIDED, why)
        reference = "" if entry["answer"] is None else str(entry["answer"])
        found = extract_lines(completion, lines=len(reference.strip().splitlines()))
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        right = found.reason is None and _is_right(found.text, entry)
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, found.reason, found.text[:200])

    return grade
