"""A mailer: settings in a module of their own, routes, retries of each kind."""

import os
import smtplib
import time

import redis

from greenq import Greenq as Celery
from greenq.errors import MaxRetriesExceededError, Reject
from greenq.utils.log import get_task_logger

logger = get_task_logger(__name__)

app = Celery("mailer")
app.config_from_object("mail_settings")

outbox = redis.Redis.from_url(os.environ["TEST_BROKER"], decode_responses=True)


def deliver(to, subject):
    """Stand in for the mail server, which knows whom it refuses and how often."""
    attempt = outbox.incr(f"attempts:{to}")
    if to.startswith("gone@"):
        raise smtplib.SMTPRecipientsRefused({to: (550, b"no such user")})
    if to.startswith("busy@") and attempt <= 2:
        raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
    if to.startswith("down@"):
        raise ConnectionRefusedError(111, "Connection refused")
    outbox.rpush("sent", f"{to}: {subject} ({attempt})")


@app.task(name="mailer.send", bind=True, max_retries=3, default_retry_delay=0.1)
def send(self, to, subject="Hello"):
    """Retry by hand; give up with the error itself."""
    logger.info("attempt %s for %s", self.request.retries, to)
    try:
        deliver(to, subject)
    except smtplib.SMTPServerDisconnected as exc:
        raise self.retry(exc=exc)
    return f"sent to {to} after {self.request.retries} retries"


@app.task(
    name="mailer.urgent.alarm",
    bind=True,
    autoretry_for=(ConnectionError,),
    retry_kwargs={"max_retries": 2, "countdown": 0.1},
)
def alarm(self, to):
    """Retry by itself; the last error remains."""
    deliver(to, "Alarm")


@app.task(name="mailer.with_fallback", bind=True, max_retries=1)
def with_fallback(self, to, backup):
    """Do something else when the retries are spent."""
    try:
        deliver(to, "Hello")
    except ConnectionError:
        try:
            raise self.retry(countdown=0.1)
        except MaxRetriesExceededError:
            deliver(backup, "Hello in another way")
            return f"{backup} after {self.request.retries}"
    return to


@app.task(name="mailer.redirect", bind=True)
def redirect(self, to, hops=()):
    """Retry with other arguments."""
    if len(hops) < 2:
        raise self.retry(args=(f"{to}.{len(hops)}",), kwargs={"hops": [*hops, to]}, countdown=0)
    return [to, *hops]


@app.task(name="mailer.newsletter", ignore_result=False)
def newsletter(number, to):
    """Goes to a queue of its own, by the routes, and slowly, by its annotation."""
    deliver(to, f"Newsletter {number}")
    return number


@app.task(name="mailer.refuse", bind=True)
def refuse(self, to):
    """Leave the message to nobody."""
    if to.startswith("gone@"):
        raise Reject("no such user", requeue=False)


@app.task(name="mailer.where", bind=True)
def where(self):
    """Tell what the message says of itself."""
    info = self.request.delivery_info
    return {
        "routing_key": info["routing_key"],
        "priority": info["priority"],
        "retries": self.request.retries,
        "headers": (self.request.headers or {}).get("campaign"),
        "timelimit": self.request.timelimit,
        "expires": self.request.expires is not None,
        "eta": self.request.eta is not None,
        "ignore_result": self.request.ignore_result,
        "shadow": self.request.shadow,
        "is_eager": self.request.is_eager,
        "called_directly": self.request.called_directly,
        "correlation_id": self.request.correlation_id == self.request.id,
        "root": self.request.root_id == self.request.id,
        "parent_id": self.request.parent_id,
    }


def outcome(result):
    """Wait for a result and describe it."""
    value = result.get(timeout=15, propagate=False)
    if isinstance(value, Exception):
        value = [type(value).__name__, str(value)]
    return [result.state, value]


def demo():
    """Send mail of each kind and return what has become of it."""
    found = {
        "plain": outcome(send.delay("ann@example.org")),
        "twice": outcome(send.delay("busy@example.org", subject="Again")),
        "refused": outcome(send.apply_async(("gone@example.org",), {"subject": "Bye"})),
        "automatic": outcome(alarm.delay("down@example.org")),
        "fallback": outcome(with_fallback.delay("down@example.com", "backup@example.com")),
        "redirected": outcome(redirect.apply_async(args=["a"])),
        "where": outcome(
            where.apply_async(
                queue="urgent",
                priority=3,
                countdown=0.1,
                expires=60,
                headers={"campaign": "spring"},
                shadow="mailer.elsewhere",
                compression="gzip",
                retry=True,
                retry_policy={"max_retries": 1},
                soft_time_limit=5,
                time_limit=10,
            )
        ),
        "by name": outcome(app.send_task("mailer.where", queue="bulk"))[1]["routing_key"],
        "called": where_called(),
    }
    began = time.monotonic()
    letters = [newsletter.delay(number, f"reader{number}@example.org") for number in range(20)]
    found["letters"] = [letter.get(timeout=15) for letter in letters]
    found["slowly"] = time.monotonic() - began > 0.25
    refused = refuse.delay("gone@example.net")
    refuse.delay("fine@example.net").get(timeout=15)
    found["no end"] = refused.state in {"PENDING", "STARTED", "FAILURE"}
    found["sent"] = sorted(outbox.lrange("sent", 0, -1))
    attempts = sorted(outbox.keys("attempts:[bdg]*"))
    found["attempts"] = {name: outbox.get(name) for name in attempts}
    again = app.AsyncResult(letters[0].id)
    found["read again"] = [again.state, again.result, again.ready(), again.successful()]
    found["extended"] = [again.name, list(again.args), again.queue, again.retries]
    letters[0].forget()
    found["forgotten"] = app.AsyncResult(letters[0].id).state
    return found


def where_called():
    """Call a task as a function."""
    return send("direct@example.org")
