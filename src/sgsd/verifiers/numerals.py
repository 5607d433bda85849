"""Number literals: what counts as a number that has been computed.

These are integers, decimals, fractions of two integers, mixed numbers, scientific and repeating notation, with a sign,
percent sign, currency mark and unit. ``28 + 28`` and ``2^5`` are not: a policy that is rewarded for copying the problem
learns to copy it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from sgsd.verifiers.tidy import TEXT, names

MAX_DIGITS = 2_000
_MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number literal, read exactly.

    Attributes:
        value: the exact value; a percentage keeps its face value (``50%`` is 50 with ``percent`` set).
        form: ``integer``, ``decimal``, ``fraction``, ``mixed``, ``scientific`` or ``repeating``.
        places: digits after the point, for a decimal.
        digits: significant digits, for a decimal.
        percent: whether a percent sign (or word) follows.
        unit: the unit, in lower case, or the empty string.
        currency: the currency sign in front, or the empty string.
    """

    value: Fraction
    form: str
    places: int = 0
    digits: int = 0
    percent: bool = False
    unit: str = ""
    currency: str = ""


_INTEGER = r"(?:(?!0)\d{1,3}(?:(?:,\d{3})+|(?:\.\d{3}){2,}|(?:[ ]\d{3})+|(?:'\d{3})+)|\d+)"
_STOP = r"(?!\d|[.,]\d|[ ]\d{3},\d)"  # no further digit follows, grouped or not
_SIGNED = r"[+-]?[ ]?\d+"
_GROUPED = r"\d+(?:,\d{3})*"
_FRACTION = re.compile(rf" ?\\frac ?\{{ ?({_SIGNED}) ?\}} ?\{{ ?({_SIGNED}) ?\}}", re.ASCII)
_NUMERAL = re.compile(
    rf"""
    (?P<sign>[+-]?)\ ?(?P<currency>[€£¥₹₩₽]?)\ ?(?P<sign2>[+-]?)(?:
      (?:(?P<m>\d+(?:\.\d+)?)\ ?(?:\\times|\\cdot|\*|x)\ ?)?10\ ?\^\ ?(?P<exponent>[{{(]\ ?{_SIGNED}\ ?[}})]|{_SIGNED})
    | (?P<m2>\d+(?:\.\d+)?)[eE](?P<exponent2>[+-]?\d+)
    | (?:(?P<whole>\d+)(?:\ (?:and\ )?|(?=\{{)))?
      (?P<above>\(?{_GROUPED}\)?|\{{{_SIGNED}\}})\ ?/\ ?(?P<below>{_GROUPED}|[({{]\ ?{_SIGNED}\ ?[)}}])
    | (?P<fixed>\d+\.\d*)(?:\\(?:overline|bar|dot)\ ?\{{(?P<r1>\d+)\}}|\((?P<r2>\d+)\))
    | (?P<decimal>(?:{_INTEGER})?\.\d+|{_INTEGER}\.){_STOP}
    | (?P<integer>{_INTEGER}){_STOP}
    | (?P<comma>\d+,\d{{1,2}}|0,\d{{3}}|\d+,\d{{4,}}|\d{{1,3}}(?:[. ]\d{{3}})+,\d+){_STOP}
    )(?P<rest>.*)""",
    re.DOTALL | re.VERBOSE | re.ASCII,
)
_PERCENT = re.compile(r" *(?:%|percent(?:age)?\b|pct\b|per cent\b)(?: ?points?\b)?", re.IGNORECASE)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_FOREIGN_SCALES = {
    "тысяч\\w{0,3}|тыс\\.?|tausend|tsd\\.?|mil|mila|mille|tysi\\w{1,5}|tys\\.?|tisíc\\w{0,2}|duizend|tusen|bin"
    "|nghìn|ngàn|ribu": 10**3,
    "миллион\\w{0,3}|млн\\.?|mill?i(?:ons|ones|ón|one|oni|onen|oen|onów|ony|on|yon)|millones|millón|milh(?:ão"
    "|ões)|mio\\.?": 10**6,
    "миллиард\\w{0,3}|млрд\\.?|mill?iard\\w{0,3}|milyar|mrd\\.?|mld\\.?": 10**9,
    "grand|ألف|آلاف|हज़ार|हजार": 10**3,
    "مليون|ล้าน|triệu|juta|milyon|mln": 10**6,
    "مليار": 10**9,
    "조": 10**12,
    "백": 10**2,
    "लाख": 10**5,
    "करोड़": 10**7,
    "[万萬만]": 10**4,
    "[亿億억]": 10**8,
    "[千천](?![米克瓦卡])": 10**3,
    "打(?!\\w{0,2}[开印])": 12,
}
"""Words for powers of ten (and for twelve) in other languages, as patterns."""
FOREIGN_SCALE = rf"(?:{'|'.join(_FOREIGN_SCALES)})"
_ENDED = r"(?![A-Za-zÀ-ɏ\u0400-\u04ff])"
_SCALE = re.compile(rf" ?(?:({'|'.join(_SCALES)})\b|({FOREIGN_SCALE}){_ENDED})", re.IGNORECASE)
_MARKS = "\u0900-\u0965\u0970-\u097f\u0e00-\u0e4f"  # Devanagari and Thai write vowels with them
_UNIT = re.compile(rf"(?=[^\W_]|[°€£¥₹₩₽¢])(?:[^\W\d_]|[{_MARKS}°€£¥₹₩₽¢'()/ .\-]|\^ ?\{{? ?-?[1-4] ?\}}?)*")
_FOREIGN_LETTER = re.compile(r"(?<!\w)[^\W\d_A-Za-z](?!\w)")
_EACH = (
    "day|week|month|year|hour|hr|minute|min|second|sec|night|person|student|child|kid|worker|lb|pound"
    "|ounce|oz|kg|gram|kilogram"
    "|gallon|gal|liter|litre|mile|mi|km|meter|metre|foot|ft|yard|inch|item|unit|piece|bag|box|bottle|book|page|ticket|game|cup"
    "|egg|apple|slice|pack|card|class"
)
PER = re.compile(rf" ?/ ?(?=(?:\\text ?\{{ ?)?(?:{_EACH})s?\b)")
"""The stroke before what a rate is for."""
_POWERED = re.compile(r"(?<![A-Za-z])(mm|cm|m|km|ft|in)([23])(?!\w)")
# After a number, these change its value, deny it or add another: not units.
_NOT_UNITS = re.compile(
    r"\b(?:or|and|not|never|no|nope|nor|isn't|isnt|wrong|incorrect|false|mod|modulo|base|plus|minus|times(?!\Z)"
    r"|divided|multiplied"
    r"|point (?:zero|one|two|three|four|five|six|seven|eight|nine)|ppm|permil|basis|reversed|followed|minimum"
    r"|maximum|hexadecimal|debt|(?:one|two|three|four|five|six|seven|eight|nine)(?=\Z)|coma|comma|menos|moins|bajo|dutzend|docenas?|demi|halb|negativ[oea]?|juta|mln"
    r"|triệu|tỷ"
    r"|over|more|less|than|least|most|between|carré|cuadrado|quadrado|quadrato|quadrat|cube|cubo|квадрате|кубе"
    r"|больше|from|to|through|until|but|either|maybe|perhaps|factorial|choose|squared|cubed|half"
    r"|quarter|thirds?|halves|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w{3,5}teen|\w{3,5}tie)ths?"
    r"|(?:hundred|thousand|\w{1,5}illion)ths?|percent|if|unless|without"
    r"|where|when|is|are|was|equals?|power|binary|hex|octal|remainder|approximately|about|except|tens|hundreds?"
    r"|thousands?|millions?|billions?|trillions?|quadrillions?|quintillions?|bn|lakhs?|crores?|dozens?|mille"
    r"|permille"
    r"|doubled|tripled|halved|negated|inverse|short of|below zero|out of|e|i|pi|x|y|z|n|k"
    r"|mil|mill[oó]n(?:es)?|milh(?:ão|ões)|millionen|tausend|milliarden?|milliards?|тысяч\w*|миллион\w*|миллиард\w*"
    r"|nicht|kein|oder|pas|ou|non|не|или)\b|[一二三四五六七八九〇零百千万萬亿億兆十半或不非至到倍]"
    r"|(?:백|천|만|억|조|ล้าน|مليار|또는|아니|लाख|हज़ार|हजार|सौ|करोड़|ألف|مليون|مئة)|\b(?-i:[MBT])\b"
    r"|\b(?:gross|score|ish|(?:square|cube) root|roots?|opposite|negative|too|off|double|triple)\b"
    r"|\b(?:falsch|faux|falso|incorrect\w*|errad\w*)\b|[错錯误誤]",
    re.IGNORECASE,
)
_UNSQUARED = re.compile(
    r"\b(?:square|sq\.?|cubic)\b|\b(?:meters?|metres?|feet|inches|units?|cm|m|km|per second) (?:squared|cubed)\b",
    re.IGNORECASE,
)
# A lone letter right after a digit is a variable (0.64N, 3x), unless it is one of these.
_GLUED_UNITS = frozenset(
    names(
        "m g s h L l cm mm km kg mg ml mL ft in hr hrs min mph lb lbs oz am pm th st nd rd km/h m/s kph deg Hz kWh GB"
        " MB"
    )
)
_VARIABLES = frozenset("abcdefijknopqrtuvwxyzBDEGHIKMOPQRSTUXYZ")
_LEAD = re.compile(
    r"\A(?:(?:approximately|approx\.?|about|roughly|around|exactly|only|a total of) +)?"
    r"(?:\\text\{ ?(?:Rs\.?|USD|US|EUR|\$) ?\}|Rs\.? ?|US |(?:USD|EUR|GBP|INR|CAD|AUD|CNY|RMB|JPY) ?)?"
)
_COMMENT = re.compile(
    r"\\text ?\{( ?(?:(?:approximately|approx\.?|about|roughly|around|exactly)|\([a-z][^{}()\d]*\)"
    r"|\((?:to )?\d d\.?p\.?\)) ?)\}"
)
_ASIDE = re.compile(
    r"(?: ?\((?:(?:since|because|as|approximately|approx\.?|about|exactly|rounded)\b[^()]*|(?:to )?\d d\.?p\.?) ?\)"
    r"|, (?:obviously|clearly|exactly|of course|as required|as desired|in total))$"
)
_HEDGES = frozenset({"approximately", "approx", "about", "exactly", "rounded", "in total", "total"})


def _int(text: str) -> int:
    return int(re.sub(r"[ ,.'(){}]", "", text))


def _body(match: re.Match[str]) -> Numeral | None:
    """The literal without sign and unit; ``None`` if it has no value (a zero denominator, an exponent too large)."""
    if exponent := match["exponent"] or match["exponent2"]:
        power = _int(exponent) if len(exponent) < 10 else _MAX_EXPONENT + 1
        if abs(power) > _MAX_EXPONENT:
            return None
        value = Fraction(match["m"] or match["m2"] or "1") * Fraction(10) ** power
        # 5600 × 10^-2 is a quotient still to be computed.
        return Numeral(value, "fraction" if power < 0 and value.denominator == 1 else "scientific")
    if match["above"]:
        above, below = _int(match["above"]), _int(match["below"])
        if match["whole"]:
            return Numeral(int(match["whole"]) + Fraction(above, below), "mixed") if 0 < above < below else None
        return Numeral(Fraction(above, below), "integer" if below == 1 else "fraction") if below else None
    if match["fixed"]:
        period, fixed = match["r1"] or match["r2"], match["fixed"].partition(".")[2]
        tail = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
        return Numeral(Fraction(match["fixed"] + "0") + tail, "repeating")
    if match["integer"]:
        return Numeral(Fraction(_int(match["integer"])), "integer")
    if match["comma"]:
        literal = re.sub("[. ]", "", match["comma"]).replace(",", ".")
    else:
        literal = re.sub(r"[ ,']", "", match["decimal"])
    places = len(literal.partition(".")[2])
    return Numeral(Fraction(literal + "0"), "decimal", places, len(literal.replace(".", "").lstrip("0")))


def read_unit(rest: str) -> tuple[bool, int, str] | None:
    """Percent sign, scale and unit in the text after a literal; ``None`` if it is anything else."""
    if not rest.strip() or re.fullmatch(r" ?_ ?(?:10|\{ ?10 ?\})", rest):
        return False, 1, ""
    rest = f" per {rest[stroke.end() :]}" if (stroke := PER.match(rest)) else rest
    glued = not rest.startswith((" ", "\\text"))
    rest = re.sub(r"(?<=[A-Za-z}°]) ?\\cdot ?(?=[A-Za-z\\])", " ", rest)
    rest = TEXT.sub(r" \1 ", rest)
    percent = _PERCENT.match(rest)
    if percent:
        rest, glued = rest[percent.end() :], False
    rest = _POWERED.sub(r"\1^\2", rest).strip()
    rest = re.sub(
        r"([a-z]) +([a-z]+) ?\^ ?\{-([1-4])\}$", lambda m: f"{m[1]}/{m[2]}" + f"^{m[3]}" * (m[3] != "1"), rest
    )  # m s^{-2}
    scale = _SCALE.match(rest)
    factor = 1
    if scale:
        factor = _SCALES[scale[1].lower()] if scale[1] else _foreign_scale(scale[2])
        rest, glued = rest[scale.end() :].strip(), False
    noted = re.fullmatch(r"\(([^\W\d_](?:[^\W\d_]| )*)\)", rest)
    rest = (noted[1] if noted else rest).rstrip(" .")
    if rest.lower() in _HEDGES or not rest:
        return bool(percent), factor, ""
    if len(rest) > 60 or not _UNIT.fullmatch(rest) or "--" in rest or len(rest.split()) > 6:
        return None
    letters = re.match(r"[A-Za-z]*", rest)
    short = letters is not None and 0 < letters.end() < 3
    first = re.split(r"[ ^]", rest)[0]
    if (glued and short and first not in _GLUED_UNITS) or (len(first) == 1 and first in _VARIABLES):
        return None
    if _NOT_UNITS.search(_UNSQUARED.sub(" ", rest)) or not _plain_letters(rest):
        return None
    return bool(percent), factor, " ".join(rest.split()).strip(" .()").lower()


def _foreign_scale(word: str) -> int:
    return next(n for pattern, n in _FOREIGN_SCALES.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def _plain_letters(text: str) -> bool:
    """Whether a unit has no exponents, numerals or letters of mathematics (``⁶``, ``Ⅳ``, ``ｘ``), and no single letter
    of another alphabet, which is a variable; a Chinese character is a word."""
    if unicodedata.normalize("NFKC", text).replace("μ", "µ") != text.replace("μ", "µ"):
        return False
    return not any(
        letter[0] not in "Ωµμ" and letter[0].lower() != letter[0].upper() for letter in _FOREIGN_LETTER.finditer(text)
    )


_UNENDING = re.compile(r"(-?\d{1,20}\.)(\d{3,60}) ?\\(?:ldots|cdots|dots)")


def _with_period(whole: str, digits: str) -> str | None:
    r"""``0.1666\\ldots`` in the notation ``0.1(6)``; ``None`` if no digits come three times at its end."""
    for length in range(1, len(digits) // 3 + 1):
        period = digits[-length:]
        if digits.endswith(period * 3):
            return f"{whole}{digits[: -3 * length]}({period})"
    return None


def read_numeral(text: str, *, decimal_comma: bool = False) -> Numeral | None:
    """The number literal that a tidy answer consists of; ``None`` if anything is left over (``56 or 57``, ``156x``).

    With ``decimal_comma``, ``2,74`` and ``1.234,5`` are read with a decimal comma, too.
    """
    if len(text) > MAX_DIGITS or not text.isprintable():
        return None
    text = text.strip()
    if text.startswith("\\text") and (spoken := TEXT.fullmatch(text)):
        text = spoken[1].strip()
    text = _ASIDE.sub("", _LEAD.sub("", _COMMENT.sub(r" \1 ", text).strip(), count=1)).strip()
    while bare := re.fullmatch(r"\(([^(),]+)\)", text):  # (1,200) is a pair
        text = bare[1].strip()
    text = re.sub(r"^- ?\(([^-+(),]*(?:/|\\frac)[^-+(),]*)\)$", r"-\1", text)
    if unending := _UNENDING.fullmatch(text):
        text = _with_period(*unending.groups()) or text
    match = _NUMERAL.fullmatch(_FRACTION.sub(r"{\1}/{\2}", text))
    if match is None or (match["comma"] and not decimal_comma):
        return None
    signs = match["sign"] + match["sign2"]
    suffix = read_unit(match["rest"])
    body = _body(match)
    if body is None or suffix is None or len(signs) > 1:
        return None
    percent, factor, unit = suffix
    value = (-body.value if signs == "-" else body.value) * factor
    return replace(body, value=value, percent=percent, unit=unit, currency=match["currency"])


_ONES = names(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = names("twenty thirty forty fifty sixty seventy eighty ninety")
_CARDINALS = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_PART = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PARTS = _PART | {f"{word}s": n for word, n in _PART.items()} | {"halves": 2}


_SPOKEN = frozenset((*_CARDINALS, *_PARTS, "hundred", "thousand", "million", "billion", "times"))


def spoken_number(text: str) -> Numeral | None:
    """A number in English words: ``fifty-six``, ``two hundred and five``, ``minus three``, ``one half``."""
    if len(text) > 100 or not re.fullmatch(r"[A-Za-z]+(?:[ -][A-Za-z]+)*", text):
        return None
    value, _, unit = text.rpartition(" ")
    if value and unit.lower() not in _SPOKEN and read_unit(f" {unit}") == (False, 1, unit.lower()):
        spoken = spoken_number(value)  # twelve apples
        return spoken and replace(spoken, unit=unit.lower())
    whole, _, part = text.rpartition(" and ")
    if whole and re.fullmatch(rf"\w+[ -](?:{'|'.join(_PARTS)})", part):  # two and a half
        first, second = spoken_number(whole), spoken_number(part)
        if first and second and first.form == "integer" and first.value > 0 and 0 < second.value < 1:
            return Numeral(first.value + second.value, "mixed")
    tokens = [token for token in re.split("[ -]", text.lower()) if token != "and"]
    negative = len(tokens) > 1 and tokens[0] in {"minus", "negative"}
    tokens = tokens[negative:]
    parts = _PARTS.get(tokens[-1]) if len(tokens) > 1 else None
    if parts is not None:
        tokens = ["one" if token in {"a", "an"} else token for token in tokens[:-1]]
    total = group = 0
    for token in tokens:
        value = _CARDINALS.get(token)
        if value is not None and (group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0 and 0 < value < 10)):
            group += value
        elif token == "hundred" and 0 < group < 100:
            group *= 100
        elif token in {"thousand", "million", "billion"} and group:
            total, group = total + group * _SCALES[token], 0
        else:
            return None
    value = Fraction((total + group) * (-1 if negative else 1), parts or 1)
    return Numeral(value, "fraction" if parts else "integer") if tokens else None


def same_number(reference: Numeral, given: Numeral) -> bool:
    """Whether two literals state the same number: they are equal, with two exceptions.

    A fraction without a finite decimal expansion equals a decimal that rounds it to at least four significant digits,
    whichever is the reference. A percentage p% equals p/100 if that is not an integer or at most 1 in absolute value,
    and p unless the reference is a plain number of at most 1. ``112/2`` does not state 56.
    """
    units = reference.unit or reference.currency, given.unit or given.currency
    if units_differ(*units) or (
        reference.percent != given.percent and any(_measure(one)[0] in _CANONICAL.values() for one in units)
    ):
        return False
    if given.value.denominator == 1 and given.form == "fraction" and reference.form != "fraction":
        return False
    if reference.percent == given.percent:
        return _close(reference, given) or _close(given, reference)
    if reference.percent:
        shifted = given.value.denominator != 1 or abs(given.value) <= 1
        return reference.value == given.value or (shifted and reference.value == given.value * 100)
    proper = abs(reference.value) <= 1
    shifted = proper or reference.value.denominator != 1
    return (shifted and given.value == reference.value * 100) or (not proper and given.value == reference.value)


def _close(exact: Numeral, decimal: Numeral) -> bool:
    if exact.value == decimal.value:
        return True
    denominator = exact.value.denominator
    non_terminating = (10 ** denominator.bit_length()) % denominator != 0
    return non_terminating and exact.form in {"fraction", "mixed", "repeating"} and rounds_to(exact.value, decimal)


def rounds_to(exact: Fraction, literal: Numeral, digits: int = 4) -> bool:
    """Whether a decimal of at least ``digits`` significant digits is ``exact``, correctly rounded."""
    off = abs(exact - literal.value) * 10**literal.places
    return literal.form == "decimal" and literal.digits >= digits and off * 2 <= 1


def approximates(exact: Fraction, literal: Numeral) -> bool:
    """Whether a literal is ``exact``, rounded or truncated at its last digit."""
    exact = exact * 100 if literal.percent else exact
    off = abs(exact - literal.value)
    units = off * 10**literal.places
    return units * 2 <= 1 or (units < 1 and abs(literal.value) < abs(exact) and literal.value != 0)


# Units, one measure a line; semicolons separate units, spaces the spellings of one. Different units exclude each other.
_UNITS = """
mm millimeter millimetre; cm centimeter centimetre 厘米; m meter metre 米; km kilometer kilometre 千米 公里
in inch inches; ft foot feet; yd yard; mi mile
mg milligram; g gram 克; kg kilogram 千克 公斤; lb; oz ounce; ml milliliter millilitre; l liter litre
ms millisecond; s sec second; min minute; h hr hour; day; week; month; year; am a.m; pm p.m
cent ¢; dollar usd $; euro eur €; £; yen ¥; rupee ₹
° degree; radian rad; °c; °f; mph milesperhour milesanhour; km/h kph kmh kilometersperhour kmperhour
m/s meterspersecond metrespersecond meterpersecond; mb; gb; kwh; mwh
january; february; march; april; may; june; july; august; september; october; november; december
"""
_CANONICAL = {
    spelling: unit.split()[0]
    for unit in _UNITS.replace("\n", ";").split(";")
    for name in unit.split()
    for spelling in (name, f"{name}s")
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_POWER = re.compile(r" ?\{? ?([1-4]) ?\}?")


def _measure(unit: str) -> tuple[str, int]:
    """A unit's canonical name and power: ``square feet`` and ``ft^2`` are ``("ft", 2)``."""
    powers = [_POWERS[token.rstrip(".")] for token in unit.split() if token.rstrip(".") in _POWERS]
    unit = " ".join(token for token in unit.split() if token.rstrip(".") not in _POWERS)
    name, _, exponent = unit.partition("^")
    if raised := _POWER.fullmatch(exponent):
        unit, powers = name.strip(), [int(raised[1])]
    return _CANONICAL.get(unit) or _CANONICAL.get(unit.replace(" ", "")) or unit, powers[0] if powers else 1


def units_differ(first: str, second: str) -> bool:
    """Whether two units contradict each other: 5 km is not 5 m, 5 oranges are not 5 apples, but 5 may be either."""
    if not first or not second:
        return False
    a, b = _measure(first), _measure(second)
    if {"am", "pm"} & {a[0], b[0]}:
        return a != b
    known = {a[0] in _CANONICAL, b[0] in _CANONICAL}
    if known == {True}:
        return a != b and {a[0], b[0]} not in ({"°", "°c"}, {"°", "°f"})  # degrees may be short for either
    if known == {False} and first.isascii() and second.isascii():
        stems = [{word[:3] for word in re.findall(r"[a-z]{3,}", unit)} for unit in (first, second)]
        return bool(stems[0] and stems[1]) and not stems[0] & stems[1]
    return False
