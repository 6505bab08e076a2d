"""Mingle: what a worker that starts learns from the others."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.consumer.mingle import Mingle, revoked_ids
from greenq.errors import AccessRefused, ConnectionLost
from greenq.execution.state import WorkerState

ME = "me@host"


class Neighbours:
    """A mailbox that answers with what a test gives."""

    def __init__(self, replies: dict[str, Any] | Exception) -> None:
        self.replies = replies
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, method: str, arguments: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert 0 < timeout_s <= 1
        self.asked.append((method, arguments))
        if isinstance(self.replies, Exception):
            raise self.replies
        return dict(self.replies)


def test_it_remembers_who_has_answered() -> None:
    neighbours = Neighbours({ME: None, "a@host": {"revoked": [], "clock": 5}})
    step = Mingle(neighbours, WorkerState(), ME)  # type: ignore[arg-type]
    assert step.met == set()

    step.start()
    assert step.met == {"a@host"}

    # The next time it is refused.
    neighbours.replies = AccessRefused("no")
    step.start()
    assert step.met == set()


def mingle(replies: dict[str, Any] | Exception) -> tuple[WorkerState, Neighbours]:
    state, neighbours = WorkerState(), Neighbours(replies)
    state.revoked.update(["mine"])
    Mingle(neighbours, state, ME).start()  # type: ignore[arg-type]
    return state, neighbours


def test_tells_its_own_revoked_ids_and_takes_over_those_of_all_others() -> None:
    state, neighbours = mingle(
        {"a@host": {"revoked": ["x", "y"], "clock": 5}, "b@host": {"revoked": ["z"], "clock": 7}}
    )

    assert neighbours.asked == [("hello", {"from_node": ME, "revoked": ["mine"]})]
    assert set(state.revoked.ids()) == {"mine", "x", "y", "z"}


def test_older_workers_tell_the_times_as_well() -> None:
    state, _ = mingle({"a@host": {"revoked": {"x": 1.5, "y": 2.5}, "clock": 5}})

    assert set(state.revoked.ids()) == {"mine", "x", "y"}


@pytest.mark.parametrize(
    "others", [[5], [5, 70, 6], [70, "90", None, True, -1, 1 << 200, [80], 80.5], [None]]
)
def test_its_clock_goes_beyond_those_of_all_others(others: list[Any]) -> None:
    replies = {f"{n}@host": {"revoked": [], "clock": each} for n, each in enumerate(others)}
    state, _ = mingle({**replies, "old@host": None})

    believed = [each for each in others if type(each) is int and each < 1 << 62]
    assert (
        max(believed, default=0) < state.clock.value <= max(believed, default=0) + len(others) + 1
    )


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ({}, "mingle: all alone"),
        # A worker that was there before under the same name, or an answer to itself.
        ({ME: None}, "mingle: all alone"),
        ({"b@host": {"revoked": []}, "a@host": {"revoked": []}}, "mingled with a@host, b@host"),
    ],
)
def test_says_whom_it_has_met(
    replies: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    mingle(replies)

    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_lost_server_ends_the_start() -> None:
    with pytest.raises(ConnectionLost):
        mingle(ConnectionLost("gone"))


def test_a_user_who_may_not_ask_does_without(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    state, _ = mingle(AccessRefused("no channels"))

    assert state.revoked.ids() == ["mine"]
    assert "no channels" in caplog.text


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "text",
        5,
        [],
        ["x"],
        {},
        {"error": "KeyError('hello')"},
        {"revoked": None},
        {"revoked": "text"},
        {"revoked": 5},
        {"revoked": [None, 5, ["x"], {"y": 1}]},
    ],
)
def test_what_is_no_answer_brings_nothing_and_hinders_nothing(reply: object) -> None:
    state, _ = mingle({"a@host": reply, "b@host": {"revoked": ["x"]}})

    assert set(state.revoked.ids()) == {"mine", "x"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("revoked") | st.text(), inner),
    )
)
def test_whatever_is_answered_only_texts_are_ids(reply: object) -> None:
    assert all(isinstance(task_id, str) for task_id in revoked_ids(reply))
