"""Control: which requests are for this worker, how they are answered, and that nothing ends it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenq.commands import registry
from greenq.commands.registry import inspect_command
from greenq.errors import AccessRefused, ConnectionLost
from tests.published import published
from tests.unit.node import NODE, Node, asked
from tests.unit.rig import settle


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


@pytest.fixture
def control(node: Node) -> Any:
    assert node.parts.control is not None
    return node.parts.control


# --- whom a request is for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "answered"),
    [
        ({}, True),
        ({"destination": [NODE, "other@host"]}, True),
        ({"destination": ["other@host"]}, False),
        ({"destination": ["other@host"], "pattern": "*", "matcher": "glob"}, False),
        ({"pattern": "me@*", "matcher": "glob"}, True),
        ({"pattern": "you@*", "matcher": "glob"}, False),
        ({"pattern": "m.@", "matcher": "pcre"}, False),
        ({"pattern": "(", "matcher": "pcre"}, False),
    ],
)
def test_only_those_who_are_meant_answer(
    node: Node, control: Any, options: dict[str, Any], answered: bool
) -> None:
    request = asked("ping", **options)

    control.handle(request)

    assert len(node.asker.replies) == answered
    assert (control.urgent(request) is not None) is answered


def test_regular_expression_is_read_where_the_setting_allows_it_and_never_in_the_watch_thread() -> (
    None
):
    node = Node(settings={"worker_remote_control_pcre": True})
    try:
        control: Any = node.parts.control
        request = asked("ping", pattern="m.@", matcher="pcre")

        assert control.urgent(request) is None
        control.handle(request)
        assert len(node.asker.replies) == 1

        for pattern in ("(a*)*b", "^((((.?)*)*)*)*X$", "("):
            control.handle(asked("ping", pattern=pattern, matcher="pcre"))
            assert control.urgent(asked("ping", pattern=pattern, matcher="pcre")) is None
        assert len(node.asker.replies) == 1
    finally:
        node.close()


def test_unsigned_requests_are_answered_by_neither_thread_and_counted_once() -> None:
    node = Node(settings={"security_signing_key": "k" * 32})
    try:
        control: Any = node.parts.control
        signer: Any = node.app.transport.signer
        request = asked("ping")
        assert control.urgent(request) is None
        control.handle(request)
        assert control.ignored == 1
        assert signer.refused == {"request: unsigned": 1}
        assert control.urgent(signer.seal("request", "/0.celery.pidbox", request)) is not None
    finally:
        node.close()


def test_what_is_refused_is_said_once_a_minute(
    control: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        control.handle(asked("ping", pattern="m.@", matcher="pcre"))
        control.urgent(asked("ping", pattern="m.@", matcher="pcre"))
        control.handle(b"garbage")
        control.urgent(b"garbage")
        control.handle(asked("nonsense"))

    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(said) == 3
    assert "worker_remote_control_pcre" in said[0]


def test_listens_on_its_channel_and_stops(node: Node, control: Any) -> None:
    subscriber = node.parts.watch.subscriber

    control.start()
    assert [each.name for each in subscriber._channels] == ["/0.celery.pidbox"]

    control.stop()
    assert subscriber._channels == ()


# --- how it is answered ---------------------------------------------------------------------------


def test_a_request_without_an_address_is_carried_out_and_not_answered(
    node: Node, control: Any
) -> None:
    control.handle(asked("pool_grow", {"n": 2}, answered=False))
    control.handle(asked("nonsense", answered=False))

    assert node.parts.pool.size == 1002
    assert node.asker.replies == []


def test_the_clock_goes_past_that_of_the_request(node: Node, control: Any) -> None:
    control.handle(asked("ping", clock=500))

    # Past the request's, and forward for the reply.
    assert node.asker.replies[0].clock == 502


@pytest.mark.parametrize("problem", [ConnectionLost("gone"), AccessRefused("no EVALSHA")])
def test_an_answer_that_cannot_be_sent_is_logged(
    node: Node, control: Any, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    node.asker.problem = problem

    control.handle(asked("ping"))

    assert "the reply to ping could not be sent" in caplog.text


def test_what_is_urgent_is_answered_over_the_connection_that_is_given(
    node: Node, control: Any
) -> None:
    class Connection:
        scripts = 0

        def script(self, *_args: Any) -> int:
            self.scripts += 1
            return 1

    connection = Connection()

    answer = control.urgent(asked("ping"))
    assert connection.scripts == 0
    answer(connection)

    assert (connection.scripts, node.asker.replies) == (1, [])


@pytest.mark.parametrize(
    "method", ["scheduled", "query_task", "pool_grow", "shutdown", "revoke", "nonsense"]
)
def test_what_needs_the_hub_is_not_urgent(control: Any, method: str) -> None:
    assert control.urgent(asked(method)) is None


def test_arguments_are_logged_only_for_those_who_debug(
    control: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "greenq.consumer.remote_control")

    control.handle(asked("revoke", {"task_id": "s3cret"}))

    levels = [record.levelno for record in caplog.records if "s3cret" in record.getMessage()]
    assert levels == [logging.DEBUG]


# --- whatever is published ------------------------------------------------------------------------

PING = {"method": "ping", "arguments": {}, "destination": None, "pattern": None, "matcher": None}
TO = {"exchange": "reply.celery.pidbox", "routing_key": "oid"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"[" * 100_000,
        published([PING]),
        published(PING, **{"content-type": "application/x-python-serialize"}),
        published(PING, body="not base64!"),
        published(PING, properties=[]),
        published({**PING, "method": None}),
        published({**PING, "method": ["ping"]}),
        published({**PING, "arguments": ["a"]}),
        published({**PING, "destination": 5}),
        published({**PING, "pattern": {}}),
        published({**PING, "ticket": 5}),
        published({**PING, "reply_to": "oid"}),
        published({**PING, "reply_to": {"exchange": 5, "routing_key": None}}),
        published({**PING, "reply_to": {**TO, "routing_key": "\ud800"}}),
    ],
    ids=lambda data: data[:60].decode(errors="replace"),
)
def test_what_is_no_request_is_passed_over(node: Node, control: Any, data: bytes) -> None:
    control.handle(data)
    assert control.urgent(data) is None

    assert node.asker.replies == []
    assert node.ask("ping") == {"ok": "pong"}


# Those that any worker knows; the longest of all, `memdump`, has a test of its own.
_METHODS = sorted(set(registry.panel._commands) - {"memdump"})
_ARGUMENTS = sorted(
    {
        name
        for method in _METHODS
        for name in inspect.signature(registry.panel._commands[method].call).parameters
    }
)
# Texts with halves of characters as well: JSON can spell them.
_TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["add", "wait", "celery", "t1", "5/m", NODE, "\ud800", "x" * 5000, "9" * 50, "-1"]
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**30), 2**63])
    | st.floats()
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=6,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Return a request whose command is there, with arguments of its own and of others."""
    method = draw(st.sampled_from(_METHODS))
    own = [
        name
        for name in inspect.signature(registry.panel._commands[method].call).parameters
        if name not in ("worker", "_ignored")
    ]
    arguments = {name: draw(_JSON) for name in own if draw(st.booleans())}
    if draw(st.integers(0, 9)) == 0:
        arguments |= draw(st.dictionaries(st.sampled_from(_ARGUMENTS) | _TEXT, _JSON, max_size=2))
    return {**PING, "method": method, "arguments": arguments, "ticket": "ticket", "reply_to": TO}


def is_reply(value: object) -> bool:
    """Tell an object, a list, a text or null: what some command's answer or an error may be."""
    if isinstance(value, dict) and "error" in value:
        return list(value) == ["error"] and isinstance(value["error"], str)
    return value is None or isinstance(value, dict | list | str)


@given(st.lists(requests(), min_size=1, max_size=6))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_no_arguments_of_any_command_end_it(asked_for: list[dict[str, Any]]) -> None:
    node = Node(autoscale=(10, 1)) if len(asked_for) % 2 else Node(concurrency=2)
    node.give("wait", "t1", 1)
    node.give("add", "t2", 1, 2, countdown=100)
    control: Any = node.parts.control
    for request in asked_for:
        node.asker.replies.clear()
        data = published(request)

        urgent = control.urgent(data)
        control.handle(data)
        settle()

        if request["method"] == "shutdown":
            assert [reply for reply in node.asker.replies if not is_error(reply)] == []
            continue
        (reply,) = node.asker.replies
        assert list(reply.replies) == [NODE]
        assert is_reply(reply.replies[NODE]), reply
        if urgent is not None:
            urgent(node.asker)
            assert is_reply(node.asker.replies[1].replies[NODE])
    # It goes on: whatever was said to it, it answers and runs what comes.
    assert node.ask("ping") == {"ok": "pong"}
    assert "error" not in node.ask("stats")
    assert isinstance(node.ask("active"), list)
    assert isinstance(node.ask("registered"), list)
    node.close()


def is_error(reply: Any) -> bool:
    return list(reply.replies[NODE]) == ["error"]


@given(
    st.binary()
    | _JSON.map(published)
    | st.dictionaries(st.sampled_from([*PING, "ticket", "reply_to"]), _JSON | st.just("ping")).map(
        published
    )
    | st.fixed_dictionaries(
        {},
        optional={
            "body": _TEXT,
            "content-encoding": _JSON,
            "content-type": _JSON,
            "headers": _JSON,
            "properties": _JSON,
        },
    ).map(lambda changes: published({**PING, "ticket": "ticket", "reply_to": TO}, **changes))
)
def test_whatever_is_published_is_survived(data: bytes) -> None:
    node: Any = survivor()

    urgent = node.parts.control.urgent(data)
    node.parts.control.handle(data)
    if urgent is not None:
        urgent(node.asker)


_survivor: list[Node] = []


def survivor() -> Node:
    """Return one worker for all examples: making one takes longer than an example."""
    if not _survivor:
        _survivor.append(Node())
    return _survivor[0]


def test_a_command_that_raises_anything_is_an_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.panel, "_commands", dict(registry.panel._commands))

    class UnspeakableError(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("not even that")

    @inspect_command(urgent=True)
    def unspeakable(_worker: Any) -> None:
        raise UnspeakableError

    assert "UnspeakableError" in node.ask("unspeakable")["error"]


def test_a_long_error_is_cut_short(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    told = node.ask("x" * 1000)["error"]

    assert told.startswith('KeyError("no control command is named')
    assert len(told) < 2000
    assert len(caplog.text) < 2000


def test_what_is_no_request_is_counted(node: Node) -> None:
    node.parts.control.handle(asked("x" * 100_000, {}))
    node.parts.control.handle(b"garbage")

    assert node.ask("stats")["ignored"]["requests"] == 2
