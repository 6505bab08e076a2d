"""An app's connection to its server or servers, built from its settings in one place."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from greenq.config.queue_table import declared
from greenq.config.validators import insecure_options, mask_url
from greenq.errors import ConfigError, Problem, ResultsDisabled
from greenq.protocol.keys import Keys
from greenq.protocol.signer import Signer
from greenq.transport.backend import Backend
from greenq.transport.broker import Broker
from greenq.transport.chords import Chords
from greenq.transport.client import Client, database_of, nothing
from greenq.transport.dead_letters import DeadLetters, DeadLimits
from greenq.transport.embedded.server import EmbeddedServer, folder_of
from greenq.transport.workflows import Workflows, index_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from greenq.config.settings import Config, SecurityConfig
    from greenq.protocol.clock import LamportClock

_log = logging.getLogger(__name__)

_DISABLED = "disabled://"

# The check interval of listening connections if health_check_interval is 0.
_SILENCE_S = 2.0


class Connected(Protocol):
    """An object that can reach a server, such as an app.

    Attributes:
        clock: the cluster's logical clock, as known to this process.
    """

    clock: LamportClock

    @property
    def config(self) -> Config:
        """All settings."""

    @property
    def transport(self) -> Transport:
        """The connection to the server, created on first use."""


class Transport:
    """An app's server for messages and its server for results, usually the same one.

    Attributes:
        broker_address, result_address: the addresses for display, without passwords.
        client, broker, dead: the objects for messages.
        signer: signs and checks the data that workers and readers act on; None if there is no
            signing key.
        result_client: the client for results; the same as `client` if both share a server; None if
            results are disabled.
    """

    def __init__(self, config: Config, app_name: str, app_folder: Path | None = None) -> None:
        """Prepare everything without connecting; only an embedded server is started.

        Args:
            config: the settings.
            app_name, app_folder: the app's name, and the folder that the app is defined in;
                together, these determine the embedded server's folder.

        Raises:
            ConfigError: an address is invalid.
            EmbeddedServerError: the embedded server is missing or does not start.
        """
        self._config = config
        self._app = (app_name, app_folder)
        self._embedded: dict[str, EmbeddedServer] = {}
        options = config.broker.broker_transport_options
        broker_url = config.broker.broker_url or "embedded://"
        result_url = config.result.result_backend or broker_url
        self.client = self._client("broker_url", broker_url)
        self.keys = Keys(
            prefix=options.global_keyprefix,
            sep=options.sep,
            steps=tuple(options.priority_steps),
            result_prefix=config.result.result_backend_transport_options.global_keyprefix,
            db=0 if broker_url.startswith("embedded:") else database_of(broker_url),
        )
        self.broker_address = self._address("broker_url", broker_url)
        self.result_address = self._address("result_backend", result_url)
        self.signer = _signer(config.security)
        self.broker = Broker(
            self.client,
            self.keys,
            DeadLimits(
                config.task.task_max_dead_letter_bytes, config.task.task_dead_letter_expires
            ),
            self.signer,
            declared(config.task),
        )
        self.dead = DeadLetters(self.client, self.keys)
        self.result_client: Client | None = None
        self._backend: Backend | None = None
        if result_url != _DISABLED:
            same = result_url == broker_url
            self.result_client = self.client if same else self._client("result_backend", result_url)
            self._backend = Backend(
                self.result_client,
                self.keys,
                config.result,
                config.task.accept_content,
                config.task.accept_compression,
                config.task.task_max_result_bytes,
                options.health_check_interval or _SILENCE_S,
                self.signer,
            )

    @property
    def backend(self) -> Backend:
        """The result backend.

        Raises:
            ResultsDisabled: the settings disable results.
        """
        if self._backend is None:
            raise ResultsDisabled("results are disabled: set result_backend to keep them")
        return self._backend

    @property
    def chords(self) -> Chords:
        """The object through which senders write chords."""
        expires_s = 0 if self._backend is None else self._backend.chord_seconds
        return Chords(self.client, self.result_client, self.keys, expires_s)

    @property
    def workflows(self) -> Workflows:
        """The index of workflows."""
        seconds = index_seconds(self._config.result.result_expires)
        return Workflows(self.client, self.result_client, self.keys, seconds)

    @property
    def stores_results(self) -> bool:
        """False if results are disabled."""
        return self._backend is not None

    def warn_of_default(self) -> None:
        """Warn about the embedded server if broker_url is not set and no terminal is attached.

        Senders and workers on other machines would each use their own server.
        """
        if self._config.broker.broker_url or os.environ.get("GREENQ_DATA") or _is_terminal():
            return
        _log.warning(
            "broker_url is not set: an embedded server on this machine keeps the messages, in "
            "%s; set broker_url (GREENQ_BROKER_URL), to embedded:// if this is intended",
            self._embedded_folder("broker_url", "embedded://"),
        )

    def warn_of_insecure(self) -> None:
        """Warn about addresses whose TLS settings let anyone impersonate the server."""
        addresses = {
            "broker_url": self._config.broker.broker_url,
            "result_backend": self._config.result.result_backend,
        }
        for setting, url in addresses.items():
            options = insecure_options(url)
            if options:
                _log.warning(
                    "%s (%s) has %s: the server's certificate is not verified, so anyone "
                    "on the path can read and change all messages; set ssl_ca_certs instead",
                    setting,
                    mask_url(url),
                    " and ".join(options),
                )

    def close(self) -> None:
        """Close pooled connections, stop listening, and release an embedded server."""
        if self._backend is not None:
            self._backend.close()
        self.client.close()
        if self.result_client is not None:
            self.result_client.close()
        for server in self._embedded.values():
            server.release()

    def _client(self, setting: str, url: str) -> Client:
        options = self._config.broker.broker_transport_options
        server = self._embedded_server(setting, url)
        try:
            return Client(
                url if server is None else f"unix://{quote(str(server.acquire()))}",
                prepare=nothing if server is None else server.acquire,
                pool_limit=self._config.broker.broker_pool_limit,
                connect_timeout_s=(
                    options.socket_connect_timeout or self._config.broker.broker_connection_timeout
                ),
                timeout_s=options.socket_timeout,
                keepalive=options.socket_keepalive,
            )
        except ValueError as exc:
            raise ConfigError([Problem(setting, mask_url(url), str(exc))]) from None

    def _address(self, setting: str, url: str) -> str:
        """Return an address for display; an embedded server's address includes its folder."""
        folder = self._embedded_folder(setting, url)
        return mask_url(url) if folder is None else f"embedded://{quote(str(folder))}"

    def _embedded_folder(self, setting: str, url: str) -> Path | None:
        """Return the folder of an embedded server's address; None for any other address."""
        if not url.startswith("embedded:"):
            return None
        try:
            return folder_of(url, *self._app)
        except ValueError as exc:
            raise ConfigError([Problem(setting, url, str(exc))]) from None

    def _embedded_server(self, setting: str, url: str) -> EmbeddedServer | None:
        """Return the embedded server that an address names; None for any other address."""
        folder = self._embedded_folder(setting, url)
        if folder is None:
            return None
        return self._embedded.setdefault(str(folder), EmbeddedServer(folder))


def _signer(config: SecurityConfig) -> Signer | None:
    if config.security_signing_key is None:
        return None
    return Signer(
        config.security_signing_key,
        config.security_accepted_signing_keys,
        required=config.security_require_signatures,
    )


def _is_terminal() -> bool:
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    # The standard input has been closed.
    except ValueError:
        return False
