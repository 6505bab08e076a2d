"""Steps of one's own: parts that an app adds to its workers, started and stopped with them.

    app.steps["worker"].add(MyStep)     # lives as long as the worker
    app.steps["consumer"].add(MyStep)   # starts anew with each connection to the server
    app.user_options["worker"].add(Option("--my-option", default="x"))

A step of the worker starts before the consumer, so it is there before the first task runs, and
stops after it; one of the consumer starts when all that greenq has itself is up. `requires` and
`last` change that. What a step does in `start` must not take long: nothing else starts meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection


class Step:
    """A part that exists and needs no start.

    Attributes:
        name: unique in its blueprint; the class's name unless given.
        requires: what comes before it: names, such as "Pool", or classes of steps. Of a text with
            a colon the part after it counts, so that Celery's names do as well.
        last: comes after all that do not require it.
        enabled: what `include_if` answers.
    """

    name: str = ""
    requires: Collection[str | type[Step]] = ()
    last: bool = False
    enabled: bool = True

    def __init_subclass__(cls) -> None:
        """Name a step after its class unless it has a name of its own."""
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__

    def __init__(self, parent: Any, **options: Any) -> None:
        """Make the step; the worker's or the consumer's parts are there, but not started.

        Args:
            parent: the `Worker` or the `Consumer`.
            options: values of the command line's options in ``app.user_options``.
        """

    def include_if(self, parent: Any) -> bool:
        """Tell whether `parent` gets this step; asked once, before `create`."""
        return self.enabled

    def create(self, parent: Any) -> Any:
        """Make what the step needs; of a `StartStopStep`, an object to start and stop, if any."""
        return None

    def info(self, parent: Any) -> dict[str, Any]:
        """Return what ``greenq inspect stats`` shows of this step, below its name."""
        return {}


class StartStopStep(Step):
    """A part that is started and stopped, by itself or by starting and stopping its `obj`.

    Attributes:
        obj: what `create` returned.
    """

    obj: Any = None

    def start(self, parent: Any) -> None:
        """Begin working. What this raises ends the worker, with a message that names the step."""
        if self.obj is not None:
            self.obj.start()

    def stop(self, parent: Any) -> None:
        """End in good order, also after a failed start; a consumer's step may start again later."""
        if self.obj is not None:
            self.obj.stop()

    def terminate(self, parent: Any) -> None:
        """End at once, at a cold shutdown; as `stop` unless the step or its `obj` knows better."""
        if hasattr(self.obj, "terminate"):
            self.obj.terminate()
        else:
            self.stop(parent)

    def shutdown(self, parent: Any) -> None:
        """Let go of all: the worker ends, once, after everything has stopped."""


class Option:
    """An option of the command line, as ``argparse`` describes them.

    Its value reaches every step as a keyword argument, named like the option.
    """

    def __init__(self, *flags: str, **how: Any) -> None:
        """Keep what ``ArgumentParser.add_argument`` is to be given."""
        self.flags = flags
        self.how = how

    def __repr__(self) -> str:
        """Show the flags."""
        return f"Option({', '.join(map(repr, self.flags))})"

    def __call__(self, parser: argparse.ArgumentParser) -> argparse.Action:
        """Add it to `parser`."""
        return parser.add_argument(*self.flags, **self.how)
