"""Chat controls inside text: what would open or close a turn or a thought if a chat template took it in.

Templates paste a message's content between their own controls and tokenise the whole, so a skill that holds
``<|im_end|>`` ends the turn it stands in. ``disarm`` breaks such texts by one space, ``< |im_end|>``: nothing is lost,
the text stays readable, and messages are safe whoever renders them (this package, TRL, a server). Splitting special
tokens while tokenising is no substitute: it sees only tokens flagged as special, which role markers and think tags
often are not, and needs the content apart from the template.
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
"""Controls of the usual model families, whatever the tokenizer at hand."""


def disarmer(controls: Iterable[str] = (), marks: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that breaks every known control in a text, and every one of ``controls``, by a space after its first
    character, and every one of ``marks`` by one inside its longest word.

    Found as a tokenizer's normaliser may find them: in any case, in full-width letters, with invisible characters
    inside. Text without any is returned as it is; doing it twice does the same as once.

    Args:
        controls: further controls, of two characters or more: the tokenizer's own special tokens.
        marks: of turns in templates of text, such as ``### Assistant``, ``USER:``, ``[Round 2]``; other numbers and
            spaces are the same mark.
    """
    own = sorted({_folded(control)[0] for control in controls}, key=lambda text: (-len(text), text))
    words = [_mark_pattern(text) for text in sorted({_folded(mark)[0] for mark in marks}) if len(text) > 1]
    plain = [re.escape(text) for text in own if len(text) > 1]
    alternatives = "|".join([*plain, *words, f"(?i:{KNOWN.pattern})"])
    # A look-ahead finds those, too, that begin inside another.
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
    """With an empty group where the longest word begins, behind whose first character the mark is broken."""
    words = sorted(re.finditer(r"[^\W\d_]+", mark), key=lambda word: -len(word[0]))
    start = words[0].start() if words else 0
    # As it is around the place where it is broken: spaces there would match again.
    found = f"{_loosely(mark[:start])}(){re.escape(mark[start : start + 2])}{_loosely(mark[start + 2 :])}"
    return rf"(?<!\w){found}(?!\w)" if mark.isalpha() else found


def _loosely(part: str) -> str:
    """The part of a mark with any number and any spaces where it has some, and with spaces before colons."""
    found = ""
    for piece in re.findall(r"\d+|\s*:|\s+|.", part):
        if piece.isdecimal():
            found += r"\d{1,9}"
        else:
            found += r"[ \t]{0,9}" if piece.strip() in ("", ":") else ""
            found += re.escape(piece.strip())
    return found


disarm = disarmer()
"""Breaks the known controls: for text whose tokenizer is not at hand, such as what a writer is shown."""


_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """The text in compatibility form, lower case and without invisible characters; each character's place in it."""
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
