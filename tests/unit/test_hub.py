"""Patching, named greenlets, and who hears of their crashes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from greenq.hub import Hub, NativeThread, join_all, poll_readable, run_all, sleep, spawn

ROOT = Path(__file__).parents[2]


def python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, *folders)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "text",
    [
        "from socket import socket",
        "from time import sleep as rest",
        "from ssl import SSLContext",
        "from select import poll",
        "from threading import local",
    ],
)
def test_patch_refuses_with_the_name_of_a_module_that_holds_the_originals(
    text: str, tmp_path: Path
) -> None:
    Path(tmp_path, "tooearly.py").write_text(text)

    done = python("import tooearly; from greenq.hub import patch; patch()", tmp_path)

    assert done.returncode != 0
    assert "ImportedTooEarly: tooearly imported" in done.stderr


def test_patch_makes_the_calls_cooperative_and_may_be_repeated(tmp_path: Path) -> None:
    Path(tmp_path, "harmless.py").write_text("import socket, time, ssl, threading, select")

    done = python(
        "import harmless\n"
        "from greenq.hub import patch\n"
        "patch(); patch()\n"
        "print(harmless.socket.socket.__module__, harmless.time.sleep.__module__)",
        tmp_path,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert all(name.startswith("gevent") for name in done.stdout.split())


def test_spawned_greenlet_has_a_name_and_its_crash_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash() -> None:
        raise ValueError("broken part")

    with caplog.at_level(logging.CRITICAL):
        greenlet = spawn(crash, name="some part")
        greenlet.join(5)
        # The link runs in the loop's next turn.
        gevent.sleep(0)

    assert greenlet.name == "some part"  # type: ignore[attr-defined]
    assert "greenlet some part crashed" in caplog.text
    assert "broken part" in caplog.text


def test_run_all_returns_results_in_the_order_of_the_calls() -> None:
    def slow() -> str:
        sleep(0)
        sleep(0)
        return "slow"

    assert run_all([("a", slow), ("b", lambda: "quick")]) == ["slow", "quick"]


def test_run_all_raises_an_error_only_when_all_have_ended() -> None:
    ended: list[str] = []

    def slow() -> None:
        sleep(0)
        sleep(0)
        ended.append("slow")

    def fail() -> None:
        raise ValueError("one of them")

    with pytest.raises(ValueError, match="one of them"):
        run_all([("a", fail), ("b", slow)])

    assert ended == ["slow"]


def test_join_all_tells_whether_all_have_ended() -> None:
    endless = spawn(lambda: gevent.sleep(3600), name="endless")
    short = spawn(lambda: None, name="short")
    try:
        assert join_all([short], 5)
        assert not join_all([short, endless], 0)
    finally:
        endless.kill()


def rests_during(act: Callable[[], object], *, turn: bool = True) -> set[bool]:
    """Return what another thread hears when it asks again and again whether the hub rests."""
    hub, over = Hub(), threading.Event()
    seen: set[bool] = set()
    if turn:
        # So that the loop's greenlet is there.
        sleep(0.001)

    def look() -> None:
        while not over.is_set():
            seen.add(hub.rests())
            time.sleep(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        act()
    finally:
        over.set()
        looking.join()
    assert seen
    return seen


def compute(seconds: float) -> None:
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        sum(range(1000))


def test_a_hub_rests_while_every_greenlet_waits() -> None:
    assert True in rests_during(lambda: sleep(0.2))


@pytest.mark.parametrize("act", [compute, time.sleep])
def test_a_hub_whose_greenlet_computes_or_blocks_does_not_rest(
    act: Callable[[float], object],
) -> None:
    assert rests_during(lambda: act(0.2)) == {False}


def test_nor_does_one_whose_loop_is_kept_by_a_callback() -> None:
    answers: list[set[bool]] = []

    gevent.get_hub().loop.run_callback(
        lambda: answers.append(rests_during(lambda: compute(0.1), turn=False))
    )
    sleep(0.01)

    assert answers == [{False}]


def test_a_thread_waits_for_a_descriptor_without_a_hub() -> None:
    reader, writer = os.pipe()
    try:
        assert not poll_readable(reader, 0.0)
        os.write(writer, b"!")
        assert poll_readable(reader, 5.0)
    finally:
        os.close(reader)
        os.close(writer)


def test_crash_of_a_greenlet_or_a_thread_is_told_in_the_hubs_thread() -> None:
    told: list[tuple[str, str]] = []
    started, stopped = Hub(crashed=lambda *crash: told.append(crash)), Hub(crashed=print)
    started.start()
    stopped.start()
    stopped.stop()

    def fail(*args: object) -> None:
        raise RuntimeError("no")

    try:
        spawn(fail, name="outbox")
        NativeThread(fail, name="watch")
        with gevent.Timeout(5.0):
            while len(told) < 2:
                gevent.sleep(0.01)
    finally:
        started.stop()
    assert sorted(what for what, _error in told) == ["greenlet outbox", "thread watch"]
    assert {repr(error) for _what, error in told} == {"RuntimeError('no')"}
