"""``greenq events``: show the cluster's events as a live table, as lines or as JSON."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from greenq.cli import argument_types, show
from greenq.cli.common import add_app_options, opened

if TYPE_CHECKING:
    import argparse

    from greenq.events.receiver import Receiver

# The interval between redraws of the table. The timeout may be noticed up to this much late.
_TURN_S = 0.25

# How many task names are remembered, since most events of a task carry only its id.
_NAMES = 4096

_WORDS = {
    "worker-offline": "shutdown",
    "worker-online": "started",
    "worker-heartbeat": "heartbeat",
}


class Output(Protocol):
    """Shows events."""

    def show(self, event: dict[str, Any]) -> None:
        """Add an event; events are added in order of arrival."""

    def flush(self) -> None:
        """Show all events added so far; called regularly, even if no event has arrived."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_app_options(parser)
    add = parser.add_argument
    add("--dump", action="store_true", help="print a line for each event, even on a terminal")
    add(
        "-t",
        "--timeout",
        type=argument_types.seconds,
        metavar="S",
        help="stop after S seconds",
    )
    add("--limit", type=argument_types.count, metavar="N", help="stop after N events")


def run(args: argparse.Namespace) -> int:
    """Show events until the timeout or the limit is reached, or SIGINT arrives."""
    with opened(args) as app:
        # Timestamps need no adjustment, since Unix times are the same in all time zones.
        receiver = app.events.Receiver()
        try:
            if args.json or args.dump or not _can_draw():
                follow(receiver, Lines(as_json=args.json), args.timeout, args.limit)
            else:
                # The display is imported only here, since rich may be missing.
                live = importlib.import_module("greenq.cli.events_live")
                address = app.transport.broker_address
                with live.EventsDisplay(app.events.State(), address) as display:
                    follow(receiver, display, args.timeout, args.limit)
        except KeyboardInterrupt:
            # Ctrl-C is the normal way to end this command.
            pass
        finally:
            receiver.close()
    return 0


def follow(receiver: Receiver, output: Output, timeout_s: float | None, limit: int | None) -> None:
    """Show events as they arrive, until the timeout or the limit is reached."""
    receiver.open()
    output.flush()
    ends_s = None if timeout_s is None else time.monotonic() + timeout_s
    count = 0
    while limit is None or count < limit:
        left_s = _TURN_S if ends_s is None else min(_TURN_S, ends_s - time.monotonic())
        if left_s <= 0:
            return
        events = receiver.wait(left_s)
        if limit is not None:
            del events[limit - count :]
        count += len(events)
        for event in events:
            output.show(event)
        output.flush()


def _can_draw() -> bool:
    if not sys.stdout.isatty():
        return False
    if importlib.util.find_spec("rich") is None:
        sys.stderr.write(
            "greenq events: the live table needs rich, which is missing: pip install "
            "'greenq[demo]'; showing the events as lines\n"
        )
        return False
    return True


class Lines:
    """Prints a line for each event."""

    def __init__(self, *, as_json: bool = False) -> None:
        """Print text, or JSON if `as_json`."""
        self._as_json = as_json
        self._names: OrderedDict[str, str] = OrderedDict()

    def show(self, event: dict[str, Any]) -> None:
        """Print an event."""
        if self._as_json:
            show.write_json(event)
        else:
            show.write(self.line(event))

    def flush(self) -> None:
        """Flush the output, for pipes."""
        sys.stdout.flush()

    def line(self, event: dict[str, Any]) -> str:
        """Return ``hostname [time] what: task fields``."""
        rest = dict(event)
        kind, hostname, timestamp = (rest.pop(name) for name in ("type", "hostname", "timestamp"))
        what = _WORDS.get(kind, kind.replace("-", " "))
        parts = [self._task(kind, rest)] if kind.startswith("task-") else []
        parts += [f"{name}={rest[name]}" for name in sorted(rest)]
        details = show.printable(", ".join(parts))
        return f"{show.printable(hostname)} [{_time(timestamp)}] {show.printable(what)}: {details}"

    def _task(self, kind: str, rest: dict[str, Any]) -> str:
        """Remove the task's name and id from `rest` and return them as text."""
        uuid = str(rest.pop("uuid", "-"))
        if kind in ("task-received", "task-sent"):
            name, args, kwargs = (rest.pop(field, None) for field in ("name", "args", "kwargs"))
            self._names[uuid] = f"{name}({uuid}) args={args} kwargs={kwargs}"
            if len(self._names) > _NAMES:
                self._names.popitem(last=False)
        return self._names.get(uuid, uuid)


def _time(timestamp: float) -> str:
    try:
        return str(datetime.fromtimestamp(timestamp, UTC))
    except (ValueError, OverflowError, OSError):
        # The timestamp is outside the range of `datetime`.
        return f"{timestamp:g}"
