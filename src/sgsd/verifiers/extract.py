r"""The one extractor: completion → the answer it commits to. Training, evaluation and every verifier use this and no
other.

First, what is no answer goes: thoughts (``thinking``), what follows the model's turn, code, ``<<3*4=12>>``. Blanks are
collapsed. Then the first of these that there is counts (``docs/verifier.md`` has the measurements behind it):

1. ``<answer>…</answer>``, or a JSON object's ``"answer"``.
2. Boxes. Equal boxes are one box; different ones are a *list* of answers, and so are right only where the reference is
   that list. An unclosed or empty last box means no answer.
3. What the last announcement announces: ``#### X``, ``Answer: X``, ``the answer is X``, ``la respuesta es X``.
4. A completion that is nothing but an answer: one line without prose.
5. The last value of the last line that has any, with everything that belongs to it: of ``54, 55, 56`` or ``28 + 28``
   that is the whole, never the last number alone.

An answer that the words around it deny, question, take back or change is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sgsd.verifiers import phrases
from sgsd.verifiers.boxes import Mathematics, boxes, inside_expression, mathematics, opened
from sgsd.verifiers.letters import letters_of
from sgsd.verifiers.numerals import read_numeral
from sgsd.verifiers.thinking import answer_part
from sgsd.verifiers.tidy import balanced, key, tidy, words

MAX_CHARACTERS = 400_000
MAX_ANSWER = 4_000
MAX_TEXT = 40_000
_MAX_LINE = 20_000
_MAX_GUESSES = 100
_AROUND = 80


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
        several: whether ``text`` joins several different answers.
    """

    text: str | None
    found: Found = Found.NOTHING
    reason: str | None = None
    several: bool = False


NO_ANSWER = "no answer"
DENIED = "denied answer"
_NOTHING = Extraction(None, reason=NO_ANSWER)
_DENIED = Extraction(None, reason=DENIED)


def extract_answer(completion: str) -> Extraction:
    """The answer that a completion commits to, by the policy at the head of this module.

    Never raises, and takes time linear in the length. Only the last 400,000 characters are looked at.
    """
    text = spoken(completion)
    if isinstance(text, Extraction):
        return text
    return _marked(text) or _announced(text) or _unmarked(text)


def extract_choice(completion: str) -> Extraction:
    """As ``extract_answer``, for multiple choice: the whole statement in which the answer stands, to be looked through
    for options. Without box or announcement, the last line that names one."""
    text = spoken(completion)
    if isinstance(text, Extraction):
        return text
    marked = _marked(text)
    if marked is not None:
        return marked
    marks = sorted([*phrases.announcements(text), *(mark.span() for mark in phrases.CHOSEN.finditer(text))])
    for start, end in reversed(marks[-_MAX_GUESSES:]):
        line, _, more = text[end : end + MAX_ANSWER].lstrip(" *_:>\n").partition("\n")
        if letters_of(line):
            denied = phrases.SUPPOSED.search(text[max(0, start - _AROUND) : start]) or phrases.NOT.search(text, start, end)
            return _DENIED if denied or phrases.TAKEN_BACK.match(more) else Extraction(line, Found.PHRASE)
    line = next((line for line in reversed(text.split("\n")[-50:]) if letters_of(line[-MAX_ANSWER:])), "")
    return Extraction(line[-MAX_ANSWER:], Found.LAST) if line else _NOTHING


def extract_lines(completion: str, *, lines: int) -> Extraction:
    """As ``extract_answer``, for answers that are texts rather than mathematics, of ``lines`` lines.

    An answer in tags or in a box is all that stands there. Of several lines, it is else what follows the last
    ``Answer:``, or the last ``lines`` lines, a code fence around them not counting. Of one line, it is what follows
    ``Answer:``, or the whole completion if that is one line, or else what ``extract_answer`` finds.
    """
    text = spoken(completion) if lines <= 1 else _own_turn(completion)
    if isinstance(text, Extraction):
        return text
    if lines <= 1:
        marked = _marked(text) or _announced(text)
        if marked is not None or "\n" in text:
            return marked or _unmarked(text)
        return Extraction(text[:MAX_TEXT], Found.WHOLE)
    text = text.replace("```", "")
    marked = _marked(text)
    if marked is not None:
        return marked
    *_, tail = _ANSWER_COLON.split(text)
    chosen = tail if tail is not text else "\n".join(text.rstrip().split("\n")[-lines:])
    chosen = chosen.strip("\n").rstrip()
    found = Found.LAST if tail is text else Found.PHRASE
    return Extraction(chosen[:MAX_TEXT], found) if chosen.strip() else _NOTHING


_ANSWER_COLON = re.compile(r"answer(?: is)?\**:\** ?", re.IGNORECASE)

# ---- what a model says in its turn


_NEXT_TURN = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|eot|endoftext|end_of_text|return|user|turn)\|?>|<\|start\|>(?!assistant)"
    r"|</s>|<eos>|<start_of_turn>|<end_of_turn>|<turn\|>|<\|END_OF_TURN_TOKEN\|>|\[/?INST\]|<｜(?:end▁of▁sentence|User)｜>"
)
_CHAT_TOKEN = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>")
_FENCE = re.compile(r"^[ >]{0,9}```+ ?([\w+#-]{0,20})[^\n`]*\n(.*?)(?:^[ >]{0,9}```|\Z)", re.DOTALL | re.MULTILINE)
_NO_CODE = frozenset(
    ("", *"text txt plaintext plain latex tex math json jsonc yaml xml markdown md output answer".split())
)
_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_EMPHASIS = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?![\w(\\])")


def _own_turn(completion: str) -> str | Extraction:
    text = completion[-MAX_CHARACTERS:]
    turn = _NEXT_TURN.search(text, 1)
    if turn and text[: turn.start()].strip():
        text = text[: turn.start()]
    text = answer_part(text)
    if text is None:
        return Extraction(None, reason="unclosed think tag")
    return _CHAT_TOKEN.sub(" ", text) if text.strip() else _NOTHING


def spoken(completion: str) -> str | Extraction:
    """The part of a completion that may hold its answer, a line of it in each line; an ``Extraction`` without text if
    there is none.

    Emphasis goes; a run of blanks, of any kind, becomes one blank, and a displayed formula one line.
    """
    text = _own_turn(completion)
    if isinstance(text, Extraction):
        return text
    text = _FENCE.sub(lambda fence: f"\n{fence[2]}\n" if fence[1].lower() in _NO_CODE else "\n", text)
    text = _EMPHASIS.sub("", _CALCULATOR.sub("", text))
    text = "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)
    pieces: list[str] = []
    position = 0
    for piece in mathematics(text):
        pieces += [text[position : piece.start], text[piece.start : piece.end].replace("\n", " ")]
        position = piece.end
    return "".join([*pieces, text[position:]]) or _NOTHING


# ---- tags, JSON, boxes

_ANSWER_TAG = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
_OBJECT = re.compile(r"^ ?\{[ \n]{0,2}[\"'](?=\w)", re.MULTILINE)
_KEY = re.compile(r"[\"'](\w[\w ]{0,40})[\"'][ \n]?:")
_REASONING = re.compile(r"reason|though|think|expla|analys|step|work|scratch|solution", re.IGNORECASE)
_FIELD = re.compile(
    r"[\"'](?:final[ _]?|correct[ _]?)?(?:answer|result|solution)[\"'] ?: ?"
    r"(?:\"((?:[^\"\\]|\\.)*+)\"|'((?:[^'\\]|\\.)*+)'|\[([^\[\]]*+)\]|([^\s,}\"'\[{][^,}\n]*+))",
    re.IGNORECASE,
)


def _marked(text: str) -> Extraction | None:
    return _tagged(text) or _field(text) or _boxed(text)


def _tagged(text: str) -> Extraction | None:
    tags: list[str] = []
    start = None
    for mark in _ANSWER_TAG.finditer(text):
        if mark[1] and start is not None and text[start : mark.start()].strip():
            tags.append(text[start : mark.start()].strip())
        start = None if mark[1] else mark.end()
    return _one_of(tags, Found.PHRASE) if tags else None


def _field(text: str) -> Extraction | None:
    """The answer of a JSON object, strict or not. The reasoning in its other fields is not looked at."""
    start = _OBJECT.search(text)
    if start is None:
        return None
    end = text.rfind("}") + 1 or len(text)
    if boxes(text[: start.start()])[0] or boxes(text[end:])[0]:
        return None
    fields = list(_FIELD.finditer(text, start.start()))
    if not fields:
        keys = _KEY.findall(text, start.start())
        return None if len(keys) == 1 and not _REASONING.match(keys[0]) else _NOTHING
    values = [next(group for group in field.groups() if group is not None) for field in fields]
    return _one_of([_unescaped(value) for value in values], Found.PHRASE)


def _unescaped(value: str) -> str:
    r"""A JSON string's text. ``\\frac`` and, as models write it, ``\frac`` are the same."""
    return re.sub(r'\\([\\"/])', r"\1", value).strip()


def _one_of(answers: list[str], found: Found) -> Extraction:
    """One answer, if those given in one kind of place are the same."""
    if len({_identity(answer[:MAX_ANSWER]) for answer in answers[:_MAX_GUESSES]}) > 1:
        return Extraction(" ; ".join(answers)[:MAX_ANSWER], found, several=True)
    answer = answers[-1]
    boxed = _boxed(answer)
    if boxed is not None:
        return boxed
    if _is_prose(answer):
        return _announced(answer) or _stated(answer, found)
    return Extraction(answer[:MAX_ANSWER], found) if answer else _NOTHING


def _boxed(text: str) -> Extraction | None:
    found, unclosed = boxes(text)
    if not found and not unclosed:
        return None
    start, end, _ = found[-1] if found else (0, 0, "")
    hope = text.rfind(phrases.HOPE, end)
    if hope >= 0 and (replacing := _announced(text[end:hope])):
        return replacing
    if unclosed:
        return Extraction(None, reason="unclosed box")
    contents = [opened(content) for _, _, content in found]
    if not contents[-1]:
        return Extraction(None, reason="empty box")
    if _is_denied(text, start, end):
        return _DENIED
    if inside_expression(text, start, end):
        return Extraction(None, reason="box inside an expression")
    distinct: dict[str, str] = {}
    for content in filter(None, contents):
        distinct.setdefault(_identity(content[:MAX_ANSWER]), content)
        if len(distinct) > _MAX_GUESSES:
            return Extraction(None, reason="several answers")
    joined = ", ".join(distinct.values())
    if len(joined) > MAX_ANSWER:
        return Extraction(joined[:MAX_ANSWER], Found.BOX, "too long", len(distinct) > 1)
    said = words(joined)
    if len(distinct) == 1 and _is_prose(said):
        return _announced(said) or _stated(said, Found.BOX)
    return Extraction(joined, Found.BOX, several=len(distinct) > 1)


def _identity(answer: str) -> str:
    """Equal for answers that say the same: one number, or one text."""
    text = tidy(answer)
    numeral = read_numeral(text)
    return key(text) if numeral is None else f"{numeral.value / (100 if numeral.percent else 1)} {numeral.unit}"


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether the words right around an answer deny it, ask for it or take it back."""
    before = text[max(0, start - _AROUND) : start]
    after = re.sub(r"\\text\w{0,6}\{ ?", "", text[end : end + _AROUND])
    return bool(
        phrases.NOT_BEFORE.search(before)
        or phrases.SUPPOSED.search(before)
        or phrases.TAKEN_BACK.match(after)
        or phrases.CHANGED_AFTER.match(after)
    )


# ---- announcements


def _announced(text: str) -> Extraction | None:
    """What the last announcement that says something announces."""
    for mark, start in reversed(phrases.announcements(text)[-_MAX_GUESSES:]):
        end = text.find("\n", start)
        if 0 <= end and not text[start:end].strip(" *_:>"):
            start = end + 1
            end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)][:_MAX_LINE]
        if not line or phrases.EMPTY_WORDS.match(line[:_AROUND]):
            continue
        if phrases.SUPPOSED.search(text[max(0, mark - _AROUND) : mark]) or phrases.NOT.search(text, mark, start):
            return _DENIED
        stated = _stated(line, Found.PHRASE)
        if stated.text is not None and phrases.TAKEN_BACK.match(text[start + len(line) : start + len(line) + _AROUND]):
            return _DENIED
        return stated
    return None


def _stated(line: str, found: Found) -> Extraction:
    """The one answer that a statement names: itself, or the value in it."""
    end = phrases.SENTENCE_END.search(_hidden(line))
    sentence, rest = (line[: end.end()], line[end.end() :]) if end else (line, "")
    if sentence.rstrip("*_`\"' )").endswith(("?", "？")) or phrases.TAKEN_BACK.match(rest):
        return _DENIED
    sentence, note = _noted(sentence)
    sentence = _stripped(sentence)
    if not sentence:
        return _NOTHING
    if phrases.WRONG.search(sentence) or phrases.TAKEN_BACK.match(note):
        return _DENIED
    said = sentence
    verb = _last_match(phrases.VERB, _hidden(sentence))
    if verb and _values(tail := sentence[verb.end() :].strip()):
        said = tail
    # Of "the number is not 10, it is 11" only what the last verb says counts.
    if phrases.NOT.search(said) if _is_prose(said) else phrases.NOT.match(said) and _values(said):
        return _DENIED
    if not _is_prose(sentence):
        return Extraction(sentence[:MAX_ANSWER], found)
    if not _is_prose(said):
        return Extraction(said[:MAX_ANSWER], found)
    values = _values(said)
    if not values:
        return Extraction(said[:MAX_ANSWER], found)
    distinct = {_identity(value.text): value for value in values}
    if len(distinct) > 1:
        return Extraction(", ".join(value.text for value in distinct.values())[:MAX_ANSWER], found, several=True)
    return _valued(said, values, found)


def _noted(sentence: str) -> tuple[str, str]:
    """A sentence without the note at its end, and that note: ``63``, ``, which is 7 * 9``."""
    note = phrases.NOTE.search(_hidden(sentence), 1)
    return (sentence[: note.start()], sentence[note.start() :]) if note else (sentence, "")


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return match


_SYMBOLS = " \ufe0f✅✔✓➡→⇒👉🎉🔹➤►▶•★☆"


def _stripped(text: str) -> str:
    text = text.strip().strip("*_`\"' ").rstrip(".。!,;").strip("*_`\"' ")
    text = re.sub(r"^\(([^()=]*+=[^()]*+)\)$", r"\1", text.strip(_SYMBOLS))
    while text and text[-1] in ")]}" and not _paired(text):
        text = text[:-1].rstrip()
    return text.replace('\\"', "").strip("\\\"' ") if text.endswith("\\") or text.startswith('\\"') else text


# ---- values in a line

_TEXT = re.compile(r"\\text(?:bf|rm|normal)?\{[^{}]*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ɏ])[A-Za-zÀ-ɏ]{2,}(?![0-9A-Za-zÀ-ɏ])")
_FOREIGN = re.compile(r"(?![\d×÷])[À-ɏ\u0400-\u1eff\u3040-\u9fff\uac00-\ud7a3]")
_NO_PROSE = frozenset(
    "and or sqrt pi approximately approx about exactly only roughly around ln log sin cos tan exp rs usd eur us".split()
)
_DIGITS = r"\d+(?:[.,]\d+)*+|\.\d+"
_VALUE = re.compile(rf"\\frac\{{-?\d+\}}\{{-?\d+\}}|{_DIGITS}")


@dataclass(frozen=True, slots=True)
class _Value:
    start: int
    end: int
    text: str


# A word in lower case right before a number: "equals 63", "il y a 63"; not "Room 63".
_LED = re.compile(r"(?<![^\s])[a-z]+ \Z")


def _is_prose(text: str) -> bool:
    """Whether a text is a sentence about an answer rather than an answer, with its unit perhaps."""
    pieces = mathematics(text)
    plain = _COMMAND.sub(" ", _TEXT.sub(" ", _replaced(text, pieces, " 1 ")))
    found = [word for word in _WORD.finditer(plain) if word[0].lower() not in _NO_PROSE]
    if not pieces and not _VALUE.search(text):
        return len(found) > 8
    if phrases.PREDICATE.search(plain) or _FOREIGN.search(plain) or plain.count("|") > 2:
        return True
    value = _VALUE.search(plain)
    lead = [word for word in found if value and word.start() < value.start()]
    return len(found) > 4 or len(lead) > 1 or bool(value and lead and _LED.search(plain[: value.start()]))


def _hidden(text: str) -> str:
    """A text of the same length with marks that no pattern knows in place of its mathematics."""
    return _replaced(text, mathematics(text))


def _replaced(text: str, pieces: Sequence[Mathematics], by: str = "") -> str:
    parts: list[str] = []
    position = 0
    for piece in pieces:
        parts += [text[position : piece.start], by or "\0" * (piece.end - piece.start)]
        position = piece.end
    return "".join([*parts, text[position:]])


def _unmarked(text: str) -> Extraction:
    """No box and no phrase: the whole, if it is nothing but an answer; else the last value."""
    lines = text.split("\n")
    guesses = _guesses(lines[-_MAX_GUESSES:])
    if len(guesses) > 1 or len(phrases.GUESSES.findall(text)) > 1:
        return Extraction(", ".join(guesses) or text[:MAX_ANSWER], Found.LAST, several=True)
    statement, note = _noted(text) if len(lines) == 1 else (text, "")
    if phrases.TAKEN_BACK.match(note):
        return _DENIED
    bare = _stripped(statement)
    if len(bare) <= 400 and (len(lines) == 1 or r"\begin" in bare) and not _is_prose(bare):
        pieces = mathematics(bare)
        whole = len(pieces) == 1 and (pieces[0].start, pieces[0].end) == (0, len(bare))
        return Extraction(pieces[0].inner if whole else bare, Found.WHOLE)
    if phrases.GAVE_UP.search(text[-300:]):
        return _DENIED
    for line in reversed(lines[-200:]):
        line = line[-_MAX_LINE:]
        if phrases.REMARK.match(line):
            continue
        before, note = _noted(line)
        values = _values(before)
        if values and phrases.TAKEN_BACK.match(note):
            return _DENIED
        values = values or _values(line)
        if values:
            return _valued(line, values, Found.LAST)
    return _NOTHING


def _guesses(lines: list[str]) -> list[str]:
    """The distinct numbers of the last lines that are nothing but a number, or "or"."""
    found: dict[str, str] = {}
    for line in reversed(lines):
        if read_numeral(line[:_AROUND]) is not None:
            found.setdefault(_identity(line[:_AROUND]), line[:_AROUND])
        elif not phrases.OR.fullmatch(line) and (found or _VALUE.search(line)):
            break
    return list(found.values())


def _valued(line: str, values: list[_Value], found: Found) -> Extraction:
    """The last value, unless the words around it make it another or none."""
    value = values[-1]
    if len(values) > 1 and phrases.OR.search(line, values[-2].end, value.start):
        return Extraction(", ".join(one.text for one in values[-2:])[:MAX_ANSWER], found, several=True)
    before, after = line[max(0, value.start - _AROUND) : value.start], line[value.end : value.end + _AROUND]
    if _is_denied(line, value.start, value.end) or after.rstrip("*_`\"' )$.").endswith(("?", "？")):
        return _DENIED
    if phrases.CHANGED_BEFORE.search(before) or phrases.NOT_ELSEWHERE.search(line):
        return _DENIED
    return Extraction(value.text[:MAX_ANSWER], found)


# What may stand between two numbers and make them one expression, equation or list.
_TOKEN = re.compile(
    rf"(?P<number>{_DIGITS})|\\(?:frac|dfrac|sqrt|times|cdot|div|pm|approx|left|right|pi|leq?|geq?)(?![A-Za-z])|[€£¥₹$]"
    r"|(?<![A-Za-z])(?:or|and|to|through|minus|plus|times|mod|sqrt|pi|x)(?![A-Za-z])|[-+*/^=×÷·!%(){}\[\],;<>≤≥±≈√π]",
    re.IGNORECASE,
)
_JOINTS = frozenset(("and", "to", "through", *"),;=]}!%"))
_OPERATORS = frozenset(("times", "plus", "mod", *"+*/^×÷·"))
_LOOSE_ENDS = frozenset(("or", "and", "to", "through", *",;([{<>-$"))
_GLUED = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9_]++ ?\Z")
_MINUS = re.compile(r"\b(?:minus|negative) \Z", re.IGNORECASE)
_OR = re.compile(r",? or ", re.IGNORECASE)
_SCALE = r" ?(?:\\?%|percent\b|pct\b|°|\^\\circ)| (?:hundred|thousand|million|billion|trillion|dozen|score|lakh|crore|\w{3,9}(?:ths|rds))\b"
_SCALED = re.compile(_SCALE)
_AFTER = re.compile(rf"{_SCALE}| ?(?:\\text\{{[^{{}}]*\}}|(?:€|£|m²|m\^2|cm|km|[ap]\.?m\b)(?![A-Za-z]))|[A-Za-z]\w*+")


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    end: int
    text: str
    solid: bool  # a number or mathematics, not a sign


def _values(line: str) -> list[_Value]:
    """Everything in a line that is a number, an expression, an equation or a list, with all that belongs to it."""
    pieces = mathematics(line)
    blocks = [_Block(piece.start, piece.end, piece.inner, True) for piece in pieces]
    hidden = _replaced(line, pieces)
    blocks += [_Block(t.start(), t.end(), t[0], t["number"] is not None) for t in _TOKEN.finditer(hidden)]
    blocks.sort(key=lambda block: block.start)
    found: list[_Value] = []
    first = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or line[blocks[place - 1].end : blocks[place].start].strip(" "):
            value = _value(line, blocks[first:place])
            found += [value] if value else []
            first = place
    return found


def _value(line: str, run: list[_Block]) -> _Value | None:
    """What a run of numbers, signs and mathematics says, without the signs that only join it to the sentence."""
    first, last = 0, len(run)
    if not any(block.solid for block in run):
        return None
    while not run[first].solid and (run[first].text.lower() in _JOINTS or _is_dash(line, run[first])):
        first += 1
    while not run[last - 1].solid and run[last - 1].text.lower() in _LOOSE_ENDS:
        last -= 1
    if run[last - 1].text == "!" and not line[run[last - 1].end :].strip("*_`\"' )"):
        last -= 1  # an exclamation mark
    if last <= first:
        return None
    run = run[first + (run[first].text.lower() == "minus") : last]
    start, end = run[0].start, run[-1].end
    text = "".join(
        f"{line[before.end : block.start]}{block.text}" for before, block in zip([run[0], *run], run, strict=False)
    ).strip()
    while text and text[-1] in ")]}" and not _paired(text):
        text = text[:-1].rstrip()
    before = line[max(0, start - _AROUND) : start]
    alternatives = [part for part in _OR.split(text) if part]
    if len(alternatives) > 1 and len({_identity(part) for part in alternatives}) == 1:
        text = alternatives[0]  # 3/4, or 75 %
    glued = _GLUED.search(before)
    if glued and (run[0].text.lower() in _OPERATORS or not before.endswith(" ")) and not run[0].text.startswith("\\"):
        text = glued[0] + text
    elif _MINUS.search(before):
        text = f"-{text}"
    after = (_AFTER if run[-1].text[-1].isdigit() else _SCALED).match(line, end)
    return _Value(start, after.end() if after else end, text + (after[0] if after else ""))


def _is_dash(line: str, block: _Block) -> bool:
    """``- 5`` in a list, or ``total - 5``; not ``x - 5``."""
    apart = line[block.end : block.end + 1] == " "
    before = line[: block.start].rstrip()[-2:]
    return block.text == "-" and apart and (not before or before.isalpha() and len(before) == 2)


def _paired(text: str) -> bool:
    return balanced(text) and text.count("(") + text.count("[") >= text.count(")") + text.count("]")
