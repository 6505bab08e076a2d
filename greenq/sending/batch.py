"""Many messages in few pushes: the content of each push, and the plans of calls sent together."""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.errors import EncodeError
from greenq.protocol.ids import tag_of, tag_prefix
from greenq.sending.plan import KEPT_COUNT, OF_EACH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from greenq.protocol.event import Stamped
    from greenq.sending.announced import Announced
    from greenq.sending.plan import SendPlan
    from greenq.sending.routing import Router

# A push of a bulk send ends at the limit that is reached first. More messages would gain little,
# and commands of several hundred KB cost more per message, because of memory allocation.
_CHUNK_COUNT = 200
_CHUNK_CHARACTERS = 256 << 10
_CHUNK_S = 1.0

# The first messages of a workflow may contain all its later steps. Up to this size, they are sent
# in one push: if the sender were killed after sending only some of them, the workflow could never
# end.
_WHOLE_CHARACTERS = 8 << 20


class PushBatch:
    """The messages of one round of pushes, with one push for each destination."""

    def __init__(self, *, whole: bool = False) -> None:
        """Create an empty batch; if `whole`, a push ends only at the maximum count or at 8 MB."""
        self.count = 0
        self.tag_prefix = tag_prefix(time.time())
        self.events: list[Stamped] = []
        self.announced: list[Announced] = []
        self._characters = 0
        self._most = _WHOLE_CHARACTERS if whole else _CHUNK_CHARACTERS
        self._ends_s = math.inf if whole else time.monotonic() + _CHUNK_S
        self._places: dict[tuple[object, ...], tuple[SendPlan, list[str], list[str]]] = {}

    def is_full(self) -> bool:
        """Return whether this batch can take no more messages."""
        return (
            self.count >= _CHUNK_COUNT
            or self._characters >= self._most
            or (self.count > 0 and time.monotonic() >= self._ends_s)
        )

    @property
    def may_be_split(self) -> int:
        """How many messages a failure could leave partly sent: all if they go to several queues."""
        split = len(self._places) > 1 or any(plan.exchange for plan, _, _ in self.by_plan())
        return self.count if split else 0

    def add(self, plan: SendPlan, task_id: str, text: str) -> None:
        """Add a message."""
        place = self._places.get(plan.place)
        if place is None:
            place = self._places[plan.place] = (plan, [], [])
        place[1].append(task_id)
        place[2].append(text)
        self.count += 1
        self._characters += len(text)

    def by_plan(self) -> Iterable[tuple[SendPlan, list[str], list[str]]]:
        """Return the ids and texts for each destination, along with a plan that leads to it."""
        return self._places.values()


class KnownPlans:
    """The plans of calls that are sent together; most calls share a few sets of options."""

    def __init__(
        self,
        router: Router,
        plan_of: Callable[[str, Mapping[str, Any]], SendPlan],
        complete: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """Create an empty store; `complete` adds a task's and the sender's options to a call's."""
        self._router = router
        self._plan_of = plan_of
        self._complete = complete
        # The options are also kept, so that no other object can get the identity of one of their
        # values.
        self._known: dict[tuple[object, ...], tuple[SendPlan, Mapping[str, Any]]] = {}

    def forget_times(self) -> None:
        """Forget plans that contain a time, since countdowns are relative to the time of a push."""
        known = self._known.items()
        self._known = {
            key: each
            for key, each in known
            if each[0].message.eta is None and each[0].message.expires is None
        }

    def plan(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> SendPlan:
        """Return the plan of a call; option values that are not text are compared by identity."""
        if self._router.asks:
            completed = self._complete(task, options)
            return self._plan_of(task, self._router.ask(task, args, kwargs, completed))
        key = (
            task,
            *[
                (name, value if value.__class__ is str else id(value))
                for name, value in options.items()
                if name not in OF_EACH
            ],
        )
        known = self._known.get(key)
        if known is None:
            plan = self._plan_of(task, self._complete(task, options))
            if len(self._known) >= KEPT_COUNT:
                self._known.clear()
            known = self._known[key] = (plan, options)
        return known[0]


def write_chunk(
    plan: SendPlan,
    waiting: Iterator[tuple[str, tuple[Sequence[Any], Mapping[str, Any]]]],
    options: Mapping[str, Any],
    note: Callable[[str, Any, Any], object] | None,
    announce_one: Callable[[str, Any, Any], str] | None,
) -> tuple[list[str], Exception | None]:
    """Write the messages of one push, and return the error that cut the push short, if any.

    `note` is called with the id, args and kwargs of each message. `announce_one` passes each
    message to signal receivers and writes it; None if there are no receivers.
    """
    root_id, parent_id, group_index = map(options.get, ("root_id", "parent_id", "group_index"))
    texts: list[str] = []
    characters = 0
    prefix = tag_prefix(time.time())
    ends_s = time.monotonic() + _CHUNK_S
    template = plan.template
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    try:
        for task_id, (args, kwargs) in islice(waiting, _CHUNK_COUNT):
            if announce_one is not None:
                text = announce_one(task_id, args, kwargs)
            else:
                tag = tag_of(prefix, task_id)
                text = template.fill(
                    task_id,
                    args,
                    kwargs,
                    delivery_tag=tag,
                    root_id=root_id,
                    parent_id=parent_id,
                    group_index=group_index,
                )
            texts.append(text)
            if note is not None:
                note(task_id, args, kwargs)
            characters += len(text)
            if characters >= _CHUNK_CHARACTERS or time.monotonic() >= ends_s:
                break
    # If an item is wrong, or producing it raises an error, the items before it are still sent.
    except EncodeError as exc:
        return texts, plan.explained(args, kwargs, exc)
    except Exception as exc:
        return texts, exc
    return texts, None
