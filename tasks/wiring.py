"""Puts settings, clouds, ledger and lake together: the only place that knows which vendor is which module."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.clouds.base import Cloud
from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import LedgerError
from tasks.ledger import Ledger
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.clouds.local import LocalCloud

logger = logging.getLogger(__name__)


def _local(settings: Settings) -> LocalCloud:
    from tasks.clouds.local import LocalCloud

    return LocalCloud(settings.local_state_dir, settings.local_isolation)


VENDORS: dict[str, Callable[[Settings], Cloud]] = {"local": _local}


def make_home(home: Path) -> None:
    """Make the folder of lake, ledger and spool. Raises ConfigError when that cannot be."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"The folder {home} cannot be made: {exc.strerror}.", next_step="Set TOKENSWEEP_HOME to one that can."
        ) from exc


@dataclass(frozen=True)
class Services:
    """What a flow or a command works with. Everything is opened at first use."""

    settings: Settings

    @cached_property
    def ledger(self) -> Ledger:
        make_home(self.settings.home)
        return Ledger(self.settings.ledger)

    def ledger_or_volatile(self) -> tuple[Ledger, bool]:
        """For what must work when the ledger is lost or broken (reaper, leaks): then a volatile one and False, and
        only the tags of the resources themselves are left to go by."""
        try:
            self.ledger.open_rows()
            return self.ledger, True
        except LedgerError as exc:
            logger.error("%s Going by the tags of the resources alone.", exc)
            return Ledger.volatile(), False

    def cloud(self, vendor: str) -> Cloud:
        """The vendor's module. Raises ConfigError for a vendor that there is not."""
        if vendor not in VENDORS:
            raise ConfigError(f"There is no vendor {vendor!r}.", next_step=f"Known: {', '.join(sorted(VENDORS))}.")
        return VENDORS[vendor](self.settings)

    def local(self) -> LocalCloud:
        """This machine as a vendor, for what only it can do: serve models to its servers."""
        return _local(self.settings)

    def clouds(self) -> list[Cloud]:
        """Every vendor that is set up here."""
        return [self.cloud(vendor) for vendor in VENDORS]


def open_services(settings: Settings | None = None) -> Services:
    return Services(settings or Settings())
