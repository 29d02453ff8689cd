# SPDX-License-Identifier: Apache-2.0
"""A controller that works by tool calls alone: it prepares, plans, trains, compares and predicts.

It climbs: it trains a job at one learning rate of the tables and at both neighbours, looks at the
comparison, moves to the best and goes on from there until no neighbour is better. A language model
in its place would see the same tools (`deltarec schema`) and the same answers, and could choose
what else to change. It chooses by validation data; the test data are read once, at the end.

    python docs/controller.py data/adult /tmp/controlled
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[1] / "configs/adult_demo.yaml"
TASK, METRIC, FACTOR = "income", "auc", 4.0
Call = Callable[..., dict[str, Any]]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool; its answer, or `{"error": …}`."""
    text = json.dumps({"name": name, "arguments": arguments})
    done = subprocess.run(["deltarec", "call", text], stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def control(call: Call, source: Path, folder: Path, steps: int = 400) -> dict[str, Any]:
    """Prepare the data, find a learning rate, and score the test data.

    Args:
        call: calls a tool by its name.
        source: folder of the raw files of UCI Adult.
        folder: for everything that is made.
        steps: of one training.

    Returns:
        What was tried, by learning rate; the rate that was chosen, and its test metric; where the
        predictions are.

    Raises:
        RuntimeError: a tool has answered with an error.
    """

    def ask(name: str, **arguments: Any) -> dict[str, Any]:
        answer = call(name, **arguments)
        if "error" in answer:
            raise RuntimeError(f"{name}: {'; '.join(answer['error']['messages'])}")
        return answer

    data = ask("prepare", dataset="adult", source=str(source), target=str(folder / "data"))
    unread = [f"data.source={data['target']}", "data.prepare=null", "data.test=[]"]
    brief = [f"train.max_steps={steps}", "train.optimizer.schedule.name=constant"]
    job: dict[str, Any] = {"config": str(CONFIG), "set": [*unread, *brief]}
    planned = ask("plan", **job, cpu=True, gpus_per_node=1, hbm_gb=4)
    print(f"the tables need {planned['ranks'][0]['bytes'] / 1e6:.1f} MB", file=sys.stderr)

    folders: dict[float, str] = {}
    tried: dict[float, float] = {}
    best = 0.005
    while True:
        for rate in (best, best * FACTOR, best / FACTOR):
            if rate not in folders:
                options = [*job["set"], f"embedding.optimizer.lr={rate}"]
                run = ask("train", **job | {"set": options}, run_dir=str(folder / f"lr-{rate:g}"))
                folders[rate] = run["run_dir"]
        runs = [f"{rate:g}={run_dir}" for rate, run_dir in folders.items()]
        found = ask("compare", runs=runs, metric=f"{TASK}/{METRIC}")
        for rate in folders:
            cells = found["variants"][f"{rate:g}"][found["split"]][TASK]["all"]
            tried[rate] = cells[METRIC]["mean"]
        chosen = max(tried, key=lambda rate: tried[rate])
        print(f"{len(tried)} tried, best {chosen:g}: {tried[chosen]:.4f}", file=sys.stderr)
        if chosen == best:
            break
        best = chosen

    test = ask("evaluate", run_dir=folders[best], set=["data.test=[test]"])
    scores = ask(
        "predict", run_dir=folders[best], keys=[TASK], files=["test"], source=data["target"]
    )
    return {
        "tried": tried,
        "chosen": best,
        "test": test["metrics"][TASK]["all"][METRIC],
        "predictions": scores["output"],
    }


if __name__ == "__main__":
    print(json.dumps(control(call, Path(sys.argv[1]), Path(sys.argv[2])), indent=2))
