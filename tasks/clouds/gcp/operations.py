"""Zone operations: what Compute Engine answers a create with, and where its failure is to be found.

An insert is answered with 200 and an operation; a stockout or a quota comes minutes or milliseconds later, inside that
operation, and then there never was an instance to look at.
"""

from __future__ import annotations

from collections.abc import Callable

from google.cloud import compute_v1

from tasks.clouds.gcp.clients import Clients
from tasks.clouds.gcp.errors import OperationFailedError

_INSERT = "insert"


def is_done(operation: compute_v1.Operation) -> bool:
    return operation.status == compute_v1.Operation.Status.DONE


def has_failed(operation: compute_v1.Operation) -> bool:
    return bool(operation.error.errors) or operation.http_error_status_code >= 400


def raise_failure(operation: compute_v1.Operation) -> None:
    """Raise OperationFailedError when it has ended with errors."""
    if has_failed(operation):
        failures = [(error.code, error.message) for error in operation.error.errors]
        raise OperationFailedError(
            operation.name, failures or [(f"http_{operation.http_error_status_code}", operation.http_error_message)]
        )


class Operations:
    """Looks at operations. Keeps nothing: a process that is started anew finds the same."""

    def __init__(self, clients: Clients, project: str, sleep: Callable[[float], None]) -> None:
        self._clients, self._project, self._sleep = clients, project, sleep

    def settle(
        self, zone: str, operation: compute_v1.Operation, *, wait_s: float, poll_s: float
    ) -> compute_v1.Operation:
        """The operation after a short moment: most refusals have come by then. It may still be running.

        An error of the polling itself is no answer to the create, which has been accepted.
        """
        waited_s = 0.0
        while not is_done(operation) and waited_s < wait_s:
            self._sleep(poll_s)
            waited_s += poll_s
            try:
                operation = self._clients.zone_operations.get(
                    project=self._project, zone=zone, operation=operation.name, **self._clients.call
                )
            except Exception:
                break
        return operation

    def insert_of(self, zone: str, name: str, cloud_id: str) -> compute_v1.Operation | None:
        """The newest insert of the instance with this name, or of the one with this id when it is given."""
        request = compute_v1.ListZoneOperationsRequest(
            project=self._project, zone=zone, filter=f'targetLink eq ".*/instances/{name}"'
        )
        found = [
            operation
            for operation in self._clients.zone_operations.list(request=request, **self._clients.call)
            if operation.operation_type == _INSERT and cloud_id in ("", str(operation.target_id))
        ]
        return max(found, key=lambda operation: (operation.insert_time, operation.id), default=None)
