"""``greenq beat``: send periodic tasks, or inspect and change the entries."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from greenq.beat.entries import from_us
from greenq.beat.pings import Pings
from greenq.beat.scheduler import Scheduler
from greenq.cli import show
from greenq.cli.common import confirmed, log_style, opened
from greenq.cli.load import find_app, import_tasks
from greenq.cli.pidfile import pid_file
from greenq.cli.show import printable
from greenq.errors import GreenqError
from greenq.signals import beat_init
from greenq.utils import log

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq
    from greenq.beat.periodic import Listed

_HEADINGS = ("NAME", "SCHEDULE", "TASK", "LAST", "STATE", "TOOK", "NEXT")

_SHOWN_NEXT = 10
_SHOWN_HISTORY = 100
# Enough for the whole history, which is then filtered by name.
_ALL_HISTORY = 10_000


def run(args: argparse.Namespace) -> int:
    """Send periodic tasks until stopped, or carry out the given action."""
    if args.action is None:
        return _serve(args)
    with opened(args) as app:
        if args.app:
            import_tasks(app)
        try:
            _ACTIONS[args.action](app, args)
        except ValueError as exc:
            raise GreenqError(str(exc)) from exc
    return 0


def _serve(args: argparse.Namespace) -> int:
    app = find_app(args.app)
    app.set_up_framework()
    if args.broker:
        app.conf.update_from("command line", {"broker_url": args.broker})
    log.setup(args.loglevel, logfile=args.logfile, style=log_style(app.config.worker))
    app.conf.warn()
    with pid_file(args.pidfile):
        import_tasks(app)
        scheduler = Scheduler(app)
        pings = Pings(app, lambda: scheduler.is_alive)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: scheduler.stop())
        beat_init.send(scheduler)
        pings.start()
        try:
            scheduler.run()
        finally:
            pings.stop()
            app.close()
    return 0


# --- the actions ----------------------------------------------------------------------------------


def _list(app: Greenq, args: argparse.Namespace) -> None:
    _words(args)
    entries = app.periodic.entries()
    now = datetime.now(UTC)
    if args.json:
        for each in entries:
            show.write_json(_fields(each, now))
        return
    show.write_table(_HEADINGS, [_row(each, now) for each in entries])
    if not entries:
        show.write("no periodic entries: add one to beat_schedule, or with greenq beat add")


def _next(app: Greenq, args: argparse.Namespace) -> None:
    words = list(args.words)
    most = int(words.pop()) if words and words[-1].isdecimal() else _SHOWN_NEXT
    if len(words) > 1:
        raise GreenqError("greenq beat next takes a name, a number, or both")
    entries = [app.periodic.get(words[0])] if words else app.periodic.entries()
    now = datetime.now(UTC)
    found = sorted(
        ((due, each) for each in entries for due in each.next(most, now)),
        key=lambda pair: (pair[0], pair[1].entry.name),
    )
    for due, each in found[:most]:
        wall = due.astimezone(each.entry.zone).isoformat(timespec="seconds")
        if args.json:
            show.write_json({"due": wall, "name": each.entry.name})
        else:
            show.write(f"{wall}  {printable(each.entry.name)}")


def _run(app: Greenq, args: argparse.Namespace) -> None:
    (name,) = _words(args, "NAME")
    sent = app.periodic.run(name)
    if args.json:
        show.write_json({"id": sent})
    else:
        show.write(sent)


def _pause(app: Greenq, args: argparse.Namespace) -> None:
    (name,) = _words(args, "NAME")
    app.periodic.pause(name)
    show.write(f"{printable(name)} is paused; greenq beat resume ends the pause")


def _resume(app: Greenq, args: argparse.Namespace) -> None:
    (name,) = _words(args, "NAME")
    if not app.periodic.resume(name):
        app.periodic.get(name)
        raise GreenqError(f"{name!r} is not paused")
    show.write(f"{printable(name)} is resumed: its schedule starts again from now")


def _add(app: Greenq, args: argparse.Namespace) -> None:
    name, task = _words(args, "NAME", "TASK")
    if (args.every is None) == (args.crontab is None):
        raise GreenqError("greenq beat add needs either --every or --crontab")
    app.periodic.add(
        name,
        task,
        args.every if args.crontab is None else args.crontab,
        args=args.task_args,
        kwargs=args.task_kwargs,
        options={"queue": args.queue} if args.queue else None,
        timezone=args.timezone,
        missed=args.missed,
        overlap=args.overlap,
        jitter=args.jitter,
        start=args.start,
        end=args.end,
    )
    show.write(f"{printable(name)} has been added; every beat sees it within a second")


def _remove(app: Greenq, args: argparse.Namespace) -> None:
    (name,) = _words(args, "NAME")
    if not app.periodic.remove(name):
        app.periodic.get(name)
        raise GreenqError(f"{name!r} is defined in settings or code: remove it there, or pause it")
    show.write(f"{printable(name)} has been removed")


def _backfill(app: Greenq, args: argparse.Namespace) -> None:
    (name,) = _words(args, "NAME")
    if args.begin is None or args.until is None:
        raise GreenqError("greenq beat backfill needs --from and --to")
    due = app.periodic.due_times(name, args.begin, args.until)
    if not due:
        raise GreenqError(f"{name!r} has no due time from {args.begin} to {args.until}")
    question = f"send {name} {len(due):,} times, for {due[0]} to {due[-1]}?"
    if not (args.yes or confirmed(question)):
        raise GreenqError("nothing was sent")
    ids = app.periodic.backfill(name, args.begin, args.until)
    if args.json:
        for task_id in ids:
            show.write_json({"id": task_id})
    else:
        show.write(f"sent {len(ids):,} tasks")


def _history(app: Greenq, args: argparse.Namespace) -> None:
    if len(args.words) > 1:
        raise GreenqError("greenq beat history takes one name, or none")
    limit = args.limit or _SHOWN_HISTORY
    sent = app.periodic.history(_ALL_HISTORY if args.words else limit)
    if args.words:
        sent = [each for each in sent if each.name == args.words[0]][:limit]
    states = {}
    if app.transport.stores_results and sent:
        metas = app.backend.get_readable([each.task_id for each in sent])
        states = {meta.task_id: meta.status for meta in metas}
    rows = []
    for each in sent:
        due, at = from_us(each.due), from_us(each.sent)
        late_s = (each.sent - each.due) / 1_000_000
        state = states.get(each.task_id, "-")
        if args.json:
            fields = {"name": each.name, "due": due.isoformat(), "sent": at.isoformat()}
            show.write_json(fields | {"id": each.task_id, "state": state})
        rows.append((
            due.isoformat(timespec="seconds"), f"{late_s:.3f} s", printable(each.name),
            each.task_id, state,
        ))  # fmt: skip
    if not args.json:
        show.write_table(("DUE", "LATE", "NAME", "ID", "STATE"), rows)


_ACTIONS: dict[str, Callable[[Any, Any], None]] = {
    "list": _list,
    "next": _next,
    "run": _run,
    "pause": _pause,
    "resume": _resume,
    "add": _add,
    "remove": _remove,
    "backfill": _backfill,
    "history": _history,
}


def _words(args: argparse.Namespace, *wanted: str) -> Sequence[str]:
    words: Sequence[str] = args.words
    if len(words) != len(wanted):
        takes = " ".join(wanted) or "no arguments"
        raise GreenqError(f"greenq beat {args.action} takes {takes}")
    return words


# --- as text --------------------------------------------------------------------------------------


def _fields(each: Listed, now: datetime) -> dict[str, Any]:
    entry, state = each.entry, each.state
    coming = each.next(1, now)
    return {
        "name": entry.name,
        "task": entry.task,
        "schedule": _plan(each),
        "timezone": str(entry.zone),
        "missed": entry.missed,
        "overlap": entry.overlap,
        "added": each.is_added,
        "paused": each.paused,
        "runs": state.runs if state else 0,
        "last": from_us(state.sent).isoformat() if state and state.sent else None,
        "last_id": state.task_id if state else None,
        "last_run": each.last_run or None,
        "next": coming[0].isoformat() if coming else None,
    }


def _row(each: Listed, now: datetime) -> tuple[str, ...]:
    entry, state, ended = each.entry, each.state, each.last_run
    last = how = took = "-"
    if state is not None and state.sent:
        last = f"{show.age((now - from_us(state.sent)).total_seconds())} ago"
        is_last = ended.get("id") == state.task_id
        how = str(ended.get("state", "?")) if is_last else "not ended"
        took = f"{ended['took']:.1f} s" if is_last and "took" in ended else "-"
    coming = each.next(1, now)
    then = coming[0].astimezone(entry.zone).isoformat(timespec="seconds") if coming else "never"
    cells = (
        *(entry.name, _plan(each), entry.task, last, how, took),
        "paused" if each.paused is not None else then,
    )
    return tuple(printable(cell) for cell in cells)


def _plan(each: Listed) -> str:
    return repr(each.entry.schedule).strip("<>")
