"""What is only read of the emulated Azure (sizes, images, quotas, permissions, prices), its tokens, its refusals."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote

from tests.emulators.azure_machines import Shop
from tests.emulators.azure_sales import IMAGES, REGIONS, SIZES, meters
from tests.emulators.azure_state import Refused

Answer = tuple[int, Any, dict[str, str]]

TENANT = "99999999-8888-4777-8666-555555555555"
CLIENT_ID, CLIENT_SECRET = "77777777-6666-4555-8444-333333333333", "the-secret-of-a-test"
RETRY_AFTER_S = 5

_IMAGE_PATH = re.compile(
    r".*/locations/(?P<region>[^/]+)/publishers/(?P<publisher>[^/]+)/artifacttypes/vmimage/offers/(?P<offer>[^/]+)"
    r"/skus/(?P<sku>[^/]+)/versions",
    re.IGNORECASE,
)

REFUSALS: dict[str, tuple[int, str]] = {
    "ZonalAllocationFailed": (409, "Allocation failed. We do not have sufficient capacity in this zone."),
    "OverconstrainedZonalAllocationRequest": (409, "Allocation failed. VM(s) with these constraints cannot be had."),
    "AllocationFailed": (409, "Allocation failed. We do not have sufficient capacity in this region."),
    # In Azure's words: https://github.com/Azure-Samples/azuresandbox/issues/70
    "SkuNotAvailable": (
        409,
        "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: Standard_D4as_v5' "
        "is currently not available in location 'westeurope'. Please try another size or deploy to a different "
        "location or different zone. See https://aka.ms/azureskunotavailable for details.",
    ),
    # https://github.com/azuredevcollege/trainingdays/pull/84
    "SkuNotAvailableInRegion": (
        409,
        "The requested size for resource is currently not available in location 'West Europe' zones '' for "
        "subscription. Please try another size or deploy to a different location or zones. See "
        "https://aka.ms/azureskunotavailable for details.",
    ),
    "PolicyOfLocations": (
        403,
        'Resource \'group\' was disallowed by policy. Policy identifiers: \'[{"policyAssignment":{"name":"Allowed '
        'locations","id":"/subscriptions/x/providers/Microsoft.Authorization/policyAssignments/y"}}]\'.',
    ),
    "PolicyOfTags": (
        403,
        'Resource \'group\' was disallowed by policy. Policy identifiers: \'[{"policyAssignment":{"name":"Require a '
        'Department tag on resources","id":"/subscriptions/x/resourceGroups/landingzones"}}]\'.',
    ),
    # The code of the Basic kind, which is retired, is IPv4BasicSkuPublicIpCountLimitReached; the quota of this one is
    # IPv4StandardSkuPublicIpAddresses.
    "IPv4StandardSkuPublicIpCountLimitReached": (
        400,
        "Cannot create more than 20 IPv4 Standard SKU public IP addresses for this subscription in this region.",
    ),
    # https://learn.microsoft.com/azure/virtual-machines/error-codes-spot
    "AzureSpotIsNotSupportedForThisVMSize": (
        400,
        "Azure Spot isn't supported for this VM size. Please select another VM size or use a non-spot VM.",
    ),
    "AzureSpotFeatureNotEnabledForSubscription": (
        400,
        "Subscription is not enabled with Azure Spot feature. Please use a subscription that supports it.",
    ),
    "QuotaTotal": (
        409,
        "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.",
    ),
    "QuotaFamily": (409, "Operation results in exceeding quota limits of Core. Maximum allowed: 0, Current in use: 0."),
    "PublicIPCountLimitReached": (400, "Cannot create more than 10 public IP addresses for this subscription."),
    "TooManyRequests": (429, "The request is being throttled as the limit has been reached for operation type."),
    "ExpiredAuthenticationToken": (401, "The access token expiry UTC time is earlier than current UTC time."),
    "AuthorizationFailed": (403, "The client does not have authorization to perform action over scope."),
    "ReadOnlyDisabledSubscription": (409, "The subscription is disabled and therefore marked as read only."),
    # Of a region that takes only customers of its country; met by Spare Cores in jioindiawest, when it made a group.
    "DisallowedLocation": (
        400,
        "The provided location 'jioindiawest' is not permitted for subscription. List of permitted regions is "
        "'australiacentral,australiaeast'. Please contact support to re-configure subscription.",
    ),
    "LocationNotAvailableForResourceGroup": (400, "The provided location is not available for resource group."),
    "ResourceGroupBeingDeleted": (
        409,
        "The resource group is in deprovisioning state and cannot perform this operation.",
    ),
    "ScopeLocked": (409, "The scope cannot perform delete operation because it is locked."),
    "NicReservedForAnotherVm": (400, "Nic(s) in request is reserved for another Virtual Machine for 180 seconds."),
    "PropertyChangeNotAllowed": (409, "Changing property 'osProfile.customData' is not allowed."),
    "ResourceNotFound": (404, "The Resource was not found."),
    "InternalServerError": (500, "The server encountered an internal error."),
    "SomethingNew": (409, "A code that nobody has seen yet."),
}
FAULT_CODES = {
    "QuotaTotal": "OperationNotAllowed",
    "QuotaFamily": "OperationNotAllowed",
    "SkuNotAvailableInRegion": "SkuNotAvailable",
    "PolicyOfLocations": "RequestDisallowedByPolicy",
    "PolicyOfTags": "RequestDisallowedByPolicy",
}


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any
    base: str

    def arg(self, name: str) -> str:
        return next((v for k, v in self.query.items() if k.lower() == name.lower()), "")


def metadata(call: Call, shop: Shop, permissions: list[Any], operations: dict[str, Any], page_size: int) -> Answer:
    """What is only read: sizes, images, usages, permissions, providers, operations."""
    path = call.path.lower()
    if "/operations/" in path:
        ends_unix_s, failure = operations[path.rsplit("/", 1)[1]]
        if shop.account.now() < ends_unix_s:
            return 200, {"status": "InProgress"}, retry()
        if failure:
            return 200, {"status": "Failed", "error": {"code": failure[0], "message": failure[1]}}, {}
        return 200, {"status": "Succeeded"}, {}
    if path.endswith("/skus"):
        wanted = re.search(r"location eq '([^']+)'", call.arg("$filter"))
        regions = [wanted[1]] if wanted else list(REGIONS)
        return page(call, page_size, [s.sku(r) for r in regions for s in SIZES.values() if r in s.regions])
    if path.endswith("/locations"):
        physical = [{"name": region, "metadata": {"regionType": "Physical"}} for region in REGIONS]
        return page(call, page_size, [*physical, {"name": "europe", "metadata": {"regionType": "Logical"}}])
    image = _IMAGE_PATH.fullmatch(call.path)
    if image is not None:
        known = (image["publisher"], image["offer"], image["sku"]) in IMAGES
        if not known:
            raise Refused(404, "NotFound", "Artifact: VMImage was not found.")
        return 200, [{"location": image["region"], "name": "24.04.202611010", "id": call.path}], {}
    if path.endswith("/usages"):
        return page(call, page_size, _usages(call, shop))
    if path.endswith("/permissions"):
        return page(call, page_size, permissions)
    if path.rstrip("/").endswith("/providers"):
        names = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab")
        return page(call, page_size, [{"namespace": n, "registrationState": "Registered"} for n in names])
    raise Refused(404, "InvalidResourceType", f"The resource type of {call.path} could not be found.")


def _usages(call: Call, shop: Shop) -> list[dict[str, Any]]:
    region = call.path.split("/locations/")[1].split("/")[0]
    if "Microsoft.Network" in call.path:
        return [_usage("PublicIPAddresses", 0, 1000), _usage("IPv4StandardSkuPublicIpAddresses", 0, shop.ips)]
    limit = shop.quotas.get
    families = sorted({sold.family for sold in SIZES.values()})
    return [
        _usage("cores", 0, limit((region, "total"), 1000)),
        _usage("lowPriorityCores", 0, limit((region, "spot"), 1000)),
        *(_usage(family, 0, limit((region, family), 1000)) for family in families),
    ]


def page(call: Call, page_size: int, items: list[Any]) -> Answer:
    start = int(call.arg("$skiptoken") or 0)
    body: dict[str, Any] = {"value": items[start : start + page_size]}
    if start + page_size < len(items):
        query = {k: v for k, v in call.query.items() if k != "$skiptoken"} | {"$skiptoken": str(start + page_size)}
        text = "&".join(f"{quote(key)}={quote(value)}" for key, value in query.items())
        body["nextLink"] = f"{call.base}{call.path}?{text}"
    return 200, body, {}


def prices(call: Call) -> Answer:
    wanted = re.search(r"armRegionName eq '([^']+)'", call.arg("$filter"))
    if wanted is None or "serviceName eq 'Virtual Machines'" not in call.arg("$filter"):
        raise Refused(400, "BadRequest", "The filter is not one that this emulator knows.")
    items, start = meters(wanted[1]), int(call.arg("$skip") or 0)
    body: dict[str, Any] = {"BillingCurrency": "USD", "Items": items[start : start + 10], "NextPageLink": None}
    if start + 10 < len(items):
        link = f"$filter={quote(call.arg('$filter'))}&$skip={start + 10}"
        body["NextPageLink"] = f"https://prices.azure.com:443/api/retail/prices?{link}"
    return 200, body | {"Count": len(body["Items"])}, {}


def token(call: Call, tokens: set[str]) -> Answer:
    """Microsoft Entra ID, as far as a service principal with a secret needs it."""
    root = f"{call.base}/{TENANT}"
    if call.path == "/common/discovery/instance":
        hosts = ["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"]
        metadata = [{"preferred_network": hosts[0], "preferred_cache": hosts[1], "aliases": hosts}]
        where = f"{root}/v2.0/.well-known/openid-configuration"
        return 200, {"tenant_discovery_endpoint": where, "api-version": "1.1", "metadata": metadata}, {}
    if call.path.endswith("/openid-configuration"):
        return (
            200,
            {
                "token_endpoint": f"{root}/oauth2/v2.0/token",
                "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
                "issuer": f"{root}/v2.0",
                "tenant_region_scope": "EU",
            },
            {},
        )
    form = {key: values[0] for key, values in parse_qs(call.body.decode()).items()}
    if form.get("client_id") != CLIENT_ID or form.get("client_secret") != CLIENT_SECRET:
        text = "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent is the value."
        return 401, {"error": "invalid_client", "error_description": text, "error_codes": [7000215]}, {}
    issued = uuid.uuid4().hex
    tokens.add(issued)
    return 200, {"token_type": "Bearer", "expires_in": 3599, "access_token": issued}, {}


def refusal(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}, retry() if status == 429 else {}


def retry() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)}


def _usage(name: str, current: int, limit: int) -> dict[str, Any]:
    return {
        "name": {"value": name, "localizedValue": name},
        "currentValue": current,
        "limit": limit,
        "unit": "Count",
    }
