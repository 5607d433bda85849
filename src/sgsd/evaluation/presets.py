"""The benchmarks that ``sgsd eval --dataset`` knows by name.

The sampling settings of the three competition sets are the paper's (arXiv 2605.28791). The paper does not use the
others; their settings come from the run or the flags.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set on the hub and how it is evaluated; ``None`` leaves a setting open.

    Attributes:
        name: the name for ``--dataset``, and of the evaluation's folder.
        hub, split, config: the arguments of ``datasets.load_dataset``.
        samples: k of avg@k.
        max_completion_length, temperature, top_p: sampling settings.
        thinking: the template's thinking on or off, if it has such a switch.
    """

    name: str
    hub: str
    split: str
    config: str | None = None
    samples: int | None = None
    max_completion_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    thinking: bool | None = None


_PAPERS: dict[str, Any] = {"samples": 12, "max_completion_length": 38_912, "temperature": 1.0, "top_p": 0.95}
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime24", "HuggingFaceH4/aime_2024", "train", thinking=True, **_PAPERS),
        Benchmark("aime25", "MathArena/aime_2025", "train", thinking=True, **_PAPERS),
        Benchmark("hmmt25", "MathArena/hmmt_feb_2025", "train", thinking=True, **_PAPERS),
        Benchmark("amc23", "math-ai/amc23", "test"),
        Benchmark("math500", "HuggingFaceH4/MATH-500", "test"),
        Benchmark("gsm8k", "openai/gsm8k", "test", config="main"),
        Benchmark("minerva", "math-ai/minervamath", "test"),
    )
}


def find_benchmark(name: str) -> Benchmark | None:
    """The benchmark of this name; ``None`` if there is none, or a file or folder of that name."""
    return None if os.path.exists(name) else BENCHMARKS.get(name)
