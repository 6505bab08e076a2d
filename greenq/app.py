"""`Greenq`, the app: it holds the tasks, the settings and the connection to the server."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    overload,
)
from zoneinfo import ZoneInfo

from greenq.beat.code import entry_in_code
from greenq.canvas.signature import signature
from greenq.config.celery_names import name_what_is_not_here
from greenq.config.conf import Settings
from greenq.config.loaders import describe, settings_from_object
from greenq.errors import ConfigError, Problem
from greenq.protocol.clock import LamportClock
from greenq.registry.discovery import TaskModules, discover, django_in_use, set_up_framework
from greenq.registry.shared import Definition, SharedTask, shared
from greenq.registry.tasks import AppTasks, TasksByName
from greenq.result import AsyncResult, AsyncResults, GroupResult, ResultSet
from greenq.running.eager import run_as_sent, run_here
from greenq.sending.context import Context, current_context
from greenq.sending.options import SEND_OPTIONS, SendOptions, with_stamps, without_foreign
from greenq.sending.producer import Producer
from greenq.signals import Signal
from greenq.task import BaseTask
from greenq.transport.transport import Transport
from greenq.workflow import Workflow, all_workflows
from greenq.workflow import workflow_id as id_of_workflow

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType
    from typing import Self, Unpack

    from greenq.beat.periodic import PeriodicTasks
    from greenq.bootsteps.steps import Option, Step
    from greenq.config.settings import Config
    from greenq.events.receiver import Events
    from greenq.registry.discovery import Packages
    from greenq.remote.control import Control
    from greenq.result import EagerResult
    from greenq.sending.producer import Call, Outgoing

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", bound="Callable[[Any], object]")
H = TypeVar("H", bound="Callable[[], object]")


# All live apps, which `_after_fork` notifies in a forked child.
_apps: weakref.WeakSet[Greenq] = weakref.WeakSet()


class Task(BaseTask[P, R]):
    """A function that workers run.

    Subclass `Task` and pass the class as ``base=`` to share options or hooks; the class's
    constructor is called without arguments. The options can be set on the class or in the
    decorator; None means the app's setting.
    """

    _app: Callable[[], Greenq]

    @property
    def app(self) -> Greenq:
        """The app that this task belongs to."""
        return self._app()

    @classmethod
    def on_bound(cls, app: Greenq) -> None:
        """Called when an app registers a task of this class; override it if needed."""


name_what_is_not_here(Task)

# A second name for the class, since `Task` is also an attribute of apps.
_Task = Task


TaskRegistry = TasksByName[Task[Any, Any]]
"""The tasks of an app by name."""


class Greenq:
    """An application: its tasks, its settings and its connection to the server.

    Creating an app opens no connection and imports no module; sending the first task does both. An
    app can safely be shared between threads, greenlets and forked processes.
    """

    def __init__(
        self,
        main: str | None = None,
        *,
        broker: str | None = None,
        backend: str | None = None,
        include: Iterable[str] = (),
        config_source: object = None,
        namespace: str | None = None,
        set_as_current: bool = True,
        task_cls: type[Task[..., Any]] | None = None,
        **settings: Any,
    ) -> None:
        """Create an app.

        Args:
            main: the app's name, which stands for the module in the names of tasks defined in
                ``__main__``.
            broker: the server's address, ``broker_url``; None means the embedded server.
            backend: the results server's address, ``result_backend``; None means the broker.
            include: modules to import before a worker starts.
            config_source, namespace: see `config_from_object`.
            set_as_current: make shared tasks use this app from now on.
            task_cls: the class of tasks that set no ``base``; by default, `Task`.
            settings: any settings by name.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        self.main = main or "__main__"
        # Together with the app's name, the directory identifies the project's embedded server.
        self._folder = _folder_of(inspect.currentframe())
        given = dict(settings)
        if broker is not None:
            given["broker_url"] = broker
        if backend is not None:
            given["result_backend"] = backend
        if include:
            given["include"] = tuple(include)
        # Signals under Celery's names; `docs/signals.md` says when each one is sent.
        self.on_configure = Signal(name="app.on_configure")
        self.on_after_configure = Signal(("source",), name="app.on_after_configure")
        self.on_after_finalize = Signal(name="app.on_after_finalize")
        self.on_after_fork = Signal(name="app.on_after_fork")
        self._finalized = False
        self.conf = Settings(
            {},
            (
                lambda: self.on_configure.send(self),
                lambda: self.on_after_configure.send(self, source=self.conf),
            ),
        )
        self.conf.update(given)
        if config_source is not None:
            self.config_from_object(config_source, namespace=namespace)
        self.clock = LamportClock()
        self._control: Control | None = None
        self._events: Events | None = None
        self.steps: dict[str, set[type[Step]]] = {"worker": set(), "consumer": set()}
        self.user_options: dict[str, set[Option | Callable[[ArgumentParser], object]]] = {
            "worker": set()
        }
        self.leaders: dict[str, Callable[[Any], object]] = {}
        # The hooks that a worker calls after each task's code, in the task's own greenlet; see
        # `on_task_end`.
        self.task_end_hooks: list[Callable[[], object]] = []
        # The entries that `add_periodic_task` has added, by name, as in `beat_schedule`.
        self.periodic_tasks: dict[str, dict[str, Any]] = {}
        self._periodic: PeriodicTasks | None = None
        self._registry = AppTasks(self, self._ready, Task, task_cls)
        # Each use of a shared task calls `take_shared`, so it is not wrapped in a method.
        self.take_shared = self._registry.take_shared
        self._modules = TaskModules()
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._producer: Producer | None = None
        _apps.add(self)
        if set_as_current:
            shared.app = self

    def set_default(self) -> None:
        """Make shared tasks, and handles created without an app, use this app from now on."""
        shared.app = self

    set_current = set_default

    # --- settings ---------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """All settings, checked, by section."""
        # Each send reads the settings, so once they have been built, skip the slower path.
        built = self.conf.built
        return self.conf.config if built is None else built

    def config_from_object(
        self, source: object, *, force: bool = False, namespace: str | None = None
    ) -> None:
        """Read the settings, on first use, from a module, a module's name, an object or a mapping.

        Args:
            source: where the settings are.
            force: read the settings now.
            namespace: a prefix such as ``"CELERY"``: only upper-case names that begin with it
                count, as in Django's settings.

        Raises:
            ConfigError: `force` is true, and a setting is unknown or wrong.
        """
        self.conf.read_later(
            lambda notes: settings_from_object(source, namespace, notes), describe(source)
        )
        if force:
            _ = self.config

    def config_from_envvar(
        self, variable: str, *, silent: bool = False, force: bool = False
    ) -> None:
        """Read the settings, on first use, from the module that an environment variable names.

        Args:
            variable: the name of the environment variable.
            silent: raise no error if the variable is not set.
            force: read the settings now.

        Raises:
            ConfigError: the variable is not set.
        """
        module = os.environ.get(variable)
        if module:
            self.config_from_object(module, force=force)
        elif not silent:
            raise ConfigError([Problem(variable, module, "the environment variable is not set")])

    # --- tasks ------------------------------------------------------------------------------------

    @property
    def tasks(self) -> TaskRegistry:
        """All tasks by name, including shared ones, with their annotations applied."""
        registry = self._registry
        if not (self._finalized and registry.is_complete()):
            self.finalize()
        return registry.by_name

    def _ready(self) -> Greenq:
        """Annotate the app's tasks if necessary, and return the app for them to use."""
        if self._registry.unannotated:
            self._registry.annotate()
        return self

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        bind: Literal[True],
        name: str | None = None,
        base: type[Task[..., Any]] | None = None,
        **options: Any,
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
    @overload
    def task(
        self,
        /,
        *,
        bind: Literal[False] = False,
        name: str | None = None,
        base: type[Task[..., Any]] | None = None,
        **options: Any,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        bind: bool = False,
        name: str | None = None,
        base: type[Task[..., Any]] | None = None,
        **options: Any,
    ) -> Any:
        """Create a task from a function: ``@app.task``, or with options, ``@app.task(bind=True)``.

        Args:
            function: given when the decorator is used without parentheses.
            bind: pass the task itself as the first argument.
            name: the task's name, instead of ``module.function``.
            base: a subclass of `Task`.
            options: options of `Task`, by name.
        """

        def register(decorated: Callable[..., Any]) -> Task[Any, Any]:
            return self._registry.define(Definition(decorated, name, bind, base, options))

        return register if function is None else register(function)

    @property
    def Task(self) -> Any:  # noqa: N802  Celery's name
        """The class of this app's tasks; subclass it, or assign another class for later tasks."""
        return self._registry.base_class(__name__)

    @Task.setter
    def Task(self, task_class: Any) -> None:  # noqa: N802
        self._registry.own_class = task_class

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a class-based task, given as an instance or as the class, and return it.

        ``class Import(app.Task): def run(self, path): …`` is named ``module.Import`` unless it has
        a ``name``. The `options` become its attributes.

        Raises:
            TypeError: the task has no ``run``.
        """
        made = task() if isinstance(task, type) else task
        for option, value in options.items():
            setattr(made, option, value)
        return self._registry.complete(made)

    @property
    def current_task(self) -> Any:
        """The task that is running in this greenlet or thread; None outside a worker."""
        context = current_context.get()
        return None if context is None else self.tasks.get(context.task)

    current_worker_task = current_task

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the default name of a task."""
        return f"{self.main if module == '__main__' else module}.{name}"

    def leader(self, function: L) -> L:
        """Register a function for elections; the worker that is elected calls it.

        ``app.control.election(id, "module.function", action)`` holds an election, and the winner
        calls the function with `action`. The function runs in the worker's greenlet for events, so
        it should send a task for longer work.
        """
        module = self.main if function.__module__ == "__main__" else function.__module__
        self.leaders[f"{module}.{function.__name__}"] = function
        return function

    def on_task_end(self, function: H) -> H:
        """Register a function that the worker calls at the end of each task: ``@app.on_task_end``.

        The function is called without arguments after the task's code and the hooks of the task's
        class, in the same greenlet. Values that the task left in ``threading.local`` and in context
        variables are still there, and the task's slot is still occupied. This makes the function
        the right place to close sessions and connections. It may wait. Its exceptions are logged
        and do not affect the task.
        """
        self.task_end_hooks.append(function)
        return function

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Add the ``tasks`` modules of packages to the modules imported before a worker starts.

        Args:
            packages: the packages' names, or a function that returns them at import time; by
                default, Django's INSTALLED_APPS, whose entries may name an AppConfig. A package
                need not have such a module.
            related_name: the modules' name; None imports only the packages.
            force: import the modules now.

        Raises:
            ConfigError: no packages are given and Django is not in use; raised now if `force` is
                true, otherwise at import time.
        """
        call: Packages = packages if callable(packages) else lambda: packages
        self._modules.add(call, related_name)
        if force:
            self.set_up_framework()
            discover(call(), related_name)

    def set_up_framework(self) -> None:
        """Set up Django if it is in use; commands that import task modules call this first."""
        set_up_framework(self)

    def import_task_modules(self) -> None:
        """Import all modules with tasks: ``imports``, ``include``, and autodiscovered modules.

        Raises:
            ConfigError: a module does not exist; exceptions raised by a module, or by a receiver of
                import_modules, are passed on.
        """
        self._modules.import_all(self, self.conf)

    # --- periodic tasks ---------------------------------------------------------------------------

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Have the beats that run this code send a task periodically; return the entry's name.

        Args:
            schedule: seconds, a timedelta, a crontab or another schedule.
            sig: the task, its name, or a signature of it.
            args, kwargs: the task's arguments; for a signature, `args` are appended to its
                arguments, and `kwargs` override its keyword arguments.
            name: the entry's name; by default the text of the call, so that another call of the
                same task with the same arguments replaces the entry.
            fields: further fields of the entry, as in ``beat_schedule``: ``missed``, ``overlap``…
            options: send options.

        Raises:
            TypeError: `sig` is not a task, a name or a signature.
        """
        name, entry = entry_in_code(schedule, sig, args, kwargs or {}, name, options)
        self.periodic_tasks[name] = {**entry, **(fields or {})}
        return name

    @property
    def periodic(self) -> PeriodicTasks:
        """Lists, adds, changes, pauses, runs and removes the periodic entries on the server."""
        if self._periodic is None:
            made = importlib.import_module("greenq.beat.periodic").PeriodicTasks(self)
            self._periodic = made
        return self._periodic

    # --- the cluster ------------------------------------------------------------------------------

    # `Control` and `Events` are imported on first use, since programs that only send or run tasks
    # do not need them.

    @property
    def control(self) -> Control:
        """Commands and queries to the workers."""
        if self._control is None:
            made: Control = importlib.import_module("greenq.remote.control").Control(self)
            self._control = made
        return self._control

    @property
    def events(self) -> Events:
        """Events of tasks and workers: `Receiver`, `State`, and `send`."""
        if self._events is None:
            made: Events = importlib.import_module("greenq.events.receiver").Events(self)
            self._events = made
        return self._events

    # --- sending ----------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_type: BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[Any]:
        """Send a task by its name; the task need not be registered here. Switches: yes.

        If the task is registered, its send options apply unless overridden, except
        ``ignore_result``, which is left to the worker. A task that sends itself passes itself as
        `task_type`, and then all its options apply.

        Raises:
            TypeError: an option is unknown.
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached within the retry policy.
        """
        context = current_context.get()
        add_to_parent = options.pop("add_to_parent", True)
        if self.config.task.task_always_eager:
            if task_type is not None:
                return self.apply_as_sent(task_type, args or (), kwargs or {}, options)
            _log.warning("task_always_eager has no effect on send_task: task %s is sent", name)
        sent = self._send_options(name, task_type, options, context)
        task_id = self.producer.send(name, args or (), kwargs or {}, sent)
        result: AsyncResult[Any] = AsyncResult(
            task_id, self.transport, name, app=self, ignored=bool(sent.get("ignore_result"))
        )
        if context is not None and add_to_parent:
            context.children.append(result)
        return result

    def send_task_many(
        self,
        name: str,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        *,
        task_type: BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResults[Any]:
        """Send a task by its name once for each pair of args and kwargs. Switches: yes.

        When the call returns, all tasks have been sent, in order, whether or not the handles are
        ever used. Memory use does not grow with the number of calls: `calls` may be a generator; it
        is read while the tasks are sent, in pushes of at most 200 messages or 256 KB. A push
        arrives as a whole or not at all, and is retried like a single send. ``countdown`` and
        ``expires`` are relative to the time of each push. `task_type` and the options are as for
        `send_task`.

        If a running task sends these tasks, it is their parent, but they are not among its
        children.

        Raises:
            TypeError: an option is unknown, or ``task_id`` is among them.
            NotAllSent: an item cannot be serialized, `calls` raised an error, or the server could
                not be reached; the error lists the tasks sent before that.
        """
        if "task_id" in options:
            raise TypeError(f"task {name}: task_id is for a single task, not for many")
        if task_type is not None and self.config.task.task_always_eager:
            # Like `AsyncResults`, this list is a sequence of handles.
            return [  # type: ignore[return-value]
                self.apply_as_sent(task_type, *call, options) for call in calls
            ]
        sent = self._send_options(name, task_type, options, current_context.get())
        ids = self.producer.send_many(name, calls, sent)
        return AsyncResults(ids, self.transport, name, app=self)

    def send_calls(self, calls: Iterable[Call], **options: Any) -> None:
        """Send calls of different tasks in order, as the parts of a workflow. Switches: yes.

        The options of the tasks apply as for `send_task`; `options` are those of
        `Producer.send_calls`, which lists the exceptions.
        """
        context = current_context.get()

        def complete(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
            return self._send_options(name, self._registry.by_name.get(name), options, context)

        self.finalize()
        self.producer.send_calls(self._checked_calls(calls), complete, **options)

    def _checked_calls(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Check each call's arguments, and yield the call with its shadow name, if it has one."""
        tasks = self._registry.by_name
        for call in calls:
            task = tasks.get(call[0])
            if task is not None:
                name, args, kwargs, options = call
                task.argument_check.arguments(args, kwargs)
                if type(task).shadow_name is not BaseTask.shadow_name:
                    shadow = options.get("shadow") or task.shadow_name(args, kwargs, options)
                    call = (name, args, kwargs, {**options, "shadow": shadow})
            yield call

    def prepare_call(self, call: Call) -> Outgoing:
        """Build the message of one call, with the task's options, without sending it."""
        name, args, kwargs, options = call
        sent = self._send_options(name, self.tasks.get(name), options, None)
        return self.producer.prepare(name, args, kwargs, sent)

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature that belongs to this app, made from a task, a name or plain data."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    def apply(
        self,
        task: BaseTask[Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        throw: bool | None = None,
        retries: int = 0,
    ) -> EagerResult[Any]:
        """Run a task in this process: see `Task.apply`."""
        given = self._eager_options(task, options)
        return run_here(task, args, kwargs, throw=throw, retries=retries, **given)

    def apply_as_sent(
        self,
        task: BaseTask[Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> EagerResult[Any]:
        """Run a task in this process instead of sending it, for ``task_always_eager``."""
        return run_as_sent(task, args, kwargs, self._eager_options(task, options))

    def _eager_options(
        self, task: BaseTask[Any, Any], options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if not options.keys() <= SEND_OPTIONS:
            options = without_foreign(task.name, options)
        return task.send_options(options)

    def on_commit(self, call: Callable[[], object]) -> None:
        """Call `call` when Django's open transaction commits, or now if none is open.

        Raises:
            ConfigError: Django is not in use.
        """
        django = django_in_use()
        if django is None:
            reason = "sending on commit needs Django, and DJANGO_SETTINGS_MODULE is not set"
            raise ConfigError([Problem("on_commit", None, reason)])
        django.on_commit(call)

    def _send_options(
        self,
        name: str,
        task: BaseTask[Any, Any] | None,
        options: Mapping[str, Any],
        context: Context | None,
    ) -> dict[str, Any]:
        """Check send options; add those of the task and those passed on by the current task."""
        if options.get("stamped_headers") and "stamps" not in options:
            options = with_stamps(options)
        if not options.keys() <= SEND_OPTIONS:
            options = without_foreign(name, options)
        known = self.tasks.get(name) if task is None else task
        sent = dict(options) if known is None else known.send_options(options)
        if task is not None and sent.get("ignore_result") is None:
            own = task.ignore_result
            sent["ignore_result"] = self.config.task.task_ignore_result if own is None else own
        if context is None or context.message is None:
            return sent
        sent = {"root_id": context.root_id, "parent_id": context.id, **sent}
        if self.config.task.task_inherit_parent_priority and context.delivery_info:
            sent.setdefault("priority", context.delivery_info.get("priority"))
        return sent

    def AsyncResult(self, task_id: str) -> AsyncResult[Any]:  # noqa: N802  Celery's name
        """Return the handle of a task that was sent earlier or elsewhere."""
        return AsyncResult(task_id, self.transport, app=self)

    def workflow(self, workflow_id: Any) -> Workflow:
        """Return a workflow from the index, given its id or the handle of its last task."""
        return Workflow(self, id_of_workflow(workflow_id))

    def workflows(self, limit: int = 100) -> list[Workflow]:
        """Return the newest workflows in the index. Switches: yes."""
        return [found for found, _record in all_workflows(self, limit)]

    @functools.cached_property
    def GroupResult(self) -> Any:  # noqa: N802  Celery's name
        """The class of group handles, as in ``app.GroupResult.restore(group_id)``."""
        return type("GroupResult", (GroupResult,), {"own_app": self, "__module__": __name__})

    @functools.cached_property
    def ResultSet(self) -> Any:  # noqa: N802  Celery's name
        """The class of handle sets, as in ``app.ResultSet([one, other])``."""
        return type("ResultSet", (ResultSet,), {"own_app": self, "__module__": __name__})

    @property
    def transport(self) -> Transport:
        """The connection to the server; its first use may also start an embedded server."""
        made = self._transport
        if made is not None:
            return made
        # Warn outside the lock, since a log handler may itself use the app.
        self.conf.warn(foreign=False)
        with self._lock:
            made = self._transport
            if made is not None:
                return made
            made = self._transport = Transport(self.config, self.main, self._folder)
        made.warn_of_default()
        made.warn_of_insecure()
        return made

    @property
    def producer(self) -> Producer:
        """The object that writes and pushes messages; created on first use."""
        if self._producer is None:
            self._producer = Producer(
                self.transport.broker, self.config.task, self.clock, self.tasks.get
            )
        return self._producer

    @property
    def backend(self) -> Any:
        """The object that reads and writes results on the server."""
        return self.transport.backend

    @property
    def timezone(self) -> ZoneInfo:
        """The time zone given by the setting `timezone`."""
        return ZoneInfo(self.config.task.timezone)

    def now(self) -> datetime:
        """Return the time in the app's `timezone`."""
        return datetime.now(self.timezone)

    def finalize(self, auto: bool = False) -> None:
        """Create the shared tasks and apply the annotations now, before tasks are first used.

        Args:
            auto: accepted for compatibility with Celery; has no effect.
        """
        self.take_shared()
        self._ready()
        if not self._finalized:
            self._finalized = True
            self.on_after_finalize.send(self)

    def close(self) -> None:
        """Close all connections and release the embedded server."""
        with self._lock:
            if self._transport is not None:
                self._transport.close()
                self._transport = self._producer = None

    def __enter__(self) -> Self:
        """Return the app."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the app."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the app's name and settings, including passwords, but none of its tasks."""
        return _again, (type(self), self.main, self._folder, dict(self.conf))

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Greenq {self.main}>"


name_what_is_not_here(Greenq)


@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(
    *,
    bind: Literal[True],
    name: str | None = None,
    base: type[Task[..., Any]] | None = None,
    **options: Any,
) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
@overload
def shared_task(
    *,
    bind: Literal[False] = False,
    name: str | None = None,
    base: type[Task[..., Any]] | None = None,
    **options: Any,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def shared_task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    bind: bool = False,
    name: str | None = None,
    base: type[Task[..., Any]] | None = None,
    **options: Any,
) -> Any:
    """Create a task that belongs to every app, for code that knows no app; see `Greenq.task`.

    Each app creates its own task with its own task class; the returned object stands for the task
    of whichever app is current when the object is used.
    """

    def register(decorated: Callable[..., Any]) -> Any:
        return SharedTask(Definition(decorated, name, bind, base, options), Task)

    return register if function is None else register(function)


def _after_fork() -> None:
    """Send each app's `on_after_fork` in a forked child."""
    for app in list(_apps):
        app.on_after_fork.send(app)


os.register_at_fork(after_in_child=_after_fork)


def _again(app_class: type[Greenq], main: str, folder: Path, settings: Mapping[str, Any]) -> Greenq:
    made = app_class(main, set_as_current=False, **settings)
    made._folder = folder  # noqa: SLF001  an attribute of the same class
    return made


def _folder_of(frame: FrameType | None) -> Path:
    """Return the directory of the module that creates an app, even through a subclass."""
    while frame is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    name = str(frame.f_globals.get("__file__") or "") if frame is not None else ""
    # `__main__` has no file at a prompt, or under `python -c`.
    return Path(os.path.realpath(Path(name).parent if name else Path.cwd()))
