"""What Google's codes mean, wherever they come from. No network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from google.api_core.exceptions import GatewayTimeout, from_http_response
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from google.protobuf.json_format import ParseError

from tasks.clouds.base import ErrorKind, Scope
from tasks.clouds.gcp.errors import MEANINGS, OperationFailedError, classify

URL = "https://compute.googleapis.com/compute/v1/projects/p/zones/z/instances"


def answered(status: int, body: Any) -> Exception:
    """The exception that the SDK makes of such an answer."""
    response = requests.Response()
    response.status_code = status
    response._content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response.request = requests.Request("POST", URL).prepare()
    return from_http_response(response)  # type: ignore[no-any-return, no-untyped-call]


def refused(status: int, reason: str, message: str = "It was refused.") -> Exception:
    error = {"code": status, "message": message, "errors": [{"message": message, "domain": "global", "reason": reason}]}
    return answered(status, {"error": error})


@pytest.mark.parametrize(
    ("code", "message", "kind", "scope"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "", ErrorKind.CAPACITY, Scope.ZONE),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "", ErrorKind.CAPACITY, Scope.ZONE),
        ("GPU_STOCKOUT", "", ErrorKind.CAPACITY, Scope.ZONE),
        ("UNSUPPORTED_OPERATION", "", ErrorKind.CAPACITY, Scope.ZONE),
        ("REGION_RESOURCE_POOL_EXHAUSTED", "", ErrorKind.CAPACITY, Scope.REGION),
        ("QUOTA_EXCEEDED", "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-west1.", ErrorKind.QUOTA, Scope.REGION),
        ("QUOTA_EXCEEDED", "Quota 'CPUS_ALL_REGIONS' exceeded. Limit: 32.0 globally.", ErrorKind.QUOTA, Scope.VENDOR),
        (
            "QUOTA_EXCEEDED",
            "Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally.",
            ErrorKind.QUOTA,
            Scope.SERVER_TYPE,
        ),
        ("RESOURCE_OPERATION_RATE_EXCEEDED", "", ErrorKind.RATE_LIMITED, Scope.VENDOR),
        ("PERMISSIONS_ERROR", "", ErrorKind.AUTH, Scope.VENDOR),
        ("IAM_PERMISSION_DENIED", "", ErrorKind.AUTH, Scope.VENDOR),
        ("CONDITION_NOT_MET", "Constraint violated", ErrorKind.UNSUPPORTED, Scope.VENDOR),
        ("INVALID_FIELD_VALUE", "", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE),
    ],
)
def test_a_failed_operation_says_that_nothing_was_made(code: str, message: str, kind: ErrorKind, scope: Scope) -> None:
    found = classify(OperationFailedError("operation-1", [(code, message)]))
    assert (found.kind, found.scope, found.may_exist, found.code) == (kind, scope, False, code)


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (403, "rateLimitExceeded", ErrorKind.RATE_LIMITED),
        (403, "userRateLimitExceeded", ErrorKind.RATE_LIMITED),
        (429, "somethingNew", ErrorKind.RATE_LIMITED),
        (403, "quotaExceeded", ErrorKind.QUOTA),
        (403, "forbidden", ErrorKind.AUTH),
        (403, "accessNotConfigured", ErrorKind.AUTH),
        (401, "authError", ErrorKind.AUTH),
        (403, "somethingNew", ErrorKind.AUTH),
        (409, "alreadyExists", ErrorKind.EXISTS),
        (400, "resourceInUseByAnotherResource", ErrorKind.DELETE_BLOCKED),
        (400, "resourceNotReady", ErrorKind.DELETE_BLOCKED),
        (400, "invalidResourceUsage", ErrorKind.DELETE_BLOCKED),
        (400, "invalid", ErrorKind.UNSUPPORTED),
        (412, "conditionNotMet", ErrorKind.UNSUPPORTED),
        (503, "insufficientCapacity", ErrorKind.CAPACITY),
    ],
)
def test_a_refused_request(status: int, reason: str, kind: ErrorKind) -> None:
    found = classify(refused(status, reason))
    assert found.kind is kind
    assert found.may_exist is (kind is ErrorKind.EXISTS)


def test_the_reason_of_newer_services_comes_first() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"}
    error = {"code": 403, "message": "Quota exceeded for quota metric 'Queries'", "details": [info]}
    found = classify(answered(403, {"error": error}))
    assert (found.kind, found.code) == (ErrorKind.RATE_LIMITED, "RATE_LIMIT_EXCEEDED")


@pytest.mark.parametrize(
    ("path", "kind", "scope"),
    [
        ("projects/p/zones/z/instances/i", ErrorKind.NOT_FOUND, Scope.ZONE),
        ("projects/p/zones/z/disks/d", ErrorKind.NOT_FOUND, Scope.ZONE),
        ("projects/p/zones/z/machineTypes/x9", ErrorKind.UNSUPPORTED, Scope.ZONE),
        ("projects/p/zones/nowhere", ErrorKind.UNSUPPORTED, Scope.ZONE),
        ("projects/u/global/images/family/none", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE),
        ("projects/p/global/networks/none", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE),
        ("projects/p", ErrorKind.AUTH, Scope.VENDOR),
    ],
)
def test_not_found_is_no_proof_unless_it_is_the_thing_itself(path: str, kind: ErrorKind, scope: Scope) -> None:
    found = classify(refused(404, "notFound", f"The resource '{path}' was not found"))
    assert (found.kind, found.scope) == (kind, scope)


@pytest.mark.parametrize(
    "exc",
    [
        answered(404, b"<html><title>404</title>nginx</html>"),
        answered(502, b"<html><title>502 Bad Gateway</title></html>"),
        answered(404, {"error": {"message": "gone", "errors": [{"reason": "notFound"}]}}),
        refused(500, "internalError"),
        refused(503, "backendError"),
        refused(400, "aWordThatNobodyKnows"),
        refused(409, "aWordThatNobodyKnows"),
        OperationFailedError("operation-1", [("A_WORD_THAT_NOBODY_KNOWS", "")]),
        OperationFailedError("operation-1", [("INTERNAL_ERROR", "")]),
        OperationFailedError("operation-1", []),
        GatewayTimeout("late"),  # type: ignore[no-untyped-call]
        requests.exceptions.ConnectionError("reset"),
        requests.exceptions.ReadTimeout("late"),
        requests.exceptions.JSONDecodeError("Expecting value", "", 0),
        ParseError("Failed to load JSON"),
        TransportError("no token"),  # type: ignore[no-untyped-call]
        RefreshError("busy", retryable=True),  # type: ignore[no-untyped-call]
        ValueError("nonsense"),
        KeyError("nonsense"),
    ],
    ids=lambda exc: f"{type(exc).__name__}-{str(exc)[:30]}",
)
def test_what_is_not_known_may_have_made_a_server(exc: Exception) -> None:
    found = classify(exc)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert "<" not in found.message
    assert found.code


@pytest.mark.parametrize(
    "exc",
    [
        RefreshError("invalid_grant: Account not found", {"error": "invalid_grant", "token": "secret"}),  # type: ignore[no-untyped-call]
        DefaultCredentialsError("none"),  # type: ignore[no-untyped-call]
    ],
)
def test_credentials_that_cannot_be_used(exc: Exception) -> None:
    found = classify(exc)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.VENDOR, False)
    assert "secret" not in found.message


def test_a_region_that_is_closed_to_the_project_does_not_halt_the_vendor() -> None:
    text = "Permission denied on 'locations/me-central2' (or it may not exist)."
    found = classify(refused(403, "forbidden", text))
    assert (found.kind, found.scope) == (ErrorKind.UNSUPPORTED, Scope.REGION)


@pytest.mark.parametrize(
    "message",
    [
        "Invalid value for field 'resource.machineType': 'zones/europe-west8-a/machineTypes/f1-micro'. "
        "Machine type with name 'f1-micro' does not exist in zone 'europe-west8-a'.",
        "Invalid value for field 'zone': 'us-east1'. Unknown zone.",
    ],
)
def test_what_a_zone_does_not_have_is_looked_for_in_the_next(message: str) -> None:
    """Google calls it an invalid value, as it calls what no zone takes: github.com/gruntwork-io/terratest/issues/1132,
    github.com/inspec/inspec-gcp/issues/301."""
    found = classify(refused(400, "invalid", message))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.ZONE, False)


def test_every_code_gives_an_error_of_ours_with_the_vendors_words() -> None:
    for code in MEANINGS:
        found = classify(OperationFailedError("operation-1", [("A_WORD", "first"), (code, "these words")]))
        assert found.code == code
        error = found.to_error("gcp: the server")
        assert "these words" in str(error)
        assert error.reason == code


def test_it_never_raises_and_is_brief() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("broken")

    assert classify(Broken()).may_exist
    assert len(classify(refused(400, "invalid", "x" * 10_000)).message) <= 400
