"""Plain-text mathematics as LaTeX: ``2*sqrt(11)/4``, ``exp(16)``, ``5pi``. Text to text; nothing is evaluated."""

from __future__ import annotations

import re

_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|pi"
_COMMANDS = f"(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|{_GREEK}"
_NAME = re.compile(rf"(?<![A-Za-z\\])({_COMMANDS})(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])")
_CALL = re.compile(r"\\?(?<![A-Za-z])(sqrt|cbrt|exp|abs|floor|ceil) ?\(|(\^) ?\(")
_AROUND = {
    "sqrt": (r"\sqrt{", "}"),
    "cbrt": (r"\sqrt[3]{", "}"),
    "exp": ("e^{", "}"),
    "abs": ("|", "|"),
    "floor": (r"\lfloor ", r"\rfloor "),
    "ceil": (r"\lceil ", r"\rceil "),
    "^": ("^{", "}"),
}
_INVERSE = re.compile(r"\\a(sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def to_latex(text: str) -> str:
    """The same mathematics with the names of functions and constants as commands, and braces after roots and powers."""
    text = _INFINITY.sub(r"\\infty ", _NAME.sub(r"\\\1 ", text))
    text = _INVERSE.sub(r"\\arc\1", text)
    pieces: list[str] = []
    closings: list[str] = []
    position = 0
    for mark in re.finditer(rf"{_CALL.pattern}|[()]", text):
        pieces.append(text[position : mark.start()])
        position = mark.end()
        name = mark[1] or mark[2]
        if name:
            pieces.append(_AROUND[name][0])
            closings.append(_AROUND[name][1])
        elif mark[0] == "(":
            pieces.append("(")
            closings.append(")")
        else:
            pieces.append(closings.pop() if closings else ")")
    return "".join([*pieces, text[position:]])
