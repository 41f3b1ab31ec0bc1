"""Vendor `hetzner`: Hetzner Cloud through its own SDK (hcloud)."""

from tasks.clouds.hetzner.client import open_client
from tasks.clouds.hetzner.cloud import HetznerCloud

__all__ = ["HetznerCloud", "open_client"]
