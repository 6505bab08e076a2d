"""An app: its settings, its tasks, and what it refuses before anything is sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq, shared_task
from greenq.errors import AlreadyRegistered, ConfigError, NotRegistered
from greenq.protocol.message import TaskMessage
from greenq.task import Context, current_context

# Nobody listens there; nothing here may try.
NOWHERE = "redis://127.0.0.1:1/0"


class FakeProducer:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, Any, dict[str, Any]]] = []

    def send(self, name: str, args: Any, kwargs: Any, options: Any) -> str:
        self.sent.append((name, args, kwargs, dict(options)))
        return "id-1"

    def send_many(self, name: str, calls: Any, options: Any) -> list[str]:
        return [self.send(name, args, kwargs, options) for args, kwargs in calls]


@pytest.fixture
def app() -> Iterator[Greenq]:
    made = Greenq("proj", broker=NOWHERE, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def producer(app: Greenq) -> FakeProducer:
    fake: Any = FakeProducer()
    app._producer = fake
    return fake  # type: ignore[no-any-return]


def test_task_is_named_after_its_module_and_function(app: Greenq) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="own.name")
    def other() -> None:
        """Do nothing."""

    assert add.name == f"{__name__}.add"
    assert {add.name, "own.name"} <= set(app.tasks)
    assert add(1, 2) == 3


def test_two_functions_of_one_name_are_refused_and_both_are_told(app: Greenq) -> None:
    @app.task(name="same")
    def first() -> None:
        """Do nothing."""

    def second() -> None:
        """Do nothing either."""

    with pytest.raises(AlreadyRegistered) as refused:
        app.task(name="same")(second)

    assert "first" in str(refused.value)
    assert "second" in str(refused.value)
    assert app.tasks["same"].function.__name__ == "first"


def test_function_that_is_defined_anew_replaces_the_old_one(app: Greenq) -> None:
    def define() -> Any:
        @app.task(name="same")
        def task() -> None:
            """Do nothing."""

        return task

    old, new = define(), define()

    assert old is not new
    assert app.tasks["same"] is new


def test_missing_task_is_named_and_the_nearest_one_is_known(app: Greenq) -> None:
    app.task(name="proj.send_mail")(lambda: None)

    with pytest.raises(NotRegistered, match=r"proj\.sent_mail"):
        app.tasks["proj.sent_mail"]
    assert app.tasks.nearest("proj.sent_mail") == "; did you mean proj.send_mail?"
    assert app.tasks.nearest("zzz") == ""


def test_shared_task_belongs_to_every_app_and_is_sent_by_the_current_one(app: Greenq) -> None:
    @shared_task(name="unit.shared")
    def shared() -> None:
        """Do nothing."""

    later = Greenq("later", broker=NOWHERE)

    assert "unit.shared" in app.tasks
    assert "unit.shared" in later.tasks
    assert shared.app is later
    later.close()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"task_ack_late": True}, "task_acks_late"),
        ({"worker_concurrency": "many"}, "worker_concurrency"),
        ({"timezone": "Mars/Base"}, "timezone"),
    ],
)
def test_wrong_setting_is_refused_at_once(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Greenq("proj", set_as_current=False, **settings)


def test_settings_change_as_a_whole_or_not_at_all(app: Greenq) -> None:
    with pytest.raises(ConfigError):
        app.conf.update(task_default_queue="other", no_such_setting=1)

    assert app.conf.task_default_queue == "celery"
    app.conf.task_default_queue = "main"
    assert app.conf.task_default_queue == "main"
    assert app.config.task.task_default_queue == "main"


def test_settings_of_a_module_are_read_when_first_needed(app: Greenq) -> None:
    app.config_from_object("no_such_module_at_all")

    with pytest.raises(ConfigError, match="no_such_module_at_all"):
        _ = app.conf.task_default_queue


def test_settings_with_a_namespace(app: Greenq) -> None:
    class Settings:
        CELERY_TASK_DEFAULT_QUEUE = "main"
        OTHER_TASK_DEFAULT_QUEUE = "not this"

    app.config_from_object(Settings, namespace="CELERY")

    assert app.conf.task_default_queue == "main"


def test_environment_variable_that_is_not_set_is_named(app: Greenq) -> None:
    with pytest.raises(ConfigError, match="UNIT_NO_SUCH_VARIABLE"):
        app.config_from_envvar("UNIT_NO_SUCH_VARIABLE")


def test_unknown_send_option_is_refused_with_the_nearest(
    app: Greenq, producer: FakeProducer
) -> None:
    with pytest.raises(TypeError, match=r"task proj\.add: no send option 'contdown'.*countdown"):
        app.send_task("proj.add", (), contdown=5)  # type: ignore[call-arg]

    assert producer.sent == []


def test_task_sent_from_a_task_knows_its_parent_and_root(
    app: Greenq, producer: FakeProducer
) -> None:
    message = TaskMessage(task="t", id="parent", args=[], kwargs={}, root_id="root")
    context = Context(message)
    token = current_context.set(context)
    try:
        result = app.send_task("proj.add", (1,))
    finally:
        current_context.reset(token)

    ((_, args, _, options),) = producer.sent
    assert args == (1,)
    assert (options["root_id"], options["parent_id"]) == ("root", "parent")
    assert context.children == [result]


def test_many_sent_from_a_task_know_it_and_it_does_not_hold_them(
    app: Greenq, producer: FakeProducer
) -> None:
    context = Context(TaskMessage(task="t", id="parent", args=[], kwargs={}, root_id="root"))
    token = current_context.set(context)
    try:
        results = app.send_task_many("proj.add", [((1,), {}), ((2,), {})], queue="q")
    finally:
        current_context.reset(token)

    assert [result.id for result in results] == ["id-1", "id-1"]
    assert [(args, options) for _, args, _, options in producer.sent] == [
        ((number,), {"root_id": "root", "parent_id": "parent", "queue": "q"}) for number in (1, 2)
    ]
    assert context.children == []


def test_many_cannot_have_one_id(app: Greenq, producer: FakeProducer) -> None:
    with pytest.raises(TypeError, match=r"task proj\.add: task_id is for one task"):
        app.send_task_many("proj.add", [((), {})], task_id="mine")
    with pytest.raises(TypeError, match="no send option 'contdown'"):
        app.send_task_many("proj.add", [((), {})], contdown=5)  # type: ignore[call-arg]

    assert producer.sent == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes a package of a fresh name and returns the name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def write(**modules: str) -> str:
        name = f"app_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        Path(tmp_path, name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            Path(tmp_path, name, f"{module}.py").write_text(text)
        return name

    return write


def test_task_modules_are_imported_where_they_exist(package: Callable[..., str]) -> None:
    text = "from greenq import shared_task\n@shared_task(name={!r})\ndef task(): ...\n"
    included = package(__init__=text.format("unit.included"))
    found = package(tasks=text.format("unit.found"))
    without = package()
    app = Greenq("proj", broker=NOWHERE, include=[included], set_as_current=False)
    app.autodiscover_tasks([found])
    app.autodiscover_tasks(lambda: [without])

    app.import_task_modules()

    assert {"unit.included", "unit.found"} <= set(app.tasks)


def test_module_that_fails_while_it_is_discovered_is_not_passed_over(
    package: Callable[..., str],
) -> None:
    app = Greenq("proj", broker=NOWHERE, set_as_current=False)
    app.autodiscover_tasks([package(tasks="import no_such_module_either")])

    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        app.import_task_modules()


def test_shared_tasks_use_the_app_that_was_made_the_default_one() -> None:
    first = Greenq("first")

    @shared_task(name="shared.by_default")
    def by_default() -> None: ...

    second = Greenq("second")
    assert by_default.app is second
    first.set_default()
    assert by_default.app is first
    second.set_current()
    assert by_default.app is second
