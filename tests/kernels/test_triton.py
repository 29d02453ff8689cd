# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the reference, in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarec_kernels import Batch, Optimizer, Rounding, Tables, TableShard, group, update
from tests.kernels.cases import OPTIMIZERS, TRITON_DEVICE, Case, cases, device_of, implementation
from tests.kernels.test_dropout import random_input
from tests.kernels.test_fake_quantise import random_rows
from tests.kernels.test_lookup import DTYPES, check_lookup
from tests.kernels.test_update import assert_equal_state, check_update

pytest.importorskip("triton")


@settings(max_examples=20, deadline=None)
@given(cases(most=2), DTYPES)
def test_lookup(case: Case, dtype: torch.dtype):
    check_lookup("triton", case, dtype)


@settings(max_examples=25, deadline=None)
@given(
    cases(most=2),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from([None, "sgd", "adagrad", "adam"]),
    st.booleans(),
)
def test_update(case: Case, optimizer: str, step_optimizer: str | None, stochastic: bool):
    check_update("triton", case, optimizer, step_optimizer, stochastic)


@settings(max_examples=10, deadline=None)
@given(cases(most=1), st.sampled_from(OPTIMIZERS), st.sampled_from(["sgd", "adam"]), st.booleans())
def test_two_passes(case: Case, optimizer: str, step_optimizer: str, stochastic: bool):
    check_update("triton", case, optimizer, step_optimizer, stochastic, passes=2)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_of_many_ids(weighted: bool):
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([3, 1]).repeat_interleave(torch.tensor([700, 5]))
    offsets = torch.arange(0, 706, 47)
    weights = torch.randn(705, generator=generator)
    gradient = torch.randn(15, 24, generator=generator)
    made = []
    for kind in ("reference", "triton"):
        device = device_of(kind)
        optimizer = Optimizer("rowwise_adam", 0.05)
        tables = Tables([TableShard(4, 24, 0, 8)], [0], 8, optimizer, device=device)
        tables.step.fill_(0.01)
        bags = offsets.to(device)
        with implementation(kind):
            groups = group(tables, ids.to(device), bags)
            batch = Batch(groups, bags, weights.to(device) if weighted else None)
            update(tables, batch, gradient.to(device), 0, Rounding(1))
        made.append(tables)
    assert_equal_state(made[1], made[0])


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", [(0, 8, 1), (5, 10, 1), (4, 64, 8), (3, 72, 3)])
def test_fake_quantise(shape: tuple[int, int, int], bits: int):
    from deltarec_kernels.fake_quantise import reference, triton

    weight, step, gradient = random_rows(*shape)
    own = [tensor.to(TRITON_DEVICE) for tensor in (gradient, weight, step)]
    output = triton.fake_quantise(*own[1:], bits, 1.0)
    assert torch.equal(output.cpu(), reference.fake_quantise(weight, step, bits, 1.0))
    expected = reference.fake_quantise_backward(gradient, weight, step, bits, 0.3)
    result = triton.fake_quantise_backward(*own, bits, 0.3)
    assert torch.equal(result[0].cpu(), expected[0])
    torch.testing.assert_close(result[1].cpu(), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (5000,)])
def test_mix64(shape: tuple[int, ...]):
    from deltarec_kernels.splitmix import reference, triton

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
    found = triton.mix64(numbers.to(TRITON_DEVICE))
    assert torch.equal(found.cpu(), reference.mix64(numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (5, 1500), (4, 3, 7)])
def test_dropout(shape: tuple[int, ...], dtype: torch.dtype):
    from deltarec_kernels.dropout import reference, triton

    x, keys = random_input(shape, dtype)
    found = triton.dropout(x.to(TRITON_DEVICE), keys.to(TRITON_DEVICE), 3, 0.3)
    expected = reference.dropout(x, keys, 3, 0.3)
    if dtype == torch.bfloat16:  # which the interpreter rounds down
        torch.testing.assert_close(found.cpu(), expected)
    else:
        assert torch.equal(found.cpu(), expected)


def test_kernels_compile_for_a_gpu():
    root = Path(__file__).parents[2]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root / "kernels")
    # By path: the package of tests would ask for the interpreter again.
    program = [sys.executable, str(Path(__file__).with_name("compile_triton.py"))]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
