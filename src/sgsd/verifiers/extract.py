"""Extracts from a completion the answer that it commits to. Training, evaluation and every verifier use this extractor.

Thoughts, code and text after the model's turn are removed first. The answer is then taken from the first of these that
the completion has: answer tags or a JSON object; boxes; an announcement such as ``the answer is``, of which the last
counts. A completion with none of them either is the answer as a whole, or its last value is the answer. If the words
around an answer deny, question, retract or change it, there is no answer. docs/answers.md has all rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

from sgsd.verifiers import phrases, spans
from sgsd.verifiers.numerals import approximates, read_numeral
from sgsd.verifiers.thinking import answer_part
from sgsd.verifiers.tidy import tidy, words

MAX_CHARACTERS = 400_000
MAX_ANSWER = 4_000
MAX_TEXT = 40_000
_MAX_LINE = 20_000
_MAX_GUESSES = 100
_AROUND = 80


@dataclass(frozen=True, slots=True)
class Extraction:
    """The result of an extraction.

    Attributes:
        text: the answer as written, without its box, announcement or ``$``; ``None`` if there is none.
        reason: why there is no answer.
        several: whether ``text`` joins several different answers.
    """

    text: str | None
    reason: str | None = None
    several: bool = False


NO_ANSWER = "no answer"
_NOTHING = Extraction(None, reason=NO_ANSWER)
_DENIED = Extraction(None, reason="denied answer")


def extract_answer(completion: str) -> Extraction:
    """The answer that a completion commits to. Never raises. Only the last 400,000 characters are read, in linear
    time."""
    text = _cleaned(completion)
    return text if isinstance(text, Extraction) else _marked(text) or _announced(text) or _unmarked(text)


def extract_choice(completion: str) -> Extraction:
    """As ``extract_answer``, for multiple choice: the statement that names options, or the last line that does."""
    text = _cleaned(completion)
    if isinstance(text, Extraction):
        return text
    if marked := _marked(text):
        return marked
    text = re.sub(r"\([a-e]\)", lambda option: option[0].upper(), text)
    text = re.sub(r"(?<!\w)['‘]([A-Z])['’](?!\w)", r"\1", text)
    text = re.sub(r"(?<=\b[A-Z] or )[b-h](?!\w)|(?<=alternatively )[b-h](?!\w)", lambda letter: letter[0].upper(), text)
    for line, denied, following in _announcements(text, phrases.announcements(text, choice=True)):
        if spans.letters_of(line):
            if _CAPITAL.fullmatch(following):
                return _taken(line, following)
            # The text of the option may hold any words.
            return _DENIED if denied else _taken(_OPTION_FIRST.sub(r"\1.", line))
    lines = [line for line in text.split("\n")[-_MAX_GUESSES:] if spans.letters_of(line[-MAX_ANSWER:])]
    bare = list(takewhile(_LETTER.fullmatch, reversed(lines)))  # one guess a line
    return _taken(", ".join(bare or lines[-1:]))


def leading_option(completion: str) -> str | None:
    """The first line of a completion, if it is an option that the rest, an explanation, does not name again."""
    text = _cleaned(completion)
    first = _FIRST_OPTION.match(text) if isinstance(text, str) else None
    return first[0] if first and not re.search(rf"(?<![\w']){first[1]}(?![\w'])", first.string[first.end() :]) else None


_FIRST_OPTION = re.compile(r"\W{0,4}([A-Z])(?:\W{0,4}$|[.):] [^\n]{1,200}$)", re.MULTILINE)
_LETTER, _CAPITAL = re.compile(r"\W{0,9}[A-Za-z]\W{0,9}"), re.compile(r"\(?[A-Z]\)?\.?")
_OPTION_FIRST = re.compile(r"\A\W{0,9}([A-Z])\)(?= (?:[A-Z] ?)?[A-Za-z][a-z])")


def extract_lines(completion: str, *, lines: int) -> Extraction:
    """As ``extract_answer``, for answers that are texts of ``lines`` lines rather than mathematics.

    The content of tags or a box is the answer. Without them, an answer of several lines is the text after the last
    ``Answer:``, or else the last ``lines`` lines. An answer of one line is what is announced, or else the whole text if
    that is one line, or else what ``extract_answer`` finds.
    """
    text = _cleaned(completion) if lines <= 1 else _own_turn(completion)
    if isinstance(text, Extraction):
        return text
    text = text.replace("```", "")
    if marked := _marked(text):
        return marked
    if lines <= 1:
        return _announced(text) or (_unmarked(text) if "\n" in text else Extraction(text[:MAX_TEXT]))
    *before, tail = re.split(r"answer(?: is)?\**:\** ?", text, flags=re.IGNORECASE)
    return Extraction((tail if before else "\n".join(text.rstrip().split("\n")[-lines:])).strip()[:MAX_TEXT])


# ---- the model's own turn

_NEXT_TURN = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|eot|endoftext|end_of_text|return|user|turn)\|?>"
    r"|<\|start\|>(?!assistant)|</s>|<eos>|<start_of_turn>|<end_of_turn>|<turn\|>|<\|END_OF_TURN_TOKEN\|>"
    r"|\[/?INST\]"
    r"|<｜(?:end▁of▁sentence|User)｜>"
)
# The next turn written in words, or the next question, with which base models go on.
_TURN = re.compile(
    r"\n[ \t]{0,4}(?:(?:\*\*|#{1,4} ?)?(?:User|USER|Human|HUMAN|System|SYSTEM)(?: \d{1,3})? ?:"
    r"|#{1,4} ?(?:Instruction|Input|User|Human)\b|user\n)|[.!?] (?:User|Human):"
    r"|(?P<question>\n[ \t]{0,4}(?:(?:\*\*|#{1,4} ?)?(?:Instruction|Problem|Exercise|Example|Q"
    r"|(?:Next )?[Qq]uestion"
    r"|Frage|Pregunta|Pergunta|Domanda|Вопрос|问题|問題|質問|문제|질문)(?: \d{1,3})? ?[:：]"
    r"|#{1,4} ?Question\b)|[.!?] Question:)"
)
_SAID_SOMETHING = re.compile(r"\d|(?:not|n['’]t|cannot|sorry|unsure|no idea)\b|\bboxed", re.IGNORECASE)
_CHAT_TOKEN = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>")
_FENCE = re.compile(r"^[ >]{0,9}```+ ?([\w+#-]{0,20})[^\n`]*\n(.*?)(?:^[ >]{0,9}```|\Z)", re.DOTALL | re.MULTILINE)
_NO_CODE = frozenset(
    ("", "text", "txt", "plaintext", "latex", "tex", "math", "json", "jsonc", "yaml", "xml", "md", "markdown", "output")
)
# A form feed is no blank: JSON reads the \f of \frac as one.
_BLANKS, _BREAK = re.compile(r"\s{2,}|[^\S\f]"), re.compile(r"[\n\r\v\x85\u2028\u2029]")
# <<3*4=12>> (GSM8K's annotations), what is struck out, HTML comments, the R of R$ 5, the > of a quotation, and "q.e.d."
_REMOVED = re.compile(
    r"</?(?:b|i|u|p|br|em|strong|div|span|center|h[1-6]|solution|output) ?/?>|<<[^<>]{0,200}>>|~~[^~\n]{1,200}~~"
    r"|<!--(?:[^-<]|-(?!->)|<(?!!--))*+(?:-->|\Z)"
    r"|(?<![\w$\\])(?:R|US|HK|NZ|AU|CA|A|C)(?=\$ ?\d)"
    r"|^> (?=\S)| ?(?:\$|\\\()?\\(?:blacksquare|square|qed|Box)(?:\$|\\\))?\.?(?=\n|\Z)",
    re.MULTILINE,
)
# 7 x 9 = 63, 200 meters x 2 = 400
_TIMES = re.compile(r"(?:(?<=[\d%)])|(?<=[\d%)a-z] ))[xX](?= ?\$?\d[\d.,/%]{0,20} ?(?:[a-z]{2,15} ?)?=)")
_SENTENCE = re.compile(r" [A-Z][a-z]")
_EMPHASIS = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?![\w(\\])(?!(?<=10\*\*)-\d)")  # not the power x**2


def _before_next_turn(said: str) -> str | None:
    """The text before the next turn; ``None`` if no other turn follows. A question after a mere introduction is the
    problem, restated by the model."""
    for mark in islice(_TURN.finditer(said, len(said) - len(said.lstrip())), 2):
        start = mark.start()
        if not mark["question"] or _SAID_SOMETHING.search(said, 0, start):
            return said[:start]
    return None


def _own_turn(completion: str) -> str | Extraction:
    """The model's own turn without thoughts and chat tokens, or an ``Extraction`` without text if they never end."""
    text = completion[-MAX_CHARACTERS:].lstrip()
    if turn := _NEXT_TURN.search(text, 1):
        text = text[: turn.start()]
    text = answer_part(text, _before_next_turn)
    return Extraction(None, reason="unclosed think tag") if text is None else _CHAT_TOKEN.sub(" ", text)


def _cleaned(completion: str) -> str | Extraction:
    """The part of a completion that may hold its answer, or an ``Extraction`` without text if there is none.

    Code and emphasis are removed. A run of white space becomes one space or line break, a displayed formula one line.
    """
    text = _own_turn(completion)
    if isinstance(text, Extraction):
        return text
    text = _FENCE.sub(lambda fence: f"\n{fence[2] if fence[1].lower() in _NO_CODE else ''}\n", text)
    text = _EMPHASIS.sub("", _REMOVED.sub("", text))
    text = _BLANKS.sub(lambda run: "\n" if _BREAK.search(run[0]) else " ", text).strip()
    text = _TIMES.sub("×", text)

    def one_line(piece: spans.Value) -> str:
        displayed = text.startswith((r"\[", "$$", r"\begin"), piece.start)
        ends = "\n" if displayed and _SENTENCE.match(text, piece.end) else ""
        return text[piece.start : piece.end].replace("\n", " ") + ends

    return spans.change_mathematics(text, one_line) or _NOTHING


# ---- tags, JSON, boxes

_TAG = r"(?:(?:final_?)?answer|result|final)"
_TAGGED = re.compile(rf"[<\[]{_TAG}[>\]]((?:[^<\[]|[<\[](?!/?{_TAG}[>\]]))*+)[<\[]/{_TAG}[>\]]", re.IGNORECASE)
_OBJECT = re.compile(r"^ ?\[?[ \n]?\{[ \n]{0,2}[\"'](?=\w)", re.MULTILINE)
_KEY = re.compile(r"[\"'](\w[\w ]{0,40})[\"'][ \n]?:")
_SCALAR = re.compile(r": ?\"?([^\s\",{}\[\]][^\",{}\[\]\n]{0,200}+)\"?[ \n]?\}")
_REASONING = re.compile(r"reason|though|think|expla|analys|step|work|scratch|solution", re.IGNORECASE)
_FIELD = re.compile(
    r"[\"'](?:(?:final|correct|numeric|numerical|my)[ _]?)?(?:answer|result"
    r"|solution)[ _]?\d?[\"'] ?: ?(?:\{ ?[\"']value[\"'] ?: ?)?"
    r"(?:\"((?:[^\"\\]|\\.)*+)\"|'((?:[^'\\]|\\.)*+)'|\[([^\[\]]*+)\]|([^\s,}\"'\[{][^,}\n]*+))",
    re.IGNORECASE,
)


def _marked(text: str) -> Extraction | None:
    return _tagged(text) or _field(text) or _boxed(text)


def _tagged(text: str) -> Extraction | None:
    tags = [tag for tag in _TAGGED.finditer(text) if tag[1].strip()]
    if any(_is_denied(text, *tag.span()) for tag in tags):
        return _DENIED
    return _unless_contradicted(_one_of([tag[1].strip() for tag in tags]), text[tags[-1].end() :]) if tags else None


def _field(text: str) -> Extraction | None:
    """The answer of a JSON object, which may be malformed. Its other fields, such as the reasoning, do not count."""
    start = _OBJECT.search(text)
    if start is None:
        return None
    if spans.boxes(text[: start.start()])[0]:
        return None
    if _is_denied(text, start.start(), text.rfind("}") + 1 or len(text)):
        return _DENIED
    fields = list(_FIELD.finditer(text, start.start()))
    if not fields:
        if spans.boxes(text[text.find("}", start.start()) :])[0]:
            return None
        keys = _KEY.findall(text, start.start())
        only = _SCALAR.search(text, start.start()) if len(keys) == 1 and not _REASONING.match(keys[0]) else None
        if only:
            return _taken(only[1])
        return None if len(keys) == 1 and not _REASONING.match(keys[0]) else _NOTHING
    # "\\frac" and, as models write it, "\frac" are the same.
    answers = [re.sub(r'\\([\\"/])', r"\1", next(filter(None, field.groups()), "")).strip() for field in fields]
    return _unless_contradicted(_one_of(answers), text[fields[-1].end() :])


def _one_of(answers: list[str]) -> Extraction:
    """The answer, if all that stand in one kind of mark are the same; else several answers."""
    if len({spans.identity(answer[:MAX_ANSWER]) for answer in answers[:_MAX_GUESSES]}) > 1:
        return _taken(*answers)
    answer = spans.opened(answers[-1])
    if found := _field(answer):
        return found
    if spans.is_prose(answer):
        return _announced(answer) or _stated(answer)
    return _taken(answer)


def _unless_contradicted(found: Extraction, rest: str) -> Extraction:
    """What was found, or several answers if the text after it answers with another number or option."""
    other = _marked(rest) or _announced(rest, without="result")
    if found.text and other and other.text and _contradict(found.text, other.text):
        return _taken(found.text, other.text)
    return found


def _contradict(first: str, second: str) -> bool:
    """Whether two answers are different options, or different numbers of which neither rounds the other."""
    a, b = (read_numeral(tidy(text.rpartition("=")[2])) for text in (first, second))
    letters = {letter for text in (first, second) if (letter := spans.option(text))}
    same = a is None or b is None or a.value == b.value or approximates(a.value, b) or approximates(b.value, a)
    return not same or len(letters) > 1


def _taken(*answers: str) -> Extraction:
    """An answer, or several. One that is cut off might be right by what is left of it."""
    text = ", ".join(answers)
    return Extraction(None, "too long") if len(text) > MAX_ANSWER else Extraction(text, several=len(answers) > 1)


def _boxed(text: str) -> Extraction | None:
    found, unclosed = spans.boxes(text)
    if not found and not unclosed:
        return None
    start, end, _ = found[-1] if found else (0, 0, "")
    hope = text.rfind("I hope it is correct", end)
    if hope >= 0 and (replacing := _announced(text[end:hope])):
        return replacing
    if unclosed:
        return Extraction(None, reason="unclosed box")
    contents = [spans.opened(content) for _, _, content in found]
    if not contents[-1]:
        return Extraction(None, reason="empty box")
    said_after = _CLAUSE.match(text, end)
    if _is_denied(text, start, end) or (said_after and phrases.NOT_FOREIGN.search(said_after[0])):
        return _DENIED
    if phrases.CHANGED_BEFORE.search(text[max(0, start - _AROUND) : start]) and not phrases.BOUND.search(
        text[max(0, start - _AROUND) : start]
    ):
        return _DENIED
    if (other := _BESIDE.match(text[end : end + _AROUND])) and _contradict(contents[-1], other[1]):
        return _taken(contents[-1], other[1])
    if (other := _BEFORE_OR.search(text[max(0, start - _AROUND) : start])) and _contradict(contents[-1], other[1]):
        return _taken(other[1], contents[-1])
    if spans.inside_expression(text, start, end):
        return Extraction(None, reason="box inside an expression")
    distinct: dict[str, str] = {}
    for content in filter(None, contents):
        distinct.setdefault(spans.identity(content[:MAX_ANSWER]), content)
        if len(distinct) > _MAX_GUESSES:
            return Extraction(None, reason="several answers")
    if len(distinct) == 1 and spans.is_prose(said := words(contents[-1])):
        return _announced(said) or _stated(said)
    return _unless_contradicted(_taken(*distinct.values()), text[end:])


# Another number or option right beside a box, and nothing behind it: \boxed{45} (or 46), 46 or \boxed{45}
_BESIDE = re.compile(r"[\s$)]{0,4}(?:,|\(?(?:or|and)\b) ?\$?(-?\d[\d.,/]*%?|[A-Z])\$?\)?(?=\W*(?:\Z|\n)|[.!?])")
_BEFORE_OR = re.compile(r"(?<!\S)\$?(-?\d[\d.,/]*%?|[A-Z])\$? or \$?\Z")
_CLAUSE = re.compile(r"[^.!?,;:。，、\n]{1,40}")


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether the words right around an answer deny it, question it, retract it, or add another."""
    before = text[max(0, start - _AROUND) : start]
    after = re.sub(r"\\text\w{0,6}\{ ?", "", text[end : end + _AROUND])
    return bool(
        phrases.NOT_BEFORE.search(before)
        or phrases.WRONG_BEFORE.search(before)
        or phrases.UNSURE.search(re.split(r"[.!?\n]", after, maxsplit=1)[0])
        or phrases.SUPPOSED.search(before)
        or phrases.TAKEN_BACK.match(after)
        or phrases.CHANGED_AFTER.match(after)
    )


# ---- announcements and statements


_RULE = re.compile(r"[ *_:>]{0,9}\n ?(?:-{3,}|={3,}) ?\n")


def _announcements(text: str, marks: list[tuple[int, int]]) -> Iterator[tuple[str, bool, str]]:
    """Every announced text, the last first; whether the words around it deny it; and the beginning of the next line."""
    for mark, start in reversed(marks[-_MAX_GUESSES:]):
        end = text.find("\n", start)
        if rule := _RULE.match(text, start):  # below the heading
            end = rule.end() - 1
        if end >= 0 and (rule or not text[start:end].strip(" *_:>")):
            start = end + 1
            end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)][:_MAX_LINE]
        if not phrases.EMPTY_WORDS.match(line[:_AROUND]):
            before = text[max(0, mark - _AROUND) : mark]
            several = text[mark : mark + 7].lower() == "answers"  # the number of wrong answers
            denied = phrases.SUPPOSED.search(before) or (phrases.NO_FINAL.search(before) and not several)
            denied = denied or phrases.NOT.search(text, mark, start) or phrases.NOT_BEFORE.search(before)
            after = text[start + len(line) : start + len(line) + _AROUND]
            denied = denied or phrases.TAKEN_BACK.match(after) or phrases.ADDED.match(after)
            yield line, bool(denied), after.lstrip("\n").partition("\n")[0]


def _announced(text: str, without: str = "\n\n") -> Extraction | None:
    """What is announced last, by a phrase that does not hold a word."""
    marks = [mark for mark in phrases.announcements(text) if without not in text[slice(*mark)].lower()]
    for line, denied, _ in _announcements(text, marks):
        return _DENIED if denied else _stated(line)
    return None


def _stated(line: str) -> Extraction:
    """The answer in a statement: the whole statement, or the one value in it."""
    end = phrases.SENTENCE_END.search(spans.hidden(line))
    sentence, rest = (line[: end.end()], line[end.end() :]) if end else (line, "")
    sentence, note = _noted(sentence)
    asked = sentence.rstrip("*_`\"' )$.").endswith(("?", "？"))
    taken_back = any(phrases.TAKEN_BACK.match(said) for said in (note, rest)) or phrases.UNSURE.search(note)
    if asked or taken_back or phrases.ADDED.match(rest):
        return _DENIED
    sentence = said = _stripped(sentence)
    if phrases.OPTIONS.search(sentence):
        return _taken(sentence)
    # Of "the number is not 10, it is 11" only the part after the last verb counts.
    *_, verb = (None, *phrases.VERB.finditer(spans.hidden(sentence)))
    if verb and spans.values_in(tail := sentence[verb.end() :].strip()):
        said = tail
    said = phrases.NOT_BUT.sub("", said)
    values = spans.values_in(said)
    prose = spans.is_prose(said)
    if phrases.WRONG.search(sentence) or (prose and phrases.NOT.search(said)):
        return _DENIED
    if not prose or not values:
        return _taken(said)
    distinct = {spans.identity(value.text): value.text for value in values}
    return _taken(*distinct.values()) if len(distinct) > 1 else _valued(said, values)


def _noted(sentence: str) -> tuple[str, str]:
    """A sentence without the comment at its end, and that comment: ``63``, ``, which is 7 * 9``."""
    note = phrases.NOTE.search(spans.hidden(sentence), 1)
    return (sentence[: note.start()], sentence[note.start() :]) if note else (sentence, "")


def _stripped(text: str) -> str:
    """The text without the marks and words around an answer that do not belong to it."""
    text = text.strip(f'{_SYMBOLS}*_`"“”')
    text = text if _UNENDING.search(text) else text.rstrip(".。．!,;")
    text = _HEADED.sub("", text.strip('*_`"“” '))
    text = re.sub(r"^(?:\(([^()=]*+=[^()]*+)\)|'([^']*+)'|\| ([^|]*+)\|)$", r"\1\2\3", text)
    lead = phrases.LEAD.match(text)
    text = text[lead.end() :].strip() if lead else text
    return text.replace('\\"', "").strip("\\\"' ") if text.startswith('\\"') else text


_SYMBOLS = " \ufe0f✅✔✓➡→⇒⟹👉🎉🔹➤►▶•★☆"
_HEADED = re.compile(r"^(?:#{1,6} |[-=]{1,2}> ?|[—–] )")
_UNENDING = re.compile(r"\.\d*(\d)\1\1(?:\.\.\.|…)$")


_ROW = re.compile(r" ?\|[\d.,| $-]*\| ?")  # of a table, without words
# Between a computation and the numbers of its circumstances: "45 / 5 = 9 boxes are needed to pack all 45 muffins"
_CIRCUMSTANCE = re.compile(r"\b(?:in|after|for|per|of|on|from|over|at|by|during|within|to|than|every|each|across)\b")
_CONCLUSION = re.compile(
    r"\b(?:so|thus|hence|therefore|then|is|was|were|be|total|leaves|leaving|makes?|gives?|equals?|altogether"
    r"|remains?|remaining|which|means?"
    r"|has|have|had|becomes?|to (?:get|make|give|reach|buy|find))\b|[.!?]|[,;:] ?\$?\Z",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.!?？\n]{0,80}+[?？]")


def _valued(line: str, values: list[spans.Value]) -> Extraction:
    """The last value of a line, unless the words around it deny or change it."""
    value = values[-1]
    computed = max((place for place, one in enumerate(values) if "=" in one.text), default=len(values) - 1)
    between = line[values[computed].end : value.start]
    if computed < len(values) - 1 and _CIRCUMSTANCE.search(between[:120]) and not _CONCLUSION.search(between):
        values = values[: computed + 1]
        value = values[-1]
    joined = len(values) > 1 and phrases.OR.search(line[values[-2].end : value.start])
    if len(values) > 1 and (joined or phrases.OPTIONS.search(line) or _ROW.fullmatch(line)):
        return _taken(*(one.text for one in values[-2:]))
    before, after = line[max(0, value.start - _AROUND) : value.start], line[value.end : value.end + _AROUND]
    denied = _is_denied(line, value.start, value.end) or _QUESTION.match(after) or phrases.NOT_FOREIGN.search(line)
    computed = "=" in value.text and phrases.BOUND.search(before)  # at least 600 - 548 = 52
    if denied or (phrases.CHANGED_BEFORE.search(before) and not computed) or phrases.REFUTED.search(after):
        return _DENIED
    return _taken(value.text)


# ---- completions without mark or announcement


def _unmarked(text: str) -> Extraction:
    """The whole text if it is only an answer; else its last value."""
    lines = text.split("\n")
    guesses = _guesses(lines[-_MAX_GUESSES:])
    if len(guesses) > 1 or len(phrases.GUESSES.findall(text)) > 1:
        return _taken(*guesses)
    if len(lines) == 1:
        statement, note = _noted(text)
        if phrases.TAKEN_BACK.match(note):
            return _DENIED
        if not spans.is_prose(bare := _stripped(statement)):
            return _taken(spans.change_mathematics(bare, lambda piece: piece.text))
    if phrases.GAVE_UP.search(text[-300:]):
        return _DENIED
    following = ""
    for line in reversed(lines[-_MAX_GUESSES:]):
        line, next_line, following = line[-_MAX_LINE:], following, line[:_AROUND]
        places = [0, *(end.end() for end in phrases.SENTENCE_END.finditer(spans.hidden(line))), len(line)]
        for start, end in reversed(list(pairwise(places))):
            before, note = _noted(phrases.EXTREMUM.sub(r"\1", phrases.CHANGE.sub("", line[start:end].lstrip())))
            if phrases.REMARK.match(before):
                continue
            if "=" in note and note.removeprefix(",").startswith(" which is"):
                before, note = before + note, ""  # which is 5 * 20 = 100
            if values := spans.values_in(before) or spans.values_in(before + note):
                denied = phrases.TAKEN_BACK.match(note)
                return _DENIED if denied else _valued(f"{line[start:].lstrip()} {next_line}", values)
    return _NOTHING


_BULLET = re.compile(r"^(?:[-*•>]|\(?(?:[A-Za-z0-9]|[ivx]{1,4})[.):]|\| ?\w ?\|)(?= )")


def _guesses(lines: list[str]) -> list[str]:
    """The last lines that differ only in their numbers: ``62`` and ``63``, ``x = 62`` and ``x = 63``."""
    found: list[str] = []
    shape = ""
    for line in reversed(lines):
        plain = _BULLET.sub("", line).rstrip(",;. ")
        own, count = re.subn(r"\d+(?:\.\d+)?", "#", plain)
        if (not count and not found) or phrases.OR.fullmatch(line):
            continue  # words after the guesses, or between them
        if (count > 1 and "=" in line) or (found and own != shape):
            break
        shape = own
        found.append(plain)
    return list(dict.fromkeys(found))
