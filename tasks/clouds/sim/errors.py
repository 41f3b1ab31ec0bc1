"""What the simulated vendor says when a call fails, and what that means.

As with real SDKs only some failures are errors of the vendor: a lost connection is an OSError, and a gateway's page in
HTML is a JSONDecodeError. Those say nothing about whether the call had its effect.
"""

from __future__ import annotations

import json
from typing import NoReturn

from tasks.clouds.base import NO_CODE, Classified, ErrorKind, Scope, text_of

_BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head></html>"

CODES: dict[str, tuple[ErrorKind, Scope, str]] = {
    "NoCapacity": (ErrorKind.CAPACITY, Scope.ZONE, "the zone has no server of this type left"),
    "AllocationFailed": (ErrorKind.CAPACITY, Scope.ZONE, "disk and address were made, the server could not be"),
    "QuotaExceeded": (ErrorKind.QUOTA, Scope.REGION, "the account's vCPU limit in this region is reached"),
    "TooManyRequests": (ErrorKind.RATE_LIMITED, Scope.REGION, "too many calls, wait"),
    "ExpiredToken": (ErrorKind.AUTH, Scope.VENDOR, "the credentials have expired"),
    "UnknownServerType": (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, "there is no such server type in this place"),
    "NameTaken": (ErrorKind.EXISTS, Scope.ZONE, "a server of this name exists"),
    "NotFound": (ErrorKind.NOT_FOUND, Scope.ZONE, "there is no such resource"),
    "Locked": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, "the resource is locked"),
    "InUse": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, "the resource is attached to a server"),
}


class SimApiError(Exception):
    """An answer of the vendor, with its code."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail or CODES[code][2])
        self.code = code


def classify(exc: BaseException) -> Classified:
    """Never raises; whatever is not an answer of the vendor leaves open whether something was made."""
    if isinstance(exc, SimApiError):
        kind, scope, _ = CODES[exc.code]
        may_exist = kind is ErrorKind.EXISTS
        return Classified(kind=kind, scope=scope, may_exist=may_exist, code=exc.code, message=str(exc))
    return Classified(kind=ErrorKind.UNKNOWN, scope=Scope.ZONE, may_exist=True, code=NO_CODE, message=text_of(exc))


def bad_gateway() -> NoReturn:
    json.loads(_BAD_GATEWAY)
    raise AssertionError("HTML is no JSON")


def connection_lost(operation: str) -> NoReturn:
    raise ConnectionResetError(f"{operation}: connection reset by peer")
