"""How many teachers a rollout gets: as many as it takes for a wanted number of them to take a stance."""

from __future__ import annotations

import json
import math
from typing import Any

from transformers import TrainerCallback

from sgsd.errors import CheckpointError

_MEMORY = 0.9  # of a step's counts, what the next step keeps: about ten steps decide


class PoolSize:
    """The number of teachers K, renewed after every optimizer step.

    K = ⌈target / share⌉, held between ``smallest`` and ``largest``, with the share of active teachers among those of
    recent steps: each step's counts fade by a tenth a step. A run begins with ``largest``, and so it goes on while no
    teacher takes a stance. Counts of all processes give all of them the same K.

    Args:
        target: teachers with a stance that a rollout is to have, on average.
        smallest, largest: limits of K.
    """

    def __init__(self, target: float, smallest: int, largest: int) -> None:
        self.size = largest
        self._target, self._smallest, self._largest = target, smallest, largest
        self._active = self._real = 0.0  # faded counts
        self._new_active = self._new_real = 0  # of the step under way

    def observe(self, active: int, real: int) -> None:
        """Count a micro-batch: teachers of weight above 0, and those of them with a stance, of all processes."""
        self._new_active += active
        self._new_real += real

    def end_step(self) -> None:
        """Decide how many teachers the next rollouts get."""
        self._active = _MEMORY * self._active + self._new_active
        self._real = _MEMORY * self._real + self._new_real
        self._new_active = self._new_real = 0
        # A little less: a share of 2 / 5 and a target of 2 are to give 5, whatever the quotient's last bit.
        wanted = self._target * self._real / self._active - 1e-6 if self._active else math.inf
        self.size = self._largest if wanted > self._largest else max(self._smallest, math.ceil(wanted))

    def to_json(self) -> str:
        """All there is to go on from; ``restore`` reads it."""
        return json.dumps({"size": self.size, "active": self._active, "real": self._real})

    def restore(self, text: str, *, source: str) -> None:
        """Go on from what ``to_json`` wrote, within this run's own limits.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            state = json.loads(text)
            self.size = min(max(int(state["size"]), self._smallest), self._largest)
            self._active, self._real = float(state["active"]), float(state["real"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("the checkpoint's number of teachers cannot be read", got=source) from error


class PoolSizeCallback(TrainerCallback):
    """Tells a trainer's ``PoolSize`` when an optimizer step is over."""

    def __init__(self, pool_size: PoolSize) -> None:
        self._pool_size = pool_size

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pool_size.end_step()
