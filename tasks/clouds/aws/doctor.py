"""What an account can and may do, found out without making anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from botocore.exceptions import ClientError

from tasks.clouds.aws import errors, prices
from tasks.clouds.aws.clients import Clients
from tasks.clouds.aws.images import Images
from tasks.clouds.aws.launch import launch_request
from tasks.clouds.aws.network import ANYWHERE, Network, group_request
from tasks.clouds.aws.resources import KINDS
from tasks.clouds.base import OWNER, OWNER_TAG, Check, CreateSpec, ErrorKind

_POLICIES = "Attach deployments/policies/aws-controller.json to the user or role."
_PROBE = CreateSpec(
    intent_id="doctor",
    name="tokensweep-doctor",
    token="",
    server_type="t3.micro",
    place="",
    deadline_unix_s=0.0,
    sweep_id="",
    server_run_id="",
    client_public_key="",
    host_private_key="",
    host_public_key="",
    tags={OWNER_TAG: OWNER},
)

# https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html: vCPUs that may run at once.
QUOTAS = {
    "L-1216C47A": "on demand, A, C, D, H, I, M, R, T and Z",
    "L-DB2E81BA": "on demand, G and VT (GPU)",
    "L-417A185B": "on demand, P (GPU)",
    "L-34B43A08": "spot, A, C, D, H, I, M, R, T and Z",
    "L-3819A6DF": "spot, G and VT (GPU)",
}
_NEEDED_QUOTA = "L-1216C47A"


def doctor(clients: Clients, images: Images, network: Network) -> Sequence[Check]:
    """Identity first; without it nothing else is asked."""
    identity = _checked("identity", lambda: _identity(clients), "Set the AWS credentials block or the SDK's variables.")
    if not identity.ok:
        return [identity]
    regions_check, regions = _regions(clients)
    checks = [identity, regions_check, _checked("prices", lambda: _pricing(clients), _POLICIES)]
    in_regions = [(clients, images, network, region) for region in regions]
    for region, answer in zip(regions, clients.in_parallel(_region, in_regions), strict=True):
        if isinstance(answer, Exception):
            checks.append(Check(name=region, ok=False, detail=errors.classify(answer).message, next_step=_POLICIES))
        else:
            checks += answer
    return checks


def _checked(name: str, ask: Callable[[], str], next_step: str) -> Check:
    try:
        return Check(name=name, ok=True, detail=ask())
    except Exception as exc:
        found = errors.classify(exc)
        # What was not answered could not be told; a refusal is one.
        ok = None if found.kind in (ErrorKind.UNKNOWN, ErrorKind.RATE_LIMITED) else False
        return Check(name=name, ok=ok, detail=f"{found.code}: {found.message}", next_step=next_step)


def _identity(clients: Clients) -> str:
    answer = clients.of("sts", clients.options.home_region).get_caller_identity()
    credentials = clients.session.get_credentials()
    # A session token that nothing renews ends some time, and with it every delete.
    lasting = not (credentials.token and type(credentials).__name__ == "Credentials")
    kept = "" if lasting else "; these credentials are temporary and not renewed: they must outlive every deadline"
    return f"{answer['Arn']} in account {answer['Account']}{kept}"


def _regions(clients: Clients) -> tuple[Check, tuple[str, ...]]:
    try:
        regions = clients.regions()
    except Exception as exc:
        return Check(name="regions", ok=False, detail=errors.classify(exc).message, next_step=_POLICIES), ()
    chosen = "of TOKENSWEEP_AWS_REGIONS" if clients.options.regions else "that the account has enabled"
    return Check(name="regions", ok=True, detail=f"{len(regions)} {chosen}: {', '.join(regions)}"), regions


def _pricing(clients: Clients) -> str:
    region = clients.options.home_region
    price = prices.on_demand(clients, name=_PROBE.server_type).get((_PROBE.server_type, region))
    return f"{_PROBE.server_type} in {region}: {price.usd_per_hour.normalize()} USD/h" if price else "answered"


def _region(clients: Clients, images: Images, network: Network, region: str) -> list[Check]:
    client = clients.ec2(region)
    here = "Leave the region out of TOKENSWEEP_AWS_REGIONS."
    return [
        _checked(f"{region} listing", lambda: _listing(client), "Attach deployments/policies/aws-reaper.json."),
        _checked(f"{region} images", lambda: _images(images, region), here),
        _checked(f"{region} network", lambda: _network(client, network), here),
        _checked(f"{region} permissions", lambda: _dry_runs(client, images, network, region), _POLICIES),
        _quotas(clients, region),
    ]


def _listing(client: Any) -> str:
    for kind in KINDS:
        getattr(client, kind.operation)(**kind.arguments, Filters=[{"Name": "tag-key", "Values": ["tokensweep-owner"]}])
    return f"may list {', '.join(kind.kind for kind in KINDS)}"


def _images(images: Images, region: str) -> str:
    found = [images.find(region, arch, gpu=gpu) for gpu in (False, True) for arch in ("x86_64", "aarch64")]
    return ", ".join(image.image_id for image in found)


def _network(client: Any, network: Network) -> str:
    zones = _zones(client)
    for zone in zones:
        network.subnet(zone)
    return f"default subnets in {', '.join(zones)}"


def _zones(client: Any) -> list[str]:
    answer = client.describe_availability_zones(
        Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
    )
    return sorted(zone["ZoneName"] for zone in answer["AvailabilityZones"])


def _dry_runs(client: Any, images: Images, network: Network, region: str) -> str:
    """The very requests of a create, because a policy may allow them only with our tags and options."""
    zone = _zones(client)[0]
    subnet_id, vpc_id = network.subnet(zone)
    image = images.find(region, _PROBE.arch, gpu=False)
    for spot in (False, True):
        request = launch_request(replace(_PROBE, place=zone, spot=spot), image, subnet_id, "")
        del request["ClientToken"], request["NetworkInterfaces"][0]["Groups"]
        _dry_run(client.run_instances, request)
    _dry_run(client.create_security_group, group_request(vpc_id, ANYWHERE))
    return "may launch servers, on demand and spot, and make the shared security group"


def _dry_run(call: Callable[..., Any], request: dict[str, Any]) -> None:
    """A dry run is always answered with an error; DryRunOperation is the one that means yes."""
    try:
        call(DryRun=True, **request)
    except ClientError as exc:
        if errors.code_of(exc) != "DryRunOperation":
            raise


def _quotas(clients: Clients, region: str) -> Check:
    """GPU and spot quotas of 0 are usual in new accounts, and no fault where nobody asks for these servers."""
    client, name = clients.of("service-quotas", region), f"{region} quotas"
    try:
        values = {
            code: int(client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]) for code in QUOTAS
        }
    except Exception as exc:
        found = errors.classify(exc)
        return Check(name=name, ok=None, detail=f"{found.code}: {found.message}", next_step=_POLICIES)
    none = ", ".join(f"{code} ({QUOTAS[code]})" for code, value in values.items() if value == 0)
    return Check(
        name=name,
        ok=values[_NEEDED_QUOTA] > 0,
        detail="vCPUs at once: " + "; ".join(f"{value} {QUOTAS[code]}" for code, value in values.items()),
        next_step=f"For these servers ask for more, in Service Quotas, Amazon EC2, {region}: {none}" if none else "",
    )
