"""Figures for dashboards in Prometheus' text format, read from the ledger at each scrape.

The ledger knows them whichever controller or worker did the work, so one exporter serves a whole fleet.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.domain.errors import ConfigError
from tasks.ledger import RunState
from tasks.wiring import Services


class LedgerMetrics(Collector):
    """What the ledger says now."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def collect(self) -> Iterator[Metric]:
        ledger = self.services.ledger
        rows, runs = ledger.open_rows(), ledger.server_runs()
        resources = GaugeMetricFamily(
            "tokensweep_resources_open", "Resources that are not proven gone", labels=("vendor", "state")
        )
        for (vendor, state), n in Counter((row.vendor, row.state.value) for row in rows).items():
            resources.add_metric((vendor, state), n)
        yield resources
        stuck = GaugeMetricFamily("tokensweep_resources_stuck", "Deletions that do not succeed", labels=("vendor",))
        for vendor, n in Counter(row.vendor for row in rows if row.stuck).items():
            stuck.add_metric((vendor,), n)
        yield stuck
        by_state = GaugeMetricFamily(
            "tokensweep_server_runs", "Server runs by sweep and state", labels=("sweep", "state")
        )
        for (sweep, state), n in Counter((run.sweep_id, run.state.value) for run in runs).items():
            by_state.add_metric((sweep, state), n)
        yield by_state
        yield from self._money(dict.fromkeys(run.sweep_id for run in runs if run.state is RunState.RUNNING))
        yield self._beats({row.vendor for row in rows} | {run.vendor for run in runs})

    def _money(self, sweeps: dict[str, None]) -> Iterator[Metric]:
        spent = GaugeMetricFamily("tokensweep_spent_usd", "Cost of proven ends, of running sweeps", labels=("sweep",))
        reserved = GaugeMetricFamily("tokensweep_reserved_usd", "Set aside for what is open", labels=("sweep",))
        for sweep in sweeps:
            money = self.services.ledger.spent(sweep)
            spent.add_metric((sweep,), float(money.settled_usd))
            reserved.add_metric((sweep,), float(money.reserved_usd))
        yield spent
        yield reserved

    def _beats(self, vendors: set[str]) -> Metric:
        beats = GaugeMetricFamily(
            "tokensweep_reaper_last_pass_timestamp_seconds", "When a reaper last listed the vendor", labels=("vendor",)
        )
        for vendor in sorted(vendors):
            beat_unix_s = self.services.ledger.last_beat(vendor)
            if beat_unix_s is not None:
                beats.add_metric((vendor,), beat_unix_s)
        return beats


def _registry(services: Services) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LedgerMetrics(services))
    return registry


def exposition(services: Services) -> str:
    """All figures once, in the text format."""
    return generate_latest(_registry(services)).decode()


def serve(services: Services, port: int, address: str) -> None:
    """Answer scrapes on that address until SIGINT or SIGTERM. Raises ConfigError when it cannot be had."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        server, thread = start_http_server(port, addr=address, registry=_registry(services))
    except (OSError, OverflowError) as exc:
        raise ConfigError(
            f"Metrics cannot be served on {address}, port {port}: {exc}.",
            next_step="Choose another --port or --address.",
        ) from exc
    ended.wait()
    server.shutdown()
    thread.join()
