"""Vendor `local`: servers on this machine, with nothing faked."""

from tasks.clouds.local.admission import LocalCloudError
from tasks.clouds.local.cloud import LocalCloud

__all__ = ["LocalCloud", "LocalCloudError"]
