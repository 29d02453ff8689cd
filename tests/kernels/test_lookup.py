# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarec_kernels import COMPILED, Optimizer, Tables, TableShard, lookup
from tests.kernels.cases import Case, cases, device_of, implementation

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
compiled = pytest.mark.skipif(not COMPILED, reason="the C++ kernels are not built")


def check_lookup(kind: str, case: Case, dtype: torch.dtype) -> None:
    results = []
    for each in ("reference", kind):
        tables = case.tables(device=device_of(each))
        ids, offsets, weights = case.jagged(device_of(each))
        own = weights.clone().requires_grad_() if weights is not None else None
        with implementation(each):
            output = lookup(tables, ids, offsets, own, case.pooling, dtype)  # type: ignore[arg-type]
            if own is not None:
                if each == "triton":  # called by itself it is no part of autograd
                    from deltarec_kernels.lookup.triton import lookup_weights_gradient

                    own.grad = lookup_weights_gradient(
                        tables.codes, tables.step, tables.layout, tables.features, ids, offsets,
                        case.gradient(output), tables.bits,
                    )  # fmt: skip
                else:
                    output.backward(case.gradient(output))
        assert own is None or own.grad is not None
        gradient = own.grad.cpu() if own is not None and own.grad is not None else None
        results.append((output.detach().cpu(), gradient))
    (expected, expected_gradient), (output, gradient) = results
    assert output.dtype == dtype
    # The same fp32 sums, rounded once: low precision has no tolerance of its own.
    rtol = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(output, expected, rtol=rtol, atol=1e-6)
    if expected_gradient is not None:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@compiled
@settings(max_examples=60, deadline=None)
@given(cases(), DTYPES)
def test_compiled_lookup_is_the_reference(case: Case, dtype: torch.dtype):
    check_lookup("compiled", case, dtype)


def small_tables() -> Tables:
    tables = Tables([TableShard(4, 8, 0)], [0], 8, Optimizer("sgd", 0.1))
    tables.assign(0, 0, torch.arange(32.0).view(4, 8))
    return tables


def test_pooling_by_hand():
    tables = small_tables()
    ids, offsets = torch.tensor([1, 3, 3]), torch.tensor([0, 2, 2, 3])
    rows = torch.arange(32.0).view(4, 8)
    zeros = torch.zeros(8)
    expected = torch.stack([rows[1] + rows[3], zeros, rows[3]])
    assert torch.equal(lookup(tables, ids, offsets), expected)
    expected = torch.stack([(rows[1] + rows[3]) / 2, zeros, rows[3]])
    assert torch.equal(lookup(tables, ids, offsets, pooling="mean"), expected)
    weights = torch.tensor([2.0, -1.0, 0.5])
    expected = torch.stack([2 * rows[1] - rows[3], zeros, rows[3] / 2])
    assert torch.equal(lookup(tables, ids, offsets, weights), expected)
    assert torch.equal(lookup(tables, ids, offsets, pooling="none"), rows[ids])


@pytest.mark.parametrize("kind", ["reference", pytest.param("compiled", marks=compiled)])
@pytest.mark.parametrize("wrong", [-1, 4])
def test_id_outside_its_table(kind: str, wrong: int):
    with implementation(kind), pytest.raises(IndexError, match="outside its table"):
        lookup(small_tables(), torch.tensor([0, wrong]), torch.tensor([0, 2]))


def test_refused_arguments():
    tables, ids, offsets = small_tables(), torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="weights go with no other"):
        lookup(tables, ids, offsets, torch.ones(1), "mean")
    with pytest.raises(ValueError, match="dtype"):
        lookup(tables, ids, offsets, dtype=torch.float64)
    both = Tables([TableShard(2, 8, 0), TableShard(2, 16, 1)], [0, 1], 8, Optimizer("sgd", 0.1))
    with pytest.raises(ValueError, match="equal width"):
        lookup(both, torch.tensor([0, 1]), torch.tensor([0, 1, 2]), pooling="none")
    with pytest.raises(ValueError, match="no multiple"):
        lookup(both, torch.tensor([0]), torch.tensor([0, 1]))
