"""Restarting a process in place: with the same command line, working directory and process id."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from greenq.errors import GreenqError

# What the process passes to its successor: the descriptor of its locked pid file (-1 if there is
# none), and whether to handle SIGHUP (1, or 0 under nohup).
_LEFT = "GREENQ_RESTARTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The state in which this process was started, noted before the app could change it.

    Attributes:
        command: the program and its arguments.
        folder: the working directory; "" if it no longer exists.
        environ: the environment.
        pid_file: the descriptor of a pid file already locked by this process, or -1.
    """

    command: tuple[str, ...]
    folder: str
    environ: dict[str, str]
    pid_file: int

    @classmethod
    def note(cls) -> Origin:
        """Note how this process was started; call this before the environment can change."""
        left = os.environ.pop(_LEFT, "")
        number, _, handles_hangups = left.partition(",")
        if handles_hangups == "1":
            signal.signal(signal.SIGHUP, _pass)
        folder = ""
        with suppress(OSError):
            folder = os.getcwd()
        return cls(
            command=(sys.executable, *sys.orig_argv[1:]),
            folder=folder,
            environ=dict(os.environ),
            pid_file=int(number) if number.isdecimal() else -1,
        )

    def again(self, pid_file: int = -1) -> NoReturn:
        """Restart this process, keeping the pid file locked.

        Raises:
            GreenqError: the new process could not be started; all that is left is to exit.
        """
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        try:
            if self.folder:
                os.chdir(self.folder)
            if pid_file >= 0:
                os.set_inheritable(pid_file, True)
            handles_hangups = hold_hangups()
            # Across `execve`, an ignored signal stays ignored, but a handler does not survive.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            left = f"{pid_file},{int(handles_hangups)}"
            os.execve(self.command[0], self.command, {**self.environ, _LEFT: left})
        except OSError as exc:
            raise GreenqError(f"this worker could not restart: {exc}") from exc


def hold_hangups() -> bool:
    """Keep SIGHUP from ending the process while no worker handles it; return False under nohup."""
    handler = signal.getsignal(signal.SIGHUP)
    if handler is signal.SIG_IGN:
        return False
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _pass)
    return True


def _pass(_number: int, _frame: object) -> None:
    """Do nothing."""
