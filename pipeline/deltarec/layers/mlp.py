# SPDX-License-Identifier: Apache-2.0
"""Fully connected layers."""

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.config import Config
from deltarec.layers.batch_norm import GlobalBatchNorm
from deltarec.layers.dropout import Dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
NORMS: dict[str, type[nn.Module]] = {"batch": GlobalBatchNorm, "layer": nn.LayerNorm}

Adapt = Callable[[int, Tensor], Tensor]
"""Changes a level's representation `[B, D]`: level 0 is the MLP's input, l its l-th layer."""


class MLPConfig(Config):
    """What the layers of an MLP share."""

    hidden: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
    """Widths of the layers; none is the identity."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["batch", "layer"] | None = None
    """Normalisation before each activation; `batch` is over the global batch."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each activation."""


class MLP(nn.Sequential):
    """Linear, normalisation, activation, dropout for each width: `[B, D]` to `[B, output_dim]`."""

    def __init__(
        self,
        input_dim: int,
        hidden: Sequence[int],
        activation: str = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        widths = (input_dim, *hidden)
        for width in hidden:
            layers.append(nn.Linear(input_dim, width))
            if norm:
                layers.append(NORMS[norm](width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout))
            input_dim = width
        super().__init__(*layers)
        self.widths = widths
        """Of each level: the input, then the layers."""
        self.output_dim = input_dim

    @classmethod
    def of(cls, input_dim: int, config: MLPConfig) -> "MLP":
        return cls(input_dim, config.hidden, config.activation, config.norm, config.dropout)

    def forward(self, input: Tensor, adapt: Adapt | None = None) -> Tensor:
        """`[B, D]` to `[B, output_dim]`; `adapt` may change what each level hands on."""
        if adapt is None:
            return super().forward(input)
        x, level = adapt(0, input), 0
        for position, module in enumerate(self, start=1):
            x = module(x)
            if position == len(self) or isinstance(self[position], nn.Linear):
                level += 1
                x = adapt(level, x)
        return x
