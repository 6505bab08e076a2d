"""What a program for Celery may say to tasks, apps and results: it works, or it says what to do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from celery import Celery
from celery import Task as CelerysTask
from celery.app.events import Events as CelerysEvents
from celery.result import AsyncResult as CelerysResult

from greenq import Greenq, Task
from greenq.config.celery_names import ATTRIBUTES, SEND_OPTIONS, TASK_OPTIONS
from greenq.errors import ConfigError
from greenq.result import AsyncResult
from tests.unit.rig import NOWHERE, keep_sent

# Attributes that instances of Celery's have, and not their classes.
MADE_LATER = {
    "Dispatcher", "autofinalize", "configured", "finalized", "fixups", "namespace",
    "on_after_configure", "on_after_finalize", "on_after_fork", "on_configure", "on_ready",
    "request_stack", "set_as_current", "strict_typing", "use_fast_trace_task",
}  # fmt: skip


def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def app() -> Iterator[Greenq]:
    made = Greenq("proj", broker=NOWHERE, timezone="Asia/Tokyo")
    yield made
    made.close()


@pytest.fixture
def sent(app: Greenq, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    return keep_sent(app, monkeypatch)


@pytest.fixture
def task(app: Greenq) -> Task[Any, Any]:
    return app.task(name="t.double")(double)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", sorted(SEND_OPTIONS))
def test_send_option_that_asks_for_nothing_is_accepted(
    option: str, task: Task[Any, Any], sent: list[Mapping[str, Any]]
) -> None:
    nothing: Any = {option: SEND_OPTIONS[option].default}
    task.apply_async((1,), **nothing)
    task.app.send_task("t.double", (1,), **{option: None})  # type: ignore[misc]
    assert [options.keys() & {option} for options in sent] == [set(), set()]


@pytest.mark.parametrize("option", sorted(SEND_OPTIONS))
def test_send_option_that_asks_for_something_is_refused_with_a_reason(
    option: str, task: Task[Any, Any], sent: list[Mapping[str, Any]]
) -> None:
    something: Any = {option: SEND_OPTIONS[option].default is not True and ["x"]}
    with pytest.raises(TypeError) as refused:
        task.apply_async((1,), **something)
    assert SEND_OPTIONS[option].advice in str(refused.value)
    assert not sent


@pytest.mark.parametrize("option", sorted(TASK_OPTIONS))
def test_task_option_is_accepted_at_its_default_alone(option: str, app: Greenq) -> None:
    default = TASK_OPTIONS[option].default
    app.task(name="t.accepted", **{option: default})(double)
    with pytest.raises(TypeError) as refused:
        app.task(name="t.refused", **{option: not default})(double)
    assert TASK_OPTIONS[option].advice in str(refused.value)


def test_delivery_mode_of_a_task_is_sent(app: Greenq, sent: list[Mapping[str, Any]]) -> None:
    app.task(name="t.transient", delivery_mode=1)(double).delay(1)
    assert sent[0]["delivery_mode"] == 1
    with pytest.raises(TypeError, match="delivery_mode"):
        app.task(name="t.wrong", delivery_mode=3)(double)


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in ATTRIBUTES.items() for name in names]
)
def test_attribute_that_is_not_there_says_what_to_do(
    kind: str, name: str, app: Greenq, task: Task[Any, Any]
) -> None:
    owners: dict[str, tuple[Any, Any]] = {
        "Task": (task, CelerysTask),
        "Greenq": (app, Celery),
        "AsyncResult": (AsyncResult("id", app=app), CelerysResult),
        "Events": (app.events, CelerysEvents),
    }
    ours, celerys = owners[kind]
    assert not hasattr(ours, name)
    with pytest.raises(AttributeError) as refused:
        getattr(ours, name)
    assert str(refused.value) == f"{kind} has no attribute {name!r}: {ATTRIBUTES[kind][name]}"
    # Nothing is made up.
    assert hasattr(celerys, name) or name in MADE_LATER


def test_an_attribute_of_ones_own_may_have_such_a_name(app: Greenq) -> None:
    class Mapped(Task[Any, Any]):
        map = "of the class"

    made: Any = app.task(name="t.mapped", base=Mapped, pages=7)(double)
    assert (made.map, made.pages) == ("of the class", 7)


def test_what_is_wrong_within_a_property_is_told(app: Greenq) -> None:
    class Broken(Task[Any, Any]):
        @property
        def db(self) -> Any:
            return self.nothing  # type: ignore[attr-defined]

    made: Any = app.task(name="t.broken", base=Broken)(double)
    with pytest.raises(AttributeError, match="nothing"):
        _ = made.db


def test_settings_are_read_now_or_need_not_be_there_if_the_caller_says_so(
    app: Greenq, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.config_from_envvar("UNIT_NO_SUCH_VARIABLE", silent=True)
    monkeypatch.setenv("UNIT_SETTINGS", "tests.no_such_module")
    with pytest.raises(ConfigError, match=r"tests\.no_such_module"):
        app.config_from_envvar("UNIT_SETTINGS", force=True)
    other = Greenq("other", broker=NOWHERE)
    with pytest.raises(ConfigError, match="task_acks_lat"):
        other.config_from_object({"task_acks_lat": True}, force=True)


def test_app_is_closed_at_the_end_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Greenq] = []
    monkeypatch.setattr(Greenq, "close", lambda app: closed.append(app))
    with Greenq("block", broker=NOWHERE) as made:
        assert closed == []
    assert closed == [made]


def test_backoff_below_a_second_begins_with_one(app: Greenq) -> None:
    made = app.task(name="t.soon", retry_backoff=0.5, retry_jitter=False)(double)
    assert [made.retry_delay(retries) for retries in range(3)] == [1, 2, 4]


def test_app_has_what_its_users_know(app: Greenq, task: Task[Any, Any]) -> None:
    assert str(app.now().tzinfo) == str(app.timezone) == "Asia/Tokyo"
    app.conf.task_annotations = {"t.double": {"priority": 3}}
    assert task.priority is None
    app.finalize(auto=True)
    assert task.priority == 3
    assert app.backend is task.backend is app.transport.backend


# --- tasks ----------------------------------------------------------------------------------------


def test_task_is_told_which_app_has_taken_it(app: Greenq) -> None:
    told: list[Any] = []

    class Base(Task[Any, Any]):
        @classmethod
        def on_bound(cls, app: Any) -> None:
            told.append(app)

    app.task(name="t.bound", base=Base)(double)
    assert told == [app]


def test_name_to_show_is_asked_for_at_each_sending(
    app: Greenq, sent: list[Mapping[str, Any]]
) -> None:
    class Base(Task[Any, Any]):
        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"{self.name} of {args[0]}"

    made = app.task(name="t.shown", base=Base)(double)
    made.delay(3)
    made.apply_async((4,), shadow="another")
    assert [options["shadow"] for options in sent] == ["t.shown of 3", "another"]


def test_task_is_pickled_as_its_name(app: Greenq, task: Task[Any, Any]) -> None:
    data = pickle.dumps(task)
    assert pickle.loads(data) is task
    other = Greenq("other", broker=NOWHERE)
    twin = other.task(name="t.double")(double)
    assert pickle.loads(data) is twin
    other.close()


def test_app_is_pickled_as_its_name_and_settings(app: Greenq) -> None:
    app.conf.broker_transport_options = {"global_keyprefix": "kp_"}
    twin = pickle.loads(pickle.dumps(app))
    assert (twin.main, twin.conf) == ("proj", app.conf)
    # Without a broker, both have the same embedded server.
    assert twin._folder == app._folder
