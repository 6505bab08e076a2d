"""Queues and the exchanges that lead to them, as `task_queues` defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from greenq.config.validators import Validator, or_default, parse_json, seconds, text, texts, whole

EXCHANGE_TYPES: Final = ("direct", "topic", "fanout")

# Each of a queue's turns adds the queue's lists to the keys of every take.
_MOST_TURNS: Final = 10

_name = text().accept
_any_text = text(empty_ok=True).accept

_LIMITS: Final = {
    "routing_key": text(),
    "expires": seconds(zero_ok=False),
    "max_length": whole(1),
    "weight": whole(1, _MOST_TURNS),
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A place where messages are published; its bindings decide which queues get them.

    Attributes:
        name: its name, on which all senders and workers must agree, including Celery's.
        type: ``direct`` (the routing keys are equal), ``topic`` (the binding key has wildcards) or
            ``fanout`` (every worker that listens gets the message).

    Raises:
        ValueError: the name is not text, or the type does not exist.
    """

    name: str
    type: str = "direct"

    def __post_init__(self) -> None:
        """Check the name and the type."""
        try:
            _name(self.name)
        except ValueError as error:
            raise ValueError(f"the name of an exchange {error}") from None
        check_type(self.type)

    def __str__(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True, slots=True)
class Binding:
    """The rule that leads from an exchange to a queue.

    Attributes:
        exchange: where messages are published.
        routing_key: selects the messages that the queue gets. For a topic exchange, it consists of
            words joined by dots, where ``*`` stands for one word and ``#`` for any number of words,
            including none.
    """

    exchange: Exchange
    routing_key: str = ""

    def __post_init__(self) -> None:
        """Check the types."""
        if not isinstance(self.exchange, Exchange):
            raise ValueError(f"a binding begins with an Exchange, not {self.exchange!r}")
        _any_text(self.routing_key)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue with its bindings and limits.

    Attributes:
        name: the name that senders and routes use.
        exchange: the exchange of the queue; None means that of `task_default_exchange`. A name
            stands for a direct exchange.
        routing_key: the binding key at `exchange`; None means `task_default_routing_key`.
        bindings: bindings to further exchanges.
        expires: seconds after which the waiting messages are deleted if no worker takes from the
            queue and nothing is sent to it; None means never.
        max_length: the maximum number of waiting messages; a call that would exceed it is refused.
            None means no limit.
        weight: how many turns (1 to 10) the queue gets for each turn of a queue with weight 1; it
            has an effect only if `queue_order_strategy` is ``round_robin``.

    Raises:
        ValueError: a value is wrong; the error names it.
    """

    name: str
    exchange: Exchange | str | None = None
    routing_key: str | None = None
    bindings: tuple[Binding, ...] = ()
    expires: float | None = None
    max_length: int | None = None
    weight: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        _name(self.name)
        if isinstance(self.exchange, str):
            exchange = Exchange(self.exchange) if self.exchange else None
            object.__setattr__(self, "exchange", exchange)
        object.__setattr__(self, "bindings", tuple(self.bindings))
        if any(each.exchange.type == "fanout" for each in self.bindings):
            raise ValueError(
                f"queue {self.name!r} is bound to a fanout exchange, which has no queues on Redis: "
                "use Broadcast(name), or a Queue with that exchange and no other bindings"
            )
        for option, kind in _LIMITS.items():
            value = getattr(self, option)
            if value is not None:
                try:
                    object.__setattr__(self, option, kind.accept(value))
                except ValueError as error:
                    raise ValueError(f"queue {self.name!r}: {option} {error}") from None

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    @property
    def sources(self) -> tuple[Binding, ...]:
        """All bindings, the queue's own exchange first; only for queues that `declared` returns."""
        assert isinstance(self.exchange, Exchange)
        own = Binding(self.exchange, self.routing_key or "")
        return tuple(dict.fromkeys((own, *self.bindings)))


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A broadcast queue: each message goes to every worker that is then consuming from the queue.

    Attributes:
        name: the name that senders and routes use.
        exchange: the name of its fanout exchange; "" means `name`.
        routing_key: the routing key of its messages; None means `task_default_routing_key`. A
            worker gets the messages sent with the same key, and ``#`` stands for any text.

    Raises:
        ValueError: the name is not text or is empty.
    """

    name: str
    exchange: str = ""
    routing_key: str | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        _name(self.name)
        _any_text(self.exchange)
        # On Redis the key becomes a pattern for channels, with a wildcard only at its end.
        if "#" in (self.routing_key or "")[:-1]:
            raise ValueError(
                f"broadcast {self.name!r}: # may appear only at the end of its routing key"
            )

    def __str__(self) -> str:
        """Return the name."""
        return self.name


def check_type(kind: str) -> str:
    """Return `kind` if it is a type of exchange.

    Raises:
        ValueError: no such type exists.
    """
    if kind == "headers":
        raise ValueError(
            "headers exchanges do not exist on Redis, not even with Celery: use a topic exchange, "
            "with the content of the headers as words of the routing key"
        )
    if kind not in EXCHANGE_TYPES:
        raise ValueError(f"an exchange is direct, topic or fanout, not {kind!r}")
    return kind


def queue() -> Validator:
    """Accept the name of a queue, a `Queue`, a `Broadcast` or, as Celery does, kombu's objects."""

    def accept(value: object) -> str | Queue | Broadcast:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Queue):
            return broadcast_or(value)
        if isinstance(value, Broadcast):
            return value
        if hasattr(value, "exchange") and getattr(value, "name", None):
            return _of_kombu(value)
        raise ValueError("must be non-empty text, or a Queue or Broadcast")

    return Validator(accept, str)


def queues() -> Validator:
    """Accept a list of queues, or, as Celery does, {name: options}; the normal form is a tuple."""
    listed = texts(queue())

    def accept(value: object) -> tuple[str | Queue | Broadcast, ...]:
        if isinstance(value, Mapping):
            value = [_of_options(str(name), options) for name, options in value.items()]
        found: tuple[str | Queue | Broadcast, ...] = listed.accept(value)
        names = [str(each) for each in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None and any(not isinstance(each, str) for each in found):
            raise ValueError(f"has two queues named {twice!r}")
        return found

    def parse(text: str) -> Any:
        return parse_json(text) if text.lstrip().startswith("{") else listed.parse(text)

    return or_default(Validator(accept, parse), ())


def _of_options(name: str, options: object) -> Queue | Broadcast:
    """Build a queue from an entry of Celery's mapping form."""
    if isinstance(options, (Queue, Broadcast)):
        return replace(options, name=name)
    if not isinstance(options, Mapping):
        raise ValueError(f"the options of queue {name!r} must be a mapping")
    given = {str(option): value for option, value in options.items() if value is not None}
    binding_key = given.pop("binding_key", None)
    routing_key = given.pop("routing_key", binding_key)
    kind = given.pop("exchange_type", "direct")
    exchange = given.pop("exchange", None)
    if isinstance(exchange, str) and exchange:
        exchange = Exchange(exchange, kind)
    unknown = given.keys() - {"expires", "max_length", "weight"}
    if unknown:
        raise ValueError(
            f"queue {name!r} has an unknown option {min(unknown)!r}; the options are exchange, "
            "exchange_type, routing_key, expires, max_length and weight"
        )
    # In this form, as in Celery, the queue's name is the default routing key.
    return broadcast_or(Queue(name, exchange, routing_key or name, **given))


def _of_kombu(queue: Any) -> Queue | Broadcast:
    """Build a queue from an object with kombu's attributes."""
    name = getattr(queue, "alias", None) or queue.name
    arguments = getattr(queue, "queue_arguments", None) or {}
    expires, most = getattr(queue, "expires", None), getattr(queue, "max_length", None)
    if expires is None and "x-expires" in arguments:
        expires = arguments["x-expires"] / 1000
    bindings = [
        Binding(found, each.routing_key or "")
        for each in getattr(queue, "bindings", None) or ()
        if (found := _exchange_of_kombu(each.exchange)) is not None
    ]
    # Kombu keeps the bindings in a set, so their order is arbitrary.
    bindings.sort(key=lambda each: (each.exchange.name, each.routing_key))
    return broadcast_or(
        Queue(
            name,
            _exchange_of_kombu(queue.exchange),
            getattr(queue, "routing_key", None) or None,
            tuple(bindings),
            expires,
            arguments.get("x-max-length") if most is None else most,
        )
    )


def _exchange_of_kombu(exchange: Any) -> Exchange | None:
    name = getattr(exchange, "name", exchange)
    return Exchange(name, getattr(exchange, "type", None) or "direct") if name else None


def broadcast_or(queue: Queue) -> Queue | Broadcast:
    """Return a `Broadcast` for a queue of a fanout exchange, which is a channel on Redis."""
    exchange = queue.exchange
    if not isinstance(exchange, Exchange) or exchange.type != "fanout":
        return queue
    if queue.bindings:
        raise ValueError(f"queue {queue.name!r} of a fanout exchange cannot have other bindings")
    return Broadcast(queue.name, exchange.name, queue.routing_key)
