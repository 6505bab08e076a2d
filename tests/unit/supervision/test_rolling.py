"""A rolling restart on a supervisord of its own: the order, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from greenq.errors import SupervisorError
from greenq.supervision.rolling import RollingRestart
from greenq.supervision.supervisor import Process


class Lab:
    """A group with workers that drain at once, on a clock that sleeping moves."""

    url = "unix:///s.sock"

    def __init__(self, *names: str) -> None:
        self.pids = {name: number for number, name in enumerate(names, start=1)}
        self.done: list[str] = []
        self.running: dict[str, int] = {}
        self.stays_down: set[str] = set()
        self.has_control = True
        self.now_s = 0.0
        self.restart = RollingRestart(
            self,  # type: ignore[arg-type]
            "g",
            self,
            drain_s=30.0,
            ready_s=20.0,
            say=lambda _text: None,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def group(self, _name: str) -> list[Process]:
        return [
            Process(
                name=name, state="RUNNING", is_up=True, is_stopping=False, is_fatal=False,
                is_spare=False, pid=pid, began_s=0.0,
            )
            for name, pid in self.pids.items()
        ]  # fmt: skip

    def stop(self, _group: str, name: str, *, wait: bool) -> None:
        assert wait
        self.done.append(f"stop {name}")

    def start(self, _group: str, name: str, *, wait: bool) -> None:
        assert wait
        self.done.append(f"start {name}")
        self.pids[name] += 100

    def here(self) -> Mapping[int, str]:
        return {pid: name for name, pid in self.pids.items() if name not in self.stays_down}

    def ask(self, node: str, method: str, arguments: Mapping[str, Any]) -> Any:
        if method == "status":
            left = self.running.get(node, 0)
            self.running[node] = max(0, left - 1)
            return {"active": left}
        if method == "drain":
            self.done.append(f"{'drain' if arguments.get('on', True) else 'undrain'} {node}")
            return {"ok": ""} if self.has_control else None
        return {"ok": "pong"}


def test_each_worker_is_drained_stopped_and_started_before_the_next() -> None:
    lab = Lab("a", "b")
    lab.running = {"a": 3}

    assert lab.restart.run() == 2

    assert lab.done == ["drain a", "stop a", "start a", "drain b", "stop b", "start b"]


def test_a_worker_that_does_not_come_up_ends_it() -> None:
    lab = Lab("a", "b", "c")
    start = lab.start

    def fail_later(group: str, name: str, *, wait: bool) -> None:
        start(group, name, wait=wait)
        lab.stays_down.add(name)

    lab.start = fail_later  # type: ignore[method-assign]
    with pytest.raises(SupervisorError, match="a did not come up within 20 s") as failed:
        lab.restart.run()

    assert "0 of 3 workers were restarted; not restarted: b, c" in str(failed.value)
    assert lab.done == ["drain a", "stop a", "start a"]


def test_tasks_that_run_too_long_do_not_hold_it_up_for_ever() -> None:
    lab = Lab("a")
    lab.running = {"a": 10**6}

    lab.restart.run()

    assert 30.0 <= lab.now_s < 32.0
    assert lab.done == ["drain a", "stop a", "start a"]


def test_an_interrupted_drain_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab("a")
    lab.running = {"a": 10}

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.restart, "_sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lab.restart.run()

    assert lab.done == ["drain a", "undrain a"]


def test_a_worker_without_remote_control_is_stopped_warm() -> None:
    lab = Lab("a")
    lab.has_control = False

    lab.restart.run()

    assert lab.done == ["drain a", "stop a", "start a"]


def test_nothing_is_touched_when_a_process_is_no_worker_of_this_server() -> None:
    lab = Lab("a", "b")
    lab.stays_down = {"b"}

    with pytest.raises(SupervisorError, match="nothing was restarted: b of group g hold no lease"):
        lab.restart.run()

    assert lab.done == []


def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(SupervisorError, match="has no group g"):
        Lab().restart.run()
