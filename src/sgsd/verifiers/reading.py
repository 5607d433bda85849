"""Reads an answer by its shape: number, words, list, set, tuple or interval, union, or expression.

Parts are split here, before parsing, so that the computer algebra system sees single expressions only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from sgsd.verifiers.numerals import Numeral, approximates, read_numeral, same_number, spoken_number
from sgsd.verifiers.tidy import names, nesting, tidy, words

MAX_ITEMS = 100
MAX_LENGTH = 4_000
_MAX_DEPTH = 4


class Shape(StrEnum):
    """The form of an answer."""

    NUMBER = "number"
    WORDS = "words"
    EXPRESSION = "expression"
    LIST = "list"  # bare or in braces: order does not matter
    SEQUENCE = "sequence"  # a tuple, an interval, a matrix or one of its rows: order and brackets matter
    UNION = "union"


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer, read.

    Attributes:
        shape: see ``Shape``.
        text: the tidy text of the value.
        whole: the tidy text with the name or equation it came in.
        name: the left-hand side that was taken off (``x`` in ``x = 5``), or the empty string.
        numeral: the literal, for a number.
        items: the elements of a list, sequence or union.
        brackets: the two brackets of a sequence, and ``|`` for that of an absolute value; ``matrix`` or ``row``.
        rounded: the approximation given beside an exact value (``1/3 \\approx 0.333``).
        heads: the constants inside an equation chain, which must not contradict its value (``54 = 55 = 56``).
    """

    shape: Shape
    text: str
    whole: str
    name: str = ""
    numeral: Numeral | None = None
    items: tuple[Reading, ...] = ()
    brackets: str = ""
    rounded: Reading | None = None
    heads: tuple[str, ...] = ()


_NAMES = frozenset(
    names(
        r"\angle \overline \frac \triangle \vec \widehat \hat \bar \mathbb \mathcal \measuredangle \max \min"
        r" \text \alpha \beta \gamma \delta \epsilon \varepsilon \theta \lambda \mu \nu \rho \sigma \tau \phi"
        r" \varphi \psi \omega \Delta \Gamma \Omega \Phi \Sigma \Theta \lvert \rvert \prime \ell \eta \xi \zeta"
        r" \kappa \overrightarrow \gcd \lcm \cup \cap \mid"
    )
)
_SYMBOLS = _NAMES - {r"\frac"}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")
_INVERSE = re.compile(r"(?<=[A-Za-z])\^\{-1\}(?= ?\()")
# Words of a name that deny it, or that make it another quantity.
_CHANGED = re.compile(
    r"\b(?:not|never|wrong|incorrect|twice|half|double|triple|squared|cubed|negative|minus|unless|if|except)\b|n't",
    re.IGNORECASE,
)
_OF_MATRIX = re.compile(r"(?<=[A-Z}])\^ ?(?:\{-1\}|\{ ?T ?\}|T|[2-9])$")
_APPLIED = re.compile(r"(?<=[A-Za-z'}])\([^()=<>]{0,40}\)")
_BIG = re.compile(r"\\(?:lim|int|sum|prod|binom|det)(?![A-Za-z])")
_EQUALITY = re.compile(r"(?<![<>!:\\])=")
_RELATION = re.compile(r"\\(?:leq|geq)(?![A-Za-z])|<|>")
_OTHER_RELATION = re.compile(
    r"\\(?:neq|equiv|sim|propto|to|rightarrow|Rightarrow|implies|mid|pmod|mod|nmid)(?![A-Za-z])"
)
_CONJUNCTION = re.compile(
    r"[,;]? ?(?:\\text ?\{ ?,? ?(?:and|or) ?\}|\\(?:lor|land|vee|wedge)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|(?<=[\d)}])(?:and|or)(?=[A-Za-z\d(\\-])|(?<!\\)&|或|和) ?[,;]?"
)
_LOGIC = re.compile(r"\\(?:lor|land|vee|wedge)(?![A-Za-z])")
_LETTERS = r"A-Za-zÀ-ɏ\u0370-\u03ff\u0400-\u04ff\u0900-\u097f\u0600-\u06ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
_WORDS = re.compile(rf"[{_LETTERS}0-9 '\".,:;!?&\-/()]*")
_HAS_WORD = re.compile(
    r"[A-Za-zÀ-ɏ]{4,}|[A-Za-zÀ-ɏ][ '][A-Za-zÀ-ɏ]|[A-Za-zÀ-ɏ]{3,}-[A-Za-zÀ-ɏ]|[A-Za-zÀ-ɏ]-[A-Za-zÀ-ɏ]{3,}"
    rf"|[{_LETTERS.removeprefix('A-Za-zÀ-ɏ')}]|^(?:yes|no|odd|red|Yes|No|NO|YES)$"
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.? ?m\.?)?", re.IGNORECASE)
_PLAIN_MATHS = re.compile(
    r"(?<![A-Za-z\\])(?:a(?:rc)?)?(?:sqrt|cbrt|floor|ceil|sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|ln|log|exp|pi"
    r"|abs|infinity|theta|alpha"
    r"|beta|gamma)(?![A-Za-z])"
)
_MATRIX = r"\{(?:[pbB]?matrix|smallmatrix|array)\}"
_BEGIN = re.compile(rf"\\begin ?(?:{_MATRIX}(?: ?\{{[lcr| ]*\}})?|(?P<cases>\{{cases\}}))")
_END = re.compile(rf"\\end ?(?:{_MATRIX}|\{{cases\}})$")
_IN = re.compile(r"\\in(?![A-Za-z])")
_BUILDER = re.compile(r"([^|:]*?) ?(?:\\mid(?![A-Za-z])|\||:) ?(.+)")
_REAL = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)? ?(?:\\in ?\\(?:mathbb ?\{ ?R ?\}|R))?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"([A-Z]'?(?: ?_ ?(?:\w|\{\w\}))?) ?(?=\()")
_BRACKET = re.compile(r"\\begin(?![A-Za-z])|\\end(?![A-Za-z])|\\\\|[()\[\]{},;&]")


def read_answer(text: str) -> Reading:
    """Read an answer. Never fails: an answer of no other shape is an expression."""
    text = text[:MAX_LENGTH]
    reading = _read(text, 0)
    if reading.numeral is not None and re.match(r"[\s$+-]*\\\$", text):
        # ``tidy`` drops dollar signs, since most of them delimit mathematics.
        return replace(reading, numeral=replace(reading.numeral, currency="$"))
    return reading


def _leaf(text: str) -> Reading:
    plain = words(text)
    numeral = read_numeral(text) or spoken_number(plain)
    if numeral is not None:
        return Reading(Shape.NUMBER, text, text, numeral=numeral)
    spoken = "\\text" in text or (_HAS_WORD.search(plain) and not _PLAIN_MATHS.search(plain))
    if (plain and spoken and _WORDS.fullmatch(plain)) or _CLOCK.fullmatch(plain):
        return Reading(Shape.WORDS, plain, text)
    return Reading(Shape.EXPRESSION, text, text)


def split_outside(text: str, separators: str) -> list[str]:
    r"""Split at ``,`` ``;`` ``&`` or ``\\`` outside brackets and environments; not if brackets do not match."""
    parts: list[str] = []
    depth = start = 0
    for mark in _BRACKET.finditer(text):
        if mark[0] in {"(", "[", "{", r"\begin"}:
            depth += 1
        elif mark[0] in {")", "]", "}", r"\end"}:
            depth -= 1
            if depth < 0:
                return [text]
        elif depth == 0 and mark[0] in separators:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [text] if depth else [part.strip() for part in [*parts, text[start:]]]


def split_equation(text: str) -> list[str]:
    """Split at the equality signs outside braces: ``\\sum_{k=0}`` is no equation."""
    hidden = _braces_blanked(text)
    cuts = [match.start() for match in _EQUALITY.finditer(hidden)]
    return [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def _braces_blanked(text: str) -> str:
    """A text of the same length with spaces in place of everything in braces."""
    depth = 0
    kept: list[str] = []
    for character in text:
        depth += character == "{"
        kept.append(" " if depth else character)
        depth = max(0, depth - (character == "}"))
    return "".join(kept)


def _enclosed(text: str) -> str:
    """The bracket pair around the whole text, or the empty string."""
    whole = len(text) > 2 and text[0] in "([" and text[-1] in ")]" and nesting(text[1:-1]) >= 0
    return text[0] + text[-1] if whole else ""


def is_name(text: str) -> bool:
    r"""Whether a left-hand side only names what follows: ``x``, ``f(2)``, ``\frac{NO}{BO}``, ``\text{Total cost}``."""
    text = text.removeprefix(r"\#")
    if (
        not text
        or len(text) > 80
        or _CHANGED.search(words(text))
        or any(command not in _NAMES for command in _COMMAND.findall(text))
    ):
        return False
    rest = _APPLIED.sub("", _SUBSCRIPT.sub("", _INVERSE.sub("", _COMMAND.sub(" ", text))))
    return bool(re.search(r"[^\W\d_]", text)) and bool(re.fullmatch(r"(?:[^\W\d]|['|:,(){}\[\]° .&])*", rest))


def variables(text: str) -> set[str]:
    bare = _COMMAND.sub(" ", words(_SUBSCRIPT.sub("", text)))
    return set(re.findall(r"[A-Za-z]", bare)) - {"e", "i"}


def _chain(text: str, depth: int) -> Reading | None:
    """The value at the end of an equation chain; ``None`` if the equation is still to be solved."""
    hidden = _braces_blanked(text)
    if "=" not in hidden or _RELATION.search(hidden) or _OTHER_RELATION.search(hidden):
        return None
    parts = split_equation(text)
    if len(parts) < 2 or not all(parts) or len(parts) > 20:
        return None
    *heads, last = parts
    if re.fullmatch(r"[A-Za-z] ?\([^-+*/^()=]*+[-+*/^][^()=]*+\)", heads[0]) and variables(last):
        return None  # f(x + 1) = x + 1 is not f
    if last.startswith(r"\begin"):  # the inverse, transpose or power of a matrix
        heads = [_OF_MATRIX.sub("", head) for head in heads]
    named = is_name(heads[0]) or is_name(heads[-1])
    computed = not variables(heads[-1]) and len(heads) > 1
    if not named and not computed and any(variables(head) and not _BIG.match(head) for head in heads):
        return None
    value = _read(last, depth + 1)
    constant = not any(variables(part) for part in parts)
    if value.numeral is None and value.shape is Shape.EXPRESSION and not is_name(heads[0]) and not constant:
        return None
    # \theta and \angle are no constants; e and i alone are names here: of an eccentricity, of an index.
    fixed = [head for head in heads if not variables(head) and head not in ("e", "i")]
    constants = [tidy(head) for head in fixed if _SYMBOLS.isdisjoint(_COMMAND.findall(head))]
    name = heads[0] if is_name(heads[0]) else ""
    return replace(value, whole=text, name=name or value.name, heads=(*constants, *value.heads))


def _approximation(text: str, depth: int) -> Reading | None:
    exact, *others = [part.strip() for part in text.split(r"\approx")]
    if len(others) != 1 or not others[0]:
        return None
    rounded = _read(others[0], depth + 1)
    if not exact or is_name(exact):
        return replace(rounded, whole=text, name=exact)
    return replace(_read(exact, depth + 1), whole=text, rounded=rounded)


def _inequality(text: str, depth: int) -> Reading | None:
    """``a < x \\leq b`` or ``x > a``: the interval it describes."""
    relations = _RELATION.findall(text)
    if not 1 <= len(relations) <= 2 or "=" in text or _OTHER_RELATION.search(text):
        return None
    parts = [part.strip() for part in _RELATION.split(text)]
    if not all(parts):
        return None
    if relations[0] in {">", r"\geq"}:
        parts, relations = parts[::-1], [{">": "<", r"\geq": r"\leq"}.get(sign, "") for sign in relations[::-1]]
    if not all(sign in {"<", r"\leq"} for sign in relations):
        return None
    names = [is_name(part) for part in parts]
    if len(parts) == 2 and names[0] != names[1]:
        parts = [r"-\infty", *parts] if names[0] else [*parts, r"\infty"]
        relations = ["<", *relations] if names[0] else [*relations, "<"]
    elif len(parts) == 2 or not names[1]:
        return None
    brackets = ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]")
    brackets += "|" * ("|" in parts[1])
    items = (_read(parts[0], depth + 1), _read(parts[2], depth + 1))
    return Reading(Shape.SEQUENCE, text, text, name=parts[1], items=items, brackets=brackets)


def _expand_sign(text: str) -> list[str]:
    r"""``a \pm b`` → ``a + b``, ``a - b``."""
    if text.count(r"\pm") != 1 or "=" in text:
        return [text]
    head, tail = (part.strip() for part in text.split(r"\pm"))
    return [f"{head}+{tail}" if head else tail, f"{head}-{tail}"]


def _items(text: str, depth: int) -> tuple[Reading, ...] | None:
    """The elements of a list, split at commas, semicolons, ``and``, ``or``; ``None`` if it has only one."""
    if _LOGIC.search(text) and not re.search(r"[=<>,]|\\[lg]eq|\\in(?![A-Za-z])", text):
        return None
    groups = [group for group in split_outside(_CONJUNCTION.sub(" ; ", text), r";\\") if group]
    pieces = [[piece for piece in split_outside(group, ",") if piece] for group in groups]
    sizes = {len(piece) for piece in pieces}
    if len(groups) > 1 and len(sizes) == 1 and sizes != {1} and all("=" in p for group in pieces for p in group):
        sides = [[split_equation(piece) for piece in group] for group in pieces]
        flat = [f"({', '.join(s[0] for s in group)})=({', '.join(s[-1] for s in group)})" for group in sides]
    else:
        flat = [piece for group in pieces for piece in group]
    flat = [signed for piece in flat for signed in _expand_sign(piece)]
    if len(flat) < 2 or len(flat) > MAX_ITEMS:
        return None
    return tuple(_read(piece, depth + 1) for piece in flat)


def _container(text: str, depth: int) -> Reading | None:
    """A set in braces, a tuple, an interval, a matrix."""
    if text.startswith(r"\{") and text.endswith(r"\}") and nesting(text[2:-2]) >= 0:
        inner = text[2:-2].strip()
        builder = _BUILDER.fullmatch(inner)
        if builder and _REAL.fullmatch(builder[1]):
            return _read(builder[2], depth + 1)
        if builder and is_name(builder[1].replace(r"\in", "").strip()):  # integers, pairs: no interval
            text = rf"\{{{builder[1]} \mid {builder[2]}\}}"
            return Reading(Shape.EXPRESSION, text, text)
        items = _items(inner, depth) or ((_read(inner, depth + 1),) if inner else ())
        return Reading(Shape.LIST, text, text, items=items, brackets="{}")
    begin, end = _BEGIN.match(text), _END.search(text)
    if begin and end and r"\begin" not in (inner := text[begin.end() : end.start()]):
        rows = [row for row in split_outside(inner.replace(r"\hline", ""), r"\\") if row]
        if begin["cases"] and all("=" in row for row in rows):
            return _read(r"\\".join(rows).replace("&", ""), depth + 1)
        cells = [split_outside(row, "&") for row in rows]
        if sum(map(len, cells)) > MAX_ITEMS:
            return None
        items = tuple(
            Reading(Shape.SEQUENCE, row, row, items=tuple(_read(part, depth + 1) for part in parts), brackets="row")
            for row, parts in zip(rows, cells, strict=True)
        )
        return Reading(Shape.SEQUENCE, text, text, items=items, brackets="cases" if begin["cases"] else "matrix")
    point = _POINT.match(text)
    if point and _enclosed(text[point.end() :]) and "," in text:
        return replace(_read(text[point.end() :], depth + 1), whole=text, name=point[1])
    brackets = _enclosed(text)
    if brackets:
        inner = text[1:-1].strip()
        pieces = [piece for piece in split_outside(inner.replace(";", ","), ",") if piece]
        if 2 <= len(pieces) <= MAX_ITEMS:
            items = tuple(_read(piece, depth + 1) for piece in pieces)
            if brackets == "[]" and all(item.brackets == "[]" and "\\" not in item.text for item in items):
                # A matrix as nested lists, as programs print it.
                items = tuple(replace(item, brackets="row") for item in items)
                brackets = "matrix"
            return Reading(Shape.SEQUENCE, text, text, items=items, brackets=brackets)
        if brackets == "()" and ("=" in inner or inner.startswith(r"\begin")):
            return _read(inner, depth + 1)
    return None


_TWICE = re.compile(
    r"([^()=]{1,60}?)(?: \\text ?\{ ?(?:or|i\.e\.,?) ?\} ?| \\text ?\{ ?\((?:or|i\.e\.,?) ?\} ?"
    r"|\\text ?\{ ?\(?(?:or|i\.e\.,?) ?\} ?| \( ?(?:or |=|\\approx|i\.e\.,?)? ?)"
    r"([^()=]{1,60}?)(?: ?\\text ?\{ ?\) ?\}|\))?"
)


def _same_twice(first: str, second: str) -> bool:
    """Whether an answer in two forms, such as ``7/2 (3.5)``, states one number, in two spellings."""
    a, b = (read_numeral(text) or spoken_number(text) for text in (first.strip(), second.strip()))
    if a is None or b is None or first.strip() == second.strip():
        return False
    return same_number(a, b) or same_number(b, a) or (b.form == "decimal" and approximates(a.value, b))


def _read(text: str, depth: int) -> Reading:
    text = tidy(text)
    if (twice := _TWICE.fullmatch(text)) and _same_twice(twice[1], twice[2]):
        text = twice[1]
    leaf = _leaf(text)
    if leaf.shape is Shape.NUMBER or depth > _MAX_DEPTH:
        return leaf
    member = _IN.search(text)
    if member and "\\" not in (name := text[: member.start()].strip()) and is_name(name) and text[member.end() :]:
        return replace(_read(text[member.end() :], depth + 1), whole=text, name=name)
    container = _container(text, depth)
    if container is not None:
        return container
    if leaf.shape is Shape.WORDS and "," not in text and not _CONJUNCTION.search(text):
        return leaf
    if r"\cup" in text and "=" not in text:
        parts = text.split(r"\cup")
        if all(part.strip() for part in parts) and len(parts) <= MAX_ITEMS:
            return Reading(Shape.UNION, text, text, items=tuple(_read(part, depth + 1) for part in parts))
    named = split_equation(text)
    bare = _THOUSANDS.sub("", text)
    if len(named) > 1 and bare != text and not re.search("[,;]", bare) and read_numeral(named[-1]) is not None:
        return _chain(bare, depth) or leaf  # x = 1,000 is no list
    if len(named) == 2 and is_name(named[0]) and not re.search("[,;]", named[0].partition("(")[0]):
        items = _items(named[1], depth)
        if items is not None:
            return Reading(Shape.LIST, text, text, name=named[0], items=items)
    items = _items(text, depth)
    if items is not None:
        return Reading(Shape.LIST, text, text, items=items)
    return _chain(text, depth) or _approximation(text, depth) or _inequality(text, depth) or leaf
