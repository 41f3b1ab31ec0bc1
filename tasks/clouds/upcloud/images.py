"""Ubuntu 24.04 among UpCloud's templates."""

from __future__ import annotations

from typing import Any

from upcloud_api import CloudManager

from tasks.domain.errors import UnsupportedError

_RELEASE = "ubuntu server 24.04"
_GPU_MARKS = ("nvidia", "cuda")


def find_template(manager: CloudManager, *, gpus: int) -> dict[str, Any]:
    """The public template to clone, for a GPU the one with drivers: "Ubuntu Server 24.04 LTS (with NVIDIA drivers &
    CUDA)". Raises UnsupportedError: a GPU server without a driver bills like one with it."""
    templates = manager.api.get_request("/storage/template")["storages"]["storage"]
    ubuntus = [t for t in templates if t.get("access") == "public" and str(t["title"]).lower().startswith(_RELEASE)]
    with_drivers = [t for t in ubuntus if any(mark in str(t["title"]).lower() for mark in _GPU_MARKS)]
    plain = [t for t in ubuntus if t not in with_drivers]
    candidates = with_drivers if gpus else plain
    if not candidates:
        what = "Ubuntu Server 24.04" + (" with NVIDIA's drivers" if gpus else "")
        raise UnsupportedError(f"upcloud: there is no template of {what}.", reason="no_template")
    return min(candidates, key=lambda template: str(template["uuid"]))
