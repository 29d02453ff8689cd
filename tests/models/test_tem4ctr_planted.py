# SPDX-License-Identifier: Apache-2.0
"""Where only the alignment carries the signal, tem4ctr finds it and nothing else does."""

from pathlib import Path

import pytest

from deltarec.config import load
from deltarec.data.prepare import SynthAligned
from deltarec.data.prepare.dataset import prepare
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "out"
    prepare(SynthAligned(rows=8_000), folder, folder)
    return folder


@pytest.mark.parametrize(
    ("encoder", "low", "high"),
    [
        ("{name: tem4ctr, hidden: [32, 16]}", 0.7, 0.85),
        ("{name: tem4ctr, hidden: [32, 16], alignment: false}", 0.45, 0.55),
        ("{name: din, hidden: [32, 16]}", 0.45, 0.55),
    ],
)
def test_auc(planted: Path, tmp_path: Path, encoder: str, low: float, high: float):
    overrides = [f"model.sequence={encoder}", f"data.source={planted}", "data.prepare=null"]
    overrides += ["train.epochs=2", "train.early_stopping=null", "data.valid=[]"]
    job = load(Job, ROOT / "configs/synth_aligned.yaml", overrides)
    with process_group(threads=1) as device:
        result = Trainer(job, RunFolder(tmp_path), device).fit()
    assert low < result["test"]["click"]["all"]["auc"] < high
