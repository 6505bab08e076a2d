"""An app's own steps: made, ordered, started and stopped as those of greenq; their options."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from greenq.bootsteps import Option, StartStopStep, Step
from greenq.bootsteps.blueprint import Blueprint, Part, StepFailed, custom
from greenq.cli import build_parser
from greenq.cli.worker_options import custom_defaults, read_custom
from greenq.errors import ConfigError, ConnectionLost


class Parent:
    """Stands for a worker: its steps write down here what happens to them."""

    def __init__(self) -> None:
        self.events: list[str] = []


class Recorder(StartStopStep):
    """Writes down what happens to it."""

    fails_at = ""

    def __init__(self, parent: Parent, *, port: int = 0, **options: Any) -> None:
        super().__init__(parent, **options)
        self.port = port
        self._record(parent, "init")

    def create(self, parent: Parent) -> None:
        self._record(parent, "create")

    def start(self, parent: Parent) -> None:
        self._record(parent, "start")

    def stop(self, parent: Parent) -> None:
        self._record(parent, "stop")

    def shutdown(self, parent: Parent) -> None:
        self._record(parent, "shutdown")

    def info(self, parent: Parent) -> dict[str, Any]:
        return {"port": self.port, "events": len(parent.events)}

    def _record(self, parent: Parent, what: str) -> None:
        parent.events.append(f"{what} {self.name}")
        if what == self.fails_at:
            raise RuntimeError(f"{self.name} cannot {what}")


def recorder(name: str, /, **attributes: Any) -> type[Recorder]:
    return type(name, (Recorder,), attributes)


def part(name: str, *requires: str) -> Part:
    kind: type[Part] = type(name, (Part,), {"requires": requires})
    return kind()


def with_parts(parent: Parent, *kinds: type[Step], **options: Any) -> Blueprint:
    """Return the steps `kinds` between two of greenq's own, as the worker does."""
    own = custom(kinds, parent, options)
    return Blueprint("test", [part("Pool"), *own, part("Consumer", "Pool")])


def order(blueprint: Blueprint) -> list[str]:
    return [step.name for step in blueprint.steps]


def test_step_lives_with_its_parent() -> None:
    parent = Parent()
    made = with_parts(parent, recorder("Mine"), port=8000)

    assert made.info() == {"mine": {"port": 8000, "events": 2}}
    made.start()
    made.stop()
    made.shutdown()

    happened = ["init", "create", "start", "stop", "shutdown"]
    assert parent.events == [f"{what} Mine" for what in happened]


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        pytest.param({}, ["Pool", "Mine", "Consumer"], id="as greenq puts it"),
        pytest.param({"requires": ("Consumer",)}, ["Pool", "Consumer", "Mine"], id="name"),
        pytest.param({"requires": "Consumer"}, ["Pool", "Consumer", "Mine"], id="one name"),
        pytest.param(
            {"requires": {"celery.worker.components:Consumer"}},
            ["Pool", "Consumer", "Mine"],
            id="Celery's name",
        ),
        pytest.param({"last": True}, ["Pool", "Consumer", "Mine"], id="last"),
        pytest.param({"name": "Other"}, ["Pool", "Other", "Consumer"], id="name of its own"),
    ],
)
def test_step_is_placed(attributes: dict[str, Any], names: list[str]) -> None:
    assert order(with_parts(Parent(), recorder("Mine", **attributes))) == names


def test_steps_are_ordered_by_the_classes_they_require_and_else_by_name() -> None:
    last = recorder("A")
    first, middle = recorder("C"), recorder("B")
    last.requires = (first, middle)

    for kinds in ((last, middle, first), (first, last, middle)):
        assert order(with_parts(Parent(), *kinds)) == ["Pool", "B", "C", "A", "Consumer"]


def test_step_that_is_not_included_is_no_part_but_may_be_required() -> None:
    parent = Parent()
    off = recorder("Off", enabled=False)
    made = with_parts(parent, off, recorder("Mine", requires=(off,)))

    assert order(made) == ["Pool", "Mine", "Consumer"]
    assert "create Off" not in parent.events
    assert made.graph()[1:3] == [("Off", (), "", False), ("Mine", ("Off",), "", True)]


class Service:
    """What a step may create: it is started and stopped for it."""

    def __init__(self, events: list[str]) -> None:
        self.start, self.stop = (lambda: events.append("on")), (lambda: events.append("off"))


class Killable(Service):
    def __init__(self, events: list[str]) -> None:
        super().__init__(events)
        self.terminate = lambda: events.append("killed")


@pytest.mark.parametrize(
    ("kind", "end", "events"),
    [
        (Service, "stop", ["on", "off"]),
        (Service, "terminate", ["on", "off"]),
        (Killable, "stop", ["on", "off"]),
        (Killable, "terminate", ["on", "killed"]),
        (None, "terminate", []),
    ],
)
def test_what_a_step_creates_is_started_and_stopped(
    kind: type[Service] | None, end: str, events: list[str]
) -> None:
    class Serving(StartStopStep):
        def create(self, parent: Parent) -> Service | None:
            return kind and kind(parent.events)

    parent = Parent()
    made = with_parts(parent, Serving)
    made.start()
    getattr(made, end)()

    assert parent.events == events


def test_step_without_start_only_exists_and_tells() -> None:
    class Plain(Step):
        """Tells a number."""

        def info(self, parent: Parent) -> dict[str, Any]:
            return {"n": 1}

    made = with_parts(Parent(), Plain)
    made.start()
    made.stop()
    made.shutdown()

    assert made.info() == {"plain": {"n": 1}}
    assert made.graph()[1] == ("Plain", (), "Tells a number.", True)


@pytest.mark.parametrize("doing", ["init", "create"])
def test_step_that_cannot_be_made_is_named(doing: str) -> None:
    with pytest.raises(StepFailed, match=rf"step Mine could not be created: .*Mine cannot {doing}"):
        with_parts(Parent(), recorder("Mine", fails_at=doing))


def test_step_that_cannot_start_is_named_and_the_others_are_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = Parent()
    made = with_parts(parent, recorder("A"), recorder("B", fails_at="start"))

    with pytest.raises(StepFailed, match=r"step B could not start: .*B cannot start") as failed:
        made.start()

    assert isinstance(failed.value.__cause__, RuntimeError)
    assert parent.events[-3:] == ["start B", "stop B", "stop A"]
    assert "Traceback" in caplog.text


def test_lost_server_stays_what_it_is_so_that_the_consumer_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Asking(StartStopStep):
        def start(self, parent: Parent) -> None:
            raise ConnectionLost("gone")

    with pytest.raises(ConnectionLost):
        with_parts(Parent(), Asking).start()

    assert "step Asking could not start: gone" in caplog.text


@pytest.mark.parametrize("end", ["stop", "shutdown"])
def test_error_at_the_end_of_one_keeps_no_other_from_ending(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    parent = Parent()
    made = with_parts(parent, recorder("A"), recorder("B", fails_at=end))
    made.start()

    with caplog.at_level(logging.ERROR):
        getattr(made, end)()

    assert parent.events[-2:] == [f"{end} B", f"{end} A"]
    assert "step B failed" in caplog.text


@pytest.mark.parametrize("wrong", [int, Part, "proj:Step", Recorder(Parent())])
def test_what_is_no_step_of_one_s_own_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"derived from greenq\.bootsteps\.Step"):
        custom([wrong], Parent(), {})


def test_step_must_not_take_the_name_of_one_of_greenq_s() -> None:
    with pytest.raises(ConfigError, match=r"test\.Pool"):
        with_parts(Parent(), recorder("Pool"))


# --- options --------------------------------------------------------------------------------------


def read(argv: list[str], *options: Any) -> dict[str, Any]:
    args, args.rest = build_parser().parse_known_args(["worker", *argv])
    return read_custom(args, options)


def callback(parser: Any) -> None:
    parser.add_argument("--level-of-detail", type=int)


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ([], {"its_port": 80, "loud": False, "level_of_detail": None}),
        (["--its-port", "8000"], {"its_port": 8000, "loud": False, "level_of_detail": None}),
        (
            ["--loud", "-c", "5", "--level-of-detail=3"],
            {"its_port": 80, "loud": True, "level_of_detail": 3},
        ),
    ],
)
def test_own_options_are_read(argv: list[str], values: dict[str, Any]) -> None:
    port = Option("--its-port", type=int, default=80)
    loud = Option("--loud", action="store_true")

    assert read(argv, port, loud, callback) == values


def test_own_options_have_their_defaults_even_the_required() -> None:
    port = Option("--its-port", type=int, default="80")
    must = Option("--must", required=True)

    assert custom_defaults([port, must]) == {"its_port": 80, "must": None}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--its-prot", "5"], "did you mean --its-port?"),
        (["--concurency", "5"], "did you mean --concurrency?"),
        (["--its-port", "five"], "argument --its-port: invalid int value: 'five'"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_option_is_refused_with_what_is_right(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(argv, Option("--its-port", type=int))

    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (Option("--queues"), "conflicting option string: --queues"),
        (Option("--my-queues", dest="queues"), "choose another dest"),
    ],
)
def test_own_option_must_not_be_one_of_the_worker_s(option: Option, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        read([], option)

    assert option.flags[0] in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ([], "exclude_queues", ()),
        (["-X", "a,b"], "exclude_queues", ("a", "b")),
        (["-I", "a.tasks, b"], "include", ("a.tasks", "b")),
        ([], "task_events", None),
        (["-E"], "task_events", True),
        ([], "mingle", True),
        (["--without-mingle"], "mingle", False),
        (["--without-gossip"], "gossip", False),
        (["--without-heartbeat"], "heartbeat", False),
        ([], "control", None),
        (["--without-control"], "control", False),
        (["--heartbeat-interval", "0.5"], "heartbeat_interval", 0.5),
        (["--prefetch-multiplier", "4"], "prefetch_multiplier", 4),
        (["--time-limit", "60"], "time_limit", 60.0),
        (["--soft-time-limit", "1.5"], "soft_time_limit", 1.5),
        (["--pidfile", "%n.pid"], "pidfile", "%n.pid"),
    ],
)
def test_worker_s_own_options(argv: list[str], name: str, value: object) -> None:
    assert getattr(build_parser().parse_args(["worker", *argv]), name) == value


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_are_a_number_above_0(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["worker", f"--time-limit={text}"])

    assert "is not a number of seconds above 0" in capsys.readouterr().err
