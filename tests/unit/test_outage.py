"""A trouble that lasts is said once."""

from __future__ import annotations

import logging

import pytest

from greenq.errors import ConnectFailed, ConnectionLost, OperationalError, ServerError
from greenq.utils.log import OutageLog, Repeated

LOST = ConnectionLost("lost")
AWAY = ConnectFailed("away")
FULL = ServerError("SET", "OOM no memory")
REPLICA = ServerError("SET", "READONLY no writes")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno > logging.DEBUG]


@pytest.mark.parametrize(
    ("errors", "lines"),
    [
        ([AWAY, AWAY, AWAY], ["it waits: away"]),
        ([LOST, AWAY, LOST, AWAY], ["it waits: lost", "it waits: away"]),
        ([FULL, REPLICA, FULL], [f"it waits: {FULL}", f"it waits: {REPLICA}"]),
    ],
)
def test_each_kind_is_said_once(
    caplog: pytest.LogCaptureFixture, errors: list[OperationalError], lines: list[str]
) -> None:
    outage = OutageLog(logging.getLogger("test"))

    with caplog.at_level(logging.DEBUG):
        for error in errors:
            outage.failed("it waits", error)

    assert said(caplog) == lines
    assert len(caplog.records) == len(errors)


def test_end_is_said_once_and_the_next_outage_anew(caplog: pytest.LogCaptureFixture) -> None:
    outage = OutageLog(logging.getLogger("test"))

    with caplog.at_level(logging.INFO):
        outage.recovered("over")
        outage.failed("it waits", AWAY)
        outage.recovered("over")
        outage.recovered("over")
        outage.failed("it waits", AWAY)

    assert said(caplog) == ["it waits: away", "over", "it waits: away"]


@pytest.mark.parametrize("code", ["MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN"])
def test_cluster_is_named_as_such(code: str) -> None:
    error = ServerError("SET", f"{code} 1 host:2")

    assert str(error).startswith("the server is part of a cluster, which is not supported yet")
    assert str(error).endswith(f"(SET: {code} 1 host:2)")


def test_what_comes_again_and_again_is_said_once_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    repeated = Repeated(logging.getLogger("test"), at_once=2, clock=lambda: now_s)

    with caplog.at_level(logging.INFO):
        for _ in range(100):
            repeated.log("bad: %s", "x")
        repeated.log("worse", level=logging.ERROR)
        now_s = 61.0
        repeated.log("bad: %s", "y")
        repeated.log("bad: %s", "z")
        now_s = 200.0
        repeated.log("bad: %s", "w")

    assert said(caplog) == [
        *("bad: x", "bad: x", "worse"),
        "bad: y (and 98 more of these since the last one)",
        *("bad: z", "bad: w"),
    ]
