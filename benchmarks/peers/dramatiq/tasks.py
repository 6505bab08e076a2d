"""The measured tasks as dramatiq actors."""

from __future__ import annotations

import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks import work
from benchmarks.peer import Surroundings

_given = Surroundings.read()
_tally = work.Tally()
_stored = _given.setup.results

# Each greenlet needs a connection; with redis-py's default limit of 100, dramatiq stalls for
# seconds.
_url = f"{_given.url}?max_connections=20000"
broker = RedisBroker(url=_url)
results = RedisBackend(url=_url)
if _stored:
    broker.add_middleware(Results(backend=results))
dramatiq.set_broker(broker)
_options = {"store_results": True} if _stored else {}


@dramatiq.actor(**_options)
def noop() -> None:
    """Do nothing."""


@dramatiq.actor(**_options)
def tally() -> None:
    """Count the call."""
    _tally.add()


@dramatiq.actor(**_options)
def nap(seconds: float) -> float:
    """Wait like a task that waits for the network; the worker has patched `time.sleep`."""
    time.sleep(seconds)
    return seconds


@dramatiq.actor(**_options)
def fetch(port: int) -> int:
    """Fetch a page."""
    return work.fetch(port)
