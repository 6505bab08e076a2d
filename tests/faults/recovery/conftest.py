"""The recovery tests' stages: on the shared server, or on one that a test may damage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.proxy import proxy_before
from tests.faults.recovery.line import line_to
from tests.faults.recovery.stage import Stage
from tests.servers import Server, valkey


@contextmanager
def stage_on(server: Server, folder: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        line = stack.enter_context(line_to(server.url))
        proxy = stack.enter_context(proxy_before(line.url))
        made = Stage(server, line, proxy, folder)
        stack.callback(made.close)
        try:
            yield made
        finally:
            # Shown by pytest when the test fails.
            sys.stderr.write(made.logs())


@pytest.fixture
def stage(server: Server, tmp_path: Path) -> Iterator[Stage]:
    """The shared server, with the means to watch workers fail."""
    with stage_on(server, tmp_path) as made:
        yield made


@pytest.fixture
def own_stage(tmp_path: Path) -> Iterator[Stage]:
    """The same with a separate server, which the test may fill, freeze and configure."""
    with valkey() as server, stage_on(server, tmp_path) as made:
        yield made
