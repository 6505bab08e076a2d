"""Tasks: functions decorated with `@app.task`."""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Iterable
from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, TypeVarTuple

from greenq.canvas.here import run_in_place
from greenq.canvas.inside import addition, replacement
from greenq.canvas.mistakes import check_call
from greenq.canvas.primitives import chunks, xmap, xstarmap
from greenq.canvas.signature import Signature, maybe_signature
from greenq.config.celery_names import TASK_OPTIONS, asks_for_something
from greenq.errors import Ignore, MaxRetriesExceededError, OperationalError, Retry
from greenq.protocol.rate import parse_rate
from greenq.result import newest_app, result_from_tuple
from greenq.sending.arguments import ACCEPT_ALL, Check, checker
from greenq.sending.context import Context, current_context
from greenq.sending.options import check_task_option
from greenq.sending.retry import check
from greenq.sending.routing import merge_options
from greenq.sending.validation import Models, validating
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from greenq.config.settings import Config
    from greenq.events.receiver import Events
    from greenq.result import AsyncResult, AsyncResults, EagerResult
    from greenq.sending.options import SendOptions
    from greenq.sending.producer import Producer
    from greenq.transport.transport import Transport

# The longest wait before a retry is reached after far fewer doublings.
_MOST_DOUBLINGS = 64

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
R_co = TypeVar("R_co", covariant=True)


class TaskApp(Protocol):
    """The part of an app that a task needs. The app of a user's task is a `greenq.app.Greenq`."""

    @property
    def config(self) -> Config:
        """All settings."""

    @property
    def transport(self) -> Transport:
        """The connection to the server."""

    @property
    def backend(self) -> Any:
        """The reader and writer of results."""

    @property
    def producer(self) -> Producer:
        """The object that writes and pushes messages."""

    @property
    def events(self) -> Events:
        """The object that publishes events."""

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_type: BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[Any]:
        """Send a task."""

    def send_task_many(
        self,
        name: str,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        *,
        task_type: BaseTask[Any, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResults[Any]:
        """Send a task once for each pair of args and kwargs."""

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
        """Run a task in this process."""

    def on_commit(self, call: Callable[[], object]) -> None:
        """Call `call` when Django's open transaction commits."""

    def AsyncResult(self, task_id: str) -> AsyncResult[Any]:  # noqa: N802  Celery's name
        """Return the handle of a task."""


class ExceptionInfo:
    """An exception's description, which hooks receive as ``einfo``; its text is the traceback.

    Attributes:
        exception: the exception itself.
        type: its class.
        traceback: the traceback as text.
        tb: the traceback itself; None if there is none.
    """

    __slots__ = ("exception", "traceback")

    def __init__(self, exception: BaseException, traceback: str) -> None:
        """Store the exception and its traceback's text."""
        self.exception = exception
        self.traceback = traceback

    @property
    def type(self) -> type[BaseException]:
        """The exception's class."""
        return type(self.exception)

    @property
    def tb(self) -> TracebackType | None:
        """The exception's traceback object; None if there is none."""
        return self.exception.__traceback__

    def __str__(self) -> str:
        """Return the traceback's text."""
        return self.traceback

    def __repr__(self) -> str:
        """Show the exception."""
        return f"<ExceptionInfo: {self.exception!r}>"


def classes(given: Any) -> tuple[type[BaseException], ...]:
    """Convert one exception class, or an iterable of them, to a tuple for `isinstance`.

    Raises:
        TypeError: one of them is not an exception class.
    """
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{each!r} is not an exception class")
    return found


class BaseTask(Generic[P, R]):
    """A function that workers run: everything in `greenq.app.Task` except the type of its app.

    Subclass `Task` and pass the class as ``base=`` to share options or hooks; the class's
    constructor is called without arguments. The options below can be set on the class or in the
    decorator; None means the app's setting.
    """

    # This allows ``except self.MaxRetriesExceededError``, as in Celery.
    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    name: str = ""
    max_retries: int | None = 3
    default_retry_delay: float | None = None
    autoretry_for: Iterable[type[BaseException]] = ()
    dont_autoretry_for: Iterable[type[BaseException]] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | int = False
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    ignore_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    acks_late: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    reject_on_worker_lost: bool | None = None
    track_started: bool | None = None
    throws: Iterable[type[BaseException]] = ()
    serializer: str | None = None
    compression: str | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    priority: int | None = None
    expires: float | datetime | None = None
    delivery_mode: int | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    rate_limit: str | float | None = None
    typing: bool | None = None
    store_eager_result: bool | None = None
    pydantic: bool = False
    pydantic_strict: bool = False
    pydantic_context: Mapping[str, Any] | None = None
    pydantic_dump_kwargs: Mapping[str, Any] | None = None

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "max_retries", "default_retry_delay", "autoretry_for", "dont_autoretry_for", "retry_kwargs",
        "retry_backoff", "retry_backoff_max", "retry_jitter", "ignore_result",
        "store_errors_even_if_ignored", "acks_late", "acks_on_failure_or_timeout",
        "reject_on_worker_lost", "track_started", "throws", "serializer", "compression", "queue",
        "exchange", "routing_key", "priority", "expires", "delivery_mode", "time_limit",
        "soft_time_limit", "rate_limit", "typing", "store_eager_result",
        "pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs",
    )  # fmt: skip

    # The task's options that apply each time it is sent, unless the caller overrides them.
    _SENT = (
        "serializer", "compression", "queue", "exchange", "routing_key", "priority", "expires",
        "delivery_mode", "time_limit", "soft_time_limit",
    )  # fmt: skip

    # The app of a task created without one: the newest app.
    _app: Callable[[], TaskApp] = staticmethod(newest_app)
    run: Callable[..., R]

    def __init__(
        self,
        function: Callable[..., R] | None = None,
        *,
        name: str = "",
        app: Callable[[], TaskApp] | None = None,
        bind: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Create a task from `function`; `app` returns its app when the task is used.

        A task created without a function is a class-based task with its own ``run``, which
        `Greenq.register_task` completes. An option not in `OPTIONS` becomes an attribute.

        Raises:
            TypeError: an option is not supported, cannot be an attribute, or is probably misspelt.
            ValueError: the rate limit is invalid.
        """
        if app is not None:
            self._app = app
        if function is None:
            return
        self.name = name
        self.function = function
        self.run = functools.partial(function, self) if bind else function
        for option, value in (options or {}).items():
            self._check_option(option, value)
            if option not in TASK_OPTIONS:
                setattr(self, option, value)
        self._bound = bind
        self.check_options()
        self._use_models()
        functools.update_wrapper(self, function, updated=())

    def _check_option(self, option: str, value: object) -> None:
        if option in self.OPTIONS:
            return
        foreign = TASK_OPTIONS.get(option)
        if foreign is not None:
            if asks_for_something(foreign, value):
                raise TypeError(f"task {self.name}: {option} is not supported: {foreign.advice}")
            return
        hint = suggestion(option, self.OPTIONS, cutoff=0.8)
        if hint:
            raise TypeError(f"task {self.name}: no option {option!r}{hint}")
        if option.startswith("__") or callable(getattr(BaseTask, option, None)):
            raise TypeError(
                f"task {self.name}: {option!r} cannot be an option: tasks have an attribute with "
                "that name"
            )

    def complete(self, app: Callable[[], TaskApp], main: str) -> None:
        """Complete a class-based task with its own ``run``; called by apps.

        Raises:
            TypeError: it has no ``run``.
            ValueError: the rate limit is invalid.
        """
        cls = type(self)
        run = getattr(self, "run", None)
        if not callable(run):
            raise TypeError(f"{cls.__qualname__} has no run(): a class-based task needs one")
        self._app = app
        self.function = run
        module = main if cls.__module__ == "__main__" else cls.__module__
        self.name = self.name or f"{module}.{cls.__name__}"
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        self._bound = False
        self.check_options()
        self._use_models()

    def check_options(self) -> None:
        """Check the options from the decorator, the class and annotations.

        Raises:
            WrongOption: an option is invalid.
            ValueError: the rate limit is invalid.
        """
        for option in self.OPTIONS:
            value = getattr(self, option)
            if value is not getattr(BaseTask, option):
                checked = check_task_option(self.name, option, value)
                if checked is not value:
                    setattr(self, option, checked)
        try:
            parse_rate(self.rate_limit)
        except ValueError as exc:
            raise ValueError(f"task {self.name}: {exc}") from None

    def _use_models(self) -> None:
        """If the option ``pydantic`` is set, call the task's code with pydantic models."""
        if self.pydantic:
            self._models = Models(self.name, self.function, bound=self._bound)
            self.run = validating(
                self.run,
                self._models,
                strict=self.pydantic_strict,
                context=self.pydantic_context,
                dump=self._dump_kwargs,
                # Names for validators, as in Celery.
                about=lambda: {"celery_app": self.app, "celery_task_name": self.name},
            )

    @property
    def _dump_kwargs(self) -> Mapping[str, Any]:
        return {"mode": "json", **(self.pydantic_dump_kwargs or {})}

    @functools.cached_property
    def argument_check(self) -> Check:
        """Functions that raise a TypeError if arguments do not fit, unless ``typing=False``."""
        if self.typing is False:
            return ACCEPT_ALL
        return checker(self.name, self.function, bound=self._bound)

    @property
    def is_bound(self) -> bool:
        """True if the first parameter of the task's function is the task itself."""
        return self._bound

    @property
    def app(self) -> TaskApp:
        """The app that this task belongs to."""
        return self._app()

    @property
    def request(self) -> Context:
        """The current run; an empty context when the function is called directly."""
        context = current_context.get()
        if context is None or context.message is None or context.message.task != self.name:
            return Context()
        return context

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function directly, in this process."""
        return self.run(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task with these arguments. Switches: yes.

        Raises:
            TypeError: the arguments do not fit the function's parameters (unless ``typing=False``).
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached within the retry policy.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[R]:
        """Send the task with options (`SendOptions`). Switches: yes. Raises what `delay` raises."""
        # This comes first, since accessing the app annotates the task.
        app = self.app
        check = self.argument_check
        if kwargs or args.__class__ is not tuple or not check.least <= len(args) <= check.most:
            check.arguments(args or (), kwargs or {})
        if self.pydantic:
            args, kwargs = self._models.sent(args or (), kwargs or {}, self._dump_kwargs)
        if type(self).shadow_name is not BaseTask.shadow_name and not options.get("shadow"):
            options["shadow"] = self.shadow_name(args or (), kwargs or {}, options)
        return app.send_task(self.name, args, kwargs, task_type=self, **options)

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature: this call, to be sent later or as part of a workflow."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """Return an immutable signature, which ignores the result of the preceding task."""
        return self.signature(args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Return a signature with options: send options, or ``immutable=True``."""
        check_call(args, kwargs, "signature")
        return Signature(self, args, kwargs, **options)

    subtask = signature

    def map(self, it: Iterable[Any]) -> Any:
        """Return a signature of one task that calls this one with each item, one after another."""
        return xmap(self.s(), it)

    def starmap(self, it: Iterable[Sequence[Any]]) -> Any:
        """Return a signature of one task that calls this one with the arguments in each item."""
        return xstarmap(self.s(), it)

    def chunks(self, it: Iterable[Sequence[Any]], n: int) -> Any:
        """Return a signature of several tasks, each one a `starmap` of at most `n` items."""
        return chunks(self.s(), it, n)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool | None = None,
        retries: int = 0,
        logfile: str | None = None,
        loglevel: int | None = None,
        **options: Unpack[SendOptions],
    ) -> EagerResult[R]:
        """Run the task in this process, with its hooks and retries but without a server or worker.

        Retries follow immediately, ignoring their countdown.

        Args:
            throw: raise the exception of a task that fails; None means the setting
                ``task_eager_propagates``.
            retries: the number of earlier retries.
            logfile, loglevel: accepted for compatibility with Celery; have no effect.
            options: those of `apply_async`; options that concern the server have no effect.

        Raises:
            Exception: the exception of a failed task, if `throw` is true.
        """
        return self.app.apply(self, args or (), kwargs or {}, options, throw=throw, retries=retries)

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send the task when Django's open transaction commits, or immediately if none is open.

        If the transaction rolls back, no task is sent. No handle is returned, since there is no
        task id yet.

        Raises:
            ConfigError: DJANGO_SETTINGS_MODULE is not set.
        """
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> None:
        """Send the task with options (`SendOptions`) as `delay_on_commit` does."""
        self.app.on_commit(functools.partial(self.apply_async, args, kwargs, **options))

    def delay_many(self: Callable[[*Ts], R_co], calls: Iterable[tuple[*Ts]]) -> AsyncResults[R_co]:
        """Send the task once for each tuple of arguments. Switches: yes.

        ``add.delay_many((n, 1) for n in range(10_000_000))`` returns when all tasks have been sent.
        Their handles are created on access. See `Greenq.send_task_many` for the guarantees if
        sending fails midway.

        A type checker requires each tuple to have all parameters, even those with a default;
        `apply_async_many` accepts any arguments.

        Raises:
            NotAllSent: sending ended early.
        """
        # The annotation is for callers, whose tuples are checked against the function's parameters.
        task: BaseTask[Any, Any] = self  # type: ignore[assignment]
        return task.apply_async_many(zip(calls, repeat({})))

    def apply_async_many(
        self,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        **options: Unpack[SendOptions],
    ) -> AsyncResults[R]:
        """Send the task once for each pair of args and kwargs. Switches: yes.

        The options apply to all of them. See `Greenq.send_task_many`.

        Raises:
            TypeError: an option is unknown, or ``task_id`` is among them.
            NotAllSent: sending ended early.
        """
        app = self.app
        checked: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]
        checked = map(self.argument_check.call, calls)
        if self.pydantic:
            checked = (self._models.sent(*call, self._dump_kwargs) for call in checked)
        return app.send_task_many(self.name, checked, task_type=self, **options)

    def send_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for sending the task: its own, overridden by those given.

        ``ignore_result`` is omitted, since a sender that knows only the task's name leaves it to
        the worker.
        """
        own = {name: value for name in self._SENT if (value := getattr(self, name)) is not None}
        if not options:
            return own
        if options.get("queue") or options.get("exchange") or options.get("routing_key"):
            own |= {"queue": None, "exchange": None, "routing_key": None}
        return merge_options(own, options)

    def AsyncResult(self, task_id: str) -> AsyncResult[R]:  # noqa: N802  Celery's name
        """Return the handle of an execution of this task."""
        return self.app.AsyncResult(task_id)

    def send_event(self, type: str, **fields: Any) -> None:
        """Publish a custom event, such as ``task-progress``; its ``uuid`` is this run's task id.

        Raises:
            EncodeError: a field has no JSON form.
            OperationalError: the server could not be reached.
        """
        request = self.request
        self.app.events.send(type, hostname=request.hostname, uuid=request.id, **fields)

    def update_state(
        self, task_id: str | None = None, state: str = "PROGRESS", meta: object = None
    ) -> None:
        """Store a custom state, such as progress, for others to read. Switches: yes.

        A task that is run by `apply` does not store states unless its result is stored.
        """
        if not self.request.stores:
            return
        self.app.transport.backend.store(task_id or self.request.id, state, meta)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        max_retries: int | None = None,
        **options: Unpack[SendOptions],
    ) -> Retry:
        """End this run and let the task run again later; write ``raise self.retry(...)``.

        When the worker catches the `Retry`, it replaces this message with the new one in a single
        step, so a crash neither loses nor duplicates the task.

        Args:
            args, kwargs: different arguments for the next run; None keeps them.
            exc: the reason for the retry; raised instead of `Retry` when no retries are left.
            throw: if False, return the `Retry` instead of raising it. This run then continues; when
                it ends, its outcome is stored and the next run is sent.
            max_retries: overrides the task's own maximum; None keeps that maximum.
            options: send options; without eta or countdown, the next run starts after
                `default_retry_delay`. Options that are not given stay the same as for this run.

        Raises:
            Retry: inside a worker, if retries are left and `throw` is not False.
            MaxRetriesExceededError: no retries are left and there is no `exc`.
            TypeError: an option is unknown or invalid.
            OperationalError: the queue of an `exchange` could not be looked up.
        """
        context = self.request
        known = check(self.name, args, kwargs, options)
        eta, countdown = known.pop("eta", None), known.pop("countdown", None)
        if context.called_directly:
            raise exc or Retry("called directly", None, countdown)
        most = self.max_retries if max_retries is None else max_retries
        if most is not None and context.retries >= most:
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(
                f"{self.name}[{context.id}] was retried {context.retries} times, the maximum"
            )
        if eta is None and countdown is None:
            countdown = self.default_retry_delay
            if countdown is None:
                countdown = self.app.config.task.task_default_retry_delay
            countdown = check(self.name, None, None, {"countdown": countdown})["countdown"]
        if known.get("exchange") and not known.get("queue"):
            key = known.get("routing_key") or ""
            known["queue"] = self.app.producer.queue_of(str(known["exchange"]), key)
        retry = Retry(exc=exc, when=eta or countdown)
        retry.next_run = (
            context.args if args is None else args,
            context.kwargs if kwargs is None else kwargs,
            merge_options({"eta": eta, "countdown": countdown}, known),
        )
        if not throw:
            retry.__cause__ = exc
            context.retried = retry
            return retry
        raise retry from exc

    def replace(self, sig: Mapping[str, Any]) -> Any:
        """End this run and replace it with a signature; write ``return self.replace(sig)``.

        The signature's last task gets this task's id, its place in a group or a chord, and its
        successors. The results of a group are gathered in a list. The worker sends the signature
        and acknowledges this message in one step; nothing is stored for this run. In a task that is
        run by `apply`, the signature runs in this process, and its value is returned.

        Raises:
            Ignore: always, inside a worker.
            ValueError: the signature cannot be sent.
        """
        context = self.request
        if context.message is None:
            raise ValueError(f"replace() of {self.name}: no worker is running this task")
        if context.is_eager:
            return run_in_place(maybe_signature(sig, self.app))
        context.replacement = replacement(context.message, sig)
        raise Ignore("Replaced by new task")

    def add_to_chord(self, sig: Mapping[str, Any]) -> Any:
        """Add a task to the chord that this task belongs to, and return the added task's handle.

        The worker sends the added task when this run ends, unless the run fails. The chord's body
        then also waits for the added task, and gets its result after all others.

        Raises:
            ValueError: this task belongs to no chord, or no worker is running it.
        """
        context = self.request
        if context.message is None:
            raise ValueError(f"add_to_chord() of {self.name}: no worker is running this task")
        added = addition(context.message, sig)
        context.additions = [*(context.additions or ()), added]
        result = result_from_tuple(added.handle, self.app)
        context.children.append(result)
        return result

    def add_trail(self, result: Any) -> Any:
        """Add a handle to this run's children, and return it."""
        self.request.children.append(result)
        return result

    def retry_delay(self, retries: int) -> float | None:
        """Return the seconds to wait before an automatic retry; None means the default."""
        if not self.retry_backoff:
            return None
        # A message can claim any number of retries; above the limit, the longest wait applies.
        doubled = 2 ** min(max(retries, 0), _MOST_DOUBLINGS)
        # A factor below one second would keep the wait from ever growing.
        longest = min(max(1, int(self.retry_backoff)) * doubled, self.retry_backoff_max)
        return random.randrange(longest + 1) if self.retry_jitter else longest

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Called before the task runs; override it if needed."""

    def on_success(
        self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Called when the task has returned; override it if needed."""

    def on_failure(
        self,
        exc: BaseException,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: ExceptionInfo,
    ) -> None:
        """Called when the task has failed; override it if needed."""

    def on_retry(
        self,
        exc: BaseException,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: ExceptionInfo,
    ) -> None:
        """Called when the task will be retried; override it if needed."""

    def after_return(
        self,
        status: str,
        retval: Any,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: ExceptionInfo | None,
    ) -> None:
        """Called when the task ends, unless it will be retried; override it if needed."""

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called when an app registers a task of this class; override it if needed."""

    def shadow_name(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> str | None:
        """Called for each send; override it to return a name to show instead of the task's name."""
        return None

    @property
    def backend(self) -> Any:
        """The object that reads and writes results on the server."""
        return self.app.backend

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the task as its name; unpickling returns the current app's task."""
        return _registered, (self.name, self.function.__module__)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<task {self.name}>"


def _registered(name: str, module: str) -> BaseTask[Any, Any]:
    """Return the current app's task, importing its module if necessary."""
    if name not in newest_app().tasks:
        importlib.import_module(module)
    found: BaseTask[Any, Any] = newest_app().tasks[name]
    return found
