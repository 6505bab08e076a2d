"""Every documented setting acts, from end to end, by name.

`check_<setting>` shows the effect of one; those that other tests show, with faults or with Celery
beside, are named in `ELSEWHERE`. The cases come from the tables of settings: a new setting without
either is a test that fails.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq, Queue
from greenq.config.settings import SECTIONS, ResultTransportOptions, RetryPolicy, TransportOptions
from greenq.errors import ConfigError, ContentDisallowed, GreenqError, OperationalError, Unroutable
from greenq.protocol import envelope
from tests.servers import Process, Server, free_port, greenq_worker, spawn_greenq, valkey
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
WAIT_S = 15

PARTS = {
    "broker_transport_options": TransportOptions,
    "result_backend_transport_options": ResultTransportOptions,
    "task_publish_retry_policy": RetryPolicy,
}
NAMES = [each.name for part in SECTIONS.values() for each in dataclasses.fields(part)] + [
    f"{setting}.{each.name}" for setting, part in PARTS.items() for each in dataclasses.fields(part)
]

# Setting -> file and test. The file names the setting.
ELSEWHERE = {
    "worker_autoscale_adaptive": (
        "tests/integration/test_adaptive.py::"
        "test_a_saturated_service_limits_the_pool_if_the_setting_says_so"
    ),
    **dict.fromkeys(
        (
            "worker_processes_interval",
            "worker_processes_grow_after",
            "worker_processes_keepalive",
        ),
        "tests/integration/test_processes.py::"
        "test_a_saturated_hub_gets_a_second_process_which_is_drained_after",
    ),
    "security_signing_key": (
        "tests/integration/test_signing.py::"
        "test_an_unsigned_message_is_a_dead_letter_without_a_result"
    ),
    "security_accepted_signing_keys": (
        "tests/integration/test_signing.py::"
        "test_keys_are_exchanged_in_three_steps_without_a_refusal"
    ),
    "security_require_signatures": (
        "tests/integration/test_signing.py::"
        "test_signing_is_introduced_with_signatures_that_are_not_required"
    ),
    "task_annotations": (
        "tests/unit/registry/test_annotations.py::test_the_worker_runs_what_the_annotation_says"
    ),
    "task_allow_error_cb_on_chord_header": (
        "tests/unit/canvas/test_primitives.py::test_links_of_a_chord_are_those_of_its_body"
    ),
    "result_chord_expires": (
        "tests/integration/test_workflow_settings.py::test_keys_of_a_chord_expire"
    ),
    "result_backend_transport_options.result_chord_ordered": (
        "tests/integration/test_workflow_settings.py::"
        "test_parts_of_a_chord_are_kept_in_order_or_as_they_come"
    ),
    "workflow_index": (
        "tests/integration/test_workflow_index.py::test_without_the_setting_nothing_is_written"
    ),
    "task_always_eager": (
        "tests/unit/running/test_eager.py::test_always_eager_runs_instead_of_sending"
    ),
    "task_eager_propagates": "tests/unit/running/test_eager.py::test_failure_is_held_or_raised",
    "task_store_eager_result": (
        "tests/integration/test_workflow_settings.py::"
        "test_task_store_eager_result_writes_what_ran_here"
    ),
    "worker_health_address": (
        "tests/integration/test_monitoring.py::"
        "test_workers_of_one_setting_have_sockets_of_their_own"
    ),
    "worker_metrics_address": (
        "tests/integration/test_monitoring.py::test_metrics_of_a_real_worker_by_all_names"
    ),
    "worker_metrics_names": (
        "tests/integration/test_monitoring.py::test_metrics_of_a_real_worker_by_all_names"
    ),
    "worker_hub_blocked_limit": (
        "tests/integration/test_always_ends.py::"
        "test_hub_that_is_blocked_for_too_long_ends_the_worker"
    ),
    "broker_transport_options.visibility_timeout": (
        "tests/faults/test_leases.py::"
        "test_what_a_celery_worker_abandoned_comes_back_after_the_visibility_timeout"
    ),
    "broker_transport_options.sep": (
        "tests/integration/test_mailbox.py::test_prefix_and_database_are_those_of_the_keys"
    ),
    "task_acks_late": (
        "tests/integration/test_endings.py::test_a_failure_is_stored_and_the_worker_goes_on"
    ),
    "task_eta_horizon": (
        "tests/faults/test_eta.py::"
        "test_a_near_eta_stays_reserved_and_runs_once_beyond_the_visibility_timeout"
    ),
    "task_max_deliveries": (
        "tests/faults/test_leases.py::test_a_message_that_kills_its_workers_is_buried"
    ),
    "task_reject_on_worker_lost": (
        "tests/faults/test_leases.py::test_a_task_that_may_not_run_again_fails_when_its_worker_dies"
    ),
    "task_queues": (
        "tests/interop/test_broadcast.py::"
        "test_every_worker_runs_what_either_sends_to_a_broadcast_queue"
    ),
    "task_send_sent_event": "tests/integration/test_task_sent.py::test_one_event_tells_of_one_task",
    "beat_schedule": "tests/integration/test_beat.py::test_a_worker_runs_what_a_beat_sends",
    "worker_agent": (
        "tests/integration/test_cluster.py::test_an_agent_lives_as_long_as_the_connection"
    ),
    "worker_direct": (
        "tests/integration/test_queues.py::test_a_worker_takes_from_a_queue_of_its_own"
    ),
    "worker_enable_remote_control": (
        "tests/integration/test_cluster.py::test_all_optional_steps_can_be_switched_off_together"
    ),
    "worker_show_arguments": (
        "tests/integration/test_security.py::"
        "test_arguments_are_shown_to_nobody_but_as_their_sender_wishes"
    ),
    "worker_hub_lag_warning": "tests/integration/test_hub_blocked.py::",
    "worker_lease": (
        "tests/faults/test_leases.py::"
        "test_a_restarted_worker_recovers_its_predecessors_messages_at_once"
    ),
    "worker_prefetch_multiplier": (
        "tests/integration/test_shutdown.py::"
        "test_a_warm_stop_finishes_what_runs_and_returns_the_rest_in_order"
    ),
    "worker_shutdown_grace": (
        "tests/integration/test_shutdown.py::test_tasks_that_outlast_the_grace_time_are_returned"
    ),
    **dict.fromkeys(
        ("worker_max_tasks_per_child", "worker_recycle_at_once"),
        "tests/integration/test_recycle.py::"
        "test_workers_end_one_at_a_time_and_nothing_is_lost_or_runs_twice",
    ),
    "worker_max_memory_per_child": (
        "tests/integration/test_recycle.py::test_a_worker_that_grows_ends_at_its_memory_limit"
    ),
    **dict.fromkeys(
        ("worker_max_lifetime", "worker_recycle_by"),
        "tests/integration/test_recycle.py::"
        "test_with_exec_the_worker_comes_back_in_its_own_process",
    ),
    "worker_state_db": (
        "tests/integration/test_revokes.py::"
        "test_revoke_and_clock_survive_in_the_file_without_the_server"
    ),
    "worker_revoke_expires": (
        "tests/integration/test_revokes.py::test_revoke_holds_for_as_long_as_the_setting_says"
    ),
    "worker_recycle_jitter": (
        "tests/integration/test_recycle.py::"
        "test_what_a_worker_has_not_begun_at_its_limit_goes_to_others"
    ),
    "worker_silence_limit": "tests/integration/test_guard.py::test_silence_has_a_limit",
    **dict.fromkeys(
        (
            "task_publish_retry_policy.max_retries",
            "task_publish_retry_policy.interval_start",
            "task_publish_retry_policy.interval_step",
            "task_publish_retry_policy.interval_max",
        ),
        "tests/integration/test_sending.py::test_retries_are_bounded_by_the_policy",
    ),
}


# --- senders and workers --------------------------------------------------------------------------


@dataclasses.dataclass
class Rig:
    """A server; apps and workers of it."""

    server: Server
    apps: list[Greenq] = dataclasses.field(default_factory=list)

    def app(self, **settings: Any) -> Greenq:
        given = {"broker_url": self.server.url} | settings
        app = Greenq("client", set_as_current=False, **given)
        self.apps.append(app)
        return app

    @contextmanager
    def worker(self, *options: str, **settings: Any) -> Iterator[Process]:
        with greenq_worker(
            self.server.url, *options, app="settings_app", settings=settings
        ) as worker:
            yield worker

    def run(self, task: str, *args: Any, options: Any = None, **settings: Any) -> Any:
        """Return the handle of a task that a worker with the settings has finished."""
        app = self.app(**settings)
        with self.worker("-c", "2", **settings):
            result = app.send_task(f"settings_app.{task}", args, **options or {})
            wait_until(lambda: result.state in ("SUCCESS", "FAILURE"), WAIT_S)
        return result

    def send(self, task: str, *args: Any) -> Any:
        """Send a task to a worker that runs."""
        return self.app().send_task(f"settings_app.{task}", args)

    def properties(self, queue: str = "celery") -> Mapping[str, Any]:
        (raw,) = self.server.queued(queue)
        return envelope.unwrap(raw).properties

    def stored(self, task_id: str, prefix: str = "", **where: Any) -> bytes:
        found = self.server.client.get(f"{prefix}celery-task-meta-{task_id}")
        assert isinstance(found, bytes)
        return found

    def meta(self, task_id: str) -> Any:
        return json.loads(self.stored(task_id))


@pytest.fixture
def rig(server: Server) -> Iterator[Rig]:
    made = Rig(server)
    yield made
    for app in made.apps:
        app.close()


def seconds(call: Callable[[], object], error: type[BaseException]) -> float:
    """Return how long a call takes that fails."""
    began = time.monotonic()
    with pytest.raises(error):
        call()
    return time.monotonic() - began


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


# --- the test -------------------------------------------------------------------------------------


def check_of(name: str) -> Callable[[Rig], None] | None:
    found: Callable[[Rig], None] | None = globals().get(f"check_{name.replace('.', '__')}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_setting_acts(name: str, rig: Rig) -> None:
    check = check_of(name)
    if check is not None:
        check(rig)
        return
    assert name in ELSEWHERE, f"nothing shows that {name} acts: write check_{name}"
    file, _, test = ELSEWHERE[name].partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    tests = {each.name for each in ast.walk(ast.parse(text)) if isinstance(each, ast.FunctionDef)}
    assert name.rpartition(".")[2] in text
    assert not test or test in tests


def test_no_check_is_of_a_setting_that_is_gone() -> None:
    checks = {
        name.removeprefix("check_").replace("__", ".")
        for name in globals()
        if name.startswith("check_") and name != "check_of"
    }
    assert (checks | ELSEWHERE.keys()) <= set(NAMES)
    assert not checks & ELSEWHERE.keys()


# --- broker ---------------------------------------------------------------------------------------


def check_broker_url(rig: Rig) -> None:
    assert rig.run("add", 1, 2).result == 3


def check_broker_pool_limit(rig: Rig) -> None:
    options = {"socket_timeout": 0.2}
    app = rig.app(
        broker_pool_limit=1, broker_connection_timeout=0.2, broker_transport_options=options
    )
    client = app.transport.client
    with client.pooled(), pytest.raises(OperationalError):
        client.call("PING")
    two = rig.app(broker_pool_limit=2).transport.client
    with two.pooled():
        assert two.call("PING")


def check_broker_connection_timeout(rig: Rig) -> None:
    options = {"socket_timeout": 0.1}

    def waits(limit: float) -> float:
        app = rig.app(
            broker_pool_limit=1, broker_connection_timeout=limit, broker_transport_options=options
        )
        client = app.transport.client
        with client.pooled():
            return seconds(lambda: client.call("PING"), OperationalError)

    assert waits(0.1) < 0.9
    assert waits(0.9) >= 0.9


def check_broker_connection_retry_on_startup(rig: Rig) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    with tempfile_folder() as folder:
        settings = {"broker_connection_retry_on_startup": False}
        worker = spawn_greenq(url, folder / "log", app="settings_app", settings=settings)
        try:
            assert worker.wait_exit(WAIT_S) != 0
        finally:
            worker.kill()


def check_broker_connection_max_retries(rig: Rig) -> None:
    with (
        valkey() as server,
        greenq_worker(
            server.url, app="settings_app", settings={"broker_connection_max_retries": 1}
        ) as worker,
    ):
        server.stop()
        assert worker.wait_exit(30) != 0


def check_broker_transport_options(rig: Rig) -> None:
    check_broker_transport_options__global_keyprefix(rig)


def check_broker_transport_options__global_keyprefix(rig: Rig) -> None:
    result = rig.run("add", 1, 2, broker_transport_options={"global_keyprefix": "kp_"})
    assert result.result == 3
    rig.app(broker_transport_options={"global_keyprefix": "kp_"}).send_task("t")
    assert rig.server.client.llen("kp_celery") == 1


def check_broker_transport_options__priority_steps(rig: Rig) -> None:
    options = {"priority_steps": [0, 5]}
    rig.app(broker_transport_options=options).send_task("settings_app.add", (1, 2), priority=7)
    assert rig.server.client.llen("celery\x06\x165") == 1
    with rig.worker(broker_transport_options=options):
        rig.server.wait_settled()
        wait_until(lambda: not rig.server.client.llen("celery\x06\x165"), WAIT_S)


def check_broker_transport_options__queue_order_strategy(rig: Rig) -> None:
    app = rig.app()
    sent = [app.send_task("settings_app.again", queue=name) for name in ("z", "a") * 3]
    settings = {
        "task_default_retry_delay": 0,
        "broker_transport_options": {"queue_order_strategy": "sorted"},
    }
    with rig.worker("-c", "1", "-Q", "z,a", **settings):
        ended = [result.get(timeout=WAIT_S) for result in sent]
    assert max(ended[1::2]) < min(ended[0::2])


def check_broker_transport_options__socket_timeout(rig: Rig) -> None:
    with silent() as url:
        app = rig.app(
            broker_url=url,
            task_publish_retry=False,
            broker_connection_timeout=0.2,
            broker_transport_options={"socket_timeout": 0.2},
        )
        assert seconds(lambda: app.send_task("t"), OperationalError) < 2


def check_broker_transport_options__socket_connect_timeout(rig: Rig) -> None:
    options = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1}
    app = rig.app(
        broker_pool_limit=1, broker_connection_timeout=5, broker_transport_options=options
    )
    client = app.transport.client
    with client.pooled():
        assert seconds(lambda: client.call("PING"), OperationalError) < 2


def check_broker_transport_options__socket_keepalive(rig: Rig) -> None:
    for wanted in (True, False):
        app = rig.app(broker_transport_options={"socket_keepalive": wanted})
        with app.transport.client.pooled() as connection:
            connection.call("PING")
            link = connection._link._sock
            assert bool(link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is wanted


def check_broker_transport_options__health_check_interval(rig: Rig) -> None:
    """Who waits for a result on a connection that has gone silent looks at the server itself."""

    def checks(interval: float) -> int:
        app = rig.app(broker_transport_options={"health_check_interval": interval})
        rig.server.client.config_resetstat()
        with contextlib.suppress(GreenqError):
            app.AsyncResult("never").get(timeout=1.5)
        stats: Any = rig.server.client.info("commandstats")
        return int(stats.get("cmdstat_ping", {}).get("calls", 0))

    assert checks(0.2) > checks(30)


# --- results --------------------------------------------------------------------------------------


def check_result_backend(rig: Rig) -> None:
    url = rig.server.url.rpartition("/")[0] + "/1"
    result = rig.run("add", 1, 2, result_backend=url)
    assert result.result == 3
    assert not rig.server.client.exists(f"celery-task-meta-{result.id}")


def check_result_serializer(rig: Rig) -> None:
    result = rig.run("add", 1, 2, result_serializer="yaml", result_accept_content=["yaml"])
    assert result.result == 3
    assert b"result: 3" in rig.stored(result.id)


def check_result_accept_content(rig: Rig) -> None:
    with rig.worker(result_serializer="pickle"):
        sent = rig.app().send_task("settings_app.add", (1, 2))
        wait_until(lambda: rig.server.client.exists(f"celery-task-meta-{sent.id}"), WAIT_S)
    refusing: list[dict[str, Any]]
    refusing = [{}, {"result_accept_content": []}, {"result_accept_content": ["yaml"]}]
    for settings in refusing:
        app = rig.app(result_serializer="pickle", **settings)
        with pytest.raises(ContentDisallowed):
            _ = app.AsyncResult(sent.id).state
    reader = rig.app(result_serializer="pickle", result_accept_content=["pickle"])
    assert reader.AsyncResult(sent.id).result == 3


def check_result_compression(rig: Rig) -> None:
    result = rig.run("sized", 4000, result_compression="gzip")
    assert result.result == "x" * 4000
    assert len(rig.stored(result.id)) < 1000


def check_result_expires(rig: Rig) -> None:
    result = rig.run("add", 1, 2, result_expires=1234)
    assert 1200 < _ttl(rig, result.id) <= 1234


def check_result_failure_expires(rig: Rig) -> None:
    result = rig.run("fail", result_failure_expires=4321)
    assert 4300 < _ttl(rig, result.id) <= 4321


def _ttl(rig: Rig, task_id: str) -> int:
    found = rig.server.client.ttl(f"celery-task-meta-{task_id}")
    assert isinstance(found, int)
    return found


def check_result_extended(rig: Rig) -> None:
    meta = rig.meta(rig.run("add", 1, 2, result_extended=True).id)
    assert (meta["name"], meta["args"], meta["queue"]) == ("settings_app.add", [1, 2], "celery")
    assert "name" not in rig.meta(rig.run("add", 1, 2).id)


def check_result_backend_transport_options(rig: Rig) -> None:
    check_result_backend_transport_options__global_keyprefix(rig)


def check_result_backend_transport_options__global_keyprefix(rig: Rig) -> None:
    options = {"global_keyprefix": "rp"}
    result = rig.run("add", 1, 2, result_backend_transport_options=options)
    assert result.result == 3
    rig.stored(result.id, "rp_")


# --- tasks ----------------------------------------------------------------------------------------


def check_task_default_queue(rig: Rig) -> None:
    rig.app(task_default_queue="main").send_task("t")
    assert len(rig.server.queued("main")) == 1
    rig.server.flush()
    assert rig.run("add", 1, 2, task_default_queue="main").result == 3


def check_task_default_priority(rig: Rig) -> None:
    assert rig.run("request", task_default_priority=6).result["priority"] == 6


def bound_to(rig: Rig, exchange: str, key: str, **settings: Any) -> None:
    """See to it that a queue without an exchange is bound so."""
    rig.server.flush()
    app = rig.app(task_queues=[Queue("mail")], **settings)
    sent = app.send_task("t", exchange=exchange, routing_key=key)
    assert rig.server.queued_ids("mail") == [sent.id]


def check_task_default_exchange(rig: Rig) -> None:
    bound_to(rig, "celery", "celery")
    bound_to(rig, "tasks", "celery", task_default_exchange="tasks")


def check_task_default_routing_key(rig: Rig) -> None:
    bound_to(rig, "celery", "key", task_default_routing_key="key")


def check_task_default_exchange_type(rig: Rig) -> None:
    topic: dict[str, Any] = {"task_default_routing_key": "a.*"}
    bound_to(rig, "celery", "a.b", task_default_exchange_type="topic", **topic)
    with pytest.raises(Unroutable):
        bound_to(rig, "celery", "a.b", **topic)


def check_task_routes(rig: Rig) -> None:
    rig.app(task_routes={"mail.*": {"queue": "mail", "priority": 0}}).send_task("mail.send")
    assert len(rig.server.queued("mail")) == 1


def check_task_create_missing_queues(rig: Rig) -> None:
    app = rig.app(task_create_missing_queues=False, task_queues=["celery"])
    with pytest.raises(ConfigError, match="queue = 'maill'"):
        app.send_task("t", queue="maill")
    with tempfile_folder() as folder:
        settings = {"task_create_missing_queues": False, "task_queues": ["celery"]}
        worker = spawn_greenq(
            rig.server.url, folder / "log", "-Q", "maill", app="settings_app", settings=settings
        )
        try:
            assert worker.wait_exit(WAIT_S) != 0
        finally:
            worker.kill()


def check_task_serializer(rig: Rig) -> None:
    rig.app(task_serializer="yaml").send_task("t")
    (raw,) = rig.server.queued()
    assert envelope.unwrap(raw).content_type == "application/x-yaml"


def check_accept_content(rig: Rig) -> None:
    app = rig.app(task_serializer="yaml", accept_content=["json", "yaml"])
    with rig.worker():
        refused = app.send_task("settings_app.add", (1, 2))
        wait_until(rig.server.dead_letters, WAIT_S)
        assert refused.state == "FAILURE"
    with rig.worker(accept_content=["json", "yaml"]):
        assert app.send_task("settings_app.add", (1, 2)).get(timeout=WAIT_S) == 3


def check_accept_compression(rig: Rig) -> None:
    app = rig.app(task_compression="bzip2")
    with rig.worker():
        refused = app.send_task("settings_app.add", (1, 2))
        wait_until(rig.server.dead_letters, WAIT_S)
        assert refused.state == "FAILURE"
        assert "accept_compression" in rig.server.dead_letters()[0].reason
        # Without being asked for.
        packed = app.send_task("settings_app.add", (1, 2), compression="gzip")
        assert packed.get(timeout=WAIT_S) == 3
    for settings in ({"accept_compression": ["bzip2"]}, {"task_compression": "bzip2"}):
        with rig.worker(**settings):
            assert app.send_task("settings_app.add", (1, 2)).get(timeout=WAIT_S) == 3
    packing = {"result_compression": "bzip2"}
    with rig.worker(**packing):
        stored = rig.app().send_task("settings_app.sized", (4000,))
        with pytest.raises(GreenqError, match="accept_compression"):
            stored.get(timeout=WAIT_S)
        for settings in ({"accept_compression": ["bzip2"]}, packing):
            assert rig.app(**settings).AsyncResult(stored.id).get(timeout=WAIT_S) == "x" * 4000


def check_task_compression(rig: Rig) -> None:
    app = rig.app(task_compression="gzip")
    app.send_task("settings_app.sized", (1,), {})
    (raw,) = rig.server.queued()
    assert envelope.unwrap(raw).headers["compression"] == "application/x-gzip"
    with rig.worker():
        rig.server.wait_settled()
        wait_until(lambda: not rig.server.queued(), WAIT_S)
    assert rig.server.dead_letters() == []


def check_task_ignore_result(rig: Rig) -> None:
    worker_app = rig.app(task_ignore_result=True)
    task = worker_app.task(name="settings_app.t")(lambda: None)
    # Said by the sender, whose task it is; by name, nothing is said: the worker knows.
    task.delay()
    rig.app().send_task("settings_app.t")
    said = [envelope.unwrap(raw).headers["ignore_result"] for raw in rig.server.queued()]
    assert sorted(said, key=str) == [None, True]
    rig.server.flush()
    with rig.worker(task_ignore_result=True):
        mine, by_name = (
            app.send_task("settings_app.add", (1, 2), task_id=task_id)
            for app, task_id in ((worker_app, "mine"), (rig.app(), "by-name"))
        )
        rig.app().send_task("settings_app.add", (1, 2), ignore_result=False).get(timeout=WAIT_S)
        rig.server.wait_settled()
    assert (mine.state, by_name.state) == ("PENDING", "PENDING")


def check_task_store_errors_even_if_ignored(rig: Rig) -> None:
    settings = {"task_ignore_result": True, "task_store_errors_even_if_ignored": True}
    assert rig.run("fail", **settings).state == "FAILURE"


def check_task_acks_on_failure_or_timeout(rig: Rig) -> None:
    with rig.worker(task_acks_on_failure_or_timeout=False):
        rig.app().send_task("settings_app.fail")
        wait_until(rig.server.dead_letters, WAIT_S)


def check_task_track_started(rig: Rig) -> None:
    with rig.worker(task_track_started=True):
        result = rig.app().send_task("settings_app.wait", (2,))
        wait_until(lambda: result.state == "STARTED", WAIT_S)


def check_task_time_limit(rig: Rig) -> None:
    assert type(rig.run("wait", 60, task_time_limit=0.2).result).__name__ == "TimeLimitExceeded"


def check_task_soft_time_limit(rig: Rig) -> None:
    ended = rig.run("wait", 60, task_soft_time_limit=0.2).result
    assert type(ended).__name__ == "SoftTimeLimitExceeded"


def check_task_default_rate_limit(rig: Rig) -> None:
    assert _run_in(rig, 1.0, task_default_rate_limit="1/h") == 1


def check_worker_disable_rate_limits(rig: Rig) -> None:
    settings = {"task_default_rate_limit": "1/h", "worker_disable_rate_limits": True}
    assert _run_in(rig, WAIT_S, **settings) == 5


def _run_in(rig: Rig, within_s: float, **settings: Any) -> int:
    """Return how many of five tasks have run when all have, or after so long."""
    with rig.worker(**settings):
        sent = [rig.app().send_task("settings_app.add", (1, 2)) for _ in range(5)]
        wait_until(lambda: any(result.ready() for result in sent), WAIT_S)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: all(result.ready() for result in sent), within_s)
        return sum(result.ready() for result in sent)


def check_task_publish_retry(rig: Rig) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    policy = {"max_retries": 3, "interval_start": 0.3}

    def takes(*, retry: bool) -> float:
        app = rig.app(broker_url=url, task_publish_retry=retry, task_publish_retry_policy=policy)
        return seconds(lambda: app.send_task("t"), OperationalError)

    assert takes(retry=False) < 0.3 <= takes(retry=True)


def check_task_publish_retry_policy(rig: Rig) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"

    def takes(policy: dict[str, float]) -> float:
        app = rig.app(broker_url=url, task_publish_retry_policy=policy)
        return seconds(lambda: app.send_task("t"), OperationalError)

    assert takes({"max_retries": 0}) < 0.5 <= takes({"max_retries": 1, "interval_start": 0.5})


def check_task_default_retry_delay(rig: Rig) -> None:
    began = time.time()
    assert rig.run("again", task_default_retry_delay=0.5).result >= began + 0.5


def check_task_inherit_parent_priority(rig: Rig) -> None:
    for inherits, priority in ((True, 6), (False, 0)):
        settings = {"task_inherit_parent_priority": inherits}
        with rig.worker(**settings):
            sent = rig.app().send_task("settings_app.parent", priority=6)
            child = rig.app().AsyncResult(sent.get(timeout=WAIT_S))
            assert child.get(timeout=WAIT_S)["priority"] == priority


def check_task_max_body_bytes(rig: Rig) -> None:
    with rig.worker(task_max_body_bytes=1000):
        rig.app().send_task("settings_app.add", ("x" * 1000, ""))
        wait_until(rig.server.dead_letters, WAIT_S)
    with pytest.raises(GreenqError, match="task_max_body_bytes"):
        rig.app(task_max_body_bytes=1000).send_task("settings_app.add", ("x" * 1000, ""))


def check_task_max_dead_letter_bytes(rig: Rig) -> None:
    with rig.worker(task_max_dead_letter_bytes=1 << 20):
        rig.app(task_serializer="yaml").send_task("settings_app.add", ("x" * 1_000_000, ""))
        wait_until(rig.server.dead_letters, WAIT_S)
    # Cut to half of what all may take.
    assert len(rig.server.dead_letters()[0].raw) < 1 << 19


def check_task_dead_letter_expires(rig: Rig) -> None:
    with rig.worker(task_dead_letter_expires=1000):
        rig.app(task_serializer="yaml").send_task("settings_app.add", (1, 2))
        wait_until(rig.server.dead_letters, WAIT_S)
    assert 900 < rig.server.client.ttl("greenq.dead.celery") <= 1000


def check_task_max_result_bytes(rig: Rig) -> None:
    result = rig.run("sized", 5000, task_max_result_bytes=2000)
    assert "task_max_result_bytes" in str(result.result)


def check_worker_remote_control_pcre(rig: Rig) -> None:
    with rig.worker("-n", "one@host", worker_remote_control_pcre=True):
        ask = rig.app().control.inspect(
            pattern="o[mn]e@.*", matcher="pcre", timeout=WAIT_S, limit=1
        )
        assert ask.ping() == {"one@host": {"ok": "pong"}}


def check_enable_utc(rig: Rig) -> None:
    """Documented as without effect: accepted, and times carry their offset all the same."""
    rig.app(enable_utc=False).send_task("t", countdown=60)
    (raw,) = rig.server.queued()
    assert envelope.unwrap(raw).headers["eta"].endswith("+00:00")


def check_timezone(rig: Rig) -> None:
    rig.app(timezone="Asia/Tokyo").send_task("t", countdown=60)
    (raw,) = rig.server.queued()
    assert envelope.unwrap(raw).headers["eta"].endswith("+09:00")


def check_imports(rig: Rig, setting: str = "imports") -> None:
    assert rig.run("imported", "wave").result is False
    assert rig.run("imported", "wave", **{setting: ["wave"]}).result is True


def check_include(rig: Rig) -> None:
    check_imports(rig, "include")


# --- workers --------------------------------------------------------------------------------------


def check_worker_concurrency(rig: Rig) -> None:
    with rig.worker(worker_concurrency=3):
        (stats,) = rig.app().control.inspect(timeout=5, limit=1).stats().values()
    assert stats["pool"]["max-concurrency"] == 3


def check_worker_task_locals(rig: Rig) -> None:
    for value, found in (("clear", None), ("keep", "something")):
        with rig.worker("-c", "1", worker_task_locals=value):
            app = rig.app()
            app.send_task("settings_app.left").get(timeout=WAIT_S)
            assert app.send_task("settings_app.left").get(timeout=WAIT_S) == found


def check_worker_autoscale_keepalive(rig: Rig) -> None:
    assert _grows_and_shrinks(rig, worker_autoscale_keepalive=0.2, worker_autoscale_interval=0.1)
    assert not _grows_and_shrinks(rig, worker_autoscale_keepalive=60, worker_autoscale_interval=0.1)


def check_worker_autoscale_interval(rig: Rig) -> None:
    assert not _grows_and_shrinks(rig, worker_autoscale_keepalive=0.2, worker_autoscale_interval=60)


def _grows_and_shrinks(rig: Rig, **settings: Any) -> bool:
    """Tell whether a pool grows with its load, and is small again soon after it."""
    with rig.worker("--autoscale", "20,1", **settings):
        app = rig.app()

        def size() -> int:
            # None while the worker is too busy to answer.
            replies = app.control.inspect(timeout=5, limit=1).stats() or {}
            return sum(int(stats["pool"]["max-concurrency"]) for stats in replies.values())

        sent = [app.send_task("settings_app.wait", (1,)) for _ in range(20)]
        try:
            wait_until(lambda: size() > 1, 3)
            wait_until(lambda: all(result.ready() for result in sent), 30)
            wait_until(lambda: size() == 1, 3)
        except AssertionError:
            return False
        return True


def check_worker_send_task_events(rig: Rig) -> None:
    for wanted in (True, False):
        with rig.worker(worker_send_task_events=wanted):
            listener = rig.server.client.pubsub()  # type: ignore[no-untyped-call]
            listener.psubscribe("*celeryev*")
            rig.app().send_task("settings_app.add", (1, 2)).get(timeout=WAIT_S)
            heard = b""
            end = time.monotonic() + 1.5
            while time.monotonic() < end and b"task-succeeded" not in heard:
                told = listener.get_message(timeout=0.1)
                if told is not None and told["type"] == "pmessage":
                    heard += base64.b64decode(json.loads(told["data"])["body"])
            listener.close()
            assert (b"task-succeeded" in heard) is wanted


def check_worker_log_color(rig: Rig) -> None:
    for wanted in (True, False):
        with rig.worker(worker_log_color=wanted) as worker:
            rig.app().send_task("settings_app.fail").get(timeout=WAIT_S, propagate=False)
            worker.wait_text("on purpose")
            assert ("\033[31m" in worker.text) is wanted


def check_worker_hijack_root_logger(rig: Rig) -> None:
    """The app's module sets up a log of its own, which one worker replaces and the other keeps."""
    for hijacks in (True, False):
        settings: dict[str, Any] = {"worker_hijack_root_logger": hijacks}
        with greenq_worker_of_own_log(rig, settings) as worker:
            assert ("OWN FORMAT" in worker.text) is not hijacks


@contextmanager
def greenq_worker_of_own_log(rig: Rig, settings: Mapping[str, Any]) -> Iterator[Process]:
    with greenq_worker(
        rig.server.url, app="settings_app", settings=settings, env={"TEST_OWN_LOG": "1"}
    ) as worker:
        yield worker


@contextmanager
def tempfile_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        yield Path(folder)


# --- the log --------------------------------------------------------------------------------------


def lines_of(worker: Process) -> list[str]:
    return worker.text.splitlines()


def check_worker_log_json(rig: Rig) -> None:
    with rig.worker("-l", "INFO", worker_log_json=True) as worker:
        result = rig.send("add", 1, 2)
        result.get(timeout=WAIT_S)
        worker.wait_text("succeeded")
        found = [json.loads(line) for line in lines_of(worker) if line.startswith("{")]
    about = [each for each in found if each.get("task_id") == result.id]
    assert {each["message"].partition("] ")[2].split()[0] for each in about} >= {
        "received",
        "succeeded",
    }
    assert {each["root_id"] for each in about} == {result.id}


def check_worker_log_format(rig: Rig) -> None:
    with rig.worker("-l", "INFO", worker_log_format="<%(levelname)s> %(message)s") as worker:
        worker.wait_text("<INFO> Connected to")


def check_worker_log_datefmt(rig: Rig) -> None:
    with rig.worker("-l", "INFO", worker_log_datefmt="day %j") as worker:
        worker.wait_text("[day ")


def check_worker_task_log_format(rig: Rig) -> None:
    settings = {"worker_task_log_format": "in %(task_name)s of %(root_id)s: %(message)s"}
    with rig.worker("-l", "INFO", **settings) as worker:
        result = rig.send("say", "hello")
        worker.wait_text(f"in settings_app.say of {result.id}: hello")


def check_worker_task_log_datefmt(rig: Rig) -> None:
    with rig.worker("-l", "INFO", worker_task_log_datefmt="day %j") as worker:
        rig.send("say", "hello")
        worker.wait_text("]: hello")
        assert any("[day " in line and "hello" in line for line in lines_of(worker))


def check_worker_redirect_stdouts(rig: Rig) -> None:
    with rig.worker(worker_redirect_stdouts=False) as worker:
        rig.send("say", "hello")
        worker.wait_text("hello")
        assert "hello" in lines_of(worker)


def check_worker_redirect_stdouts_level(rig: Rig) -> None:
    with rig.worker(worker_redirect_stdouts_level="ERROR") as worker:
        result = rig.send("say", "hello")
        worker.wait_text(f"[{result.id}]: hello")
        assert any("ERROR/" in line and "hello" in line for line in lines_of(worker))
