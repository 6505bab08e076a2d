"""An app's own steps: parts that it adds to its workers, started and stopped with them.

    app.steps["worker"].add(MyStep)     # lives as long as the worker
    app.steps["consumer"].add(MyStep)   # restarts with each connection to the server
    app.user_options["worker"].add(Option("--my-option", default="x"))

A worker step starts before the consumer, and so before the first task runs, and stops after the
consumer. A consumer step starts after all of greenq's own steps. `requires` and `last` change the
order. `start` must return quickly, since nothing else starts until it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection


class Step:
    """A part that is ready as soon as it is created, and needs no start.

    Attributes:
        name: the step's name, which is unique in its blueprint; by default, the class's name.
        requires: the steps that must come before it: names, such as "Pool", or step classes. Only
            the part of a name after a colon counts, so Celery's names also work.
        last: whether it comes after all steps that do not require it.
        enabled: the default result of `include_if`.
    """

    name: str = ""
    requires: Collection[str | type[Step]] = ()
    last: bool = False
    enabled: bool = True

    def __init_subclass__(cls) -> None:
        """Name a step after its class unless it has its own name."""
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__

    def __init__(self, parent: Any, **options: Any) -> None:
        """Create the step; the worker's or the consumer's parts exist, but have not been started.

        Args:
            parent: the `Worker` or the `Consumer`.
            options: the values of the command line options in ``app.user_options``.
        """

    def include_if(self, parent: Any) -> bool:
        """Return whether `parent` gets this step; called once, before `create`."""
        return self.enabled

    def create(self, parent: Any) -> Any:
        """Create what the step needs; for a `StartStopStep`, return its `obj`, if it has one."""
        return None

    def info(self, parent: Any) -> dict[str, Any]:
        """Return the data that ``greenq inspect stats`` shows under this step's name."""
        return {}


class StartStopStep(Step):
    """A part that is started and stopped, by default by starting and stopping its `obj`.

    Attributes:
        obj: the return value of `create`.
    """

    obj: Any = None

    def start(self, parent: Any) -> None:
        """Start working. An exception ends the worker, with a message that names the step."""
        if self.obj is not None:
            self.obj.start()

    def stop(self, parent: Any) -> None:
        """Stop gracefully, even after a failed start; a consumer step may start again later."""
        if self.obj is not None:
            self.obj.stop()

    def terminate(self, parent: Any) -> None:
        """Stop immediately, at a cold shutdown; call `obj.terminate` if it exists, else `stop`."""
        if hasattr(self.obj, "terminate"):
            self.obj.terminate()
        else:
            self.stop(parent)

    def shutdown(self, parent: Any) -> None:
        """Release all resources; called once when the worker ends, after all steps have stopped."""


class Option:
    """A command line option, defined as for ``argparse``.

    The option's value is passed to every step as a keyword argument with the option's name.
    """

    def __init__(self, *flags: str, **how: Any) -> None:
        """Store the arguments for ``ArgumentParser.add_argument``."""
        self.flags = flags
        self.how = how

    def __repr__(self) -> str:
        """Show the flags."""
        return f"Option({', '.join(map(repr, self.flags))})"

    def __call__(self, parser: argparse.ArgumentParser) -> argparse.Action:
        """Add the option to `parser`."""
        return parser.add_argument(*self.flags, **self.how)
