"""Celery's own client and command line steer a greenq worker, as they do a Celery worker.

Both kinds of workers are asked the same at the same moment: the answers must be alike.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from kombu import Exchange

from tests.interop.cluster import WAIT_S, celery, celery_each, celery_member, unlike, wait_for_nodes
from tests.interop.conftest import celery_client, greenq_client
from tests.servers import Process, Server, greenq_worker, valkey
from tests.support import wait_until

pytestmark = pytest.mark.interop

OURS, THEIRS, SCALED = "ours@host", "theirs@host", "scaled@host"
BOTH = [OURS, THEIRS]


@dataclass(frozen=True)
class Cluster:
    """Celery's client beside a greenq and a Celery worker, each with a queue named as it is."""

    server: Server
    app: Celery
    worker: Process

    def ask(self, command: str, *nodes: str, **arguments: Any) -> dict[str, Any]:
        """Return the answers of both kinds, or of the nodes, by name."""
        wanted = list(nodes or BOTH)
        replies = self.app.control.broadcast(
            command, arguments=arguments, destination=wanted, reply=True, timeout=WAIT_S
        )
        found = {node: answer for reply in replies for node, answer in reply.items()}
        assert set(found) == set(wanted)
        return found

    def ours(self, command: str, **arguments: Any) -> Any:
        """Return the greenq worker's answer."""
        return self.ask(command, OURS, **arguments)[OURS]

    def send(self, name: str, *args: Any, node: str = OURS, **options: Any) -> Any:
        """Send a task to one worker."""
        queue = node.partition("@")[0]
        return self.app.send_task(f"shared.{name}", args, queue=queue, **options)

    def active_ids(self, node: str = OURS) -> list[str]:
        return [info["id"] for info in self.ask("active", node)[node]]

    def wait_active(self, *task_ids: str, node: str = OURS) -> None:
        wait_until(lambda: set(task_ids) <= set(self.active_ids(node)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        valkey() as server,
        greenq_worker(server.url, "-n", OURS, "-Q", "ours", "-c", "4") as worker,
        greenq_worker(server.url, "-n", SCALED, "-Q", "scaled", "--autoscale", "5,1"),
        celery_member(server, "-n", THEIRS, "-Q", "theirs", concurrency=4),
        celery_client(server.url) as app,
    ):
        wait_for_nodes(app, [*BOTH, SCALED])
        yield Cluster(server, app, worker)


@pytest.fixture(autouse=True)
def _leave_nothing_running(cluster: Cluster) -> Iterator[None]:
    yield
    for node in BOTH:
        held = [info["id"] for info in [*cluster.ask("active", node)[node],
            *cluster.ask("reserved", node)[node]]]  # fmt: skip
        if held:
            cluster.ask("revoke", node, task_id=held, terminate=True)


# --- answers --------------------------------------------------------------------------------------

# Asked one after the other, so that each finds what those before have changed.
EQUAL: list[tuple[str, Mapping[str, Any]]] = [
    ("ping", {}),
    ("ping", {"unknown": 1}),
    ("registered", {}),
    ("dump_tasks", {}),
    ("registered", {"taskinfoitems": ["name", "max_retries", "rate_limit", "_private", "none"]}),
    ("active", {}),
    ("active", {"safe": True}),
    ("dump_active", {}),
    ("reserved", {}),
    ("dump_reserved", {}),
    ("scheduled", {}),
    ("dump_schedule", {}),
    ("query_task", {"ids": ["nobody", "knows"]}),
    ("query_task", {"ids": "nobody"}),
    ("query_task", {}),
    ("revoked", {}),
    ("revoke", {"task_id": "r1"}),
    ("revoke", {"task_id": ["r2"]}),
    ("revoke", {"task_id": ["r2"], "unknown": 1}),
    ("revoke", {"task_id": "r3", "terminate": True}),
    ("revoke", {"task_id": "r4", "terminate": True, "signal": "KILL"}),
    ("revoke", {}),
    ("terminate", {"task_id": ["r5"], "signal": "SIGTERM"}),
    ("revoked", {}),
    ("dump_revoked", {}),
    ("hello", {"from_node": OURS, "revoked": []}),
    ("revoke_by_stamped_headers", {"headers": {"of": "a"}}),
    ("revoke_by_stamped_headers", {"headers": {"of": ["a", "b"]}}),
    ("revoke_by_stamped_headers", {"headers": ["of=c", "from=d"]}),
    ("revoke_by_stamped_headers", {"headers": {"of": ["a"]}, "terminate": True}),
    ("rate_limit", {"task_name": "shared.add", "rate_limit": "10/m"}),
    ("registered", {}),
    ("rate_limit", {"task_name": "shared.add", "rate_limit": 5}),
    ("registered", {}),
    ("rate_limit", {"task_name": "nobody.knows", "rate_limit": "1/s"}),
    ("rate_limit", {"task_name": "shared.add"}),
    ("rate_limit", {"task_name": "shared.add", "rate_limit": 0}),
    ("rate_limit", {"task_name": "shared.add", "rate_limit": None}),
    ("registered", {}),
    ("time_limit", {"task_name": "shared.add", "soft": 1, "hard": 2.5}),
    ("time_limit", {"task_name": "nobody.knows", "soft": 1}),
    ("time_limit", {"task_name": "shared.add"}),
    ("enable_events", {}),
    ("enable_events", {}),
    ("disable_events", {}),
    ("disable_events", {}),
    ("heartbeat", {}),
    ("pool_grow", {}),
    ("pool_grow", {"n": 2}),
    ("pool_shrink", {}),
    ("pool_shrink", {"n": 2}),
    ("autoscale", {"max": 5, "min": 2}),
    ("pool_restart", {}),
    ("pool_restart", {"modules": ["a"], "reload": True, "reloader": None}),
    ("add_consumer", {"queue": "extra"}),
    ("add_consumer", {"queue": "more", "exchange": None, "exchange_type": "direct"}),
    ("cancel_consumer", {"queue": "extra"}),
    ("cancel_consumer", {"queue": "more"}),
    ("cancel_consumer", {"queue": "nobody.knows"}),
]


def test_answers_are_those_that_a_celery_worker_gives(cluster: Cluster) -> None:
    different = {}
    for command, arguments in EQUAL:
        answers = cluster.ask(command, **arguments)
        # `hello` leaves out itself, which only one of them is.
        if command == "hello":
            assert answers[OURS] is None
        elif answers[OURS] != answers[THEIRS]:
            different[f"{command} {arguments}"] = answers
    assert different == {}


# What an answer tells of the worker itself, and so cannot be equal.
ALIKE: list[tuple[str, Mapping[str, Any], set[str]]] = [
    ("clock", {}, set()),
    ("report", {}, set()),
    ("hello", {"from_node": "new@host", "revoked": ["r9"]}, set()),
    ("stats", {}, {".broker.connect_timeout is 2.0, not None"}),
    ("stats", {"unknown": 1}, {".broker.connect_timeout is 2.0, not None"}),
    ("active_queues", {}, set()),
    ("memdump", {"samples": 5}, set()),
    ("objgraph", {"num": 1, "max_depth": 1, "type": "Request"}, set()),
    ("registered", {"builtins": True}, set()),
    ("no_such_command", {}, set()),
    ("rate_limit", {"task_name": "shared.add", "rate_limit": "many"}, set()),
]


@pytest.mark.parametrize(("command", "arguments", "other"), ALIKE)
def test_answers_have_the_shape_that_a_celery_worker_gives(
    cluster: Cluster, command: str, arguments: Mapping[str, Any], other: set[str]
) -> None:
    answers = cluster.ask(command, **arguments)
    assert set(unlike(answers[OURS], answers[THEIRS])) == other


def test_revoked_ids_are_taken_over_from_who_says_hello(cluster: Cluster) -> None:
    for answer in cluster.ask("hello", from_node="new@host", revoked=["r10", "r11"]).values():
        assert {"r10", "r11"} <= set(answer["revoked"])
    for revoked in cluster.ask("revoked").values():
        assert {"r10", "r11"} <= set(revoked)


INSPECTED = (
    *("ping", "active", "reserved", "scheduled", "registered", "revoked", "active_queues"),
    *("conf", "report"),
)


@pytest.mark.parametrize("name", INSPECTED)
def test_greenq_s_client_gets_the_answers_that_celery_s_gets(cluster: Cluster, name: str) -> None:
    celery_s = cluster.app.control.inspect(destination=BOTH, timeout=WAIT_S)
    with greenq_client(cluster.server.url) as app:
        ours = app.control.inspect(destination=BOTH, timeout=WAIT_S)
        assert getattr(ours, name)() == getattr(celery_s, name)()


def test_greenq_s_client_steers_a_celery_worker(cluster: Cluster) -> None:
    task_id = cluster.send("sleep", 60, node=THEIRS).id
    cluster.wait_active(task_id, node=THEIRS)
    with greenq_client(cluster.server.url) as app:
        control, to = app.control, [THEIRS]
        replies = {
            "rate_limit": control.rate_limit("shared.echo", "5/m", to, reply=True),
            "time_limit": control.time_limit("shared.echo", 1, 2, to, reply=True),
            "pool_grow": control.pool_grow(2, to, reply=True),
            "pool_shrink": control.pool_shrink(2, to, reply=True),
            "add_consumer": control.add_consumer("hers", destination=to, reply=True),
            "cancel_consumer": control.cancel_consumer("hers", to, reply=True),
            "enable_events": control.enable_events(to, reply=True),
            "disable_events": control.disable_events(to, reply=True),
            "terminate": control.terminate(task_id, to, reply=True),
            "undo": control.rate_limit("shared.echo", 0, to, reply=True),
            "undo too": control.time_limit("shared.echo", None, None, to, reply=True),
        }
    assert [name for name, found in replies.items() if "ok" not in found[0][THEIRS]] == []
    wait_until(lambda: cluster.active_ids(THEIRS) == [])


def test_stats_agree_where_both_tell_of_the_same(cluster: Cluster) -> None:
    ours, theirs = map(cluster.ask("stats").get, BOTH)
    assert ours["pool"]["max-concurrency"] == theirs["pool"]["max-concurrency"] == 4
    assert int(ours["clock"]) <= cluster.ours("clock")["clock"]
    assert ours["rusage"].keys() == theirs["rusage"].keys()
    same = ("hostname", "port", "virtual_host", "transport", "userid", "ssl", "alternates")
    assert {key: ours["broker"][key] for key in same} == {
        key: theirs["broker"][key] for key in same
    }


def test_memsample_is_a_text(cluster: Cluster) -> None:
    assert cluster.ours("memsample").endswith("MB")


@pytest.mark.parametrize("command", ["conf", "dump_conf"])
def test_conf_has_celery_s_names_and_no_secret(cluster: Cluster, command: str) -> None:
    answers = cluster.ask(command, with_defaults=True)
    ours, theirs = answers[OURS], answers[THEIRS]
    shared = ours.keys() & theirs.keys()
    assert {"broker_url", "task_default_queue", "worker_prefetch_multiplier"} <= shared
    # What one has not set at all, the other may have a value for.
    kinds = {
        key: (ours[key], theirs[key])
        for key in shared
        if None not in (ours[key], theirs[key]) and unlike(ours[key], theirs[key])
    }
    assert set(kinds) <= {"result_expires"}
    assert set(cluster.ours(command)) < set(ours)


# --- tasks that are held --------------------------------------------------------------------------


def without(info: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key not in keys}


def test_tasks_are_described_as_a_celery_worker_does(cluster: Cluster) -> None:
    # Given at each worker one task that runs and one that waits for its ETA; at ours one that
    # waits for its turn, too. (Celery's hides those.)
    cluster.ask("rate_limit", OURS, task_name="shared.tracked", rate_limit="1/h")
    run = uuid.uuid4().hex
    for node in BOTH:
        cluster.send("sleep", 60, node=node, task_id=f"a-{run}-{node}", shadow="alias")
        cluster.send("add", 1, 2, node=node, task_id=f"s-{run}-{node}", countdown=300, priority=6)
    cluster.send("tracked", 0.0)
    cluster.send("tracked", 0.0, task_id=f"r-{run}-{OURS}", kwargs={"value": ["ü"]})
    every = [f"{kind}-{run}-{node}" for kind in "as" for node in BOTH] + [f"r-{run}-{OURS}"]

    def held() -> bool:
        answers = cluster.ask("query_task", ids=every)
        return (len(answers[OURS]), len(answers[THEIRS])) == (3, 2)

    wait_until(held, 30)
    for node in BOTH:
        cluster.wait_active(f"a-{run}-{node}", node=node)
    # What says whose it is differs, and what Celery puts in as it comes.
    own = ("id", "hostname", "worker_pid", "time_start", "delivery_info", "acknowledged")

    for arguments in ({}, {"safe": True}):
        found = cluster.ask("active", **arguments)
        ours, theirs = ([info for info in found[node] if run in info["id"]] for node in BOTH)
        assert len(ours) == len(theirs) == 1
        assert ours[0].keys() == theirs[0].keys()
        assert unlike(ours, theirs) == []
        assert without(ours[0], *own) == without(theirs[0], *own)
        assert ours[0]["delivery_info"].keys() == theirs[0]["delivery_info"].keys()
        assert ours[0]["hostname"] == OURS
    waiting = {info["id"]: info for info in cluster.ours("reserved")}[f"r-{run}-{OURS}"]
    assert waiting.keys() == ours[0].keys()
    assert (waiting["time_start"], waiting["worker_pid"]) == (None, None)
    assert (waiting["args"], waiting["kwargs"]) == ([0.0], {"value": ["ü"]})

    ours, theirs = (
        [each for each in cluster.ask("scheduled")[node] if run in each["request"]["id"]]
        for node in BOTH
    )
    assert len(ours) == len(theirs) == 1
    assert ours[0].keys() == theirs[0].keys()
    assert unlike(ours, theirs) == []
    assert without(ours[0]["request"], *own) == without(theirs[0]["request"], *own)

    asked = cluster.ask("query_task", ids=every)
    states = {node: {key[0]: state for key, (state, _) in asked[node].items()} for node in BOTH}
    assert states[OURS]["a"] == states[THEIRS]["a"] == "active"
    assert states[OURS]["s"] == states[THEIRS]["s"] == "scheduled"
    assert states[OURS]["r"] == "reserved"
    assert (
        unlike(
            {key[0]: answer for key, answer in asked[OURS].items()},
            {key[0]: answer for key, answer in asked[THEIRS].items()},
        )
        == []
    )

    # When all are revoked nothing stays.
    cluster.ask("revoke", task_id=every, terminate=True)
    cluster.ask("rate_limit", OURS, task_name="shared.tracked", rate_limit=0)
    wait_until(lambda: cluster.ask("query_task", OURS, ids=every)[OURS] == {})
    assert {cluster.app.AsyncResult(task_id).state for task_id in every} == {"REVOKED"}


# --- effects --------------------------------------------------------------------------------------


def test_revoke_of_a_queued_task_keeps_it_from_running(cluster: Cluster) -> None:
    cluster.ours("cancel_consumer", queue="ours")
    result = cluster.send("add", 1, 2)
    cluster.app.control.revoke(result.id, destination=[OURS])
    wait_until(lambda: result.id in cluster.ours("revoked"))
    cluster.ours("add_consumer", queue="ours")
    assert cluster.send("add", 1, 3).get(timeout=WAIT_S) == 4
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=WAIT_S)
    assert f"[{result.id}] succeeded" not in cluster.worker.text
    wait_until(lambda: not any(b'"ours"]' in held for held in cluster.server.unacked().values()))


def test_revoke_of_a_scheduled_task_ends_it_at_once(cluster: Cluster) -> None:
    result = cluster.send("add", 1, 2, countdown=300)
    wait_until(lambda: result.id in cluster.ours("query_task", ids=[result.id]))
    cluster.app.control.revoke(result.id, destination=[OURS])
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=WAIT_S)
    wait_until(lambda: cluster.ours("query_task", ids=[result.id]) == {})


def test_revoke_of_a_running_task_lets_it_end(cluster: Cluster) -> None:
    result = cluster.send("tracked", 1.0, "done")
    wait_until(lambda: result.state == "STARTED")
    assert cluster.ours("revoke", task_id=result.id)["ok"].startswith("tasks {")
    assert result.get(timeout=WAIT_S) == "done"


def test_revoke_with_terminate_ends_a_running_task(cluster: Cluster) -> None:
    result = cluster.send("sleep", 60)
    cluster.wait_active(result.id)
    answer = cluster.ours("revoke", task_id=[result.id], terminate=True, signal="SIGKILL")
    assert answer == {"ok": f"terminate: {result.id}"}
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=WAIT_S)
    wait_until(lambda: result.id not in cluster.active_ids())


def test_terminate_ends_a_running_task(cluster: Cluster) -> None:
    result = cluster.send("sleep", 60)
    cluster.wait_active(result.id)
    # Others that are told of it would store an end of their own: Celery's.
    cluster.app.control.terminate(result.id, destination=[OURS])
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=WAIT_S)


def stamped(cluster: Cluster, name: str, *args: Any, **stamps: Any) -> Any:
    signature = cluster.app.signature(f"shared.{name}", args=args, app=cluster.app)
    signature.stamp(**stamps)
    return signature.apply_async(queue="ours")


def test_tasks_are_revoked_by_their_stamps(cluster: Cluster) -> None:
    cluster.app.control.revoke_by_stamped_headers(
        {"customer": ["one", "two"]}, destination=[OURS], reply=True, timeout=WAIT_S
    )
    revoked = stamped(cluster, "add", 1, 2, customer="two")
    assert stamped(cluster, "add", 1, 2, customer="three").get(timeout=WAIT_S) == 3
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=WAIT_S)


def test_running_tasks_are_ended_by_their_stamps(cluster: Cluster) -> None:
    running = stamped(cluster, "sleep", 60, order="x1")
    other = stamped(cluster, "sleep", 60, order="x2")
    cluster.wait_active(running.id, other.id)
    answer = cluster.ours("revoke_by_stamped_headers", headers={"order": ["x1"]}, terminate=True)
    assert answer["ok"].startswith("headers ")
    assert answer["ok"].endswith(" revoked")
    with pytest.raises(TaskRevokedError):
        running.get(timeout=WAIT_S)
    assert cluster.active_ids() == [other.id]
    cluster.app.control.terminate(other.id)
    wait_until(lambda: not cluster.active_ids())


def test_rate_limit_holds_tasks_back_until_it_is_lifted(cluster: Cluster) -> None:
    cluster.ours("rate_limit", task_name="shared.echo", rate_limit="1/h")
    first, second = cluster.send("echo", 1), cluster.send("echo", 2)
    assert first.get(timeout=WAIT_S) == [[1], {}]
    wait_until(lambda: second.id in [info["id"] for info in cluster.ours("reserved")])
    assert second.state == "PENDING"
    cluster.ours("rate_limit", task_name="shared.echo", rate_limit=0)
    assert second.get(timeout=WAIT_S) == [[2], {}]


def test_time_limit_ends_a_task(cluster: Cluster) -> None:
    cluster.ours("time_limit", task_name="shared.sleep", hard=0.2)
    with pytest.raises(TimeLimitExceeded):
        cluster.send("sleep", 60).get(timeout=WAIT_S)
    cluster.ours("time_limit", task_name="shared.sleep")
    assert cluster.send("sleep", 0.4, "done").get(timeout=WAIT_S) == "done"


def test_pool_grows_and_shrinks(cluster: Cluster) -> None:
    cluster.ours("pool_grow", n=3)
    sent = [cluster.send("sleep", 60) for _ in range(7)]
    cluster.wait_active(*(result.id for result in sent))
    assert cluster.ours("stats")["pool"]["max-concurrency"] == 7
    cluster.ours("pool_shrink", n=3)
    assert cluster.ours("stats")["pool"]["max-concurrency"] == 4
    cluster.ours("revoke", task_id=[result.id for result in sent], terminate=True)
    wait_until(lambda: not cluster.active_ids())


def test_autoscaler_is_shown_and_set(cluster: Cluster) -> None:
    grown = cluster.ask("pool_grow", SCALED, n=1)[SCALED]
    assert grown == {
        "error": "pool_grow is not supported with autoscale. Adjust autoscale range instead."
    }
    answer = cluster.ask("autoscale", SCALED, max=4, min=2)[SCALED]
    assert answer == {"ok": "autoscale now max=4 min=2"}
    shown = cluster.ask("stats", SCALED)[SCALED]["autoscaler"]
    assert {"max": 4, "min": 2}.items() <= shown.items()
    assert {"current", "qty"} <= shown.keys()


def test_consumers_are_added_and_cancelled(cluster: Cluster) -> None:
    app = cluster.app
    waits = app.send_task("shared.add", (1, 1), queue="later")
    reply = app.control.add_consumer("later", destination=[OURS], reply=True, timeout=WAIT_S)
    assert reply == [{OURS: {"ok": "add consumer later"}}]
    assert waits.get(timeout=WAIT_S) == 2
    names = [queue["name"] for queue in cluster.ours("active_queues")]
    assert names == ["ours", "later"]
    app.control.cancel_consumer("later", destination=[OURS], reply=True, timeout=WAIT_S)
    assert [queue["name"] for queue in cluster.ours("active_queues")] == ["ours"]
    stays = app.send_task("shared.add", (1, 2), queue="later")
    assert cluster.send("add", 2, 2).get(timeout=WAIT_S) == 4
    assert cluster.server.queued_ids("later") == [stays.id]
    cluster.server.client.delete("later")


@pytest.mark.parametrize(("kind", "key"), [("direct", "out.now"), ("topic", "out.*")])
def test_a_consumer_with_an_exchange_is_shown_as_a_celery_worker_does(
    cluster: Cluster, kind: str, key: str
) -> None:
    name = f"outbox-{kind}"
    arguments = {"exchange": f"mail-{kind}", "exchange_type": kind, "routing_key": key}
    cluster.ask("add_consumer", queue=name, **arguments)

    def outboxes() -> list[Any]:
        found = cluster.ask("active_queues")
        return [queue for node in BOTH for queue in found[node] if queue["name"] == name]

    # Celery's worker begins with it some time later.
    wait_until(lambda: len(outboxes()) == 2)
    ours, theirs = outboxes()
    assert ours == theirs
    cluster.ask("cancel_consumer", THEIRS, queue=name)
    wait_until(lambda: len(outboxes()) == 1)
    # Celery's sender has to know what kind of exchange it is.
    exchange = Exchange(f"mail-{kind}", type=kind)
    options = {"exchange": exchange, "routing_key": "out.now", "declare": [exchange]}
    assert cluster.app.send_task("shared.add", (3, 4), **options).get(timeout=WAIT_S) == 7
    cluster.ours("cancel_consumer", queue=name)


def test_events_of_tasks_are_switched_on_and_off(cluster: Cluster) -> None:
    with cluster.server.client.pubsub() as pubsub:
        pubsub.psubscribe("/0.celeryev/task.*")
        assert pubsub.get_message(timeout=WAIT_S)["type"] == "psubscribe"
        cluster.ours("disable_events")
        cluster.send("add", 1, 1).get(timeout=WAIT_S)
        assert cluster.ours("enable_events") == {"ok": "task events enabled"}
        told = cluster.send("add", 1, 1)
        told.get(timeout=WAIT_S)
        events = task_events(pubsub)
        cluster.ours("disable_events")
    assert [(event["type"], event["uuid"]) for event in events] == [
        (kind, told.id) for kind in ("task-received", "task-started", "task-succeeded")
    ]


def task_events(pubsub: Any) -> list[dict[str, Any]]:
    """Read what was published until a task has succeeded."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] != "task-succeeded":
        message = pubsub.get_message(timeout=WAIT_S)
        assert message is not None, events
        body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
        events.extend(body if isinstance(body, list) else [body])
    return events


def test_shutdown_ends_a_worker(cluster: Cluster) -> None:
    with greenq_worker(cluster.server.url, "-n", "ends@host", "-Q", "none") as worker:
        wait_for_nodes(cluster.app, ["ends@host"])
        cluster.app.control.shutdown(destination=["ends@host"])
        assert worker.wait_exit() == 0
    assert cluster.ours("ping") == {"ok": "pong"}


# --- Celery's command line ------------------------------------------------------------------------

INSPECT: dict[str, tuple[str, ...]] = {
    "active": (),
    "active_queues": (),
    "clock": (),
    "conf": (),
    "memdump": (),
    "memsample": (),
    "objgraph": ("Request", "1", "1"),
    "ping": (),
    "query_task": ("r1", "r2"),
    "registered": ("rate_limit", "max_retries"),
    "report": (),
    "reserved": (),
    "revoked": (),
    "scheduled": (),
    "stats": (),
}
CONTROL: dict[str, tuple[str, ...]] = {
    "add_consumer": ("cli",),
    "autoscale": ("4", "1"),
    "cancel_consumer": ("cli",),
    "disable_events": (),
    "enable_events": (),
    "heartbeat": (),
    "pool_grow": ("2",),
    "pool_restart": (),
    "pool_shrink": ("2",),
    "rate_limit": ("shared.add", "0"),
    "revoke": ("r6", "r7"),
    "revoke_by_stamped_headers": ("of=e", "from=f"),
    "terminate": ("SIGTERM", "r8"),
    "time_limit": ("shared.add", "50", "60"),
}


def test_every_verb_of_celery_s_command_line_is_answered(cluster: Cluster) -> None:
    verbs = [("inspect", *each) for each in INSPECT.items()]
    verbs += [("control", *each) for each in CONTROL.items()]

    options = ("-d", ",".join(BOTH), "-t", str(WAIT_S), "-j")
    commands = [(group, *options, name, *arguments) for group, name, arguments in verbs]

    ended = celery_each(cluster.server, commands)

    for (group, name, _), run_of in zip(verbs, ended, strict=True):
        found = run_of.json
        answers = found if group == "inspect" else {k: v for each in found for k, v in each.items()}
        assert set(answers) == set(BOTH), name
        ours, theirs = answers[OURS], answers[THEIRS]
        if name != "memsample":
            # Totals are those of registered names here: a sender's `shadow` is not counted.
            of_stats = {".broker.connect_timeout is 2.0, not None", ".total.alias lacks"}
            allowed = of_stats if name == "stats" else set()
            keys = ours if name != "conf" else {**theirs, **ours}
            # Which tasks each of them has run is another matter.
            unexpected = {each for each in unlike(keys, theirs) if not each.startswith(".total.")}
            assert unexpected <= allowed, name


def test_status_lists_all_workers_and_ends_with_0(cluster: Cluster) -> None:
    ended = celery(cluster.server, "status", "-d", ",".join([*BOTH, SCALED]), "-t", str(WAIT_S))
    assert ended.code == 0, ended
    assert {f"->  {node}: OK" for node in [*BOTH, SCALED]} <= set(ended.out.splitlines())
    assert "3 nodes online." in ended.out


def test_replies_are_shown_to_people(cluster: Cluster) -> None:
    ended = celery(cluster.server, "inspect", "-d", OURS, "ping")
    assert ended.code == 0, ended
    assert [line.strip() for line in ended.out.splitlines() if line.strip()] == [
        f"->  {OURS}: OK",
        "pong",
        "1 node online.",
    ]


@pytest.mark.parametrize(
    "verb", [("status",), ("inspect", "ping"), ("control", "heartbeat")], ids=" ".join
)
def test_no_answer_ends_with_69(cluster: Cluster, verb: tuple[str, ...]) -> None:
    ended = celery(cluster.server, verb[0], "-d", "nobody@host", "-t", "0.2", *verb[1:])
    assert ended.code == 69
    assert "No nodes replied within time constraint" in ended.err
