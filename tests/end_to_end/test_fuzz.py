# SPDX-License-Identifier: Apache-2.0
"""200 random corruptions of Parquet files, configurations and checkpoints, from fixed seeds.

Each ends in an error that names the culprit, in counted losses, or in what there was without it.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from deltarec.assembly import check
from deltarec.config import load
from deltarec.data.batch import Position
from deltarec.data.files import Damage, find
from deltarec.data.reader import Reader, ReaderConfig
from deltarec.data.schema import IdFeature
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.data.test_reader import SCHEMA, make, rows
from tests.embeddings.test_torchrec_traps import full_tables
from tests.small_job import CONFIG, small_job, write_small_data

ROWS = 120


def flip_a_bit(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def flip_in_the_footer(content: bytearray, draw: random.Random) -> None:
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[-draw.randrange(1, footer + 1)] ^= 1 << draw.randrange(8)


def cut_off(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def zero(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    stop = min(start + draw.randrange(1, 200), len(content))
    content[start:stop] = bytes(stop - start)


def swap(content: bytearray, draw: random.Random) -> None:
    one, other = draw.randrange(len(content)), draw.randrange(len(content))
    content[one], content[other] = content[other], content[one]


Corruption = Callable[[bytearray, random.Random], None]
CORRUPTIONS: list[Corruption] = [flip_a_bit, flip_in_the_footer, cut_off, zero, swap]


# Parquet


def fuzzed_schema(on_bad_file: Any) -> Any:
    """With strings among the ids, and a user."""
    name = make(IdFeature, kind="id", transforms=[{"name": "hash", "buckets": 1000}])
    features = {**SCHEMA.features, "name": name}
    table_rows = {**SCHEMA.table_rows, "name": 1000}
    return replace(
        SCHEMA, features=features, table_rows=table_rows, user="id", on_bad_file=on_bad_file
    )


def table_of(start: int) -> pa.Table:
    words = pa.array([f"n{i}" for i in range(start, start + ROWS)])
    return rows(start, start + ROWS).append_column("name", words)


def samples(batch: Any) -> Iterator[tuple[int, list[Any]]]:
    """Everything that a batch says of each of its samples, by the sample's row."""
    jagged = [*batch.pooled.to_dict().values(), *batch.unpooled.to_dict().values()]
    weighted = list(batch.weighted.to_dict().values())
    for place, row in enumerate(batch.index.tolist()):
        found = [column[place].tolist() for column in (batch.dense, batch.labels, batch.mask)]
        found.append(int(batch.user[place]))
        for item in jagged + weighted:
            low, high = item.offsets()[place : place + 2].tolist()
            found.append(item.values()[low:high].tolist())
            if item in weighted:
                found.append(item.weights()[low:high].tolist())
        if row >= 0:
            yield row, found


def read(folder: Path, on_bad_file: str) -> tuple[dict[int, list[Any]], Counter[str], Damage]:
    """All samples by row, the lost rows of each file, what is wrong with which files."""
    damage: Damage = {}
    files = find(str(folder), ["."], damage if on_bad_file == "skip" else None)
    config = make(ReaderConfig, streams=6, shuffle=False)
    reader = Reader(files, fuzzed_schema(on_bad_file), config, 64, None, damage=damage)
    found: dict[int, list[Any]] = {}
    lost: Counter[str] = Counter()
    for batch in reader.read(Position(), 1):
        found.update(samples(batch))
        lost += batch.lost
    return found, lost, reader.damage


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    for i in range(2):
        target = folder / f"{i}.parquet"
        pq.write_table(table_of(i * ROWS), target, 30, write_page_checksum=True)
    return folder


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_parquet(parquet: Path, on_bad_file: str, corrupt: Corruption):
    """A hundred: ten of each kind, under both policies."""
    expected, _, _ = read(parquet, "stop")
    path = parquet / "1.parquet"
    whole = path.read_bytes()
    draw = random.Random(f"{corrupt.__name__} {on_bad_file}")
    try:
        for _ in range(10):
            content = bytearray(whole)
            corrupt(content, draw)
            path.write_bytes(content)
            try:
                found, lost, damage = read(parquet, on_bad_file)
            except ValueError as error:
                assert f"{path}: " in str(error) and "\n" not in str(error)
                continue
            assert set(damage) <= {str(path)} and set(lost) <= {str(path)}
            assert on_bad_file == "skip" or not damage
            assert all(expected[row] == sample for row, sample in found.items())
            missing = ROWS if damage and not lost else lost.total()
            assert len(found) == 2 * ROWS - missing
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("column", ["id", "list", "w", "dense", "label", "name"])
def test_columns_of_another_type_and_with_nulls(tmp_path: Path, column: str):
    """Two for each column."""
    table = table_of(0)
    place = table.column_names.index(column)
    values = table[column].to_pylist()
    values[50] = [None, None] if isinstance(values[50], list) else None  # as long as it was
    nulls = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    dates = table.set_column(place, column, pa.array([0] * ROWS, pa.date32()))
    for changed, words in (
        (nulls, "a null|label nan"),
        (dates, f"column '{column}' is date32"),
    ):
        path = tmp_path / "0.parquet"
        pq.write_table(changed, path)
        with pytest.raises(ValueError, match=words) as caught:
            read(tmp_path, "skip")
        assert str(caught.value).startswith(f"{path}: column '{column}'")


# Configurations


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_small_data(folder)
    tree = {**CONFIG, "data": {**CONFIG["data"], "source": str(folder)}}
    (folder / "job.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "job.yaml"


def places(tree: Any) -> list[tuple[dict[str, Any], str]]:
    """Every key, with the mapping that it stands in."""
    found = [(tree, key) for key in tree]
    for value in tree.values():
        if isinstance(value, dict):
            found += places(value)
    return found


def misspell(mapping: dict[str, Any], key: str, draw: random.Random) -> None:
    letter = draw.randrange(len(key))
    mapping[key[:letter] + key[letter + 1 :] + "x"] = mapping.pop(key)


def mistype(mapping: dict[str, Any], key: str, draw: random.Random) -> None:
    wrong = ["many", -1, None, [], {}, float("nan"), True, "${x}", 0.5, [[1]], {"a": 1}, ""]
    mapping[key] = draw.choice(wrong)


def delete(mapping: dict[str, Any], key: str, draw: random.Random) -> None:
    del mapping[key]


def answers(path: Path) -> str | None:
    """The one error that a configuration gives before its job starts."""
    try:
        check(load(Job, path))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("change", [misspell, mistype, delete])
def test_configurations(job_file: Path, tmp_path: Path, change: Callable[..., None]):
    """Fifteen of each kind. The message names the file, or the key, or its value."""
    draw = random.Random(change.__name__)
    path = tmp_path / "job.yaml"
    refused = 0
    for _ in range(15):
        tree = yaml.safe_load(job_file.read_text())
        mapping, key = draw.choice(places(tree))
        change(mapping, key, draw)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        message = answers(path)
        refused += message is not None
        assert message is None or str(path) in message or key in message, message
    assert refused >= 5


def test_garbage_for_configurations(job_file: Path, tmp_path: Path):
    """Fifteen."""
    draw = random.Random(0)
    path = tmp_path / "job.yaml"
    for _ in range(15):
        content = bytearray(job_file.read_bytes())
        draw.choice([flip_a_bit, zero, cut_off, swap])(content, draw)
        path.write_bytes(content)
        message = answers(path)
        assert message is None or str(path) in message or str(job_file.parent) in message, message


# Checkpoints


@pytest.fixture(scope="module")
def trained(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    job = small_job(job_file.parent, data__valid=[], train__max_steps=3)
    with process_group(threads=1) as device:
        trainer = Trainer(job, RunFolder(tmp_path_factory.mktemp("run")), device)
        trainer.fit()
        yield trainer


def content_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    replicated = {
        name: value.clone()
        for name, value in trainer.model.state_dict().items()
        if type(value) is torch.Tensor
    }
    return full_tables(trainer.model) | replicated


@pytest.mark.parametrize("corrupt", [flip_a_bit, cut_off, zero, swap, None])
def test_checkpoints(trained: Trainer, corrupt: Corruption | None):
    """Six of each kind, None for a file that is missing."""
    expected = content_of(trained)
    folder = trained.checkpoints.folder
    draw = random.Random(corrupt.__name__ if corrupt else "missing")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {"latest", ".metadata", "state.json", "checksums.json"} <= {f.name for f in files}
    for path in draw.sample(files, 4) + draw.choices(files, k=2):
        whole = path.read_bytes()
        content = bytearray(whole)
        if corrupt is None:
            path.unlink()
        else:
            corrupt(content, draw)
            path.write_bytes(content)
        try:
            state = trained.checkpoints.load()
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:
            assert json.loads(json.dumps(asdict(state)))["step"] == 3
            assert path.name == "latest" or content == whole
            found = content_of(trained)
            assert all(torch.equal(found[name], value) for name, value in expected.items())
        finally:
            path.write_bytes(whole)
    assert trained.checkpoints.load().step == 3
