"""Mathematics: completion and reference → verdict. Answers are compared by their shape; the computer algebra system
compares single expressions only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sgsd.verifiers.equality import BASED, UnreadableError, equal, without_unit
from sgsd.verifiers.expressions import SETS, as_latex, is_verbatim, parse
from sgsd.verifiers.extract import NO_ANSWER, Extraction, extract_answer
from sgsd.verifiers.numerals import approximates, read_numeral, rounds_to, same_number, units_differ
from sgsd.verifiers.phrases import NOT
from sgsd.verifiers.reading import Reading, Shape, read_answer, split_equation, variables
from sgsd.verifiers.spans import boxes, letters_of
from sgsd.verifiers.tidy import key, tidy, words
from sgsd.verifiers.values import number
from sgsd.verifiers.verdict import UNREADABLE, Grader, Outcome, Verdict

_LABEL = re.compile(r"\(?[A-H][.):](?:\\? )++(?=[$\d\\-])")  # of an option: "A. 56"
_MARKED = re.compile(r"####|final answer", re.IGNORECASE)
_CALCULUS = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")


def reference_text(answer: str) -> str | None:
    """The answer in a reference: data sets give it alone, boxed, after ``####``, or at the end of a solution.

    ``None`` if there is no answer: the reference is empty, or has only punctuation.
    """
    text = answer.strip()
    if "boxed" in text or "fbox" in text:
        found, unclosed = boxes(text)
        contents = {key(tidy(content)): content for _, _, content in found if content.strip()}
        if contents:
            return ", ".join(contents.values())
        if unclosed:
            return text.rpartition("boxed{")[2]
        return None
    if _MARKED.search(text) or (len(text) > 200 and "\n" in text):
        return extract_answer(text).text
    return text if re.search(r"[^\W_]|\\[A-Za-z]", text) else None


def read_reference(answer: str) -> Reading | None:
    """Read the answer in a reference; ``None`` if it cannot be read."""
    text = reference_text(answer)
    if text is None or len(text) > 4_000:
        return None
    reading = read_answer(text)
    return reading if reading.text.strip() else None


def grade_math(completion: str, answer: str) -> Verdict:
    """Judge one completion against one reference."""
    reference = read_reference(answer)
    if reference is None:
        return UNREADABLE
    extraction = extract_answer(completion)
    if extraction.text is None or not extraction.text.strip():
        return Verdict(Outcome.INCORRECT, extraction.reason or NO_ANSWER)
    return grade_extraction(extraction, reference)


def grade_extraction(extraction: Extraction, reference: Reading) -> Verdict:
    """Judge an extracted answer against a reference that has been read."""
    shown = (extraction.text or "")[:200]
    if extraction.reason is not None:
        return Verdict(Outcome.INCORRECT, extraction.reason, shown)
    text = extraction.text or ""
    label = _LABEL.match(text) if reference.shape is Shape.NUMBER and not reference.items else None
    given = read_answer(text[label.end() :] if label else text)
    try:
        if same_answer(reference, given) or _same_but_condition(reference, text):
            return Verdict(Outcome.CORRECT, None, shown)
    except UnreadableError:
        return Verdict(Outcome.UNDECIDED, UNREADABLE.reason, shown)
    return Verdict(Outcome.INCORRECT, "several answers" if extraction.several else None, shown)


_CONDITION = re.compile(
    r"(?P<said>[^<>]+?)[,;]? ?(?P<words>\\text ?\{ ?,? ?(?:for|where|with)(?: (?:all|any|every|each"
    r"|some))?(?: real| integers?)? ?\} ?)?"
    r"\(? ?(?P<all>\\forall ?)?(?P<name>[a-z])(?P<set> ?\\in ?\\mathbb ?\{ ?[RZNQC] ?\}(?:\^[*+])?"
    r"| ?\\geq ?\d{1,3}| ?> ?\d{1,3})? ?\)?"
)
_INTEGERS = re.compile(r"\\mathbb ?\{ ?Z ?\}$|integer")


def _conditioned(text: str) -> tuple[re.Match[str], re.Pattern[str]] | None:
    """The match of a formula with a condition, and a pattern of the name that it is about; ``None`` without one."""
    found = _CONDITION.fullmatch(text)
    words = found and found["words"] and re.search("all|any|each|ev|int", found["words"])
    if not found or not (found["set"] or found["all"] or words):
        return None
    name = re.compile(rf"(?<![A-Za-z\\]){found['name']}(?![A-Za-z])|(?<=\d){found['name']}(?![A-Za-z])")
    return (found, name) if name.search(found["said"]) else None


def _same_but_condition(reference: Reading, text: str) -> bool:
    """Whether a formula is the reference's, followed by where it holds: ``f(x) = 2x for all x``. If both hold for all
    integers, these may have other names: ``n\\pi, n \\in \\mathbb{Z}`` is ``k\\pi, k \\in \\mathbb{Z}``."""
    given = _conditioned(tidy(text))
    if given is None:
        return False
    found, name = given
    if (expected := _conditioned(reference.whole)) is None:
        return reference.shape is Shape.EXPRESSION and _same_formula(reference, read_answer(found["said"]))
    own, own_name = expected
    integers = all(_INTEGERS.search((one["set"] or "") + (one["words"] or "")) for one in (found, own))
    if not integers or (found["name"] != own["name"] and own_name.search(found["said"])):
        return False
    return _same_formula(read_answer(own["said"]), read_answer(name.sub(own["name"], found["said"])))


def _same_formula(reference: Reading, given: Reading) -> bool:
    return given.shape is Shape.EXPRESSION and same_answer(reference, given)


_FAMILIAR = (
    *(r"\frac{m}{n}", r"2\sqrt{3}+1", "x^{2}+2x+1", r"3\pi r^{2}", "y=2x-3", r"\log_{2}{3}", r"2\sin (x) \cos ^{2} y"),
    r"\frac{-b+\sqrt[3]{b^{2}-4a!c}}{2|a|}-e^{-x/2}",
    r"\{1,2\} \cup \mathbb{R} \setminus \{3\}",
)


def make_grader() -> Grader:
    """The grader of mathematics. The parser builds its tables on first use, so a few usual expressions are parsed here
    and no item pays for that.

    Raises:
        RuntimeError: a right answer is not judged correct, so that every rollout would be a failure.
    """
    for text in _FAMILIAR:
        equal(text, f"{text} ")
    for text in ("56", "x^2+1"):
        if (verdict := grade_math(rf"\boxed{{{text}}}", text)).outcome is not Outcome.CORRECT:
            raise RuntimeError(f"the mathematics verifier does not work: it judges {text} against {text} as {verdict}")
    return grade_math


def why_unreadable(answer: str) -> str | None:
    """Why a reference cannot be read; ``None`` if it can."""
    reading = read_reference(answer)
    if reading is None:
        return UNREADABLE.reason
    leaves = [reading]
    while leaves:
        leaf = leaves.pop()
        leaves.extend([*leaf.items, *filter(None, [leaf.rounded])])
        if leaf.items or leaf.shape in {"number", "words"} or BASED.fullmatch(leaf.text):
            continue
        text = as_latex(without_unit(leaf.text)[0])
        expression = parse(text, bool(SETS.search(text)))
        if expression is None and not is_verbatim(leaf.text):
            return UNREADABLE.reason
        if expression is not None and _CALCULUS.search(text):
            number(expression)  # a value that takes too long is found here, and not with every completion
    return None


# ---- comparison of two answers

_OPTION = re.compile(r"\(([A-Z])\)|([A-Z])[).:](?=\s)")
_NOT_VALUES = re.compile(r"\\(?:equiv|neq|leq|geq|pmod|mod|mid|sim|to)(?![A-Za-z])|[<>,;]")
_MAX_PAIRS = 400
_SETS = re.compile(r"\\(?:cup|cap|mathbb|setminus|infty|neq|mid)(?![A-Za-z])|[<>|]")
_SIMPLE_NAME = re.compile(r"([A-Za-z])(?:_(\w+))?")
_ARGUMENT = re.compile(r"\( ?[xyzntk] ?\)")
_SEGMENT = re.compile(r"[A-Z]{2,}")
_WORD = re.compile(r"\\text|(?<![\\A-Za-z])[A-Za-z][a-z]{3}")
_LETTER_OR_DIGIT = re.compile(r"\\[A-Za-z]+|[A-Za-z0-9]")


def same_answer(reference: Reading, given: Reading) -> bool:
    """Whether ``given`` states the reference answer.

    Raises:
        UnreadableError: if an expression of the reference must be parsed, and cannot be.
    """
    name, other = reference.name, given.name
    if reference.numeral and given.numeral:
        name, other = (_ARGUMENT.sub("(x)", text) for text in (name, other))  # f(n) = 1 and f(x) = 1 are the same
    if _names_differ(name, other):
        return False
    if reference.rounded is not None:
        return same_answer(replace(reference, rounded=None), given) or same_answer(reference.rounded, given)
    if given.rounded is not None:
        ways = replace(given, rounded=None), given.rounded
        answers = ways if _is_precise(*ways) else ways[:1]
        return _rounds(*ways) and any(same_answer(reference, way) for way in answers)
    if any(_contradicts(head, given) for head in given.heads):
        return False
    if reference.shape is Shape.NUMBER:
        return _is_number(reference, given)
    if key(reference.text) == key(given.text) or key(reference.whole) == key(given.whole):
        return True
    letter = reference.text.strip("() ")
    if len(letter) == 1 and letter.isupper() and (label := _OPTION.match(said := words(given.text))):
        return letters_of(given.text) == [letter] and not re.fullmatch(r"\(?[A-Z]\)?", said[label.end() :].strip(" ."))
    if reference.shape is Shape.WORDS or given.shape is Shape.WORDS:
        return _same_words(reference, given)
    return _same_structure(reference, given)


def _rounds(exact: Reading, rounded: Reading) -> bool:
    """Whether the value after an approximation sign approximates the value before it."""
    if rounded.numeral is None or exact.numeral is None:
        return _equal_or_false(exact.text, rounded.text)
    if units_differ(exact.numeral.unit, rounded.numeral.unit):
        return False
    return approximates(exact.numeral.value / (100 if exact.numeral.percent else 1), rounded.numeral)


def _is_precise(exact: Reading, rounded: Reading) -> bool:
    """Whether the value after an approximation sign answers, too: it has three significant digits for an irrational
    value, and four of a decimal for a rational one. Else ``12.5 \\approx 13`` would be two answers."""
    if rounded.numeral is None:
        return True
    if exact.numeral is None:
        computed = variables(exact.text) or _equal_or_false(exact.text, rounded.text, digits=4)
        return bool(computed) or len(re.sub(r"\D|^[0.]+", "", rounded.text)) >= 3
    value = exact.numeral.value / (100 if exact.numeral.percent else 1)
    return rounds_to(value, rounded.numeral)


def _equal_or_false(first: str, second: str, digits: int = 0) -> bool:
    """Whether two expressions of one answer are equal; ``False`` if one cannot be read."""
    try:
        return equal(first, second, digits)
    except UnreadableError:
        return False


def _contradicts(head: str, given: Reading) -> bool:
    """Whether a constant inside an equation chain differs from its value. One that cannot be read does not count."""
    literal = read_numeral(head)
    if given.numeral is not None and literal is not None:
        return not same_number(literal, given.numeral)
    if given.shape not in {Shape.NUMBER, Shape.EXPRESSION}:
        return literal is not None
    try:
        return not any(equal(head, text, digits=0) for text in (given.text, given.text.rstrip("% ")))
    except UnreadableError:
        return False


def _is_number(reference: Reading, given: Reading) -> bool:
    """Whether an answer states a number. Only a number literal does, not an expression that is still to be computed."""
    assert reference.numeral is not None
    if given.numeral is not None:
        return same_number(reference.numeral, given.numeral)
    if given.shape is Shape.LIST and len({item.name for item in given.items}) == 1:
        texts = {item.text for item in given.items}
        if len(texts) == len(given.items) and all(same_answer(reference, item) for item in given.items):
            return True  # 3/4 or 0.75
    if given.shape is Shape.EXPRESSION and "=" in given.text:
        return _concludes(reference, given)
    if reference.numeral.value.denominator != 1:
        decimal = read_numeral(given.text, decimal_comma=True)
        return decimal is not None and same_number(reference.numeral, decimal)
    return False


def _concludes(reference: Reading, given: Reading) -> bool:
    """Whether an equation in several unknowns ends in the number: ``m + n = 42``. An equation in one unknown or none
    (``2x = 14``, ``x^2 - 4 = 0``) is still to be solved, and does not count."""
    *heads, last = split_equation(given.text)
    value = read_answer(last)
    unknown = [head for head in heads if variables(head) and not _QUANTITY.search(head)]
    if reference.name or not all(_COMBINATION.fullmatch(_FRACTION_OF_NAMES.sub("n", head)) for head in unknown):
        return False
    if value.numeral is None or value.numeral.value == 0 or _NOT_VALUES.search(given.text):
        return False
    if any(len(variables(head)) == 1 for head in heads) or not any(variables(head) for head in heads):
        return False
    literals = [read_numeral(head) for head in heads]
    if any(literal is not None and literal.value != value.numeral.value for literal in literals):
        return False
    return same_answer(reference, value)


# A sum, difference, product or quotient of names, such as m + n, 100m + n or m/n. With other coefficients, constants or
# powers of sums it is an equation of the problem, restated.
_FRACTION_OF_NAMES = re.compile(r"-? ?\\frac ?\{ ?[A-Za-z]\w? ?\} ?\{ ?[A-Za-z]\w? ?\}")
_QUANTITY = re.compile(r"(?<![\\{A-Za-z])(?!(?:answer|result|number)\b)[a-z]{2,}|\\text ?\{ ?\d")  # 9 eggs × $2
_ONE_NAME = r"(?:\\?[A-Za-z]++|\|[A-Za-z ]{1,20}+\|)(?: ?_ ?(?:\w|\{\w+\}))?(?: ?\^ ?(?:\w|\{\w+\}))?'?"
_TERM = rf"(?:\d{{2,4}} ?(?:\\times|\\cdot)? ?)?{_ONE_NAME}(?: ?(?:\\times|\\cdot|[*/])? ?{_ONE_NAME}){{0,4}}"
_COMBINATION = re.compile(rf"\(? ?{_TERM}(?: ?[-+] ?{_TERM}){{0,9}} ?\)?")


_FUNCTION_OF = re.compile(r"\\(?:ln|log|lg|sqrt|sin|cos|tan|exp|frac)(?![A-Za-z])")


def _names_differ(first: str, second: str) -> bool:
    """Whether two names name different things: they have the same form but other letters, or other subscripts if both
    have one; or one is ``|z|``. Names of different forms, and names in words, may name the same."""
    functions = [bool(_FUNCTION_OF.search(name)) for name in (first, second)]
    first, second = _plain_name(first), _plain_name(second)
    if not first or not second or first == second:
        return False
    if re.sub(r"'|\^-1", "", first) == re.sub(r"'|\^-1", "", second):  # y' and y, the inverse of f and f
        return True
    if re.fullmatch(r"\|[A-Za-z]\|", first) or re.fullmatch(r"\|[A-Za-z]\|", second):
        return True
    a, b = _SIMPLE_NAME.fullmatch(first), _SIMPLE_NAME.fullmatch(second)
    if a and len(a[1]) == 1 and (functions[1] or re.fullmatch(r"[a-z]{2}", second)):
        return True  # ln x, sqrt x and xy are other quantities
    if a is None or b is None:
        forms = {_LETTER_OR_DIGIT.sub(lambda m: m[0] if len(m[0]) > 1 else "a", name) for name in (first, second)}
        return len(forms) == 1 and not _WORD.search(first + second)
    return a[1] != b[1] or (a[2] is not None and b[2] is not None and a[2] != b[2])


def _plain_name(name: str) -> str:
    """A name without braces, with spaces only between letters. ``BA`` becomes ``AB``; the angle ``CBA``, ``ABC``."""
    name = re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", " ".join(re.sub("[{}]", " ", name).split()))
    return _SEGMENT.sub(lambda points: min(points[0], points[0][::-1]), name)


_OPTION_WORDS = re.compile(
    r"(?:the )?(?:(?:correct|right) )?(?:option|choice)(?: is)?:? (\(?[A-Z]\)?)(?: is (?:correct|right))?",
    re.IGNORECASE,
)
# A statement that only says what something is: "The function is odd", "It will be a Wednesday".
_IS = re.compile(
    r"(?!.*\b(?:opposite|negation|contrary|wrong|false|other|denial|trap)\b)"
    r"(?:it|this|that|(?:the|it will)(?: [a-z]{2,15}){0,2})"
    r" (?:is|was|will be|be)(?: an?)? ([^\W\d_]+)",
    re.IGNORECASE,
)
_YES = re.compile(r"(yes|no), (?!.*\b(?:yes|or|if|unless|but|except|maybe|perhaps)\b)[\w' ]+", re.IGNORECASE)


def _same_words(reference: Reading, given: Reading) -> bool:
    expected, got = _words_key(reference), _words_key(given)
    if not expected or given.text.endswith("?") > reference.text.endswith("?"):
        return False
    if len(expected) == 1:
        text = _OPTION_WORDS.sub(r"\1", given.text)
        named = letters_of(text) if re.match(r"\(?[A-Za-z]\s*(?:[).:]|$)", text) else []
        alone = set(re.findall(r"(?<![A-Za-z0-9'])[A-Z](?![A-Za-z0-9'])", text))
        return [letter.casefold() for letter in named] == [expected] and len(alone) <= 1
    if expected in ("yes", "no") and (said := _YES.fullmatch(given.text)):
        return said[1].casefold() == expected and not (expected == "yes" and NOT.search(given.text))
    if (said := _IS.fullmatch(given.text)) and not NOT.search(given.text):
        return expected == said[1].casefold()
    return expected == got


def _words_key(reading: Reading) -> str:
    """Equal for answers in words that are the same apart from case, articles, punctuation and spaces. Operators stay:
    ``x+y`` is not ``xy``."""
    plain = words(reading.text).casefold()
    text = re.sub(r"\b(?:the|an?|is|are|there)\b", " ", re.sub(r"\bno (real )?solutions\b", r"no \1solution", plain))
    sign = "-" if re.match(r"-[^\w\s]*+(?=\w).*\d", plain) else ""  # elsewhere a dash joins words, or is a bullet
    return sign + re.sub(r"(?<!\d)[^\w:+*/^=<>¬]|[^\w:+*/^=<>¬](?!\d)", "", text if re.search(r"\w", text) else plain)


def _coordinates(reading: Reading, tuple_name: str) -> Reading:
    """``x = 1, y = 2`` as the tuple ``(1, 2)``, in the order of ``tuple_name`` if that has the same names, such as
    ``(x, y)``; ``x < 1 or x > 2`` as the union of two intervals."""
    names = [item.name for item in reading.items]
    if reading.shape is not Shape.LIST or not all(names):
        return reading
    if all(item.shape is Shape.SEQUENCE for item in reading.items):
        return _intersection(reading) or replace(reading, shape=Shape.UNION)
    if len(set(names)) < len(names):
        return reading
    order = [name.strip() for name in tuple_name.strip("() ").split(",")]
    letters = sorted(names) if all(len(name) == 1 for name in names) else names
    names = order if sorted(order) == sorted(names) else letters
    named = {item.name: replace(item, name="") for item in reading.items}
    items = tuple(named[name] for name in names)
    return replace(reading, shape=Shape.SEQUENCE, brackets="()", items=items, name=f"({','.join(names)})")


_LAND = re.compile(r"\\(?:land|wedge)(?![A-Za-z])")


def _intersection(reading: Reading) -> Reading | None:
    """``x > 1 and x < 2`` as the interval from 1 to 2; ``None`` if the two do not overlap."""
    if len(reading.items) != 2 or re.search(r"\bor\b|\\lor|\\vee", reading.text):
        return None
    upper, lower = sorted(reading.items, key=lambda item: item.items[1].text == r"\infty")
    if upper.items[0].text != r"-\infty" or lower.items[1].text != r"\infty" or upper.name != lower.name:
        return None
    ends = lower.items[0], upper.items[1]
    least, most = (end.numeral for end in ends)
    if least is None or most is None or least.value >= most.value:
        return None
    return Reading(
        Shape.SEQUENCE,
        reading.text,
        reading.whole,
        upper.name,
        items=ends,
        brackets=lower.brackets[0] + upper.brackets[1],
    )


def _are_named(reading: Reading) -> bool:
    """Whether every element has a name of its own."""
    return len({item.name for item in reading.items} - {""}) == len(reading.items)


def _same_structure(reference: Reading, given: Reading) -> bool:
    shapes = {reference.shape, given.shape}
    if shapes == {Shape.LIST}:
        if _LAND.search(given.text) and not _LAND.search(reference.text):
            return False  # x = 2 and, at the same time, x = 3
        if all(item.shape is Shape.SEQUENCE and item.name for item in (*reference.items, *given.items)):
            reference, given = (_intersection(one) or replace(one, shape=Shape.UNION) for one in (reference, given))
        elif _are_named(reference) and not any(item.name for item in given.items):
            # x = 2, y = 3 is no set of two numbers: the bare ones stand in its order
            bare = given.brackets != "{}" and not re.search(r"\b(?:or|and)\b|\\lor", given.text)
            pairs = zip(reference.items, given.items, strict=False)
            same = len(reference.items) == len(given.items)
            return bare and same and all(same_answer(replace(a, name=""), b) for a, b in pairs)
    elif Shape.LIST in shapes:
        if _LAND.search(given.text) and given.shape is Shape.LIST and _intersection(given) is None:
            return False
        reference, given = _coordinates(reference, given.name), _coordinates(given, reference.name)
        if _names_differ(reference.name, given.name):
            return False
    if reference.shape is Shape.EXPRESSION or given.shape is Shape.EXPRESSION or reference.shape is not given.shape:
        return _same_expression(reference, given)
    if reference.shape is Shape.SEQUENCE:
        return (
            reference.brackets == given.brackets
            and len(reference.items) == len(given.items)
            and all(same_answer(a, b) for a, b in zip(reference.items, given.items, strict=True))
        )
    expected, got = ({key(item.whole): item for item in reading.items} for reading in (reference, given))
    return len(expected) == len(got) and _same_members([*expected.values()], [*got.values()])


def _same_members(reference: Sequence[Reading], given: Sequence[Reading]) -> bool:
    """Whether members match one to one, in any order. Greedy matching is enough: sameness is an equivalence."""
    left = list(given)
    budget = _MAX_PAIRS
    for item in reference:
        for position, candidate in enumerate(left):
            budget -= 1
            if budget < 0:
                return False
            if same_answer(item, candidate):
                del left[position]
                break
        else:
            return False
    return True


def _same_expression(reference: Reading, given: Reading) -> bool:
    shapes = {reference.shape, given.shape}
    if shapes in ({Shape.LIST, Shape.SEQUENCE}, {Shape.UNION, Shape.SEQUENCE}):
        return False
    if shapes - {Shape.EXPRESSION, Shape.NUMBER} and not all(
        reading.items or _SETS.search(reading.text) or r"\begin" in reading.text for reading in (reference, given)
    ):
        return False
    if ("=" in reference.text) != ("=" in given.text):
        if not ("=" in reference.whole and "=" in given.whole):
            return False
        return _equal_or_false(reference.whole, given.whole)
    if reference.items:
        return _equal_or_false(reference.text, given.text)
    return equal(reference.text, given.text)
