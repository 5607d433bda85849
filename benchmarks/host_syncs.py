"""How often one micro-batch's loss makes the host wait for the device, or processes for each other; and where.

    python benchmarks/host_syncs.py            # both objectives, a table of source lines

Counted by ``torch.profiler`` on a CPU, in ``_compute_loss`` of a trainer and nowhere else (sampling and teachers'
scores come before it, the backward after):

- syncs: what must know a value. ``item`` (also by ``float``, ``int``, ``bool``, a comparison in an ``if``), ``tolist``,
  ``cpu``, ``nonzero`` (also by a boolean index), ``masked_select``, ``equal``, ``unique``;
- collectives: ``gather``, ``reduce`` and their likes of accelerate, also by the accelerator's methods. One process
  calls them as many do.

On a CPU nothing tells a device's tensor from a host's: a line that reads a tensor on the host counts as well.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from accelerate.utils import operations
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

SYNC_OPS = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::equal": "equal",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
}
TENSOR_METHODS = ("tolist", "cpu")
COLLECTIVES = ("gather", "gather_object", "reduce", "broadcast", "broadcast_object_list", "pad_across_processes")
# Ops that read a value which is on the host anyway, such as the 0 of ``x[mask] = 0``.
HOST_VALUES = {"aten::_index_put_impl_", "aten::masked_fill_", "aten::masked_fill", "aten::fill_"}
_AT, _SYNC, _COLLECTIVE = "at::", "sync::", "collective::"
_PACKAGES = re.compile(r"^.*/(?=(sgsd|trl|transformers|accelerate|peft|torch)/)")


@dataclass(frozen=True, order=True)
class Place:
    """A line that waits, and how."""

    file: str
    line: int
    function: str
    kind: str

    @classmethod
    def read(cls, name: str, kind: str = "") -> Place:
        """From an event's name, ``prefix::kind|file|line|function``."""
        named, file, line, function = name.split("|")
        return cls(file, int(line), function, kind or named.partition("::")[2])

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


@dataclass(frozen=True)
class Counts:
    """Each place, and how often it was reached."""

    syncs: Counter[Place]
    collectives: Counter[Place]

    def table(self) -> str:
        lines = []
        for name, places in (("syncs", self.syncs), ("collectives", self.collectives)):
            lines.append(f"{places.total()} {name}")
            lines += [f"  {count:3}  {place.kind:14} {place}" for place, count in sorted(places.items())]
        return "\n".join(lines)


def count(trainer: Any, inputs: dict[str, Any]) -> Counts:
    """Syncs and collectives of ``trainer._compute_loss`` on one micro-batch.

    Args:
        trainer: in training mode, with ``current_gradient_accumulation_steps`` set.
        inputs: a micro-batch, as ``_generate_and_score_completions`` makes it. Its loss is computed twice.
    """
    trainer._compute_loss(trainer.model, inputs)  # what is done once in a run is not counted
    with profile(activities=[ProfilerActivity.CPU]) as profiled, _named(), _Located():
        trainer._compute_loss(trainer.model, inputs)
    syncs, collectives = Counter[Place](), Counter[Place]()
    for event in profiled.events():
        parents = list(_parents(event))
        if any(parent.startswith((_SYNC, _COLLECTIVE)) for parent in parents):
            continue  # part of what is counted
        if event.name.startswith(_COLLECTIVE):
            collectives[Place.read(event.name)] += 1
        elif event.name.startswith(_SYNC):
            syncs[Place.read(event.name)] += 1
        elif event.name in SYNC_OPS:
            line = next((n for n, parent in enumerate(parents) if parent.startswith(_AT)), None)
            # Without a line it is on its way to ``_Located``, which dispatches it once more.
            if line is not None and not (SYNC_OPS.keys() | HOST_VALUES) & set(parents[:line]):
                syncs[Place.read(parents[line], SYNC_OPS[event.name])] += 1
    return Counts(syncs, collectives)


def _parents(event: Any) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name


def _here() -> str:
    """The innermost line of this package or of TRL that runs now, and what it called elsewhere but in torch."""
    frame, inner = sys._getframe(1), ""
    while frame is not None:
        code, line = frame.f_code, frame.f_lineno
        file = _PACKAGES.sub("", code.co_filename)
        if file.startswith(("sgsd/", "trl/")):
            return f"{file}|{line}|{code.co_name}{inner and f', in {inner}'}"
        if not (inner or code.co_filename == __file__ or file.startswith("torch/") or file.endswith("contextlib.py")):
            inner = f"{file}:{line} {code.co_name}"
        frame = frame.f_back
    return f"|0|{inner}"


class _Located(TorchDispatchMode):
    """The profiler sees, around each op, the line that asked for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with record_function(f"{_AT}op|{_here()}"):
            return func(*args, **(kwargs or {}))


@contextmanager
def _named() -> Iterator[None]:
    """Inside, the profiler sees the tensors' methods and the collectives by name, however a module imported them."""
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, prefix: str, original: Any) -> None:
        @wraps(original)
        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(f"{prefix}{original.__name__}|{_here()}"):
                return original(*args, **kwargs)

        setattr(owner, name, named)
        undo.append(lambda: setattr(owner, name, original))

    for method in TENSOR_METHODS:
        replace(torch.Tensor, method, _SYNC, getattr(torch.Tensor, method))
    for name in COLLECTIVES:
        original = getattr(operations, name)
        for module in list(sys.modules.values()):
            for alias in [alias for alias, value in vars(module).items() if value is original]:
                replace(module, alias, _COLLECTIVE, original)
    try:
        yield
    finally:
        for step in undo:
            step()


# ---- as a script

CASES: dict[str, dict[str, Any]] = {
    "gated": {},
    "correction and GRPO": {
        "objective": "correction",
        "teacher": "frozen",
        "grpo_weight": 1.0,
        "sgsd_weight": 2.0,
        "num_generations": 2,
        "support_baseline": "control",
        "teacher_guidance": 2.0,
    },
}


def make_batch(folder: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A trainer of a tiny model, and one micro-batch of four rollouts, successes and failures."""
    from qwen3_shapes import Shape, Size, make_trainer

    size = Size(hidden=32, layers=2, heads=2, intermediate=64, tied=True, kv_heads=2, head_dim=16)
    shape = Shape(B=4, K=3, prompt=120, teacher_prompt=300, completion=12)
    options = {"bf16": False, "activation_checkpointing": False, "trace_steps": 0, "output_dir": folder}
    trainer = make_trainer(size, shape, folder, **options | settings)
    outcomes = iter([1.0, 0.0] * 100)
    trainer.reward_funcs = [lambda completions, **_: [next(outcomes) for _ in completions]]
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    G = trainer.num_generations
    rows = [trainer.train_dataset[n] for n in range(shape.B // G) for _ in range(G)]
    return trainer, trainer._generate_and_score_completions(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for name, settings in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{name}: {count(*make_batch(folder, settings)).table()}", flush=True)


if __name__ == "__main__":
    main()
