# SPDX-License-Identifier: Apache-2.0
from deltarec.data.prepare.adult import Adult
from deltarec.data.prepare.behaviours import MBRetailRocket, MBTaobao
from deltarec.data.prepare.census_income import CensusIncome
from deltarec.data.prepare.ciao import Ciao
from deltarec.data.prepare.collm import CoLLM
from deltarec.data.prepare.collm_text import CoLLMText
from deltarec.data.prepare.dataset import Dataset
from deltarec.data.prepare.kuairand_explicit import KuaiRandExplicit
from deltarec.data.prepare.lastfm import LastFM
from deltarec.data.prepare.movielens1m import MovieLens1M
from deltarec.data.prepare.movielens1m_text import MovieLens1MText
from deltarec.data.prepare.movielens_latest import MovieLensLatest
from deltarec.data.prepare.own_events import OwnEvents
from deltarec.data.prepare.retailrocket import RetailRocket
from deltarec.data.prepare.synth import Synth
from deltarec.data.prepare.synth_aligned import SynthAligned
from deltarec.data.prepare.synth_stream import SynthStream

DATASETS: dict[str, type[Dataset]] = {
    "adult": Adult,
    "census-income": CensusIncome,
    "kuairand-explicit": KuaiRandExplicit,
    "movielens-1m": MovieLens1M,
    "movielens-1m-text": MovieLens1MText,
    "movielens-latest-small": MovieLensLatest,
    "collm-ml-1m": CoLLM,
    "collm-ml-1m-text": CoLLMText,
    "mb-retailrocket": RetailRocket,
    "lastfm-hetrec": LastFM,
    "social-ciao": Ciao,
    "mb-taobao": MBTaobao,
    "mb-retailrocket-behaviours": MBRetailRocket,
    "own-events": OwnEvents,
    "synth": Synth,
    "synth-aligned": SynthAligned,
    "synth-stream": SynthStream,
}
