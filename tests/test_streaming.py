# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from deltarec.comparison import Key, flatten
from deltarec.data.partitions import Partition, StreamConfig, following, partitions
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.streaming import StreamTrainer
from deltarec.sweep import _decides
from tests.conftest import run_ranks
from tests.end_to_end.ranks import assert_same_end, logged
from tests.stream_job import ROWS, stream_job, write_stream


def fit(run: Path, job: Job, watch: bool = False) -> dict[str, Any]:
    return StreamTrainer(job, RunFolder(run), torch.device("cpu"), watch).fit()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stream(folder, 5)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The run folder of an undisturbed job of one process."""
    run_ranks(1, fit, data / "whole", stream_job(data))
    return data / "whole"


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_each_partition_is_scored_before_it_is_trained_on(data: Path, whole: Path):
    found = result(whole)
    names = ["date=2026-01-01/hour=8", "date=2026-01-01/hour=9", "date=2026-01-01/hour=10"]
    names += ["date=2026-01-02/hour=8", "date=2026-01-02/hour=9"]
    assert [p["partition"] for p in found["partitions"]] == names[1:], "the first one warms up"
    assert [p["step"] for p in found["partitions"]] == [3, 6, 9, 12]
    assert found["stream"]["click"]["all"]["n"] == 4 * ROWS
    assert found["samples"] == 5 * ROWS and found["steps"] == 15
    by_seen = found["stream"]["click"]["scenario"]
    assert sum(by_seen[f"seen {bucket}"]["n"] for bucket in ("<1", "1-2", "3+")) == 4 * ROWS
    # What a job that ends before a partition makes of it.
    cut = stream_job(data, train__max_steps=9, data__test=[names[3]])
    [ended] = run_ranks(1, fit, data / "cut", cut)
    assert ended["test"]["click"] == found["partitions"][2]["click"]
    assert ended["test"]["click"]["all"] != found["partitions"][1]["click"]["all"]


def test_streams_are_compared_by_their_totals(data: Path, whole: Path):
    split, key = _decides([stream_job(data)], None)
    assert (split, key) == ("stream", Key("click", "all", "auc"))
    found = result(whole)
    assert flatten(found, split)[key] == found["stream"]["click"]["all"]["auc"]


def test_resumes_in_the_middle_of_a_partition(data: Path, whole: Path):
    run_ranks(1, fit, data / "resumed", stream_job(data, train__max_steps=7))
    run_ranks(1, fit, data / "resumed", stream_job(data))
    assert_same_end(data / "resumed", whole)


def test_the_plain_pipeline_goes_on_after_a_partition(data: Path, whole: Path):
    run_ranks(1, fit, data / "plain", stream_job(data, train__pipeline="plain"))
    assert result(data / "plain")["stream"] == result(whole)["stream"]


def test_does_not_depend_on_the_number_of_processes(data: Path):
    """Without batch normalisation: a bias before it has a gradient of rounding errors alone, of
    which Adam makes whole steps, and the running means of evaluation come after them.
    """
    job = stream_job(data, model__trunk={"name": "mlp", "hidden": [16], "dropout": 0.2})
    for ranks in (1, 3):
        run_ranks(ranks, fit, data / f"on_{ranks}", job)
    mine, alone = logged(data / "on_3"), logged(data / "on_1")
    assert len(mine) == len(alone)
    for ours, theirs in zip(mine, alone, strict=True):
        assert {k: v for k, v in ours.items() if not isinstance(v, float)} == {
            k: v for k, v in theirs.items() if not isinstance(v, float)
        }
        for name in ("loss/click", "logloss", "calibration"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_partitions_are_in_the_order_of_time(tmp_path: Path):
    names = ["date=2026-01-09/hour=9", "date=2026-01-09/hour=10", "date=2026-02-01/hour=0"]
    for name in names[::-1]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "part.parquet").touch()
    (tmp_path / names[1] / "_SUCCESS").touch()
    found = partitions(str(tmp_path), ["date=*"], "_SUCCESS")
    assert found == [Partition(name, name == names[1]) for name in names]
    assert following(found, set(), StreamConfig()) is None, "the first one is not whole"
    every = partitions(str(tmp_path), ["."], None)
    assert following(every, {names[0]}, StreamConfig()) == Partition(names[1], True)
    with pytest.raises(ValueError, match=r"hour=9: this partition appeared after date=2026-02"):
        following(every, {names[2]}, StreamConfig())
    assert following(every, {names[2]}, StreamConfig(on_late="train")) == every[0]
    (tmp_path / "stray.parquet").touch()
    with pytest.raises(ValueError, match=r"stray\.parquet: is in no folder by time"):
        partitions(str(tmp_path), ["."], None)


UNWEIGHTED = {"kind": "ids", "column": "tags", "table": "scores"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__valid": ["valid"]}, "data.valid: leave it out"),
        ({"train__epochs": 2}, "a stream is trained on once"),
        ({"train__optimizer__schedule": {"name": "cosine"}}, "which a stream does not know"),
        (
            {"balance": {"name": "pmtrec"}, "features__scores": UNWEIGHTED},
            "balance: goes by the num",
        ),
        ({"balance": {"name": "rmtl", "gamma": 0.0}}, "balance: goes by the number of all steps"),
        ({"data__slices": {"seen": [3, 3]}}, "slices.seen: bounds must ascend"),
    ],
)
def test_refuses_what_a_stream_cannot_be(tmp_path: Path, overrides: Any, message: str):
    with pytest.raises(ValueError, match=message):
        stream_job(tmp_path, **overrides)


def test_nothing_is_whole(tmp_path: Path, one_process: torch.device):
    folders = write_stream(tmp_path, 2, marker=False)
    with pytest.raises(ValueError, match=r"no partition of date=\* .* is whole: each needs a file"):
        fit(tmp_path / "run", stream_job(tmp_path))
    table = pq.read_table(folders[0] / "0.parquet")
    pq.write_table(table.slice(0, 0), folders[0] / "0.parquet")  # an hour without an event
    for folder in folders:
        (folder / "_SUCCESS").touch()
    found = fit(tmp_path / "run", stream_job(tmp_path))
    assert found["steps"] == 3 and len(found["partitions"]) == 1
