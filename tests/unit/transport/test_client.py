"""Addresses, foreign errors in our words, and the time that connecting may take."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest
from redis import exceptions as redis_errors

from greenq.errors import (
    AccessRefused,
    ConnectFailed,
    ConnectionLost,
    OperationalError,
    ServerError,
    TransportTimeout,
)
from greenq.transport.client import Client, _translate, database_of


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://host", 0),
        ("redis://host/3", 3),
        ("redis://host:1/?db=4", 4),
        ("rediss://u:p@host/5", 5),
        ("unix:///run/valkey.sock", 0),
        ("unix:///run/valkey.sock?db=2", 2),
        ("redis+socket:///run/valkey.sock?virtual_host=7", 7),
    ],
)
def test_database_of(url: str, database: int) -> None:
    assert database_of(url) == database


def test_database_that_is_no_number_is_refused_without_the_password() -> None:
    with pytest.raises(ValueError, match="must be a number, not 'main'") as refused:
        database_of("redis://u:secret@host/main")

    assert "secret" not in str(refused.value)


def test_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"redis://.*unix://") as refused:
        Client("amqp://u:secret@host")

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "connecting", "kind"),
    [
        (redis_errors.AuthenticationError("bad"), True, AccessRefused),
        (redis_errors.NoPermissionError("bad"), False, AccessRefused),
        (redis_errors.ConnectionError("refused"), True, ConnectFailed),
        (OSError("no route"), True, ConnectFailed),
        (redis_errors.TimeoutError("slow"), False, TransportTimeout),
        (TimeoutError("slow"), False, TransportTimeout),
        (redis_errors.ConnectionError("reset"), False, ConnectionLost),
        (redis_errors.BusyLoadingError("loading"), False, ServerError),
        (redis_errors.ResponseError("ERR wrong"), False, ServerError),
    ],
)
def test_foreign_error_in_our_words(
    error: Exception, connecting: bool, kind: type[OperationalError]
) -> None:
    translated = _translate(error, "GET", "redis://host", connecting=connecting)

    assert type(translated) is kind


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (redis_errors.NoScriptError("No matching script"), "NOSCRIPT No matching script"),
        (redis_errors.OutOfMemoryError("not allowed"), "OOM not allowed"),
        (redis_errors.ReadOnlyError("You can't write"), "READONLY You can't write"),
        (redis_errors.ClusterDownError("down"), "CLUSTERDOWN down"),
        (redis_errors.MasterDownError("no link"), "MASTERDOWN no link"),
        (redis_errors.TryAgainError("later"), "TRYAGAIN later"),
        (redis_errors.ExecAbortError("discarded"), "EXECABORT discarded"),
        (redis_errors.BusyLoadingError("loading"), "LOADING loading"),
        (redis_errors.MovedError("1 host:2"), "MOVED 1 host:2"),
        (redis_errors.AskError("1 host:2"), "ASK 1 host:2"),
        (redis_errors.ClusterCrossSlotError("keys"), "CROSSSLOT keys"),
        (redis_errors.ResponseError("BUSY running"), "BUSY running"),
        (redis_errors.ResponseError("WRONGTYPE no list"), "WRONGTYPE no list"),
    ],
)
def test_reply_begins_with_the_server_s_code(error: redis_errors.ResponseError, reply: str) -> None:
    translated = _translate(error, "SET", "redis://host")

    assert isinstance(translated, ServerError)
    assert translated.reply == reply


def in_script(reply: str) -> str:
    """Write a reply as servers before version 7 do when a script's command gets it."""
    place = "@user_script:5: @user_script: 5:"
    return f"Error running script (call to f_{'ab12' * 10}): {place} {reply}"


@pytest.mark.parametrize(
    ("reply", "passes"),
    [
        ("-OOM command not allowed when used memory > 'maxmemory'.", True),
        ("-READONLY You can't write against a read only replica.", True),
        ("-MISCONF Redis is configured to save RDB snapshots,\nbut cannot", True),
        ("-WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_reply_that_an_old_server_packs_into_a_script_s_error_is_taken_out(
    reply: str, passes: bool
) -> None:
    # redis-py takes "ERR " off.
    translated = _translate(redis_errors.ResponseError(in_script(reply)), "EVALSHA", "redis://host")

    assert isinstance(translated, ServerError)
    assert (translated.reply, translated.passes) == (reply[1:], passes)


def test_script_s_own_error_stays_as_it_is() -> None:
    text = in_script("attempt to index nil")

    translated = _translate(redis_errors.ResponseError(text), "EVALSHA", "redis://host")

    assert isinstance(translated, ServerError)
    assert (translated.reply, translated.passes) == (text, False)


def test_all_answers_of_the_handshake_have_the_time_of_one_call() -> None:
    answered = 0

    def serve(listener: socket.socket) -> None:
        nonlocal answered
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            while peer.recv(4096):
                time.sleep(0.4)
                peer.sendall(b"+OK\r\n")
                answered += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        port = listener.getsockname()[1]
        client = Client(f"redis://127.0.0.1:{port}/1", connect_timeout_s=0.5, timeout_s=0.5)
        with pytest.raises(OperationalError):
            client.call("PING")
        server.join(30)
    # A third answer is beyond a second, which the call has for all of it.
    assert answered <= 3


class Answering:
    """A connection of a server that answers after a while, or not at all."""

    def __init__(self, *, answers: bool) -> None:
        self.ends_s = 0.0
        self.answers = answers

    def check_rested(self) -> None:
        pass

    def call(self, *_command: object) -> None:
        left_s = self.ends_s - time.monotonic()
        time.sleep(0.1 if self.answers else max(0.0, left_s))
        if not self.answers or left_s < 0:
            raise ConnectionLost("no answer")


def failures(client: Client, callers: int) -> int:
    """Return how many of these callers fail that all call at the same time."""
    failed = []

    def call() -> None:
        try:
            client.call("PING", timeout_s=1.0, patient=True)
        except OperationalError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


def test_callers_wait_for_one_another_while_the_server_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client("redis://nowhere", pool_limit=1)
    monkeypatch.setattr(client, "connection", lambda: Answering(answers=True))
    # Together they take three times as long as each of them may.
    assert failures(client, 30) == 0


def test_no_caller_waits_for_others_when_the_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client("redis://nowhere", pool_limit=1)
    monkeypatch.setattr(client, "connection", lambda: Answering(answers=False))
    began_s = time.monotonic()
    assert failures(client, 30) == 30
    # One after another, they would take thirty seconds.
    assert time.monotonic() - began_s < 15


def test_impatient_call_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("redis://nowhere", pool_limit=1)
    monkeypatch.setattr(client, "connection", lambda: Answering(answers=True))
    client.call("PING")
    with client.pooled(), pytest.raises(ConnectFailed, match="all 1 connections"):
        client.call("PING", timeout_s=0.01)
