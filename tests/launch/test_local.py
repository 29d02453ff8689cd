# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

from tests.launch.jobs import torchx_train, write_job


def test_two_nodes_of_two_processes_on_this_machine(tmp_path: Path):
    done = torchx_train("local_cwd", write_job(tmp_path, epochs=1), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 20 and result["samples"] == 2000
    assert result["valid"]["click"]["all"]["n"] == 500
    plan = (tmp_path / "run" / "plan.txt").read_text()
    assert "rank 3" in plan and "rank 4" not in plan
