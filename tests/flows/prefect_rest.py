"""Prefect's REST API, as the UI asks it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
STORED_WITHIN_S = 240.0
"""Task runs are stored from events, some time after they were."""
N_TRIES, BUSY_S = 10, 1.0


class RefusedError(Exception):
    """Status and text of the server's answer."""


class _Patient(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(N_TRIES):
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            response.close()
            time.sleep(BUSY_S)
        return response


class Prefect:
    """Questions to one server. All raise RefusedError."""

    def __init__(self, url: str) -> None:
        # SQLite answers 503 while somebody else writes; a page asks again, and so do we.
        self._http = httpx.Client(base_url=url, timeout=30.0, transport=_Patient())

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        return self._answer(self._http.get(path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._answer(self._http.post(path, json=body))

    def patch(self, path: str, body: dict[str, Any]) -> None:
        response = self._http.patch(path, json=body)
        if response.is_error:
            raise RefusedError(response.status_code, response.text)

    @staticmethod
    def _answer(response: httpx.Response) -> Any:
        if response.is_error:
            raise RefusedError(response.status_code, response.text)
        return response.json()

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/flow_runs/{flow_run_id}")
        return found

    def subflow_runs(self, flow_run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post(
            "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
        )
        return found

    def task_runs(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        """By name."""
        found = self.post("/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [flow_run_id]}}})
        return {run["name"]: run for run in found}

    def artifacts(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        """By key."""
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, flow_run_id: str) -> str:
        found = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(log["message"] for log in found)


def eventually(ask: Callable[[], T], good: Callable[[T], bool], within_s: float = STORED_WITHIN_S) -> T:
    """The first answer that is good, or the last one when none is."""
    end = time.monotonic() + within_s
    while not good(answer := ask()) and time.monotonic() < end:
        time.sleep(0.2)
    return answer
