"""What the leader of a group does with a decision, on a supervisord and a server of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from greenq.errors import OperationalError, SupervisorError
from greenq.supervision.controller import Processes
from greenq.supervision.sizing import Rules
from greenq.supervision.supervisor import Membership, Process
from greenq.transport.group_store import GroupAnswer, LoadReport

RULES = Rules(most=3, least=1, grow_after_s=4.0, keepalive_s=20.0)
IDLE = LoadReport(busy=0.0, running=0, waiting=0, draining=False)
BUSY = LoadReport(busy=0.95, running=5, waiting=50, draining=False)


def process(
    name: str, state: str = "RUNNING", *, spare: bool = True, began_s: float = 0.0
) -> Process:
    return Process(
        name=name,
        state=state,
        is_up=state in ("STARTING", "RUNNING", "BACKOFF"),
        is_stopping=state == "STOPPING",
        is_fatal=state == "FATAL",
        is_spare=spare,
        pid=1,
        began_s=began_s,
    )


class Lab:
    """One process and everything around it."""

    def __init__(self, *spares: Process, rules: Rules = RULES, cores: int = 8) -> None:
        self.processes = {each.name: each for each in (process("a", spare=False), *spares)}
        self.reports: dict[str, LoadReport] = {}
        self.marked: set[str] = set()
        self.leads, self.is_away = True, False
        self.done: list[str] = []
        self.now_s = 0.0
        self.draining = False
        self.waiting_messages = 0
        # As a pool.
        self.hub_time, self.running, self.waiting = self, 0, 0
        self.controller = Processes(
            Membership("g", "a", self),  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            rules=rules,
            interval_s=1.0,
            pool=self,  # type: ignore[arg-type]
            tasks=self,
            broker=self,  # type: ignore[arg-type]
            queues=lambda: ("celery",),
            cores=cores,
            clock=lambda: self.now_s,
        )

    def times(self) -> tuple[float, float]:
        return self.now_s, self.now_s * self.reports.get("a", IDLE).busy

    # As the worker.
    def drain(self, on: bool) -> None:
        self.draining = on

    # As a broker.
    def depth(self, _queues: object) -> int:
        return self.waiting_messages

    def oldest(self, _queues: object) -> dict[str, float]:
        return {}

    # As a store.
    def report(self, report: LoadReport) -> GroupAnswer:
        if self.is_away:
            raise OperationalError("the server is away")
        self.reports["a"] = replace(self.reports.get("a", IDLE), draining=report.draining)
        if not self.leads:
            return GroupAnswer(False, frozenset(self.marked & {"a"}), {})
        return GroupAnswer(True, frozenset(self.marked), dict(self.reports))

    def mark(self, name: str, *, drain: bool) -> bool:
        (self.marked.add if drain else self.marked.discard)(name)
        return True

    # As a supervisord.
    def group(self, name: str) -> list[Process]:
        assert name == "g"
        return list(self.processes.values())

    def start(self, _group: str, name: str) -> None:
        self.done.append(f"start {name}")
        self.processes[name] = process(name, began_s=time.time())

    def stop(self, _group: str, name: str) -> None:
        self.done.append(f"stop {name}")
        self.processes[name] = process(name, "STOPPING")
        self.reports.pop(name, None)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.controller.tick()


def test_a_busy_group_gets_one_process_at_a_time() -> None:
    lab = Lab(process("b", "STOPPED"), process("c", "EXITED"))
    lab.reports["a"] = BUSY

    lab.run(12)
    assert lab.done == ["start b"]

    lab.reports["b"] = BUSY
    lab.run(6)
    assert lab.done == ["start b", "start c"]


def test_a_quiet_group_drains_the_last_spare_and_stops_it_when_it_is_empty() -> None:
    lab = Lab(process("b"), process("c", "STOPPED"))
    lab.reports |= {"a": IDLE, "b": replace(IDLE, running=2)}

    lab.run(30)
    assert (lab.marked, lab.done) == ({"b"}, [])
    lab.reports["b"] = replace(IDLE, running=2, draining=True)
    lab.run(30)
    assert lab.done == []

    lab.reports["b"] = replace(IDLE, draining=True)
    lab.run(1)
    assert lab.done == ["stop b"]
    lab.processes["b"] = process("b", "STOPPED")
    lab.run(1)
    assert lab.marked == set()


def test_a_draining_process_takes_again_before_another_one_is_started() -> None:
    lab = Lab(process("b"), process("c", "STOPPED"))
    lab.reports |= {"a": BUSY, "b": replace(BUSY, draining=True)}
    lab.marked = {"b"}

    lab.run(6)

    assert (lab.marked, lab.done) == (set(), [])


def test_processes_that_supervisord_starts_by_itself_are_left_alone() -> None:
    lab = Lab(process("b", spare=False))
    lab.reports |= {"a": IDLE, "b": IDLE}

    lab.run(100)

    assert (lab.marked, lab.done) == (set(), [])


@pytest.mark.parametrize(
    ("spares", "said"),
    [
        ([process("b", "FATAL")], "b could not be started before"),
        ([], "has no more programs with autostart=false"),
    ],
)
def test_when_nothing_is_left_to_start_it_says_so_once(
    spares: list[Process], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab = Lab(*spares)
    lab.reports["a"] = BUSY
    lab.waiting_messages = 7

    lab.run(40)

    assert lab.done == []
    assert sum(said in line for line in caplog.messages) == 1


def test_a_started_process_that_never_reports_holds_nothing_up_for_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Its start is long ago: it has no --processes.
    lab = Lab(process("b"), process("c", "STOPPED"))
    lab.reports["a"] = BUSY

    lab.run(6)

    assert lab.done == ["start c"]
    assert "process b has not reported for 60 s" in caplog.text


def test_it_obeys_the_leader_but_leaves_alone_what_an_operator_has_drained() -> None:
    lab = Lab()
    lab.leads = False

    lab.draining = True
    lab.run(2)
    assert lab.draining

    lab.draining = False
    lab.marked = {"a"}
    lab.run(1)
    assert lab.draining
    lab.marked = set()
    lab.run(1)
    assert not lab.draining


def test_an_unreachable_supervisord_is_reported_once_and_changes_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab()

    def fail(*_any: Any) -> Any:
        raise SupervisorError("supervisord does not answer")

    monkeypatch.setattr(lab, "group", fail)
    lab.run(5)

    assert caplog.messages == [
        "the number of processes stays as it is: supervisord does not answer"
    ]


def test_there_are_never_more_processes_than_cores() -> None:
    lab = Lab(process("b", "STOPPED"), cores=1)
    lab.reports["a"] = BUSY

    lab.run(20)

    assert lab.done == []
    info = lab.controller.info()
    assert (info.pop("changes"), info) == (
        [{"at": lab.controller.history[0].at_s, "workers": 1, "change": 0, "reason": "steady"}],
        {"group": "g", "process": "a", "max": 1, "min": 1, "leads": True},
    )


def test_the_history_has_each_change_with_its_reason() -> None:
    lab = Lab(process("b", "STOPPED"))
    lab.reports["a"] = BUSY

    lab.run(6)
    lab.reports["b"] = BUSY
    lab.run(2)

    assert [(each.workers, each.change) for each in lab.controller.history] == [
        (1, 0), (1, 1), (2, 0),
    ]  # fmt: skip
    assert "hubs busy for 95%" in lab.controller.history[1].reason
