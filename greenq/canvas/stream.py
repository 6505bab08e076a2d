"""A group whose members are still being produced, and the calls to send for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.canvas.plan import (
    ONCE,
    Call,
    ChordStart,
    Handle,
    Place,
    Sig,
    Writer,
    body_of,
    chosen,
    completed,
    for_members,
    freeze,
    freeze_in,
    group_of,
    in_group,
    members,
    passed_on,
    place_of,
    updated,
    with_id,
)
from greenq.protocol.ids import TaskIds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class GroupStream:
    """A group whose members arrive one by one; it yields the calls for each, in constant memory.

    Attributes:
        group_id: the group's id.
        ids: the id of each member's end.
        count: the number of members so far.
        size: how many tasks end these members, that is, how many parts a chord has.
        special: handles of members with an id of their own, or with several ends, by position.
        start: the chord, if the group is a header; the chord's size is in `size`.
        body_handle: the handle of the chord's body.
    """

    def __init__(
        self,
        group: Sig,
        chord: Mapping[str, Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Prepare to send `group`, which has no members yet, alone or as the header of `chord`."""
        given = dict(options)
        task_id = given.pop("task_id", None)
        self.start: ChordStart | None = None
        self.body_handle: Handle | None = None
        if chord is None:
            made = updated(group, given)
            header = freeze(made if task_id is None else with_id(made, task_id))[0]
            self._given = for_members(header) | chosen(header["options"], "chord")
        else:
            parts = {**chord["kwargs"], "header": group}
            made = updated({**chord, "kwargs": parts}, given)
            frozen, handle = freeze(made if task_id is None else with_id(made, task_id))
            header, body = frozen["kwargs"]["header"], body_of(frozen)
            self._given = for_members(updated(header, passed_on(frozen))) | {"chord": body}
            args = completed(frozen, args)
            kwargs = {**(parts.get("kwargs") or {}), **kwargs}
            self.start = ChordStart(header["options"]["task_id"], 0, body)
            self.body_handle = _without_header(handle)
        self.group_id: str = header["options"]["task_id"]
        self.ids = TaskIds()
        self.count = 0
        self.special: dict[int, Handle] = {}
        self._place = place_of(header["options"]) or Place(self.group_id)
        self._given["group_id"] = self._place.id
        self._args = completed(group, args)
        self._kwargs = kwargs

    @property
    def size(self) -> int:
        """The number of tasks that end the members so far."""
        return self._place.count

    def calls(self, source: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Call, list[ChordStart]]]:
        """Yield the calls for the members of `source`, each with the chords to start before it."""
        ids = iter(self.ids)
        for member in source:
            # The common case is kept as fast as possible.
            if (
                not member["options"]
                and member.get("subtask_type") is None
                and (member["task"] != "celery.chunks")
            ):
                options = {**self._given, "task_id": next(ids)}
                self._place.take(options)
                args = completed(member, self._args)
                own = member["kwargs"]
                if self._kwargs and not member.get("immutable"):
                    own = {**own, **self._kwargs}
                self.count += 1
                yield Call(member["task"], args, own, options), []
                continue
            for each in members(group_of([member])):
                yield from self._calls_of(each, next(ids))

    def _calls_of(self, member: Sig, task_id: str) -> Iterator[tuple[Call, list[ChordStart]]]:
        frozen, handle = freeze_in(member, self._place, task_id, None)
        if handle[1] is not None or handle[0][0] != task_id:
            self.special[self.count] = handle
        self.count += 1
        calls: list[Call] = []
        chords: list[ChordStart] = []
        frozen = in_group(frozen, self._place.id)
        Writer(calls, chords).write(frozen, self._args, self._kwargs, self._given)
        for call in calls:
            yield call, chords
            chords = []


def bare(group: Sig) -> Sig:
    """Return a group without its members, which remain unread, and without group-wide callbacks."""
    get = dict.__getitem__
    options = get(group, "options")
    return {
        "task": get(group, "task"),
        "args": get(group, "args"),
        "kwargs": {"tasks": []},
        "options": {name: value for name, value in options.items() if name not in ONCE},
        "subtask_type": "group",
        "immutable": get(group, "immutable"),
    }


def _without_header(handle: Handle) -> Handle:
    """Return the handle of a chord's body without its first ancestor, the handle of the header."""
    (own_id, parent), members_ = handle
    if parent is None or parent[1] is not None:
        return (own_id, None), members_
    return (own_id, _without_header(parent)), members_
