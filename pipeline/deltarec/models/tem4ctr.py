# SPDX-License-Identifier: Apache-2.0
"""TEM4CTR (Zhang et al., 2023, arXiv 2308.09966): clicks enhanced by what was shown around them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from deltarec.embeddings.collections import JaggedSequence
from deltarec.layers.activation_unit import ActivationUnit
from deltarec.layers.jagged import jagged_softmax, jagged_sum
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.rows import occurrences
from deltarec.models.roles import SequenceEncoder

Projection = Literal["parallel", "orthogonal", "full", "none"]


class TEM4CTREncoder(SequenceEncoder):
    """Attention over clicks and over what is aligned with each; several feedback types add up.

    A type's exposures are pooled for each click, and what of the result lies along the click's own
    vector is added to it: exposures like the click strengthen it, opposite ones weaken it, and the
    irrelevant cannot enter. Jagged throughout: the work is that of the ids there are.
    """

    class Config(MLPConfig):
        """Options of the tem4ctr encoder."""

        name: Literal["tem4ctr"]
        hidden: list[PositiveInt] = [80, 40]  # noqa: RUF012
        """Widths of the layers of each activation unit."""
        projection: Projection = "parallel"
        """What a click gets of its exposures: the part along its own vector, as in the paper, the
        part across it, both (no projection), or nothing."""
        alignment: bool = True
        """Without it, exposures are one list that the target attends to, and clicks get nothing."""

    def __init__(self, config: Config, dim: int, names: Sequence[str], has_target: bool) -> None:
        super().__init__(config, dim, names, has_target)
        if not has_target:
            raise ValueError(
                "the tem4ctr encoder compares clicks with their target; "
                f"name one by features.{names[0]}.target"
            )
        self.projection: Projection = config.projection
        self.alignment = config.alignment
        self.click = ActivationUnit(dim, config)
        self.exposure = nn.ModuleList(ActivationUnit(dim, config) for _ in names[1:])
        self.search = nn.ModuleList(
            ActivationUnit(dim, config) for _ in names[1:] if config.alignment
        )

    def forward(self, target: Tensor | None, sequences: Sequence[JaggedSequence]) -> list[Tensor]:
        assert target is not None
        clicks, *others = sequences
        if not self.alignment:
            units = [self.click, *self.exposure]
            return [
                _interest(unit, target, sequence.values, sequence.lengths)
                for unit, sequence in zip(units, sequences, strict=True)
            ]
        enhanced = clicks.values
        of_exposures = []
        for search, unit, exposures in zip(self.search, self.exposure, others, strict=True):
            around = _aggregated(search, clicks.values, exposures)
            enhanced = enhanced + self._transferred(around, clicks.values)
            of_exposures.append(_interest(unit, target, around, clicks.lengths))
        return [_interest(self.click, target, enhanced, clicks.lengths), *of_exposures]

    def _transferred(self, around: Tensor, clicks: Tensor) -> Tensor | float:
        """Step 2: what each click gets of the vector of what is around it, both `[clicks, D]`."""
        if self.projection == "none":
            return 0.0
        if self.projection == "full":
            return around
        scale = (around * clicks).sum(1, keepdim=True)
        parallel = scale / ((clicks * clicks).sum(1, keepdim=True) + 1e-12) * clicks
        return parallel if self.projection == "parallel" else around - parallel


def _aggregated(search: nn.Module, clicks: Tensor, exposures: JaggedSequence) -> Tensor:
    """Step 1: the exposures of each click, weighted by the click; `[clicks, D]` to the same."""
    items = exposures.values
    assert exposures.inner is not None
    owners, _ = occurrences(exposures.inner, len(items))
    rows, places = occurrences(exposures.lengths, len(items))
    scores = search(clicks.index_select(0, owners), items, rows, places)
    return jagged_sum(items * jagged_softmax(scores, exposures.inner), exposures.inner)


def _interest(unit: nn.Module, target: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
    """Steps 3 and 4: each sample's vectors, weighted by its target; `[items, D]` to `[B, D]`."""
    rows, places = occurrences(lengths, len(items))
    scores = unit(target.index_select(0, rows), items, rows, places)
    return jagged_sum(items * jagged_softmax(scores, lengths), lengths)
