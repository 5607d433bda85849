"""Memory and time of a large bank: python benchmarks/bank_scale.py [--memories 50000] [--items 100000]

Each part runs in processes of its own, since the peak of resident memory only ever rises:

build      sample, verify and extract over a folder, with a sampler, a verifier and a writer that answer at once
leaks      a scan of all items against the memories they came from, read line by line, and their problems
retrieval  the index of vectors of 384 dimensions, and 64 problems at a time
bm25       the same by words

Vectors are drawn around centres, as embeddings of similar items lie; making them from texts takes an embedding model,
whose pace is measured on a few texts where one is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sgsd import runfolder
from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.bank.build import MEMORIES, export, extract, sample, verify
from sgsd.bank.leaks import scan
from sgsd.bank.store import open_store
from sgsd.bank.writing import FIELDS, KINDS, WriteRequest, Written
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.memories import Memory, memory_of, read_memory
from sgsd.retrieval import BM25Retriever, EmbeddingRetriever, Retriever
from sgsd.rollouts import Rollout, StopReason
from sgsd.verifiers import Outcome, Verdict

WORDS = tuple(
    f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "nu", "ra") for b in "dglnrst" for c in ("an", "el", "o", "u")
)
CENTRES = 2_000
SAMPLES = 50
BATCH = 64
K = 8
BAR_MS = 5.0


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def text(rng: np.random.Generator, count: int) -> str:
    return " ".join(WORDS[int(place)] for place in rng.integers(len(WORDS), size=count))


def problem(number: int) -> Problem:
    return Problem(f"p{number}", f"{text(np.random.default_rng([1, number]), 45)} {number}?", str(200 + number % 900))


class InstantSampler:
    """Completions of about 80 words."""

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> list[Rollout]:
        rng = np.random.default_rng(seed)
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                completion_ids=tuple(range(100)),
                text="\n".join(text(rng, 16) for _ in range(5)),
                stop_reason=StopReason.END,
            )
            for prompt in prompts
        ]


class InstantVerifier:
    """Every other one is correct."""

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        return [Verdict(Outcome.CORRECT if len(c) % 2 else Outcome.INCORRECT) for c in completions]


class InstantWriter:
    """Two items for every memory."""

    name = "instant"

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        answers: list[Written] = []
        for request in requests:
            rng = np.random.default_rng(request.seed)
            kind = next(kind for kind in KINDS if FIELDS[kind][1] in json.dumps(request.schema))
            items = [
                dict(zip(FIELDS[kind], (text(rng, 4), text(rng, 22), text(rng, 9)), strict=True)) for _ in range(2)
            ]
            answers.append(Written(request.key, json.dumps({"items": items}), None, 0, 0))
        return answers


def measure_build(memories: int, folder: Path) -> None:
    problems = [problem(number) for number in range(memories // SAMPLES)]
    begun, before = time.perf_counter(), peak_mb()
    with open_store(folder) as opened:
        sample(opened, problems, lambda _: range(64), InstantSampler(), samples=SAMPLES, chunk=256)
        verify(opened, problems, InstantVerifier())
        extract(opened, InstantWriter(), chunk=256)
        export(opened)
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(
        f"build      {memories:7,} memories: peak {peak_mb():5.0f} MB, {peak_mb() - before:+.0f} MB beside start "
        f"({megabytes:.0f} MB on disk, {time.perf_counter() - begun:.0f} s)"
    )


def memory(number: int) -> Memory:
    made = memory_of(
        problem(number),
        text(np.random.default_rng([2, number]), 80),
        Verdict(Outcome.CORRECT),
        truncated=False,
        source="made",
    )
    assert made is not None
    return made


def items(count: int, parents: Sequence[str] = ()) -> SkillBank:
    """Half skills, half mistakes; item i comes from the parent at i, counted round."""
    rng = np.random.default_rng(0)
    skills, mistakes = [], []
    for number in range(count):
        title, said, note = text(rng, 4), text(rng, 22), text(rng, 9)
        above = [parents[number % len(parents)]] if parents else []
        if number % 2:
            mistakes.append(Mistake(f"m{number}", title, said, note, Origin.COLD_START, tuple(above)))
        else:
            skills.append(Skill(f"s{number}", title, said, note, Origin.COLD_START, tuple(above)))
    return SkillBank(tuple(skills), tuple(mistakes))


def measure_leaks(memories: int, count: int, folder: Path) -> None:
    ids: list[str] = []

    def lines() -> Iterator[str]:
        for number in range(memories):
            made = memory(number)
            ids.append(made.id)
            yield json.dumps(made.as_dict()) + "\n"

    runfolder.write_text(folder / MEMORIES, lines())
    bank = items(count, ids)
    begun, before = time.perf_counter(), peak_mb()
    report = scan(
        bank, memories=(read_memory(values, where) for where, values in runfolder.read_lines(folder / MEMORIES))
    )
    assert report.items == count
    assert not report.untraced
    print(
        f"leaks      {memories:7,} memories, {count:7,} items: {peak_mb() - before:5.0f} MB beside bank and start, "
        f"{time.perf_counter() - begun:.0f} s, {len(report.leaks)} leaks"
    )


class MadeEmbedder:
    """Unit vectors around ``CENTRES`` centres; a text's depends on nothing but its place among all that were asked."""

    name = "made"

    def __init__(self, width: int) -> None:
        self._rng = np.random.default_rng(0)
        self._centres = self._rng.standard_normal((CENTRES, width), dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = self._rng.standard_normal((len(texts), self._centres.shape[1]), dtype=np.float32)
        rows += self._centres[self._rng.integers(CENTRES, size=len(texts))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def measure_retrieval(name: str, count: int, width: int, repeats: int) -> None:
    bank = items(count)
    embedder = MadeEmbedder(width)
    begun = time.perf_counter()
    assert bank.digest
    digest = time.perf_counter() - begun
    spent = 0.0

    class Timed(MadeEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            nonlocal spent
            start = time.perf_counter()
            rows = embedder.embed(texts)
            spent += time.perf_counter() - start
            return rows

    retriever: Retriever = EmbeddingRetriever(Timed(1)) if name == "retrieval" else BM25Retriever()
    rng = np.random.default_rng(1)
    queries = [text(rng, 40) for _ in range(BATCH)]
    before = peak_mb()
    begun = time.perf_counter()
    retriever.retrieve(queries, bank, K)
    build = time.perf_counter() - begun - spent
    grown = peak_mb() - before
    wall, cpu = _medians(lambda: retriever.retrieve(queries, bank, K), repeats)
    alone, alone_cpu = _medians(lambda: retriever.retrieve(queries[:1], bank, K), repeats)
    what = f"{count:,} items" + (f" of {width} dimensions" if name == "retrieval" else "")
    print(
        f"{name:10} {what}: index in {build:.1f} s, {grown:.0f} MB (the bank's digest {digest:.1f} s before); medians: "
        f"{wall / BATCH:.2f} ms a query at {BATCH} a batch (CPU {cpu / BATCH:.2f}), {alone:.1f} ms alone (CPU "
        f"{alone_cpu:.1f}); {os.environ.get('OMP_NUM_THREADS', 'all')} threads, load {os.getloadavg()[0]:.1f}"
    )
    if name == "retrieval":
        print(
            f"{'':10} bar of {BAR_MS:g} ms a query at {BATCH} a batch: {'met' if wall / BATCH <= BAR_MS else 'NOT MET'}"
        )


def measure_embedding(texts: int = 128) -> None:
    from sgsd.engines.embedders import SentenceTransformerEmbedder

    try:
        embedder = SentenceTransformerEmbedder("local:all-minilm-l6-v2", device="cpu")
    except ConfigError as error:
        print(f"embedding  {error}")
        return
    said = [item.text for item in items(texts).items]
    embedder.embed(said[:8])
    begun = time.perf_counter()
    embedder.embed(said)
    print(f"embedding  all-MiniLM-L6-v2: {texts / (time.perf_counter() - begun):.0f} texts a second")


def _medians(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Milliseconds on the clock, and of this process's CPU time: what other processes take does not count there."""
    spent: list[tuple[float, float]] = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = 1e3 * np.median(spent, axis=0)
    return float(wall), float(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=("build", "leaks", "retrieval", "bm25", "embedding"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, memories, count = options.one[0], int(options.one[1]), int(options.one[2])
        with tempfile.TemporaryDirectory() as folder:
            if part == "build":
                measure_build(memories, Path(folder))
            elif part == "leaks":
                measure_leaks(memories, count, Path(folder))
            elif part == "embedding":
                measure_embedding()
            else:
                measure_retrieval(part, count, options.width, options.repeats)
        return
    few, some = options.memories // 10, options.items // 10
    parts = [
        ("build", few, 0),
        ("build", options.memories, 0),
        ("leaks", few, some),
        ("leaks", options.memories, some),
        ("leaks", few, options.items),
        ("leaks", options.memories, options.items),
        ("retrieval", 0, some // 10),
        ("retrieval", 0, some),
        ("bm25", 0, options.items),
        ("embedding", 0, 0),
    ]
    sizes = ["--width", str(options.width), "--repeats", str(options.repeats)]
    for part, memories, count in parts:
        if options.only in (None, part):
            one = ["--one", part, str(memories), str(count)]
            subprocess.run([sys.executable, __file__, *sizes, *one], check=True)


if __name__ == "__main__":
    main()
