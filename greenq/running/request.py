"""One delivery in this worker: a message, its task, and its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.errors import TaskTerminated
from greenq.protocol.envelope import unwrap
from greenq.protocol.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.hub import Greenlet
    from greenq.protocol.message import TaskMessage
    from greenq.task import BaseTask
    from greenq.transport.fetch import Delivery


class Request:
    """A reserved message on its way through the worker.

    It is settled exactly once: the message is acknowledged, or moved elsewhere. Code that settles
    it calls `settle` first, so a task that ends while the shutdown requeues its message is not
    settled twice. A broadcast message has no reservation and no tag: it is settled from the
    beginning.

    Attributes:
        delivery: tag, queue and raw bytes.
        message: the decoded message.
        task: the task to call.
        acks_late: whether the message is acknowledged after the run, not before.
        is_step: whether the message has successors or belongs to a chord.
        taken_s: the time just before the take, in seconds of the clock `WorkerState.now_s`.
        greenlet: the greenlet that runs it; None before and after the run.
        started_s: when the run started, in monotonic seconds; None until then.
        hub_s: how many seconds its greenlet has held the hub, if this is counted.
        in_code: None until the task's own code runs, True while it runs, and False afterwards.
        killed: the exception thrown into its code to end it, or to be thrown when the code begins;
            otherwise None.
    """

    __slots__ = (
        "acks_late", "delivery", "greenlet", "hub_s", "in_code", "is_step", "killed", "message",
        "settled", "started_s", "taken_s", "task",
    )  # fmt: skip

    def __init__(
        self,
        delivery: Delivery,
        message: TaskMessage,
        task: BaseTask[..., Any],
        *,
        acks_late: bool,
        is_step: bool = False,
        taken_s: float = 0.0,
    ) -> None:
        """Wrap one admitted delivery."""
        self.delivery = delivery
        self.message = message
        self.task = task
        self.acks_late = acks_late
        self.is_step = is_step
        self.taken_s = taken_s
        self.greenlet: Greenlet | None = None
        self.started_s: float | None = None
        self.hub_s = 0.0
        self.in_code: bool | None = None
        self.killed: TaskTerminated | None = None
        self.settled = False

    def settle(self) -> bool:
        """Claim the right to acknowledge or move the message; only the first caller gets True."""
        if self.settled:
            return False
        self.settled = True
        return True

    def throw(self, *exc: Any) -> None:
        """Interrupt the run if it is in progress; called by timeouts that the run started."""
        if self.greenlet is not None:
            self.greenlet.throw(*exc)

    def interrupt(self, exc: BaseException) -> bool:
        """Throw `exc` into the task's own code; return False if that is not running. Hub only."""
        if not self.in_code or self.greenlet is None:
            return False
        if self.killed is None and isinstance(exc, TaskTerminated):
            self.killed = exc
        self.greenlet.throw(exc)
        return True

    @property
    def id(self) -> str:
        """The task's id."""
        return self.message.id

    @property
    def name(self) -> str:
        """The task's name, as sent."""
        return self.message.task

    @property
    def args(self) -> Sequence[Any]:
        """The positional arguments."""
        return self.message.args

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments."""
        return self.message.kwargs

    # Celery has two names each for the id and the name.
    task_id, task_name = id, name

    @property
    def properties(self) -> dict[str, Any]:
        """The properties of the message's envelope, parsed on each use; few tasks need them."""
        return unwrap(self.delivery.raw).properties

    @property
    def delivery_info(self) -> dict[str, Any]:
        """The message's origin, as shown to task code and by remote control."""
        properties = self.properties
        info = properties.get("delivery_info") or {}
        return {
            "exchange": info.get("exchange", ""),
            "routing_key": info.get("routing_key", self.delivery.queue),
            "priority": properties.get("priority", 0),
            "redelivered": self.message.redelivered,
        }

    def extended(self, hostname: str) -> dict[str, object]:
        """Return the fields that ``result_extended`` adds to a state stored by `hostname`."""
        message = self.message
        return {
            "name": message.task,
            "args": message.args,
            "kwargs": message.kwargs,
            "worker": hostname,
            "retries": message.retries,
            "queue": self.delivery_info["routing_key"],
        }

    def __str__(self) -> str:
        """Return the task's name and id, as in log lines."""
        message = self.message
        return f"{printable(message.shadow or message.task)}[{printable(message.id)}]"
