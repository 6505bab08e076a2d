"""What a task sends, what its code sees, and how it asks to run again."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from greenq import Greenq
from greenq.app import Task
from greenq.config.settings import Config
from greenq.errors import MaxRetriesExceededError, Retry
from greenq.protocol.message import TaskMessage
from greenq.sending.context import Context, current_context
from tests.unit.rig import NOWHERE


class FakeApp:
    """Notes what is sent, with the task's own options."""

    def __init__(self, **settings: Any) -> None:
        self.config = Config.build(settings)
        self.sent: list[tuple[str, Any, Any, dict[str, Any]]] = []

    def send_task(self, name: str, args: Any, kwargs: Any, **options: Any) -> str:
        self.note(name, args, kwargs, options)
        return "handle"

    def send_task_many(self, name: str, calls: Any, **options: Any) -> str:
        for args, kwargs in calls:
            self.note(name, args, kwargs, dict(options))
        return "handles"

    def note(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
        task = options.pop("task_type")
        self.sent.append((name, args, kwargs, task.send_options(options)))


@pytest.fixture
def app() -> FakeApp:
    return FakeApp()


def make_task(
    app: FakeApp,
    function: Callable[..., Any] = lambda *args, **_: args,
    *,
    bind: bool = False,
    **options: Any,
) -> Task[Any, Any]:
    return Task(function, name="proj.add", app=lambda: app, bind=bind, options=options)  # type: ignore[arg-type, return-value]


def in_worker(call: Callable[[], Any], *, task: str = "proj.add", retries: int = 0) -> Any:
    """Call as the worker does, with the context of a delivered message."""
    message = TaskMessage(task=task, id="id-1", args=[1], kwargs={"k": 2}, retries=retries)

    def run() -> Any:
        current_context.set(Context(message, hostname="w@h"))
        return call()

    return contextvars.copy_context().run(run)


def test_delay_sends_the_arguments(app: FakeApp) -> None:
    assert make_task(app).delay(1, x=2) == "handle"

    ((name, args, kwargs, options),) = app.sent
    assert (name, args, kwargs, options) == ("proj.add", (1,), {"x": 2}, {})


@pytest.mark.parametrize(
    ("own", "given", "sent"),
    [
        ({"queue": "mail"}, {}, {"queue": "mail"}),
        ({"queue": "mail"}, {"queue": "web"}, {"queue": "web"}),
        (
            {"exchange": "e", "routing_key": "k"},
            {"queue": "web"},
            {"queue": "web"},
        ),
        (
            {"queue": "mail"},
            {"exchange": "e", "routing_key": "k"},
            {"exchange": "e", "routing_key": "k"},
        ),
        ({"priority": 3}, {"priority": None}, {"priority": 3}),
        ({"priority": 3}, {"priority": 0}, {"priority": 0}),
        ({"ignore_result": True, "expires": 5.0}, {}, {"expires": 5.0}),
        ({"max_retries": 9, "acks_late": False}, {}, {}),
    ],
)
def test_own_options_go_along_unless_the_caller_says_otherwise(
    app: FakeApp, own: dict[str, Any], given: dict[str, Any], sent: dict[str, Any]
) -> None:
    make_task(app, **own).apply_async((), **given)

    assert app.sent[0][3] == sent


def test_delay_many_sends_each_tuple(app: FakeApp) -> None:
    task = make_task(app, priority=3)

    assert task.delay_many((n, 1) for n in range(3)) == "handles"

    assert app.sent == [("proj.add", (n, 1), {}, {"priority": 3}) for n in range(3)]


def test_apply_async_many_sends_each_pair_with_options(app: FakeApp) -> None:
    calls = [((1,), {"x": 2}), ((), {})]

    make_task(app, queue="mail", expires=5.0).apply_async_many(calls, queue="web")

    options = {"queue": "web", "expires": 5.0}
    assert app.sent == [("proj.add", args, kwargs, options) for args, kwargs in calls]


def test_unknown_option_is_refused_with_the_nearest(app: FakeApp) -> None:
    with pytest.raises(TypeError, match=r"no option 'max_retry'; did you mean max_retries\?"):
        make_task(app, max_retry=5)


def test_rate_limit_that_is_none_is_refused_where_it_is_written(app: FakeApp) -> None:
    with pytest.raises(ValueError, match=r"task .*: rate limit '10/day': expected"):
        make_task(app, rate_limit="10/day")

    class Limited(Task[Any, Any]):
        rate_limit = "often"

    with pytest.raises(ValueError, match="rate limit 'often'"):
        Limited(len, name="proj.len", app=app)  # type: ignore[arg-type]


def test_call_runs_the_function_here_with_itself_when_bound(app: FakeApp) -> None:
    def add(self: Task[Any, Any], x: int) -> tuple[str, int, bool]:
        return self.name, x, self.request.called_directly

    assert make_task(app, add, bind=True)(3) == ("proj.add", 3, True)
    assert make_task(app)(1, 2) == (1, 2)


def test_request_is_that_of_the_task_that_runs(app: FakeApp) -> None:
    task = make_task(app)

    request = in_worker(lambda: task.request, retries=2)
    assert (request.id, request.retries, request.hostname, request.kwargs) == (
        "id-1", 2, "w@h", {"k": 2},
    )  # fmt: skip
    # A task that is called by another one is not that other one.
    assert in_worker(lambda: task.request, task="proj.other").called_directly
    assert task.request.called_directly
    assert task.request.id is None


def test_unknown_field_of_a_delivered_request_is_an_error(app: FakeApp) -> None:
    task = make_task(app)

    with pytest.raises(AttributeError):
        in_worker(lambda: task.request.no_such_field)


@pytest.mark.parametrize(
    ("call", "args", "kwargs", "options"),
    [
        ({}, [1], {"k": 2}, {"countdown": 180}),
        ({"countdown": 5}, [1], {"k": 2}, {"countdown": 5}),
        ({"countdown": 0}, [1], {"k": 2}, {"countdown": 0}),
        ({"args": (7,), "kwargs": {}}, (7,), {}, {"countdown": 180}),
        ({"queue": "slow", "countdown": 1}, [1], {"k": 2}, {"countdown": 1, "queue": "slow"}),
    ],
)
def test_retry_describes_the_next_run(
    app: FakeApp, call: dict[str, Any], args: Any, kwargs: Any, options: dict[str, Any]
) -> None:
    task = make_task(app)

    with pytest.raises(Retry) as asked:
        in_worker(lambda: task.retry(**call))

    assert asked.value.next_run == (args, kwargs, options)


def test_retry_keeps_the_moment_and_the_reason(app: FakeApp) -> None:
    task, reason = make_task(app), ValueError("not yet")
    moment = datetime(2031, 1, 1, tzinfo=UTC)

    with pytest.raises(Retry) as asked:
        in_worker(lambda: task.retry(exc=reason, eta=moment))

    assert asked.value.exc is reason
    assert asked.value.when == moment
    assert asked.value.__cause__ is reason
    assert asked.value.next_run is not None
    assert asked.value.next_run[2] == {"eta": moment}


@pytest.mark.parametrize(
    ("own", "given", "retries", "more"),
    [
        (3, None, 2, True),
        (3, None, 3, False),
        (3, 5, 4, True),
        (3, 0, 0, False),
        (0, None, 0, False),
        (None, None, 10_000, True),
    ],
)
def test_retries_are_counted(
    app: FakeApp, own: int | None, given: int | None, retries: int, more: bool
) -> None:
    task = make_task(app, max_retries=own)

    with pytest.raises(Retry if more else MaxRetriesExceededError):
        in_worker(lambda: task.retry(max_retries=given), retries=retries)


def test_reason_is_raised_when_no_retry_is_left(app: FakeApp) -> None:
    task = make_task(app, max_retries=1)

    with pytest.raises(ValueError, match="still not"):
        in_worker(lambda: task.retry(exc=ValueError("still not")), retries=1)


def test_retry_outside_a_worker_raises_the_reason(app: FakeApp) -> None:
    task = make_task(app)

    with pytest.raises(ValueError, match="direct"):
        task.retry(exc=ValueError("direct"))
    with pytest.raises(Retry):
        task.retry()


@pytest.mark.parametrize(
    ("backoff", "most", "delays"),
    [
        (False, 600, [None, None, None]),
        (True, 600, [1, 2, 4, 8]),
        (5, 30, [5, 10, 20, 30, 30]),
    ],
)
def test_backoff_doubles_up_to_its_limit(
    app: FakeApp, backoff: int, most: int, delays: list[int | None]
) -> None:
    task = make_task(app, retry_backoff=backoff, retry_backoff_max=most, retry_jitter=False)

    assert [task.retry_delay(retries) for retries in range(len(delays))] == delays


@pytest.mark.parametrize("retries", [10**9, 2**53, 10**18, -5])
def test_backoff_of_any_number_of_retries_is_found_at_once(app: FakeApp, retries: int) -> None:
    task = make_task(app, retry_backoff=True, retry_backoff_max=600, retry_jitter=False)

    began_s = time.thread_time()
    assert task.retry_delay(retries) == (600 if retries > 0 else 1)
    assert time.thread_time() - began_s < 0.1


def test_jitter_stays_below_the_backoff(app: FakeApp) -> None:
    task = make_task(app, retry_backoff=8, retry_jitter=True)

    seen = {task.retry_delay(1) for _ in range(500)}

    assert seen <= set(range(17))
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("setting", "own", "said", "sent"),
    [
        (True, None, None, True),
        (False, None, None, False),
        (True, False, None, False),
        (False, True, None, True),
        (True, True, False, False),
    ],
)
def test_who_sends_says_whether_a_result_is_stored(
    setting: bool,
    own: bool | None,
    said: bool | None,
    sent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Greenq("proj", broker=NOWHERE, set_as_current=False, task_ignore_result=setting)
    given: list[Any] = []

    def send(*call: Any) -> str:
        given.append(call[-1])
        return "id"

    monkeypatch.setattr(app.producer, "send", send)
    task = app.task(name="proj.add", ignore_result=own)(lambda: None)

    assert task.apply_async(ignore_result=said).ignored is sent
    # Who only knows the name leaves it to the worker, as Celery's senders do.
    app.send_task("proj.add")
    app.close()

    assert given == [{"ignore_result": sent}, {}]
