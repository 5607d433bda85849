"""An answer's shape: number, words, list, set, tuple or interval, union, or an expression for the algebra system."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from sgsd.verifiers.numerals import Numeral, read_numeral, spoken_number
from sgsd.verifiers.tidy import DEGREE, tidy, words

MAX_ITEMS = 100
_MAX_DEPTH = 4
_MAX_LENGTH = 4_000


class Shape(StrEnum):
    """What an answer is made of."""

    NUMBER = "number"
    WORDS = "words"
    EXPRESSION = "expression"
    LIST = "list"  # bare or in braces: order does not matter
    SEQUENCE = "sequence"  # a tuple or an interval: order and brackets matter
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
        brackets: the two brackets of a sequence.
        rounded: the approximation given beside an exact value (``1/3 \\approx 0.333``).
        contradiction: whether an equation chain states two different literals (``54 = 55 = 56``).
    """

    shape: Shape
    text: str
    whole: str
    name: str = ""
    numeral: Numeral | None = None
    items: tuple[Reading, ...] = ()
    brackets: str = ""
    rounded: Reading | None = None
    contradiction: bool = False


def _names(text: str) -> list[str]:
    return text.split()


_NAME_COMMANDS = frozenset(
    _names(
        r"\angle \overline \frac \triangle \vec \widehat \hat \bar \operatorname \mathbb \mathcal \measuredangle \max"
        r" \min \text \alpha \beta \gamma \delta \epsilon \varepsilon \theta \lambda \mu \nu \rho \sigma \tau \phi"
        r" \varphi \psi \omega \Delta \Gamma \Omega \Phi \Sigma \Theta \lvert \rvert \prime \ell \eta \xi \zeta \kappa"
        r" \overrightarrow \mathbf \boldsymbol \deg \gcd \lcm \circ \Re \Im \quad \zzz"
    )
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")
_APPLIED = re.compile(r"(?<=[A-Za-z'}])\([^()=<>]{0,40}\)")
_NAME_REST = re.compile(r"[A-Za-z'|:,(){}\[\]° .&]*")
_BIG = re.compile(r"\\(?:lim|int|sum|prod|log|ln|binom|det|sqrt|left)(?![A-Za-z])")
_CHAIN = re.compile(r"(?<![<>!:\\])=")
_RELATION = re.compile(r"\\(?:leq|geq)(?![A-Za-z])|<|>")
_OTHER_RELATION = re.compile(
    r"\\(?:neq|equiv|sim|propto|to|rightarrow|Rightarrow|implies|mid|pmod|mod|nmid)(?![A-Za-z])"
)
_CONJUNCTION = re.compile(
    r"\s*[,;]?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|\\(?:lor|land|vee)(?![A-Za-z])|(?<![A-Za-z\\])(?:and|or|&)(?![A-Za-z])"
    r"|(?<=[\d)}])(?:and|or)(?=[A-Za-z\d(\\-]))\s*[,;]?\s*"
)
_OPEN, _CLOSE = "([{", ")]}"
_WORDS = re.compile(r"[A-Za-zÀ-ɏ0-9 '\".,:;!?&\-/()\u4e00-\u9fff]*")
_HAS_WORD = re.compile(
    r"[A-Za-zÀ-ɏ]{4,}|[A-Za-zÀ-ɏ]+[ '][A-Za-zÀ-ɏ]|[A-Za-zÀ-ɏ]{3,}-[A-Za-zÀ-ɏ]|[A-Za-zÀ-ɏ]-[A-Za-zÀ-ɏ]{3,}"
    r"|[\u4e00-\u9fff]|^(?:yes|no|odd|red|Yes|No|NO|YES)$"
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.? ?m\.?)?", re.IGNORECASE)


def read_answer(text: str) -> Reading:
    """Read an answer. Anything can be read; what is nothing better is an expression."""
    reading = _read(tidy(text) if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH], 0)
    if reading.numeral is not None and re.match(r"[\s$+-]*\\\$", text):
        # Elsewhere a dollar sign opens mathematics, and is gone.
        return replace(reading, numeral=replace(reading.numeral, currency="$"))
    return reading


def _leaf(text: str) -> Reading:
    numeral = read_numeral(text)
    if numeral is not None:
        return Reading(Shape.NUMBER, text, text, numeral=numeral)
    plain = words(text)
    numeral = spoken_number(plain)
    if numeral is not None:
        return Reading(Shape.NUMBER, text, text, numeral=numeral)
    spoken = "\\text" in text or _HAS_WORD.search(plain)
    if (plain and spoken and _WORDS.fullmatch(plain)) or _CLOCK.fullmatch(plain):
        return Reading(Shape.WORDS, plain, text)
    return Reading(Shape.EXPRESSION, text, text)


def split_outside(text: str, separators: str) -> list[str]:
    """Split at separators outside all brackets; ``[text]`` where brackets do not pair up."""
    parts: list[str] = []
    depth = start = 0
    for position, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth < 0:
                return [text]
        elif depth == 0 and character in separators:
            parts.append(text[start:position])
            start = position + 1
    if depth:
        return [text]
    parts.append(text[start:])
    return [part.strip() for part in parts]


def split_equation(text: str) -> list[str]:
    """Split at the equality signs outside braces: ``\\sum_{k=0}`` is no equation."""
    hidden = _braces_blanked(text)
    cuts = [match.start() for match in _CHAIN.finditer(hidden)]
    return [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def _braces_blanked(text: str) -> str:
    """The text with what stands in braces blanked out, position by position."""
    depth = 0
    kept: list[str] = []
    for character in text:
        if character == "{":
            depth += 1
        kept.append(" " if depth else character)
        if character == "}":
            depth = max(0, depth - 1)
    return "".join(kept)


def _enclosed(text: str) -> str:
    """The bracket pair around the whole text, or the empty string."""
    if len(text) < 3 or text[0] not in _OPEN or text[-1] not in _CLOSE:
        return ""
    depth = 0
    for position, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth == 0 and position != len(text) - 1:
                return ""
    return text[0] + text[-1] if depth == 0 else ""


def is_name(text: str) -> bool:
    """Whether a left-hand side only names what follows: ``x``, ``f(2)``, ``S_{ABC}:S``, ``\\frac{NO}{BO}``, ``(x,
    y)``."""
    if not text or len(text) > 80:
        return False
    if any(command not in _NAME_COMMANDS for command in _COMMAND.findall(text)):
        return False
    rest = _APPLIED.sub("", _SUBSCRIPT.sub("", _COMMAND.sub(" ", text)))
    return bool(re.search(r"[A-Za-z]|\\[a-z]", text)) and bool(_NAME_REST.fullmatch(rest))


def _states_value(heads: list[str]) -> bool:
    """Whether the left-hand sides of a chain lead to its value, rather than being an equation still to be solved."""
    if is_name(heads[0]) or is_name(heads[-1]):
        return True
    for head in heads:
        letters = set(re.sub(r"[^A-Za-z]", "", _COMMAND.sub("", words(_SUBSCRIPT.sub("", head)))))
        if letters - {"e", "i"} and not _BIG.match(head):
            return False
    return True


def _chain(text: str, depth: int) -> Reading | None:
    """An equation chain that ends in a value: the value, with the rest as its name."""
    if "=" not in text or _RELATION.search(text) or _OTHER_RELATION.search(_braces_blanked(text)):
        return None
    parts = split_equation(text)
    if len(parts) < 2 or not all(parts) or len(parts) > 20 or not _states_value(parts[:-1]):
        return None
    value = _read(parts[-1], depth + 1)
    if value.numeral is None and value.shape is Shape.EXPRESSION and not is_name(parts[0]):
        return None
    contradiction = False
    if value.numeral is not None:
        heads = [read_numeral(part) for part in parts[:-1]]
        contradiction = any(head is not None and head.value != value.numeral.value for head in heads)
    name = parts[0] if is_name(parts[0]) else ""
    return replace(value, whole=text, name=name or value.name, contradiction=contradiction or value.contradiction)


def _approximation(text: str, depth: int) -> Reading | None:
    if r"\approx" not in text:
        return None
    parts = [part.strip() for part in text.split(r"\approx")]
    if len(parts) != 2 or not parts[1]:
        return None
    rounded = _read(parts[1], depth + 1)
    if not parts[0] or is_name(parts[0]):
        return replace(rounded, whole=text, name=parts[0])
    return replace(_read(parts[0], depth + 1), whole=text, rounded=rounded)


def _inequality(text: str, depth: int) -> Reading | None:
    """``a < x \\leq b`` or ``x > a``: the interval it describes."""
    relations = _RELATION.findall(text)
    if not relations or "=" in text or _OTHER_RELATION.search(text) or len(relations) > 2:
        return None
    parts = [part.strip() for part in _RELATION.split(text)]
    if not all(parts):
        return None
    if len(parts) == 3:
        directions = {relation in {"<", r"\leq"} for relation in relations}
        if len(directions) != 1 or not is_name(parts[1]):
            return None
        low, high = (parts[0], parts[2]) if True in directions else (parts[2], parts[0])
        left, right = relations if True in directions else relations[::-1]
        name = parts[1]
    else:
        if is_name(parts[0]) and not is_name(parts[1]):
            name, bound, less = parts[0], parts[1], relations[0] in {"<", r"\leq"}
        elif is_name(parts[1]) and not is_name(parts[0]):
            name, bound, less = parts[1], parts[0], relations[0] not in {"<", r"\leq"}
        else:
            return None
        low, high = (r"-\infty", bound) if less else (bound, r"\infty")
        left, right = ("<", relations[0]) if less else (relations[0], "<")
    brackets = ("[" if left in {r"\leq", r"\geq"} else "(") + ("]" if right in {r"\leq", r"\geq"} else ")")
    items = (_read(low, depth + 1), _read(high, depth + 1))
    return Reading(Shape.SEQUENCE, text, text, name=name, items=items, brackets=brackets)


def _expand_sign(text: str) -> list[str]:
    r"""``a \pm b`` → ``a + b``, ``a - b``."""
    if text.count(r"\pm") != 1 or "=" in text:
        return [text]
    head, tail = (part.strip() for part in text.split(r"\pm"))
    return [f"{head}+{tail}" if head else tail, f"{head}-{tail}"]


def _items(text: str, depth: int) -> tuple[Reading, ...] | None:
    """The elements of a list: split at commas, semicolons, ``and``, ``or``."""
    joined = _CONJUNCTION.sub(" ; ", text)
    groups = [group for group in split_outside(joined, ";") if group]
    pieces = [[piece for piece in split_outside(group, ",") if piece] for group in groups]
    sizes = {len(piece) for piece in pieces}
    if len(groups) > 1 and len(sizes) == 1 and sizes != {1} and all("=" in p for group in pieces for p in group):
        flat = ["(" + ", ".join(split_equation(p)[-1] for p in group) + ")" for group in pieces]
    else:
        flat = [piece for group in pieces for piece in group]
    flat = [signed for piece in flat for signed in _expand_sign(piece)]
    if len(flat) < 2 or len(flat) > MAX_ITEMS:
        return None
    return tuple(_read(piece, depth + 1) for piece in flat)


def _container(text: str, depth: int) -> Reading | None:
    set_braces = text.startswith(r"\{") and text.endswith(r"\}")
    if set_braces and _enclosed(text[1:-2] + "}"):
        inner = text[2:-2].strip()
        if r"\mid" in inner or "|" in inner or ":" in inner:
            return None
        items = _items(inner, depth) or ((_read(inner, depth + 1),) if inner else ())
        return Reading(Shape.LIST, text, text, items=items, brackets="{}")
    brackets = _enclosed(text)
    if brackets and brackets != "{}":
        pieces = [piece for piece in split_outside(text[1:-1].replace(";", ","), ",") if piece]
        if 2 <= len(pieces) <= MAX_ITEMS:
            items = tuple(_read(piece, depth + 1) for piece in pieces)
            return Reading(Shape.SEQUENCE, text, text, items=items, brackets=brackets)
    return None


def _read(text: str, depth: int) -> Reading:
    text = tidy(text) if depth else text
    leaf = _leaf(text)
    if leaf.shape is Shape.NUMBER or depth > _MAX_DEPTH or r"\begin" in text:
        if r"\begin" in text and depth <= _MAX_DEPTH:
            return _chain(text, depth) or leaf
        return leaf
    if r"\in " in text:
        name, _, rest = text.partition(r"\in ")
        if is_name(name.strip()) and rest.strip():
            return replace(_read(rest, depth + 1), whole=text, name=name.strip())
    container = _container(text, depth)
    if container is not None:
        return container
    if leaf.shape is Shape.WORDS and "," not in text and not _CONJUNCTION.search(text):
        return leaf
    if r"\cup" in text:
        parts = text.split(r"\cup")
        if all(part.strip() for part in parts) and len(parts) <= MAX_ITEMS:
            return Reading(Shape.UNION, text, text, items=tuple(_read(part, depth + 1) for part in parts))
    named = split_equation(text)
    if len(named) == 2 and is_name(named[0]) and "," in named[1] and read_numeral(named[1]) is not None:
        return _chain(text, depth) or leaf  # x = 1,000 is no list
    if len(named) == 2 and is_name(named[0]) and not re.search(r"[,;]", named[0].replace("(", " (").split("(")[0]):
        items = _items(named[1], depth)
        if items is not None:
            return Reading(Shape.LIST, text, text, name=named[0], items=items)
    items = _items(text, depth)
    if items is not None and (len(items) > 1):
        return Reading(Shape.LIST, text, text, items=items)
    for reader in (_chain, _approximation, _inequality):
        reading = reader(text, depth)
        if reading is not None:
            return reading
    return leaf


_SIMPLE_NAME = re.compile(r"([A-Za-z])(?:_(\w|\{\w+\}))?")


def simple_names_differ(first: str, second: str) -> bool:
    """Whether both names are single letters, and not the same: other letters, or other subscripts where both have
    one; ``|z|`` is not ``z``."""
    first, second = first.replace(" ", ""), second.replace(" ", "")
    if re.fullmatch(r"\|[A-Za-z]\|", first) or re.fullmatch(r"\|[A-Za-z]\|", second):
        return bool(first and second) and first != second
    a, b = _SIMPLE_NAME.fullmatch(first), _SIMPLE_NAME.fullmatch(second)
    if a is None or b is None:
        return False
    return a[1] != b[1] or (a[2] is not None and b[2] is not None and a[2].strip("{}") != b[2].strip("{}"))


def spoken_key(reading: Reading) -> str:
    """What two answers in words have in common if they are the same: no case, articles, punctuation or spaces.
    Operators stay: ``x+y`` is not ``xy``."""
    plain = words(reading.text).casefold()
    text = re.sub(r"\b(?:the|an?|is|are)\b", " ", plain)
    text = text if re.search(r"\w", text) else plain
    return re.sub(r"[^\w:+*/^=<>\u4e00-\u9fff]", "", text)


_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_IN_DEGREES = re.compile(r"(?:\{ ?)?(\d+(?:\.\d+)?) ?°(?: ?\})?")


def expression_text(reading: Reading) -> str:
    """An expression as the algebra system wants it: percent signs escaped, degrees as plain numbers, as radians where
    a trigonometric function takes them.
    """
    text = reading.text
    if _TRIGONOMETRIC.search(text):
        text = _IN_DEGREES.sub(r"(\1 \\cdot \\pi / 180)", text)
    text = text.replace(DEGREE, "")
    return re.sub(r"(?<!\\)%", r"\\%", text)
