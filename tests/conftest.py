# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deltarec.distributed import process_group
from tests.pair_job import write_pair_data

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
"""All processes of tests come from it: what is told below is heeded before its first one only."""
# Imported once, then every rank is a quick fork. TorchRec imports the last one, which compiles
# TorchScript for a second, at the first fused optimiser.
FORKS.set_forkserver_preload(["deltarec.trainer", "deltarec.predict", "torch.distributed.optim"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-root",
        type=Path,
        default=ROOT / "data" / "raw",
        help="folder with the public datasets (ml-1m, ...); tests that need one skip without it",
    )


@pytest.fixture(scope="session")
def data_root(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--data-root")


@pytest.fixture(scope="session")
def ml1m(data_root: Path) -> Path:
    folder = data_root / "ml-1m"
    if not (folder / "ratings.parquet").is_file():
        pytest.skip(f"MovieLens-1M is not at {folder}; give its parent by --data-root")
    return folder


@pytest.fixture(scope="session")
def kuairand(data_root: Path) -> Path:
    folder = data_root / "kuairand-explicit"
    if not (folder / "interactions.parquet").is_file():
        pytest.skip(f"KuaiRand-explicit is not at {folder}; give its parent by --data-root")
    return folder


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of pair jobs, to be read only."""
    folder = tmp_path_factory.mktemp("pair_data")
    write_pair_data(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Workers and ranks share the cores: a second thread, waited for at every small operation,
    makes them 10 to 60 times slower when its core is busy.
    """
    torch.set_num_threads(1)


@pytest.fixture
def one_process() -> Iterator[torch.device]:
    """A process group of this process alone."""
    with process_group(threads=1) as device:
        yield device


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120):
    """Run a module-level function as `world_size` gloo ranks; returns the ranks' results."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start_ranks(folder, world_size, function, *args)
        for process in ranks:
            process.join(timeout)
        stuck = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
        files = [Path(folder, f"result_{rank}") for rank in range(world_size)]
        outcomes = [pickle.loads(f.read_bytes()) if f.is_file() else None for f in files]
    for rank, outcome in enumerate(outcomes):
        if outcome is not None and not outcome[0]:
            raise AssertionError(f"rank {rank} of {world_size} failed:\n{outcome[1]}")
    if stuck or None in outcomes:
        raise AssertionError(f"ranks {stuck} of {world_size} did not finish within {timeout} s")
    return [outcome[1] for outcome in outcomes]


def start_ranks(folder: str, world_size: int, function: Callable[..., Any], *args: Any):
    """The processes alone; each leaves `result_RANK` in the folder, unless it is killed."""
    ranks = [
        FORKS.Process(target=_rank_main, args=(folder, rank, world_size, function, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def _rank_main(
    folder: str, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    dist.barrier()  # a rank that ends early would break the others' connection
    try:
        outcome = (True, function(*args))
    except BaseException:
        outcome = (False, traceback.format_exc())
    partial = Path(folder, f"partial_{rank}")
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(Path(folder, f"result_{rank}"))
    if outcome[0]:
        dist.destroy_process_group()
