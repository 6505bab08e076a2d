"""What every greenlet and every thread of this process is doing at the moment.

`all_stacks` returns text, for the log. Greenlets at the same lines are grouped, so a thousand tasks
that are waiting for the same server take up one paragraph. `describe` returns data, for remote
control: what the running tasks are waiting for, and the stacks of the oldest tasks.

Both functions show only names, source lines, addresses and durations, never arguments or variables
of a task's code.
"""

from __future__ import annotations

import _socket
import dis
import gc
import os
import sys
import traceback
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import greenlet

from greenq.hub import NativeThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import CodeType, FrameType

    from greenq.running.request import Request

# Packages that wait on behalf of a task's code. Their frames may tell what the task is waiting for;
# if they do not, the waiting expression in the task's code is shown.
_WAITING_PACKAGES = frozenset(
    {
        "concurrent", "gevent", "psycogreen", "queue", "select", "selectors", "socket", "ssl",
        "subprocess", "threading",
    }
)  # fmt: skip

_SOCKET_MODULES = frozenset({"gevent._socketcommon", "gevent._socket3", "gevent.ssl"})

# What each function does with a socket.
_SOCKET_CALLS = {
    "accept": "accept",
    "do_handshake": "handshake",
    "read": "recv",
    "recv": "recv",
    "recv_into": "recv",
    "recvfrom": "recv",
    "recvfrom_into": "recv",
    "recvmsg": "recv",
    "recvmsg_into": "recv",
    "send": "send",
    "sendmsg": "send",
    "sendto": "send",
    "unwrap": "shutdown",
    "write": "send",
}

# For each function, the local variable that holds the host.
_RESOLVER_CALLS = {
    "getaddrinfo": "host",
    "gethostbyname": "hostname",
    "gethostbyname_ex": "hostname",
    "gethostbyaddr": "ip_address",
}

# Functions that wait, by module and qualified name. Of nested calls, the outermost is the most
# informative.
_PRIMITIVES = {
    ("concurrent.futures._base", "Future.exception"): "future",
    ("concurrent.futures._base", "Future.result"): "future",
    ("concurrent.futures._base", "wait"): "futures",
    ("gevent.thread", "LockType.acquire"): "lock",
    ("queue", "Queue.get"): "queue get",
    ("queue", "Queue.join"): "queue join",
    ("queue", "Queue.put"): "queue put",
    ("threading", "Barrier.wait"): "barrier",
    ("threading", "Condition.wait"): "condition",
    ("threading", "Event.wait"): "event",
    ("threading", "Semaphore.acquire"): "semaphore",
    ("threading", "Thread.join"): "thread",
    ("threading", "_RLock.acquire"): "lock",
}

# How many addresses are shown for one select.
_ADDRESSES_SHOWN = 3


# --- as text --------------------------------------------------------------------------------------


def all_stacks(names: Mapping[Any, str]) -> str:
    """Return the stacks of all greenlets and native threads as text.

    Args:
        names: names for some greenlets, for example those of the tasks that they are running; the
            other greenlets keep the names that they were started with.
    """
    groups = _groups(names)
    threads = _threads()
    total = sum(len(members) for members, _stack in groups)
    parts = [f"stacks of {total} greenlets and {len(threads)} threads"]
    for members, stack in sorted(groups, key=lambda group: -len(group[0])):
        head = f"--- {len(members)} greenlets: " if len(members) > 1 else "--- greenlet "
        called = sorted(Counter(members).items())
        who = ", ".join(name if count == 1 else f"{count} × {name}" for name, count in called)
        parts.append(f"{head}{who}\n{stack}")
    parts += [f"--- thread {name}\n{stack}" for name, stack in threads]
    return "\n".join(part.rstrip() for part in parts)


def _groups(names: Mapping[Any, str]) -> list[tuple[list[str], str]]:
    """Group the greenlets by stack; return the names in each group and its stack."""
    groups: dict[tuple[object, ...], tuple[list[str], str]] = {}
    # Neither gevent nor greenlet keeps a list of all greenlets.
    for found in gc.get_objects():
        if isinstance(found, greenlet.greenlet) and found:
            # The running greenlet has no frame of its own; its stack is the thread's.
            frame = found.gr_frame
            if frame is None:
                continue
            lines = tuple((each.f_code, line) for each, line in traceback.walk_stack(frame))
            if lines not in groups:
                groups[lines] = [], "".join(traceback.format_stack(frame))
            groups[lines][0].append(names.get(found) or _name(found))
    return list(groups.values())


def _name(found: greenlet.greenlet) -> str:
    if found.parent is None:
        return "main"
    return str(getattr(found, "name", "") or type(found).__name__)


def _threads() -> list[tuple[str, str]]:
    """Return the names and stacks of the native threads."""
    # There is no public way to get the frame of another thread.
    frames = sys._current_frames()  # noqa: SLF001
    return [
        (f"{number}{_role(frame)}", "".join(traceback.format_stack(frame)))
        for number, frame in sorted(frames.items())
    ]


def _role(frame: FrameType) -> str:
    """Return the role of a frame's thread, if the stack shows it."""
    for each, _line in traceback.walk_stack(frame):
        if each.f_code is all_stacks.__code__:
            return ", the hub's thread, which is writing this"
        owner = each.f_locals.get("self")
        if isinstance(owner, NativeThread):
            return f", {owner.name}"
    return ""


# --- as data --------------------------------------------------------------------------------------


def describe(
    requests: Iterable[Request],
    *,
    limit: int,
    now: float,
    hub_s_of: Callable[[Request], float] | None = None,
) -> dict[str, object]:
    """Describe the running requests; call this in the thread of their hub. Switches: no.

    Args:
        requests: the running requests.
        limit: how many requests, oldest first, are shown in detail, and how many kinds of wait are
            shown.
        now: monotonic time.
        hub_s_of: returns how long a request has held the hub; if this is None, so is `hub_s`.

    Shape: {"running": count, "groups": [{"waits_on", "count"}], "greenlets": [{"id", "name",
      "age_s", "hub_s", "waits_on", "stack": ["file:line function"]}]}; the most frequent kind of
      wait comes first, and kinds after the first `limit` are counted as "others"; the oldest
      greenlet comes first; in a stack, the innermost frame comes last.
    """
    waits: Counter[str] = Counter()
    running: list[tuple[float, str, Request, FrameType | None]] = []
    # Reading a task's variables may run its code, which may end or begin another task.
    for request in list(requests):
        own = request.greenlet
        if own is None:
            continue
        frame = own.gr_frame
        waits_for = waits_on(frame)
        waits[_round_sleep(waits_for)] += 1
        if own is greenlet.getcurrent():
            frame = sys._getframe(1)  # noqa: SLF001  # there is no public way to a caller's frame
        started_s = now if request.started_s is None else request.started_s
        running.append((now - started_s, waits_for, request, frame))
    running.sort(key=lambda each: -each[0])
    return {
        "running": len(running),
        "groups": _count_waits(waits, limit),
        "greenlets": [
            {
                "id": request.message.id,
                "name": request.message.shadow or request.message.task,
                "age_s": round(age_s, 3),
                "hub_s": None if hub_s_of is None else round(hub_s_of(request), 6),
                "waits_on": waits_for,
                "stack": _task_stack(frame),
            }
            for age_s, waits_for, request, frame in running[:limit]
        ],
    }


def _round_sleep(waits_for: str) -> str:
    """Round the seconds of a sleep so that random delays do not each form a separate group."""
    verb, _, seconds = waits_for.partition(" ")
    if verb != "sleep" or not seconds:
        return waits_for
    rounded = f"{float(f'{float(seconds):.1g}'):g}"
    return waits_for if rounded == seconds else f"sleep ~{rounded}"


def _count_waits(waits: Counter[str], limit: int) -> list[dict[str, object]]:
    """Return the most frequent kinds of wait; all others are merged into one kind."""
    ordered = sorted(waits.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[limit:])
    counts = ordered[:limit] + ([("others", others)] if others else [])
    return [{"waits_on": waits_for, "count": count} for waits_for, count in counts]


def _task_stack(frame: FrameType | None) -> list[str]:
    """Return a stack from the task's own code inwards, or all of it if no frame is the task's."""
    stack = list(traceback.walk_stack(frame))[::-1] if frame is not None else []
    own = next((at for at, (each, _) in enumerate(stack) if not _is_ours(each)), 0)
    return [f"{each.f_code.co_filename}:{line} {each.f_code.co_name}" for each, line in stack[own:]]


def _is_ours(frame: FrameType) -> bool:
    """Return whether a frame's code is gevent's or greenq's own; the examples are user code."""
    package, _, module = _module(frame).partition(".")
    return package in {"gevent", "greenq"} and module.partition(".")[0] != "examples"


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


# --- what a greenlet waits for --------------------------------------------------------------------


def waits_on(frame: FrameType | None) -> str:
    """Return what a greenlet is waiting for, given its innermost frame; without one, "running".

    Sockets are shown with their address, and sleeps with their seconds. If nothing better is known,
    the expression that waits is shown as in the task's code, without arguments: `self.done.wait()`.
    """
    if frame is None:
        return "running"
    innermost, found = frame, ""
    each: FrameType | None = frame
    while each is not None:
        module = _module(each)
        if module.partition(".")[0] not in _WAITING_PACKAGES:
            return found or _expression(each.f_code, each.f_lasti)
        described = _describe_wait(each, module)
        if described:
            return described
        found = _PRIMITIVES.get((module, each.f_code.co_qualname), found)
        if module == "gevent.subprocess":
            found = "subprocess"
        each = each.f_back
    return found or _expression(innermost.f_code, innermost.f_lasti)


def _describe_wait(frame: FrameType, module: str) -> str:
    """Return what a frame is waiting for, if an address or a duration is known."""
    function = frame.f_code.co_name
    # Read the variables of library frames only, since reading keeps a copy of them for as long as
    # the frame exists.
    if module in _SOCKET_MODULES:
        if function in _SOCKET_CALLS:
            return _on_socket(_SOCKET_CALLS[function], frame.f_locals.get("self"))
        if function == "_internal_connect":
            return f"connect {_text(frame.f_locals.get('address'))}".rstrip()
        if function in _RESOLVER_CALLS:
            return f"getaddrinfo {_text(frame.f_locals.get(_RESOLVER_CALLS[function]))}".rstrip()
    elif module == "gevent.hub" and function == "sleep":
        seconds = frame.f_locals.get("seconds")
        # Formatting a user-defined class could run arbitrary code.
        return f"sleep {seconds:g}" if type(seconds) in {int, float} else "sleep"
    elif module in {"gevent.select", "gevent.selectors"} and function in {"select", "poll"}:
        return _on_many(frame.f_locals)
    elif function == "gevent_wait_callback":
        # psycopg2 waits in this function of psycogreen.
        return f"select {_peer_of(_number(frame.f_locals.get('conn')))}".rstrip()
    return ""


def _on_socket(verb: str, found: Any) -> str:
    """Return the operation on a gevent socket, and its peer's address."""
    # Ask the C socket inside the gevent socket: no subclass overrides its methods, and they never
    # wait.
    real = getattr(found, "_sock", None)
    if not isinstance(real, _socket.socket):
        return verb
    peer = "" if verb == "accept" else _text(_ask(real.getpeername))
    if peer:
        return f"{verb} {peer}"
    own = _text(_ask(real.getsockname))
    return f"{verb} at {own}" if own else verb


def _on_many(variables: Mapping[str, Any]) -> str:
    """Return which sockets a select, a poll or a selector is waiting for."""
    own: Any = variables.get("self")
    if "rlist" in variables:
        waited = [*_list(variables["rlist"]), *_list(variables.get("wlist"))]
    elif hasattr(own, "get_map"):
        waited = list(own.get_map() or ())
    else:
        waited = list(getattr(own, "fds", ()))
    peers = sorted({peer for each in waited if (peer := _peer_of(_number(each)))})
    more = [f"+{len(peers) - _ADDRESSES_SHOWN}"] if len(peers) > _ADDRESSES_SHOWN else []
    return f"select {', '.join(peers[:_ADDRESSES_SHOWN] + more)}".rstrip()


def _list(found: Any) -> list[Any]:
    """Return the items of a collection; iterating over another object could exhaust it."""
    return list(found) if isinstance(found, list | tuple | set | frozenset | dict) else []


def _number(found: Any) -> int:
    """Return the descriptor of an open file or connection; -1 if it is not known."""
    if isinstance(found, int):
        return found
    try:
        number = found.fileno()
    except Exception:
        # `found` may be any object, or a closed socket, which is shown without an address.
        return -1
    return number if isinstance(number, int) else -1


def _peer_of(number: int) -> str:
    """Return the address that a descriptor is connected to; "" if it is not a connected socket."""
    try:
        copy = os.dup(number)
    except OSError:
        return ""
    try:
        real = _socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return ""
    try:
        return _text(_ask(real.getpeername))
    finally:
        real.close()


def _ask(method: Callable[[], object]) -> object:
    """Call a socket's method; return None if it fails, as on a closed socket."""
    try:
        return method()
    except OSError:
        return None


def _text(address: object) -> str:
    """Format an address; return "" if `address` is not one."""
    if isinstance(address, bytes):
        return address.decode("utf-8", "replace").replace("\0", "@")
    if isinstance(address, str):
        return address
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = _text(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


@lru_cache(maxsize=1024)
def _expression(code: CodeType, offset: int) -> str:
    """Return what the instruction at an offset calls, as in the source but without arguments.

    gevent's compiled code has no frames, so only the call shows what the greenlet is waiting for.
    """
    # For a call to Python code, the offset is that of the call's last cache entry.
    *before, waiting = (each for each in dis.get_instructions(code) if each.offset <= offset)
    names = _names(before, waiting)
    if names and waiting.opname.startswith("CALL"):
        return f"{names}()"
    if names and waiting.opname == "BEFORE_WITH":
        return f"with {names}"
    if names and waiting.opname == "FOR_ITER":
        return f"for … in {names}"
    return f"{code.co_qualname}()"


def _names(before: list[dis.Instruction], waiting: dis.Instruction) -> str:
    """Return the dotted name of the called function, or of the object of a `with` or a loop."""
    # In the source, a call begins where the called expression begins; its arguments begin later.
    begin = _begin(waiting) if waiting.opname.startswith("CALL") else None
    parts: list[str] = []
    for each in reversed(before):
        if begin is not None and _begin(each) != begin:
            continue
        name = each.argval if isinstance(each.argval, str) else ""
        if each.opname == "LOAD_CONST":
            # Since Python 3.13, the names of keyword arguments are loaded before the call.
            if isinstance(each.argval, tuple):
                continue
            break
        if each.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
            parts.append(f".{name}")
        elif each.opname.startswith("LOAD_") and name:
            # A generator expression has no name for what it iterates over.
            return "" if name == ".0" else "".join([name, *reversed(parts)])
        elif each.opname.startswith("CALL"):
            parts.append("()")
            begin = _begin(each)
        elif each.opname == "BINARY_SUBSCR":
            parts.append("[]")
            begin = _begin(each)
        elif begin is None and each.opname != "GET_ITER":
            break
    return "".join(reversed(parts)).lstrip(".")


def _begin(instruction: dis.Instruction) -> tuple[int | None, int | None]:
    where = instruction.positions
    return (None, None) if where is None else (where.lineno, where.col_offset)
