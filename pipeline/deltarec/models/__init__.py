# SPDX-License-Identifier: Apache-2.0
"""Every model part by its name in the configuration. A new one is its file and its line here."""

from deltarec.models.adasparse import AdaSparse
from deltarec.models.adatt import AdaTTHeads
from deltarec.models.aitm import AITMHeads
from deltarec.models.bilinear import Bilinear
from deltarec.models.cigcn import CIGCN
from deltarec.models.contrastive import Contrastive
from deltarec.models.cross_stitch import CrossStitchHeads
from deltarec.models.dbmtl import DBMTLHeads
from deltarec.models.dcn import DCNTrunk
from deltarec.models.deepfm import DeepFMTrunk
from deltarec.models.din import DINEncoder
from deltarec.models.escm2 import ESCM2Heads
from deltarec.models.esmm import ESMMHeads
from deltarec.models.hamur import HAMUR
from deltarec.models.hierrec import HierRec
from deltarec.models.hybrid_experts import HybridExperts
from deltarec.models.joined import Joined
from deltarec.models.lightgcn import LightGCN
from deltarec.models.m3oe import M3oE
from deltarec.models.masked_feature import MaskedFeature
from deltarec.models.masked_token import MaskedToken
from deltarec.models.mean import MeanEncoder
from deltarec.models.mesi import MESI
from deltarec.models.mf import MatrixFactorisation
from deltarec.models.mlp import MLPTrunk
from deltarec.models.mmoe import MMoEHeads
from deltarec.models.multi_ipw_dr import MultiDRHeads, MultiIPWHeads
from deltarec.models.omoe import OMoEHeads
from deltarec.models.pepnet import PEPNet
from deltarec.models.ple import PLEHeads
from deltarec.models.pooled_state import PooledState
from deltarec.models.roles import (
    AlignmentLoss,
    GraphEncoder,
    PairModel,
    ScenarioModule,
    Scorer,
    SequenceEncoder,
    TaskHeads,
    TextAdaptor,
    Trunk,
)
from deltarec.models.sar_net import SARNet
from deltarec.models.semantic_ids import SemanticIds
from deltarec.models.shared_bottom import SharedBottomHeads
from deltarec.models.single import NoScenario
from deltarec.models.star import STAR
from deltarec.models.tem4ctr import TEM4CTREncoder
from deltarec.models.text_mlp import TextMLP
from deltarec.models.text_towers import TextTowers
from deltarec.models.towers import ScenarioTowers
from deltarec.models.tuned_encoder import TunedEncoder
from deltarec.models.two_tower import TwoTower
from deltarec.models.whitened_mixture import WhitenedMixture
from deltarec.models.wide_deep import WideDeepTrunk
from deltarec.models.yes_no import YesNo

TEXT_ADAPTORS: dict[str, type[TextAdaptor]] = {
    "mlp": TextMLP,
    "hybrid_experts": HybridExperts,
    "whitened_mixture": WhitenedMixture,
    "semantic_ids": SemanticIds,
    "language_model": TunedEncoder,
}
SEQUENCE_ENCODERS: dict[str, type[SequenceEncoder]] = {
    "mean": MeanEncoder,
    "din": DINEncoder,
    "tem4ctr": TEM4CTREncoder,
}
TRUNKS: dict[str, type[Trunk]] = {
    "mlp": MLPTrunk,
    "wide_deep": WideDeepTrunk,
    "deepfm": DeepFMTrunk,
    "dcn": DCNTrunk,
}
SCENARIO_MODULES: dict[str, type[ScenarioModule]] = {
    "none": NoScenario,
    "towers": ScenarioTowers,
    "star": STAR,
    "pepnet": PEPNet,
    "sar_net": SARNet,
    "adasparse": AdaSparse,
    "m3oe": M3oE,
    "hamur": HAMUR,
    "hierrec": HierRec,
}
TASK_HEADS: dict[str, type[TaskHeads]] = {
    "shared_bottom": SharedBottomHeads,
    "omoe": OMoEHeads,
    "mmoe": MMoEHeads,
    "ple": PLEHeads,
    "cross_stitch": CrossStitchHeads,
    "adatt": AdaTTHeads,
    "dbmtl": DBMTLHeads,
    "esmm": ESMMHeads,
    "multi_ipw": MultiIPWHeads,
    "multi_dr": MultiDRHeads,
    "escm2": ESCM2Heads,
    "aitm": AITMHeads,
}
PAIR_MODELS: dict[str, type[PairModel]] = {
    "mf": MatrixFactorisation,
    "two_tower": TwoTower,
    "bilinear": Bilinear,
    "mesi": MESI,
    "joined": Joined,
}
GRAPH_ENCODERS: dict[str, type[GraphEncoder]] = {
    "lightgcn": LightGCN,
    "cigcn": CIGCN,
}
ALIGNMENT_LOSSES: dict[str, type[AlignmentLoss]] = {
    "contrastive": Contrastive,
    "masked_feature": MaskedFeature,
    "masked_token": MaskedToken,
}
SCORERS: dict[str, type[Scorer]] = {
    "yes_no": YesNo,
    "pooled_state": PooledState,
    "text_towers": TextTowers,
}
