"""A sweep's own pass of the reaper, where the credentials do not even tell whose they are."""

from __future__ import annotations

import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tasks.clouds.base import ErrorKind
from tasks.domain.errors import AuthError
from tasks.maintenance import ensure_heartbeat, heartbeat_is_fresh
from tasks.provision import Order, ServerKeys, _create
from tasks.settings import Settings
from tasks.wiring import Services
from tests.memory_cloud import CloudError, MemoryCloud


class Refused(MemoryCloud):
    def account(self) -> str:
        raise CloudError(ErrorKind.AUTH)


def test_the_create_is_refused_in_the_vendors_words_and_nothing_is_made(tmp_path: Path) -> None:
    cloud = Refused(time.time, vendor="aws")
    services = Services(Settings(home=tmp_path), {"aws": cloud})
    ensure_heartbeat(services, "aws")
    assert not heartbeat_is_fresh(services, "aws")
    kind = cloud.server_type("small")
    order = Order("sweep", "run", kind, time.time() + 3600, Decimal(1), Decimal("0.01"))
    with pytest.raises(AuthError, match="the account of the credentials cannot be told"):
        _create(order, services, ServerKeys(), threading.Event())
    assert cloud.calls["create"] == 0 and services.ledger.rows() == ()
