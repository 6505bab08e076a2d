"""`greenq top`: what its model makes of replies and events, and how that fills a screen."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from greenq.cli import top
from greenq.cli.queues import TakersByQueue
from greenq.cli.top import ask as top_ask
from greenq.cli.top.ask import Asker, Sampler
from greenq.cli.top.keyboard import read_keys
from greenq.cli.top.model import (
    KINDS,
    ClusterSnapshot,
    EventTally,
    Filter,
    Greenlets,
    Model,
    Picture,
    quantile_s,
    sparkline,
)
from greenq.cli.top.view import View, draw, lag, rate
from greenq.errors import ConnectionLost
from greenq.events.cluster_state import State
from greenq.remote.queue_counts import QueuesSnapshot, from_counts
from greenq.transport.members import Roll
from tests.support import wait_until

WELL: dict[str, Any] = {
    "ok": "ok",
    "active": 12,
    "size": 100,
    "waiting": 3,
    "processed": 1000,
    "uptime": 7300,
    "queues": ["celery"],
    "paused": [],
    "draining": False,
    "blocked": None,
}
BLOCKER = {"at": 1.0, "for_s": 4.21, "by": "mail.send[id-1]", "where": "mail.py:7"}
BLOCKED = {**WELL, "ok": "blocked", "blocked": BLOCKER}
HUB = {"lag_s": 0.0004, "lag": {"count": 10, "max_s": 0.3, "buckets": [[0.001, 9], [None, 1]]}}
GREENLETS = {
    "running": 12,
    "groups": [{"waits_on": "recv 10.0.0.7:443", "count": 11}, {"waits_on": "sleep 9", "count": 1}],
    "greenlets": [
        {
            "id": "id-1",
            "name": "shop.pay",
            "age_s": 4.25,
            "hub_s": 0.0021,
            "waits_on": "recv 10.0.0.7:443",
            "stack": ["/srv/shop/pay.py:33 pay", "/v/lib/python3.11/ssl.py:7 recv"],
        }
    ],
}


def depths(at_s: float = 0.0, **waiting: int) -> QueuesSnapshot:
    """Return the queues with so many messages each."""
    rest = {3: 0, 6: 0, 9: 0, "inbox": 0, "parked": 0, "dead": 0}
    queues = {name: from_counts(name, {0: count, **rest}, None) for name, count in waiting.items()}
    return QueuesSnapshot(at_s, queues)


def looked(*looks: ClusterSnapshot) -> Picture:
    model = Model()
    for look in looks:
        model.look(look)
    return model.picture()


def event(kind: str, uuid: str = "id-1", **fields: Any) -> dict[str, Any]:
    return {"type": f"task-{kind}", "uuid": uuid, **fields}


# --- workers --------------------------------------------------------------------------------------


def test_worker_has_its_numbers_from_status_and_hub() -> None:
    (worker,) = looked(ClusterSnapshot(at_s=0.0, statuses={"w@h": WELL}, hubs={"w@h": HUB})).workers

    assert (worker.state, worker.running, worker.size, worker.waiting) == ("ok", 12, 100, 3)
    assert (worker.processed, worker.per_s, worker.uptime_s) == (1000, None, 7300.0)
    # The last bucket has no upper end: what was the latest is its end.
    assert (worker.lag_s, worker.lag_p99_s) == (0.0004, 0.3)


def test_rate_is_that_of_the_last_looks_and_the_chart_s_that_of_the_last_two() -> None:
    counts = [0, 10, 20, 30, 40, 50, 60, 160]
    picture = looked(
        *(
            ClusterSnapshot(at_s=float(at), statuses={"w@h": {**WELL, "processed": count}})
            for at, count in enumerate(counts)
        )
    )

    assert picture.workers[0].per_s == (160 - 20) / 5
    assert [point.per_s for point in picture.points] == [0, 10, 10, 10, 10, 10, 10, 100]


def test_worker_that_began_anew_has_no_negative_rate() -> None:
    picture = looked(
        ClusterSnapshot(at_s=0.0, statuses={"w@h": {**WELL, "processed": 900}}, hubs={"w@h": HUB}),
        ClusterSnapshot(at_s=1.0, statuses={"w@h": {**WELL, "processed": 5}}),
    )

    assert (picture.workers[0].per_s, picture.last.per_s) == (None, 0.0)
    assert picture.workers[0].lag_p99_s is None


def test_lag_is_that_of_the_last_minute_not_since_the_worker_began() -> None:
    def hub(quick: int, slow: int) -> dict[str, Any]:
        return {"lag_s": 0.0, "lag": {"max_s": 2.0, "buckets": [[0.001, quick], [2.0, slow]]}}

    first = ClusterSnapshot(at_s=0.0, statuses={"w@h": WELL}, hubs={"w@h": hub(10, 500)})
    second = ClusterSnapshot(at_s=1.0, statuses={"w@h": WELL}, hubs={"w@h": hub(30, 500)})

    assert looked(first).workers[0].lag_p99_s == 2.0
    assert looked(first, second).workers[0].lag_p99_s == 0.001


def test_lag_of_a_blocked_worker_is_its_block() -> None:
    (worker,) = looked(
        ClusterSnapshot(at_s=0.0, statuses={"w@h": BLOCKED}, hubs={"w@h": HUB})
    ).workers

    assert (worker.lag_s, worker.lag_p99_s) == (4.21, 4.21)


def test_sums_leave_out_pools_of_which_only_what_runs_is_known() -> None:
    look = ClusterSnapshot(
        at_s=0.0, statuses={"w@h": WELL}, foreign={"c@h": {"active": 80, "processed": 5}}
    )

    assert (looked(look).last.running, looked(look).last.size) == (12, 100)


def test_blocked_worker_says_by_what() -> None:
    (worker,) = looked(ClusterSnapshot(at_s=0.0, statuses={"w@h": BLOCKED})).workers

    assert worker.state == "blocked"
    assert worker.details == "blocked 4.2 s by mail.send[id-1] at mail.py:7"


def test_worker_that_does_not_reply_is_silent_for_a_while_then_gone() -> None:
    there = ClusterSnapshot(at_s=0.0, statuses={"a@h": WELL, "b@h": WELL})
    one = {"a@h": WELL}

    later = looked(there, ClusterSnapshot(at_s=4.5, statuses=one))
    assert [(each.node, each.state, each.details) for each in later.workers] == [
        ("a@h", "ok", ""),
        ("b@h", "silent", "no reply for 4s"),
    ]
    # What is not there has no slots.
    assert later.last.size == 100
    assert [
        each.node for each in looked(there, ClusterSnapshot(at_s=61.0, statuses=one)).workers
    ] == ["a@h"]


def test_worker_of_another_kind_has_what_heartbeats_tell() -> None:
    picture = looked(
        ClusterSnapshot(at_s=0.0, foreign={"old@h": {"active": 2, "processed": 70}, "new@h": {}})
    )
    new, old = picture.workers

    assert (old.state, old.ours, old.running, old.size, old.processed) == ("ok", False, 2, None, 70)
    assert (new.state, new.running, new.processed) == ("ok", None, None)


@pytest.mark.parametrize("reply", [None, 7, [], {"active": "x", "size": -1, "processed": True}])
def test_nonsense_in_a_reply_is_nothing_known(reply: Any) -> None:
    lags = {"lag_s": float("nan"), "lag": {"buckets": [7, [1], ["x", "y"], [None, 1]]}}
    picture = looked(ClusterSnapshot(at_s=0.0, statuses={"w@h": reply}, hubs={"w@h": lags}))

    (worker,) = picture.workers
    assert (worker.running, worker.size, worker.processed, worker.lag_s) == (None,) * 4
    assert draw(picture, View(address="a", time="t"), 80, 24)


@pytest.mark.parametrize(
    ("buckets", "share", "quantile"),
    [({}, 0.99, None), ({0.1: 0}, 0.5, None), ({0.1: 99, 2.0: 1}, 0.99, 0.1),
     ({2.0: 2, 0.1: 98}, 0.99, 2.0)],
)  # fmt: skip
def test_quantile_is_the_end_of_its_bucket(
    buckets: Mapping[float, int], share: float, quantile: float | None
) -> None:
    assert quantile_s(buckets, share) == quantile


# --- queues and tasks -----------------------------------------------------------------------------


def test_deepest_queue_comes_first_with_its_change() -> None:
    picture = looked(
        ClusterSnapshot(at_s=0.0, queues=depths(0.0, celery=100, mail=5)),
        ClusterSnapshot(at_s=2.0, queues=depths(2.0, celery=40, mail=50, new=1)),
    )

    assert [(each.name, each.change_per_s) for each in picture.queues] == [
        ("mail", 22.5),
        ("celery", -30.0),
        ("new", None),
    ]
    assert [point.depth for point in picture.points] == [105, 91]


def test_trouble_leaves_what_was_seen_and_is_over_with_the_next_look() -> None:
    well = ClusterSnapshot(at_s=0.0, statuses={"w@h": WELL}, queues=depths(celery=1))
    lost = ClusterSnapshot(at_s=1.0, trouble="the server is gone")

    assert looked(well, lost).trouble == "the server is gone"
    assert looked(well, lost).workers == looked(well).workers
    assert len(looked(well, lost).points) == 1
    assert looked(well, lost, replace(well, at_s=2.0)).trouble is None


def test_tasks_are_counted_by_name_and_kind_though_most_events_tell_an_id_alone() -> None:
    tally = EventTally()
    tally.mark(0.0)
    for number in range(20):
        uuid = f"id-{number}"
        tally.note(event("received", uuid, name="shop.pay"))
        tally.note(event("started", uuid))
        tally.note(event("failed" if number < 5 else "succeeded", uuid, runtime=0.5))
    tally.note(event("succeeded", "id-of-before"))
    tally.mark(4.0)
    pay, unknown = tally.tasks()

    assert (pay.name, unknown.name) == ("shop.pay", "(unknown)")
    assert {kind: count for kind, count in pay.counts.items() if count} == {
        "received": 20, "started": 20, "succeeded": 15, "failed": 5,
    }  # fmt: skip
    assert (pay.per_s["received"], pay.per_s["failed"]) == (5.0, 1.25)
    assert (pay.runtime_s, unknown.runtime_s) == (0.5, None)
    total = tally.total()
    assert (total.counts["succeeded"], total.per_s["succeeded"]) == (16, 4.0)


def test_rates_of_tasks_are_those_of_the_last_looks() -> None:
    tally = EventTally()
    for at in range(10):
        if at == 2:
            tally.note(event("received", name="once"))
        tally.mark(float(at))

    assert tally.tasks()[0].per_s == dict.fromkeys(KINDS, 0.0)


@pytest.mark.parametrize(
    "odd",
    [{}, {"type": 7}, {"type": "worker-heartbeat"}, {"type": "task-progress", "uuid": "x"},
     {"type": "task-received"}, {"type": "task-received", "uuid": ["x"]}],
)  # fmt: skip
def test_event_that_is_none_of_a_task_counts_for_nothing(odd: dict[str, Any]) -> None:
    tally = EventTally()
    tally.note(odd)

    assert tally.tasks() == []


def test_names_that_anybody_may_make_up_do_not_grow_without_end() -> None:
    tally = EventTally()
    for number in range(1500):
        tally.note(event("received", f"id-{number}", name=f"task-{number}"))
    others = next(task for task in tally.tasks() if task.name == "(others)")

    assert (len(tally.tasks()), others.counts["received"]) == (1001, 500)


# --- charts and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "rows", "lines"),
    [
        ([], 3, 1, ["   "]),
        ([0, 0], 3, 1, [" ▁▁"]),
        ([0, 1, 7], 3, 1, ["▁▂█"]),
        ([9, 0, 1, 7], 3, 1, ["▁▂█"]),
        ([0, 1, 8, 15], 4, 2, ["  ▁█", "▁▂██"]),
    ],
)
def test_sparkline_has_eight_levels_a_row_and_tells_0_from_little(
    values: Sequence[float], width: int, rows: int, lines: list[str]
) -> None:
    assert sparkline(values, width, rows) == lines


def test_numbers_are_short() -> None:
    assert [rate(each) for each in (0, 0.44, 9.96, 123.4, 12_345)] == [
        "0", "0.4", "10.0", "123", "12.3k",
    ]  # fmt: skip
    assert [lag(each) for each in (0, 0.0004, 0.012, 1.25, 4000)] == [
        "0ms", "0.4ms", "12ms", "1.2s", "4,000.0s",
    ]  # fmt: skip


# --- the screen -----------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Picture:
    """Three workers, two queues, tasks, and the greenlets of the first worker."""
    model = Model()
    for at in range(90):
        own = {**WELL, "processed": 1000 + at * 10}
        model.add_events(
            [
                event("received", f"id-{at}", name="shop.pay"),
                event("retried" if at % 9 == 0 else "succeeded", f"id-{at}"),
            ]
        )
        queues = depths(float(at), celery=at * 100, mail=7)
        paused = replace(queues.queues["mail"], paused={"by": "me@h"})
        model.look(
            ClusterSnapshot(
                at_s=float(at),
                statuses={"a@h": own, "b@h": BLOCKED},
                foreign={"old@h": {}},
                hubs={"a@h": {**HUB, "lag": {"max_s": 0.3, "buckets": [[0.3, at]]}}},
                queues=replace(queues, queues={**queues.queues, "mail": paused}),
                greenlets=Greenlets(node="a@h", reply=GREENLETS),
            )
        )
    return model.picture()


def lines(picture: Picture, width: int, height: int | None = None, **view: Any) -> list[str]:
    """Return the screen as text, without what is blank at the ends."""
    shown = View(**{"address": "10.0.0.1:6379/0", "time": "14:03:22", "chosen": "a@h", **view})
    return [line.plain.rstrip() for line in draw(picture, shown, width, height)]


def line(screen: list[str], begin: str) -> str:
    """Return the one line that begins with a word."""
    (found,) = (each for each in screen if each.lstrip(" ▸").startswith(begin))
    return found


def test_small_screen_has_all_parts(busy: Picture) -> None:
    screen = lines(busy, 80, 24)

    assert screen[0].split() == [
        *("greenq", "top", "10.0.0.1:6379/0", "3", "workers", "1", "blocked", "14:03:22"),
    ]
    # Sixty samples have room beside name and number.
    assert line(screen, "pool") == f" pool    {'█' * 60} 24/200"
    assert line(screen, "queues").endswith("█ 8,907")
    assert line(screen, "tasks/s").endswith("█ 10")
    assert line(screen, "a@h").split() == [
        *("▸a@h", "ok", "12/100", "3", "1,890", "10", "300ms", "0.4ms", "2h"),
    ]
    assert line(screen, "old@h").split() == ["old@h", "ok", *"-------"]
    assert "  b@h: blocked 4.2 s by mail.send[id-1] at mail.py:7" in screen
    celery, mail = line(screen, "celery"), line(screen, "mail")
    assert celery[:40].split() == ["celery", "8,900", "+100"]
    assert mail[:40].split() == ["mail", "paused", "7", "0"]
    assert "shop.pay" in mail
    assert screen[-1] == " q quit   ↑↓ worker   g greenlets   p pause   ? help"


def test_greenlets_take_the_room_of_queues_and_tasks(busy: Picture) -> None:
    screen = lines(busy, 80, 24, greenlets=True)

    assert line(screen, "GREENLETS") == " GREENLETS of a@h   12 running"
    assert line(screen, "recv").split() == ["recv", "10.0.0.7:443", "11"]
    # The user's own line, not the library's that it waits in.
    assert line(screen, "shop.pay").split() == [
        *("shop.pay", "4.2s", "2.1ms", "recv", "10.0.0.7:443", "pay.py:33", "pay", "id-1"),
    ]
    assert not any("QUEUE" in each for each in screen)
    assert "g queues" in screen[-1]


def test_large_screen_has_greenlets_too_and_says_beside_what_blocks(busy: Picture) -> None:
    screen = lines(busy, 160, 50)

    assert line(screen, "b@h").endswith("blocked 4.2 s by mail.send[id-1] at mail.py:7")
    assert "hub lag" in line(screen, "queues")
    assert "RETRY/S" in line(screen, "QUEUE")
    assert "shop.pay" in line(screen, "recv")
    assert line(screen, "recv").endswith("pay.py:33 pay  id-1")


@pytest.mark.parametrize(
    ("width", "height"),
    list(itertools.product((1, 20, 60, 80, 119, 120, 250), (1, 2, 9, 24, 40, 90))),
)
@pytest.mark.parametrize("greenlets", [False, True])
def test_every_screen_is_just_as_large_as_the_terminal(
    busy: Picture, width: int, height: int, greenlets: bool
) -> None:
    view = View(address="10.0.0.1", time="14:03", chosen="b@h", greenlets=greenlets)
    drawn = draw(busy, view, width, height)

    assert len(drawn) == height
    assert {each.cell_len for each in drawn} == {width}


def test_chosen_worker_is_seen_among_many() -> None:
    picture = looked(
        ClusterSnapshot(at_s=0.0, statuses={f"w{number:02}@h": WELL for number in range(30)})
    )
    screen = lines(picture, 80, 24, chosen="w17@h")

    assert line(screen, "w17@h").startswith("▸")
    shown = sum("@h " in each for each in screen)
    assert 4 < shown < 12
    assert f"   and {30 - shown} more" in screen


def test_without_events_of_tasks_it_says_how_to_have_them() -> None:
    screen = lines(looked(ClusterSnapshot(at_s=0.0, statuses={"w@h": WELL})), 80, 24)

    assert any("no task events received" in each for each in screen)
    assert any("--events" in each for each in screen)


@pytest.mark.parametrize(
    ("chosen", "reply", "said"),
    [
        ("a@h", {"running": 0, "groups": [], "greenlets": []}, "no task is running"),
        ("a@h", None, "no reply yet"),
        ("a@h", {"error": "TypeError('limit')"}, "error: TypeError('limit')"),
        ("b@h", None, "blocked 4.2 s by mail.send[id-1] at mail.py:7"),
        ("old@h", None, "only greenq's workers report their greenlets"),
        (None, None, "no worker"),
    ],
)
def test_without_greenlets_it_says_why(
    busy: Picture, chosen: str | None, reply: Any, said: str
) -> None:
    told = None if chosen is None else Greenlets(node=chosen, reply=reply)
    screen = lines(replace(busy, greenlets=told), 80, 24, chosen=chosen, greenlets=True)

    assert screen[screen.index(next(each for each in screen if "GREENLETS" in each)) + 1] == (
        f" {said}"
    )


def test_trouble_and_pauses_are_seen(busy: Picture) -> None:
    lost = lines(replace(busy, trouble="10.0.0.1:6379 cannot be reached"), 80, 24)
    paused = lines(busy, 80, 24, paused=True)

    assert lost[-1].startswith(" 10.0.0.1:6379 cannot be reached")
    assert lost[-1].endswith("q quit")
    assert "PAUSED" in paused[0]
    assert "p resume" in paused[-1]


def test_nothing_that_came_from_elsewhere_can_move_the_cursor() -> None:
    evil = "a\x1b[2J\nb"
    model = Model()
    model.add_events([event("received", name=evil)])
    model.look(
        ClusterSnapshot(
            at_s=0.0,
            statuses={evil: {**BLOCKED, "blocked": {**BLOCKER, "by": evil}}},
            queues=depths(**{evil: 1}),
            greenlets=Greenlets(
                node=evil,
                reply={
                    "running": 1,
                    "groups": [{"waits_on": evil, "count": 1}],
                    "greenlets": [{"name": evil, "id": evil, "waits_on": evil, "stack": [evil]}],
                },
            ),
        )
    )
    picture = replace(model.picture(), trouble=None)

    for view in ({}, {"greenlets": True}, {"warning": evil}):
        screen = lines(picture, 160, 50, chosen=evil, **view)
        assert all(each.isprintable() for each in screen)
        assert any(each.startswith(r"▸a\x1b[2J\nb  blocked") for each in screen)


def test_json_has_all_that_is_known(busy: Picture) -> None:
    told = busy.as_json()

    assert told["workers"]["a@h"]["lag_p99_s"] == 0.3
    assert set(told["queues"]["mail"]) == {
        *("waiting", "depth", "inbox", "parked", "dead", "paused", "change_per_s"),
        "drained_in_s",
    }
    assert told["tasks"]["shop.pay"]["counts"]["retried"] == 10
    assert told["total"]["waiting"] == 8907
    assert told["greenlets"] == {"node": "a@h", "reply": GREENLETS}


# --- filters and order ----------------------------------------------------------------------------


def filtered(*given: str, order: str = "rate") -> Picture:
    """Return what ``--filter`` and ``--sort`` leave of two workers, queues and tasks."""
    parser = argparse.ArgumentParser()
    top.add_options(parser)
    args = parser.parse_args([part for text in given for part in ("--filter", text)])
    model = Model(Filter.of(pair for pairs in args.filter for pair in pairs), order)
    model.look(
        ClusterSnapshot(
            at_s=1.0,
            statuses={"mail1@h": WELL, "web1@h": WELL},
            queues=depths(mail=5, web=7),
        )
    )
    model.add_events([event("received", f"id-{at}", name="mail.send") for at in range(3)])
    model.add_events([event("received", "id-9", name="web.fetch"), event("failed", "id-9")])
    model.look(
        ClusterSnapshot(at_s=2.0, statuses={"mail1@h": WELL, "web1@h": WELL}, queues=depths(mail=5))
    )
    return model.picture()


@pytest.mark.parametrize(
    ("given", "workers", "tasks"),
    [
        ((), ["mail1@h", "web1@h"], ["mail.send", "web.fetch"]),
        (("MAIL",), ["mail1@h"], ["mail.send"]),
        (("worker:web",), ["web1@h"], ["mail.send", "web.fetch"]),
        (("task:web", "task:mail"), ["mail1@h", "web1@h"], ["mail.send", "web.fetch"]),
        (("task:*.fetch",), ["mail1@h", "web1@h"], ["web.fetch"]),
        (("task:*fetc",), ["mail1@h", "web1@h"], []),
    ],
)
def test_filter_leaves_the_lines_whose_names_fit(
    given: tuple[str, ...], workers: list[str], tasks: list[str]
) -> None:
    picture = filtered(*given)

    assert [each.node for each in picture.workers] == workers
    assert [each.name for each in picture.tasks] == tasks
    # Sums are of all.
    assert picture.last.size == 200
    assert picture.all_tasks is not None
    assert picture.all_tasks.counts["received"] == 4


def test_filter_is_named_where_it_leaves_something_out() -> None:
    drawn = draw(filtered("queue:web"), View(address="here", time="now"), 100)
    assert "only queue:web" in drawn[0].plain
    assert not any(" mail " in line.plain for line in drawn)


@pytest.mark.parametrize("text", ["", "queue:"])
def test_filter_without_a_name_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        filtered(text)
    assert f"no name in {text!r}" in capsys.readouterr().err


def test_tasks_are_sorted_as_is_asked_for() -> None:
    assert [each.name for each in filtered(order="failures").tasks] == ["web.fetch", "mail.send"]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"q", ["q"]),
        (b"Gp", ["g", "p"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\t\x1b[Z\x1a", ["down", "up", "suspend"]),
        (b"\x1b[15~\x1b[1;5Aq", ["q"]),
        ("é".encode(), []),
        (b"\x1b", []),
        (b"\x00 7\n", []),
    ],
)
def test_keys_are_named(typed: bytes, keys: list[str]) -> None:
    assert read_keys(typed) == keys


# --- asking ---------------------------------------------------------------------------------------


UNKNOWN = {"error": "KeyError('status')"}


class Cluster:
    """Stands for the app, the workers and the server: answers, and notes who was asked what."""

    def __init__(self, **nodes: Any) -> None:
        self.nodes = nodes
        self.asked: list[tuple[str, list[str] | None]] = []
        self.told: list[tuple[str, list[str]]] = []
        self.transport = self.control = self.mailbox = self.broker = self

    def ask(
        self, _app: Any, _args: Any, method: str, arguments: Any = None, *, destination: Any = None
    ) -> dict[str, Any]:
        """Stand for `greenq.cli.common.ask`."""
        self.asked.append((method, destination))
        nodes = destination or self.nodes
        answers = {
            "ping": {"ok": "pong"},
            "hub": HUB,
            "greenlets": GREENLETS,
            "active_queues": [{"name": "foreign"}],
            "enable_events": {"ok": "task events enabled"},
        }
        return {
            node: self.nodes[node] if method == "status" else answers[method]
            for node in nodes
            if node in self.nodes
        }

    def tell(self, method: str, *, destination: list[str]) -> None:
        self.told.append((method, destination))

    def roll(self, _app: Any) -> Roll:
        """Stand for `greenq.cli.common.called_roll`."""
        ours = {node for node, reply in self.nodes.items() if reply != UNKNOWN}
        queues = {node: ["celery"] for node in ours}
        return Roll(dict.fromkeys(ours, 2.0), {}, set(), [], 0.0, queues, self.nodes.keys() - ours)

    def paused(self) -> dict[str, Any]:
        return {}

    def depths(self, names: list[str]) -> dict[str, Any]:
        rest = {3: 0, 6: 0, 9: 0, "inbox": 0, "parked": 0, "dead": 0}
        return {name: {0: 1, **rest} for name in names}


def asker(cluster: Any, monkeypatch: pytest.MonkeyPatch, *, events: bool = False) -> Asker:
    monkeypatch.setattr(top_ask, "ask", cluster.ask)
    monkeypatch.setattr(top_ask, "called_roll", cluster.roll)
    monkeypatch.setattr(top_ask.queues, "known_queues", lambda _app: ["celery"])
    return Asker(cluster, argparse.Namespace(events=events), State())


def test_look_is_one_broadcast_and_questions_to_those_who_replied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(b=WELL, a={**WELL, "queues": ["mail"]})
    look = asker(cluster, monkeypatch).look()

    assert cluster.asked == [("status", None), ("hub", ["b", "a"]), ("greenlets", ["a"])]
    assert list(look.statuses) == ["b", "a"]
    assert list(look.queues.queues) == ["celery", "mail"]
    assert look.greenlets == Greenlets(node="a", reply=GREENLETS)


def test_nodes_that_do_not_know_status_are_asked_once_and_pinged_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(old=UNKNOWN, new=WELL)
    ours = asker(cluster, monkeypatch)
    first = ours.look("old")
    cluster.asked.clear()
    second = ours.look("old")

    assert cluster.asked == [
        *(("ping", None), ("status", ["new"]), ("hub", ["new"]), ("active_queues", ["old"]))
    ]
    assert second.takers == TakersByQueue({"celery": ["new"], "foreign": ["old"]}, all_known=True)
    for look in (first, second):
        assert (list(look.statuses), list(look.foreign)) == (["new"], ["old"])
        assert look.greenlets == Greenlets(node="old")


def test_worker_whose_hub_stands_still_is_not_asked_for_greenlets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(w=BLOCKED)

    assert asker(cluster, monkeypatch).look("w").greenlets == Greenlets(node="w")
    assert cluster.asked == [("status", None), ("hub", ["w"])]


def test_events_are_enabled_once_and_disabled_where_they_were_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(a=WELL, old=UNKNOWN)
    with asker(cluster, monkeypatch, events=True) as ours:
        ours.look()
        ours.look()
        cluster.nodes["late"] = WELL
        ours.look()

    enabled = [nodes for method, nodes in cluster.asked if method == "enable_events"]
    assert enabled == [["a", "old"], ["late"]]
    assert cluster.told == [("disable_events", ["a", "late", "old"])]


def test_events_are_not_touched_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(a=WELL)
    with asker(cluster, monkeypatch) as ours:
        ours.look()

    assert "enable_events" not in dict(cluster.asked)
    assert cluster.told == []


class Looks:
    """Stands for an asker; its next look may fail."""

    def __init__(self) -> None:
        self.count = 0
        self.fails: Exception | None = None
        self.asked: list[str] = []

    def look(self, _chosen: str | None) -> ClusterSnapshot:
        self.count += 1
        if self.fails is not None:
            raise self.fails
        return ClusterSnapshot(at_s=float(self.count))

    def greenlets(self, node: str) -> Greenlets:
        self.asked.append(node)
        return Greenlets(node=node)


def test_chosen_worker_is_asked_at_once_also_while_looks_are_paused() -> None:
    looks: Any = Looks()
    found: list[Any] = []
    with Sampler(looks, 1000.0) as sampler:
        sampler.pause(on=True)
        sampler.choose("w@h")
        wait_until(lambda: found.extend(sampler.take()) or found)

    assert found == [Greenlets(node="w@h")]
    assert (looks.count, looks.asked) == (0, ["w@h"])


def test_lost_server_is_trouble_not_the_end() -> None:
    looks: Any = Looks()
    looks.fails = ConnectionLost("the server hung up")
    found: list[Any] = []
    with Sampler(looks, 0.001) as sampler:
        wait_until(lambda: found.extend(sampler.take()) or len(found) > 2)

    assert found[0].trouble == "the server hung up"


def test_error_that_ends_the_thread_reaches_whoever_takes() -> None:
    looks: Any = Looks()
    looks.fails = ZeroDivisionError("a bug")
    with Sampler(looks, 0.001) as sampler, pytest.raises(ZeroDivisionError, match="a bug"):
        wait_until(sampler.take)
