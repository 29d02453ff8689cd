# SPDX-License-Identifier: Apache-2.0
"""Every balancing method by its name in the configuration."""

from deltarec.balancing.adatask import AdaTask
from deltarec.balancing.aligned_mtl import AlignedMTL
from deltarec.balancing.alternating import Alternating
from deltarec.balancing.balancer import Balancer
from deltarec.balancing.cagrad import CAGrad
from deltarec.balancing.db_mtl import DBMTL
from deltarec.balancing.dwa import DWA
from deltarec.balancing.equal import Equal
from deltarec.balancing.fairgrad import FairGrad
from deltarec.balancing.famo import FAMO
from deltarec.balancing.gls import GLS
from deltarec.balancing.graddrop import GradDrop
from deltarec.balancing.gradnorm import GradNorm
from deltarec.balancing.gradvac import GradVac
from deltarec.balancing.imtl import IMTL
from deltarec.balancing.metabalance import MetaBalance
from deltarec.balancing.mgda import MGDA
from deltarec.balancing.nash_mtl import NashMTL
from deltarec.balancing.pcgrad import PCGrad
from deltarec.balancing.pe_ltr import PELTR
from deltarec.balancing.pmtrec import PMTRec
from deltarec.balancing.rlw import RLW
from deltarec.balancing.rmtl import RMTL
from deltarec.balancing.static import Static
from deltarec.balancing.stch import STCH
from deltarec.balancing.uw import UW
from deltarec.config import Config

BALANCERS: dict[str, type[Balancer]] = {
    "equal": Equal,
    "static": Static,
    "alternating": Alternating,
    "rlw": RLW,
    "uw": UW,
    "dwa": DWA,
    "gls": GLS,
    "stch": STCH,
    "famo": FAMO,
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "pe_ltr": PELTR,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "graddrop": GradDrop,
    "cagrad": CAGrad,
    "imtl": IMTL,
    "nash_mtl": NashMTL,
    "aligned_mtl": AlignedMTL,
    "fairgrad": FairGrad,
    "db_mtl": DBMTL,
    "metabalance": MetaBalance,
    "adatask": AdaTask,
    "pmtrec": PMTRec,
    "rmtl": RMTL,
}


def balancer_of(config: Config, tasks: list[str], seed: int) -> Balancer:
    """The configured method; a task alone is trained as ever, save for its `static` weight.

    Args:
        config: the `Config` of one of `BALANCERS`.
        tasks: names of the tasks, the main one first.
        seed: of what the method draws.
    """
    name: str = config.name  # pyright: ignore[reportAttributeAccessIssue]  # every member's has one
    balancer = BALANCERS[name](config, tasks, seed)
    if len(tasks) == 1 and not isinstance(balancer, Static):
        return Equal(Equal.Config(name="equal"), tasks)
    return balancer
