"""The one extractor: completion → the answer it commits to. Training, evaluation and every verifier use this and no
other.

The policy, first match wins (``docs/verifier.md`` has the measurements behind it):

0. Only what follows the last ``</think>`` counts; an unclosed ``<think>`` means no answer. Fenced code blocks,
   chat-template tokens and ``<<3*4=12>>`` annotations are removed first.
1. ``<answer>…</answer>``: only the text inside counts.
2. Boxes. Equal boxes are one box; different ones are a *list* of answers, and so are right only where the reference is
   that list. An unclosed or empty last box means no answer. ``Final Answer: The final answer is X. I hope it is
   correct.`` after the last box replaces it.
3. A final-answer phrase, the last one: ``#### X``, ``Answer: X``, ``A: X``, ``the answer is X``, ``答案是X``.
4. A completion that is nothing but an answer: one short line without prose.
5. The last mathematics or number in the last line that has any, with everything that belongs to it: of ``54, 55, 56``
   or ``28 + 28`` that is the whole, never the last number alone.

An answer that the sentence around it denies ("the answer is not 56", "56 is wrong") is no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from sgsd.verifiers.boxes import boxes, inside_expression, opened
from sgsd.verifiers.numerals import read_numeral
from sgsd.verifiers.tidy import balanced, key, tidy, words

MAX_CHARACTERS = 400_000
MAX_ANSWER = 4_000
MAX_TEXT = 40_000


class Found(StrEnum):
    """Where the answer stood."""

    BOX = "box"
    PHRASE = "phrase"
    WHOLE = "whole"
    LAST = "last"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer of a completion.

    Attributes:
        text: the answer as written, without its box, phrase or ``$``; ``None`` if there is none.
        found: where it stood.
        reason: why there is none.
        several: whether ``text`` joins several different boxes.
    """

    text: str | None
    found: Found = Found.NOTHING
    reason: str | None = None
    several: bool = False


NO_ANSWER = "no answer"
DENIED = "denied answer"

_THINK_CLOSE = re.compile(r"</(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>", re.IGNORECASE)
_THINK_OPEN = re.compile(r"<(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>", re.IGNORECASE)
_NEXT_TURN = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|eot_id\|>|<\|im_end\|>|<\|endoftext\|>|</s>|<end_of_turn>"
)
_CHAT_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)

_HOPE = re.compile(
    r"final answer:?\**\s*(?:the (?:final )?answer is:?)?((?:(?!final answer)[^\n]){1,600}?)\.?\s*i hope", re.IGNORECASE
)
_PHRASES = (
    re.compile(r"(?<!#)#{4,8}[ \t]*(?=[^\s#])(?P<x>[^\n]{1,2000})$", re.MULTILINE),
    re.compile(
        r"(?:^|(?<=[\s*_#>\-(.。]))(?:the\s+)?(?:final\s+|correct\s+|my\s+)?(?:answer|result)\b(?:\s+to\s+[^.:\n]{1,80}?)?\s*[*_]{0,3}\s*"
        r"(?::|=|：|\bis\b\s*:?|\bwould be\b|\bmust be\b|\bshould be\b|\n)\s*[*_]{0,3}[ \t]*\n?\s*(?P<x>[^\n]{1,2000})",
        re.IGNORECASE,
    ),
    re.compile(r"^[*_ \t]{0,4}A[*_]{0,2}:[*_]{0,2}[ \t]*(?P<x>[^\n]{1,2000})$", re.MULTILINE),
    re.compile(r"(?:答案|最终答案|最后答案|结果)\s*(?:是|为|：|:|等于)+\s*(?P<x>[^\n。]{1,2000})"),
)
_NEGATION = re.compile(
    r"(?:\b(?:roots?|opposite|reciprocal|inverse|square|cube|double|triple|logarithm) of"
    r"|\bnot|n't|n’t|\bnever|\bneither|\bcannot be|\\neq?|≠|!=|\brather than|\binstead of|\bexcept|不是|不等于)"
    r"(?:\s+(?:equal(?:\s+to)?|be|is|exactly|simply|just|the answer|:))*[\s:$*\\(\[{\"']*$",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"^[\s$.*)\]}\"'\\]{0,6}(?:,?\s*(?:which|that|it|this|but (?:that|this|it)))?\s*"
    r"(?:(?:is|was|are|would be)\s+(?:wrong|incorrect|false|impossible|(?:\w+ly )?not\b)|(?:is|was|are)n['’]t\b)",
    re.IGNORECASE,
)
_MATH = re.compile(
    r"\$\$(?P<a>[^$]{1,2000})\$\$|(?<!\\)\$(?P<b>(?:\\.|[^$\\]){1,2000})\$"
    r"|\\\((?P<c>.{1,2000}?)\\\)|\\\[(?P<d>.{1,2000}?)\\\]",
    re.DOTALL,
)
_JOINT = re.compile(r"[\s.,;]*(?:\\?\s*(?:text\{)?\s*(?:and|or|,|;)\s*\}?)?[\s.,;]*", re.IGNORECASE)
_NUMBER = re.compile(r"\\frac\{-?\d+\}\{-?\d+\}|\d+(?:[.,]\d+)*|\.\d+")
# What may stand between two numbers and make them one expression, equation or list.
_RUN = re.compile(
    r"(?:(?:\\(?:frac|dfrac|sqrt|times|cdot|div|pm|approx|left|right|pi|leq?|geq?)\b|[€£¥₹$]"
    r"|\b(?:or|and|to|through|minus|plus|times|mod|sqrt)\b|[-+*/^=×÷·!%(){}\[\],;<>≤≥±≈√]"
    r"|\d+(?:[.,]\d+)*|\.\d+|(?<![A-Za-z\d])[xX](?![A-Za-z]))[ \t]*)+"
)
_UNIT_AFTER = re.compile(
    r"[ \t]*(?:\\?%|percent\b|pct\b|°|\^\\circ|\\text\{[^{}]*\}|(?:€|£|m²|m\^2|cm|km)(?![A-Za-z]))?"
)
_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ɏ])[A-Za-zÀ-ɏ]{2,}(?![0-9A-Za-zÀ-ɏ])")
_SENTENCE_END = re.compile(
    r"(?<![A-Z\d])(?<!Mr)(?<!Ms)(?<!Mrs)(?<!Dr)(?<!St)(?<!vs)[.!?](?=\s+[A-Z(])|(?<=\d)[.!?](?=\s+[A-Z(])"
)
_NEGATED = re.compile(r"\$?\s*(?:not\b|n't|isn't|never\b|\\neq?|≠|不是)", re.IGNORECASE)
# In a sentence, these make another value of the number beside them.
_CHANGED = re.compile(
    r"\b(?:to the (?:power|\w+(?:th|rd|nd))|squared|cubed|factorial|times|twice|half|thirds?|plus|minus"
    r"|(?:divid|multipli)ed by|(?:more|less|fewer|greater|smaller) than|at (?:least|most)|between|up to|modulo?)\b",
    re.IGNORECASE,
)
_GAVE_UP = re.compile(
    r"\bI (?:give up|(?:do not|don['’]t) know|(?:cannot|can['’]t) (?:say|tell|answer|solve))\b", re.IGNORECASE
)
_DENIED = re.compile(r"\b(?:is|are) (?:wrong|incorrect|(?:\w+ly )?not)\b", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|be|equals?|it's|that's)(?![A-Za-z']):?|(?<![<>!=\d])(?<!\d ):(?=\s)")
_QUESTION = re.compile(r"[^.!?]{0,200}\?\W*$")
_ASIDE = re.compile(r",? (?:which|because|since|as (?:the|it|we|this)|where)\b|, (?:and )?not\b", re.IGNORECASE)
_ANSWER_COLON = re.compile(r"answer(?: is)?\**\s*:\** ?", re.IGNORECASE)
_PREDICATE = re.compile(
    r"\b(?:is|are|not|it's|the|we|that|so|be|was|were|find|get|gets|has|have|had|costs?|earn(?:s|ed)?|needs?|makes?|made"
    r"|pays?|paid|spends?|spent|gives?|leaves?|therefore|thus|hence|there|he|she|they|it|you)\b|(?<!\d)(?<!\d ):\s",
    re.IGNORECASE,
)


def extract_answer(completion: str) -> Extraction:
    """The answer that a completion commits to, by the policy at the head of this module.

    Never raises, and takes time linear in the length. Only the last 400,000 characters are looked at.
    """
    text = _spoken_part(completion)
    if isinstance(text, Extraction):
        return text
    return _tagged(text) or _boxed(text) or _phrased(text) or _unmarked(text)


def extract_choice(completion: str) -> Extraction:
    """As ``extract_answer``, for multiple choice: with no box and no phrase, the last line is the answer."""
    text = _spoken_part(completion)
    if isinstance(text, Extraction):
        return text
    marked = _tagged(text) or _boxed(text) or _phrased(text)
    return marked or Extraction(text.rstrip().rpartition("\n")[2][-MAX_ANSWER:], Found.LAST)


def extract_lines(completion: str, *, lines: int) -> Extraction:
    """As ``extract_answer``, for answers that are texts rather than mathematics, of ``lines`` lines.

    An answer in tags or in a box is all that stands there. Of several lines, it is else what follows the last
    ``Answer:``, or the last ``lines`` lines, a code fence around them not counting. Of one line, it is what follows
    ``Answer:``, or the whole completion if that is one line, or else what ``extract_answer`` finds.
    """
    text = _spoken_part(completion if lines <= 1 else completion.replace("```", ""))
    if isinstance(text, Extraction):
        return text
    marked = _tagged(text) or _boxed(text)
    if marked is not None:
        return marked
    if lines > 1:
        tail = _last_match(_ANSWER_COLON, text)
        chosen = text[tail.end() :] if tail else "\n".join(text.rstrip().split("\n")[-lines:])
        chosen = chosen.strip("\n").rstrip()
        return (
            Extraction(chosen[:MAX_TEXT], Found.PHRASE if tail else Found.LAST)
            if chosen.strip()
            else Extraction(None, reason=NO_ANSWER)
        )
    phrase = _phrased(text)
    if phrase is not None:
        return phrase
    return Extraction(text[:MAX_TEXT], Found.WHOLE) if "\n" not in text else _unmarked(text)


def _last_match(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text, start):  # noqa: B007 - the last one is wanted
        pass
    return match


def _spoken_part(completion: str) -> str | Extraction:
    """The part of a completion that is meant for the reader; an ``Extraction`` without text if there is none."""
    text = completion[-MAX_CHARACTERS:]
    close = _last_match(_THINK_CLOSE, text)
    if close is not None:
        text = text[close.end() :]
    if _THINK_OPEN.search(text):
        return Extraction(None, reason="unclosed think tag")
    turn = _NEXT_TURN.search(text, 1)
    if turn and text[: turn.start()].strip():
        text = text[: turn.start()]
    text = _CALCULATOR.sub("", _FENCE.sub("\n", _CHAT_TOKEN.sub(" ", text))).strip()
    return text or Extraction(None, reason=NO_ANSWER)


def _tagged(text: str) -> Extraction | None:
    tags: list[str] = []
    start = None
    for mark in _ANSWER_TAG.finditer(text):
        if mark[1] and start is not None and text[start : mark.start()].strip():
            tags.append(text[start : mark.start()])
        start = None if mark[1] else mark.end()
    if not tags:
        return None
    if len({_identity(tag[:MAX_ANSWER]) for tag in tags[:100]}) > 1:
        return Extraction(" ; ".join(tag.strip() for tag in tags)[:MAX_ANSWER], Found.PHRASE, several=True)
    return _boxed(tags[-1]) or Extraction(tags[-1].strip()[:MAX_ANSWER], Found.PHRASE)


def _denied(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 60) : start]
    return bool(_NEGATION.search(before)) or bool(_DENIAL.match(text[end : end + 80]))


def _boxed(text: str) -> Extraction | None:
    found, unclosed = boxes(text)
    if not found and not unclosed:
        return None
    end = found[-1][1] if found else 0
    hope = _last_match(_HOPE, text, end)
    if hope is not None:
        return _from_phrase(text, hope.start(1), hope.end(1))
    if unclosed:
        return Extraction(None, reason="unclosed box")
    contents = [opened(content) for _, _, content in found]
    if not contents[-1]:
        return Extraction(None, reason="empty box")
    if _denied(text, found[-1][0], end):
        return Extraction(None, reason=DENIED)
    if inside_expression(text, found[-1][0], end):
        return Extraction(None, reason="box inside an expression")
    distinct: dict[str, str] = {}
    for content in contents:
        if content:
            distinct.setdefault(_identity(content[:MAX_ANSWER]), content)
        if len(distinct) > 100:
            return Extraction(None, reason="several answers")
    joined = ", ".join(distinct.values())
    if (
        len(distinct) == 1
        and len(joined) <= MAX_ANSWER
        and _sentence(said := words(joined))
        and not _CHANGED.search(said)
    ):
        inner = _from_phrase(said, 0, len(said))
        return Extraction(inner.text, Found.BOX, inner.reason, inner.several)
    if len(joined) > MAX_ANSWER:
        return Extraction(joined[:MAX_ANSWER], Found.BOX, reason="too long", several=len(distinct) > 1)
    return Extraction(joined, Found.BOX, several=len(distinct) > 1)


def _identity(answer: str) -> str:
    """Equal for answers that say the same: one number, or one text."""
    text = tidy(answer)
    numeral = read_numeral(text)
    return key(text) if numeral is None else f"{numeral.value}{'%' * numeral.percent} {numeral.unit}"


def _phrased(text: str) -> Extraction | None:
    hope = _last_match(_HOPE, text)
    if hope is not None:
        return _from_phrase(text, hope.start(1), hope.end(1))
    best: re.Match[str] | None = None
    for pattern in _PHRASES:
        for match in pattern.finditer(text):
            line = match.end("x")
            # "The answer is 12. No, the answer is 13.": one line, two phrases.
            while (stop := _SENTENCE_END.search(text, match.start("x"), line)) and (
                later := pattern.search(text, stop.end(), line)
            ):
                match = later
            if best is None or match.start("x") >= best.start("x"):
                best = match
    if best is None:
        return None
    return _from_phrase(text, best.start("x"), best.end("x"))


def _from_phrase(text: str, start: int, end: int) -> Extraction:
    """The answer in what follows ``Answer:`` and the like."""
    display = _MATH.match(text, start)
    if display is not None and display.end() > end:
        end = display.end()
    phrase = text[start:end]
    sentence = _SENTENCE_END.search(phrase)
    if sentence is not None and "$" not in phrase[sentence.start() :]:
        phrase = phrase[: sentence.start()]
    phrase = phrase.strip().strip("*_`\"' ").rstrip(".。!,;").strip("*_`\"' ")
    if phrase.endswith("\\") or phrase.startswith('\\"'):
        phrase = phrase.replace('\\"', "").strip("\\\"' ")
    if not phrase:
        return Extraction(None, reason=NO_ANSWER)
    verb = _last_match(_VERB, _hide_math(phrase))
    tail = phrase[verb.end() :].strip("*_ ") if verb else ""
    said = tail if _NUMBER.search(tail) or _MATH.search(tail) else phrase
    # Of "the number is not 10, it is 11" only what the last verb says counts.
    if (
        _NEGATED.match(said)
        or _DENIED.search(said)
        or (said is phrase and _NEGATION.search(text[max(0, start - 12) : start]))
    ):
        return Extraction(None, reason=DENIED)
    aside = _ASIDE.search(phrase)
    before = phrase[: aside.start()] if aside else ""
    if aside and (_NUMBER.search(before) or _MATH.search(before)) and not _DENIED.search(before):
        phrase = before.rstrip()
        verb = _last_match(_VERB, _hide_math(phrase))
        tail = phrase[verb.end() :].strip("*_ ") if verb else ""
        said = tail if _NUMBER.search(tail) or _MATH.search(tail) else phrase
    if not _prose(phrase) and not _sentence(phrase):
        return Extraction(phrase[:MAX_ANSWER], Found.PHRASE)
    if said is not phrase and not _prose(said):
        return Extraction(said[:MAX_ANSWER], Found.PHRASE)
    return _single(said)


def _hide_math(text: str) -> str:
    return _MATH.sub(lambda m: " " * len(m[0]), text)


def _single(phrase: str) -> Extraction:
    """The one mathematical thing in a phrase that has prose too; several different ones stay a list."""
    thing = _MATH.search(phrase) or _NUMBER.search(phrase)
    if thing is not None and _NEGATION.search(phrase[: thing.start()]):
        return Extraction(None, reason=DENIED)
    spans = [next(g for g in m.groups() if g is not None).strip() for m in _MATH.finditer(phrase)]
    rest = _MATH.sub(" ", phrase)
    numbers = _NUMBER.findall(rest)
    if spans and not numbers:
        distinct = list({key(tidy(span)): span for span in spans})
        chosen = list({key(tidy(span)): span for span in spans}.values())
        if len(distinct) == 1 and "%" in rest[:200] and "%" not in chosen[0]:
            return Extraction(chosen[0] + "\\%", Found.PHRASE)
        return Extraction(", ".join(chosen)[:MAX_ANSWER], Found.PHRASE, several=len(distinct) > 1)
    if len(set(numbers)) == 1 and not spans:
        return Extraction(_run(phrase), Found.PHRASE)
    if not numbers and not spans:
        return Extraction(phrase[:MAX_ANSWER], Found.PHRASE)
    run = _run(phrase)
    return Extraction(
        phrase[:MAX_ANSWER] if run is None else ", ".join([*spans, *numbers])[:MAX_ANSWER], Found.PHRASE, several=True
    )


def _prose(text: str) -> bool:
    """Whether a line is more than an answer with its unit: four words or more, or mathematics inside a sentence."""
    plain = re.sub(r"\\text(?:bf|rm|normal)?\{[^{}]*\}|\\[A-Za-z]+", " ", _MATH.sub(" 1 ", text))
    count = len([w for w in _WORD.findall(plain) if w.lower() not in {"and", "or", "sqrt", "pi"}])
    has_value = bool(_NUMBER.search(text) or _MATH.search(text))
    return count > (3 if has_value else 8)


def _unmarked(text: str) -> Extraction:
    """No box and no phrase: the whole, if it is nothing but an answer; else the last mathematics or number."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return Extraction(None, reason=NO_ANSWER)
    bare = strip_all(text)
    if len(bare) <= 400 and (len(lines) == 1 or r"\begin" in bare) and not _sentence(bare):
        return Extraction(bare, Found.WHOLE)
    whole = _MATH.fullmatch(text)
    if whole is not None and len(text) <= MAX_ANSWER:
        return Extraction(next(g for g in whole.groups() if g is not None).strip(), Found.WHOLE)
    if _GAVE_UP.search(text[-300:]):
        return Extraction(None, reason=DENIED)
    for line in reversed(lines[-200:]):
        if len(line) > 20_000:
            line = line[-20_000:]
        found = _last(line)
        if found is not None:
            return found
    return Extraction(None, reason=NO_ANSWER)


def strip_all(text: str) -> str:
    """Without the ``$`` around a single piece of mathematics, and without emphasis."""
    text = text.strip().strip("*_`").strip()
    whole = _MATH.fullmatch(text.rstrip("."))
    return next(g for g in whole.groups() if g is not None).strip() if whole else text


def _sentence(line: str) -> bool:
    """Whether a short line is a sentence about the answer rather than the answer."""
    plain = re.sub(r"\\[A-Za-z]+", " ", re.sub(r"\\text(?:bf|rm|normal)?\{[^{}]*\}", " ", line))
    plain = _MATH.sub(" 1 ", plain)
    found = [w for w in _WORD.findall(plain) if w.lower() not in {"and", "or", "sqrt"}]
    if not _NUMBER.search(line) and not _MATH.search(line):
        return len(found) > 8
    if _PREDICATE.search(plain):
        return True
    return len(found) > 5 or (bool(_MATH.search(line)) and bool(found) and bool(re.match(r"\s*[A-Za-z]{3,}", plain)))


def _last(line: str) -> Extraction | None:
    spans = list(_MATH.finditer(line))
    number = _last_match(_NUMBER, line)
    if spans and (number is None or number.start() < spans[-1].end() or _unit_only(line[spans[-1].end() :])):
        return _last_span(line, spans)
    if number is None:
        return None
    found = _run(line)
    if found is None:
        return None
    start = line.rfind(found)
    if _denied(line, start, start + len(found)) or _QUESTION.match(line, start + len(found)):
        return Extraction(None, reason=DENIED)
    return Extraction(found, Found.LAST)


def _unit_only(rest: str) -> bool:
    return not _NUMBER.search(rest)


def _last_span(line: str, spans: list[re.Match[str]]) -> Extraction:
    chosen = [spans[-1]]
    for earlier, later in zip(reversed(spans[:-1]), reversed(spans), strict=False):
        between = line[earlier.end() : later.start()]
        if not between.strip() or not _JOINT.fullmatch(between):
            break
        chosen.insert(0, earlier)
    if _denied(line, chosen[0].start(), chosen[-1].end()):
        return Extraction(None, reason=DENIED)
    parts = [next(g for g in span.groups() if g is not None).strip() for span in chosen]
    answer = ", ".join(parts)
    if re.match(r"\s*(?:\\?%|percent\b|pct\b)", line[chosen[-1].end() :]) and "%" not in answer:
        answer += "\\%"
    return Extraction(answer[:MAX_ANSWER], Found.LAST, several=len(parts) > 1)


def _run(line: str) -> str | None:
    """The last number of a line with all that belongs to it: its equation, expression, list, sign and unit."""
    last = None
    for run in _RUN.finditer(line):
        if re.search(r"\d", run[0]):
            last = run
    if last is None:
        return None
    before = line[: last.start()]
    start = last.start()
    if before and before[-1].isalnum():
        glued = re.search(r"[A-Za-z0-9_]+$", before)
        return line[glued.start() if glued else start : last.end()].strip()
    text = last[0]
    trimmed = re.sub(r"^(?:\s*(?:or|and|to|through|minus|plus|times|mod|[),;=\]}/*!%]|-\s)\s*)+", "", text, count=1)
    trimmed = re.sub(r"(?:\s*(?:\bor|\band|\bto|\bthrough|[,;(\[{<>]|-|\$)\s*)+$", "", trimmed).strip()
    while trimmed and not _paired(trimmed) and trimmed[-1] in ")]}":
        trimmed = trimmed[:-1].rstrip()
    unit = _UNIT_AFTER.match(line, last.end())
    after = unit[0].strip() if unit else ""
    return f"{trimmed} {after}".strip() if after else trimmed


def _paired(text: str) -> bool:
    return balanced(text) and text.count("(") + text.count("[") >= text.count(")") + text.count("]")
