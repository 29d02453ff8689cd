# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec_kernels.splitmix import mix64, reference
from tests.kernels.test_lookup import compiled

KNOWN = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
"""What the generator's authors' code gives from the seed 0."""


def signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value


def test_the_generator_of_the_paper():
    states = torch.tensor([signed(n * 0x9E3779B97F4A7C15 % 2**64) for n in range(3)])
    assert mix64(states).tolist() == [signed(value) for value in KNOWN]


@pytest.mark.parametrize("shape", [(), (0,), (100_000,), (300, 7)])
def test_compiled_is_the_reference(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
    assert torch.equal(mix64(numbers), reference.mix64(numbers))
    assert torch.equal(mix64(numbers.T), reference.mix64(numbers.T))


@compiled
def test_other_types_are_refused():
    with pytest.raises(RuntimeError, match="expected int64, got Int"):
        mix64(torch.zeros(3, dtype=torch.int32))
