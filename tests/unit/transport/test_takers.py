"""Who sends to a queue that nobody takes from is warned: when, how often, and if it is sure."""

from __future__ import annotations

import logging

import pytest

from greenq.errors import ServerError
from greenq.protocol.keys import Keys
from greenq.transport.takers import Takers


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def test_it_is_asked_once_a_minute_and_queue() -> None:
    now_s = 5.0
    takers = Takers(Keys(), lambda: now_s)

    asked = []
    for now_s, queue in ((5.0, "a"), (5.1, "a"), (5.2, "b"), (64.9, "a"), (65.0, "a"), (65.1, "a")):
        if takers.question(queue):
            asked.append((now_s, queue))
    assert asked == [(5.0, "a"), (5.2, "b"), (65.0, "a")]


def test_warning_names_the_queue_and_what_was_perhaps_meant(log: pytest.LogCaptureFixture) -> None:
    Takers(Keys()).warn_if_untaken("maill", [3, 0, 0, [b"celery", b"mail"]])

    assert log.messages == [
        "no worker takes from queue maill: messages sent to it wait (3 workers are running); did "
        "you mean mail?"
    ]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([3, 1, 0, []], id="one takes from it"),
        pytest.param([3, 0, 1, [b"mail"]], id="somebody may"),
        pytest.param([0, 0, 0, []], id="nobody is there at all"),
        pytest.param(ServerError("EVAL", "ERR unknown command"), id="it may not be asked"),
    ],
)
def test_nothing_is_said_that_is_not_known(answer: object, log: pytest.LogCaptureFixture) -> None:
    Takers(Keys()).warn_if_untaken("maill", answer)

    assert log.messages == []
