"""Steps and blueprints: the parts of the worker and of the consumer, started in a written order.

A `Step` names what it requires; a `Blueprint` orders its steps with `graphlib` so that each starts
after all it requires, and stops them in reverse. A user's own step joins the same way.
"""

from __future__ import annotations

import graphlib
import logging
from typing import TYPE_CHECKING, ClassVar

from greenq.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger(__name__)


class Step:
    """One part that exists from creation on and needs no start.

    Attributes:
        name: unique in its blueprint.
        requires: names of the steps that come before it.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Name a step after its class unless it has a name of its own."""
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def info(self) -> dict[str, object]:
        """Return what this step tells about itself, for `stats`."""
        return {}


class StartStopStep(Step):
    """A part that is started and stopped; stop before start, and twice, is safe."""

    def start(self) -> None:
        """Begin working. What it raises ends the start of the whole blueprint."""

    def stop(self) -> None:
        """End in good order: finish what runs, give back the rest."""

    def terminate(self) -> None:
        """End at once; as `stop` unless a step knows a quicker way."""
        self.stop()


class Blueprint:
    """An ordered set of steps with one life: start, then stop or terminate, both in reverse."""

    def __init__(self, name: str, steps: Iterable[Step]) -> None:
        """Order the steps.

        Raises:
            ConfigError: two steps share a name, one requires a step that is missing, or they
                require each other in a circle, which is then named.
        """
        self.name = name
        self.steps = _ordered(name, list(steps))
        self._started: list[StartStopStep] = []

    def start(self) -> None:
        """Start all steps in order; if one fails, stop those before it and raise its error."""
        for step in self.steps:
            if isinstance(step, StartStopStep):
                _log.debug("%s: starting %s", self.name, step.name)
                self._started.append(step)
                try:
                    step.start()
                except BaseException:
                    self.stop()
                    raise

    def stop(self) -> None:
        """Stop the started steps, last first; one that fails does not keep the others from it."""
        self._end("stop")

    def terminate(self) -> None:
        """End the started steps at once, last first."""
        self._end("terminate")

    def _end(self, how: str) -> None:
        while self._started:
            step = self._started.pop()
            _log.debug("%s: %s %s", self.name, how, step.name)
            try:
                step.terminate() if how == "terminate" else step.stop()
            except Exception:
                _log.exception("%s: step %s failed to %s", self.name, step.name, how)


def _ordered(blueprint: str, steps: list[Step]) -> list[Step]:
    by_name = {step.name: step for step in steps}
    problems = [
        Problem(f"{blueprint}.{step.name}", step, "another step has this name")
        for step in steps
        if by_name[step.name] is not step
    ]
    problems += [
        Problem(f"{blueprint}.{step.name}", needed, "it requires a step that is not there")
        for step in steps
        for needed in step.requires
        if needed not in by_name
    ]
    if problems:
        raise ConfigError(problems)
    sorter = graphlib.TopologicalSorter({step.name: step.requires for step in steps})
    try:
        sorter.prepare()
    except graphlib.CycleError as exc:
        circle = " -> ".join(exc.args[1])
        reason = f"these steps require each other: {circle}"
        raise ConfigError([Problem(blueprint, circle, reason)]) from None
    # Of the steps that may come next, the one that was given first.
    given = {step.name: place for place, step in enumerate(steps)}
    ordered: list[Step] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=given.__getitem__)
        ordered.append(by_name[ready.pop(0)])
        sorter.done(ordered[-1].name)
    return ordered
