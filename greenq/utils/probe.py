"""``greenq health``: ask the worker on this machine whether it is healthy, as a probe.

A probe runs every few seconds, so this module imports nothing else of greenq: no app, no gevent, no
redis.
"""

from __future__ import annotations

import _socket
import argparse
import os
import sys
import time
from functools import partial
from typing import Any, Final, NamedTuple

# The host that a worker listens on if only a port is given; other machines cannot reach it.
LOOPBACK: Final = "127.0.0.1"

HEALTHY: Final = 0
UNHEALTHY: Final = 1

_MOST_PORT: Final = 65_535
_MOST_ANSWER_BYTES: Final = 1 << 16
_VARIABLES: Final = ("GREENQ_WORKER_HEALTH_ADDRESS", "GREENQ_WORKER_METRICS_ADDRESS")
_PATHS: Final = {"live": "/livez", "ready": "/readyz", "startup": "/startupz"}
_WANTED: Final = "must be a port, a host and a port (0.0.0.0:9808), or a socket (unix:/run/my.sock)"


class Address(NamedTuple):
    """Where a worker answers: on a TCP port, or on a unix socket at `path`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """Return the text that `parse_address` reads."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read an address: ``9808``, ``0.0.0.0:9808``, ``[::1]:9808`` or ``unix:/run/my.sock``.

    Raises:
        ValueError: the text has a different form.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/"):
            raise ValueError(f"{_WANTED}; the path of a socket begins with /")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= _MOST_PORT):
        raise ValueError(_WANTED)
    if colon and not host:
        raise ValueError(f"{_WANTED}; write 0.0.0.0:{port} to listen on all interfaces")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{_WANTED}; write an IPv6 host in brackets, such as [::1]:{port}")
    return Address(host or LOOPBACK, int(port))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add("address", nargs="?", type=_address,
        help="the worker's --health or --metrics-port: a port, HOST:PORT or unix:PATH "
        f"(default: {' or '.join(_VARIABLES)})")  # fmt: skip
    add("--probe", choices=tuple(_PATHS), default="live",
        help="live: the worker needs no restart; ready: it takes messages; startup: it has "
        "started (default: live)")  # fmt: skip
    add("-t", "--timeout", type=_seconds, default=2.0, metavar="S",
        help="wait this many seconds for the answer (default: 2)")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="print nothing; only set the exit code")


def run(args: argparse.Namespace) -> int:
    """Ask the worker and print its answer as JSON; return 0 if it is healthy, otherwise 1."""
    text = ""
    try:
        address = args.address or _default_address()
        code, text = ask(address, _PATHS[args.probe], args.timeout)
    except (OSError, ValueError) as exc:
        if not args.quiet:
            sys.stderr.write(f"greenq health: {exc}\n")
        return UNHEALTHY
    if not args.quiet:
        sys.stdout.write(text)
    return HEALTHY if code == 200 else UNHEALTHY


def main(argv: list[str]) -> int:
    """Run ``greenq health`` without loading the rest of the command line."""
    parser = argparse.ArgumentParser(
        prog="greenq health",
        description="Ask the worker on this machine whether it is healthy.",
        allow_abbrev=False,
        # Without a width, argparse imports shutil, and with it all compression modules, to ask the
        # terminal.
        formatter_class=partial(argparse.HelpFormatter, width=80),
    )
    add_options(parser)
    return run(parser.parse_args(argv))


def ask(address: Address, path: str, timeout_s: float) -> tuple[int, str]:
    """Get `path` from a worker; return the HTTP status and the text of the answer.

    Raises:
        OSError: no answer comes from this address in time, or the answer is not from a worker.
    """
    ends_s = time.monotonic() + timeout_s
    request = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    answer = b""
    connection = None
    try:
        family, target = _target(address)
        connection = _socket.socket(family, _socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        connection.connect(target)
        connection.sendall(request)
        while len(answer) < _MOST_ANSWER_BYTES:
            connection.settimeout(max(0.001, ends_s - time.monotonic()))
            data = connection.recv(_MOST_ANSWER_BYTES)
            if not data:
                break
            answer += data
    except TimeoutError:
        raise OSError(f"no answer from {address} within {timeout_s:g} s") from None
    except OSError as exc:
        raise OSError(f"no worker answers at {address}: {exc.strerror or exc}") from None
    finally:
        if connection is not None:
            connection.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not words[0].startswith(b"HTTP/") or len(words) < 2 or not words[1].isdigit():
        raise OSError(f"the program that answers at {address} is not a greenq worker")
    return int(words[1]), body.decode(errors="replace")


def _target(address: Address) -> tuple[int, Any]:
    """Return the family of an address and the target to connect to."""
    if address.path:
        return _socket.AF_UNIX, address.path
    # Pass the host as bytes, since for text, Python would load the tables of international names.
    host = address.host.encode()
    found = _socket.getaddrinfo(host, address.port, 0, _socket.SOCK_STREAM)
    return found[0][0], found[0][4]


def _default_address() -> Address:
    for name in _VARIABLES:
        if os.environ.get(name):
            return parse_address(os.environ[name])
    raise ValueError(
        f"no address: give the worker's --health address, or set {_VARIABLES[0]} for both"
    )


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return value
