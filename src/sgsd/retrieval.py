"""Which skills and mistakes a problem's teachers are made of: ranked, weighted pairs.

The method's step 4: rank the bank's skills and, separately, its mistakes for a problem x, keep the top K of each, and
pair them by rank: (g_k, e_k), k = 1..K, K capped by the shorter list. Step 10's teacher weights come from the same
similarities. Of a document's rules each may teach alone: skills and mistakes are ranked in one list then.
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
"""What of an item is compared with problems; see ``document``."""
MOST_PROBLEMS = 32_768
"""Problems whose vectors are kept; of 1,024 dimensions they take 134 MB."""
# Batch composition moves an embedding by about 1e-7; similarities that agree to six decimals are ties.
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
    """What one teacher is given: (g_k, e_k), or one of the two.

    ``similarity`` is the mean of the items' similarity to the problem: ``(cos(x, g_k) + cos(x, e_k)) / 2`` in [-1, 1]
    for an embedder, the mean BM25 score where that was asked for; ``None`` where the retriever has none.
    """

    skill: Skill | None
    mistake: Mistake | None
    similarity: float | None

    @property
    def items(self) -> tuple[Item, ...]:
        """The skill and the mistake, or the one that there is."""
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
        """One ``Retrieval`` per query, in order, with ``min(k, bank.max_pairs)`` pairs each; independent of the other
        queries. ``alone``: at most k items of the bank, each in a pair without the other half. ``ConfigError`` if ``k``
        is less than 1."""
        ...


class _Ranking(ABC):
    """Top K of each list by a score per item, paired by rank and weighted: what the retrievers have in common."""

    _temperature = 1.0
    _has_similarity = True

    def retrieve(self, queries: Sequence[str], bank: SkillBank, k: int, *, alone: bool = False) -> list[Retrieval]:
        """See ``Retriever.retrieve``."""
        if k < 1:
            raise ConfigError("number of teachers K is too small", got=k, expected="at least 1")
        k = min(k, len(bank.items) if alone else bank.max_pairs)
        if k == 0 or not queries:
            return [Retrieval((), ()) for _ in queries]
        return [self._best(scores, bank, k, alone) for scores in self._scores(queries, bank)]

    @abstractmethod
    def _scores(self, queries: Sequence[str], bank: SkillBank) -> Iterable[NDArray[np.float64]]:
        """One row of scores a query, ``[N]`` in the order of ``bank.items``."""

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

    Every text is embedded once and kept: the items of the bank that was asked for last, and ``MOST_PROBLEMS`` problems.
    One call of ``retrieve`` makes at most one call of ``embed``. Ties, to six decimals, go to the item that comes first
    in the bank.

    Args:
        embedder: texts → unit rows.
        temperature: of the weights, α = softmax(similarity / temperature); 1.0 is the paper's.
        query_prompt: put before each problem and no item; instruction-tuned embedders such as Qwen3-Embedding want
            ``"Instruct: <task>\\nQuery:"``.
        item_text: what of an item is embedded: ``topic`` or ``full``, see ``document``.

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

    def _scores(self, queries: Sequence[str], bank: SkillBank) -> NDArray[np.float64]:
        """Cosines ``[Q, N]``, summed in float64; ``ConfigError`` if the embedder's answer is not N finite unit rows."""
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
            # Last is least likely to go. A copy, so that a kept row does not keep its whole batch.
            self._problems[text] = self._problems.pop(text, known[text].copy())
        while len(self._problems) > MOST_PROBLEMS:
            del self._problems[next(iter(self._problems))]
        assert self._indexed is not None
        # Not a matrix product of BLAS: its sums depend on the other queries in their last digits.
        asked = np.stack([known[text] for text in prompted])
        return np.clip(np.einsum("nd,qd->qn", self._indexed[1], asked, dtype=np.float64), -1.0, 1.0)


class BM25Retriever(_Ranking):
    """Word overlap (BM25, Lucene's variant, k1 = 1.5, b = 0.75), for use without any embedding model.

    Words are lower-cased runs of letters and digits; each Chinese character is a word. The weights are uniform, since
    BM25 scores are unbounded and grow with the problem's length: a softmax over them is close to one teacher alone.
    Ties, among them items that share no word with the problem, go to the item that comes first in the bank.

    Args:
        weighted: use α = softmax(mean score / temperature) all the same, and report the mean score as ``similarity``.
        temperature: of those weights.
        item_text: what of an item is searched: ``topic`` or ``full``, see ``document``.

    Raises:
        ConfigError: a temperature that is not positive, or an unknown ``item_text``.
    """

    name = "bm25"

    def __init__(self, *, weighted: bool = False, temperature: float = 1.0, item_text: str = "topic") -> None:
        _require_positive(temperature)
        check_choice("item_text", item_text, ITEM_TEXTS)
        self._item_text = item_text
        self._has_similarity = weighted
        self._temperature = temperature
        self._indexed: tuple[str, list[_BM25Index]] | None = None

    def _scores(self, queries: Sequence[str], bank: SkillBank) -> Iterable[NDArray[np.float64]]:
        if self._indexed is None or self._indexed[0] != bank.digest:
            self._indexed = bank.digest, [_BM25Index(items, self._item_text) for items in (bank.skills, bank.mistakes)]
        return [np.concatenate([index.scores(_words(query)) for index in self._indexed[1]]) for query in queries]


class RandomRetriever(_Ranking):
    """Random pairs: the control that tells what ranking is worth.

    Item i's rank for a query is its place in the order of SHA-256(seed, query, id of i): a draw without replacement
    that depends on nothing else, neither the other queries nor the bank's order, and that an added item does not
    reshuffle.

    Args:
        seed: any integer.
    """

    name = "random"
    _has_similarity = False

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def _scores(self, queries: Sequence[str], bank: SkillBank) -> Iterable[NDArray[np.float64]]:
        for query in queries:
            draws = [f"{self._seed}\0{query}\0{item.id}".encode(errors="surrogatepass") for item in bank.items]
            digests = [hashlib.sha256(draw).digest() for draw in draws]
            places = {digest: place for place, digest in enumerate(sorted(digests, reverse=True))}
            yield np.array([places[digest] for digest in digests], dtype=np.float64)


def document(item: Item, item_text: str = "topic") -> str:
    """The text of an item that is compared with problems.

    Args:
        item: a skill or a mistake.
        item_text: ``topic``: title, text and, for a skill, when to apply it; what a mistake's ``avoid`` advises says
            little about which problems it belongs to. ``full``: also ``avoid``, which are the fields that SGSD's
            authors embed.
    """
    note = item.when if isinstance(item, Skill) else item.avoid if item_text == "full" else ""
    return "\n".join(part for part in (item.title, item.text, note) if part)


class _BM25Index:
    """Scores of one list's items, ``[N]``."""

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
        raise ConfigError("retrieval temperature is unusable", got=temperature, expected="a positive number")


def _require_unit_rows(rows: NDArray[np.float32], count: int, name: str) -> None:
    if rows.ndim != 2 or rows.shape[0] != count:
        raise ConfigError(f"embedder {name!r} broke its contract", got=f"shape {rows.shape}", expected=f"[{count}, D]")
    errors = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1.0)
    # Written so that NaN fails too.
    if not bool(np.all(errors <= 1e-3)):
        length = float(np.linalg.norm(rows[int(np.argmax(errors))]))
        raise ConfigError(
            f"embedder {name!r} broke its contract", got=f"a row of length {length:.4g}", expected="unit rows"
        )
