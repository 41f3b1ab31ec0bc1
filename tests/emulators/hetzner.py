"""Hetzner's API over HTTP, as its SDK speaks it: strict on requests, stateful, rate limited.

The project behind it is in `hetzner_state.py`, what it accepts and sells in `hetzner_schema.py`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from threading import RLock
from typing import Any

from werkzeug.wrappers import Request, Response

from tasks.clouds.base import OWNER, OWNER_TAG
from tests.emulators import hetzner_schema as schema
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp
from tests.emulators.hetzner_payload import applied_to, payload
from tests.emulators.hetzner_state import ApiError, Project, Thing

TOKEN = "emulated-token-of-a-project"
READONLY_TOKEN = "emulated-token-that-may-only-read"
BILLING = {"servers": "server", "primary_ips": "ip", "volumes": "disk", "images": "snapshot", "floating_ips": "ip"}
SINGULAR = {kind: kind[:-1] for kind in schema.FILTERS}


class HetznerEmulator:
    """options: of `Project`. requests_per_hour: the rate limit, refilled evenly."""

    vendor = "hetzner"
    hosts: tuple[str, ...] = ("api.hetzner.cloud",)

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        machines: Machines | None = None,
        *,
        requests_per_hour: int = 3600,
        **options: Any,
    ) -> None:
        self.faults = Faults()
        self.on_operation: Callable[[str], None] = lambda operation: None
        self.app: WsgiApp = self._serve
        self.project = Project(now, machines or NoMachines(), **options)
        self.tokens = {TOKEN}
        self._now = now
        self._lock = RLock()
        self._limit = requests_per_hour
        self._left = float(requests_per_hour)
        self._refilled_unix_s = now()

    # -- what tests look at --

    def existing(self) -> list[Existing]:
        with self._lock:
            self.project.settle()
            return [
                Existing(
                    kind=kind,
                    name=thing.name,
                    cloud_id=_id_of(thing),
                    place=thing.place,
                    ours=self._is_ours(thing),
                    usd_per_hour=self.project.eur_per_hour(thing),
                )
                for table, kind in BILLING.items()
                for thing in self.project.alive(table)
                if thing.data.get("type") != "system"
            ]

    def _is_ours(self, thing: Thing) -> bool:
        """By its label, or made along with what is ours, whether it still hangs on it or not."""
        return thing.labels.get(OWNER_TAG) == OWNER or thing.data.get("made_for_ours", False)

    def usd_per_hour(self) -> Decimal:
        return sum((thing.usd_per_hour for thing in self.existing() if thing.ours), Decimal(0))

    def add_foreign(self) -> None:
        """A server with its address, a volume and a snapshot, as somebody else makes them in the console."""
        with self._lock:
            body = {"name": f"theirs-{len(self.project.table('servers'))}", "server_type": "cx23"}
            body |= {"image": "ubuntu-24.04", "location": "fsn1"}
            server, _, _ = self.project.create_server(body | {"labels": {"team": "web"}}, foreign=True)
            volume = self.project.add("volumes", f"data-{server.id}", "fsn1", {})
            volume.data = {"size": 10, "assignee": server.id}
            snapshot = self.project.add("images", "", "", {})
            snapshot.data = {"size": 5, "type": "snapshot", "architecture": "x86", "description": "before the upgrade"}

    # -- HTTP --

    def operation(self, environ: dict[str, Any]) -> str:
        return f"{environ['REQUEST_METHOD']} {_template(environ['PATH_INFO'])}"

    def error(self, code: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return _answer_error(code, code.replace("_", " "))(environ, start_response)

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        with self._lock:
            try:
                self._let_in(request)
                self.on_operation(self.operation(environ))
                self.project.settle()
                status, document = self._dispatch(request)
                response = _json(document, status)
            except ApiError as exc:
                response = _answer_error(exc.code, str(exc))
            response.headers["RateLimit-Limit"] = str(self._limit)
            response.headers["RateLimit-Remaining"] = str(int(self._left))
            response.headers["RateLimit-Reset"] = str(int(self._now() + 3600))
        return response(environ, start_response)

    def _let_in(self, request: Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens and token != READONLY_TOKEN:
            raise ApiError("unauthorized", "unable to authenticate")
        elapsed_s, self._refilled_unix_s = self._now() - self._refilled_unix_s, self._now()
        self._left = min(self._limit, self._left + elapsed_s * self._limit / 3600)
        if self._left < 1:
            raise ApiError("rate_limit_exceeded", f"limit of {self._limit} requests per hour reached")
        self._left -= 1
        if token == READONLY_TOKEN and request.method != "GET":
            raise ApiError("token_readonly", "token is only allowed to perform read operations")

    def _dispatch(self, request: Request) -> tuple[int, dict[str, Any]]:
        operation = f"{request.method} {_template(request.path)}"
        path = request.path.removeprefix("/v1").strip("/").split("/")
        kind, numbers = path[0], [int(part) for part in path if part.isdigit()]
        body = self._body(request, operation)
        if operation == "GET /pricing":
            return 200, {"pricing": schema.pricing()}
        if kind not in schema.FILTERS:
            raise ApiError("not_found", "no such endpoint")
        if request.method == "GET" and len(path) == 1:
            return 200, self._list(kind, request)
        if operation == "GET /servers/{id}/actions":
            return 200, self._actions(numbers[0], request)
        if operation == "POST /servers":
            return 201, self._create_server(body)
        if operation == "POST /firewalls":
            return 201, self._create_firewall(body)
        if not numbers:
            raise ApiError("not_found", "no such endpoint")
        thing = self.project.find(kind, numbers[0])
        if len(path) == 2:
            return self._one(request.method, kind, thing, body)
        return 201, self._act(operation, thing, body)

    def _body(self, request: Request, operation: str) -> dict[str, Any]:
        if request.method not in ("POST", "PUT"):
            return {}
        try:
            body = json.loads(request.get_data() or b"{}")
        except ValueError:
            raise ApiError("json_error", "invalid JSON") from None
        validator = schema.BODIES.get(operation)
        if validator is None:
            raise ApiError("not_found", f"no such endpoint: {operation}")
        for problem in validator.iter_errors(body):
            where = ".".join(str(part) for part in problem.path) or "body"
            raise ApiError("invalid_input", f"invalid input in field '{where}': {problem.message}")
        assert isinstance(body, dict)
        return body

    # -- reading --

    def _list(self, kind: str, request: Request) -> dict[str, Any]:
        unknown = set(request.args) - schema.FILTERS[kind] - {"page", "per_page", "sort"}
        page, per_page = (request.args.get(key, default, type=int) for key, default in (("page", 1), ("per_page", 25)))
        if unknown or not page or page < 1 or not per_page or not 1 <= per_page <= 50:
            raise ApiError("invalid_input", f"invalid query: {sorted(unknown) or 'page, per_page'}")
        _passes({}, request)  # a selector that cannot be read is refused although nothing is there
        found = [entry for entry in self._entries(kind) if _passes(entry, request)]
        last = max(1, -(-len(found) // per_page))
        pagination = {
            "page": page,
            "per_page": per_page,
            "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None,
            "last_page": last,
            "total_entries": len(found),
        }
        return {kind: found[(page - 1) * per_page : page * per_page], "meta": {"pagination": pagination}}

    def _entries(self, kind: str) -> list[dict[str, Any]]:
        if kind == "server_types":
            return schema.server_types()
        if kind == "locations":
            return [schema.location(name) for name in schema.LOCATIONS]
        return [self._payload(thing) for thing in self.project.listed(kind)]

    def _actions(self, number: int, request: Request) -> dict[str, Any]:
        server = self.project.find("servers", number)
        wanted = set(request.args.getlist("status"))
        actions = [a.payload(self._now()) for a in self.project.actions if a.resource == ("server", server.id)]
        found = [action for action in actions if not wanted or action["status"] in wanted]
        return {"actions": found, "meta": {"pagination": {"page": 1, "per_page": 25, "total_entries": len(found)}}}

    def _payload(self, thing: Thing) -> dict[str, Any]:
        return payload(self.project, thing)

    # -- writing --

    def _create_server(self, body: dict[str, Any]) -> dict[str, Any]:
        server, action, next_actions = self.project.create_server(body)
        if self._is_ours(server) and "ipv4" in server.data:
            self.project.find("primary_ips", server.data["ipv4"]).data["made_for_ours"] = True
        return {
            "server": self._payload(server),
            "action": action.payload(self._now()),
            "next_actions": [later.payload(self._now()) for later in next_actions],
            "root_password": None if body.get("ssh_keys") else "a-root-password-that-nobody-may-see",
        }

    def _create_firewall(self, body: dict[str, Any]) -> dict[str, Any]:
        if len(self.project.alive("firewalls")) >= self.project.firewall_limit:
            raise ApiError("resource_limit_exceeded", "firewall limit exceeded")
        firewall = self.project.add("firewalls", body["name"], "", body.get("labels", {}))
        firewall.data = {"rules": body.get("rules", [])}
        return {"firewall": self._payload(firewall), "actions": []}

    def _one(self, method: str, kind: str, thing: Thing, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method == "PUT":
            thing.labels = dict(body.get("labels", thing.labels))
            thing.name = body.get("name", thing.name)
            thing.data |= {key: body[key] for key in ("auto_delete",) if key in body}
        elif method == "DELETE":
            return self._delete(kind, thing)
        return 200, {SINGULAR[kind]: self._payload(thing)}

    def _delete(self, kind: str, thing: Thing) -> tuple[int, dict[str, Any]]:
        if kind == "servers":
            return 200, {"action": self.project.delete_server(thing).payload(self._now())}
        if thing.protected:
            raise ApiError("protected", f"{SINGULAR[kind]} deletion is protected")
        if kind == "firewalls" and applied_to(self.project, thing):
            raise ApiError("resource_in_use", "firewall is in use")
        if kind in ("primary_ips", "volumes") and thing.data.get("assignee"):
            raise ApiError("must_be_unassigned" if kind == "primary_ips" else "locked", f"{thing.name} is attached")
        thing.ended_unix_s = self._now()
        return 204, {}

    def _act(self, operation: str, thing: Thing, body: dict[str, Any]) -> dict[str, Any]:
        command = operation.rpartition("/")[2]
        if command == "set_rules":
            thing.data["rules"] = body["rules"]
            return {"actions": [self.project.act("set_firewall_rules", thing).payload(self._now())]}
        if command == "detach":
            thing.data["assignee"] = None
        elif command == "poweroff":
            thing.data["off"] = True
        elif command == "change_protection":
            thing.protected = body.get("delete", thing.protected)
        else:
            raise ApiError("not_found", "no such action")
        return {"action": self.project.act(command, thing).payload(self._now())}


def _id_of(thing: Thing) -> str:
    """With the kind, because numbers are counted by kind; a server's is the bare number that everybody knows."""
    return str(thing.id) if thing.kind == "servers" else f"{SINGULAR[thing.kind]}/{thing.id}"


def _template(path: str) -> str:
    return re.sub(r"/\d+", "/{id}", path.removeprefix("/v1"))


def _passes(entry: dict[str, Any], request: Request) -> bool:
    for key in ("name", "ip", "fingerprint"):
        if key in request.args and entry.get(key) != request.args[key]:
            return False
    for key in ("status", "type", "architecture"):
        if key in request.args and entry.get(key) not in request.args.getlist(key):
            return False
    try:
        return schema.selects(request.args.get("label_selector", ""), entry.get("labels") or {})
    except ValueError as exc:
        raise ApiError("invalid_input", f"invalid {exc}") from None


def _json(document: dict[str, Any], status: int) -> Response:
    body = b"" if status == 204 else json.dumps(document).encode()
    return Response(body, status=status, content_type="application/json")


def _answer_error(code: str, message: str) -> Response:
    document = {"error": {"code": code, "message": message, "details": None}}
    return _json(document, schema.STATUS.get(code, 400))
