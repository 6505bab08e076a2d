from __future__ import annotations

from greenq import states


def test_precedence_is_the_order_in_which_a_monitor_believes():
    strongest_first = [
        "SUCCESS",
        "FAILURE",
        "PROGRESS",
        "REVOKED",
        "STARTED",
        "RECEIVED",
        "REJECTED",
        "RETRY",
        "PENDING",
    ]
    alphabetical = sorted(strongest_first)
    assert sorted(alphabetical, key=states.precedence) == strongest_first


def test_every_state_that_propagates_is_ready_and_holds_an_exception():
    assert states.PROPAGATE_STATES == states.READY_STATES & states.EXCEPTION_STATES
    assert {states.RETRY} == states.EXCEPTION_STATES - states.READY_STATES
