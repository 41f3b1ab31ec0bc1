"""Vendor `upcloud`: UpCloud through its own SDK (upcloud-api)."""

from tasks.clouds.upcloud.client import open_manager
from tasks.clouds.upcloud.cloud import UpCloud

__all__ = ["UpCloud", "open_manager"]
