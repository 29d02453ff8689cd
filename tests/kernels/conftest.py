# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest
import torch

NUM_THREADS = 2
"""So that what kernels divide among threads is tested in several."""


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """An element that a kernel forgets to write is then seen by every comparison."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def several_threads(one_thread: None) -> None:
    torch.set_num_threads(NUM_THREADS)
