# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from deltarec_kernels import Batch, Optimizer, Rounding, Tables, TableShard, group, rounding, update
from deltarec_kernels.packing import pack, unpack
from tests.kernels.test_lookup import compiled

KINDS = ["reference", pytest.param("compiled", marks=compiled)]


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [  # the known answers of the authors' library, Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            2**64 - 1,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], seed: int, words: tuple[int, ...]):
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in rounding.philox((c0, c1, c2, c3), seed)) == words


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [1, 3, 8, 13])
def test_packing_is_reversible(bits: int, dim: int):
    low, high = rounding.bounds(bits)
    codes = torch.randint(low, high + 1, (50, dim))
    packed = pack(codes, bits)
    assert packed.shape == (50, -(-dim * bits // 8))
    assert torch.equal(unpack(packed, bits, dim), codes.float())


def rounded_up(
    target: float, number: int, bits: int = 8, rows: int = 1000, dim: int = 64
) -> Tensor:
    """Whether each code of a table was rounded up from `target`, by one update."""
    tables = Tables([TableShard(rows, dim, 5)], [0], bits, Optimizer("sgd", 1.0))
    ids, offsets = torch.arange(rows), torch.arange(rows + 1)
    batch = Batch(group(tables, ids, offsets), offsets)
    update(tables, batch, torch.full((rows, dim), -target), number, Rounding(seed=11))
    codes = unpack(tables.codes_of(0), bits, dim)
    below = torch.tensor(target).floor()
    assert ((codes == below) | (codes == below + 1)).all()
    return codes - below


@pytest.mark.parametrize(
    ("target", "bits"),
    [(0.001, 8), (0.25, 8), (0.5, 8), (-3.7, 8), (100.9, 8), (-3.7, 4), (6.2, 4), (-1.3, 2)],
)
def test_rounding_is_unbiased(target: float, bits: int):
    """The mean of 10^6 draws is within four standard errors of the truth."""
    draws = torch.stack([rounded_up(target, number, bits) for number in range(16)]).double()
    assert draws.numel() > 1_000_000
    part = target - torch.tensor(target).floor().item()
    error = (part * (1 - part) / draws.numel()) ** 0.5
    assert abs(draws.mean() - part) < 4 * error


def test_neighbours_are_uncorrelated():
    draws = torch.stack([rounded_up(0.5, number) for number in range(16)]).double() - 0.5
    pairs = {
        "steps": (draws[1:], draws[:-1]),
        "rows": (draws[:, 1:], draws[:, :-1]),
        "columns": (draws[:, :, 1:], draws[:, :, :-1]),
        "groups of columns": (draws[:, :, 8:], draws[:, :, :-8]),
    }
    for name, (left, right) in pairs.items():
        correlation = 4 * (left * right).mean()
        assert abs(correlation) < 4 / left.numel() ** 0.5, name


def test_every_part_of_the_key_matters():
    draws = {}
    for key in (1, 2):
        for offset in (0, 1, 2**32):
            for seed in (0, 1, 2**40):
                shard = TableShard(64, 64, key, row_offset=offset)
                tables = Tables([shard], [0], 8, Optimizer("sgd", 1.0))
                tables.assign(0, 0, torch.full((64, 64), 0.5), seed)
                draws[key, offset, seed] = tables.codes.clone()
    shifted = draws.pop((1, 1, 0))
    assert torch.equal(shifted.view(64, 64)[:-1], draws[1, 0, 0].view(64, 64)[1:])
    values = list(draws.values())
    for index, one in enumerate(values):
        for other in values[:index]:
            assert 0.4 < (one == other).float().mean() < 0.6 or one is other
