# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_ranks
from tests.distributed.test_any_number_of_processes import assert_equal_losses, train
from tests.small_job import AROUND, small_job, write_small_data


@pytest.mark.parametrize(
    ("encoder", "scenario"),
    [
        ("din", {"name": "towers", "hidden": [8], "norm": "layer", "dropout": 0.2}),
        ("tem4ctr", {"name": "hamur", "rank": 4, "bottleneck": 8, "hyper": [8]}),
    ],
)
def test_layers_that_see_other_rows_than_the_batch_do_not_depend_on_ranks(
    tmp_path: Path, encoder: str, scenario: dict[str, Any]
):
    """Dropout and norms by scenario; both over a sequence's items, and what is aligned with them.

    Ranks have unequal shares. With ids that samples go without, and with clipping and accumulation,
    which act on gradients that ranks have reduced.
    """
    write_small_data(tmp_path)
    job = small_job(
        tmp_path,
        features__around=AROUND,
        features__item__dropout=0.3,
        model__sequence={"name": encoder, "hidden": [8], "norm": "batch", "dropout": 0.2},
        model__scenario=scenario,
        train__batch_size=37,
        train__max_steps=11,
        train__optimizer={
            "dense": {"name": "sgd", "lr": 0.5},
            "accumulate": 3,
            "clip_norm": 0.5,
        },
    )
    runs = [run_ranks(ranks, train, tmp_path, job)[0] for ranks in (1, 3)]
    assert len(runs[0]["losses"]) == 11
    assert_equal_losses(runs, tolerance=1e-4)
