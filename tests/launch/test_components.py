# SPDX-License-Identifier: Apache-2.0
"""The components as values, and what each scheduler makes of them, without the scheduler."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.runner import get_runner
from torchx.specs import AppDef, RetryPolicy, VolumeMount, macros
from torchx.specs.finder import get_component

from tests.conftest import ROOT

COMPONENTS = f"{ROOT}/launch/components.py"
TRAIN, PREDICT, SWEEP, BENCH = (
    get_component(f"{COMPONENTS}:{name}").fn for name in ("train", "predict", "sweep", "bench")
)
TORCHX = str(Path(sys.executable).with_name("torchx"))


def command(app: AppDef) -> str:
    return app.roles[0].args[-1]


def test_the_overrides_and_the_run_folder_reach_the_verb():
    app = TRAIN("train.seed=3", "a.b=[1, 2]", config="job.yaml", run_dir="runs/x", nproc=2)
    assert "-m deltarec.cli train --config job.yaml --run-dir runs/x" in command(app)
    assert "--set train.seed=3 --set 'a.b=[1, 2]'" in command(app)


def test_a_retry_finds_the_run_folder_again():
    app = TRAIN(config="configs/job.yaml")
    assert f"--run-dir 'runs/job-{macros.app_id}'" in command(app), "the id survives a retry"
    assert app.roles[0].max_retries == 3
    assert app.roles[0].retry_policy == RetryPolicy.APPLICATION, "all ranks start again together"


def test_what_predict_is_told_reaches_the_verb():
    app = PREDICT("user id", "item", run_dir="runs/x")
    assert "-m deltarec.cli predict --run-dir runs/x --keys 'user id' item" in command(app)
    for option in ("--source", "--files", "--checkpoint", "--output"):
        assert option not in command(app)
    app = PREDICT(
        "id", run_dir="r", source="s3://b", files=["a", "b/*"], checkpoint="best", output="out"
    )
    assert "--source s3://b --checkpoint best --output out --files a 'b/*'" in command(app)


def test_a_benchmark_is_one_process():
    app = BENCH("--rows", "10", name="reader", cpu=4, gpu=1, memory_mb=100)
    [role] = app.roles
    assert (role.entrypoint, role.num_replicas) == ("python", 1)
    assert role.args == ["-m", "deltarec.cli", "bench", "reader", "--rows", "10"]
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (4, 1, 100)


def test_a_sweep_is_one_machine_that_finds_its_folder_again():
    app = SWEEP("--grid", "a.b=[1, 2]", config="j.yaml", run_dir="runs/s", cpu=8, memory_mb=100)
    [role] = app.roles
    assert (role.entrypoint, role.num_replicas, role.max_retries) == ("python", 1, 3)
    words = ["--config", "j.yaml", "--run-dir", "runs/s", "--grid", "a.b=[1, 2]"]
    assert role.args == ["-m", "deltarec.cli", "sweep", *words]
    assert (role.resource.cpu, role.resource.memMB) == (8, 100)


@pytest.mark.parametrize("component", [TRAIN, PREDICT])
def test_processes_nodes_and_resources(component: Any):
    where = {"config": "job.yaml"} if component is TRAIN else {"run_dir": "runs/x"}
    app = component(**where, nodes=4, nproc=8, cpu=12, gpu=1, memory_mb=100_000, port=7000)
    [role] = app.roles
    assert role.num_replicas == 4
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (96, 8, 800_000)
    assert "--nnodes 4 --nproc_per_node 8" in role.args[-1]
    assert ":7000" in role.args[-1], "several nodes meet at the first one"


def test_one_node_meets_on_a_free_port():
    assert "--rdzv_endpoint localhost:0" in command(TRAIN(config="job.yaml", nproc=2))


@pytest.mark.parametrize(
    ("component", "where"),
    [
        (TRAIN, {"config": "job.yaml"}),
        (PREDICT, {"run_dir": "x"}),
        (SWEEP, {"config": "job.yaml", "run_dir": "x"}),
        (BENCH, {"name": "reader"}),
    ],
)
def test_this_python_and_these_sources_unless_an_image_has_them(
    component: Any, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    here = component(**where, env={"A": "b"}).roles[0]
    assert here.env["PATH"].startswith(str(Path(sys.executable).parent))
    assert here.env["PYTHONPATH"] == f"{ROOT}/pipeline{os.pathsep}{ROOT}/kernels"
    mounts = ["type=volume", "src=claim", "dst=/runs"]
    there = component(**where, image="registry/deltarec:1", mounts=mounts, env={"A": "b"}).roles[0]
    assert there.image == "registry/deltarec:1"
    assert there.mounts == [VolumeMount(src="claim", dst_path="/runs")]
    assert there.env["A"] == here.env["A"] == "b" and "PATH" not in there.env


def sent(app: AppDef, scheduler: str) -> Any:
    """What would be sent to the scheduler."""
    with get_runner("test") as runner:
        return runner.dryrun(app, scheduler, {"queue": "default"})


def dry_run(scheduler: str, **options: Any) -> Any:
    """Of training on two nodes of two processes."""
    return sent(TRAIN(config="job.yaml", nodes=2, nproc=2, **options), scheduler)


@pytest.mark.filterwarnings("ignore:.*Volcano")
def test_the_script_of_a_sweep_for_slurm():
    """One task with all its cores, which a requeue starts again in the same folder."""
    words = ["--grid", "model.heads.name=[mmoe,ple]", "--seeds", "5", "--jobs", "8"]
    app = SWEEP(*words, config="job.yaml", run_dir="runs/s", cpu=32, memory_mb=64_000)
    script = str(sent(app, "slurm"))
    [job] = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert "hetjob" not in script
    for option in ("requeue", "ntasks-per-node=1", "cpus-per-task=32", "mem=64000"):
        assert f"--{option}" in job
    assert "python -m deltarec.cli sweep --config job.yaml --run-dir runs/s --grid" in script
    assert "'model.heads.name=[mmoe,ple]'" in script.replace("'\"'\"'", "'")
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


@pytest.mark.filterwarnings("ignore:.*Volcano")
def test_the_script_for_slurm():
    script = str(dry_run("slurm", cpu=3, gpu=1, memory_mb=1000, retries=5, env={"A": "b"}))
    jobs = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert len(jobs) == 2 and script.count("#SBATCH hetjob") == 1
    for job in jobs:
        for option in ("requeue", "ntasks-per-node=1", "cpus-per-task=6", "gpus-per-task=2"):
            assert f"--{option}" in job
    assert "export TORCHX_MAX_RETRIES=5" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script
    assert script.count("--rdzv_endpoint ${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500") == 2
    assert script.count("--nnodes 2 --nproc_per_node 2") == 2
    assert script.count(",A=b") == script.count("--kill-on-bad-exit=1") == 2
    assert 'runs/job-\'"$SLURM_JOB_ID"' in script.replace("'\"'\"'", ""), "a requeue keeps the id"


@pytest.mark.filterwarnings("ignore:.*Volcano")
def test_the_manifest_for_kubernetes():
    pytest.importorskip("kubernetes", reason="TorchX needs the package for its manifest")
    job = yaml.safe_load(
        str(
            dry_run(
                "kubernetes",
                image="registry/deltarec:1",
                run_dir="/runs/x",
                cpu=3,
                gpu=1,
                memory_mb=4096,
                retries=5,
                mounts=["type=volume", "src=claim", "dst=/runs"],
                env={"A": "b"},
            ).request
        )
    )
    assert (job["kind"], job["spec"]["schedulerName"]) == ("Job", "volcano")
    assert job["spec"]["maxRetry"] == 5
    tasks = job["spec"]["tasks"]
    assert [task["replicas"] for task in tasks] == [1, 1]
    first, second = (task["template"]["spec"]["containers"][0] for task in tasks)
    assert "--rdzv_endpoint ${TORCHX_RANK0_HOST:=localhost}:29500" in first["command"][-1]
    assert "--rdzv_endpoint ${VC_CLI_0_HOSTS:=localhost}:29500" in second["command"][-1]
    for task, container in zip(tasks, (first, second), strict=True):
        assert {"action": "RestartJob", "event": "PodFailed"} in task["policies"]
        assert "--nnodes 2 --nproc_per_node 2" in container["command"][-1]
        assert container["image"] == "registry/deltarec:1"
        assert container["resources"]["limits"] == {
            "cpu": "6000m",
            "memory": "8192M",
            "nvidia.com/gpu": "2",
        }
        assert {"name": "A", "value": "b"} in container["env"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in task["template"]["spec"]["volumes"]}
        assert volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"] == "claim"


def test_the_command_line_of_torchx_and_its_defaults():
    words = [TORCHX, "run", "--dryrun", "launch/components.py:train", "--config", "job.yaml"]
    words += ["--nodes", "2", "--mounts", "type=bind,src=/a,dst=/b", "--env", "A=b,C=d", "a.b=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deltarec.cli train" in done.stdout
    for expected in ("'A': 'b'", "'C': 'd'", "'dst_path': '/b'", "local_cwd://"):
        assert expected in done.stdout
