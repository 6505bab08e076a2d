"""`Greenq`, the app: it holds the tasks, the settings and the connection to the server."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
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

from greenq.annotations import annotate
from greenq.canvas.built_in import BUILT_IN
from greenq.canvas.signature import signature
from greenq.config.celery_names import SEND_OPTIONS, asks_for_something, name_what_is_not_here
from greenq.config.loaders import (
    CELERY_ENV,
    describe,
    settings_from_env,
    settings_from_object,
)
from greenq.config.settings import Config, sift
from greenq.config.validators import shown
from greenq.context import Context, current_context
from greenq.eager import run_as_sent, run_here
from greenq.errors import AlreadyRegistered, ConfigError, NotRegistered, Problem
from greenq.protocol.clock import LamportClock
from greenq.result import AsyncResult, AsyncResults, GroupResult, ResultSet
from greenq.sending.producer import Producer, SendOptions
from greenq.shared import Definition, place, shared
from greenq.signals import Signal, import_modules
from greenq.suggest import suggestion
from greenq.task import Task
from greenq.transport.transport import Transport
from greenq.workflow import Workflow, all_workflows
from greenq.workflow import workflow_id as id_of_workflow

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType, ModuleType
    from typing import Self, Unpack

    from greenq.beat.periodic import PeriodicTasks
    from greenq.bootsteps.steps import Option, Step
    from greenq.events.receiver import Events
    from greenq.remote.control import Control
    from greenq.result import EagerResult
    from greenq.sending.producer import Call, Outgoing

    _Packages = Callable[[], Iterable[str] | None]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", bound="Callable[[Any], object]")
H = TypeVar("H", bound="Callable[[], object]")

_SETTINGS = Config.names()
_SEND_OPTIONS = frozenset(SendOptions.__annotations__)


# All live apps, for the child of a fork.
_apps: weakref.WeakSet[Greenq] = weakref.WeakSet()

# Imported under another name, since apps have an attribute `Task`.
_BaseTask = Task

# The number of characters of an unknown name that are compared with the known names.
_COMPARED_CHARS = 200


class Settings(Mapping[str, Any]):
    """An app's settings, `app.conf`, as attributes and as a mapping; `update` sets several.

    Unknown names and wrong values are refused immediately, and the nearest valid name is suggested.
    Once the app has connected, its transport keeps the settings it was opened with.
    """

    __slots__ = ("_around", "_built", "_lazy", "_said", "_sources", "_unread", "_values")

    def __init__(
        self,
        values: Mapping[str, Any],
        around: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Begin with the defaults, overridden by the environment and then by `values`.

        On first use the two functions in `around` are called, one before and one after everything
        is read.
        """
        unread: list[str] = []
        environment = settings_from_env(os.environ, unread)
        object.__setattr__(self, "_values", dict(environment) | dict(values))
        sources = dict.fromkeys(environment, "environment")
        object.__setattr__(self, "_sources", sources | dict.fromkeys(values, "code"))
        object.__setattr__(self, "_lazy", [])
        object.__setattr__(self, "_built", None)
        object.__setattr__(self, "_unread", unread)
        object.__setattr__(self, "_said", set())
        object.__setattr__(self, "_around", around)

    def update(self, *mappings: Mapping[str, Any], **values: Any) -> None:
        """Change several settings.

        Raises:
            ConfigError: one of them is unknown or wrong; then none is set.
        """
        given: dict[str, Any] = {}
        for mapping in (*mappings, values):
            given.update(mapping)
        self.update_from("code", given)

    def update_from(self, source: str, values: Mapping[str, Any]) -> None:
        """Change several settings, and note where they come from.

        Raises:
            ConfigError: one of them is unknown or wrong; then none is set.
        """
        new = dict(self._values) | dict(values)
        built = Config.build(new)
        object.__setattr__(self, "_values", new)
        object.__setattr__(self, "_built", None if self._lazy else built)
        self._sources.update(dict.fromkeys(values, source))

    def source_of(self, name: str) -> str:
        """Return where a setting comes from: default, environment, code or a named source."""
        _ = self.config
        source: str = self._sources.get(name, "default")
        return source

    def read_later(
        self, load: Callable[[list[str]], Mapping[str, Any]], source: str = "code"
    ) -> None:
        """Make `load` read `source`'s settings on first use; it receives a list for its notes."""
        self._lazy.append((load, source))
        object.__setattr__(self, "_built", None)

    @property
    def config(self) -> Config:
        """All settings by section, checked."""
        if self._around:
            self._read_first()
        while self._lazy:
            notes: list[str] = []
            load, source = self._lazy[0]
            found = load(notes)
            self._values.update(found)
            self._sources.update(dict.fromkeys(found, source))
            self._unread.extend(notes)
            self._lazy.pop(0)
        if self._built is None:
            object.__setattr__(self, "_built", Config.build(self._values))
        built: Config = self._built
        return built

    def _read_first(self) -> None:
        before, after = self._around
        # Signal receivers also use the settings.
        object.__setattr__(self, "_around", ())
        before()
        # This raises if a setting is wrong.
        _ = self.config
        after()

    def warn(self, *, foreign: bool = True) -> None:
        """Log one warning for each name that is not read or that has no effect.

        Without `foreign`, Celery settings that greenq does not need are not logged: they concern
        workers, and would only clutter the start of programs that only send.
        """
        config = self.config
        lines = [*self._unread]
        for variable, setting in CELERY_ENV.items():
            given = os.environ.get(variable)
            if given and config.get(setting) != given:
                lines.append(
                    f"{variable} in the environment is not used: {setting} is set elsewhere"
                )
        if foreign:
            lines += [f"the setting {note}" for note in sift(self._values).notes]
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                _log.warning("%s", line)

    def __getattr__(self, name: str) -> Any:
        """Read one setting; an unknown one is an AttributeError with a suggestion."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set one setting."""
        self.update({name: value})

    def __getitem__(self, name: str) -> Any:
        """Read one setting; an unknown one is a KeyError with a suggestion."""
        config = self.config
        # A Celery setting without effect here: code that has set it can read it.
        if name not in _SETTINGS and name in self._values:
            return self._values[name]
        return config.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set one setting."""
        self.update({name: value})

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all settings."""
        return iter(sorted(_SETTINGS))

    def __len__(self) -> int:
        """Count the settings."""
        return len(_SETTINGS)

    def __repr__(self) -> str:
        """Show what was set, without passwords."""
        return f"<Settings {shown('conf', self._values)}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        return self is other or (isinstance(other, Mapping) and dict(self) == dict(other))


class TaskRegistry(dict[str, Task[Any, Any]]):
    """Name → task; for a missing name, the error suggests a similar one.

    Celery's built-in tasks are created when they are looked up, or for a worker.
    """

    def __init__(self, app: Greenq) -> None:
        """Hold the tasks of an app."""
        super().__init__()
        self._app = app

    def __missing__(self, name: str) -> Task[Any, Any]:
        """Return a built-in task, or raise NotRegistered."""
        if name not in BUILT_IN:
            raise NotRegistered(name)
        made = Definition(BUILT_IN[name], name, True, _BaseTask, {"typing": False})
        task = self[name] = made.make(lambda: self._app, "celery")
        return task

    def with_built_in(self) -> TaskRegistry:
        """Return this registry with all built-in tasks, as a worker needs it."""
        for name in BUILT_IN:
            _ = self[name]
        return self

    def nearest(self, name: str) -> str:
        """Return a hint that names a registered task similar to `name`, or empty text."""
        # Comparing takes longer for longer names, and the name may be untrusted.
        return suggestion(name[:_COMPARED_CHARS], self)


class Greenq:
    """An application: its tasks, its settings and its connection to the server.

    Creating one opens nothing and imports no module; the first sending does. An app is safe to
    share between threads, greenlets and forked processes.
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
            main: its name, which is the module name of tasks defined in ``__main__``.
            broker: address of the server, ``broker_url``; none means the embedded one.
            backend: address of the results server, ``result_backend``; none means the broker.
            include: modules to import before a worker starts.
            config_source: as for `config_from_object`, with `namespace`.
            set_as_current: shared tasks use this app from now on.
            task_cls: the default class of its tasks, `Task`.
            settings: any settings by name.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        self.main = main or "__main__"
        # Together with the name, it identifies the project's embedded server.
        self._folder = _folder_of(inspect.currentframe())
        given = dict(settings)
        if broker is not None:
            given["broker_url"] = broker
        if backend is not None:
            given["result_backend"] = backend
        if include:
            given["include"] = tuple(include)
        # Celery's names; `docs/signals.md` says when each is sent.
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
        self._task_class: type[Task[..., Any]] | None = task_cls
        self._control: Control | None = None
        self._events: Events | None = None
        self.steps: dict[str, set[type[Step]]] = {"worker": set(), "consumer": set()}
        self.user_options: dict[str, set[Option | Callable[[ArgumentParser], object]]] = {
            "worker": set()
        }
        self.leaders: dict[str, Callable[[Any], object]] = {}
        # A worker calls these after each task's code, in the task's own greenlet: see
        # `on_task_end`.
        self.task_end_hooks: list[Callable[[], object]] = []
        # What `add_periodic_task` has added, by name, as in `beat_schedule`.
        self.periodic_tasks: dict[str, dict[str, Any]] = {}
        self._periodic: PeriodicTasks | None = None
        self._tasks = TaskRegistry(self)
        # Tasks are annotated on first use, because there may be no settings before then.
        self._unannotated: deque[Task[Any, Any]] = deque()
        self._annotating = self._annotated = False
        self._task_lock = threading.RLock()
        # This app's versions of the shared tasks, in order of definition, as far as they have been
        # created.
        self._shared_tasks: list[Task[Any, Any]] = []
        self._autodiscovered: list[tuple[_Packages, str | None]] = []
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._producer: Producer | None = None
        _apps.add(self)
        if set_as_current:
            shared.app = self

    def set_default(self) -> None:
        """From now on, use this app for shared tasks and for handles created without an app."""
        shared.app = self

    set_current = set_default

    # --- settings ---------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """All settings by section, checked."""
        return self.conf.config

    def config_from_object(
        self, source: object, *, force: bool = False, namespace: str | None = None
    ) -> None:
        """Read settings, on first use, from a module, its name, an object or a mapping.

        Args:
            source: where they are.
            force: read them now.
            namespace: a prefix such as ``"CELERY"``: only upper-case names that begin with it
                count, as in Django's settings.

        Raises:
            ConfigError: with `force`, a setting is unknown or wrong.
        """
        self.conf.read_later(
            lambda notes: settings_from_object(source, namespace, notes), describe(source)
        )
        if force:
            _ = self.config

    def config_from_envvar(
        self, variable: str, *, silent: bool = False, force: bool = False
    ) -> None:
        """Read settings from the module that an environment variable names.

        Args:
            variable: its name.
            silent: raise no error if it is not set.
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
        """All tasks by name, shared ones included, with their annotations."""
        self.finalize()
        return self._tasks

    def take_shared(self) -> Sequence[Task[Any, Any]]:
        """Create this app's version of each shared task; return them in their order of definition.

        If the app has a task with another function under the same name, that task stays.
        """
        if len(self._shared_tasks) < len(shared.definitions):
            with self._task_lock:
                for definition in shared.definitions[len(self._shared_tasks) :]:
                    task = definition.make(self._ready, self.main, self._task_class)
                    known = self._tasks.get(task.name)
                    if known is not None and place(known.function) != place(task.function):
                        task = known
                    else:
                        self._add(task)
                    self._shared_tasks.append(task)
        return self._shared_tasks

    def _ready(self) -> Greenq:
        """Return the app for use by its tasks, which annotates them."""
        if self._unannotated:
            self._annotate()
        return self

    def _annotate(self) -> None:
        annotations = self.conf["task_annotations"]
        with self._task_lock:
            if self._annotating:
                return  # an annotation accesses its task's app
            self._annotating = True
            try:
                while self._unannotated:
                    annotate(self._unannotated[0], annotations)
                    self._unannotated.popleft()
                self._annotated = True
            finally:
                self._annotating = False

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
            name: instead of ``module.function``.
            base: a subclass of `Task`.
            options: those of `Task`, by name.
        """

        def register(decorated: Callable[..., Any]) -> Task[Any, Any]:
            definition = Definition(decorated, name, bind, base, options)
            return self._register(definition.make(self._ready, self.main, self._task_class))

        return register if function is None else register(function)

    @property
    def Task(self) -> Any:  # noqa: N802  Celery's name
        """The class of this app's tasks; subclass it, or assign another one for all later tasks."""
        if self._task_class is None:
            own = {"_app": staticmethod(self._ready), "__module__": __name__}
            self._task_class = type("Task", (_BaseTask,), own)
        return self._task_class

    @Task.setter
    def Task(self, task_class: Any) -> None:  # noqa: N802
        self._task_class = task_class

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a class-based task, given as an instance or as the class, and return it.

        ``class Import(app.Task): def run(self, path): …`` is named ``module.Import`` unless it has
        a ``name``; `options` become its attributes.

        Raises:
            TypeError: it has no ``run``.
        """
        made = task() if isinstance(task, type) else task
        for option, value in options.items():
            setattr(made, option, value)
        made.complete(self._ready, self.main)
        return self._register(made)

    @property
    def current_task(self) -> Any:
        """The task that runs in this greenlet or thread; None outside a worker."""
        context = current_context.get()
        return None if context is None else self.tasks.get(context.task)

    current_worker_task = current_task

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the default name of a task."""
        return f"{self.main if module == '__main__' else module}.{name}"

    def _register(self, task: _BaseTask[Any, Any]) -> _BaseTask[Any, Any]:
        known = self._tasks.get(task.name)
        if known is not None:
            if place(known.function) == place(task.function):
                # The same module, imported again, as reloaders and test runners do.
                return self._add(task)
            raise AlreadyRegistered(
                f"two tasks are named {task.name!r}: {place(known.function)} and "
                f"{place(task.function)}; give one of them another name="
            )
        return self._add(task)

    def _add(self, task: _BaseTask[Any, Any]) -> _BaseTask[Any, Any]:
        self._tasks[task.name] = task
        self._unannotated.append(task)
        task.on_bound(self)
        if self._annotated:
            # A worker may run the task without reading `tasks` again.
            self._annotate()
        return task

    def leader(self, function: L) -> L:
        """Register a function that is called in the one worker that wins an election on its name.

        ``app.control.election(id, "module.function", action)`` holds an election; the function
        receives `action`, and runs in the worker's greenlet for events, so it should send a task
        for longer work.
        """
        module = self.main if function.__module__ == "__main__" else function.__module__
        self.leaders[f"{module}.{function.__name__}"] = function
        return function

    def on_task_end(self, function: H) -> H:
        """Register a function that the worker calls at the end of each task: ``@app.on_task_end``.

        It is called without arguments after the task's code and the hooks of its class, in the same
        greenlet: values that the task left in ``threading.local`` and in context variables are
        still there, and its slot is still occupied. So this is the place to close sessions and
        connections. It may wait. Its exceptions are logged and do not affect the task.
        """
        self.task_end_hooks.append(function)
        return function

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Import ``<package>.tasks`` of each package before a worker starts, where it exists.

        Args:
            packages: their names, or a function that returns them at that time; by default,
                Django's INSTALLED_APPS, whose entries may name an AppConfig.
            related_name: the modules' name; None imports only the packages.
            force: import them now.

        Raises:
            ConfigError: there are no packages and no Django; raised now with `force`, otherwise at
            that time.
        """
        call: _Packages = packages if callable(packages) else lambda: packages
        self._autodiscovered.append((call, related_name))
        if force:
            self.set_up_framework()
            self._discover(call(), related_name)

    def set_up_framework(self) -> None:
        """Set up Django if it is in use; commands that import task modules call this first."""
        django = _django()
        if django is not None:
            django.set_up(self)

    def import_task_modules(self) -> None:
        """Import all modules that hold tasks: ``imports``, ``include``, and autodiscovered ones.

        Raises:
            ConfigError: a module does not exist; exceptions raised by a module, or by a receiver of
                import_modules, are passed on.
        """
        self.set_up_framework()
        for _receiver, response in import_modules.send(self):
            if isinstance(response, Exception):
                raise response
        for setting in ("imports", "include"):
            for module in self.conf[setting]:
                _import_named(module, setting)
        for packages, related_name in self._autodiscovered:
            self._discover(packages(), related_name)
        django = _django()
        if django is not None:
            # By now logging is set up, and any setting or task module that patches a driver has
            # been imported.
            django.warn_of_blocking()

    def _discover(self, packages: Iterable[str] | None, related_name: str | None) -> None:
        if packages is None:
            django = _django()
            if django is None:
                reason = (
                    "without packages it searches Django's INSTALLED_APPS: first set "
                    "DJANGO_SETTINGS_MODULE and install Django, or name the packages"
                )
                raise ConfigError([Problem("autodiscover_tasks", None, reason)])
            packages = django.packages()
        for entry in packages:
            package = _package(entry)
            if not related_name or not hasattr(sys.modules[package], "__path__"):
                continue
            if find_spec(f"{package}.{related_name}") is not None:
                importlib.import_module(f"{package}.{related_name}")

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
        """Let the beats that run this code send a task periodically; return the entry's name.

        Args:
            schedule: seconds, a timedelta, a crontab or another schedule.
            sig: the task, its name, or a signature of it.
            args, kwargs: its arguments; they are appended to those of a signature, or override
                them.
            name: the entry's name; by default the text of the call, so that another call of the
                same task with the same arguments replaces the entry.
            fields: further fields of the entry, as in ``beat_schedule``: ``missed``, ``overlap``…
            options: send options.

        Raises:
            TypeError: `sig` is not a task, a name or a signature.
        """
        task, kwargs = sig, dict(kwargs or {})
        if isinstance(sig, Mapping):
            task = sig.get("task")
            args = (*sig.get("args", ()), *args)
            kwargs = {**sig.get("kwargs", {}), **kwargs}
            options = {**sig.get("options", {}), **options}
        task = getattr(task, "name", task)
        if not isinstance(task, str):
            raise TypeError(f"add_periodic_task takes a task or its name, not {sig!r}")
        if name is None:
            shown = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
            name = f"{task}({', '.join(shown)})"
        entry = {"task": task, "schedule": schedule, "args": tuple(args), "kwargs": kwargs}
        self.periodic_tasks[name] = {**entry, "options": options, **(fields or {})}
        return name

    @property
    def periodic(self) -> PeriodicTasks:
        """The periodic entries on the server: list, add, change, pause, run, remove."""
        if self._periodic is None:
            made = importlib.import_module("greenq.beat.periodic").PeriodicTasks(self)
            self._periodic = made
        return self._periodic

    # --- the cluster ------------------------------------------------------------------------------

    # Both are imported on first use, since programs that only send or run tasks do not need them.

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
        task_type: _BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[Any]:
        """Send a task by its name; it need not be registered here. Switches: yes.

        If it is registered, its send options apply unless overridden, except ``ignore_result``,
        which the worker decides. `task_type` is for tasks that send themselves: all their options
        apply.

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
        task_type: _BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResults[Any]:
        """Send a task by its name once for each pair of args and kwargs. Switches: yes.

        When it returns, all have been sent, in order, whether or not the handles are ever used.
        Memory use does not grow with the number of calls: `calls` may be a generator, and is read
        while sending, in pushes of at most 200 messages or 256 KB. A push arrives as a
        whole or not at all, and is retried as a single send is. ``countdown`` and ``expires`` count
        from each push. `task_type` and the options are as for `send_task`.

        If a running task sends them, it is their parent, but they are not among its children.

        Raises:
            TypeError: an option is unknown, or ``task_id`` is among them.
            NotAllSent: an item cannot be serialized, `calls` raised an error, or the server could
                not be reached; the error lists the tasks sent before that.
        """
        if "task_id" in options:
            raise TypeError(f"task {name}: task_id is for a single task, not for many")
        if task_type is not None and self.config.task.task_always_eager:
            # This result is also a sequence of handles.
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
            return self._send_options(name, self._tasks.get(name), options, context)

        self.finalize()
        self.producer.send_calls(self._checked_calls(calls), complete, **options)

    def _checked_calls(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Yield calls whose arguments fit, each with the name to show instead of its task's."""
        tasks = self._tasks
        for call in calls:
            task = tasks.get(call[0])
            if task is not None:
                name, args, kwargs, options = call
                task.argument_check.arguments(args, kwargs)
                if type(task).shadow_name is not _BaseTask.shadow_name:
                    shadow = options.get("shadow") or task.shadow_name(args, kwargs, options)
                    call = (name, args, kwargs, {**options, "shadow": shadow})
            yield call

    def prepare_call(self, call: Call) -> Outgoing:
        """Write the message of one call without sending it, with the task's options."""
        name, args, kwargs, options = call
        sent = self._send_options(name, self.tasks.get(name), options, None)
        return self.producer.prepare(name, args, kwargs, sent)

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature with this app: of a task, of a name, or from plain data."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    def apply(
        self,
        task: _BaseTask[Any, Any],
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
        task: _BaseTask[Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> EagerResult[Any]:
        """Run a task in this process instead of sending it, for ``task_always_eager``."""
        return run_as_sent(task, args, kwargs, self._eager_options(task, options))

    def _eager_options(
        self, task: _BaseTask[Any, Any], options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if not options.keys() <= _SEND_OPTIONS:
            options = _without_foreign(task.name, options)
        return task.send_options(options)

    def on_commit(self, call: Callable[[], object]) -> None:
        """Make a call when Django's open transaction commits, or now if none is open.

        Raises:
            ConfigError: Django is not in use.
        """
        django = _django()
        if django is None:
            reason = "sending on commit needs Django, and DJANGO_SETTINGS_MODULE is not set"
            raise ConfigError([Problem("on_commit", None, reason)])
        django.on_commit(call)

    def _send_options(
        self,
        name: str,
        task: _BaseTask[Any, Any] | None,
        options: Mapping[str, Any],
        context: Context | None,
    ) -> dict[str, Any]:
        """Check send options; add those of the task and those passed on by the current task."""
        if options.get("stamped_headers") and "stamps" not in options:
            options = _with_stamps(options)
        if not options.keys() <= _SEND_OPTIONS:
            options = _without_foreign(name, options)
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
        """Return a workflow of the index, given by its id or by the handle of its last task."""
        return Workflow(self, id_of_workflow(workflow_id))

    def workflows(self, limit: int = 100) -> list[Workflow]:
        """Return the newest workflows of the index. Switches: yes."""
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
        # This is outside the lock, since a log handler may itself use the app.
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
        """Writes and pushes messages; created on first use."""
        if self._producer is None:
            self._producer = Producer(
                self.transport.broker, self.config.task, self.clock, self.tasks.get
            )
        return self._producer

    @property
    def backend(self) -> Any:
        """Reads and writes results on the server."""
        return self.transport.backend

    @property
    def timezone(self) -> ZoneInfo:
        """The time zone of the setting `timezone`."""
        return ZoneInfo(self.config.task.timezone)

    def now(self) -> datetime:
        """Return the time in the app's `timezone`."""
        return datetime.now(self.timezone)

    def finalize(self, auto: bool = False) -> None:
        """Create the shared tasks and apply the annotations now, not when tasks are first used.

        Args:
            auto: accepted for compatibility with Celery, no effect.
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
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the app's name and its settings, including passwords, but none of its tasks."""
        return _again, (type(self), self.main, self._folder, dict(self.conf))

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Greenq {self.main}>"


name_what_is_not_here(Greenq)


def _after_fork() -> None:
    """Send each app's signal in a forked child."""
    for app in list(_apps):
        app.on_after_fork.send(app)


os.register_at_fork(after_in_child=_after_fork)


def _again(app_class: type[Greenq], main: str, folder: Path, settings: Mapping[str, Any]) -> Greenq:
    made = app_class(main, set_as_current=False, **settings)
    made._folder = folder  # noqa: SLF001  an attribute of the same class
    return made


def _with_stamps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the stamps, which are given as separate options, as Celery's senders do."""
    names = set(options["stamped_headers"])
    kept = {name: value for name, value in options.items() if name not in names}
    kept["stamps"] = {name: options[name] for name in names if name in options}
    return kept


def _without_foreign(task: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out Celery-only options that have no effect.

    Raises:
        TypeError: there is no such option.
    """
    kept = {option: value for option, value in options.items() if option in _SEND_OPTIONS}
    for option in sorted(options.keys() - kept.keys()):
        foreign = SEND_OPTIONS.get(option)
        if foreign is None:
            hint = suggestion(option, _SEND_OPTIONS)
            raise TypeError(f"task {task}: no send option {option!r}{hint}")
        if asks_for_something(foreign, options[option]):
            raise TypeError(f"task {task}: send option {option!r}: {foreign.advice}")
    return kept


def _import_named(module: str, source: str) -> None:
    """Import a module named by `source`."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as exc:
        # If another module is missing inside it, the error is that module's own.
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise
        reason = "no such module; is its folder on the Python path?"
        raise ConfigError([Problem(source, module, reason)]) from exc


def _folder_of(frame: FrameType | None) -> Path:
    """Return the folder of the module that creates an app, even through a subclass."""
    while frame is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    name = str(frame.f_globals.get("__file__") or "") if frame is not None else ""
    # `__main__` has no file at a prompt, or under `python -c`.
    return Path(os.path.realpath(Path(name).parent if name else Path.cwd()))


def _django() -> ModuleType | None:
    """Return greenq's Django module if Django is in use; otherwise None, without loading Django."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    if "django" not in sys.modules and find_spec("django") is None:
        _log.warning("DJANGO_SETTINGS_MODULE is set but Django is not installed: it is ignored")
        return None
    return importlib.import_module("greenq.contrib.django")


def _package(entry: str) -> str:
    """Import the package that an entry names, directly or through an AppConfig; return its name."""
    try:
        importlib.import_module(entry)
    except ModuleNotFoundError as error:
        module, _, attribute = entry.rpartition(".")
        if not module or error.name != entry:
            _import_named(entry, "autodiscover_tasks")
            raise
        package = getattr(getattr(importlib.import_module(module), attribute, None), "name", None)
        if not isinstance(package, str):
            raise
        importlib.import_module(package)
        return package
    return entry
