"""Finds where a model's thoughts end and its answer begins.

``_MARKS`` has the delimiters of thoughts in the chat templates that TRL ships, and in some others. Thoughts are never
judged: a box in them is no answer, and a completion that never ends its thoughts has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

_TAG = (
    r"((?:\w{1,20}[:_])?(?:think(?:ing)?(?:_(?!begin|start|end)\w{1,60})?|thoughts?|reason(?:ing)?|analysis"
    r"|reflection"
    r"|scratch(?:_?pad)?|thought_?process|draft|rationale|monologue|internal|plan(?:ning)?|cot))"
)
_THOUGHT = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
_ENDED = rf"[<\[][|｜]?(?i:{{0}}[_▁](?:of[_▁])?{_THOUGHT}|(?:\w{{{{1,20}}}}_)?{_THOUGHT}[_▁]{{0}})[|｜]?[>\]]"
_MESSAGE = r"\b[^<\n]{0,80}(?:<\|constrain\|>\w{0,20})?<\|message\|>"
# Pairs of patterns: what opens thoughts, and what closes them.
_MARKS: tuple[tuple[str, str], ...] = (
    # <|START_THINKING|>: Cohere; <|begin_of_thought|>: OpenThinker; [BEGIN_THINK], <think_begin>
    (_ENDED.format("(?:begin|start)"), _ENDED.format("end")),
    # <think>, <thinking>, <seed:think>, <longcat_think>, <reasoning>: Qwen, DeepSeek, GLM, Nemotron, LFM, Seed, …
    (rf"<\s{{0,2}}(?i:{_TAG})(?:\s[^<>/]{{0,80}})?>", rf"<\s{{0,2}}/\s{{0,2}}(?i:{_TAG})\s{{0,2}}>"),
    (r"\[(?i:THINK(?:ING)?)\]", r"\[/(?i:THINK(?:ING)?)\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|think(?:ing)?\|>", r"<\|/think(?:ing)?\|>|<\|content\|>"),  # Solar
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    (r"<unused94>", r"<unused95>"),  # MedGemma
    (r"Here is my thought process:", r"Here is my response:"),  # Granite
    (r"Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
    # gpt-oss: channels, and what is left of them where special tokens were dropped
    (
        rf"<\|channel\|>(?:analysis|commentary){_MESSAGE}"
        r"|\A(?:analysis|commentary)(?=[\w\\$\"'(*]|\s{1,9}[A-Z\d\\$\"'(*]|[ \t]{0,9}\n)"
        r"|assistant(?:analysis|commentary)",
        rf"<\|channel\|>final{_MESSAGE}|assistant ?final|\Afinal(?=[A-Z\d\\$*#])",
    ),
    # Muse: recipients, and what is left of them
    (
        r"\bto=(?!user\b)[\w.]{1,80}<\|message\|>|\A ?to=self",
        r"(?:\bassistant )?\bto=user<\|message\|>|\bassistant to=user",
    ),
)
_OPENS = "|".join(f"(?P<o{kind}>{opens})" for kind, (opens, _) in enumerate(_MARKS))
_CLOSES = "|".join(f"(?P<c{kind}>{closes})" for kind, (_, closes) in enumerate(_MARKS))
# The look-ahead at the first characters makes the search fast.
_MARK = re.compile(
    rf"(?=[<\[◁](?:[|｜/\w]|\s{{1,2}}[/\w])|assistant| ?to=|Here (?:is|are) my|\A[acf])(?:{_OPENS}|{_CLOSES})"
)
_OPENED = re.compile(rf"(?:{_OPENS})\s{{0,9}}\Z")
_CLOSED = re.compile(rf"(?:{_CLOSES})\s{{0,9}}\Z")
_PROMPT_END, _MARK_LENGTH = 32, 200  # ids, characters
_KEPT = re.compile(r"think|thought|reason|channel|message|inner_(?:pre|suf)fix|unused9[45]", re.IGNORECASE)


def answer_part(text: str, cut: Callable[[str], str | None] = lambda said: None) -> str | None:
    """The text of a completion after its thoughts; ``None`` if they never end.

    Thoughts end at the closing mark of the kind that opened them, or at one of a kind that the text does not open: then
    the prompt opened them.

    Args:
        text: a completion.
        cut: called with each part outside thoughts; the first text that it returns is the result.
    """
    start = 0
    thinking: str | None = None
    seen: set[str] = set()
    for mark in _MARK.finditer(text):
        group = str(mark.lastgroup)
        name = next((part for part in mark.groups()[mark.lastindex :] if part), "")
        kind = group[1:] + name.lower()
        if group[0] == "o":
            if thinking is None and (said := cut(text[start : mark.start()])) is not None:
                return said
            seen.add(kind)
            thinking = thinking or kind
        elif thinking in (None, kind) or kind not in seen:
            thinking = None
            start = mark.end()
    if thinking:
        return None
    said = cut(text[start:])
    return text[start:] if said is None else said


def opens_thoughts(prompt: str) -> bool:
    """Whether a mark that opens thoughts stands anywhere in a prompt."""
    return any(str(mark.lastgroup).startswith("o") for mark in _MARK.finditer(prompt))


def ends_thoughts(prompt: str) -> bool:
    """Whether a prompt ends in a mark that closes thoughts."""
    return _CLOSED.search(prompt[-_MARK_LENGTH:]) is not None


class Tokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str: ...


class CompletionText:
    """Decodes token ids to the text that is judged: without special tokens, except those that mark thoughts.

    If the prompt ended in an opening mark and the completion never closes it, the text begins with that mark: the
    completion is all thoughts, and nothing else in it would show that.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._dropped = frozenset(index for index, token in special.items() if not _KEPT.search(token))
        self._keeps = len(self._dropped) < len(special)

    def __call__(self, completion_ids: Sequence[int], prompt_end: str = "") -> str:
        """The text of a completion, after a prompt whose text ends in ``prompt_end``."""
        if self._keeps:
            kept = [index for index in completion_ids if index not in self._dropped]
            text = self._tokenizer.decode(kept, skip_special_tokens=False)
        else:
            text = self._tokenizer.decode(list(completion_ids), skip_special_tokens=True)
        return _with_opening(text, prompt_end)

    def after(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
        """The text of a completion, after the prompt of these ids."""
        return self(completion_ids, self._end(prompt_ids))

    def from_text(self, prompt_ids: Sequence[int], text: str) -> str:
        """The text of a completion that a server returned as text, after the prompt of these ids."""
        return _with_opening(text, self._end(prompt_ids))

    def _end(self, prompt_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(prompt_ids[-_PROMPT_END:]), skip_special_tokens=False)


def _with_opening(text: str, prompt_end: str) -> str:
    opening = _OPENED.search(prompt_end[-_MARK_LENGTH:])
    if opening is None or answer_part(opening[0] + text) is not None:
        return text
    return opening[0] + text
