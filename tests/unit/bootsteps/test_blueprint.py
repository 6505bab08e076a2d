"""Steps start in the order they require and stop in reverse."""

from __future__ import annotations

import logging

import pytest

from greenq.bootsteps.blueprint import Blueprint, DisabledPart, Part, StartStopPart
from greenq.errors import ConfigError


class Recorder(StartStopPart):
    """Writes down what happens to it."""

    def __init__(self, events: list[str], *, fails_at: str = "") -> None:
        self._events = events
        self._fails_at = fails_at

    def start(self) -> None:
        self._record("start")

    def stop(self) -> None:
        self._record("stop")

    def _record(self, what: str) -> None:
        self._events.append(f"{what} {self.name}")
        if what == self._fails_at:
            raise RuntimeError(f"{self.name} cannot {what}")


def step(name: str, *requires: str, base: type[Part] = Recorder) -> type[Part]:
    return type(name, (base,), {"name": name, "requires": requires})


def blueprint(*kinds: type[Part]) -> tuple[Blueprint, list[str]]:
    events: list[str] = []
    return Blueprint("test", [kind(events) for kind in kinds]), events


@pytest.mark.parametrize(
    ("kinds", "order"),
    [
        pytest.param([step("A"), step("B"), step("C")], "ABC", id="as given"),
        pytest.param([step("B", "A"), step("A")], "AB", id="requirement first"),
        pytest.param(
            [step("D", "B", "C"), step("C"), step("A"), step("B", "A")], "CABD", id="both"
        ),
        pytest.param([], "", id="none"),
    ],
)
def test_blueprint_orders_steps(kinds: list[type[Part]], order: str) -> None:
    made, _ = blueprint(*kinds)

    assert "".join(each.name for each in made.steps) == order


def test_blueprint_names_the_circle_when_steps_require_each_other() -> None:
    with pytest.raises(ConfigError) as refused:
        blueprint(step("A", "C"), step("B", "A"), step("C", "B"), step("D"))

    (problem,) = refused.value.problems
    circle = str(problem.value).split(" -> ")
    assert set(circle) == {"A", "B", "C"}
    assert circle[0] == circle[-1]


def test_blueprint_names_every_missing_and_every_doubled_step() -> None:
    with pytest.raises(ConfigError) as refused:
        blueprint(step("A", "Nowhere"), step("B"), step("B"), step("C", "Elsewhere"))

    named = {(problem.field, str(problem.value)) for problem in refused.value.problems}
    assert ("test.A", "Nowhere") in named
    assert ("test.C", "Elsewhere") in named
    assert any(field == "test.B" for field, _ in named)


def test_step_is_named_after_its_class_unless_it_names_itself() -> None:
    class Plain(Part):
        pass

    class Child(step("Parent")):  # type: ignore[misc]
        pass

    assert (Plain.name, Child.name) == ("Plain", "Child")


def test_steps_stop_in_reverse_and_only_once() -> None:
    made, events = blueprint(step("A"), step("B", "A"))

    made.stop()
    assert events == []
    made.start()
    made.stop()
    made.stop()

    assert events == ["start A", "start B", "stop B", "stop A"]


def test_blueprint_starts_again_after_a_stop() -> None:
    made, events = blueprint(step("A"))

    for _ in range(2):
        made.start()
        made.stop()

    assert events == ["start A", "stop A"] * 2


def test_failed_start_stops_what_was_started_and_raises_its_error() -> None:
    events: list[str] = []
    made = Blueprint(
        "test",
        [
            step("A")(events),
            step("B")(events, fails_at="start"),
            step("C")(events),
        ],
    )

    with pytest.raises(RuntimeError, match="B cannot start"):
        made.start()

    assert events == ["start A", "start B", "stop B", "stop A"]


@pytest.mark.parametrize("how", ["stop", "terminate"])
def test_error_in_one_stop_keeps_no_other_from_stopping(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    made = Blueprint("test", [step("A")(events), step("B")(events, fails_at="stop")])
    made.start()

    with caplog.at_level(logging.ERROR):
        getattr(made, how)()

    assert events[2:] == ["stop B", "stop A"]
    assert "step B failed" in caplog.text


def test_plain_step_needs_no_start() -> None:
    made = Blueprint("test", [step("A", base=Part)()])

    made.start()
    made.stop()

    assert made.steps[0].info() == {}


def test_last_comes_after_all_that_do_not_require_it() -> None:
    last = type("L", (Recorder,), {"name": "L", "last": True})
    made, _ = blueprint(step("A", "L"), last, step("B"), step("C"))

    assert "".join(each.name for each in made.steps) == "BCLA"


def test_step_does_without_one_that_is_switched_off() -> None:
    events: list[str] = []
    made = Blueprint("test", [DisabledPart(step("Gone")), step("A", "Gone")(events)])

    assert [each.name for each in made.steps] == ["A"]
    assert made.graph() == [("Gone", (), "", False), ("A", ("Gone",), "", True)]


def test_all_steps_let_go_at_the_end_whatever_one_of_them_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Owner(Recorder):
        def shutdown(self) -> None:
            self._record("shutdown")

    events: list[str] = []
    first, second = (type(name, (Owner,), {}) for name in "AB")
    made = Blueprint("test", [first(events), second(events, fails_at="shutdown")])

    with caplog.at_level(logging.ERROR):
        made.shutdown()

    assert events == ["shutdown B", "shutdown A"]
    assert "step B failed to shut down" in caplog.text


def test_info_is_told_by_step_and_one_that_fails_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Telling(Part):
        def info(self) -> dict[str, object]:
            return {"n": 1}

    class Failing(Part):
        def info(self) -> dict[str, object]:
            raise RuntimeError("no idea")

    with caplog.at_level(logging.ERROR):
        told = Blueprint("test", [Failing(), Telling(), step("Silent", base=Part)()]).info()

    assert told == {"telling": {"n": 1}}
    assert "step Failing failed" in caplog.text


def test_graph_shows_the_order_what_is_required_and_what_a_step_is() -> None:
    class Second(Part):
        """Comes second.

        And has more to say.
        """

        requires = ("First",)
        included = False

    made = Blueprint("test", [Second(), step("First", base=Part)()])

    assert made.graph() == [
        ("First", (), "", True),
        ("Second", ("First",), "Comes second.", False),
    ]
