"""Monitoring: answers health probes, and serves the cluster's backlog and metrics over HTTP."""

from __future__ import annotations

import importlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import DisabledPart, Part, StartStopPart
from greenq.config.node_names import file_name
from greenq.errors import ConfigError, OperationalError, Problem
from greenq.execution.tally import TaskTally
from greenq.monitoring.cluster_stats import ClusterStats
from greenq.monitoring.health import Health, HealthReport
from greenq.monitoring.http_server import HttpServer, Response, json_response
from greenq.utils.probe import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.consumer import Consumer
    from greenq.worker_parts.parts import Parts

_log = logging.getLogger(__name__)


class Monitoring(StartStopPart):
    """Answers probes, and serves the cluster's backlog and metrics, on a thread next to the hub."""

    name = "Monitoring"
    # This step comes before the worker takes its lease, so a worker whose port is in use exits
    # without ever having held a lease.
    requires = ("Hub",)

    def __init__(self, server: HttpServer) -> None:
        """Start and stop `server`."""
        self.server = server

    def start(self) -> None:
        """Listen and answer.

        Raises:
            CannotListen: an address cannot be used; the worker does not start.
        """
        self.server.start()
        for address in self.server.bound:
            _log.info("health and metrics are served at %s", address)

    def stop(self) -> None:
        """Stop answering. Switches: yes."""
        self.server.stop()

    def info(self) -> dict[str, object]:
        """Return the addresses."""
        return {"addresses": [str(address) for address in self.server.bound]}


def build_monitoring(parts: Parts, consumer: Consumer) -> Part:
    """Build the step for a worker; the step is switched off if no setting names an address."""
    config = parts.app.config.worker
    chosen = (config.worker_health_address, config.worker_metrics_address)
    addresses = [_address(text, parts.hostname) for text in dict.fromkeys(chosen) if text]
    if not addresses:
        return DisabledPart(Monitoring)
    health = Health(parts, consumer)
    quick = {
        "/livez": partial(_answer_probe, health.live),
        "/readyz": partial(_answer_probe, health.ready),
        "/startupz": partial(_answer_probe, health.started),
    }
    stats = ClusterStats(parts)
    slow: dict[str, Callable[[], Response]] = {"/stats.json": partial(_answer_stats, stats)}
    if config.worker_metrics_address:
        slow["/metrics"] = _metrics(parts, consumer, stats, health)
    return Monitoring(HttpServer(addresses, quick=quick, slow=slow, finish=stats.close))


def _metrics(
    parts: Parts, consumer: Consumer, stats: ClusterStats, health: Health
) -> Callable[[], Response]:
    """Make the worker keep counts for metrics; return the function that serves the metrics."""
    config = parts.app.config.worker
    module = _metrics_module(str(config.worker_metrics_address))
    parts.state.tally = tally = parts.state.tally or TaskTally()
    metrics = module.Metrics(parts, consumer, tally, stats, health, config.worker_metrics_names)
    return lambda: Response(200, metrics.text(), module.CONTENT_TYPE)


def _metrics_module(address: str) -> Any:
    """Import the module that needs prometheus_client.

    Raises:
        ConfigError: prometheus_client is not installed.
    """
    try:
        return importlib.import_module("greenq.monitoring.metrics")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "prometheus_client":
            raise
        reason = "metrics need prometheus_client: pip install 'greenq[metrics]'"
        raise ConfigError([Problem("worker_metrics_address", address, reason)]) from exc


def _address(text: str, node: str) -> Address:
    """Return an address from the settings, with ``%n`` and so on in a socket's path expanded."""
    address = parse_address(text)
    return address._replace(path=file_name(address.path, node)) if address.path else address


def _answer_probe(look: Callable[[], HealthReport]) -> Response:
    report = look()
    return json_response(200 if report.ok else 503, report.as_json())


def _answer_stats(stats: ClusterStats) -> Response:
    try:
        return json_response(200, stats.read().as_json())
    except OperationalError as exc:
        return json_response(503, {"error": str(exc)})
