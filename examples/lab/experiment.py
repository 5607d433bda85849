"""The parts of an experiment: true rules, questions, a bank of known worth, its embedder, and a noisy verifier."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sgsd.bank import Mistake, Skill, SkillBank
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.examples.lab.language import MISTAKE_TEXTS, RULE_NAMES, SKILL_TEXTS, SYMBOLS, Question, mistake, skill
from sgsd.retrieval import document
from sgsd.verifiers import Outcome, Verdict, Verifier

TRUE_RULES: Mapping[str, str] = dict(
    zip(
        SYMBOLS,
        ("next", "difference", "first", "min", "product", "twice", "sum", "last", "max"),
        strict=True,
    )
)
"""The true rule of each symbol, which the plain prompt never states.

For three symbols it is one of the two rules that the models guess more often (``pretrain.prior``)."""


_MOST = 8  # wordings of one rule
_ItemT = TypeVar("_ItemT", Skill, Mistake)


class Worth(StrEnum):
    """The kind of an item in the lab's bank."""

    HELPFUL = "helpful"
    MISLEADING = "misleading"
    IRRELEVANT = "irrelevant"


@dataclass(frozen=True, slots=True)
class BankShares:
    """Pairs of each kind per symbol. Their total is the highest number of teachers per problem."""

    helpful: int = 2
    misleading: int = 2
    irrelevant: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= _MOST:
                raise ConfigError(f"--{name} is out of range", got=value, expected=f"0 to {_MOST} pairs a symbol")
        if self.total < 1:
            raise ConfigError("the lab's bank is empty", expected="helpful, misleading or irrelevant items")

    @property
    def total(self) -> int:
        """Pairs per symbol."""
        return self.helpful + self.misleading + self.irrelevant


@dataclass(frozen=True)
class LabBank:
    """A bank, and the kinds of its items.

    Attributes:
        bank: skills and mistakes in the same order; those of one rank are a pair of one kind.
        worth: kind of each item, by id.
        topics: for the text of an item as it is embedded: the symbol whose problems retrieve it, and its rank among the
            items of that symbol, from 0.
    """

    bank: SkillBank
    worth: Mapping[str, Worth]
    topics: Mapping[str, tuple[str, int]]


def make_bank(shares: BankShares, *, seed: int = 0) -> LabBank:
    """A bank with pairs of each kind for every symbol, in random order.

    A helpful pair states the true rule and warns of another; a misleading pair states a wrong rule and warns of the
    true one; an irrelevant pair states and warns of rules for another symbol. Neither is the true rule of the symbol
    whose problems retrieve it, since a model follows a stated rule to some extent on problems with another symbol, too.
    ``seed`` draws rules, wordings and order.
    """
    draw = random.Random(seed)
    skills: list[Skill] = []
    mistakes: list[Mistake] = []
    worth: dict[str, Worth] = {}
    topics: dict[str, tuple[str, int]] = {}

    def unused(make: Callable[[str, str, int], _ItemT], texts: Sequence[str], symbol: str, rule: str) -> _ItemT:
        made = (make(symbol, rule, wording) for wording in range(len(texts)))
        return draw.choice([item for item in made if item.id not in worth])

    for symbol, true_rule in TRUE_RULES.items():
        others = [other for other in SYMBOLS if other != symbol]
        wrong_rules = [rule for rule in RULE_NAMES if rule != true_rule]
        stated_wrongly = draw.sample(wrong_rules, shares.misleading)
        pairs = [(Worth.HELPFUL, symbol, true_rule, draw.choice(wrong_rules)) for _ in range(shares.helpful)]
        pairs += [(Worth.MISLEADING, symbol, wrong, true_rule) for wrong in stated_wrongly]
        for _ in range(shares.irrelevant):
            about = draw.choice(others)
            stated, warned = draw.sample([rule for rule in wrong_rules if rule != TRUE_RULES[about]], 2)
            pairs.append((Worth.IRRELEVANT, about, stated, warned))
        draw.shuffle(pairs)
        for place, (kind, about, stated, warned) in enumerate(pairs):
            skills.append(unused(skill, SKILL_TEXTS, about, stated))
            mistakes.append(unused(mistake, MISTAKE_TEXTS, about, warned))
            for item in (skills[-1], mistakes[-1]):
                worth[item.id] = kind
                topics[document(item)] = symbol, place
    bank = SkillBank(tuple(skills), tuple(mistakes), name="lab", metadata={"worth": dict(worth)})
    return LabBank(bank, worth, topics)


class TopicEmbedder:
    """A ``retrieval.Embedder`` that embeds a text by its symbol.

    Texts of one symbol have a cosine similarity of at least 0.9, other texts of at most 0.36. Irrelevant items are
    embedded by the symbol for which they are retrieved, and not by the one that they are about.

    Args:
        topics: see ``LabBank``. The symbol of any other text is the first one in it.
    """

    name = "lab topics"

    def __init__(self, topics: Mapping[str, tuple[str, int]]) -> None:
        self._topics = dict(topics)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[N, 11]``: unit vectors with a dimension per symbol, and two for the rank among the items of a symbol."""
        rows = np.zeros((len(texts), len(SYMBOLS) + 2), dtype=np.float64)
        for row, text in zip(rows, texts, strict=True):
            about = next((word for word in text.split() if word in SYMBOLS), None)
            symbol, place = self._topics.get(text, (about, 0))
            closeness = 1 - place / 100  # a slightly higher similarity for earlier items
            if symbol is not None:
                row[SYMBOLS.index(symbol)] = 0.8
            row[-2:] = 0.6 * closeness, 0.6 * np.sqrt(1 - closeness**2)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def questions(count: int, *, seed: int, prefix: str, without: frozenset[str] = frozenset()) -> list[Problem]:
    """Distinct problems, equally many for each symbol, with answer and solution by the true rule.

    Args:
        count: number of problems.
        seed: of the draw.
        prefix: of the ids.
        without: texts to leave out.

    Raises:
        ConfigError: there are fewer than ``count`` problems.
    """
    each = [count // len(SYMBOLS) + (place < count % len(SYMBOLS)) for place in range(len(SYMBOLS))]
    draw = random.Random(seed)
    problems: list[Problem] = []
    for symbol, wanted in zip(SYMBOLS, each, strict=True):
        asked = [Question(symbol, (n // 100, n // 10 % 10, n % 10)) for n in range(1000)]
        asked = [question for question in asked if question.text not in without]
        if wanted > len(asked):
            raise ConfigError("too many questions", got=count, expected=f"at most {9 * len(asked)}")
        for question in draw.sample(asked, wanted):
            rule, id = TRUE_RULES[symbol], f"{prefix}-{len(problems)}"
            answer, solution = str(question.answer(rule)), question.solution(rule)
            problems.append(Problem(id, question.text, answer, solution=solution, source="sgsd lab"))
    draw.shuffle(problems)
    return problems


_OPPOSITE = {Outcome.CORRECT: Outcome.INCORRECT, Outcome.INCORRECT: Outcome.CORRECT}


class NoisyVerifier:
    """A verifier that swaps correct and incorrect in a share of the verdicts of another verifier.

    Whether a verdict is swapped depends on the seed, the completion, the reference, and the number of equal completions
    before it in the batch. It is therefore repeatable, and independent among the rollouts of a group.

    Args:
        verifier: the other verifier.
        flips: share of swapped verdicts, from 0 to 0.5.
        seed: of the swaps.
    """

    def __init__(self, verifier: Verifier, *, flips: float, seed: int = 0) -> None:
        if not 0 <= flips <= 0.5:
            raise ConfigError("--flips is out of range", got=flips, expected="0 to 0.5")
        self._verifier = verifier
        self._flips = flips
        self._seed = seed

    def verify(self, completion: str, answer: str) -> Verdict:
        """See ``Verifier.verify``."""
        return self.verify_many([completion], [answer])[0]

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """See ``Verifier.verify_many``."""
        verdicts = self._verifier.verify_many(completions, answers)
        seen: Counter[tuple[str, str]] = Counter()
        flipped: list[Verdict] = []
        for verdict, completion, answer in zip(verdicts, completions, answers, strict=True):
            key = (self._seed, completion, answer, seen[completion, answer])
            seen[completion, answer] += 1
            share = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) / 2**64
            if share < self._flips:
                outcome = _OPPOSITE.get(verdict.outcome, verdict.outcome)
                verdict = Verdict(outcome, "flipped by the lab", verdict.extracted)
            flipped.append(verdict)
        return flipped

    def readable(self, answer: str) -> bool:
        """See ``Verifier.readable``."""
        return self._verifier.readable(answer)
