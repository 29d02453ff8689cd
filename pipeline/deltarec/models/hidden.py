# SPDX-License-Identifier: Apache-2.0
"""Looked-up vectors as they would be if some samples' ids were not known.

An id stands in more places than in its own feature: in features of the same column, such as an
item's frozen text, and in lists, histories and other ids of a table that one of these has. Whoever
is to guess it must see it in none of them.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from deltarec.data.batch import Batch
from deltarec.data.schema import IdFeature, Schema
from deltarec.embeddings.collections import Embedded
from deltarec.layers.rows import occurrences


def without(
    found: Embedded, batch: Batch, schema: Schema, hidden: Mapping[str, Tensor]
) -> Embedded:
    """The vectors with zeros where a hidden id stands; a list that has it is zeros as a whole.

    Args:
        found: the vectors.
        batch: whose they are.
        schema: of the features.
        hidden: of some features of one id, which samples' ids are hidden: bool `[B]`.
    """
    pooled, sequences = dict(found.pooled), dict(found.sequences)
    for feature, samples in hidden.items():
        for own in same_column(schema, feature):
            ids = torch.where(samples, batch.ids(own), -1)
            for name in same_table(schema, own):
                others, owner = _ids_of(batch, name)
                same = others == ids[owner]
                if name in sequences:
                    values = torch.where(same.unsqueeze(1), 0, sequences[name].values)
                    sequences[name] = replace(sequences[name], values=values)
                elif name in pooled:
                    has_it = torch.zeros_like(ids).index_add_(0, owner, same.long()) > 0
                    pooled[name] = torch.where(has_it.unsqueeze(1), 0, pooled[name])
    return replace(found, pooled=pooled, sequences=sequences)


def showing(schema: Schema, feature: str) -> set[str]:
    """All features in which the id of one may stand, itself too."""
    return {name for own in same_column(schema, feature) for name in same_table(schema, own)}


def same_column(schema: Schema, feature: str) -> list[str]:
    """The features of one id that are read from the column of a feature, itself too."""
    column = schema.column(feature)
    ids = [name for name in schema.looked_up if isinstance(schema.sparse[name], IdFeature)]
    return [name for name in ids if schema.column(name) == column]


def same_table(schema: Schema, feature: str) -> list[str]:
    """The features that have rows of the table of a feature, itself too."""
    table = schema.table(feature)
    return [name for name in schema.looked_up if schema.table(name) == table]


def _ids_of(batch: Batch, feature: str) -> tuple[Tensor, Tensor]:
    """The ids of a feature, and the sample of each: int64 `[n]` both."""
    for features in (batch.pooled, batch.weighted, batch.unpooled):
        if features is not None and feature in features.keys():  # noqa: SIM118  # no mapping
            ids = features[feature].values().long()
            return ids, occurrences(features[feature].lengths().long(), len(ids))[0]
    raise KeyError(feature)
