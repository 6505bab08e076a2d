"""A worker's node name and the names of its files, by table."""

from __future__ import annotations

import os

import pytest

from greenq.config.node_names import file_name, node_name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "greenq@box.example.org"),
        ("", "greenq@box.example.org"),
        ("w1", "w1@box.example.org"),
        ("w1@", "w1@box.example.org"),
        ("w1@%h", "w1@box.example.org"),
        ("w1@%n", "w1@box"),
        ("w1@%d", "w1@example.org"),
        ("%n-1@%h", "box-1@box.example.org"),
        ("w1@elsewhere", "w1@elsewhere"),
        ("@elsewhere", "greenq@elsewhere"),
        ("%d", "example.org@box.example.org"),
        ("100%%@here", "100%@here"),
        ("w%%h@here", "w%h@here"),
        ("w%i%I@here", "w0@here"),
        ("w%p@here", f"w{os.getpid()}@here"),
        ("w%x@here", "w%x@here"),
    ],
)
def test_node_name(given: str | None, name: str) -> None:
    assert node_name(given, host="box.example.org") == name


def test_host_without_a_domain() -> None:
    assert node_name("%n@%h", host="box") == "box@box"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("worker.log", "worker.log"),
        ("%p.log", "w1@box.example.org.log"),
        ("/var/log/%n%I.log", "/var/log/w1.log"),
        ("%n-%i.log", "w1-0.log"),
        ("%h/%d/%n", "box.example.org/example.org/w1"),
        ("%%n-%s", "%n-%s"),
    ],
)
def test_file_name(pattern: str, name: str) -> None:
    assert file_name(pattern, "w1@box.example.org") == name
