"""Leaks: items that hold the answer of a problem they were extracted from, or a word n-gram of a problem.

A teacher that is shown the answer supports lucky guesses, and a benchmark problem in a bank contaminates the benchmark.
``docs/build-a-bank.md`` has the three rules and their error rates.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from sgsd.bank.items import Item, ancestors
from sgsd.bank.skills import SkillBank
from sgsd.data.overlap import longest_runs, ngrams, words
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.memories import Memory

DEFAULT_N = 13
SHORTEST = 5
"""Words of the shortest problem that is compared."""


class LeakKind(StrEnum):
    """What an item leaks."""

    ANSWER = "answer"
    TRAINING = "training problem"
    BENCHMARK = "benchmark"


@dataclass(frozen=True, slots=True)
class Leak:
    """One leak of one item."""

    item: str
    kind: LeakKind
    problem: str
    source: str  # the benchmark's name, or the data set and row of the problem where known
    held: str  # the matching words of the item
    reason: str  # one line for people


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The result of a scan."""

    n: int  # length of the n-grams
    items: int  # number of items scanned
    problems: int  # number of distinct problems
    untraced: tuple[str, ...]  # ids of items whose memories were not given: no answer was compared
    leaks: tuple[Leak, ...]  # in bank order

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Item id → the reasons of its leaks."""
        found: dict[str, list[str]] = {}
        for leak in self.leaks:
            found.setdefault(leak.item, []).append(leak.reason)
        return found


def scan(
    bank: SkillBank,
    *,
    problems: Iterable[Problem] = (),
    memories: Iterable[Memory] = (),
    benchmarks: Mapping[str, Iterable[Problem]] | None = None,
    lineage: Mapping[str, Sequence[str]] | None = None,
    n: int = DEFAULT_N,
) -> LeakReport:
    """Find answers and problem texts in the items of a bank.

    Problems and memories are streamed; only the n-grams of the items and a hash of each problem are kept in memory.

    Args:
        bank: the items to scan.
        problems: the training problems.
        memories: the rollouts that items were extracted from; their problems count as training problems.
        benchmarks: name → test problems.
        lineage: id → parents, for parents that are no longer in the bank, such as ``Merged.lineage``.
        n: length of the n-grams, in words.

    Raises:
        ConfigError: ``n`` is less than ``SHORTEST``.
    """
    if n < SHORTEST:
        raise ConfigError("--n is out of range", got=n, expected=f"{SHORTEST} or more")
    items = bank.items
    item_texts = ["\n".join((item.title, item.text, item.note)) for item in items]
    parents = {item.id: item.parents for item in items if item.parents} | dict(lineage or {})
    descendants: defaultdict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        for ancestor in ancestors(item.id, parents):
            descendants[ancestor].append(place)
    item_words = [words(text) for text in item_texts]
    grams = {size: ngrams(item_words, size) for size in {SHORTEST, n}}
    # Item id → its leaks by key: two memories of one problem give one leak.
    found: defaultdict[str, dict[tuple[str, ...], Leak]] = defaultdict(dict)
    seen: set[int] = set()
    traced: set[str] = set()

    def compare(kind: LeakKind, text: str, problem: str, source: str) -> None:
        problem_words = words(text)
        identity = hash((kind, source if kind is LeakKind.BENCHMARK else "", problem_words))
        if identity in seen:
            return
        seen.add(identity)
        is_short = len(problem_words) < n
        if is_short and (len(problem_words) < SHORTEST or not any(word[0].isdigit() for word in problem_words)):
            return
        size = SHORTEST if is_short else n
        for place, (length, start) in longest_runs(problem_words, grams[size], size).items():
            if is_short and length < len(problem_words):
                continue
            id, held = items[place].id, " ".join(item_words[place][start : start + length])
            part = "all" if length == len(problem_words) else f"{length} words in a row"
            where = f"benchmark {source}," if kind is LeakKind.BENCHMARK else "training"
            reason = f"holds {part} of {where} problem {problem}: {held!r}"
            found[id].setdefault((kind, problem, source), Leak(id, kind, problem, source, held, reason))

    for name, own in (benchmarks or {}).items():
        for problem in own:
            compare(LeakKind.BENCHMARK, problem.text, problem.id, name)
    for problem in problems:
        compare(LeakKind.TRAINING, problem.text, problem.id, problem.source)
    for memory in memories:
        compare(LeakKind.TRAINING, memory.problem, memory.problem_id, "")
        for place in descendants.get(memory.id, ()):
            id = items[place].id
            traced.add(id)
            key = (LeakKind.ANSWER, memory.problem_id, memory.answer)
            if key not in found[id] and (held := held_answer(item_texts[place], memory.answer)):
                reason = (
                    f"holds the answer {memory.answer!r} of problem {memory.problem_id}, which it came from: {held!r}"
                )
                found[id][key] = Leak(id, LeakKind.ANSWER, memory.problem_id, memory.source, held, reason)
    untraced = tuple(item.id for item in items if item.parents and item.id not in traced)
    leaks = tuple(leak for item in items for leak in found[item.id].values())
    return LeakReport(n, len(items), len(seen), untraced, leaks)


def quarantine(bank: SkillBank, report: LeakReport) -> tuple[SkillBank, tuple[Item, ...]]:
    """The bank without the items that leak, and those items, in bank order."""
    reasons = report.reasons
    return bank.without(reasons), tuple(item for item in bank.items if item.id in reasons)


# ---- answers

COMMON = frozenset(
    {Fraction(n) for n in (*range(13), 60, 90, 100, 180, 360, 1000)}
    | {Fraction(n, d) for n, d in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (1, 10), (1, 100))}
)
"""Numbers of general advice: small integers, conversion factors of units, angles, simple fractions."""
_FACTS = COMMON | {7, 10, 12, 16, 20, 24, 25, 28, 30, 31, 45, 50, 52, 75, 120, 270, 365, 366, 3600}
"""Numbers of general advice before a unit or a percent sign: 24 hours, 45 degrees, 25 %."""


def _any(listed: str) -> str:
    """A pattern that matches any of these words; ``s?`` is an optional s."""
    return rf"(?:{'|'.join(re.escape(word).replace(re.escape('s?'), 's?') for word in listed.split())})(?!\S)"


# Contexts of a number, in the form of ``_normalised``. After it: _OF_FACTS "degrees", _IS_IT "is the answer", _REST
# "left", _GOES_ON "equations". Before it: _NAMED "the answer is", _REACHED "we get", _CALCULATED "3 + 4 =", _CONDITION.
_OF_FACTS = re.compile(
    r"(?: \S+){0,2} "
    + _any(
        "degrees? angles? triangle days? months? inch inches ounces? hours? weeks? cards? minutes? seconds? cents? cm "
        "grams? metres? meters? centimetres? centimeters?"
    )
)
_NAMES = _any("answers? ans results? solutions? boxed output option choose pick select turns")
_REACHES = _any(
    "get gets got getting gives? giving yields? leaves? leaving left makes obtains? finds? comes? amounts adds equals "
    "becomes simplifies costs? takes needs earns pays spends totals? works ends? keeps receives have has is are was "
    "were be ="
)
_FILLERS = (
    "is are was be must should would will then thus therefore so a an the exactly equals? to = of final correct here "
    "just only - + that comes out as it hence about ought read minus with being us you him her them me total up back "
    "down at value answer result option"
)
_NAMED = re.compile(rf"(?<!\S){_NAMES} (?:{_any(_FILLERS + ' |')} ){{0,4}}$")
_REACHED = re.compile(rf"(?<!\S){_REACHES} (?:{_any(_FILLERS)} ){{0,4}}$")
_CALCULATED = re.compile(r"\d (?:\S+ ){0,3}[-+*/] (?:\S+ ){1,3}= $")
_CONDITION = re.compile(
    rf"(?<!\S){_any('if when whenever whether unless until suppose where while once try let')} (?:\S+ ){{0,7}}$"
)
_IS_IT = re.compile(rf" (?:is|as) (?:\S+ ){{0,2}}(?:{_NAMES}|value)")
_REST = re.compile(rf"(?: \S+){{0,2}} {_any('left remaining remains? altogether overall total')}")
_GOES_ON = re.compile(
    " "
    + _any(
        "numbers? digits? parts? steps? lines? units? terms? equations? unknowns? variables? cases? roots? solutions? "
        "values? factors? sides? ways? groups? sets? amounts? results? answers? times? places? decimals? significant "
        "examples? points? conditions? operations? things? more less fewer others? or to by out of at possible "
        "+ - * / ^ < >"
    )
)
"""What follows a number of general advice: 2 equations, 3 times, 4 more, 5 or …"""

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_DIGIT, _SCALE = "|".join(_SMALL), "|".join(_SCALES)
_LARGE = rf"(?:{_SCALE})(?: and(?= (?:{_DIGIT})\b))?"
_SPELLED = re.compile(rf"\b(?:{_DIGIT}|an? {_LARGE})\b(?:[ -](?:{_DIGIT}|{_LARGE})\b){{0,12}}", re.IGNORECASE)
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

_N = r"\d{1,30}(?:\.\d{1,30})?(?!\S)"
_NUMBER = re.compile(
    rf"(?<!\S)(?:(?:(?P<whole>\d{{1,30}}) )?(?:frac (?P<a>{_N}) (?P<b>{_N})|(?P<c>{_N}) / (?P<d>{_N}))"
    rf"|(?P<n>{_N})(?: \^ (?P<power>\d\d?)(?!\S)| \* 10 \^ (?P<ten>\d\d?)(?!\S)| (?P<scale>{_SCALE})(?!\S))?)"
    r"(?P<percent> %)?"
)
"""3, 3 / 4, 3 1 / 2, frac 3 4, 2 ^ 10, 1.5 million, in the form of ``_normalised``."""
_UNIT = re.compile(r"(?: (?!(?:pi|sqrt|frac|to)(?!\S))(?:[^\W\d_]{2,}|[mlghs])){0,3}(?: \^ \d+)?(?: %)?")


def held_answer(text: str, answer: str) -> str | None:
    """The answer and the words around it, if the text holds the answer; else ``None``.

    Numbers are compared by value. A number of ``COMMON`` or a single word counts only if the text presents it as a
    result.
    """
    said = _normalised(text)
    sought = _normalised(re.sub(r"^[\s$({]{0,9}[a-zA-Z] ?=", "", re.sub(r"\\(?:boxed|fbox)(?![a-z])", " ", answer)))
    number = _NUMBER.match(sought, 2 if sought[:2] in ("- ", "+ ") else 0)
    if number is None or not _UNIT.fullmatch(sought, number.end()):
        return _held_words(said, sought)
    for found in _NUMBER.finditer(said):
        if _same(number, found) and _gives_away(said, found):
            return _around(said, found)
    return None


@lru_cache(1024)
def _normalised(text: str) -> str:
    """The words of a text, separated by one space, with numbers in digits and ``|`` between clauses."""
    for spelling, usual in _SPELLINGS:
        text = spelling.sub(usual, text)
    text = _SPELLED.sub(_in_digits, unicodedata.normalize("NFKC", text).replace("\u2044", "/"))
    return " | ".join(filter(None, (" ".join(words(clause)) for clause in _BREAK.split(text))))


def _in_digits(spelled: re.Match[str]) -> str:
    """A spelled-out number (three hundred and five, two dozen) in digits; words that form no number stay unchanged."""
    total = current = 0
    for word in re.findall("[a-z]+", spelled[0].lower()):
        if word in ("a", "an"):
            current = 1
        elif word in _SMALL:
            last = current % 100
            if last and not (last >= 20 and last % 10 == 0 and _SMALL[word] < 10):
                return spelled[0]
            current += _SMALL[word]
        elif word in ("hundred", "dozen"):
            current *= _SCALES[word]
        elif word in _SCALES:
            total, current = total + current * _SCALES[word], 0
    return str(total + current)


def _value(found: re.Match[str]) -> Fraction:
    number = found.groupdict()
    top, bottom = number["a"] or number["c"], Fraction(number["b"] or number["d"] or 1)
    if top is not None:
        part = Fraction(top) / (bottom or 1)
        return Fraction(number["whole"] or 0) + part if part < 1 else part
    value = Fraction(number["n"])
    if number["power"]:
        return value ** int(number["power"])
    return value * 10 ** int(number["ten"] or 0) * _SCALES.get(number["scale"], 1)


def _same(one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two numbers may be equal: 25 % equals 0.25, and also 25."""
    mine, theirs = _value(one), _value(other)
    if mine == theirs or (one["percent"] is None) == (other["percent"] is None):
        return mine == theirs
    return (mine / 100 == theirs) if one["percent"] else (theirs / 100 == mine)


def _gives_away(said: str, found: re.Match[str]) -> bool:
    value, start, end = _value(found), found.start(), found.end()
    is_fact = value > 6 and value in _FACTS and (found["percent"] or _OF_FACTS.match(said, end))
    if value not in COMMON and not is_fact:
        return True

    def before(pattern: re.Pattern[str]) -> bool:
        return bool(pattern.search(said, max(0, start - 80), start))

    goes_on = _GOES_ON.match(said, end)
    if before(_NAMED) and (goes_on is None or goes_on[0] == " of"):
        return True
    if _IS_IT.match(said, end) or before(_CALCULATED):
        return True
    # Small numbers are often no result: "gives two equations", "one".
    is_small = value in (0, 1, 2) and said[end : end + 2] not in ("", " |")
    if is_fact or goes_on or is_small or before(_CONDITION):
        return False
    return before(_REACHED) or bool(_REST.match(said, end))


def _held_words(said: str, sought: str) -> str | None:
    # The multiplication sign is optional.
    asked = [word for word in sought.split() if word not in ("*", "|")]
    has_specific_number = any(word[0].isdecimal() and Fraction(word[:30]) not in COMMON for word in asked)
    if len(asked) > 2 or (len(asked) == 2 and has_specific_number):
        run = " ".join(asked)
        held = f" {run} " in f" {' '.join(word for word in said.split() if word not in ('*', '|'))} "
        return run if held else None
    for found in re.finditer(rf"(?<!\S){re.escape(' '.join(asked))}(?!\S)", said) if asked else ():
        start = found.start()
        if _NAMED.search(said, max(0, start - 80), start) or (
            len(asked) > 1 and said[max(0, start - 2) : start] == "= "
        ):
            return _around(said, found)
    return None


def _around(said: str, found: re.Match[str]) -> str:
    before, after = said[max(0, found.start() - 100) : found.start()], said[found.end() : found.end() + 30]
    return " ".join([*before.replace("|", "").split()[-5:], found[0], *after.replace("|", "").split()[:2]])
