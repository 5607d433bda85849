r"""The verdict that SGSD's authors train with, as a TRL reward function: ``verifier: sgsd.verifiers.dapo:reward``.

The rule is that of ``reward/math_dapo.py`` in walawalagoose/SGSD, reimplemented. It reads the last 500 characters. If
they hold ``\boxed{``, the answer is the last closed box of the last 100 characters; otherwise it is the rest of the
line after the last ``Answer:``. math-verify compares it with the reference. Their normalisation of references is left
out: DAPO-Math's references are integers, which it does not change.

For comparisons with their results; ``math`` is the stricter verifier (docs/deviations.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sgsd.verifiers.equality import math_verify
from sgsd.verifiers.expressions import close_evaluation

TAIL = 500
"""The rule reads this many characters from the end of a completion."""
BOX_TAIL = 100
"""A box must lie within this many characters from the end, from ``\\boxed{`` to its closing brace."""

_BOX = "\\boxed{"
_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)


def reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1.0 for a right answer, 0.0 for a wrong one or none.

    Args:
        completions: as TRL passes them, each a text or a list of messages.
        answer: the reference of each completion.
    """
    texts = [item if isinstance(item, str) else str(item[-1]["content"]) for item in completions]
    return [float(_is_right(text, reference)) for text, reference in zip(texts, answer, strict=True)]


def _is_right(text: str, reference: str) -> bool:
    text = text[-TAIL:]
    given = _last_box(text[-BOX_TAIL:]) if _BOX in text else next(reversed(_ANSWER.findall(text)), None)
    if given is None:
        return False
    reopen = close_evaluation()
    try:
        parsed: list[list[Any]] = [math_verify.parse(one, parsing_timeout=None) for one in (reference, given)]
        return bool(math_verify.verify(*parsed, timeout_seconds=None))
    finally:
        reopen()


def _last_box(text: str) -> str | None:
    start = text.rfind(_BOX)
    depth = 0
    for place in range(start, len(text)) if start >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place] == "}" and depth == 0:
            return text[start + len(_BOX) : place]
    return None
