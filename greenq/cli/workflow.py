"""``greenq workflow``: list workflows, show one, and cancel, pause, resume or retry it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import argument_types, show
from greenq.cli.common import add_app_options, opened
from greenq.cli.queues import UNSEALED_S, never_sent
from greenq.cli.show import printable
from greenq.errors import GreenqError
from greenq.workflow import all_workflows, counts_of, progress_of, state_of
from greenq.workflow.tree import Tree, WorkflowGroup, WorkflowTask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from greenq.app import Greenq
    from greenq.transport.workflows import WorkflowRecord
    from greenq.workflow import Workflow
    from greenq.workflow.tree import WorkflowStep

# How many workflows in the list, and members of a group in a tree, are shown by default.
_SHOWN_WORKFLOWS: Final = 100
_SHOWN_MEMBERS: Final = 20
_APART_S: Final = 1.0
_TOP_LEFT: Final = "\033[H\033[J"

_HEADINGS = ("AGE", "ID", "STATE", "DONE", "TASKS", "FAILED", "FIRST TASK")

_COLORS = {
    "SUCCESS": "32", "STARTED": "36", "FAILURE": "31", "REVOKED": "35", "RETRY": "33",
}  # fmt: skip
_FILLS = {
    "SUCCESS": "palegreen", "STARTED": "lightcyan", "FAILURE": "salmon", "REVOKED": "plum",
    "RETRY": "khaki",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add("action", choices=("list", *_ACTIONS),
        help="show: draw the tree; watch: draw it every second; retry: run failed tasks "
        "again")  # fmt: skip
    add("id", nargs="?", help="the workflow's id, which is that of its first task or group")
    add_app_options(parser)
    add("--dot", action="store_true", help="with show: print a graph for Graphviz")
    add("--limit", type=argument_types.count, metavar="N",
        help="list the newest N workflows (default 100), or show N members of each group "
        "(default 20)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    with opened(args) as app:
        if args.action == "list":
            _list(app, args)
            return 0
        if args.id is None:
            raise GreenqError(
                f"no workflow named: give its id, as in greenq workflow {args.action} ID; "
                "greenq workflow list shows the ids"
            )
        _ACTIONS[args.action](app, app.workflow(args.id), args)
    return 0


# --- the actions ----------------------------------------------------------------------------------


def _list(app: Greenq, args: argparse.Namespace) -> None:
    now_s = time.time()
    found = [
        (workflow.id, record)
        for workflow, record in all_workflows(app, args.limit or _SHOWN_WORKFLOWS)
    ]
    if args.json:
        for workflow_id, record in found:
            show.write_json(fields(workflow_id, record))
        return
    show.write_table(_HEADINGS, [row(workflow_id, record, now_s) for workflow_id, record in found])
    show.write(f"{len(found):,} workflows" if found else "no workflows; is workflow_index set?")
    for chord in app.transport.chords.unsealed(UNSEALED_S):
        show.write(never_sent(chord))


def _show(app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    tree = workflow.tree()
    record = app.transport.workflows.record(workflow.id)
    if record is None:
        raise GreenqError(f"workflow {workflow.id} has just expired")
    if args.dot:
        lines = dot(tree)
    elif args.json:
        show.write_json(fields(workflow.id, record) | description(tree, time.time()))
        return
    else:
        lines = text(workflow.id, record, tree, args.limit or _SHOWN_MEMBERS, time.time())
    for line in lines:
        show.write(line)
    for chord in app.transport.chords.unsealed(UNSEALED_S):
        if chord.group_id in tree.groups and not args.dot:
            show.write(never_sent(chord))


def _watch(app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    with suppress(KeyboardInterrupt):
        while True:
            if sys.stdout.isatty() and not args.json:
                sys.stdout.write(_TOP_LEFT)
            _show(app, workflow, args)
            sys.stdout.flush()
            record = app.transport.workflows.record(workflow.id)
            if record is None or record.over is not None:
                return
            time.sleep(_APART_S)


def _cancel(_app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    count = workflow.cancel()
    _report(args, {"revoked": count}, f"cancelled; {count:,} tasks had not ended")


def _retry(_app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    count = workflow.retry()
    _report(args, {"sent": count}, f"{count:,} tasks sent again")


def _pause(_app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    workflow.pause()
    _report(args, {"state": "PAUSED"}, "paused: running tasks continue, but no others start")


def _resume(_app: Greenq, workflow: Workflow, args: argparse.Namespace) -> None:
    workflow.resume()
    _report(args, {"state": workflow.state}, "resumed")


_ACTIONS = {
    "show": _show, "watch": _watch, "cancel": _cancel, "retry": _retry, "pause": _pause,
    "resume": _resume,
}  # fmt: skip


def _report(args: argparse.Namespace, values: dict[str, Any], sentence: str) -> None:
    if args.json:
        show.write_json({"id": args.id, **values})
    else:
        show.write(f"{printable(args.id)}: {sentence}")


# --- as JSON --------------------------------------------------------------------------------------


def fields(workflow_id: str, record: WorkflowRecord) -> dict[str, Any]:
    """Return a summary of a workflow, for JSON."""
    counts = counts_of(record)
    return {
        "id": workflow_id,
        "state": state_of(record),
        "counts": counts,
        "progress": round(progress_of(counts), 4),
        "since": _iso(record.since),
        "over": None if record.over is None else _iso(record.over),
        "task": record.task,
        "left_out": record.left_out,
        "error": record.error,
    }


def description(tree: Tree, now_s: float) -> dict[str, Any]:
    """Return the tasks of a workflow, for JSON."""
    left_s = tree.left_s(now_s)
    return {
        "left_s": None if left_s is None else round(left_s, 3),
        "critical_path": [task.id for task in tree.critical_path()],
        "tasks": [
            {
                "id": task.id,
                "task": task.name,
                "state": task.state,
                "before": tree.before(task),
                "parent": task.node.parent,
                "group": task.node.group,
                "began": None if task.began is None else _iso(task.began),
                "ended": None if task.ended is None else _iso(task.ended),
                "worker": task.worker,
            }
            for task in tree.tasks.values()
        ],
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


# --- as text --------------------------------------------------------------------------------------


def row(workflow_id: str, record: WorkflowRecord, now_s: float) -> tuple[str, ...]:
    """Return a workflow's row in the list."""
    counts = counts_of(record)
    return (
        show.age(now_s - record.since),
        printable(workflow_id),
        state_of(record),
        f"{progress_of(counts):.0%}",
        show.number(sum(counts.values())),
        show.number(counts.get("FAILURE", 0) + counts.get("REVOKED", 0)),
        printable(record.task) or "-",
    )


def text(
    workflow_id: str, record: WorkflowRecord, tree: Tree, limit: int, now_s: float
) -> Iterator[str]:
    """Draw a workflow: one line for each task and group, with members of groups indented."""
    counts = counts_of(record)
    head = f"workflow {printable(workflow_id)}: {_painted(state_of(record))}"
    ended = f"{progress_of(counts):.0%} of {sum(counts.values()):,} tasks have ended"
    took = show.age((record.over or now_s) - record.since)
    left_s = None if record.over is not None else tree.left_s(now_s)
    yield ", ".join([head, ended, took, *([] if left_s is None else [f"{show.age(left_s)} left"])])
    yield ", ".join(f"{count:,} {state}" for state, count in counts.items())
    if record.counts.get("+"):
        yield "it is still being sent; if its sender has died, cancel it, or it will never end"
    if record.left_out:
        yield f"{record.left_out:,} notes did not fit into the index"
    if record.error:
        yield f"a call could not be sent when the workflow ended: {printable(record.error)}"
    yield ""
    yield from _drawn(tree.lines, "", limit, now_s)
    path = tree.critical_path()
    if record.over is not None and len(path) > 1:
        yield ""
        names = " > ".join(printable(task.name or task.id) for task in path[:limit])
        more = "" if len(path) <= limit else f" > … ({len(path):,} tasks)"
        yield f"critical path: {names}{more}"


def _drawn(
    lines: Sequence[list[WorkflowStep]], indent: str, limit: int, now_s: float
) -> Iterator[str]:
    # Users look for unfinished and failed tasks, so successful ones are omitted first.
    chosen = lines if len(lines) <= limit else sorted(lines, key=_is_well)[:limit]
    for line in chosen:
        mark = "- "
        for step in line:
            what = step.what
            if isinstance(what, WorkflowTask):
                yield indent + mark + _task_line(what, now_s)
            else:
                kind = "chord" if what.is_chord else "group"
                yield f"{indent}{mark}{kind} {printable(what.id)}: {_counted(what)}"
                yield from _drawn(what.members, indent + "    ", limit, now_s)
            yield from _drawn(step.others, indent + "    ", limit, now_s)
            mark = "> "
    if len(lines) > len(chosen):
        yield f"{indent}… {len(lines) - len(chosen):,} more; --limit shows more"


def _is_well(line: list[WorkflowStep]) -> bool:
    """Return whether a sequence of steps consists of tasks that have all succeeded."""
    return all(
        isinstance(step.what, WorkflowTask) and step.what.state == "SUCCESS" for step in line
    )


def _counted(group: WorkflowGroup) -> str:
    ended = sum(
        isinstance(line[-1].what, WorkflowTask) and not line[-1].what.is_open
        for line in group.members
    )
    return f"{ended:,} of {len(group.members):,} have ended"


def _task_line(task: WorkflowTask, now_s: float) -> str:
    words = [printable(task.name) or "?", printable(task.id), _painted(task.state)]
    runtime_s = task.runtime_s(now_s)
    if runtime_s is not None:
        words.append(f"{runtime_s:,.3f} s")
    if task.worker:
        words.append(printable(task.worker))
    return "  ".join(words)


def _painted(state: str) -> str:
    color = _COLORS.get(state)
    return f"\033[{color}m{state}\033[0m" if color and show.bold_wanted() else state


# --- as a graph -----------------------------------------------------------------------------------


def dot(tree: Tree) -> Iterator[str]:
    """Return the lines of the tree for Graphviz; a point stands for the end of a group."""
    yield "digraph workflow {"
    yield "  rankdir=LR; node [shape=box, style=filled, fillcolor=white];"
    for task in tree.tasks.values():
        label = show.dot_quoted(printable(f"{task.name or task.id} {task.state}"))
        fill = _FILLS.get(task.state, "white")
        yield f"  {_name(task.id)} [label={label}, fillcolor={fill}];"
    for group_id in tree.groups:
        yield f'  {_name(group_id)} [shape=point, xlabel="group"];'
    yield from _edges(tree, tree.tasks.values())
    yield "}"


def _edges(tree: Tree, tasks: Iterable[WorkflowTask]) -> Iterator[str]:
    for task in tasks:
        before, group = tree.before(task), task.node.group
        if before is not None:
            yield f"  {_name(before)} -> {_name(task.id)};"
        if group in tree.groups and group != before:
            yield f"  {_name(task.id)} -> {_name(group)};"


def _name(identifier: str) -> str:
    return show.dot_quoted(printable(identifier))
