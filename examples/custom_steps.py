"""Custom parts of the worker: a health page, and a file that exists while tasks are taken.

    greenq worker -A custom_steps -l INFO --health-port 8090 --ready-file /tmp/ready
    curl localhost:8090             # in another terminal
    greenq graph -A custom_steps    # shows both parts among greenq's own

The health page lives as long as the worker. The part that creates the file restarts with each
connection to the server: if you stop the server, the file is missing until the server is back.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gevent.pywsgi import WSGIServer

from greenq import Greenq
from greenq.bootsteps import Option, StartStopStep

log = logging.getLogger(__name__)

app = Greenq("custom_steps")


class Health(StartStopStep):
    """A web page with the worker's own statistics."""

    # This step starts after the pool and before the first task is taken. It stops after the last
    # task has ended.
    requires = ("Pool",)

    def __init__(self, worker: Any, health_port: int | None = None, **options: Any) -> None:
        super().__init__(worker, **options)
        self.port = health_port
        self.pages = 0

    def include_if(self, worker: Any) -> bool:
        return self.port is not None

    def create(self, worker: Any) -> WSGIServer:
        """Return the object to start and stop for this step; it does not listen yet."""

        def page(environ: Any, respond: Any) -> list[bytes]:
            self.pages += 1
            respond("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(worker.info(), default=str).encode()]

        return WSGIServer(("127.0.0.1", self.port), page, log=None)

    def start(self, worker: Any) -> None:
        super().start(worker)
        log.info("health page on http://127.0.0.1:%d", self.port)

    def stop(self, worker: Any) -> None:
        super().stop(worker)
        log.info("health page closed")

    def info(self, worker: Any) -> dict[str, Any]:
        return {"port": self.port, "pages": self.pages}


class ReadyFile(StartStopStep):
    """A file that exists while tasks are taken."""

    requires = ("Tasks",)

    def __init__(self, consumer: Any, ready_file: Path | None = None, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.file = ready_file

    def include_if(self, consumer: Any) -> bool:
        return self.file is not None

    def start(self, consumer: Any) -> None:
        self.file.touch()
        log.info("ready")

    def stop(self, consumer: Any) -> None:
        self.file.unlink(missing_ok=True)
        log.info("not ready")

    def shutdown(self, consumer: Any) -> None:
        log.info("never ready again")


app.steps["worker"].add(Health)
app.steps["consumer"].add(ReadyFile)
app.user_options["worker"].add(
    Option("--health-port", type=int, metavar="PORT", help="serve a health page")
)
app.user_options["worker"].add(
    Option("--ready-file", type=Path, metavar="FILE", help="create this file while tasks are taken")
)


@app.task
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y
