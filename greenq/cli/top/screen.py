"""The full-screen display of ``greenq top``: draws the screen and handles keys."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final, NoReturn

from rich.console import Console, Group
from rich.live import Live

from greenq.cli.top.keyboard import Keyboard
from greenq.cli.top.model import ClusterSnapshot
from greenq.cli.top.view import View, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greenq.cli.top.ask import EventsThread, Sampler
    from greenq.cli.top.model import Model, Picture

# A change is drawn within this time.
_TURN_S: Final = 0.1

# A readable width for output that is not a terminal.
_FILE_WIDTH: Final = 120


def write(picture: Picture, address: str, order: str) -> None:
    """Print one snapshot as text, in full."""
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    console = Console(highlight=False, width=width)
    node = _chosen(picture, None)
    view = View(address=address, time=_now(), chosen=node, order=order)
    for line in draw(picture, view, console.width):
        line.rstrip()
        console.print(line, no_wrap=True, crop=True)


class Screen:
    """Shows a model, which samples and events keep up to date."""

    def __init__(
        self, model: Model, sampler: Sampler, listener: EventsThread, address: str, *, order: str
    ) -> None:
        """Show `model` for the server at `address`; `sampler` and `listener` must be running."""
        self._model = model
        self._sampler = sampler
        self._listener = listener
        self._address = address
        self._console = Console(highlight=False)
        self._warnings = _Warnings()
        self._picture = model.picture()
        self._chosen = _chosen(self._picture, None)
        self._greenlets = False
        self._paused = False
        self._order = order
        self._help = False
        self._time = _now()
        self._warning = ""

    def run(self) -> None:
        """Show the screen until q is pressed, SIGINT arrives or the terminal is closed."""
        self._sampler.choose(self._chosen)
        with _ended_by_signals(), self._warnings.kept(), suppress(KeyboardInterrupt, EOFError):
            while not self._show():
                # Do what a terminal normally does at Ctrl-Z: return to the shell until resumed.
                os.kill(0, signal.SIGTSTP)

    def _show(self) -> bool:
        """Show the screen; return True to quit, False to suspend."""
        live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with Keyboard() as keyboard, live:
            size, is_new = None, True
            while True:
                if is_new or self._console.size != size:
                    size = self._console.size
                    live.update(self._draw(), refresh=True)
                pressed = keyboard.keys(_TURN_S)
                if "q" in pressed or "suspend" in pressed:
                    return "q" in pressed
                for key in pressed:
                    self._press(key)
                is_new = self._take() or bool(pressed)

    def _draw(self) -> Group:
        view = View(
            address=self._address,
            time=self._time,
            chosen=self._chosen,
            greenlets=self._greenlets,
            paused=self._paused,
            order=self._order,
            help=self._help,
            warning=self._warning,
        )
        return Group(*draw(self._picture, view, *self._console.size))

    def _take(self) -> bool:
        """Add new samples and events; return whether they change the picture."""
        self._model.add_events(self._listener.take())
        found = self._sampler.take()
        for each in found:
            if isinstance(each, ClusterSnapshot):
                self._model.look(each)
                self._time = _now()
                self._warning = self._warnings.take()
            else:
                self._model.greenlets(each)
        if found:
            self._picture = self._model.picture()
            self._choose(_chosen(self._picture, self._chosen))
        return bool(found)

    def _press(self, key: str) -> None:
        if key == "g":
            self._greenlets = not self._greenlets
        elif key == "p":
            self._paused = not self._paused
            self._sampler.pause(on=self._paused)
        elif key == "?":
            self._help = not self._help
        elif key in _ORDERS:
            self._order = _ORDERS[key]
        elif key in _STEPS:
            nodes = [each.node for each in self._picture.workers]
            if self._chosen in nodes:
                at = nodes.index(self._chosen) + _STEPS[key]
                self._choose(nodes[at % len(nodes)])

    def _choose(self, node: str | None) -> None:
        if node != self._chosen:
            self._chosen = node
            self._sampler.choose(node)


_ORDERS: Final = {"t": "rate", "f": "failures", "s": "runtime"}
_STEPS: Final = {"up": -1, "k": -1, "down": 1, "j": 1}


def _chosen(picture: Picture, before: str | None) -> str | None:
    """Return the worker whose greenlets are shown: `before`, or else the first greenq worker."""
    workers = picture.workers
    if before is not None and any(each.node == before for each in workers):
        return before
    return next((each.node for each in sorted(workers, key=lambda each: not each.ours)), None)


def _now() -> str:
    return f"{datetime.now().astimezone():%H:%M:%S}"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Restore the terminal before a signal ends the program."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Warnings(logging.Handler):
    """Keeps the last warning that is logged, which would otherwise disturb the screen."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self._last = record.getMessage()

    def take(self) -> str:
        """Return the warning logged since the last call, if any."""
        last, self._last = self._last, ""
        return last

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Replace the log's other handlers during the block."""
        root = logging.getLogger()
        before, root.handlers = root.handlers, [self]
        try:
            yield
        finally:
            root.handlers = before
