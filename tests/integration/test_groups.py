"""Many results read together, on a real server."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import IncompleteStream, ResultTimeout
from greenq.result import (
    AsyncResult,
    AsyncResults,
    GroupResult,
    ResultSet,
    allow_join_result,
    denied_join_result,
    result_from_tuple,
)
from greenq.sending.context import Context
from greenq.utils.log import task_log_context
from tests.servers import Server
from tests.support import wait_until

IDS = [f"id-{number}" for number in range(2000)]


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    made = Greenq("groups", broker=server.url)
    yield made
    made.close()


def end(
    app: Greenq, task_id: str, value: Any = None, state: str = "SUCCESS", **fields: Any
) -> None:
    """Store a final state as a worker does."""
    app.backend.store(task_id, state, value, **fields)


def group_of(app: Greenq, *ids: str) -> GroupResult:
    return GroupResult("group-1", [app.AsyncResult(each) for each in ids], app=app)


def calls(server: Server) -> int:
    """Count the commands that were carried out so far."""
    stats = server.client.info("commandstats")
    names = ("get", "mget", "subscribe", "unsubscribe", "exists", "del", "eval", "evalsha")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


def test_two_thousand_results_are_joined_in_a_few_round_trips(app: Greenq, server: Server) -> None:
    for task_id in IDS[:1000]:
        end(app, task_id, task_id.upper())
    group = group_of(app, *IDS)
    found: list[Any] = []
    before = calls(server)
    thread = threading.Thread(target=lambda: found.extend(group.get(timeout=60)))
    thread.start()
    # Only a sample of a thousand is listened to.
    wait_until(lambda: len(server.client.pubsub_channels("celery-task-meta-*")) == 64)
    for task_id in IDS[1000:-1]:
        payload = f'{{"status": "SUCCESS", "result": "{task_id.upper()}", "task_id": "{task_id}"}}'
        server.client.set(f"celery-task-meta-{task_id}", payload)
        server.client.publish(f"celery-task-meta-{task_id}", payload)
    waited = calls(server) - before
    end(app, IDS[-1], IDS[-1].upper())
    thread.join(60)
    assert found == [task_id.upper() for task_id in IDS]
    # Two portions; one subscription; what is stored since, in as many reads as its confirmations
    # come in pieces.
    assert waited < 40


def test_what_has_ended_is_read_in_portions(app: Greenq, server: Server) -> None:
    for task_id in IDS:
        end(app, task_id, 1)
    group = group_of(app, *IDS)
    before = calls(server)
    assert group.get(timeout=60) == [1] * 2000
    assert calls(server) - before == 2
    # Known from then on.
    assert (group.ready(), group.successful(), group.failed(), group.waiting()) == (
        True, True, False, False,
    )  # fmt: skip
    assert (group.completed_count(), len(group), group.supports_native_join) == (2000, 2000, True)
    assert calls(server) - before == 2
    fresh = group_of(app, *IDS)
    assert fresh.completed_count() == 2000
    assert calls(server) - before == 4
    group.forget()
    assert calls(server) - before == 6
    assert fresh[0].ready()
    assert not group_of(app, *IDS).ready()


def test_state_of_a_set_is_that_of_all_its_tasks(app: Greenq) -> None:
    end(app, "a", 1)
    end(app, "b", ValueError("no"), "FAILURE")
    group = group_of(app, "a", "b", "c")
    assert (group.ready(), group.successful(), group.failed(), group.waiting()) == (
        False, False, True, True,
    )  # fmt: skip
    assert group.completed_count() == 1
    with pytest.raises(ValueError, match="no"):
        group.maybe_throw()
    group.maybe_throw(propagate=False)
    end(app, "c", 3)
    with pytest.raises(ValueError, match="no"):
        group.get(timeout=10)
    values = group.join(timeout=10, propagate=False)
    assert (values[0], str(values[1]), values[2]) == (1, "no", 3)


def test_failure_ends_the_wait_for_the_others(app: Greenq) -> None:
    group = group_of(app, "a", "b")
    threading.Timer(0.1, end, (app, "b", ValueError("no"), "FAILURE")).start()
    with pytest.raises(ValueError, match="no"):
        group.get(timeout=20)


def test_wait_for_many_ends_in_time(app: Greenq) -> None:
    end(app, "a", 1)
    with pytest.raises(ResultTimeout, match=r"of task b, nor of 1 others, after 0\.1 s") as caught:
        group_of(app, "a", "b", "c").get(timeout=0.1)
    assert caught.value.others == 1
    with pytest.raises(GroupResult.TimeoutError):
        group_of(app, "b").get(timeout=0)


def test_results_come_in_the_order_in_which_tasks_end(app: Greenq) -> None:
    inner = group_of(app, "x", "y")
    results = ResultSet([app.AsyncResult("a"), app.AsyncResult("b"), inner, app.AsyncResult("a")])
    told: list[Any] = []
    states: list[str] = []

    def follow() -> None:
        told.extend(
            results.iter_native(timeout=20, on_message=lambda m: states.append(m["status"]))
        )

    thread = threading.Thread(target=follow)
    thread.start()
    for number, task_id in enumerate(("x", "b", "y", "a")):
        end(app, task_id, task_id.upper())
        counted = (0, 1, 2, 4)[number]
        wait_until(lambda counted=counted: len(told) >= counted or not thread.is_alive())  # type: ignore[misc]
    thread.join(20)
    assert [task_id for task_id, _ in told] == ["b", "group-1", "a", "a"]
    assert told[0][1] == {
        "task_id": "b", "status": "SUCCESS", "result": "B", "traceback": None, "children": [],
    }  # fmt: skip
    assert told[1][1] == inner.results
    assert states.count("SUCCESS") == 4
    assert results.get() == ["A", "B", ["X", "Y"], "A"]
    assert list(results.iterate()) == ["A", "A", "B", ["X", "Y"]]
    given: list[Any] = []
    assert results.join_native(callback=lambda *each: given.append(each)) == []
    assert sorted(map(str, given)) == [
        "('a', 'A')", "('a', 'A')", "('b', 'B')", "('group-1', ['X', 'Y'])",
    ]  # fmt: skip


def test_bulk_sent_tasks_are_joined_as_a_set(app: Greenq) -> None:
    handles = app.send_task_many("proj.add", [((n,), {}) for n in range(3)])
    for number, handle in enumerate(handles):
        end(app, handle.id, number)
    results = app.ResultSet(handles)
    assert results.get(timeout=10) == [0, 1, 2]
    results.add(app.AsyncResult("more"))
    assert (len(results), len(handles)) == (4, 3)


def test_set_changes(app: Greenq) -> None:
    a, b, c = (app.AsyncResult(each) for each in "abc")
    results = ResultSet([a])
    results.add(b)
    results.add(a)
    results.update([b, c, c])
    assert list(results) == [a, b, c]
    results.remove("b")
    with pytest.raises(KeyError):
        results.remove("b")
    results.discard(b)
    results.discard("a")
    assert results == ResultSet([c])
    assert results[0] is c
    assert results.children == [c]
    results.clear()
    assert len(results) == 0
    assert results.get() == []
    assert results.ready()
    assert results.app is app


def test_ignored_results_are_not_waited_for(app: Greenq) -> None:
    ignored: AsyncResult[Any] = AsyncResult("a", app=app, ignored=True)
    assert ResultSet([ignored]).get() == [None]


def test_task_must_not_join(app: Greenq) -> None:
    end(app, "a", 1)
    group = group_of(app, "a")
    token = task_log_context.set(Context())  # type: ignore[arg-type]
    try:
        with pytest.raises(RuntimeError, match=r"must not wait .* \(group-1\)"):
            group.get(timeout=10)
        with pytest.raises(RuntimeError, match="must not wait"):
            next(group.iterate())
        assert group.get(timeout=10, disable_sync_subtasks=False) == [1]
        with allow_join_result():
            assert group.get(timeout=10) == [1]
    finally:
        task_log_context.reset(token)
    with denied_join_result(), pytest.raises(RuntimeError, match="must not wait"):
        app.AsyncResult("a").get()


def test_group_is_saved_and_restored(app: Greenq, server: Server) -> None:
    first = app.AsyncResult("first")
    inner = GroupResult("inner", [app.AsyncResult("x")], parent=first, app=app)
    group = GroupResult("outer", [AsyncResult("a", app=app, parent=first), inner], app=app)
    assert GroupResult.restore("outer") is None
    assert group.save() is group
    key = "celery-taskset-meta-outer"
    assert server.client.get(key) == (
        b'{"result": [["outer", null], [[["a", [["first", null], null]], null], '
        b'[["inner", [["first", null], null]], [[["x", null], null]]]]]}'
    )
    assert 86000 < server.client.ttl(key) <= 86400
    again = app.GroupResult.restore("outer")
    assert again == group
    assert isinstance(again, GroupResult)
    assert again[1].parent == first
    assert again[0].root == first
    end(app, "a", 1)
    end(app, "x", 2)
    assert again.get(timeout=10) == [1, [2]]
    again.delete()
    assert server.client.exists(key) == 0
    assert pickle.loads(pickle.dumps(group)) == group
    assert group == "outer"
    assert bool(GroupResult("empty"))
    assert str(group) == "outer"


@pytest.mark.parametrize(
    "value", ["odd", 3, [], [["a", None]], [[3, None], None], [["a", None], 5]]
)
def test_what_is_no_result_tuple_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a result tuple"):
        result_from_tuple(value)


def test_then_is_called_when_the_task_has_ended(app: Greenq) -> None:
    told: list[Any] = []
    one = app.AsyncResult("a")
    assert one.then(lambda result: told.append(result.get())) is one
    one.then(lambda result: told.append(result is one))
    group_of(app, "a", "b").then(lambda group: told.append(group.get()))
    app.AsyncResult("b").then(
        lambda result: result.get(), on_error=lambda exc: told.append(str(exc))
    )
    end(app, "a", 1)
    wait_until(lambda: told == [1, True])
    end(app, "b", ValueError("no"), "FAILURE")
    wait_until(lambda: told[2:] == ["no"])
    # Known by now: at once, here.
    one.then(lambda result: told.append(threading.current_thread().name))
    assert told[3:] == ["MainThread"]
    end(app, "c", 3)
    app.AsyncResult("c").then(lambda result: told.append(result.get()))
    wait_until(lambda: told[4:] == [3])


def test_failing_callback_is_logged_and_the_others_are_called(
    app: Greenq, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    app.AsyncResult("a").then(lambda _result: 1 / 0)
    app.AsyncResult("a").then(told.append)
    end(app, "a")
    wait_until(lambda: bool(told))
    assert "a callback failed when task a ended" in caplog.text


def test_callbacks_end_with_the_app(app: Greenq) -> None:
    app.AsyncResult("never").then(print)
    [thread] = [each for each in threading.enumerate() if each.name == "greenq callbacks"]
    app.close()
    thread.join(10)
    assert not thread.is_alive()


def test_tree_of_children_is_followed(app: Greenq) -> None:
    end(app, "root", "r", children=([["one", None], None], [["g", None], [[["x", None], None]]]))
    root = app.AsyncResult("root")
    one, group = root.children
    assert (one.id, group) == ("one", GroupResult("g", [app.AsyncResult("x")]))
    with pytest.raises(IncompleteStream, match="one has not ended"):
        list(root.iterdeps())
    assert len(list(root.iterdeps(intermediate=True))) == 3
    end(app, "one", 1)
    end(app, "x", 2, children=([["leaf", None], None],))
    threading.Timer(0.1, end, (app, "leaf", 3)).start()
    root = app.AsyncResult("root")
    found = [(str(node), value) for node, value in root.collect(timeout=20)]
    assert found == [("root", "r"), ("one", 1), ("g", [2]), ("x", 2), ("leaf", 3)]
    assert root.get_leaf() == 3
    graph = root.graph
    assert [(str(a), str(b)) for a, b in graph.edges()] == [
        ("root", "one"), ("root", "g"), ("g", "x"), ("x", "leaf"),
    ]  # fmt: skip
    order = graph.topsort()
    assert order.index("leaf") < order.index("x") < order.index("g") < order.index("root")
    dot = io.StringIO()
    graph.to_dot(dot)
    assert '    "x" -> "leaf";\n' in dot.getvalue()


def test_failure_before_it_in_the_chain_ends_the_wait(app: Greenq) -> None:
    first = AsyncResult[Any]("first", app=app)
    last = AsyncResult[Any]("last", app=app, parent=AsyncResult("middle", app=app, parent=first))
    end(app, "first", ValueError("no"), "FAILURE")
    with pytest.raises(ValueError, match="no"):
        last.get(timeout=10)
    with pytest.raises(ResultTimeout, match="task last"):
        last.get(timeout=0.1, follow_parents=False)
    with pytest.raises(ResultTimeout, match="task last"):
        last.get(timeout=0.1, propagate=False)
    assert last.as_list() == ["last", "middle", "first"]
    end(app, "last", 3)
    assert last.get(timeout=10) == 3
    assert last.exists()
    last.forget()
    assert not last.exists()
    assert not first.exists()


def test_on_interval_is_called_while_nothing_happens(app: Greenq) -> None:
    called: list[int] = []

    def silence() -> None:
        called.append(1)
        if len(called) == 2:
            end(app, "a", 1)

    assert app.AsyncResult("a").get(timeout=20, interval=0.05, on_interval=silence) == 1
    assert len(called) >= 2
    assert ResultSet([app.AsyncResult("a")]).get(on_interval=silence) == [1]


def test_progress_is_heard_by_one_who_waits(app: Greenq, server: Server) -> None:
    told: list[Any] = []
    result = app.AsyncResult("a")
    thread = threading.Thread(target=lambda: result.get(timeout=20, on_message=told.append))
    thread.start()
    wait_until(lambda: bool(server.client.pubsub_channels("celery-task-meta-a")))
    for progress in (50, 90):
        app.backend.store("a", "PROGRESS", {"progress": progress})
        wait_until(lambda: bool(told) and told[-1]["result"] == {"progress": progress})  # noqa: B023
    end(app, "a", "hello world: 10")
    thread.join(20)
    assert [(each["status"], each["result"]) for each in told] == [
        ("PROGRESS", {"progress": 50}),
        ("PROGRESS", {"progress": 90}),
        ("SUCCESS", "hello world: 10"),
    ]  # fmt: skip
    assert told[0] == {
        "task_id": "a", "status": "PROGRESS", "result": {"progress": 50}, "traceback": None,
        "children": [],
    }  # fmt: skip


def test_two_hundred_threads_wait_over_one_connection(app: Greenq, server: Server) -> None:
    found: dict[str, Any] = {}

    def wait(task_id: str) -> None:
        found[task_id] = app.AsyncResult(task_id).get(timeout=60)

    threads = [threading.Thread(target=wait, args=(task_id,)) for task_id in IDS[:200]]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(server.client.pubsub_channels("celery-task-meta-*")) == 200, 30)
    assert sum(int(each["sub"]) > 0 for each in server.client.client_list()) == 1
    for task_id in IDS[:200]:
        end(app, task_id, task_id)
    for thread in threads:
        thread.join(60)
    assert found == {task_id: task_id for task_id in IDS[:200]}
    # Nothing is left of it.
    wait_until(lambda: not server.client.pubsub_channels("celery-task-meta-*"))


def sent_group(app: Greenq, ids: list[str]) -> GroupResult:
    """Return the handle of a group whose members came from a generator."""
    return GroupResult("group-1", AsyncResults(ids, app.transport, app=app), app=app)


def test_the_handles_of_a_stream_are_joined_portion_by_portion(app: Greenq) -> None:
    def work() -> None:
        for each in reversed(IDS):
            end(app, each, each.upper())

    threading.Thread(target=work).start()
    assert sent_group(app, IDS).get(timeout=60) == [each.upper() for each in IDS]
    with pytest.raises(ResultTimeout, match="of task other after"):
        sent_group(app, [*IDS, "other"]).get(timeout=0.1)


def test_a_failure_far_behind_ends_the_join_of_a_stream(app: Greenq) -> None:
    end(app, IDS[-1], ValueError("no"), "FAILURE")
    with pytest.raises(ValueError, match="no"):
        sent_group(app, IDS).get(timeout=60)


@pytest.mark.parametrize("make", [sent_group, lambda app, ids: group_of(app, *ids)])
def test_one_that_takes_long_does_not_hide_the_others(app: Greenq, make: Any) -> None:
    group = make(app, IDS)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: [seen.append(each) for each in group.iterate(60)])
    thread.start()
    for task_id in IDS[:999] + IDS[1000:]:
        end(app, task_id, task_id)
    wait_until(lambda: len(seen) == len(IDS) - 1, 20)
    end(app, IDS[999], IDS[999])
    thread.join(60)
    assert sorted(seen) == sorted(IDS)
