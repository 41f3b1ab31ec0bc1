"""What a simulated cloud is like: its seed, its clock's speed, its rules, and how often it fails in which way."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tasks.domain.errors import ConfigError

CLOUD_FAULTS: dict[str, str] = {
    "capacity": "a zone has no server of this type left, for an hour",
    "quota": "the account's limit in a region is reached",
    "throttled": "a call is refused because there were too many",
    "lost_request": "the connection breaks before a call has its effect",
    "lost_response": "the connection breaks after a call has had its effect",
    "bad_gateway": "a gateway answers with HTML, before or after the effect",
    "credentials_expired": "for two minutes every call is refused",
    "region_outage": "for two minutes a region does not answer; listings lack it",
    "partial_create": "disk and address are made, the server is not",
    "double_create": "a create makes two servers",
    "create_fails_later": "the create is accepted, and fails while the server boots",
    "slow_boot": "the server does not run within ten minutes",
    "not_found_lie": "a look-up denies a server that exists",
    "surviving_disk": "disk and address outlive their server",
    "stuck_delete": "the first deletes are accepted and ignored",
    "delete_blocked": "the first deletes are refused",
    "preempted": "the vendor ends the server in the middle",
    "stopped_by_vendor": "the vendor stops the server in the middle, and goes on billing it",
    "clock_offset": "the vendor's times are up to 90 s off",
}
SERVER_FAULTS: dict[str, str] = {
    "ssh_never": "it never answers over SSH",
    "host_key_mismatch": "it shows another host key",
    "connection_lost": "the connection breaks for a while",
    "agent_dies": "the agent dies in the middle",
    "download_dead": "a download moves no byte any more",
    "download_slow": "a download is too slow to wait for",
    "checksum": "a downloaded file has the wrong checksum",
    "disk_full": "the disk is full in the middle of a download",
    "wrong_build": "the first build of the engine dies of an illegal instruction",
    "out_of_memory": "the kernel kills the engine for memory",
    "bench_killed": "something kills the engine",
    "cpu_fallback": "a GPU server computes on its CPUs and says nothing",
    "noisy_neighbour": "another tenant takes a third of the processor time",
}
FAULTS: dict[str, str] = {**CLOUD_FAULTS, **SERVER_FAULTS}


@dataclass(frozen=True, kw_only=True)
class SimOptions:
    """Options of TOKENSWEEP_SIM_* and of a preset's `vendor_options`.

    speedup: seconds of the simulated clock per second on the wall. faults: by class, 0 to 1.
    visibility_lag_s: how far listings may be behind. zone_stock: servers of one type in one zone. region_vcpus: the
    account's limit. requests_per_s: above it calls are refused, 0 for no limit. telemetry_s: between two readings.
    """

    seed: int = 1
    speedup: float = 60.0
    faults: dict[str, float] = field(default_factory=dict)
    visibility_lag_s: float = 15.0
    boot_s: float = 40.0
    delete_s: float = 20.0
    zone_stock: int = 50
    region_vcpus: int = 100_000
    requests_per_s: float = 0.0
    telemetry_s: float = 10.0
    billing_minimum_s: int = 60
    billing_increment_s: int = 1
    unique_names: bool = False
    idempotency_token: bool = True
    native_ttl: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def with_changes(self, changes: Mapping[str, Any]) -> SimOptions:
        """These options with others on top; `faults` may be one rate for every class. Raises ConfigError."""
        return parse_options({**self.to_dict(), **changes})


def parse_options(raw: Mapping[str, Any]) -> SimOptions:
    """Raises ConfigError that names the option and what it may be."""
    kinds = {f.name: type(getattr(SimOptions(), f.name)) for f in fields(SimOptions)}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in kinds:
            raise ConfigError(f"The simulated cloud has no option {name!r}.{_near(name, kinds)}")
        values[name] = _faults(value) if name == "faults" else _number(name, value, kinds[name])
    if values.get("speedup", 1.0) <= 0:
        raise ConfigError("The option speedup must be more than 0.")
    return SimOptions(**values)


def _faults(value: Any) -> dict[str, float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = dict.fromkeys(FAULTS, float(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"The option faults must be a rate, or a mapping of class to rate, not {value!r}.")
    rates = {}
    for name, rate in value.items():
        if name not in FAULTS:
            raise ConfigError(f"There is no fault class {name!r}.{_near(str(name), FAULTS)}")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ConfigError(f"The rate of the fault class {name} must be between 0 and 1, not {rate!r}.")
        if rate:
            rates[name] = float(rate)
    return rates


def _number(name: str, value: Any, kind: type) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"The option {name} must be true or false, not {value!r}.")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and value != int(value)):
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"The option {name} must be {what}, not {value!r}.")
    if value < 0:
        raise ConfigError(f"The option {name} must not be negative.")
    return kind(value)


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}."
