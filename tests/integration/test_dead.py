"""`greenq dead` on a real server: nothing is lost, doubled or changed on the way back."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from greenq import Greenq
from greenq.errors import AccessRefused, ServerError
from greenq.transport.dead_letters import DeadLetter, DeadLetters, write_letter
from tests.servers import APPS, ROOT, Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15

# The command as `greenq` runs it, and then: what it must not have needed.
COMMAND = """
import sys
from greenq.cli import main
code = main(sys.argv[1:])
assert "gevent" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    client = Greenq("client", broker=server.url, set_as_current=False)
    yield client
    client.close()


@pytest.fixture
def dead(app: Greenq) -> DeadLetters:
    return app.transport.dead


def greenq_dead(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `greenq dead` to its end."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "dead", *options, "-A", "greenq_app"],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}",
            "TEST_BROKER": server.url,
            "TEST_SETTINGS": "{}",
        },
        cwd=APPS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Read the output of --json."""
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def message(task_id: str, task: str = "shared.add", priority: int = 0) -> bytes:
    """Write a message whose bytes change when it is decoded and encoded again."""
    headers = f'{{"id": "{task_id}", "task": "{task}", "lang": "py", "n": 1e2}}'
    properties = f'{{"priority": {priority}, "body_encoding": "base64"}}'
    return f'{{"body": "W10=",  "headers": {headers}, "properties": {properties}}}'.encode()


def bury(server: Server, raw: bytes, *, queue: str = "celery", age_s: float = 0) -> None:
    """Put a message among the dead letters, as a worker does; the newest last."""
    now = datetime.now(UTC) - timedelta(seconds=age_s)
    letter = write_letter(raw, reason="for a test", worker="w@h", now=now)
    server.client.lpush(f"greenq.dead.{queue}", letter)


def ids(letters: Iterator[DeadLetter] | Sequence[DeadLetter]) -> list[str]:
    return [letter.id for letter in letters]


# --- the letters ----------------------------------------------------------------------------------


def test_queues_with_dead_letters_are_found_among_many_keys(
    server: Server, dead: DeadLetters
) -> None:
    server.client.mset({f"other:{number}": "" for number in range(5000)})
    bury(server, b"", queue="web.süd")
    bury(server, b"")

    assert dead.queues() == ("celery", "web.süd")


def test_key_prefix_with_the_characters_of_a_pattern_is_taken_as_it_is(server: Server) -> None:
    app = Greenq(
        "client",
        broker=server.url,
        broker_transport_options={"global_keyprefix": "a[b]*"},
        set_as_current=False,
    )
    server.client.lpush("a[b]*greenq.dead.mail", "x")
    server.client.lpush("abbgreenq.dead.web", "x")

    assert app.transport.dead.queues() == ("mail",)
    app.close()


def test_list_is_newest_first_over_all_queues_and_portions(
    server: Server, dead: DeadLetters
) -> None:
    for number in range(90):
        bury(server, message(str(number)), queue=("a", "b", "c")[number % 3], age_s=100 - number)

    assert ids(dead.list(["a", "b", "c"])) == [str(number) for number in reversed(range(90))]


def test_letters_that_come_while_the_list_is_read_shift_nothing(
    server: Server, dead: DeadLetters
) -> None:
    for number in range(50):
        bury(server, message(str(number)))
    seen = []

    for letter in dead.list(["celery"]):
        seen.append(letter.id)
        bury(server, message("late"))

    assert seen == [str(number) for number in reversed(range(50))]


@pytest.mark.parametrize("priority", [0, 3, 5, 9])
def test_replay_puts_exactly_the_bytes_back_at_their_priority(
    server: Server, app: Greenq, priority: int
) -> None:
    raw = message("a", priority=priority)
    bury(server, raw)

    assert ids(app.transport.dead.replay(["celery"])) == ["a"]

    key = app.transport.keys.queue("celery", app.transport.keys.step_of(priority))
    assert server.client.lrange(key, 0, -1) == [raw]
    assert not server.client.exists("greenq.dead.celery")


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"", b"{broken", b"\0" * 1000, b"[]"])
def test_replay_puts_poison_back_as_it_was(server: Server, dead: DeadLetters, raw: bytes) -> None:
    bury(server, raw)

    assert len(list(dead.replay(["celery"]))) == 1

    assert server.client.lrange("celery", 0, -1) == [raw]
    assert not server.client.exists("greenq.dead.celery")


def test_replayed_messages_are_taken_in_the_order_in_which_they_were_buried(
    server: Server, dead: DeadLetters
) -> None:
    for number in range(70):
        bury(server, message(str(number)))

    list(dead.replay(["celery"]))

    assert server.queued_ids() == [str(number) for number in range(70)]


@pytest.mark.parametrize("action", ["replay", "purge"])
def test_only_what_is_wanted_goes_and_the_rest_stays_in_its_order(
    server: Server, dead: DeadLetters, action: str
) -> None:
    for number in range(100):
        bury(server, message(str(number)))

    gone = ids(getattr(dead, action)(["celery"], lambda letter: int(letter.id) % 3 == 0))

    assert gone == [str(number) for number in range(0, 100, 3)]
    left = [str(number) for number in reversed(range(100)) if number % 3]
    assert ids(dead.list(["celery"])) == left


@pytest.mark.parametrize("limit", [1, 20, 33])
def test_limit_takes_the_oldest(server: Server, dead: DeadLetters, limit: int) -> None:
    for number in range(60):
        bury(server, message(str(number)))

    gone = ids(dead.replay(["celery"], limit=limit))

    assert gone == server.queued_ids() == [str(number) for number in range(limit)]
    assert server.client.llen("greenq.dead.celery") == 60 - limit


@pytest.mark.parametrize("count", [1, 20, 50])
def test_replay_ends_when_everything_is_buried_again_at_once(
    server: Server, dead: DeadLetters, count: int
) -> None:
    for number in range(count):
        bury(server, message(str(number)))
    replayed = []

    for letter in dead.replay(["celery"]):
        replayed.append(letter.id)
        bury(server, letter.raw)

    assert replayed == [str(number) for number in range(count)]
    assert server.client.llen("greenq.dead.celery") == count


def test_equal_letters_are_replayed_once_each(server: Server, dead: DeadLetters) -> None:
    bury(server, message("twin"))
    server.client.lpush("greenq.dead.celery", server.client.lindex("greenq.dead.celery", 0))

    list(dead.replay(["celery"]))

    assert server.queued_ids() == ["twin", "twin"]


def test_letter_that_somebody_else_replays_meanwhile_is_not_doubled(
    server: Server, app: Greenq
) -> None:
    for number in range(60):
        bury(server, message(str(number)))
    mine: list[str] = []
    others: list[str] = []

    for letter in app.transport.dead.replay(["celery"]):
        mine.append(letter.id)
        others += ids(app.transport.dead.replay(["celery"], limit=1))

    assert sorted(mine + others, key=int) == [str(number) for number in range(60)]
    assert others
    assert server.client.llen("celery") == 60


def test_replay_goes_on_after_the_server_has_forgotten_all_scripts(
    server: Server, dead: DeadLetters
) -> None:
    bury(server, message("a"))
    server.client.script_flush()

    assert ids(dead.replay(["celery"])) == ["a"]


def test_letter_stays_when_its_queue_is_a_key_of_another_type(
    server: Server, dead: DeadLetters
) -> None:
    bury(server, message("a"))
    server.client.set("celery", "a string")

    with pytest.raises(ServerError, match="WRONGTYPE"):
        list(dead.replay(["celery"]))

    assert ids(dead.list(["celery"])) == ["a"]


def test_letter_stays_when_the_user_may_not_write_to_the_queue(server: Server) -> None:
    bury(server, message("a"))
    acl = ("ACL", "SETUSER", "clerk", "on", ">pw", "+@all", "~greenq.dead.*", "%R~celery")
    server.client.execute_command(*acl)
    url = server.url.replace("redis://", "redis://clerk:pw@")
    app = Greenq("client", broker=url, set_as_current=False)
    try:
        with pytest.raises((AccessRefused, ServerError)):
            list(app.transport.dead.replay(["celery"]))
        assert ids(app.transport.dead.list(["celery"])) == ["a"]
    finally:
        app.close()
        server.client.execute_command("ACL", "DELUSER", "clerk")

    assert not server.client.exists("celery")


def test_replay_needs_no_room_on_a_full_server(server: Server, dead: DeadLetters) -> None:
    for number in range(30):
        bury(server, message(str(number)))
    server.client.config_set("maxmemory", 1)
    try:
        list(dead.replay(["celery"]))
    finally:
        server.client.config_set("maxmemory", 0)

    assert server.queued_ids() == [str(number) for number in range(30)]
    assert not server.client.exists("greenq.dead.celery")


# --- the command ----------------------------------------------------------------------------------


def test_replayed_task_runs_when_its_cause_is_gone(server: Server, app: Greenq) -> None:
    # Given a task that the worker refuses for its size,
    with greenq_worker(server.url, settings={"task_max_body_bytes": 100}):
        result = app.send_task("shared.echo", ("x" * 1000,))
        wait_until(lambda: server.client.llen("greenq.dead.celery"), WAIT_S)
    (letter,) = objects(greenq_dead(server, "list", "--json"))
    assert (letter["id"], letter["task"], letter["queue"]) == (result.id, "shared.echo", "celery")

    # when its letter is replayed for one that accepts it,
    server.client.delete(f"celery-task-meta-{result.id}")
    done = greenq_dead(server, "replay", "--id", result.id)
    assert (done.stdout, done.returncode) == ("replayed: 1 dead letter (celery 1)\n", 0)
    with greenq_worker(server.url):
        # then it runs.
        assert result.get(timeout=WAIT_S) == [["x" * 1000], {}]
    assert greenq_dead(server, "list").stdout == "no dead letters\n"


def test_list_shows_what_is_chosen_and_counts_it(server: Server) -> None:
    bury(server, message("id-old", "mail.send"), queue="mail", age_s=7200)
    bury(server, message("id-new", "mail.send"), queue="mail")
    bury(server, message("id-web", "web.get"), queue="web", age_s=60)

    lines = greenq_dead(server, "list").stdout.splitlines()
    # However long that took.
    age = lines[1].split()[0]
    assert re.fullmatch(r"\d{1,2}s", age)
    assert [line.split()[:4] for line in lines[:-1]] == [
        ["AGE", "QUEUE", "TASK", "ID"],
        [age, "mail", "mail.send", "id-new"],
        ["1m", "web", "web.get", "id-web"],
        ["2h", "mail", "mail.send", "id-old"],
    ]
    assert lines[-1] == "3 dead letters (mail 2, web 1)"
    chosen = objects(greenq_dead(server, "list", "--json", "--task", "mail.*", "--since", "1h"))
    assert [letter["id"] for letter in chosen] == ["id-new"]
    chosen = objects(greenq_dead(server, "list", "--json", "-Q", "web"))
    assert [letter["id"] for letter in chosen] == ["id-web"]
    limited = greenq_dead(server, "list", "--limit", "1").stdout.splitlines()
    assert limited[-1] == "3 dead letters (mail 2, web 1); 1 shown, --limit shows more"


def test_show_tells_all_of_one_letter(server: Server) -> None:
    bury(server, b"\xff poison")
    (letter,) = objects(greenq_dead(server, "list", "--json"))

    (shown,) = objects(greenq_dead(server, "show", "--id", letter["id"], "--json"))
    assert base64.b64decode(shown["raw"]) == b"\xff poison"
    assert shown["unreadable"]
    text = greenq_dead(server, "show").stdout
    assert r"b'\xff poison'" in text
    assert "for a test" in text
    missing = greenq_dead(server, "show", "--id", "nobody")
    assert missing.returncode == 1
    assert missing.stderr.startswith("greenq dead: no dead letter matches")


def test_purge_of_more_than_one_asks_first(server: Server) -> None:
    for number in range(3):
        bury(server, message(str(number)))

    refused = greenq_dead(server, "purge")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "delete 3 dead letters for good; add --yes" in refused.stderr
    assert server.client.llen("greenq.dead.celery") == 3

    assert greenq_dead(server, "purge", "--id", "1").stdout == "purged: 1 dead letter (celery 1)\n"
    done = greenq_dead(server, "purge", "--yes")
    assert done.stdout == "purged: 2 dead letters (celery 2)\n"
    assert not server.client.exists("greenq.dead.celery", "celery")


def test_server_that_is_away_is_one_line(server: Server) -> None:
    done = greenq_dead(server, "list", "-b", "redis://:secret@127.0.0.1:1/0")

    assert done.returncode == 1
    assert done.stderr.startswith("greenq dead: cannot reach redis://")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_key_of_another_type_is_one_line(server: Server, app: Greenq) -> None:
    server.client.set("greenq.dead.celery", "a string")

    done = greenq_dead(server, "list")

    assert done.returncode == 1
    assert "WRONGTYPE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(redis.ResponseError):
        server.client.llen("greenq.dead.celery")


def test_replay_leaves_what_was_cut_and_says_so(server: Server) -> None:
    whole = b'{"headers": {"id": "a", "task": "t"}}'
    for raw in (bytes(70_000), whole):
        letter = write_letter(raw, reason="poison", worker="w@h", now=datetime.now(UTC))
        server.client.lpush("greenq.dead.celery", letter)

    shown = greenq_dead(server, "show", "--reason", "poison", "--id", "a")
    done = greenq_dead(server, "replay")

    assert "no replay" not in shown.stdout
    assert done.stdout == "replayed: 1 dead letter (celery 1)\n"
    assert done.stderr == "1 not replayed: only the beginning of each message was kept\n"
    assert server.client.lrange("celery", 0, -1) == [whole]
    cut = greenq_dead(server, "show")
    assert "70,000 bytes; only the first 65,536 are kept, so the message cannot be" in cut.stdout
