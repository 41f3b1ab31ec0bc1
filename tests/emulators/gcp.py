"""Compute Engine, the Cloud Billing Catalog and the Resource Manager, as far as tokensweep speaks to them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from threading import RLock
from typing import Any
from urllib.parse import parse_qsl

from tasks.clouds.base import OWNER, OWNER_TAG
from tests.emulators import gcp_offers as offers
from tests.emulators import gcp_rules as rules
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp
from tests.emulators.gcp_answers import Answers
from tests.emulators.gcp_discovery import Call, RefusedRequest, service
from tests.emulators.gcp_methods import Methods
from tests.emulators.gcp_project import Project
from tests.emulators.gcp_state import (
    ADDRESS,
    DISK,
    INSTANCE,
    SNAPSHOT,
    Thing,
    Timing,
)

Json = dict[str, Any]
DOCUMENTS = ("compute.v1", "cloudbilling.v1", "cloudresourcemanager.v3")
TOKEN = "emulated-token"
KINDS = {INSTANCE: "server", DISK: "disk", ADDRESS: "ip", SNAPSHOT: "snapshot"}
_SIDE_IDS = {DISK: "disk/", ADDRESS: "ip/", SNAPSHOT: "snapshot/"}

_SAID: dict[str, tuple[int, str]] = {  # a code: with which status, and in which domain's words
    "rateLimitExceeded": (403, "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute'."),
    "quotaExceeded": (403, "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-central1."),
    "authError": (401, "Request had invalid authentication credentials."),
    "forbidden": (403, "Required 'compute.instances.create' permission for 'projects/bench-project'"),
    "backendError": (503, "The service is currently unavailable."),
    "notFound": (404, "The resource 'projects/bench-project/global/firewalls/x' was not found"),
    "internalError": (500, "Internal Error"),
    "resourceNotReady": (400, "The resource 'projects/bench-project/zones/z/instances/i' is not ready"),
    "conditionNotMet": (412, "Constraint constraints/compute.vmExternalIpAccess violated for project."),
}
_ERROR_INFO = {
    "rateLimitExceeded": "RATE_LIMIT_EXCEEDED",
    "forbidden": "IAM_PERMISSION_DENIED",
    "authError": "ACCESS_TOKEN_EXPIRED",
}


@dataclass
class GcpEmulator(Methods):
    """unreachable: zones that listings lack; unreachable_as: where they say so. granted: permissions of the caller,
    all when None. tokens: those that are valid. page_size: of listings, at most."""

    now: Callable[[], float] = time.time
    machines: Machines = field(default_factory=NoMachines)
    timing: Timing = field(default_factory=Timing)
    unreachable: set[str] = field(default_factory=set)
    unreachable_as: str = "unreachables"
    granted: set[str] | None = None
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    page_size: int = 500
    vendor: str = "gcp"
    hosts: tuple[str, ...] = (
        "compute.googleapis.com",
        "cloudbilling.googleapis.com",
        "cloudresourcemanager.googleapis.com",
        "oauth2.googleapis.com",
    )
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.app: WsgiApp = self._serve
        self.project = Project(self.now, self.machines, timing=self.timing)
        self._lock = RLock()
        self.answers = Answers(self.project)
        self._n_foreign = 0

    # -- what it is --

    def existing(self) -> list[Existing]:
        with self._lock:
            self.project.pass_time()
            return [
                Existing(
                    kind=KINDS[thing.kind],
                    name=thing.name,
                    cloud_id=f"{_SIDE_IDS.get(thing.kind, '')}{thing.id}",
                    place=thing.scope,
                    ours=thing.labels.get(OWNER_TAG) == OWNER,
                    usd_per_hour=self.project.usd_per_hour(thing),
                )
                for kind in KINDS
                for thing in self.project.existing(kind)
            ]

    def add(self, kind: str, name: str, scope: str, body: Json) -> Thing:
        """Something that somebody made without us."""
        with self._lock:
            return self.project.add(kind, name, scope, body)

    def add_foreign(self) -> None:
        self._n_foreign += 1
        name, zone, labels = f"not-ours-{self._n_foreign}", offers.ZONES[0], {"owner": "somebody-else"}
        disk = self.project.url(DISK, zone, name)
        attached = {"boot": True, "autoDelete": False, "source": disk}
        body = {"labels": labels, "machineType": f"zones/{zone}/machineTypes/e2-micro", "disks": [attached]}
        self.add(DISK, name, zone, {"labels": labels, "sizeGb": "10"})
        self.add(INSTANCE, name, zone, body).running_unix_s = self.now()
        self.add(ADDRESS, name, offers.region_of(zone), {"labels": labels, "address": "198.51.100.7"})

    def list_price(self, server_type: str, zone: str) -> Decimal:
        """USD per hour on demand."""
        return offers.usd_per_hour(offers.MACHINE_TYPES[server_type], zone, spot=False)

    def preempt(self, name: str) -> None:
        """Take a spot server away, as its scheduling says."""
        with self._lock:
            self.project.pass_time()
            for thing in list(self.project.existing(INSTANCE)):
                if thing.name == name and thing.body["scheduling"].get("provisioningModel") == "SPOT":
                    self.project.end_run(thing, self.now())

    def power_off(self, name: str) -> None:
        """The guest shuts itself down."""
        with self._lock:
            for thing in self.project.existing(INSTANCE):
                if thing.name == name:
                    self.project.power_off(thing, self.now())

    # -- requests --

    def operation(self, environ: Json) -> str:
        verb, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        for document in DOCUMENTS:
            found = service(document).match(verb, path)
            if found is not None:
                return found[0].name
        return f"{verb} {path}"

    def error(self, code: str, environ: Json, start_response: StartResponse) -> Iterable[bytes]:
        """A code in capitals at an insert comes as Google says it: in the operation, after a 200."""
        if code.isupper() and self.operation(environ) == "instances.insert":
            with self._lock:
                call = self._read(environ)
                failed = self.project.fail_insert(call.path["zone"], call.body, call.query.get("requestId", ""), code)
                return _send(start_response, 200, self.answers.operation(failed))
        status, message = _SAID.get(code, (400, f"{code} happened."))
        return _send(start_response, status, _error(status, code, message))

    def _serve(self, environ: Json, start_response: StartResponse) -> Iterable[bytes]:
        try:
            with self._lock:
                self.project.pass_time()
                return _send(start_response, 200, self._answer(environ))
        except RefusedRequest as refused:
            body = _error(refused.status, refused.reason, refused.message)
            return _send(start_response, refused.status, body)

    def _read(self, environ: Json) -> Call:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        verb, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        for document in DOCUMENTS:
            if service(document).match(verb, path):
                return service(document).check(verb, path, query, body)
        raise RefusedRequest(404, "notFound", f"The requested URL {path} was not found on this server.")

    def _answer(self, environ: Json) -> Json:
        if (environ["REQUEST_METHOD"], environ["PATH_INFO"]) == ("POST", "/token"):
            return {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        self._authenticate(environ.get("HTTP_AUTHORIZATION", ""))
        call = self._read(environ)
        self._authorize(call)
        return self.call(call)

    def _authenticate(self, header: str) -> None:
        """A known token, or a service account's own signed one."""
        token = header.removeprefix("Bearer ")
        if token not in self.tokens and (token.count(".") != 2 or TOKEN not in self.tokens):
            raise RefusedRequest(401, "authError", _SAID["authError"][1])

    def _authorize(self, call: Call) -> None:
        project = call.path.get("project")
        if project is not None and project != self.project.name and not call.operation.startswith("images."):
            raise RefusedRequest(404, "notFound", f"The resource 'projects/{project}' was not found")
        for permission in rules.PERMISSIONS.get(call.operation, ()):
            if self.granted is not None and permission not in self.granted:
                raise RefusedRequest(403, "forbidden", f"Required '{permission}' permission for 'projects/{project}'")


def _error(status: int, reason: str, message: str) -> Json:
    domain = "usageLimits" if reason.endswith("Exceeded") else "global"
    error: Json = {
        "code": status,
        "message": message,
        "errors": [{"message": message, "domain": domain, "reason": reason}],
    }
    if reason in _ERROR_INFO:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        error["details"] = [{"@type": kind, "reason": _ERROR_INFO[reason], "domain": "googleapis.com", "metadata": {}}]
    return {"error": error}


def _send(start_response: StartResponse, status: int, body: Json) -> Iterable[bytes]:
    data = json.dumps(body).encode()
    start_response(
        f"{status} {'OK' if status == 200 else 'Refused'}",
        [("Content-Type", "application/json; charset=UTF-8"), ("Content-Length", str(len(data)))],
    )
    return [data]
