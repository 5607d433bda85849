"""Time of retrieval from a large bank, 64 problems at a time: python benchmarks/retrieval.py [--items 10000]

Embeddings are vectors of 384 dimensions drawn around cluster centres; the time of an embedding model is not counted.
Times are CPU times of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from measure import show_table
from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.retrieval import BM25Retriever, EmbeddingRetriever

WORDS = tuple(
    f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "nu", "ra") for b in "dglnrst" for c in ("an", "el", "o", "u")
)
WIDTH, CENTRES, BATCH, K = 384, 2_000, 64, 8


class MadeEmbedder:
    """Random unit vectors around ``CENTRES`` centres; counts the seconds that it takes."""

    name = "made"
    seconds = 0.0

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._centres = self._rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        began = time.process_time()
        rows = self._rng.standard_normal((len(texts), WIDTH), dtype=np.float32)
        rows += self._centres[self._rng.integers(CENTRES, size=len(texts))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.seconds += time.process_time() - began
        return rows


def text(rng: np.random.Generator, count: int) -> str:
    return " ".join(WORDS[int(place)] for place in rng.integers(len(WORDS), size=count))


def items(count: int) -> SkillBank:
    """Half skills, half mistakes."""
    rng = np.random.default_rng(0)
    made = [
        (Mistake if number % 2 else Skill)(f"i{number}", text(rng, 4), text(rng, 22), text(rng, 9), Origin.COLD_START)
        for number in range(count)
    ]
    return SkillBank(tuple(made[::2]), tuple(made[1::2]))


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """The median CPU time of ``repeats`` calls."""
    taken: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    bank, rng, embedder = items(options.items), np.random.default_rng(1), MadeEmbedder()
    queries = [text(rng, 40) for _ in range(BATCH)]
    rows: list[list[str]] = []
    for name, retriever in (("embedding", EmbeddingRetriever(embedder)), ("bm25", BM25Retriever())):
        together = partial(retriever.retrieve, queries, bank, K)
        first = seconds(together) - (embedder.seconds if name == "embedding" else 0)
        batch = seconds(together, options.repeats) / BATCH
        alone = seconds(partial(retriever.retrieve, queries[:1], bank, K), options.repeats)
        rows.append([name, f"{first:.1f} s", f"{1e3 * batch:.2f} ms", f"{1e3 * alone:.1f} ms"])
    title = f"{options.items:,} items, the best {K}"
    show_table(("retriever", "first batch", f"a problem, {BATCH} at a time", "alone"), rows, title=title)


if __name__ == "__main__":
    main()
