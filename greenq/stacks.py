"""What every greenlet and every thread of this process is doing at the moment, as text.

Greenlets that stand at the same lines are told together, so a thousand tasks that wait for the same
server are one paragraph. Names and source lines only: no arguments, no variables.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import greenlet

from greenq.hub import NativeThread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType


def all_stacks(names: Mapping[Any, str]) -> str:
    """Describe all greenlets and native threads.

    Args:
        names: what some greenlets are to be called, for example by the task that they run; the
            others have the names that they were started with.
    """
    groups = _groups(names)
    threads = _threads()
    total = sum(len(told) for told, _stack in groups)
    parts = [f"stacks of {total} greenlets and {len(threads)} threads"]
    for told, stack in sorted(groups, key=lambda group: -len(group[0])):
        head = f"--- {len(told)} greenlets: " if len(told) > 1 else "--- greenlet "
        called = sorted(Counter(told).items())
        who = ", ".join(name if count == 1 else f"{count} × {name}" for name, count in called)
        parts.append(f"{head}{who}\n{stack}")
    parts += [f"--- thread {name}\n{stack}" for name, stack in threads]
    return "\n".join(part.rstrip() for part in parts)


def _groups(names: Mapping[Any, str]) -> list[tuple[list[str], str]]:
    """Return the names of the greenlets that stand at the same lines, with their stack."""
    groups: dict[tuple[object, ...], tuple[list[str], str]] = {}
    # Neither gevent nor greenlet keeps a list of them.
    for found in gc.get_objects():
        if isinstance(found, greenlet.greenlet) and found:
            # The one that runs has no frame of its own: it is its thread's stack.
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
    """Return names and stacks of the threads of the operating system."""
    # There is no public way to another thread's frame.
    frames = sys._current_frames()  # noqa: SLF001
    return [
        (f"{number}{_role(frame)}", "".join(traceback.format_stack(frame)))
        for number, frame in sorted(frames.items())
    ]


def _role(frame: FrameType) -> str:
    """Say which thread a frame belongs to, as far as its callers show."""
    for each, _line in traceback.walk_stack(frame):
        if each.f_code is all_stacks.__code__:
            return ", the hub's; it is writing this"
        owner = each.f_locals.get("self")
        if isinstance(owner, NativeThread):
            return f", {owner.name}"
    return ""
