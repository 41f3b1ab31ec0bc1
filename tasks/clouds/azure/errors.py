"""What Azure's errors mean.

Codes: provisioning errors of Azure Resource Manager and of the compute and network providers, as documented at
https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors,
https://learn.microsoft.com/azure/virtual-machines/error-codes-spot and
https://learn.microsoft.com/troubleshoot/azure/virtual-machines, and as met by others in public issues.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from tasks.clouds.base import NO_CODE, Classified, ErrorKind, Scope, http_code, text_of
from tasks.domain.errors import TokensweepError

_MAX_MESSAGE = 400

_ZONE, _REGION, _TYPE, _VENDOR = Scope.ZONE, Scope.REGION, Scope.SERVER_TYPE, Scope.VENDOR

_REFUSED: dict[ErrorKind, dict[Scope, str]] = {
    ErrorKind.CAPACITY: {
        _ZONE: "ZonalAllocationFailed OverconstrainedZonalAllocationRequest",
        _REGION: "AllocationFailed OverconstrainedAllocationRequest SkuNotAvailable SpotNotAvailable "
        "SpotPriceGreaterThanProvidedMaxPrice",
    },
    ErrorKind.QUOTA: {
        _REGION: "QuotaExceeded",  # and what `_QUOTA_CODE` fits
        _VENDOR: "ResourceQuotaExceeded ResourceGroupQuotaExceeded SubscriptionQuotaExceeded",
    },
    ErrorKind.RATE_LIMITED: {
        _VENDOR: "TooManyRequests SubscriptionRequestsThrottled ResourceRequestsThrottled "
        "ResourceCollectionRequestsThrottled TenantRequestsThrottled RetryableError AnotherOperationInProgress "
        "RetryableErrorDueToAnotherOperation ReferencedResourceNotProvisioned",
    },
    ErrorKind.AUTH: {
        _VENDOR: "AuthenticationFailed AuthorizationFailed ExpiredAuthenticationToken "
        "InvalidAuthenticationToken InvalidAuthenticationTokenTenant LinkedAuthorizationFailed "
        "ReadOnlyDisabledSubscription DisabledSubscription SubscriptionNotFound InvalidSubscriptionId "
        "AADSTS700016 InvalidAuthenticationInfo",
    },
    ErrorKind.UNSUPPORTED: {
        _REGION: "LocationNotAvailableForResourceGroup LocationNotAvailableForResourceType InvalidLocation "
        "DisallowedLocation NoRegisteredProviderFound AvailabilityZoneNotSupported ZonesNotAllowedForLocation "
        "RequestDisallowedByAzure",
        _TYPE: "BadRequest InvalidParameter InvalidRequestContent InvalidRequestFormat PlatformImageNotFound "
        "ImageNotFound InvalidTemplateDeployment PropertyNotSupported MarketplacePurchaseEligibilityFailed "
        "VMMarketplaceInvalidInput OperationNotAllowed InvalidResourceReference LinkedInvalidPropertyId "
        "AzureSpotIsNotSupportedForThisVMSize VMPriorityCannotBeApplied",
        _VENDOR: "RequestDisallowedByPolicy MissingSubscriptionRegistration SubscriptionNotRegistered "
        "InvalidApiVersionParameter InvalidTags TagNameTooLong TagValueTooLong "
        "AzureSpotFeatureNotEnabledForSubscription",
    },
}
_STANDING: dict[ErrorKind, str] = {
    ErrorKind.EXISTS: "PropertyChangeNotAllowed PreconditionFailed ConditionNotMet Conflict",
    ErrorKind.NOT_FOUND: "ResourceGroupNotFound ResourceNotFound NotFound ParentResourceNotFound",
    ErrorKind.DELETE_BLOCKED: "ScopeLocked NicReservedForAnotherVm NicInUse InUseSubnetCannotBeDeleted "
    "InUseNetworkSecurityGroupCannotBeDeleted PublicIPAddressCannotBeDeleted CannotDeleteResource "
    "ResourceGroupBeingDeleted ResourceGroupDeletionBlocked ResourceGroupDeletionTimeout ResourceDeletionBlocked "
    "DenyAssignmentAuthorizationFailed OperationNotAllowedOnVMThatIsMarkedForDeletion AttachDiskWhileBeingDetached",
}
_GENERIC = frozenset(
    {"badrequest", "conflict", "notfound", "invalidtemplatedeployment", "operationnotallowed", "invalidparameter"}
)
"""Codes that say little: a more exact one among the details goes before them."""

_MEANINGS: dict[str, tuple[ErrorKind, Scope, bool]] = {
    code.lower(): (kind, scope, False)
    for kind, by_scope in _REFUSED.items()
    for scope, codes in by_scope.items()
    for code in codes.split()
} | {code.lower(): (kind, _ZONE, True) for kind, codes in _STANDING.items() for code in codes.split()}
_MEANINGS["resourcegroupbeingdeleted"] = (ErrorKind.DELETE_BLOCKED, _ZONE, True)

_GONE = frozenset({"resourcegroupnotfound", "resourcenotfound", "notfound", "parentresourcenotfound"})
_QUOTA_CODE = re.compile(r"(?:Quota|Limit)(?:Reached|Exceeded)$", re.IGNORECASE)
"""Each kind of resource has a code of its own: IPv4StandardSkuPublicIpCountLimitReached, for example."""
_QUOTA_TEXT = re.compile(r"quota|exceeding approved|\blimit", re.IGNORECASE)
_PLACE_TEXT = re.compile(r"region|location|zone", re.IGNORECASE)
_POLICY_OF_PLACES = re.compile(r"\b(?:region|location)s?\b", re.IGNORECASE)
_ZONE_TEXT = re.compile(r"zones '\d|different zone", re.IGNORECASE)


class AzureCloudError(Exception):
    """What this module itself has found out about a create, in the same words as an error of Azure's."""

    def __init__(self, found: Classified) -> None:
        super().__init__(found.message)
        self.found = found


def refusal(kind: ErrorKind, scope: Scope, code: str, message: str) -> AzureCloudError:
    """An error that says that there is no machine, and why not."""
    return AzureCloudError(Classified(kind=kind, scope=scope, may_exist=False, code=code, message=message))


def classify(exc: BaseException) -> Classified:
    """What it means. What is not known is UNKNOWN and may exist. Never raises."""
    if isinstance(exc, AzureCloudError):
        return exc.found
    if isinstance(exc, TokensweepError):
        return Classified(
            kind=ErrorKind.UNSUPPORTED, scope=_VENDOR, may_exist=False, code=exc.reason, message=exc.message
        )
    codes = _codes(exc)
    known = [(code, text) for code, text in codes if code.lower() in _MEANINGS]
    exact = [(code, text) for code, text in known if code.lower() not in _GENERIC]
    status = getattr(exc, "status_code", None)
    if status == 429:
        code, text = (known or codes or [("TooManyRequests", "")])[0]
        return _classified(ErrorKind.RATE_LIMITED, _VENDOR, False, code, text or _text(exc))
    if exact or known:
        code, text = (exact or known)[-1]
        kind, scope, may_exist = _refined(code, text, *_MEANINGS[code.lower()])
        return _classified(kind, scope, may_exist, code, text)
    limits = [(code, text) for code, text in codes if _QUOTA_CODE.search(code)]
    if limits:
        return _classified(ErrorKind.QUOTA, _REGION, False, *limits[-1])
    if isinstance(exc, ClientAuthenticationError) or (status in (401, 403) and codes):
        code = codes[0][0] if codes else http_code(exc)
        return _classified(ErrorKind.AUTH, _VENDOR, False, code, _text(exc))
    code = codes[0][0] if codes else http_code(exc)
    return _classified(ErrorKind.UNKNOWN, _ZONE, True, code, _text(exc) if code != NO_CODE else text_of(exc))


def is_absent(exc: BaseException) -> bool:
    """Whether Azure itself says that there is none. A 404 in a gateway's HTML, or for another reason, does not."""
    return (
        isinstance(exc, HttpResponseError)
        and exc.status_code == 404
        and exc.error is not None
        and (exc.error.code or "").lower() in _GONE
    )


def _refined(code: str, text: str, kind: ErrorKind, scope: Scope, may_exist: bool) -> tuple[ErrorKind, Scope, bool]:
    """Some codes mean different things by their text alone."""
    if code.lower() == "operationnotallowed" and _QUOTA_TEXT.search(text):
        # "... exceeding approved standardNCFamily Cores quota", "... Total Regional Cores quota", "LowPriorityCores".
        return ErrorKind.QUOTA, _REGION, False
    if code.lower() == "skunotavailable" and _ZONE_TEXT.search(text):
        # "... currently not available in location 'eastus' zones '2' ...", "deploy to a different location or different
        # zone": met at https://github.com/mspnp/aks-baseline/issues/372 and .../Azure-Samples/azuresandbox/issues/70.
        return kind, _ZONE, False
    if code.lower() == "requestdisallowedbypolicy" and _POLICY_OF_PLACES.search(text):
        return kind, _REGION, False  # the message has the policy's name, "Allowed locations" for example
    if code.lower() == "invalidparameter" and _PLACE_TEXT.search(text):
        return ErrorKind.UNSUPPORTED, _REGION, False  # "The requested VM size X is not available in the current region"
    return kind, scope, may_exist


def _classified(kind: ErrorKind, scope: Scope, may_exist: bool, code: str, text: str) -> Classified:
    return Classified(kind=kind, scope=scope, may_exist=may_exist, code=code, message=_short(text) or code)


def _text(exc: BaseException) -> str:
    return str(getattr(exc, "message", "") or exc) or type(exc).__name__


def _short(text: str) -> str:
    """The first line without the portal links, which are longer than what they explain."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"\s*(?:Submit a request for |Setup Alerts when |See https://).*", "", line)
    return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 1] + "…"


def _codes(exc: BaseException) -> list[tuple[str, str]]:
    """Every code of the answer with its text, outermost first: of the error, its details and its inner errors."""
    error = getattr(exc, "error", None)
    return list(_walk(error)) if error is not None else []


def _walk(error: Any) -> Iterator[tuple[str, str]]:
    mapping = error if isinstance(error, Mapping) else vars(error) if hasattr(error, "__dict__") else {}
    code, message = mapping.get("code"), mapping.get("message")
    if isinstance(code, str) and code:
        yield code, message if isinstance(message, str) else ""
    for detail in mapping.get("details") or ():
        yield from _walk(detail)
    for inner in ("innererror", "innerError", "internalexception"):
        if mapping.get(inner):
            yield from _walk(mapping[inner])
