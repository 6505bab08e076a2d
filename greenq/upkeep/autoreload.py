"""Autoreload, for development: restarts the worker when a source file of the app changes.

The package watchfiles waits for changes in a native thread alongside the hub.
"""

from __future__ import annotations

import importlib
import logging
import os
import site
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import ConfigError, Problem
from greenq.hub import NativeThread, sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = logging.getLogger(__name__)

# How long to collect changes that belong together, and how often to check whether to stop waiting,
# in ms.
_COLLECT_MS: Final = 100
_STEP_MS: Final = 25
# How long the thread may take to finish.
_END_S: Final = 2.0

# Directories of installed packages, and of greenq itself.
_INSTALLED: Final = tuple(
    f"{os.path.realpath(folder)}{os.sep}"
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        str(Path(__file__).parent),
    }
)


def require_watchfiles() -> Any:
    """Return the package watchfiles.

    Raises:
        ConfigError: watchfiles is not installed.
    """
    try:
        return importlib.import_module("watchfiles")
    except ImportError as exc:
        reason = f"needs the package watchfiles: pip install 'greenq[reload]' ({exc})"
        raise ConfigError([Problem("autoreload", True, reason)]) from exc


def app_folders() -> list[str]:
    """Return the working directory and the directories of the app's imported modules.

    Installed packages and greenq itself are excluded.
    """
    found = {os.getcwd()}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            path = os.path.realpath(file)
            if not path.startswith(_INSTALLED) and "site-packages" not in path:
                found.add(os.path.dirname(path))
    return _outermost(found)


def _outermost(folders: Iterable[str]) -> list[str]:
    """Omit directories inside others, since watching a directory includes its subdirectories."""
    kept: list[str] = []
    for folder in sorted(map(os.path.realpath, folders)):
        if not kept or not f"{folder}{os.sep}".startswith(f"{kept[-1].rstrip(os.sep)}{os.sep}"):
            kept.append(folder)
    return kept


def syntax_error(path: str) -> str | None:
    """Return where and why a source file cannot be compiled; None if it can, or is missing."""
    try:
        compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except FileNotFoundError:
        return None
    except SyntaxError as exc:
        line = f", line {exc.lineno}" if exc.lineno else ""
        return f"{path}{line}: {exc.msg}"
    except (OSError, ValueError) as exc:
        return f"{path}: {exc}"
    return None


class Sources:
    """Waits for changes to the source files of an app, and checks the syntax of changed files."""

    def __init__(self, folders: Iterable[str]) -> None:
        """Watch all files below `folders`.

        Raises:
            ConfigError: watchfiles is not installed.
        """
        self._watchfiles = require_watchfiles()
        # By default, watchfiles logs each change, including changes that are ignored here.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        self._is_python = self._watchfiles.PythonFilter()
        self._folders = list(folders)
        # The files that cannot be compiled at present.
        self._broken: set[str] = set()
        self._is_over = False

    def is_set(self) -> bool:
        """Return whether to stop waiting; watchfiles calls this."""
        return self._is_over

    def end(self) -> None:
        """Make `wait` return; any thread may call this."""
        self._is_over = True

    def wait(self, *, interrupts: bool = False) -> str | None:
        """Wait in a native thread until files have changed and all changed files can be compiled.

        Each file that cannot be compiled is logged.

        Args:
            interrupts: whether to raise KeyboardInterrupt on SIGINT.

        Returns:
            The first changed file; None after `end`.

        Raises:
            OSError: the files cannot be watched.
        """
        for changes in self._watchfiles.watch(
            *self._folders,
            watch_filter=self._counts,
            debounce=_COLLECT_MS,
            step=_STEP_MS,
            stop_event=self,
            raise_interrupt=interrupts,
        ):
            changed: list[str] = sorted(path for _kind, path in changes)
            if not self._find_broken(changed):
                return changed[0]
        return None

    def _counts(self, kind: Any, path: str) -> bool:
        return "site-packages" not in path and bool(self._is_python(kind, path))

    def _find_broken(self, changed: Iterable[str]) -> bool:
        """Log each changed file that cannot be compiled; return whether there is any such file."""
        self._broken.update(changed)
        for path in sorted(self._broken):
            wrong = syntax_error(path)
            if wrong is None:
                self._broken.discard(path)
            elif path in changed:
                _log.error("not restarted; the old code keeps running: %s", wrong)
        return bool(self._broken)


class Autoreloader(StartStopPart):
    """Restarts the worker when a source file of the app has changed."""

    name = "Autoreloader"
    requires = ("Hub",)

    def __init__(
        self, restart: Callable[[str], object], *, spawn_soon: Callable[..., None]
    ) -> None:
        """Call `restart` with the reason, in a greenlet that `spawn_soon` starts.

        Raises:
            ConfigError: watchfiles is not installed.
        """
        require_watchfiles()
        self._restart = restart
        self._spawn_soon = spawn_soon
        self._sources: Sources | None = None
        self._thread: NativeThread | None = None

    def start(self) -> None:
        """Begin to watch the directories of the modules imported so far."""
        folders = app_folders()
        self._sources = Sources(folders)
        _log.info("watching the source files in %s", ", ".join(folders))
        self._thread = NativeThread(self._run, name="greenq autoreload")

    def stop(self) -> None:
        """Stop watching. Switches: yes."""
        thread, self._thread = self._thread, None
        if thread is None or self._sources is None:
            return
        self._sources.end()
        until_s = time.monotonic() + _END_S
        while not thread.ended and time.monotonic() < until_s:
            sleep(0.005)
        if thread.ended:
            thread.close()

    def _run(self, _thread: NativeThread) -> None:
        sources = self._sources
        if sources is None:
            return
        try:
            changed = sources.wait()
        except OSError as exc:
            _log.error("source files are not watched, so restart the worker by hand: %s", exc)
            return
        if changed is not None:
            why = f"{os.path.relpath(changed)} has changed"
            self._spawn_soon(lambda: self._restart(why), name="autoreload")
