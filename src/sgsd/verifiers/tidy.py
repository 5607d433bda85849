"""Rewrites mathematics to one canonical spelling. Text to text, standard library only.

The input is untrusted model output: white space is collapsed first, and every pattern takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def names(text: str) -> list[str]:
    """The words of a text: long lists of words are easier to read and extend as a text."""
    return text.split()


_CHARACTERS = str.maketrans(
    dict(zip("−–‐‑‒﹣－∗÷⁄∕’‘“”（）。．；：，￥", "-------*///''\"\"()..;:,¥", strict=True))
    | {
        old: f"\\{name} "
        for old, name in zip(
            "×·⋅πθαβγλμφω≤⩽≥⩾≠≈≡∞∪∩∈∅±…",
            names(
                "times cdot cdot pi theta alpha beta gamma lambda mu phi omega leq leq geq geq neq approx equiv infty"
                " cup cap in emptyset pm ldots"
            ),
            strict=True,
        )
    }
    | {digit: f"_{{{n}}}" for n, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | dict(zip("ℝℤℕℚℂ~", (*(rf"\mathbb{{{name}}}" for name in "RZNQC"), " "), strict=True))
)
FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|gcd|lcm"
# A doubled backslash before one of these is an escaped command, not the end of a matrix row.
_ESCAPED = re.compile(
    r"\\\\(?=(?:boxed|fbox|[dtc]?frac|sqrt|left|right|text|textbf|mathrm|cdot|times|pi|l?eq?|g?eq?|neq?|cup|cap"
    r"|infty|pm"
    rf"|circ|in|q?quad|{FUNCTIONS})(?![A-Za-z]))"
)
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_ROOT = re.compile(r"([√∛]) ?(?:\(([^()]{1,200})\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_END = r"(?![A-Za-z])"
_SINGLE = r"(\d|\\pi(?![A-Za-z])|[A-Za-z](?![A-Za-z]))"


def _brace(command: re.Match[str]) -> str:
    return r"\{" if command[0][1] == "l" else r"\}"


def _base(name: re.Match[str]) -> str:
    return f"_{{{_BASES[name[1]]}}}"


_BASES = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}
_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Delimiters, sizes, colours, styles and spaces have no meaning.
        (r"\\\$|\$|(?<!\\)\\[()\[\]]|\\textdollar" + _END, " "),
        (r" ?\{ ?([,:]) ?\} ?", r"\1"),
        (r"(?<=\d)\{(\.|\\,)\}(?=\d)", r"\1"),
        (r"\\colon" + _END, ":"),
        (r"\\cr" + _END + r"|\\\\ ?\[ ?-?[\d.]+ ?(?:pt|ex|em|mm|cm)\]", r"\\\\"),
        (r"\.\.\.", r"\\ldots "),
        (r", ?\\! ?", ","),
        (r"\\(?:textcolor|color|colorbox) ?(?:\[[^\[\]{}]*\])? ?\{[^{}]*\}", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?|middle)" + _END + r"\.?", ""),
        (
            r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|tiny|small|normalsize|large|Large|LARGE|huge"
            r"|Huge)"
            + _END
            + r"|\\(?:phantom|hspace|vspace|hskip|label) ?\*? ?\{[^{}]*\}|(?<!\\)\\[;:,!> ]|\\(?:thin|med|thick)space"
            + _END,
            " ",
        ),
        # Wide spaces separate parts, unless words follow.
        (r" ?\\q?quad(?![A-Za-z]{2}) ?(?=\\(?:text|mathrm|mbox)\b)", " "),
        (r"\\q?quad(?![A-Za-z]{2})", ";"),
        # One spelling for fractions, roots, powers, fonts and relations.
        (r"\\[dtc](frac|binom)" + _END, r"\\\1"),
        (r"\{([^{}\\]{1,60})\\over" + _END + r"([^{}\\]{1,60})\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}\\]{1,60}?) ?\\choose" + _END + r" ?([^{}\\]{1,60})\}", r"\\binom{\1}{\2}"),
        (rf"\\frac ?{_SINGLE}", r"\\frac{\1}"),
        (rf"(\\frac ?\{{[^{{}}]*\}}) ?{_SINGLE}", r"\1{\2}"),
        (rf"(\\sqrt ?(?:\[[^\[\]]*\])?) ?{_SINGLE}", r"\1{\2}"),
        (r"\\(bar|overline|dot) ?(\d)", r"\\\1{\2}"),
        (r"\*\*", "^"),
        (r"\^ ?(-?\d\d+(?!\d|\.\d)|-\d)", r"^{\1}"),
        (rf"\\(?:operatorname\*?|mathrm) ?\{{ ?({FUNCTIONS}) ?\}}", r"\\\1 "),
        (
            r"\\(?:textbf|textrm|textit|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox"
            r"|hbox|emph"
            r"|underline|operatorname)(?= ?\{)",
            r"\\text",
        ),
        (r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol) ([A-Za-z])" + _END, r"\\text{\1}"),
        # Sets of numbers and intervals.
        (r"\\mathbb ?([A-Z])" + _END + r"|\\([RZNQC])" + _END, r"\\mathbb{\1\2}"),
        (r"\\[lr]brace" + _END + " ?", _brace),
        (r"\\backslash" + _END + r"|(?<=\\mathbb\{[RZNQC]\}) ?- ?(?=\\\{)", r"\\setminus "),
        (r"\\bigcup" + _END + r"|(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup "),
        (r"(^|\\cup ?|\\in )\]([^\[\](),]{1,60},[^\[\](),]{1,60})(?=[\[\]])", r"\1(\2"),
        (r"([(\[][^\[\](),]{1,60},[^\[\](),]{1,60})\[(?=$| ?\\cup)", r"\1)"),
        (r"(?<![A-Za-z\\])(?:\\text ?\{ ?)?[Ii]nfinity(?: ?\})?" + _END, r"\\infty "),
        (r"\\text ?\{([^{}\w]*\d[^{}A-Za-z]*| ?[-+,] ?| ?)\}", r" \1 "),
        (r"\\text ?\{([^{}]*)\^ ?\{(-?[1-4])\} ?\}", r"\\text{\1}^{\2}"),
        (
            r"\\frac ?\{ ?\\text ?\{([^{}]*)\} ?\} ?\{ ?\\text ?\{([^{}]*)\} ?(\^ ?(?:\{[1-4]\}|[1-4]))? ?\}",
            r"\\text{\1/\2}\3",
        ),
        (r"_ ?\{ ?\\(?:text ?\{)?([A-Za-z]+)\}? ?\}", r"_{\1}"),
        (r"\\pmod ?(\w+)", r"\\pmod{\1}"),
        (
            r"(\\equiv" + _END + r"[^(\\=]*)\(? ?(?:\\text ?\{ ?mod ?\}|\\b?mod" + _END + r"|\bmod\b) ?(\w+) ?\)?",
            r"\1\\pmod{\2}",
        ),
        (r"(?<![A-Za-z\d}])\(([0-9A-F]+)\)(?= ?_)", r"\1"),  # of a base
        (r"_ ?\{ ?\( ?(\d+) ?\) ?\}", r"_{\1}"),
        (r"_\{(two|three|eight|ten|sixteen)\}", _base),
        (r"\\varnothing" + _END + r"|\\\{ ?\\\}", r"\\emptyset "),
        (r"\\(?:le|leqslant|leqq)" + _END + "|<=|=<", r"\\leq "),
        (r"\\(?:ge|geqslant|geqq)" + _END + "|>=", r"\\geq "),
        (r"\\ne" + _END + r"|!=|\\not ?=", r"\\neq "),
        (r"\\lt" + _END, "<"),
        (r"\\gt" + _END, ">"),
        (r"\^ ?\{? ?\\circ ?\}?|\\(?:textdegree|degree|deg)" + _END + "|º", "°"),
        (r"(?<=\d) ?(?:\\circ(?= ?(?:[,.;)]|[CF]?$))|\^ ?(?:o|\{ ?(?:o|\\text ?\{ ?o ?\}) ?\})" + _END + ")", "°"),
        (r"\\%|٪|％", "%"),
        (" +", " "),
    )
)
TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_ENDS, _STARTS = " .,;:`*_\\", " ,;:`*_"
# A box, or a font around more than words.
_BOX = re.compile(r"\\(?:boxed|fbox) ?\{|\\text ?\{(?=[^{}]*\{)")


def balanced(text: str) -> bool:
    """Whether every brace closes one that was open. Escaped braces do not count."""
    return nesting("".join(re.findall(r"\\.|([{}])", text, re.DOTALL))) >= 0


def nesting(text: str) -> int:
    """How deep brackets of any form are nested; -1 if they do not pair up."""
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return -1
        deepest = max(deepest, depth)
    return -1 if depth else deepest


def tidy(text: str) -> str:
    r"""The canonical spelling of an answer, from which every comparison starts.

    Digits are not changed. Only ASCII digits count as digits, and a character between two of them is dropped only in
    ``1{,}234``.
    """
    text = _ESCAPED.sub(r"\\", " ".join(text.split()))
    text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_LOWERED)}}}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{'[3]' * (m[1] == '∛')}{{{m[2] or m[3]}}}", text).translate(_CHARACTERS)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    for _ in range(20):
        text = text.rstrip(_ENDS).lstrip(_STARTS)
        box = _BOX.match(text)
        inner = text[box.end() if box else 1 : -1]
        if text[-1:] != "}" or not (box or text[0] == "{") or not balanced(inner):
            break
        text = inner
    return re.sub(r"^= *(?=[^=])", "", text).strip()


def words(text: str) -> str:
    r"""The text with ``\text{…}`` replaced by its content."""
    for _ in range(4):
        text = TEXT.sub(r" \1 ", text)
    return " ".join(text.split()).rstrip(_ENDS).lstrip(_STARTS)


def key(text: str) -> str:
    """Equal for tidy answers that are the same apart from spaces, redundant braces and, in words, case."""
    text = re.sub(r" ?\\cdot ?", r"\\times ", words(text))
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    plain = re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\\(?=[{}])", "", text))
    return plain.casefold() if "\\" not in plain and re.search(r"[A-Za-z]{4}", plain) else plain
