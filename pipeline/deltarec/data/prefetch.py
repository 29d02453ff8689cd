# SPDX-License-Identifier: Apache-2.0
"""Running an iterator ahead of its consumer, in a thread."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetched(source: Iterator[T], depth: int) -> Iterator[T]:
    """The items of `source`, computed up to `depth` items ahead in a background thread.

    An exception in the source is raised at the consumer, in its place in the order. The thread ends
    with the source, or when the consumer closes this generator.
    """
    items: queue.Queue[object] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in source:
                put(item)
                if closed.is_set():
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=run, daemon=True, name="deltarec-prefetch")
    thread.start()
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # pyright: ignore[reportReturnType]
    finally:
        closed.set()
        thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
