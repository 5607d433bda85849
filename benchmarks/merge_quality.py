"""What merging loses: items in, items out, and which insights of the pool no item says any more.

    python benchmarks/merge_quality.py --responses RESPONSES.jsonl [--pool runs/pool.jsonl] [--memories 96]

RESPONSES.jsonl holds model outputs with known verdicts, as JSON lines: id, problem, answer, response, correct. Without
it, only the pool made of a shipped bank and paraphrases is merged, by simulated writers.

An input item counts as covered where some item of its kind after merging has a cosine with it, under
all-MiniLM-L6-v2 and over title and text, that reaches a threshold. The threshold is the one that best tells an item's
paraphrase from its nearest other item (paraphrases.json, written by hand for a shipped bank): that is the choice a
nearest neighbour has to get right. How far the judgement can be trusted is shown on the made pool, where what is lost
is known.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgsd.bank import SkillBank
from sgsd.bank.extract import Candidate, extraction_request, read_candidate, read_extraction
from sgsd.bank.merge import merge, unite
from sgsd.bank.writing import FIELDS, KINDS, WriteFailure, Writer, WriteRequest, Written, write_until_fit
from sgsd.data.problems import Problem
from sgsd.engines.embedders import SentenceTransformerEmbedder
from sgsd.errors import DataError
from sgsd.memories import Memory, memory_of
from sgsd.verifiers import Outcome, Verdict

EMBEDDER = "local:all-minilm-l6-v2"
MODEL = "local:smollm2-135m-instruct"
BANK = "seed:arithmetic-word-problems"
PARAPHRASES = Path(__file__).with_name("paraphrases.json")
_LISTED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Cosines of an item with its own paraphrase, with its nearest other item, and the threshold between."""

    threshold: float
    paraphrases: tuple[float, ...]
    nearest_others: tuple[float, ...]

    @property
    def missed(self) -> float:
        """Share of paraphrases that the threshold calls lost."""
        return float(np.mean(np.array(self.paraphrases) < self.threshold))

    @property
    def mistaken(self) -> float:
        """Share of nearest other items that the threshold takes for the same."""
        return float(np.mean(np.array(self.nearest_others) >= self.threshold))


@dataclass(frozen=True)
class Outcomes:
    """One merge of one pool."""

    pool: str
    writer: str
    grouping: str
    items_in: int
    items_out: int
    requests: int
    completion_tokens: int
    failed_groups: int
    layers: tuple[tuple[str, int, int, int, int], ...]
    lost: tuple[tuple[str, str, float], ...]
    known_lost: int | None
    agreed: int | None
    merged: tuple[dict[str, object], ...]
    seconds: float


def spoken(candidate: Candidate) -> str:
    return f"{candidate.title}. {candidate.text}"


def calibrate(embed: Embed) -> Calibration:
    """Cosines among the shipped bank's items and their paraphrases → the threshold of the fewest errors."""
    bank = SkillBank.load(BANK)
    rewritten = json.loads(PARAPHRASES.read_text(encoding="utf-8"))
    own: list[float] = []
    others: list[float] = []
    for items in (bank.skills, bank.mistakes):
        originals = embed([f"{item.title}. {item.text}" for item in items])
        again = embed([". ".join(rewritten[item.id]) for item in items])
        own += np.sum(originals * again, axis=1).tolist()
        between = originals @ originals.T
        np.fill_diagonal(between, -1.0)
        others += between.max(axis=1).tolist()
    levels = sorted({*own, *others})
    errors = [sum(c < level for c in own) + sum(c >= level for c in others) for level in levels]
    best = [level for level, wrong in zip(levels, errors, strict=True) if wrong == min(errors)]
    return Calibration(float(np.median(best)), tuple(own), tuple(others))


def read_memories(path: Path, count: int) -> list[Memory]:
    """Memories of the first response to each of the first ``count`` problems of the file."""
    memories: list[Memory] = []
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                problem = Problem(row["id"], row["problem"], str(row["answer"]))
                response, right = str(row["response"]), bool(row["correct"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a response", got=repr(error)) from error
            if problem.text in seen:
                continue
            seen.add(problem.text)
            verdict = Verdict(Outcome.CORRECT if right else Outcome.INCORRECT)
            memory = memory_of(problem, response, verdict, truncated=False, source=problem.id)
            assert memory is not None
            memories.append(memory)
            if len(memories) == count:
                break
    return memories


def extract(memories: Sequence[Memory], writer: Writer, path: Path) -> list[Candidate]:
    """Candidates of all memories; written to ``path`` as they come, and read from there where that was done before."""
    done: dict[str, list[Candidate]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[row["memory"]] = [read_candidate(values) for values in row["candidates"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    left = [memory for memory in memories if memory.id not in done]
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(left), 8):
            part = left[start : start + 8]
            requests = [extraction_request(memory) for memory in part]
            readers = [lambda written, memory=memory: read_extraction(memory, written) for memory in part]
            answers, _ = write_until_fit(writer, requests, readers)
            for memory, answer in zip(part, answers, strict=True):
                found = [] if isinstance(answer, WriteFailure) else answer
                done[memory.id] = found
                row = {"memory": memory.id, "candidates": [candidate.as_dict() for candidate in found]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            print(f"  extracted from {start + len(part)} of {len(left)} memories", file=sys.stderr)
    return [candidate for memory in memories for candidate in done[memory.id]]


class SimulatedWriter:
    """Merges the sets that a rule finds in a listing, in the words of the set's first item: no insight is reworded.

    ``sets(texts)`` gives lists of places in the listing. With ``blind``, it merges neighbours in pairs whatever they
    say: how a writer that understands nothing looks.
    """

    def __init__(self, name: str, sets: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self.name = name
        self._sets = sets

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        return [self._one(request) for request in requests]

    def _one(self, request: WriteRequest) -> Written:
        kind = next(kind for kind in KINDS if FIELDS[kind][1] in json.dumps(request.schema))
        lines = [match[1] for match in _LISTED.findall(request.messages[-1]["content"])]
        most = min(8, len(lines) // 2)
        items: list[dict[str, object]] = []
        for places in self._sets(lines)[:most]:
            title, _, rest = lines[places[0]].partition(": ")
            text, _, note = rest.rpartition(" (")
            item = dict(zip(FIELDS[kind], (title, text, note.rstrip(")")), strict=True))
            items.append({"sources": [place + 1 for place in places], **item})
        return Written(request.key, json.dumps({"items": items}), None, 0, 0)


def alike(embed: Embed, threshold: float) -> Callable[[Sequence[str]], list[list[int]]]:
    """Sets whose members all reach ``threshold`` with the first of them."""

    def sets(lines: Sequence[str]) -> list[list[int]]:
        texts = [line.rpartition(" (")[0].replace(": ", ". ", 1) for line in lines]
        vectors = embed(texts)
        left = list(range(len(lines)))
        found: list[list[int]] = []
        while left:
            first, *rest = left
            same = [first, *(place for place in rest if float(vectors[first] @ vectors[place]) >= threshold)]
            left = [place for place in left if place not in same]
            if len(same) > 1:
                found.append(same)
        return sorted(found, key=len, reverse=True)

    return sets


def neighbours(lines: Sequence[str]) -> list[list[int]]:
    return [[place, place + 1] for place in range(0, len(lines) - 1, 2)]


def made_pool() -> tuple[list[Candidate], dict[str, str]]:
    """The shipped bank's items, their paraphrases, and each once more with another note; id → which insight it is."""
    rewritten = json.loads(PARAPHRASES.read_text(encoding="utf-8"))
    pool: list[Candidate] = []
    insight: dict[str, str] = {}
    for item in SkillBank.load(BANK).items:
        kind = KINDS[0] if item.id.startswith("skill") else KINDS[1]
        versions = [
            (item.title, item.text, item.note),
            (*rewritten[item.id], item.note),
            (item.title, item.text, "Often."),
        ]
        for number, (title, text, note) in enumerate(versions):
            pool.append(Candidate(kind, title, text, note, (f"{item.id}/{number}",)))
            insight[pool[-1].id] = item.id
    order = np.random.default_rng(0).permutation(len(pool))
    return [pool[int(place)] for place in order], insight


def measure(
    name: str,
    pool: Sequence[Candidate],
    writer: Writer,
    embed: Embed,
    grouping: str,
    threshold: float,
    group_size: int,
    patience: int,
    insight: Mapping[str, str] | None = None,
) -> Outcomes:
    begun = time.perf_counter()
    similar = embed if grouping == "embedding" else None
    merged = merge(pool, writer, group_size=group_size, patience=patience, embed=similar)
    seconds = time.perf_counter() - begun
    distinct = [c for kind in KINDS for c in unite([c for c in pool if c.kind == kind])]
    lost = [
        (candidate.id, spoken(candidate), cosine)
        for candidate, cosine in zip(distinct, _coverage(distinct, merged.items, embed), strict=True)
        if cosine < threshold
    ]
    known = agreed = None
    if insight is not None:
        # Simulated writers use the words of an input, so what an output says is known.
        says = {spoken(c): insight[c.id] for c in pool}
        left = {says[spoken(item)] for item in merged.items}
        gone = {c.id for c in distinct if insight[c.id] not in left}
        known = len(gone)
        agreed = len(gone & {id for id, _, _ in lost})
    inputs = {candidate.id for candidate in distinct}
    return Outcomes(
        pool=name,
        writer=writer.name,
        grouping=grouping,
        items_in=len(distinct),
        items_out=len(merged.items),
        requests=merged.counts["requests"],
        completion_tokens=merged.counts["completion_tokens"],
        failed_groups=len(merged.failures),
        layers=tuple((x.kind, x.groups, x.failed, x.before, x.after) for x in merged.layers),
        lost=tuple(lost),
        known_lost=known,
        agreed=agreed,
        merged=tuple(item.as_dict() for item in merged.items if item.id not in inputs),
        seconds=seconds,
    )


def _coverage(inputs: Sequence[Candidate], outputs: Sequence[Candidate], embed: Embed) -> Iterator[float]:
    """For each input, its largest cosine with an output of its kind."""
    for kind in KINDS:
        asked = [spoken(c) for c in inputs if c.kind == kind]
        given = [spoken(c) for c in outputs if c.kind == kind]
        if asked:
            yield from (embed(asked) @ embed(given).T).max(axis=1).tolist()


def table(results: Sequence[Outcomes]) -> str:
    lines = [
        "| pool | writer | grouping | in | out | requests | groups failed | judged lost | known lost | both | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        known, agreed = ("", "") if r.known_lost is None else (r.known_lost, r.agreed)
        share = f"{len(r.lost)} ({100 * len(r.lost) / max(1, r.items_in):.0f} %)"
        lines.append(
            f"| {r.pool} | {r.writer} | {r.grouping} | {r.items_in} | {r.items_out} | {r.requests} | {r.failed_groups} "
            f"| {share} | {known} | {agreed} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)


def smollm2(temperature: float) -> Writer:
    from sgsd.engines.models import load_model, load_tokenizer
    from sgsd.engines.writers import TransformersWriter

    return TransformersWriter(
        load_model(MODEL), load_tokenizer(MODEL), name="SmolLM2-135M", temperature=temperature, batch_size=8
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=Path, help="model outputs with known verdicts")
    parser.add_argument("--pool", type=Path, default=Path("runs/merge-pool.jsonl"), help="kept candidates")
    parser.add_argument("--memories", type=int, default=64, help="a success or failure of as many problems")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument(
        "--patience", type=int, default=3, help="layers in a row that do not shrink before merging ends"
    )
    parser.add_argument("--model-patience", type=int, default=1, help="for the model: layers are slow")
    parser.add_argument("--model-group-size", type=int, default=8, help="for the model: it loses track in long lists")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument(
        "--no-model-merge", action="store_true", help="merge the real pool by the simulated writer alone"
    )
    parser.add_argument("--json", type=Path, help="write everything here, lost and merged items too")
    parser.add_argument("--show", type=int, default=8, help="lost items printed for each merge")
    options = parser.parse_args()

    embedder = SentenceTransformerEmbedder(EMBEDDER, device="cpu")
    cache: dict[str, np.ndarray] = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        missing = list(dict.fromkeys(text for text in texts if text not in cache))
        if missing:
            cache.update(zip(missing, embedder.embed(missing), strict=True))
        return np.stack([cache[text] for text in texts])

    calibration = calibrate(embed)
    own, others = np.array(calibration.paraphrases), np.array(calibration.nearest_others)
    print(
        f"threshold {calibration.threshold:.3f}: {len(own)} paraphrases have cosines {_spread(own)}, the nearest other "
        f"items {_spread(others)}; it calls {100 * calibration.missed:.0f} % of the paraphrases lost and "
        f"{100 * calibration.mistaken:.0f} % of the other items the same"
    )
    competent = SimulatedWriter("cosine rule", alike(embed, calibration.threshold))
    results: list[Outcomes] = []

    def run(
        name: str, pool: Sequence[Candidate], writer: Writer, size: int, patience: int, insight: Any = None
    ) -> None:
        for grouping in ("order", "embedding"):
            results.append(measure(name, pool, writer, embed, grouping, calibration.threshold, size, patience, insight))
            print(f"  {name}, {writer.name}, {grouping}: done", file=sys.stderr)
            if options.json is not None:
                content = {"calibration": asdict(calibration), "merges": [asdict(result) for result in results]}
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    pool, insight = made_pool()
    knowing = SimulatedWriter("knows", _knowing(pool, insight))
    for writer in (knowing, competent, SimulatedWriter("blind", neighbours)):
        run("made", pool, writer, options.group_size, options.patience, insight)
    if options.responses is None or not options.responses.exists():
        print("no real pool: give --responses FILE (id, problem, answer, response, correct as JSON lines)")
    else:
        memories = read_memories(options.responses, options.memories)
        model = smollm2(options.temperature)
        real = extract(memories, model, options.pool)
        print(f"real pool: {len(memories)} memories, {len(real)} candidates, {dict(Counter(c.kind for c in real))}")
        for size in (options.group_size, options.model_group_size):
            run(f"real, groups of {size}", real, competent, size, options.patience)
        if not options.no_model_merge:
            run(
                f"real, groups of {options.model_group_size}",
                real,
                model,
                options.model_group_size,
                options.model_patience,
            )
    print(table(results))
    for result in results:
        if result.lost and result.pool != "made":
            print(f"\njudged lost, {result.pool}, by {result.writer}, {result.grouping}:")
            for _, text, cosine in sorted(result.lost, key=lambda entry: entry[2])[: options.show]:
                print(f"  {cosine:.2f}  {text}")


def _knowing(pool: Sequence[Candidate], insight: Mapping[str, str]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Sets of one insight."""
    said = {f"{c.title}: {c.text}": insight[c.id] for c in pool}

    def sets(lines: Sequence[str]) -> list[list[int]]:
        places: dict[str, list[int]] = {}
        for place, line in enumerate(lines):
            places.setdefault(said[line.rpartition(" (")[0]], []).append(place)
        return sorted((found for found in places.values() if len(found) > 1), key=len, reverse=True)

    return sets


def _spread(cosines: np.ndarray) -> str:
    low, middle, high = np.quantile(cosines, [0.1, 0.5, 0.9])
    return f"{low:.2f} to {high:.2f} (median {middle:.2f})"


if __name__ == "__main__":
    main()
