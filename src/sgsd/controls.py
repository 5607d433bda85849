"""Neutralises chat controls inside text: what would open or close a turn or a thought in a chat template.

Templates paste a message's content between their own controls and tokenise the whole, so a skill that holds
``<|im_end|>`` ends the turn it stands in. ``disarm`` puts one space into such a control, ``< |im_end|>``: nothing is
lost, the text stays readable, and messages are safe whoever renders them (this package, TRL, a server). Splitting
special tokens while tokenising is no substitute: it finds only tokens flagged as special, which role markers and think
tags often are not, and it needs the content apart from the template.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

KNOWN = re.compile(
    r"<[|｜][^<>|｜\s]{2,64}[|｜]>"  # ChatML, Llama 3, Phi, DeepSeek
    r"|<\|[a-z_]{3,32}>|<[a-z_]{3,32}\|>"  # Gemma 4
    r"|\[\|[a-z]{4,32}\|\]"  # EXAONE
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>|</?(?:think|s|bos|eos|pad|unk|tool_call|tool_response)>",
    re.IGNORECASE,
)
"""Controls of the common model families, whatever the tokenizer."""


def disarmer(controls: Iterable[str] = (), marks: Iterable[str] = ()) -> Callable[[str], str]:
    """Make a function that breaks controls in a text: the ``KNOWN`` ones and ``controls`` by a space after the first
    character, and ``marks`` by a space inside their longest word.

    Controls are found as a tokenizer's normaliser may find them: in any case, in full-width letters, with invisible
    characters inside. The function returns a text without controls unchanged, and is idempotent.

    Args:
        controls: further controls, of two characters or more: the tokenizer's own special tokens.
        marks: what marks turns in templates of plain text, such as ``### Assistant``, ``USER:``, ``[Round 2]``. Other
            numbers and spaces make the same mark.
    """
    own = sorted({_folded(control)[0] for control in controls}, key=lambda text: (-len(text), text))
    words = [_mark_pattern(text) for text in sorted({_folded(mark)[0] for mark in marks}) if len(text) > 1]
    plain = [re.escape(text) for text in own if len(text) > 1]
    alternatives = "|".join([*plain, *words, f"(?i:{KNOWN.pattern})"])
    # A look-ahead also finds controls that begin inside another.
    pattern = re.compile(f"(?={alternatives})")

    def disarmed(text: str) -> str:
        folded, places = _folded(text)
        # The empty group of a mark stands where its word begins.
        starts = {places[match.start(match.lastindex or 0)] for match in pattern.finditer(folded)}
        if not starts:
            return text
        return "".join(f"{character} " if n in starts else character for n, character in enumerate(text))

    return disarmed


def _mark_pattern(mark: str) -> str:
    """A pattern of a mark, with an empty group where its longest word begins. It is broken one character later."""
    words = sorted(re.finditer(r"[^\W\d_]+", mark), key=lambda word: -len(word[0]))
    start = words[0].start() if words else 0
    # Exact where the mark is broken: with optional spaces there, a broken mark would match again.
    found = f"{_loosely(mark[:start])}(){re.escape(mark[start : start + 2])}{_loosely(mark[start + 2 :])}"
    return rf"(?<!\w){found}(?!\w)" if mark.isalpha() else found


def _loosely(part: str) -> str:
    """A pattern of a part of a mark: any number for a number, any spaces for spaces, also before colons."""
    found = ""
    for piece in re.findall(r"\d+|\s*:|\s+|.", part):
        if piece.isdecimal():
            found += r"\d{1,9}"
        else:
            found += r"[ \t]{0,9}" if piece.strip() in ("", ":") else ""
            found += re.escape(piece.strip())
    return found


disarm = disarmer()
"""Breaks the known controls: for text to a model whose tokenizer is not at hand, such as a bank's writer."""


_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """The text in NFKC, in lower case and without invisible characters; and the place in ``text`` of each character."""
    if text.isascii() and not _INVISIBLE.search(text):
        return text.lower(), range(len(text))
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character in "\t\n\r":
            folded = character
        elif unicodedata.category(character) in ("Cc", "Cf", "Mn"):
            folded = ""
        else:
            folded = unicodedata.normalize("NFKC", character).casefold()
        characters.append(folded)
        places += [place] * len(folded)
    return "".join(characters), places
