"""Agent: a user-defined object that exists for as long as the connection does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable


class Agent(StartStopPart):
    """Instantiates the class that ``worker_agent`` names, starts the object and stops it.

    The class is called with the worker; its instance has `start` and `stop`.
    """

    name = "Agent"
    requires = ("Connection",)

    def __init__(self, path: str, worker: object) -> None:
        """Import the class and create the object.

        Raises:
            ConfigError: `path` does not name a class that can be imported.
        """
        self.agent = _find(path)(worker)

    def start(self) -> None:
        """Start the user's object; if it raises an exception, the start fails."""
        self.agent.start()

    def stop(self) -> None:
        """Stop the user's object."""
        self.agent.stop()


def _find(path: str) -> Callable[[object], Any]:
    """Import ``module:name`` or ``module.name``."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    try:
        found: Callable[[object], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        reason = f"does not name a class that can be imported: {exc}"
        raise ConfigError([Problem("worker_agent", path, reason)]) from exc
    return found
