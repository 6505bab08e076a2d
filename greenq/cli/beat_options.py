"""The options of ``greenq beat``."""

from __future__ import annotations

import argparse
import os

from greenq.cli import argument_types, foreign
from greenq.cli.call import json_list, json_object, moment, seconds

ACTIONS = (
    "list", "next", "run", "pause", "resume", "add", "remove", "backfill", "history",
)  # fmt: skip

_HELP = """without an action: send periodic tasks until stopped; list: show the entries; next [NAME]
[N]: show when entries are due; run NAME: send an entry's task now; pause NAME, resume NAME; add
NAME TASK: add an entry, which is stored on the server; remove NAME: remove an added entry; backfill
NAME --from TIME --to TIME: send the task for each due time; history [NAME]: show recent sends"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add("action", nargs="?", choices=ACTIONS, help=_HELP)
    add("words", nargs="*", metavar="WORD", help="NAME, TASK or a number, depending on the action")
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="the app: module or module:name")
    add("-b", "--broker", type=argument_types.server, metavar="URL",
        help="the server's URL, instead of the app's broker_url; @FILE reads it from a "
        "file")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of text")
    _add_entry_options(parser.add_argument_group("add"))
    _add_time_options(parser.add_argument_group("backfill and history"))
    _add_service_options(parser.add_argument_group("sending"))
    foreign.add_beat_options(parser)


def _add_entry_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--every", type=argument_types.seconds, metavar="S", help="due every S seconds")
    add("--crontab", metavar="FIELDS",
        help="due at these wall-clock times: 'minute hour day month weekday'")  # fmt: skip
    add("-a", "--args", dest="task_args", type=json_list, metavar="JSON",
        help="the task's arguments, such as '[2, 2]'")  # fmt: skip
    add("-k", "--kwargs", dest="task_kwargs", type=json_object, metavar="JSON",
        help="the task's keyword arguments, such as '{\"x\": 2}'")  # fmt: skip
    add("--queue", metavar="NAME", help="send to this queue")
    add("--timezone", metavar="ZONE", help="time zone of --crontab, such as Europe/Berlin")
    add("--missed", metavar="POLICY", help="run_once, run_all or skip(SECONDS)")
    add("--overlap", metavar="POLICY", help="allow, skip, queue_one or cancel")
    add("--jitter", type=seconds, metavar="S", help="send each task up to S seconds late")
    add("--start", type=moment, metavar="TIME", help="nothing is due before this time")
    add("--end", type=moment, metavar="TIME", help="nothing is due after this time")


def _add_time_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--from", dest="begin", type=moment, metavar="TIME", help="backfill from this time")
    add("--to", dest="until", type=moment, metavar="TIME", help="backfill up to this time")
    add("--yes", action="store_true", help="backfill without asking")
    add("--limit", type=argument_types.count, metavar="N", help="show at most N lines")


def _add_service_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-l", "--loglevel", type=argument_types.level, default="INFO", metavar="LEVEL",
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL (default INFO)")  # fmt: skip
    add("-f", "--logfile", metavar="FILE", help="log to this file instead of stderr")
    add("--pidfile", metavar="FILE",
        help="write the process id to this file, which is locked against other "
        "beats")  # fmt: skip
