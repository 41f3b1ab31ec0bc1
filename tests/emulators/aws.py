"""AWS: EC2, STS, Price List and Service Quotas behind one port, each request validated by botocore's service models."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any

from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import create_backend_app

from tests.emulators import aws_prices, aws_responses  # noqa: F401
from tests.emulators.aws_ec2 import Backend
from tests.emulators.aws_iam import Touched, allows
from tests.emulators.aws_schema import RefusedError, read_form, read_json
from tests.emulators.aws_state import ACCOUNTS
from tests.emulators.base import Existing, Faults, Machines, NoMachines, StartResponse, WsgiApp

ACCESS_KEY = "AKIATOKENSWEEPTEST00"
SECRET_KEY = "tokensweep-emulator-secret-key-0000000000"
_OWNER_TAG, _OWNER = "tokensweep-owner", "tokensweep"
_STATUS = {
    "RequestLimitExceeded": 503,
    "Unavailable": 503,
    "InsufficientInstanceCapacity": 500,
    "InternalError": 500,
    "UnauthorizedOperation": 403,
    "AccessDenied": 403,
    "AuthFailure": 401,
}
_NOT_KNOWN = {"ec2": "AuthFailure", "sts": "InvalidClientTokenId"}
_NOT_ALLOWED = {"ec2": "UnauthorizedOperation", "sts": "AccessDenied"}
_IAM_PREFIX = {"service-quotas": "servicequotas"}
_account_ids = itertools.count(100_000_000_000)


@cache
def _moto(service: Any) -> Any:
    """moto's application of one service. Its dispatcher by host name looks through its own folders at each call."""
    return create_backend_app(service)


@dataclass
class AwsEmulator:
    """policy: an IAM policy document that every call must be allowed by; None for an administrator's. unreachable:
    regions that answer nothing but errors. See `aws_ec2.Account` for the rest."""

    now: Callable[[], float] = time.time
    machines: Machines = field(default_factory=NoMachines)
    regions: tuple[str, ...] = ("us-east-1", "eu-west-1")
    lag_s: float = 0.0
    boot_s: float = 0.0
    delete_s: float = 0.0
    stock: dict[str, int] = field(default_factory=dict)
    vcpu_quota: dict[str, int] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    stuck_all: bool = False
    die_after_accept: int = 0
    policy: dict[str, Any] | None = None
    revoked: bool = False
    faults: Faults = field(default_factory=Faults)

    vendor = "aws"

    def __post_init__(self) -> None:
        self.account_id = str(next(_account_ids))
        self.request: dict[str, Any] = {}
        self.answering = ""
        self.lock = threading.RLock()
        self.hosts = (
            *(
                f"{service}.{region}.amazonaws.com"
                for service in ("ec2", "sts", "servicequotas")
                for region in self.regions
            ),
            "sts.amazonaws.com",
            "api.pricing.us-east-1.amazonaws.com",
        )
        self.app: WsgiApp = self._app
        ACCOUNTS[self.account_id] = self

    def close(self) -> None:
        """Forget the account; moto would keep it for ever."""
        ACCOUNTS.pop(self.account_id, None)
        ec2_backends.pop(self.account_id, None)

    def backend(self, region: str) -> Backend:
        found = ec2_backends[self.account_id][region]
        assert isinstance(found, Backend)
        return found

    # -- answering

    def operation(self, environ: dict[str, Any]) -> str:
        """The action and its region: "RunInstances us-east-1"."""
        _, region = _scope(environ)
        target = environ.get("HTTP_X_AMZ_TARGET")
        if target:
            return f"{target.partition('.')[2]} {region}"
        form = dict(pair.partition("=")[::2] for pair in _body(environ).decode().split("&"))
        return f"{form.get('Action', '')} {region}"

    def _app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        with self.lock:
            try:
                return self._answer(environ, start_response)
            except RefusedError as exc:
                return _refuse(exc.code, exc.message, environ, start_response)

    def error(self, code: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return _refuse(code, f"{code} was planted.", environ, start_response)

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        service, region = _scope(environ)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        body = _body(environ)
        operation, parameters = read_json(service, target, body) if target else read_form(service, body)
        self._authorize(service, region, operation.name, parameters, environ)
        if service == "pricing":
            return _json(aws_prices.get_products(parameters, self.regions), start_response)
        if service == "service-quotas":
            quota = {"QuotaCode": parameters["QuotaCode"], "Value": float(aws_prices.QUOTAS[parameters["QuotaCode"]])}
            return _json({"Quota": quota}, start_response)
        if service == "ec2":
            backend = self.backend(region)
            backend.advance()
            self.request, self.answering = parameters, operation.name
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self.account_id
        try:
            return list(_moto(service)(environ, start_response))
        finally:
            self.request, self.answering = {}, ""

    def _authorize(
        self, service: str, region: str, action: str, parameters: dict[str, Any], environ: dict[str, Any]
    ) -> None:
        if self.revoked or f"Credential={ACCESS_KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            code = _NOT_KNOWN.get(service, "UnrecognizedClientException")
            raise RefusedError(code, "AWS was not able to validate the provided access credentials")
        if service == "ec2" and region not in self.regions:
            raise RefusedError("AuthFailure", f"{region} is not enabled for this account.")
        if self.policy is None:
            return
        for asked, touched in self._touched(service, region, action, parameters):
            if not allows(self.policy, asked, touched):
                code = _NOT_ALLOWED.get(service, "AccessDeniedException")
                raise RefusedError(code, f"You are not authorized to perform this operation: {asked}.")

    def _touched(
        self, service: str, region: str, action: str, parameters: dict[str, Any]
    ) -> Iterable[tuple[str, list[Touched]]]:
        """Every permission that a call needs, and on what. Making a thing with tags needs ec2:CreateTags as well."""
        name = f"{_IAM_PREFIX.get(service, service)}:{action}"
        arn = f"arn:aws:ec2:{region}:{self.account_id}"
        common = {"aws:requestedregion": region}
        tagged = {
            f"{arn}:{spec['ResourceType']}/*": common
            | {f"aws:requesttag/{t['Key'].lower()}": t["Value"] for t in spec.get("Tags", ())}
            for spec in parameters.get("TagSpecifications", ())
        }
        if action == "RunInstances":
            made = [f"{arn}:{kind}/*" for kind in ("instance", "volume", "network-interface")]
            if "InstanceMarketOptions" in parameters:
                made.append(f"{arn}:spot-instances-request/*")
            launch = common | {
                "ec2:metadatahttptokens": parameters.get("MetadataOptions", {}).get("HttpTokens", "optional"),
                "ec2:instancetype": parameters.get("InstanceType", ""),
            }
            used = [f"{arn}:{kind}/x" for kind in ("subnet", "security-group")]
            used.append(f"arn:aws:ec2:{region}::image/{parameters.get('ImageId', '')}")
            yield name, [Touched(a, launch | tagged.get(a, {})) for a in made] + [Touched(a, common) for a in used]
        elif action == "CreateSecurityGroup":
            group = f"{arn}:security-group/*"
            yield name, [Touched(group, common | tagged.get(group, {})), Touched(f"{arn}:vpc/x", common)]
        else:
            yield name, self._named(region, arn, common, parameters)
        if tagged:
            yield "ec2:CreateTags", [Touched(a, c | {"ec2:createaction": action}) for a, c in tagged.items()]

    def _named(self, region: str, arn: str, common: dict[str, str], parameters: dict[str, Any]) -> list[Touched]:
        """The things that a call names by id, with the tags that they bear."""
        kinds = {
            "i-": "instance",
            "vol-": "volume",
            "eni-": "network-interface",
            "eipalloc-": "elastic-ip",
            "sg-": "security-group",
            "snap-": "snapshot",
            "key-": "key-pair",
            "sir-": "spot-instances-request",
        }
        ids = [i for value in parameters.values() for i in (value if isinstance(value, list) else [value])]
        found = []
        for each in (i for i in ids if isinstance(i, str)):
            if each.startswith("eipassoc-"):
                addresses = [a for a in self.backend(region).addresses if a.association_id == each]
                each = str(addresses[0].allocation_id) if addresses else each
            kind = next((kind for prefix, kind in kinds.items() if each.startswith(prefix)), None)
            if kind is not None:
                tags = self.backend(region).tags.get(each, {})
                context = {f"aws:resourcetag/{k.lower()}": v for k, v in tags.items()}
                found.append(Touched(f"{arn}:{kind}/{each}", common | context))
        return found or [Touched("*", common)]

    # -- the truth

    def existing(self) -> list[Existing]:
        with self.lock:
            return [thing for region in self.regions for thing in self._existing(region)]

    def _existing(self, region: str) -> list[Existing]:
        backend = self.backend(region)
        backend.advance()
        found = []

        def add(kind: str, cloud_id: str, place: str, usd_per_hour: Decimal) -> None:
            tags = backend.tags.get(cloud_id, {})
            ours = tags.get(_OWNER_TAG) == _OWNER
            found.append(
                Existing(
                    kind=kind,
                    name=tags.get("Name", cloud_id),
                    cloud_id=cloud_id,
                    place=place,
                    ours=ours,
                    usd_per_hour=usd_per_hour,
                )
            )

        for life in backend.launches.lives.values():
            if life.state != "terminated":
                bills = life.state in ("pending", "running")
                zone = str(life.instance.availability_zone)
                add("server", life.instance.id, zone, life.usd_per_hour if bills else Decimal(0))
        for volume in backend.volumes.values():
            add("disk", volume.id, volume.zone.name, aws_prices.GP3_USD_PER_GIB_HOUR * int(volume.size))
        for nic in backend.enis.values():
            add("nic", nic.id, nic.availability_zone, aws_prices.IPV4_USD_PER_HOUR if nic.public_ip else Decimal(0))
        for address in backend.addresses:
            add("ip", str(address.allocation_id), region, aws_prices.IPV4_USD_PER_HOUR)
        for request in backend.spot_instance_requests.values():
            if request.state in ("open", "active"):
                add("spot_request", request.id, region, Decimal(0))
        for snapshot in backend.snapshots.values():
            if snapshot.owner_id == self.account_id:
                add("snapshot", snapshot.id, region, Decimal("0.05") / 730)
        for key in backend.key_pairs.values():
            add("key", key.id, region, Decimal(0))
        return found

    def add_foreign(self) -> None:
        """A server with its disk, and an address, of somebody else; named so that only tags tell it from ours."""
        with self.lock:
            backend = self.backend(self.regions[0])
            self.request = {"ImageId": "ami-0a00000000000002", "InstanceType": "t3.micro"}
            backend.run_instances(
                "ami-0a00000000000002",
                1,
                None,
                [],
                instance_type="t3.micro",
                is_instance_type_default=False,
                region_name=backend.region_name,
                placement=f"{backend.region_name}a",
                tags={"instance": {"Name": "tokensweep-not-ours", "owner": "somebody-else"}},
            )
            self.request = {}
            backend.allocate_address("vpc")

    def interrupt(self, instance_id: str) -> None:
        """Take a spot server back."""
        with self.lock:
            for backend in map(self.backend, self.regions):
                if instance_id in backend.launches.lives:
                    backend.interrupt(instance_id)

    def usd_per_hour(self) -> Decimal:
        """The meter: what everything of ours costs now."""
        return sum((thing.usd_per_hour for thing in self.existing() if thing.ours), Decimal(0))


def _scope(environ: dict[str, Any]) -> tuple[str, str]:
    """The service and region that the request is signed for."""
    try:
        credential = environ["HTTP_AUTHORIZATION"].split("Credential=")[1].split(",")[0]
        _, _, region, service, _ = credential.split("/")
    except (KeyError, IndexError, ValueError):
        return "ec2", "us-east-1"
    return {"servicequotas": "service-quotas"}.get(service, service), region


def _body(environ: dict[str, Any]) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _json(answer: dict[str, Any], start_response: StartResponse, status: str = "200 OK") -> Iterable[bytes]:
    body = json.dumps(answer).encode()
    start_response(status, [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))])
    return [body]


def _refuse(code: str, message: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    service, _ = _scope(environ)
    status = f"{_STATUS.get(code, 400)} Refused"
    if environ.get("HTTP_X_AMZ_TARGET"):
        return _json({"__type": code, "message": message}, start_response, status)
    text = f"<Code>{code}</Code><Message>{_escaped(message)}</Message>"
    if service == "ec2":
        text = f"<Response><Errors><Error>{text}</Error></Errors><RequestID>0</RequestID></Response>"
    else:
        text = f"<ErrorResponse><Error><Type>Sender</Type>{text}</Error><RequestId>0</RequestId></ErrorResponse>"
    body = text.encode()
    start_response(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
