"""Revoked tasks are shared over the server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from greenq.consumer.revokes import Revokes
from greenq.errors import AccessRefused, OperationalError
from greenq.execution.revoked import Revoked


class FakeStore:
    """A store that keeps what is added, and fails when a test says so."""

    def __init__(self) -> None:
        self.added: list[tuple[str, ...]] = []
        self.there: list[tuple[tuple[str, ...], float]] = []
        self.error: OperationalError | None = None

    def add(self, revoked: list[tuple[str, ...]]) -> None:
        if self.error is not None:
            raise self.error
        self.added += revoked

    def read_new(self) -> list[tuple[tuple[str, ...], float]]:
        if self.error is not None:
            raise self.error
        there, self.there = self.there, []
        return there


class Rig:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.revoked = Revoked()
        self.soon: list[Callable[[], None]] = []
        self.discards = 0
        self.step = Revokes(
            self.store,  # type: ignore[arg-type]
            self.revoked,
            spawn_soon=lambda run, name: self.soon.append(run),
            discard=self._discard,
        )

    def _discard(self) -> None:
        self.discards += 1

    def run(self) -> None:
        soon, self.soon = self.soon, []
        for run in soon:
            run()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_worker_learns_at_each_connection_what_was_revoked_and_discards_it(rig: Rig) -> None:
    rig.store.there = [(("a",), 5.0), (("tenant", "x"), 1.0)]
    rig.step.start()
    assert "a" in rig.revoked
    assert rig.revoked.stamps == {"tenant": {"x"}}
    assert rig.discards == 1
    # What it has read it does not write.
    assert rig.store.added == []
    rig.store.there = [(("b",), 0.0)]
    rig.step.start()
    assert "b" in rig.revoked
    assert rig.discards == 2


def test_all_that_is_revoked_at_once_is_written_in_one_go(rig: Rig) -> None:
    rig.step.start()
    rig.revoked.update(["a", "b"])
    rig.revoked.add("a")
    rig.revoked.add_stamps({"tenant": ["x", "y"]})
    assert len(rig.soon) == 1
    rig.run()
    assert sorted(rig.store.added) == [("a",), ("b",), ("tenant", "x"), ("tenant", "y")]
    rig.revoked.add("c")
    rig.run()
    assert rig.store.added[-1] == ("c",)


def test_what_could_not_be_written_is_written_after_the_next_connection(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.step.start()
    rig.store.error = OperationalError("gone")
    rig.revoked.add("a")
    rig.run()
    assert "revoked tasks are not kept on the server" in caplog.text
    rig.store.error = None
    rig.step.start()
    assert rig.store.added == [("a",)]


def test_missing_right_is_said_once_and_keeps_no_worker_from_its_tasks(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.error = AccessRefused("NOPERM")
    rig.step.start()
    rig.step.start()
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert rig.discards == 2


def test_lost_server_is_left_to_the_consumer(rig: Rig) -> None:
    rig.store.error = OperationalError("gone")
    with pytest.raises(OperationalError):
        rig.step.start()
