"""The ACL lines of docs/security.md: each is enough for its role's whole work, and no more."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from greenq import Greenq, chain, chord
from greenq.errors import AccessRefused
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.members import Recycling
from tests.integration.test_beat import spawn_beat
from tests.servers import APPS, ROOT, Process, Server, greenq_worker, valkey
from tests.supervisord import PATIENCE_S, supervisord
from tests.support import wait_until

PAGE = ROOT / "docs" / "security.md"
WAIT_S = 20
WORD = "s3cret-word"


def lines() -> dict[str, str]:
    """Return the rules of the page by role."""
    found = re.findall(r"^user (\w+) on >PASSWORD (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return dict(found)


class Roles:
    """A server with the users of the page, and nobody else but an administrator."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.admin = server.client
        for role, rules in lines().items():
            self.admin.execute_command(
                "ACL", "SETUSER", role, "reset", "on", f">{WORD}", *rules.split()
            )

    def url(self, role: str) -> str:
        return f"redis://{role}:{WORD}@127.0.0.1:{self.server.port}/0"

    def app(self, role: str, **settings: Any) -> Greenq:
        app = Greenq(role, broker=self.url(role), set_as_current=False, **settings)
        return self.stack.enter_context(closing(app))

    def owner(self, name: str) -> Greenq:
        """Return an app that may do everything."""
        app = Greenq(name, broker=self.server.url, set_as_current=False)
        return self.stack.enter_context(closing(app))

    def worker(self, name: str, *options: str, **others: Any) -> Process:
        worker = self.stack.enter_context(
            greenq_worker(self.url("worker"), "-n", f"{name}@host", *options, **others)
        )
        return worker.wait_text(f"{name}@host is ready")

    def cli(self, role: str, *words: str, code: int = 0) -> str:
        """Run a command as a role, and return what it writes."""
        clean = {name: value for name, value in os.environ.items() if "GREENQ_" not in name}
        done = subprocess.run(
            [sys.executable, "-m", "greenq", *words],
            env=clean | {"GREENQ_BROKER_URL": self.url(role), "PYTHONPATH": f"{ROOT}"},
            cwd=APPS, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def refused(self, role: str) -> list[str]:
        """Return what the server has refused to a role."""
        entries = self.admin.execute_command("ACL", "LOG", 128)
        return [
            f"{entry['context']}: {entry['object']}"
            for entry in map(_texts, entries)
            if entry["username"] == role
        ]

    @contextmanager
    def all_allowed(self, role: str, but: Collection[str] = ()) -> Iterator[None]:
        """See to it that within the block all is allowed, and every command of the line needed."""
        self.admin.config_resetstat()
        self.admin.execute_command("ACL", "LOG", "RESET")
        yield
        assert sorted(set(self.refused(role)) - set(but)) == []
        called = {name.removeprefix("cmdstat_") for name in self.admin.info("commandstats")}
        granted = {rule[1:] for rule in lines()[role].split() if rule[0] == "+"}
        assert granted - called - RARE == set(), "granted, and not needed"


# Needed by workers in workflows alone: to give back a dead worker's early acknowledged steps, and
# for `add_to_chord`; by a beat to take messages back when an entry's next message is refused.
RARE = {"incr", "smismember", "lpop"}


def _texts(entry: Any) -> dict[str, str]:
    fields = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
    return {_text(name): _text(value) for name, value in fields.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture
def roles() -> Iterator[Roles]:
    # A server of one's own: statistics and the log of refusals are the whole server's.
    with valkey() as server, ExitStack() as stack:
        yield Roles(server, stack)


# --- enough ---------------------------------------------------------------------------------------


def test_the_page_has_a_line_for_each_role() -> None:
    assert set(lines()) == {*("sender", "worker", "beat", "reader", "monitor", "operator")}


def test_a_sender_sends(roles: Roles) -> None:
    # It tries to make the queue known, as the workers do, too, and asks who takes from it.
    with roles.all_allowed("sender", but={"toplevel: sadd", "toplevel: eval"}):
        sender = roles.app("sender")
        sender.send_task("shared.add", (1, 2), priority=0)
        sender.send_task("shared.add", (1, 2), priority=9)
        sender.send_task("shared.add", (1, 2), countdown=4000)
        add = sender.task(name="shared.add")(max)
        add.delay_many([(n, n) for n in range(500)])
        assert roles.cli("sender", "call", "shared.add", "--args", "[1, 2]")
    assert roles.admin.llen("celery") == 503


def test_a_worker_works(roles: Roles) -> None:
    client = roles.owner("client")
    with roles.all_allowed("worker"):
        first = roles.worker("a", "-E", settings=QUICK)
        run_every_kind(client)
        # A message whose ETA has come while it was parked.
        parked = client.send_task("shared.add", (7, 1), queue="aside")
        roles.admin.zadd("greenq.eta.celery", {b"1|" + roles.admin.rpop("aside"): 1.0})
        assert parked.get(timeout=WAIT_S) == 8
        # Far ahead: the worker parks it.
        client.send_task("shared.add", (1, 2), countdown=4000)
        wait_until(lambda: roles.admin.zcard("greenq.eta.celery") == 1, WAIT_S)
        # One of which nobody knows: a dead letter.
        client.send_task("nobody.knows")
        wait_until(lambda: roles.admin.llen("greenq.dead.celery") == 1, WAIT_S)
        second = roles.worker("b", "-E", settings=QUICK)
        steer(client)
        # One dies, the other recovers what it held.
        held = [client.send_task("shared.sleep", (3, n)) for n in range(40)]
        wait_until(lambda: roles.admin.hlen("unacked") == 40, WAIT_S)
        first.kill()
        assert sorted(each.get(timeout=60) for each in held) == list(range(40))
        client.send_task("shared.sleep", (30,))
        wait_until(lambda: roles.admin.hlen("unacked") == 1, WAIT_S)
        second.send_signal(signal.SIGQUIT)
        second.wait_exit()
    assert "NOPERM" not in first.text + second.text
    assert roles.admin.llen("celery") == 1


QUICK = {"task_send_sent_event": True}


def run_every_kind(client: Greenq) -> None:
    """Have a worker run tasks of all kinds."""
    results = [client.send_task("shared.add", (n, 1), priority=n % 10) for n in range(100)]
    assert [each.get(timeout=WAIT_S) for each in results] == list(range(1, 101))
    assert client.send_task("shared.retry_until", (2,)).get(timeout=WAIT_S) == 2
    assert client.send_task("shared.autoretry", (1,)).get(timeout=WAIT_S) == 1
    assert client.send_task("shared.progress", (3,)).get(timeout=WAIT_S) == "done"
    assert client.send_task("shared.tracked", (0.1, 5)).get(timeout=WAIT_S) == 5
    assert client.send_task("shared.add", (1, 2), countdown=0.5).get(timeout=WAIT_S) == 3
    child = client.send_task("shared.send_child", (3,)).get(timeout=WAIT_S)
    assert client.AsyncResult(child).get(timeout=WAIT_S)["id"] == child
    failing = client.send_task("shared.fail_value", ("x", 1))
    with pytest.raises(ValueError, match="x"):
        failing.get(timeout=WAIT_S)
    dropped = client.send_task("shared.add", (1, 2), countdown=60)
    dropped.revoke()
    client.send_task("shared.add", (1, 2), expires=-1)


def steer(client: Greenq) -> None:
    """Ask and command the workers."""
    control = client.control
    # A busy machine may need more than the second that is given to an answer.
    wait_until(lambda: len(control.inspect().active() or {}) == 2, WAIT_S)
    control.broadcast("pause", arguments={"queue": "celery"}, reply=True)
    control.broadcast("resume", arguments={"queue": "celery"}, reply=True)
    control.election("an-election", "task", client_task())
    wait_until(lambda: client.transport.client.call("EXISTS", "greenq.elected.an-election"), WAIT_S)


def client_task() -> dict[str, Any]:
    return {"task": "shared.add", "args": [1, 2], "kwargs": {}, "options": {}}


def extras(option: str) -> list[str]:
    """Return the rights that the page names for a worker with an option."""
    (found,) = re.findall(
        rf"`{option}`,\s(?:a\sworker|it)\salso\sneeds\s`([^`]+)`", PAGE.read_text("utf-8")
    )
    return str(found).split()


PERIODIC = {
    "each": {"task": "shared.add", "schedule": 0.5, "args": [1, 2]},
    "one": {"task": "shared.add", "schedule": 0.5, "args": [1, 2], "overlap": "skip"},
}


def wait_periodic(roles: Roles) -> None:
    """Wait until both entries were sent, some runs have ended, and the beat sees that."""
    names = {"each", "one"}
    for key in ("greenq.beat.states", "greenq.beat.runs"):
        wait_until(lambda key=key: {*map(_text, roles.admin.hkeys(key))} >= names, WAIT_S)
    wait_until(lambda: roles.admin.llen("greenq.beat.history") > 5, WAIT_S)


def test_a_beat_sends(roles: Roles, tmp_path: Path) -> None:
    owner = roles.owner("client")
    roles.worker("a")
    # As a sender, it tries to declare the queue, and asks who takes from it.
    with roles.all_allowed("beat", but={"toplevel: sadd", "toplevel: greenq.leases"}):
        beat = spawn_beat(roles.url("beat"), tmp_path / "beat.log", PERIODIC)
        roles.stack.callback(beat.stop)
        wait_periodic(roles)
        node = f"celerybeat@{socket.gethostname()}"
        wait_until(lambda: owner.control.inspect([node], timeout=5).ping(), WAIT_S)
        operator = functools.partial(roles.cli, "beat", "beat")
        operator("add", "mine", "shared.add", "--every", "1000", "-a", "[1, 2]")
        operator("pause", "mine")
        operator("resume", "mine")
        operator("run", "mine")
        assert "mine" in operator("list")
        assert "mine" in operator("next")
        assert "each" in operator("history", "each")
        operator("remove", "mine")
        assert beat.stop() == 0, beat.text
    assert "NOPERM" not in beat.text
    assert "not allowed" not in beat.text


def test_a_worker_with_a_beat_works(roles: Roles) -> None:
    roles.admin.execute_command("ACL", "SETUSER", "worker", *extras("-B"))
    worker = roles.worker("a", "-B", settings={"beat_schedule": PERIODIC})
    roles.admin.execute_command("ACL", "LOG", "RESET")
    wait_periodic(roles)
    # A change on the server, which the beat takes over.
    roles.owner("client").periodic.add("mine", "shared.add", 0.5, args=[1, 2])
    wait_until(lambda: roles.admin.hexists("greenq.beat.runs", "mine"), WAIT_S)
    assert worker.stop() == 0
    assert roles.refused("worker") == []


def test_a_worker_that_is_one_of_several_processes_works(roles: Roles) -> None:
    roles.admin.execute_command("ACL", "SETUSER", "worker", *extras("--processes"))
    quick = {"worker_processes_interval": 0.3, "worker_processes_keepalive": 1.0}
    reached: Any = SimpleNamespace(url=roles.url("worker"))
    with supervisord(reached, app="ledger_app", settings=quick) as supervisor:
        roles.admin.execute_command("ACL", "LOG", "RESET")
        supervisor.control("start", "greenq:greenq-more-0")
        supervisor.wait_running("greenq-more-0")
        # The first one leads: it has the second one drain, and stops it.
        wait_until(lambda: supervisor.state("greenq:greenq-more-0") == "STOPPED", PATIENCE_S)
        assert roles.refused("worker") == []


def test_a_worker_leaves_for_its_restart(roles: Roles) -> None:
    client = Client(roles.url("worker"))
    for _ in range(2):
        group = Recycling(client, Keys(), "a@host", lambda: ["celery"])
        assert group.claim(1, 60.0) == []
        group.returned()
    client.close()
    assert roles.refused("worker") == []


def test_a_reader_reads(roles: Roles) -> None:
    owner = roles.owner("client")
    roles.worker("a")
    with roles.all_allowed("reader"):
        reader = roles.app("reader")
        waited = owner.send_task("shared.sleep", (4.0, "late"))
        done = owner.send_task("shared.add", (1, 2))
        assert reader.AsyncResult(waited.id).get(timeout=WAIT_S) == "late"
        assert reader.AsyncResult(done.id).state == "SUCCESS"
        assert "3" in roles.cli("reader", "result", done.id)


INSPECTED = (
    "ping", "active", "scheduled", "registered", "active_queues", "stats", "conf", "report",
    "clock",
)  # fmt: skip


def look(roles: Roles, role: str) -> None:
    """Look at everything, as a role."""
    inspect = roles.app(role).control.inspect(timeout=5)
    for command in INSPECTED:
        assert getattr(inspect, command)(), command
    assert "a@host" in roles.cli(role, "status")
    assert "celery" in roles.cli(role, "queues")
    assert "celery" in roles.cli(role, "list", "bindings")
    assert "heartbeat" in roles.cli(role, "events", "--dump", "-t", "4")
    assert "a@host" in roles.cli(role, "top", "--once")
    assert "valkey" in roles.cli(role, "report")


def test_a_monitor_looks(roles: Roles) -> None:
    owner = roles.owner("client")
    roles.worker("a", "-E")
    owner.send_task("shared.add", (1, 2), countdown=60)
    with roles.all_allowed("monitor"):
        look(roles, "monitor")


def test_an_operator_does_everything_else(roles: Roles) -> None:
    owner = roles.owner("client")
    roles.worker("a", "-E")
    with roles.all_allowed("operator"):
        operator = functools.partial(roles.cli, "operator")
        operator("status")
        operator("queues")
        operator("events", "--dump", "-t", "3")
        operator("control", "pause", "celery")
        operator("control", "resume", "celery")
        operator("control", "pool_grow", "2")
        task = owner.send_task("shared.sleep", (60,))
        operator("control", "terminate", "TERM", task.id)
        for _ in range(3):
            owner.send_task("nobody.knows")
        wait_until(lambda: roles.admin.llen("greenq.dead.celery") == 3, WAIT_S)
        letters = operator("dead", "list", "--json").splitlines()
        operator("dead", "show", "--id", json.loads(letters[0])["id"])
        operator("dead", "replay", "--limit", "1")
        wait_until(lambda: roles.admin.llen("greenq.dead.celery") == 3, WAIT_S)
        operator("dead", "purge", "-Q", "celery", "--yes")
        assert roles.admin.llen("greenq.dead.celery") == 0
        operator("control", "shutdown", "--yes")
        wait_until(lambda: not roles.admin.exists("greenq.leases"), WAIT_S)
        owner.send_task("shared.add", (1, 2))
        operator("purge", "-Q", "celery", "--yes")
        assert roles.admin.llen("celery") == 0


# --- no more --------------------------------------------------------------------------------------

# What stands for each parameter of a function that names keys.
EXAMPLES: dict[str, Any] = {
    "task_id": "an-id", "group_id": "an-id", "incarnation": "abc", "election_id": "an-id",
    "exchange": "celery",
    "queue": "celery", "queues": ("celery",), "name": "other", "step": 3, "routing_key": "a.b",
    "schedule": "0123456789abcdef", "group": "0123456789abcdef", "workflow_id": "an-id",
}  # fmt: skip
NO_KEYS = {"step_of"}


def all_keys() -> set[str]:
    """Return a key, or channel, of each kind that greenq has, by its table of them."""
    keys = Keys()
    found: set[str] = set()
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_") or name in NO_KEYS:
            continue
        if isinstance(member, property):
            found.add(getattr(keys, name))
        elif inspect.isfunction(member):
            wanted = list(inspect.signature(member).parameters)[1:]
            made = getattr(keys, name)(*(EXAMPLES[each] for each in wanted))
            found.update([made] if isinstance(made, str) else made)
    channels = {keys.fanout("celery.pidbox"), keys.fanout("celeryev", "worker.heartbeat")}
    return found | channels | {keys.binding("reply.celery.pidbox"), "x.reply.celery.pidbox"}


TRIED: tuple[Callable[[str], tuple[Any, ...]], ...] = (
    lambda key: ("GET", key),
    lambda key: ("SET", key, "x"),
    lambda key: ("DEL", key),
    lambda key: ("EXISTS", key),
    lambda key: ("TYPE", key),
    lambda key: ("RENAME", key, "x"),
    lambda key: ("RENAME", "x", key),
    lambda key: ("COPY", key, "x"),
    lambda key: ("DUMP", key),
    lambda key: ("LPUSH", key, "x"),
    lambda key: ("RPUSH", key, "x"),
    lambda key: ("RPOP", key),
    lambda key: ("LRANGE", key, 0, -1),
    lambda key: ("LINDEX", key, 0),
    lambda key: ("LMOVE", key, "x", "LEFT", "LEFT"),
    lambda key: ("BLMOVE", key, "x", "LEFT", "LEFT", 0.01),
    lambda key: ("HGETALL", key),
    lambda key: ("HSET", key, "x", "x"),
    lambda key: ("HDEL", key, "x"),
    lambda key: ("SMEMBERS", key),
    lambda key: ("SADD", key, "x"),
    lambda key: ("ZRANGE", key, 0, -1),
    lambda key: ("ZADD", key, 1, "x"),
    lambda key: ("ZREM", key, "x"),
    lambda key: ("EXPIRE", key, 1),
    lambda key: ("EVAL", "return redis.call('TYPE', KEYS[1])", 1, key),
    lambda key: ("EVAL", "return redis.call('SET', ARGV[1], '')", 0, key),
    lambda key: ("PUBLISH", key, "x"),
    lambda key: ("SUBSCRIBE", key),
    lambda key: ("PSUBSCRIBE", f"{key}*"),
)

# Of the whole server.
OF_THE_SERVER = (
    ("KEYS", "*"), ("SCAN", 0), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("INFO",),
    ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"),
    ("MONITOR",), ("SCRIPT", "FLUSH"), ("SWAPDB", 0, 1), ("RANDOMKEY",),
)  # fmt: skip

QUEUE = {"celery", "celery\x06\x163"}


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("sender", {("LPUSH", key) for key in QUEUE}),
        ("reader", {(name, "celery-task-meta-an-id") for name in ("GET", "SUBSCRIBE")}),
    ],
)
def test_a_role_is_refused_whatever_it_does_not_need(
    roles: Roles, role: str, allowed: set[tuple[str, str]]
) -> None:
    keys = all_keys() | QUEUE
    assert {"unacked", "greenq.leases", "greenq.dead.celery", "/0.celery.pidbox"} < keys
    url = roles.url(role)
    carried_out = set()
    commands = [(make(key), key) for key in sorted(keys) for make in TRIED]
    commands += [(command, "") for command in OF_THE_SERVER]
    for command, key in commands:
        # In version 3 of the protocol a subscription has no answer.
        with closing(redis.Redis.from_url(url, protocol=2)) as client:
            try:
                client.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                continue
            except redis.exceptions.ResponseError:
                # It was allowed, and is a key of another type.
                pass
            carried_out.add((command[0], key))
    assert carried_out == allowed


@pytest.mark.parametrize(
    "command",
    [("LPUSH", "celery", "x"), ("DEL", "celery"), ("HSET", "greenq.paused", "celery", "x"),
     ("LPUSH", "greenq.dead.celery", "x"), ("ZADD", "greenq.leases", 1, "x"),
     ("HGETALL", "unacked"), ("GET", "celery-task-meta-an-id"), ("FLUSHALL",),
     ("CONFIG", "GET", "*")],
)  # fmt: skip
def test_a_monitor_changes_nothing_on_the_server(roles: Roles, command: tuple[Any, ...]) -> None:
    with (
        closing(redis.Redis.from_url(roles.url("monitor"))) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command)


# --- the index of workflows -----------------------------------------------------------------------


def test_the_rights_for_the_index_of_workflows_are_enough(roles: Roles) -> None:
    text = PAGE.read_text("utf-8").partition("[`workflow_index`]")[2].partition("\n\n")[0]
    keys, commands, managing = re.findall(r"`([^`]+)`", text)
    chords = ("~celery-taskset-meta-*", "+set", "+del")
    for role in ("sender", "worker", "operator"):
        given = [*keys.split(), *commands.split(), *(chords if role == "sender" else ())]
        given += managing.split() if role == "operator" else ()
        roles.admin.execute_command("ACL", "SETUSER", role, *given)
    roles.worker("a", settings={"workflow_index": True})
    sender = roles.app("sender", workflow_index=True)
    roles.admin.execute_command("ACL", "LOG", "RESET")

    whole = chord([sender.signature("shared.add", (n, n)) for n in range(3)])
    handle = whole(sender.signature("shared.total"))
    workflow = roles.app("operator", workflow_index=True).workflow(handle)
    assert workflow.wait(WAIT_S) == "SUCCESS"
    bad = chain(sender.signature("shared.add", (1, "x")), sender.signature("shared.add", (1,)))
    failed = roles.app("operator", workflow_index=True).workflow(bad.apply_async())
    assert failed.wait(WAIT_S) == "FAILURE"
    assert failed.retry() == 1
    failed.wait(WAIT_S)
    workflow.pause()
    workflow.resume()
    workflow.cancel()
    assert workflow.id in roles.cli("operator", "workflow", "list")
    assert "shared.total" in roles.cli("operator", "workflow", "show", workflow.id)
    for role in ("worker", "operator"):
        assert roles.refused(role) == []
    # As without the index: it tries to declare its queue, and asks who takes from it.
    assert set(roles.refused("sender")) <= {"toplevel: sadd", "toplevel: greenq.leases"}


# --- what is said ---------------------------------------------------------------------------------


def test_a_refusal_names_the_right_that_is_missing(roles: Roles) -> None:
    with pytest.raises(AccessRefused, match=r"LPUSH is not allowed .* the user lacks ~other"):
        roles.app("sender").send_task("shared.add", (1, 2), queue="other")
    with pytest.raises(AccessRefused, match=r"the user lacks \+lpush"):
        roles.app("reader").send_task("shared.add", (1, 2))
    with pytest.raises(AccessRefused, match=r"the user lacks \+get"):
        _ = roles.app("sender").AsyncResult("an-id").state
    roles.admin.execute_command("ACL", "SETUSER", "sender", "+publish")
    with pytest.raises(AccessRefused, match=r"the user lacks &/0.celery.pidbox"):
        roles.app("sender").control.broadcast("ping")
