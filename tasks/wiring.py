"""Puts settings, clouds, ledger and lake together: the only place that knows which vendor is which module."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tasks.catalog import OfflineCatalog
from tasks.clouds.base import Cloud
from tasks.clouds.clock import Clock, clock_of
from tasks.clouds.traits import TRAITS
from tasks.domain.errors import ConfigError, TokensweepError
from tasks.domain.lifecycle import LedgerError
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.clouds.local import LocalCloud
    from tasks.ledger import Ledger

logger = logging.getLogger(__name__)


def _local(settings: Settings) -> LocalCloud:
    from tasks.clouds.local import LocalCloud

    return LocalCloud(settings.local_state_dir, settings.local_isolation)


def _sim(settings: Settings) -> Cloud:
    from tasks.vendors.sim import open_cloud

    return open_cloud(settings.home)


IN_HOME: dict[str, Callable[[Settings], Cloud]] = {"local": _local, "sim": _sim}
"""Vendors without an account: what they have is on this machine, in the home folder."""


def _vendor(name: str) -> ModuleType:
    return import_module(f"tasks.vendors.{name}")


def _why_not(vendor: str) -> str:
    """Why this vendor is not set up here, or "" when it is. Asks no network."""
    return "" if vendor in IN_HOME else str(_vendor(vendor).why_not_configured())


def _is_used(vendor: str, settings: Settings) -> bool:
    """Whether something of it may exist here, so that every listing must look at it."""
    if vendor == "sim":
        return (settings.home / "sim").is_dir()
    return not _why_not(vendor)


VENDORS: tuple[str, ...] = ("local", "sim", "aws", "azure", "gcp", "hetzner", "upcloud")
"""Those that are not in the home folder are modules of `tasks.vendors`, imported when used: their SDKs take seconds."""


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
    _opened: dict[str, Cloud] = field(default_factory=dict, repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        from tasks.ledger import Ledger  # with SQLAlchemy, which a plan can do without

        make_home(self.settings.home)
        return Ledger(self.settings.ledger)

    def ledger_or_volatile(self) -> tuple[Ledger, bool]:
        """For what must work when the ledger is lost or broken (reaper, leaks): then a volatile one and False, and
        only the tags of the resources themselves are left to go by."""
        from tasks.ledger import Ledger

        try:
            self.ledger.open_rows()
            return self.ledger, True
        except LedgerError as exc:
            logger.error("%s Going by the tags of the resources alone.", exc)
            return Ledger.volatile(), False

    def cloud(self, vendor: str) -> Cloud:
        """The vendor's module, opened once. Raises ConfigError for a vendor that there is not, or is not set up."""
        if vendor not in VENDORS:
            raise ConfigError(f"There is no vendor {vendor!r}.", next_step=f"Known: {', '.join(sorted(VENDORS))}.")
        if vendor not in self._opened:
            if why_not := _why_not(vendor):
                raise ConfigError(f"{vendor}: {why_not}.", next_step=f"See docs/vendors/{vendor}.md.")
            made = IN_HOME[vendor](self.settings) if vendor in IN_HOME else _vendor(vendor).open_cloud()
            self._opened[vendor] = made
        return self._opened[vendor]

    def clock(self, vendor: str) -> Clock:
        """By which the vendor's deadlines, ages and bills go."""
        return clock_of(self.cloud(vendor))

    def now(self, vendor: str) -> float:
        """By the vendor's clock; for showing ages, so no account is opened for it."""
        return self.clock(vendor).now() if vendor in IN_HOME else time.time()

    def ledger_of(self, vendor: str) -> Ledger:
        """The ledger, timed by the vendor's clock."""
        return self.ledger.timed_by(self.clock(vendor).now)

    def offline(self, vendor: str) -> OfflineCatalog:
        """What the vendor sold when it was last read here. Asks no network and needs no account."""
        if vendor not in TRAITS:
            raise ConfigError(f"There is no vendor {vendor!r}.", next_step=f"Known: {', '.join(sorted(TRAITS))}.")
        return OfflineCatalog(vendor, TRAITS[vendor], Path(self.settings.lake_root))

    def local(self) -> LocalCloud:
        """This machine as a vendor, for what only it can do: serve models to its servers."""
        return _local(self.settings)

    def clouds(self, vendors: Collection[str] | None = None) -> list[Cloud]:
        """Every vendor that is set up here (`sim`: used), or only these; and always those that the ledger knows open
        resources of. Raises ConfigError for one that is not set up: what it holds could not be listed."""
        wanted = self._vendors_of_ledger() | set(vendors or ())
        if vendors is None:
            wanted |= {vendor for vendor in VENDORS if _is_used(vendor, self.settings)}
        return [self.cloud(vendor) for vendor in VENDORS if vendor in wanted]

    def clouds_that_open(self) -> tuple[list[Cloud], dict[str, str]]:
        """For the reaper: every vendor that is set up here or that the ledger knows open resources of, and, of those
        that cannot be opened, why: one broken account must not keep it from the others."""
        found: list[Cloud] = []
        broken: dict[str, str] = {}
        of_ledger = self._vendors_of_ledger()
        for vendor in VENDORS:
            try:
                if vendor in of_ledger or _is_used(vendor, self.settings):
                    found.append(self.cloud(vendor))
            except Exception as exc:  # an SDK may raise anything while its account is opened
                broken[vendor] = str(exc) if isinstance(exc, TokensweepError) else f"{type(exc).__name__}: {exc}"
                logger.error("%s cannot be opened: %s", vendor, broken[vendor])
        return found, broken

    def accounts(self) -> list[str]:
        """Vendors that are set up here with an account."""
        return [vendor for vendor in VENDORS if vendor not in IN_HOME and not _why_not(vendor)]

    def _vendors_of_ledger(self) -> set[str]:
        try:
            return {row.vendor for row in self.ledger.open_rows()}
        except LedgerError:
            return set()  # the listing of those that are set up still counts


def open_services(settings: Settings | None = None) -> Services:
    return Services(settings or Settings())
