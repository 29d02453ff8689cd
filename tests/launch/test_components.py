# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.specs.finder import get_component

from tests.conftest import ROOT

COMPONENT = get_component(f"{ROOT}/launch/components.py:train").fn


def command(app) -> str:
    return app.roles[0].args[-1]


def test_the_overrides_and_the_run_folder_reach_the_verb():
    app = COMPONENT("train.seed=3", "a.b=[1, 2]", config="job.yaml", run_dir="runs/x", nproc=2)
    assert "-m deltarec.cli train --config job.yaml --run-dir runs/x" in command(app)
    assert "--set train.seed=3 --set 'a.b=[1, 2]'" in command(app)


def test_processes_nodes_and_resources():
    role = COMPONENT(config="job.yaml", nodes=4, nproc=8, cpu=12, gpu=1, memory_mb=100_000).roles[0]
    assert role.num_replicas == 4
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (96, 8, 800_000)
    assert "--nnodes 4 --nproc_per_node 8" in role.args[-1]
    assert ":29500" in role.args[-1], "several nodes meet at the first one"


def test_one_node_meets_on_a_free_port():
    assert "--rdzv_endpoint localhost:0" in command(COMPONENT(config="job.yaml", nproc=2))


def test_this_python_and_these_sources_unless_an_image_has_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    here = COMPONENT(config="job.yaml").roles[0]
    assert here.env["PATH"].startswith(str(Path(sys.executable).parent))
    assert here.env["PYTHONPATH"] == f"{ROOT}/pipeline{os.pathsep}{ROOT}/kernels"
    there = COMPONENT(config="job.yaml", image="registry/deltarec:1").roles[0]
    assert there.image == "registry/deltarec:1"
    assert "PATH" not in there.env


@pytest.mark.parametrize("scheduler,nodes", [("local_cwd", "1"), ("slurm", "2")])
def test_the_dry_run_of_a_scheduler(scheduler: str, nodes: str):
    torchx = Path(sys.executable).with_name("torchx")
    done = subprocess.run(
        [
            *(torchx, "run", "--dryrun", "-s", scheduler, "launch/components.py:train"),
            *("--config", "job.yaml", "--nodes", nodes, "--nproc", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "deltarec.cli" in done.stdout
