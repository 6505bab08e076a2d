"""What a task's code sees of its current run: `Task.request`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

from greenq.errors import Retry
from greenq.utils.log import task_log_context

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import ContextVar

    from greenq.protocol.message import TaskMessage
    from greenq.result import AsyncResult

# The context of the task running in this greenlet or thread; None outside a worker.
current_context = cast("ContextVar[Context | None]", task_log_context)


class Delivered(Protocol):
    """The part of a task's delivery that the task's code can read."""

    @property
    def delivery_info(self) -> Mapping[str, Any]:
        """Where the message came from: exchange, routing key, priority and so on."""

    @property
    def properties(self) -> Mapping[str, Any]:
        """The properties of the message's envelope."""


class AnnouncedMessage(Protocol):
    """A message already passed to the receivers of before_task_publish."""

    def sent(self) -> None:
        """Send after_task_publish."""


class Context:
    """One execution of a task, as its code sees it (`Task.request`).

    Attributes:
        id, task, args, kwargs, retries, eta, expires, root_id, parent_id, group, group_index,
            timelimit, origin, argsrepr, kwargsrepr, shadow: as in the message; times are ISO 8601
            text.
        headers: the sender's extra headers.
        delivery_info: exchange, routing_key, priority, redelivered.
        hostname: the worker's node name; None if the task was called directly.
        sent: the same as `children`, but None until a task has been sent.
        retried: the return value of ``retry(throw=False)``, or None.
        announced: the next run's message if it was passed to signal receivers, or None.
        replacement: the plan that ``replace`` has put in this task's place, or None.
        additions: the plans that ``add_to_chord`` has added, or None.
        called_directly: True if no worker is running the task.
    """

    __slots__ = (
        "_delivered", "additions", "announced", "hostname", "message", "replacement", "retried",
        "sent",
    )  # fmt: skip

    # True only in the context of a task that runs without a worker, as in Celery.
    is_eager = False
    # True if the run's states are written to the server.
    stores = True
    utc = True
    lang = "py"
    logfile: str | None = None

    def __init__(
        self,
        message: TaskMessage | None = None,
        *,
        hostname: str | None = None,
        delivered: Delivered | None = None,
    ) -> None:
        """Wrap a message and its delivery; without a message, the task was called directly."""
        self.message = message
        self.hostname = hostname
        self._delivered = delivered
        # Create this list on demand, since ten thousand empty lists take 0.7 MB.
        self.sent: list[AsyncResult[Any]] | None = None
        self.retried: Retry | None = None
        self.announced: AnnouncedMessage | None = None
        self.replacement: Any = None
        self.additions: list[Any] | None = None

    @property
    def delivery_info(self) -> Mapping[str, Any] | None:
        """Where the message came from; None if the task was called directly."""
        return None if self._delivered is None else self._delivered.delivery_info

    @property
    def properties(self) -> Mapping[str, Any] | None:
        """The properties of the message's envelope."""
        return None if self._delivered is None else self._delivered.properties

    @property
    def loglevel(self) -> int:
        """The worker's lowest log level."""
        return logging.getLogger().getEffectiveLevel()

    @property
    def time_limit(self) -> float | None:
        """The hard time limit set by the sender, in seconds."""
        return None if self.message is None else self.message.timelimit[0]

    @property
    def soft_time_limit(self) -> float | None:
        """The soft time limit set by the sender, in seconds."""
        return None if self.message is None else self.message.timelimit[1]

    @property
    def correlation_id(self) -> str | None:
        """The correlation id: the task's own id, unless the sender chose another."""
        return None if self._delivered is None else self._delivered.properties.get("correlation_id")

    @property
    def reply_to(self) -> str | None:
        """The sender's id."""
        return None if self._delivered is None else self._delivered.properties.get("reply_to")

    @property
    def stamps(self) -> dict[str, Any] | None:
        """The message's stamps: a mapping from name to value or list of values."""
        return None if self.message is None else dict(self.message.stamps)

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """The handles of the tasks that this one has sent."""
        if self.sent is None:
            self.sent = []
        return self.sent

    @property
    def taskset(self) -> str | None:
        """The group's id, under its old name."""
        found: str | None = self.group
        return found

    @property
    def called_directly(self) -> bool:
        """True if no worker is running the task."""
        return self.message is None

    @property
    def retries(self) -> int:
        """The number of times that this task has been retried."""
        return self.message.retries if self.message is not None else 0

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field or one of the sender's headers, or `default`."""
        return getattr(self, name, default)

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options of this run's message that also apply to the next run."""
        return {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chain": self.chain,
            "chord": self.chord,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "replaced_task_nesting": self.replaced_task_nesting,
            "stamped_headers": self.stamped_headers,
            "stamps": self.stamps,
            "expires": self.expires,
            "time_limit": self.time_limit,
            "soft_time_limit": self.soft_time_limit,
            "headers": self.headers,
            "retries": self.retries,
            "reply_to": self.reply_to,
        }

    def __getattr__(self, name: str) -> Any:
        """Read a field of the message, or one of the sender's headers.

        Return None when the task is called directly, as Celery's context does.
        """
        message = object.__getattribute__(self, "message")
        if message is None and not name.startswith("_"):
            return None
        try:
            return getattr(message, name)
        except AttributeError:
            if message is not None and name in message.headers:
                return message.headers[name]
        raise AttributeError(f"a task's request has no field and no header {name!r}")
