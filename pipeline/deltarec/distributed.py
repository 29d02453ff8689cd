# SPDX-License-Identifier: Apache-2.0
"""The process group, the device, and the few collectives the pipeline needs beyond TorchRec's."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

BROKEN_CONNECTION = ("closed by peer", "reset by peer", "Broken pipe")


def launched() -> bool:
    """Whether a launcher (torchrun, TorchX) started this process as one rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(
    timeout: timedelta = timedelta(minutes=10), threads: int | None = None
) -> Iterator[torch.device]:
    """Join the launcher's process group, or a group of one; yields this rank's device.

    CPU tensors always travel over gloo, so host-side reductions work on GPU jobs too.

    Args:
        timeout: of a collective.
        threads: that this process computes with; without it, CPU jobs divide the machine's cores
            among their own processes.

    Raises:
        ConnectionError: another rank ended in the middle of the job.
    """
    silence_libraries()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
        # torchrun sets one thread a process; the cores are there to be shared.
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        threads = threads or max(1, len(os.sched_getaffinity(0)) // local_world_size)
    if threads is not None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
    if launched():
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
    try:
        yield device
    except RuntimeError as error:
        if "gloo" in str(error) and any(sign in str(error) for sign in BROKEN_CONNECTION):
            raise ConnectionError(
                f"another rank has ended, or its machine is gone; its own message says why "
                f"({str(error).split('. ')[0]})"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's place among all of the job."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes the job has."""
    return dist.get_world_size()


def is_main() -> bool:
    """Whether this rank is the one that writes files and prints; a process alone is."""
    return not dist.is_initialized() or rank() == 0


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks of a tensor of equal shape on each; the input stays as it was."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def exchange(tensors: list[Tensor], destination: Tensor) -> list[Tensor]:
    """Send row i of every tensor to rank `destination[i]`; returns the rows received.

    Rows arrive ordered by sending rank, then by their order there.

    Args:
        tensors: CPU tensors of shape `[rows, ...]`, all with the same number of rows.
        destination: int64 `[rows]`, ranks.
    """
    order = torch.argsort(destination, stable=True)
    sent = torch.bincount(destination, minlength=world_size())
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    outputs = []
    for tensor in tensors:
        output = tensor.new_empty((int(received.sum()), *tensor.shape[1:]))
        dist.all_to_all_single(output, tensor[order], received.tolist(), sent.tolist())
        outputs.append(output)
    return outputs


def ask(question: Tensor, destination: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Have row i of a question answered by rank `destination[i]`; a collective.

    Args:
        question: CPU tensor `[rows, columns]`.
        destination: int64 `[rows]`, ranks.
        answer: from questions `[any, columns]` of all ranks, one rank's after the other's, to
            `[any, …]`.

    Returns:
        `[rows, …]`.
    """
    if world_size() == 1:
        return answer(question)
    order = torch.argsort(destination, stable=True)
    sent = torch.bincount(destination, minlength=world_size())
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    asked = question.new_empty((int(received.sum()), question.shape[1]))
    theirs, ours = received.tolist(), sent.tolist()
    dist.all_to_all_single(asked, question[order], theirs, ours)
    answers = answer(asked)
    answered = answers.new_empty(len(question), *answers.shape[1:])
    dist.all_to_all_single(answered, answers, ours, theirs)
    return torch.empty_like(answered).index_copy_(0, order, answered)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows `[n, …]` of all ranks, one rank's after the other's: `[ranks · n, …]`.

    A collective, in backward too, where a row gets the sum of all ranks' gradients.
    """
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # pyright: ignore[reportReturnType]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # gloo scatters no sums
        return all_sum(gradients[0]).chunk(world_size())[rank()]


def owners(keys: Tensor) -> Tensor:
    """The rank that a hash of each key names, int64 of any values."""
    # Fibonacci hashing: regular ids spread too. The shift leaves a number that is not negative.
    hashed = (keys * -0x61C8864680B583EB >> 32) & 0xFFFFFFFF
    return hashed % world_size()


def silence_libraries() -> None:
    """Keep TorchRec's advice to its own developers out of users' logs; errors stay."""
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)(\.|$)")
    warnings.filterwarnings("ignore", "Please use DTensor")  # blamed on whoever asks for a size
    for name in ("torchrec", "torch.fx._symbolic_trace", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
