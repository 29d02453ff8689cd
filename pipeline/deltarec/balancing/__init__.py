# SPDX-License-Identifier: Apache-2.0
"""Every balancing method by its name in the configuration."""

from deltarec.balancing.balancer import Balancer
from deltarec.balancing.equal import Equal
from deltarec.balancing.mgda import MGDA
from deltarec.balancing.static import Static

BALANCERS: dict[str, type[Balancer]] = {
    "equal": Equal,
    "static": Static,
    "mgda": MGDA,
}
