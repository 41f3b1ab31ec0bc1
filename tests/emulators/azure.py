"""An emulated Azure: Resource Manager with compute and network providers, its token endpoint, and its price list."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from tests.emulators import azure_schema
from tests.emulators.azure_machines import Shop
from tests.emulators.azure_metadata import (
    CLIENT_ID,
    CLIENT_SECRET,
    FAULT_CODES,
    REFUSALS,
    TENANT,
    Answer,
    Call,
    metadata,
    page,
    prices,
    refusal,
    retry,
    token,
)
from tests.emulators.azure_payload import group_json, status_json, thing_json
from tests.emulators.azure_sales import GROUPLESS_REGIONS, REGIONS
from tests.emulators.azure_state import DISK, IP, KINDS, NET, NIC, NSG, SUBSCRIPTION, VM, Account, Group, Refused, Thing
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp

__all__ = ["CLIENT_ID", "CLIENT_SECRET", "SUBSCRIPTION", "TENANT", "AzureEmulator"]

_TYPES = {type_.lower(): type_ for type_ in KINDS}
_PATH = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)(?:/resourcegroups(?:/(?P<group>[^/]+))?)?"
    r"(?:/providers/(?P<provider>[^/]+)/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?)?/?",
    re.IGNORECASE,
)


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
        return self._answer(start_response, *refusal(status, FAULT_CODES.get(code, code), message))

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
            answer = refusal(refused.at, refused.code, refused.message)
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

    def _route(self, call: Call) -> Answer:
        if call.path == "/api/retail/prices":
            return prices(call)
        if not call.path.lower().startswith("/subscriptions/"):
            return token(call, self.tokens)
        self._check(call)
        if call.method in ("PUT", "PATCH", "POST"):
            try:
                call.body = json.loads(call.body)
            except ValueError:
                raise Refused(400, "InvalidRequestContent", "The request content was invalid.") from None
        found = _PATH.fullmatch(call.path)
        type_ = _TYPES.get(f"{found['provider']}/{found['kind']}".lower()) if found and found["provider"] else None
        if found is None or (found["provider"] and type_ is None):
            return metadata(call, self.shop, self.permissions, self.operations, self.page_size)
        if type_ is None:
            return self._groups(call, found["group"])
        if found["name"] is None:
            return page(call, self.page_size, [self._render(thing, call) for thing in self.account.listed(type_)])
        return self._things(call, found["group"] or "", type_, found["name"])

    def _check(self, call: Call) -> None:
        bearer = call.headers.get("authorization", "").removeprefix("Bearer ")
        if bearer not in self.tokens:
            code = "ExpiredAuthenticationToken" if bearer else "AuthenticationFailed"
            raise Refused(401, code, "Authentication failed. The token is missing or has expired.")
        if call.path.split("/")[2].lower() != SUBSCRIPTION:
            raise Refused(404, "SubscriptionNotFound", f"The subscription '{call.path.split('/')[2]}' was not found.")
        if not call.arg("api-version"):
            raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")

    def _groups(self, call: Call, name: str | None) -> Answer:
        account = self.account
        if name is None:
            if "resourcegroups" not in call.path.lower():
                return 200, {"subscriptionId": SUBSCRIPTION, "displayName": "emulated", "state": "Enabled"}, {}
            return page(call, self.page_size, [group_json(group) for group in account.listed("group")])
        if call.method == "PUT":
            why_not = azure_schema.group_problem(call.body)
            if why_not:
                raise Refused(400, "InvalidRequestContent", why_not)
            return self._put_group(name, call.body)
        if call.method == "DELETE":
            forced = call.arg("forceDeletionTypes").lower() == VM.lower()
            account.delete_group(name, forced=forced)
            return 202, None, {"Location": f"{call.base}/subscriptions/{SUBSCRIPTION}/operationresults/x", **retry()}
        return 200, group_json(account.group(name)), {}

    def _put_group(self, name: str, body: dict[str, Any]) -> Answer:
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

    def _things(self, call: Call, group: str, type_: str, name: str) -> Answer:
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

    def _put(self, call: Call, group: str, type_: str, name: str) -> Answer:
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
        return {"Azure-AsyncOperation": f"{url}?api-version=2024-07-01", **retry()}
