"""Workflows in the index: what is known of them, and how they are stopped and run again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from greenq import Greenq, chain, chord, group
from greenq.cli import main
from greenq.errors import ChordError, GreenqError, NotAllSent
from greenq.workflow import Workflow
from greenq.workflow.tree import WorkflowGroup, WorkflowStep, WorkflowTask
from tests.servers import Process, Server, celery_worker, greenq_worker
from tests.support import FairTime, close_celery, wait_until

WAIT_S = 20
INDEXED = {"workflow_index": True}


class Rig:
    """A client that keeps the index, and workers that do."""

    def __init__(self, app: Greenq, server: Server, stack: ExitStack) -> None:
        self.app = app
        self.server = server
        self._stack = stack

    def s(self, task: str, *args: Any, task_id: str | None = None) -> Any:
        sig = self.app.signature(f"flow.{task}", args=args)
        return sig.set(task_id=task_id) if task_id else sig

    def worker(self, *options: str, **settings: Any) -> Process:
        return self._stack.enter_context(
            greenq_worker(
                self.server.url, *options, app="workflows_greenq", settings=INDEXED | settings
            )
        )

    def celery_worker(self, **settings: Any) -> Process:
        return self._stack.enter_context(
            celery_worker(self.server.url, app="workflows_celery", settings=settings)
        )

    def send(self, whole: Any, **options: Any) -> Workflow:
        return self.app.workflow(whole.apply_async(**options))

    def seen(self) -> list[str]:
        return [line.decode() for line in self.server.client.lrange("seen", 0, -1)]

    def ran(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self.seen())

    def states(self, *task_ids: str) -> list[str]:
        found = []
        for task_id in task_ids:
            meta = self.server.client.get(f"celery-task-meta-{task_id}") or "{}"
            found.append(str(json.loads(meta).get("status")))
        return found

    def wait_state(self, workflow: Workflow, task_id: str, state: str) -> None:
        wait_until(lambda: workflow.tree().tasks[task_id].state == state, WAIT_S)


@pytest.fixture
def rig(server: Server) -> Iterator[Rig]:
    with ExitStack() as stack:
        app = Greenq("client", broker=server.url, set_as_current=False, **INDEXED)
        stack.callback(app.close)
        yield Rig(app, server, stack)


def shape(lines: list[list[WorkflowStep]]) -> Any:
    """Return the lines of a tree with ids only."""
    return [
        [
            (
                step.what.id
                if isinstance(step.what, WorkflowTask)
                else sorted(shape(step.what.members), key=repr)
            )
            for step in line
        ]
        for line in lines
    ]


# --- what is known --------------------------------------------------------------------------------


def test_a_workflow_is_known_before_anything_runs(rig: Rig) -> None:
    line = chain(rig.s("add", 3, task_id="b1"), rig.s("add", 4, task_id="b2"))
    header = [rig.s("add", 1, 2, task_id="a"), line]
    body = rig.s("total", task_id="f")
    whole = chord(header, body) | rig.s("echo", task_id="g")
    workflow = rig.send(whole)

    assert workflow.state == "PENDING"
    assert workflow.counts == {"WAITING": 2, "PLANNED": 3}
    assert shape(workflow.tree().lines) == [[[["a"], ["b1", "b2"]], "f", "g"]]
    assert [each.id for each in rig.app.workflows()] == [workflow.id]


def test_what_runs_ends_with_times_and_its_worker(rig: Rig) -> None:
    rig.worker("-n", "w1@here")
    workflow = rig.send(chain(rig.s("add", 1, 2, task_id="a"), rig.s("echo", task_id="b")))

    assert workflow.wait(WAIT_S) == "SUCCESS"
    tasks = workflow.tree().tasks
    assert [tasks[each].state for each in "ab"] == ["SUCCESS"] * 2
    assert [tasks[each].worker for each in "ab"] == ["w1@here"] * 2
    began, ended = tasks["a"].began, tasks["a"].ended
    assert began is not None
    assert ended is not None
    assert began <= ended <= (tasks["b"].began or 0)
    assert workflow.progress == 1.0
    assert [task.id for task in workflow.critical_path()] == ["a", "b"]


def test_every_nesting_is_over_with_the_same_tree_as_before(rig: Rig) -> None:
    inner = chord([rig.s("add", 1, task_id="c"), rig.s("add", 2, task_id="d")],
                  rig.s("total", task_id="e"))  # fmt: skip
    line = chain(rig.s("add", 3, task_id="b1"), rig.s("add", 4, task_id="b2"))
    last = group(rig.s("echo", task_id="x"), rig.s("echo", task_id="y"))
    whole = chain(
        rig.s("add", 1, task_id="a"), group(line, inner), rig.s("total", task_id="f"), last
    )
    workflow = rig.send(whole)
    expected = [["a", [["b1", "b2"], [[["c"], ["d"]], "e"]], "f", [["x"], ["y"]]]]

    assert shape(workflow.tree().lines) == expected
    rig.worker()
    rig.worker()
    assert workflow.wait(WAIT_S) == "SUCCESS", workflow.tree().tasks
    assert shape(workflow.tree().lines) == expected
    assert workflow.counts == {"SUCCESS": 9}


def test_a_stream_is_open_until_all_of_it_is_sent(rig: Rig) -> None:
    states: list[str] = []

    def members() -> Iterator[Any]:
        for number in range(450):
            if number == 420:
                # A full push goes out when the next member is there.
                wait_until(lambda: rig.ran()["add"] >= 200, WAIT_S)
                rig.server.wait_settled()
                states.append(rig.app.workflows()[0].state)
            yield rig.s("add", number)

    rig.worker("-c", "8")
    workflow = rig.send(group(members(), app=rig.app))
    assert states == ["STARTED"]
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert workflow.counts == {"SUCCESS": 450}


def test_tasks_that_a_task_sends_belong_to_its_workflow(rig: Rig) -> None:
    rig.worker()
    rig.app.send_task("flow.spawn", task_id="root").get(timeout=WAIT_S)
    workflow = rig.app.workflow("root")
    assert workflow.wait(WAIT_S) == "SUCCESS"
    tree = workflow.tree()
    assert {task.name for task in tree.tasks.values()} == {"flow.spawn", "flow.add"}
    assert len(tree.tasks) == 3


def test_without_the_setting_nothing_is_written(rig: Rig) -> None:
    rig.app.conf.workflow_index = False
    rig.worker(workflow_index=False)
    handle = chord([rig.s("add", 1), rig.s("add", 2)], rig.s("total")).delay()
    assert handle.get(timeout=WAIT_S) == 3
    assert not list(rig.server.client.scan_iter("greenq.workflow*"))
    with pytest.raises(GreenqError, match="senders and workers do not set workflow_index"):
        rig.app.workflow(handle).tree()


def test_a_chord_that_a_celery_client_sends_is_one_workflow(rig: Rig) -> None:
    celery = pytest.importorskip("celery")
    rig.worker()
    client = celery.Celery("client", broker=rig.server.url, backend=rig.server.url)
    header = [client.signature("flow.add", args=(number,)) for number in range(3)]
    line = celery.chain(client.signature("flow.add", (1,)), client.signature("flow.add", (2,)))
    body = client.signature("flow.total")
    handle = celery.chord([*header, line])(body)
    assert handle.get(timeout=WAIT_S) == 6
    close_celery(client)

    (workflow,) = rig.app.workflows()
    assert workflow.id == handle.parent.id
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert workflow.counts == {"SUCCESS": 6}
    (line_of_steps,) = workflow.tree().lines
    first, last = (step.what for step in line_of_steps)
    assert isinstance(first, WorkflowGroup)
    assert sorted(len(each) for each in first.members) == [1, 1, 1, 2]
    assert isinstance(last, WorkflowTask)
    assert last.id == handle.id


def test_kill_in_the_middle(rig: Rig) -> None:
    first = rig.worker("-n", "w1@here", worker_lease=1.0, task_acks_late=True)
    header = [rig.s("gate", "go", number, task_id=f"m{number}") for number in range(3)]
    workflow = rig.send(chord(header, rig.s("total", task_id="body")))
    rig.wait_state(workflow, "m2", "STARTED")
    rig.worker("-n", "w2@here", worker_lease=1.0, task_acks_late=True)
    first.kill()
    wait_until(lambda: workflow.tree().tasks["m0"].worker == "w2@here", WAIT_S)
    rig.server.client.set("go", 1)
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert workflow.counts == {"SUCCESS": 4}
    assert rig.states("body") == ["SUCCESS"]


def test_a_sender_that_dies_leaves_something_visible(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    def members() -> Iterator[Any]:
        for number in range(450):
            if number == 430:
                raise RuntimeError("as if it were killed")
            yield rig.s("add", number, task_id=f"m{number}")

    rig.worker("-c", "4")
    header = group(members(), app=rig.app)
    with pytest.raises(NotAllSent):
        chord(header, rig.s("total", task_id="body"), app=rig.app).apply_async()
    (workflow,) = rig.app.workflows()
    # A push that was not complete did not go out.
    wait_until(lambda: workflow.counts.get("SUCCESS") == 400, WAIT_S)
    assert workflow.counts["WAITING"] == 30
    # Neither it nor its body is over, and the command says why.
    assert workflow.state == "STARTED"
    assert workflow.tree().tasks["body"].state == "PLANNED"
    (entry,) = rig.server.client.zrange("greenq.unsealed", 0, -1)
    rig.server.client.zadd("greenq.unsealed", {entry: time.time() - 100})
    assert main(["workflow", "show", "-b", rig.server.url, workflow.id]) == 0
    out = capsys.readouterr().out
    assert "it is still being sent; if its sender has died, cancel it" in out
    assert f"chord {workflow.id}: its header has been incomplete since 20" in out
    assert main(["workflow", "cancel", "-b", rig.server.url, workflow.id]) == 0
    assert rig.states("body") == ["REVOKED"]


def test_the_command_lists_shows_and_steers(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> str:
        assert main(["workflow", *words, "-b", rig.server.url]) == 0
        return capsys.readouterr().out

    assert "no workflows; is workflow_index set?" in run("list")
    rig.server.client.set("bad", 1)
    steps = [rig.s("add", 1, task_id="a"), rig.s("flaky", "bad", task_id="b").set(immutable=True)]
    rig.send(chain(*steps, rig.s("echo", task_id="c")))
    assert run("list").splitlines()[1].split()[1:] == ["a", "PENDING", "0%", "3", "0", "flow.add"]
    assert "paused: running tasks continue" in run("pause", "a")
    assert json.loads(run("show", "a", "--json"))["state"] == "PAUSED"
    assert run("resume", "a") == "a: resumed\n"
    rig.worker()
    shown = run("watch", "a")
    assert "workflow a: FAILURE, 100% of 3 tasks have ended" in shown
    assert "- flow.add  a  SUCCESS" in shown
    assert "> flow.flaky  b  FAILURE" in shown
    assert '"b" -> "c";' in run("show", "a", "--dot")
    rig.server.client.delete("bad")
    assert json.loads(run("retry", "a", "--json")) == {"id": "a", "sent": 1}
    assert rig.app.workflow("a").wait(WAIT_S) == "SUCCESS"
    assert run("cancel", "a") == "a: cancelled; 0 tasks had not ended\n"
    assert rig.app.workflow("a").state == "SUCCESS"
    with pytest.raises(SystemExit, match="2"):
        main(["workflow", "stop"])
    assert json.loads(run("show", "--json", "a"))["id"] == "a"
    assert main(["workflow", "show", "-b", rig.server.url, "x\x1b[31m"]) == 1
    assert main(["workflow", "show", "-b", rig.server.url]) == 1
    assert "\x1b" not in capsys.readouterr().err


# --- stopping -------------------------------------------------------------------------------------


def test_cancel_reaches_every_place(rig: Rig) -> None:
    rig.worker("-c", "1")
    running = rig.s("gate", "never", task_id="running")
    waiting = rig.s("add", 1, task_id="waiting")
    reserved = rig.s("add", 1, task_id="parked").set(countdown=3600)
    parked = rig.s("add", 1, task_id="far").set(countdown=86400)
    later = chain(rig.s("gate", "never", task_id="first"), rig.s("echo", task_id="second"))
    workflow = rig.send(
        chord([running, waiting, reserved, parked, later], rig.s("total", task_id="body"))
    )
    rig.wait_state(workflow, "running", "STARTED")

    assert workflow.cancel() == 7
    began_s = time.monotonic()
    ids = ["running", "waiting", "parked", "far", "first", "second", "body"]
    wait_until(lambda: rig.states(*ids) == ["REVOKED"] * 7, WAIT_S)
    assert time.monotonic() - began_s < 5
    assert workflow.wait(WAIT_S) == "REVOKED"
    assert rig.ran() == {"gate": 1}
    assert workflow.counts == {"REVOKED": 7}


def test_nothing_begins_a_second_after_a_large_workflow_was_cancelled(rig: Rig) -> None:
    for name in ("w1@here", "w2@here"):
        rig.worker("-c", "4", "-n", name)
    header = [rig.s("slow_add", 0.2, 1) for _ in range(2000)]
    workflow = rig.send(chord(header, rig.s("total", task_id="body")))
    wait_until(lambda: workflow.counts.get("SUCCESS", 0) > 8, WAIT_S)

    time_passed = FairTime()
    workflow.cancel()
    wait_until(lambda: time_passed.passed_s() > 1, WAIT_S)
    ended = workflow.counts["SUCCESS"]
    rig.server.wait_settled(WAIT_S)
    assert workflow.wait(WAIT_S) == "REVOKED"
    # What had begun before may have ended after that; nothing else has.
    assert workflow.counts["SUCCESS"] == ended
    assert workflow.counts == {"SUCCESS": ended, "REVOKED": 2001 - ended}
    assert rig.states("body") == ["REVOKED"]


def test_steps_that_a_running_step_would_begin_are_revoked(rig: Rig) -> None:
    """It ignores its termination, ends well, and hands over; what it sends does not begin."""
    rig.worker()
    workflow = rig.send(chain(rig.s("shielded", "go", task_id="a"), rig.s("echo", task_id="b")))
    rig.wait_state(workflow, "a", "STARTED")
    wait_until(lambda: rig.ran()["shielded"], WAIT_S)
    workflow.cancel()
    wait_until(lambda: rig.ran()["termination"], WAIT_S)
    rig.server.client.set("go", 1)
    wait_until(lambda: rig.states("b") == ["REVOKED"], WAIT_S)
    assert workflow.wait(WAIT_S) == "REVOKED"
    assert not rig.ran()["echo"]


def test_pause_and_resume(rig: Rig) -> None:
    rig.worker("-c", "2")
    steps = [rig.s("gate", "go", 1, task_id="a"), rig.s("add", 2, task_id="b")]
    workflow = rig.send(group(chain(*steps), *(rig.s("add", n) for n in range(50))))
    rig.wait_state(workflow, "a", "STARTED")
    wait_until(lambda: rig.ran()["add"] == 50, WAIT_S)
    workflow.pause()
    held = f"greenq.workflow.{workflow.id}.held"
    # As soon as the worker knows, one of these stays.
    more: list[Any] = []

    def is_held() -> int:
        more.append(workflow.add(rig.s("add", 100)))
        return int(rig.server.client.llen(held))

    wait_until(is_held, WAIT_S)
    rig.server.client.set("go", 1)
    wait_until(lambda: rig.states("a") == ["SUCCESS"], WAIT_S)
    rig.server.wait_settled()
    assert workflow.state == "PAUSED"
    assert [rig.states(more[-1].id), rig.states("b")] == [["None"], ["None"]]
    assert rig.server.client.ttl(held) > 20 * 86400
    workflow.resume()
    assert more[-1].get(timeout=WAIT_S) == 100
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert not rig.server.client.exists(held)
    assert workflow.counts == {"SUCCESS": 52 + len(more)}


def test_a_worker_that_starts_knows_what_is_stopped(rig: Rig) -> None:
    workflow = rig.send(chain(rig.s("add", 1, task_id="a"), rig.s("add", 2, task_id="b")))
    other = rig.send(chain(rig.s("add", 1, task_id="c"), rig.s("add", 2, task_id="d")))
    workflow.cancel()
    other.pause()
    rig.worker()
    wait_until(lambda: rig.server.client.llen(f"greenq.workflow.{other.id}.held") == 1, WAIT_S)
    rig.server.wait_settled()
    assert rig.server.client.ttl(f"greenq.workflow.{other.id}.held") > 20 * 86400
    assert not rig.ran()
    assert rig.states("a", "b", "c") == ["REVOKED", "REVOKED", "None"]


# --- running again --------------------------------------------------------------------------------


def test_retry_from_the_failed_step_of_a_chain(rig: Rig) -> None:
    rig.worker()
    rig.server.client.set("bad", 1)
    steps = [rig.s("add", 1, task_id="a"), rig.s("flaky", "bad", task_id="b"),
             rig.s("echo", task_id="c")]  # fmt: skip
    steps[1].set(immutable=True)
    workflow = rig.send(chain(*steps))
    assert workflow.wait(WAIT_S) == "FAILURE"
    assert workflow.counts == {"SUCCESS": 1, "FAILURE": 2}
    rig.server.client.delete("bad")

    assert workflow.retry() == 1
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert rig.states("a", "b", "c") == ["SUCCESS"] * 3
    assert rig.ran() == {"add": 1, "flaky": 2, "echo": 1}
    with pytest.raises(GreenqError, match="no task has failed"):
        workflow.retry()


@pytest.mark.parametrize(
    ("ordered", "apart"), [(True, False), (False, False), (True, True)], ids=str
)
def test_retry_of_a_chord_keeps_what_has_finished(rig: Rig, ordered: bool, apart: bool) -> None:
    settings: dict[str, Any] = {
        "result_backend_transport_options": {"result_chord_ordered": ordered}
    }
    if apart:
        settings["result_backend"] = rig.server.url.removesuffix("0") + "1"
    rig.app.conf.update(settings)
    rig.worker(**settings)
    rig.server.client.set("bad", 1)
    inner = chord([rig.s("add", 1), rig.s("flaky", "bad", 10)], rig.s("total", task_id="inner"))
    header = [rig.s("add", 100), inner, rig.s("flaky", "bad", 1000), rig.s("add", 10000)]
    workflow = rig.send(chord(header, rig.s("total", task_id="outer")))
    assert workflow.wait(WAIT_S) == "FAILURE"
    for task_id in ("inner", "outer"):
        assert rig.app.AsyncResult(task_id).state == "FAILURE"
    with pytest.raises(ChordError):
        rig.app.AsyncResult("outer").get(timeout=WAIT_S)
    rig.server.client.delete("bad")

    assert workflow.retry() == 2
    assert rig.app.AsyncResult("outer").get(timeout=WAIT_S) == 11111
    assert workflow.wait(WAIT_S) == "SUCCESS"
    assert rig.ran() == {"add": 3, "flaky": 4, "total": 2}


def test_retry_while_other_parts_still_run(rig: Rig) -> None:
    rig.worker()
    rig.server.client.set("bad", 1)
    header = [rig.s("flaky", "bad", 1, task_id="a"), rig.s("gate", "go", 10, task_id="b")]
    workflow = rig.send(chord(header, rig.s("total", task_id="body")))
    rig.wait_state(workflow, "a", "FAILURE")
    rig.server.client.delete("bad")
    assert workflow.retry() == 1
    rig.wait_state(workflow, "a", "SUCCESS")
    rig.server.client.set("go", 1)
    assert rig.app.AsyncResult("body").get(timeout=WAIT_S) == 11


def test_retry_of_what_was_cancelled(rig: Rig) -> None:
    rig.worker("-c", "4")
    header = [rig.s("gate", "go", n, task_id=f"m{n}") for n in range(12)]
    workflow = rig.send(chord(header, rig.s("total", task_id="body")))
    rig.wait_state(workflow, "m3", "STARTED")
    workflow.cancel()
    assert workflow.wait(WAIT_S) == "REVOKED"
    rig.server.wait_settled()
    rig.server.client.set("go", 1)
    assert workflow.retry() == 12
    assert rig.app.AsyncResult("body").get(timeout=WAIT_S) == sum(range(12))


# --- calls ----------------------------------------------------------------------------------------


def test_each_call_is_sent_once(rig: Rig) -> None:
    steps = [rig.s("gate", "go", 1, task_id="a"), rig.s("add", 1, task_id="b")]
    workflow = rig.send(chain(*steps))
    workflow.on_success(rig.s("echo", "success"))
    workflow.on_failure(rig.s("echo", "failure"))
    workflow.on_end(rig.s("echo", "end"))
    rig.worker()
    rig.server.client.set("go", 1)
    assert workflow.wait(WAIT_S) == "SUCCESS"
    workflow.on_success(rig.s("echo", "late"))
    wait_until(lambda: rig.ran()["echo"] == 3, WAIT_S)
    workflow.add(rig.s("fail", task_id="c"))
    rig.wait_state(workflow, "c", "FAILURE")
    rig.server.wait_settled()
    echoed = sorted(line for line in rig.seen() if line.startswith("echo"))
    assert echoed == ["echo ('end',)", "echo ('late',)", "echo ('success',)"]


# --- how long it is kept --------------------------------------------------------------------------


def test_no_key_outlives_its_expiry(rig: Rig) -> None:
    settings = {"result_expires": 600}
    rig.app.conf.update(settings)
    rig.worker(**settings)
    workflow = rig.send(group(rig.s("add", 1), rig.s("fail"), rig.s("gate", "never")))
    workflow.on_end(rig.s("echo"))
    wait_until(lambda: workflow.counts.get("FAILURE") == 1, WAIT_S)
    workflow.cancel()
    workflow.wait(WAIT_S)
    keys = sorted(rig.server.client.scan_iter("greenq.workflow*"))
    assert {key.decode().removeprefix(f"greenq.workflow.{workflow.id}") for key in keys} == {
        "", ".nodes", ".failed", "greenq.workflows", "greenq.workflows.stopped",
    }  # fmt: skip
    for key in keys:
        most_s = 600 if b"greenq.workflow." in key else 30 * 86400
        assert 0 < rig.server.client.ttl(key) <= most_s, key
