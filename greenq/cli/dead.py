"""``greenq dead``: inspect, replay or delete the messages that no worker may run."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.cli import argument_types, show
from greenq.cli.common import add_app_options, opened
from greenq.cli.show import printable
from greenq.errors import DecodeError, GreenqError
from greenq.protocol import envelope

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from greenq.transport.dead_letters import DeadLetter, DeadLetters

# How many letters in a table, and how many bytes of a message, are shown by default.
_SHOWN_LETTERS = 100
_SHOWN_BYTES = 2000

_HEADINGS = ("AGE", "QUEUE", "TASK", "ID", "REASON")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Selects dead letters; an attribute that is None selects all.

    Attributes:
        task: the task's name; ``*`` and ``?`` stand for any text and any character.
        reason: a part of the reason; case does not matter.
        id: the task's id, or the one that the list shows for a message without an id.
        after: the time after which a letter was buried.
    """

    task: str | None = None
    reason: str | None = None
    id: str | None = None
    after: datetime | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        """Return whether a letter is selected."""
        return (
            (self.task is None or fnmatchcase(letter.task or "", self.task))
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
            and (self.id is None or self.id == letter.id)
            and (self.after is None or letter.buried_at > self.after)
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add("action", choices=("list", "show", "replay", "purge"),
        help="show: print one letter in full; replay: move letters back to their queues; purge: "
        "delete letters")  # fmt: skip
    add_app_options(parser)
    add("-Q", "--queues", type=argument_types.names, default=(), metavar="A,B",
        help="only letters of these queues (default: all queues with dead letters)")  # fmt: skip
    add("--task", metavar="NAME", help="only letters of this task; wildcards * and ? are allowed")
    add("--reason", metavar="TEXT", help="only letters whose reason contains this text")
    add("--id", metavar="ID", help="only the letter with this id, as the list shows it")
    add(
        "--since",
        type=argument_types.duration,
        metavar="AGE",
        help="only letters younger than AGE, such as 30s, 10m, 2h or 7d",
    )
    add("--limit", type=argument_types.count, metavar="N",
        help="list the newest N (default 100), or replay the oldest N")  # fmt: skip
    add("--yes", action="store_true", help="allow purging several letters; not needed with --json")


def run(args: argparse.Namespace) -> int:
    """Run the action on the dead letters; `show` fails if no letter matches."""
    now = datetime.now(UTC)
    wanted = Wanted(args.task, args.reason, args.id, now - args.since if args.since else None)
    with opened(args) as app:
        dead = app.transport.dead
        queues = args.queues or dead.queues()
        actions = {"list": _list, "show": _show, "replay": _replay, "purge": _purge}
        actions[args.action](dead, queues, wanted, args)
    return 0


# --- the actions ----------------------------------------------------------------------------------


def _list(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    letters = filter(wanted, dead.list(queues))
    if args.json:
        for letter in islice(letters, args.limit):
            show.write_json(fields(letter))
        return
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = []
    counts: Counter[str] = Counter()
    for letter in letters:
        counts[letter.queue] += 1
        if len(rows) < (args.limit or _SHOWN_LETTERS):
            rows.append(row(letter, now))
    show.write_table(_HEADINGS, rows)
    show.write(total(counts, len(rows)))


def _show(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    letter = next(filter(wanted, dead.list(queues)), None)
    if letter is None:
        raise GreenqError("no dead letter matches; `greenq dead list` lists them")
    if args.json:
        show.write_json(fields(letter) | _read_message(letter))
    else:
        for line in description(letter):
            show.write(line)


def _replay(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    cut = 0

    def chosen(letter: DeadLetter) -> bool:
        nonlocal cut
        is_chosen = wanted(letter)
        cut += is_chosen and letter.is_cut
        return is_chosen and not letter.is_cut

    _report(dead.replay(queues, chosen, args.limit), "replayed", as_json=args.json)
    if cut:
        show.complain(f"{cut:,} not replayed: only the beginning of each message was kept")


def _purge(
    dead: DeadLetters, queues: Sequence[str], wanted: Wanted, args: argparse.Namespace
) -> None:
    limit = args.limit
    if not (args.yes or args.json):
        limit = sum(1 for _ in islice(filter(wanted, dead.list(queues)), limit))
        if limit > 1:
            raise GreenqError(
                f"this would delete {limit:,} dead letters for good; add --yes to do so, or select "
                "fewer with -Q, --task, --reason, --id, --since, --limit"
            )
    _report(dead.purge(queues, wanted, limit), "purged", as_json=args.json)


def _report(letters: Iterator[DeadLetter], done: str, *, as_json: bool) -> None:
    """Print what was done, even if an error occurs halfway."""
    counts: Counter[str] = Counter()
    try:
        for letter in letters:
            counts[letter.queue] += 1
            if as_json:
                show.write_json(fields(letter))
    finally:
        if not as_json:
            show.write(f"{done}: {total(counts, counts.total())}")


# --- as text --------------------------------------------------------------------------------------


def fields(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields of a letter that the list shows, for JSON."""
    return {
        "queue": letter.queue,
        "id": letter.id,
        "task": letter.task,
        "reason": letter.reason,
        "buried_at": letter.buried_at.isoformat(),
        "worker": letter.worker,
    }


def row(letter: DeadLetter, now: datetime) -> tuple[str, ...]:
    """Return a letter's row in the table."""
    age = show.age((now - letter.buried_at).total_seconds())
    cells = (letter.queue, letter.task or "-", letter.id, letter.reason)
    return (age, *(printable(cell) for cell in cells))


def total(counts: Counter[str], shown: int) -> str:
    """Return the number of letters by queue, as a sentence."""
    count = counts.total()
    if count == 0:
        return "no dead letters"
    queues = ", ".join(f"{printable(queue)} {number:,}" for queue, number in counts.most_common())
    more = f"; {shown:,} shown, --limit shows more" if shown < count else ""
    return f"{count:,} dead letter{'s' if count > 1 else ''} ({queues}){more}"


def description(letter: DeadLetter) -> Iterator[str]:
    """Yield everything about a letter, line by line."""
    kept = (
        f"; only the first {len(letter.raw):,} are kept, so the message cannot be replayed"
        if letter.is_cut
        else ""
    )
    pairs = fields(letter) | {"size": f"{letter.size:,} bytes{kept}"}
    for name, value in pairs.items():
        yield f"{name.replace('_', ' '):<10} {printable(str(value or '-'))}"
    for name, value in _read_message(letter).items():
        if name == "raw":
            continue
        yield f"{name}:"
        text = json.dumps(value, indent=2, ensure_ascii=False)
        yield from (f"  {printable(line)}" for line in text.splitlines())
    yield "message:"
    yield f"  {letter.raw[:_SHOWN_BYTES]!r}"
    if len(letter.raw) > _SHOWN_BYTES:
        yield f"  and {len(letter.raw) - _SHOWN_BYTES:,} more bytes; --json shows all, in base64"


def _read_message(letter: DeadLetter) -> dict[str, Any]:
    """Return the readable parts of the message, and its bytes."""
    inside: dict[str, Any]
    try:
        message = envelope.unwrap(letter.raw)
        inside = {"headers": message.headers, "properties": message.properties}
    except DecodeError as exc:
        inside = {"unreadable": exc.reason}
    return inside | {"raw": base64.b64encode(letter.raw).decode("ascii")}
