"""A real worker that is never started: its tasks run, its commands work, nothing is connected."""

from __future__ import annotations

from typing import Any

import gevent
import hiredis

from greenq import Greenq
from greenq.config.queues import Binding
from greenq.protocol.mailbox import (
    ControlRequest,
    Reply,
    ReplyTo,
    read_reply,
    write_request,
)
from greenq.protocol.serialize import accepted
from greenq.running.request import Request
from greenq.transport.broker import Broker, own_binding
from greenq.transport.client import Script
from greenq.transport.fetch import Delivery
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions
from tests.unit.rig import DEADLINE_S, NOWHERE, KeptOutbox, settle, wait_for

NODE = "me@host"

_JSON = accepted(["json"])


class KeptBroker:
    """A broker that keeps what is done to queues, and who paused which one.

    Moves it describes as the real one does: it is the outbox that writes them.
    """

    def __init__(self, real: Broker) -> None:
        self._real = real
        self.done: list[tuple[object, ...]] = []
        self.kinds: dict[str, str] = {}
        # When each is due, its queue and its bytes.
        self.all_parked: list[tuple[float, str, bytes]] = []
        self.paused_by: dict[str, str] = {}

    def declare(self, queues: list[str]) -> None:
        self.done.append(("declare", *queues))

    def kind(self, queue: str) -> str:
        return self.kinds.get(queue, "none")

    def parked(
        self, queues: tuple[str, ...], offset: int, limit: int
    ) -> list[tuple[float, str, bytes]]:
        assert limit >= 0
        return [each for each in self.all_parked if each[1] in queues][offset : offset + limit]

    def bind(self, queue: str, binding: Binding) -> None:
        exchange = binding.exchange
        self.done.append(("bind", queue, exchange.name, exchange.type, binding.routing_key))

    def bindings_of(self, queue: str) -> tuple[Binding, ...]:
        return (own_binding(queue),)

    def limits_of(self, _queue: str) -> tuple[None, None]:
        return None, None

    def renewal_s(self, _queues: tuple[str, ...]) -> None:
        return None

    def pause(self, queue: str, by: str) -> None:
        self.paused_by[queue] = by

    def resume(self, queue: str) -> bool:
        return self.paused_by.pop(queue, None) is not None

    def paused(self) -> dict[str, str]:
        return self.paused_by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Asker:
    """The server's side of the mailbox: takes replies as the scripts there do, and reads them.

    Attributes:
        problem: raised instead.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.problem: Exception | None = None

    def script(self, script: Script, keys: list[str], args: list[Any]) -> int:
        assert script.name == "reply"
        # As it is sent; what cannot be sent is found there.
        hiredis.pack_command(("EVALSHA", script.sha, len(keys), *keys, *args))
        if self.problem is not None:
            raise self.problem
        self.replies.append(read_reply(args[1].encode(), _JSON))
        return 1


class Node:
    """One worker, and what is asked of it."""

    def __init__(self, **options: Any) -> None:
        settings = options.pop("settings", {})
        self.app = Greenq("node", broker=NOWHERE, set_as_current=False, **settings)
        self.release = gevent.event.Event()
        self.app.task(name="wait")(lambda *_args, **_kwargs: self.release.wait(DEADLINE_S))
        self.app.task(name="add", rate_limit="5/m", acks_late=True)(lambda x, y: x + y)
        transport: Any = self.app.transport
        self.broker = transport.broker = KeptBroker(transport.broker)
        self.asker = Asker()
        transport.client.script = self.asker.script
        self.outbox = KeptOutbox()
        self.worker = Worker(self.app, WorkerOptions(hostname=NODE, **options), outbox=self.outbox)
        self.parts = self.worker.parts
        state = self.parts.state
        state.lease_until_s = state.now_s() + 3600
        self.parts.tasks.admission.taken_s = state.now_s()
        self._tags = 0

    def give(self, name: str, task_id: str, *args: Any, **options: Any) -> None:
        """Have a message taken."""
        self._tags += 1
        prepared = self.app.producer.prepare(name, args, {}, options | {"task_id": task_id})
        delivery = Delivery(
            f"{self.parts.owner.incarnation}:{self._tags}", "celery", prepared["text"].encode()
        )
        self.parts.tasks.admission.receive(delivery)
        settle()

    def request_of(self, task_id: str) -> Request:
        held = self.parts.state.reserved.values()
        (found,) = [request for request in held if request.message.id == task_id]
        return found

    def ask(self, method: str, **arguments: Any) -> Any:
        """Ask over the mailbox; return the reply."""
        self.asker.replies.clear()
        assert self.parts.control is not None
        self.parts.control.handle(asked(method, arguments))
        settle()
        (reply,) = self.asker.replies
        assert reply.ticket == "ticket"
        assert list(reply.replies) == [NODE]
        return reply.replies[NODE]

    def close(self) -> None:
        """Let what runs end."""
        self.release.set()
        wait_for(lambda: not self.parts.pool.active)
        self.parts.pool.terminate()
        self.app.close()


def asked(
    method: str, arguments: dict[str, Any] | None = None, *, answered: bool = True, **options: Any
) -> bytes:
    """Return what is published to ask all workers, or those that `options` name."""
    to = ReplyTo("reply.celery.pidbox", "oid") if answered else None
    request = ControlRequest(
        method=method,
        arguments=arguments or {},
        ticket="ticket" if answered else None,
        reply_to=to,
        **options,
    )
    return write_request(request).encode()
