from __future__ import annotations

import re

import pytest

from greenq.protocol.keys import Keys, binding_member, topic_pattern


@pytest.mark.parametrize(
    ("priority", "step"),
    [
        (-1, 0),
        (0, 0),
        (2, 0),
        (3, 3),
        (5, 3),
        (6, 6),
        (8, 6),
        (9, 9),
        (255, 9),
        (4.9, 3),
        ("4", 3),
        (None, 0),
        ("high", 0),
        ([], 0),
        (float("nan"), 0),
        (float("inf"), 0),
    ],
)
def test_step_is_the_largest_not_above_the_priority(priority, step):
    assert Keys().step_of(priority) == step


def test_steps_of_a_queue_are_in_the_order_they_are_served():
    assert Keys(prefix="p:").queue_steps("q") == (
        "p:q",
        "p:q\x06\x163",
        "p:q\x06\x166",
        "p:q\x06\x169",
    )


def test_steps_follow_the_setting():
    keys = Keys(sep="|", steps=(0, 5))
    assert keys.queue_steps("q") == ("q", "q|5")
    assert keys.step_of(4) == 0


def test_every_broker_key_has_the_prefix():
    keys = Keys(prefix="app:")
    assert keys.unacked == "app:unacked"
    assert keys.unacked_index == "app:unacked_index"
    assert keys.unacked_mutex == "app:unacked_mutex"
    assert keys.binding("x") == "app:_kombu.binding.x"
    assert keys.permanent_binding("x") == "app:_kombu.binding_permanent.x"
    assert keys.binding_deadlines == "app:_kombu.binding_deadlines"
    assert keys.inbox("q") == "app:greenq.inbox.q"
    assert keys.dead("q") == "app:greenq.dead.q"
    assert keys.result("i") == "celery-task-meta-i"


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("", "celery-task-meta-i"),
        ("r", "r_celery-task-meta-i"),
        ("r:", "r:celery-task-meta-i"),
        ("r_", "r_celery-task-meta-i"),
        ("r-", "r-celery-task-meta-i"),
        ("r.", "r.celery-task-meta-i"),
    ],
)
def test_result_prefix_gets_an_underscore_unless_it_ends_in_a_separator(prefix, key):
    assert Keys(result_prefix=prefix).result("i") == key


def test_binding_member_joins_with_the_separator():
    assert binding_member("rk", "", "q") == "rk\x06\x16\x06\x16q"
    assert binding_member("rk", "^rk$", "q", sep="|") == "rk|^rk$|q"


@pytest.mark.parametrize(
    ("binding_key", "routing_key", "matches"),
    [
        ("media.video.#", "media.video.a.b", True),
        ("media.video.#", "media.video", False),
        ("media.*", "media.image", True),
        ("media.*", "media.image.png", False),
        ("#", "anything.at.all", True),
        ("a+b", "aab", False),
        ("a+b", "a+b", True),
    ],
)
def test_topic_pattern_matches_what_celery_routes(binding_key, routing_key, matches):
    assert bool(re.match(topic_pattern(binding_key), routing_key)) is matches
