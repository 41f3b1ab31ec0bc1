"""An emulated Azure: Resource Manager with compute and network providers, its token endpoint, and its price list."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote

from tests.emulators import azure_schema
from tests.emulators.azure_machines import Shop
from tests.emulators.azure_payload import group_json, status_json, thing_json
from tests.emulators.azure_sales import GROUPLESS_REGIONS, IMAGES, REGIONS, SIZES, meters
from tests.emulators.azure_state import DISK, IP, KINDS, NET, NIC, NSG, SUBSCRIPTION, VM, Account, Group, Refused, Thing
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp

TENANT = "99999999-8888-4777-8666-555555555555"
CLIENT_ID, CLIENT_SECRET = "77777777-6666-4555-8444-333333333333", "the-secret-of-a-test"
RETRY_AFTER_S = 5

_TYPES = {type_.lower(): type_ for type_ in KINDS}
_PATH = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)(?:/resourcegroups(?:/(?P<group>[^/]+))?)?"
    r"(?:/providers/(?P<provider>[^/]+)/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?)?/?",
    re.IGNORECASE,
)
_IMAGE_PATH = re.compile(
    r".*/locations/(?P<region>[^/]+)/publishers/(?P<publisher>[^/]+)/artifacttypes/vmimage/offers/(?P<offer>[^/]+)"
    r"/skus/(?P<sku>[^/]+)/versions",
    re.IGNORECASE,
)

REFUSALS: dict[str, tuple[int, str]] = {
    "ZonalAllocationFailed": (409, "Allocation failed. We do not have sufficient capacity in this zone."),
    "OverconstrainedZonalAllocationRequest": (409, "Allocation failed. VM(s) with these constraints cannot be had."),
    "AllocationFailed": (409, "Allocation failed. We do not have sufficient capacity in this region."),
    "SkuNotAvailable": (409, "The requested size for resource is currently not available in this location."),
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
_FAULT_CODES = {"QuotaTotal": "OperationNotAllowed", "QuotaFamily": "OperationNotAllowed"}


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


class AzureEmulator:
    """now: the account's clock. options: of the account and the shop. page_size: of every listing."""

    vendor: str = "azure"
    hosts: tuple[str, ...] = ("management.azure.com", "login.microsoftonline.com", "prices.azure.com")

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        machines: Machines | None = None,
        *,
        page_size: int = 50,
        **options: Any,
    ) -> None:
        of_shop = {key: options.pop(key) for key in ("stock", "late_stockout", "quotas", "ips") if key in options}
        self.account = Account(now, machines or NoMachines(), **options)
        self.shop = Shop(self.account, **of_shop)
        self.faults = Faults()
        self.page_size = page_size
        self.tokens = {"a-token-of-a-test"}
        self.permissions: list[dict[str, list[str]]] = [{"actions": ["*"], "notActions": []}]
        self.updated: list[str] = []  # machines that a second PUT was applied to
        self.app: WsgiApp = self._serve
        self.operations: dict[str, tuple[float, tuple[str, str] | None]] = {}

    # -- what the shared code asks --

    def existing(self) -> list[Existing]:
        return self.account.existing()

    def add_foreign(self) -> None:
        """A machine that somebody else made, in a group of theirs, with a disk that will outlive it."""
        account, now_unix_s = self.account, self.account.now()
        with account.lock:
            tail = uuid.uuid4().hex[:8]
            group = Group(f"theirs-{tail}", "westeurope", {"team": "another"}, now_unix_s - 86_400)
            account.groups[group.name.lower()] = group
            properties = {"hardwareProfile": {"vmSize": "Standard_D4as_v5"}, "networkProfile": {}}
            for type_, name in ((VM, "web"), (DISK, "web-disk"), (NIC, "web-nic"), (IP, "web-ip"), (NSG, "web-nsg")):
                thing = Thing(type_, group.name, f"{name}-{tail}", "westeurope", group.created_unix_s)
                thing.properties = dict(properties) if type_ == VM else {}
                account.things[thing.key] = thing

    def operation(self, environ: dict[str, Any]) -> str:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if "/api/retail/prices" in path:
            return "retailPrices.list"
        if not path.lower().startswith("/subscriptions/"):
            return "token.acquire" if method == "POST" else "token.metadata"
        found = _PATH.fullmatch(path)
        if found is None or (found["provider"] and f"{found['provider']}/{found['kind']}".lower() not in _TYPES):
            return f"{path.rsplit('/', 1)[-1]}.list"
        kind = found["kind"] or ("resourceGroups" if "/resourcegroups" in path.lower() else "subscriptions")
        single = found["name"] or (not found["kind"] and (found["group"] or kind == "subscriptions"))
        verb = {"PUT": "createOrUpdate", "DELETE": "delete", "GET": "get" if single else "list"}.get(method, method)
        return f"{kind}.{verb}"

    def error(self, code: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        status, message = REFUSALS[code]
        return self._answer(start_response, *_refusal(status, _FAULT_CODES.get(code, code), message))

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        raw = environ["wsgi.input"].read(length) if length else b""
        call = Call(
            method=environ["REQUEST_METHOD"],
            path=environ["PATH_INFO"],
            query={key: values[0] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()},
            headers={k.removeprefix("HTTP_").replace("_", "-").lower(): v for k, v in environ.items() if "HTTP_" in k},
            body=raw,
            base=f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}",
        )
        try:
            with self.account.lock:
                self.account.settle()
                answer = self._route(call)
        except Refused as refused:
            answer = _refusal(refused.at, refused.code, refused.message)
        return self._answer(start_response, *answer)

    # -- helpers of tests --

    def vm(self, name: str) -> Thing:
        return next(t for t in self.account.things.values() if t.type == VM and t.name == name)

    def evict(self, name: str) -> None:
        """Take a spot machine away, as its eviction policy says."""
        with self.account.lock:
            vm = self.vm(name)
            if vm.properties.get("evictionPolicy") == "Delete":
                self.account.remove(vm)
            else:
                vm.power = "deallocated"

    def power_off(self, name: str) -> None:
        """As its guest does it: stopped, and billed."""
        with self.account.lock:
            self.vm(name).power = "stopped"

    # -- protocol --

    def _answer(
        self, start_response: StartResponse, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> Iterable[bytes]:
        data = b"" if body is None else json.dumps(body).encode()
        lines = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(data))} | (headers or {})
        lines["x-ms-request-id"] = str(uuid.uuid4())
        start_response(f"{status} {'OK' if status < 300 else 'Refused'}", list(lines.items()))
        return [data]

    def _route(self, call: Call) -> tuple[int, Any, dict[str, str]]:
        if call.path == "/api/retail/prices":
            return self._prices(call)
        if not call.path.lower().startswith("/subscriptions/"):
            return self._token(call)
        self._check(call)
        if call.method in ("PUT", "PATCH", "POST"):
            try:
                call.body = json.loads(call.body)
            except ValueError:
                raise Refused(400, "InvalidRequestContent", "The request content was invalid.") from None
        found = _PATH.fullmatch(call.path)
        type_ = _TYPES.get(f"{found['provider']}/{found['kind']}".lower()) if found and found["provider"] else None
        if found is None or (found["provider"] and type_ is None):
            return self._metadata(call)
        if type_ is None:
            return self._groups(call, found["group"])
        if found["name"] is None:
            return self._page(call, [self._render(thing, call) for thing in self.account.listed(type_)])
        return self._things(call, found["group"] or "", type_, found["name"])

    def _check(self, call: Call) -> None:
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            code = "ExpiredAuthenticationToken" if token else "AuthenticationFailed"
            raise Refused(401, code, "Authentication failed. The token is missing or has expired.")
        if call.path.split("/")[2].lower() != SUBSCRIPTION:
            raise Refused(404, "SubscriptionNotFound", f"The subscription '{call.path.split('/')[2]}' was not found.")
        if not call.arg("api-version"):
            raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")

    def _groups(self, call: Call, name: str | None) -> tuple[int, Any, dict[str, str]]:
        account = self.account
        if name is None:
            if "resourcegroups" not in call.path.lower():
                return 200, {"subscriptionId": SUBSCRIPTION, "displayName": "emulated", "state": "Enabled"}, {}
            return self._page(call, [group_json(group) for group in account.listed("group")])
        if call.method == "PUT":
            why_not = azure_schema.group_problem(call.body)
            if why_not:
                raise Refused(400, "InvalidRequestContent", why_not)
            return self._put_group(name, call.body)
        if call.method == "DELETE":
            forced = call.arg("forceDeletionTypes").lower() == VM.lower()
            account.delete_group(name, forced=forced)
            return 202, None, {"Location": f"{call.base}/subscriptions/{SUBSCRIPTION}/operationresults/x", **_retry()}
        return 200, group_json(account.group(name)), {}

    def _put_group(self, name: str, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        account, location = self.account, body["location"].replace(" ", "").lower()
        if location not in REGIONS or location in GROUPLESS_REGIONS:
            raise Refused(
                400,
                "LocationNotAvailableForResourceGroup",
                f"The provided location '{location}' is not available for resource group.",
            )
        known = account.groups.get(name.lower())
        if known is None:
            account.groups[name.lower()] = Group(name, location, body.get("tags") or {}, account.now())
            return 201, group_json(account.groups[name.lower()]), {}
        self._check_not_ending(known)
        if known.location != location:
            raise Refused(409, "InvalidResourceGroupLocation", f"The group exists in '{known.location}'.")
        known.tags = body.get("tags") or {}
        return 200, group_json(known), {}

    def _check_not_ending(self, group: Group) -> None:
        if group.ends_unix_s is not None:
            raise Refused(
                409,
                "ResourceGroupBeingDeleted",
                f"The resource group '{group.name}' is in deprovisioning state and cannot perform this operation.",
            )

    def _things(self, call: Call, group: str, type_: str, name: str) -> tuple[int, Any, dict[str, str]]:
        account = self.account
        if call.method == "PUT":
            self._check_not_ending(account.group(group))
            why_not = azure_schema.problem(type_, call.body)
            if why_not:
                raise Refused(400, "InvalidRequestContent", why_not)
            return self._put(call, group, type_, name)
        if call.method == "DELETE":
            try:
                thing = account.thing(group, type_, name)
            except Refused:
                return 204, None, {}
            account.delete(thing)
            return 202, None, self._operation(call, thing.ends_unix_s or 0.0, None)
        return 200, self._render(account.thing(group, type_, name), call), {}

    def _put(self, call: Call, group: str, type_: str, name: str) -> tuple[int, Any, dict[str, str]]:
        account, body = self.account, call.body
        known = account.things.get(f"{group}/{type_}/{name}".lower())
        if type_ == VM:
            if known is not None and call.headers.get("if-none-match") == "*":
                raise Refused(412, "PreconditionFailed", "The condition 'If-None-Match: *' was not satisfied.")
            if known is not None and known.properties != (body.get("properties") or {}):
                raise Refused(409, "PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed.")
            if known is not None:
                self.updated.append(name)
                return 200, self._render(known, call), {}
            made = self.shop.create(group, name, body)
            return 201, self._render(made, call), self._operation(call, made.ready_unix_s, made.failure)
        if type_ not in (NSG, NET) and not type_.startswith("Microsoft.DevTestLab"):
            raise Refused(400, "BadRequest", f"This emulator makes no {type_} by itself.")
        if known is not None:
            known.tags, known.properties = body.get("tags") or {}, body.get("properties") or {}
            return 200, self._render(known, call), {}
        now_unix_s = account.now()
        thing = Thing(type_, group, name, body["location"], now_unix_s, tags=body.get("tags") or {})
        thing.properties = body.get("properties") or {}
        thing.ready_unix_s = now_unix_s + account.network_s
        account.things[thing.key] = thing
        return 201, self._render(thing, call), self._operation(call, thing.ready_unix_s, None)

    def _render(self, thing: Thing, call: Call) -> dict[str, Any]:
        if call.arg("statusOnly") == "true":
            return status_json(thing, self.account)
        return thing_json(thing, self.account, expand=call.arg("$expand"))

    def _operation(self, call: Call, ends_unix_s: float, failure: tuple[str, str] | None) -> dict[str, str]:
        key = str(uuid.uuid4())
        self.operations[key] = (ends_unix_s, failure)
        url = f"{call.base}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/x/operations/{key}"
        return {"Azure-AsyncOperation": f"{url}?api-version=2024-07-01", **_retry()}

    def _metadata(self, call: Call) -> tuple[int, Any, dict[str, str]]:
        """What is only read: sizes, images, usages, permissions, providers, operations."""
        path = call.path.lower()
        if "/operations/" in path:
            ends_unix_s, failure = self.operations[path.rsplit("/", 1)[1]]
            if self.account.now() < ends_unix_s:
                return 200, {"status": "InProgress"}, _retry()
            if failure:
                return 200, {"status": "Failed", "error": {"code": failure[0], "message": failure[1]}}, {}
            return 200, {"status": "Succeeded"}, {}
        if path.endswith("/skus"):
            wanted = re.search(r"location eq '([^']+)'", call.arg("$filter"))
            regions = [wanted[1]] if wanted else list(REGIONS)
            return self._page(call, [s.sku(r) for r in regions for s in SIZES.values() if r in s.regions])
        if path.endswith("/locations"):
            physical = [{"name": region, "metadata": {"regionType": "Physical"}} for region in REGIONS]
            return self._page(call, [*physical, {"name": "europe", "metadata": {"regionType": "Logical"}}])
        image = _IMAGE_PATH.fullmatch(call.path)
        if image is not None:
            known = (image["publisher"], image["offer"], image["sku"]) in IMAGES
            if not known:
                raise Refused(404, "NotFound", "Artifact: VMImage was not found.")
            return 200, [{"location": image["region"], "name": "24.04.202611010", "id": call.path}], {}
        if path.endswith("/usages"):
            return self._page(call, self._usages(call))
        if path.endswith("/permissions"):
            return self._page(call, self.permissions)
        if path.rstrip("/").endswith("/providers"):
            names = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab")
            return self._page(call, [{"namespace": n, "registrationState": "Registered"} for n in names])
        raise Refused(404, "InvalidResourceType", f"The resource type of {call.path} could not be found.")

    def _usages(self, call: Call) -> list[dict[str, Any]]:
        region = call.path.split("/locations/")[1].split("/")[0]
        if "Microsoft.Network" in call.path:
            return [_usage("PublicIPAddresses", 0, self.shop.ips)]
        limit = self.shop.quotas.get
        return [
            _usage("cores", 0, limit((region, "total"), 100)),
            _usage("lowPriorityCores", 0, limit((region, "spot"), 100)),
        ]

    def _page(self, call: Call, items: list[Any]) -> tuple[int, Any, dict[str, str]]:
        start = int(call.arg("$skiptoken") or 0)
        body: dict[str, Any] = {"value": items[start : start + self.page_size]}
        if start + self.page_size < len(items):
            query = {k: v for k, v in call.query.items() if k != "$skiptoken"} | {
                "$skiptoken": str(start + self.page_size)
            }
            text = "&".join(f"{quote(key)}={quote(value)}" for key, value in query.items())
            body["nextLink"] = f"{call.base}{call.path}?{text}"
        return 200, body, {}

    def _prices(self, call: Call) -> tuple[int, Any, dict[str, str]]:
        wanted = re.search(r"armRegionName eq '([^']+)'", call.arg("$filter"))
        if wanted is None or "serviceName eq 'Virtual Machines'" not in call.arg("$filter"):
            raise Refused(400, "BadRequest", "The filter is not one that this emulator knows.")
        items, start = meters(wanted[1]), int(call.arg("$skip") or 0)
        body: dict[str, Any] = {"BillingCurrency": "USD", "Items": items[start : start + 10], "NextPageLink": None}
        if start + 10 < len(items):
            link = f"$filter={quote(call.arg('$filter'))}&$skip={start + 10}"
            body["NextPageLink"] = f"https://prices.azure.com:443/api/retail/prices?{link}"
        return 200, body | {"Count": len(body["Items"])}, {}

    def _token(self, call: Call) -> tuple[int, Any, dict[str, str]]:
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
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return 200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token}, {}


def _refusal(status: int, code: str, message: str) -> tuple[int, Any, dict[str, str]]:
    return status, {"error": {"code": code, "message": message}}, _retry() if status == 429 else {}


def _retry() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)}


def _usage(name: str, current: int, limit: int) -> dict[str, Any]:
    return {
        "name": {"value": name, "localizedValue": name},
        "currentValue": current,
        "limit": limit,
        "unit": "Count",
    }
