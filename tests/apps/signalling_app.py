"""An app whose receivers change the worker they are in, as TEST_SIGNALLING says."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import gevent
from gevent.monkey import is_module_patched

from greenq import Greenq, signals

app = Greenq("signalling", broker=os.environ["TEST_BROKER"])
CHOSEN = os.environ["TEST_SIGNALLING"].split()


def say(what: str, **facts: Any) -> None:
    """Write a line that the test reads."""
    # Not by sys.stderr, which a worker logs.
    os.write(2, f"SAID {json.dumps({'what': what, **facts})}\n".encode())


@signals.celeryd_init.connect
def configure(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Change settings before the worker is built."""
    say("options", concurrency=options["concurrency"])
    conf.worker_concurrency = 7


@signals.worker_process_init.connect
def begin(sender: str, **_: Any) -> None:
    """Say in which process."""
    say("begin", pid=os.getpid(), sender=sender, patched=is_module_patched("socket"))


@signals.worker_process_shutdown.connect
def end(pid: int, exitcode: int, **_: Any) -> None:
    """Say so, after waiting like one who flushes over the network."""
    gevent.sleep(0.05)
    say("end", pid=pid, exitcode=exitcode)


@signals.worker_shutting_down.connect
def stopping(sig: str, how: str, exitcode: int, **_: Any) -> None:
    """Say why."""
    say("stopping", sig=sig, how=how, exitcode=exitcode)


@signals.beat_init.connect
@signals.beat_embedded_init.connect
def beat_begins(signal: Any, sender: Any, **_: Any) -> None:
    """Say which beat it is."""
    say("beat", signal=signal.name, leads=sender.leads)


@signals.task_postrun.connect
def ran(task_id: str, state: str | None, **_: Any) -> None:
    """Say how it ended."""
    say("ran", id=task_id, state=state)


if "setup_logging" in CHOSEN:

    @signals.setup_logging.connect
    def log(loglevel: int, **_: Any) -> None:
        """Log in a way of its own."""
        logging.basicConfig(level=loglevel, format="OWN %(message)s")


if "late" in CHOSEN:
    app.conf.include = ["tests.apps.late_receiver"]

if "after_setup" in CHOSEN:

    @signals.after_setup_logger.connect
    @signals.after_setup_task_logger.connect
    def add_handler(logger: logging.Logger, **_: Any) -> None:
        """Add a handler to the logger."""
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{logger.name.upper()} %(message)s"))
        logger.addHandler(handler)


if "import_modules" in CHOSEN:

    @signals.import_modules.connect
    def refuse(**_: Any) -> None:
        """Keep the worker from starting."""
        raise ValueError("modules are not for you")


if "exit" in CHOSEN:

    @signals.worker_init.connect
    def leave(**_: Any) -> None:
        """End the start."""
        raise SystemExit(5)


@app.task(name="signalling.speak")
def speak() -> int:
    """Log a line, and return the number of slots."""
    from greenq.utils.log import get_task_logger  # noqa: PLC0415

    get_task_logger("speaker").info("spoken")
    return int(app.conf.worker_concurrency)


@app.task(name="signalling.sleep")
def sleep() -> None:
    """Run until it is ended."""
    say("asleep")
    gevent.sleep(600)
