"""A workflow as one object: the states of its tasks, and how to stop it or run it again.

A `Workflow` reads and writes the index of workflows, which senders and workers maintain if the
setting ``workflow_index`` is on.

The app and the command line use this package.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.canvas import plan
from greenq.canvas.index import first_of
from greenq.canvas.nodes import FAILED, OPEN, PLANNED, REVOKED, WAITING, unrun
from greenq.canvas.send import send_signature
from greenq.errors import GreenqError, TaskRevokedError
from greenq.states import FAILURE, PENDING, STARTED, SUCCESS
from greenq.states import REVOKED as REVOKED_STATE
from greenq.transport.continuation import Noted
from greenq.transport.workflows import CANCELLED, PAUSED
from greenq.workflow.tree import STATES, Tree, WorkflowTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from greenq.transport.continuation import ChordPart
    from greenq.transport.workflows import WorkflowRecord, Workflows

# The first and the longest pause between checks while waiting.
_LOOK_S = 0.05
_MOST_LOOK_S = 0.5

# The interval at which workers ask which workflows are stopped, plus a small margin.
_KNOWN_S = 1.0

# A chord that is being completed now will be complete after this time.
_COMPLETED_S = 5.0

# How many tasks are written in one call.
_PORTION = 500

_CALLS = {"success": "s", "failure": "f", "end": "e"}


class Workflow:
    """A workflow in the index: the tasks with one root.

    Attributes:
        id: the id of its root, which is the task or the group that the workflow begins with.
    """

    def __init__(self, app: Any, workflow_id: str) -> None:
        """Create a handle for a workflow; nothing is read until it is needed."""
        self._app = app
        self.id = workflow_id

    # --- state -----------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The overall state: PENDING, STARTED, PAUSED, SUCCESS, FAILURE or REVOKED. Switches: yes.

        A workflow that the index does not know is also PENDING. A cancelled workflow is REVOKED
        immediately, even while some of its tasks are still ending.
        """
        record = self._index.record(self.id)
        return PENDING if record is None else state_of(record)

    @property
    def counts(self) -> dict[str, int]:
        """How many tasks are in each state; see `WorkflowTask.state`. Switches: yes."""
        record = self._index.record(self.id)
        return {} if record is None else counts_of(record)

    @property
    def progress(self) -> float:
        """Of the tasks known so far, the fraction that has ended, from 0 to 1. Switches: yes."""
        return progress_of(self.counts)

    def tree(self) -> Tree:
        """Read all tasks, and how they are connected. Switches: yes.

        Raises:
            GreenqError: the index does not know the workflow.
        """
        self._known()
        nodes = dict(self._index.nodes(self.id))
        return Tree(WorkflowTask.read(task_id, text) for task_id, text in nodes.items())

    def critical_path(self) -> list[WorkflowTask]:
        """Return the tasks that determined the workflow's duration so far. Switches: yes."""
        return self.tree().critical_path()

    def left_s(self) -> float | None:
        """Estimate how many more seconds the workflow will take; None if unknown. Switches: yes."""
        return self.tree().left_s(time.time())

    def wait(self, timeout: float | None = None) -> str:
        """Wait until all tasks have ended, and return the state of the workflow. Switches: yes.

        Raises:
            GreenqError: the index does not know the workflow.
            TimeoutError: the workflow has not ended after `timeout` seconds.
        """
        ends_s = math.inf if timeout is None else time.monotonic() + timeout
        pause_s = _LOOK_S
        while True:
            record = self._known()
            if record.over is not None:
                return state_of(record)
            if time.monotonic() + pause_s > ends_s:
                raise TimeoutError(f"workflow {self.id} has not ended after {timeout:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_LOOK_S)

    # --- stopping ---------------------------------------------------------------------------------

    def cancel(self) -> int:
        """Terminate running tasks and let no others begin; return how many tasks had not ended.

        Every task that has not ended becomes REVOKED, and its callers are notified. Switches: yes.

        Raises:
            GreenqError: the index does not know the workflow.
        """
        self._index.stop(self.id, CANCELLED)
        # Messages that were put aside while the workflow was paused end like other waiting ones.
        self._index.release(self.id)
        nodes = dict(self._index.nodes(self.id))
        ids = [task_id for task_id, text in nodes.items() if text[:1] in OPEN]
        running = {task_id for task_id in ids if nodes[task_id].startswith("r")}
        # A running task is ended by its worker, since it may succeed at this moment.
        self._revoke([task_id for task_id in ids if task_id not in running])
        return len(ids)

    def _revoke(self, task_ids: list[str]) -> None:
        transport, error = self._app.transport, TaskRevokedError("revoked")
        for at in range(0, len(task_ids), _PORTION):
            portion = task_ids[at : at + _PORTION]
            states = []
            if transport.stores_results:
                states = [transport.backend.stored(each, REVOKED_STATE, error) for each in portion]
            self._index.note([self._noted(each, unrun(REVOKED)) for each in portion], states)

    def pause(self) -> None:
        """Let no further task begin until `resume`; running tasks continue. Switches: yes.

        Raises:
            GreenqError: the index does not know the workflow, or it was cancelled.
        """
        if self._known().stop == CANCELLED:
            raise GreenqError(f"workflow {self.id} was cancelled: it cannot be paused")
        self._index.stop(self.id, PAUSED)

    def resume(self) -> None:
        """Continue a paused workflow. Switches: yes.

        Raises:
            GreenqError: the index does not know the workflow, or it was cancelled.
        """
        if self._known().stop == CANCELLED:
            raise GreenqError(f"workflow {self.id} was cancelled: retry() runs it again")
        self._index.stop(self.id, "")
        # From now on, if a worker that has not learned of this puts a message aside, the message
        # returns to its queue immediately (lua/settle.lua).
        self._index.release(self.id)

    # --- running again ----------------------------------------------------------------------------

    def retry(self) -> int:
        """Run failed and revoked tasks again, and all tasks that could not run because of them.

        Tasks that have succeeded keep their results. Return how many tasks were sent. Switches:
        yes.

        Raises:
            GreenqError: no task has failed, the messages are no longer stored, or the results that
                a chord needs no longer exist.
        """
        if self._known().stop == CANCELLED:
            self._index.stop(self.id, "")
            # A worker that has not learned of the retry would revoke the tasks that are sent now.
            time.sleep(_KNOWN_S)
        ends_s, sent = time.monotonic() + _COMPLETED_S, 0
        claims: dict[str, str] = {}
        while True:
            nodes = dict(self._index.nodes(self.id))
            tree = Tree(WorkflowTask.read(task_id, text) for task_id, text in nodes.items())
            failed = self._failed(tree)
            if self._reopen_chords(tree, failed, claims):
                if self._app.transport.stores_results:
                    self._index.forget(failed)
                seen = {task_id: nodes[task_id] for task_id in failed}
                count, is_done = self._index.reset(self.id, seen)
                sent += count
                if is_done:
                    return sent
                # Tasks have failed again since their states were read. Those states are gone now,
                # so this is no time to give up.
                ends_s = time.monotonic() + _COMPLETED_S
            elif time.monotonic() > ends_s:
                raise GreenqError(
                    f"workflow {self.id}: a chord is being completed at the moment; try again"
                )
            else:
                # Tasks have ended since their states were read.
                time.sleep(_LOOK_S)

    def _failed(self, tree: Tree) -> dict[str, WorkflowTask]:
        """Return the tasks to run again, by id."""
        failed = {
            task.id: task
            for task in tree.tasks.values()
            if task.state in (STATES[FAILED], STATES[REVOKED])
        }
        if not failed:
            raise GreenqError(f"workflow {self.id}: no task has failed")
        if not failed.keys() & self._index.kept(self.id):
            raise GreenqError(
                f"workflow {self.id}: {len(failed):,} tasks have failed, and none of their "
                "messages are kept: they were too large, or were never sent"
            )
        return failed

    def _reopen_chords(
        self, tree: Tree, failed: Mapping[str, WorkflowTask], claims: dict[str, str]
    ) -> bool:
        """Make the chords count their failed parts again; return False if the tree is out of date.

        `claims` are the claims on chords that made earlier calls fail. If a chord's body was sent
        or had failed before the tree was read, such a claim was left behind when the chord was
        completed.
        """
        # A cancelled body is revoked whether or not its chord was completed.
        unsure = (STATES[PLANNED], STATES[REVOKED])
        completed = {task.node.after for task in tree.tasks.values() if task.state not in unsure}
        parts: dict[str, list[WorkflowTask]] = defaultdict(list)
        for task in tree.tasks.values():
            if task.node.is_part and task.node.group is not None:
                parts[task.node.group].append(task)
        # All chords are checked before the first one is changed.
        seconds = self._app.transport.backend.chord_seconds
        for group, size, out, kept in [
            (group, len(tasks), *self._parts(group, tasks, failed))
            for group, tasks in parts.items()
            if any(task.id in failed for task in tasks)
        ]:
            left = claims.get(group, "") if group in completed else ""
            claims[group] = self._index.reopen(size, seconds, out, kept, left)
            if claims[group]:
                return False
        return True

    def _parts(
        self, group: str, tasks: list[WorkflowTask], failed: Mapping[str, WorkflowTask]
    ) -> tuple[list[ChordPart], list[ChordPart]]:
        """Return the parts of a chord that have failed, and those that have succeeded."""
        backend = self._app.transport.backend
        finished = [task for task in tasks if task.state == SUCCESS]
        metas = list(backend.get_many([task.id for task in finished]))
        gone = [meta.task_id for meta in metas if meta.status != SUCCESS]
        if gone:
            raise GreenqError(
                f"workflow {self.id}: the result of task {gone[0]}, which a chord needs, is gone: "
                "it has expired, or was ignored"
            )
        kept = [
            backend.part(group, task.node.place, task.id, SUCCESS, meta.result)
            for task, meta in zip(finished, metas, strict=True)
        ]
        out = [
            backend.part(group, task.node.place, task.id, FAILURE, None)
            for task in tasks
            if task.id in failed
        ]
        return out, kept

    # --- additions --------------------------------------------------------------------------------

    def add(self, signature: Mapping[str, Any], **options: Any) -> Any:
        """Send a signature as a further part of the workflow; return its handle. Switches: yes."""
        self._known()
        sig, given = self._app.signature(signature), {**options, "root_id": self.id}
        if plan.kind(sig) != "task":
            return sig.apply_async(**given)
        return send_signature(self._app, sig, (), {}, given)

    def on_success(self, signature: Mapping[str, Any]) -> None:
        """Have a signature sent when all tasks have ended and none has failed. Switches: yes.

        The signature is sent once, with only its own arguments; if all tasks have already ended, it
        is sent immediately. The same applies to `on_failure` and `on_end`.

        Raises:
            GreenqError: the index does not know the workflow, the workflow already has 100 such
                calls, or the signature begins with more than one task.
        """
        self._call("success", signature)

    def on_failure(self, signature: Mapping[str, Any]) -> None:
        """Have a signature sent when all tasks have ended and some have failed."""
        self._call("failure", signature)

    def on_end(self, signature: Mapping[str, Any]) -> None:
        """Have a signature sent when all tasks have ended, whatever their states."""
        self._call("end", signature)

    def _call(self, when: str, signature: Mapping[str, Any]) -> None:
        made = plan.plan(self._app.signature(signature))
        if len(made.calls) != 1 or made.chords:
            raise GreenqError(f"on_{when} takes a task or a chain, not a group or a chord")
        message = self._app.prepare_call(made.calls[0])
        transport = self._app.transport
        queue, text = message["queue"], message["text"]
        if transport.signer is not None:
            text = transport.signer.seal("message", queue, text)
        key = transport.keys.queue(queue, transport.keys.step_of(message["priority"]))
        self._index.call(self.id, _CALLS[when], key, text)

    # --- the index --------------------------------------------------------------------------------

    @property
    def _index(self) -> Workflows:
        index: Workflows = self._app.transport.workflows
        return index

    def _known(self) -> WorkflowRecord:
        record = self._index.record(self.id)
        if record is None:
            raise GreenqError(
                f"the index has no workflow {self.id}: it has expired, or senders and workers do "
                "not set workflow_index"
            )
        return record

    def _noted(self, task_id: str, state: str) -> Noted:
        return Noted(self.id, self._index.seconds, task_id, state)

    def __repr__(self) -> str:
        """Show the workflow's id."""
        return f"Workflow({self.id!r})"


def workflow_id(found: Any) -> str:
    """Return the id of a workflow, given that id or the handle of the workflow's end."""
    if isinstance(found, str):
        return found
    root: str = first_of(found.as_tuple())
    return root


def all_workflows(app: Any, limit: int) -> Iterator[tuple[Workflow, WorkflowRecord]]:
    """Yield the newest workflows of the index. Switches: yes."""
    for found, record in islice(app.transport.workflows.records(limit), limit):
        yield Workflow(app, found), record


def state_of(record: WorkflowRecord) -> str:
    """Return the state of a workflow as a whole."""
    counts = record.counts
    if record.stop == CANCELLED and (record.over is None or counts.get(REVOKED)):
        return REVOKED_STATE
    if record.over is not None:
        return FAILURE if counts.get(FAILED) or counts.get(REVOKED) else SUCCESS
    if record.stop == PAUSED:
        return "PAUSED"
    has_begun = any(count for letter, count in counts.items() if letter not in ("p", WAITING, "+"))
    return STARTED if has_begun else PENDING


def counts_of(record: WorkflowRecord) -> dict[str, int]:
    """Return how many tasks are in each state."""
    return {
        word: record.counts[letter] for letter, word in STATES.items() if record.counts.get(letter)
    }


def progress_of(counts: Mapping[str, int]) -> float:
    """Return the fraction of the tasks that have ended."""
    total = sum(counts.values())
    ended = sum(counts.get(state, 0) for state in (SUCCESS, FAILURE, REVOKED_STATE))
    return ended / total if total else 0.0


__all__ = ["Tree", "Workflow", "WorkflowTask"]
