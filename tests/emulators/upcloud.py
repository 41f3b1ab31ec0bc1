"""UpCloud's API over HTTP, as its SDK speaks it: strict on requests, stateful.

The account behind it is in `upcloud_state.py`, what it accepts and sells in `upcloud_schema.py`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from threading import RLock
from typing import Any

from werkzeug.wrappers import Request, Response

from tasks.clouds.base import OWNER, OWNER_TAG
from tests.emulators import upcloud_schema as schema
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp
from tests.emulators.upcloud_payload import details, ip_payload, storage_payload, summary
from tests.emulators.upcloud_state import Account, ApiError, Thing

USERNAME, PASSWORD = "emulated-subaccount", "emulated-password"
TOKEN = "ucat_emulated-token"
KINDS = {"server": "server", "storage": "disk", "ip": "ip"}
_MOST_ENTRIES = 100


class UpCloudEmulator:
    """options: of `Account`. requests_per_minute: beyond these, 429."""

    vendor = "upcloud"
    hosts: tuple[str, ...] = ("api.upcloud.com",)

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        machines: Machines | None = None,
        *,
        requests_per_minute: int = 100_000,
        **options: Any,
    ) -> None:
        self.faults = Faults()
        self.on_operation: Callable[[str], None] = lambda operation: None
        self.app: WsgiApp = self._serve
        self.account = Account(now, machines or NoMachines(), **options)
        basic = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        self.credentials = {f"Basic {basic}", f"Bearer {TOKEN}"}
        self.price_currency = ""  # the documented list tells none
        self._now = now
        self._lock = RLock()
        self._limit = requests_per_minute
        self._minute = (0, 0)

    # -- what tests look at --

    def existing(self) -> list[Existing]:
        with self._lock:
            return [
                Existing(
                    kind="snapshot" if thing.data.get("type") == "backup" else kind,
                    name=thing.title or thing.uuid,
                    cloud_id=_id_of(thing),
                    place=thing.zone,
                    ours=self._is_ours(thing),
                    usd_per_hour=self.account.eur_per_hour(thing),
                )
                for table, kind in KINDS.items()
                for thing in self.account.alive(table)
            ]

    def _is_ours(self, thing: Thing) -> bool:
        """By its label, or by where it came from, whether it still hangs on that or not."""
        return thing.labels.get(OWNER_TAG) == OWNER or thing.data.get("made_for_ours", False)

    def usd_per_hour(self) -> Decimal:
        return sum((thing.usd_per_hour for thing in self.existing() if thing.ours), Decimal(0))

    def add_foreign(self) -> None:
        """A server with a disk, its backup and an address, a disk on no server, and a floating address."""
        with self._lock:
            add = self.account.add
            server = add("server", "theirs", "fi-hel1", {"team": "web"}, hostname="theirs.example.com")
            server.data |= {"plan": schema.plans()[1], "state": "started", "busy_until_unix_s": 0.0, "foreign": True}
            disk = {"size": 50, "tier": "maxiops", "type": "normal"}
            attached = add("storage", "theirs disk", "fi-hel1", {}, server=server.uuid, **disk)
            add("storage", "nightly", "fi-hel1", {}, size=50, tier="maxiops", type="backup", origin=attached.uuid)
            add("storage", "archive", "fi-hel1", {}, server=None, **disk)
            add("ip", "", "fi-hel1", {}, server=server.uuid, floating="no", release_policy="release")
            add("ip", "", "fi-hel1", {}, server=None, floating="yes", release_policy="keep")

    # -- HTTP --

    def operation(self, environ: dict[str, Any]) -> str:
        return f"{environ['REQUEST_METHOD']} {_template(environ['PATH_INFO'])}"

    def error(self, code: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return _answer_error(code, code.replace("_", " ").capitalize())(environ, start_response)

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        with self._lock:
            try:
                self._let_in(request)
                self.on_operation(self.operation(environ))
                response = _json(*self._dispatch(request))
            except ApiError as exc:
                response = _answer_error(exc.code, str(exc))
        return response(environ, start_response)

    def _let_in(self, request: Request) -> None:
        if request.headers.get("Authorization", "") not in self.credentials:
            raise ApiError("AUTHENTICATION_FAILED", "Authentication failed using the given username and password.")
        minute = int(self._now() // 60)
        count = self._minute[1] + 1 if self._minute[0] == minute else 1
        self._minute = (minute, count)
        if count > self._limit:
            raise ApiError("RATE_LIMITED", "Too many requests.")

    def _dispatch(self, request: Request) -> tuple[Any, int]:
        operation = f"{request.method} {_template(request.path)}"
        subject = request.path.removeprefix("/1.3").strip("/").split("/")
        body = self._body(request, operation)
        fixed: dict[str, Callable[[], Any]] = {
            "GET /account": self._account,
            "GET /zone": lambda: {"zones": {"zone": [{"id": zone, "public": "yes"} for zone in schema.ZONES]}},
            "GET /plan": lambda: {"plans": {"plan": schema.plans()}},
            "GET /price": self._prices,
            "GET /device/availability": schema.gpu_stock,
            "GET /storage/template": lambda: {"storages": {"storage": schema.templates()}},
            "GET /server": lambda: {"servers": {"server": self._list("server", request, self._summary)}},
            "GET /storage/private": lambda: {"storages": {"storage": self._list("storage", request, self._storage)}},
            "GET /ip_address": lambda: {"ip_addresses": {"ip_address": self._list("ip", request, ip_payload)}},
        }
        if operation in fixed:
            return fixed[operation](), 200
        if operation == "POST /server":
            return self._create(body["server"]), 202
        if operation == f"GET /account/details/{USERNAME}":
            return {"account": {"username": USERNAME, "currency": schema.CURRENCY, "type": "sub"}}, 200
        kind = {"server": "server", "storage": "storage", "ip_address": "ip"}.get(subject[0])
        if kind is None or len(subject) < 2:
            raise ApiError("NOT_FOUND", f"no such endpoint: {operation}")
        return self._one(operation, self.account.find(kind, subject[1]), request, body)

    def _body(self, request: Request, operation: str) -> dict[str, Any]:
        if request.method not in ("POST", "PUT"):
            return {}
        validator = schema.BODIES.get(operation)
        if validator is None:
            raise ApiError("NOT_FOUND", f"no such endpoint: {operation}")
        try:
            body = json.loads(request.get_data() or b"{}")
        except ValueError:
            raise ApiError("REQUEST_INVALID", "The request is no JSON.") from None
        for problem in validator.iter_errors(body):
            if problem.validator == "additionalProperties":
                raise ApiError("UNKNOWN_ATTRIBUTE", problem.message)
            name = str(next((part for part in reversed(problem.path) if isinstance(part, str)), "request")).upper()
            raise ApiError(f"{name}_{'MISSING' if problem.validator == 'required' else 'INVALID'}", problem.message)
        assert isinstance(body, dict)
        return body

    def _prices(self) -> dict[str, Any]:
        told = {"currency": self.price_currency} if self.price_currency else {}
        return {"prices": told | {"zone": schema.prices()}}

    def _account(self) -> dict[str, Any]:
        limits = {"cores": self.account.core_limit, "memory": 1048576, "public_ipv4": 100, "storage_maxiops": 10240}
        account = {"username": USERNAME, "credits": self.account.credits, "resource_limits": limits}
        return {"account": account}

    def _list(self, kind: str, request: Request, show: Callable[[Thing], dict[str, Any]]) -> list[dict[str, Any]]:
        unknown = set(request.args) - {"label", "limit", "offset"}
        if unknown:
            raise ApiError("REQUEST_INVALID", f"unknown parameters: {sorted(unknown)}")
        found = [thing for thing in self.account.listed(kind) if _passes(thing, request.args.getlist("label"))]
        offset = request.args.get("offset", 0, type=int)
        limit = min(request.args.get("limit", _MOST_ENTRIES, type=int), _MOST_ENTRIES)
        return [show(thing) for thing in found[offset : offset + limit]]

    def _summary(self, server: Thing) -> dict[str, Any]:
        return summary(self.account, server)

    def _storage(self, storage: Thing) -> dict[str, Any]:
        return storage_payload(self.account, storage)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        server = self.account.create_server(body)
        if self._is_ours(server):
            for thing in (*self.account.of("storage", server), *self.account.of("ip", server)):
                thing.data["made_for_ours"] = True
        secrets = {"password": "a-password-that-nobody-may-see", "username": "root"}
        return {"server": details(self.account, server) | secrets}

    def _one(
        self, operation: str, thing: Thing, request: Request, body: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, int]:
        account = self.account
        if operation == "GET /server/{uuid}":
            return {"server": details(account, thing)}, 200
        if operation == "POST /server/{uuid}/stop":
            account.stop(thing)
            return {"server": details(account, thing)}, 200
        if operation == "DELETE /server/{uuid}":
            storages, backups = request.args.get("storages", "0") == "1", request.args.get("backups", "keep")
            account.delete_server(thing, storages=storages, backups=backups)
            return None, 204
        if operation == "GET /storage/{uuid}":
            return {"storage": storage_payload(account, thing)}, 200
        if operation == "DELETE /storage/{uuid}":
            account.delete_storage(thing, backups=request.args.get("backups", "keep"))
            return None, 204
        if operation == "GET /ip_address/{address}":
            return {"ip_address": ip_payload(thing)}, 200
        if operation == "PUT /ip_address/{address}":
            thing.data |= body["ip_address"]
            return {"ip_address": ip_payload(thing)}, 202
        if operation == "DELETE /ip_address/{address}":
            thing.ended_unix_s = self._now()
            return None, 204
        raise ApiError("NOT_FOUND", f"no such endpoint: {operation}")


def _id_of(thing: Thing) -> str:
    """With the kind, and for an address with the server that it is of: addresses are used again."""
    if thing.kind == "server":
        return thing.uuid
    return f"storage/{thing.uuid}" if thing.kind == "storage" else f"ip/{thing.data['server']}/{thing.uuid}"


def _template(path: str) -> str:
    path = path.removeprefix("/1.3").rstrip("/")
    path = re.sub(r"/ip_address/[^/]+", "/ip_address/{address}", path)
    return re.sub(r"/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "/{uuid}", path)


def _passes(thing: Thing, filters: list[str]) -> bool:
    for wanted in filters:
        key, equals, value = wanted.partition("=")
        if key not in thing.labels or (equals and thing.labels[key] != value):
            return False
    return True


def _json(document: Any, status: int) -> Response:
    body = b"" if document is None else json.dumps(document).encode()
    return Response(body, status=status, content_type="application/json; charset=UTF-8")


def _answer_error(code: str, message: str) -> Response:
    """As the older parts of the API say it, or, for "problem:STATUS", as the newer ones do."""
    if code.startswith("problem:"):
        status = int(code.removeprefix("problem:"))
        document = {
            "type": "https://developers.upcloud.com/1.3/errors",
            "title": "Something is wrong.",
            "status": status,
        }
        return Response(json.dumps(document), status=status, content_type="application/problem+json")
    return _json({"error": {"error_code": code, "error_message": message}}, schema.STATUS.get(code, 400))
