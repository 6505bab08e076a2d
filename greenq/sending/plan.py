"""What all messages of a task with the same options share: destination, text and retries."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

from greenq.errors import (
    AccessRefused,
    ConfigError,
    EncodeError,
    OperationalError,
    Problem,
    QueueFull,
    ServerError,
    Unroutable,
)
from greenq.protocol.message import TaskMessage, parse_time
from greenq.protocol.template import Template
from greenq.sending.arguments import explained
from greenq.sending.options import check_send_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.config.settings import RetryPolicy, TaskConfig
    from greenq.sending.announced import Announced
    from greenq.sending.routing import Router

# The maximum number of plans that are kept for later sends.
KEPT_COUNT = 256

# Options that fill gaps in a template.
OF_EACH = ("task_id", "root_id", "parent_id", "group_index")

# Send options that affect the envelope, not the task.
_PROPERTIES = ("correlation_id", "reply_to", "delivery_mode")


class SendPolicy(NamedTuple):
    """How many times to retry sending (None means no limit), and the pauses, in seconds."""

    max_retries: int | None
    interval_start: float
    interval_step: float
    interval_max: float

    def allows(self, tries: int, error: OperationalError) -> bool:
        """Return whether to try again after an error and `tries` retries."""
        refused = isinstance(error, (AccessRefused, QueueFull, Unroutable)) or (
            isinstance(error, ServerError) and not error.passes
        )
        return not refused and (self.max_retries is None or tries < self.max_retries)

    def pause_s(self, tries: int) -> float:
        """Return the pause after `tries` retries."""
        return min(self.interval_start + tries * self.interval_step, self.interval_max)

    def total_s(self) -> float:
        """Return the sum of all pauses."""
        if self.max_retries is None:
            return math.inf
        return sum(self.pause_s(tries) for tries in range(self.max_retries))


class Encoding(TypedDict):
    """The encoding of a message, as `Template` takes it."""

    serializer: str
    compression: str | None
    max_bytes: int | None


class SendPlan(NamedTuple):
    """The data common to all messages of a task that are sent with the same options.

    If `broadcast` is true, the messages are published instead of pushed. The template has been
    created from `message`, `encoding` and `properties`.
    """

    queue: str
    broadcast: bool
    priority: int
    exchange: str
    routing_key: str
    policy: SendPolicy | None
    message: TaskMessage
    encoding: Encoding
    properties: Mapping[str, Any]
    template: Template

    @property
    def place(self) -> tuple[object, ...]:
        """The destination of the messages; plans with the same destination can share a push."""
        exchange = self.exchange, self.routing_key
        return self.queue, self.broadcast, self.priority, exchange, self.policy

    def changed(self, announced: Announced) -> SendPlan:
        """Return the plan with the changes that signal receivers have made."""
        policy = announced.retry_policy
        known = {name: policy[name] for name in SendPolicy._fields if name in policy}
        return self._replace(
            priority=announced.priority, policy=self.policy and self.policy._replace(**known)
        )

    def explained(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], error: EncodeError
    ) -> EncodeError:
        """Return an encoding error that names the task and the value that cannot be encoded."""
        if not isinstance(args, (list, tuple)) or not hasattr(kwargs, "keys"):
            return error
        return explained(self.message.task, args, kwargs, self.encoding["serializer"], error)


class Planner:
    """Makes plans from the settings, the routes and the options given when sending."""

    def __init__(self, config: TaskConfig, router: Router) -> None:
        """Use the defaults of `config`."""
        self._config = config
        self._router = router
        self._zone = ZoneInfo(config.timezone)
        self.origin = f"gen{os.getpid()}@{socket.gethostname()}"
        # Redis needs no reply queue, but Celery's readers expect the field.
        self.reply_to = str(uuid.uuid4())

    def make(self, task: str, options: Mapping[str, Any]) -> SendPlan:
        """Return a plan; countdowns and expiries are relative to now."""
        options = check_send_options(task, options)
        now = datetime.now(UTC)
        if not self._router.asks:
            options = self._router.merge(self._router.route(task), options)
        target = self._router.target(options)
        properties = {"reply_to": self.reply_to} | {
            name: options[name] for name in _PROPERTIES if options.get(name) is not None
        }
        if target.queue and not self._config.task_create_missing_queues:
            self._check_declared(task, target.queue)
        expires, expiration = self._expires(options.get("expires"), now)
        message = TaskMessage(
            task=task,
            id="",
            shadow=options.get("shadow"),
            eta=self._eta(options.get("countdown"), options.get("eta"), now),
            expires=expires,
            group=options.get("group_id"),
            retries=options.get("retries", 0),
            timelimit=(options.get("time_limit"), options.get("soft_time_limit")),
            argsrepr=options.get("argsrepr") or None,
            kwargsrepr=options.get("kwargsrepr") or None,
            origin=self.origin,
            ignore_result=options.get("ignore_result"),
            headers=dict(options.get("headers") or {}),
            replaced_task_nesting=options.get("replaced_task_nesting") or 0,
            stamped_headers=listed(options.get("stamped_headers")),
            stamps=options.get("stamps") or {},
            callbacks=listed(options.get("link")),
            errbacks=listed(options.get("link_error")),
            chain=listed(options.get("chain")),
            chord=options.get("chord"),
        )
        priority = options.get("priority")
        if priority is None:
            priority = self._config.task_default_priority or 0
        encoding = Encoding(
            serializer=options.get("serializer") or self._config.task_serializer,
            compression=options.get("compression") or self._config.task_compression,
            max_bytes=self._config.task_max_body_bytes,
        )
        properties |= {
            "queue": target.queue,
            "exchange": target.exchange,
            "routing_key": target.routing_key,
            "priority": priority,
            "expiration": expiration,
        }
        template = Template(message, **encoding, **properties)
        policy = self._policy(options)
        return SendPlan(
            target.queue, target.is_fanout, priority, target.exchange, target.routing_key, policy,
            message, encoding, properties, template,
        )  # fmt: skip

    def _check_declared(self, task: str, queue: str) -> None:
        known = self._router.queues
        if queue not in known:
            reason = f"task {task} goes there, but task_queues has only {', '.join(known)}"
            raise ConfigError([Problem("queue", queue, reason)])

    def _policy(self, options: Mapping[str, Any]) -> SendPolicy | None:
        """Return the retry policy for sending a message; None means no retries."""
        retry = options.get("retry")
        if not (self._config.task_publish_retry if retry is None else retry):
            return None
        given = options.get("retry_policy") or {}
        return self.default_policy._replace(**given)

    @property
    def default_policy(self) -> SendPolicy:
        """The retry policy from the settings."""
        default: RetryPolicy = self._config.task_publish_retry_policy
        return SendPolicy(*(getattr(default, name) for name in SendPolicy._fields))

    def _eta(
        self, countdown: float | None, eta: datetime | str | None, now: datetime
    ) -> str | None:
        if countdown:
            return (now.astimezone(self._zone) + timedelta(seconds=countdown)).isoformat()
        return eta.isoformat() if isinstance(eta, datetime) else eta

    def _expires(
        self, expires: float | datetime | str | None, now: datetime
    ) -> tuple[str | None, str | None]:
        """Return the expiry, as a time for the header and as milliseconds for the property."""
        if expires is None:
            return None, None
        if isinstance(expires, (int, float)):
            moment = now + timedelta(seconds=expires)
            text = moment.astimezone(self._zone).isoformat()
        else:
            text = expires.isoformat() if isinstance(expires, datetime) else expires
            moment = parse_time(text)
        left_ms = max(0, round((moment - now).total_seconds() * 1000))
        return text, str(left_ms)


def listed(value: Any) -> list[Any] | None:
    """Return one signature, or several, as a list; None if there are none."""
    if not value:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]
