"""What the conformance suite and the crash enumeration need of a vendor: its module, and sight of what exists."""

from __future__ import annotations

from typing import Protocol

from tasks.clouds.base import Cloud
from tests.emulators.base import Existing, Fault


class VendorWorld(Protocol):
    """One vendor with an account of its own, empty but for what is foreign.

    server_type, places: what the suite creates and where (at least two places where the vendor has them).
    Time: everything goes by `now`; `sleep` makes it pass, at once where the clock is virtual.
    """

    server_type: str
    places: tuple[str, ...]

    @property
    def cloud(self) -> Cloud: ...

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...

    def existing(self) -> list[Existing]:
        """All that exists in the account and may bill, ours and foreign, whatever listings show."""
        ...

    def add_foreign(self) -> None: ...

    def plant(self, *faults: Fault) -> None: ...

    def capacity_fault(self) -> Fault:
        """What this vendor says when a place has no such server left, at its create call."""
        ...

    def quota_fault(self) -> Fault: ...

    def throttle_fault(self) -> Fault: ...

    def auth_fault(self) -> Fault:
        """What it says to expired or revoked credentials, on any call."""
        ...

    def calls(self) -> list[str]:
        """Operations called so far, in order."""
        ...
