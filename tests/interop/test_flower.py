"""Flower beside greenq's workers: what it shows of them and of their tasks, and what it steers."""

from __future__ import annotations

import html
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.interop.conftest import celery_client, greenq_client
from tests.servers import (
    APPS,
    ROOT,
    Process,
    Server,
    celery_worker,
    free_port,
    greenq_worker,
    valkey,
)
from tests.support import wait_until

pytestmark = pytest.mark.interop

WAIT_S = 20

# Takes from Celery's default queue; has a setting that is not the default.
NODE = "w1@flower"
SETTINGS = {"task_eta_horizon": 30}

# Has a pool that is scaled, and a queue of its own.
SCALED = "w2@flower"
# Celery's, for comparison.
CELERY = "c1@flower"


@dataclass(frozen=True)
class Flower:
    """A real Flower, seen through HTTP.

    Attributes:
        process: Flower itself.
        port: where it answers.
    """

    process: Process
    port: int

    def ask(self, method: str, path: str, body: object, query: dict[str, Any]) -> tuple[int, Any]:
        """Return the status of a request and what was answered, objects decoded."""
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=WAIT_S)
        except urllib.error.HTTPError as exc:
            answer = exc
        with answer:
            text = answer.read().decode()
            is_object = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_object else text

    def get(self, path: str, **query: Any) -> Any:
        status, answer = self.ask("GET", path, None, query)
        assert status == 200, f"{path}: {status} {answer}"
        return answer

    def post(self, path: str, body: object = None, **query: Any) -> tuple[int, Any]:
        return self.ask("POST", path, {} if body is None else body, query)

    def done(self, path: str, body: object = None, **query: Any) -> Any:
        """Return what a request that must go well was answered."""
        status, answer = self.post(path, body, **query)
        assert status == 200, f"{path}: {status} {answer}"
        return answer.get("message", answer)

    def page(self, path: str) -> str:
        """Return a page as its reader sees it."""
        return html.unescape(self.get(path))

    def is_online(self, node: str) -> bool:
        return bool(self.get("/api/workers", status=1).get(node))

    def worker(self, node: str) -> dict[str, Any]:
        """Return what a worker has just told about itself."""
        told: dict[str, Any] = self.get("/api/workers", refresh=1, workername=node)[node]
        return told

    def task(self, task_id: str) -> dict[str, Any]:
        """Return what is known of a task, {} if nothing is."""
        status, answer = self.ask("GET", f"/api/task/info/{task_id}", None, {})
        return answer if status == 200 else {}

    def wait_task(self, task_id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.task(task_id).get("state") == state, WAIT_S)
        return self.task(task_id)


@contextmanager
def running_flower(url: str, *options: str) -> Iterator[Flower]:
    """Run Flower with Celery's app of tests/apps, until it answers and then until stopped."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "celery", "-A", "celery_app", "flower"),
        *(f"--port={port}", "--address=127.0.0.1", *options),
    ]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}",
        "TEST_BROKER": url,
        "TEST_SETTINGS": "{}",
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        process = Process(command, Path(folder, "flower.log"), environment, APPS)
        try:
            yield Flower(process.wait_text("Connected to "), port)
        except BaseException:
            sys.stderr.write(f"--- log of Flower {process.pid}\n{process.text}\n")
            raise
        finally:
            # It keeps nothing, and takes seconds to stop.
            process.kill()


@dataclass(frozen=True)
class Garden:
    """Flower, the workers it watches, and a Celery client that sends them tasks."""

    flower: Flower
    client: Celery
    server: Server

    def send(self, name: str, *args: Any, **options: Any) -> str:
        task_id: str = self.client.send_task(f"shared.{name}", args, **options).id
        return task_id


@pytest.fixture(scope="module")
def garden() -> Iterator[Garden]:
    """Run two greenq workers and a Celery one under a Flower that enables no events itself."""
    with (
        valkey() as server,
        greenq_worker(server.url, "-E", "-n", NODE, "-c", "4", settings=SETTINGS),
        greenq_worker(server.url, "-E", "-n", SCALED, "--autoscale", "5,2", "-Q", "scaled"),
        celery_worker(server.url, "-E", "-n", CELERY, "-Q", "theirs", pool="gevent"),
        running_flower(server.url, "--enable-events=false") as flower,
        celery_client(server.url) as client,
    ):
        wait_until(lambda: all(map(flower.is_online, (NODE, SCALED, CELERY))), WAIT_S)
        yield Garden(flower, client, server)


@pytest.fixture
def flower(garden: Garden) -> Flower:
    return garden.flower


def times(task: dict[str, Any], *names: str) -> None:
    """Check that a task went through these moments in this order, and just now."""
    moments = [task[name] for name in names]
    assert all(isinstance(each, float) for each in moments), task
    assert all(earlier <= later for earlier, later in pairwise(moments)), task
    assert time.time() - 60 < moments[0] <= moments[-1] <= time.time()


def kinds(value: Any) -> Any:
    """Return a value's shape: types instead of what is told."""
    if isinstance(value, dict):
        return {name: kinds(each) for name, each in value.items()}
    return type(value).__name__


# --- workers --------------------------------------------------------------------------------------


def test_worker_tells_flower_what_it_is(garden: Garden) -> None:
    worker = garden.flower.worker(NODE)
    assert worker["stats"]["pool"]["implementation"] == "greenq.pool:Pool"
    assert worker["stats"]["pool"]["max-concurrency"] == 4
    assert worker["stats"]["broker"]["port"] == garden.server.port
    assert worker["stats"]["rusage"]["utime"] > 0
    assert [queue["name"] for queue in worker["active_queues"]] == ["celery"]
    assert {"shared.add", "shared.tracked"} <= set(worker["registered"])
    assert worker["conf"]["task_eta_horizon"] == 30
    assert worker["active"] == worker["reserved"] == []
    assert garden.flower.worker(SCALED)["stats"]["autoscaler"]["max"] == 5


def test_flower_is_told_the_same_things_as_by_celery(flower: Flower) -> None:
    ours, theirs = (flower.worker(node) for node in (NODE, CELERY))
    assert ours.keys() == theirs.keys()
    assert theirs["stats"].keys() <= ours["stats"].keys()
    for part in ("broker", "rusage"):
        assert ours["stats"][part].keys() == theirs["stats"][part].keys()
    assert {"implementation", "max-concurrency"} <= ours["stats"]["pool"].keys()
    (our_queue,), (their_queue,) = ours["active_queues"], theirs["active_queues"]
    assert kinds(our_queue) == kinds(their_queue)
    assert ours["registered"] == theirs["registered"]


def test_workers_can_be_asked_for_all_at_once_or_by_name(flower: Flower) -> None:
    workers = flower.get("/api/workers", refresh=1)
    assert workers.keys() == {NODE, SCALED, CELERY}
    assert all({"stats", "active_queues", "registered", "conf"} <= set(each)
               for each in workers.values())  # fmt: skip
    assert flower.get("/api/workers", workername=NODE).keys() == {NODE}
    assert flower.ask("GET", "/api/workers", None, {"workername": "w9@flower"})[0] == 404


def test_running_scheduled_and_revoked_tasks_are_shown_with_their_worker(garden: Garden) -> None:
    flower = garden.flower
    running = garden.send("tracked", 60, kwargs={"value": "x"})
    due = garden.send("add", 1, 2, countdown=25)
    flower.wait_task(running, "STARTED")
    flower.wait_task(due, "RECEIVED")

    worker = flower.worker(NODE)
    (active,) = worker["active"]
    assert (active["id"], active["name"]) == (running, "shared.tracked")
    assert (active["args"], active["kwargs"]) == ("(60,)", "{'value': 'x'}")
    assert active["hostname"] == NODE
    assert abs(time.time() - active["time_start"]) < 60
    (scheduled,) = worker["scheduled"]
    assert scheduled["request"]["id"] == due
    assert datetime.fromisoformat(scheduled["eta"]).tzinfo is not None
    page = flower.page(f"/worker/{NODE}")
    assert running in page
    assert due in page

    flower.done(f"/api/task/revoke/{due}")
    flower.done(f"/api/task/revoke/{running}", terminate=True)
    flower.wait_task(running, "REVOKED")
    flower.wait_task(due, "REVOKED")

    def shows_the_end() -> bool:
        worker = flower.worker(NODE)
        return worker["active"] == worker["scheduled"] == [] and (
            {running, due} <= set(worker["revoked"])
        )

    # The page has Flower ask again, whose answers the next to ask may get.
    wait_until(shows_the_end, WAIT_S)


# --- tasks ----------------------------------------------------------------------------------------


def test_task_that_succeeds(garden: Garden) -> None:
    task = garden.flower.wait_task(garden.send("sleep", 0.2, kwargs={"value": "x"}), "SUCCESS")
    times(task, "received", "started", "succeeded")
    assert (task["name"], task["worker"]) == ("shared.sleep", NODE)
    assert (task["args"], task["kwargs"]) == ("(0.2,)", "{'value': 'x'}")
    assert task["result"] == "'x'"
    assert 0.2 <= task["runtime"] <= task["succeeded"] - task["received"] + 0.01
    assert task["root_id"] == task["uuid"]


def test_task_that_fails(garden: Garden) -> None:
    task = garden.flower.wait_task(garden.send("fail_value", "bad", 3), "FAILURE")
    times(task, "received", "started", "failed")
    assert task["exception"] == "ValueError('bad', 3)"
    assert task["traceback"].startswith("Traceback (most recent call last):\n")
    assert "in fail_value\n" in task["traceback"]
    assert task["worker"] == NODE


def test_task_that_is_retried(garden: Garden) -> None:
    # The second call is taken before the first one's retry, which then has to wait for it.
    task_id = garden.send("retry_until", 1, queue="w5")
    long = garden.send("sleep", 60, queue="w5")
    with greenq_worker(garden.server.url, "-E", "-n", "w5@flower", "-c", "1", "-Q", "w5"):
        task = garden.flower.wait_task(task_id, "RETRY")
        times(task, "received", "started", "retried")
        assert "ValueError('not yet')" in task["exception"]
        assert "in retry_until\n" in task["traceback"]
        garden.flower.done(f"/api/task/revoke/{long}", terminate=True)
        task = garden.flower.wait_task(task_id, "SUCCESS")
    times(task, "retried", "received", "started", "succeeded")
    assert (task["retries"], task["result"]) == (1, "1")
    assert datetime.fromisoformat(task["eta"]).tzinfo is not None


def test_task_that_runs_and_is_terminated(garden: Garden) -> None:
    task_id = garden.send("sleep", 60)
    started = garden.flower.wait_task(task_id, "STARTED")
    times(started, "received", "started")
    assert started["worker"] == NODE

    said = garden.flower.done(f"/api/task/revoke/{task_id}", terminate=True, signal="SIGKILL")
    assert said == f"Revoked '{task_id}'"
    task = garden.flower.wait_task(task_id, "REVOKED")
    times(task, "received", "started", "revoked")
    assert garden.client.AsyncResult(task_id).state == "REVOKED"


def test_task_that_is_revoked_while_it_waits(garden: Garden) -> None:
    task_id = garden.send("add", 1, 2, countdown=25)
    garden.flower.wait_task(task_id, "RECEIVED")
    garden.flower.done(f"/api/task/revoke/{task_id}")
    task = garden.flower.wait_task(task_id, "REVOKED")
    times(task, "received", "revoked")
    assert task["started"] is None


def test_sender_of_greenq_tells_where_it_sent_a_task(garden: Garden) -> None:
    with greenq_client(garden.server.url, task_send_sent_event=True) as app:
        task_id = app.send_task("shared.add", (1, 2), priority=3).id
    task = garden.flower.wait_task(task_id, "SUCCESS")
    times(task, "sent")
    assert (task["exchange"], task["routing_key"]) == ("", "celery")
    assert task["client"].startswith("gen")


@pytest.mark.parametrize(
    ("name", "args", "state"),
    [
        ("add", (1, 2), "SUCCESS"),
        ("fail_value", ("bad", 3), "FAILURE"),
        ("tracked", (60,), "STARTED"),
        ("retry_until", (1,), "SUCCESS"),
    ],
)
def test_task_has_the_fields_it_has_with_celery(
    garden: Garden, name: str, args: tuple[Any, ...], state: str
) -> None:
    ours, theirs = (
        garden.flower.wait_task(garden.send(name, *args, queue=queue), state)
        for queue in ("celery", "theirs")
    )
    assert kinds(ours) == kinds(theirs)
    said_alike = ("name", "args", "kwargs", "retries", "state", "result")
    assert [ours[field] for field in said_alike] == [theirs[field] for field in said_alike]
    for each in (ours, theirs):
        garden.flower.done(f"/api/task/revoke/{each['uuid']}", terminate=True)


def test_tasks_are_found_by_name_worker_state_and_text(garden: Garden) -> None:
    task_id = garden.send("echo", "needle", queue="scaled")
    garden.flower.wait_task(task_id, "SUCCESS")
    query = {"taskname": "shared.echo", "workername": SCALED, "state": "SUCCESS"}
    for asked in (query, {"search": "needle"}):
        assert garden.flower.get("/api/tasks", **asked).keys() == {task_id}
    assert garden.flower.get("/api/tasks", **query | {"workername": NODE}) == {}
    newest = garden.flower.get("/api/tasks", sort_by="-received", limit=1)
    assert newest.keys() == {task_id}
    assert "shared.echo" in garden.flower.get("/api/task/types")["task-types"]


# --- what Flower steers ---------------------------------------------------------------------------


def pool_size(flower: Flower) -> int:
    size: int = flower.worker(NODE)["stats"]["pool"]["max-concurrency"]
    return size


def test_pool_grows_and_shrinks(flower: Flower) -> None:
    size = pool_size(flower)
    said = flower.done(f"/api/worker/pool/grow/{NODE}", n=3)
    assert said == f"Growing '{NODE}' worker's pool by 3"
    assert pool_size(flower) == size + 3
    said = flower.done(f"/api/worker/pool/shrink/{NODE}", n=3)
    assert said == f"Shrinking '{NODE}' worker's pool by 3"
    assert pool_size(flower) == size


def test_limits_of_the_autoscaler_are_set(flower: Flower) -> None:
    flower.done(f"/api/worker/pool/autoscale/{SCALED}", min=1, max=9)
    scaler = flower.worker(SCALED)["stats"]["autoscaler"]
    assert (scaler["min"], scaler["max"]) == (1, 9)


def test_refusals_reach_the_user(flower: Flower) -> None:
    refused = {
        f"/api/worker/pool/grow/{SCALED}": "pool_grow is not supported with autoscale",
        f"/api/worker/pool/shrink/{SCALED}": "pool_shrink is not supported with autoscale",
        f"/api/worker/pool/autoscale/{NODE}?min=1&max=9": "Autoscale not enabled",
        f"/api/worker/pool/restart/{NODE}": "Pool restarts not enabled",
        f"/api/task/rate-limit/shared.add?workername={NODE}&ratelimit=often": (
            "Invalid rate limit string: 'often'"
        ),
        f"/api/task/timeout/shared.add?workername={NODE}&hard=-1": "the hard time limit is",
    }
    for path, why in refused.items():
        path, _, query = path.partition("?")
        status, said = flower.post(path, **dict(urllib.parse.parse_qsl(query)))
        assert status == 403, path
        assert why in said


def test_queues_are_added_and_cancelled(garden: Garden) -> None:
    flower = garden.flower
    said = flower.done(f"/api/worker/queue/add-consumer/{NODE}", queue="aside")
    assert said == "add consumer aside"
    task = flower.wait_task(garden.send("add", 1, 2, queue="aside"), "SUCCESS")
    assert task["worker"] == NODE
    queues = {queue["name"] for queue in flower.worker(NODE)["active_queues"]}
    assert queues == {"celery", "aside"}

    said = flower.done(f"/api/worker/queue/cancel-consumer/{NODE}", queue="aside")
    assert said == "no longer consuming from aside"
    garden.client.send_task("shared.add", (1, 2), queue="aside")
    lengths = flower.get("/api/queues/length")["active_queues"]
    assert {"name": "celery", "messages": 0} in lengths
    assert [queue["name"] for queue in flower.worker(NODE)["active_queues"]] == ["celery"]
    assert garden.server.queued("aside") != []


def test_time_limit_is_set_and_kept_to(flower: Flower) -> None:
    path = "/api/task/timeout/shared.sleep"
    assert flower.done(path, workername=NODE, hard=0.2) == "time limits set successfully"
    ended = flower.done("/api/task/apply/shared.sleep", {"args": [60], "timeout": WAIT_S})
    assert ended["state"] == "FAILURE"
    assert "TimeLimitExceeded" in ended["result"]
    flower.done(path, workername=NODE)
    done = flower.done("/api/task/apply/shared.sleep", {"args": [0.4, 1], "timeout": WAIT_S})
    assert (done["state"], done["result"]) == ("SUCCESS", 1)


def test_rate_limit_is_set(flower: Flower) -> None:
    path = "/api/task/rate-limit/shared.nothing"
    said = flower.done(path, workername=NODE, ratelimit="200/m")
    assert said == "new rate limit set successfully"
    assert "shared.nothing [rate_limit=200/m]" in flower.worker(NODE)["registered"]
    flower.done(path, workername=NODE, ratelimit="0")
    done = flower.done("/api/task/apply/shared.nothing", {"timeout": WAIT_S})
    assert done["state"] == "SUCCESS"


def test_tasks_sent_by_flower_run_here(flower: Flower) -> None:
    done = flower.done("/api/task/apply/shared.add", {"args": [3, 4], "timeout": WAIT_S})
    assert (done["state"], done["result"]) == ("SUCCESS", 7)
    assert flower.wait_task(done["task-id"], "SUCCESS")["worker"] == NODE

    failed = flower.done("/api/task/apply/shared.fail_key", {"args": ["k"], "timeout": WAIT_S})
    assert (failed["state"], failed["result"]) == ("FAILURE", "KeyError('k')")
    assert "in fail_key" in failed["traceback"]

    for way in ("async-apply", "send-task"):
        sent = flower.done(f"/api/task/{way}/shared.echo", {"args": [1], "kwargs": {"a": "b"}})
        flower.wait_task(sent["task-id"], "SUCCESS")
        result = flower.get(f"/api/task/result/{sent['task-id']}")
        assert (result["state"], result["result"]) == ("SUCCESS", [[1], {"a": "b"}])


# --- pages ----------------------------------------------------------------------------------------


def test_pages_show_workers_and_tasks(garden: Garden) -> None:
    flower = garden.flower
    task_id = garden.send("fail_value", "page", 3)
    flower.wait_task(task_id, "FAILURE")

    assert NODE in flower.page("/workers")
    rows = {row["hostname"]: row for row in flower.get("/workers", json=1)["data"]}
    assert rows[NODE]["status"] is True
    assert rows[NODE]["sw_ident"] == "greenq"
    assert rows[NODE]["task-failed"] >= 1

    worker = flower.page(f"/worker/{NODE}")
    for fact in ("Max concurrency", "worker-cancel-consumer-celery", "Rate limit for shared.add",
                 "task_eta_horizon", "maxrss"):  # fmt: skip
        assert fact in worker, fact

    task = flower.page(f"/task/{task_id}")
    for fact in ("shared.fail_value", task_id, "FAILURE", "ValueError('page', 3)", NODE,
                 "in fail_value"):  # fmt: skip
        assert fact in task, fact

    assert "tasks-table" in flower.page("/tasks")
    rows = flower.get(
        "/tasks/datatable",
        **{
            "draw": 1, "start": 0, "length": 10, "search[value]": task_id,
            "order[0][column]": 0, "columns[0][data]": "name", "order[0][dir]": "asc",
        },
    )["data"]  # fmt: skip
    assert [(row["uuid"], row["worker"]) for row in rows] == [(task_id, NODE)]
    assert "celery" in flower.page("/broker")


def test_metrics_count_what_workers_tell(garden: Garden) -> None:
    garden.flower.wait_task(garden.send("ignored"), "SUCCESS")
    metrics = garden.flower.get("/metrics")
    assert f'flower_worker_online{{worker="{NODE}"}} 1.0' in metrics
    told = f'flower_events_total{{task="shared.ignored",type="task-succeeded",worker="{NODE}"}}'
    assert told in metrics


# --- coming and going -----------------------------------------------------------------------------


def test_worker_that_is_killed_is_offline_soon(garden: Garden) -> None:
    node = "w3@flower"
    with greenq_worker(garden.server.url, "-n", node, "-Q", "w3") as worker:
        # It comes after Flower, and Flower hears of it.
        wait_until(lambda: garden.flower.is_online(node), WAIT_S)
        worker.kill()
        wait_until(lambda: not garden.flower.is_online(node), WAIT_S)
    assert garden.flower.is_online(NODE)


@pytest.mark.slow
def test_worker_whose_hub_is_blocked_stays_online(garden: Garden) -> None:
    node, beat_s, blocked_s = "w6@flower", 0.5, 4.0
    options = ("-n", node, "-Q", "w6", "--heartbeat-interval", str(beat_s))
    settings = {"worker_shutdown_grace": 0.1}

    def is_blocked() -> bool:
        (reply,) = garden.client.control.ping([node], timeout=WAIT_S, limit=1)
        return "blocked" in reply[node]

    with greenq_worker(garden.server.url, *options, app="limits_app", settings=settings):
        wait_until(lambda: garden.flower.is_online(node), WAIT_S)
        garden.client.send_task("limits_app.compute", (blocked_s,), queue="w6")
        wait_until(is_blocked, WAIT_S)
        began_s = lasted_s = time.monotonic()
        while is_blocked():
            assert garden.flower.is_online(node)
            lasted_s = time.monotonic()
        # Without a heartbeat it would have been held for dead meanwhile.
        assert lasted_s - began_s > 2 * 2 * beat_s


def test_worker_that_flower_shuts_down_says_good_bye(garden: Garden) -> None:
    node = "w4@flower"
    options = ("-n", node, "-Q", "w4", "--heartbeat-interval", "600")
    with greenq_worker(garden.server.url, *options) as worker:
        wait_until(lambda: garden.flower.is_online(node), WAIT_S)
        # It shuts down only what it has been told about.
        garden.flower.worker(node)
        garden.flower.done(f"/api/worker/shutdown/{node}")
        assert worker.wait_exit() == 0
    # With this interval its silence alone would be noticed after minutes.
    wait_until(lambda: not garden.flower.is_online(node), WAIT_S)


@pytest.mark.slow
def test_flower_has_workers_tell_of_their_tasks() -> None:
    with (
        valkey() as server,
        greenq_worker(server.url, "-n", NODE) as worker,
        running_flower(server.url) as flower,
    ):
        wait_until(lambda: flower.is_online(NODE), WAIT_S)
        assert flower.get("/api/tasks") == {}

        def sees_tasks() -> bool:
            flower.done("/api/task/send-task/shared.add", {"args": [1, 2]})
            return any(task["state"] == "SUCCESS" for task in flower.get("/api/tasks").values())

        # It asks for them every five seconds, for workers that have come meanwhile.
        wait_until(sees_tasks, WAIT_S)
        worker.stop()
        wait_until(lambda: not flower.is_online(NODE), WAIT_S)
