"""The script that settles messages, on a real server: what it does, and what it leaves alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
import redis

from greenq.errors import AccessRefused, OperationalError, ServerError
from greenq.protocol.keys import Keys
from greenq.transport.client import Client, Connection
from greenq.transport.dead_letters import DEAD_LIMIT, DEAD_LIMITS
from greenq.transport.settle import (
    BEGIN,
    KEEP,
    RUN_ALONE,
    SETTLE,
    Fence,
    Move,
    Publication,
    Settled,
    Settlement,
    StateWrite,
    settle,
    settle_arguments,
)
from tests.servers import Server
from tests.support import wait_until

pytestmark = pytest.mark.smoke

KEYS = Keys()
OWN = Fence("a")
SUCCESS = json.dumps({"status": "SUCCESS", "result": 1})
FAILURE = json.dumps({"status": "FAILURE", "result": None})
REVOKED = json.dumps({"status": "REVOKED", "result": None})
RETRY = json.dumps({"status": "RETRY", "result": None})


def success(key: str = "r", seconds: int = 60, payload: str | bytes = SUCCESS) -> StateWrite:
    return StateWrite(key, f"s{seconds}", payload)


def final(key: str = "r", seconds: int = 60, payload: str | bytes = FAILURE) -> StateWrite:
    return StateWrite(key, f"f{seconds}", payload)


def passing(key: str = "r", seconds: int = 60, payload: str | bytes = RETRY) -> StateWrite:
    return StateWrite(key, f"n{seconds}", payload)


def moving(*move: object, result: StateWrite | None = None) -> Settlement:
    return Settlement.moving(Move(*move), result)  # type: ignore[arg-type]


class Desk:
    """A server with reserved messages of the owner `a`, and a connection to settle them."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.client = server.client
        self.connection = connection

    def reserve(self, *tags: str) -> None:
        self.client.hset("greenq.owner.a", mapping={"next": 1000, "call": 1})
        for tag in tags:
            self.client.hset("unacked", tag, f"record of {tag}")
            self.client.zadd("unacked_index", {tag: 1})

    def reserved(self) -> set[str]:
        return {tag.decode() for tag in self.server.unacked()}

    def begun(self) -> set[str]:
        return {tag.decode() for tag in self.client.smembers("greenq.begun.a")}

    def settle(
        self,
        *entries: Settlement,
        publications: Sequence[Publication] = (),
        fence: Fence | None = OWN,
        dead_limit: int = DEAD_LIMIT,
    ) -> Settled:
        if dead_limit == DEAD_LIMIT:
            return settle(self.connection, KEYS, entries, publications, fence=fence)
        names, arguments = settle_arguments(KEYS, entries, publications, fence=fence)
        arguments[3] = dead_limit
        unpublished, misplaced, _crowded, *not_held = self.connection.script(
            SETTLE, names, arguments
        )
        return Settled(frozenset(n - 1 for n in not_held), unpublished.decode(), misplaced.decode())

    def texts(self, key: str) -> list[str]:
        return [text.decode() for text in self.client.lrange(key, 0, -1)]


DEAD = DEAD_LIMITS.side(datetime(2031, 1, 2, tzinfo=UTC))
DONE = Settled(frozenset(), "", "")


@pytest.fixture
def desk(server: Server) -> Iterator[Desk]:
    with closing(Client(server.url).connection()) as connection:
        desk = Desk(server, connection)
        desk.reserve()
        yield desk


def test_all_of_a_batch_is_settled_in_one_call(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "a:3", "a:4", "a:5", "b:1")
    desk.client.rpush("queue", "older", "newer")

    settled = desk.settle(
        Settlement("a:1", result=success("r1", 60, "one")),
        moving("a:2", "queue", "next", "taken next", result=passing("r2", 0, b"\xff\x00")),
        moving("a:3", "queue", "last", b"taken last"),
        moving("a:4", "parked", 1924992000.25, "1|later"),
        Settlement("a:5", BEGIN),
    )

    assert settled == DONE
    assert desk.reserved() == {"b:1"}
    assert desk.begun() == {"a:5"}
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
        states = [success("r1", 60, "one"), final("r2"), final("r3", 0, "x")]
        desk.settle(*(Settlement("", KEEP, result=state) for state in states), fence=None)

        messages = [heard.get_message(timeout=5) for _ in range(2)]

    # What was not stored is not announced.
    assert [(each["channel"], each["data"]) for each in messages if each] == [
        (b"r1", b"one"),
        (b"r3", b"x"),
    ]


# --- whose state is stored ----------------------------------------------------------------------

OTHERS = {
    "nothing": None,
    "success": SUCCESS,
    "success behind its id": json.dumps({"task_id": "id", "status": "SUCCESS"}),
    "success in msgpack": b"\x82\xa6status\xa7SUCCESS\xa6result\x01",
    "failure": FAILURE,
    "revoked": REVOKED,
    "failure in msgpack": b"\x82\xa6status\xa7FAILURE\xa6result\x01",
    "retry": RETRY,
    # What a task says about itself is no status.
    "progress": json.dumps({"status": "PROGRESS", "result": {"status": "SUCCESS"}}),
    "no text": "",
}

# What is never replaced, by whom: a success by nobody; another final state by those who do not hold
# the message, and by the passing states of what has no record.
SUCCESSES = {"success", "success behind its id", "success in msgpack"}
FINAL = SUCCESSES | {"failure", "revoked", "failure in msgpack"}
ALL = set(OTHERS)


@pytest.mark.parametrize(
    ("pattern", "listened"), [(False, ["r3", "r1400"]), (True, [f"r{n}" for n in range(1500)])]
)
def test_states_of_a_batch_are_announced_where_somebody_listens(
    desk: Desk, pattern: bool, listened: list[str]
) -> None:
    with desk.client.pubsub(ignore_subscribe_messages=True) as listener:
        if pattern:
            listener.psubscribe("r*")
        else:
            listener.subscribe(*listened)
        # The server has answered all of it.
        for _ in listened[: 1 if pattern else None]:
            assert listener.get_message(timeout=5) is None
        desk.client.config_resetstat()

        states = [success(f"r{number}") for number in range(1500)]
        desk.settle(*(Settlement("", KEEP, result=state) for state in states), fence=None)

        messages = [listener.get_message(timeout=5) for _ in listened]

    assert [each["channel"].decode() for each in messages if each] == listened
    published = desk.client.info("commandstats")["cmdstat_publish"]
    assert published["calls"] == len(listened)


KEPT = {
    ("record", "s"): SUCCESSES, ("record", "f"): SUCCESSES, ("record", "n"): SUCCESSES,
    ("stub", "s"): SUCCESSES, ("stub", "f"): SUCCESSES, ("stub", "n"): SUCCESSES,
    ("no tag", "s"): SUCCESSES, ("no tag", "f"): SUCCESSES, ("no tag", "n"): FINAL,
    ("gone", "s"): FINAL, ("gone", "f"): ALL, ("gone", "n"): ALL,
    # Who could not run replaces no end at all.
    ("record", "u"): FINAL, ("stub", "u"): FINAL, ("no tag", "u"): FINAL, ("gone", "u"): ALL,
}  # fmt: skip


@pytest.mark.parametrize(("whose", "kind"), KEPT)
@pytest.mark.parametrize("action", ["a", "k", "m"])
@pytest.mark.parametrize("seconds", [60, 0])
def test_state_is_stored_by_whose_it_is_and_what_is_there(
    desk: Desk, whose: str, kind: str, action: str, seconds: int
) -> None:
    tag = "" if whose == "no tag" else "a:1"
    payload = {"s": SUCCESS, "f": FAILURE, "u": FAILURE, "n": RETRY}[kind] + " "
    for before, text in OTHERS.items():
        desk.client.flushall()
        desk.reserve()
        if whose == "record":
            desk.reserve("a:1")
        elif whose == "stub":
            desk.client.sadd("greenq.begun.a", "a:1")
        if text is not None:
            desk.client.set("r", text)
        move = Move(tag, "queue", "last", "text") if action == "m" else None
        state = StateWrite("r", f"{kind}{seconds}", payload)

        settled = desk.settle(Settlement(tag, action, result=state, move=move))  # type: ignore[arg-type]

        is_kept = before in KEPT[whose, kind]
        expected = text if is_kept else payload
        found = desk.client.get("r")
        assert found == (expected.encode() if isinstance(expected, str) else expected), before
        assert desk.client.ttl("r") == (
            (-2 if text is None else -1) if is_kept else seconds or -1
        ), before
        assert settled.not_held == ({0} if whose == "gone" else set())
        # Its message goes its way, whatever became of the state.
        assert desk.texts("queue") == (["text"] if action == "m" and whose != "gone" else [])
        is_left = action == "k"
        assert desk.reserved() == ({"a:1"} if whose == "record" and is_left else set())
        assert desk.begun() == ({"a:1"} if whose == "stub" and is_left else set())


@pytest.mark.parametrize("rule", ["s60", "f60", "n60", "s0", "f0", "n0"])
def test_state_replaces_a_key_of_another_type(desk: Desk, rule: str) -> None:
    # It must not stop the others, whose messages would stay reserved without a result.
    desk.reserve("a:1", "a:2")
    desk.client.rpush("r1", "a list")

    desk.settle(
        Settlement("a:1", result=StateWrite("r1", rule, "one")),
        Settlement("a:2", result=success("r2")),
    )

    assert desk.client.mget("r1", "r2") == [b"one", SUCCESS.encode()]
    assert not desk.reserved()


# --- stubs --------------------------------------------------------------------------------------


def test_message_that_is_acknowledged_early_becomes_a_stub_until_its_outcome(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")

    assert desk.settle(Settlement("a:1", BEGIN)) == DONE
    # Also when the answer got lost.
    assert desk.settle(Settlement("a:1", BEGIN)) == DONE

    assert (desk.reserved(), desk.begun()) == ({"a:2"}, {"a:1"})
    # A set that nobody ends goes by itself.
    assert 0 < desk.client.ttl("greenq.begun.a") <= 7 * 86400
    assert desk.settle(Settlement("a:1", KEEP, result=passing(payload=RETRY))) == DONE
    assert desk.settle(Settlement("a:1", result=success())) == DONE
    assert (desk.reserved(), desk.begun()) == ({"a:2"}, set())
    assert desk.client.get("r") == SUCCESS.encode()
    # What comes late finds nothing.
    assert desk.settle(Settlement("a:1", result=final())).not_held == {0}
    assert desk.client.get("r") == SUCCESS.encode()


def test_early_acknowledgement_of_what_is_gone_leaves_no_stub(desk: Desk) -> None:
    assert desk.settle(Settlement("a:1", BEGIN)).not_held == {0}
    assert desk.begun() == set()


def test_stub_moves_as_a_record_does(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.settle(Settlement("a:1", BEGIN))
    move = ("a:1", "queue", "last", "next run")

    assert desk.settle(moving(*move, result=passing())) == DONE
    assert desk.settle(moving(*move, result=passing())).not_held == {0}

    assert desk.texts("queue") == ["next run"]
    assert desk.begun() == set()


def test_tag_of_another_owner_has_no_stub_here(desk: Desk) -> None:
    desk.client.sadd("greenq.begun.b", "b:1")

    assert desk.settle(Settlement("b:1", result=final())).not_held == {0}

    assert not desk.client.exists("r")


# --- on whose behalf ----------------------------------------------------------------------------


def test_server_that_does_not_know_the_owner_does_nothing(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.client.delete("greenq.owner.a")

    with pytest.raises(ServerError, match="FORGOTTEN") as refused:
        desk.settle(
            Settlement("a:1", result=success()),
            moving("a:2", "queue", "last", "text"),
            Settlement("", RUN_ALONE),
        )

    # It is right again as soon as the owner has made itself known.
    assert refused.value.passes
    assert desk.reserved() == {"a:1", "a:2"}
    assert not desk.client.exists("r", "queue")
    # Others who act on nobody's behalf need no owner.
    assert desk.settle(Settlement("a:1"), fence=Fence("")) == DONE


@pytest.mark.parametrize("now", ["9.75", None, "9.750001"])
def test_recovery_acts_while_the_lease_is_the_one_that_was_claimed(
    desk: Desk, now: str | None
) -> None:
    desk.reserve("a:1")
    desk.client.delete("greenq.owner.a")
    if now is not None:
        desk.client.zadd("greenq.leases", {"a|node|": now})
    entry = moving("a:1", "queue", "next", "text", result=final())

    if now == "9.75":
        assert desk.settle(entry, fence=Fence("a", "a|node|", "9.75")) == DONE
        assert desk.texts("queue") == ["text"]
    else:
        with pytest.raises(ServerError, match="LAPSED") as refused:
            desk.settle(entry, fence=Fence("a", "a|node|", "9.75"))
        assert refused.value.passes
        assert desk.reserved() == {"a:1"}
        assert not desk.client.exists("r", "queue")


def test_what_runs_alone_is_announced_and_taken_back(desk: Desk) -> None:
    desk.reserve("a:1")

    assert desk.settle(Settlement("a:1", RUN_ALONE)) == DONE
    assert desk.client.hget("greenq.owner.a", "alone") == b"a:1"
    assert desk.reserved() == {"a:1"}

    # What is somebody else's does not run alone here.
    assert desk.settle(Settlement("a:2", RUN_ALONE)).not_held == {0}
    assert desk.client.hget("greenq.owner.a", "alone") == b"a:1"

    assert desk.settle(Settlement("", RUN_ALONE)) == DONE
    assert not desk.client.hexists("greenq.owner.a", "alone")


def test_states_alone_touch_no_other_key(desk: Desk) -> None:
    names, _ = settle_arguments(KEYS, [Settlement("", KEEP, result=success())], fence=None)

    assert names == ["r"]
    assert desk.settle(Settlement("", KEEP, result=success()), fence=None) == DONE
    assert desk.client.get("r") == SUCCESS.encode()


# --- results on a server of their own -----------------------------------------------------------


@pytest.mark.parametrize("is_held", [True, False])
def test_states_go_to_their_own_server_by_whose_they_are(desk: Desk, is_held: bool) -> None:
    # Another database is as good as another server.
    url = desk.server.url.removesuffix("/0") + "/1"
    entries = [
        Settlement("a:1", result=success("r1")),
        moving("a:2", "queue", "last", "text", result=passing("r2")),
        Settlement("a:3", result=final("r3")),
        Settlement("", KEEP, result=final("r4")),
    ]
    if is_held:
        desk.reserve("a:1", "a:2", "a:3")

    with closing(Client(url).connection()) as results:
        settled = settle(desk.connection, KEYS, entries, fence=OWN, results=results)
        stored = results.call("MGET", "r1", "r2", "r3", "r4")

    everywhere = [SUCCESS.encode(), RETRY.encode(), FAILURE.encode(), FAILURE.encode()]
    assert stored == (everywhere if is_held else [everywhere[0], None, None, everywhere[3]])
    assert settled.not_held == (set() if is_held else {0, 1, 2})
    assert desk.reserved() == set()
    assert desk.texts("queue") == (["text"] if is_held else [])
    assert not desk.client.exists("r1", "r2", "r3", "r4")


def test_own_server_of_results_gets_nothing_from_whom_the_broker_has_forgotten(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.client.delete("greenq.owner.a")
    url = desk.server.url.removesuffix("/0") + "/1"

    with closing(Client(url).connection()) as results:
        with pytest.raises(ServerError, match="FORGOTTEN"):
            settle(
                desk.connection,
                KEYS,
                [Settlement("a:1", result=success())],
                fence=OWN,
                results=results,
            )
        assert results.call("EXISTS", "r") == 0
    assert desk.reserved() == {"a:1"}


# --- many, and repeated -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_any_number_of_tags_is_acknowledged(desk: Desk, count: int) -> None:
    tags = [f"a:{number}" for number in range(count)]
    desk.client.hset("unacked", mapping=dict.fromkeys([*tags, "b:1"], "record"))
    desk.client.zadd("unacked_index", dict.fromkeys([*tags, "b:1"], 1))

    assert desk.settle(*map(Settlement, tags)) == DONE

    assert desk.reserved() == {"b:1"}


def test_largest_batch_is_settled(desk: Desk) -> None:
    # As the outbox writes it, each with everything.
    entries = [
        moving(f"a:{number}", f"q{number}", "last", "text", result=success(f"r{number}"))
        for number in range(1000)
    ]
    desk.reserve(*(entry.tag for entry in entries))
    publications = [Publication("channel", "text")] * 1000

    assert desk.settle(*entries, publications=publications) == DONE
    # The owner's own is the last one.
    assert desk.client.dbsize() == 2001


def test_what_was_not_held_is_named_by_its_place(desk: Desk) -> None:
    desk.reserve("a:2", "a:5")

    settled = desk.settle(
        *(Settlement(f"a:{number}", result=final(f"r{number}")) for number in range(1, 4)),
        Settlement("", KEEP, result=final("r4")),
        moving("a:5", "queue", "last", "text"),
        moving("a:6", "queue", "last", "text"),
    )

    assert settled.not_held == {0, 2, 5}
    assert sorted(desk.client.keys("r*")) == [b"r2", b"r4"]
    assert desk.texts("queue") == ["text"]


def test_news_is_published_behind_all_else(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    with desk.client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("r1", "news")
        wait_until(lambda: desk.client.pubsub_numsub("news")[0][1] == 1)

        settled = desk.settle(
            Settlement("a:1", result=success("r1", 60, "one")),
            moving("a:2", "queue", "next", "text"),
            publications=[Publication("news", "first"), Publication("news", "second")],
        )

        told: list[tuple[bytes, bytes]] = []

        def all_told() -> bool:
            message = heard.get_message()
            if message and message["type"] == "message":
                told.append((message["channel"], message["data"]))
            return len(told) == 3

        wait_until(all_told)
    assert told == [(b"r1", b"one"), (b"news", b"first"), (b"news", b"second")]
    assert (settled, desk.reserved()) == (DONE, set())


def test_news_that_may_not_be_published_is_told_and_stops_nothing(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.client.acl_setuser(
        "mute", enabled=True, passwords=["+pw"], commands=["+@all"], keys=["*"],
        reset_channels=True, channels=["r*"],
    )  # fmt: skip
    desk.connection.call("AUTH", "mute", "pw")

    settled = desk.settle(
        Settlement("a:1", result=success("r1", 60, "one")),
        publications=[Publication("news", "text")],
    )

    assert "permission" in settled.unpublished
    assert desk.client.get("r1") == b"one"
    assert desk.reserved() == set()


def test_message_whose_record_is_gone_is_not_moved(desk: Desk) -> None:
    desk.reserve("a:2")
    # Its index entry alone does not make it ours.
    desk.client.zadd("unacked_index", {"a:1": 1})

    settled = desk.settle(
        moving("a:1", "queue", "last", "somebody else's"), moving("a:2", "queue", "last", "ours")
    )

    assert settled.not_held == {0}
    assert desk.texts("queue") == ["ours"]


def test_call_whose_answer_was_lost_may_be_repeated(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "a:3")
    batch = (
        Settlement("a:1", result=success("r1", 60, SUCCESS)),
        moving("a:2", "queue", "last", "text"),
        moving("a:3", "dead", DEAD, "letter"),
    )

    not_held = [desk.settle(*batch).not_held for _ in range(3)]

    assert not_held == [set(), {0, 1, 2}, {0, 1, 2}]
    assert (desk.texts("queue"), desk.texts("dead")) == (["text"], ["letter"])
    assert desk.client.get("r1") == SUCCESS.encode()


def test_message_without_a_tag_is_just_put_there(desk: Desk) -> None:
    desk.reserve("a:1")

    settled = desk.settle(
        Settlement("", KEEP, result=success("r1", 60, "one")),
        moving("", "queue", "last", "new"),
        moving("", "parked", 5.0, "1|later"),
    )

    assert settled == DONE
    assert desk.texts("queue") == ["new"]
    assert desk.client.zscore("parked", "1|later") == 5
    assert desk.reserved() == {"a:1"}


def test_dead_letters_are_cut_to_the_limit_the_newest_first(desk: Desk) -> None:
    tags = [f"a:{number}" for number in range(5)]
    desk.reserve(*tags, "b:1")
    desk.client.rpush("queue", *"0123456")

    desk.settle(
        *(moving(tag, "dead", DEAD, f"letter {tag}") for tag in tags),
        moving("b:1", "queue", "last", "text"),
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
        (Move("a:1", "wrong", DEAD, "text"), "no list but a string"),
        (Move("a:1", "wrong", 5.0, "text"), "no zset but a string"),
    ],
)
@pytest.mark.parametrize("is_stub", [False, True])
def test_message_whose_goal_has_another_type_stays_reserved_and_the_rest_is_done(
    desk: Desk, move: Move, kind: str, is_stub: bool
) -> None:
    desk.client.set("wrong", "a string")
    desk.reserve("a:1", "a:2", "a:3")
    if is_stub:
        desk.settle(Settlement("a:1", BEGIN))

    settled = desk.settle(
        Settlement.moving(move),
        moving("a:2", "q", "last", "two"),
        Settlement("a:3", result=success("r1", 60, "one")),
    )

    assert settled == Settled(frozenset(), "", f"WRONGTYPE wrong is {kind}", frozenset({0}))
    assert desk.reserved() | desk.begun() == {"a:1"}
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


@pytest.mark.parametrize("rule", ["s60", "f0", "n60"])
def test_server_without_memory_takes_all_of_a_batch_or_nothing(desk: Desk, rule: str) -> None:
    desk.reserve("a:1", "a:2")
    batch = (
        Settlement("a:1", result=StateWrite("r1", rule, "one")),
        moving("a:2", "queue", "last", "text"),
        moving("", "queue", "last", "new"),
    )

    with no_memory(desk.client), pytest.raises(ServerError, match=r"^the server's memory") as no:
        desk.settle(*batch)

    # Nothing is acknowledged, moved or announced without the result.
    assert no.value.passes
    assert no.value.reply.startswith("OOM ")
    assert desk.reserved() == {"a:1", "a:2"}
    assert not desk.client.exists("r1", "queue")
    assert desk.settle(*batch) == DONE
    assert not desk.reserved()


def test_server_without_memory_still_lets_messages_go(desk: Desk) -> None:
    # Otherwise a server that is full of records would stay full. In any order: what is early
    # acknowledged, or runs alone, must not stop what ends.
    endings = [Settlement("a:1"), moving("a:2", "queue", "last", "text"), Settlement("a:3", BEGIN)]
    endings += [Settlement("a:4", RUN_ALONE), Settlement("", RUN_ALONE)]

    for some in itertools.chain.from_iterable(itertools.permutations(endings, n) for n in (1, 2)):
        desk.reserve("a:1", "a:2", "a:3", "a:4")
        with no_memory(desk.client):
            assert desk.settle(*some) == DONE
        actions = {entry.action for entry in some}
        assert ("a:1" not in desk.reserved()) == ("a" in actions)
        assert ("a:2" not in desk.reserved()) == ("m" in actions)
        assert ("a:3" not in desk.reserved()) == ("b" in actions)
        desk.client.flushall()


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
        settled = mute.settle(Settlement("a:1", result=success("r1", 60, "one")))
        assert "publish" in settled.unpublished

    assert desk.client.get("r1") == b"one"
    assert desk.reserved() == set()


@pytest.mark.parametrize("rules", [("~*", "-set"), ("~u*", "~greenq*", "~r1")])
def test_nothing_is_acknowledged_when_the_user_may_not_store(
    desk: Desk, rules: tuple[str, ...]
) -> None:
    # The last one may store one result, and not the other.
    desk.reserve("a:1", "a:2")

    with user(desk, *rules) as poor, pytest.raises(AccessRefused):
        poor.settle(
            Settlement("a:1", result=success("r1")),
            moving("a:2", "u-queue", "last", "text", result=success("r2")),
        )

    assert desk.reserved() == {"a:1", "a:2"}
    assert not desk.client.exists("u-queue")


@pytest.mark.parametrize("rules", [("~*", "-sadd"), ("~unacked*", "~greenq.owner*")])
def test_message_stays_reserved_when_the_user_may_not_leave_a_stub(
    desk: Desk, rules: tuple[str, ...]
) -> None:
    desk.reserve("a:1")

    with user(desk, *rules) as poor, pytest.raises(OperationalError):
        poor.settle(Settlement("a:1", BEGIN))

    assert desk.reserved() == {"a:1"}


@pytest.mark.parametrize(
    "rules", [("~*", "-lpush"), ("~*", "-hdel"), ("~*", "-zrem"), ("~unacked*", "~greenq*")]
)
def test_message_stays_reserved_when_the_user_may_not_move_it(
    desk: Desk, rules: tuple[str, ...]
) -> None:
    desk.reserve("a:1")

    with user(desk, *rules) as poor, pytest.raises(OperationalError):
        poor.settle(moving("a:1", "queue", "last", "text"))

    assert desk.reserved() == {"a:1"}
    assert not desk.client.exists("queue")


def test_server_that_has_forgotten_the_script_gets_it_again(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.settle(Settlement("a:1"))

    desk.client.script_flush()
    desk.settle(Settlement("a:2"))

    assert not desk.reserved()
    assert desk.client.script_exists(SETTLE.sha) == [True]
