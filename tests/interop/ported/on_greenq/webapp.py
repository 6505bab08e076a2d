"""A web application's tasks: base classes, hooks, an application context, what a request tells."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import redis

from greenq import Greenq as Celery
from greenq import Task, shared_task
from greenq.errors import Ignore
from greenq.result import AsyncResult
from greenq.utils.log import get_task_logger

logger = get_task_logger(__name__)

journal = redis.Redis.from_url(os.environ["TEST_BROKER"], decode_responses=True)


class WebApp:
    """What a small web framework has: settings, extensions, a context that code runs in."""

    def __init__(self):
        self.config = {
            "CELERY": {
                "broker_url": os.environ["TEST_BROKER"],
                "result_backend": os.environ["TEST_BROKER"],
                "task_ignore_result": False,
                "broker_connection_retry_on_startup": True,
            }
        }
        self.extensions = {}
        self.contexts = []

    @contextmanager
    def app_context(self):
        self.contexts.append("context")
        try:
            yield
        finally:
            self.contexts.pop()


web = WebApp()


def celery_init_app(web_app):
    """Run each task within the application's context, as Flask's documentation has it."""

    class ContextTask(Task):
        def __call__(self, *args, **kwargs):
            with web_app.app_context():
                return self.run(*args, **kwargs)

    made = Celery("webapp", task_cls=ContextTask)
    made.config_from_object(web_app.config["CELERY"])
    made.set_default()
    web_app.extensions["celery"] = made
    return made


app = celery_init_app(web)


def note(task_id, what, *details):
    journal.rpush(f"journal:{task_id}", " ".join([what, *map(str, details)]))


class DatabaseTask(app.Task):
    """Keeps a connection for as long as the process lives."""

    abstract = True
    _db = None

    @property
    def db(self):
        if self._db is None:
            self._db = SimpleNamespace(rows={"ann": 3, "bob": 5})
        return self._db


class TracedTask(app.Task):
    """Writes down what happens to a task."""

    def before_start(self, task_id, args, kwargs):
        note(task_id, "before_start", args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        note(task_id, "on_success", retval, args, kwargs)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note(task_id, "on_retry", repr(exc), args, kwargs, "Error" in einfo.traceback)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(task_id, "on_failure", repr(exc), args, kwargs, einfo.traceback.splitlines()[-1])
        super().on_failure(exc, task_id, args, kwargs, einfo)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(task_id, "after_return", status, repr(retval), args, kwargs)


class CountingTask(TracedTask, DatabaseTask):
    """Both, and an attribute of its own."""

    limit = 10
    max_retries = 2
    default_retry_delay = 0


@app.task
def contexts():
    """Run within the context."""
    return list(web.contexts)


@shared_task
def shared_contexts():
    """Run within the context of the app that is the default one."""
    return list(web.contexts)


@app.task(base=DatabaseTask, bind=True)
def visits(self, user):
    """Use what the base class keeps."""
    return self.db.rows[user]


@app.task(base=CountingTask, bind=True, limit=3)
def count(self, number):
    """Succeed, retry or fail."""
    if number > self.limit:
        raise ValueError(f"{number} is more than {self.limit}")
    if number < 0:
        raise self.retry(args=(number + 1,), exc=KeyError("negative"))
    return number * self.db.rows["ann"]


@app.task(base=TracedTask, bind=True)
def ignored(self):
    """Store a state by hand, and leave it."""
    self.update_state(state="MINE", meta={"by": self.name})
    raise Ignore


@app.task(base=TracedTask, autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0)
def lookup(name):
    """Fail for good after a retry."""
    return {"ann": 1}[name]


@app.task(bind=True)
def request_fields(self, *args, **kwargs):
    """Show the request."""
    request = self.request
    return {
        "id": request.id == self.request.id,
        "task": request.task,
        "args": list(request.args),
        "kwargs": request.kwargs,
        "retries": request.retries,
        "hostname": "@" in request.hostname,
        "get": [request.get("retries"), request.get("nothing", "default")],
        "tenant": request.get("tenant"),
        "tenant attribute": getattr(request, "tenant", None),
        "header": (request.headers or {}).get("tenant"),
        "group": request.group,
        "chord": request.chord,
        "callbacks": request.callbacks,
        "errbacks": request.errbacks,
        "expires": request.expires,
        "eta": request.eta,
        "timelimit": list(request.timelimit),
        "lang": request.lang,
        "origin": "@" in request.origin,
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
        "is_eager": request.is_eager,
        "root": request.root_id == request.id,
        "parent": request.parent_id,
        "name": self.name,
        "app": self.app.main,
        "max_retries": self.max_retries,
        "routing_key": request.delivery_info["routing_key"],
        "redelivered": request.delivery_info["redelivered"],
    }


class Report(app.Task):
    """A task that is a class."""

    name = "webapp.report"
    ignore_result = False

    def __init__(self):
        self.made = 0

    def run(self, kind, copies=1):
        self.made += 1
        return f"{kind} x{copies}, {self.helper()}"

    def helper(self):
        return "made by a class"


report = app.register_task(Report())


def story(task_id, events):
    """Return what was written down, when that many events have been."""
    for _ in range(1500):
        lines = journal.lrange(f"journal:{task_id}", 0, -1)
        if len(lines) >= events:
            break
        journal.blpop("nothing", 0.01)
    # The next run may begin before the hooks of this one.
    return sorted(lines)


def failed(result):
    """Return the error of a task, as the caller sees it."""
    try:
        result.get(timeout=15)
    except Exception as exc:
        return [type(exc).__name__, str(exc), result.state, result.failed()]
    return None


def demo():
    """Use the tasks as views would, and return what was seen."""
    found = {
        "context": contexts.delay().get(timeout=15),
        "shared": shared_contexts.delay().get(timeout=15),
        "called": [contexts(), web.contexts],
        "visits": visits.delay("ann").get(timeout=15),
        "fields": request_fields.apply_async(
            (1, "two"), {"three": 3}, headers={"tenant": "acme"}
        ).get(timeout=15),
        "report": report.delay("sales", copies=2).get(timeout=15),
        "report by name": app.send_task("webapp.report", ("costs",)).get(timeout=15),
        "names": sorted(name for name in app.tasks if "webapp" in name),
    }
    done = count.delay(2)
    found["count"] = [done.get(timeout=15), story(done.id, 3)]
    retried = count.delay(-1)
    found["retried"] = [retried.get(timeout=15), story(retried.id, 5)]
    too_often = count.delay(-5)
    found["too often"] = [failed(too_often), story(too_often.id, 7)]
    too_many = count.apply_async(kwargs={"number": 4})
    found["too many"] = [failed(too_many), story(too_many.id, 3)]
    unknown = lookup.delay("eve")
    found["unknown"] = [failed(unknown), story(unknown.id, 5)]
    left = ignored.delay()
    found["ignored"] = story(left.id, 1)
    for _ in range(1500):
        if left.state == "MINE":
            break
        journal.blpop("nothing", 0.01)
    found["state of its own"] = [left.state, left.info]
    by_id = AsyncResult(done.id)
    found["by id"] = [by_id.state, by_id.get(timeout=1), by_id.ready()]
    try:
        count.delay()
    except TypeError:
        found["too few arguments"] = "TypeError"
    found["signature"] = [count.name, count.limit, count.max_retries, CountingTask.limit]
    found["conf"] = [app.conf.task_ignore_result, app.conf["task_ignore_result"]]
    found["instance"] = isinstance(count, CountingTask), isinstance(contexts, Task)
    return found
