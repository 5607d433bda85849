"""How often one micro-batch's loss makes the host wait for the device, or processes for each other; and where.

Counted on a CPU, in ``_compute_loss`` of a trainer and nowhere else (sampling and teachers' scores come before it, the
backward after):

- syncs: what must know a value. ``item`` (also by ``float``, ``int``, ``bool``, a comparison in an ``if``), ``tolist``,
  ``cpu``, ``nonzero`` (also by a boolean index), ``masked_select``, ``equal``, ``unique``;
- collectives: ``gather``, ``reduce`` and their likes of accelerate, also by the accelerator's methods. One process
  calls them as many do.

On a CPU nothing tells a device's tensor from a host's: a line that reads a tensor on the host counts as well.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from accelerate.utils import operations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SYNC_OPS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "equal": "equal",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
}
TENSOR_METHODS = ("tolist", "cpu")
COLLECTIVES = ("gather", "gather_object", "reduce", "broadcast", "broadcast_object_list", "pad_across_processes")
_PACKAGES = re.compile(r"^.*/(?=(sgsd|trl|transformers|accelerate|peft|torch)/)")


@dataclass(frozen=True, order=True)
class Place:
    """A line that waits, and how."""

    file: str
    line: int
    function: str
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


@dataclass(frozen=True)
class Counts:
    """Each place, and how often it was reached."""

    syncs: Counter[Place] = field(default_factory=Counter)
    collectives: Counter[Place] = field(default_factory=Counter)

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
    counts = Counts()
    with _named(counts), _Operations(counts.syncs):
        trainer._compute_loss(trainer.model, inputs)
    return counts


class _Operations(TorchDispatchMode):
    """Counts operations whose result's value or shape the host must know."""

    def __init__(self, syncs: Counter[Place]) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kind = SYNC_OPS.get(name)
        # One value for all places of a boolean index is a fill, which looks at no place.
        if name == "index" or (name in ("index_put", "index_put_") and args[2].numel() > 1):
            indices = [index for index in args[1] if index is not None]
            kind = "nonzero" if any(index.dtype is torch.bool for index in indices) else None
        if kind:
            self._syncs[_here(kind)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _named(counts: Counts) -> Iterator[None]:
    """Inside, tensors' methods and collectives are counted, however a module imported them."""
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, places: Counter[Place], original: Any) -> None:
        @wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            places[_here(original.__name__)] += 1
            return original(*args, **kwargs)

        setattr(owner, name, counted)
        undo.append(lambda: setattr(owner, name, original))

    for method in TENSOR_METHODS:
        replace(Tensor, method, counts.syncs, vars(torch._C.TensorBase)[method])
    for name in COLLECTIVES:
        original = vars(operations)[name]
        for module in list(sys.modules.values()):
            for alias in [alias for alias, value in vars(module).items() if value is original]:
                replace(module, alias, counts.collectives, original)
    try:
        yield
    finally:
        for step in undo:
            step()


def _here(kind: str) -> Place:
    """The innermost line of this package or of TRL that runs now, and what it called elsewhere but in torch."""
    frame, inner = sys._getframe(2), ""
    while frame is not None:
        code, line = frame.f_code, frame.f_lineno
        file = _PACKAGES.sub("", code.co_filename)
        if file.startswith(("sgsd/", "trl/")):
            return Place(file, line, f"{code.co_name}{inner and f', in {inner}'}", kind)
        if not (inner or code.co_filename == __file__ or file.startswith("torch/") or file.endswith("contextlib.py")):
            inner = f"{file}:{line} {code.co_name}"
        frame = frame.f_back
    return Place("", 0, inner, kind)
