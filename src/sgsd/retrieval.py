"""Retrieval: a problem → the ranked, weighted skill–mistake pairs of its teachers.

Step 4 of the method: for a problem x, rank the bank's skills and, separately, its mistakes, keep the top K of each, and
pair them by rank: (g_k, e_k), k = 1..K, K capped by the shorter list. The teacher weights of step 10 come from the same
similarities. Rules of a document may each teach alone; skills and mistakes are then ranked in one list.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sgsd.bank import Item, Mistake, Skill, SkillBank
from sgsd.errors import ConfigError, check_choice

ITEM_TEXTS = ("topic", "full")
"""The parts of an item that are compared with problems; see ``document``."""
MOST_PROBLEMS = 32_768
"""The number of problems whose embeddings are cached; with 1,024 dimensions they take 134 MB."""
# Batch composition changes an embedding by about 1e-7; similarities that agree to six decimals are ties.
_RANKING_DECIMALS = 6
_BM25_TOKEN = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")


class Embedder(Protocol):
    """Texts → unit vectors."""

    @property
    def name(self) -> str:
        """Model and prompt, for logs and manifests."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts → ``[N, D]`` rows of unit Euclidean length."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """The items one teacher is shown: (g_k, e_k), or one of the two.

    ``similarity`` is the mean of the items' similarity to the problem: ``(cos(x, g_k) + cos(x, e_k)) / 2`` in [-1, 1]
    for an embedder; ``None`` for other retrievers.
    """

    skill: Skill | None
    mistake: Mistake | None
    similarity: float | None

    @property
    def items(self) -> tuple[Item, ...]:
        """The skill and the mistake, without ``None``."""
        return tuple(item for item in (self.skill, self.mistake) if item is not None)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The pairs for one problem, best first."""

    pairs: tuple[Pair, ...]  # at most K
    weights: tuple[float, ...]  # α_k, one per pair, positive, summing to 1


class Retriever(Protocol):
    """Problems → pairs."""

    @property
    def name(self) -> str:
        """For logs and manifests."""
        ...

    def retrieve(self, queries: Sequence[str], bank: SkillBank, k: int, *, alone: bool = False) -> list[Retrieval]:
        """One ``Retrieval`` per query, in order, with ``min(k, bank.max_pairs)`` pairs each.

        The result for a query does not depend on the other queries.

        Args:
            queries: the problems' texts.
            bank: skills and mistakes.
            k: K, 1 or more.
            alone: at most k items, each as a ``Pair`` of one item.

        Raises:
            ConfigError: ``k`` is less than 1.
        """
        ...


class _Ranking(ABC):
    """Base of the retrievers: the top K items of each list by score, paired by rank and weighted."""

    _temperature = 1.0
    _has_similarity = True

    def retrieve(self, queries: Sequence[str], bank: SkillBank, k: int, *, alone: bool = False) -> list[Retrieval]:
        """See ``Retriever.retrieve``."""
        if k < 1:
            raise ConfigError("the number of teachers K is too small", got=k, expected="at least 1")
        k = min(k, len(bank.items) if alone else bank.max_pairs)
        if k == 0 or not queries:
            return [Retrieval((), ()) for _ in queries]
        return [self._best(scores, bank, k, alone) for scores in self._scores(queries, bank, alone)]

    @abstractmethod
    def _scores(self, queries: Sequence[str], bank: SkillBank, alone: bool) -> Iterable[NDArray[np.float64]]:
        """For each query the scores ``[N]`` of ``bank.items``; with ``alone`` one list ranks them all."""

    def _best(self, scores: NDArray[np.float64], bank: SkillBank, k: int, alone: bool) -> Retrieval:
        if alone:
            groups = [(place,) for place in _top(scores, k)]
        else:
            count = len(bank.skills)
            mistakes = [count + place for place in _top(scores[count:], k)]
            groups = list(zip(_top(scores[:count], k), mistakes, strict=True))
        pairs: list[Pair] = []
        for group in groups:
            items = [bank.items[place] for place in group]
            skill = next((item for item in items if isinstance(item, Skill)), None)
            mistake = next((item for item in items if isinstance(item, Mistake)), None)
            similarity = float(sum(scores[place] for place in group)) / len(group) if self._has_similarity else None
            pairs.append(Pair(skill, mistake, similarity))
        return Retrieval(tuple(pairs), _weights(pairs, self._temperature))


class EmbeddingRetriever(_Ranking):
    """Cosine similarity between the problem and each item (the paper's retriever).

    Embeddings are cached: those of the last bank's items, and of ``MOST_PROBLEMS`` problems. One call of ``retrieve``
    makes at most one call of ``embed``. Ties, to six decimals, go to the item that comes first in the bank.

    Args:
        embedder: texts → unit rows.
        temperature: of the weights, α = softmax(similarity / temperature); 1.0 in the paper.
        query_prompt: a prefix of problems, not of items; instruction-tuned embedders such as Qwen3-Embedding need
            ``"Instruct: <task>\\nQuery:"``.
        item_text: the part of an item that is embedded, ``topic`` or ``full``; see ``document``.

    Raises:
        ConfigError: a temperature that is not positive, or an unknown ``item_text``.
    """

    def __init__(
        self, embedder: Embedder, *, temperature: float = 1.0, query_prompt: str = "", item_text: str = "topic"
    ) -> None:
        check_choice("item_text", item_text, ITEM_TEXTS)
        _require_positive(temperature)
        self._embedder = embedder
        self._temperature = temperature
        self._query_prompt = query_prompt
        self._item_text = item_text
        self._problems: dict[str, NDArray[np.float32]] = {}
        self._items: dict[str, NDArray[np.float32]] = {}
        self._indexed: tuple[str, NDArray[np.float32]] | None = None  # a bank's digest and its rows

    @property
    def name(self) -> str:
        return f"embedding:{self._embedder.name}"

    def _scores(self, queries: Sequence[str], bank: SkillBank, alone: bool) -> NDArray[np.float64]:
        """Cosines ``[Q, N]``, summed in float64.

        Raises:
            ConfigError: the embedder does not return one finite unit row per text.
        """
        prompted = [self._query_prompt + query for query in queries]
        is_known = self._indexed is not None and self._indexed[0] == bank.digest
        texts = [] if is_known else [document(item, self._item_text) for item in bank.items]
        known = self._problems | self._items
        missing = [text for text in dict.fromkeys((*prompted, *texts)) if text not in known]
        if missing:
            rows = np.asarray(self._embedder.embed(missing), dtype=np.float32)
            _require_unit_rows(rows, len(missing), self._embedder.name)
            known |= zip(missing, rows, strict=True)
        if not is_known:
            self._indexed = bank.digest, np.stack([known[text] for text in texts])
            self._items = {text: known[text] for text in texts}
        for text in prompted:
            # Moved to the end: the first is dropped first. A copy, since a view would keep its whole batch in memory.
            self._problems[text] = self._problems.pop(text, known[text].copy())
        while len(self._problems) > MOST_PROBLEMS:
            del self._problems[next(iter(self._problems))]
        assert self._indexed is not None
        # Not a BLAS product, whose last digits depend on the other queries.
        asked = np.stack([known[text] for text in prompted])
        return np.clip(np.einsum("nd,qd->qn", self._indexed[1], asked, dtype=np.float64), -1.0, 1.0)


class BM25Retriever(_Ranking):
    """Word overlap (BM25, Lucene's variant, k1 = 1.5, b = 0.75), which needs no embedding model.

    Words are lower-cased runs of letters and digits; each Chinese character is a word. The weights are uniform, since
    BM25 scores are unbounded and grow with the problem's length: their softmax would select nearly one teacher alone.
    Words are counted among the items that are ranked together: skills and mistakes separately, or all items ``alone``.
    Ties, also between items that share no word with the problem, go to the item that comes first in the bank.

    Args:
        item_text: the part of an item that is searched, ``topic`` or ``full``; see ``document``.

    Raises:
        ConfigError: an unknown ``item_text``.
    """

    name = "bm25"
    _has_similarity = False

    def __init__(self, *, item_text: str = "topic") -> None:
        check_choice("item_text", item_text, ITEM_TEXTS)
        self._item_text = item_text
        self._indexed: tuple[tuple[str, bool], list[_BM25Index]] | None = None

    def _scores(self, queries: Sequence[str], bank: SkillBank, alone: bool) -> Iterable[NDArray[np.float64]]:
        key = bank.digest, alone
        if self._indexed is None or self._indexed[0] != key:
            lists = [bank.items] if alone else [bank.skills, bank.mistakes]
            self._indexed = key, [_BM25Index(items, self._item_text) for items in lists]
        return [np.concatenate([index.scores(_words(query)) for index in self._indexed[1]]) for query in queries]


class RandomRetriever(_Ranking):
    """Random pairs: the control experiment for ranking.

    Items are ranked by SHA-256(seed, query, item id). This is a draw without replacement that does not depend on the
    other queries or the bank's order; an added item leaves the order of the others unchanged.

    Args:
        seed: any integer.
    """

    name = "random"
    _has_similarity = False

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def _scores(self, queries: Sequence[str], bank: SkillBank, alone: bool) -> Iterable[NDArray[np.float64]]:
        for query in queries:
            draws = [f"{self._seed}\0{query}\0{item.id}".encode(errors="surrogatepass") for item in bank.items]
            digests = [hashlib.sha256(draw).digest() for draw in draws]
            places = {digest: place for place, digest in enumerate(sorted(digests, reverse=True))}
            yield np.array([places[digest] for digest in digests], dtype=np.float64)


def document(item: Item, item_text: str = "topic") -> str:
    """The text of an item that is compared with problems.

    Args:
        item: a skill or a mistake.
        item_text: ``topic``: title, text and a skill's ``when``. ``full``: also a mistake's ``avoid``, which says
            little about the problems it belongs to; these are the fields that SGSD's authors embed.
    """
    note = item.when if isinstance(item, Skill) else item.avoid if item_text == "full" else ""
    return "\n".join(part for part in (item.title, item.text, note) if part)


class _BM25Index:
    """BM25 scores of one list of items."""

    def __init__(self, items: Sequence[Item], item_text: str) -> None:
        import bm25s  # pyright: ignore[reportMissingTypeStubs]

        corpus = [_words(document(item, item_text)) for item in items]
        self._count = len(items)
        self._known = {word for words in corpus for word in words}
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
        if self._known:
            self._bm25.index(corpus, show_progress=False)  # pyright: ignore[reportUnknownMemberType]

    def scores(self, words: Sequence[str]) -> NDArray[np.float64]:
        known = [word for word in words if word in self._known]
        if not known:
            return np.zeros(self._count)
        return np.asarray(self._bm25.get_scores(known), dtype=np.float64)  # pyright: ignore[reportUnknownMemberType]


def _words(text: str) -> list[str]:
    return cast(list[str], _BM25_TOKEN.findall(text.lower()))


def _top(similarities: NDArray[np.float64], k: int) -> list[int]:
    """Positions of the k largest, best first, ties in bank order."""
    return [int(place) for place in np.argsort(-np.round(similarities, _RANKING_DECIMALS), kind="stable")[:k]]


def _weights(pairs: Sequence[Pair], temperature: float) -> tuple[float, ...]:
    """α = softmax_k(similarity_k / temperature); uniform where the pairs have no similarity."""
    similarities = [pair.similarity for pair in pairs if pair.similarity is not None]
    if len(similarities) < len(pairs):
        return (1 / len(pairs),) * len(pairs)
    if not pairs:
        return ()
    logits = np.array(similarities) / temperature
    exponentials = np.exp(logits - logits.max())
    return tuple(float(weight) for weight in exponentials / exponentials.sum())


def _require_positive(temperature: float) -> None:
    if not (0 < temperature < float("inf")):
        raise ConfigError("retrieval temperature is out of range", got=temperature, expected="a positive number")


def _require_unit_rows(rows: NDArray[np.float32], count: int, name: str) -> None:
    if rows.ndim != 2 or rows.shape[0] != count:
        what = f"embedder {name!r} returned another shape"
        raise ConfigError(what, got=f"shape {rows.shape}", expected=f"[{count}, D]")
    errors = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1.0)
    # Written so that NaN fails too.
    if not bool(np.all(errors <= 1e-3)):
        length = float(np.linalg.norm(rows[int(np.argmax(errors))]))
        what = f"embedder {name!r} returned rows that are not unit vectors"
        raise ConfigError(what, got=f"a row of length {length:.4g}", expected="unit rows")
