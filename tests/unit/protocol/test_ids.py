"""Ids: UUIDs that differ, and that are the same however one asks for them."""

from __future__ import annotations

import tracemalloc
import uuid
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.protocol.ids import TaskIds, new_id, sent_at, tag_of, tag_prefix

KEY = bytes(range(16))
# Across the border between two of the blocks in which they are computed.
RANGES = [
    range(3),
    range(600),
    range(250, 260),
    range(256, 512),
    range(5, 5),
    range(2**61, 2**61 + 5),
]


def test_new_ids_are_random_uuids() -> None:
    ids = [new_id() for _ in range(2000)]

    assert len(set(ids)) == 2000
    for text in ids:
        read = uuid.UUID(text)
        assert (str(read), read.version, read.variant) == (text, 4, uuid.RFC_4122)
    # Each digit that is not fixed takes every value.
    columns = [set(column) for column in zip(*ids, strict=True)]
    assert {len(column) for column in columns} == {1, 4, 16}
    assert [len(column) for column in columns].count(16) == 30


@pytest.mark.parametrize("numbers", RANGES, ids=str)
def test_ids_are_the_same_by_index_by_slice_and_in_turn(numbers: range) -> None:
    ids = TaskIds(KEY, numbers)

    in_turn = list(ids)
    assert [ids[index] for index in range(len(ids))] == in_turn
    assert [TaskIds(KEY)[number] for number in numbers] == in_turn
    assert len(set(in_turn)) == len(ids) == len(numbers)
    assert {uuid.UUID(task_id).version for task_id in in_turn} <= {4}
    for part in (slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1)):
        assert list(ids[part]) == in_turn[part]
    assert in_turn == [] or ids[-1] == in_turn[-1]


def test_ids_end_where_they_end() -> None:
    with pytest.raises(IndexError):
        TaskIds(KEY, range(3))[3]


def test_ids_of_two_sendings_differ() -> None:
    assert set(islice(TaskIds(), 1000)).isdisjoint(islice(TaskIds(), 1000))


def test_any_number_of_ids_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        ids = TaskIds()[: 10**12]
        assert len({ids[0], ids[10**12 - 1], ids[10**6 : 10**12][5]}) == 3
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_delivery_tag_tells_when_it_was_sent() -> None:
    tag = tag_of(tag_prefix(1795220639.9652), new_id())

    assert sent_at(tag) == 1795220639.965
    assert uuid.UUID(tag).version == 7


def test_tags_of_one_moment_differ_as_their_ids_do() -> None:
    prefix = tag_prefix(1795220639.9652)
    tags = {tag_of(prefix, new) for new in TaskIds()[:10_000]}

    assert len(tags) == 10_000
    assert {uuid.UUID(tag).variant for tag in tags} == {uuid.RFC_4122}


@given(st.text() | st.builds(lambda: str(uuid.uuid4())))
def test_other_tags_tell_no_time(tag: str) -> None:
    assert sent_at(tag) is None
