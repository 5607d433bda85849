from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices here are tiny; on a busy machine a second thread makes a step twenty times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    # TRL 1.16 reads attributes that transformers 5.23 calls by a new name.
    ignore = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
    for item in items:
        if item.path.parent.name == "training":
            item.add_marker(ignore)
