"""Parses the text of an expression into a sympy expression, with math-verify's grammar behind guards.

A text is parsed only if it is short, not deeply nested, made of known commands, of bounded size, and free of marks that
the grammar accepts but ignores. Each name in it becomes one variable. The grammar reads the whole text or nothing.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from sgsd.verifiers.tidy import balanced, names, nesting

# sympy and latex2sympy have no type stubs.
sympy: Any = importlib.import_module("sympy")
latex2sympy: Any = importlib.import_module("latex2sympy2_extended.latex2sympy2")
_SLL = importlib.import_module("antlr4").PredictionMode.SLL  # ANTLR's mode LL takes time exponential in the nesting
_CONVERSION = latex2sympy.ConversionConfig(lowercase_symbols=False, interpret_contains_as_eq=False)

# math-verify's own timeouts need SIGALRM in the main thread. They are off, since the pool has a hard timeout, and the
# warnings about that are silenced.
for _name in ("math_verify", "math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


NUMBERS_ONLY = re.compile(r"(?:Integer|Float|Rational|'\d[\d.]*+'|\d++(?:\.\d*+)?|[ ()+\-*/,])*+")


def close_evaluation() -> Callable[[], None]:
    """Let sympy evaluate only numbers and arithmetic in this process, until the returned function is called.

    sympy evaluates texts as Python code, and math-verify passes digits to it.
    """
    parser: Any = importlib.import_module("sympy.parsing.sympy_parser")
    to_python = parser.stringify_expr

    def numbers_to_python(*arguments: Any) -> str:
        code = to_python(*arguments)
        if not NUMBERS_ONLY.fullmatch(code):
            raise ValueError(f"not evaluated: {code[:80]}")
        return code

    parser.stringify_expr = numbers_to_python
    return lambda: setattr(parser, "stringify_expr", to_python)


_MAX_LENGTH = 400
_MAX_DEPTH = 12
_MAX_SET = 150
COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)")
_KNOWN = frozenset(
    names(r"""
    \frac \sqrt \cdot \times \div \pi \infty \binom \log \ln \exp \sin \cos \tan \cot \sec \csc \arcsin \arccos
    \arctan \sinh \cosh \tanh \leq \geq \neq \lfloor \rfloor \lceil \rceil \lvert \rvert \vert \alpha \beta \gamma
    \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \iota \kappa \lambda \mu \nu \xi \rho \sigma \tau \upsilon
    \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Sigma \Phi \Psi \Omega \ell \hbar \int \sum \prod
    \lim \to \rightarrow \begin \end \\ \overline \vec \overrightarrow \hat \bar \angle \triangle \mathbb \setminus
    \cup \cap \emptyset \{ \}
    """)
)
# Commands that have a meaning but that the grammar cannot read: a text with one is compared letter for letter.
_VERBATIM = frozenset(
    names(r"""
    \forall \exists \nexists \equiv \pmod \bmod \mod \cap \cup \subset \subseteq \subsetneq \supset \supseteq \in
    \notin \ni \mid \nmid \oplus \otimes \odot \wedge \vee \land \lor \neg \lnot \to \rightarrow \leftarrow
    \leftrightarrow \mapsto \Rightarrow \Leftrightarrow \implies \iff \perp \parallel \cong \sim \simeq \propto
    \prime \max \min \sup \inf \gcd \lcm \det \dim \ker \deg \arg \Re \Im \nabla \partial \circ \star \ast \bullet
    \mathcal \mathfrak \mathscr \widehat \tilde \widetilde \dots \ldots \cdots \vdots \ddots \pm \mp \iint \oint
    \bigcup \bigcap \aleph \dagger \langle \rangle \| \therefore \top \bot \vdash \models \hline
    """)
)
_OPEN_END = re.compile(r"(?<!\^)[+-]$|[\^_=*/<>]$|\\\\$")
# What the grammar accepts but ignores: subscripts of numbers and functions, values at a point, primes.
DROPPED = re.compile(
    r"['\"`~#@?$°]|(?<![\\A-Za-z])[fgFG] ?\([^()]*\(|\\frac ?\{ ?d[^{}]*\} ?\{ ?d ?[A-Za-z]|\d ?_"
    r"|\^ ?(?:\{[^{}]*\}|\w) ?_|\| ?[_^]"
    r"|\\(?:sin|cos|tan|cot|sec|csc|arc\w+|ln|exp) ?_"
)
# Powers, factorials and binomial coefficients too large to compute; towers of powers.
TOO_LARGE = re.compile(
    r"\d{5} ?!|! ?\)? ?!|\\binom ?\{[^{}]*(?:\d{5}|[\^!])|\^ ?\{? ?-? ?\d{6}"
    r"|\^ ?\w ?\^|\^ ?\{[^{}]*(?:[\d)}] ?\^|\^ ?\{? ?\d\d|!)"
)
SETS = re.compile(r"\\(?:mathbb|setminus|cup|cap|emptyset)(?![A-Za-z])|\\\{")
_SLOW_IN_SETS = re.compile(r"\^ ?\{? ?-? ?\d\d|!|\\binom|%|\|")
TRIGONOMETRIC = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])")
_DEGREES = re.compile(r"(?:\{ ?)?(?<![\d.])(\d+(?:\.\d+)?) ?°(?: ?\})?")
_PLAIN_MIXED = re.compile(r"(?<![\w.^}) ]) ?(\d+) (\d{1,9})/(\d{1,9})(?![\w.{(])")
_MIXED = re.compile(r"(?<![\d.^_])\d+ ?\\frac ?\{(\d{1,9})\} ?\{(\d{1,9})\}")
_UNIT_WORD = re.compile(r"\\text ?\{ ?([A-Za-z]{1,12}) ?\}")
_POWER_FIRST = re.compile(r"\^ ?(\{[^{}]*\}|\w) ?_ ?(\{[^{}]*\}|\w)")


_COMMANDS = (
    "(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|pi"
)
_PLAIN_NAME = re.compile(rf"(?<![A-Za-z\\])({_COMMANDS})(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])")
_CALLED = re.compile(r"\\?(?<![A-Za-z])(sqrt|cbrt|exp|abs|floor|ceil) ?\(|(\^) ?\(|[()]")
_AROUND = {
    "(": ("(", ")"),
    "sqrt": (r"\sqrt{", "}"),
    "cbrt": (r"\sqrt[3]{", "}"),
    "exp": ("e^{", "}"),
    "abs": ("|", "|"),
    "floor": (r"\lfloor ", r"\rfloor "),
    "ceil": (r"\lceil ", r"\rceil "),
    "^": ("^{", "}"),
}
_INVERSE = re.compile(r"\\a(sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def _to_latex(text: str) -> str:
    """Plain text (``2*sqrt(11)/4``, ``5pi``) as LaTeX: names as commands, braces after roots and powers."""
    text = _INVERSE.sub(r"\\arc\1", _INFINITY.sub(r"\\infty ", _PLAIN_NAME.sub(r"\\\1 ", text)))
    closings: list[str] = []

    def bracket(mark: re.Match[str]) -> str:
        if mark[0] == ")":
            return closings.pop() if closings else ")"
        opening, closing = _AROUND[mark[1] or mark[2] or "("]
        closings.append(closing)
        return opening

    return _CALLED.sub(bracket, text)


def as_latex(text: str) -> str:
    """A tidy text in the LaTeX of the grammar. Plain names become commands. Degrees become radians if the text has a
    trigonometric function; otherwise the degree sign is dropped."""
    text = _to_latex(text)
    if TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"(\1 \\cdot \\pi / 180)", text)
    text = _PLAIN_MIXED.sub(r" \1\\frac{\2}{\3}", text)
    text = _MIXED.sub(lambda m: f"({m[0]})".replace("\\", "+\\", 1) if int(m[1]) < int(m[2]) else m[0], text)
    text = _POWER_FIRST.sub(r"_\2^\1", text.replace("°", ""))
    return _UNIT_WORD.sub(r" \1 ", text)


_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau"
    "|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell|hbar"
)
_SYMBOL = re.compile(
    r"\\(?P<over>overline|vec|overrightarrow|hat|bar) ?\{(?P<body>[A-Za-z0-9 ]*)\}"
    r"|\\(?P<figure>angle|triangle) ?(?P<points>[A-Z](?: ?[A-Z]){0,2})"
    r"|(?P<kept>\\(?:begin|end|mathbb) ?\{[^{}]*\}(?:\{[lcr]*\})?|\\lim ?_ ?\{ ?[a-z]"
    rf"|\\(?!(?:{_GREEK})(?![A-Za-z]))(?:[A-Za-z]+|.))"
    r"|(?P<differential>d ?[a-z](?![A-Za-z]))"
    r"|(?P<function>[fgFG]) ?\((?P<argument>[^()]*)\)"
    r"|(?P<letter>\\[A-Za-z]+|[A-Za-z])(?: ?_ ?(?:(?P<mark>[A-Za-z0-9])|\{(?P<marks>[^{}]*)\}))?"
)
_NAME_PARTS = ("over", "body", "figure", "points", "function", "argument", "letter", "mark", "marks")


def with_symbols(text: str) -> str:
    r"""The text with each name in it as one ``\variable{…}``: a letter with its subscript, a function with its
    argument, a segment.

    Otherwise the grammar reads some adjacent letters as keywords (``tr``, ``dx``), and its time doubles with every
    level of nesting over powers of bare letters.
    """
    integral = r"\int" in text

    def named(match: re.Match[str]) -> str:
        if match["kept"] or (integral and match["differential"]):
            return match[0]
        if match["differential"]:
            return "".join(rf"\variable{{{letter}}} " for letter in match[0].replace(" ", ""))
        name = "".join(match[part] or "" for part in _NAME_PARTS).replace(" ", "").lstrip("\\")
        return rf"\variable{{{re.sub('[^A-Za-z0-9]', lambda m: f'Z{ord(m[0])}', name)}}} "

    return _SYMBOL.sub(named, text)


class _Converter(latex2sympy._Latex2Sympy):
    """math-verify's converter, but numbers are built directly: it passes digits to sympy, which evaluates text."""

    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        """The product of adjacent factors. math-verify's converter adds numbers: to it ``2(3)`` is a mixed number."""
        first = self.convert_postfix(arr[i])
        if isinstance(first, list):  # the sign of a derivative
            base: Any = super()
            return base.convert_postfix_list(arr, i)
        if i == len(arr) - 1 or not isinstance(first, sympy.Expr | sympy.MatrixBase):
            return first
        rest = self.convert_postfix_list(arr, i + 1)
        matrices = isinstance(first, sympy.MatrixBase) or isinstance(rest, sympy.MatrixBase)
        return self.mat_mul_flat(first, rest) if matrices else self.mul_flat(first, rest)

    def convert_binom(self, binom: Any) -> Any:
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)


def is_verbatim(text: str) -> bool:
    """Whether a text that the grammar cannot read may be compared letter for letter: all its commands are known, its
    brackets pair up, and no operator lacks its right side."""
    commands = set(COMMAND.findall(text)) - {r"\text"}
    if len(text) > _MAX_LENGTH or not balanced(text) or not _KNOWN.union(_VERBATIM).issuperset(commands):
        return False
    return ("'" in text or not _VERBATIM.isdisjoint(commands)) and not _OPEN_END.search(text)


@lru_cache(maxsize=2_048)
def parse(text: str, sets: bool = False) -> Any:
    """The sympy expression of a text; ``None`` if it is too long, too large, or cannot be read as a whole."""
    if len(text) > _MAX_LENGTH or not text.isascii() or not 0 <= nesting(text) <= _MAX_DEPTH:
        return None
    if not _KNOWN.issuperset(COMMAND.findall(text)) or DROPPED.search(text) or TOO_LARGE.search(text):
        return None
    if sets and (len(text) > _MAX_SET or nesting(text) > 3 or _SLOW_IN_SETS.search(text)):
        return None
    converter = _Converter(config=_CONVERSION)
    try:
        if sets:
            return converter.parse(with_symbols(text))
        parser = converter.create_parser(with_symbols(text))
        if r"\int" not in text:
            parser._interp.predictionMode = _SLL
        tree = parser.relation()
        return converter.convert_relation(tree) if parser.getTokenStream().LA(1) == -1 else None
    except Exception:  # noqa: BLE001 - the grammar's listener raises bare Exceptions, and sympy may raise anything
        return None
