# SPDX-License-Identifier: Apache-2.0
from deltarec.metrics.auc import AUC
from deltarec.metrics.calibration import Calibration
from deltarec.metrics.gauc import GAUC
from deltarec.metrics.hit_rate import HitRate
from deltarec.metrics.logloss import LogLoss
from deltarec.metrics.mae import MAE
from deltarec.metrics.metric import Metric
from deltarec.metrics.ndcg import NDCG
from deltarec.metrics.normalised_entropy import NormalisedEntropy
from deltarec.metrics.ranking import RankingMetric
from deltarec.metrics.recall import Recall
from deltarec.metrics.rmse import RMSE

METRICS: dict[str, type[Metric]] = {
    "auc": AUC,
    "gauc": GAUC,
    "logloss": LogLoss,
    "normalised_entropy": NormalisedEntropy,
    "calibration": Calibration,
    "rmse": RMSE,
    "mae": MAE,
}
RANKING_METRICS: dict[str, type[RankingMetric]] = {
    "recall": Recall,
    "hr": HitRate,
    "ndcg": NDCG,
}
"""Of pairwise tasks; with the number of ranks that count they are called recall@20, and with the
candidates, where these are not all items, sampled_recall@20."""


def larger_is_better(name: str) -> bool:
    """Which way early stopping looks at a metric of this name."""
    if name.partition("@")[0].rpartition("_")[2] in RANKING_METRICS:
        return True
    return METRICS[name].larger_is_better
