"""Facts about the server itself: version, memory, eviction policy and persistence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from greenq.transport.client import Client

_SAFE_POLICY = "noeviction"


class Facts(NamedTuple):
    """What a server reports about itself; a missing fact is empty text or None.

    Attributes:
        name, version: what the server is, such as ``valkey`` and ``8.0.1``.
        mode: ``standalone``, ``cluster`` or ``sentinel``.
        uptime_s: the time since the server started.
        clients: the number of connections.
        policy: what happens to keys when memory is full (maxmemory-policy).
        memory_bytes, limit_bytes: memory in use, and its limit; 0 means no limit.
        append_only: whether every write is logged (AOF).
        saved_s: the time since the last snapshot (RDB).
        unsaved: the number of writes since the last snapshot.
        skew_s: how far this machine's clock is ahead of the server's.
    """

    name: str
    version: str
    mode: str
    uptime_s: int | None
    clients: int | None
    policy: str
    memory_bytes: int | None
    limit_bytes: int | None
    append_only: bool | None
    saved_s: float | None
    unsaved: int | None
    skew_s: float


def server_facts(client: Client) -> Facts:
    """Ask the server for facts about itself. Switches: yes.

    Raises:
        OperationalError: the server cannot be reached, or refuses to answer.
    """
    before_s = time.time()
    seconds, microseconds = client.call("TIME")
    now_s = (before_s + time.time()) / 2
    values: dict[str, str] = {}
    for line in client.call("INFO").decode(errors="replace").splitlines():
        name, sign, value = line.partition(":")
        if sign:
            values[name] = value.strip()

    def number(name: str) -> int | None:
        value = values.get(name, "")
        return int(value) if value.isdecimal() else None

    saved = number("rdb_last_save_time")
    is_valkey = "valkey_version" in values
    return Facts(
        name=values.get("server_name") or ("valkey" if is_valkey else "redis"),
        version=values.get("valkey_version") or values.get("redis_version", ""),
        mode=values.get("server_mode") or values.get("redis_mode", ""),
        uptime_s=number("uptime_in_seconds"),
        clients=number("connected_clients"),
        policy=values.get("maxmemory_policy", ""),
        memory_bytes=number("used_memory"),
        limit_bytes=number("maxmemory"),
        append_only=values["aof_enabled"] == "1" if "aof_enabled" in values else None,
        saved_s=None if saved is None else max(0.0, int(seconds) - saved),
        unsaved=number("rdb_changes_since_last_save"),
        skew_s=now_s - (int(seconds) + int(microseconds) / 1e6),
    )


def eviction_warning(facts: Facts) -> str | None:
    """Return a warning if the server deletes keys when its memory is full; None if it does not."""
    if facts.policy in ("", _SAFE_POLICY):
        return None
    when = "when its memory is full (maxmemory),"
    if not facts.limit_bytes:
        when = "once maxmemory is set (it is not set now),"
    what = "queues and messages" if facts.policy.startswith("allkeys") else "results and locks"
    return (
        f"the server's maxmemory-policy is {facts.policy}: {when} it silently deletes {what};"
        f" set it to {_SAFE_POLICY}"
    )
