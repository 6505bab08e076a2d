"""All exceptions of greenq, in one tree.

Each docstring says when the exception is raised. The facts are attributes, and the message is built
from them. Exceptions with a counterpart in Celery travel on the wire under Celery's module and name
(`CELERY_NAMES`), so that a Celery client sees the class it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class GreenqError(Exception):
    """The base of all errors raised by greenq."""


# --- the user's own setup ------------------------------------------------------------------------


class Problem(NamedTuple):
    """A single problem in the settings."""

    field: str
    value: object
    reason: str


class ConfigError(GreenqError):
    """Settings are wrong; the message lists all problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Build the message from `problems`, one line each; values must be free of secrets."""
        self.problems = tuple(problems)
        lines = [f"{p.field} = {p.value!r}: {p.reason}" for p in self.problems]
        super().__init__("wrong settings\n  " + "\n  ".join(lines))


class UnknownSetting(ConfigError, AttributeError, KeyError):
    """A setting that does not exist was read, as an attribute or as a key."""

    def __init__(self, setting: str, reason: str) -> None:
        """Build the message from the setting's name and the `reason`."""
        super().__init__([Problem(setting, None, reason)])
        self.name = setting
        # No value was given, so none is shown.
        self.args = (f"no setting {setting!r}: {reason}",)

    # KeyError would show the text as a string literal, in quotes.
    __str__ = Exception.__str__


class WrongOption(GreenqError, TypeError, ValueError):
    """An option of a task, or an option for sending it, is invalid; nothing was sent."""

    def __init__(self, task: str, option: str, value: object, reason: str) -> None:
        """Build the message; `value` must be free of secrets."""
        self.task = task
        self.option = option
        super().__init__(f"task {task}: {option} = {value!r}: {reason}")


class AppNotFound(GreenqError):
    """The app named by ``-A`` cannot be imported or is not a greenq app."""


class EmbeddedServerError(GreenqError):
    """The embedded Valkey is not installed or did not start."""


class SupervisorError(GreenqError):
    """supervisord is missing, does not respond, or refuses a request."""


class ImportedTooEarly(GreenqError):
    """Modules had imported blocking functions of the standard library before gevent patched it."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Build the message from the names of these `modules`."""
        self.modules = tuple(modules)
        named = ", ".join(self.modules)
        super().__init__(
            f"{named} imported the standard library's blocking calls before greenq could patch "
            "them: start with `greenq worker`, or call greenq.hub.patch() before all other imports"
        )


# --- invalid bytes ------------------------------------------------------------------------


class ProtocolError(GreenqError):
    """A message, body or result does not follow the wire format."""


class DecodeError(ProtocolError):
    """Bytes cannot be read; `raw` contains them as received."""

    def __init__(self, reason: str, raw: bytes = b"") -> None:
        """Store the `reason` and the raw bytes; the message does not contain the bytes."""
        self.reason = reason
        self.raw = raw
        super().__init__(reason)


class EncodeError(ProtocolError):
    """A value cannot be serialized; nothing was sent."""


class ContentDisallowed(ProtocolError):
    """A body's content type is not in ``accept_content``."""

    def __init__(self, content_type: str, accept: Sequence[str] = ()) -> None:
        """Build the message from the refused type and the accepted ones."""
        self.content_type = content_type
        self.accept = tuple(accept)
        allowed = ", ".join(self.accept) or "nothing"
        super().__init__(
            f"content type {content_type!r} is not accepted (accepted: {allowed}); "
            "add its serializer to accept_content if you trust the senders"
        )


class SecurityError(ProtocolError):
    """A stored exception names something that is not an exception class."""


class SignatureError(ProtocolError):
    """A message or result lacks the valid signature that the settings require."""


# --- Redis ---------------------------------------------------------------------------------------


class OperationalError(GreenqError):
    """The server cannot be reached or has refused a command; the base of all transport errors."""


class ConnectFailed(OperationalError):
    """No connection could be made."""


class ConnectionLost(OperationalError):
    """An established connection broke; the command may or may not have been carried out."""


class TransportTimeout(ConnectionLost):
    """No reply came in time; the command may or may not have been carried out."""


class AccessRefused(OperationalError):
    """The server does not accept the user name or password, or the user lacks a permission."""


class Unroutable(OperationalError):
    """No queue is bound to the exchange with the routing key, or no worker listens to it."""


class QueueFull(OperationalError):
    """The queue already holds as many messages as ``max_length`` allows; nothing was pushed."""


class NotAllSent(GreenqError):
    """A bulk send ended early; ``__cause__`` is the reason.

    Attributes:
        ids: the ids of the tasks that were sent, in the order of the items.
        unknown: the ids of the next items, which may or may not have arrived, since a reply was
            lost.
    """

    def __init__(
        self, task: str, ids: Sequence[str], unknown: Sequence[str], reason: Exception
    ) -> None:
        """Build the message from the number of tasks sent and the reason why sending stopped."""
        self.ids = ids
        self.unknown = unknown
        then = len(ids)
        perhaps = f", the next {len(unknown)} may have been" if unknown else ""
        super().__init__(
            f"task {task}: {then} items were sent{perhaps}, and no others; at item {then} "
            f"(counting from 0): {type(reason).__name__}: {reason}"
        )


_CLUSTER = (
    "the server is part of a cluster, which is not supported yet: use a server "
    "with `cluster-enabled no`"
)

# Error replies that do not concern the command itself but say that the server is temporarily
# unavailable.
_REFUSALS = {
    "OOM": "the server's memory is full (maxmemory): it accepts no more data until some is freed",
    "READONLY": "the server is a read-only replica: it accepts no writes until it is the primary",
    "LOADING": "the server is loading its data",
    "BUSY": "the server is busy with a long-running script (SCRIPT KILL ends it)",
    "MASTERDOWN": "the server is a replica that has lost its primary",
    "MISCONF": "the server cannot save its data to disk, and accepts no writes until it can",
    "NOREPLICAS": "the server has too few replicas (min-replicas-to-write)",
    "FORGOTTEN": "the server has lost its data and this worker must register its messages again",
    "LAPSED": "the lease of the worker that held these messages has ended, or was renewed",
    "CLOSED": "this worker has left and takes no more messages",
    "TRYAGAIN": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
}


class ServerError(OperationalError):
    """The server replied to a command with an error.

    Attributes:
        command: the command's name, without arguments.
        reply: the server's reply, starting with its code.
        passes: whether retrying the same command later can succeed.
    """

    def __init__(self, command: str, reply: str) -> None:
        """Store the facts; the message also explains the reply in words if it is known."""
        self.command = command
        self.reply = reply
        meaning = _REFUSALS.get(reply.split(" ", 1)[0])
        self.passes = meaning is not None
        super().__init__(f"{meaning} ({command}: {reply})" if meaning else f"{command}: {reply}")


# --- tasks and results ---------------------------------------------------------------------------


class NotRegistered(GreenqError, KeyError):
    """A task name is not registered in this app."""

    def __str__(self) -> str:
        """Return the task's name, as Celery's error does."""
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(GreenqError):
    """Two different functions have the same task name."""


class ResultTimeout(GreenqError, TimeoutError):
    """``get(timeout=…)`` received no result in time.

    Attributes:
        task_id: the task's id.
        waited_s: how long the caller waited.
        others: how many of the other awaited tasks have not ended either.
    """

    def __init__(self, task_id: str, waited_s: float, others: int = 0) -> None:
        """Build the message from the task's id and the length of the wait."""
        self.task_id = task_id
        self.waited_s = waited_s
        self.others = others
        more = f", nor of {others} others," if others else ""
        super().__init__(f"no result of task {task_id}{more} after {waited_s:g} s")


class IncompleteStream(GreenqError):
    """The tree of a task's children cannot be followed yet, since one of them has not ended."""


class ResultsDisabled(GreenqError):
    """A result was requested, but ``result_backend`` is ``disabled://``."""


class RemoteTraceback(GreenqError):
    """A worker's traceback, attached as the cause of the exception that is raised here."""

    @classmethod
    def of(cls, text: str | None) -> RemoteTraceback | None:
        """Wrap a traceback's text; return None if there is no text."""
        return cls(f"\n\nin the worker:\n{text}") if text else None


class RemoteError(GreenqError):
    """A stand-in for a task's exception that cannot be rebuilt here.

    The original exception's class is not imported here, its constructor takes other arguments, or
    it is not an `Exception` (but a `SystemExit`, for example).

    Attributes:
        type: the module and the name of the class; for a builtin, only its name.
        message: the exception's text.
        traceback: the worker's traceback as text, or None.
        stored: the exception as stored in the result; kept in case a task raises this error again.
    """

    def __init__(self, type: str, message: str, traceback: str | None = None) -> None:
        """Store the class, the text and the traceback."""
        self.type = type
        self.message = message
        self.traceback = traceback
        self.stored: Mapping[str, Any] | None = None
        super().__init__(type, message, traceback)

    def __str__(self) -> str:
        """Return the class and the text, as at the end of a traceback."""
        return f"{self.type}: {self.message}" if self.message else self.type


class MaxRetriesExceededError(GreenqError):
    """A task asked for one more retry than ``max_retries`` allows."""


class TaskRevokedError(GreenqError):
    """A task was revoked or terminated, or it expired, before it could finish."""


class ChordError(GreenqError):
    """A member of a chord's header failed, so its body cannot run."""


class WorkerLostError(GreenqError):
    """The worker that was running a task died."""


class WorkerFault(GreenqError):
    """A part of the worker itself, not a task, has failed."""


class TimeLimitExceeded(GreenqError):
    """A task ran beyond its hard time limit."""


class SoftTimeLimitExceeded(GreenqError):
    """A task ran beyond its soft time limit; the task may catch this to clean up."""


class TaskTerminated(BaseException):
    """Thrown into the code of a task that must end; the code should let it propagate.

    Attributes:
        reason: becomes the task's result.
        signum: the name of the signal that was requested; None for a time limit.
    """

    def __init__(self, reason: GreenqError, signum: str | None = None) -> None:
        """Store the reason and the name of the signal."""
        self.reason = reason
        self.signum = signum
        super().__init__(reason, signum)


class TaskPredicate(GreenqError):
    """The base of the exceptions by which a task controls its worker; none of them is a failure."""


class Retry(TaskPredicate):
    """Raised by ``Task.retry``: this run ends, and another one follows.

    Attributes:
        message: the reason in words, or None.
        exc: the exception that made the task retry, or None.
        when: the seconds until the retry, the retry's time as an aware datetime, or None.
        next_run: args, kwargs and send options of the next run; None if there is nothing to send.
    """

    def __init__(
        self, message: str | None = None, exc: BaseException | None = None, when: object = None
    ) -> None:
        """Store the values; Celery passes them in this order when it rebuilds the exception."""
        self.message = message
        self.exc = exc
        self.when = when
        self.next_run: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]] | None = None
        super().__init__(message, exc, when)

    def __str__(self) -> str:
        """Build the message from the time of the retry and its reason, if known."""
        when = f"in {self.when:g}s" if isinstance(self.when, (int, float)) else f"at {self.when}"
        why = self.message or (repr(self.exc) if self.exc is not None else "")
        return f"Retry {when}: {why}" if why else f"Retry {when}"


class Ignore(TaskPredicate):
    """Raised by a task whose message is to be acknowledged without storing a result."""


class Reject(TaskPredicate):
    """Raised by a task to reject its message.

    Attributes:
        reason: the reason in words, or None.
        requeue: True requeues the message; False stores FAILURE and, unless the message was
            acknowledged early, makes it a dead letter.
    """

    def __init__(self, reason: object = None, requeue: bool = False) -> None:
        """Store both values; Celery passes them in this order when it rebuilds the exception."""
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)


# A mapping from each class to the (module, name) that represents it on the wire. Source: wire
# format, section 6.3.
CELERY_NAMES: dict[type[BaseException], tuple[str, str]] = {
    ChordError: ("celery.exceptions", "ChordError"),
    Ignore: ("celery.exceptions", "Ignore"),
    MaxRetriesExceededError: ("celery.exceptions", "MaxRetriesExceededError"),
    NotRegistered: ("celery.exceptions", "NotRegistered"),
    Reject: ("celery.exceptions", "Reject"),
    Retry: ("celery.exceptions", "Retry"),
    SoftTimeLimitExceeded: ("billiard.exceptions", "SoftTimeLimitExceeded"),
    TaskRevokedError: ("celery.exceptions", "TaskRevokedError"),
    TimeLimitExceeded: ("billiard.exceptions", "TimeLimitExceeded"),
    WorkerLostError: ("billiard.exceptions", "WorkerLostError"),
}
