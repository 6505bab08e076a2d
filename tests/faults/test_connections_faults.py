"""Connection faults: lost connections are replaced, refused commands wait, nothing hangs."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis

from greenq import Greenq
from greenq.errors import NotAllSent, OperationalError, ResultTimeout, ServerError
from greenq.protocol import envelope
from tests.faults.conftest import Scene
from tests.faults.proxy import (
    BLMOVE,
    SETTLE,
    TAKE,
    Fault,
    How,
    Kind,
    When,
    named,
    proxy_before,
    script,
)
from tests.servers import Process, Server, free_port, valkey, valkey_binary
from tests.support import FairTime, wait_until

pytestmark = pytest.mark.faults

COUNT = 20
SLOTS = 10

# The promise to workers once the connection works, and to clients at all times.
RESUME_S = 5.0
CALL_S = 5.0
# What a busy machine may add to either.
SLACK_S = 1.0

LEASE = script("lease")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Scene]:
    """A scene on a separate server, which the test may stop, freeze and configure."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey())
        proxy = stack.enter_context(proxy_before(server.url))
        made = Scene(server, proxy, tmp_path)
        stack.callback(made.close)
        try:
            yield made
        finally:
            sys.stderr.write(made.logs())


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Freeze a server: the kernel accepts connections and bytes for it, but nothing answers."""
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def wait_idle(scene: Scene) -> None:
    wait_until(lambda: scene.proxy.sent(BLMOVE) > 0)


def check_all_done_once(scene: Scene, timeout_s: float = 10.0) -> None:
    wait_until(scene.is_done, timeout_s)
    assert scene.ran() == Counter(scene.ids)


def check_said_once(worker: Process) -> None:
    """Check that each part of a worker logs an outage once, however often it retries."""
    troubles = [
        re.sub(r"\d+(\.\d+)?", "#", line.split("] ", 1)[-1])
        for line in worker.text.splitlines()
        if re.search("WARNING|ERROR|CRITICAL", line)
    ]
    repeated = {line: count for line, count in Counter(troubles).items() if count > 1}
    assert not repeated


# --- half-open connections ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        pytest.param(BLMOVE, When.BEFORE, id="the wait is never heard of"),
        pytest.param(BLMOVE, When.EXECUTED, id="the message handed over never comes"),
        pytest.param(TAKE, When.EXECUTED, id="what was taken never comes"),
        pytest.param(SETTLE, When.EXECUTED, id="the write is never confirmed"),
        pytest.param(LEASE, When.EXECUTED, id="the lease is never confirmed"),
    ],
)
def test_worker_notices_a_half_open_connection(scene: Scene, kind: Kind, when: When) -> None:
    # Given an idle worker, one of whose connections passes nothing any more.
    fault = Fault(kind, when, How.FREEZE)
    if kind is BLMOVE:
        # It strikes at the first wait, which lasts until a message comes.
        scene.proxy.plan(fault)
    worker = scene.worker("-c", str(SLOTS))
    if when is When.EXECUTED:
        wait_idle(scene)
    if kind is not BLMOVE:
        scene.proxy.plan(fault)
    if when is When.EXECUTED and kind is not LEASE:
        scene.send(1)
    fault.wait_fired()

    # Then what comes now, over a path that is good for new connections, is done in time.
    clock = FairTime()
    scene.send(COUNT)
    check_all_done_once(scene)
    assert clock.passed_s() < RESUME_S + SLACK_S
    assert "lost its lease" not in worker.text
    check_said_once(worker)


def test_lease_holds_although_its_connection_is_half_open(scene: Scene) -> None:
    # Given a worker with a task, and another who would take it over.
    scene.send(1, "faults.hold")
    first = scene.worker("-c", "1")
    wait_until(lambda: scene.ran().total() == 1)
    second = scene.worker("-c", "1", direct=True)
    second.wait_text("Connected to ")

    fault = scene.proxy.plan(Fault(LEASE, When.BEFORE, How.FREEZE))
    fault.wait_fired()
    before = scene.proxy.sent(LEASE)
    wait_until(lambda: scene.proxy.sent(LEASE) >= before + 3, 15)

    assert "lost its lease" not in first.text
    scene.open_gate()
    check_all_done_once(scene)


def test_worker_resumes_when_a_frozen_server_thaws(own: Scene) -> None:
    own.send(SLOTS, "faults.hold")
    worker = own.worker("-c", str(2 * SLOTS))
    wait_until(lambda: own.ran().total() == SLOTS)
    wait_until(lambda: own.server.client.info("clients")["blocked_clients"] == 1)
    with frozen(own.server):
        own.open_gate()
        worker.wait_text("consumer: ")
        worker.wait_text(f"{SLOTS} outcomes are waiting to be written")
    clock = FairTime()
    own.send(COUNT)

    check_all_done_once(own)
    assert clock.passed_s() < RESUME_S + SLACK_S
    check_said_once(worker)


@pytest.mark.slow
def test_waiting_for_a_result_notices_a_half_open_connection(scene: Scene) -> None:
    # Given a caller whose listening connection is dead, while others come to wait all the time.
    app = Greenq("client", broker=scene.proxy.url, set_as_current=False)
    try:
        scene.worker("-c", str(SLOTS), direct=True).wait_text("Connected to ")
        fault = scene.proxy.plan(Fault(named("SUBSCRIBE"), When.EXECUTED, How.FREEZE))
        held = app.send_task("faults.hold", (0,))
        answers: list[object] = []
        caller = threading.Thread(target=lambda: answers.append(held.get(timeout=30)))
        caller.start()
        fault.wait_fired()
        scene.open_gate()
        clock = FairTime()

        while not answers and clock.passed_s() < 30:
            with pytest.raises(ResultTimeout):
                app.AsyncResult("never sent").get(timeout=0.3)
        caller.join(30)

        assert answers == [0]
        assert clock.passed_s() < RESUME_S + SLACK_S
    finally:
        app.close()


# --- the server goes away -------------------------------------------------------------------------


def test_worker_that_starts_before_its_server_waits_for_it(own: Scene) -> None:
    own.server.stop()
    worker = own.worker("-c", str(SLOTS), direct=True)
    worker.wait_text("trying again")

    own.server.start()
    clock = FairTime()
    own.send(COUNT)

    check_all_done_once(own)
    assert clock.passed_s() < RESUME_S + SLACK_S
    check_said_once(worker)


def test_worker_resumes_when_its_server_is_back(own: Scene) -> None:
    own.send(SLOTS, "faults.hold")
    worker = own.worker("-c", str(2 * SLOTS), direct=True)
    wait_until(lambda: own.ran().total() == SLOTS)
    own.server.stop()
    worker.wait_text("consumer: ")
    own.open_gate()
    worker.wait_text("outcomes are waiting to be written")

    own.server.start()
    clock = FairTime()
    own.send(COUNT)

    check_all_done_once(own)
    assert clock.passed_s() < RESUME_S + SLACK_S
    check_said_once(worker)


# --- the server refuses ---------------------------------------------------------------------------


@contextmanager
def no_memory(server: Server) -> Iterator[None]:
    server.client.config_set("maxmemory", 1)
    yield
    server.client.config_set("maxmemory", 0)


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    server.client.replicaof("127.0.0.1", "1")
    yield
    server.client.replicaof("NO", "ONE")


@contextmanager
def primary_away(server: Server) -> Iterator[None]:
    server.client.config_set("replica-serve-stale-data", "no")
    server.client.replicaof("127.0.0.1", "1")
    yield
    server.client.replicaof("NO", "ONE")


@contextmanager
def disk_broken(server: Server) -> Iterator[None]:
    # A folder takes the place of the snapshot file.
    (server.folder / "dump.rdb").mkdir()
    server.client.config_set("save", "3600 1")
    server.client.bgsave()
    wait_until(lambda: server.client.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    server.client.config_set("save", "")


@contextmanager
def script_runs(server: Server) -> Iterator[None]:
    server.client.config_set("busy-reply-threshold", 10)
    hanging = redis.Redis.from_url(server.url)

    def hang() -> None:
        with pytest.raises(redis.ResponseError, match="killed"):
            hanging.eval("while true do end", 0)

    thread = threading.Thread(target=hang)
    thread.start()

    def is_busy() -> bool:
        try:
            server.client.ping()
        except redis.ResponseError as exc:
            return str(exc).startswith("BUSY") or "busy" in str(exc).lower()
        return False

    wait_until(is_busy)
    yield
    server.client.script_kill()
    thread.join()
    hanging.close()


@contextmanager
def password_changed(server: Server) -> Iterator[None]:
    server.client.config_set("requirepass", "new")
    server.client.client_kill_filter(_type="normal", skipme=True)
    yield
    server.client.config_set("requirepass", "")


def forbidden(*rules: str) -> Callable[[Server], object]:
    @contextmanager
    def state(server: Server) -> Iterator[None]:
        admin = ("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
        server.client.execute_command(*admin)
        client = redis.Redis.from_url(server.url, username="admin", password="admin")
        client.execute_command("ACL", "SETUSER", "default", *rules)
        yield
        client.execute_command("ACL", "SETUSER", "default", "~*", "&*", "+@all")
        client.close()

    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        pytest.param(no_memory, "memory is full", id="OOM"),
        pytest.param(read_only, "read-only replica", id="READONLY"),
        pytest.param(primary_away, "lost its primary", id="MASTERDOWN"),
        pytest.param(disk_broken, "cannot save its data", id="MISCONF"),
        pytest.param(script_runs, "busy with a long-running script", id="BUSY"),
        pytest.param(password_changed, "user name or password", id="NOAUTH"),
        pytest.param(forbidden("-set"), "not allowed for this user", id="NOPERM results"),
        pytest.param(
            forbidden("resetkeys", "~celery*"), "not allowed for this user", id="NOPERM keys"
        ),
    ],
)
def test_worker_waits_while_the_server_refuses(
    own: Scene, state: Callable[[Server], object], said: str
) -> None:
    # Given tasks in flight and an idle worker's free slots
    own.send(SLOTS, "faults.hold")
    worker = own.worker("-c", str(SLOTS + 2))
    wait_until(lambda: own.ran().total() == SLOTS)

    # When the server refuses while they end, and more come.
    with state(own.server):  # type: ignore[attr-defined]
        own.open_gate()
        worker.wait_text("outcomes are waiting to be written")
        worker.wait_text(said)
        # Then none is acknowledged, and the worker lives on and tries again.
        tried = own.proxy.sent(lambda _: True)
        wait_until(lambda: own.proxy.sent(lambda _: True) > tried + 20)
    clock = FairTime()
    assert own.reserved() == Counter(own.ids)
    own.send(COUNT)

    # And all is done when it passes.
    check_all_done_once(own)
    assert clock.passed_s() < RESUME_S + SLACK_S
    check_said_once(worker)


def test_worker_that_may_look_but_not_wait_says_so_once(own: Scene) -> None:
    # Given a server without memory: a take that finds nothing is allowed, BLMOVE is not.
    worker = own.worker("-c", str(SLOTS))
    wait_until(lambda: own.server.client.info("clients")["blocked_clients"] == 1)
    with no_memory(own.server):
        waiting = next(each for each in own.server.client.client_list() if each["cmd"] == "blmove")
        own.server.client.client_unblock(int(waiting["id"]))
        worker.wait_text("no tasks are taken")
        tried = own.proxy.sent(BLMOVE)
        wait_until(lambda: own.proxy.sent(BLMOVE) > tried + 3)

    own.send(COUNT)
    check_all_done_once(own)
    check_said_once(worker)


@pytest.mark.parametrize("rules", [("-evalsha", "-eval"), ("-hset",), ("-zadd",)])
def test_nothing_is_lost_when_what_a_take_needs_becomes_forbidden(
    own: Scene, rules: tuple[str, ...]
) -> None:
    # Given a waiting worker that may still be woken, and pop, but not record what it has popped.
    worker = own.worker("-c", str(SLOTS))
    wait_idle(own)
    with forbidden(*rules)(own.server):  # type: ignore[attr-defined]
        own.send(COUNT)
        worker.wait_text("no tasks are taken")
        worker.wait_text("not allowed for this user")
        assert own.queued() == Counter(own.ids)
    check_all_done_once(own)
    check_said_once(worker)


def test_worker_goes_on_when_the_server_has_forgotten_the_scripts(own: Scene) -> None:
    worker = own.worker("-c", str(SLOTS))
    for _ in range(3):
        own.server.client.script_flush()
        own.send(COUNT)
        own.send(1, "faults.unknown")
        wait_until(lambda: own.server.client.llen("greenq.dead.celery"))
        own.ids.pop()
        own.server.client.delete("greenq.dead.celery")
        check_all_done_once(own)
    assert "lost its lease" not in worker.text


def start_slowly(server: Server, log: Path) -> Process:
    """Start a server that takes seconds to load its data, and answers LOADING meanwhile."""
    command = [
        *(str(valkey_binary()), "--port", str(server.port), "--bind", "127.0.0.1"),
        *("--dir", str(server.folder), "--appendonly", "yes", "--save", ""),
        # Microseconds per key; it answers after every 1,024 keys.
        *("--key-load-delay", "400"),
    ]
    return Process(command, log, os.environ, server.folder)


def lose_data(scene: Scene) -> Process:
    """Make a server lose all data while three tasks run; return their worker."""
    scene.send(3, "faults.hold")
    worker = scene.worker("-c", "3")
    wait_until(lambda: scene.ran().total() == 3)
    scene.server.client.flushall()
    wait_until(lambda: scene.reserved() == Counter(scene.ids))
    return worker


def test_server_that_has_lost_its_data_learns_what_a_worker_has_in_hand(scene: Scene) -> None:
    worker = lose_data(scene)
    worker.wait_text("the server has lost its data; this worker registers its messages again")
    worker.wait_text("the server had lost its data: the 3 messages of this worker are stored again")

    scene.open_gate()
    scene.send(3)

    wait_until(scene.is_done)
    assert scene.ran() == Counter(scene.ids)
    assert worker.alive


def test_outcome_waits_for_a_server_that_has_lost_its_data_to_learn_whose_it_is(
    scene: Scene,
) -> None:
    # Given tasks that end before the lease is renewed the next time.
    scene.send(3, "faults.hold")
    worker = scene.worker("-c", "3")
    wait_until(lambda: scene.ran().total() == 3)
    scene.server.client.flushall()
    scene.open_gate()

    wait_until(scene.is_done)

    assert scene.ran() == Counter(scene.ids)
    assert "was given to another worker" not in worker.text


def test_what_was_written_anew_runs_again_when_its_worker_dies(scene: Scene) -> None:
    lose_data(scene).kill()

    scene.open_gate()
    scene.worker("-c", "3", direct=True)

    wait_until(scene.is_done, 20)
    assert scene.ran() == Counter(dict.fromkeys(scene.ids, 2))


def test_worker_waits_while_the_server_loads_its_data(own: Scene, tmp_path: Path) -> None:
    own.send(SLOTS, "faults.hold")
    worker = own.worker("-c", str(SLOTS + 2), direct=True)
    wait_until(lambda: own.ran().total() == SLOTS)
    with own.server.client.pipeline(transaction=False) as pipe:
        for number in range(6000):
            pipe.set(f"weight{number}", number)
        pipe.execute()
    own.server.stop()
    own.open_gate()
    slow = start_slowly(own.server, tmp_path / "slow.log")
    try:
        worker.wait_text("loading its data")
        slow.wait_text("Ready to accept connections")
        clock = FairTime()
        own.send(COUNT)
        check_all_done_once(own)
        assert clock.passed_s() < RESUME_S + SLACK_S
        check_said_once(worker)
    finally:
        worker.kill()
        slow.stop()


def test_cluster_is_refused_with_a_clear_sentence(own: Scene, tmp_path: Path) -> None:
    # Given two nodes of a cluster, the second of which owns nothing.
    with ExitStack() as stack:
        nodes = [stack.enter_context(cluster_node(tmp_path / f"node{i}")) for i in range(2)]
        owner, other = nodes
        owner.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        other.execute_command("CLUSTER", "MEET", "127.0.0.1", port_of(owner), bus_of(owner))
        for node in nodes:
            wait_until(partial(is_cluster_up, node), 20)

        for node, code in ((owner, "CROSSSLOT"), (other, "MOVED")):
            own.server.url = f"redis://127.0.0.1:{port_of(node)}/0"
            worker = own.worker(direct=True)

            worker.wait_text("the server is part of a cluster, which is not supported yet")
            worker.wait_text(code)
            assert worker.alive
            app = Greenq("client", broker=own.server.url, set_as_current=False)
            if code == "MOVED":
                with pytest.raises(ServerError, match="part of a cluster"):
                    app.send_task("faults.mark", (0,))
            app.close()
            worker.kill()
            check_said_once(worker)


@contextmanager
def cluster_node(folder: Path) -> Iterator[redis.Redis]:
    folder.mkdir()
    server, bus_port = Server(folder), free_port()
    command = [
        *(str(valkey_binary()), "--port", str(server.port), "--bind", "127.0.0.1"),
        *("--dir", str(folder), "--save", "", "--cluster-enabled", "yes"),
        # The default is a port 10,000 higher, which may not exist.
        *("--cluster-port", str(bus_port)),
    ]
    process = Process(command, folder / "valkey.log", os.environ, folder)
    try:
        process.wait_text("Ready to accept connections")
        yield server.client
    finally:
        server.client.close()
        process.stop()


def is_cluster_up(node: redis.Redis) -> bool:
    return bool(node.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def bus_of(node: redis.Redis) -> int:
    return int(node.config_get("cluster-port")["cluster-port"])


def port_of(client: redis.Redis) -> int:
    port: int = client.connection_pool.connection_kwargs["port"]
    return port


# --- sending --------------------------------------------------------------------------------------


@contextmanager
def silent_port() -> Iterator[str]:
    """Listen without accepting or answering."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def full_port() -> Iterator[str]:
    """Listen with a full backlog: further connections are not even accepted."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


CALLS: dict[str, Callable[[Greenq], object]] = {
    "send": lambda app: app.send_task("faults.mark", (0,)),
    "send without retry": lambda app: app.send_task("faults.mark", (0,), retry=False),
    "send to an exchange": lambda app: app.send_task("faults.mark", exchange="e", routing_key="r"),
    "state": lambda app: app.AsyncResult("some").state,
    "get": lambda app: app.AsyncResult("some").get(timeout=60),
    "forget": lambda app: app.AsyncResult("some").forget(),
}


@pytest.mark.slow
@pytest.mark.parametrize("address", [silent_port, closed_port, full_port])
def test_no_call_takes_longer_than_five_seconds_when_the_server_is_away(
    address: Callable[[], object],
) -> None:
    took_s: dict[str, float] = {}

    def call(name: str, url: str) -> None:
        app = Greenq("client", broker=url, set_as_current=False)
        clock = FairTime()
        try:
            with pytest.raises(OperationalError):
                CALLS[name](app)
        finally:
            took_s[name] = clock.passed_s()
            app.close()

    with address() as url:  # type: ignore[attr-defined]
        threads = [threading.Thread(target=call, args=(name, url)) for name in CALLS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert took_s.keys() == CALLS.keys()
    assert max(took_s.values()) < CALL_S + 0.3, took_s


@pytest.mark.slow
def test_no_call_takes_longer_than_five_seconds_when_all_connections_freeze(own: Scene) -> None:
    # Given more callers than pooled connections, all of them connected.
    app = Greenq("client", broker=own.server.url, set_as_current=False)
    went = threading.Barrier(26)
    took_s: list[float] = []

    def call() -> None:
        went.wait()
        clock = FairTime()
        with pytest.raises(OperationalError):
            app.send_task("faults.mark", (0,))
        took_s.append(clock.passed_s())

    app.send_task("faults.mark", (0,))
    threads = [threading.Thread(target=call) for _ in range(25)]
    for thread in threads:
        thread.start()
    with frozen(own.server):
        went.wait()
        for thread in threads:
            thread.join()
    app.close()
    assert len(took_s) == 25
    assert max(took_s) < CALL_S + 0.3, took_s


def test_get_keeps_to_its_timeout_when_the_server_is_frozen(own: Scene) -> None:
    app = Greenq("client", broker=own.server.url, set_as_current=False)
    result = app.send_task("faults.mark", (0,))
    with frozen(own.server):
        clock = FairTime()
        with pytest.raises((OperationalError, ResultTimeout)):
            result.get(timeout=0.5)
        # Reading may take a second in addition to the timeout.
        assert clock.passed_s() < 1.3
    app.close()


def test_send_is_tried_as_often_as_its_policy_says() -> None:
    with closed_port() as url:
        app = Greenq("client", broker=url, set_as_current=False)
        for options, least_s, most_s in (
            # The limits are generous, for busy machines.
            ({"retry": False}, 0, 3),
            ({}, 0.6, 5),
            ({"retry_policy": {"max_retries": 1, "interval_start": 0.3}}, 0.3, 4),
            (
                {"retry_policy": {"max_retries": 4, "interval_step": 1, "interval_max": 0.2}},
                0.6,
                5,
            ),
        ):
            began_s = time.monotonic()
            with pytest.raises(
                OperationalError, match=r"task .* could not be sent to queue 'celery'"
            ):
                app.send_task("faults.mark", (0,), **options)  # type: ignore[arg-type]
            assert least_s <= time.monotonic() - began_s < most_s, options
        app.close()


PUSHES = (named("LPUSH"), When.EXECUTED)


@pytest.mark.parametrize("how", [How.CUT, pytest.param(How.FREEZE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", list(When))
def test_bulk_send_whose_link_breaks_loses_and_doubles_nothing(
    scene: Scene, when: When, how: How
) -> None:
    # Given a bulk send of several pushes, and a link that breaks at the second of them.
    app = Greenq("client", broker=scene.proxy.url, set_as_current=False)
    fault = scene.proxy.plan(Fault(named("LPUSH"), when, how, number=2))
    try:
        results = app.send_task_many("faults.mark", (((n,), {}) for n in range(700)))
    finally:
        app.close()

    # Then all is queued once, in order.
    assert fault.fired.is_set()
    assert scene.server.queued_ids() == [result.id for result in results]
    assert len(results) == 700


def test_bulk_send_is_not_doubled_when_workers_are_at_it(scene: Scene) -> None:
    # Given a push whose answer is lost while a worker has done a part of it.
    scene.worker("-c", str(SLOTS), direct=True).wait_text("Connected to ")
    app = Greenq("client", broker=scene.proxy.url, set_as_current=False)
    fault = scene.proxy.plan(
        Fault(*PUSHES, number=2, strike=lambda: wait_until(lambda: scene.ran().total() >= 250))
    )
    try:
        results = app.send_task_many("faults.mark", (((n,), {}) for n in range(700)))
    finally:
        app.close()
    scene.ids += [result.id for result in results]

    assert fault.fired.is_set()
    check_all_done_once(scene)


def test_bulk_send_tells_what_was_sent_when_the_server_stays_away(own: Scene) -> None:
    app = Greenq("client", broker=own.server.url, set_as_current=False)

    def calls() -> Iterator[tuple[tuple[int], dict[str, int]]]:
        for number in range(700):
            if number == 250:
                own.server.stop()
            yield (number,), {}

    with pytest.raises(NotAllSent, match="200 items were sent, the next 200 may have") as caught:
        app.send_task_many("faults.mark", calls())

    app.close()
    own.server.start()
    # The link was cut: the sender cannot know whether the server had got them before.
    assert own.server.queued_ids() == list(caught.value.ids)
    assert len(caught.value.unknown) == 200


@pytest.mark.parametrize("how", [How.CUT, pytest.param(How.FREEZE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["queued", "reserved", "inbox", "done"])
def test_send_whose_answer_is_lost_is_not_sent_twice(scene: Scene, where: str, how: How) -> None:
    # Given a push that the server has carried out, and whose answer gets lost; the message
    # meanwhile goes on to where a worker brings it.
    app = Greenq("client", broker=scene.proxy.url, set_as_current=False)
    if where in {"reserved", "done"}:
        scene.open_gate()
        scene.worker("-c", "2", direct=True).wait_text("Connected to ")
        Path(f"{scene._gate}").unlink(missing_ok=where == "reserved")
        if where == "done":
            scene.open_gate()

    def bring() -> None:
        if where == "inbox":
            assert scene.server.client.blmove("celery", "greenq.inbox.celery", 5)
        elif where == "reserved":
            wait_until(lambda: scene.ran().total() == 1)
        elif where == "done":
            wait_until(lambda: scene.server.client.keys("celery-task-meta-*"))

    fault = scene.proxy.plan(Fault(*PUSHES, how, strike=bring))
    try:
        result = app.send_task("faults.hold", (0,))
        scene.ids.append(result.id)
        assert fault.fired.is_set()
        places = scene.queued() + scene.reserved()
        assert places == (Counter() if where == "done" else Counter(scene.ids))
        assert scene.ran().total() <= 1
    finally:
        scene.open_gate()
        app.close()


def test_send_that_never_arrived_is_sent_again(scene: Scene) -> None:
    app = Greenq("client", broker=scene.proxy.url, set_as_current=False)
    fault = scene.proxy.plan(Fault(named("LPUSH"), When.BEFORE))

    scene.ids.append(app.send_task("faults.mark", (0,)).id)

    assert fault.fired.is_set()
    assert scene.queued() == Counter(scene.ids)
    app.close()


# --- results of redelivered runs ------------------------------------------------------------------


VALUES: dict[str, object] = {
    "SUCCESS": 1,
    "FAILURE": ValueError("why"),
    "RETRY": ValueError("why"),
    "REVOKED": ValueError("why"),
    "STARTED": {"pid": 1},
    # A `status` in the task's own data is not its state.
    "PROGRESS": {"status": "SUCCESS"},
}


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle"])
@pytest.mark.parametrize("state", ["FAILURE", "RETRY", "STARTED", "REVOKED", "SUCCESS"])
@pytest.mark.parametrize("before", ["SUCCESS", "FAILURE", "PROGRESS", None])
def test_a_success_stays_and_no_passing_state_replaces_a_final_one(
    server: Server, before: str | None, state: str, serializer: str
) -> None:
    app = Greenq(
        "client",
        broker=server.url,
        set_as_current=False,
        result_serializer=serializer,
        accept_content=[serializer],
    )
    backend = app.transport.backend
    if before is not None:
        backend.store("id", before, VALUES[before])

    backend.store("id", state, 2 if state == "SUCCESS" else VALUES[state])

    # The writer of the state holds no message here.
    kept = before == "SUCCESS" or (before == "FAILURE" and state in {"RETRY", "STARTED"})
    found = backend.get("id")
    assert found.status == (before if kept else state)
    # Not even by another success: a caller may have read the first.
    assert found.status != "SUCCESS" or found.result == (1 if before == "SUCCESS" else 2)
    assert 0 < server.client.ttl("celery-task-meta-id") <= 86400
    app.close()


def test_failure_of_a_redelivered_run_does_not_hide_the_success_of_the_first(scene: Scene) -> None:
    # Given a message that is delivered again although its task has succeeded.
    app = Greenq("client", broker=scene.server.url, set_as_current=False)
    app.transport.backend.store("task-0", "SUCCESS", 0)
    # Too many arguments: this run fails.
    app.send_task("faults.mark", (0, 1), task_id="task-0")
    message = scene.server.client.rpop("celery")
    scene.server.client.lpush("celery", envelope.mark_redelivered(message))

    worker = scene.worker("-c", "1")
    worker.wait_text("raised unexpected")

    wait_until(lambda: not scene.queued() and not scene.reserved())
    assert app.AsyncResult("task-0").get(timeout=5) == 0
    app.close()
