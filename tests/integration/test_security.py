"""TLS is verified, ACL users work, and no secret reaches a log, a banner or a repr."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from greenq import Greenq
from greenq.errors import AccessRefused, OperationalError
from tests.servers import Server, greenq_worker, spawn_greenq
from tests.support import wait_until

SECRET = "s3cret-word"


@contextmanager
def tls_front(server: Server, authority: trustme.CA, name: str) -> Iterator[int]:
    """Offer `server` over TLS, with a certificate of `authority` for `name`; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
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
