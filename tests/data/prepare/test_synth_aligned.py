# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from deltarec.data.prepare import SynthAligned
from deltarec.data.prepare.dataset import prepare


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("synth") / "out"
    prepare(SynthAligned(rows=10_000, seed=1), folder, folder)
    about = json.loads((folder / "dataset.json").read_text())
    assert about["rows"] == {"train": 8000, "valid": 1000, "test": 1000}
    assert about["best"]["click"]["auc"] == pytest.approx(0.8)
    return [r for split in about["rows"] for r in pq.read_table(folder / split).to_pylist()]


def test_only_the_alignment_tells(rows: list[dict[str, Any]]):
    """The target's clicks and exposures are alike for all labels; those that meet are not."""
    labels = [row["click"] for row in rows]

    def auc(score: Any) -> float:
        return float(roc_auc_score(labels, [score(row) for row in rows]))

    together = auc(
        lambda row: sum(
            beside.count(row["item"])
            for click, beside in zip(row["clicks"], row["shown"], strict=True)
            if click == row["item"]
        )
    )
    assert together == pytest.approx(0.8, abs=0.015)
    for name in ("clicks", "recent_shown"):
        assert auc(lambda row, name=name: row[name].count(row["item"])) == pytest.approx(
            0.5, abs=0.015
        )
        assert auc(lambda row, name=name: row[name].index(row["item"])) == pytest.approx(
            0.5, abs=0.015
        )


def test_each_click_has_what_stands_around_it(rows: list[dict[str, Any]]):
    for row in rows[:200]:
        assert set(Counter(row["clicks"]).values()) == {2} and len(row["clicks"]) == 8
        assert [len(beside) for beside in row["shown"]] == [6] * 8
        assert list(chain(*row["shown"])) == row["recent_shown"]
        assert row["item"] in row["clicks"]


def test_rows_do_not_depend_on_how_many_there_are(tmp_path: Path):
    tables = []
    for rows in (100, 9000):
        prepare(SynthAligned(rows=rows), tmp_path, tmp_path / str(rows))
        tables.append(pq.read_table(tmp_path / str(rows) / "train")[:80])
    assert tables[0].equals(tables[1])


def test_more_items_of_a_user_than_there_are():
    with pytest.raises(ValueError, match="user_items 6: more than the 5 of num_items"):
        SynthAligned(num_items=5, user_items=6)
