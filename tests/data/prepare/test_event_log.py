# SPDX-License-Identifier: Apache-2.0
"""Histories against a slow, obvious routine, and that the future changes nothing."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from deltarec.data.prepare.event_log import (
    EventLog,
    Feedback,
    aligned,
    by_user_and_time,
    stable_order,
)

CLICK, SHOWN, LIKE = 0, 1, 2


class Event(NamedTuple):
    user: int
    time: int
    kind: int
    item: int


def random_log(rng: np.random.Generator, most: int = 20) -> list[Event]:
    """Up to so many events of up to three users, in any order, many of them at one time."""
    size = int(rng.integers(0, most))
    users, times, kinds = (rng.integers(0, high, size).tolist() for high in (3, 12, 3))
    return [Event(*event) for event in zip(users, times, kinds, range(size), strict=True)]


def slow_history(log: list[Event], target: Event, most: int) -> list[Event]:
    """The user's last clicks before the target."""
    own = sorted((e for e in log if e.user == target.user), key=lambda e: e.time)
    return [e for e in own if e.kind == CLICK and e.time < target.time][-most:]


def slow_aligned(
    log: list[Event], target: Event, most: int, each_side: int, max_gap: int | None
) -> list[list[int]]:
    """Items shown around each of them: the routine of the paper, for one target."""
    own = sorted((e for e in log if e.user == target.user), key=lambda e: e.time)
    lists = []
    for click in slow_history(log, target, most):
        index = own.index(click)
        before = [e for e in own[:index] if e.kind == SHOWN][-each_side:]
        after = [e for e in own[index + 1 :] if e.kind == SHOWN][:each_side]
        kept = [e for e in before + after if e.time < target.time]
        if max_gap is not None:
            kept = [e for e in kept if abs(e.time - click.time) <= max_gap]
        lists.append([e.item for e in kept])
    return lists


def fast(
    log: list[Event], most: int, each_side: int, max_gap: int | None = None
) -> dict[int, tuple[list[int], list[list[int]], list[int]]]:
    """By item of each target: its clicks, what is aligned with them, and its last exposures."""
    columns = np.array(log, dtype=np.int64).reshape(-1, 4)
    columns = columns[by_user_and_time(columns[:, 0], columns[:, 1])]
    user, time, kind, item = columns.T
    events, rows = EventLog(user, time), np.arange(len(columns))
    clicks, shown = Feedback(events, kind == CLICK), Feedback(events, kind == SHOWN)
    history, windows = clicks.last(rows, most), shown.around(clicks, each_side, max_gap)
    shown_items = item[shown.events]
    found: list[Any] = [
        history.lists(item[clicks.events]),
        aligned(history, windows, shown, rows, shown_items),
        shown.last(rows, most).lists(shown_items),
    ]
    return dict(zip(item.tolist(), zip(*(x.to_pylist() for x in found), strict=True), strict=True))


def test_equals_the_slow_routine_on_5000_random_logs():
    rng = np.random.default_rng(0)
    targets = 0
    for trial in range(5000):
        log = random_log(rng)
        most, each_side = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        max_gap = int(rng.integers(0, 5)) if trial % 2 else None
        found = fast(log, most, each_side, max_gap)
        assert found.keys() == {e.item for e in log}
        for target in log:
            clicks, lists, shown = found[target.item]
            assert clicks == [e.item for e in slow_history(log, target, most)]
            assert lists == slow_aligned(log, target, most, each_side, max_gap)
            own = [e for e in log if (e.user, e.kind) == (target.user, SHOWN)]
            past = sorted((e for e in own if e.time < target.time), key=lambda e: e.time)
            assert shown == [e.item for e in past][-most:]
            targets += 1
    assert targets > 40_000


def test_no_event_at_the_targets_time_or_later_changes_anything():
    """Such events of the same user are changed, dropped, put elsewhere in the log, or added."""
    rng = np.random.default_rng(1)
    changed = 0
    for _ in range(500):
        log = random_log(rng, 40)
        if not log:
            continue
        target = log[rng.integers(len(log))]
        past = [e for e in log if e.time < target.time or e.user != target.user]
        later = [
            Event(target.user, target.time + int(rng.integers(0, 5)), int(rng.integers(0, 3)), 100)
            for _ in range(rng.integers(0, 6))
        ]
        future = [target, *(event._replace(item=100 + i) for i, event in enumerate(later))]
        mixed = [*past, *(future[i] for i in rng.permutation(len(future)))]
        places = np.sort(rng.permutation(len(mixed))[: len(past)])
        order = np.full(len(mixed), -1)
        order[places] = np.arange(len(past))  # the past keeps its own order among the rest
        order[order < 0] = np.arange(len(past), len(mixed))
        other = [mixed[i] for i in order]
        assert fast(log, 4, 3)[target.item] == fast(other, 4, 3)[target.item]
        changed += sum(e.user == target.user for e in log) != len(future)
    assert changed > 300


def test_an_anchor_of_the_type_itself_is_in_its_own_window():
    log = EventLog(np.zeros(5, np.int64), np.arange(5))
    clicks = Feedback(log, np.ones(5, bool))
    likes = Feedback(log, np.array([True, False, True, True, False]))
    assert likes.around(clicks, 1).lists(likes.events).to_pylist() == [
        *[[0, 2], [0, 2], [0, 2, 3], [2, 3], [3]]
    ]


@pytest.mark.parametrize("span", [0, 1, 1000, 2**40, 2**62])
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_stable_order(span: int, size: int):
    rng = np.random.default_rng(0)
    values = rng.choice(rng.integers(-span, span, 50, endpoint=True), size)
    assert np.array_equal(stable_order(values), np.argsort(values, kind="stable"))
    extremes = np.array([2**63 - 1, -(2**63), 0, 2**63 - 1])
    assert stable_order(extremes).tolist() == [1, 2, 0, 3]
    assert stable_order(np.array([3, 1, 3, 0], np.uint16)).tolist() == [3, 1, 0, 2]


def test_times_must_ascend():
    with pytest.raises(ValueError, match="not in the order of time; use by_user_and_time"):
        EventLog(np.array([0, 0, 1]), np.array([2, 1, 0]))
