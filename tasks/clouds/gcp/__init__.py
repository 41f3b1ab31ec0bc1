"""Google Cloud: Compute Engine over its REST API, and prices from the Cloud Billing Catalog."""

from tasks.clouds.gcp.cloud import GcpCloud

__all__ = ["GcpCloud"]
