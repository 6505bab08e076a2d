"""Each serializer, for messages, results and errors, in both directions."""

from __future__ import annotations

import pytest

from tests.interop.conftest import BOTH_WAYS, open_way
from tests.servers import Server

pytestmark = pytest.mark.interop

WAIT_S = 15


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
@pytest.mark.parametrize("direction", BOTH_WAYS)
def test_each_serializer_carries_task_result_and_error(
    direction: str, serializer: str, server: Server
) -> None:
    settings = {
        "task_serializer": serializer,
        "result_serializer": serializer,
        "accept_content": [serializer],
    }
    plain = [0, -1.5, None, True, "text ü", [1, [2]], {"a": {"b": None}}]
    with open_way(direction, server, **settings) as way:
        assert way.send("echo", *plain, kwargs={"k": "v"}).get(timeout=WAIT_S) == [
            plain,
            {"k": "v"},
        ]
        failed = way.send("fail_value", "bad", 7)
        error = failed.get(timeout=WAIT_S, propagate=False)
        assert type(error) is ValueError
        assert error.args == ("bad", 7)
        assert "fail_value" in failed.traceback
        opaque = way.send("fail_opaque", "bad").get(timeout=WAIT_S, propagate=False)
        assert type(opaque) is ValueError
        assert "bad" in str(opaque)
