"""An app: its settings, its tasks, and what it refuses before anything is sent."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import greenq
import greenq.exceptions
import greenq.states
from greenq import AsyncResult, Greenq, errors, shared_task
from greenq.config.settings import Config
from greenq.errors import AlreadyRegistered, ConfigError, NotRegistered
from greenq.protocol.message import TaskMessage
from greenq.protocol.meta import ResultMeta
from greenq.result import allow_join_result
from greenq.sending.context import Context, current_context
from greenq.signals import import_modules
from greenq.utils.log import get_task_logger

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
    with pytest.raises(TypeError, match=r"task proj\.add: task_id is for a single task"):
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


# --- app.conf -------------------------------------------------------------------------------------


def test_settings_are_a_mapping(app: Greenq) -> None:
    conf = app.conf
    assert conf["timezone"] == conf.get("timezone") == conf.timezone == "UTC"
    assert "timezone" in conf
    assert "no_such" not in conf
    assert conf.get("no_such") is None
    assert conf.get("no_such", 3) == 3
    assert dict(conf)["broker_url"] == NOWHERE
    assert set(conf) == Config.names()
    assert len(conf) == len(Config.names())
    conf["task_default_queue"] = "main"
    assert conf.task_default_queue == "main"
    conf.update({"task_default_queue": "other"}, timezone="Asia/Tokyo")
    assert (conf["task_default_queue"], conf.timezone) == ("other", "Asia/Tokyo")


def test_unknown_setting_is_an_attribute_or_key_error_that_says_which_is_meant(
    app: Greenq,
) -> None:
    assert not hasattr(app.conf, "no_such")
    assert getattr(app.conf, "no_such", 3) == 3
    with pytest.raises(AttributeError, match="did you mean task_acks_late"):
        _ = app.conf.task_ack_late
    with pytest.raises(KeyError, match="did you mean task_acks_late"):
        _ = app.conf["task_ack_late"]
    with pytest.raises(AttributeError, match="is a Celery setting: not supported yet"):
        _ = app.conf.worker_deduplicate_successful_tasks
    with pytest.raises(ConfigError, match="did you mean task_acks_late"):
        app.conf.task_ack_late = True


def test_setting_that_is_not_needed_is_accepted_and_named_in_one_warning(
    app: Greenq, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.worker_pool = "gevent"
    app.conf.update(worker_lost_wait=1000, task_always_eager=False)

    app.conf.warn(foreign=False)
    assert caplog.messages == []
    app.conf.warn()
    app.conf.warn()

    assert [line.partition(": ")[0] for line in caplog.messages] == [
        "the setting worker_pool = 'gevent'",
        "the setting worker_lost_wait = 1000",
    ]
    assert app.conf.worker_pool == "gevent"


def test_names_that_are_not_read_are_told_when_the_app_connects(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GREENQ_LOG_LEVEL", "debug")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:s3cr3t@elsewhere/0")

    class Settings:
        broker_url = NOWHERE
        mail_host = "m"

    app = Greenq("proj", config_source=Settings, set_as_current=False)
    assert caplog.messages == []
    _ = app.transport
    app.close()

    assert caplog.messages == [
        "GREENQ_LOG_LEVEL in the environment is not read: greenq has no such setting",
        "mail_host in Settings is not a setting and is not read",
        "CELERY_BROKER_URL in the environment is not used, since broker_url is set elsewhere",
    ]


def test_address_that_celery_reads_from_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", NOWHERE)
    assert Greenq("proj", set_as_current=False).conf.broker_url == NOWHERE


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://localhost:port/0", "cannot be parsed"),
        ("redis://a:6379,b:6379/0", "several servers"),
        ("redis://a:6379/0;redis://b:6379/0", "several servers"),
        ("sentinel://h:26379", "Sentinel and Cluster are not supported yet"),
        ("redis+sentinel://h:26379", "Sentinel and Cluster are not supported yet"),
        ("redis+cluster://h:6379", "Sentinel and Cluster are not supported yet"),
        ("amqp://h", "must be a Redis or Valkey URL"),
    ],
)
def test_address_that_cannot_be_used_is_refused_in_one_line(url: str, told: str) -> None:
    for setting in ("broker_url", "result_backend"):
        with pytest.raises(ConfigError, match=told) as refused:
            Greenq("proj", set_as_current=False, **{setting: url})
        assert len(refused.value.problems) == 1


@pytest.mark.parametrize("url", ["redis://:a,b;c@h:6379/0", "redis://u:p@h", "redis://[::1]:6379"])
def test_odd_addresses_that_can_be_used_are_taken(url: str) -> None:
    assert Greenq("proj", broker=url, set_as_current=False).conf.broker_url == url


# --- modules, names -------------------------------------------------------------------------------


def test_module_of_tasks_that_does_not_exist_is_named(app: Greenq) -> None:
    app.conf.include = ["no_such_tasks"]
    with pytest.raises(ConfigError, match="include = 'no_such_tasks': no such module"):
        app.import_task_modules()

    app.conf.include = []
    app.autodiscover_tasks(["no_such_package"])
    with pytest.raises(ConfigError, match="autodiscover_tasks = 'no_such_package': no such module"):
        app.import_task_modules()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("from greenq import Celery", "from greenq import Greenq"),
        ("from greenq import current_task", "bind=True"),
        ("from greenq import no_such_thing", "cannot import name 'no_such_thing'"),
    ],
)
def test_import_of_what_is_not_there_says_so(statement: str, told: str) -> None:
    with pytest.raises(ImportError, match=told):
        exec(statement)


def test_attribute_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(greenq, "current_app")
    with pytest.raises(AttributeError, match="import your own app"):
        _ = greenq.current_app


def test_celerys_modules_are_there_as_far_as_they_exist() -> None:
    assert greenq.exceptions.Retry is greenq.Retry
    assert greenq.exceptions.SoftTimeLimitExceeded is errors.SoftTimeLimitExceeded
    assert get_task_logger("x").name == "x"
    assert greenq.states.SUCCESS == "SUCCESS"


# --- results --------------------------------------------------------------------------------------


class Answer:
    """A result that has come."""

    class backend:  # noqa: N801
        @staticmethod
        def wait(task_id: str, **_: object) -> ResultMeta:
            return ResultMeta(task_id=task_id, status="SUCCESS", result=3)


def test_task_does_not_wait_for_another_one_unless_that_is_said() -> None:
    result: AsyncResult[int] = AsyncResult("id-1", Answer, "m.add")  # type: ignore[arg-type]
    assert result.get() == 3

    token = current_context.set(Context(TaskMessage(task="t", id="parent", args=[], kwargs={})))
    try:
        with pytest.raises(RuntimeError, match=r"must not wait .*\(m\.add\).*allow_join_result"):
            result.get()
        assert result.get(disable_sync_subtasks=False) == 3
        with allow_join_result():
            assert result.get() == 3
        with pytest.raises(RuntimeError):
            result.get()
    finally:
        current_context.reset(token)


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


# --- signals --------------------------------------------------------------------------------------


def test_settings_are_announced_when_they_are_first_used() -> None:
    app = Greenq("proj", set_as_current=False, worker_concurrency=3)
    seen: list[tuple[str, object]] = []

    @app.on_configure.connect
    def before(sender: Greenq, **_: Any) -> None:
        sender.conf.worker_concurrency = 4
        seen.append(("before", sender))

    @app.on_after_configure.connect
    def after(sender: Greenq, source: Any, **_: Any) -> None:
        seen.append(("after", source.worker_concurrency))

    # Setting one is not using it.
    app.conf.task_default_queue = "mine"
    assert not seen
    assert app.conf.worker_concurrency == 4
    assert app.conf.task_default_queue == "mine"
    assert seen == [("before", app), ("after", 4)]


def test_tasks_are_announced_when_they_are_complete() -> None:
    app = Greenq("proj", set_as_current=False)
    seen: list[Greenq] = []

    @app.on_after_finalize.connect
    def complete(sender: Greenq, **_: Any) -> None:
        sender.task(lambda: None, name="proj.late")
        seen.append(sender)

    assert "proj.late" in app.tasks
    app.finalize()
    assert seen == [app]


def test_a_forked_child_is_announced() -> None:
    code = (
        "import os\n"
        "from greenq import Greenq\n"
        "app = Greenq('proj')\n"
        "@app.on_after_fork.connect\n"
        "def forked(sender, **_): print(os.getpid() != parent, sender is app, flush=True)\n"
        "parent = os.getpid()\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_what_a_receiver_of_import_modules_raises_stops_the_import() -> None:
    app = Greenq("proj", set_as_current=False)
    other = Greenq("other", set_as_current=False)

    def refuse(**_: Any) -> None:
        raise ValueError("not now")

    import_modules.connect(refuse, sender=app)
    other.import_task_modules()
    with pytest.raises(ValueError, match="not now"):
        app.import_task_modules()
