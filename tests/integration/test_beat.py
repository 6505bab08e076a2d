"""``greenq beat`` and ``-B`` on a real server: sending, takeover, changes at run time, commands."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.beat.pings import Pings
from greenq.beat.scheduler import POLL_S, Scheduler
from greenq.cli import main
from greenq.config.queues import Queue
from greenq.errors import ConfigError, GreenqError, SignatureError
from greenq.schedules import BaseSchedule
from greenq.signals import after_task_publish, before_task_publish
from greenq.states import SUCCESS
from greenq.transport.schedule_store import LEAD_S
from tests.servers import APPS, Process, Server, _environment, greenq_worker
from tests.support import wait_until

EACH_SECOND = {"each": {"task": "shared.add", "schedule": 1.0, "args": [1, 2], "missed": "run_all"}}


def spawn_beat(url: str, log: Path, schedule: Any, *options: str) -> Process:
    command = [sys.executable, "-m", "greenq", "beat", "-A", "greenq_app", *options]
    return Process(command, log, _environment(url, {"beat_schedule": schedule}), APPS)


@contextmanager
def greenq_beat(url: str, schedule: Any, *options: str) -> Iterator[Process]:
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        beat = spawn_beat(url, Path(folder, "beat.log"), schedule, *options)
        try:
            yield beat.wait_text("entries in the settings")
        except BaseException:
            sys.stderr.write(f"--- log of greenq beat {beat.pid}\n{beat.text}\n")
            raise
        finally:
            beat.stop()


def history(server: Server) -> list[tuple[int, int, str, str]]:
    """Return what was sent, the oldest first: due, sent, id, name."""
    lines = [
        line.decode().split(" ", 3) for line in server.client.lrange("greenq.beat.history", 0, -1)
    ]
    return [(int(due), int(sent), task_id, name) for due, sent, task_id, name in reversed(lines)]


def require_each_once(server: Server, name: str = "each", every_s: float = 1.0) -> None:
    """Check that every due time of an interval was sent exactly once, and is one message."""
    due = [each[0] for each in history(server) if each[3] == name]
    step = int(every_s * 1_000_000)
    assert due == list(range(due[0], due[-1] + 1, step))


@contextmanager
def scheduler(server: Server, schedule: Any, **settings: Any) -> Iterator[Scheduler]:
    app = Greenq(
        "here", broker=server.url, set_as_current=False, beat_schedule=schedule, **settings
    )
    try:
        yield Scheduler(app)
    finally:
        app.close()


def tick_until(beat: Scheduler, condition: Callable[[], object]) -> None:
    def ticked() -> object:
        beat.tick()
        return condition()

    wait_until(ticked, 20)


@pytest.mark.smoke
def test_a_worker_runs_what_a_beat_sends(server: Server) -> None:
    with greenq_worker(server.url), greenq_beat(server.url, EACH_SECOND):
        wait_until(lambda: len(history(server)) >= 3, 20)
        app = Greenq("asker", broker=server.url, set_as_current=False)
        assert app.AsyncResult(history(server)[0][2]).get(timeout=10) == 3
        wait_until(lambda: server.client.hget("greenq.beat.runs", "each"), 20)
        kept = json.loads(server.client.hget("greenq.beat.runs", "each"))
        assert kept["state"] == SUCCESS
        assert 0 <= kept["took"] < 60
        app.close()
    require_each_once(server)


def test_the_message_is_that_of_celerys_beat(server: Server) -> None:
    schedule = {"each": {**EACH_SECOND["each"], "options": {"queue": "mail", "expires": 60}}}
    with scheduler(server, schedule) as beat:
        tick_until(beat, lambda: server.client.llen("mail"))
    message = json.loads(server.queued("mail")[0])
    headers = message["headers"]
    assert headers["celery_beat_task"] is True
    assert headers["task"] == "shared.add"
    assert headers["root_id"] == headers["id"]
    assert headers["parent_id"] is None
    assert headers["expires"]
    assert server.client.exists("_kombu.binding.mail")


@pytest.mark.faults
def test_another_beat_takes_over_when_one_is_killed_or_stopped(server: Server) -> None:
    with ExitStack() as stack:
        beats = [stack.enter_context(greenq_beat(server.url, EACH_SECOND)) for _ in range(3)]
        for end in (signal.SIGKILL, signal.SIGTERM):
            wait_until(lambda: len(history(server)) >= 2, 20)
            leader = next(beat for beat in beats if beat.alive and _leads(server, beat))
            before = len(history(server))
            leader.send_signal(end)
            leader.wait_exit()
            # 5 s are promised; the rest is for a busy machine.
            wait_until(lambda before=before: len(history(server)) >= before + 3, 25)
        beats[0].stop()
    require_each_once(server)
    assert server.client.llen("celery") == len(history(server))


def test_a_leader_that_dies_is_missed_for_five_seconds_at_most(server: Server) -> None:
    """As docs/periodic-tasks.md says: its term, and until another one asks."""
    with scheduler(server, EACH_SECOND) as beat:
        beat.tick()
    (leader,) = server.client.keys("greenq.beat.leader.*")

    assert server.client.pttl(leader) + 1000 * POLL_S <= 5000
    # It may be late twice before another one takes over.
    assert LEAD_S > 3 * POLL_S


def _leads(server: Server, beat: Process) -> bool:
    keys = server.client.keys("greenq.beat.leader.*")
    return any(f"/{beat.pid}/" in (server.client.get(key) or b"").decode() for key in keys)


@pytest.mark.faults
def test_a_frozen_leader_that_wakes_up_sends_nothing_twice(server: Server) -> None:
    with greenq_beat(server.url, EACH_SECOND) as one:
        wait_until(lambda: len(history(server)) >= 2, 20)
        with greenq_beat(server.url, EACH_SECOND) as other:
            os.kill(one.pid, signal.SIGSTOP)
            wait_until(lambda: _leads(server, other), 30)
            before = len(history(server))
            wait_until(lambda: len(history(server)) >= before + 2, 20)
            os.kill(one.pid, signal.SIGCONT)
            wait_until(lambda: len(history(server)) >= before + 5, 20)
    require_each_once(server)
    assert server.client.llen("celery") == len(history(server))


@pytest.mark.faults
def test_every_worker_may_have_a_beat_beside_others(server: Server) -> None:
    settings = {"beat_schedule": EACH_SECOND}
    with (
        greenq_worker(server.url, "-B", "-n", "w1@host", settings=settings),
        greenq_worker(server.url, "-B", "-n", "w2@host", settings=settings),
        greenq_beat(server.url, EACH_SECOND),
    ):
        wait_until(lambda: len(history(server)) >= 5, 30)
        server.wait_settled()
    require_each_once(server)


@pytest.mark.faults
def test_the_beat_of_another_worker_takes_over_when_the_leaders_worker_is_killed(
    server: Server,
) -> None:
    """Their beats ask with the renewals of the leases."""
    settings = {"beat_schedule": EACH_SECOND}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                greenq_worker(server.url, "-B", "-n", f"{name}@host", settings=settings)
            )
            for name in ("w1", "w2")
        }
        wait_until(lambda: len(history(server)) >= 2, 20)
        (key,) = server.client.keys("greenq.beat.leader.*")
        leader = server.client.get(key)[:2].decode()
        workers[leader].send_signal(signal.SIGKILL)
        workers[leader].wait_exit()
        before = len(history(server))
        # 5 s are promised; the rest is for a busy machine.
        wait_until(lambda: len(history(server)) >= before + 3, 25)
        assert not server.client.get(key).startswith(leader.encode())
    require_each_once(server)


def test_the_beat_of_a_worker_is_told_of_a_change(server: Server) -> None:
    def told() -> int:
        stats: Any = server.client.info("commandstats")
        return int(stats.get("cmdstat_client|caching", {}).get("calls", 0))

    with greenq_worker(server.url, "-B") as worker:
        worker.wait_text("this beat sends")
        wait_until(lambda: told() >= 2, 20)
        quiet = told()
        app = Greenq("here", broker=server.url, set_as_current=False)
        app.periodic.add("each", "shared.add", 1.0, args=[1, 1])
        wait_until(lambda: told() > quiet, 20)
        wait_until(lambda: history(server), 20)
        app.periodic.remove("each")
        wait_until(lambda: not server.client.hgetall("greenq.beat.states"), 20)
        app.close()


@pytest.mark.faults
def test_a_worker_keeps_its_lease_when_its_beat_loses_its_rights(server: Server) -> None:
    rights = ("reset", "on", ">pass", "&*", "+@all")
    server.client.execute_command("ACL", "SETUSER", "worker", *rights, "~*")
    login = server.url.replace("redis://", "redis://worker:pass@")
    with greenq_worker(login, "-B", settings={"beat_schedule": EACH_SECOND}) as worker:
        wait_until(lambda: history(server), 20)
        allowed = ("resetkeys", "~celery*", "~_kombu*", "~unacked*", "~greenq.[^b]*")
        server.client.execute_command("ACL", "SETUSER", "worker", *allowed, "~greenq.begun.*")
        worker.wait_text("beat sends nothing until the server answers again")
        app = Greenq("here", broker=server.url, set_as_current=False)
        result = app.send_task("shared.add", (1, 2))
        assert result.get(timeout=20) == 3
        server.client.execute_command("ACL", "SETUSER", "worker", "~*")
        worker.wait_text("beat can reach its server again")
        before = len(history(server))
        wait_until(lambda: len(history(server)) > before, 20)
        assert "lost its lease" not in worker.text
        app.close()
    require_each_once(server)


@pytest.mark.faults
def test_a_beat_goes_on_when_its_server_has_been_restarted(server: Server) -> None:
    with greenq_beat(server.url, EACH_SECOND) as beat:
        wait_until(lambda: len(history(server)) >= 2, 20)
        known = history(server)[-1][0]
        server.stop()
        beat.wait_text("sends nothing until the server answers again")
        server.start()
        wait_until(lambda: history(server) and history(server)[-1][0] > known, 30)
        # Each is still a whole number of seconds after the first.
        wait_until(lambda: len(history(server)) >= 3, 20)
    require_each_once(server)
    assert (history(server)[0][0] - known) % 1_000_000 == 0


def test_two_beats_with_different_code_each_lead_and_send_each_due_time_once(
    server: Server,
) -> None:
    new = EACH_SECOND | {"new": {"task": "shared.add", "schedule": 1.0, "missed": "run_all"}}
    with scheduler(server, EACH_SECOND) as one, scheduler(server, new) as other:

        def both() -> bool:
            one.tick()
            other.tick()
            names = Counter(each[3] for each in history(server))
            return names["each"] >= 4 and names["new"] >= 4

        wait_until(both, 20)
        assert one.leads
        assert other.leads
    require_each_once(server)
    require_each_once(server, "new")


def test_a_failed_send_is_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.client.set("celery", "not a list")
    with scheduler(server, EACH_SECOND) as beat:
        tick_until(beat, lambda: "entry each was not sent" in caplog.text)
        assert history(server) == []
        server.client.delete("celery")
        tick_until(beat, lambda: len(history(server)) >= 3)
    require_each_once(server)
    begun = history(server)[0][0] - 1_000_000
    assert history(server)[0][1] - begun >= 1_000_000


class Failing(BaseSchedule):
    """Fails when it is asked for the second time."""

    def __init__(self) -> None:
        self.asked = 0

    def next_due(self, after: datetime, zone: tzinfo) -> datetime:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("asked too often")
        return after + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("bad", "settings"),
    [
        ({"schedule": 0.5, "options": {"exchange": "nowhere"}}, {}),
        ({"schedule": Failing()}, {}),
        ({"schedule": 0.5, "options": {"queue": "forbidden"}}, {}),
        ({"schedule": 0.5, "overlap": "skip"}, {"result_backend": "redis://127.0.0.1:1/0"}),
    ],
    ids=["exchange", "schedule", "rights", "results"],
)
def test_an_entry_that_fails_does_not_keep_the_others(
    server: Server, bad: dict[str, Any], settings: dict[str, Any]
) -> None:
    rights = ("reset", "on", ">pass", "~greenq.beat.*", "~celery*", "&*", "+@all")
    server.client.execute_command("ACL", "SETUSER", "beat", *rights)
    schedule = EACH_SECOND | {"bad": {"task": "t", **bad}}
    login = server.url.replace("redis://", "redis://beat:pass@")
    app = Greenq("here", broker=login, set_as_current=False, beat_schedule=schedule, **settings)
    beat = Scheduler(app)
    # Without results there is never a first run that another could wait for.
    first = f"{time.time_ns() // 1000} {time.time_ns() // 1000} id 1"
    server.client.hset("greenq.beat.states", "bad", first)

    def sent_three() -> bool:
        beat.try_tick()
        return sum(each[3] == "each" for each in history(server)) >= 3

    wait_until(sent_three, 20)
    app.close()
    require_each_once(server)


# --- what a sender has, too ----------------------------------------------------------------------

KEY = "key-" * 8


def test_what_a_beat_sends_is_signed_and_its_pings_are(server: Server) -> None:
    settings = {"security_signing_key": KEY}
    with (
        greenq_worker(server.url, settings=settings),
        scheduler(server, EACH_SECOND, **settings) as beat,
    ):
        tick_until(beat, lambda: history(server))
        result = beat._app.AsyncResult(history(server)[0][2])
        assert result.get(timeout=20) == 3
        pings = Pings(beat._app, lambda: True)
        pings.start()
        try:
            wait_until(lambda: pings.node in _pinged(beat._app), 20)
            stranger = Greenq("stranger", broker=server.url, set_as_current=False)
            assert _pinged(stranger) == {}
            stranger.close()
        finally:
            pings.stop()
            pings.join()
    assert server.dead_letters() == []


def _pinged(app: Greenq) -> dict[str, Any]:
    return app.control.inspect(timeout=1).ping() or {}


def test_an_entry_on_the_server_counts_only_if_it_is_signed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with scheduler(server, {}, security_signing_key=KEY) as beat:
        app = beat._app
        app.periodic.add("ours", "shared.add", 0.5, args=[1, 1])
        stranger = Greenq("stranger", broker=server.url, set_as_current=False)
        stranger.periodic.add("theirs", "shared.add", 0.5, args=[1, 1])
        stranger.close()
        ours = server.client.hget("greenq.beat.entries", "ours")
        server.client.hset("greenq.beat.entries", "moved", ours)
        tick_until(beat, lambda: len(history(server)) >= 3)
        assert {each[3] for each in history(server)} == {"ours"}
        assert "the periodic entry 'theirs' added at run time is refused: unsigned" in caplog.text
        with pytest.raises(SignatureError, match=r"'(theirs|moved)' added at run time is refused"):
            app.periodic.entries()
        assert app.periodic.remove("theirs")
        assert app.periodic.remove("moved")
        assert [each.entry.name for each in app.periodic.entries()] == ["ours"]


def test_router_functions_are_asked_for_each_message(server: Server) -> None:
    asked: list[Any] = []

    def route(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> str:
        asked.append(args)
        return f"q{args[0]}"

    schedule = {
        f"e{number}": {**EACH_SECOND["each"], "args": [number], "schedule": 0.5}
        for number in (1, 2)
    }
    with scheduler(server, schedule, task_routes=[route]) as beat:
        tick_until(beat, lambda: min(map(server.client.llen, ("q1", "q2"))) >= 2)
    sent = Counter(each[3] for each in history(server))
    assert [server.client.llen(queue) for queue in ("q1", "q2")] == [sent["e1"], sent["e2"]]
    assert len(asked) >= sum(sent.values())


def test_limits_of_queues_hold_for_beats(server: Server) -> None:
    queues = [Queue("short", max_length=2), Queue("brief", expires=600)]
    schedule = {
        name: {**EACH_SECOND["each"], "schedule": 0.5, "options": {"queue": name}}
        for name in ("short", "brief")
    }
    with scheduler(server, schedule, task_queues=queues) as beat:
        tick_until(beat, lambda: server.client.llen("brief") >= 4)
        assert server.client.llen("short") == 2
        assert 0 < server.client.ttl("brief") <= 600
        # As when a waiting worker has been handed all of them, and has not begun.
        server.client.rename("short", "greenq.inbox.short")
        sent = len(history(server))
        tick_until(beat, lambda: len(history(server)) >= sent + 2)
        assert server.client.llen("short") == 0
        server.client.delete("greenq.inbox.short")
        tick_until(beat, lambda: server.client.llen("short") == 2)
    require_each_once(server, "short", 0.5)
    require_each_once(server, "brief", 0.5)


def test_receivers_see_and_change_what_a_beat_sends(server: Server) -> None:
    after: list[str] = []

    @before_task_publish.connect
    def change(headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        headers["seen"] = "yes"
        properties["priority"] = 9

    @after_task_publish.connect
    def note(headers: dict[str, Any], **_: Any) -> None:
        after.append(headers["id"])

    try:
        with scheduler(server, EACH_SECOND) as beat:
            tick_until(beat, lambda: len(history(server)) >= 2)
    finally:
        before_task_publish.disconnect(change)
        after_task_publish.disconnect(note)
    assert after == [each[2] for each in history(server)]
    last = server.client.lrange("celery\x06\x169", 0, -1)
    assert [json.loads(text)["headers"]["seen"] for text in last] == ["yes"] * len(after)


# --- at run time ---------------------------------------------------------------------------------


def test_an_entry_added_at_run_time_is_seen_by_a_running_beat(server: Server) -> None:
    with scheduler(server, {}) as beat:
        app = beat._app
        tick_until(beat, lambda: beat.leads)
        app.periodic.add("late", "shared.add", 0.5, args=[1, 1], missed="run_all")
        tick_until(beat, lambda: len(history(server)) >= 2)
        app.periodic.add("late", "shared.other", 0.5, missed="run_all")
        tick_until(
            beat,
            lambda: json.loads(server.queued()[-1])["headers"]["task"] == "shared.other",
        )
        assert app.periodic.remove("late")
        assert not app.periodic.remove("late")
        tick_until(beat, lambda: "late" not in beat._slots)
        assert not server.client.hexists("greenq.beat.states", "late")
    require_each_once(server, "late", 0.5)


def test_a_paused_entry_is_not_sent_and_a_resumed_one_counts_from_then(server: Server) -> None:
    with scheduler(server, EACH_SECOND) as beat:
        app = beat._app
        tick_until(beat, lambda: history(server))
        app.periodic.pause("each")
        sent = len(history(server))
        last_due = history(server)[-1][0]
        tick_until(beat, lambda: beat.now() > last_due + 3_000_000)
        assert len(history(server)) == sent
        assert app.periodic.get("each").next(1, app.now()) == []
        assert app.periodic.resume("each")
        assert not app.periodic.resume("each")
        tick_until(beat, lambda: len(history(server)) > sent)
    assert history(server)[sent][0] > last_due + 3_000_000
    with pytest.raises(GreenqError, match="did you mean each"):
        app.periodic.pause("eech")


def test_due_times_of_a_pause_are_not_sent_if_the_entry_in_the_code_returns(server: Server) -> None:
    with scheduler(server, {"each": EACH_SECOND["each"] | {"missed": "run_all"}}) as beat:
        app = beat._app
        app.periodic.add("each", "proj.add", 1, missed="run_all")
        tick_until(beat, lambda: history(server))
        app.periodic.pause("each")
        last_due = history(server)[-1][0]
        tick_until(beat, lambda: beat.now() > last_due + 3_000_000)
        app.periodic.remove("each")
        sent = len(history(server))
        tick_until(beat, lambda: len(history(server)) > sent)
    assert history(server)[sent][0] > last_due + 3_000_000


def test_an_entry_that_is_removed_while_a_beat_reads_it_does_not_begin(server: Server) -> None:
    with scheduler(server, {}) as beat:
        store, app = beat._store, beat._app
        app.periodic.add("late", "proj.add", 1)
        changes = store.lead("schedule", "me").changes
        assert store.entries().keys() == {"late"}
        app.periodic.remove("late")
        assert store.begin(["late"], {}, changes) == {}
        assert store.states() == {}
        assert store.begin(["other"], {}, changes + 1).keys() == {"other"}


def test_a_beat_that_no_longer_leads_restores_nothing_after_a_loss(server: Server) -> None:
    with scheduler(server, EACH_SECOND) as first, scheduler(server, EACH_SECOND) as second:
        tick_until(first, lambda: history(server))
        first._store.resign(first._schedule, first.name)
        tick_until(second, lambda: len(history(server)) > 2)
        first._poll()
        sent = history(server)[-1][0]
        server.client.flushdb()
        tick_until(first, lambda: history(server))
    assert history(server)[0][0] > sent


def test_add_periodic_task_takes_a_task_a_name_or_a_signature(server: Server) -> None:
    app = Greenq("coded", broker=server.url, set_as_current=False)

    @app.task(name="proj.add", priority=3)
    def add(x: int, y: int) -> int:
        return x + y

    signature = {"task": "proj.sub", "args": (1,), "kwargs": {"y": 2}, "options": {"queue": "q"}}
    assert app.add_periodic_task(10.0, add, (1, 2)) == "proj.add(1, 2)"
    assert app.add_periodic_task(60, signature, name="sub", fields={"overlap": "skip"}) == "sub"
    app.add_periodic_task(5, "proj.mul", (), {"x": 1}, queue="other")
    with pytest.raises(TypeError, match="a task or its name"):
        app.add_periodic_task(1, object())

    found = {each.entry.name: each.entry for each in app.periodic.entries()}
    assert sorted(found) == ["proj.add(1, 2)", "proj.mul(x=1)", "sub"]
    assert found["sub"].options == {"queue": "q"}
    assert found["sub"].overlap == "skip"
    app.periodic.run("proj.add(1, 2)")
    assert server.client.llen("celery\x06\x163") == 1
    app.close()


def test_wrong_entries_stop_the_start(server: Server) -> None:
    wrong = {"a": {"task": "t", "schedule": "x"}, "b": {"task": "t", "schedule": 1, "missed": "?"}}
    with pytest.raises(ConfigError, match=r"(?s)'a'.*'b'"), scheduler(server, wrong):
        pass
    overlap = {"a": {"task": "t", "schedule": 1, "overlap": "skip"}}
    with (
        pytest.raises(ConfigError, match="needs results"),
        scheduler(server, overlap, result_backend="disabled://"),
    ):
        pass


# --- overlap -------------------------------------------------------------------------------------


def overlapping(policy: str) -> dict[str, Any]:
    return {"each": {"task": "shared.add", "schedule": 0.5, "overlap": policy}}


def test_skip_sends_nothing_while_the_last_run_lasts(server: Server) -> None:
    with scheduler(server, overlapping("skip")) as beat:
        tick_until(beat, lambda: history(server))
        (first,) = history(server)
        tick_until(beat, lambda: _due(server) >= first[0] + 1_500_000)
        assert history(server) == [first]
        beat._app.backend.store(first[2], SUCCESS, 3)
        tick_until(beat, lambda: len(history(server)) == 2)


def test_queue_one_sends_one_when_the_last_run_ends(server: Server) -> None:
    with scheduler(server, overlapping("queue_one")) as beat:
        tick_until(beat, lambda: history(server))
        (first,) = history(server)
        tick_until(beat, lambda: beat.now() >= first[0] + 2_200_000)
        assert history(server) == [first]
        assert _due(server) == first[0]
        beat._app.backend.store(first[2], SUCCESS, 3)
        tick_until(beat, lambda: len(history(server)) == 2)
        assert history(server)[1][0] >= first[0] + 2_000_000


def test_cancel_ends_the_last_run(server: Server) -> None:
    schedule = {
        "each": {
            "task": "shared.sleep", "schedule": 2.0, "args": [60], "overlap": "cancel",
        },
    }  # fmt: skip
    settings = {"worker_shutdown_grace": 1}
    with greenq_worker(server.url, settings=settings), scheduler(server, schedule) as beat:
        tick_until(beat, lambda: len(history(server)) >= 2)
        first = history(server)[0][2]
        wait_until(lambda: beat._app.backend.get(first).status == "REVOKED", 20)


def _due(server: Server) -> int:
    return int(server.client.hget("greenq.beat.states", "each").split(b" ")[0])


# --- the command line ----------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], server: Server, *words: str) -> list[Any]:
    assert main(["beat", *words, "-b", server.url, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]


def test_commands(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    add = ("add", "report", "proj.report", "--crontab", "0 4 * * mon", "-a", "[1]")
    said(capsys, server, *add, "--timezone", "Europe/Berlin", "--queue", "mail")
    said(capsys, server, "add", "poll", "proj.poll", "--every", "30")

    poll, report = said(capsys, server, "list")
    assert (poll["schedule"], poll["runs"]) == ("every 30 s", 0)
    assert report["schedule"] == "crontab 0 4 * * mon"
    assert report["timezone"] == "Europe/Berlin"
    due = said(capsys, server, "next", "report", "3")
    assert [each["due"][11:19] for each in due] == ["04:00:00"] * 3
    assert len(said(capsys, server, "next")) == 10

    (sent,) = said(capsys, server, "run", "report")
    assert server.queued_ids("mail") == [sent["id"]]
    said(capsys, server, "pause", "poll")
    assert said(capsys, server, "list")[0]["next"] is None
    said(capsys, server, "resume", "poll")
    span = ("--from", "2026-01-01T00:00", "--to", "2026-02-01T00:00", "--yes")
    assert len(said(capsys, server, "backfill", "report", *span)) == 4
    assert server.client.llen("mail") == 5
    assert said(capsys, server, "history") == []
    said(capsys, server, "remove", "poll")
    assert len(said(capsys, server, "list")) == 1


def test_commands_as_text(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with scheduler(server, {"each": {"task": "proj.poll", "schedule": 0.5}}) as beat:
        beat._app.periodic.add("each", "proj.poll", 0.5)
        tick_until(beat, lambda: history(server))
    server.client.hdel("greenq.beat.paused", "each")
    for words, expected in (
        (["list"], ["each", "every 0.5 s", "not ended", "ago"]),
        (["history", "each"], ["each", "PENDING"]),
        (["next"], ["each", "+00:00"]),
    ):
        assert main(["beat", *words, "-b", server.url]) == 0
        text = capsys.readouterr().out
        assert all(each in text for each in expected), text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "no"], "no periodic entry 'no'"),
        (["run"], "takes NAME"),
        (["add", "x", "t"], "either --every or --crontab"),
        (["add", "x", "t", "--crontab", "* *"], "2 fields"),
        (["resume", "no"], "no periodic entry"),
        (["remove", "no"], "no periodic entry"),
        (["backfill", "x"], "--from and --to"),
        (["next", "a", "b"], "a name, a number, or both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "said",
)
def test_wrong_commands_are_explained(
    server: Server, capsys: pytest.CaptureFixture[str], words: Sequence[str], complaint: str
) -> None:
    assert main(["beat", *words, "-b", server.url]) == 1
    assert complaint in capsys.readouterr().err


def test_a_beat_answers_pings(server: Server) -> None:
    with greenq_beat(server.url, {}):
        app = Greenq("asker", broker=server.url, set_as_current=False)

        def answers() -> bool:
            nodes = app.control.inspect(timeout=2).ping() or {}
            return any(node.startswith("celerybeat@") for node in nodes)

        wait_until(answers, 20)
        app.close()


def test_a_beat_that_cannot_reach_its_server_is_silent(server: Server) -> None:
    now_s = time.monotonic()
    with scheduler(server, {}) as beat:
        beat._clock = lambda: now_s
        assert beat.is_alive or beat.try_tick() >= 0
        beat.try_tick()
        assert beat.is_alive
        now_s += 16
        assert not beat.is_alive
