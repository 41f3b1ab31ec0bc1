"""The vendor `local`: real servers on this machine, with their own CPUs, memory, link, SSH and end."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Literal

from tasks.clouds.base import (
    DEADLINE_TAG,
    INTENT_TAG,
    NO_CODE,
    OWNER,
    OWNER_TAG,
    SWEEP_TAG,
    Classified,
    CreateSpec,
    ErrorKind,
    Listing,
    Ref,
    Resource,
    Scope,
    ServerType,
    Traits,
)
from tasks.clouds.local import loopback, microvm, processes, server_types, ssh, strays
from tasks.clouds.local.admission import LocalCloudError, allocate, check_spec, choose_isolation
from tasks.clouds.local.server_types import PLACE, VENDOR, Machine, Shape
from tasks.clouds.local.state import Record, StateDir, default_state_dir
from tasks.domain.errors import AmbiguousError, CleanupError, ConfigError, TokensweepError, UnsupportedError


class LocalCloud:
    """Servers on this machine. isolation "auto" takes micro-VMs where they can be made, and loopback servers elsewhere.

    Two instances with the same state folder see the same servers; with different ones they never touch each other's.
    """

    vendor = VENDOR
    traits = Traits(
        stopped_bills=False,
        billing_minimum_s=0,
        billing_increment_s=1,
        unique_names=True,
        idempotency_token=True,
        native_ttl=True,
        visibility_lag_s=0.0,
        dry_s=0.0,  # CPUs are free again as soon as another server of ours has ended
    )

    def __init__(
        self, state_dir: Path | None = None, isolation: Literal["auto", "microvm", "loopback"] = "auto"
    ) -> None:
        self._state = StateDir(state_dir or default_state_dir())
        self._wanted_isolation = isolation
        self._lease = -1

    @cached_property
    def _isolation(self) -> tuple[str, str]:
        """Not found out before it is needed: finding out takes a moment, and listing and deleting do without."""
        return choose_isolation(self._wanted_isolation)

    @property
    def isolation(self) -> str:
        """Micro-VMs ("microvm") or "loopback". Raises ConfigError when micro-VMs are asked for and cannot be made."""
        return self._isolation[0]

    @property
    def isolation_reason(self) -> str:
        return self._isolation[1]

    @property
    def state_dir(self) -> Path:
        return self._state.root

    @property
    def ssh_server(self) -> str:
        """What answers SSH on the servers, and, when it is not sshd, why not."""
        why_not = "" if self.isolation == microvm.ISOLATION else ssh.why_no_sshd_for_user()
        return f"asyncssh ({why_not})" if why_not else "sshd"

    # -- what there is --

    def catalog(self) -> Sequence[ServerType]:
        return [self.server_type(name) for name in server_types.catalog_names(Machine.this())]

    def default_server_types(self) -> tuple[str, str, str]:
        """Names of three types that differ in CPUs, memory and link, for a sweep of this machine."""
        return server_types.default_names(Machine.this())

    def server_type(self, name: str) -> ServerType:
        """Any well-formed name is for sale. Raises ConfigError (malformed) or UnsupportedError (too large for here)."""
        machine = Machine.this()
        return server_types.server_type(self._shape(name, machine), machine, self._state.root, time.time())

    def _shape(self, name: str, machine: Machine) -> Shape:
        shape = server_types.parse(name)
        server_types.check_fits(shape, machine)
        if self.isolation == loopback.ISOLATION:
            loopback.check(shape)
        return shape

    # -- servers --

    def create(self, spec: CreateSpec) -> Resource:
        """Returns when the SSH port answers. A second call with the same name and token returns the first server.

        Raises LocalCloudError (no free CPU, the name is taken, or starting failed), ConfigError or UnsupportedError.
        """
        machine = Machine.this()
        shape = self._shape(spec.server_type, machine)
        check_spec(spec)
        with ExitStack() as held:
            with self._state.lock():
                existing = self._read(spec.name)
                if existing is not None:
                    return self._first(existing, spec)
                record = self._new_record(spec, allocate(shape, machine, self._live_records()))
                held.enter_context(self._state.add(record))
            isolation = microvm if self.isolation == microvm.ISOLATION else loopback
            try:
                record = isolation.start(self._state, spec, record, shape)
            except Exception as exc:
                raise self._undo(spec.name, exc) from exc
        return self._resource(record)

    def get(self, ref: Ref) -> Resource | None:
        if strays.is_stray(ref.cloud_id):
            return next((r for r in self.list_owned().resources if r.cloud_id == ref.cloud_id), None)
        record = self._read(ref.name)
        if record is None or strays.server_id(ref.cloud_id) not in ("", record.id):
            return None
        return self._resource(record)

    def list_owned(self) -> Listing:
        """All servers, and whatever else of this state folder is on the machine without being of one of them."""
        read_unix_s = time.time()
        seen = strays.look(self._state)
        problems: list[str] = []
        resources: list[Resource] = []
        for name in self._state.names():
            try:
                record = self._state.read(name)
            except ValueError as exc:
                problems.append(str(exc))
                resources.append(strays.directory(name, name, {OWNER_TAG: OWNER}))
                continue
            if record is None:
                continue  # deleted since its name was read
            server = self._resource(record)
            resources.append(server)
            if server.state == "terminated":  # it costs nothing any more, but it left something, as a disk may be left
                resources.append(strays.directory(name, record.id, record.tags, record.created_unix_s))
        resources += strays.without_server(self._state, seen)
        return Listing(
            vendor=VENDOR,
            resources=tuple(resources),
            complete=True,
            read_unix_s=read_unix_s,
            places=(PLACE,),
            problems=tuple(problems),
        )

    def delete(self, ref: Ref) -> None:
        """Returns when nothing is left of it. Raises CleanupError when something stays.

        Takes the Ref of anything that `list_owned` shows; a server is deleted with all that it brought.
        """
        if strays.is_stray(ref.cloud_id):
            strays.remove(self._state, ref)
            return
        with self._state.lock_server(ref.name) as exists:
            if not exists:
                return
            try:
                record = self._state.read(ref.name)
            except ValueError:
                record = None  # the name is enough to find all of it
            if record is None or strays.server_id(ref.cloud_id) in ("", record.id):
                self._remove(ref.name)

    def classify(self, exc: BaseException) -> Classified:
        if isinstance(exc, LocalCloudError):
            return _classified(exc.kind, exc.kind.value, exc, may_exist=exc.may_exist)
        if isinstance(exc, ConfigError | UnsupportedError):
            return _classified(ErrorKind.UNSUPPORTED, exc.reason, exc, may_exist=False)
        if isinstance(exc, CleanupError):
            return _classified(ErrorKind.DELETE_BLOCKED, exc.reason, exc, may_exist=True)
        code = exc.reason if isinstance(exc, TokensweepError) else NO_CODE
        return _classified(ErrorKind.UNKNOWN, code, exc, may_exist=True)

    # -- the controller's end of the network --

    def model_host(self) -> str:
        """The address of this machine that servers reach, and where a model server has to listen.

        For micro-VMs it is there from now until `close`, or until this process ends, servers or not.
        """
        if self.isolation == loopback.ISOLATION:
            return loopback.HOST
        if self._lease < 0:
            self._lease = self._state.lease_network()
        return microvm.bridge_address(self._state)

    def close(self) -> None:
        """Give up the address of `model_host`. A second call does nothing."""
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1
            microvm.remove_idle_bridge(self._state)

    # -- parts of create and delete --

    def _read(self, name: str) -> Record | None:
        try:
            return self._state.read(name)
        except ValueError as exc:
            raise AmbiguousError(
                f"local server {name}: {exc}.", reason="unreadable_record", next_step="tokensweep reap removes it."
            ) from exc

    def _first(self, existing: Record, spec: CreateSpec) -> Resource:
        if existing.token != spec.token:
            raise LocalCloudError(ErrorKind.EXISTS, f"a local server {spec.name} exists, made for another token")
        return self._resource(existing)

    def _new_record(self, spec: CreateSpec, cpus: tuple[int, ...]) -> Record:
        ours = {
            OWNER_TAG: OWNER,
            INTENT_TAG: spec.intent_id,
            DEADLINE_TAG: str(math.ceil(spec.deadline_unix_s)),
            SWEEP_TAG: spec.sweep_id,
        }
        return Record(
            id=str(uuid.uuid4()),
            name=spec.name,
            token=spec.token,
            server_type=spec.server_type,
            isolation=self.isolation,
            cpus=cpus,
            created_unix_s=time.time(),
            deadline_unix_s=spec.deadline_unix_s,
            tags={**spec.tags, **ours},
        )

    def _live_records(self) -> list[Record]:
        live = []
        for name in self._state.names():
            with suppress(ValueError):  # listed as a problem by `list_owned`
                record = self._state.read(name)
                if record is not None and self._liveness(record) != "terminated":
                    live.append(record)
        return live

    def _remove(self, name: str) -> None:
        """Call it under the server's lock."""
        self._state.mark_deleting(name)
        processes.kill_all(self._state.tag, name)
        microvm.remove_traces(self._state, name)
        self._state.bury(name)

    def _undo(self, name: str, why: Exception) -> LocalCloudError:
        try:
            self._remove(name)
        except Exception as exc:
            return LocalCloudError(ErrorKind.UNKNOWN, f"{why} Then it could not be removed: {exc}", may_exist=True)
        return LocalCloudError(ErrorKind.UNKNOWN, f"{why} What had been made of it was removed again.")

    # -- what a record says, and what is true --

    def _liveness(self, record: Record) -> str:
        if self._state.is_deleting(record.name):
            return "stopping"
        is_busy = self._state.is_busy(record.name)
        has_init = record.init_pid > 0 and record.boot_id == processes.boot_id()
        if has_init and processes.is_alive(record.init_pid, record.init_start_ticks):
            return "pending" if is_busy else "running"
        if is_busy:
            return "pending"
        # Its first process is dead, or its creator was killed before it heard of one.
        return "stopping" if processes.find(self._state.tag, record.name) else "terminated"

    def _resource(self, record: Record) -> Resource:
        state = self._liveness(record)
        ended = state == "terminated"
        return Resource(
            vendor=VENDOR,
            place=PLACE,
            name=record.name,
            cloud_id=record.id,
            kind="server",
            state=state,
            tags=dict(record.tags),
            created_unix_s=record.created_unix_s,
            address=record.address,
            ssh_port=record.ssh_port or microvm.SSH_PORT,
            username=record.username or "root",
            usd_per_hour=Decimal(0) if ended else server_types.parse(record.server_type).usd_per_hour,
        )


def _classified(kind: ErrorKind, code: str, exc: BaseException, *, may_exist: bool) -> Classified:
    scope = Scope.SERVER_TYPE if kind is ErrorKind.UNSUPPORTED else Scope.ZONE
    return Classified(kind=kind, scope=scope, may_exist=may_exist, code=code, message=str(exc))
