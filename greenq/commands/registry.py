"""Remote control commands by name, and the decorators that register them.

    @control_command(args=[("n", int)], signature="[N=1]")
    def double_pool(worker, n=1): ...

A command takes the worker's `Parts` and keyword arguments and returns the reply. It runs in the
hub's thread and may switch, but other requests wait in the meantime. An exception becomes an error
reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greenq.protocol.text import cut
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Function = TypeVar("Function", bound="Callable[..., Any]")

# Only this many characters of an unknown command's name are compared and shown.
_COMPARED_CHARS = 100


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: the name that requests use.
        kind: an inspect command only reads; a control command changes something.
        call: takes the worker's parts and the keyword arguments, and returns the reply.
        args: (name, type) of its positional arguments, for command lines.
        signature: the arguments as shown in help.
        urgent: any thread may run it, even while the hub is blocked.
    """

    name: str
    kind: Literal["inspect", "control"]
    call: Callable[..., Any]
    args: Sequence[tuple[str, Callable[[str], Any]]] = ()
    signature: str = ""
    urgent: bool = False


class Panel:
    """All commands of this process by name and alias."""

    def __init__(self) -> None:
        """Create an empty panel."""
        self._commands: dict[str, Command] = {}

    def add(self, command: Command, aliases: Iterable[str] = ()) -> None:
        """Register a command, replacing any command with the same name."""
        for name in (command.name, *aliases):
            self._commands[name] = command

    def is_urgent(self, name: str) -> bool:
        """Return whether a command can run without the hub."""
        command = self._commands.get(name)
        return command is not None and command.urgent

    def changes(self, name: str) -> bool:
        """Return whether a command changes something."""
        command = self._commands.get(name)
        return command is not None and command.kind == "control"

    def run(self, name: str, worker: object, arguments: Mapping[str, Any]) -> Any:
        """Run a command and return its reply.

        Raises:
            KeyError: no command has this name.
            TypeError: the command does not take these arguments.
            Exception: whatever a command of the app raises.
        """
        command = self._commands.get(name)
        if command is None:
            name = cut(name, _COMPARED_CHARS)
            raise KeyError(
                f"no control command is named {name!r}{suggestion(name, self._commands)}"
            )
        return command.call(worker, **arguments)


# This table is global because an app's modules register their commands on import, before any app or
# worker exists.
panel = Panel()


def inspect_command(
    *,
    name: str | None = None,
    alias: str | None = None,
    args: Sequence[tuple[str, Callable[[str], Any]]] = (),
    signature: str = "",
    urgent: bool = False,
    **_other: Any,
) -> Callable[[Function], Function]:
    """Register a read-only function as a command; its first argument is the worker's parts.

    Args:
        name: the command's name, if it differs from the function's.
        alias: a second name.
        args: (name, type) of each positional argument, for command lines.
        signature: the arguments as shown in help.
        urgent: the function reads only data that any thread may read, so the worker replies to the
            command even while the hub is blocked.
    """
    return _adder("inspect", name, alias, args, signature, urgent=urgent)


def control_command(
    *,
    name: str | None = None,
    alias: str | None = None,
    args: Sequence[tuple[str, Callable[[str], Any]]] = (),
    signature: str = "",
    **_other: Any,
) -> Callable[[Function], Function]:
    """Register a function that changes something as a command; see `inspect_command`."""
    return _adder("control", name, alias, args, signature, urgent=False)


def _adder(
    kind: Literal["inspect", "control"],
    name: str | None,
    alias: str | None,
    args: Sequence[tuple[str, Callable[[str], Any]]],
    signature: str,
    *,
    urgent: bool,
) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        command = Command(name or function.__name__, kind, function, args, signature, urgent)
        panel.add(command, [alias] if alias else ())
        return function

    return add


def ok(value: object) -> dict[str, object]:
    """Return the reply to a request that was carried out."""
    return {"ok": value}


def error(text: str) -> dict[str, object]:
    """Return the reply to a request that was refused."""
    return {"error": text}
