"""Hostile messages, events, control requests and results: right ones, of which something is spoilt.

Each case comes from its own seed, so it can be made again without the others.
"""

from __future__ import annotations

import base64
import bz2
import functools
import json
import lzma
import random
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

NAN, INF = float("nan"), float("inf")
HUGE = "h" * 200_000
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

KINDS = ("message", "event", "control", "result")


class Case(NamedTuple):
    """One hostile thing.

    Attributes:
        name: its seed and number, by which it is made again.
        kind: of `KINDS`.
        mark: what a message is known by when it has run; the id under which a result is stored.
        about: what was spoilt.
        raw: the bytes.
        channel: of an event, its routing key.
        refused: the field that the reason must name, for a message that must not run.
        runs: it is a message that must run.
    """

    name: str
    kind: str
    mark: str
    about: str
    raw: bytes
    channel: str = ""
    refused: str = ""
    runs: bool = False


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# Values for any place.
WILD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    -(10**6),
    10**6,
    10**9,
    2**53,
    2**62,
    2**63,
    2**64,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    0.5,
    -0.5,
    1e-300,
    5e-324,
    1e308,
    -1e308,
    NAN,
    INF,
    -INF,
    "",
    "x",
    "\0",
    "é",
    "\ud800",
    "\udfff\ud800",
    "1",
    "-1",
    "NaN",
    "\x1b[2J",
    "\u202e",
    HUGE,
    "*",
    "a\nb",
    [],
    [[]],
    {},
    {"": {}},
    [None],
    [NAN, NAN],
    [-1, 10**400],
    [HUGE],
    nested(50),
    nested(500),
    {"a": nested(90)},
    {"__type__": "decimal", "__value__": "1E+999999999"},
    {"__type__": "datetime", "__value__": "x"},
    {"__type__": "bytes", "__value__": "x"},
    {"__type__": [], "__value__": 1},
    [{"x": HUGE}],
]

_NO_COUNTS: list[Any] = [
    -1,
    -(10**6),
    -(10**400),
    10**400,
    2**53 + 1,
    1e308,
    NAN,
    INF,
    -INF,
    0.5,
    "1",
    HUGE,
    [],
    {},
]
_NO_NAMES: list[Any] = [HUGE, "n" * 1001, 1, NAN, [], {}, True, 10**400]
_NO_KEYS: list[Any] = [*_NO_NAMES, "\ud800"]
_NO_TIMES: list[Any] = [
    HUGE,
    1,
    NAN,
    -INF,
    10**400,
    [],
    "soon",
    "2030-13-01",
    "9999-12-31T23:59:59-23:59",
    "\ud800",
]
_NO_LIMITS: list[Any] = [
    [NAN, None],
    [None, NAN],
    [INF, None],
    [-INF, 1],
    [-1, None],
    [None, -0.5],
    [10**400, None],
    [1e308, None],
    [None, 1e10],
    [1],
    [1, 2, 3],
    "12",
    {},
    5,
    ["1", None],
    [True, None],
    [[], None],
    [NAN, NAN],
]

# Of headers: what must be refused with a reason that names them. This does not come from the
# program's own table, which it is to check.
REFUSED: dict[str, list[Any]] = {
    "task": [*_NO_KEYS, None],
    "id": [*_NO_KEYS, None],
    "lang": _NO_NAMES,
    "shadow": _NO_NAMES,
    "eta": _NO_TIMES,
    "expires": _NO_TIMES,
    "group": _NO_KEYS,
    "group_index": [*_NO_COUNTS, True],
    "retries": [*_NO_COUNTS, True],
    "timelimit": _NO_LIMITS,
    "root_id": _NO_NAMES,
    "parent_id": _NO_NAMES,
    "argsrepr": [HUGE, 1, [], NAN],
    "kwargsrepr": [HUGE, 1, {}, INF],
    "origin": _NO_NAMES,
    "ignore_result": [0, 1, "no", NAN, [], HUGE],
    "replaced_task_nesting": [*_NO_COUNTS, True],
    "stamped_headers": ["x", 1, {}, [1], [HUGE], [[]], [NAN], ["x"] * 1001],
    "stamps": ["x", 1, [1], NAN],
    "compression": [1, NAN, [], HUGE, "application/x-none", "lzma"],
    "redelivered": [0, 1, "yes", NAN, []],
}

# What a client may send, and must run.
RUNS: dict[str, list[Any]] = {
    "lang": ["py", None],
    "shadow": [None, "a shadow", "é", "\ud800", "s" * 1000],
    "eta": [None, "2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00.000001", "0001-01-01T00:00:00"],
    "expires": [None, "9000-01-01T00:00:00+00:00"],
    "group": [None, "g"],
    "group_index": [None, 0, 1, 2**53],
    "retries": [None, 0, 1, 2**53],
    "timelimit": [None, [None, None], [0, 0], [10, 5], [0, None], [3600.5, None], [10**9, 10**9]],
    "argsrepr": [None, "", "(1,)", "\ud800", "a" * 100_000],
    "origin": [None, "gen1@host"],
    "ignore_result": [None, True, False],
    "replaced_task_nesting": [None, 0, 3],
    "stamped_headers": [None, [], ["a", "b"]],
    "stamps": [None, {}, {"a": 1, "b": ["x"]}, {"a": NAN}],
    "redelivered": [None, False],
    "x-own": [1, "x", [1, {"a": 2}], 10**400],
}

TASKS = ("fuzz_app.plain", "fuzz_app.nap", "fuzz_app.fails")


def make(seed: str, number: int) -> Case:
    """Return one case."""
    name = f"{seed}:{number}"
    chance = random.Random(name)
    kind = chance.choices(KINDS, (6, 2, 2, 2))[0]
    return _MAKERS[kind](chance, name)


def _dump(value: object, chance: random.Random) -> bytes:
    """Write JSON; half characters only as escapes, for in UTF-8 they are no JSON."""
    try:
        return json.dumps(value, ensure_ascii=chance.random() < 0.7).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


# --- messages -------------------------------------------------------------------------------------


def _element(chance: random.Random, mark: str) -> dict[str, Any]:
    return {
        "body": "",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": chance.choice(TASKS), "id": mark, "shadow": None, "eta": None,
            "expires": None, "group": None, "group_index": None, "retries": 0,
            "timelimit": [None, None], "root_id": mark, "parent_id": mark, "argsrepr": "()",
            "kwargsrepr": "{}", "origin": mark, "ignore_result": False, "replaced_task_nesting": 0,
            "stamped_headers": None, "stamps": {},
        },
        "properties": {
            "correlation_id": mark, "reply_to": "client", "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0,
            "body_encoding": "base64", "delivery_tag": mark,
        },
    }  # fmt: skip


def _message(chance: random.Random, name: str) -> Case:
    mark = f"fuzz-{name}"
    whole = _element(chance, mark)
    body: Any = [[1, "a"], {}, EMBED]
    headers = whole["headers"]
    case = Case(name, "message", mark, "", b"")
    way = chance.choices(("refused", "runs", "wild", "body", "bytes"), (6, 3, 5, 5, 1))[0]
    if way == "refused":
        field = chance.choice(list(REFUSED))
        value = chance.choice(REFUSED[field])
        headers[field] = value
        case = case._replace(about=f"{field} = {_short(value)}", refused=field)
    elif way == "runs":
        for field in chance.sample(list(RUNS), 2):
            headers[field] = chance.choice(RUNS[field])
            case = case._replace(about=f"{case.about} {field} = {_short(headers[field])}")
        case = case._replace(runs=True)
    elif way == "wild":
        # Not what may have replaced one of them: the wild values are shared by all cases.
        properties = whole["properties"]
        for _ in range(chance.choice((1, 2))):
            part = chance.choice((whole, headers, properties, properties))
            field, value = chance.choice(list(part)), chance.choice(WILD)
            part[field] = value
            case = case._replace(about=f"{case.about} {field} = {_short(value)}")
        # Of a generator of its own, so that cases with older seeds stay as they are.
        signature = random.Random(f"{name}:signature")
        if signature.random() < 0.1:
            whole["greenq_sig"] = signature.choice((*WILD, "0" * 43))
            case = case._replace(about=f"{case.about} greenq_sig = {_short(whole['greenq_sig'])}")
    elif way == "body":
        about, data, compression, refused = _body(chance)
        whole["body"] = base64.b64encode(data).decode()
        if compression:
            headers["compression"] = compression
        case = case._replace(about=about, refused=refused)
    if chance.random() < 0.05 and way in ("refused", "runs") and "compression" not in headers:
        # Protocol 1: all of it is in the body.
        body, whole["headers"] = {**headers, "args": [1], "kwargs": {}, "callbacks": None}, {}
    if whole.get("body") == "":
        whole["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    raw = _dump(whole, chance)
    if way == "bytes":
        place, cut = chance.randrange(len(raw)), chance.choice((0, 1, 5, 500))
        raw = raw[:place] + chance.randbytes(chance.choice((0, 1, 3))) + raw[place + cut :]
        case = case._replace(about=f"bytes at {place}")
    return case._replace(raw=raw)


_TEXT = b"[],"
_BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lambda data: lzma.compress(data, preset=1),
}


@functools.cache
def _bomb(kind: str, size: int, before: bytes, unit: bytes, behind: bytes) -> bytes:
    """Return what expands to about `size` bytes of JSON; made once, for it takes its time."""
    return _BOMBS[kind](before + unit * (size // len(unit)) + behind)


def _body(chance: random.Random) -> tuple[str, bytes, str, str]:
    """Return what a body is about, its bytes, its compression and what refuses it for sure."""
    match chance.randrange(9):
        case 0 | 1:
            kind = chance.choice(list(_BOMBS))
            size = chance.choice((500_000, 1 << 20, 6 << 20))
            unit = chance.choice((b"[],", b'{"a":1},', b" ", b'"ab",'))
            packed = _bomb(kind, size, b"[[", unit, b"1],{},{}]")
            return f"{kind} of {size} bytes of {unit!r}", packed, kind, ""
        case 2:
            depth = chance.choice((10, 100, 900, 5000, 20_000))
            opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
            inner = b"[[" + opening * depth + b"1" + closing * depth + b"],{},{}]"
            return f"{depth} deep", inner, "", ""
        case 3 if chance.random() < 0.3:
            inner = b"[[" + _TEXT * 150_000 + b"1],{},{}]"
            return "150,000 lists", inner, "", "values"
        case 4 if chance.random() < 0.3:
            pairs = b",".join(b'"%d":%d' % (n, n) for n in range(20_000))
            return "20,000 keys", b"[[{" + pairs + b"}],{},{}]", "", ""
        case 5:
            digits = chance.choice((100, 4000, 5000, 200_000))
            number = chance.choice(
                (b"9" * digits, b"0." + b"9" * digits, b"1e" + b"9" * 5, b"-" + b"1" * digits)
            )
            return f"a number of {len(number)} characters", b"[[" + number + b"],{},{}]", "", ""
        case 6:
            parts = [
                [[1], {}, EMBED],
                [[], [], {}],
                [[1]],
                {},
                [[], {}, {"chain": [{}]}],
                NAN,
                "x",
                None,
            ]
            part = chance.choice(parts)
            return f"body {_short(part)}", json.dumps(part).encode(), "", ""
        case 7:
            embed = {chance.choice(list(EMBED)): chance.choice(WILD)}
            return f"embed {_short(embed)}", json.dumps([[1], {}, embed]).encode(), "", ""
        case _:
            value = chance.choice(WILD)
            args, kwargs = ([value], {}) if chance.random() < 0.5 else ([], {"k": value})
            return f"argument {_short(value)}", json.dumps([args, kwargs, EMBED]).encode(), "", ""


# --- events and control requests ------------------------------------------------------------------


def _wrapped(body: Any, headers: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    return {
        "body": base64.b64encode(_dump(body, chance)).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "delivery_mode": 1, "delivery_info": {"exchange": "celeryev", "routing_key": "x"},
            "priority": 0, "body_encoding": "base64", "delivery_tag": "tag",
        },
    }  # fmt: skip


def _spoil(chance: random.Random, *parts: dict[str, Any]) -> str:
    about = ""
    for _ in range(chance.choice((1, 1, 2))):
        part = chance.choice(parts)
        if part:
            field, value = chance.choice(list(part)), chance.choice(WILD)
            part[field] = value
            about += f" {field} = {_short(value)}"
    return about


_EVENTS = (
    "worker-online",
    "worker-heartbeat",
    "worker-offline",
    "worker-elect",
    "worker-elect-ack",
)


def _event(chance: random.Random, name: str) -> Case:
    kind = chance.choice(_EVENTS)
    event: dict[str, Any] = {
        "hostname": f"w{chance.randrange(5)}@fuzz", "utcoffset": 0, "pid": 1, "clock": 1,
        "timestamp": 1.7e9, "type": kind, "freq": 2.0, "active": 0, "processed": 1,
        "loadavg": [0.1, 0.2, 0.3], "sw_ident": "py-celery", "sw_ver": "5", "sw_sys": "Linux",
        "id": f"e{chance.randrange(3)}", "topic": "task", "action": None, "cver": 1,
    }  # fmt: skip
    about = _spoil(chance, event)
    body: Any = event if chance.random() < 0.8 else [event, chance.choice(WILD)]
    whole = _wrapped(body, {"hostname": "w@fuzz"}, chance)
    if chance.random() < 0.2:
        about += _spoil(chance, whole, whole["headers"], whole["properties"])
    return Case(name, "event", "", f"{kind}:{about}", _dump(whole, chance), kind.replace("-", "."))


# No method that ends the worker, or has it leave the queue alone.
_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}),
    ("status", {}),
    ("stats", {}),
    ("clock", {}),
    ("conf", {"with_defaults": True}),
    ("hello", {"from_node": "w1@fuzz", "revoked": ["a"]}),
    ("active", {"safe": False}),
    ("reserved", {"limit": 10, "offset": 0}),
    ("scheduled", {"limit": 10, "offset": 0}),
    ("query_task", {"ids": ["a"]}),
    ("registered", {"taskinfoitems": ["rate_limit"]}),
    ("revoked", {}),
    ("revoke", {"task_id": "a", "terminate": True, "signal": "SIGTERM"}),
    ("revoke_by_stamped_headers", {"headers": {"x": "y"}, "terminate": False}),
    ("rate_limit", {"task_name": "fuzz_app.limited", "rate_limit": "10/s"}),
    ("time_limit", {"task_name": "fuzz_app.limited", "hard": 10, "soft": 5}),
    ("cancel_consumer", {"queue": "no-such-queue"}),
    ("pool_grow", {"n": 1}),
    ("pool_shrink", {"n": 0}),
    ("autoscale", {"max": 5, "min": 1}),
    ("heartbeat", {}),
    ("election", {"id": "e", "topic": "none", "action": None}),
    ("greenlets", {"limit": 5}),
    ("hub", {}),
    ("records", {}),
    ("resume", {"queue": "other"}),
    ("no_such_method", {}),
]


def _control(chance: random.Random, name: str) -> Case:
    method, arguments = deepcopy(chance.choice(_REQUESTS))
    body: dict[str, Any] = {
        "method": method, "arguments": arguments, "destination": None, "pattern": None,
        "matcher": None, "ticket": "t",
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "nobody"},
    }  # fmt: skip
    headers: dict[str, Any] = {"clock": 1, "expires": 2e9}
    about = _spoil(chance, arguments, arguments, body, headers, body["reply_to"])
    # A control request with a pattern of its own is tried by the tests of the mailbox.
    body["matcher"] = "glob" if body["matcher"] == "pcre" else body["matcher"]
    whole = _wrapped(body, headers, chance)
    if chance.random() < 0.1:
        about += _spoil(chance, whole, whole["properties"])
    return Case(name, "control", "", f"{method}:{about}", _dump(whole, chance))


# --- results --------------------------------------------------------------------------------------

_EXCEPTIONS = [
    ("SystemExit", "builtins", [0]),
    ("KeyboardInterrupt", "builtins", []),
    ("GeneratorExit", "builtins", []),
    ("BaseException", "builtins", ["x"]),
    ("TaskTerminated", "greenq.errors", ["x", None]),
    ("ValueError", "builtins", ["x"]),
    ("Retry", "celery.exceptions", ["m", "e", 1]),
    ("system", "os", ["true"]),
    ("exec", "builtins", ["1/0"]),
    ("UnicodeDecodeError", "builtins", [1]),
    ("GreenletExit", "greenlet", []),
    ("StopIteration", "builtins", []),
    ("Timeout", "gevent.timeout", [1]),
    ("BaseExceptionGroup", "builtins", ["x", []]),
]


def _result(chance: random.Random, name: str) -> Case:
    mark = f"fuzz-{name}"
    kind, module, args = chance.choice(_EXCEPTIONS)
    stored: dict[str, Any] = {"exc_type": kind, "exc_message": args, "exc_module": module}
    meta: dict[str, Any] = {
        "status": chance.choice(("FAILURE", "FAILURE", "REVOKED", "SUCCESS", "RETRY", "STARTED")),
        "result": stored, "traceback": None, "children": [], "date_done": None, "group_id": None,
        "parent_id": None, "retries": 0, "worker": "w", "queue": "q", "task_id": mark,
    }  # fmt: skip
    about = kind
    if chance.random() < 0.7:
        about += _spoil(chance, meta, stored)
    raw = _dump(meta, chance)
    if chance.random() < 0.3:
        packing, size = chance.choice(list(_BOMBS)), chance.choice((0, 1 << 20, 6 << 20))
        start = b'{"status":"SUCCESS","result":['
        packed = _bomb(packing, size, start, b"[],", b"1]}") if size else _BOMBS[packing](raw)
        raw = b"\x00celery-compressed\x00" + packing.encode() + b"\x00" + packed
        about += f" {packing} of {size} bytes"
    return Case(name, "result", mark, about, raw)


_MAKERS: dict[str, Callable[[random.Random, str], Case]] = {
    "message": _message, "event": _event, "control": _control, "result": _result,
}  # fmt: skip


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text):,} characters)"
