"""Chat controls: what opens or closes a turn or a thought in a chat template. Finds those of a tokenizer, and
neutralises them inside text.

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
from typing import Any, Protocol

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


# ---- controls of a tokenizer


class ChatTokenizer(Protocol):
    """The methods of a ``transformers`` tokenizer that prompts need."""

    chat_template: Any

    def __call__(self, text: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def decode(self, token_ids: Any) -> Any: ...


THINK_TAGS = ("<think>", "</think>")

# What chat templates raise besides TemplateError, for example for arguments of the wrong type.
TEMPLATE_ERRORS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


def _control_tokens(tokenizer: Any) -> list[tuple[int, str]]:
    """Special added tokens, and think tags, whether special or not."""
    added = {token_id: (str(token), bool(token.special)) for token_id, token in tokenizer.added_tokens_decoder.items()}
    special = {int(token_id) for token_id in tokenizer.all_special_ids}
    return [(i, text) for i, (text, is_special) in added.items() if is_special or i in special or text in THINK_TAGS]


def controls_of(tokenizer: Any) -> dict[int, str]:
    """Id → text of the tokens that data must not produce: special tokens, think tags, and added tokens in brackets that
    the template writes. The unknown token is excluded, since any rare character may produce it.
    """
    template = str(tokenizer.chat_template)
    controls = dict(_control_tokens(tokenizer))
    for token_id, token in tokenizer.added_tokens_decoder.items():
        text = str(token)
        if text[:1] in "<[" and text[-1:] in ">]" and text in template:
            controls[token_id] = text
    return {
        token_id: text for token_id, text in controls.items() if len(text) > 1 and token_id != tokenizer.unk_token_id
    }


def uncounted_token_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Ids of tokens that the objective masks (docs/method.md, Masks): special tokens, those of ``controls_of``, and
    tokens that decode to line breaks only.
    """
    ids = {token_id for token_id, _ in _control_tokens(tokenizer)} | controls_of(tokenizer).keys()
    for token_id in range(len(tokenizer)):  # pyright: ignore[reportArgumentType]
        text = tokenizer.decode([token_id])
        if text and not text.strip("\r\n"):
            ids.add(token_id)
    return frozenset(ids)


def end_of_turn_ids(tokenizer: ChatTokenizer) -> list[int]:
    """The control token with which the chat template ends an assistant's turn, as a list of at most one id.

    It is found by rendering conversations: the last control token that follows the assistant's content both at the end
    of a conversation and before a further turn. Where these two differ (GPT-OSS), it is the one at the end; where only
    the next turn's start is marked (GLM-4), it is that mark.
    """
    mark = "xmarkx"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    controls = controls_of(tokenizer)
    tails: list[list[str]] = []
    for messages in (turns, [*turns, {"role": "user", "content": "x"}]):
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        tails.append(_found_in(text.rpartition(mark)[2], controls.values()) if mark in text else [])
    last, followed = tails
    ids = {text: token_id for token_id, text in controls.items()}
    shared = [one for one, other in zip(last, followed, strict=False) if one == other]
    ends = shared[-1:] if shared and last[0] == shared[0] else (last or followed)[:1]
    return [ids[text] for text in ends]


def _found_in(text: str, controls: Iterable[str]) -> list[str]:
    longest_first = sorted(controls, key=len, reverse=True)
    return re.findall("|".join(map(re.escape, longest_first)), text) if longest_first else []


def disarmer_of(tokenizer: ChatTokenizer) -> Callable[[str], str]:
    """The disarmer of a tokenizer's controls and of the turns of its chat template."""
    controls = controls_of(tokenizer).values()
    return disarmer(controls, _turn_marks(tokenizer, controls))


_TAG = re.compile(r"(</?[^<>\s]{1,38}>|\[/?[^\[\]\s]{1,38}\])")
_LONGEST_MARK = 40  # characters; longer lines are instructions of the template to the model


def _turn_marks(tokenizer: Any, controls: Iterable[str]) -> set[str]:
    """The plain text with which a chat template opens turns, such as ``### Assistant`` or ``USER:``.

    It is found by rendering conversations with known contents. The set is empty where a control token opens every turn:
    the words beside it (``<|im_start|>user``) do not open a turn by themselves. The end token only closes turns.
    """
    from jinja2 import TemplateError

    turns = [{"role": role, "content": f"xmark{n}x"} for n, role in enumerate(("system", "user", "assistant", "user"))]
    between: list[str] = []
    for messages in (turns, turns[1:], turns[1:2], [*turns[1:3], {"role": "tool", "content": "xmark9x"}]):
        try:
            text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, *TEMPLATE_ERRORS):  # roles that the template refuses
            continue
        between += re.split(r"(?i:xmark\dx)", text)
    control = re.compile("|".join([*map(re.escape, sorted(controls, key=len, reverse=True)), KNOWN.pattern]))
    openings = [text.rpartition(tokenizer.eos_token)[2] if tokenizer.eos_token else text for text in between]
    if not any(text.strip() and not control.search(text) for text in openings):
        return set()
    lines = [line.strip() for text in between for line in control.sub("\n", text).splitlines()]
    # A line may contain several marks: </user><assistant>, <eot>Assistant:
    parts = [part.strip() for line in lines for part in _TAG.split(line)]
    return {mark for mark in (*lines, *parts) if 1 < len(mark) <= _LONGEST_MARK}
