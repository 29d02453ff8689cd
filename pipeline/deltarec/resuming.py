# SPDX-License-Identifier: Apache-2.0
"""Whether a job may go on in a run folder that has a checkpoint."""

import re
from pathlib import Path

from deltarec import config as configuration
from deltarec.job import Job

MAY_CHANGE = re.compile(
    r"""
    data\.(source|prepare|train|valid|test|events|slices|on_bad_file|reader\.prefetch)(\..*)?
    | stream(\..*)?
    | tasks\.[^.]+\.(metrics|ranking)(\..*)?
    | embedding(\.tables\.[^.]+)?\.sharding
    | train\.(epochs|max_steps|eval_batch_size|evaluate_every|log_every|hang_seconds|pipeline)
    | train\.(checkpoint|early_stopping|profile)(\..*)?
    """,
    re.VERBOSE,
)
"""Keys that say how long, where and how watched, not what is trained. Training data are compared
by what they hold."""


def require_same_job(run: Path, job: Job) -> None:
    """Find out whether the run that a folder has is of this job.

    Args:
        run: the folder; without config.yaml nothing is known.
        job: that is to go on.

    Raises:
        ValueError: it is of another one, with the keys that differ.
    """
    saved = run / "config.yaml"
    if not saved.is_file():
        return
    found = configuration.differences(configuration.load(Job, saved), job)
    found = {key: values for key, values in found.items() if not MAY_CHANGE.fullmatch(key)}
    if found:
        raise ValueError(
            f"{run} has a run of another configuration ({configuration.describe(found)}); train "
            "into a new folder, by train.warm_start from its weights if they are wanted, or remove "
            "this one"
        )
