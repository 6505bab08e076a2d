"""Every command of remote control: the shape of its reply, what it does, and what it refuses.

They are asked as over the wire, so a reply is what JSON leaves of it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from greenq.commands import registry
from greenq.commands.registry import Panel, control_command, inspect_command
from greenq.errors import OperationalError
from tests.unit.node import NODE, Node
from tests.unit.rig import DEADLINE_S, settle, wait_for

# What Celery tells of a request: wire format, section 11.4.
REQUEST_KEYS = [
    "id", "name", "args", "kwargs", "type", "hostname", "time_start", "acknowledged",
    "delivery_info", "worker_pid",
]  # fmt: skip


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(concurrency=3)
    yield made
    made.close()


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Panel:
    """The process's commands; what a test adds is gone behind it."""
    monkeypatch.setattr(registry.panel, "_commands", dict(registry.panel._commands))
    return registry.panel


# --- the worker -----------------------------------------------------------------------------------


def test_ping_says_pong(node: Node) -> None:
    assert node.ask("ping") == {"ok": "pong"}
    assert node.ask("ping", any="argument") == {"ok": "pong"}


def test_status_tells_how_the_worker_does(node: Node) -> None:
    for number in range(4):
        node.give("wait", f"t{number}")

    told = node.ask("status")

    assert told.pop("sw").startswith("greenq ")
    assert told == {
        "ok": "ok", "active": 3, "size": 3, "waiting": 1, "processed": 4, "uptime": 0,
        "held": {"celery": 1},
        "pid": os.getpid(), "queues": ["celery"], "paused": [], "draining": False,
        "blocked": None,
    }  # fmt: skip


def test_report_tells_software_and_settings_without_passwords() -> None:
    secret = "s3cret"
    node = Node(
        settings={"broker_url": f"redis://me:{secret}@127.0.0.1:1/3", "timezone": "Asia/Tokyo"}
    )

    texts = [node.ask("report")["ok"], str(node.ask("conf")), str(node.ask("stats"))]

    assert "software -> greenq:" in texts[0]
    assert "timezone: 'Asia/Tokyo'" in texts[0]
    assert not any(secret in text for text in texts)


def test_conf_tells_what_was_set_or_everything(node: Node) -> None:
    assert list(node.ask("conf")) == ["broker_url"]

    everything = node.ask("dump_conf", with_defaults=True)

    assert everything["worker_prefetch_multiplier"] >= 1
    assert everything["task_queues"] is None or isinstance(everything["task_queues"], list)
    assert len(everything) > 50


def test_stats_have_the_shape_that_monitors_know(node: Node) -> None:
    node.give("add", "t1", 1, 2)
    node.give("wait", "t2")

    told = node.ask("stats")

    assert {"total", "pid", "clock", "uptime", "pool", "broker", "prefetch_count", "rusage"} <= set(
        told
    )
    assert told["total"] == {"add": 1, "wait": 1}
    assert told["clock"].isdecimal()
    assert told["pool"]["max-concurrency"] == told["prefetch_count"] == 3
    assert told["pool"]["timeouts"] == [0, 0]
    assert len(told["rusage"]) == 16
    assert (told["broker"]["port"], told["broker"]["virtual_host"]) == (1, "0")
    assert "autoscaler" not in told


def test_stats_tell_of_the_autoscaler() -> None:
    node = Node(autoscale=(10, 2))

    assert node.ask("stats")["autoscaler"] == {"max": 10, "min": 2, "current": 2, "qty": 0}


def test_clock_goes_on_with_each_request(node: Node) -> None:
    first, second = node.ask("clock")["clock"], node.ask("clock")["clock"]

    assert second > first > 0


def test_hello_exchanges_revoked_ids(node: Node) -> None:
    node.parts.state.revoked.add("mine")

    told = node.ask("hello", from_node="other@host", revoked=["theirs", 5, None, ["nested"]])

    assert told["revoked"] == ["mine", "theirs"]
    assert told["clock"] > 0


def test_hello_takes_the_ids_of_older_workers_with_their_times(node: Node) -> None:
    assert node.ask("hello", from_node="other@host", revoked={"a": 1.5})["revoked"] == ["a"]


@pytest.mark.parametrize("revoked", [None, "text", 5, True])
def test_hello_with_anything_else_brings_nothing(node: Node, revoked: object) -> None:
    assert node.ask("hello", from_node="other@host", revoked=revoked)["revoked"] == []


def test_hello_of_itself_is_no_neighbour(node: Node) -> None:
    assert node.ask("hello", from_node=NODE, revoked=["a"]) is None
    assert "a" not in node.parts.state.revoked


def test_memory_is_told_as_text(node: Node) -> None:
    assert float(node.ask("memsample").removesuffix("MB")) > 1

    lines = node.ask("memdump", samples=3).splitlines()

    assert len(lines) == 4
    assert lines[0].startswith("rss ")


def test_objgraph_says_what_is_missing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("greenq.commands.diagnostics.importlib.import_module", missing)

    assert "objgraph is not installed" in node.ask("objgraph")["error"]


# --- tasks ----------------------------------------------------------------------------------------


def test_active_tells_what_runs_the_oldest_first(node: Node) -> None:
    before = time.time()
    node.give("wait", "t1", 1, "a")
    node.give("wait", "t2")

    first, second = node.ask("active")

    assert list(first) == REQUEST_KEYS
    assert (first["id"], second["id"]) == ("t1", "t2")
    assert first["args"] == [1, "a"]
    assert first["kwargs"] == {}
    assert (first["name"], first["type"], first["hostname"]) == ("wait", "wait", NODE)
    assert before - 0.1 < first["time_start"] < time.time() + 0.1
    assert first["acknowledged"] is False
    assert first["delivery_info"] == {
        "exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False,
    }  # fmt: skip
    assert node.ask("dump_active", safe=True)[0]["args"] == "(1, 'a')"


def test_active_tells_what_is_acknowledged_already() -> None:
    node = Node(settings={"task_acks_late": False})
    node.give("wait", "t1")

    assert node.ask("active")[0]["acknowledged"] is True
    node.close()


def test_what_waits_for_a_slot_is_reserved_a_page_at_a_time(node: Node) -> None:
    for number in range(10):
        node.give("wait", f"t{number}")

    told = node.ask("reserved")

    assert [each["id"] for each in told] == [f"t{number}" for number in range(3, 10)]
    assert told[0]["time_start"] is None
    assert [each["id"] for each in node.ask("reserved", limit=2, offset=1)] == ["t4", "t5"]
    assert node.ask("dump_reserved", offset=100) == []


def test_what_waits_for_its_rate_limit_is_reserved(node: Node) -> None:
    for number in range(3):
        node.give("add", f"t{number}", 1, 2)

    assert [each["id"] for each in node.ask("reserved")] == ["t1", "t2"]


def test_scheduled_is_told_in_the_order_of_the_etas_a_page_at_a_time(node: Node) -> None:
    for wait_s in (300, 100, 200):
        node.give("add", f"in {wait_s}", 1, 2, countdown=wait_s)

    told = node.ask("scheduled")

    assert [each["request"]["id"] for each in told] == ["in 100", "in 200", "in 300"]
    assert list(told[0]) == ["eta", "priority", "request"]
    assert told[0]["priority"] == 6
    assert datetime.fromisoformat(told[0]["eta"]) > datetime.now(UTC)
    assert list(told[0]["request"]) == REQUEST_KEYS
    page = node.ask("dump_schedule", limit=1, offset=1)
    assert [each["request"]["id"] for each in page] == ["in 200"]


def test_what_is_parked_on_the_server_is_listed_behind_what_waits_here(node: Node) -> None:
    for number in range(3):
        node.give("add", f"here {number}", 1, 2, countdown=100)
    for number in range(3):
        text = node.app.producer.prepare("add", (1, 2), {}, {"task_id": f"parked {number}"})["text"]
        node.broker.all_parked.append((1e9 + number, "celery", text.encode()))
    node.broker.all_parked += [(2e9, "elsewhere", b"{}"), (3e9, "celery", b"no task")]

    told = node.ask("scheduled")
    pages = [node.ask("scheduled", limit=2, offset=offset) for offset in (0, 2, 4, 6, 8)]

    assert [each for page in pages for each in page] == told
    ids = [each["request"]["id"] for each in told]
    assert ids == [f"here {n}" for n in range(3)] + [f"parked {n}" for n in range(3)] + [None]
    assert list(told[3]["request"]) == REQUEST_KEYS
    assert told[3]["eta"] == "2001-09-09T01:46:40+00:00"
    assert told[3]["request"]["delivery_info"]["routing_key"] == "celery"


@pytest.mark.parametrize("due", [1e18, -1e18, math.inf, math.nan])
def test_a_parked_message_that_is_never_due_hides_no_other(node: Node, due: float) -> None:
    text = node.app.producer.prepare("add", (1, 2), {}, {"task_id": "t1"})["text"].encode()
    node.broker.all_parked = [(due, "celery", text), (1e9, "celery", text)]

    assert [each["request"]["id"] for each in node.ask("scheduled")] == ["t1", "t1"]


@pytest.mark.parametrize("method", ["reserved", "scheduled"])
@pytest.mark.parametrize("page", [{"limit": "many"}, {"offset": None}, {"limit": [1]}])
def test_a_page_that_is_no_number_is_refused(node: Node, method: str, page: dict[str, Any]) -> None:
    assert list(node.ask(method, **page)) == ["error"]


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}])
def test_a_page_before_the_beginning_is_refused(node: Node, page: dict[str, int]) -> None:
    for number in range(2):
        node.give("add", f"t{number}", 1, 2, countdown=100)

    assert "is -1, not a whole number from 0" in node.ask("scheduled", **page)["error"]


def test_query_task_tells_where_tasks_are(node: Node) -> None:
    node.give("wait", "runs")
    node.give("add", "runs first", 1, 2)
    node.give("add", "waits", 1, 2)
    node.give("add", "eta", 1, 2, countdown=100)

    told = node.ask("query_task", ids=["runs", "waits", "eta", "unknown"])

    assert {task_id: where for task_id, (where, _info) in told.items()} == {
        "runs": "active", "waits": "reserved", "eta": "scheduled",
    }  # fmt: skip
    assert list(told["waits"][1]) == REQUEST_KEYS
    assert list(node.ask("query_task", ids="waits")) == ["waits"]
    assert node.ask("query_task", ids=None) == {}


def test_query_task_finds_what_is_parked_on_the_server(node: Node) -> None:
    text = node.app.producer.prepare("add", (1, 2), {}, {"task_id": "parked"})["text"]
    node.broker.all_parked += [(1e9, "celery", b"no task"), (2e9, "celery", text.encode())]

    told = node.ask("query_task", ids=["parked", "unknown"])
    assert list(told) == ["parked"]
    state, info = told["parked"]
    assert (state, info["id"], info["args"]) == ("scheduled", "parked", [1, 2])


def test_registered_tells_tasks_and_their_attributes(node: Node) -> None:
    node.app.task(name="celery.builtin")(print)

    def told(**arguments: Any) -> list[str]:
        """Return what is told of this app's own tasks; others may be shared by all apps."""
        own = ("add", "wait", "celery.builtin")
        return [text for text in node.ask("registered", **arguments) if text.split()[0] in own]

    assert told() == ["add [rate_limit=5/m]", "wait"]
    items = ["acks_late", "app", "nonsense"]
    assert told(taskinfoitems=items) == ["add [acks_late=True]", "wait"]
    assert told(builtins=True) == ["add [rate_limit=5/m]", "celery.builtin", "wait"]
    assert node.ask("dump_tasks") == node.ask("registered") == sorted(node.ask("registered"))


# --- revoking -------------------------------------------------------------------------------------


def test_revoke_discards_what_waits_and_remembers_the_rest(node: Node) -> None:
    node.give("add", "eta", 1, 2, countdown=100)

    assert node.ask("revoke", task_id="eta") == {"ok": "tasks {'eta'} flagged as revoked"}
    several = node.ask("revoke", task_id=["x", "y"])["ok"]

    assert several in [f"tasks {{{ids}}} flagged as revoked" for ids in ("'x', 'y'", "'y', 'x'")]
    assert node.ask("scheduled") == []
    revoked = node.ask("revoked")
    assert (revoked[0], set(revoked)) == ("eta", {"eta", "x", "y"})
    assert node.ask("dump_revoked") == revoked
    assert ("eta", "REVOKED") in node.outbox.states()
    node.give("wait", "x")
    assert ("x", "REVOKED") in node.outbox.states()
    assert node.ask("active") == []


@pytest.mark.parametrize("method", ["revoke", "terminate"])
def test_a_running_task_is_terminated(node: Node, method: str) -> None:
    node.give("wait", "t1")

    told = node.ask(method, task_id=["t1"], terminate=True, signal="SIGKILL")

    assert told == {"ok": "terminate: t1"}
    wait_for(lambda: ("t1", "REVOKED") in node.outbox.states())


def test_nothing_runs_on_for_a_revoke_without_terminate(node: Node) -> None:
    node.give("wait", "t1")
    node.ask("revoke", task_id="t1")

    assert [each["id"] for each in node.ask("active")] == ["t1"]


@pytest.mark.parametrize("task_id", [None, [], "unknown", 7])
def test_terminating_what_does_not_run_finds_nothing(node: Node, task_id: object) -> None:
    told = node.ask("terminate", signal=None, task_id=task_id)

    assert told == {"ok": "terminate: tasks unknown"}


@pytest.mark.parametrize(
    "headers", [{"tenant": ["a", "b"]}, ["tenant=a", "tenant=b"], {"tenant": "a"}, "tenant=a"]
)
def test_stamps_are_revoked(node: Node, headers: object) -> None:
    told = node.ask("revoke_by_stamped_headers", headers=headers)["ok"]

    assert told.startswith(("headers {'tenant': ['a', 'b']", "headers {'tenant': 'a'"))
    assert told.endswith("} flagged as revoked, but not terminated")
    assert "a" in node.parts.state.revoked.stamps["tenant"]
    ended = node.ask("revoke_by_stamped_headers", headers=headers, terminate=True)["ok"]
    assert ended.endswith("were not terminated")


@pytest.mark.parametrize("headers", [None, 5, ["no pair"], "no pair", [["a", "b"]]])
def test_what_are_no_stamps_is_refused_and_revokes_nothing(node: Node, headers: object) -> None:
    assert "ValueError" in node.ask("revoke_by_stamped_headers", headers=headers)["error"]
    assert node.parts.state.revoked.stamps == {}


# --- limits ---------------------------------------------------------------------------------------


def test_rate_limit_is_changed(node: Node) -> None:
    told = node.ask("rate_limit", task_name="wait", rate_limit="1/h")
    assert told == {"ok": "new rate limit set successfully"}
    for number in range(2):
        node.give("wait", f"t{number}")
    assert [each["id"] for each in node.ask("reserved")] == ["t1"]

    told = node.ask("rate_limit", task_name="wait", rate_limit=0)

    assert told == {"ok": "rate limit disabled successfully"}
    assert len(node.ask("active")) == 2


@pytest.mark.parametrize("rate", ["fast", "5/d", "-1/s", "nan", [5], {"a": 1}, True], ids=str)
def test_a_wrong_rate_limit_is_refused(node: Node, rate: object) -> None:
    told = node.ask("rate_limit", task_name="add", rate_limit=rate)

    assert told == {"error": f"Invalid rate limit string: {rate!r}"}
    assert node.app.tasks["add"].rate_limit == "5/m"
    assert node.ask("rate_limit", task_name="nope", rate_limit=1) == {"error": "unknown task"}


def test_time_limits_are_changed(node: Node) -> None:
    told = node.ask("time_limit", task_name="add", soft=1.5, hard=3)

    assert told == {"ok": "time limits set successfully"}
    task = node.app.tasks["add"]
    assert (task.soft_time_limit, task.time_limit) == (1.5, 3)
    assert node.ask("time_limit", task_name="nope", soft=1) == {"error": "unknown task"}
    node.ask("time_limit", task_name="add")
    assert (task.soft_time_limit, task.time_limit) == (None, None)


@pytest.mark.parametrize(
    "limit",
    ["5", -1, [], {}, True, math.nan, math.inf, 10**400],
    ids=lambda limit: str(limit)[:5],
)
@pytest.mark.parametrize("name", ["soft", "hard"])
def test_what_is_no_time_limit_is_refused(node: Node, name: str, limit: object) -> None:
    told = node.ask("time_limit", task_name="add", **{name: limit})

    assert f"the {name} time limit is " in told["error"]
    assert "not a number above 0" in told["error"]
    task = node.app.tasks["add"]
    assert (task.soft_time_limit, task.time_limit) == (None, None)


def test_a_time_limit_of_0_is_none(node: Node) -> None:
    node.ask("time_limit", task_name="add", soft=1, hard=2)

    assert node.ask("time_limit", task_name="add", soft=0, hard=0.0) == {
        "ok": "time limits set successfully"
    }
    task = node.app.tasks["add"]
    assert (task.soft_time_limit, task.time_limit) == (None, None)


# --- queues ---------------------------------------------------------------------------------------


def test_active_queues_have_the_shape_that_monitors_know(node: Node) -> None:
    (queue,) = node.ask("active_queues")

    assert queue["name"] == queue["routing_key"] == queue["exchange"]["name"] == "celery"
    assert (queue["exchange"]["type"], queue["no_ack"], queue["bindings"]) == ("direct", False, [])
    assert len(queue) == 18


def test_a_queue_is_added_and_cancelled(node: Node) -> None:
    assert node.ask("add_consumer", queue="extra") == {"ok": "add consumer extra"}
    assert node.ask("add_consumer", queue="extra") == {"ok": "add consumer extra"}
    assert [each["name"] for each in node.ask("active_queues")] == ["celery", "extra"]
    assert node.parts.fetcher.queues == ("celery", "extra")

    assert node.ask("cancel_consumer", queue="celery") == {"ok": "no longer consuming from celery"}
    assert node.ask("cancel_consumer", queue="unknown")["ok"]

    assert node.parts.fetcher.queues == ("extra",)


def test_an_added_queue_is_bound_to_the_exchange_that_is_named(node: Node) -> None:
    node.ask("add_consumer", queue="a", exchange="news", exchange_type="direct", routing_key="k")
    node.ask("add_consumer", queue="b", exchange="b", consumer_arguments={}, durable=True)

    node.ask("add_consumer", queue="c", exchange="all", exchange_type="topic", routing_key="k.#")

    assert [done for done in node.broker.done if done[0] == "bind"] == [
        ("bind", "a", "news", "direct", "k"),
        ("bind", "c", "all", "topic", "k.#"),
    ]
    shown = [
        (each["name"], each["exchange"]["name"], each["exchange"]["type"], each["routing_key"])
        for each in node.ask("active_queues")[1:]
    ]
    assert shown == [
        ("a", "news", "direct", "k"),
        ("b", "b", "direct", "b"),
        ("c", "all", "topic", "k.#"),
    ]


def test_a_queue_that_cannot_be_declared_is_not_taken_from(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_queues: list[str]) -> None:
        raise OperationalError("not today")

    monkeypatch.setattr(node.broker, "declare", refuse)

    assert "not today" in node.ask("add_consumer", queue="extra")["error"]
    assert node.parts.queues.names == node.parts.fetcher.queues == ("celery",)


def test_a_key_that_is_no_queue_is_refused(node: Node) -> None:
    node.broker.kinds = {"unacked": "hash", "full": "list"}

    assert "'unacked' cannot be a queue" in node.ask("add_consumer", queue="unacked")["error"]
    assert node.ask("add_consumer", queue="full")["ok"]

    assert node.parts.queues.names == ("celery", "full")


def test_a_queue_of_another_kind_is_refused(node: Node) -> None:
    told = node.ask("add_consumer", queue="extra", exchange="e", exchange_type="headers")

    assert "headers exchanges do not exist on Redis" in told["error"]
    assert node.parts.queues.names == ("celery",)


def test_a_queue_is_paused_for_all_and_resumed(node: Node) -> None:
    assert node.ask("pause", queue="celery", by="me") == {"ok": "queue celery is paused"}
    node.ask("pause", queue="elsewhere")
    assert node.broker.paused_by == {"celery": "me", "elsewhere": NODE}
    assert node.parts.fetcher.queues == ()
    assert node.ask("status")["paused"] == ["celery", "elsewhere"]
    assert node.ask("status")["queues"] == ["celery"]

    assert node.ask("resume", queue="celery") == {"ok": "workers take from queue celery again"}

    assert node.parts.fetcher.queues == ("celery",)


def test_a_drained_worker_takes_nothing_and_gives_back_what_waits(node: Node) -> None:
    node.give("wait", "runs")
    node.give("add", "eta", 1, 2, countdown=100)

    assert node.ask("drain") == {"ok": "draining: 1 tasks are running"}

    assert node.ask("status")["draining"] is True
    assert node.ask("scheduled") == []
    assert len(node.outbox.moves()) == 1
    assert node.ask("drain", on=False) == {"ok": "takes tasks again"}
    assert node.ask("status")["draining"] is False


# --- pool, events, shutdown -----------------------------------------------------------------------


def test_the_pool_grows_and_shrinks_to_one_at_least(node: Node) -> None:
    pool = node.parts.pool

    assert node.ask("pool_grow") == {"ok": "pool will grow"}
    assert pool.size == 4
    assert node.ask("pool_grow", n=6) == {"ok": "pool will grow"}
    assert pool.size == 10
    assert node.ask("pool_shrink", n=2) == {"ok": "pool will shrink"}
    assert pool.size == 8
    node.ask("pool_shrink", n=100)
    assert pool.size == 1


@pytest.mark.parametrize("n", ["many", None, [], {}, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("method", ["pool_grow", "pool_shrink"])
def test_a_pool_cannot_grow_by_what_is_no_number(node: Node, method: str, n: object) -> None:
    assert list(node.ask(method, n=n)) == ["error"]
    assert node.parts.pool.size == 3


def test_an_autoscaled_pool_has_limits_instead() -> None:
    node = Node(autoscale=(10, 2))
    text = "{} is not supported with autoscale. Adjust autoscale range instead."
    for method in ("pool_grow", "pool_shrink"):
        assert node.ask(method, n=1) == {"error": text.format(method)}

    assert node.ask("autoscale", max=5, min=4) == {"ok": "autoscale now max=5 min=4"}
    assert node.parts.pool.size == 4
    assert node.ask("autoscale", max=8) == {"ok": "autoscale now max=8 min=4"}
    for wrong in ({"max": 3}, {"min": 0}, {"min": 9}, {"max": "x"}, {"min": []}):
        assert list(node.ask("autoscale", **wrong)) == ["error"]

    assert node.ask("stats")["autoscaler"]["max"] == 8
    (first, *_others) = told = node.ask("autoscale_log")
    assert list(first) == ["at", "backlog", "running", "size", "reason"]
    assert told[-1]["size"] == 4


def test_without_an_autoscaler_there_are_no_limits(node: Node) -> None:
    assert node.ask("autoscale", max=5) == {"error": "ValueError('Autoscale not enabled')"}
    assert node.ask("autoscale_log") == []
    assert node.ask("pool_restart", modules=None, reload=True) == {
        "error": "ValueError('Pool restarts not enabled')"
    }


def test_task_events_are_switched_on_and_off(node: Node) -> None:
    said = [
        node.ask(method)["ok"]
        for method in ("enable_events", "enable_events", "disable_events", "disable_events")
    ]

    assert said == [
        "task events enabled", "task events already enabled",
        "task events disabled", "task events already disabled",
    ]  # fmt: skip
    assert node.parts.events.tasks is False


def test_a_heartbeat_and_an_election_answer_nothing(node: Node) -> None:
    assert node.ask("heartbeat") is None
    assert node.parts.watch.cluster.heartbeats.beat is not None
    assert node.ask("election", id="e1", topic="task", action={"task": "add"}) is None
    assert len(node.parts.events._others) == 1


def test_what_is_switched_off_is_done_without() -> None:
    node = Node(gossip=False, heartbeat=False)

    assert node.ask("heartbeat") is None
    assert node.ask("election", id="e1", topic="task") is None


def test_shutdown_stops_the_worker_and_is_never_answered(node: Node) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        node.ask("shutdown", msg="good bye")

    assert node.worker._ended.is_set()
    assert node.worker.exit_code == 0


# --- greenq's own ---------------------------------------------------------------------------------


def test_greenlets_tell_what_runs_and_what_it_waits_for(node: Node) -> None:
    for number in range(3):
        node.give("wait", f"t{number}")

    told = node.ask("greenlets", limit=2)

    assert told["running"] == 3
    assert sum(group["count"] for group in told["groups"]) == 3
    assert [each["id"] for each in told["greenlets"]] == ["t0", "t1"]
    assert set(told["greenlets"][0]) == {"id", "name", "age_s", "hub_s", "waits_on", "stack"}
    assert list(node.ask("greenlets", limit="many")) == ["error"]


def test_hub_tells_its_lag_and_who_blocked_it(node: Node) -> None:
    told = node.ask("hub")

    assert list(told) == ["lag_s", "lag", "blocked", "blockers"]
    assert list(told["lag"]) == ["count", "p50_s", "p99_s", "max_s", "buckets"]
    assert (told["blocked"], told["blockers"]) == (None, [])


def test_in_place_of_a_blocked_hub_it_is_told_what_blocks_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the watchdog thread, to which the hub has owed an answer for a while.
    watch: Any = node.parts.watch
    watch.hub_thread.watcher = SimpleNamespace(hub_thread=0, runs_here=lambda: True)
    watch.monitor.asked_s = time.monotonic() - 3
    node.parts.hub.moved_s = watch.monitor.asked_s - 1
    assert node.parts.control is not None

    for method, blocked in (
        ("ping", lambda told: told["blocked"]),
        ("status", lambda told: (told["ok"] == "blocked" or None) and told["blocked"]),
        ("hub", lambda told: told["blocked"]),
    ):
        told = blocked(node.ask(method))
        assert set(told) == {"at", "for_s", "by", "where"}
        assert 3 <= told["for_s"] < 3 + DEADLINE_S


# --- whatever is asked ----------------------------------------------------------------------------


def test_an_unknown_command_is_an_error_with_a_hint(node: Node) -> None:
    assert node.ask("pign")["error"].startswith("KeyError(")
    assert "did you mean ping?" in node.ask("pign")["error"]
    assert "did you mean" not in node.ask("xyzzy")["error"]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("revoke", {}),
        ("rate_limit", {"task_name": "add"}),
        ("add_consumer", {}),
        ("hello", {}),
        ("election", {"id": "e1"}),
        ("status", {"unknown": 1}),
        ("pause", {"queue": "a", "unknown": 1}),
        ("ping", {"worker": 1}),
    ],
)
def test_wrong_arguments_are_an_error(node: Node, method: str, arguments: dict[str, Any]) -> None:
    assert node.ask(method, **arguments)["error"].startswith("TypeError(")


def test_a_command_of_a_program_is_found_by_name_and_alias(node: Node, panel: Panel) -> None:
    @inspect_command(name="load", alias="dump_load", args=[("factor", int)], signature="[factor=1]")
    def anything(worker: Any, factor: int = 1) -> dict[str, int]:
        return {"load": worker.pool.size * factor}

    @control_command(visible=False)
    def set_size(worker: Any, n: int) -> None:
        """Change it."""
        worker.pool.resize(n)

    assert node.ask("load") == {"load": 3}
    assert node.ask("dump_load", factor=2) == {"load": 6}
    assert node.ask("set_size", n=5) is None
    assert node.ask("load") == {"load": 5}
    assert "no control command" in node.ask("anything")["error"]
    added = panel._commands["load"]
    assert (added.kind, added.args, added.signature) == ("inspect", [("factor", int)], "[factor=1]")
    assert panel._commands["set_size"].kind == "control"


def test_only_what_is_declared_so_is_urgent(panel: Panel) -> None:
    @inspect_command(urgent=True)
    def quick(_worker: Any) -> None: ...

    @inspect_command()
    def slow(_worker: Any) -> None: ...

    asked = ("quick", "slow", "ping", "status", "hub", "revoke", "scheduled", "unknown")
    assert [name for name in asked if panel.is_urgent(name)] == ["quick", "ping", "status", "hub"]


def test_a_command_that_fails_is_an_error_and_logged_with_its_traceback(
    node: Node, panel: Panel, caplog: pytest.LogCaptureFixture
) -> None:
    @inspect_command()
    def broken(_worker: Any) -> None:
        raise RuntimeError("of the program")

    assert node.ask("broken") == {"error": "RuntimeError('of the program')"}
    assert caplog.records[-1].exc_info


def test_an_answer_that_cannot_be_sent_is_an_error(node: Node, panel: Panel) -> None:
    @inspect_command()
    def opaque(_worker: Any) -> object:
        return object()

    assert "the reply to opaque cannot be sent" in node.ask("opaque")["error"]


def test_a_command_may_wait(node: Node, panel: Panel) -> None:
    @inspect_command()
    def patient(_worker: Any) -> str:
        settle()
        return json.dumps({"waited": True})

    assert json.loads(node.ask("patient")) == {"waited": True}


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        ("pool_grow", {"n": math.nan}, "n is float"),
        ("pool_grow", {"n": 10**400}, "n is a number of 1329 bits"),
        ("pool_grow", {"n": "9" * 4000}, "n is str"),
        ("pool_shrink", {"n": -1}, "n is -1"),
        ("reserved", {"limit": math.inf}, "limit is float"),
        ("greenlets", {"limit": 1e308}, "limit is a number of 1024 bits"),
        ("memdump", {"samples": -5}, "samples is -5"),
        ("revoke", {"task_id": "x" * 1001}, "text of 1,001 characters"),
        ("revoke", {"task_id": ["a"] * 50_001}, "50,001 values: at most 50,000"),
        ("pause", {"queue": "\ud800"}, "queue is not valid Unicode"),
        ("add_consumer", {"queue": "q" * 5000}, "queue is a text of 5,000 characters"),
        ("election", {"id": "e" * 5000, "topic": "task"}, "id is a text of 5,000 characters"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_and_named(
    node: Node, method: str, arguments: dict[str, Any], named: str
) -> None:
    size = node.parts.pool.size

    assert named in node.ask(method, **arguments)["error"]

    assert node.parts.pool.size == size
    assert node.parts.state.revoked.ids() == []


def test_numbers_may_be_written_as_text_and_as_whole_floats(node: Node) -> None:
    size = node.parts.pool.size
    assert "ok" in node.ask("pool_grow", n="2")
    assert "ok" in node.ask("pool_grow", n=1.0)
    assert node.parts.pool.size == size + 3
