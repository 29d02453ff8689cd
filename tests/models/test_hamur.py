# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bottleneck import effective_rank
from deltarec.layers.batch_norm import set_real_samples
from deltarec.models import TRUNKS
from deltarec.models.hamur import HAMUR
from deltarec.models.mlp import MLPTrunk
from deltarec.models.roles import Fields, FieldShapes
from tests.models.properties import SCENARIO, check_properties
from tests.models.reference import SHAPES, assert_equal, fields, flat, linear, mlp

TRUNK_OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "wide_deep": {},
    "deepfm": {},
    "dcn": {"structure": "stacked"},
}


def hamur(trunk: str = "mlp", hidden: tuple[int, ...] = (7, 6), **options: Any) -> HAMUR:
    """Small, its parameters random: scenarios start alike, and must be told apart here."""
    torch.manual_seed(0)
    kind = TRUNKS[trunk]
    below = kind.Config(name=trunk, hidden=list(hidden), **TRUNK_OPTIONS[trunk])  # pyright: ignore
    config = HAMUR.Config(name="hamur", rank=3, bottleneck=4, hyper=[5], **options)
    model = HAMUR(config, SHAPES, 3, lambda shapes: kind(below, shapes)).double()
    for adapter in model.adapters:
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
    set_real_samples(model, torch.ones(5, dtype=torch.bool))
    return model


def batch_norm(norm: Any, rows: list[Tensor]) -> list[Tensor]:
    """By the rows' own mean and biased variance."""
    mean = sum(rows) / len(rows)
    var = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / (var + norm.eps) ** 0.5 * norm.weight + norm.bias for row in rows]


def instances(model: HAMUR, inputs: list[Tensor]) -> list[Tensor]:
    """The hyper-network, the generated matrices of the samples."""
    first, norm = model.hyper.hidden[0], model.hyper.hidden[1]
    units = batch_norm(norm, [linear(first, x) for x in inputs])
    return [linear(model.hyper.matrix, u * (u > 0)).view(3, 3) for u in units]


def adapted(
    adapter: Any, rows: list[Tensor], matrices: list[Tensor], scenario: list[int]
) -> list[Tensor]:
    """Unfactored: W and W' are built, sample by sample."""
    changes = []
    for h, matrix, s in zip(rows, matrices, scenario, strict=True):
        down = adapter.down_left.weight[s] @ matrix @ adapter.down_right.weight[s]
        up = adapter.up_left.weight[s] @ matrix @ adapter.up_right.weight[s]
        units = 1 / (1 + torch.exp(-(h @ down + adapter.down_right.bias[s])))
        changes.append(units @ up + adapter.up_right.bias[s])
    outputs = list(rows)
    for s in set(scenario):
        mine = [i for i, other in enumerate(scenario) if other == s]
        values = [changes[i] for i in mine]
        mean = sum(values) / len(mine)
        var = sum((value - mean) ** 2 for value in values) / len(mine)
        for i, value in zip(mine, values, strict=True):
            normalised = (value - mean) / (var + adapter.norm.eps) ** 0.5
            outputs[i] = rows[i] + normalised * adapter.norm.weight[s] + adapter.norm.bias[s]
    return outputs


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("adapters", [1, 2])
def test_hamur(one_process: torch.device, adapters: int, variant: str):
    """Scenario 1 has no samples; `released` counts all samples to one scenario."""
    model = hamur(adapters=adapters, variant=variant)
    inputs, leaves = fields()
    x = [flat(inputs, i) for i in range(5)]
    scenario = SCENARIO if variant == "paper" else [0] * 5
    layers = list(model.trunk.mlp)  # pyright: ignore
    matrices = instances(model, x)
    rows = [mlp(layers[:2], sample) for sample in x]
    if adapters == 2:
        rows = adapted(model.adapters[0], rows, matrices, scenario)
    rows = [mlp(layers[2:], row) for row in rows]
    wanted = torch.stack(adapted(model.adapters[-1], rows, matrices, scenario))
    assert_equal(model, model(inputs, torch.tensor(SCENARIO)), wanted, leaves)


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_zero_adapter_leaves_its_trunk_alone(
    one_process: torch.device, trunk: str, adapters: int
):
    model = hamur(trunk, adapters=adapters)
    inputs, _ = fields()
    changed = model(inputs, torch.tensor(SCENARIO))
    for adapter in model.adapters:
        nn.init.zeros_(adapter.norm.weight)  # pyright: ignore
        nn.init.zeros_(adapter.norm.bias)  # pyright: ignore
    plain = model.trunk(inputs)
    assert torch.equal(model(inputs, torch.tensor(SCENARIO)), plain)
    differs = (changed != plain).any(0)
    deep = 6
    assert differs[:deep].all() and not differs[deep:].any(), "only the deep part is adapted"
    assert model.output_dim == plain.shape[1]


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_properties(one_process: torch.device, adapters: int, variant: str):
    check_properties(hamur(adapters=adapters, variant=variant), reads_absent=variant == "released")


def test_too_few_layers_are_refused():
    with pytest.raises(ValueError, match=r"adapters: 3 adapters need .*, the trunk has 2; add to"):
        hamur(adapters=3)


def test_effective_rank():
    """Of d directions of equal strength it is d; of one, 1; of strengths p, exp of p's entropy."""
    rows = torch.linalg.qr(torch.randn(64, 9).double() - 0.5).Q
    rows = torch.linalg.qr(rows - rows.mean(0)).Q  # orthonormal and centred
    assert effective_rank(rows[:, :8] + 3) == pytest.approx(8)
    assert effective_rank(rows[:, :1] @ torch.ones(1, 5).double()) == pytest.approx(1)
    uneven = rows[:, :2] * torch.tensor([0.75, 0.25])
    assert effective_rank(uneven) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("initialisation", ["orthogonal", "released"])
def test_the_bottleneck_does_not_collapse(one_process: torch.device, initialisation: Any):
    """After 200 steps on a product that differs by scenario, on samples it was not trained on; the
    released start keeps one unit."""
    torch.set_num_threads(1)  # so small a model only waits for a second one
    torch.manual_seed(0)
    samples = 256
    trunk = MLPTrunk.Config(name="mlp", hidden=[32, 16])
    config = HAMUR.Config(name="hamur", initialisation=initialisation)
    shapes = FieldShapes((8, 8), 0)
    model = nn.ModuleList(
        [HAMUR(config, shapes, 3, lambda s: MLPTrunk(trunk, s)), nn.Linear(16, 1)]
    )
    set_real_samples(model, torch.ones(samples, dtype=torch.bool))
    x, y = torch.randn(2, samples, 8)
    scenario = torch.arange(samples) % 3
    shifted = torch.stack([y.roll(s, dims=1) for s in range(3)])[scenario, torch.arange(samples)]
    label = ((x * shifted).sum(1, keepdim=True) > 0).float()
    units: list[Tensor] = []
    adapter: Any = model[0].adapters[0]  # pyright: ignore
    adapter.activation.register_forward_hook(lambda _, __, output: units.append(output.detach()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        logit = model[1](model[0](Fields([x, y], torch.empty(samples, 0)), scenario))
        nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
        optimizer.step()
    model.eval()
    others = list(torch.randn(2, 4096, 8))
    model[0](Fields(others, torch.empty(4096, 0)), torch.arange(4096) % 3)
    assert units[-1].shape == (4096, 32)
    rank = effective_rank(units[-1])
    assert rank > 8 if initialisation == "orthogonal" else rank < 1.01, rank
