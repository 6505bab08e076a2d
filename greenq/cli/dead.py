"""``greenq dead``: look at the messages that no worker may run, put them back, or delete them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq import log
from greenq.cli.load import find_app
from greenq.errors import DecodeError, GreenqError
from greenq.protocol import envelope

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from greenq.transport.dead import DeadLetter, DeadLetters

_BOLD, _PLAIN = "\033[1m", "\033[0m"

# Letters in a table, and bytes of a message on the screen, unless more are asked for.
_SHOWN_LETTERS = 100
_SHOWN_BYTES = 2000

_HEADINGS = ("AGE", "QUEUE", "TASK", "ID", "REASON")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant; what is None does not matter.

    Attributes:
        task: the task's name, with ``*`` and ``?`` for any text and any character.
        reason: a part of the reason, in upper or lower case.
        id: the task's id, or what the list shows for a message without one.
        after: buried after this moment.
    """

    task: str | None = None
    reason: str | None = None
    id: str | None = None
    after: datetime | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        """Tell whether this letter is meant."""
        return (
            (self.task is None or fnmatchcase(letter.task or "", self.task))
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
            and (self.id is None or self.id == letter.id)
            and (self.after is None or letter.buried_at > self.after)
        )


def run(args: argparse.Namespace) -> int:
    """Do what the command line says with the dead letters; show none that match is an error."""
    app = find_app(args.app)
    if args.broker:
        app.conf.broker_url = args.broker
    now = datetime.now(UTC)
    wanted = Wanted(args.task, args.reason, args.id, now - args.since if args.since else None)
    try:
        dead = app.transport.dead
        queues = args.queues or dead.queues()
        actions = {"list": _list, "show": _show, "replay": _replay, "purge": _purge}
        actions[args.action](dead, queues, wanted, args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python's own flush at the end must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        app.close()
    return 0


# --- the actions ----------------------------------------------------------------------------------


def _list(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    letters = filter(wanted, dead.list(queues))
    if args.json:
        for letter in islice(letters, args.limit):
            _write(json.dumps(fields(letter)))
        return
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = []
    counts: Counter[str] = Counter()
    for letter in letters:
        counts[letter.queue] += 1
        if len(rows) < (args.limit or _SHOWN_LETTERS):
            rows.append(row(letter, now))
    color = log.wants_color(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(rows, color=color, width=width):
        _write(line)
    _write(total(counts, len(rows)))


def _show(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    letter = next(filter(wanted, dead.list(queues)), None)
    if letter is None:
        raise GreenqError("no dead letter matches; `greenq dead list` shows those there are")
    if args.json:
        _write(json.dumps(fields(letter) | _inside(letter)))
    else:
        for line in description(letter):
            _write(line)


def _replay(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    _report(dead.replay(queues, wanted, args.limit), "replayed", as_json=args.json)


def _purge(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    limit = args.limit
    if not (args.yes or args.json):
        limit = sum(1 for _ in islice(filter(wanted, dead.list(queues)), limit))
        if limit > 1:
            raise GreenqError(
                f"this would delete {limit:,} dead letters for good; say --yes to do so, or choose "
                "with -Q, --task, --reason, --id, --since, --limit"
            )
    _report(dead.purge(queues, wanted, limit), "purged", as_json=args.json)


def _report(letters: Iterator[DeadLetter], done: str, *, as_json: bool) -> None:
    """Say what was done, also when it ends halfway."""
    counts: Counter[str] = Counter()
    try:
        for letter in letters:
            counts[letter.queue] += 1
            if as_json:
                _write(json.dumps(fields(letter)))
    finally:
        if not as_json:
            _write(f"{done}: {total(counts, counts.total())}")


# --- as text --------------------------------------------------------------------------------------


def fields(letter: DeadLetter) -> dict[str, Any]:
    """Return what the list tells of a letter, for JSON."""
    return {
        "queue": letter.queue,
        "id": letter.id,
        "task": letter.task,
        "reason": letter.reason,
        "buried_at": letter.buried_at.isoformat(),
        "worker": letter.worker,
    }


def row(letter: DeadLetter, now: datetime) -> tuple[str, ...]:
    """Return a letter's line in the table."""
    age = _age((now - letter.buried_at).total_seconds())
    cells = (letter.queue, letter.task or "-", letter.id, letter.reason)
    return (age, *(printable(cell) for cell in cells))


def table(
    rows: Sequence[tuple[str, ...]], *, color: bool = False, width: int | None = None
) -> Iterator[str]:
    """Align rows below their headings; lines longer than `width` are cut."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for number, cells in enumerate((_HEADINGS, *rows)):
        padded = (cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
        line = "  ".join(padded).rstrip()
        if width is not None and len(line) > width:
            line = line[: width - 1] + "…"
        yield f"{_BOLD}{line}{_PLAIN}" if color and number == 0 else line


def total(counts: Counter[str], shown: int) -> str:
    """Count letters by queue, in a sentence."""
    count = counts.total()
    if count == 0:
        return "no dead letters"
    queues = ", ".join(f"{printable(queue)} {number:,}" for queue, number in counts.most_common())
    more = f"; {shown:,} shown, --limit shows more" if shown < count else ""
    return f"{count:,} dead letter{'s' if count > 1 else ''} ({queues}){more}"


def description(letter: DeadLetter) -> Iterator[str]:
    """Tell all about a letter, line by line."""
    pairs = fields(letter) | {"size": f"{len(letter.raw):,} bytes"}
    for name, value in pairs.items():
        yield f"{name.replace('_', ' '):<10} {printable(str(value or '-'))}"
    for name, value in _inside(letter).items():
        if name == "raw":
            continue
        yield f"{name}:"
        text = json.dumps(value, indent=2, ensure_ascii=False)
        yield from (f"  {printable(line)}" for line in text.splitlines())
    yield "message:"
    yield f"  {letter.raw[:_SHOWN_BYTES]!r}"
    if len(letter.raw) > _SHOWN_BYTES:
        yield f"  and {len(letter.raw) - _SHOWN_BYTES:,} bytes more; --json has all, in base64"


def printable(text: str) -> str:
    """Escape what could move the cursor or break a line: anybody may write to a queue."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _inside(letter: DeadLetter) -> dict[str, Any]:
    """Return what can be read of the message, and its bytes."""
    inside: dict[str, Any]
    try:
        message = envelope.unwrap(letter.raw)
        inside = {"headers": message.headers, "properties": message.properties}
    except DecodeError as exc:
        inside = {"unreadable": exc.reason}
    return inside | {"raw": base64.b64encode(letter.raw).decode("ascii")}


def _age(seconds: float) -> str:
    for unit, size_s in _UNITS:
        if seconds >= size_s:
            return f"{int(seconds // size_s)}{unit}"
    return f"{max(int(seconds), 0)}s"


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
