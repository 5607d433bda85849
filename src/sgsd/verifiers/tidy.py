"""One spelling for the many ways of writing the same mathematics. Text to text, standard library only.

Every function is linear in the length of its input: these run on whatever a model writes.
"""

from __future__ import annotations

import re

_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "‐": "-",
        "‑": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∗": "*",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "≤": r"\leq ",
        "⩽": r"\leq ",
        "≥": r"\geq ",
        "⩾": r"\geq ",
        "≠": r"\neq ",
        "≈": r"\approx ",
        "≡": r"\equiv ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "Ø": r"\emptyset ",
        "±": r"\pm ",
        "°": r"^\circ ",
        "…": r"\ldots ",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "，": ", ",
        "；": "; ",
        "：": ":",
        "（": "(",
        "）": ")",
        "。": ".",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u3000": " ",
        "\t": " ",
        "\n": " ",
        "\r": " ",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "²": "^{2}",
        "³": "^{3}",
        "₀": "_{0}",
        "₁": "_{1}",
        "₂": "_{2}",
        "₃": "_{3}",
    }
)

# A doubled backslash before one of these is an escaped command, not the end of a matrix row.
_COMMANDS = (
    "boxed|fbox|frac|dfrac|tfrac|cfrac|sqrt|left|right|text|textbf|mathrm|cdot|times|pi|leq|le|geq|ge|neq|ne|cup|cap"
    "|infty|pm|circ|in|log|sin|cos|tan|quad|qquad"
)
_DOUBLED = re.compile(rf"\\\\(?=(?:{_COMMANDS})(?![A-Za-z]))")
_ROOT = re.compile(r"√\s*(?:\(([^()]{1,200})\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_SPACES = re.compile(r"\\(?:quad|qquad)(?=[^A-Za-z]|[a-z]_|$)|(?<!\\)\\[;:> ]|\\(?:hspace|vspace|hskip)\{[^{}]*\}|~")
_THIN = re.compile(r"(?<!\\)\\,")
_SIZES = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|bigg|Bigg|middle)(?![A-Za-z])\.?")
_STYLES = re.compile(
    r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|phantom\{[^{}]*\}|label\{[^{}]*\})(?![A-Za-z])"
)
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BARE_FRACTION = re.compile(r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})")
_BARE_ROOT = re.compile(r"\\sqrt\s*(\d|[A-Za-z])")
_TEXTS = re.compile(
    r"\\(?:textbf|textrm|textit|textnormal|textsf|texttt|text|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)\s*(?=\{)"
)
_TEXT_BODY = re.compile(r"\\text\{([^{}]*)\}")
_RELATIONS = (
    (re.compile(r"\\(?:le|leqslant|leqq)(?![A-Za-z])|<=|=<"), r"\\leq "),
    (re.compile(r"\\(?:ge|geqslant|geqq)(?![A-Za-z])|>="), r"\\geq "),
    (re.compile(r"\\(?:ne|not\s*=)(?![A-Za-z])|!=|\\not="), r"\\neq "),
    (re.compile(r"\\(?:lt)(?![A-Za-z])"), "<"),
    (re.compile(r"\\(?:gt)(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:doteq|coloneqq)(?![A-Za-z])|:="), "="),
    (re.compile(r"\\(?:simeq|thickapprox)(?![A-Za-z])"), r"\\approx "),
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\\deg(?![A-Za-z])")
_ENDS = " \t\n\r.,;:`*_"
_STARTS = " \t\n\r,;:`*_"
_BLANKS = re.compile(r" {2,}")
_BOX_WRAP = re.compile(r"^\\(?:boxed|fbox)\s*\{(.*)\}$", re.DOTALL)

DEGREE = "°"


def strip_delimiters(text: str) -> str:
    r"""Without the marks that open and close mathematics: ``$``, ``\(``, ``\)``, ``\[``, ``\]``. ``\\[`` stays."""
    text = text.replace(r"\$", " ").replace("$", " ")
    return re.sub(r"(?<!\\)\\[()\[\]]", " ", text)


def unwrap(text: str) -> str:
    r"""Without one pair of braces, or one ``\boxed{}``, around the whole."""
    text = text.strip()
    box = _BOX_WRAP.match(text)
    if box and balanced(box[1]):
        return box[1].strip()
    if len(text) > 2 and text[0] == "{" and text[-1] == "}" and balanced(text[1:-1]):
        return text[1:-1].strip()
    return text


def balanced(text: str) -> bool:
    """Whether every brace closes one that was open. Escaped braces do not count."""
    depth = 0
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


def tidy(text: str) -> str:
    """The canonical spelling of an answer: what every comparison starts from.

    Delimiters, sizes, styles and spacing commands go; unicode operators become commands; short fractions and roots get
    their braces; every way of setting text becomes ``\\text{}``; degrees become ``°``. Digits are left alone: only the
    ASCII ones are digits to us, and no character is ever dropped between two of them, but in ``1{,}234``.
    """
    text = _DOUBLED.sub(r"\\", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = text.translate(_UNICODE)
    text = strip_delimiters(text)
    text = re.sub(r"\s*\{\s*,\s*\}\s*", ",", text)
    text = re.sub(r",\s*\\!\s*", ",", text).replace(r"\!", " ")
    text = _SPACES.sub(" ", text)
    text = _THIN.sub(" ", text)
    text = _SIZES.sub("", text)
    text = _STYLES.sub(" ", text)
    text = _FRACTIONS.sub(r"\\frac", text)
    text = _BARE_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _TEXTS.sub(r"\\text", text)
    text = re.sub(r"\\text ?\{ ?([+-]) ?\}", r"\1", text)
    text = re.sub(r"\\frac ?\{ ?\\text ?\{([^{}]*)\} ?\} ?\{ ?\\text ?\{([^{}]*)\} ?\}", r"\\text{\1/\2}", text)
    text = re.sub(r"_ ?\{ ?\\text ?\{([A-Za-z]+)\} ?\}", r"_{\1}", text)
    text = re.sub(r"_ ?\{ ?\\([A-Za-z]+) ?\}", r"_{\1}", text)
    text = re.sub(r"\\varnothing(?![A-Za-z])|\\\{ ?\\\}", r"\\emptyset ", text)
    for pattern, replacement in _RELATIONS:
        text = pattern.sub(replacement, text)
    text = _DEGREES.sub(DEGREE, text).replace(r"\%", "%")
    text = _BLANKS.sub(" ", text).strip()
    while (inner := unwrap(text.rstrip(_ENDS).lstrip(_STARTS))) != text:
        text = inner
    text = re.sub(r"^= *(?=[^=])", "", text)
    return text.rstrip("\\").strip(_ENDS) if text.endswith("\\") and not text.endswith("\\\\") else text


def words(text: str) -> str:
    r"""The text with ``\text{…}`` opened."""
    previous = None
    for _ in range(4):
        if text == previous:
            break
        previous, text = text, _TEXT_BODY.sub(r" \1 ", text)
    return _BLANKS.sub(" ", text).rstrip(_ENDS).lstrip(_STARTS)


def key(text: str) -> str:
    """Two tidy answers with one key are the same answer, letter for letter. Spaces and needless braces do not count."""
    text = words(text)
    text = re.sub(r"\s*\\cdot\s*", r"\\times ", text)
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\\(?=[{}])", "", text)
    plain = re.sub(r"\s+", "", text)
    letters = re.sub(r"[^A-Za-z]", "", plain)
    return plain.casefold() if len(letters) > 1 and "\\" not in plain and re.search(r"[A-Za-z]{2}", plain) else plain
