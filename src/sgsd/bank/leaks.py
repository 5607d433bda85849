"""Items that give problems away: answers of the problems they came from, and long runs of a problem's words.

Such an item teaches nothing: a teacher that is shown the answer supports whoever guessed it, and a benchmark problem in
a bank makes the benchmark worthless. Texts are compared as ``contamination.words`` reads them.

Three rules, each with its reason in one line:

``answer``
    The item holds the reference answer of a problem it came from. Numbers are compared by value and as whole words, so
    ``1,000.0`` is 1000, and 72 is in neither 172 nor 72.5; ``\\frac{3}{4}`` and ``3/4`` are one number; signs are
    passed over. ``COMMON_NUMBERS`` (0 to 12, 100, 360 …) say nothing by themselves, and neither do one or two words or
    letters (*even*, *x*): they count only where the item presents them as a result ("the answer is 7", "= 7" after a
    number, a box). Answers of three words or signs and more count wherever they stand.
``training problem``
    n words in a row of a problem that was trained on; of a problem with fewer words, all of them, if they are at least
    ``SHORTEST`` with a number among them.
``benchmark``
    The same for the problems of a named benchmark.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from sgsd.bank.lineage import ancestors, parents_of
from sgsd.bank.skills import Item, SkillBank
from sgsd.contamination import words
from sgsd.errors import ConfigError
from sgsd.memories import Memory
from sgsd.problems import Problem

DEFAULT_N = 13
SHORTEST = 5
"""Words of the shortest problem that is looked for."""
TELLING_WORDS = 3
"""Words and signs from which on an answer that is no number says something by itself."""
MOST_FILLERS = 4
MOST_UNIT_WORDS = 3
COMMON_NUMBERS = frozenset(
    {Fraction(n) for n in (*range(13), 16, 20, 24, 25, 30, 32, 45, 50, 52, 60, 64, 90, 100, 180, 360, 365, 1000, 10**6)}
    | {Fraction(n, d) for n, d in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (1, 10), (1, 100))}
)
"""Numbers that general advice holds: small ones, units of time and angle, powers, simple fractions."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_RESULT_WORDS = frozenset({"answer", "answers", "result", "results", "solution", "boxed"})
_FILLERS = frozenset(
    {"is", "are", "was", "be", "must", "should", "would", "will", "then", "thus", "therefore", "so", "a", "an", "the"}
    | {"exactly", "equal", "equals", "to", "=", "of", "final", "correct", "here", "always", "just", "only", "-", "+"}
)
_SPELLED = (
    {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
    | {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16}
    | {"seventeen": 17, "eighteen": 18, "nineteen": 19}
)
_TENS = {
    name: 10 * value
    for value, name in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}


class LeakKind(StrEnum):
    """What an item gives away."""

    ANSWER = "answer"
    TRAINING = "training problem"
    BENCHMARK = "benchmark"


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that one item gives away.

    Attributes:
        item: the item's id.
        kind: see ``LeakKind``.
        problem: the problem's id.
        source: the benchmark's name, or the data set and row of the problem where known.
        held: the words in question, as compared.
        reason: one line for people.
    """

    item: str
    kind: LeakKind
    problem: str
    source: str
    held: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a scan found.

    Attributes:
        n: words in a row that count.
        items, problems: how many items and distinct problems were compared.
        untraced: ids of items that have parents, but no memory was at hand: their answers were not compared.
        leaks: in bank order.
    """

    n: int
    items: int
    problems: int
    untraced: tuple[str, ...]
    leaks: tuple[Leak, ...]

    @property
    def reasons(self) -> dict[str, tuple[str, ...]]:
        """Item id → its reasons, of the items that leak."""
        found: dict[str, list[str]] = {}
        for leak in self.leaks:
            found.setdefault(leak.item, []).append(leak.reason)
        return {id: tuple(reasons) for id, reasons in found.items()}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An item taken out of a bank, and why."""

    item: Item
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Text:
    """A text's words, and its numbers: start → (end, value). ``3 / 4`` is found at 3, ``frac 3 4`` at frac."""

    words: tuple[str, ...]
    numbers: Mapping[int, tuple[int, Fraction]]

    @classmethod
    def of(cls, text: str) -> _Text:
        tokens = words(text)
        single: dict[int, tuple[int, Fraction]] = {}
        for place, token in enumerate(tokens):
            if _NUMBER.fullmatch(token):
                single[place] = (place + 1, Fraction(token))
            elif token in _TENS and (place + 1) < len(tokens) and 0 < _SPELLED.get(tokens[place + 1], 0) < 10:
                single[place] = (place + 2, Fraction(_TENS[token] + _SPELLED[tokens[place + 1]]))
            elif token in _TENS or token in _SPELLED:
                single[place] = (place + 1, Fraction(_TENS.get(token, _SPELLED.get(token, 0))))
        fractions: dict[int, tuple[int, Fraction]] = {}
        for place, token in enumerate(tokens):
            top, bottom = (place + 1, place + 2) if token == "frac" else (place, place + 2)
            written = token == "frac" or tokens[place + 1 : place + 2] == ("/",)
            if written and top in single and bottom in single and single[bottom][1]:
                fractions[place] = (bottom + 1, single[top][1] / single[bottom][1])
        return cls(tokens, single | fractions)

    @property
    def number_ends(self) -> frozenset[int]:
        """Places of the last word of each number."""
        return frozenset(end - 1 for end, _ in self.numbers.values())

    @property
    def only_number(self) -> Fraction | None:
        """The value, where the text is one number and at most a sign and ``MOST_UNIT_WORDS`` plain words after it."""
        start = 1 if self.words[:1] in (("-",), ("+",)) else 0
        if start not in self.numbers:
            return None
        end, value = self.numbers[start]
        rest = self.words[end:]
        unit = len(rest) <= MOST_UNIT_WORDS and all(word == "%" or (len(word) > 1 and word.isalpha()) for word in rest)
        return value if unit and not any(place >= end for place in self.numbers) else None


def scan(
    bank: SkillBank,
    *,
    problems: Iterable[Problem] = (),
    memories: Iterable[Memory] = (),
    benchmarks: Mapping[str, Iterable[Problem]] | None = None,
    lineage: Mapping[str, Sequence[str]] | None = None,
    n: int = DEFAULT_N,
) -> LeakReport:
    """Look for answers and problems in a bank's items.

    Problems and memories pass by one after the other; only the items' words are kept.

    Args:
        bank: what to scan. To scan candidates, make a bank of them.
        problems: what is trained on.
        memories: what items were extracted from; their problems count as trained on, too.
        benchmarks: name → problems of test data that no item may hold.
        lineage: id → parents, for parents that are no longer in the bank, such as ``Merged.lineage``.
        n: words in a row that count.

    Raises:
        ConfigError: ``n`` is less than ``SHORTEST``.
    """
    if n < SHORTEST:
        raise ConfigError("--n is out of range", got=n, expected=f"{SHORTEST} or more")
    texts = {item.id: _read(item) for item in bank.items}
    known = parents_of(bank) | dict(lineage or {})
    descendants: defaultdict[str, list[str]] = defaultdict(list)
    for item in bank.items:
        for ancestor in ancestors(item.id, known):
            descendants[ancestor].append(item.id)
    grams = _Grams({id: text.words for id, text in texts.items()}, n)
    # Item → its leaks; a leak found twice, as by two memories of one problem, counts once.
    found: dict[str, dict[tuple[str, ...], Leak]] = {item.id: {} for item in bank.items}
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    traced: set[str] = set()

    def look(kind: LeakKind, text: str, problem: str, source: str) -> None:
        asked = words(text)
        if (kind, source if kind is LeakKind.BENCHMARK else "", asked) in seen:
            return
        seen.add((kind, source if kind is LeakKind.BENCHMARK else "", asked))
        for id, held in grams.held(asked):
            found[id].setdefault((kind, problem, source), _run_leak(id, kind, problem, source, held, asked))

    for name, asked in (benchmarks or {}).items():
        for problem in asked:
            look(LeakKind.BENCHMARK, problem.text, problem.id, name)
    for problem in problems:
        look(LeakKind.TRAINING, problem.text, problem.id, problem.source)
    for memory in memories:
        look(LeakKind.TRAINING, memory.problem, memory.problem_id, "")
        for id in descendants.get(memory.id, ()):
            traced.add(id)
            key = (LeakKind.ANSWER, memory.problem_id, memory.answer)
            if key not in found[id] and (held := _held_answer(texts[id], memory.answer)):
                reason = (
                    f"holds the answer {memory.answer!r} of problem {memory.problem_id}, which it came from: {held!r}"
                )
                found[id][key] = Leak(id, LeakKind.ANSWER, memory.problem_id, memory.source, held, reason)
    untraced = tuple(item.id for item in bank.items if item.parents and item.id not in traced)
    leaks = tuple(leak for item in bank.items for leak in found[item.id].values())
    return LeakReport(n, len(texts), len(seen), untraced, leaks)


def quarantine(bank: SkillBank, report: LeakReport) -> tuple[SkillBank, tuple[Quarantined, ...]]:
    """The bank without the items that leak, and those items with every reason, in bank order."""
    reasons = report.reasons
    taken = tuple(Quarantined(item, reasons[item.id]) for item in bank.items if item.id in reasons)
    return bank.without(entry.item.id for entry in taken), taken


def holds_answer(text: str, answer: str) -> bool:
    """Whether a text gives an answer away, by the rule ``answer`` above."""
    return _held_answer(_Text.of(text), answer) is not None


def _read(item: Item) -> _Text:
    return _Text.of("\n".join((item.title, item.text, item.note)))


def _held_answer(text: _Text, answer: str) -> str | None:
    """The words of the text around the answer, if it gives it away."""
    sought = _Text.of(answer)
    if not sought.words:
        return None
    number = sought.only_number
    if number is not None:
        places = [(start, end) for start, (end, value) in text.numbers.items() if value == number]
        telling = number not in COMMON_NUMBERS
    else:
        size = len(sought.words)
        starts = range(len(text.words) - size + 1)
        places = [(start, start + size) for start in starts if text.words[start : start + size] == sought.words]
        telling = size >= TELLING_WORDS
    for start, end in places:
        if telling or _is_result(text, start):
            return " ".join(text.words[max(0, start - 5) : end + 2])
    return None


def _is_result(text: _Text, start: int) -> bool:
    """Whether what stands at ``start`` is presented as a result: "the answer is …", "3 + 4 = …"."""
    before = list(text.words[:start])
    if before[-1:] == ["="] and (start - 2) in text.number_ends:
        return True
    for word in reversed(before[-MOST_FILLERS - 1 :]):
        if word in _RESULT_WORDS:
            return True
        if word not in _FILLERS:
            return False
    return False


def _run_leak(id: str, kind: LeakKind, problem: str, source: str, held: str, asked: tuple[str, ...]) -> Leak:
    count = len(held.split())
    part = "all" if count == len(asked) else f"{count} words in a row"
    where = f"benchmark {source}, problem {problem}" if kind is LeakKind.BENCHMARK else f"training problem {problem}"
    return Leak(id, kind, problem, source, held, f"holds {part} of {where}: {held!r}")


class _Grams:
    """Runs of words → the items that hold them. Built for n at once, for shorter problems when the first one comes."""

    def __init__(self, texts: Mapping[str, tuple[str, ...]], n: int) -> None:
        self._texts = texts
        self._n = n
        self._index: dict[int, dict[tuple[str, ...], list[tuple[str, int]]]] = {}

    def held(self, problem: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(item id, the longest run of words it shares with the problem), in bank order where it is long enough."""
        size = min(self._n, len(problem))
        if size < SHORTEST or (size < self._n and not any(map(_NUMBER.fullmatch, problem))):
            return
        index = self._of_length(size)
        longest: dict[str, str] = {}
        going: dict[tuple[str, int], int] = {}
        for start in range(len(problem) - size + 1):
            ending: dict[tuple[str, int], int] = {}
            for id, there in index.get(problem[start : start + size], ()):
                length = going.get((id, there - 1), size - 1) + 1
                ending[id, there] = length
                if length > len(longest.get(id, "").split()):
                    longest[id] = " ".join(problem[start + size - length : start + size])
            going = ending
        yield from longest.items()

    def _of_length(self, size: int) -> dict[tuple[str, ...], list[tuple[str, int]]]:
        if size not in self._index:
            grams: dict[tuple[str, ...], list[tuple[str, int]]] = {}
            for id, text in self._texts.items():
                for start in range(len(text) - size + 1):
                    grams.setdefault(text[start : start + size], []).append((id, start))
            self._index[size] = grams
        return self._index[size]
