"""How ``greenq top`` looks: a picture becomes lines of a terminal of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from greenq.cli import show
from greenq.cli.top_model import KINDS, sparkline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType

    from greenq.cli.queues import Queue
    from greenq.cli.top_model import Greenlets, Picture, Task, Worker

_HEADING: Final = "bold white on grey23"
_CHOSEN: Final = "on grey30"
_STATES: Final = {"ok": "green", "draining": "yellow", "silent": "magenta"}
_KEYS: Final = (("q", "quit"), ("↑↓", "worker"), ("g", "greenlets"), ("p", "pause"))

# From this width on the charts, and from this height on the greenlets, have room beside the rest.
_WIDE: Final = 120
_TALL: Final = 40

# Rows of a chart where there is room.
_CHART_ROWS: Final = 3

# So many workers need not be seen all at once if that is at the expense of all else.
_WORKERS_SHARE: Final = 0.4

_NO_EVENTS: Final = (
    "No worker tells of tasks: start workers with -E, or this with --events, "
    "which has them do so while it runs."
)
_TELLS_NOTHING: Final = "Only greenq's workers tell of their greenlets, while their hub moves."


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What of the picture is looked at.

    Attributes:
        address: of the server.
        time: of day.
        chosen: the worker whose greenlets are shown.
        greenlets: they take the room of queues and tasks.
        paused: nothing changes.
        warning: what else is to be known.
        keys: whether keys can be pressed.
    """

    address: str
    time: str
    chosen: str | None = None
    greenlets: bool = False
    paused: bool = False
    warning: str = ""
    keys: bool = True


def draw(picture: Picture, view: View, width: int, height: int | None) -> RenderableType:
    """Return the lines: as many as fit into `height`, all if it is None."""
    top = [_title(picture, view), *_charts(picture, width, height), Text()]
    bottom = [_keys(view)] if view.keys else []
    room = None if height is None else height - len(top) - len(bottom)
    shares = _shares(picture, room)
    notes = _notes(picture, shares.notes)
    parts: list[RenderableType] = [*top, _workers(picture.workers, view, shares.workers), *notes]
    parts.append(Text())
    if not view.greenlets:
        parts.append(_queues_and_tasks(picture, width, shares.lower))
    if view.greenlets or shares.greenlets != 0:
        lines = shares.lower if view.greenlets else shares.greenlets
        if not view.greenlets:
            parts.append(Text())
        elif lines is not None and shares.greenlets:
            lines += shares.greenlets + 1
        parts.append(_greenlets(picture, view, width, lines))
    if height is None:
        return Group(*parts, *bottom)
    body = Table.grid(expand=True)
    body.add_row(Group(*parts))
    return _filled(parts, bottom, width, height)
