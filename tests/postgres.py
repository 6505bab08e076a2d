"""A real PostgreSQL for tests, from the wheel pgserver, whose own way to start it is not used."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.servers import START_TIMEOUT_S, Process, free_port
from tests.support import wait_until

# PostgreSQL's own limit when nothing else is configured; three of them are for the superuser.
MAX_CONNECTIONS = 100


def postgres_programs() -> Path:
    """Return the folder of initdb and postgres: the wheel's, or else what is on the PATH.

    Where there is neither, the test is skipped; in CI it fails.
    """
    spec = find_spec("pgserver")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        programs = Path(place, "pginstall", "bin")
        if (programs / "postgres").exists():
            return programs
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    reason = "no PostgreSQL: pgserver has no wheel for this Python, and initdb is not on the PATH"
    if os.environ.get("CI"):
        raise AssertionError(reason)
    pytest.skip(reason)


class Postgres:
    """A server on a TCP port of 127.0.0.1, whose superuser needs no password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "shop",
            "PGDATABASE": "shop",
        }
        self._process: Process | None = None
        self._watcher: psycopg.Connection[tuple[object, ...]] | None = None

    def start(self) -> None:
        """Make a cluster with the database `shop`, start it and wait until it answers."""
        programs = postgres_programs()
        as_user: list[str] = []
        if os.geteuid() == 0:
            # It refuses the superuser, whom containers often run tests as.
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"]
            as_user.append("--clear-groups")
        data = self.folder / "data"
        subprocess.run(
            [
                *(*as_user, str(programs / "initdb"), "--pgdata", str(data), "--no-sync"),
                *("--username", "postgres", "--auth", "trust", "--encoding", "UTF8"),
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=60,
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": MAX_CONNECTIONS,
            "fsync": "off",
        }
        command = [*as_user, str(programs / "postgres"), "-D", str(data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        log = self.folder / "postgres.log"
        self._process = Process(command, log, os.environ, self.folder)
        self._process.wait_text("ready to accept connections")
        wait_until(self._answers, START_TIMEOUT_S)
        with self.connect("postgres") as connection:
            connection.execute("CREATE ROLE shop LOGIN")
            connection.execute("CREATE DATABASE shop OWNER shop")

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._process is not None:
            # "Fast": connections are ended, not waited for.
            self._process.popen.send_signal(2)
            self._process.wait_exit()
            self._process = None

    def connect(self, database: str = "shop") -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection of the superuser, who gets one when others get none."""
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"
        return psycopg.connect(where, autocommit=True)

    def connections(self) -> int:
        """Return how many clients are connected to `shop`."""
        # Kept open: clients being refused may take even the superuser's places.
        if self._watcher is None:
            self._watcher = self.connect("postgres")
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'"
        row = self._watcher.execute(query).fetchone()
        assert row is not None
        return int(str(row[0]))

    def _answers(self) -> bool:
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="greenq-test-pg-"))
    server = Postgres(folder)
    try:
        server.start()
        yield server
    except BaseException:
        log = folder / "postgres.log"
        if log.exists():
            sys.stderr.write(log.read_text("utf-8", "replace")[-4000:])
        raise
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
