"""`greenq queues`, `purge` and `list bindings`: what they make of counts and bindings."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.cli.bindings import BoundQueue, parsed
from greenq.cli.purge import described, total
from greenq.cli.queues import headings, row, takers
from greenq.cli.queues import total as total_of
from greenq.protocol.keys import SEP
from greenq.remote.queue_counts import QueueCounts, QueuesSnapshot, change_per_s, from_counts
from greenq.transport.members import Roll

MAIL = from_counts(
    "mail", {0: 10, 3: 0, 6: 2, 9: 1000, "inbox": 1, "parked": 5, "dead": 2}, {"by": "me@h"}
)


def test_queue_has_a_column_for_each_priority_step() -> None:
    assert headings([MAIL]) == (
        *("QUEUE", "WAITING", "P0", "P3", "P6", "P9", "INBOX", "PARKED", "HELD"),
        *("DEAD", "OLDEST", "CONSUMERS", "CHANGE/S", "DRAINED IN", ""),
    )
    assert row(MAIL) == (
        *("mail", "1,013", "10", "0", "2", "1,000", "1", "5", "-", "2", "-", "0", "-", "-"),
        "paused by me@h",
    )
    assert len(row(MAIL)) == len(headings([MAIL]))


def test_queue_that_nobody_paused_says_nothing() -> None:
    assert row(QueueCounts("q", {0: 0}, change_per_s=-1.25, oldest_s=125.0)) == (
        *("q", "0", "0", "0", "0", "-", "0", "2m", "0", "-1.2", "-", ""),
    )


def test_drain_time_is_told_of_a_queue_that_shrinks() -> None:
    shrinks = QueueCounts("q", {0: 600}, change_per_s=-10.0, untaken=True)
    assert row(shrinks)[-2:] == ("1m", "no worker takes from it")
    assert shrinks.as_json()["drained_in_s"] == 60
    assert QueueCounts("q", {0: 600}, change_per_s=1.0).drained_in_s is None
    assert QueueCounts("q", {0: 0}, change_per_s=-1.0).drained_in_s is None


def test_json_of_a_queue_has_all_of_it() -> None:
    assert MAIL.as_json() == {
        "waiting": 1013,
        "depth": {"0": 10, "3": 0, "6": 2, "9": 1000},
        "inbox": 1,
        "parked": 5,
        "dead": 2,
        "held": None,
        "consumers": [],
        "untaken": False,
        "paused": {"by": "me@h"},
        "oldest_s": None,
    }
    assert QueueCounts("q", change_per_s=2.0).as_json()["change_per_s"] == 2.0


def roll(strangers: str = "", **queues: list[str] | None) -> Roll:
    """Write down workers of the host h, and what they take from; None: they have not told."""
    told = {f"{node}@h": names for node, names in queues.items() if names is not None}
    return Roll(
        {f"{node}@h": 2.0 for node in queues}, {}, set(), [], 0.0, told, set(strangers.split())
    )


def test_queues_of_greenq_s_workers_are_known_without_their_replies() -> None:
    known = takers(roll(a=["mail", "web"], b=["mail"]), {})

    assert known.nodes == {"mail": ["a@h", "b@h"], "web": ["a@h"]}
    assert known.leave("maill")
    assert not known.leave("web")


@pytest.mark.parametrize(
    ("there", "replies"),
    [
        pytest.param(roll(a=["web"], b=None), {}, id="one has not told"),
        pytest.param(roll(a=["web"], b=None), {"b@h": {"error": "no"}}, id="nor replied well"),
        pytest.param(roll("c@h", a=["web"]), {}, id="one of Celery's has not replied"),
        pytest.param(
            roll("c@h d@h", a=["web"]), {"c@h": [{"name": "mail"}]}, id="one of two has not"
        ),
    ],
)
def test_queue_is_left_alone_only_if_nobody_else_may_take_from_it(
    there: Roll, replies: dict[str, Any]
) -> None:
    assert not takers(there, replies).leave("maill")


def test_celery_s_workers_say_what_they_take_from() -> None:
    known = takers(roll("c@h", a=["web"]), {"c@h": [{"name": "mail"}]})

    assert known.nodes == {"web": ["a@h"], "mail": ["c@h"]}
    assert known.leave("maill")


def test_workers_that_have_not_told_say_what_they_take_from() -> None:
    replies = {
        "a@h": [{"name": "mail"}, {"name": "web"}],
        "b@h": [{"name": "mail"}],
        "c@h": {"error": "no"},
        "d@h": None,
    }

    assert takers(roll(), replies).nodes == {"mail": ["a@h", "b@h"], "web": ["a@h"]}


def test_change_is_of_the_waiting_ones_by_the_second() -> None:
    before = QueuesSnapshot(10.0, {"q": QueueCounts("q", {0: 5, 3: 5}, inbox=1)})
    now = QueuesSnapshot(
        12.0, {"q": QueueCounts("q", {0: 1, 3: 5}, inbox=0), "new": QueueCounts("new", {0: 9})}
    )

    assert change_per_s(before, now, "q") == pytest.approx(-2.5)
    assert change_per_s(before, now, "new") is None
    assert change_per_s(None, now, "q") is None
    assert change_per_s(now, now, "q") is None


def test_totals_are_told() -> None:
    assert total_of([MAIL, MAIL]) == "2,026 waiting, 10 parked, 4 dead in 2 queues"
    assert total_of([]) == "0 waiting, 0 parked, 0 dead in 0 queues"


def test_purge_says_what_goes_and_what_stays() -> None:
    assert described([MAIL]) == "1,013 in mail (5 parked and 2 dead stay)"
    assert described([QueueCounts("a", {0: 1}), QueueCounts("b", {0: 2}, dead=1)]) == (
        "1 in a, 2 in b (1 dead stay)"
    )
    assert total({"a": 1}) == "purged 1 message (a 1)"
    assert total({"a": 1000, "b": 2}) == "purged 1,002 messages (a 1,000, b 2)"


@pytest.mark.parametrize(
    ("member", "binding"),
    [
        (f"key{SEP}{SEP}mail".encode(), BoundQueue("mail", "x", "key")),
        (f"a.#{SEP}^a\\..*?${SEP}mail".encode(), BoundQueue("mail", "x", "a.#")),
        (f"{SEP}{SEP}".encode(), BoundQueue("", "x", "")),
        (b"somebody else's", None),
        (f"a{SEP}b{SEP}c{SEP}d".encode(), None),
        (f"k{SEP}{SEP}".encode() + b"\xff", BoundQueue("\ufffd", "x", "k")),
    ],
)
def test_member_of_a_binding_set_is_read(member: bytes, binding: BoundQueue | None) -> None:
    assert parsed("x", member, SEP) == binding
