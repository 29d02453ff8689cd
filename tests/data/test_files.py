# SPDX-License-Identifier: Apache-2.0
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltarec.data.files import find

TABLE = pa.table({"a": [1, 2, 3]})
PATHS = (
    "one.parquet",
    "train/b.parquet",
    "train/a.parquet",
    "test/date=2026-11-01/a.parquet",
    "test/date=2026-11-02/a.parquet",
    "test/date=2026-12-01/deep/a.parquet",
    "test/_temporary/a.parquet",
    "test/.hidden/a.parquet",
    "test/date=2026-11-02/.a.parquet.crc",
    "test/_SUCCESS",
)


@pytest.fixture(params=["local", "slash", "file://", "memory://", "odd name [x]*"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same files in every place."""
    if request.param == "memory://":
        memory = fsspec.filesystem("memory")
        root = f"/{uuid.uuid4()}"
        for path in PATHS:
            with memory.open(f"{root}/{path}", "wb") as file:
                pq.write_table(TABLE, file)
        yield f"memory:/{root}"
        memory.rm(root, recursive=True)
        return
    folder = tmp_path / request.param if request.param.startswith("odd") else tmp_path
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(TABLE, folder / path)
    yield {"slash": f"{folder}/", "file://": f"file://{folder}"}.get(request.param, str(folder))


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["one.parquet"], ["one.parquet"]),
        (["./train/"], ["train/a.parquet", "train/b.parquet"]),
        (["train"], ["train/a.parquet", "train/b.parquet"]),
        (["train", "one.parquet"], ["train/a.parquet", "train/b.parquet", "one.parquet"]),
        (["*.parquet"], ["one.parquet"]),
        (["train/[bc]*"], ["train/b.parquet"]),
        (["train/?.parquet"], ["train/a.parquet", "train/b.parquet"]),
        (
            ["test"],
            [
                "test/date=2026-11-01/a.parquet",
                "test/date=2026-11-02/a.parquet",
                "test/date=2026-12-01/deep/a.parquet",
            ],
        ),
        (["test/date=2026-12-*"], ["test/date=2026-12-01/deep/a.parquet"]),
        (
            ["test/date=2026-11-*/*.parquet"],
            ["test/date=2026-11-01/a.parquet", "test/date=2026-11-02/a.parquet"],
        ),
        (["test/*/deep"], ["test/date=2026-12-01/deep/a.parquet"]),
        (["test/_temporary"], ["test/_temporary/a.parquet"]),
        (
            ["train/b.parquet", "train", "train/*.parquet"],
            ["train/b.parquet", "train/a.parquet"],
        ),
    ],
)
def test_patterns(source: str, patterns: list[str], found: list[str]):
    root = source.split("://")[-1].strip("/")
    paths = [file.path.strip("/").removeprefix(f"{root}/") for file in find(source, patterns)]
    assert paths == found


def test_a_file_can_be_read(source: str):
    file = find(source, ["train"])[0]
    with file.open() as parquet:
        assert parquet.read().equals(TABLE)
    assert file.schema.names == ["a"] and file.row_groups == [3]


@pytest.mark.parametrize("pattern", ["nothing", "*.csv", "one.parquet/*", "train/*/*", "test/_S*"])
def test_nothing_matches(source: str, pattern: str):
    with pytest.raises(ValueError, match="no file matches ") as caught:
        find(source, ["train", pattern])
    assert str(caught.value) == f"no file matches '{pattern}' under {source}"


def test_the_whole_source(tmp_path: Path):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE, tmp_path / ".b.parquet")
    assert [file.path for file in find(str(tmp_path), ["."])] == [str(tmp_path / "a.parquet")]
    one = str(tmp_path / "a.parquet")
    assert [file.path for file in find(one, ["."])] == [one]


def test_relative_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data/train").mkdir(parents=True)
    pq.write_table(TABLE, tmp_path / "data/train/a.parquet")
    monkeypatch.chdir(tmp_path)
    for source in ("data", "./data", "data/", "../" + tmp_path.name + "/data"):
        assert len(find(source, ["train"])) == 1
    monkeypatch.chdir(tmp_path / "data")
    assert len(find(".", ["train/*"])) == len(find(".", ["."])) == 1


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR1" + bytes(100)])
def test_not_parquet(tmp_path: Path, content: bytes):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.csv: not a readable Parquet file: "):
        find(str(tmp_path), ["."])


def test_a_truncated_file(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable Parquet file: "):
        find(str(tmp_path), ["."])


def test_an_empty_dataset(tmp_path: Path):
    pq.write_table(TABLE.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"the dataset is empty: \. under .* has no rows"):
        find(str(tmp_path), ["."])
    pq.write_table(TABLE, tmp_path / "b.parquet")
    assert [file.metadata.num_rows for file in find(str(tmp_path), ["."])] == [0, 3]


@pytest.mark.parametrize("source", ["nosuch://bucket/data", "file://host/data"])
def test_an_address_that_is_none(source: str):
    with pytest.raises(ValueError, match=f"{source}: cannot open this address: "):
        find(source, ["train"])
