"""The SDK's clients, made at first use, all with the same credentials, endpoint and options."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, TypeVar

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import from_http_response
from google.auth.credentials import Credentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import compute_v1

C = TypeVar("C")

# At DEBUG the SDK logs whole requests, and an insert holds the private host key of its server.
logging.getLogger("google.cloud.compute_v1").setLevel(logging.INFO)

BILLING = "https://cloudbilling.googleapis.com"
RESOURCE_MANAGER = "https://cloudresourcemanager.googleapis.com"


class Clients:
    """Compute Engine's clients and a session for the two services that the Compute SDK does not have.

    endpoint: instead of the SDK's own, for all services. timeout_s: for connecting, and again for each answer.
    """

    def __init__(self, credentials: Credentials, *, endpoint: str = "", timeout_s: float = 60.0) -> None:
        self._credentials = credentials
        self._endpoint = endpoint.rstrip("/")
        self._timeout_s = timeout_s

    @property
    def call(self) -> dict[str, Any]:
        """For every call: no retries in the SDK, which would repeat a create, or hide throttling for ten minutes."""
        return {"retry": None, "timeout": self._timeout_s}

    def _make(self, client: type[C]) -> C:
        options = ClientOptions(api_endpoint=self._endpoint) if self._endpoint else None
        return client(credentials=self._credentials, client_options=options)  # type: ignore[call-arg]

    @cached_property
    def instances(self) -> compute_v1.InstancesClient:
        return self._make(compute_v1.InstancesClient)

    @cached_property
    def disks(self) -> compute_v1.DisksClient:
        return self._make(compute_v1.DisksClient)

    @cached_property
    def region_disks(self) -> compute_v1.RegionDisksClient:
        return self._make(compute_v1.RegionDisksClient)

    @cached_property
    def addresses(self) -> compute_v1.AddressesClient:
        return self._make(compute_v1.AddressesClient)

    @cached_property
    def global_addresses(self) -> compute_v1.GlobalAddressesClient:
        return self._make(compute_v1.GlobalAddressesClient)

    @cached_property
    def snapshots(self) -> compute_v1.SnapshotsClient:
        return self._make(compute_v1.SnapshotsClient)

    @cached_property
    def zone_operations(self) -> compute_v1.ZoneOperationsClient:
        """Asked directly: the operation object that `insert` returns polls a client of its own, which ignores the
        endpoint and the options of the first."""
        return self._make(compute_v1.ZoneOperationsClient)

    @cached_property
    def firewalls(self) -> compute_v1.FirewallsClient:
        return self._make(compute_v1.FirewallsClient)

    @cached_property
    def machine_types(self) -> compute_v1.MachineTypesClient:
        return self._make(compute_v1.MachineTypesClient)

    @cached_property
    def accelerator_types(self) -> compute_v1.AcceleratorTypesClient:
        return self._make(compute_v1.AcceleratorTypesClient)

    @cached_property
    def images(self) -> compute_v1.ImagesClient:
        return self._make(compute_v1.ImagesClient)

    @cached_property
    def networks(self) -> compute_v1.NetworksClient:
        return self._make(compute_v1.NetworksClient)

    @cached_property
    def regions(self) -> compute_v1.RegionsClient:
        return self._make(compute_v1.RegionsClient)

    @cached_property
    def projects(self) -> compute_v1.ProjectsClient:
        return self._make(compute_v1.ProjectsClient)

    @cached_property
    def _session(self) -> AuthorizedSession:
        return AuthorizedSession(self._credentials)  # type: ignore[no-untyped-call]

    def request(self, method: str, service: str, path: str, **options: Any) -> Any:
        """The JSON of an answer of `BILLING` or `RESOURCE_MANAGER`. Raises GoogleAPICallError where it is a refusal."""
        url = f"{self._endpoint or service}{path}"
        answer = self._session.request(method, url, timeout=self._timeout_s, **options)  # type: ignore[no-untyped-call]
        if answer.status_code != 200:
            raise from_http_response(answer)  # type: ignore[no-untyped-call]
        return answer.json()
