"""A process that uses an embedded server; test_embedded.py drives it over its standard input.

Arguments: folder, and "gevent" to patch the standard library first. Each line is one command, each
is answered with one line.
"""

import os
import signal
import sys
from pathlib import Path

import gevent.monkey

if sys.argv[2:] == ["gevent"]:
    gevent.monkey.patch_all()

from greenq.transport.embedded.keeper import ask
from greenq.transport.embedded.server import EmbeddedServer

FOLDER = Path(sys.argv[1])
SERVER = EmbeddedServer(FOLDER)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def acquire() -> str:
    return SERVER.acquire()


def release() -> str:
    SERVER.release()
    return "released"


def cycle(count: str) -> str:
    """Acquire, count and release, again and again; return the last count."""
    answer = ""
    for _ in range(int(count)):
        answer = ask(Path(SERVER.acquire()), "INCR cycles", 5)
        if not answer.startswith(":"):
            return f"no count: {answer!r}"
        SERVER.release()
    return answer


def fork() -> str:
    """Fork a child that does nothing but live; return its process id."""
    child = os.fork()
    if child == 0:
        signal.pause()
    return str(child)


def fork_acquire() -> str:
    """Let a forked child acquire, count and release for itself; return its exit code."""
    child = os.fork()
    if child == 0:
        answer = ask(Path(SERVER.acquire()), "INCR forked", 5)
        SERVER.release()
        os._exit(0 if answer == ":1" else 1)
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def has_children() -> str:
    """Tell whether this process has a child, running or not waited for."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "no"
    return "yes"


def acquire_beside() -> str:
    """Acquire in a greenlet; another one says "ticking" once it ran ten times meanwhile."""
    waiting = gevent.spawn(SERVER.acquire)
    for _ in range(10):
        gevent.sleep(0.001)
    say("ticking" if not waiting.ready() else "not waiting")
    return str(waiting.get())


def acquire_in_thread() -> str:
    """Acquire in a real thread, outside gevent's main loop."""
    return str(gevent.get_hub().threadpool.apply(SERVER.acquire))


COMMANDS = {
    function.__name__: function
    for function in (
        acquire,
        release,
        cycle,
        fork,
        fork_acquire,
        has_children,
        acquire_beside,
        acquire_in_thread,
    )
}

for line in sys.stdin:
    name, *arguments = line.split()
    say(COMMANDS[name](*arguments))
