"""The names of all keys in Redis, and the members of binding sets."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from hashlib import sha1
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SEP = "\x06\x16"
PRIORITY_STEPS = (0, 3, 6, 9)

# AMQP has the same limit. Longer binding keys are ignored, because any program can write them, and
# matching them takes time.
MOST_KEY_CHARS = 255
# Each worker's own queue is bound to this exchange under the worker's node name.
DIRECT_EXCHANGE = "C.dq2"
DIRECT_SUFFIX = ".dq2"

_RESULT_PREFIX_ENDS = (":", "_", "-", ".")


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key of one broker and its result store.

    Attributes:
        prefix: prefix of all broker keys (`global_keyprefix`); "" for none.
        sep: separates a queue's name from its priority step.
        steps: the priority steps in ascending order, starting with 0.
        result_prefix: prefix of result keys; an underscore is added unless it ends in
            one of ``: _ - .``.
        db: the number of the database, which is part of the channels of fanout exchanges.
    """

    prefix: str = ""
    sep: str = SEP
    steps: tuple[int, ...] = PRIORITY_STEPS
    result_prefix: str = ""
    db: int = 0

    @property
    def unacked(self) -> str:
        """Hash: reserved messages by delivery tag."""
        return f"{self.prefix}unacked"

    @property
    def unacked_index(self) -> str:
        """Sorted set: delivery tags by the time of the take, in unix seconds."""
        return f"{self.prefix}unacked_index"

    @property
    def unacked_mutex(self) -> str:
        """String: lock for restoring overdue messages."""
        return f"{self.prefix}unacked_mutex"

    def eta(self, queue: str) -> str:
        """Sorted set, greenq's own: a queue's parked messages by due time."""
        return f"{self.prefix}greenq.eta.{queue}"

    @property
    def leases(self) -> str:
        """Sorted set, greenq's own: worker incarnations by the end of their lease, in unix time."""
        return f"{self.prefix}greenq.leases"

    @property
    def gone(self) -> str:
        """List, greenq's own: workers that died within the last hour, latest first, as JSON."""
        return f"{self.prefix}greenq.gone"

    @property
    def revoked(self) -> str:
        """Sorted set, greenq's own: revoked ids and stamps as JSON, by unix time of revocation."""
        return f"{self.prefix}greenq.revoked"

    @property
    def clock(self) -> str:
        """Sorted set, greenq's own: one member, whose score is the highest logical clock."""
        return f"{self.prefix}greenq.clock"

    @property
    def unsealed(self) -> str:
        """Sorted set, greenq's own: chords whose header is being sent, as JSON, by unix seconds."""
        return f"{self.prefix}greenq.unsealed"

    @property
    def workflows(self) -> str:
        """Sorted set, greenq's own: the indexed workflows by the time they began, in unix time."""
        return f"{self.prefix}greenq.workflows"

    @property
    def stopped_workflows(self) -> str:
        """Hash, greenq's own: the workflows that are cancelled or paused.

        Shape: for each id, ``cancelled`` or ``paused``, and the time of that change in unix
            seconds; in the field "", the number of changes.
        """
        return f"{self.prefix}greenq.workflows.stopped"

    def workflow(self, workflow_id: str) -> str:
        """Hash, greenq's own: the index's data about a whole workflow.

        Other keys begin with this one: ``.nodes``, a hash of its tasks; ``.failed``, a hash of the
        messages of the tasks that failed; ``.held``, a list of the messages that wait while the
        workflow is paused; and ``.calls``, a list of the messages to send when it ends.
        """
        return f"{self.prefix}greenq.workflow.{workflow_id}"

    @property
    def binding_deadlines(self) -> str:
        """Sorted set: exchanges of expiring queues by deadline, in unix milliseconds."""
        return f"{self.prefix}_kombu.binding_deadlines"

    def queue(self, name: str, step: int = 0) -> str:
        """Return the list of a queue at a priority step."""
        return f"{self.prefix}{name}{self.sep}{step}" if step else self.prefix + name

    def queue_steps(self, name: str) -> tuple[str, ...]:
        """Return all lists of a queue, most urgent first."""
        return tuple(self.queue(name, step) for step in self.steps)

    def step_of(self, priority: object) -> int:
        """Return the step that serves a priority: the largest step that does not exceed it.

        A priority is clamped to 0..9. A missing priority, or one that is not a number, counts as 0.
        """
        try:
            number: Any = int(priority) if isinstance(priority, str) else priority
            # Clamp the number before the conversion to int, since Decimal("1E+999999999") would
            # give a billion digits.
            number = int(min(max(number, 0), 9))
        except (TypeError, ValueError, ArithmeticError):
            return self.steps[0]
        return self.steps[bisect_right(self.steps, number) - 1]

    def binding(self, exchange: str) -> str:
        """Set: all bindings of an exchange."""
        return f"{self.prefix}_kombu.binding.{exchange}"

    def permanent_binding(self, exchange: str) -> str:
        """Set: the bindings of an exchange to queues that do not expire."""
        return f"{self.prefix}_kombu.binding_permanent.{exchange}"

    def result(self, task_id: str) -> str:
        """Return the key of a task's result, which is also the name of its channel."""
        return f"{self._result_prefix()}celery-task-meta-{task_id}"

    def group(self, group_id: str) -> str:
        """Return the key of a saved group, which is also the name of its channel.

        The keys of its chord are this key with Celery's endings (``.j`` for the parts' values,
        ``.d`` for the parts counted, ``.s`` for the size, ``.t`` for the number added to the size,
        ``.c`` for the sender of the body) and greenq's own ``.a``, for the ids that were added.
        """
        return f"{self._result_prefix()}celery-taskset-meta-{group_id}"

    def _result_prefix(self) -> str:
        prefix = self.result_prefix
        if prefix and not prefix.endswith(_RESULT_PREFIX_ENDS):
            prefix += "_"
        return prefix

    def inbox(self, queue: str) -> str:
        """List: messages on their way to a waiting greenq worker; no Celery process reads it."""
        return f"{self.prefix}greenq.inbox.{queue}"

    def owner(self, incarnation: str) -> str:
        """Hash, greenq's own: what the server knows about a worker incarnation, except its lease.

        Shape: ``next``, the number of its first unused delivery tag; ``call``, the number of
            its last take; ``alone``, the tag of the message that is running alone there;
            ``closed``, once it has left; ``claimant`` and ``claimed_until``, the worker that
            recovers it; ``queues``, as JSON, the queues that it takes from. The key expires a week
            after the incarnation's last call.
        """
        return f"{self.prefix}greenq.owner.{incarnation}"

    def begun(self, incarnation: str) -> str:
        """Set, greenq's own: an owner's tags that were acknowledged before their runs ended."""
        return f"{self.prefix}greenq.begun.{incarnation}"

    def relay(self, queues: Iterable[str]) -> str:
        """Text, greenq's own: the worker that relays from lists that no worker is waiting on.

        Each set of queues has one such key, which expires with the worker's lease.
        """
        return f"{self.prefix}greenq.relay.{_digest(queues)}"

    def recycling(self, queues: Iterable[str]) -> str:
        """Sorted set, greenq's own: workers that are restarting, by node name.

        Each set of queues has one such key. A worker's score is the time until which its restart
        counts, in unix seconds.
        """
        return f"{self.prefix}greenq.recycling.{_digest(queues)}"

    @property
    def paused(self) -> str:
        """Hash, greenq's own: paused queues, and who paused them."""
        return f"{self.prefix}greenq.paused"

    @property
    def beat_states(self) -> str:
        """Hash, greenq's own: each periodic entry's last due time, and what was then sent."""
        return f"{self.prefix}greenq.beat.states"

    @property
    def beat_entries(self) -> str:
        """Hash, greenq's own: the periodic entries added at run time, as JSON, by name."""
        return f"{self.prefix}greenq.beat.entries"

    @property
    def beat_paused(self) -> str:
        """Hash, greenq's own: the paused periodic entries, and who paused them."""
        return f"{self.prefix}greenq.beat.paused"

    @property
    def beat_runs(self) -> str:
        """Hash, greenq's own: how the last finished run of each periodic entry ended, as JSON."""
        return f"{self.prefix}greenq.beat.runs"

    @property
    def beat_history(self) -> str:
        """List, greenq's own: the latest periodic tasks sent, newest first."""
        return f"{self.prefix}greenq.beat.history"

    @property
    def beat_changes(self) -> str:
        """Number, greenq's own: how many times entries were added, changed, removed or paused."""
        return f"{self.prefix}greenq.beat.changes"

    def beat_leader(self, schedule: str) -> str:
        """Text, greenq's own: the beat that sends tasks for a schedule; expires after 4 s."""
        return f"{self.prefix}greenq.beat.leader.{schedule}"

    def group_leader(self, group: str) -> str:
        """Text, greenq's own: the process that sizes a supervisord group; expires."""
        return f"{self.prefix}greenq.processes.leader.{group}"

    def group_reports(self, group: str) -> str:
        """Hash, greenq's own: the load of each process of a supervisord group, as JSON; expires."""
        return f"{self.prefix}greenq.processes.reports.{group}"

    def group_draining(self, group: str) -> str:
        """Set, greenq's own: the processes of a supervisord group that must drain; expires."""
        return f"{self.prefix}greenq.processes.draining.{group}"

    def elected(self, election_id: str) -> str:
        """Text, greenq's own: which node acts as the winner of an election; expires after 1 h."""
        return f"{self.prefix}greenq.elected.{election_id}"

    def fanout(self, exchange: str, routing_key: str = "") -> str:
        """Return the channel of a fanout exchange, or a pattern if the routing key has a ``*``."""
        channel = f"{self.prefix}/{self.db}.{exchange}"
        return f"{channel}/{routing_key}" if routing_key else channel

    def dead(self, queue: str) -> str:
        """List, greenq's own: the dead letters of a queue; no Celery process reads them."""
        return f"{self.prefix}greenq.dead.{queue}"


def _digest(queues: Iterable[str]) -> str:
    """Return a short name for a set of queues."""
    return sha1(SEP.join(sorted(queues)).encode(), usedforsecurity=False).hexdigest()


def binding_member(routing_key: str, pattern: str, queue: str, sep: str = SEP) -> str:
    """Return a member of a binding set as text."""
    return sep.join((routing_key, pattern, queue))


class BindingMember(NamedTuple):
    """A parsed member of a binding set; it has a pattern only for a topic exchange."""

    routing_key: str
    pattern: str
    queue: str


def read_member(member: bytes, sep: str) -> BindingMember | None:
    """Parse a member of a binding set; return None if it is malformed."""
    parts = member.decode("utf-8", "replace").split(sep)
    return BindingMember(*parts) if len(parts) == 3 else None


def topic_pattern(binding_key: str) -> str:
    r"""Turn a topic exchange's binding key into the regular expression that Celery's senders use.

    ``*`` stands for one word, and ``#`` for any number of words, including none. The result is what
    Celery's workers write, except for ``#``: their expression, such as ``media\..*?``, requires at
    least a dot in its place. greenq's own senders use `topic_matches`.
    """
    # Several ``#`` in a row mean the same as one.
    words = [
        word
        for is_any, run in groupby(binding_key.split("."), "#".__eq__)
        for word in (("#",) if is_any else run)
    ]
    if words == ["#"]:
        return "^.*$"
    parts: list[str] = []
    for place, word in enumerate(words):
        if word == "#":
            # The words that ``#`` matches include the dot before or after the neighbouring word.
            parts.append(r"(?:\..*)?" if place else r"(?:.*\.)?")
        else:
            dot = "" if place == 0 or (place == 1 and words[0] == "#") else r"\."
            parts.append(dot + (r"[^\.]+" if word == "*" else _escape(word)))
    return f"^{''.join(parts)}$"


def _escape(word: str) -> str:
    """Escape every character except letters and digits, as Celery does."""
    return "".join(char if char.isalnum() else "\\" + char for char in word)


def topic_matches(binding_key: str, routing_key: str) -> bool:
    """Return whether a topic exchange's binding key matches a routing key.

    Each word of the binding key is compared at most once with each word of the routing key, so no
    binding can make this slow.
    """
    if len(binding_key) > MOST_KEY_CHARS:
        return False
    words = routing_key.split(".")
    # Each n for which the parts compared so far match the first n words of the routing key.
    ends = {0}
    for part in binding_key.split("."):
        if part == "#":
            ends = set(range(min(ends), len(words) + 1))
        else:
            ends = {
                end + 1
                for end in ends
                if end < len(words) and (words[end] == part or (part == "*" and words[end]))
            }
        if not ends:
            return False
    return len(words) in ends


def matching_queues(members: Iterable[bytes], routing_key: str, sep: str) -> list[str]:
    """Return the queues that an exchange's bindings lead to, without duplicates.

    If a member has no pattern, the keys must be equal (direct). If it has one, the binding key has
    wildcards (topic). The pattern itself is not used: anyone may have written it, and matching a
    regular expression can take forever. Malformed members are ignored.
    """
    found = (read_member(member, sep) for member in sorted(members))
    return list(
        dict.fromkeys(
            each.queue
            for each in found
            if each is not None
            and (
                topic_matches(each.routing_key, routing_key)
                if each.pattern
                else each.routing_key == routing_key
            )
        )
    )
