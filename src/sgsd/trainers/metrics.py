"""Means over all rollouts of an optimizer step, whatever micro-batches and processes they were split into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, total


class StepMetrics:
    """Adds up sums and counts on the device, and reduces all of them at once when the optimizer step is over.

    All processes add the same names. A mean over nothing is NaN.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, values: Metrics) -> None:
        """Add sums and counts."""
        for name, (summed, count) in values.items():
            pair = torch.stack([summed.detach().float(), count.detach().to(summed.device).float()])
            self._totals[name] = self._totals[name] + pair if name in self._totals else pair

    def mean(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Add the mean of ``values``, of those where ``where`` is True; what stands elsewhere is never read."""
        counted = torch.ones_like(values, dtype=torch.bool) if where is None else where
        self.add({name: total(values, counted)})

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The means over everything added since the last call, on all processes; one reduction, one host sync."""
        if not self._totals:
            return {}
        names = sorted(self._totals)
        stacked = torch.stack([self._totals[name].to(accelerator.device) for name in names])
        self._totals = {}
        if accelerator.num_processes > 1:
            stacked = accelerator.reduce(stacked, reduction="sum")
        means = (stacked[:, 0] / stacked[:, 1]).tolist()
        return dict(zip(names, means, strict=True))
