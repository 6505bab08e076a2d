"""Signals, under Celery's names: they call functions of the app when certain events happen.

Code on the path of a task tests `Signal.receivers` before it calls `send`, so a signal without
receivers costs only this test.
"""

from __future__ import annotations

import _thread
import inspect
import logging
import time
import weakref
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from greenq.utils.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

_log = logging.getLogger(__name__)

# The pauses between calls of a receiver that is called until it succeeds (`retry`).
_RETRY_FIRST_S = 2.0
_RETRY_MAX_S = 30.0


class _ConnectedReceiver:
    """The connection of a receiver to a signal.

    Attributes:
        find: returns the receiver, or None if it has been garbage-collected.
        sender: the only sender that the receiver listens to; None means all.
        uid: the `dispatch_uid`, or None.
        retry: whether to call the receiver until it succeeds.
    """

    __slots__ = ("find", "retry", "sender", "uid")

    def __init__(
        self, find: Callable[[], Any], sender: object, uid: Hashable | None, retry: bool
    ) -> None:
        self.find = find
        self.sender = sender
        self.uid = uid
        self.retry = retry

    def is_of(self, receiver: object, sender: object, uid: Hashable | None) -> bool:
        """Return whether this connection has this sender and this uid, or receiver if no uid."""
        same = self.find() == receiver if uid is None else self.uid == uid
        return same and (self.sender is sender or bool(self.sender == sender))

    def __repr__(self) -> str:
        return f"<receiver {self.find()!r}>"


class Signal:
    """An event in the program, and the functions that are called when it happens.

    Attributes:
        name: the name under which the signal is imported, or ``app.name`` for a signal of an app.
        providing_args: the names of its arguments, apart from ``signal`` and ``sender``.
        receivers: the connections, in the order in which they were made.
    """

    __slots__ = ("__weakref__", "_lock", "name", "providing_args", "receivers")

    def __init__(
        self, providing_args: Iterable[str] | None = None, *, name: str | None = None
    ) -> None:
        """Create a signal without receivers."""
        self.name = name
        self.providing_args = frozenset(providing_args or ())
        # Each change replaces the list and never modifies it, so a `send` iterates over the list it
        # found.
        self.receivers: list[_ConnectedReceiver] = []
        # A real lock, even in a patched process: any thread may connect a receiver, and a collected
        # receiver is removed in whichever thread the garbage collector runs. Code that holds the
        # lock never waits.
        self._lock = _thread.RLock()

    def connect(
        self,
        receiver: Any = None,
        sender: object = None,
        weak: bool = True,
        dispatch_uid: Hashable | None = None,
        retry: bool = False,
    ) -> Any:
        """Have `receiver` called when the signal is sent: ``@signal.connect``, or with arguments.

        Args:
            receiver: a function that takes keyword arguments; omitted in a decorator with
                arguments.
            sender: call the receiver only for this sender, compared with ``is`` and ``==``.
            weak: keep only a weak reference, so a local function or a lambda soon disappears.
            dispatch_uid: connect only once under this id.
            retry: if the receiver raises an exception, call it again, with pauses, until it
                succeeds. The code that sends the signal waits in the meantime. The reference is
                then never weak.

        Raises:
            ValueError: the receiver does not take keyword arguments.
            TypeError: the receiver cannot be called, or cannot be referenced weakly.
        """
        if receiver is not None and not callable(receiver) and sender is None:
            # ``@signal.connect("proj.tasks.add")``.
            receiver, sender = None, receiver
        connect = partial(
            self._connect, sender=sender, weak=weak, dispatch_uid=dispatch_uid, retry=retry
        )
        return connect if receiver is None else connect(receiver)

    def _connect(
        self, receiver: Any, *, sender: object, weak: bool, dispatch_uid: Any, retry: bool
    ) -> Any:
        _check(receiver, self)
        find = self._weakly(receiver) if weak and not retry else lambda: receiver
        with self._lock:
            if not any(each.is_of(receiver, sender, dispatch_uid) for each in self.receivers):
                self.receivers = [
                    *self.receivers,
                    _ConnectedReceiver(find, sender, dispatch_uid, retry),
                ]
        return receiver

    def _weakly(self, receiver: Any) -> Callable[[], Any]:
        kind = weakref.WeakMethod if isinstance(receiver, MethodType) else weakref.ref
        try:
            return kind(receiver, self._forget)
        except TypeError:
            raise TypeError(
                f"{receiver!r} cannot be referenced weakly: connect it with weak=False"
            ) from None

    def _forget(self, reference: object) -> None:
        """Remove a receiver that has been collected."""
        with self._lock:
            self.receivers = [each for each in self.receivers if each.find is not reference]

    def disconnect(
        self,
        receiver: Any = None,
        sender: object = None,
        weak: bool | None = None,
        dispatch_uid: Hashable | None = None,
    ) -> bool:
        """Disconnect a receiver; return whether it was connected.

        Args:
            receiver: as given to `connect`; may be omitted if `dispatch_uid` is given.
            sender: as given to `connect`.
            weak: accepted for compatibility with Celery; has no effect.
            dispatch_uid: as given to `connect`.
        """
        with self._lock:
            before = self.receivers
            self.receivers = [
                each for each in before if not each.is_of(receiver, sender, dispatch_uid)
            ]
            return len(self.receivers) < len(before)

    def has_listeners(self, sender: object = None) -> bool:
        """Return whether any receiver is called when `sender` sends the signal."""
        return any(
            each.sender is None or each.sender == sender
            for each in self.receivers
            if each.find() is not None
        )

    def send(self, sender: object = None, **named: Any) -> list[tuple[Any, Any]]:
        """Call the receivers of `sender`, in the order in which they were connected.

        If a receiver raises an `Exception`, it is logged and returned as the receiver's response.
        Other exceptions, such as SystemExit, propagate.

        Returns:
            Each receiver with its return value or exception.
        """
        responses: list[tuple[Any, Any]] = []
        for each in self.receivers:
            if each.sender is not None and each.sender != sender:
                continue
            receiver = each.find()
            if receiver is None:
                continue
            try:
                if each.retry:
                    response = self._call_until_done(receiver, sender, named)
                else:
                    response = receiver(signal=self, sender=sender, **named)
            except Exception as exc:
                _log.exception("receiver %r of signal %s failed", receiver, self.name)
                response = exc
            responses.append((receiver, response))
        return responses

    # `send_robust` is Django's name. In Celery, too, both names mean the same.
    send_robust = send

    def _call_until_done(self, receiver: Any, sender: object, named: dict[str, Any]) -> Any:
        pauses = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S)
        while True:
            try:
                return receiver(signal=self, sender=sender, **named)
            except Exception as exc:
                pause_s = pauses.next_s()
                _log.error(
                    "receiver %r of signal %s failed (%r); it will be called again in %.1f s",
                    receiver, self.name, exc, pause_s,
                )  # fmt: skip
            time.sleep(pause_s)

    def __repr__(self) -> str:
        """Show the name and the arguments."""
        return f"<Signal {self.name}: {', '.join(sorted(self.providing_args))}>"


def _check(receiver: Any, signal: Signal) -> None:
    """Raise an error if `receiver` cannot be called with a signal's arguments."""
    if not callable(receiver):
        raise TypeError(f"a receiver of signal {signal.name} must be a function, not {receiver!r}")
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        # Some functions written in C have no signature.
        return
    if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters):
        raise ValueError(
            f"{receiver!r} must accept keyword arguments (**kwargs) to receive signal "
            f"{signal.name}: later versions may add arguments"
        )


def _signal(name: str, *arguments: str) -> Signal:
    return Signal(arguments, name=name)


# --- sending a task ---------------------------------------------------------------------------

before_task_publish: Final = _signal(
    "before_task_publish",
    "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy",
)  # fmt: skip
after_task_publish: Final = _signal(
    "after_task_publish", "body", "headers", "exchange", "routing_key"
)

# --- a task in a worker ---------------------------------------------------------------------------

task_received: Final = _signal("task_received", "request")
task_prerun: Final = _signal("task_prerun", "task_id", "task", "args", "kwargs")
task_postrun: Final = _signal(
    "task_postrun", "task_id", "task", "args", "kwargs", "retval", "state"
)
task_success: Final = _signal("task_success", "result", "runtime")
task_retry: Final = _signal("task_retry", "request", "reason", "einfo")
task_failure: Final = _signal(
    "task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo"
)
task_internal_error: Final = _signal(
    "task_internal_error",
    "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo",
)  # fmt: skip
task_revoked: Final = _signal("task_revoked", "request", "terminated", "signum", "expired")
task_rejected: Final = _signal("task_rejected", "message", "exc")
task_unknown: Final = _signal("task_unknown", "message", "exc", "name", "id")

# --- a worker -------------------------------------------------------------------------------------

import_modules: Final = _signal("import_modules")
celeryd_init: Final = _signal("celeryd_init", "instance", "conf", "options")
worker_init: Final = _signal("worker_init")
celeryd_after_setup: Final = _signal("celeryd_after_setup", "instance", "conf")
worker_process_init: Final = _signal("worker_process_init")
worker_ready: Final = _signal("worker_ready")
heartbeat_sent: Final = _signal("heartbeat_sent")
worker_shutting_down: Final = _signal("worker_shutting_down", "sig", "how", "exitcode")
worker_process_shutdown: Final = _signal("worker_process_shutdown", "pid", "exitcode")
worker_shutdown: Final = _signal("worker_shutdown")

# --- periodic tasks -------------------------------------------------------------------------------

beat_init: Final = _signal("beat_init")
beat_embedded_init: Final = _signal("beat_embedded_init")

# --- logging --------------------------------------------------------------------------------------

_OF_LOGGING = ("loglevel", "logfile", "format", "colorize")
setup_logging: Final = _signal("setup_logging", *_OF_LOGGING)
after_setup_logger: Final = _signal("after_setup_logger", "logger", *_OF_LOGGING)
after_setup_task_logger: Final = _signal("after_setup_task_logger", "logger", *_OF_LOGGING)

_POOL = "there is one kind of pool, and it has no signals: use worker_ready and task_prerun"
_NOT_HERE = {
    **dict.fromkeys(
        (
            "eventlet_pool_apply", "eventlet_pool_postshutdown", "eventlet_pool_preshutdown",
            "eventlet_pool_started",
        ),
        _POOL,
    ),
    "task_sent": "use after_task_publish, as Celery recommends",
    "user_preload_options": (
        "an app's own options belong to `greenq worker`: app.user_options['worker']"
    ),
    "worker_before_create_process": "tasks run as greenlets, not in child processes",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Explain why greenq does not have one of Celery's signals."""
    if name in _NOT_HERE:
        raise ImportError(f"greenq has no signal {name!r}: {_NOT_HERE[name]}", name=__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
