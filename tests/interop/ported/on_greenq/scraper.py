"""A scraper: rate limits in each place, limits of time, progress, tasks that send tasks."""

import os
import time
from urllib.parse import urljoin

import redis

from greenq import Greenq as Celery
from greenq import shared_task
from greenq.errors import Ignore, SoftTimeLimitExceeded
from greenq.utils.log import get_task_logger

logger = get_task_logger(__name__)

BROKER = os.environ["TEST_BROKER"]
app = Celery("scraper", broker=BROKER, backend=BROKER)
app.conf.update(
    task_default_rate_limit="100/s",
    result_expires=3600,
    task_track_started=True,
    broker_connection_retry_on_startup=True,
)
app.conf.worker_prefetch_multiplier = 4

seen = redis.Redis.from_url(BROKER, decode_responses=True)

PAGES = {
    "http://site/": ["a", "b", "c"],
    "http://site/a": ["d"],
    "http://site/b": [],
    "http://site/c": ["d", "http://elsewhere/"],
    "http://site/d": ["a"],
}


@app.task(bind=True, rate_limit="20/s", ignore_result=True, name="scraper.crawl")
def crawl(self, url, depth=0):
    """Follow each link once, in tasks of their own."""
    if not url.startswith("http://site/") or not seen.sadd("seen", url):
        raise Ignore()
    seen.hset("parents", url, str(self.request.parent_id is not None))
    for link in PAGES[url]:
        crawl.delay(urljoin(url, link), depth=depth + 1)
    seen.hset("depth", url, depth)


@app.task(rate_limit="10/s", name="scraper.fetch")
def fetch(url):
    """Note when it ran."""
    seen.rpush("fetched", time.time())
    return len(url)


@app.task(soft_time_limit=0.3, time_limit=10, name="scraper.slow_page")
def slow_page(url):
    """Clean up when the time is over."""
    try:
        time.sleep(20)
    except SoftTimeLimitExceeded:
        seen.sadd("cleaned", url)
        return "too slow"
    return "in time"


@app.task(time_limit=1, name="scraper.endless")
def endless(url):
    """Be ended."""
    while True:
        time.sleep(0.05)


@app.task(bind=True, name="scraper.archive")
def archive(self, urls):
    """Tell how far it is."""
    for number, _url in enumerate(urls):
        self.update_state(state="PROGRESS", meta={"done": number, "of": len(urls)})
        time.sleep(0.1)
    return {"done": len(urls)}


@shared_task(name="scraper.title", typing=False)
def title(html, default=None):
    """Belong to no app in particular."""
    return html.partition("<title>")[2].partition("</title>")[0] or default


@app.task(bind=True, name="scraper.later", max_retries=None)
def later(self, url):
    """Wait for a page that is not there yet."""
    if self.request.retries < 3:
        self.retry(countdown=0.05)
    return self.request.retries


def _span(name):
    times = sorted(float(value) for value in seen.lrange(name, 0, -1))
    return times[-1] - times[0]


def _wait(condition):
    until = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def demo():
    """Scrape a small site and return what was found."""
    crawl.delay("http://site/")
    _wait(lambda: seen.hlen("depth") == 5)
    found = {"seen": sorted(seen.smembers("seen")), "parents": seen.hgetall("parents")}
    results = [fetch.delay(f"http://site/{number}") for number in range(8)]
    found["lengths"] = [result.get(timeout=15) for result in results]
    found["ten a second"] = 0.5 < _span("fetched") < 3
    seen.delete("fetched")
    replies = app.control.rate_limit("scraper.fetch", "1000/s", reply=True, timeout=2)
    found["new limit"] = [sorted(reply.values(), key=str) for reply in replies]
    for result in [fetch.delay("http://site/") for _ in range(20)]:
        result.get(timeout=15)
    found["a thousand a second"] = _span("fetched") < 1.5
    found["slow"] = slow_page.delay("http://site/slow").get(timeout=15)
    found["cleaned"] = sorted(seen.smembers("cleaned"))
    ended = endless.delay("http://site/endless").get(timeout=15, propagate=False)
    found["ended"] = type(ended).__name__
    watched = archive.delay(["a", "b", "c", "d"])
    _wait(lambda: watched.state == "PROGRESS")
    found["progress"] = sorted(watched.info)
    found["archive"] = watched.get(timeout=15)
    found["title"] = title.delay("<title>Home</title>").get(timeout=15)
    found["no title"] = title.delay("", default="none").get(timeout=15)
    found["later"] = later.delay("http://site/soon").get(timeout=15)
    ping = app.control.ping(timeout=2)
    found["answers"] = [list(reply.values()) for reply in ping]
    registered = app.control.inspect(timeout=2).registered() or {}
    found["registered"] = [
        sorted(name.split()[0] for name in names if name.startswith("scraper"))
        for names in registered.values()
    ]
    revoked = fetch.apply_async(("http://site/never",), countdown=1)
    revoked.revoke()
    try:
        revoked.get(timeout=15)
    except Exception as exc:
        found["revoked"] = [type(exc).__name__, str(exc), revoked.state]
    return found
