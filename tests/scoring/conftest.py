from __future__ import annotations

import pytest

from sgsd.objectives import logprobs

from .passes import VOCABULARY


@pytest.fixture
def tiles_of_four_rows(monkeypatch):
    monkeypatch.setitem(logprobs._TILE_LOGITS, "cpu", 4 * VOCABULARY)
