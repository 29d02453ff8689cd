# SPDX-License-Identifier: Apache-2.0
from deltarec.metrics.auc import AUC
from deltarec.metrics.calibration import Calibration
from deltarec.metrics.gauc import GAUC
from deltarec.metrics.logloss import LogLoss
from deltarec.metrics.mae import MAE
from deltarec.metrics.metric import Metric
from deltarec.metrics.normalised_entropy import NormalisedEntropy
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
