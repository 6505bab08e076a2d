"""Revoked ids and stamps: what matches, for how long, and how many."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.execution.revoked import Revoked
from greenq.protocol.message import TaskMessage


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def message(task_id: str, stamped_headers: Any = None, **stamps: Any) -> TaskMessage:
    names = list(stamps) if stamped_headers is None else stamped_headers
    return TaskMessage(task="t", id=task_id, stamped_headers=names, stamps=stamps)


def test_nothing_is_revoked_at_first() -> None:
    revoked = Revoked()

    assert not revoked.any
    assert revoked.ids() == []
    assert revoked.stamps == {}
    assert not revoked.matches(message("a", tenant="x"))


def test_ids_come_oldest_first_and_one_that_is_revoked_again_is_the_newest() -> None:
    revoked = Revoked()

    revoked.update(["a", "b", "c"])
    revoked.add("a")

    assert revoked.any
    assert revoked.ids() == ["b", "c", "a"]
    assert "a" in revoked
    assert "d" not in revoked


def test_discarded_id_may_run() -> None:
    revoked = Revoked()
    revoked.add("a")

    revoked.discard("a")
    revoked.discard("never added")

    assert "a" not in revoked
    assert revoked.ids() == []


def test_of_too_many_the_oldest_are_forgotten() -> None:
    revoked = Revoked(most=3)

    revoked.update(str(number) for number in range(10))

    assert revoked.ids() == ["7", "8", "9"]
    assert "6" not in revoked


def test_id_is_forgotten_after_a_while_unless_it_is_revoked_again() -> None:
    clock = Clock()
    revoked = Revoked(keep_s=10.0, clock=clock)
    revoked.update(["a", "b"])
    clock.now_s += 6
    revoked.add("a")

    clock.now_s += 5

    assert "b" not in revoked
    assert "a" in revoked
    assert revoked.ids() == ["a"]
    clock.now_s += 5
    assert not revoked.matches(message("a"))
    assert revoked.ids() == []


def test_the_bounds_are_those_of_the_wire_format() -> None:
    clock = Clock()
    revoked = Revoked(clock=clock)
    revoked.update(str(number) for number in range(50_001))

    assert len(revoked.ids()) == 50_000
    clock.now_s += 10_799
    assert "50000" in revoked
    clock.now_s += 1
    assert "50000" not in revoked


@pytest.mark.parametrize(
    ("given", "carried", "expected"),
    [
        ("x", "x", True),
        (["x", "y"], "y", True),
        ("y", ["x", "y"], True),
        (["x", "y"], ["z", "y"], True),
        ("x", "y", False),
        ("x", ["xy"], False),
        ("x", None, False),
        # The command line knows texts alone.
        ("5", 5, True),
    ],
)
def test_stamp_matches_when_one_of_its_values_is_revoked(
    given: object, carried: object, expected: bool
) -> None:
    revoked = Revoked()

    revoked.add_stamps({"tenant": given})

    assert revoked.any
    assert revoked.matches(message("a", tenant=carried)) is expected
    assert revoked.is_stamped(message("a", tenant=carried)) is expected


def test_only_stamps_that_a_message_names_count() -> None:
    revoked = Revoked()
    revoked.add_stamps({"tenant": "x", "batch": ["1", "2"]})

    assert not revoked.matches(message("a", stamped_headers=[], tenant="x"))
    assert not revoked.matches(message("a", stamped_headers=["other"], tenant="x"))
    assert not revoked.matches(message("a", stamped_headers=["tenant"]))
    assert revoked.matches(message("a", stamped_headers=["other", "batch"], batch=["2"]))
    assert revoked.stamps == {"tenant": {"x"}, "batch": {"1", "2"}}


def test_revoked_id_is_no_stamp() -> None:
    revoked = Revoked()
    revoked.add("a")

    assert revoked.matches(message("a"))
    assert not revoked.is_stamped(message("a"))


def test_what_was_revoked_before_keeps_its_age() -> None:
    clock = Clock()
    revoked = Revoked(keep_s=10.0, clock=clock)

    revoked.add("a")
    revoked.put(("b",), age_s=8.0)
    revoked.put(("tenant", "x"), age_s=1.0)
    # What is known already stays as it is.
    revoked.put(("a",), age_s=9.0)
    clock.now_s += 3.0

    assert revoked.any
    assert "b" not in revoked
    assert revoked.aged() == [(("a",), 3.0), (("tenant", "x"), 4.0)]


def test_new_ones_are_those_that_nobody_has_put_there() -> None:
    revoked = Revoked()
    told: list[int] = []
    revoked.on_new = lambda: told.append(revoked.changes)

    revoked.put(("old",), age_s=1.0)
    assert revoked.take_new() == []
    revoked.add("a")
    revoked.add_stamps({"tenant": "x"})
    new = revoked.take_new()

    assert new == [("a",), ("tenant", "x")]
    assert told == [2, 3]
    assert revoked.take_new() == []
    revoked.return_new(new)
    assert revoked.take_new() == new
