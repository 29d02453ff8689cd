# SPDX-License-Identifier: Apache-2.0
"""The command as users have it: what it prints where, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deltarec.cli import main
from deltarec.data.prepare import DATASETS
from tests.small_job import CONFIG, write_small_data

JOB = """
data:
  source: {source}
  train: [shop-*/train]
  test: [shop-*/test/*.parquet]
  user: customer
features:
  customer: {{kind: id, table: customers, transforms: [{{name: hash, buckets: 500}}]}}
  region: {{kind: id, on_invalid: default, transforms: [{{name: hash, buckets: 20}}]}}
  article: {{kind: id, column: article_no, on_invalid: clip}}
  basket: {{kind: ids, table: article, transforms: [{{name: hash, buckets: 60}}]}}
  visits: {{kind: sequence, table: words, transforms: [{{name: vocabulary, values: [home, sale]}}]}}
  age: {{kind: dense, on_invalid: default, transforms: [{{name: standardise, mean: 40, std: 20}}]}}
  price: {{kind: dense, transforms: [{{name: log}}]}}
tasks:
  bought: {{}}
  returned: {{given: bought}}
  rating: {{kind: regression, label: stars}}
scenario: {{column: channel, values: [web, app]}}
embedding:
  dim: 4
  init_std: 0.1
  optimizer: {{name: rowwise_adagrad, lr: 0.3}}
  tables:
    customers: {{rows: 500, sharding: row_wise}}
    region: {{rows: 20}}
    article: {{rows: 60}}
    words: {{rows: 3}}
model:
  trunk: {{name: mlp, hidden: [16]}}
  heads: {{name: mmoe, experts: 2, hidden: [8], tower: [4]}}
train:
  batch_size: 64
  epochs: 3
  optimizer: {{dense: {{name: adam, lr: 1e-2}}}}
"""

ONE_THREAD = ["--threads", "1"]


def write_csv(path: Path, seed: int, rows: int = 1500) -> None:
    """An export as shops have it: words, gaps, yes and no, lists in a cell."""
    random = np.random.default_rng(seed)
    article = random.integers(0, 60, rows)
    age = random.integers(18, 80, rows)
    bought = random.random(rows) < np.where(article % 2, 0.8, 0.2)
    frame = pd.DataFrame(
        {
            "date": "2026-11-01",
            "customer": [f"{n}@example.org" for n in random.integers(0, 300, rows)],
            "region": random.choice(["North", "South", "Überall", ""], rows),
            "article_no": article,
            "basket": ["|".join(random.choice(list("abcdef"), n)) for n in article % 4],
            "visits": ["|".join(random.choice(["home", "sale", "x"], 3)) for _ in range(rows)],
            "age": np.where(random.random(rows) < 0.1, "", age.astype(str)),
            "price": np.round(random.gamma(2.0, 20.0, rows), 2),
            "stars": np.round(random.random(rows), 1),
            "channel": random.choice(["web", "app"], rows),
            "bought": np.where(bought, "True", "False"),
            "returned": np.where(bought, random.choice(["True", "False"], rows), ""),
        }
    )
    frame.to_csv(path, index=False)


def to_parquet(csv: Path, target: Path) -> None:
    """What anyone would write with pandas."""
    frame = pd.read_csv(csv)
    for column in ("basket", "visits"):
        frame[column] = frame[column].fillna("").str.split("|")
    frame["channel"] = frame["channel"].astype("category")
    target.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(target)


def deltarec(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deltarec.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data in Parquet and a job."""
    folder = tmp_path_factory.mktemp("shop")
    for seed, split in enumerate(("train", "test")):
        write_csv(folder / f"{split}.csv", seed)
        to_parquet(folder / f"{split}.csv", folder / f"data/shop-1/{split}/0.parquet")
    (folder / "job.yaml").write_text(JOB.format(source=folder / "data"))
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | int | Path) -> str:
    """The one line that a wrong input gives."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("deltarec: error: ") and err.count("\n") == 1
    return err.removeprefix("deltarec: error: ").rstrip("\n")


def test_a_users_own_data_from_csv_to_metrics(shop: Path, capsys: pytest.CaptureFixture[str]):
    run = shop / "run"
    job = ["--config", shop / "job.yaml", "--run-dir", run]
    trained = deltarec("train", *job, "--nproc", "2", "--json")
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    result = json.loads((run / "result.json").read_text())
    assert json.loads(trained.stdout) == {"run_dir": str(run), **result}
    assert result["steps"] == 3 * 24 and result["samples"] == 4500
    bought = result["test"]["bought"]
    assert bought["all"]["auc"] > 0.7 and bought["all"]["gauc"] is not None
    assert set(bought["scenario"]) == {"web", "app"}
    assert result["test"]["returned"]["all"]["n"] < bought["all"]["n"] == 1500
    assert result["test"]["rating"]["all"]["rmse"] < 1
    assert result["invalid"].keys() == {"age.default", "region.default"}

    assert main(["evaluate", "--run-dir", str(run), "--json", *ONE_THREAD]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["step"], answer["split"]) == (72, "test")
    for task, expected in result["test"].items():  # by one process: another order of rounding
        found = answer["metrics"][task]
        assert found["all"] == pytest.approx(expected["all"], rel=1e-5)
        for name, metrics in expected["scenario"].items():
            assert found["scenario"][name] == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "features.age.column=years",
            "0.parquet: column 'years' is missing; the file has date, customer, region",
        ),
        (
            "features.region.transforms=[]",
            "string; features.region needs an integer, or a transform that makes ids (hash, ",
        ),
        ("features.basket.kind=sequences", "features.basket: 'sequences' is not known: expected"),
        ("features.price.kind=ids", "features.price: there is no table 'price'; declare"),
        ("tasks.bought.label=channel", "0.parquet: column 'channel' is dictionary<values="),
        ("scenario.values=[1, 2]", "column 'channel': unknown scenario 'web' (expected one of [1"),
        ("train.bach_size=3", "job.yaml: train: unknown key 'bach_size': did you mean 'batch_"),
        ("train.batch_size=many", "job.yaml: train.batch_size: got 'many': input should be a"),
        ("data.train=[shop-2]", "no file matches 'shop-2' under "),
        ("data.source=s4://bucket", "s4://bucket: cannot open this address: Protocol not known"),
        ("embedding.tables.words.rows=2", "column 'visits': id 2, outside the 2 rows of its table"),
        ("features.age.on_invalid=error", "column 'age': a null, NaN or infinite value at row "),
    ],
)  # fmt: skip
def test_what_is_wrong_takes_one_line(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
):
    job, run = shop / "job.yaml", tmp_path / "run"
    found = refusal(capsys, "train", "--config", job, "--run-dir", run, "--set", override)
    assert message in found, found


def test_what_is_wrong_ends_every_process_before_it_begins(shop: Path, tmp_path: Path):
    run = tmp_path / "run"
    done = deltarec("train", "--config", shop / "job.yaml", "--run-dir", run, "--nproc", 2,
                    "--set", "features.age.column=years")  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and not run.exists()
    assert done.stderr.startswith("deltarec: error: ") and done.stderr.count("\n") == 1


def test_what_ends_a_rank_is_answered(shop: Path, tmp_path: Path):
    """The document is the failed rank's, whichever it is, and the only one."""
    done = deltarec("train", "--config", shop / "job.yaml", "--run-dir", tmp_path, "--nproc", 2,
                    "--json", "--set", "features.age.on_invalid=error")  # fmt: skip
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"], error["exit_code"]) == (2, "input", 2)
    assert "column 'age': a null, NaN or infinite value at row " in error["messages"][0]


def test_what_ends_a_rank_is_said_last(shop: Path, tmp_path: Path):
    """The launcher, which knows no more, does not add to it."""
    done = deltarec("train", "--config", shop / "job.yaml", "--run-dir", tmp_path, "--nproc", 1,
                    "--set", "features.age.on_invalid=error")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("deltarec: error: "), done.stderr


def test_what_is_wrong_inside_is_answered_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise RuntimeError("of ours")

    monkeypatch.setattr("deltarec.doctor.examine", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        main(["doctor", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"kind": "internal", "exit_code": 1, "messages": ["RuntimeError('of ours')"]}


def test_processes_must_divide_the_streams(shop: Path, capsys: pytest.CaptureFixture[str]):
    found = refusal(capsys, "train", "--config", shop / "job.yaml", "--nproc", 5)
    assert found.startswith("data.reader.streams is 24, which 5 processes cannot divide")


def test_a_file_that_is_not_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data/shop-1/train").mkdir(parents=True)
    write_csv(tmp_path / "data/shop-1/train/0.csv", 0, rows=10)
    (tmp_path / "job.yaml").write_text(JOB.format(source=tmp_path / "data"))
    found = refusal(capsys, "train", "--config", tmp_path / "job.yaml")
    assert "0.csv: not a readable Parquet file: " in found


def test_an_empty_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "data/shop-1/train/0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"customer": pa.array([], pa.string())}), path)
    (tmp_path / "job.yaml").write_text(JOB.format(source=tmp_path / "data"))
    found = refusal(capsys, "train", "--config", tmp_path / "job.yaml")
    assert found.startswith("the dataset is empty: shop-*/train under ")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job and its data."""
    folder = tmp_path_factory.mktemp("small")
    write_small_data(folder)
    data = {**CONFIG["data"], "source": str(folder), "test": ["valid"]}
    train = {
        **CONFIG["train"],
        "log_every": 10,
        "evaluate_every": 4,
        "early_stopping": {"patience": 1},
        "optimizer": {"dense": {"name": "adam", "lr": 1.0}},  # so that it soon gets worse
    }
    job = {**CONFIG, "data": data, "train": train}
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    return folder


def test_json_is_one_object_on_standard_output(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    arguments = ["--config", str(small / "job.yaml"), "--run-dir", str(run), "--json", *ONE_THREAD]
    assert main(["train", *arguments]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    written = json.loads((run / "result.json").read_text())
    assert out.count("\n") == 1 and result == {"run_dir": str(run), **written}
    assert "validation" in err, "what a person watches goes to standard error"

    assert main(["evaluate", "--run-dir", str(run), "--json", *ONE_THREAD]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["metrics"] == result["test"], "the checkpoint is the one that training chose"
    latest = ["--checkpoint", "latest", "--split", "valid", *ONE_THREAD]
    assert main(["evaluate", "--run-dir", str(run), "--json", *latest]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == result["steps"] > answer["step"]


def test_a_finished_run_is_not_trained_again(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = ["train", "--config", str(small / "job.yaml"), "--run-dir", str(tmp_path), "--json"]
    train += ONE_THREAD
    assert main([*train, "--set", "train.max_steps=2", "--set", "train.early_stopping=null"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*train, "--set", "train.max_steps=2", "--set", "train.early_stopping=null"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["steps"] == first["steps"] == 2 and again["test"] == first["test"]


def test_evaluate_without_a_run(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = refusal(capsys, "evaluate", "--run-dir", tmp_path)
    assert found == f"{tmp_path / 'config.yaml'}: there is no such configuration file"
    (tmp_path / "config.yaml").write_text((small / "job.yaml").read_text())
    for arguments in ([], ["--nproc", "2"]):
        found = refusal(capsys, "evaluate", "--run-dir", tmp_path, *arguments)
        assert found == f"{tmp_path / 'checkpoints'}: there is no latest checkpoint"
    found = refusal(capsys, "evaluate", "--run-dir", tmp_path, "--set", "data.test=[]")
    assert found == f"{tmp_path / 'config.yaml'}: data.test names no files"


@pytest.mark.parametrize("verb", ["doctor", "prepare", "plan", "train", "evaluate", "bench"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: deltarec {verb}" in capsys.readouterr().out


def test_help_names_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys, deltarec.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'torchrec', 'pandas', 'pyarrow'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in ("doctor", "prepare", "plan", "train", "evaluate", "bench"):
        assert f"    {verb} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "--config", "job.yaml", "--npro", "2"],
        ["train", "--config", "job.yaml", "--nproc", "two"],
        ["train", "--config", "job.yaml", "--nproc", "0"],
        ["train", "--config", "job.yaml", "--nproc=-1"],
        ["evaluate", "--run-dir", "x", "--split", "dev"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: deltarec") and "error: " in err
    assert main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"]) == ("usage", 2) and error["messages"][0] in err


def test_doctor(capsys: pytest.CaptureFixture[str]):
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"torch", "torchrec", "fbgemm", "pyarrow", "problems", "mend"} <= found.keys()
    assert code == (1 if found["problems"] else 0) and bool(found["mend"]) == bool(code)
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert found["torch"] in out and ("all is well" in out) == (code == 0)


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "made"
    command = ["prepare", "synth", "-", str(target), "--set", "rows=2000"]
    assert main([*command, "--set", "num_tasks=1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["target"] == str(target) and answer["rows"]["train"] == 1600
    assert answer.keys() == {"target", "rows", "table_sizes", "notes"}
    parts = {path: path.stat().st_mtime_ns for path in target.glob("*/*.parquet")}
    assert len(parts) == 3
    assert main([*command, "--set", "num_tasks=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer, "whoever asks again is answered at once"
    assert {path: path.stat().st_mtime_ns for path in target.glob("*/*.parquet")} == parts
    assert refusal(capsys, *command) == f"{target}: already there; remove it or give another folder"


def test_prepare_a_log_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "log.parquet", tmp_path / "made"
    days = pa.array([f"2026-01-{day:02}" for day in range(1, 21)]).cast(pa.date32())
    kinds = ["view", "buy"] * 10
    pq.write_table(
        pa.table({"user": [7] * 20, "item": range(20), "time": days, "kind": kinds}), source
    )
    command = ["prepare", "own-events", str(source), str(target), "--json"]
    for option in (
        "valid_from=2026-01-11",
        "test_from=2026-01-16",
        "histories={bought: {column: kind, value: buy}}",
        "behaviours={view: {column: kind, value: view}}",
    ):
        command += ["--set", option]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == {"train": 10, "valid": 5, "test": 5}
    assert answer["table_sizes"] == {"user": 8, "item": 20}
    rows = {row["item"]: row for row in pq.read_table(target / "test").to_pylist()}
    assert rows[16]["bought"] == [1, 3, 5, 7, 9, 11, 13, 15] and rows[16]["view"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-"], f"dataset 'nowhere' is not known: one of {', '.join(DATASETS)}"),
        (
            [
                *["own-events", "-", "--set", "histories={a: {column: x, last: 0}}"],
                *["--set", "valid_from=1", "--set", "test_from=2"],
            ],
            "--set: histories.a.last: got 0: ",
        ),
        (["synth", "-", "--set", "row=3"], "--set: unknown key 'row': did you mean 'rows'?"),
        (["synth", "-", "--set", "rows=few"], "--set: rows: got 'few': input should be a valid"),
        (["synth", "-", "--set", "rows"], "--set rows: expected path.to.key=value"),
    ],
)
def test_prepare_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    dataset, source, *rest = arguments
    found = refusal(capsys, "prepare", dataset, source, tmp_path / "made", *rest)
    assert found.startswith(message)
    assert not any(tmp_path.iterdir())


def test_prepare_without_the_raw_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = tmp_path / "raw"
    assert main(["prepare", "movielens-1m", str(raw), str(tmp_path / "made")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"deltarec: error: {raw}") and "can be had at https://" in last
    assert not any(tmp_path.iterdir())


def test_bench_names_what_there_is(capsys: pytest.CaptureFixture[str]):
    found = refusal(capsys, "bench", "nothing")
    assert found.startswith("benchmark 'nothing' is not known: one of ")


def test_bench_hands_arguments_on_and_answers_with_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("deltarec.verbs.bench.BENCHMARKS", tmp_path)
    (tmp_path / "words.py").write_text(
        "import json, sys\nfrom pathlib import Path\nprint(sys.argv[1:])\n"
        "if '--output' in sys.argv: Path(sys.argv[-1]).write_text(json.dumps(sys.argv[1:3]))"
    )
    assert main(["bench", "words", "--rows", "10"]) == 0
    assert capsys.readouterr().out == "['--rows', '10']\n"
    for words in (["--json", "words", "--rows", "10"], ["words", "--rows", "10", "--json"]):
        assert main(["bench", *words]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer == {"name": "words", "results": ["--rows", "10"]}
