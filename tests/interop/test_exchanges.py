"""Exchanges that Celery and greenq share: what either binds, the other's messages find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kombu import Exchange

from greenq.errors import Unroutable
from tests.interop.conftest import BOTH_WAYS, celery_client, greenq_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

# Celery reads this form of the setting, too.
MEDIA = {"exchange": "media", "exchange_type": "topic"}
QUEUES: dict[str, Any] = {
    "video": {**MEDIA, "routing_key": "media.video.#"},
    "image": {**MEDIA, "routing_key": "media.image.*"},
    "jobs": {"exchange": "work", "exchange_type": "direct", "routing_key": "job.run"},
    "news": {"exchange": "news", "exchange_type": "fanout", "routing_key": "sport"},
}
KINDS = {"media": "topic", "work": "direct", "news": "fanout"}


def listeners(server: Server) -> int:
    return int(server.client.pubsub_numsub("/0.news/sport")[0][1])


@contextmanager
def opened(way: str, server: Server, *, queues: str) -> Iterator[Any]:
    """Start a worker of one kind; give a function that sends from a client of the other kind."""
    settings = {"task_queues": QUEUES}
    if way == "celery to greenq":
        with (
            greenq_worker(server.url, "-Q", queues, settings=settings),
            celery_client(server.url) as celery,
        ):

            def send(exchange: str, key: str, *args: Any) -> Any:
                # Celery has to know the type.
                kind = Exchange(exchange, type=KINDS[exchange])
                options = {"exchange": kind, "routing_key": key, "declare": [kind]}
                return celery.send_task("shared.add", args, **options)

            yield send
    else:
        with (
            celery_worker(server.url, "-Q", queues, settings=settings),
            greenq_client(server.url, **settings) as greenq,
        ):
            yield lambda exchange, key, *args: greenq.send_task(
                "shared.add", args, exchange=exchange, routing_key=key
            )


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_what_one_binds_the_other_reaches(way: str, server: Server) -> None:
    with opened(way, server, queues="video,jobs") as send:
        sent = {
            send("media", "media.video.mp4", 1, 1): 2,
            send("media", "media.video.mp4.hd", 2, 2): 4,
            # No word is any number of words, too. Kombu's own pattern does not match here.
            send("media", "media.video", 3, 3): 6,
            send("work", "job.run", 4, 4): 8,
        }
        assert {result: result.get(timeout=10) for result in sent} == sent
        server.wait_settled()


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_a_message_for_several_queues_is_in_each(way: str, server: Server) -> None:
    with opened(way, server, queues="video,image"):
        pass
    with opened(way, server, queues="jobs") as send:
        # Bound to the same exchange, by hand as a third queue's worker would.
        member = "media.#\x06\x16^media\\..*?$\x06\x16archive"
        server.client.sadd("_kombu.binding.media", member)
        send("media", "media.image.png", 1, 2)
        send("media", "media.image.png.small", 3, 4)

    wait_until(lambda: len(server.queued("archive")) == 2)
    assert len(server.queued("image")) == 1
    assert len(server.queued("video")) == 0


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_a_fanout_exchange_reaches_whoever_listens(way: str, server: Server) -> None:
    with opened(way, server, queues="news") as send:
        wait_until(
            lambda: (
                server.client.pubsub_numpat() + server.client.pubsub_numsub("/0.news/sport")[0][1]
            )
        )
        assert send("news", "sport", 1, 2).get(timeout=10) == 3
    # Nothing is stored under the name of the queue.
    assert not server.client.exists("news")


def test_celery_has_no_headers_exchanges_on_redis(server: Server) -> None:
    # Therefore greenq has none.
    with celery_client(server.url) as celery, celery.connection_for_write() as connection:
        channel = connection.channel()
        channel.exchange_declare("h", type="headers")
        channel.queue_declare("q")
        with pytest.raises(KeyError, match="headers"):
            channel.queue_bind("q", "h")


def test_what_no_binding_takes_is_an_error_to_greenq_s_sender(server: Server) -> None:
    with opened("greenq to celery", server, queues="video,jobs") as send:
        for exchange, key in (("media", "media.videos"), ("work", "job"), ("news", "art")):
            with pytest.raises(Unroutable, match=f"exchange '{exchange}'"):
                send(exchange, key, 1, 1)
