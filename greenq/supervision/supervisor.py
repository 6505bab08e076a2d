"""supervisord's XML-RPC interface: lists, starts and stops the processes of a group."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import xmlrpc.client
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from greenq.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Mapping

# How long a call may take, unless it waits for a process to stop.
_TIMEOUT_S: Final = 10.0

# How long a call that waits for a process to stop may take. It can be long, since supervisord kills
# the process after its stopwaitsecs anyway.
_STOP_TIMEOUT_S: Final = 24 * 3600.0

# States of a process, as supervisord numbers them.
_STARTING, _RUNNING, _BACKOFF, _STOPPING, _FATAL = 10, 20, 30, 40, 200
_UP: Final = frozenset({_STARTING, _RUNNING, _BACKOFF})

# Faults that mean that the process is already in the requested state.
_ALREADY_STARTED, _NOT_RUNNING = 60, 70

_MISSING: Final = (
    "supervisord does not run this process, or has no [unix_http_server] section: {} is not set. "
    "Start the worker under `supervisord` (greenq deploy supervisord writes its configuration), or "
    "omit --processes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of a group.

    Attributes:
        name: its name within the group.
        state: supervisord's name for its state, such as RUNNING.
        is_up: True if it is running, starting, or about to be started again.
        is_stopping: True if it was asked to end and is still running.
        is_fatal: True if it could not be started.
        is_spare: True if supervisord does not start it by itself (``autostart=false``).
        pid: its process id; 0 if it is not running.
        began_s: when it was started, in Unix time.
    """

    name: str
    state: str
    is_up: bool
    is_stopping: bool
    is_fatal: bool
    is_spare: bool
    pid: int
    began_s: float


class Supervisor:
    """One supervisord, over its unix socket or TCP port.

    Each call opens its own connection. With patched sockets, only the calling greenlet waits.
    """

    def __init__(self, url: str, username: str = "", password: str = "") -> None:
        """Use the supervisord at `url`: ``unix:///path`` or ``http://host:port``.

        Raises:
            SupervisorError: `url` has neither form.
        """
        self.url = url
        parts = urlsplit(url)
        is_unix = parts.scheme == "unix"
        if not (is_unix and parts.path) and not (parts.scheme == "http" and parts.hostname):
            raise SupervisorError(
                f"{url!r} is not an address of supervisord: write unix:///path/supervisor.sock or "
                "http://host:port"
            )
        self._path = parts.path if is_unix else None
        self._host = "localhost" if is_unix else parts.netloc.rpartition("@")[2]
        self._login = (username, password) if username else None

    def group(self, name: str) -> list[Process]:
        """Return the processes of a group, in the order of their names.

        Raises:
            SupervisorError: supervisord does not answer, or refuses the call.
        """
        spare = {
            each["name"]
            for each in self._call("getAllConfigInfo")
            if each["group"] == name and not each["autostart"]
        }
        return [
            Process(
                name=each["name"],
                state=each["statename"],
                is_up=each["state"] in _UP,
                is_stopping=each["state"] == _STOPPING,
                is_fatal=each["state"] == _FATAL,
                is_spare=each["name"] in spare,
                pid=each["pid"],
                began_s=each["start"],
            )
            for each in sorted(self._call("getAllProcessInfo"), key=lambda info: info["name"])
            if each["group"] == name
        ]

    def start(self, group: str, process: str, *, wait: bool = False) -> None:
        """Start a process unless it is running; if `wait`, return once it has run for startsecs.

        Raises:
            SupervisorError: it cannot be started.
        """
        self._call(
            "startProcess", f"{group}:{process}", wait, fine=_ALREADY_STARTED,
            timeout_s=_STOP_TIMEOUT_S if wait else _TIMEOUT_S,
        )  # fmt: skip

    def stop(self, group: str, process: str, *, wait: bool = False) -> None:
        """Begin a process's warm shutdown; supervisord kills it after its stopwaitsecs.

        A process that is not running is left alone. If `wait`, return once the process has ended.

        Raises:
            SupervisorError: supervisord does not answer, or refuses the call.
        """
        self._call(
            "stopProcess", f"{group}:{process}", wait, fine=_NOT_RUNNING,
            timeout_s=_STOP_TIMEOUT_S if wait else _TIMEOUT_S,
        )  # fmt: skip

    def _call(
        self, method: str, *arguments: Any, fine: int | None = None, timeout_s: float = _TIMEOUT_S
    ) -> Any:
        transport = _RpcTransport(self._path, self._login, timeout_s)
        with xmlrpc.client.ServerProxy(f"http://{self._host}/RPC2", transport) as proxy:
            try:
                return getattr(proxy.supervisor, method)(*arguments)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode == fine:
                    return None
                raise SupervisorError(
                    f"supervisord refused {method}({', '.join(map(str, arguments))}): "
                    f"{fault.faultString}"
                ) from None
            except xmlrpc.client.ProtocolError as exc:
                raise SupervisorError(self._refusal(exc)) from None
            except (OSError, http.client.HTTPException, ExpatError) as exc:
                raise SupervisorError(
                    f"supervisord at {self.url} does not answer: {exc!r}"
                ) from None

    def _refusal(self, exc: xmlrpc.client.ProtocolError) -> str:
        if exc.errcode == http.client.UNAUTHORIZED:
            return (
                f"supervisord at {self.url} requires a password: set SUPERVISOR_USERNAME and "
                "SUPERVISOR_PASSWORD in the worker's environment"
            )
        return f"supervisord at {self.url} answered {exc.errcode} {exc.errmsg}"


@dataclass(frozen=True, slots=True)
class Membership:
    """This process's group and name under supervisord, and supervisord itself."""

    group: str
    process: str
    supervisor: Supervisor

    def fingerprint(self, where: str) -> str:
        """Return text that is the same for all processes of this group, and for no others.

        Args:
            where: distinguishes machines and containers with the same host name.
        """
        told = "|".join((socket.gethostname(), where, self.supervisor.url, self.group))
        return sha1(told.encode(), usedforsecurity=False).hexdigest()


def membership(environment: Mapping[str, str] = os.environ) -> Membership:
    """Return this process's place under supervisord.

    Raises:
        SupervisorError: supervisord did not start this process, or has no socket.
    """
    for name in ("SUPERVISOR_GROUP_NAME", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_SERVER_URL"):
        if not environment.get(name):
            raise SupervisorError(_MISSING.format(name))
    return Membership(
        environment["SUPERVISOR_GROUP_NAME"],
        environment["SUPERVISOR_PROCESS_NAME"],
        supervisor_at(environment["SUPERVISOR_SERVER_URL"], environment),
    )


def supervisor_at(url: str, environment: Mapping[str, str] = os.environ) -> Supervisor:
    """Return the supervisord at an address, with the password from the environment.

    Raises:
        SupervisorError: `url` is not an address of supervisord.
    """
    names = ("SUPERVISOR_USERNAME", "SUPERVISOR_PASSWORD")
    return Supervisor(url, *(environment.get(name, "") for name in names))


class _RpcTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket or, without a path, over TCP."""

    def __init__(self, path: str | None, login: tuple[str, str] | None, timeout_s: float) -> None:
        headers = []
        if login is not None:
            encoded = base64.b64encode(":".join(login).encode()).decode()
            headers.append(("Authorization", f"Basic {encoded}"))
        super().__init__(headers=headers)
        self._path, self._timeout_s = path, timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        made = _RpcConnection(str(host), self._path, self._timeout_s)
        # The base class closes this connection.
        self._connection = host, made
        return made


class _RpcConnection(http.client.HTTPConnection):
    """An HTTP connection, over a unix socket if it has a path."""

    def __init__(self, host: str, path: str | None, timeout_s: float) -> None:
        super().__init__(host, timeout=timeout_s)
        self._unix_path = path

    def connect(self) -> None:
        if self._unix_path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._unix_path)
