# SPDX-License-Identifier: Apache-2.0
"""A new model is one file and one line, tried in a copy of the tree; the README names them all."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from deltarec.balancing import BALANCERS
from deltarec.embeddings.policies import ASSIGNMENTS
from deltarec.embeddings.tables import DATA_TYPES
from deltarec.models import (
    ALIGNMENT_LOSSES,
    GRAPH_ENCODERS,
    PAIR_MODELS,
    SCENARIO_MODULES,
    SCORERS,
    SEQUENCE_ENCODERS,
    TASK_HEADS,
    TEXT_ADAPTORS,
    TRUNKS,
)
from tests.conftest import ROOT
from tests.small_job import CONFIG, write_small_data

DUMMY = '''# SPDX-License-Identifier: Apache-2.0
"""A trunk that scales its inputs."""

from typing import Literal

import torch
from torch import Tensor, nn

from deltarec import config
from deltarec.models.roles import Fields, FieldShapes, Trunk


class DummyTrunk(Trunk):
    """`scale · [fields; dense]`."""

    class Config(config.Config):
        """Options of the dummy trunk."""

        name: Literal["dummy"]
        scale: float = 1.0

    def __init__(self, config: Config, shapes: FieldShapes) -> None:
        super().__init__(config, shapes)
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.output_dim = shapes.width

    def forward(self, fields: Fields) -> Tensor:
        return self.scale * fields.flat()
'''


def test_the_readme_names_every_member():
    text = (ROOT / "README.md").read_text()
    rows = text[text.index("## The pieces") : text.index("## The tree")]
    registries = (SEQUENCE_ENCODERS, TRUNKS, SCENARIO_MODULES, TASK_HEADS, PAIR_MODELS)
    registries += (TEXT_ADAPTORS, GRAPH_ENCODERS, BALANCERS, DATA_TYPES, ASSIGNMENTS)
    registries += (ALIGNMENT_LOSSES, SCORERS)
    members = {name for registry in registries for name in registry}
    assert set(re.findall(r"`(\w+)`", rows)) == members


def test_a_trunk_is_one_file_and_one_line(tmp_path: Path):
    source = tmp_path / "pipeline"
    shutil.copytree(
        ROOT / "pipeline", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    models = source / "deltarec/models"
    (models / "dummy.py").write_text(DUMMY)
    registry = (models / "__init__.py").read_text()
    for before, line in (
        ("from deltarec.models.mlp import", "from deltarec.models.dummy import DummyTrunk\n"),
        ('    "mlp": MLPTrunk,', '    "dummy": DummyTrunk,\n'),
    ):
        assert registry.count(before) == 1
        registry = registry.replace(before, line + before)
    (models / "__init__.py").write_text(registry)

    write_small_data(tmp_path / "data")
    job = {
        **CONFIG,
        "data": {**CONFIG["data"], "source": str(tmp_path / "data")},
        "model": {**CONFIG["model"], "trunk": {"name": "dummy", "scale": 0.5}},
        "train": {**CONFIG["train"], "max_steps": 3},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    run = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deltarec.cli", "train"),
            *("--config", tmp_path / "job.yaml", "--run-dir", run),
        ],
        env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT / 'kernels'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 3
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["trunk"] == {"name": "dummy", "scale": 0.5}
