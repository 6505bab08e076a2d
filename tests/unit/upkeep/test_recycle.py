"""When a worker ends at a limit, and what it asks before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenq.errors import ConfigError, OperationalError
from greenq.timer import Timer
from greenq.upkeep.recycle import (
    LEAST_LIFE_S,
    Recycle,
    RecycleLimits,
    Usage,
    reached,
    resident_kb,
)
from tests.unit.rig import settle


def use(tasks: int = 0, memory_kb: int = 0, lifetime_s: float = 0.0) -> Usage:
    return Usage(tasks=tasks, memory_kb=memory_kb, lifetime_s=lifetime_s)


@pytest.mark.parametrize(
    ("limits", "below", "at", "named"),
    [
        (
            RecycleLimits(tasks=10),
            use(tasks=9),
            use(tasks=10),
            "it has finished 10 tasks; its limit is 10",
        ),
        (
            RecycleLimits(memory_kb=2048),
            use(memory_kb=2047),
            use(memory_kb=3072),
            "it uses 3.0 MB of memory; its limit is 2.0 MB",
        ),
        (
            RecycleLimits(lifetime_s=60.0),
            use(lifetime_s=59.9),
            use(lifetime_s=61.0),
            "it has run for 61 s; its limit is 60 s",
        ),
    ],
)
def test_each_limit_is_reached_at_its_number_and_named(
    limits: RecycleLimits, below: Usage, at: Usage, named: str
) -> None:
    assert reached(limits, below) is None
    assert reached(limits, at) == named


def test_no_limit_is_never_reached() -> None:
    assert not RecycleLimits()
    assert reached(RecycleLimits(), use(10**9, 10**9, 1e9)) is None


def test_jitter_lowers_a_limit_and_never_raises_it() -> None:
    given = RecycleLimits(tasks=1000, memory_kb=1000, lifetime_s=1000.0)
    assert given.lowered(lambda: 0.25) == RecycleLimits(tasks=750, memory_kb=750, lifetime_s=750.0)
    assert RecycleLimits(tasks=1).lowered(lambda: 0.9) == RecycleLimits(tasks=1)
    assert RecycleLimits(tasks=5).lowered(lambda: 0.0) == RecycleLimits(tasks=5)


def test_resident_memory_follows_what_is_allocated() -> None:
    before_kb = resident_kb()
    block = bytearray(b"x" * (64 * 1024 * 1024))
    assert resident_kb() - before_kb > 60 * 1024
    del block


class FakeGroup:
    """A group whose answers a test sets."""

    def __init__(self) -> None:
        self.away: list[str] = []
        self.claims: list[tuple[int, float]] = []
        self.error: OperationalError | None = None
        self.returns = 0

    def claim(self, most: int, hold_s: float) -> list[str]:
        self.claims.append((most, hold_s))
        return self.away

    def returned(self) -> None:
        if self.error is not None:
            raise self.error
        self.returns += 1


class Rig:
    """A step on a clock that a test moves."""

    def __init__(self, limits: RecycleLimits, *, used_kb: int = 0) -> None:
        self.now_s = 1000.0
        self.tasks, self.used_kb, self.ready = 0, used_kb, True
        self.ended: list[str] = []
        self.group = FakeGroup()
        self.timer = Timer(lambda: self.now_s)
        self.step = Recycle(
            limits, self.timer, self.group, slots=10, done=lambda: self.tasks,
            is_ready=lambda: self.ready, end=self.ended.append, at_once=2, jitter=0.0,
            grace_s=30.0, memory_kb=lambda: self.used_kb, clock=lambda: self.now_s,
        )  # fmt: skip
        self.step.start()

    def run(self, for_s: float) -> None:
        """Let the clock run in steps of the timer."""
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            self.now_s += 0.25
            self.timer.run_due()
            settle()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(RecycleLimits(tasks=100))
    yield made
    made.step.stop()


def test_worker_ends_at_its_limit_once_and_says_why(rig: Rig) -> None:
    rig.tasks = 99
    rig.run(LEAST_LIFE_S + 5)
    assert rig.ended == []
    rig.tasks = 101
    rig.run(5)
    assert rig.ended == ["recycled: it has finished 101 tasks; its limit is 100"]
    assert rig.group.claims == [(2, 90.0)]


def test_no_worker_ends_right_after_its_start(rig: Rig) -> None:
    rig.tasks = 1000
    rig.run(LEAST_LIFE_S - 0.5)
    assert rig.ended == []
    rig.run(3)
    assert len(rig.ended) == 1


def test_worker_waits_while_others_of_its_group_are_away(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.tasks, rig.group.away = 1000, ["b@host"]
    with caplog.at_level("INFO"):
        rig.run(LEAST_LIFE_S + 10)
    assert rig.ended == []
    assert len(rig.group.claims) > 2
    waits = [each for each in caplog.messages if "is waiting for b@host" in each]
    assert len(waits) == 1
    rig.group.away = []
    rig.run(3)
    assert len(rig.ended) == 1


def test_worker_reports_once_that_it_is_back_when_it_takes_messages(rig: Rig) -> None:
    rig.ready = False
    rig.run(5)
    assert rig.group.returns == 0
    rig.ready = True
    rig.run(5)
    assert rig.group.returns == 1


def test_worker_goes_on_without_an_answer_and_says_so_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.tasks, rig.group.error = 1000, OperationalError("gone")
    rig.run(20)
    assert rig.ended == []
    said = [each for each in caplog.messages if "cannot ask the server" in each]
    assert len(said) == 1
    rig.group.error = None
    rig.run(5)
    assert len(rig.ended) == 1


def test_memory_limit_below_what_the_worker_needs_at_its_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="uses 50000 kB before its first task"):
        Rig(RecycleLimits(memory_kb=40_000), used_kb=50_000)


def test_few_tasks_for_many_slots_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    Rig(RecycleLimits(tasks=100)).step.stop()
    assert caplog.messages == []
    Rig(RecycleLimits(tasks=99)).step.stop()
    assert "ends after 99 tasks, although it runs 10 at once" in caplog.text


def test_info_shows_what_is_used_of_each_limit(rig: Rig) -> None:
    rig.tasks = 7
    assert rig.step.info() == {"tasks": {"used": 7, "limit": 100}}
