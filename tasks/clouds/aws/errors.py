"""What each error of EC2 means.

Codes and their meaning: https://docs.aws.amazon.com/ec2/latest/devguide/errors-overview.html; which of them real
launches of all instance types met most often: the run records of Spare Cores
(https://github.com/SpareCores/sc-inspector-data).
"""

from __future__ import annotations

from botocore import exceptions as sdk

from tasks.clouds.base import NO_CODE, Classified, ErrorKind, Scope, text_of
from tasks.domain.errors import ConfigError, TokensweepError, UnsupportedError

_LONGEST_MESSAGE = 500

_CODES: dict[tuple[ErrorKind, Scope], tuple[str, ...]] = {
    # Said with a status of 500 or 503, yet it is an answer: nothing was launched.
    (ErrorKind.CAPACITY, Scope.ZONE): (
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientVolumeCapacity",
        "SpotMaxPriceTooLow",
        # The token's instance has ended already; a new attempt has a new token.
        "IdempotentInstanceTerminated",
    ),
    (ErrorKind.CAPACITY, Scope.REGION): ("InsufficientAddressCapacity",),
    (ErrorKind.QUOTA, Scope.REGION): (
        "VcpuLimitExceeded",
        "InstanceLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "VolumeLimitExceeded",
        "MaxIOPSLimitExceeded",
        "AddressLimitExceeded",
        "NetworkInterfaceLimitExceeded",
        "SecurityGroupLimitExceeded",
        "SecurityGroupsPerInstanceLimitExceeded",
        "RulesPerSecurityGroupLimitExceeded",
        "PublicIPCountLimitReached",
        "ResourceLimitExceeded",
        "ResourceCountExceeded",
        "TagLimitExceeded",
    ),
    (ErrorKind.RATE_LIMITED, Scope.REGION): (
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "SlowDown",
        # Not a limit, but the same cure: a group that was just made is not known everywhere yet.
        "InvalidGroup.NotFound",
    ),
    (ErrorKind.AUTH, Scope.VENDOR): (
        "UnauthorizedOperation",
        "AuthFailure",
        "AccessDenied",
        "AccessDeniedException",
        # Of the first spot launch of an account, by somebody who may not make the role that it needs.
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
        "Blocked",
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "NotSignedUp",
    ),
    # "PendingVerification": "Your request for accessing resources in this region is being validated", for minutes or
    # hours; other regions have been validated. Met at https://github.com/skyplane-project/skyplane/issues/799.
    (ErrorKind.AUTH, Scope.REGION): ("OptInRequired", "SubscriptionRequiredException", "PendingVerification"),
    # "Unsupported": this zone does not offer the instance type; the next one may.
    (ErrorKind.UNSUPPORTED, Scope.ZONE): ("Unsupported", "InvalidAvailabilityZone", "InvalidSubnetID.NotFound"),
    (ErrorKind.UNSUPPORTED, Scope.REGION): (
        "InvalidInstanceType",
        "InvalidParameterValue",
        "InvalidAMIID.NotFound",
        "InvalidAMIID.Unavailable",
        "InvalidAMIID.Malformed",
        "InvalidBlockDeviceMapping",
        "VPCIdNotSpecified",
        "InvalidVpcID.NotFound",
        "MissingInput",
        "InvalidInput",
        "DefaultVpcDoesNotExist",
    ),
    (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE): (
        "InvalidParameterCombination",
        "InvalidParameter",
        "InvalidUserData.Malformed",
        "MissingParameter",
        "UnknownParameter",
        "UnsupportedOperation",
        "UnsupportedInstanceAttribute",
        "UnsupportedHostConfiguration",
        "ValidationError",
    ),
    (ErrorKind.EXISTS, Scope.ZONE): ("IdempotentParameterMismatch", "InvalidGroup.Duplicate"),
    (ErrorKind.DELETE_BLOCKED, Scope.ZONE): (
        "OperationNotPermitted",
        "DependencyViolation",
        "IncorrectInstanceState",
        "IncorrectState",
        "ResourceInUse",
        "VolumeInUse",
        "InvalidNetworkInterface.InUse",
        "InvalidIPAddress.InUse",
        "InvalidSnapshot.InUse",
    ),
    (ErrorKind.NOT_FOUND, Scope.ZONE): (
        "InvalidInstanceID.NotFound",
        "InvalidVolume.NotFound",
        "InvalidNetworkInterfaceID.NotFound",
        "InvalidAllocationID.NotFound",
        "InvalidSnapshot.NotFound",
        "InvalidKeyPair.NotFound",
        "InvalidSpotInstanceRequestID.NotFound",
        "InvalidAssociationID.NotFound",
    ),
}
CODES = {code: meaning for meaning, codes in _CODES.items() for code in codes}

_EXISTS_ALL_THE_SAME = (ErrorKind.EXISTS, ErrorKind.DELETE_BLOCKED, ErrorKind.UNKNOWN)

# Raised before anything is sent.
_NO_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError,
    sdk.UnauthorizedSSOTokenError,
    sdk.SSOTokenLoadError,
    sdk.ProfileNotFound,
    sdk.NoAuthTokenError,
)
_BAD_REQUEST = (sdk.ParamValidationError, sdk.UnknownServiceError, sdk.NoRegionError, sdk.InvalidRegionError)


def code_of(exc: BaseException) -> str:
    """The vendor's code in an exception, without the side ("Client.", "Server.") that some answers put before it."""
    if not isinstance(exc, sdk.ClientError):
        return ""
    response = exc.response if isinstance(exc.response, dict) else {}
    error = response.get("Error")
    code = str(error.get("Code") or "") if isinstance(error, dict) else ""
    if code.isdecimal():  # botocore's stand-in where the answer was no XML of Amazon's
        return f"http_{code}"
    return code.removeprefix("Client.").removeprefix("Server.")


def classify(exc: BaseException) -> Classified:
    """Timeouts, broken connections, gateways' pages, truncated answers and codes that are not in the table say nothing
    about what was done: UNKNOWN, and it may exist."""
    code = code_of(exc)
    kind, scope = ErrorKind.UNKNOWN, Scope.ZONE
    if isinstance(exc, sdk.ClientError):
        kind, scope = CODES.get(code, (kind, scope))
    elif isinstance(exc, _NO_CREDENTIALS):
        kind, scope = ErrorKind.AUTH, Scope.VENDOR
    elif isinstance(exc, _BAD_REQUEST):
        kind, scope = ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE
    elif isinstance(exc, UnsupportedError):  # our own, of a region or zone that lacks what a launch needs
        kind, code = ErrorKind.UNSUPPORTED, exc.reason
    elif isinstance(exc, ConfigError):  # our own, of a request that EC2 would refuse
        kind, scope, code = ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, exc.reason
    return Classified(
        kind=kind, scope=scope, may_exist=kind in _EXISTS_ALL_THE_SAME, code=code or NO_CODE, message=_message(exc)
    )


def is_not_found(exc: BaseException) -> bool:
    return classify(exc).kind is ErrorKind.NOT_FOUND


def _message(exc: BaseException) -> str:
    text = exc.message if isinstance(exc, TokensweepError) else text_of(exc)
    if isinstance(exc, sdk.ClientError):
        # An encoded authorization message is thousands of characters that only `aws sts decode-...` can read.
        text = str(exc).split(" Encoded authorization failure message:")[0]
    return text[:_LONGEST_MESSAGE]
