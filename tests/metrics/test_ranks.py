# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.distributed import process_group, rank, world_size
from deltarec.metrics.evaluation import NUM_PROBES, PARTITIONS, Result, _evenly
from deltarec.metrics.metric import Samples
from tests.conftest import run_ranks
from tests.metrics.samples import cases, evaluate, flat, is_close


def _on_rank() -> dict[str, Result]:
    results = {}
    for case, rows in cases().items():
        index = torch.arange(len(rows[0]))
        holders = {
            "in turn": index % world_size(),
            "sorted": rows[0][:, 0].argsort().argsort() * world_size() // max(len(index), 1),
            "one rank has all": torch.full_like(index, world_size() - 1),
        }
        for how, holder in holders.items():
            mine = [column[holder == rank()] for column in rows]
            results[f"{case}, {how}"] = evaluate(mine)
    return results


def test_is_the_same_on_any_number_of_ranks() -> None:
    with process_group(threads=1):
        alone = {case: evaluate(rows) for case, rows in cases().items()}
    for ranks in (1, 2, 3):
        first, *others = run_ranks(ranks, _on_rank)
        assert all(other == first for other in others)
        for case, result in first.items():
            expected = alone[case.split(",")[0]]
            assert is_close(result, expected, tolerance=1e-13), f"{case} on {ranks} ranks"
            values, wanted = flat(result), flat(expected)
            exact = [name for name in wanted if name.endswith(("/auc", "/n"))]
            assert [values[name] for name in exact] == [wanted[name] for name in exact]


def _sizes() -> tuple[int, int]:
    """How many samples this rank holds after a move by score and by user."""
    generator = torch.Generator().manual_seed(rank())
    n = 30_000 if rank() == 0 else 100
    samples = Samples(
        prediction=torch.rand(n, generator=generator, dtype=torch.float64) ** 4,
        label=torch.zeros(n, dtype=torch.float64),
        scenario=torch.zeros(n, dtype=torch.int64),
        user=torch.randint(0, 1000, (n,), generator=generator) * 12,
    )
    by_score = PARTITIONS["score"](samples)
    by_user = PARTITIONS["user"](samples)
    return len(by_score.label), len(by_user.label)


def test_samples_are_spread_evenly() -> None:
    parts = run_ranks(3, _sizes)
    assert [sum(sizes) for sizes in zip(*parts, strict=True)] == [30_200, 30_200]
    for by_score, by_user in parts:
        assert 9_500 < by_score < 10_700
        assert 9_000 < by_user < 11_200


@pytest.mark.parametrize("length", [1, 2, 1000, 2**24 + 4, 2**25 + 4, 100_000_007])
def test_places_to_cut_at_are_within(length: int):
    """In single precision the last one would be beyond."""
    places = _evenly(length, NUM_PROBES)
    assert places[0] == 0 and places[-1] == length - 1 and (places.diff() >= 0).all()
