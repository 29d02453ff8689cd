# SPDX-License-Identifier: Apache-2.0
"""Normal noise that belongs to the sample, not to the process that draws it; as dropout's masks."""

import math

from torch import Tensor

from deltarec.layers.dropout import Keyed
from deltarec_kernels.splitmix import mix64, uniform


class SampleNoise(Keyed):
    """Standard normal numbers for each sample and unit (Box and Muller, 1958)."""

    def forward(self, x: Tensor) -> Tensor:
        """Noise of the shape and type of x `[n, D]`, without a gradient."""
        bits = self.bits(x)  # of which mix64 makes others, independent enough
        radius = (-2 * (1 - uniform(bits)).log()).sqrt()
        return (radius * (2 * math.pi * uniform(mix64(bits))).cos()).to(x.dtype)
