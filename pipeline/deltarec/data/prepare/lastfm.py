# SPDX-License-Identifier: Apache-2.0
"""Last.FM of HetRec 2011 (Cantador et al., 2011): listening, friends and tags, as pairwise tasks.

Relations of the train split: `user, artist` listens; `user, friend`; `artist, other` with the same
listeners, of the train split alone; `artist, tag` as applied by anybody. Held out are listens. Ids
are places among the sorted original ones.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require
from deltarec.data.prepare.relations import Pairs, neighbours, write_relations

ORIGIN = "https://grouplens.org/datasets/hetrec-2011/ (hetrec2011-lastfm-2k)"


class LastFM(Dataset):
    """Last.FM, listens split 80/10/10 at random."""

    dataset: Literal["lastfm-hetrec"] = "lastfm-hetrec"
    seed: int = Field(default=2022, ge=0)
    """Seed of the split and of the shuffle."""
    neighbours: int = Field(default=10, ge=1)
    """Most others that an artist is paired with."""
    common: int = Field(default=2, ge=1)
    """Listeners that two paired artists share, and times that a tag was given to an artist, at
    least."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        listens = _read(source, "user_artists", ["userID", "artistID"])
        friends = _read(source, "user_friends", ["userID", "friendID"])
        tagged = _read(source, "user_tags", ["artistID", "tagID"])
        users, artists = (np.unique(column) for column in listens)
        pairs, times = np.unique(np.stack(tagged), axis=1, return_counts=True)
        pairs = pairs[:, (times >= self.common) & np.isin(pairs[0], artists)]
        tags = np.unique(pairs[1])
        user, artist = np.searchsorted(users, listens[0]), np.searchsorted(artists, listens[1])
        order = np.random.default_rng(self.seed).permutation(len(user))
        cuts = [int(0.8 * len(order)), int(0.9 * len(order))]
        train, valid, test = ((user[rows], artist[rows]) for rows in np.split(order, cuts))
        relations = {
            ("user", "artist"): train,
            ("user", "friend"): (
                np.searchsorted(users, friends[0]),
                np.searchsorted(users, friends[1]),
            ),
            ("artist", "other"): neighbours(train, len(artists), self.neighbours, self.common),
            ("artist", "tag"): (
                np.searchsorted(artists, pairs[0]),
                np.searchsorted(tags, pairs[1]),
            ),
        }
        write_relations(target, relations, {"valid": valid, "test": test}, self.seed)
        return {
            "table_sizes": {"user": len(users), "artist": len(artists), "tag": len(tags)},
            "notes": ["friend holds user ids, other artist ids; each row belongs to one relation"],
            "relations": {" ".join(names): len(pair[0]) for names, pair in relations.items()},
        }


def _read(source: Path, name: str, columns: list[str]) -> Pairs:
    """Two columns of the Parquet file, or of the original one."""
    parquet = source / f"{name}.parquet"
    if parquet.is_file():
        table = pd.read_parquet(parquet)
    else:
        original = {"user_tags": "user_taggedartists"}.get(name, name)
        table = pd.read_csv(require(source / f"{original}.dat", ORIGIN), sep="\t")
    first, second = (np.asarray(table[column], dtype=np.int64) for column in columns)
    return first, second
