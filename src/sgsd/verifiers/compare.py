"""Is this answer that one? Shape by shape, with the algebra system asked only about expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from sgsd.verifiers.letters import letters_of
from sgsd.verifiers.numerals import read_numeral, same_number
from sgsd.verifiers.reading import (
    Reading,
    Shape,
    expression_text,
    simple_names_differ,
    split_equation,
    spoken_key,
)
from sgsd.verifiers.tidy import key, tidy, words

Equal = Callable[[str, str], bool]
"""``equal(reference, given)`` on two expressions. Raises ``UnreadableError`` if the reference cannot be parsed."""

_NOT_VALUES = re.compile(r"\\(?:equiv|neq|leq|geq|pmod|mod|mid|sim|to)(?![A-Za-z])|[<>,;]")
_OPTION = re.compile(r"\(([A-Z])\)|([A-Z])[).:](?=\s)")
_MAX_PAIRS = 400
_EURO_SHAPE = re.compile(r"[+-]?(?:\d+,(?:\d{1,2}|\d{4,})|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})")


class UnreadableError(ValueError):
    """The reference answer cannot be parsed."""


def same_answer(reference: Reading, given: Reading, equal: Equal) -> bool:
    """Whether ``given`` states the reference answer.

    Args:
        reference: the reference answer.
        given: the answer to judge.
        equal: decides about two expressions that are not the same letter for letter.

    Raises:
        UnreadableError: if an expression of the reference would have to be understood, and cannot be.
    """
    if given.contradiction or simple_names_differ(reference.name, given.name):
        return False
    if reference.rounded is not None:
        exact = replace(reference, rounded=None)
        return same_answer(exact, given, equal) or same_answer(reference.rounded, given, equal)
    if given.rounded is not None:
        return same_answer(reference, replace(given, rounded=None), equal) or (
            _consistent(given) and same_answer(reference, given.rounded, equal)
        )
    if reference.shape is Shape.NUMBER:
        return _is_number(reference, given, equal)
    if key(reference.text) == key(given.text) or key(reference.whole) == key(given.whole):
        return True
    letter = reference.text.strip("() ")
    is_letter = len(letter) == 1 and letter.isupper() and given.shape is Shape.EXPRESSION
    if is_letter and _OPTION.match(words(given.text)):
        return letters_of(given.text) == [letter]
    if reference.shape is Shape.WORDS or given.shape is Shape.WORDS:
        return _same_words(reference, given)
    return _same_structure(reference, given, equal)


def _is_number(reference: Reading, given: Reading, equal: Equal) -> bool:
    """Where the reference is a number, only a number literal states it: nothing that is still to be computed."""
    assert reference.numeral is not None
    if given.shape is Shape.NUMBER:
        assert given.numeral is not None
        return same_number(reference.numeral, given.numeral)
    if given.shape is Shape.LIST and given.brackets == "{}" and len(given.items) == 1:
        return same_answer(reference, given.items[0], equal)
    if given.shape is Shape.EXPRESSION and "=" in given.text:
        return _concludes(reference, given, equal)
    if reference.numeral.value.denominator != 1:
        euro = read_numeral(given.text, decimal_comma=True)
        return euro is not None and same_number(reference.numeral, euro)
    return False


def _concludes(reference: Reading, given: Reading, equal: Equal) -> bool:
    """``m + n = 42``: an equation whose last side is the number. One that ends in 0 is still to be solved."""
    *heads, last = (tidy(part) for part in split_equation(given.text))
    value = read_numeral(last)
    if value is None or value.value == 0 or _NOT_VALUES.search(given.text):
        return False
    if any((head := read_numeral(part)) is not None and head.value != value.value for part in heads):
        return False
    return same_answer(reference, Reading(Shape.NUMBER, last, last, numeral=value), equal)


def _consistent(given: Reading) -> bool:
    """Whether the approximation beside an exact literal is that literal, rounded to the places shown."""
    assert given.rounded is not None
    exact, rounded = given.numeral, given.rounded.numeral
    if exact is None or rounded is None:
        return True
    return abs(exact.value - rounded.value) * 2 * 10**rounded.places <= 1


def _same_words(reference: Reading, given: Reading) -> bool:
    expected, got = spoken_key(reference), spoken_key(given)
    if not expected or given.text.endswith("?") > reference.text.endswith("?"):
        return False
    if len(expected) == 1:
        named = letters_of(given.text) if re.match(r"\(?[A-Za-z]\s*(?:[).:]|$)", given.text) else []
        return [letter.casefold() for letter in named] == [expected]
    return expected == got


def _coordinates(reading: Reading) -> Reading:
    """``x = 1, y = 2`` as the tuple ``(1, 2)``."""
    names = [item.name for item in reading.items]
    if reading.shape is not Shape.LIST or not all(names) or len(set(names)) < len(names):
        return reading
    items = tuple(replace(item, name="") for item in reading.items)
    return replace(reading, shape=Shape.SEQUENCE, brackets="()", items=items)


def _union(reading: Reading) -> Reading:
    """``x < 1 or x > 2`` as the union of two intervals."""
    intervals = all(item.shape is Shape.SEQUENCE and item.name for item in reading.items)
    return replace(reading, shape=Shape.UNION) if reading.shape is Shape.LIST and intervals else reading


def _same_structure(reference: Reading, given: Reading, equal: Equal) -> bool:
    if {reference.shape, given.shape} == {Shape.LIST, Shape.SEQUENCE}:
        reference, given = _coordinates(reference), _coordinates(given)
    if {reference.shape, given.shape} == {Shape.LIST, Shape.UNION}:
        reference, given = _union(reference), _union(given)
    if reference.shape is Shape.EXPRESSION or given.shape is Shape.EXPRESSION or reference.shape is not given.shape:
        return _same_expression(reference, given, equal)
    if reference.shape is Shape.SEQUENCE:
        return (
            reference.brackets == given.brackets
            and len(reference.items) == len(given.items)
            and all(same_answer(a, b, equal) for a, b in zip(reference.items, given.items, strict=True))
        )
    expected, got = _distinct(reference.items), _distinct(given.items)
    return len(expected) == len(got) and _same_members(expected, got, equal)


def _distinct(items: Sequence[Reading]) -> list[Reading]:
    return list({key(item.whole): item for item in items}.values())


def _same_members(reference: Sequence[Reading], given: Sequence[Reading], equal: Equal) -> bool:
    """A one-to-one match, in any order. Greedy is enough: sameness is an equivalence."""
    left = list(given)
    budget = _MAX_PAIRS
    for item in reference:
        for position, candidate in enumerate(left):
            budget -= 1
            if budget < 0:
                return False
            if same_answer(item, candidate, equal):
                del left[position]
                break
        else:
            return False
    return True


def _same_expression(reference: Reading, given: Reading, equal: Equal) -> bool:
    shapes = {reference.shape, given.shape}
    if shapes == {Shape.LIST, Shape.SEQUENCE}:
        return False
    if Shape.LIST in shapes and len(shapes) > 1:
        if r"\{" in reference.text or r"\cap" in reference.text or "\\setminus" in reference.text:
            return equal(expression_text(reference), expression_text(given))
        return False
    if shapes == {Shape.SEQUENCE, Shape.EXPRESSION} and not _set_like(reference) and not _set_like(given):
        return False
    wants_equation = ("=" in reference.text) != ("=" in given.text) and (reference.name or given.name)
    if wants_equation and "=" in reference.whole and "=" in given.whole:
        reference, given = replace(reference, text=reference.whole), replace(given, text=given.whole)
    elif ("=" in reference.text) != ("=" in given.text):
        return False
    if reference.shape is Shape.EXPRESSION and given.numeral is not None and given.numeral.unit:
        return False
    return equal(expression_text(reference), expression_text(given))


def _set_like(reading: Reading) -> bool:
    if reading.shape is Shape.SEQUENCE:
        return True
    return any(
        mark in reading.text
        for mark in (r"\cup", r"\cap", r"\mathbb", r"\setminus", r"\infty", r"\neq", r"\mid", "<", ">", "|")
    )
