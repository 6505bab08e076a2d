"""Fixtures of all tests that need a real server, and the profile of those that use Hypothesis."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import OTEL, Server, valkey

sys.path.append(str(OTEL))

# A slow machine fails no example: what hangs is ended by the time limit on the whole test.
settings.register_profile("greenq", deadline=None)
# For `make test`: few examples, which find what is plainly wrong.
settings.register_profile("quick", deadline=None, max_examples=15)
settings.load_profile("greenq")

# What runs in a shell's background, or under nohup, ignores these, and so would all that the tests
# start and then end by one of them.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _is_int = _number == signal.SIGINT
        signal.signal(_number, signal.default_int_handler if _is_int else signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """One Valkey for the whole run; not flushed, so workers of a whole module may use it."""
    with valkey() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The shared Valkey, empty at the start of each test."""
    shared_server.flush()
    return shared_server
