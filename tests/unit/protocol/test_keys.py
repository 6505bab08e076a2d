from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual.exchange import TopicExchange

from greenq.protocol.keys import (
    Keys,
    binding_member,
    matching_queues,
    topic_matches,
    topic_pattern,
)


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
        (float("inf"), 9),
        (Decimal("1E+999999999"), 9),
        (Decimal("NaN"), 0),
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


TOPICS = [
    ("media.video.#", "media.video.a.b", True),
    # Kombu's pattern does not match this.
    ("media.video.#", "media.video", True),
    ("media.video.#", "media.videos", False),
    ("#.video.#", "video", True),
    ("#.video.#", "media.video.mp4", True),
    ("#.video.#", "media.videos.mp4", False),
    ("a.#.#.b", "a.b", True),
    ("media.*", "media.image", True),
    ("media.*", "media.image.png", False),
    ("media.*", "media", False),
    ("media.*", "media.", False),
    ("*.*", "media.image", True),
    ("#", "anything.at.all", True),
    ("#", "", True),
    ("*", "", False),
    ("a+b", "aab", False),
    ("a+b", "a+b", True),
    ("a*", "aaa", False),
    ("a*", "a*", True),
    ("media", "media.video", False),
]


@pytest.mark.parametrize(("binding_key", "routing_key", "matches"), TOPICS)
def test_a_topic_reaches_the_same_queues_from_greenq_and_from_celery(
    binding_key, routing_key, matches
):
    assert topic_matches(binding_key, routing_key) is matches
    # As kombu reads a pattern.
    assert bool(re.match(topic_pattern(binding_key), routing_key)) is matches


def takes(binding, routing):
    """Compare words as AMQP says: `*` is one, `#` any number."""
    if not binding:
        return not routing
    if binding[0] == "#":
        return takes(binding[1:], routing) or (bool(routing) and takes(binding, routing[1:]))
    if not routing:
        return False
    same = bool(routing[0]) if binding[0] == "*" else binding[0] == routing[0]
    return same and takes(binding[1:], routing[1:])


BINDING_WORDS = st.lists(st.sampled_from(["a", "b", "a-b", "", "*", "#"]), min_size=1, max_size=6)
ROUTING_WORDS = st.lists(st.sampled_from(["a", "b", "a-b", ""]), min_size=1, max_size=6)


@given(BINDING_WORDS, ROUTING_WORDS)
def test_topics_are_compared_word_by_word(binding, routing):
    binding_key, routing_key = ".".join(binding), ".".join(routing)
    expected = takes(binding, routing)
    assert topic_matches(binding_key, routing_key) is expected
    assert bool(re.match(topic_pattern(binding_key), routing_key)) is expected


@given(BINDING_WORDS.filter(lambda words: "#" not in words))
def test_without_a_number_sign_celery_s_workers_write_the_same_pattern(binding):
    binding_key = ".".join(binding)
    assert topic_pattern(binding_key) == TopicExchange(None).key_to_pattern(binding_key)


def test_a_binding_leads_nowhere_if_it_is_malformed_or_could_be_slow():
    bindings = [
        b"a\x06\x16\x06\x16direct",
        b"*\x06\x16^[^\\.]+$\x06\x16topic",
        # Someone else's pattern would take for ever.
        b"b\x06\x16^(a|a?)+$\x06\x16evil",
        b"\xff",
        b"a",
        ("#.#" + ".#" * 150 + "\x06\x16x\x06\x16long").encode(),
    ]
    assert matching_queues(bindings, "a", Keys().sep) == ["topic", "direct"]
    assert matching_queues(bindings, "a" * 100, Keys().sep) == ["topic"]
