"""The script that settles messages, on a real server: what it does, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import pytest
import redis

from greenq.errors import AccessRefused, OperationalError, ServerError
from greenq.protocol.keys import Keys
from greenq.transport.client import Client, Connection
from greenq.transport.dead import DEAD_LIMIT
from greenq.transport.settle import SETTLE, Move, Publication, Stored, settle_arguments
from tests.servers import Server
from tests.support import wait_until

KEYS = Keys()
SUCCESS = json.dumps({"status": "SUCCESS", "result": 1})
FAILURE = json.dumps({"status": "FAILURE", "result": None})


class Desk:
    """A server with reserved messages, and a connection to settle them."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.client = server.client
        self.connection = connection

    def reserve(self, *tags: str) -> None:
        for tag in tags:
            self.client.hset("unacked", tag, f"record of {tag}")
            self.client.zadd("unacked_index", {tag: 1})

    def reserved(self) -> set[str]:
        return {tag.decode() for tag in self.server.unacked()}

    def settle(
        self,
        results: Sequence[Stored] = (),
        moves: Sequence[Move] = (),
        acks: Sequence[str] = (),
        *,
        news: Sequence[Publication] = (),
        dead_limit: int = DEAD_LIMIT,
    ) -> object:
        names, arguments = settle_arguments(KEYS, results, moves, acks, news)
        arguments[3] = dead_limit
        moved, self.unheard = self.connection.script(SETTLE, names, arguments)
        return moved

    def texts(self, key: str) -> list[str]:
        return [text.decode() for text in self.client.lrange(key, 0, -1)]


@pytest.fixture
def desk(server: Server) -> Iterator[Desk]:
    with closing(Client(server.url).connection()) as connection:
        yield Desk(server, connection)


def test_all_of_a_batch_is_settled_in_one_call(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "a:3", "a:4", "b:1")
    desk.client.rpush("queue", "older", "newer")

    moved = desk.settle(
        [Stored("r1", "60", "one"), Stored("r2", "0", b"\xff\x00")],
        [
            Move("a:2", "queue", "next", "taken next"),
            Move("a:3", "queue", "last", b"taken last"),
            Move("a:4", "parked", 1924992000.25, "1|later"),
        ],
        ["a:1"],
    )

    assert moved == 3
    assert desk.reserved() == {"b:1"}
    assert desk.client.mget("r1", "r2") == [b"one", b"\xff\x00"]
    assert 0 < desk.client.ttl("r1") <= 60
    assert desk.client.ttl("r2") == -1
    assert desk.texts("queue") == ["taken last", "older", "newer", "taken next"]
    assert desk.client.zrange("parked", 0, -1, withscores=True) == [(b"1|later", 1924992000.25)]


def test_stored_state_is_announced_on_the_channel_of_its_key(desk: Desk) -> None:
    desk.client.set("r2", SUCCESS)
    with desk.client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe("r*")
        assert heard.get_message(timeout=5) is None
        states = [Stored("r1", "60", "one"), Stored("r2", "!60", FAILURE), Stored("r3", "!0", "x")]
        desk.settle(states)

        messages = [heard.get_message(timeout=5) for _ in range(2)]

    # What was not stored is not announced.
    assert [(each["channel"], each["data"]) for each in messages if each] == [
        (b"r1", b"one"),
        (b"r3", b"x"),
    ]


@pytest.mark.parametrize("expiry", ["60", "0"])
@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (SUCCESS, True),
        (json.dumps({"task_id": "id", "status": "SUCCESS"}), True),
        (FAILURE, False),
        # What a task says about itself is no status.
        (json.dumps({"status": "PROGRESS", "result": {"status": "SUCCESS"}}), False),
        (b"\x82\xa6status\xa7SUCCESS\xa6result\x01", True),
        (b"\x82\xa6status\xa7FAILURE\xa6result\x01", False),
        ("", False),
        (None, False),
    ],
)
def test_guarded_state_replaces_all_but_a_success(
    desk: Desk, before: str | bytes | None, kept: bool, expiry: str
) -> None:
    desk.reserve("a:1")
    if before is not None:
        desk.client.set("r", before)

    desk.settle([Stored("r", f"!{expiry}", FAILURE)], acks=["a:1"])

    found = desk.client.get("r")
    expected = before if kept else FAILURE
    assert found == (expected.encode() if isinstance(expected, str) else expected)
    assert desk.client.ttl("r") == (-1 if kept or expiry == "0" else 60)
    # Its message is done with all the same.
    assert not desk.reserved()


@pytest.mark.parametrize("expiry", ["60", "!60", "0", "!0"])
def test_state_replaces_a_key_of_another_type(desk: Desk, expiry: str) -> None:
    # It must not stop the others, whose messages would stay reserved without a result.
    desk.reserve("a:1", "a:2")
    desk.client.rpush("r1", "a list")

    desk.settle([Stored("r1", expiry, "one"), Stored("r2", "60", "two")], acks=["a:1", "a:2"])

    assert desk.client.mget("r1", "r2") == [b"one", b"two"]
    assert not desk.reserved()


def test_unguarded_state_replaces_a_success(desk: Desk) -> None:
    desk.client.set("r", SUCCESS)

    desk.settle([Stored("r", "60", FAILURE)])

    assert desk.client.get("r") == FAILURE.encode()


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_any_number_of_tags_is_acknowledged(desk: Desk, count: int) -> None:
    tags = [f"a:{number}" for number in range(count)]
    desk.client.hset("unacked", mapping=dict.fromkeys([*tags, "b:1"], "record"))
    desk.client.zadd("unacked_index", dict.fromkeys([*tags, "b:1"], 1))

    desk.settle(acks=tags)

    assert desk.reserved() == {"b:1"}


def test_largest_batch_is_settled(desk: Desk) -> None:
    results = [Stored(f"r{number}", "60", "state") for number in range(1000)]
    moves = [Move("", f"q{number}", "last", "text") for number in range(1000)]
    acks = [f"a:{number}" for number in range(1000)]

    assert desk.settle(results, moves, acks) == 1000
    assert desk.client.dbsize() == 2000


def test_news_is_published_behind_all_else(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    with desk.client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("r1", "news")
        wait_until(lambda: desk.client.pubsub_numsub("news")[0][1] == 1)

        moved = desk.settle(
            [Stored("r1", "60", "one")],
            [Move("a:2", "queue", "next", "text")],
            ["a:1"],
            news=[Publication("news", "first"), Publication("news", "second")],
        )

        told: list[tuple[bytes, bytes]] = []

        def all_told() -> bool:
            message = heard.get_message()
            if message and message["type"] == "message":
                told.append((message["channel"], message["data"]))
            return len(told) == 3

        wait_until(all_told)
    assert told == [(b"r1", b"one"), (b"news", b"first"), (b"news", b"second")]
    assert (moved, desk.unheard, desk.reserved()) == (1, b"", set())


def test_news_that_may_not_be_published_is_told_and_stops_nothing(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.client.acl_setuser(
        "mute", enabled=True, passwords=["+pw"], commands=["+@all"], keys=["*"],
        reset_channels=True, channels=["r*"],
    )  # fmt: skip
    desk.connection.call("AUTH", "mute", "pw")

    desk.settle([Stored("r1", "60", "one")], acks=["a:1"], news=[Publication("news", "text")])

    assert b"permission" in desk.unheard
    assert desk.client.get("r1") == b"one"
    assert desk.reserved() == set()


def test_message_whose_record_is_gone_is_not_moved(desk: Desk) -> None:
    desk.reserve("a:2")
    # Its index entry alone does not make it ours.
    desk.client.zadd("unacked_index", {"a:1": 1})

    moved = desk.settle(
        moves=[
            Move("a:1", "queue", "last", "somebody else's"),
            Move("a:2", "queue", "last", "ours"),
        ]
    )

    assert moved == 1
    assert desk.texts("queue") == ["ours"]


def test_call_whose_answer_was_lost_may_be_repeated(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "a:3")
    batch = (
        [Stored("r1", "60", "one")],
        [Move("a:2", "queue", "last", "text"), Move("a:3", "dead", "dead", "letter")],
        ["a:1"],
    )

    moved = [desk.settle(*batch) for _ in range(3)]

    assert moved == [2, 0, 0]
    assert (desk.texts("queue"), desk.texts("dead")) == (["text"], ["letter"])
    assert desk.client.get("r1") == b"one"


def test_message_without_a_tag_is_just_put_there(desk: Desk) -> None:
    desk.reserve("a:1")

    moved = desk.settle(
        [Stored("r1", "60", "one")],
        [Move("", "queue", "last", "new"), Move("", "parked", 5.0, "1|later")],
    )

    assert moved == 2
    assert desk.texts("queue") == ["new"]
    assert desk.client.zscore("parked", "1|later") == 5
    assert desk.reserved() == {"a:1"}


def test_dead_letters_are_cut_to_the_limit_the_newest_first(desk: Desk) -> None:
    tags = [f"a:{number}" for number in range(5)]
    desk.reserve(*tags, "b:1")
    desk.client.rpush("queue", *"0123456")

    desk.settle(
        moves=[
            *(Move(tag, "dead", "dead", f"letter {tag}") for tag in tags),
            Move("b:1", "queue", "last", "text"),
        ],
        dead_limit=3,
    )

    assert desk.texts("dead") == ["letter a:4", "letter a:3", "letter a:2"]
    # No other list is cut.
    assert len(desk.texts("queue")) == 8
    assert not desk.reserved()


@pytest.mark.parametrize(
    ("move", "kind"),
    [
        (Move("a:1", "wrong", "last", "text"), "no list but a string"),
        (Move("a:1", "wrong", "next", "text"), "no list but a string"),
        (Move("a:1", "wrong", "dead", "text"), "no list but a string"),
        (Move("a:1", "wrong", 5.0, "text"), "no zset but a string"),
    ],
)
def test_message_whose_goal_has_another_type_stays_reserved_and_the_rest_is_done(
    desk: Desk, move: Move, kind: str
) -> None:
    desk.client.set("wrong", "a string")
    desk.reserve("a:1", "a:2", "a:3")

    with pytest.raises(ServerError, match=f"WRONGTYPE wrong is {kind}") as refused:
        desk.settle([Stored("r1", "60", "one")], [move, Move("a:2", "q", "last", "two")], ["a:3"])

    assert not refused.value.passes
    assert desk.reserved() == {"a:1"}
    assert desk.client.get("r1") == b"one"
    assert desk.texts("q") == ["two"]
    assert desk.client.get("wrong") == b"a string"


# --- what the server refuses ---------------------------------------------------------------------


@contextmanager
def no_memory(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize("expiry", ["60", "0", "!60"])
def test_server_without_memory_takes_all_of_a_batch_or_nothing(desk: Desk, expiry: str) -> None:
    desk.reserve("a:1", "a:2")
    batch = (
        [Stored("r1", expiry, "one")],
        [Move("a:2", "queue", "last", "text"), Move("", "queue", "last", "new")],
        ["a:1"],
    )

    with no_memory(desk.client), pytest.raises(ServerError, match=r"^the server's memory") as no:
        desk.settle(*batch)

    # Nothing is acknowledged, moved or announced without the result.
    assert no.value.passes
    assert no.value.reply.startswith("OOM ")
    assert desk.reserved() == {"a:1", "a:2"}
    assert not desk.client.exists("r1", "queue")
    assert desk.settle(*batch) == 2
    assert not desk.reserved()


def test_server_without_memory_still_lets_messages_go(desk: Desk) -> None:
    # Otherwise a server that is full of records would stay full.
    desk.reserve("a:1", "a:2")

    with no_memory(desk.client):
        desk.settle(moves=[Move("a:2", "queue", "last", "text")], acks=["a:1"])

    assert not desk.reserved()
    assert desk.texts("queue") == ["text"]


@contextmanager
def user(desk: Desk, *rules: str) -> Iterator[Desk]:
    """Settle as a user with some rights less."""
    desk.client.execute_command(
        *("ACL", "SETUSER", "poor", "reset", "on", ">poor", "+@all", "&*"), *rules
    )
    url = f"redis://poor:poor@127.0.0.1:{desk.server.port}/0"
    try:
        with closing(Client(url).connection()) as connection:
            yield Desk(desk.server, connection)
    finally:
        desk.client.execute_command("ACL", "DELUSER", "poor")


def test_result_is_stored_and_acknowledged_when_the_user_may_not_announce_it(desk: Desk) -> None:
    desk.reserve("a:1")

    with user(desk, "~*", "-publish") as mute:
        mute.settle([Stored("r1", "60", "one")], acks=["a:1"])
        assert b"publish" in mute.unheard

    assert desk.client.get("r1") == b"one"
    assert desk.reserved() == set()


@pytest.mark.parametrize("rules", [("~*", "-setex"), ("~u*", "~r1")])
def test_nothing_is_acknowledged_when_the_user_may_not_store(
    desk: Desk, rules: tuple[str, ...]
) -> None:
    # The last one may store one result, and not the other.
    desk.reserve("a:1", "a:2")

    with user(desk, *rules) as poor, pytest.raises(AccessRefused):
        poor.settle(
            [Stored("r1", "60", "one"), Stored("r2", "60", "two")],
            [Move("a:2", "u-queue", "last", "text")],
            ["a:1"],
        )

    assert desk.reserved() == {"a:1", "a:2"}
    assert not desk.client.exists("u-queue")


@pytest.mark.parametrize(
    "rules", [("~*", "-lpush"), ("~*", "-hdel"), ("~*", "-zrem"), ("~unacked*",)]
)
def test_message_stays_reserved_when_the_user_may_not_move_it(
    desk: Desk, rules: tuple[str, ...]
) -> None:
    desk.reserve("a:1")

    with user(desk, *rules) as poor, pytest.raises(OperationalError):
        poor.settle(moves=[Move("a:1", "queue", "last", "text")])

    assert desk.reserved() == {"a:1"}
    assert not desk.client.exists("queue")


def test_server_that_has_forgotten_the_script_gets_it_again(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.settle(acks=["a:1"])

    desk.client.script_flush()
    desk.settle(acks=["a:2"])

    assert not desk.reserved()
    assert desk.client.script_exists(SETTLE.sha) == [True]
