"""One seed per prompt, for engines that draw every completion on its own."""

from __future__ import annotations

import numpy as np


def completion_seed(seed: int, index: int) -> int:
    """A seed in [0, 2³¹) for the prompt at position ``index``: no batch and no order of arrival has a part in it."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
