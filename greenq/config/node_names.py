"""Worker node names, and file names built from parts of them."""

from __future__ import annotations

import os
import re
import socket
from typing import Final

DEFAULT_NAME: Final = "greenq"


def node_name(given: str | None, *, host: str | None = None) -> str:
    """Return the node name for the value of ``-n``, in the form ``name@host``.

    A name is completed with this host, and a host with the name ``greenq``; without ``-n``, the
    node name is ``greenq@%h``. ``%h`` is this host, ``%n`` its short name, ``%d`` its domain,
    ``%p`` the process id (so that copies of one command line get different names), and ``%%`` a
    percent sign. ``%i`` and ``%I``, in Celery the index of a pool's child process, are 0 and empty
    here.
    """
    host = host or socket.gethostname()
    name, _, where = (given or "").partition("@")
    meant = _of_host(host) | {"n": host.partition(".")[0], "p": str(os.getpid())}
    return _fill(f"{name or DEFAULT_NAME}@{where or '%h'}", meant)


def file_name(pattern: str, node: str) -> str:
    """Return the file name for the worker `node` from the value of ``--logfile`` or ``--pidfile``.

    ``%p`` is the node name, ``%n`` its part before the @, ``%h`` its host, ``%d`` the host's
    domain, ``%i`` 0, ``%I`` empty, and ``%%`` a percent sign. Other text is left unchanged.
    """
    name, _, host = node.partition("@")
    return _fill(pattern, _of_host(host) | {"n": name, "p": node})


def _of_host(host: str) -> dict[str, str]:
    return {"h": host, "d": host.partition(".")[2], "i": "0", "I": "", "%": "%"}


def _fill(pattern: str, meant: dict[str, str]) -> str:
    return re.sub("%([hndpiI%])", lambda match: meant[match[1]], pattern)
