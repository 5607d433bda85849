"""Items that give problems away: answers of the problems they came from, and long runs of a problem's words.

Such an item teaches nothing: a teacher that is shown the answer supports whoever guessed it, and a benchmark problem in
a bank makes the benchmark worthless. Texts are compared as ``contamination.words`` reads them.

Three rules, each with its reason in one line:

``answer``
    The item holds the reference answer of a problem it came from, by the rules of ``answers``: numbers are compared by
    value, in digits or words; common ones and single words count only where they are presented as a result.
``training problem``
    n words in a row of a problem that was trained on; of a problem with fewer words, all of them, if they are at least
    ``SHORTEST`` with a number among them.
``benchmark``
    The same for the problems of a named benchmark.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sgsd.bank.answers import answer_of, held_answer
from sgsd.bank.lineage import ancestors, parents_of
from sgsd.bank.reading import Reading
from sgsd.bank.skills import Item, SkillBank
from sgsd.contamination import words
from sgsd.errors import ConfigError
from sgsd.memories import Memory
from sgsd.problems import Problem

DEFAULT_N = 13
SHORTEST = 5
"""Words of the shortest problem that is looked for."""

_READINGS_KEPT = 1024


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

    Problems and memories pass by one after the other. What is kept: a number for each word of an item, 12 bytes for
    each run of n words in one, 16 bytes for each distinct problem.

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

    @lru_cache(_READINGS_KEPT)
    def read(place: int) -> Reading:
        return Reading.of(_spoken(items[place]))

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
        answer = answer_of(memory.answer) if below else None
        for place in below:
            id = items[place].id
            traced.add(id)
            key = (LeakKind.ANSWER, memory.problem_id, memory.answer)
            if answer and key not in found.get(id, ()) and (held := held_answer(read(place), answer)):
                reason = (
                    f"holds the answer {memory.answer!r} of problem {memory.problem_id}, which it came from: {held!r}"
                )
                found[id][key] = Leak(id, LeakKind.ANSWER, memory.problem_id, memory.source, held, reason)
    untraced = tuple(item.id for item in items if item.parents and item.id not in traced)
    leaks = tuple(leak for item in items if item.id in found for leak in found[item.id].values())
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
    """Runs of words → the items that hold them.

    Words are numbers, in one array for all items; a run is found by a 64-bit hash among sorted ones, and then compared
    word by word. Runs are indexed at length n, and at ``SHORTEST`` for problems of fewer than n words when the first
    one comes.
    """

    def __init__(self, texts: Iterable[tuple[str, ...]], n: int) -> None:
        self._n = n
        self._vocabulary: dict[str, int] = {}
        arrays: list[NDArray[np.int32]] = []
        for text in texts:
            numbers = [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in text]
            arrays.append(np.array(numbers, dtype=np.int32))
        self._starts = np.array([0, *np.cumsum([len(array) for array in arrays])], dtype=np.int64)
        self._words = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
        self._weights = np.random.default_rng(0).integers(2**64, size=len(self._vocabulary), dtype=np.uint64)
        self._index: dict[int, tuple[NDArray[np.uint64], NDArray[np.int32]]] = {}

    def held(self, problem: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """(item's place, the longest run of words it shares with the problem) where that is long enough."""
        asked = np.array([self._vocabulary.get(word, -1) for word in problem], dtype=np.int32)
        if len(problem) < self._n:
            if len(problem) >= SHORTEST and asked.min() >= 0 and any(word[0].isdigit() for word in problem):
                for item in self._whole(asked):
                    yield item, " ".join(problem)
            return
        places, first, last = self._found(asked, self._n)
        longest: dict[int, tuple[int, int]] = {}
        going: dict[int, int] = {}  # where in ``_words`` the run that ended a word before began → run's length
        for start, run in enumerate(np.lib.stride_tricks.sliding_window_view(asked, self._n)):
            ending: dict[int, int] = {}
            for there in places[first[start] : last[start]].tolist():
                if np.array_equal(self._words[there : there + self._n], run):
                    length = ending[there] = going.get(there - 1, self._n - 1) + 1
                    item = self._item(there)
                    if length > longest.get(item, (0, 0))[0]:
                        longest[item] = length, start + self._n - length
            going = ending
        for item, (length, start) in longest.items():
            yield item, " ".join(problem[start : start + length])

    def _whole(self, asked: NDArray[np.int32]) -> Iterator[int]:
        """Items that hold all these words in a row."""
        places, first, last = self._found(asked, SHORTEST)
        rarest = int(np.argmin(last - first))
        for there in (places[first[rarest] : last[rarest]] - rarest).tolist():
            end = there + len(asked)
            if (
                there >= 0
                and np.array_equal(self._words[there:end], asked)
                and self._item(there) == self._item(end - 1)
            ):
                yield self._item(there)

    def _found(
        self, asked: NDArray[np.int32], size: int
    ) -> tuple[NDArray[np.int32], NDArray[np.intp], NDArray[np.intp]]:
        """Places in ``_words``, and for each run of ``size`` words of a problem from where to where among them."""
        hashes, places = self._of_length(size)
        # What an item never says has number -1, the weight of some word, and is told from it when words are compared.
        sought = _hashes(asked, self._weights, size)
        return places, np.searchsorted(hashes, sought, "left"), np.searchsorted(hashes, sought, "right")

    def _item(self, there: int) -> int:
        return int(np.searchsorted(self._starts, there, "right")) - 1

    def _of_length(self, size: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Hashes of all runs of ``size`` words inside an item, sorted, and where in ``_words`` each begins."""
        if size not in self._index:
            inside = np.ones(max(0, len(self._words) - size + 1), dtype=bool)
            for back in range(1, size):
                crossing = self._starts[1:] - back
                inside[crossing[(crossing >= 0) & (crossing < len(inside))]] = False
            places = np.flatnonzero(inside).astype(np.int32)
            hashes = _hashes(self._words, self._weights, size)[inside]
            order = np.argsort(hashes, kind="stable")
            self._index[size] = hashes[order], places[order]
        return self._index[size]


def _hashes(numbers: NDArray[np.int32], weights: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A polynomial in the words' random weights, modulo 2⁶⁴, of each run of ``size``."""
    total = np.zeros(max(0, len(numbers) - size + 1), dtype=np.uint64)
    if not len(weights):
        return total
    values = weights[numbers]
    for place in range(size):
        total = total * _BASE + values[place : place + len(total)]
    return total


_BASE = np.uint64(0x9E3779B97F4A7C15)
