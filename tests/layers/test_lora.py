# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from deltarec.layers.dropout import set_sample_keys
from deltarec.layers.lora import LoRAConfig, LoRALinear, add_lora, freeze


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)


def test_it_is_the_equation():
    """`W x + b + α/r B A x`; gradients of A and B as by hand, and none of W."""
    torch.manual_seed(0)
    layer = Attention().query
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    freeze(layer)
    lora = LoRALinear(layer, LoRAConfig(rank=3, alpha=12.0))
    x = torch.randn(2, 4, 6)
    assert torch.equal(lora(x), x @ weight.T + bias), "an update begins at zero"
    nn.init.normal_(lora.up)
    wanted = x @ (weight + 12 / 3 * lora.up @ lora.down).T + bias
    torch.testing.assert_close(lora(x), wanted)
    g = torch.randn(2, 4, 5)
    lora(x).backward(g)
    of_update = 4 * torch.einsum("bto,bti->oi", g, x)
    torch.testing.assert_close(lora.up.grad, of_update @ lora.down.T)
    torch.testing.assert_close(lora.down.grad, lora.up.T @ of_update)
    assert [name for name, _ in lora.named_parameters()] == ["down", "up"]
    assert lora.state_dict().keys() == {"down", "up"}, "a checkpoint has what is trained"


def test_dropout_belongs_to_the_sample():
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(6, 5), LoRAConfig(dropout=0.5))
    nn.init.normal_(lora.up)
    x, keys = torch.randn(3, 4, 6), torch.tensor([7, 8, 9])
    set_sample_keys(lora, keys)
    whole = lora(x)
    set_sample_keys(lora, keys[1:])
    torch.testing.assert_close(lora(x[1:, :2]), whole[1:, :2])
    assert not torch.equal(whole, lora.eval()(x))


def test_it_finds_its_layers():
    model = nn.ModuleDict({"first": Attention(), "last": Attention()})
    add_lora(model, LoRAConfig(rank=2, targets=["value"]))
    found = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert found == ["first.value", "last.value"]
    with pytest.raises(ValueError, match="no linear layer called key; it has base, query"):
        add_lora(model, LoRAConfig(targets=["key"]))
