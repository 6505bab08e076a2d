"""The index of workflows on the server: their state, and the requests to stop them.

The script that ends a task (lua/settle.lua) updates the index. See `greenq.canvas.nodes` for what
the index keeps about a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from greenq.errors import GreenqError, ServerError
from greenq.transport.client import load_script
from greenq.transport.continuation import Continuation, Noted
from greenq.transport.listener import portions
from greenq.transport.settle import INDEX, KEEP, Settlement, settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Script
    from greenq.transport.continuation import ChordPart
    from greenq.transport.settle import StateWrite

_STOP = load_script("workflow_stop")
_RELEASE = load_script("workflow_release")
_CALL = load_script("workflow_call")
_FORGET = load_script("workflow_forget")
_REOPEN = load_script("workflow_reopen")
_RESET = load_script("workflow_reset")

CANCELLED, PAUSED = "cancelled", "paused"

# A paused workflow, whose messages are on hold, is kept for 30 days after it was paused.
_PAUSED_S = 30 * 86400

# How long the index keeps a workflow if results never expire.
_KEPT_S = 86400

# How many workflows may be stopped at once, and how many calls a workflow may send when it ends.
_MOST_STOPPED = 10_000
_MOST_CALLS = 100

# How many entries are written or moved in one call.
_PORTION = 500


class WorkflowRecord(NamedTuple):
    """What the index keeps about a whole workflow; times are unix seconds.

    Attributes:
        task: the name of its first task.
        stop: ``cancelled``, ``paused`` or "".
        counts: how many nodes are in each state, by letter; ``+`` counts senders.
        left_out: how many notes did not fit into the index.
        error: why a call could not be sent; "" if all were sent.
    """

    since: float
    task: str
    over: float | None
    stop: str
    counts: dict[str, int]
    left_out: int
    error: str


def item(key: str, text: str | bytes) -> bytes:
    """Return a message together with its list's key, in the form that the index keeps."""
    place, data = key.encode(), text.encode() if isinstance(text, str) else text
    return b"%d:%b%b" % (len(place), place, data)


def index_seconds(expires_s: float | None) -> int:
    """Return how long the index keeps a workflow whose results are kept for `expires_s`."""
    return int(expires_s or _KEPT_S)


class Workflows:
    """The index of workflows. Switches: yes, in every method."""

    def __init__(self, broker: Client, results: Client | None, keys: Keys, seconds: int) -> None:
        """Keep the index on `broker`, each workflow for `seconds` after its last change."""
        self._client = broker
        self._results = None if results is broker else results
        self._keys = keys
        self.seconds = seconds

    # --- writing ----------------------------------------------------------------------------------

    def note(self, items: Iterable[Noted], states: Sequence[StateWrite] = ()) -> None:
        """Write what happened to tasks, and the states of tasks that have not run.

        Raises:
            ServerError: the server refuses to write the index.
        """
        entries = [Settlement("", KEEP, workflow=Continuation(index=list(items)))]
        entries += [Settlement("", KEEP, result=state.of_unrun()) for state in states]
        settled = settle(self._client, self._keys, entries, results=self._results)
        if settled.unpublished.startswith(INDEX):
            raise ServerError("EVALSHA", settled.unpublished.removeprefix(INDEX))

    def stop(self, workflow_id: str, how: str) -> str:
        """Cancel or pause a workflow, or resume it with ""; return the previous value.

        Raises:
            GreenqError: the index does not know the workflow, or too many workflows are stopped.
        """
        names = [self._keys.workflow(workflow_id), self._keys.stopped_workflows]
        limits = [max(_PAUSED_S, self.seconds), _MOST_STOPPED, _PAUSED_S]
        before: bytes = self._run(_STOP, workflow_id, names, [workflow_id, how, *limits])
        return before.decode()

    def release(self, workflow_id: str) -> None:
        """Send the messages of a paused workflow back to their queues."""
        key = self._keys.workflow(workflow_id)
        while self._client.script(_RELEASE, [key, f"{key}.held"], [_PORTION]):
            pass

    def call(self, workflow_id: str, when: str, key: str, text: str | bytes) -> None:
        """Register a message to be sent when a workflow ends; `when` is ``s``, ``f`` or ``e``.

        Raises:
            GreenqError: the index does not know the workflow, or the workflow has too many calls.
        """
        name = self._keys.workflow(workflow_id)
        self._run(_CALL, workflow_id, [name, f"{name}.calls"], [when, item(key, text), _MOST_CALLS])

    def _run(self, script: Script, workflow_id: str, names: list[str], args: list[object]) -> bytes:
        try:
            answer: bytes = self._client.script(script, names, args)
        except ServerError as exc:
            if exc.reply.startswith(("UNKNOWN", "FULL")):
                raise GreenqError(f"workflow {workflow_id}: {exc.reply.partition(' ')[2]}") from exc
            raise
        return answer

    # --- retrying ---------------------------------------------------------------------------------

    def reopen(
        self,
        size: int,
        seconds: int,
        failed: Sequence[ChordPart],
        kept: Sequence[ChordPart],
        left: str = "",
    ) -> str:
        """Remove failed parts from a chord; if the chord has ended, restore the `kept` parts.

        `left` is a claim that was left behind, and is ignored.

        Returns:
            An empty string if the chord is prepared. Otherwise nothing was done, and the result is
            the claim by the part that is completing the chord at this moment, or ``done`` if a part
            has ended since the states were read.
        """
        args: list[object] = [size, failed[0].rule[0], seconds, len(failed), left]
        for each in failed:
            args += (each.member, each.place)
        for each in kept:
            args += (each.member, each.place, each.value)
        results = self._results or self._client
        claim: bytes = results.script(_REOPEN, [failed[0].group], args)
        return claim.decode()

    def forget(self, task_ids: Iterable[str]) -> None:
        """Remove the states of failed tasks that have not succeeded in the meantime."""
        results = self._results or self._client
        for portion in portions(task_ids):
            results.script(_FORGET, [self._keys.result(each) for each in portion], ())

    def reset(self, workflow_id: str, seen: Mapping[str, str]) -> tuple[int, bool]:
        """Reopen failed nodes, given as their texts by id, and send their messages.

        Returns:
            How many messages were sent, and whether all nodes were reset; some may have failed
            again in the meantime.
        """
        name = self._keys.workflow(workflow_id)
        names = [name, f"{name}.nodes", f"{name}.failed"]
        items, sent = list(seen.items()), 0
        for at in range(0, len(items), _PORTION):
            args = [
                each
                for task_id, text in items[at : at + _PORTION]
                for each in (task_id, text.partition("|")[0])
            ]
            count = self._client.script(_RESET, names, args)
            if count < 0:
                return sent, False
            sent += count
        return sent, True

    # --- reading ----------------------------------------------------------------------------------

    def record(self, workflow_id: str) -> WorkflowRecord | None:
        """Read the entry for a whole workflow; return None if the index has no such workflow."""
        return _record(self._client.call("HGETALL", self._keys.workflow(workflow_id)))

    def records(self, limit: int) -> Iterator[tuple[str, WorkflowRecord]]:
        """Yield the ids and records of the newest workflows; expired workflows are omitted."""
        found = self._client.call("ZREVRANGE", self._keys.workflows, 0, limit - 1)
        for at in range(0, len(found), _PORTION):
            ids = [each.decode(errors="replace") for each in found[at : at + _PORTION]]
            answers = self._client.pipeline(
                [("HGETALL", self._keys.workflow(each)) for each in ids]
            )
            for workflow_id, answer in zip(ids, answers, strict=True):
                record = _record(answer)
                if record is not None:
                    yield workflow_id, record

    def nodes(self, workflow_id: str) -> Iterator[tuple[str, str]]:
        """Yield the ids of a workflow's tasks with their entries; some tasks may appear twice."""
        cursor, key = b"0", f"{self._keys.workflow(workflow_id)}.nodes"
        while True:
            cursor, found = self._client.call("HSCAN", key, cursor, "COUNT", _PORTION)
            for task_id, text in zip(found[::2], found[1::2], strict=True):
                yield task_id.decode(errors="replace"), text.decode(errors="replace")
            if int(cursor) == 0:
                return

    def kept(self, workflow_id: str) -> set[str]:
        """Return the ids of the failed tasks whose messages are kept for a retry."""
        key = f"{self._keys.workflow(workflow_id)}.failed"
        return {each.decode(errors="replace") for each in self._client.call("HKEYS", key)}

    def changes(self) -> int:
        """Return how many times workflows have been stopped or resumed."""
        return int(self._client.call("HGET", self._keys.stopped_workflows, "") or 0)

    def stopped(self) -> dict[str, str]:
        """Return the workflows that are stopped: ``cancelled`` or ``paused``."""
        answer = self._client.call("HGETALL", self._keys.stopped_workflows)
        return {
            name.decode(errors="replace"): text.partition(b" ")[0].decode(errors="replace")
            for name, text in zip(answer[::2], answer[1::2], strict=True)
            if name
        }


def _record(answer: Sequence[bytes]) -> WorkflowRecord | None:
    fields = {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in zip(answer[::2], answer[1::2], strict=True)
    }
    if "since" not in fields:
        return None
    return WorkflowRecord(
        float(fields["since"]),
        fields.get("task", ""),
        float(fields["over"]) if "over" in fields else None,
        fields.get("stop", ""),
        {name[2:]: int(value) for name, value in fields.items() if name.startswith("n.")},
        int(fields.get("left_out", 0)),
        fields.get("error", ""),
    )
