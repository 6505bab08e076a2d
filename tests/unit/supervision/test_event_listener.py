"""supervisord's event protocol, and who is found mute or too big."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from greenq.errors import OperationalError, SupervisorError
from greenq.supervision.event_listener import EventListener, Judge, Seen, events, used_bytes
from greenq.supervision.supervisor import Process

MB = 2**20
WELL = Seen(name="a", pid=1, age_s=1000.0, node="a@h", answers=True, used_bytes=50 * MB)
SILENT = replace(WELL, answers=False)


def test_events_follow_the_protocol() -> None:
    source = io.BytesIO(
        b"ver:3.0 server:s eventname:TICK_5 len:15\nwhen:1201063880"
        b"ver:3.0 server:s eventname:TICK_5 len:0\n"
    )
    sink = io.BytesIO()

    seen = [header["eventname"] for header in events(source, sink)]

    assert seen == ["TICK_5", "TICK_5"]
    assert sink.getvalue() == b"READY\nRESULT 2\nOKREADY\nRESULT 2\nOKREADY\n"


def judge(max_bytes: int | None = None) -> Judge:
    return Judge(mute_after_s=60.0, max_bytes=max_bytes)


def test_a_worker_is_mute_when_it_has_been_silent_long_enough() -> None:
    court = judge()

    assert court.judge(0, [WELL]) is None
    assert court.judge(5, [SILENT]) is None
    assert court.judge(64, [SILENT]) is None
    verdict = court.judge(65, [SILENT])

    assert verdict is not None
    assert (verdict.name, verdict.reason) == ("a", "it has not answered a ping for 60 s")


def test_one_answer_starts_the_silence_anew() -> None:
    court = judge()
    for now_s, seen in [(0, WELL), (10, SILENT), (60, WELL), (65, SILENT)]:
        assert court.judge(now_s, [seen]) is None

    assert court.judge(120, [SILENT]) is None
    assert court.judge(125, [SILENT]) is not None


def test_silence_while_nobody_could_be_asked_does_not_count() -> None:
    court = judge()
    court.judge(0, [WELL])
    court.judge(5, [SILENT])

    court.forgive()

    assert court.judge(100, [SILENT]) is None
    assert court.judge(160, [SILENT]) is not None


def test_a_new_process_has_its_time_to_start() -> None:
    court = judge()
    hung = replace(SILENT, node=None)

    assert court.judge(0, [replace(hung, age_s=2)]) is None
    assert court.judge(59, [replace(hung, age_s=61)]) is None
    assert court.judge(60, [replace(hung, age_s=62)]) is not None


def test_a_worker_that_takes_no_commands_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    court = judge()

    assert [court.judge(now_s, [SILENT]) for now_s in (0, 100, 200)] == [None] * 3

    assert len(caplog.messages) == 1
    assert "it is not watched; check for --without-control" in caplog.text


def test_a_large_worker_is_found_and_the_longest_silent_one_comes_first() -> None:
    court = judge(max_bytes=100 * MB)
    large = replace(WELL, name="b", pid=2, used_bytes=101 * MB)
    court.judge(0, [WELL, replace(large, used_bytes=99 * MB)])

    first = court.judge(1, [SILENT, large])
    assert first == ("b", "it uses 101 MB, more than 100 MB")

    court.judge(2, [SILENT, large])
    second = court.judge(61, [SILENT, large])
    assert second is not None
    assert second.name == "a"


def test_memory_of_a_process_is_read_and_unknown_for_none() -> None:
    assert used_bytes(0) == 0
    assert used_bytes(__import__("os").getpid()) > MB


class Lab:
    """A supervisord with one worker, which answers or not."""

    def __init__(self) -> None:
        self.answers, self.is_away = True, False
        self.done: list[str] = []
        self.now_s = 0.0
        self.listener = EventListener(
            self,  # type: ignore[arg-type]
            "g",
            Judge(mute_after_s=10.0, max_bytes=None),
            nodes=self.nodes,
            ping=lambda nodes: list(nodes) if self.answers else [],
            clock=lambda: self.now_s,
        )

    def nodes(self) -> dict[int, str]:
        if self.is_away:
            raise OperationalError("away")
        return {7: "a@h"}

    def group(self, _name: str) -> list[Process]:
        return [
            Process(
                name="a", state="RUNNING", is_up=True, is_stopping=False, is_fatal=False,
                is_spare=False, pid=7, began_s=0.0,
            )
        ]  # fmt: skip

    def stop(self, _group: str, name: str, *, wait: bool) -> None:
        self.done.append(f"stop {name} {wait}")

    def start(self, _group: str, name: str) -> None:
        self.done.append(f"start {name}")

    def look(self, at_s: float) -> None:
        self.now_s = at_s
        self.listener.look()


def test_a_mute_worker_is_stopped_and_started() -> None:
    lab = Lab()
    lab.look(0)
    lab.answers = False

    lab.look(5)
    assert lab.done == []
    lab.look(15)
    assert lab.done == ["stop a True", "start a"]


def test_nobody_is_restarted_while_the_server_is_away() -> None:
    lab = Lab()
    lab.look(0)
    lab.answers, lab.is_away = False, True

    for at_s in range(5, 100, 5):
        lab.look(at_s)
    lab.is_away = False
    lab.look(100)

    assert lab.done == []


def test_a_worker_that_could_not_be_stopped_is_started_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab = Lab()
    lab.look(0)
    lab.answers = False
    lab.look(5)

    def fail(*_any: Any, **_kwargs: Any) -> None:
        raise SupervisorError("no answer")

    monkeypatch.setattr(lab, "stop", fail)
    lab.look(15)

    assert lab.done == ["start a"]
    assert "a could not be restarted: no answer" in caplog.text
