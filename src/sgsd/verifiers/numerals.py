"""Number literals: what counts as a number that has been computed.

A literal is an integer, a decimal, a fraction of two integers, a mixed number, or scientific notation, with an optional
sign, percent sign, currency mark and unit. ``28 + 28``, ``7*8``, ``2^5`` or ``\\sqrt{3136}`` are none: a policy that is
rewarded for writing the problem down again learns to do just that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 2_000
_MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number literal, read exactly.

    Attributes:
        value: the exact value; a percentage keeps its face value (``50%`` is 50 with ``percent`` set).
        form: ``integer``, ``decimal``, ``fraction``, ``mixed`` or ``scientific``.
        places: digits after the point, for a decimal.
        digits: significant digits, for a decimal.
        percent: whether a percent sign (or word) follows.
        unit: what else follows, in lower case, or the empty string.
        currency: the currency sign in front, or the empty string.
    """

    value: Fraction
    form: str
    places: int = 0
    digits: int = 0
    percent: bool = False
    unit: str = ""
    currency: str = ""


def _names(text: str) -> list[str]:
    return text.split()


# A literal ends where no digit can follow, grouped or not.
_STOP = r"(?![\d]|[.,]\d)"
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?: \d{3})+|\d+)"
_DECIMAL = rf"(?:(?:{_INTEGER})?\.\d+|{_INTEGER}\.){_STOP}"
_EURO = rf"(?:\d+,\d{{1,2}}|\d+,\d{{4,}}|\d{{1,3}}(?:\.\d{{3}})+,\d+){_STOP}"
_SIGNED = r"[+-]? ?\d+"
_FRACTION = (
    rf"(?:\\frac ?\{{ ?(?P<n1>{_SIGNED}) ?\}} ?\{{ ?(?P<d1>{_SIGNED}) ?\}}"
    rf"|\(?(?P<n2>\d+(?:,\d{{3}})*)\)? ?/ ?(?P<d2>\d+(?:,\d{{3}})*|\( ?{_SIGNED} ?\)|\{{ ?{_SIGNED} ?\}}))"
)
_MIXED = r"(?P<w>\d+)(?: ?\\frac ?\{ ?(?P<n3>\d+) ?\} ?\{ ?(?P<d3>\d+) ?\}|(?: | and )(?P<n4>\d+) ?/ ?(?P<d4>\d+))"
_SCIENTIFIC = (
    rf"(?:(?P<m>\d+(?:\.\d+)?) ?(?:\\times|\\cdot|\*|x) ?)?10 ?(?:\^|\*\*) ?"
    rf"(?:\{{ ?(?P<e1>{_SIGNED}) ?\}}|(?P<e2>{_SIGNED}))"
    r"|(?P<m3>\d+(?:\.\d+)?)[eE](?P<e3>[+-]?\d+)"
)
_REPEATING = r"\d+\.(?P<r1>\d*)(?:\\(?:overline|bar|dot) ?\{(?P<r2>\d+)\}|\((?P<r3>\d+)\))"
_NUMERAL = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<currency>[€£¥₹]?) ?(?P<sign2>[+-]?)(?:(?P<scientific>{_SCIENTIFIC})|(?P<mixed>{_MIXED})"
    rf"|(?P<fraction>{_FRACTION})|(?P<repeating>{_REPEATING})|(?P<decimal>{_DECIMAL})|(?P<integer>{_INTEGER}){_STOP}|(?P<euro>{_EURO}))(?P<rest>.*)",
    re.DOTALL,
)
_PERCENT = re.compile(r"^ ?(?:%|percent(?:age)?\b|pct\b|per cent\b)(?: ?points?\b)?", re.IGNORECASE)
_UNIT_WORDS = r"[A-Za-z°€£¥₹'Ωμµ()/ .\-]"
_UNIT_POWER = r"(?:\^ ?\{? ?-?[1-4] ?\}?)?"
_UNIT = re.compile(rf"[A-Za-z°€£¥₹Ωμµ]{_UNIT_WORDS}*{_UNIT_POWER}(?:[ /]?{_UNIT_WORDS}*{_UNIT_POWER})?")
# After a number, these change its value, deny it or add another: not units.
_NOT_UNITS = re.compile(
    r"\b(?:or|and|not|never|no|nor|isn't|isnt|wrong|incorrect|false|mod|modulo|base|plus|minus|times|divided|multiplied|over|more"
    r"|less|than|least|most|between|from|to|through|until|but|either|maybe|perhaps|factorial|choose|squared|cubed|half"
    r"|quarter|third|thirds|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|millionths?|halves|percent|if|unless|without|where|when|is|are|was|equals?|equal|power|binary|hex|octal|remainder|approximately|about|except"
    r"|tens|hundreds?|thousands?|millions?|billions?|trillions?|quadrillions?|quintillions?|bn|lakhs?|crores?|dozens?|mille"
    r"|permille|doubled|tripled|halved|negated|inverse|short of|below zero|out of|to the|e|i|pi|x|y|z|n|k)\b",
    re.IGNORECASE,
)
_UNSQUARED = re.compile(
    r"\b(?:square|sq\.?|cubic)\b|\b(?:meters?|metres?|feet|inches|units?|cm|m|km)\s+(?:squared|cubed)\b", re.IGNORECASE
)
# A lone letter right after a digit is a variable (0.64N, 3x), unless it is one of these.
_LETTER_UNITS = frozenset(
    _names(
        "m g s h L l cm mm km kg mg ml mL ft in hr hrs min mph lb lbs oz am pm th st nd rd km/h m/s kph deg Hz kWh GB"
        " MB"
    )
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALE = re.compile(rf"^ ?({'|'.join(_SCALES)})\b", re.IGNORECASE)
_ALPHABET = re.compile(r"[ -~°€£¥₹Ωμµ]*")
_NOTED = re.compile(r"\(([A-Za-z ]+)\)")
_HEDGES = frozenset({"approximately", "approx", "approx.", "about", "exactly", "rounded", "in total", "total"})
_POWERED = re.compile(r"(?<![A-Za-z])(mm|cm|m|km|ft|in)([23])(?!\w)")
_BASE_TEN = re.compile(r"^ ?_ ?(?:10|\{ ?10 ?\})$")
_LEAD = re.compile(
    r"^(?:(?:approximately|approx\.?|about|roughly|around|exactly|only|a total of) +)?"
    r"(?:\\text\{ ?(?:Rs\.?|USD|US|EUR|\$) ?\}|Rs\.? ?|USD ?|EUR ?|US )?"
)
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")


def _int(text: str) -> int:
    return int(re.sub(r"[ ,.(){}]", "", text))


def _body(match: re.Match[str]) -> tuple[Fraction, str, int, int] | None:
    """Value, form, places and significant digits of the literal; ``None`` where there is none (a zero denominator)."""
    if match["scientific"]:
        exponent = _int(match["e1"] or match["e2"] or match["e3"])
        if abs(exponent) > _MAX_EXPONENT:
            return None
        mantissa = Fraction(match["m"] or match["m3"] or "1")
        return mantissa * Fraction(10) ** exponent, "scientific", 0, 0
    if match["mixed"]:
        denominator = int(match["d3"] or match["d4"])
        if denominator == 0:
            return None
        return int(match["w"]) + Fraction(int(match["n3"] or match["n4"]), denominator), "mixed", 0, 0
    if match["fraction"]:
        denominator = _int(match["d1"] or match["d2"])
        return (Fraction(_int(match["n1"] or match["n2"]), denominator), "fraction", 0, 0) if denominator else None
    if match["repeating"]:
        return _repeating(match), "fraction", 0, 0
    if match["integer"]:
        return Fraction(_int(match["integer"])), "integer", 0, 0
    if match["euro"]:
        whole, comma, decimals = match["euro"].replace(".", "").partition(",")
        literal = f"{whole}.{decimals}" if comma else whole
    else:
        literal = re.sub(r"[ ,]", "", match["decimal"])
    decimals = literal.partition(".")[2]
    digits = len(literal.replace(".", "").lstrip("0"))
    return Fraction(literal.rstrip(".") if decimals else literal.partition(".")[0]), "decimal", len(decimals), digits


def _repeating(match: re.Match[str]) -> Fraction:
    """``0.1\\overline{6}`` = 0.1 + 6 / 90."""
    whole, fixed, period = match["repeating"].partition(".")[0], match["r1"], match["r2"] or match["r3"]
    scale = 10 ** len(fixed)
    return Fraction(int(whole + fixed), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))


def _suffix(rest: str) -> tuple[bool, int, str] | None:
    """Percent, scale and unit of what follows a literal; ``None`` if it is anything else."""
    if not rest.strip() or _BASE_TEN.match(rest):
        return False, 1, ""
    glued = not rest[0].isspace() and not rest.startswith("\\text")
    percent = _PERCENT.match(rest)
    if percent:
        rest, glued = rest[percent.end() :], False
    rest = _POWERED.sub(r"\1^\2", _TEXT.sub(r" \1 ", rest)).strip()
    scale = _SCALE.match(rest)
    factor = 1
    if scale:
        factor, rest, glued = _SCALES[scale[1].lower()], rest[scale.end() :].strip(), False
    noted = _NOTED.fullmatch(rest)
    rest = noted[1] if noted else rest
    if not rest or rest.lower() in _HEDGES:
        return bool(percent), factor, ""
    if len(rest) > 60 or not _UNIT.fullmatch(rest) or "--" in rest:
        return None
    letters = re.match(r"[A-Za-z]*", rest)
    short = letters is not None and 0 < letters.end() < 3
    if glued and short and re.split(r"[ ^]", rest)[0].rstrip(".") not in _LETTER_UNITS:
        return None
    if _NOT_UNITS.search(_UNSQUARED.sub(" ", rest)) or len(rest.split()) > 6:
        return None
    return bool(percent), factor, re.sub(r"\s+", " ", rest).strip(" .()").lower()


def read_numeral(text: str, *, decimal_comma: bool = False) -> Numeral | None:
    """The number literal that a tidy answer consists of, or ``None``.

    Nothing may be left over: ``56 or 57``, ``156x``, ``5 6`` or ``28+28`` are not literals.

    Args:
        text: a tidy answer.
        decimal_comma: also read ``2,74`` and ``1.234,5`` the European way.
    """
    if len(text) > MAX_DIGITS or not text.isprintable():
        return None
    text = _LEAD.sub("", text.strip())
    if text.startswith("\\text") and (spoken := _TEXT.fullmatch(text)):
        text = spoken[1].strip()
    while len(text) > 2 and text[0] == "(" and text[-1] == ")" and "(" not in text[1:] and ")" not in text[:-1]:
        text = text[1:-1].strip()
    outer = ""
    if text[:2] in {"-(", "+("} and text[-1] == ")" and "(" not in text[2:]:
        outer, text = text[0], text[2:-1].strip()
    match = _NUMERAL.fullmatch(text)
    if match is None or (match["euro"] and not decimal_comma) or not _ALPHABET.fullmatch(text):
        return None
    signs = match["sign"] + match["sign2"] + outer
    if len(signs) > 1:
        return None
    body = _body(match)
    suffix = _suffix(match["rest"])
    if body is None or suffix is None:
        return None
    value, form, places, digits = body
    percent, factor, unit = suffix
    return Numeral((-value if "-" in signs else value) * factor, form, places, digits, percent, unit, match["currency"])


_ONES = _names(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
_TENS = _names("twenty thirty forty fifty sixty seventy eighty ninety")
_CARDINALS = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_PART = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PARTS = _PART | {f"{word}s": n for word, n in _PART.items()} | {"halves": 2}


def spoken_number(text: str) -> Numeral | None:
    """A number in English words: ``fifty-six``, ``two hundred and five``, ``minus three``, ``one half``."""
    if len(text) > 100 or not re.fullmatch(r"[A-Za-z\- ]+", text):
        return None
    tokens = [token for token in re.split(r"[\s\-]+", text.lower()) if token and token != "and"]
    sign = 1
    if len(tokens) > 1 and tokens[0] in {"minus", "negative"}:
        sign, tokens = -1, tokens[1:]
    parts = _PARTS.get(tokens[-1]) if len(tokens) > 1 else None
    if parts is not None:
        tokens = ["one" if token in {"a", "an"} else token for token in tokens[:-1]]
    total = group = 0
    for token in tokens:
        if token in _CARDINALS:
            value = _CARDINALS[token]
            if group % 100 and not (group % 100 >= 20 and group % 10 == 0 and 0 < value < 10):
                return None
            group += value
        elif token == "hundred" and 0 < group < 100:
            group *= 100
        elif token in {"thousand", "million", "billion"} and group:
            total, group = total + group * _SCALES[token], 0
        else:
            return None
    if not tokens:
        return None
    number = Fraction(sign * (total + group), parts or 1)
    return Numeral(number, "fraction" if parts else "integer")


def rounds_to(exact: Fraction, decimal: Numeral) -> bool:
    """Whether a decimal of at least four significant digits is ``exact`` correctly rounded to its own places."""
    if decimal.form != "decimal" or decimal.digits < 4:
        return False
    return abs(exact - decimal.value) * 2 * 10**decimal.places <= 1


def terminates(value: Fraction) -> bool:
    """Whether the value has a finite decimal expansion."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def same_number(reference: Numeral, given: Numeral) -> bool:
    """Whether two literals state the same number.

    Exact, but for two allowances. A fraction without a finite decimal expansion may be given as a decimal of at least
    four significant digits, correctly rounded, and the other way round. And a percent sign may be a unit that one side
    left out: ``p%`` for p always, ``100p%`` for p only where p is no integer, or is 0 or 1.
    """
    if _conflict(reference, given):
        return False
    if reference.percent == given.percent:
        return _close(reference, given.value, given)
    if reference.percent:
        return _close(reference, given.value, given) or (
            (given.value.denominator != 1 or abs(given.value) <= 1) and reference.value == given.value * 100
        )
    proper = abs(reference.value) <= 1
    if (reference.value.denominator != 1 or proper) and given.value == reference.value * 100:
        return True
    return not proper and given.value == reference.value


def _close(reference: Numeral, value: Fraction, given: Numeral) -> bool:
    if reference.value == value:
        return True
    if given.form == "decimal" and reference.form in {"fraction", "mixed"} and not terminates(reference.value):
        return rounds_to(reference.value, given)
    if reference.form == "decimal" and given.form in {"fraction", "mixed"} and not terminates(value):
        return rounds_to(value, reference)
    return False


# One measure a line, its units by their canonical names; a measure's units exclude each other.
_UNITS = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs",
    "oz": "oz ounce ounces",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "ms": "ms millisecond milliseconds",
    "s": "s sec second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "cent": "cent cents",
    "dollar": "dollar dollars usd $",
    "euro": "euro euros eur €",
    "sterling": "£",
    "yen": "yen ¥",
    "rupee": "rupee rupees ₹",
    "degree": "° degree degrees",
    "radian": "radian radians rad",
    "celsius": "°c",
    "fahrenheit": "°f",
    "am": "am a.m",
    "pm": "pm p.m",
    "mph": "mph",
    "km/h": "km/h kph kmh",
    "m/s": "m/s",
    "mb": "mb",
    "gb": "gb",
    "kwh": "kwh",
    "mwh": "mwh",
} | {
    name: name
    for name in _names("january february march april may june july august september october november december")
}
_CANONICAL = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_POWER = re.compile(r"^(.*?) ?\^ ?\{? ?([1-4]) ?\}?$")


def _measure(unit: str) -> tuple[str, int] | None:
    """A unit's canonical name and power: ``square feet`` and ``ft^2`` are ``("ft", 2)``; ``None`` if it is unknown."""
    tokens = unit.split()
    power = next((n for word, n in _POWERS.items() if word in (tokens[0].rstrip("."), tokens[-1])), 1) if tokens else 1
    if power > 1:
        unit = " ".join(token for token in tokens if token.rstrip(".") not in _POWERS)
    raised = _POWER.fullmatch(unit)
    if raised:
        unit, power = raised[1], int(raised[2])
    name = _CANONICAL.get(unit) or _CANONICAL.get(unit.replace(" ", ""))
    return None if name is None else (name, power)


def _conflict(first: Numeral, second: Numeral) -> bool:
    """Two known units that differ: 5 km is not 5 m. An unknown unit contradicts nothing."""
    a, b = (_measure(numeral.unit or numeral.currency) for numeral in (first, second))
    if a is None or b is None or a == b:
        return False
    # Degrees may be short for either.
    return {a[0], b[0]} not in ({"degree", "celsius"}, {"degree", "fahrenheit"})
