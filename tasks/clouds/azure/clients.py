"""The SDK's clients: with time limits, without retries of their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from azure.core import PipelineClient
from azure.core.credentials import TokenCredential
from azure.core.pipeline.policies import RetryPolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.resource.resources import ResourceManagementClient
from requests import Session
from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from azure.mgmt.resource.resources.v2025_04_01 import ResourceManagementClient as TypedResourceClient

PUBLIC_ENDPOINT = "https://management.azure.com"
PRICES_ENDPOINT = "https://prices.azure.com"
_KEPT_CONNECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How Azure is reached.

    endpoint, token_scope: others in national clouds. ca_file: certificates to trust instead of the usual ones, "" for
    those. connect_timeout_s, read_timeout_s: of every
    single call. The credential stays out of the repr.
    """

    subscription_id: str
    credential: TokenCredential = field(repr=False)
    endpoint: str = PUBLIC_ENDPOINT
    token_scope: str = f"{PUBLIC_ENDPOINT}/.default"
    prices_endpoint: str = PRICES_ENDPOINT
    ca_file: str = ""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0


class Clients:
    """One client per API, made at its first use: importing all of them takes seconds.

    Retries are off. azure-core sends a PUT or DELETE again after 408, 429, 5xx and lost connections, up to ten times;
    a create whose first answer was lost would come back as "exists", and throttling would stay hidden from the shared
    code, which waits and resolves by itself.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What it says in a traceback about an answer that is no JSON, the exception says in a line.
        logging.getLogger("azure.mgmt").setLevel(logging.ERROR)

    @cached_property
    def compute(self) -> ComputeManagementClient:
        return ComputeManagementClient(self.connection.credential, self.subscription_id, **self._options())

    @cached_property
    def network(self) -> NetworkManagementClient:
        return NetworkManagementClient(self.connection.credential, self.subscription_id, **self._options())

    @cached_property
    def resources(self) -> TypedResourceClient:
        client = ResourceManagementClient(self.connection.credential, self.subscription_id, **self._options())
        return cast("TypedResourceClient", client)  # a facade over API versions; what it resolves to has types

    @cached_property
    def prices(self) -> PipelineClient[Any, Any]:
        """Public and only read, so it may try again by itself: for half a minute, which throttling can take there
        (https://github.com/ahmadabdalla/azure-cost-calculator/issues/555), and less where it cannot be reached."""
        options = self._options() | {"base_url": self.connection.prices_endpoint}
        again = RetryPolicy(retry_total=6, retry_connect=3, retry_read=3, retry_backoff_factor=0.5)
        return PipelineClient(**options, policies=[again])

    @property
    def subscription_id(self) -> str:
        return self.connection.subscription_id

    def get_json(self, path: str, api_version: str) -> Any:
        """What has no client of its own among the installed ones. path: below the subscription."""
        url = f"{self.connection.endpoint}/subscriptions/{self.subscription_id}{path}"
        response = self.compute.send_request(HttpRequest("GET", url, params={"api-version": api_version}))
        response.raise_for_status()
        return response.json()

    def get_prices(self, url: str) -> Any:
        """One page of the price list. Raises HttpResponseError."""
        response = self.prices.send_request(HttpRequest("GET", url))
        response.raise_for_status()
        return json.loads(response.text())

    def _options(self) -> dict[str, Any]:
        connection = self.connection
        options: dict[str, Any] = {
            "base_url": connection.endpoint,
            "credential_scopes": [connection.token_scope],
            "transport": self._transport,
            "retry_total": 0,
            "http_logging_policy": SansIOHTTPPolicy(),  # else ten lines per call at INFO
        }
        return options

    @cached_property
    def _transport(self) -> RequestsTransport:
        """One for all clients, with as many kept connections as servers are looked after at once."""
        connection, session = self.connection, Session()
        session.mount("https://", HTTPAdapter(pool_connections=4, pool_maxsize=_KEPT_CONNECTIONS, max_retries=0))
        return RequestsTransport(
            session=session,
            session_owner=False,
            connection_timeout=connection.connect_timeout_s,
            read_timeout=connection.read_timeout_s,
            connection_verify=connection.ca_file or True,
        )


def each_page_until_error(items: Iterable[Any]) -> Iterator[Any | Exception]:
    """The items of a paged listing; where a page fails, its exception comes last, so that what came before counts."""
    try:
        yield from items
    except Exception as exc:
        yield exc


def pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="azure")
