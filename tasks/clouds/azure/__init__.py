"""Vendor `azure`: Azure virtual machines, each in a resource group of its own."""

from tasks.clouds.azure.clients import Connection
from tasks.clouds.azure.cloud import AzureCloud

__all__ = ["AzureCloud", "Connection"]
