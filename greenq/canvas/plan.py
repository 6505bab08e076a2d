"""What a signature sends: those messages of its workflow that can be written immediately.

The code does no I/O, and reads signatures as plain data, wherever they come from. A client sends a
plan; a worker writes it together with the settlement of the preceding task.

In a frozen signature, every task and group has its id. The body of a chord is copied into the
members of the header only when messages are written, so a frozen signature is no larger than its
tasks.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.protocol.ids import new_id
from greenq.protocol.serialize import saferepr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Sig = dict[str, Any]

# A handle as data, in Celery's format: ((id, handle of the preceding step), members of a group).
Handle = tuple[tuple[str, Any], Any]

# Options that belong to one signature only, and are not passed on to its parts.
_OWN = frozenset({"task_id", "group_id", "group_index"})
# Options that take effect when a signature ends, not when it starts.
_ENDS = frozenset({"chain", "chord", "link", "link_error"})
# Options of a group with callbacks for all its members together.
ONCE = ("on_error_once", "on_done")
# Options of chords that Celery needs for polling.
_POLLING = frozenset({"interval", "max_retries", "chord_size"})

_EMPTY: Mapping[str, Any] = {}


class Call(NamedTuple):
    """One message to write.

    Attributes:
        options: send options by their names in `SendOptions`; ``link`` and ``link_error`` are lists
            of signatures, ``chain`` is the rest of the chain in reverse order, ``chord`` is the
            signature of a chord's body, and ``stamps`` maps the names in ``stamped_headers`` to
            their values.
    """

    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: dict[str, Any]


class ChordStart(NamedTuple):
    """A chord whose header is among the calls; its size must be stored before its last part ends.

    Attributes:
        saved: the handle of the header, or None if no member ends in a group. It is stored before
            the chord is sent, so that the body gets the results of each such group as a separate
            list.
    """

    group_id: str
    size: int
    body: Mapping[str, Any]
    saved: Handle | None = None


class WorkflowPlan(NamedTuple):
    """What a signature sends now.

    Attributes:
        calls: the messages, in order.
        chords: the chords whose headers are among the messages.
        handle: the workflow's result handle as data (`Handle`).
    """

    calls: list[Call]
    chords: list[ChordStart]
    handle: Handle


class Never(NamedTuple):
    """A task that will not run because one before it failed.

    Attributes:
        chord: the body of the chord that waits for this task as one of its parts, or None.
    """

    task_id: str
    task: str
    options: Mapping[str, Any]
    group_id: str | None
    group_index: int | None
    chord: Mapping[str, Any] | None


def plan(
    signature: Mapping[str, Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> WorkflowPlan:
    """Return the messages that are written when a signature is sent.

    Args:
        args: prepended to the signature's own arguments, unless it is immutable.
        kwargs: override the signature's own, unless it is immutable.
        options: override the signature's own, except its group and stamps. ``task_id`` becomes the
            id of the signature's end: a chain's last step, a chord's body, or the group. ``chain``
            lists the steps that follow the signature, in reverse order.
    """
    given = {name: value for name, value in options.items() if value is not None}
    task_id = given.pop("task_id", None)
    sig = updated(_normal(signature), given)
    frozen, handle = freeze(sig if task_id is None else with_id(sig, task_id))
    calls: list[Call] = []
    chords: list[ChordStart] = []
    Writer(calls, chords).write(frozen, args, kwargs or _EMPTY, {})
    return WorkflowPlan(calls, chords, handle)


def follow(
    signature: Mapping[str, Any],
    value: Any,
    *,
    parent_id: str | None,
    root_id: str | None,
    stamps: Mapping[str, Any] | None = None,
    **options: Any,
) -> WorkflowPlan:
    """Return what a signature sends as the callback of a task that returned `value`.

    Args:
        stamps: the stamps of that task; the signature's own take precedence.
        options: the options of `plan`, such as ``group_id``, ``chain`` and ``priority``.
    """
    if stamps:
        options = {**stamps, "stamped_headers": list(stamps), **options}
    return plan(signature, (value,), parent_id=parent_id, root_id=root_id, **options)


def ids_of(signature: Mapping[str, Any]) -> Iterator[Never]:
    """Yield a signature's tasks, in order, as tasks that will not run."""
    return _never(freeze(signature)[0], None, None)


def gathered(signature: Mapping[str, Any], **options: Any) -> Sig:
    """Return a chord that runs a group and returns the list of its results."""
    body = _signature("celery.accumulate", {"index": 0}, options=options)
    return _chord(signature, body)


def wrong_in(data: Mapping[str, Any]) -> str:
    """Return what is wrong with plain data that should be a signature, or an empty string."""
    if not isinstance(data.get("task"), str):
        return 'its "task" is not a name'
    if not isinstance(data.get("args"), (list, tuple)):
        return 'its "args" is not a list'
    kwargs = data.get("kwargs")
    if not isinstance(kwargs, dict):
        return 'its "kwargs" is not an object'
    if not isinstance(data.get("options"), dict):
        return 'its "options" is not an object'
    what = data.get("subtask_type")
    if what in ("chain", "group") and not isinstance(kwargs.get("tasks"), (list, tuple)):
        return 'its "tasks" is not a list'
    if what == "chord":
        if not isinstance(kwargs.get("header"), (list, tuple, dict)):
            return 'its "header" is not a group or a list'
        if not isinstance(kwargs.get("body"), (dict, NoneType)):
            return 'its "body" is not a signature'
    return ""


def plain(signature: Mapping[str, Any]) -> Sig:
    """Return a signature, and all signatures inside it, as plain dicts."""
    return {name: _plain(value) for name, value in signature.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def kind(signature: Mapping[str, Any]) -> str:
    """Return ``chain``, ``group``, ``chord`` or ``task``."""
    return signature.get("subtask_type") or "task"


def members(group: Mapping[str, Any]) -> list[Sig]:
    """Return the members of a group, replacing groups inside it with their members."""
    found: list[Sig] = []
    for each in group["kwargs"]["tasks"]:
        sig = _normal(each)
        if kind(sig) == "group":
            given = for_members(sig)
            found += [updated(inner, given) for inner in members(sig)]
        elif kind(sig) != "chain" or sig["kwargs"]["tasks"]:
            found.append(sig)
    return found


def steps(chain: Mapping[str, Any]) -> list[Sig]:
    """Return a chain's steps; flatten nested chains, and turn groups before a step into chords."""
    return _joined(_flat(chain))


def freeze(signature: Mapping[str, Any], task_id: str | None = None) -> tuple[Sig, Handle]:
    """Return a copy in which every task has its id, and the signature's handle.

    Existing ids are kept; `task_id` becomes the id of the signature's end if the end has none.
    """
    return freeze_in(_normal(signature), None, task_id, None)


# --- normal form ---------------------------------------------------------------------------------


def _signature(
    task: str,
    kwargs: Mapping[str, Any],
    *,
    options: Mapping[str, Any] = _EMPTY,
    subtask_type: str | None = None,
) -> Sig:
    return {
        "task": task,
        "args": [],
        "kwargs": dict(kwargs),
        "options": dict(options),
        "subtask_type": subtask_type,
        "immutable": False,
    }


def group_of(tasks: Sequence[Any], options: Mapping[str, Any] = _EMPTY) -> Sig:
    """Return a group as plain data."""
    return _signature("celery.group", {"tasks": tasks}, options=options, subtask_type="group")


def _chord(
    header: Mapping[str, Any], body: Mapping[str, Any], options: Mapping[str, Any] = _EMPTY
) -> Sig:
    parts = {"kwargs": {}, "header": header, "body": body}
    return _signature("celery.chord", parts, options=options, subtask_type="chord")


def _normal(signature: Mapping[str, Any]) -> Sig:
    """Return a signature in normal form; for example, chunks become a group.

    Raises:
        ValueError: the data is not a signature.
    """
    wrong = wrong_in(signature) if isinstance(signature, dict) else "it is not an object"
    if wrong:
        raise ValueError(f"not a signature: {wrong}: {saferepr(signature)}")
    sig: Sig = signature  # type: ignore[assignment]
    if sig["task"] == "celery.chunks" and not sig.get("subtask_type"):
        return _chunked(sig)
    return counted(sig) if is_counted(sig) else sig


def is_counted(sig: Mapping[str, Any]) -> bool:
    """Return whether a signature is a group with callbacks for all its members together."""
    return sig.get("subtask_type") == "group" and any(sig["options"].get(name) for name in ONCE)


def _chunked(chunks: Sig) -> Sig:
    task, items, size = (chunks["kwargs"][name] for name in ("task", "it", "n"))
    items = list(items)
    parts = [
        {
            **_signature("celery.starmap", {"task": task, "it": items[at : at + size]}),
            "immutable": True,
        }
        for at in range(0, len(items), size)
    ]
    return group_of(parts, chunks["options"])


def counted(group: Sig) -> Sig:
    """Turn a group with callbacks for all its members together into a chord that calls them."""
    options = dict(group["options"])
    on_error, on_done = (options.pop(name, None) or [] for name in ONCE)
    ends = {"link": on_done, "link_error": [*on_error, *on_done]}
    body = _signature("celery.accumulate", {"index": 0}, options=ends)
    own = chosen(options, "task_id")
    return _chord(group_of(group["kwargs"]["tasks"], own), body, options)


def _flat(chain: Mapping[str, Any]) -> list[Sig]:
    """Return a chain's steps, replacing nested chains with their steps.

    As in Celery, a group of one member becomes that member, and an empty group is dropped.
    """
    found: list[Sig] = []
    for each in chain["kwargs"]["tasks"]:
        sig = _normal(each)
        inner = members(sig) if kind(sig) == "group" else []
        if len(inner) == 1:
            sig = updated(inner[0], for_members(sig))
        found += _settled(sig) if kind(sig) == "chain" else [sig]
    return [step for step in found if kind(step) != "group" or members(step)] or found[:1]


def _settled(chain: Sig) -> list[Sig]:
    """Return a chain's steps with the options of the chain applied to them."""
    inner = _flat(chain)
    options = chain["options"]
    if not inner or not options:
        return inner
    errbacks = options.get("link_error")
    if errbacks:
        inner = [_with_errbacks(step, listed(errbacks)) for step in inner]
    inner[0] = updated(inner[0], passed_on(chain))
    inner[-1] = updated(inner[-1], chosen(options, "link", "chord"))
    if options.get("task_id") and not inner[-1]["options"].get("task_id"):
        inner[-1] = with_id(inner[-1], options["task_id"])
    return [*inner, *reversed(options.get("chain") or [])]


def _joined(flat: Sequence[Sig]) -> list[Sig]:
    """Turn each group that is followed by a step into a chord with that step as its body."""
    found: list[Sig] = []
    for step in reversed(flat):
        if kind(step) == "group" and found:
            found.append(_followed(step, found.pop()))
        else:
            found.append(step)
    return found[::-1]


def _followed(group: Sig, body: Sig) -> Sig:
    """Return the chord made of a group and the step after it."""
    ended = {"chain", "chord"}
    options = {name: value for name, value in group["options"].items() if name not in ended}
    return _chord({**group, "options": options}, body)


# --- options -------------------------------------------------------------------------------------


def listed(value: Any) -> list[Any]:
    """Return the value of an option, a list or a single item, as a new list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _both(first: Any, second: Any) -> list[Any]:
    """Return the items of the first list, and those of the second that are not in the first."""
    found = listed(first)
    return found + [each for each in listed(second) if each not in found]


def merged(signature: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a signature's options combined with those in `given`, which override most of them."""
    own: Mapping[str, Any] = signature["options"]
    if not given:
        return {name: value for name, value in own.items() if value is not None}
    stamped = own.get("stamped_headers") or ()
    kept = {"group_id", *stamped}
    merged = {name: value for name, value in own.items() if value is not None}
    for name, value in given.items():
        if name in ("link", "link_error", "stamped_headers") and merged.get(name):
            merged[name] = _both(merged[name], value)
        elif merged.get(name) is None or name not in kept:
            merged[name] = value
    return merged


def updated(signature: Sig, given: Mapping[str, Any]) -> Sig:
    """Return a signature with more options: see `merged`."""
    return {**signature, "options": merged(signature, given)} if given else signature


def passed_on(signature: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a workflow that apply to the parts that it starts with."""
    left_out = _OWN | _ENDS | _POLLING
    return {
        name: value
        for name, value in signature["options"].items()
        if name not in left_out and value is not None
    }


def chosen(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the named options that are set."""
    return {name: options[name] for name in names if options.get(name)}


def for_members(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group that apply to each of its members."""
    return passed_on(group) | chosen(group["options"], "link", "link_error")


def with_id(signature: Sig, task_id: str) -> Sig:
    """Return a signature whose end has the id `task_id`."""
    what = kind(signature)
    kwargs = signature["kwargs"]
    if what == "chord":
        body = with_id(_normal(kwargs["body"]), task_id)
        return {**signature, "kwargs": {**kwargs, "body": body}}
    signature = {**signature, "options": {**signature["options"], "task_id": task_id}}
    if what != "chain" or not kwargs["tasks"]:
        return signature
    *before, last = kwargs["tasks"]
    tasks = [*before, with_id(_normal(last), task_id)]
    return {**signature, "kwargs": {**kwargs, "tasks": tasks}}


def _with_errbacks(signature: Sig, errbacks: Sequence[Any]) -> Sig:
    """Return a signature with `errbacks` added to every part that can make it fail."""
    if not errbacks:
        return signature
    what = kind(signature)
    if what == "group":
        tasks = [_with_errbacks(_normal(each), errbacks) for each in signature["kwargs"]["tasks"]]
        return {**signature, "kwargs": {**signature["kwargs"], "tasks": tasks}}
    if what == "chord":
        body = _with_errbacks(_normal(signature["kwargs"]["body"]), errbacks)
        return {**signature, "kwargs": {**signature["kwargs"], "body": body}}
    return updated(signature, {"link_error": list(errbacks)})


# --- freezing ------------------------------------------------------------------------------------


class Place:
    """A group whose members are being frozen: each task that ends a member gets an index."""

    def __init__(self, group_id: str, first: int = 0) -> None:
        """Number the members of `group_id` from `first`."""
        self.id = group_id
        self._first = first
        self.count = 0

    def take(self, options: dict[str, Any]) -> None:
        """Give the next index to a task, unless it already has one in this group."""
        if options.get("group_id") != self.id or options.get("group_index") is None:
            options["group_index"] = self._first + self.count
        self.count += 1


def place_of(options: Mapping[str, Any]) -> Place | None:
    """Return the group that a signature belongs to according to its own options."""
    group_id = options.get("group_id")
    return None if group_id is None else Place(group_id, options.get("group_index") or 0)


def freeze_in(
    sig: Sig, place: Place | None, task_id: str | None, parent: Handle | None
) -> tuple[Sig, Handle]:
    """Freeze a signature in normal form.

    Args:
        place: the group that the signature is a member of.
        task_id: the id of the signature's end, unless the end already has one.
        parent: the handle of the preceding step.
    """
    what = kind(sig)
    if what == "task":
        return _freeze_task(sig, place, task_id, parent)
    if place is None:
        place = place_of(sig["options"])
    if what == "chain":
        return _freeze_chain(sig, place, task_id, parent)
    if what == "group":
        return _freeze_group(sig, place, task_id, parent)
    if what == "chord":
        return _freeze_chord(sig, place, task_id, parent)
    raise ValueError(f"the signature of {sig['task']} has the unknown type {what!r}")


def _freeze_task(
    sig: Sig, place: Place | None, task_id: str | None, parent: Handle | None
) -> tuple[Sig, Handle]:
    options = dict(sig["options"])
    own_id = options["task_id"] = options.get("task_id") or task_id or new_id()
    if place is not None:
        place.take(options)
    return {**sig, "options": options}, ((own_id, parent), None)


def _freeze_chain(
    sig: Sig, place: Place | None, task_id: str | None, parent: Handle | None
) -> tuple[Sig, Handle]:
    found = steps(sig)
    if not found:
        raise ValueError("an empty chain cannot be sent: it has no step")
    task_id = sig["options"].get("task_id") or task_id
    frozen: list[Sig] = []
    last = len(found) - 1
    for at, step in enumerate(found):
        ends = at == last
        made, parent = freeze_in(step, place if ends else None, task_id if ends else None, parent)
        frozen.append(made)
    assert parent is not None
    options = {**sig["options"], "task_id": parent[0][0]}
    return {**sig, "kwargs": {**sig["kwargs"], "tasks": frozen}, "options": options}, parent


def _freeze_group(
    sig: Sig, place: Place | None, task_id: str | None, parent: Handle | None
) -> tuple[Sig, Handle]:
    group_id = sig["options"].get("task_id") or task_id or new_id()
    frozen, handles = _freeze_members(members(sig), place or Place(group_id))
    options = {**sig["options"], "task_id": group_id}
    kwargs = {**sig["kwargs"], "tasks": frozen}
    return {**sig, "kwargs": kwargs, "options": options}, ((group_id, parent), handles)


def _freeze_members(found: Iterable[Sig], place: Place) -> tuple[list[Sig], list[Handle]]:
    pairs = [freeze_in(each, place, None, None) for each in found]
    return [sig for sig, _ in pairs], [handle for _, handle in pairs]


def _freeze_chord(
    sig: Sig, place: Place | None, task_id: str | None, parent: Handle | None
) -> tuple[Sig, Handle]:
    header = header_of(sig)
    group_id = header["options"].get("task_id") or new_id()
    frozen, handles = _freeze_members(members(header), Place(group_id))
    header = {
        **header,
        "kwargs": {"tasks": frozen},
        "options": {**header["options"], "task_id": group_id},
    }
    if sig["kwargs"].get("body") is None:
        raise ValueError("a chord without a body cannot be sent: nothing would receive its results")
    body = _normal(sig["kwargs"]["body"])
    made, handle = freeze_in(body, place, task_id, ((group_id, parent), handles))
    options = {**sig["options"], "task_id": group_id}
    kwargs = {**sig["kwargs"], "header": header, "body": made}
    return {**sig, "kwargs": kwargs, "options": options}, handle


def header_of(chord: Mapping[str, Any]) -> Sig:
    """Return a chord's header as a group; on the wire it may be a list."""
    header = chord["kwargs"]["header"]
    if isinstance(header, dict):
        sig = _normal(header)
        return sig if kind(sig) == "group" else group_of([sig])
    return group_of(list(header))


# --- writing -------------------------------------------------------------------------------------


class Writer:
    """Turns frozen signatures into calls."""

    def __init__(self, calls: list[Call], chords: list[ChordStart]) -> None:
        """Append calls to `calls`, and chords that start with them to `chords`."""
        self._calls = calls
        self._chords = chords

    def write(
        self, sig: Sig, args: Sequence[Any], kwargs: Mapping[str, Any], given: Mapping[str, Any]
    ) -> int:
        """Write a frozen signature, and return the number of tasks that end it."""
        sig = updated(sig, given)
        what = kind(sig)
        if what == "task":
            return self._write_task(sig, args, kwargs)
        if what == "group":
            return self._write_group(sig, completed(sig, args), kwargs)
        group_id = sig["options"].get("group_id")
        if group_id is not None:
            sig = in_group(sig, group_id)
        if what == "chain":
            return self._write_chain(sig, completed(sig, args), kwargs)
        return self._write_chord(sig, args, kwargs)

    def _write_task(self, sig: Sig, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        own = dict(sig["kwargs"])
        if not sig.get("immutable"):
            own.update(kwargs)
        options = {name: value for name, value in sig["options"].items() if name not in _POLLING}
        stamped = options.get("stamped_headers")
        if stamped:
            options["stamps"] = {name: options.pop(name) for name in stamped if name in options}
        self._calls.append(Call(sig["task"], [*completed(sig, args)], own, options))
        return 1

    def _write_chain(self, sig: Sig, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        first, *rest = attached(sig)
        given = {"chain": rest[::-1]} if rest else {}
        self.write(first, args, kwargs, given)
        return ends_of(sig)

    def _write_group(self, sig: Sig, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        rest = sig["options"].get("chain")
        if rest:
            return self._write_chord(_followed_by(sig, rest), args, kwargs)
        given = for_members(sig) | chosen(sig["options"], "chord")
        group_id = sig["options"].get("group_id") or sig["options"]["task_id"]
        # Celery's clients record in each member the chord that the member counts towards. If this
        # group is the body of a chord, they record the group id of that chord's header instead.
        tasks = sig["kwargs"]["tasks"]
        found = (each if _has_chord(each) else in_group(each, group_id) for each in tasks)
        return sum(self.write(each, args, kwargs, given) for each in found)

    def _write_chord(self, sig: Sig, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        header, body = sig["kwargs"]["header"], body_of(sig)
        args = completed(sig, args)
        named = {**(sig["kwargs"].get("kwargs") or {}), **kwargs}
        header = updated(header, passed_on(sig))
        given = for_members(header) | {"chord": body}
        group_id = header["options"]["task_id"]
        found = [in_group(each, group_id) for each in header["kwargs"]["tasks"]]
        size = sum(self.write(each, args, named, given) for each in found)
        if size:
            self._chords.append(ChordStart(group_id, size, body, _saved(group_id, found)))
        else:
            self.write(body, ([],), _EMPTY, {})
        return ends_of(body)


def completed(sig: Mapping[str, Any], args: Sequence[Any]) -> Sequence[Any]:
    """Return a call's arguments: `args` (unless the signature is immutable), then its own."""
    own = sig.get("args") or ()
    return own if sig.get("immutable") or not args else (*args, *own)


def in_group(sig: Sig, group_id: str) -> Sig:
    """Return a frozen signature whose end belongs to a group.

    The group is recorded only when the signature is sent, because Celery assigns a new group id to
    a chord that is sent later, but would keep an id that the chord's header already contains.
    """
    what, kwargs = kind(sig), sig["kwargs"]
    if what == "chord":
        return {**sig, "kwargs": {**kwargs, "body": in_group(kwargs["body"], group_id)}}
    if what == "chain":
        *before, last = kwargs["tasks"]
        return {**sig, "kwargs": {**kwargs, "tasks": [*before, in_group(last, group_id)]}}
    if what == "group":
        kwargs = {**kwargs, "tasks": [in_group(each, group_id) for each in kwargs["tasks"]]}
    return {**sig, "kwargs": kwargs, "options": {**sig["options"], "group_id": group_id}}


def _has_chord(sig: Mapping[str, Any]) -> bool:
    return bool(sig["options"].get("chord") and sig["options"].get("group_id"))


def _saved(group_id: str, found: Iterable[Sig]) -> Handle | None:
    """Return the handle of a header if any of its members ends in a group, else None."""
    ends = [_end_of(each) for each in found]
    return None if all(inner is None for _own, inner in ends) else ((group_id, None), ends)


def _end_of(sig: Mapping[str, Any]) -> Handle:
    """Return the handle of a frozen signature's end, without the preceding steps."""
    what, kwargs = kind(sig), sig["kwargs"]
    if what == "chain":
        return _end_of(kwargs["tasks"][-1])
    if what == "chord":
        return _end_of(kwargs["body"])
    inner = [_end_of(each) for each in kwargs["tasks"]] if what == "group" else None
    return (sig["options"]["task_id"], None), inner


def ends_of(sig: Mapping[str, Any]) -> int:
    """Count the tasks that end a frozen signature."""
    what = kind(sig)
    if what == "group":
        return sum(map(ends_of, sig["kwargs"]["tasks"]))
    if what == "chain":
        return ends_of(sig["kwargs"]["tasks"][-1])
    return ends_of(sig["kwargs"]["body"]) if what == "chord" else 1


def attached(chain: Sig) -> list[Sig]:
    """Return a frozen chain's steps with its options applied, and the steps that follow it."""
    return _joined(_settled(chain))


def body_of(chord: Sig) -> Sig:
    """Return the body of a frozen chord with the chord's options applied."""
    body = _normal(chord["kwargs"]["body"])
    options = chord["options"]
    # Unless it belongs to another group, the body is marked as belonging to its header, as in
    # Celery.
    if kind(body) == "task":
        body = updated(body, {"group_id": chord["kwargs"]["header"]["options"]["task_id"]})
    body = _with_errbacks(body, listed(options.get("link_error")))
    # A chord's countdown delays only its header, and the body's parent is the header task that ends
    # last.
    passed = {
        name: value
        for name, value in passed_on(chord).items()
        if name not in ("countdown", "eta", "parent_id")
    }
    body = updated(body, passed | chosen(options, "link", "chord"))
    rest = options.get("chain")
    if not rest:
        return body
    if kind(body) == "group":
        return _followed_by(body, rest)
    return updated(body, {"chain": [*rest, *listed(body["options"].get("chain"))]})


def _followed_by(group: Sig, rest: Sequence[Any]) -> Sig:
    """Return the chord made of a frozen group and `rest`, the next steps in reverse order."""
    *later, body = rest
    return updated(_followed(group, _normal(body)), {"chain": later} if later else {})


# --- what never runs -----------------------------------------------------------------------------


def _never(sig: Sig, group_id: str | None, chord: Mapping[str, Any] | None) -> Iterator[Never]:
    options, kwargs = sig["options"], sig["kwargs"]
    chord = options.get("chord") or chord
    group_id = options.get("group_id") or group_id
    what = kind(sig)
    if what == "task":
        index = None if group_id is None else options.get("group_index")
        yield Never(options["task_id"], sig["task"], options, group_id, index, chord)
    elif what == "group":
        for each in kwargs["tasks"]:
            yield from _never(each, group_id or options["task_id"], chord)
    elif what == "chain":
        *before, last = kwargs["tasks"]
        for each in before:
            yield from _never(each, None, None)
        yield from _never(last, group_id, chord)
    else:
        header = kwargs["header"]
        for each in header["kwargs"]["tasks"]:
            yield from _never(each, header["options"]["task_id"], None)
        yield from _never(kwargs["body"], group_id, chord)
