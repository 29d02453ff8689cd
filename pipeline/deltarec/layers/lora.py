# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates of linear layers whose own weights stay.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv 2106.09685). The
library peft has them too; its dropout draws from the process's random stream, so a mask would
differ with the number of processes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config
from deltarec.layers.dropout import Dropout

ATTENTION = ["query", "value", "q_proj", "v_proj", "q_lin", "v_lin"]
"""What models call the projections of attention that LoRA's authors adapt."""


class LoRAConfig(Config):
    """Low-rank updates."""

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the update's input."""
    targets: list[str] = Field(default=ATTENTION, min_length=1)
    """Last parts of the names of the linear layers that are updated."""


class LoRALinear(nn.Module):
    """`W x + b + α/r B A dropout(x)`: A begins random and B at zero; W and b are not trained."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.base = base
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(torch.empty(config.rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, config.rank))
        self.dropout = Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(self.dropout(x), self.down), self.up)
        return self.base(x) + self.scale * update


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Replace a frozen model's linear layers of the configured names, in place.

    Raises:
        ValueError: it has none of them.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = {name: m for name, m in linear.items() if name.split(".")[-1] in config.targets}
    if not chosen:
        known = sorted({name.split(".")[-1] for name in linear})
        raise ValueError(
            f"lora.targets: the model has no linear layer called {_either(config.targets)}; it has "
            f"{', '.join(known) or 'none at all'}"
        )
    for name, module in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(module, config))


def freeze(model: nn.Module) -> None:
    """Make all weights of a model constants that no optimiser, gradient or checkpoint has.

    For weights that come from files: a checkpoint of a job has what the job has trained.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
