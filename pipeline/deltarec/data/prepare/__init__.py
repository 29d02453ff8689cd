# SPDX-License-Identifier: Apache-2.0
from deltarec.data.prepare.adult import Adult
from deltarec.data.prepare.census_income import CensusIncome
from deltarec.data.prepare.ciao import Ciao
from deltarec.data.prepare.dataset import Dataset
from deltarec.data.prepare.kuairand_explicit import KuaiRandExplicit
from deltarec.data.prepare.lastfm import LastFM
from deltarec.data.prepare.movielens1m import MovieLens1M
from deltarec.data.prepare.own_events import OwnEvents
from deltarec.data.prepare.synth import Synth
from deltarec.data.prepare.synth_aligned import SynthAligned

DATASETS: dict[str, type[Dataset]] = {
    "adult": Adult,
    "census-income": CensusIncome,
    "kuairand-explicit": KuaiRandExplicit,
    "movielens-1m": MovieLens1M,
    "lastfm-hetrec": LastFM,
    "social-ciao": Ciao,
    "own-events": OwnEvents,
    "synth": Synth,
    "synth-aligned": SynthAligned,
}
