"""TLS is verified, ACL users work, and no secret reaches a log, a banner or a repr."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from greenq import Greenq
from greenq.errors import AccessRefused, OperationalError
from greenq.protocol.event import read_events
from tests.servers import Server, greenq_worker, spawn_greenq
from tests.support import wait_until

SECRET = "s3cret-word"
JSON = frozenset({"application/json"})


@contextmanager
def tls_front(
    server: Server, authority: trustme.CA, name: str, *, ask: bool = False
) -> Iterator[int]:
    """Offer `server` over TLS, with a certificate of `authority` for `name`; yield the port.

    With `ask`, clients need a certificate of that authority, too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    if ask:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [listener]

    def copy(source: socket.socket, goal: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                goal.sendall(chunk)
        for end in (source, goal):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                client = context.wrap_socket(plain, server_side=True)
                behind = socket.create_connection(("127.0.0.1", server.port))
                open_sockets.extend((client, behind))
                for pair in ((client, behind), (behind, client)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    accepting = threading.Thread(target=serve, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        for each in open_sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        accepting.join(5)


def test_tls_refuses_a_certificate_of_nobody_known(server: Server) -> None:
    with tls_front(server, trustme.CA(), "localhost") as port:
        app = Greenq("sender", broker=f"rediss://localhost:{port}/0")
        with pytest.raises(OperationalError, match=r"(?i)certificate"):
            app.send_task("shared.add", (1, 2), retry=False)
    assert not server.client.exists("celery")


def test_tls_refuses_a_certificate_for_another_name(server: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with tls_front(server, authority, "elsewhere.example") as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        app = Greenq("sender", broker=url)
        with pytest.raises(OperationalError, match=r"(?i)certificate"):
            app.send_task("shared.add", (1, 2), retry=False)


def test_a_worker_and_a_client_work_over_tls_with_a_known_authority(
    server: Server, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with tls_front(server, authority, "localhost") as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        app = Greenq("sender", broker=url)
        with greenq_worker(url):
            results = [app.send_task("shared.add", (i, 1)) for i in range(50)]
            assert [result.get(timeout=10) for result in results] == list(range(1, 51))
        app.close()


def test_an_acl_user_sends_and_works(server: Server) -> None:
    server.client.acl_setuser("mailer", enabled=True, passwords=[f"+{SECRET}"], keys=["*"],
                              channels=["*"], categories=["+@all"])  # fmt: skip
    try:
        url = f"redis://mailer:{SECRET}@127.0.0.1:{server.port}/0"
        app = Greenq("sender", broker=url)
        with greenq_worker(url, loglevel="DEBUG") as worker:
            assert app.send_task("shared.add", (1, 2)).get(timeout=10) == 3
            assert SECRET not in worker.text
            assert "mailer:********@" in worker.text
        shown = (app, app.config, app.config.broker, app.transport.client, app.transport)
        assert not any(SECRET in repr(each) for each in shown)
        app.close()
    finally:
        server.client.acl_deluser("mailer")


def test_a_wrong_password_is_named_without_being_shown(server: Server, tmp_path: Path) -> None:
    url = f"redis://nobody:{SECRET}@127.0.0.1:{server.port}/0"
    with pytest.raises(AccessRefused) as refused:
        Greenq("sender", broker=url).send_task("shared.add", (1, 2))
    assert SECRET not in str(refused.value)
    worker = spawn_greenq(url, tmp_path / "worker.log", loglevel="DEBUG")
    assert worker.wait_exit() == 1
    assert "refuses the user name or password" in worker.text
    assert SECRET not in worker.text


def test_secrets_stay_out_of_the_log_when_the_server_goes_away(tmp_path: Path) -> None:
    url = f"redis://mailer:{SECRET}@127.0.0.1:1/0"
    worker = spawn_greenq(url, tmp_path / "worker.log", loglevel="DEBUG")
    try:
        wait_until(lambda: "cannot reach" in worker.text, 20)
        assert SECRET not in worker.text
    finally:
        worker.stop()


def test_a_worker_and_a_client_show_certificates_of_their_own(
    server: Server, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine = authority.issue_cert("greenq@client.example")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    with tls_front(server, authority, "localhost", ask=True) as port:
        plain = f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        with pytest.raises(OperationalError), closing(Greenq("sender", broker=plain)) as app:
            app.send_task("shared.add", (1, 2), retry=False)
        url = f"{plain}&ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem"
        with greenq_worker(url), closing(Greenq("sender", broker=url)) as app:
            assert app.send_task("shared.add", (1, 2)).get(timeout=10) == 3


@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=False"]
)
def test_tls_that_anybody_can_answer_is_warned_of(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Greenq("sender", broker=f"rediss://:{SECRET}@localhost:1/0?{option}")) as app:
        _ = app.transport
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"has {option}" in warning
    assert SECRET not in warning


def test_verified_tls_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Greenq("sender", broker="rediss://localhost:1/0?ssl_cert_reqs=required")) as app:
        _ = app.transport
    assert caplog.text == ""


def test_an_address_is_read_from_a_file_so_that_no_list_of_processes_shows_it(
    server: Server, tmp_path: Path
) -> None:
    address = tmp_path / "broker"
    address.write_text(f"redis://{SECRET}:{SECRET}@127.0.0.1:{server.port}/0\n")
    server.client.execute_command("ACL", "SETUSER", SECRET, "on", f">{SECRET}", "~*", "&*", "+@all")
    try:
        with greenq_worker("redis://nowhere.invalid", "-b", f"@{address}") as worker:
            shown = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
            assert str(address).encode() in shown
            assert SECRET.encode() not in shown
            with closing(Greenq("sender", broker=server.url)) as app:
                assert app.send_task("shared.add", (1, 2)).get(timeout=10) == 3
            assert SECRET not in worker.text.replace(f"{SECRET}:********@", "")
    finally:
        server.client.acl_deluser(SECRET)


def test_arguments_are_shown_to_nobody_but_as_their_sender_wishes(server: Server) -> None:
    settings = {"worker_show_arguments": False}
    shown = {"argsrepr": "(a card)", "kwargsrepr": "{}"}
    heard: list[bytes] = []
    with (
        closing(Greenq("sender", broker=server.url, task_send_sent_event=True)) as app,
        closing(server.client.pubsub()) as events,
        greenq_worker(server.url, "-E", settings=settings, loglevel="DEBUG") as worker,
    ):
        events.psubscribe("/0.celeryev/*")
        hidden = app.send_task("shared.sleep", (3.0, SECRET), **shown)
        parked = app.send_task("shared.sleep", (0, SECRET), countdown=60, **shown)
        wait_until(lambda: (app.control.inspect().active() or {}) != {}, 10)
        inspect = app.control.inspect()
        wait_until(lambda: hidden.id in repr(inspect.active()), 10)
        told = [inspect.active(), inspect.scheduled(), inspect.query_task([hidden.id, parked.id])]
        assert all("(a card)" in repr(each) and SECRET not in repr(each) for each in told)
        hidden.get(timeout=10)
        while (message := events.get_message(timeout=1.0)) is not None:
            if message["type"] == "pmessage":
                heard.append(message["data"])
        before_the_result = worker.text.partition("succeeded in")[0]
        assert SECRET not in before_the_result
    # The result is the task's own to tell.
    told_events = [event for each in heard for event in read_events(each, JSON)
                   if event["type"] != "task-succeeded"]  # fmt: skip
    assert {"task-sent", "task-received"} <= {event["type"] for event in told_events}
    assert "a card" in repr(told_events)
    assert SECRET not in repr(told_events)


def test_a_worker_may_let_itself_be_looked_at_only(server: Server) -> None:
    settings = {"worker_enable_remote_control": "inspect"}
    with (
        closing(Greenq("sender", broker=server.url)) as app,
        greenq_worker(server.url, settings=settings) as worker,
    ):
        worker.wait_text("is ready")
        (stats,) = (app.control.inspect().stats() or {}).values()
        for command in ("pool_grow", "shutdown", "add_consumer", "pause", "revoke"):
            (answer,) = app.control.broadcast(command, reply=True, timeout=10)
            (said,) = answer.values()
            assert f"{command} is refused" in said["error"], said
        (again,) = (app.control.inspect().stats() or {}).values()
        assert again["pool"]["max-concurrency"] == stats["pool"]["max-concurrency"]
        assert worker.alive
