"""`greenq inspect` and `control`: what is sent, how long lists are read, how replies look."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from greenq.cli import build_parser, main
from greenq.cli.remote import CommandRequest, lines, pages, read
from greenq.cli.remote_commands import CONTROL, INSPECT


def request(*argv: str) -> tuple[CommandRequest, argparse.Namespace]:
    args = build_parser().parse_args(argv)
    return read(args), args


# Commands of Celery 5.7, by what is typed, with the arguments that its workers take.
SENT = [
    ("inspect ping", "ping", {}),
    ("inspect dump_active --safe", "active", {"safe": True}),
    ("inspect active", "active", {}),
    ("inspect reserved", "reserved", {}),
    ("inspect scheduled --limit 5 --offset 0", "scheduled", {"limit": 5, "offset": 0}),
    ("inspect query_task a b", "query_task", {"ids": ["a", "b"]}),
    ("inspect registered", "registered", {}),
    ("inspect registered a b --builtins", "registered",
     {"taskinfoitems": ["a", "b"], "builtins": True}),
    ("inspect conf --with-defaults", "conf", {"with_defaults": True}),
    ("inspect memdump 3", "memdump", {"samples": 3}),
    ("inspect objgraph Request 20", "objgraph", {"type": "Request", "num": 20}),
    ("inspect hello me@h", "hello", {"from_node": "me@h"}),
    ("inspect greenlets --limit 3", "greenlets", {"limit": 3}),
    ("control revoke a b", "revoke", {"task_id": ["a", "b"]}),
    ("control revoke a --terminate --signal SIGKILL", "revoke",
     {"task_id": ["a"], "terminate": True, "signal": "SIGKILL"}),
    ("control terminate SIGTERM a b", "terminate", {"signal": "SIGTERM", "task_id": ["a", "b"]}),
    ("control revoke_by_stamped_headers k=v k2=v2", "revoke_by_stamped_headers",
     {"headers": ["k=v", "k2=v2"]}),
    ("control rate_limit mail.send 10/m", "rate_limit",
     {"task_name": "mail.send", "rate_limit": "10/m"}),
    ("control time_limit mail.send 1.5", "time_limit", {"task_name": "mail.send", "soft": 1.5}),
    ("control time_limit mail.send 1 2", "time_limit",
     {"task_name": "mail.send", "soft": 1.0, "hard": 2.0}),
    ("control pool_grow", "pool_grow", {}),
    ("control pool_shrink 3", "pool_shrink", {"n": 3}),
    ("control autoscale 10 2", "autoscale", {"max": 10, "min": 2}),
    ("control pool_restart a b --reload", "pool_restart", {"modules": ["a", "b"], "reload": True}),
    ("control pool_restart", "pool_restart", {}),
    ("control add_consumer q", "add_consumer", {"queue": "q"}),
    ("control add_consumer q x direct k", "add_consumer",
     {"queue": "q", "exchange": "x", "exchange_type": "direct", "routing_key": "k"}),
    ("control cancel_consumer q", "cancel_consumer", {"queue": "q"}),
    ("control election e task", "election", {"id": "e", "topic": "task"}),
    ('control election e task {"task":"t"}', "election",
     {"id": "e", "topic": "task", "action": {"task": "t"}}),
    ("control pause q", "pause", {"queue": "q"}),
    ("control drain", "drain", {}),
    ("control drain false", "drain", {"on": False}),
    ("control shutdown", "shutdown", {}),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "name", "arguments"), SENT)
def test_command_line_becomes_a_request(typed: str, name: str, arguments: dict[str, Any]) -> None:
    sent, _ = request(*typed.split())

    assert (sent.command.name, sent.arguments) == (name, arguments)


def test_every_command_can_be_sent_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group, commands in (("inspect", INSPECT), ("control", CONTROL)):
        for command in commands:
            with pytest.raises(SystemExit) as ended:
                request(group, command.name, "--help")
            assert ended.value.code == 0
            assert f"greenq {group} {command.name}" in capsys.readouterr().out


def test_options_count_before_and_behind_the_command() -> None:
    before = request("inspect", "-d", "a@h,b@h", "-t", "3", "--json", "ping")[1]
    behind = request("inspect", "ping", "-d", "a@h,b@h", "-t", "3", "--json")[1]
    both = request("inspect", "-t", "3", "ping", "-d", "a@h,b@h", "--json")[1]

    for args in (before, behind, both):
        assert args.destination == ("a@h", "b@h")
        assert args.timeout == 3.0
        assert args.json is True


def test_command_of_one_s_own_is_sent_on_request() -> None:
    sent, _ = request("control", "--any", "double", "n=2", "who=me", 'list=["a"]', "e=")

    assert sent.command.name == "double"
    assert sent.arguments == {"n": 2, "who": "me", "list": ["a"], "e": ""}
    assert request("inspect", "double", "--any")[0].arguments == {}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["inspect", "actve"], "unknown command 'actve'; --any sends it anyway; did you mean"),
        (["inspect", "actve"], "did you mean active?"),
        (["inspect", "double"], "unknown command 'double'; --any sends it anyway\n"),
        (["inspect", "revoke", "x"], "revoke is a command of control: greenq control revoke"),
        (["control", "ping"], "ping is a command of inspect: greenq inspect ping"),
        (["inspect", "--any", "double", "n"], "'n' is not key=value"),
        (["inspect", "--any", "double", "=n"], "'=n' is not key=value"),
        (["inspect"], "required: CMD"),
        (["inspect", "query_task"], "required: IDS"),
        (["inspect", "ping", "x"], "unrecognized arguments: x"),
        (["inspect", "ping", "--jsn"], "did you mean --json?"),
        (["inspect", "scheduled", "--limit", "0"], "'0' is not a whole number"),
        (["inspect", "ping", "-t", "0"], "'0' is not a number of seconds above 0"),
        (["inspect", "ping", "-d", ","], "no node named in ','"),
        (["control", "rate_limit", "mail.send"], "required: RATE_LIMIT"),
        (["control", "autoscale", "many"], "'many' is not a whole number"),
        (["control", "drain", "maybe"], "'maybe' is neither true nor false"),
        (["control", "revoke_by_stamped_headers", "k"], "'k' is not key=value"),
        (["inspect", "ping", "--yes"], "unrecognized arguments: --yes"),
    ],
)
def test_wrong_command_is_explained(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_no_app_and_no_server_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GREENQ_APP", raising=False)
    monkeypatch.delenv("GREENQ_BROKER_URL", raising=False)

    assert main(["inspect", "ping"]) == 1
    assert "no app or server named" in capsys.readouterr().err


# --- pages ----------------------------------------------------------------------------------------


class Workers:
    """Workers with lists: those of greenq's read limit and offset, Celery's do not."""

    def __init__(self, celery: Sequence[str] = (), **lists: Sequence[Any] | object) -> None:
        self.celery = celery
        self.lists = lists
        self.asked: list[tuple[int, int, Sequence[str] | None]] = []

    def __call__(
        self, arguments: Mapping[str, Any], destination: Sequence[str] | None = None
    ) -> dict[str, Any]:
        limit, offset = arguments["limit"], arguments["offset"]
        self.asked.append((limit, offset, destination))
        return {
            node: found
            if node in self.celery or not isinstance(found, list)
            else found[offset : offset + limit]
            for node, found in self.lists.items()
            if destination is None or node in destination
        }


def test_long_list_is_read_page_by_page_from_those_that_have_more() -> None:
    workers = Workers(a=list(range(25)), b=list(range(3)), c={"error": "no"})

    found = pages(workers, page=10)

    assert found == {"a": list(range(25)), "b": list(range(3)), "c": {"error": "no"}}
    assert workers.asked == [(10, 0, None), (10, 10, ["a"]), (10, 20, ["a"])]


@pytest.mark.parametrize("length", [0, 3, 10, 20, 25])
def test_celery_worker_s_list_is_taken_whole_once(length: int) -> None:
    workers = Workers(["a"], a=list(range(length)))

    assert pages(workers, page=10) == {"a": list(range(length))}


@pytest.mark.parametrize("celery", [[], ["a"]])
def test_limit_and_offset_hold_for_each_node(celery: list[str]) -> None:
    workers = Workers(celery, a=list(range(100)))

    assert pages(workers, limit=15, offset=7, page=10) == {"a": list(range(7, 22))}
    assert pages(workers, offset=95, page=10) == {"a": list(range(95, 100))}
    assert pages(workers, limit=10, page=10) == {"a": list(range(10))}


# --- replies as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reply", "shown"),
    [
        ("pool_grow", {"ok": "pool will grow"}, ["w@h: pool will grow"]),
        ("rate_limit", {"error": "unknown task"}, ["w@h: error: unknown task"]),
        ("heartbeat", None, ["w@h: done"]),
        ("revoked", [], ["w@h: (none)"]),
        ("registered", ["a", "b"], ["w@h", "  - a", "  - b"]),
        ("report", {"ok": "one\n\ntwo"}, ["w@h", "  one", "", "  two"]),
        ("clock", {"clock": 7}, ["w@h: clock: 7"]),
        (
            "active_queues",
            [{"name": "q", "exchange": {"name": "x", "type": "direct"}, "routing_key": "k"}],
            ["w@h", "  QUEUE  EXCHANGE  TYPE    ROUTING KEY", "  q      x         direct  k"],
        ),
        (
            "status",
            {"ok": "ok", "active": 1, "size": 9, "processed": 5, "uptime": 61},
            ["w@h", "  state: ok", "  active: 1/9", "  processed: 5", "  uptime: 1m"],
        ),
        ("active_queues", None, ["w@h: done"]),
        ("active_queues", "odd", ["w@h: odd"]),
        (
            "query_task",
            {"id-1": ["active", {"name": "t", "args": [1], "kwargs": {}}]},
            ["w@h", "  ID    STATE   NAME  ARGS  KWARGS", "  id-1  active  t     [1]   {}"],
        ),
        (
            "scheduled",
            [{"eta": "2031", "priority": 6, "request": {"id": "i", "name": "t"}}],
            [
                "w@h",
                "  ETA   PRIORITY  ID  NAME  ARGS  KWARGS",
                "  2031  6         i   t     -     -",
            ],
        ),
        (
            "autoscale_log",
            [{"at": 0, "backlog": 5, "running": 1, "size": 9, "reason": "backlog"}],
            [
                "w@h",
                "  AT                         BACKLOG  RUNNING  SIZE  REASON",
                "  1970-01-01T00:00:00+00:00  5        1        9     backlog",
            ],
        ),
        (
            "greenlets",
            {
                "running": 2,
                "groups": [{"waits_on": "recv 10.0.0.7:443", "count": 2}],
                "greenlets": [
                    {
                        "id": "i",
                        "name": "t",
                        "age_s": 3.25,
                        "hub_s": 0.5,
                        "waits_on": "recv",
                        "stack": "a.py:1\nb.py:2",
                    }
                ],
            },
            [
                "w@h",
                "  running: 2",
                "          2  waiting on recv 10.0.0.7:443",
                "  t[i]  age 3.25 s, computed 0.5 s, waits on recv",
                "      a.py:1",
                "      b.py:2",
            ],
        ),
    ],
)
def test_reply_is_shown(method: str, reply: object, shown: list[str]) -> None:
    assert list(lines(method, "w@h", reply)) == shown


def test_running_task_is_shown_with_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenq.cli.remote.time.time", lambda: 1000.0)
    info = {"id": "i", "name": "t", "args": [], "kwargs": {}, "time_start": 880.0}

    assert list(lines("active", "w@h", [info, {"id": "j"}, "odd"]))[1:] == [
        "  SINCE  ID  NAME  ARGS  KWARGS",
        "  2m     i   t     []    {}",
        "  -      j   -     -     -",
        "  -      -   -     -     -",
    ]
