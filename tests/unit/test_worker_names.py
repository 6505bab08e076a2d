"""A worker's node name, by table."""

from __future__ import annotations

import pytest

from greenq.worker import node_name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "greenq@box.example.org"),
        ("", "greenq@box.example.org"),
        ("w1", "w1@box.example.org"),
        ("w1@%h", "w1@box.example.org"),
        ("w1@%n", "w1@box"),
        ("w1@%d", "w1@example.org"),
        ("%n-1@%h", "box-1@box.example.org"),
        ("w1@elsewhere", "w1@elsewhere"),
        ("%d", "example.org@box.example.org"),
        ("100%%@here", "100%@here"),
        ("w%%h@here", "w%h@here"),
    ],
)
def test_node_name(given: str | None, name: str) -> None:
    assert node_name(given, host="box.example.org") == name


def test_host_without_a_domain() -> None:
    assert node_name("%n@%h", host="box") == "box@box"
