"""Finds test problems in training data: shared word n-grams, equal texts, equal texts with another answer.

Texts are compared as the sequences of words that ``words`` returns: case, punctuation, dollar signs and LaTeX spacing
make no difference. A number, the name of a LaTeX command, an arithmetic sign and a Chinese, Japanese or Korean
character are one word each. A shared n-gram is no proof of contamination, since many problems end in the same sentence.
So every pair says which words it shares, and what share of the test problem they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sgsd.data.problems import Problem, same_answer
from sgsd.errors import ConfigError

DEFAULT_N = 12
"""Words in a row; the size at which DAPO-Math-17k was found to overlap with AMC23 and MATH-500."""
MOST_PLACES = 8
"""At most so many places of one n-gram count in a problem: a text that repeats itself has countless."""
MOST = 0.5
"""The share of a test problem's words from which on it counts as mostly contained in a training problem."""

_LAYOUT = re.compile(
    r"\\[,;:!> ]|\\(?:quad|qquad|left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-z])"
    r"|\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it))(?![a-z])|~"
)
_SPELLINGS = (
    (re.compile(r"\\(?:cdot|times)(?![a-z])|[×·]"), " * "),
    (re.compile(r"\\[dt]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\([lg]e)q(?![a-z])"), r"\\\1"),
)
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|\d+(?:\.\d+)?|[^\W\d_{_CJK}]+|[-+*/=<>^|%]")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test problem and a training problem that share words.

    Attributes:
        test: the test problem.
        train: the training problem.
        shared: the longest run of words in both.
        length: its number of words.
        share: its share of the test problem's words.
        exact: whether the sequences of words are equal.
        other_answer: whether they are equal and the reference answers differ.
    """

    test: Problem
    train: Problem
    shared: str
    length: int
    share: float
    exact: bool
    other_answer: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        pair: dict[str, object] = {}
        for side, problem in (("test", self.test), ("train", self.train)):
            pair |= {f"{side}_{name}": getattr(problem, name) for name in ("id", "source", "answer")}
        names = ("shared", "length", "share", "exact", "other_answer")
        return pair | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a test set shares with training data; its counts are of test problems.

    Attributes:
        n: the length of the word n-grams. Of a problem with fewer words, only an equal text counts.
        train: the number of training problems.
        test: the number of test problems.
        pairs: by the share of the test problem, largest first; then in the order of the data.
        overlapping: test problems that share an n-gram or their whole text with a training problem.
        mostly: test problems that share a run of at least half their words with one training problem.
        exact: test problems with the text of a training problem.
        other_answer: test problems with the text of a training problem that has another answer.
    """

    n: int
    train: int
    test: int
    pairs: tuple[Overlap, ...]
    overlapping: int
    mostly: int
    exact: int
    other_answer: int

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: the counts, the share of the test set that overlaps, and every pair."""
        names = ("n", "train", "test", "overlapping", "mostly", "exact", "other_answer")
        told: dict[str, object] = {name: getattr(self, name) for name in names}
        share = self.overlapping / self.test if self.test else 0.0
        return told | {"share": share, "pairs": [pair.to_dict() for pair in self.pairs]}


def words(text: str) -> tuple[str, ...]:
    r"""A text as words, lower case: ``\dfrac{1,000}{3} \cdot x`` is ``frac 1000 3 * x``."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    for spelling, usual in _SPELLINGS:
        plain = spelling.sub(usual, plain)
    plain = _HYPHEN.sub(" ", _GROUPED.sub("", _LAYOUT.sub(" ", plain)))
    return tuple(_WORD.findall(plain))


def find_overlaps(train: Sequence[Problem], test: Sequence[Problem], *, n: int = DEFAULT_N) -> Contamination:
    """Find every pair of a test problem and a training problem that share n words in a row, or their whole text.

    Only the n-grams of the test problems are kept in memory.

    Raises:
        ConfigError: ``n`` is below 1.
    """
    if n < 1:
        raise ConfigError("--n is out of range", got=n, expected="1 or more")
    tested = [words(problem.text) for problem in test]
    grams = ngrams(tested, n)
    whole: dict[tuple[str, ...], list[int]] = {}
    for place, text in enumerate(tested):
        whole.setdefault(text, []).append(place)
    found: list[tuple[int, int, Overlap]] = []
    for position, problem in enumerate(train):
        text = words(problem.text)
        runs = longest_runs(text, grams, n)
        for place in whole.get(text, ()):
            runs[place] = (len(text), 0)
        for place, (length, start) in runs.items():
            shared = " ".join(tested[place][start : start + length])
            share = length / len(tested[place]) if tested[place] else 1.0
            exact = tested[place] == text
            other = exact and same_answer(test[place].answer) != same_answer(problem.answer)
            found.append((place, position, Overlap(test[place], problem, shared, length, share, exact, other)))
    found.sort(key=lambda item: (-item[2].share, item[0], item[1]))
    pairs = tuple(pair for _, _, pair in found)

    def tests(some: Iterable[Overlap]) -> int:
        return len({(pair.test.source, pair.test.id) for pair in some})

    return Contamination(
        n,
        len(train),
        len(test),
        pairs,
        overlapping=tests(pairs),
        mostly=tests(pair for pair in pairs if pair.share >= MOST),
        exact=tests(pair for pair in pairs if pair.exact),
        other_answer=tests(pair for pair in pairs if pair.other_answer),
    )


def ngrams(texts: Iterable[tuple[str, ...]], n: int) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Word n-gram → every (index of a text, start in it), at most ``MOST_PLACES`` of them in one text."""
    grams: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for place, text in enumerate(texts):
        for start in range(len(text) - n + 1):
            there = grams.setdefault(text[start : start + n], [])
            if len(there) < MOST_PLACES or there[-MOST_PLACES][0] != place:
                there.append((place, start))
    return grams


def longest_runs(
    text: tuple[str, ...], grams: dict[tuple[str, ...], list[tuple[int, int]]], n: int
) -> dict[int, tuple[int, int]]:
    """Index of a text of ``ngrams`` → length and start in it of the longest run of words shared with ``text``."""
    longest: dict[int, tuple[int, int]] = {}
    going: dict[tuple[int, int], int] = {}  # (place, start of the n-gram) that ended at the word before → run's length
    for start in range(len(text) - n + 1):
        ending: dict[tuple[int, int], int] = {}
        for place, there in grams.get(text[start : start + n], ()):
            length = going.get((place, there - 1), n - 1) + 1
            ending[place, there] = length
            if length > longest.get(place, (0, 0))[0]:
                longest[place] = (length, there + n - length)
        going = ending
    return longest
