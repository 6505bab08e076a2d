"""``greenq queues``: each queue's waiting messages, its consumers and its growth."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import argument_types, show
from greenq.cli.bindings import bindings
from greenq.cli.common import EX_TEMPFAIL, add_asking_options, ask, called_roll, opened, silent
from greenq.remote.queue_counts import QueuesSnapshot, app_queues, change_per_s, look

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from greenq.app import Greenq
    from greenq.remote.queue_counts import QueueCounts
    from greenq.transport.chords import Unsealed
    from greenq.transport.members import Roll

_APART_S: Final = 1.0

# Sending a chord's header takes no longer than this unless its members are produced slowly.
UNSEALED_S: Final = 60.0
_TOP_LEFT: Final = "\033[H\033[J"

# Prefix of the per-process queues of a broadcast, which are really channels.
_BROADCAST: Final = "bcast."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_asking_options(parser)
    add = parser.add_argument
    add("-Q", "--queues", type=argument_types.names, default=(), metavar="A,B",
        help="show only these queues (default: all ever declared, and the app's)")  # fmt: skip
    add("--rates", action="store_true", help="count twice, a second apart, and show the change")
    add("--watch", action="store_true", help="count every second until interrupted")


def run(args: argparse.Namespace) -> int:
    """Show the queues, once or every second."""
    with opened(args) as app:
        names = args.queues or known_queues(app)
        if not args.watch:
            before = look(app.transport.broker, names) if args.rates else None
            if before is not None:
                time.sleep(_APART_S)
            seen = _complete(app, args, names, before)
            _show(seen, args)
            return EX_TEMPFAIL if seen.incomplete else 0
        with suppress(KeyboardInterrupt):
            _watch(app, args, names)
    return 0


def _watch(app: Greenq, args: argparse.Namespace, names: Iterable[str]) -> None:
    before: QueuesSnapshot | None = None
    while True:
        now = _complete(app, args, names, before)
        if sys.stdout.isatty() and not args.json:
            sys.stdout.write(_TOP_LEFT)
        _show(now, args)
        sys.stdout.flush()
        before = now
        time.sleep(_APART_S)
        names = args.queues or known_queues(app)


# --- reading --------------------------------------------------------------------------------------


def known_queues(app: Greenq, *, within_s: float | None = None) -> list[str]:
    """Return the names of all queues ever declared and of the app's queues, sorted.

    The search takes a long time on a server with millions of keys; `within_s` limits the time.
    """
    found = {binding.queue for binding in bindings(app, within_s=within_s)}
    found = {name for name in found if not name.startswith(_BROADCAST)}
    return sorted(found.union(app_queues(app.config.task)))


@dataclass(frozen=True, slots=True)
class TakersByQueue:
    """Which workers take from which queues.

    Attributes:
        nodes: the workers of each queue.
        all_known: True if the queues of every worker are known.
    """

    nodes: Mapping[str, Sequence[str]]
    all_known: bool

    def leave(self, queue: str) -> bool:
        """Return whether it is certain that no worker takes from a queue."""
        return self.all_known and queue not in self.nodes


def takers(roll: Roll, replies: Mapping[str, Any]) -> TakersByQueue:
    """Combine the server's data about greenq's workers with the replies of other workers.

    Args:
        roll: the workers with a lease, including blocked and unresponsive ones.
        replies: the replies to the command active_queues, by node, from Celery's workers and from
            greenq's workers that have not registered their queues yet.
    """
    found: dict[str, list[str]] = {}
    replied = {
        node: [str(show.part(queue, "name")) for queue in reply]
        for node, reply in replies.items()
        if isinstance(reply, list)
    }
    queues_of = replied | roll.queues
    for node in sorted(queues_of):
        for name in queues_of[node]:
            found.setdefault(name, []).append(node)
    return TakersByQueue(found, all_known=roll.living.keys() | roll.strangers <= queues_of.keys())


def held(replies: Mapping[str, Any]) -> dict[str, int]:
    """Return how many messages are waiting in workers, by queue, from their replies to status."""
    found: dict[str, int] = {}
    for reply in replies.values():
        counts = show.part(reply, "held")
        for queue, count in (counts if isinstance(counts, dict) else {}).items():
            if isinstance(count, int):
                found[str(queue)] = found.get(str(queue), 0) + count
    return found


def _complete(
    app: Greenq, args: argparse.Namespace, names: Iterable[str], before: QueuesSnapshot | None
) -> QueuesSnapshot:
    """Count the messages, and add the facts that only the workers know."""
    roll = called_roll(app)
    replies = ask(app, args, "active_queues")
    absent = silent(app, args, replies, roll)
    for node, why in absent.items():
        show.complain(f"{node}: {why}")
    # Ask only workers that have replied; Celery's workers do not know this command.
    waiting = held(ask(app, args, "status", destination=tuple(replies))) if replies else {}
    taking = takers(roll, replies)
    now = look(app.transport.broker, names)
    queues = {
        name: replace(
            queue,
            consumers=[
                node
                for node in taking.nodes.get(name, ())
                if not args.destination or node in args.destination
            ],
            held=waiting.get(name),
            # A worker that was not asked may take from any queue.
            untaken=not args.destination and taking.leave(name),
            change_per_s=change_per_s(before, now, name),
        )
        for name, queue in now.queues.items()
    }
    unsealed = app.transport.chords.unsealed(UNSEALED_S)
    return QueuesSnapshot(now.at_s, queues, bool(absent), unsealed)


# --- output ---------------------------------------------------------------------------------------


def _show(seen: QueuesSnapshot, args: argparse.Namespace) -> None:
    if args.json:
        show.write_json({name: queue.as_json() for name, queue in seen.queues.items()})
        return
    queues = list(seen.queues.values())
    show.write_table(headings(queues), [row(queue) for queue in queues])
    show.write(total(queues))
    for chord in seen.unsealed:
        show.write(never_sent(chord))


def never_sent(chord: Unsealed) -> str:
    """Return a sentence about a chord whose header was not sent completely."""
    since = datetime.fromtimestamp(chord.since, UTC).isoformat(timespec="seconds")
    return (
        f"chord {show.printable(chord.group_id)}: its header has been incomplete since "
        f"{since}; if its sender has died, its body {show.printable(chord.body)} "
        f"(id {show.printable(chord.body_id)}) will never run: send the chord again"
    )


def headings(queues: Sequence[QueueCounts]) -> tuple[str, ...]:
    """Return the column headings, including one for each priority step."""
    steps = [f"P{step}" for step in queues[0].depth] if queues else []
    places = "INBOX", "PARKED", "HELD", "DEAD", "OLDEST", "CONSUMERS", "CHANGE/S", "DRAINED IN"
    return ("QUEUE", "WAITING", *steps, *places, "")


def row(queue: QueueCounts) -> tuple[str, ...]:
    """Return a queue's row."""
    change = queue.change_per_s
    return (
        show.printable(queue.name),
        show.number(queue.waiting),
        *(show.number(count) for count in queue.depth.values()),
        show.number(queue.inbox),
        show.number(queue.parked),
        show.number(queue.held),
        show.number(queue.dead),
        "-" if queue.oldest_s is None else show.age(queue.oldest_s),
        show.number(len(queue.consumers)),
        "-" if change is None else f"{change:+,.1f}",
        show.age(queue.drained_in_s),
        ", ".join(filter(None, (_paused(queue.paused), _untaken(queue)))),
    )


def _paused(paused: Mapping[str, Any] | None) -> str:
    if paused is None:
        return ""
    by = paused.get("by")
    return "paused" if by is None else f"paused by {show.text(by)}"


def _untaken(queue: QueueCounts) -> str:
    return "no worker takes from it" if queue.untaken else ""


def total(queues: Sequence[QueueCounts]) -> str:
    """Return the message counts of all queues, as a sentence."""
    waiting = sum(queue.waiting for queue in queues)
    parked = sum(queue.parked for queue in queues)
    dead = sum(queue.dead for queue in queues)
    return f"{waiting:,} waiting, {parked:,} parked, {dead:,} dead in {len(queues):,} queues"
