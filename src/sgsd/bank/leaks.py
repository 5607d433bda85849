"""Items that give problems away: answers of the problems they came from, and long runs of a problem's words.

Such an item teaches nothing: a teacher that is shown the answer supports whoever guessed it, and a benchmark problem in
a bank makes the benchmark worthless. Texts are compared as ``overlap.words`` reads them. Three rules:

``answer``
    The item holds the reference answer of a problem it came from. Numbers are compared by value. ``COMMON`` numbers,
    facts such as *24 hours*, and words count only where they are presented as a result: "the answer is 7", "to get 7",
    "7 apples are left", "3 + 4 = 7".
``training problem``
    n words in a row of a problem that was trained on; of a problem with fewer words, all of them, if they are at least
    ``SHORTEST`` with a number among them.
``benchmark``
    The same for the problems of a named benchmark.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from sgsd.bank.lineage import ancestors, parents_of
from sgsd.bank.skills import Item, SkillBank
from sgsd.data.overlap import words
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.memories import Memory

DEFAULT_N = 13
SHORTEST = 5
"""Words of the shortest problem that is looked for."""


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

    Problems and memories pass by one after the other; items' runs of words and a digest of each problem are kept.

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
    known = parents_of(bank) | dict(lineage or {})
    items = bank.items
    descendants: defaultdict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        for ancestor in ancestors(item.id, known):
            descendants[ancestor].append(place)
    grams = _Grams((words(_spoken(item)) for item in items), n)
    # Item → its leaks; a leak found twice, as by two memories of one problem, counts once.
    found: defaultdict[str, dict[tuple[str, ...], Leak]] = defaultdict(dict)
    seen: set[bytes] = set()
    traced: set[str] = set()

    def look(kind: LeakKind, text: str, problem: str, source: str) -> None:
        asked = words(text)
        named = "\0".join((kind, source if kind is LeakKind.BENCHMARK else "", *asked))
        digest = hashlib.blake2b(named.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in seen:
            return
        seen.add(digest)
        for place, held in grams.held(asked):
            id = items[place].id
            found[id].setdefault((kind, problem, source), _run_leak(id, kind, problem, source, held, asked))

    for name, asked in (benchmarks or {}).items():
        for problem in asked:
            look(LeakKind.BENCHMARK, problem.text, problem.id, name)
    for problem in problems:
        look(LeakKind.TRAINING, problem.text, problem.id, problem.source)
    for memory in memories:
        look(LeakKind.TRAINING, memory.problem, memory.problem_id, "")
        below = descendants.get(memory.id, ())
        for place in below:
            id = items[place].id
            traced.add(id)
            key = (LeakKind.ANSWER, memory.problem_id, memory.answer)
            if key not in found[id] and (held := held_answer(_spoken(items[place]), memory.answer)):
                reason = (
                    f"holds the answer {memory.answer!r} of problem {memory.problem_id}, which it came from: {held!r}"
                )
                found[id][key] = Leak(id, LeakKind.ANSWER, memory.problem_id, memory.source, held, reason)
    untraced = tuple(item.id for item in items if item.parents and item.id not in traced)
    leaks = tuple(leak for item in items for leak in found[item.id].values())
    return LeakReport(n, len(items), len(seen), untraced, leaks)


def quarantine(bank: SkillBank, report: LeakReport) -> tuple[SkillBank, tuple[Quarantined, ...]]:
    """The bank without the items that leak, and those items with every reason, in bank order."""
    reasons = report.reasons
    taken = tuple(Quarantined(item, reasons[item.id]) for item in bank.items if item.id in reasons)
    return bank.without(entry.item.id for entry in taken), taken


def _spoken(item: Item) -> str:
    return "\n".join((item.title, item.text, item.note))


def _run_leak(id: str, kind: LeakKind, problem: str, source: str, held: str, asked: tuple[str, ...]) -> Leak:
    count = len(held.split())
    part = "all" if count == len(asked) else f"{count} words in a row"
    where = f"benchmark {source}, problem {problem}" if kind is LeakKind.BENCHMARK else f"training problem {problem}"
    return Leak(id, kind, problem, source, held, f"holds {part} of {where}: {held!r}")


class _Grams:
    """Runs of words → the items that hold them, each with the first place where it does."""

    def __init__(self, texts: Iterable[tuple[str, ...]], n: int) -> None:
        self._n = n
        self._texts = list(texts)
        self._index: dict[int, dict[tuple[str, ...], dict[int, int]]] = {}

    def held(self, problem: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """(item's place, the first run of words it shares with the problem) where that is long enough."""
        if len(problem) < self._n:
            if len(problem) >= SHORTEST and any(word[0].isdigit() for word in problem):
                whole = f" {' '.join(problem)} "
                for item in self._of_length(SHORTEST).get(problem[:SHORTEST], ()):
                    if whole in f" {' '.join(self._texts[item])} ":
                        yield item, whole.strip()
            return
        grams = self._of_length(self._n)
        seen: set[int] = set()
        for start in range(len(problem) - self._n + 1):
            for item, there in grams.get(problem[start : start + self._n], {}).items():
                if item not in seen:
                    seen.add(item)
                    yield item, " ".join(_common(problem[start:], self._texts[item][there:]))

    def _of_length(self, size: int) -> dict[tuple[str, ...], dict[int, int]]:
        if size not in self._index:
            index = self._index[size] = {}
            for item, text in enumerate(self._texts):
                for start in range(len(text) - size + 1):
                    index.setdefault(text[start : start + size], {}).setdefault(item, start)
        return self._index[size]


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> Iterator[str]:
    for word, same in zip(one, other, strict=False):
        if word != same:
            return
        yield word


def _listed(text: str) -> list[str]:
    return text.split()


COMMON = frozenset(
    {Fraction(n) for n in (*range(13), 60, 90, 100, 180, 360, 1000)}
    | {Fraction(n, d) for n, d in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (1, 10), (1, 100))}
)
"""What general advice holds by itself: small numbers, what units and angles are multiplied by, simple fractions."""
MOST_DIGITS = 30

_FACTS = {
    (number, unit)
    for numbers, units in (
        ((30, 45, 60, 90, 120, 180, 270, 360), "degree degrees angle angles triangle"),
        ((10, 20, 25, 50, 75), "%"),
        ((28, 30, 31, 365, 366), "day days"),
        ((7,), "day days"),
        ((12,), "month months inch inches"),
        ((16,), "ounce ounces"),
        ((24,), "hour hours"),
        ((52,), "week weeks card cards"),
        ((60,), "minute minutes second seconds"),
        ((100,), "cent cents cm centimetres centimeters"),
        ((1000,), "gram grams metre metres meter meters"),
        ((3600,), "second seconds"),
    )
    for number in numbers
    for unit in units.split()
}
_CONTINUES = frozenset(
    _listed(
        "number numbers digit digits part parts step steps line lines unit term terms equation equations "
        "unknown unknowns variable variables case cases root roots solution solutions value values factor "
        "factors side sides way ways group groups set sets amount amounts quantity quantities result results "
        "answers time times place places decimal decimals significant example examples point points condition "
        "conditions operation operations thing things more less fewer other others or to by out of + - * / ^ "
        "< > at possible"
    )
)
"""What makes a number part of general advice when it follows: 2 equations, 3 times, 4 more, 5 or …"""
_NAMES = frozenset(
    _listed("answer answers ans result results solution solutions boxed output option choose pick select")
)
_REACHES = frozenset(
    _listed(
        "get gets got getting give gives gave giving yield yields yielding leaves leaving left makes obtain "
        "obtains obtained obtaining find finds found finding comes come amounts adds equals becomes evaluates "
        "simplifies costs cost takes needs earns pays spends total totals turns works ends end keeps receives "
        "have has"
    )
)
_COPULAS = frozenset(_listed("is are was were be equals ="))
_FILLERS = frozenset(
    _listed(
        "is are was be must should would will then thus therefore so a an the exactly equal equals to = of "
        "final correct here just only - + that comes out as it hence about ought read reads minus negative "
        "with being us you him her them me total up back down at value answer result option"
    )
)
_REST = frozenset(_listed("left remaining remain remains altogether overall total"))
_CONDITIONS = frozenset(_listed("if when whenever whether unless until suppose where while once"))
_SMALL = {
    word: value
    for value, word in enumerate(
        _listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
            "sixteen seventeen eighteen nineteen"
        )
    )
} | {
    word: 10 * value
    for value, word in enumerate(_listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2)
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SPELLINGS = (
    (re.compile("([\u00bc-\u00be\u2150-\u215e])"), r" \1"),
    (re.compile("([\u2070\u00b9\u00b2\u00b3\u2074-\u2079])"), r"^\1"),
    (re.compile("[\u2044\u00f7]|(?<=\\d) over (?=\\d)"), "/"),
    (re.compile("[\u2212\u2010\u2011]"), "-"),
    (re.compile("\u221a"), " sqrt "),
    (re.compile("[\u03c0\U0001d70b]"), " pi "),
    (re.compile(r"####|\bA(?=:)"), " answer "),
    (re.compile(r"=>|->|[≈→⇒]|\\(?:approx|implies|Rightarrow|rightarrow)(?![a-z])"), " = "),
    (re.compile(r"(?<![\d.])\.(?=\d)"), " 0."),
    (re.compile(r"(?<=\d):(?=\d)"), " to "),
    (re.compile(r"\bper ?cent\b", re.IGNORECASE), "%"),
    (re.compile(r"(?<=\d)\*\*(?=\d)"), "^"),
)
_BREAK = re.compile(r"[!?;\n()\"]|[.,:](?!\d)|[\u2013\u2014]")


def held_answer(text: str, answer: str) -> str | None:
    """The words of the text around the answer, if the text gives it away."""
    named = re.sub(r"\\(?:boxed|fbox)(?![a-z])", " ", answer)
    sought, _ = _read(re.sub(r"^[\s$({]{0,9}[a-zA-Z] ?=", "", named))
    said, ends = _read(text)
    number = _only_number(sought)
    place = 0
    if number is not None:
        while place < len(said):
            found = _number(said, place)
            if found is None:
                place += 1
                continue
            end, value = found
            if _means(value, said[end : end + 1] == ["%"], *number) and _gives_away(said, ends, place, end, value):
                return " ".join(said[max(0, place - 5) : end + 2])
            place = end
        return None
    # Multiplication may be written or not.
    sought = [word for word in sought if word != "*"]
    told = any(word[0].isdecimal() and Fraction(word[:MOST_DIGITS]) not in COMMON for word in sought)
    if len(sought) > 2 or (len(sought) == 2 and told):
        run = f" {' '.join(sought)} "
        return run.strip() if run in f" {' '.join(word for word in said if word != '*')} " else None
    for place in range(len(said) if sought else 0):
        end = place + len(sought)
        if said[place:end] == sought and (
            _follows(said, place, _NAMES | {"turns"}) or (said[place - 1 : place] == ["="] and len(sought) > 1)
        ):
            return " ".join(said[max(0, place - 5) : end + 2])
    return None


@lru_cache(1024)
def _read(text: str) -> tuple[list[str], set[int]]:
    """A text's words, and the places behind which a clause ends."""
    for spelling, usual in _SPELLINGS:
        text = spelling.sub(usual, text)
    said: list[str] = []
    ends: set[int] = set()
    for clause in _BREAK.split(unicodedata.normalize("NFKC", text).replace("\u2044", "/")):
        said += words(clause)
        ends.add(len(said))
    return said, ends


def _number(said: Sequence[str], start: int) -> tuple[int, Fraction] | None:
    """Where the number that begins at ``start`` ends, and its value: 3, 3/4, 3 1/2, 2^10, 1.5 million, forty-two."""
    numerals = [_numeral(said, start + offset) for offset in range(5)]
    first, second, third, fourth, fifth = numerals
    signs = [*said[start : start + 5], "", "", "", "", ""]
    if signs[0] == "frac" and second is not None and third:
        return start + 3, second / third
    if first is None:
        return _spelled(said, start)
    if signs[1] == "/" and third:
        return start + 3, first / third
    if signs[1] == "^" and third is not None and third.denominator == 1 and third < 65 and first < 1000:
        return start + 3, first**third.numerator
    if signs[1:4] == ["*", "10", "^"] and fifth is not None and fifth.denominator == 1 and fifth < 65:
        return start + 5, first * 10**fifth.numerator
    if second is not None and signs[2] == "/" and fourth and second < fourth and first.denominator == 1:
        return start + 4, first + second / fourth
    if signs[1] == "frac" and third is not None and fourth and third < fourth and first.denominator == 1:
        return start + 4, first + third / fourth
    return (start + 2, first * _SCALES[signs[1]]) if signs[1] in _SCALES else (start + 1, first)


def _numeral(said: Sequence[str], place: int) -> Fraction | None:
    word = said[place] if place < len(said) else ""
    return Fraction(word) if word[:1].isdecimal() and len(word) <= MOST_DIGITS else None


def _spelled(said: Sequence[str], start: int) -> tuple[int, Fraction] | None:
    """Three hundred and five, twenty-one, two dozen."""
    total = current = 0
    last = 10**9
    end = place = start
    while place < len(said):
        word = said[place]
        if word in ("a", "an") and place == start and said[place + 1 : place + 2] and said[place + 1] in _SCALES:
            current = 1
        elif word in _SMALL and (last >= 100 or (last >= 20 and 0 < _SMALL[word] < 10)):
            current, last = current + _SMALL[word], _SMALL[word]
        elif word in _SCALES and current:
            last = _SCALES[word]
            total, current = (total, current * last) if last <= 100 else (total + current * last, 0)
        elif (
            word == "and" and end > start and last >= 100 and said[place + 1 : place + 2] and said[place + 1] in _SMALL
        ):
            place += 1
            continue
        else:
            break
        place += 1
        end = place
    nothing = end == start or (said[start] in ("a", "an") and end == start + 1)
    return None if nothing else (end, Fraction(total + current))


def _only_number(sought: list[str]) -> tuple[Fraction, bool] | None:
    """(value, in percent), where the answer is a number with at most a sign and three words of a unit."""
    start = 1 if sought[:1] in (["-"], ["+"]) else 0
    found = _number(sought, start)
    if found is None:
        return None
    end, value = found
    rest = [word for word in sought[end:] if word != "%"]
    if len(rest) > 2 and rest[-2] == "^":  # of a unit
        rest = rest[:-2]
    unit = all(word.isalpha() and (len(word) > 1 or word in "mlghs") for word in rest)
    if not unit or len(rest) > 3 or {"pi", "sqrt", "frac", "to"} & set(rest):
        return None
    return value, sought[end : end + 1] == ["%"]


def _means(value: Fraction, percent: bool, other: Fraction, other_percent: bool) -> bool:
    """Whether both may be the same amount: 25 % is 0.25, and 25 where only one says percent."""
    if value == other:
        return True
    return percent != other_percent and (value / 100 == other if percent else other / 100 == value)


def _gives_away(said: list[str], ends: set[int], start: int, end: int, value: Fraction) -> bool:
    near = (*said[max(0, start - 3) : start], *said[end : end + 2])
    fact = any((value, unit) in _FACTS for unit in near)
    if value not in COMMON and not fact:
        return True
    closed = end in ends
    following = said[end : end + 3]
    continues = not closed and following[:1] and following[0] in _CONTINUES
    part = continues and following[0] != "of"
    if not part and _follows(said, start, _NAMES):
        return True
    if following[:1] and following[0] in ("is", "as") and set(said[end : end + 4]) & (_NAMES | {"value"}):
        return True
    before = said[max(0, start - 7) : start]
    if before[-1:] == ["="] and set(before[:-1]) & set("+-*/") and any(word[0].isdigit() for word in before):
        return True
    # Small numbers are often no result: "gives two equations", "one".
    if fact or continues or set(before) & _CONDITIONS or (value < 3 and value.denominator == 1 and not closed):
        return False
    if _follows(said, start, _REACHES):
        return True
    small = value < 3 and value.denominator == 1 and not set(before) & {"so", "thus", "hence", "therefore"}
    return not small and (_follows(said, start, _COPULAS, ends) or bool(set(following) & _REST))


def _follows(said: Sequence[str], start: int, sought: frozenset[str], ends: Set[int] = frozenset()) -> bool:
    """Whether one of ``sought`` stands before ``start``, with at most four ``_FILLERS`` and no end between."""
    for place in range(start - 1, max(-1, start - 6), -1):
        if place + 1 in ends:
            return False
        if said[place] in sought:
            return True
        if said[place] not in _FILLERS:
            return False
    return False
