# SPDX-License-Identifier: Apache-2.0
from deltarec_kernels.assign import Assigned, Change, IdMap, Policy, buckets_of, deduplicate
from deltarec_kernels.fake_quantise import fake_quantise
from deltarec_kernels.lookup import Pooling, lookup
from deltarec_kernels.optimizer import Optimizer
from deltarec_kernels.packing import row_bytes
from deltarec_kernels.registration import COMPILED, describe
from deltarec_kernels.tables import Tables, TableShard
from deltarec_kernels.update import (
    Batch,
    Groups,
    Rounding,
    group,
    update,
    update_rows,
    update_step,
)

__all__ = [
    "COMPILED",
    "Assigned",
    "Batch",
    "Change",
    "Groups",
    "IdMap",
    "Optimizer",
    "Policy",
    "Pooling",
    "Rounding",
    "TableShard",
    "Tables",
    "buckets_of",
    "deduplicate",
    "describe",
    "fake_quantise",
    "group",
    "lookup",
    "row_bytes",
    "update",
    "update_rows",
    "update_step",
]
