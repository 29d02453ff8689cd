# SPDX-License-Identifier: Apache-2.0
from deltarec.verbs.bench import BENCH
from deltarec.verbs.compare import COMPARE
from deltarec.verbs.doctor import DOCTOR
from deltarec.verbs.evaluate import EVALUATE
from deltarec.verbs.plan import PLAN
from deltarec.verbs.predict import PREDICT
from deltarec.verbs.prepare import PREPARE
from deltarec.verbs.schema import CALL, SCHEMA
from deltarec.verbs.sweep import SWEEP
from deltarec.verbs.text import AUGMENT, ENCODE, SCORE, TOKENISE
from deltarec.verbs.train import TRAIN
from deltarec.verbs.verb import Verb

VERBS: dict[str, Verb] = {
    "doctor": DOCTOR,
    "prepare": PREPARE,
    "plan": PLAN,
    "train": TRAIN,
    "sweep": SWEEP,
    "compare": COMPARE,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "text augment": AUGMENT,
    "text encode": ENCODE,
    "text tokenise": TOKENISE,
    "text score": SCORE,
    "bench": BENCH,
    "schema": SCHEMA,
    "call": CALL,
}
GROUPS = {"text": "Features by language models, as ordinary Parquet tables."}
"""The first words of verbs of two."""
