"""Remote control for programs: `app.control`, with Celery's names and reply formats.

Every method works with both Celery and greenq workers unless it says otherwise. A call returns as
soon as all workers have replied; `timeout` matters only if some do not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from greenq.config.queues import Broadcast
from greenq.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from greenq.transport.transport import Connected


TERM = "SIGTERM"

# Node names, or one name; None means all.
Nodes = Sequence[str] | str | None
Replies = list[dict[str, Any]]
Callback = Callable[[dict[str, Any]], object]


class Options(TypedDict, total=False):
    """Further options of a broadcast: its recipients, and what happens to the replies.

    Attributes:
        pattern: a pattern that node names must match.
        matcher: the type of the pattern: ``glob`` or ``pcre``.
        reply: whether to wait for replies.
        timeout: seconds to wait.
        limit: the maximum number of replies to wait for.
        callback: called with each reply as it arrives.
    """

    pattern: str | None
    matcher: str | None
    reply: bool
    timeout: float
    limit: int | None
    callback: Callback | None


class Control:
    """Commands to the workers of an app. Switches: yes, all methods.

    The methods return None or, with ``reply=True``, a list of ``{node name: reply}``.

    Raises:
        EncodeError: an argument cannot be serialized; nothing was sent.
        OperationalError: the server could not be reached.
    """

    def __init__(self, app: Connected) -> None:
        """Control the workers of `app`; no connection is opened yet."""
        self._app = app

    @property
    def mailbox(self) -> Mailbox:
        """The mailbox that sends requests and reads replies."""
        task = self._app.config.task
        transport = self._app.transport
        return Mailbox(
            transport.client,
            transport.keys,
            accept=task.accept_content,
            serializer=task.task_serializer,
            clock=self._app.clock,
            signer=transport.signer,
        )

    def inspect(
        self,
        destination: Nodes = None,
        timeout: float = 1.0,
        *,
        limit: int | None = None,
        callback: Callback | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Return an object that queries workers; the options are those of `broadcast`."""
        return Inspect(
            self,
            destination,
            timeout,
            limit=limit,
            callback=callback,
            pattern=pattern,
            matcher=matcher,
        )

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Nodes = None,
        *,
        reply: bool = False,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callback | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra: Any,
    ) -> Replies | None:
        """Send a command to all workers, or to some.

        Args:
            command: the name of a built-in command or of a command that a program has added.
            arguments: the command's arguments by name.
            destination: node names, or one name; None means all.
            reply: whether to wait for replies.
            timeout: seconds to wait.
            limit: the maximum number of replies to wait for.
            callback: called with each reply, ``{node name: reply}``, as it arrives.
            pattern: a pattern that node names must match.
            matcher: the type of the pattern: ``glob`` or ``pcre``.
            extra: further arguments of the command.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached.
        """
        arguments = {**(arguments or {}), **extra}
        nodes = [destination] if isinstance(destination, str) else destination
        if not reply:
            self.mailbox.tell(
                command, arguments, destination=nodes, pattern=pattern, matcher=matcher
            )
            return None
        replies: Replies = []

        def collect(node: str, answer: Any) -> None:
            replies.append({node: answer})
            if callback is not None:
                callback(replies[-1])

        self.mailbox.ask(
            command,
            arguments,
            destination=nodes,
            pattern=pattern,
            matcher=matcher,
            timeout_s=timeout,
            limit=limit,
            on_reply=collect,
        )
        return replies

    # --- workers ----------------------------------------------------------------------------------

    def ping(
        self,
        destination: Nodes = None,
        **options: Unpack[Options],
    ) -> Replies:
        """Return the replies of the workers that answer: ``[{node name: {"ok": "pong"}}]``."""
        asked: Options = {**options, "reply": True}
        return self.broadcast("ping", {}, destination, **asked) or []

    def shutdown(self, destination: Nodes = None, **options: Unpack[Options]) -> Replies | None:
        """Make workers finish their tasks and stop; they never reply."""
        return self.broadcast("shutdown", {}, destination, **options)

    def drain(self, destination: Nodes = None, **options: Unpack[Options]) -> Replies | None:
        """Make greenq workers finish their tasks and take no more; Celery has no such command."""
        return self.broadcast("drain", {}, destination, **options)

    def heartbeat(self, destination: Nodes = None, **options: Unpack[Options]) -> Replies | None:
        """Make workers send a heartbeat now."""
        return self.broadcast("heartbeat", {}, destination, **options)

    def enable_events(
        self, destination: Nodes = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Make workers send events about their tasks."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(
        self, destination: Nodes = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Make workers stop sending events about their tasks."""
        return self.broadcast("disable_events", {}, destination, **options)

    def election(
        self, id: str, topic: str, action: Any = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Have workers elect the one that performs `action`, a signature for the topic ``task``."""
        arguments = {"id": id, "topic": topic, "action": action}
        return self.broadcast("election", arguments, **options)

    # --- pools ------------------------------------------------------------------------------------

    def pool_grow(
        self, n: int = 1, destination: Nodes = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Let pools run `n` more tasks in parallel."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(
        self, n: int = 1, destination: Nodes = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Let pools run `n` fewer tasks in parallel."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,
        reloader: Any = None,
        destination: Nodes = None,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Restart pools after importing `modules`, or importing them again if `reload` is true."""
        arguments = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **options)

    def autoscale(
        self, max: int, min: int, destination: Nodes = None, **options: Unpack[Options]
    ) -> Replies | None:
        """Set the maximum and minimum number of slots of an autoscaled pool."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    # --- tasks ------------------------------------------------------------------------------------

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Nodes = None,
        terminate: bool = False,
        signal: str | int = TERM,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Prevent one or more tasks from running.

        Args:
            task_id: one id, or several.
            destination: as in `broadcast`.
            terminate: also end tasks that are already running.
            signal: the signal with which Celery workers end such tasks.
            options: as in `broadcast`.
        """
        ids = task_id if isinstance(task_id, str) else list(task_id)
        arguments = {"task_id": ids, "terminate": terminate, "signal": signal}
        return self.broadcast("revoke", arguments, destination, **options)

    def terminate(
        self,
        task_id: str | Iterable[str],
        destination: Nodes = None,
        signal: str | int = TERM,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Revoke one or more tasks, and end those already running."""
        return self.revoke(task_id, destination, terminate=True, signal=signal, **options)

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        destination: Nodes = None,
        terminate: bool = False,
        signal: str | int = TERM,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Revoke all tasks with one of these stamps; each stamp has a value or a list of values."""
        arguments = {"headers": headers, "terminate": terminate, "signal": signal}
        return self.broadcast("revoke_by_stamped_headers", arguments, destination, **options)

    def rate_limit(
        self,
        task_name: str,
        rate_limit: str | float,
        destination: Nodes = None,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Limit how often each worker starts a task, as in ``10/m``; 0 means no limit."""
        arguments = {"task_name": task_name, "rate_limit": rate_limit}
        return self.broadcast("rate_limit", arguments, destination, **options)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Nodes = None,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Set a task's time limits, in seconds; None means no limit."""
        arguments = {"task_name": task_name, "hard": hard, "soft": soft}
        return self.broadcast("time_limit", arguments, destination, **options)

    # --- queues -----------------------------------------------------------------------------------

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Nodes = None,
        **others: Unpack[Options],
    ) -> Replies | None:
        """Make workers also take from a queue; `options` are the command's further arguments."""
        arguments = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", arguments, destination, **others)

    def cancel_consumer(
        self,
        queue: str,
        destination: Nodes = None,
        **options: Unpack[Options],
    ) -> Replies | None:
        """Make workers stop taking from a queue."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **options)

    def pause(self, queue: str) -> None:
        """Stop all greenq workers, even those started later, from taking from a queue.

        The pause lasts until `resume`. Each worker learns of it at its next lease renewal, within a
        second or two. Celery workers continue to take messages.
        """
        self._app.transport.broker.pause(queue, f"gen{os.getpid()}@{socket.gethostname()}")

    def resume(self, queue: str) -> None:
        """Make greenq workers take from a paused queue again."""
        self._app.transport.broker.resume(queue)

    def purge(self) -> int:
        """Delete all messages waiting in the app's queues, and return how many there were.

        The queues are those of ``task_queues``, or the default one. Messages that a worker has
        taken, or that are parked for their ETA, are not included; messages to a Broadcast never
        wait.
        """
        task = self._app.config.task
        broker = self._app.transport.broker
        queues = task.task_queues or (task.task_default_queue,)
        return sum(broker.purge(str(queue)) for queue in queues if not isinstance(queue, Broadcast))

    discard_all = purge


class Inspect:
    """Questions to workers. Switches: yes, all methods.

    Each method returns ``{node name: reply}``, or None if no worker replied. If the destination is
    a single name rather than a list, the method returns only that worker's reply.
    """

    def __init__(
        self,
        control: Control,
        destination: Nodes = None,
        timeout: float = 1.0,
        *,
        limit: int | None = None,
        callback: Callback | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        """Ask the workers that the options select; the options are those of `Control.broadcast`."""
        self._control = control
        self._destination = destination
        self._options: Options = {
            "timeout": timeout,
            "limit": limit,
            "callback": callback,
            "pattern": pattern,
            "matcher": matcher,
            "reply": True,
        }

    def ask(self, command: str, /, **arguments: Any) -> Any:
        """Send any inspect command, including those that a program has added."""
        return self._ask(command, arguments, self._destination)

    def _ask(
        self,
        command: str,
        arguments: Mapping[str, Any],
        destination: Nodes,
    ) -> Any:
        replies = self._control.broadcast(command, arguments, destination, **self._options)
        by_node = {node: reply for each in replies or () for node, reply in each.items()}
        if isinstance(destination, str):
            return by_node.get(destination)
        return by_node or None

    # --- workers ----------------------------------------------------------------------------------

    def ping(self, destination: Nodes = None) -> Any:
        """Ask which workers answer: ``{"ok": "pong"}``."""
        return self._ask("ping", {}, destination or self._destination)

    def status(self) -> Any:
        """Ask greenq workers what they are doing; even blocked workers reply."""
        return self.ask("status")

    def stats(self) -> Any:
        """Ask for totals, and for data about the pool, the broker and resource usage."""
        return self.ask("stats")

    def report(self) -> Any:
        """Ask for the information that a bug report needs: ``{"ok": text}``."""
        return self.ask("report")

    def conf(self, with_defaults: bool = False) -> Any:
        """Ask for the changed settings, or for all settings; secrets are hidden."""
        return self.ask("conf", with_defaults=with_defaults)

    def clock(self) -> Any:
        """Ask for the logical clock: ``{"clock": number}``."""
        return self.ask("clock")

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """Send a hello as the worker `from_node`, to get revoked ids and the clock."""
        return self.ask("hello", from_node=from_node, revoked=revoked)

    # --- tasks ------------------------------------------------------------------------------------

    def active(self, safe: bool | None = None) -> Any:
        """Ask for the running tasks, with their arguments as text if `safe` is true."""
        return self.ask("active", safe=safe)

    def reserved(self, safe: bool | None = None) -> Any:
        """Ask for the tasks that were taken but have not started; `safe` has no effect."""
        return self.ask("reserved")

    def scheduled(
        self, safe: bool | None = None, *, limit: int | None = None, offset: int | None = None
    ) -> Any:
        """Ask for the tasks that are waiting for their ETA; `safe` has no effect.

        A greenq worker that has many such tasks returns `limit` of them, starting at `offset`.
        """
        page = {"limit": limit, "offset": offset}
        return self.ask("scheduled", **{k: value for k, value in page.items() if value is not None})

    def query_task(self, *ids: str | Sequence[str]) -> Any:
        """Ask about tasks: ``{id: [state, task]}`` for the ids that a worker knows."""
        if len(ids) == 1 and not isinstance(ids[0], str):
            return self.ask("query_task", ids=list(ids[0]))
        return self.ask("query_task", ids=ids)

    def revoked(self) -> Any:
        """Ask for the revoked ids, oldest first."""
        return self.ask("revoked")

    def registered(self, *taskinfoitems: str) -> Any:
        """Ask for the names of registered tasks, each with the named attributes."""
        return self.ask("registered", taskinfoitems=taskinfoitems)

    registered_tasks = registered

    def active_queues(self) -> Any:
        """Ask for the queues that workers take from."""
        return self.ask("active_queues")

    # --- internals --------------------------------------------------------------------------------

    def greenlets(self, limit: int | None = None) -> Any:
        """Ask greenq workers for the greenlets of their tasks, oldest first."""
        return self.ask("greenlets") if limit is None else self.ask("greenlets", limit=limit)

    def records(self) -> Any:
        """Ask greenq workers how the server's records differ from the messages that they hold."""
        return self.ask("records")

    def hub(self) -> Any:
        """Ask greenq workers how late their event loop was, and what has blocked it."""
        return self.ask("hub")

    def autoscale_log(self) -> Any:
        """Ask greenq workers for the latest decisions on their pool's size."""
        return self.ask("autoscale_log")

    def memsample(self) -> Any:
        """Make workers take a sample of their memory usage, and return it."""
        return self.ask("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """Ask for the latest memory samples."""
        return self.ask("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """Make workers draw a graph of objects of a type: ``{"filename": path}``."""
        return self.ask("objgraph", num=n, max_depth=max_depth, type=type)
