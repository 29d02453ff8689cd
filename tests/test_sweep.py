# SPDX-License-Identifier: Apache-2.0
"""Sweeps; the runs are stand-ins that take no time, except in the test that says so."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from deltarec.cli import main
from deltarec.comparison import Comparison, Key
from deltarec.comparison_plot import MISSING
from deltarec.grid import baselines, variants
from deltarec.sweep import Launcher, Plan, Run, plan, run_sweep
from tests.small_job import CONFIG, write_small_data

TRAIN = """
import hashlib, json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
seed = int(run.name.removeprefix("seed-"))
(run / "started").open("a").write(f"{time.time()} {os.environ['OMP_NUM_THREADS']}\\n")
while len(list(run.parents[1].glob("*/*/started"))) < int(sys.argv[2]):
    time.sleep(0.05)
if seed in map(int, sys.argv[3:]):
    print("Traceback"), print("deltarec: error: it went wrong"), print("noise"), sys.exit(2)
(run / "checkpoints").mkdir(exist_ok=True)
auc = {"all": {"auc": 0.5 + seed / 100, "n": 9}, "scenario": {}}
(run / "result.json").write_text(json.dumps({
    "steps": 1, "seconds": 1.0, "samples_per_second": 1.0, "peak_memory_bytes": 1,
    "embedding_bytes": {"weights": 1, "optimizer": 1}, "valid": {"click": auc, "buy": auc},
    "config_sha256": hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest(),
}))
"""
AXIS = "model.trunk.dropout=[0.1, 0.2]"


class StandIn(Launcher):
    """Starts a script that leaves what a training run leaves."""

    together = 1
    """A run ends when so many have begun."""
    failing: tuple[int, ...] = ()

    def command(self, run: Run) -> list[str]:
        words = [sys.executable, "-S", "-c", TRAIN, str(run.path), str(self.together)]
        return [*words, *map(str, self.failing)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_small_data(folder / "data")
    config = {**CONFIG, "data": {**CONFIG["data"], "source": str(folder / "data")}}
    (folder / "job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "job.yaml"


def planned(
    job: Path, folder: Path, *axes: str, seeds: int = 2, common: tuple[str, ...] = ()
) -> Plan:
    return plan(variants(job, common, axes or [AXIS], []), seeds, folder, 1, None, False)


def swept(
    job: Path, folder: Path, launcher: Launcher, seeds: int = 2, keep: bool = False
) -> tuple[Comparison, list[str]]:
    """What was found, and what was said."""
    found = variants(job, (), [AXIS], [])
    said: list[str] = []
    whom = baselines(found, None)
    comparison = run_sweep(
        planned(job, folder, seeds=seeds), folder, whom, launcher, keep, said.append
    )
    return comparison, said


def starts(folder: Path) -> dict[str, int]:
    files = sorted(folder.glob("*/seed-*/started"))
    return {f"{f.parts[-3]}/{f.parts[-2]}": len(f.read_text().splitlines()) for f in files}


def test_every_run_has_its_folder_and_is_done_once(job: Path, tmp_path: Path):
    comparison, said = swept(job, tmp_path, StandIn(2, 1, 1))
    assert {label: sorted(runs) for label, runs in comparison.runs.items()} == {
        "dropout=0.1": [3, 4], "dropout=0.2": [3, 4],
    }  # fmt: skip
    assert not comparison.failed
    assert said[0] == f"4 runs of 2 variants in {tmp_path}"
    assert (MISSING in said) != (tmp_path / "plot.png").is_file()
    assert said[-1].startswith("4 of 4 done, click/auc 0.5400 (dropout=0.")
    once = {f"dropout=0.{v}/seed-{s}": 1 for v in (1, 2) for s in (3, 4)}
    assert starts(tmp_path) == once
    again, said = swept(job, tmp_path, StandIn(1, 1, 1))
    assert said[0] == f"4 runs of 2 variants in {tmp_path}, 4 are done"
    assert again.plain() == comparison.plain() and starts(tmp_path) == once
    more, _ = swept(job, tmp_path, StandIn(1, 1, 1), seeds=3)
    assert sorted(more.runs["dropout=0.2"]) == [3, 4, 5]
    assert sum(starts(tmp_path).values()) == 6, "a further seed trains nothing again"
    for name in ("table.md", "table.csv", "sweep.json"):
        assert (tmp_path / name).is_file()


def test_a_run_that_fails_ends_no_sweep_and_is_tried_again(job: Path, tmp_path: Path):
    launcher = StandIn(1, 1, 1)
    launcher.failing = (3,)
    comparison, said = swept(job, tmp_path, launcher)
    why = "failed with exit code 2: deltarec: error: it went wrong"
    assert comparison.failed and comparison.unfinished["dropout=0.1"] == {3: why}
    assert said[-4] == f"1 of 4 done, {why} (dropout=0.1, seed 3)"
    assert why in (tmp_path / "table.md").read_text()
    comparison, said = swept(job, tmp_path, StandIn(1, 1, 1))
    assert said[0].endswith(", 2 are done") and not comparison.failed
    assert "Without a result" not in (tmp_path / "table.md").read_text()


def test_checkpoints_of_finished_runs_go_unless_they_are_to_stay(job: Path, tmp_path: Path):
    for keep in (False, True):
        swept(job, tmp_path / str(keep), StandIn(1, 1, 1), seeds=1, keep=keep)
        assert len(list(tmp_path.glob(f"{keep}/*/*/checkpoints"))) == 2 * keep


def test_runs_go_side_by_side_and_share_the_cores(job: Path, tmp_path: Path):
    launcher = StandIn(2, 1, 7)
    launcher.together = 2  # it would never end if they came one by one
    swept(job, tmp_path, launcher)
    spans = []
    for file in tmp_path.glob("*/*/started"):
        begun, threads = file.read_text().split()
        spans.append((float(begun), file.with_name("result.json").stat().st_mtime))
        assert threads == "7"
    at_work = [sum(a <= moment <= b for a, b in spans) for moment, _ in spans]
    assert len(spans) == 4 and max(at_work) <= 2


def test_threads_and_devices_are_divided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    assert [Launcher.here(*n).threads for n in ((1, 1), (4, 1), (4, 3), (5, 5))] == [24, 6, 2, 1]
    assert "CUDA_VISIBLE_DEVICES" not in Launcher(2, 2, 1).environment(0).keys() - os.environ.keys()
    launcher = Launcher(2, 2, 1, devices=["4", "5", "6", "7"])
    visible = [launcher.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert visible == ["4,5", "6,7"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(ValueError, match="--jobs 2 of 2 processes need 4 GPUs, and there are 3"):
        Launcher.here(2, 2)


def test_a_folder_with_other_runs_is_refused(job: Path, tmp_path: Path):
    swept(job, tmp_path, StandIn(1, 1, 1), seeds=1)
    with pytest.raises(ValueError) as caught:
        planned(job, tmp_path, common=("train.batch_size=50", "data.user=null"))
    assert str(caught.value) == (
        f"{tmp_path}/dropout=0.1/seed-3 has a run of another configuration (data.user is 'user' "
        "there, None here; train.batch_size is 100 there, 50 here); give another --run-dir, or "
        "remove that folder"
    )


def test_a_result_must_be_of_the_configuration_beside_it(job: Path, tmp_path: Path):
    run = planned(job, tmp_path).runs[0]
    swept(job, tmp_path, StandIn(1, 1, 1), seeds=1)
    file = run.path / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "config_sha256": "0"}))
    with pytest.raises(ValueError, match=r"result.json is not of the config.yaml beside it; give"):
        run.result()


def test_a_run_that_was_cut_short_goes_on(job: Path, tmp_path: Path):
    run = planned(job, tmp_path).runs[0]
    swept(job, tmp_path, StandIn(1, 1, 1), seeds=1)
    (run.path / "result.json").unlink()
    assert run.result() is None
    swept(job, tmp_path, StandIn(1, 1, 1), seeds=1)
    assert starts(tmp_path) == {"dropout=0.1/seed-3": 2, "dropout=0.2/seed-3": 1}


def test_one_sweep_at_a_time_in_a_folder(job: Path, tmp_path: Path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another sweep, or a run that it has left, is at wo"):
            swept(job, tmp_path, StandIn(1, 1, 1))
    assert not starts(tmp_path)


def test_told_to_end_it_tells_its_runs(job: Path, tmp_path: Path):
    slow = StandIn(2, 1, 1)
    slow.together = 9

    def end() -> None:
        while len(starts(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        swept(job, tmp_path, slow)
    assert caught.value.code == 75 and time.monotonic() - began < 30
    assert not list(tmp_path.glob("*/*/result.json"))


def test_impossible_variants_refuse_the_sweep_or_are_listed(job: Path, tmp_path: Path):
    found = variants(job, (), ["model.heads.name=[mmoe, pel]"], ["x: train.epochs=0"])
    with pytest.raises(ValueError) as caught:
        plan(found, 1, tmp_path, 1, None, skip_refused=False)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"heads=pel: {job}: model.heads: 'pel' is not known: expected one")
    assert lines[1].startswith(f"x: {job}: train.epochs: got 0: ")
    assert lines[2:] == ["to leave such variants out, add --skip-refused"]
    skipping = plan(found, 1, tmp_path, 1, None, skip_refused=True)
    assert [run.variant.label for run in skipping.runs] == ["heads=mmoe"]
    whom = baselines(found, None)
    comparison = run_sweep(skipping, tmp_path, whom, StandIn(1, 1, 1), False, lambda line: None)
    assert not comparison.failed, "what was refused has not failed"
    assert "| heads=pel | all  | " in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match=r"^no variant is possible: "):
        plan(found[1:], 1, tmp_path, 1, None, skip_refused=True)


def test_processes_must_divide_the_streams(job: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"data.reader.streams is 24, which 5 processes cannot div"
    ):
        plan(variants(job, (), [AXIS], []), 1, tmp_path, 5, None, False)


@pytest.mark.parametrize(
    ("overrides", "metric", "decides"),
    [
        ((), None, ("valid", "click", "auc")),
        (("data.test=[valid]",), None, ("test", "click", "auc")),
        (("train.early_stopping={task: buy, metric: gauc}",), None, ("valid", "buy", "gauc")),
        (("train.early_stopping={metric: logloss}",), None, ("valid", "click", "logloss")),
        ((), "buy/calibration", ("valid", "buy", "calibration")),
    ],
)
def test_what_decides(job: Path, tmp_path: Path, overrides, metric: str | None, decides):
    found = plan(variants(job, overrides, [AXIS], []), 1, tmp_path, 1, metric, False)
    split, task, name = decides
    assert (found.split, found.metric) == (split, Key(task, "all", name))


@pytest.mark.parametrize("metric", ["click", "click/rmse", "like/auc", "click/auc/x"])
def test_a_metric_that_is_not_measured(job: Path, tmp_path: Path, metric: str):
    with pytest.raises(ValueError, match=f"^--metric {metric}: expected one of click/auc, "):
        plan(variants(job, (), [AXIS], []), 1, tmp_path, 1, metric, False)


def test_models_of_one_task_stand_beside_those_of_several(job: Path, tmp_path: Path):
    plain = "model.heads.name=shared_bottom"
    alone = ["all:", f"click alone: tasks.buy=null {plain}"]
    found = plan(variants(job, (), [], alone), 1, tmp_path, 1, "buy/auc", False)
    assert found.metric == Key("buy", "all", "auc")


def test_without_evaluation_nothing_can_be_compared(job: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^nothing to compare by: set data.test, or data.valid"):
        planned(job, tmp_path, common=("data.valid=[]",))


def test_the_command_trains(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With a real run."""
    words = f"sweep --config {job} --run-dir {tmp_path} --seeds 1 --set train.max_steps=4 --json"
    variant = "good: model.heads.name=shared_bottom"
    assert main([*words.split(), "--variant", variant]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    good, run = answer["variants"]["good"], tmp_path / "good/seed-3"
    assert answer["folder"] == str(tmp_path) and good["seeds"] == [3]
    assert good["costs"]["steps"]["mean"] == 4 and err.count("1 of 1 done, click/auc 0.") == 1
    assert not (run / "checkpoints").exists() and (run / "metrics.jsonl").is_file()
    measured = json.loads((run / "result.json").read_text())["valid"]["buy"]["scenario"]["app"]
    assert good["valid"]["buy"]["app"]["auc"]["mean"] == measured["auc"]


def test_wrong_input_takes_one_line(job: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sweep", "--config", str(job), "--grid", "a.b=1"]) == 2
    assert capsys.readouterr().err.startswith(
        "deltarec: error: --grid a.b=1: expected path.to.key="
    )
