"""Steps and blueprints: the parts of the worker and of the consumer, started in a fixed order.

A `Part` names the parts that it requires. A `Blueprint` orders its steps with `graphlib` so that
each starts after everything it requires, and stops them in reverse order. An app's own steps
(greenq/bootsteps/steps.py) are added by `custom`, which binds them to their worker or consumer.
"""

from __future__ import annotations

import graphlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.bootsteps import steps as users
from greenq.errors import ConfigError, GreenqError, OperationalError, Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_log = logging.getLogger(__name__)


class StepFailed(GreenqError):
    """An app's step could not be created or started; ``__cause__`` is the reason."""

    def __init__(self, step: str, doing: str, reason: BaseException) -> None:
        """Store the step's name and the action that failed."""
        self.step = step
        super().__init__(f"the app's step {step} could not {doing}: {reason!r}")


class Part:
    """A part that is ready as soon as it is created, and needs no start.

    Attributes:
        name: the step's name, which is unique in its blueprint.
        requires: the names of the steps that must come before it.
        last: whether it comes after all parts that do not require it.
        included: if False, the part only keeps its place in the order and is never started.
    """

    name: str = ""
    requires: tuple[str, ...] = ()
    last: bool = False
    included: bool = True

    def __init_subclass__(cls) -> None:
        """Name a step after its class unless it has its own name."""
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def info(self) -> dict[str, object]:
        """Return the data that `stats` shows about this step."""
        return {}

    @property
    def description(self) -> str:
        """A description of this step in one line."""
        return _first_line(self)

    def shutdown(self) -> None:
        """Release resources that outlive a stop; called when the worker ends."""


class StartStopPart(Part):
    """A part that is started and stopped; stopping it before it has started, or twice, is safe."""

    def start(self) -> None:
        """Start working. An exception aborts the start of the whole blueprint."""

    def stop(self) -> None:
        """Stop gracefully: finish running tasks, and requeue tasks that have not started."""

    def terminate(self) -> None:
        """Stop immediately; the same as `stop` unless a step has a quicker way."""
        self.stop()


class DisabledPart(Part):
    """A part of greenq that is switched off: it only keeps its place in the order."""

    included = False

    def __init__(self, kind: type[Part]) -> None:
        """Stand in for a step of class `kind`."""
        self.name, self.requires, self.last = kind.name, kind.requires, kind.last
        self._kind = kind

    @property
    def description(self) -> str:
        """A description of the disabled step in one line."""
        return _first_line(self._kind)


class GraphNode(NamedTuple):
    """A step in `Blueprint.graph`."""

    name: str
    requires: tuple[str, ...]
    description: str
    included: bool


class Blueprint:
    """An ordered set of steps, which start in this order and stop or terminate in reverse."""

    def __init__(self, name: str, steps: Iterable[Part]) -> None:
        """Order the steps.

        Args:
            name: the blueprint's name, shown in the log and in errors.
            steps: the steps in the preferred order, which requirements may change. A step starts
                even if a step that it requires is not included.

        Raises:
            ConfigError: two steps share a name, a step requires one that is missing, or steps
                require each other in a cycle, which the error names.
        """
        self.name = name
        self._all = _order(name, list(steps))
        self.steps = [step for step in self._all if step.included]
        self._started: list[StartStopPart] = []

    def start(self) -> None:
        """Start all steps in order; if one fails, stop it and those before it; raise its error."""
        for step in self.steps:
            if isinstance(step, StartStopPart):
                _log.debug("%s: starting %s", self.name, step.name)
                self._started.append(step)
                try:
                    step.start()
                except BaseException:
                    self.stop()
                    raise

    def stop(self) -> None:
        """Stop the started steps, the last one first, even if some fail to stop."""
        self._end("stop")

    def terminate(self) -> None:
        """Terminate the started steps, the last one first."""
        self._end("terminate")

    def shutdown(self) -> None:
        """Shut down all steps, the last one first; none can be started again."""
        for step in reversed(self.steps):
            try:
                step.shutdown()
            except Exception:
                _log.exception("%s: step %s failed to shut down", self.name, step.name)

    def info(self) -> dict[str, dict[str, object]]:
        """Return the info of each step, under the step's name in lower case."""
        collected: dict[str, dict[str, object]] = {}
        for step in self.steps:
            try:
                info = step.info()
            except Exception:
                _log.exception("%s: step %s failed to return its info", self.name, step.name)
                continue
            if info:
                collected[step.name.lower()] = info
        return collected

    def graph(self) -> list[GraphNode]:
        """Return all steps in starting order, including the disabled ones."""
        names = {step.name for step in self._all}
        return [
            GraphNode(
                step.name,
                tuple(needed for needed in step.requires if needed in names),
                step.description,
                step.included,
            )
            for step in self._all
        ]

    def _end(self, how: str) -> None:
        while self._started:
            step = self._started.pop()
            _log.debug("%s: %s %s", self.name, how, step.name)
            try:
                step.terminate() if how == "terminate" else step.stop()
            except Exception:
                _log.exception("%s: step %s failed to %s", self.name, step.name, how)


def _order(blueprint: str, steps: list[Part]) -> list[Part]:
    by_name = {step.name: step for step in steps}
    problems = [
        Problem(f"{blueprint}.{step.name}", step, "another step has this name")
        for step in steps
        if by_name[step.name] is not step
    ]
    problems += [
        Problem(f"{blueprint}.{step.name}", needed, "it requires a step that does not exist")
        for step in steps
        for needed in step.requires
        if needed not in by_name
    ]
    if problems:
        raise ConfigError(problems)
    sorter = graphlib.TopologicalSorter(
        {step.name: [name for name in step.requires if name in by_name] for step in steps}
    )
    try:
        sorter.prepare()
    except graphlib.CycleError as exc:
        circle = " -> ".join(exc.args[1])
        reason = f"these steps require each other: {circle}"
        raise ConfigError([Problem(blueprint, circle, reason)]) from None
    # Of the steps that can come next, take those not marked as last first, in the given order.
    given = {step.name: (step.last, place) for place, step in enumerate(steps)}
    ordered: list[Part] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=given.__getitem__)
        ordered.append(by_name[ready.pop(0)])
        sorter.done(ordered[-1].name)
    return ordered


# --- an app's own steps ---------------------------------------------------------------------------


def custom(
    classes: Iterable[type[users.Step]], parent: object, options: Mapping[str, Any]
) -> list[Part]:
    """Create an app's own steps for `parent`, sorted by name, so all workers have the same order.

    Args:
        classes: the classes in ``app.steps``.
        parent: the worker or the consumer, with all its parts created.
        options: the values of the app's own command line options.

    Raises:
        ConfigError: a class is not derived from `Step`.
        StepFailed: a step could not be created.
    """
    wanted: list[Any] = list(classes)
    problems = [
        Problem("app.steps", each, "must be a class derived from greenq.bootsteps.Step")
        for each in wanted
        if not (isinstance(each, type) and issubclass(each, users.Step))
    ]
    if problems:
        raise ConfigError(problems)
    return [_create(each, parent, options) for each in sorted(wanted, key=lambda each: each.name)]


def _create(kind: type[users.Step], parent: object, options: Mapping[str, Any]) -> Part:
    try:
        step = kind(parent, **options)
        included = bool(step.include_if(parent))
        created = step.create(parent) if included else None
    except Exception as exc:
        raise StepFailed(kind.name, "be created", exc) from exc
    if not isinstance(step, users.StartStopStep):
        return _Custom(step, parent, included=included)
    step.obj = created
    return _CustomStartStop(step, parent, included=included)


class _Custom(Part):
    """An app's step, bound to its parent."""

    def __init__(self, step: users.Step, parent: object, *, included: bool) -> None:
        self._step = step
        self._parent = parent
        self.name = step.name
        self.requires = _names(step.requires)
        self.last = step.last
        self.included = included

    @property
    def description(self) -> str:
        return _first_line(self._step)

    def info(self) -> dict[str, object]:
        return self._step.info(self._parent)


class _CustomStartStop(_Custom, StartStopPart):
    """An app's step that is started and stopped."""

    _step: users.StartStopStep

    def start(self) -> None:
        try:
            self._step.start(self._parent)
        except OperationalError as exc:
            # The connection has been lost; the consumer will restart when the server is back.
            _log.warning("the app's step %s could not start: %s", self.name, exc)
            raise
        except Exception as exc:
            _log.exception("the app's step %s could not start", self.name)
            raise StepFailed(self.name, "start", exc) from exc

    def stop(self) -> None:
        self._step.stop(self._parent)

    def terminate(self) -> None:
        self._step.terminate(self._parent)

    def shutdown(self) -> None:
        self._step.shutdown(self._parent)


def _names(requires: Collection[str | type[users.Step]]) -> tuple[str, ...]:
    """Return the names of the required steps; Celery writes them as ``module:Name``."""
    given = (requires,) if isinstance(requires, str) else requires
    names = [each if isinstance(each, str) else each.name for each in given]
    return tuple(sorted(name.rpartition(":")[2] for name in names))


def _first_line(documented: object) -> str:
    kind = documented if isinstance(documented, type) else type(documented)
    return (kind.__doc__ or "").strip().partition("\n")[0]
