"""What sampling costs on a CPU: an adapted SmolLM2-135M, 16 prompts of 42 tokens, 16 new tokens each.

    python benchmarks/sampling.py

- plain: ``generate`` as it comes. The head is frozen, and torch copies its weights once for each row.
- contiguous: inside ``engines.generation.contiguous_head``, as all sampling in this package is.
- top-k: contiguous, with ``top_k`` 20 in place of ``top_p`` 0.95, which sorts the vocabulary at every token.
- allocator: contiguous, in a process where ``cli.parser.keep_freed_memory`` was called.

Each variant runs in a process of its own, which tells its peak of resident memory beyond that of the loaded model; the
seconds are of computing (user and system), the median of ``--repeats``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from peft import LoraConfig, get_peft_model

from measure import GB, peak_bytes, reset_peak, resident, show_table
from sgsd.cli.parser import keep_freed_memory
from sgsd.engines.generation import contiguous_head
from sgsd.engines.models import load_model, load_tokenizer

MODEL = "local:smollm2-135m-instruct"
ROWS, PROMPT, NEW = 16, 42, 16
VARIANTS = ("plain", "contiguous", "top-k", "allocator")


def measured(variant: str, repeats: int, threads: int) -> tuple[float, float]:
    """Seconds of one call, and gigabytes of its peak."""
    torch.set_num_threads(threads)
    if variant == "allocator":
        keep_freed_memory()
    model = get_peft_model(
        load_model(MODEL, dtype="bfloat16"), LoraConfig(r=32, target_modules=["gate_proj", "up_proj", "down_proj"])
    ).eval()
    end = load_tokenizer(MODEL).eos_token_id
    ids = torch.randint(10, 20_000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    cut = {"top_p": 1.0, "top_k": 20} if variant == "top-k" else {"top_p": 0.95, "top_k": 0}
    context = nullcontext if variant == "plain" else lambda: contiguous_head(model)
    seconds: list[float] = []
    before, was_reset = resident(), reset_peak()
    for _ in range(repeats + 1):
        began = time.process_time()
        with context():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=0.8,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                pad_token_id=end,
                **cut,
            )
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:]), (peak_bytes(was_reset) - before) / GB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows: list[tuple[str, float, float]] = []
    for variant in VARIANTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append((variant, *pool.apply(measured, (variant, options.repeats, options.threads))))
    first = rows[0][1]
    show_table(
        ["variant", "s", "of plain", "peak GB"],
        [[name, f"{seconds:.2f}", f"{seconds / first:.2f}", f"{peak:.2f}"] for name, seconds, peak in rows],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
