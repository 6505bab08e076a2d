"""What `result_extended` stores, read with a handle that was made from the id alone."""

from __future__ import annotations

import pytest

from tests.interop.conftest import BOTH_WAYS, open_way
from tests.servers import Server

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("direction", BOTH_WAYS)
def test_handle_of_an_id_tells_of_the_task(direction: str, server: Server) -> None:
    with open_way(direction, server, result_extended=True) as way:
        sent = way.client.send_task("shared.add", (1,), {"y": 2})
        assert sent.get(timeout=15) == 3

        read = way.client.AsyncResult(sent.id)
        found = (read.name, list(read.args), read.kwargs, read.queue, read.retries)
        assert found == ("shared.add", [1], {"y": 2}, "celery", 0)
        assert "@" in read.worker


def test_without_the_setting_it_tells_nothing(server: Server) -> None:
    with open_way("greenq to celery", server) as way:
        sent = way.send("add", 1, 2)
        assert sent.get(timeout=15) == 3

        read = way.client.AsyncResult(sent.id)
        found = (read.name, read.args, read.kwargs, read.queue, read.retries, read.worker)
        assert found == (None,) * 6
        # Whoever has sent it knows the name.
        assert sent.name == "shared.add"
