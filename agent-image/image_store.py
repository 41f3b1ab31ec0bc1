"""A place of its own for buildah and podman: nothing of theirs outside one folder, and nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tasks.domain.errors import ConfigError, TokensweepError

PROGRAMS = ("buildah", "podman", "runc")
IN_MEMORY = "/dev/shm"  # noqa: S108
REMOVE_TIMEOUT_S = 60.0
CGROUPS = Path("/sys/fs/cgroup")
ROOM_BYTES = 3_000_000_000  # base, compiler and stages of a CPU image
INSTALL = "apt-get install --no-install-recommends buildah podman runc mmdebstrap"
# crun turns down hybrid cgroups, so runc; and limits no higher than an ordinary machine's, which a root without
# CAP_SYS_RESOURCE may set too.
CONFIGURATION = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{tmp}"
"""


@dataclass
class Store:
    """buildah and podman over `folder`. `log` holds all that builds print."""

    folder: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def options(self) -> list[str]:
        return ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]

    def buildah(self, *arguments: str) -> str:
        """Standard output of one command; both streams are also in the log. Raises TokensweepError when it fails."""
        done = subprocess.run(
            ["buildah", *self.options(), *arguments], capture_output=True, text=True, env=self.environment
        )
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ buildah {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            raise TokensweepError(
                f"`buildah {arguments[0]}` ended with {done.returncode}: {_why(done.stderr)}",
                reason="image_build_failed",
                next_step=f"The whole log is {self.log}.",
            )
        return done.stdout

    def build(self, context: Path, *arguments: str) -> None:
        """`buildah build` with every line into the log, and the steps of the Dockerfile on standard error."""
        command = ["buildah", *self.options(), "build", "--isolation", "chroot", "--pull-never", *arguments]
        last: list[str] = []
        with (
            self.log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                [*command, str(context)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self.environment,
                start_new_session=True,
            ) as process,
        ):
            log.write(f"$ {' '.join(command)} {context}\n")
            try:
                for line in process.stdout or ():
                    log.write(line)
                    log.flush()
                    last = [*last[-20:], line]
                    if "STEP" in line or line.startswith("runtime: "):
                        print(f"  {line.strip()[:110]}", file=sys.stderr, flush=True)
            except BaseException:  # Ctrl-C: what it started must not go on in a folder that is being removed
                _kill_session(process.pid)
                raise
        if process.returncode != 0:
            raise TokensweepError(
                f"`buildah build` ended with {process.returncode}: {_why(''.join(last))}",
                reason="image_build_failed",
                next_step=f"The whole log is {self.log}.",
            )

    def podman(self, *arguments: str) -> list[str]:
        """The command line for podman, to be started with `environment`."""
        return ["podman", *self.options(), *arguments]

    def mounted(self, image: str) -> tuple[str, Path]:
        """A container of the image and where its files are."""
        container = self.buildah("from", "--pull-never", image).strip()
        return container, Path(self.buildah("mount", container).strip())


@contextmanager
def private_store(log: Path, room_bytes: int = ROOM_BYTES) -> Iterator[Store]:
    """A store that ends with the block: its containers are removed, its mounts undone, its files deleted.

    It lies in memory where there is room for it: package managers and layers wait for the disk most of their time.
    Raises ConfigError with what to install, or where the caller is not root.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"Images cannot be built: no {', no '.join(missing)} in PATH.", reason="no_buildah", next_step=INSTALL
        )
    if os.geteuid() != 0:
        raise ConfigError(
            "Images are built as root here, and this is an ordinary user.",
            reason="not_root",
            next_step="sudo make image, or any image builder: see the first lines of agent-image/Dockerfile.",
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    folder = Path(tempfile.mkdtemp(prefix=f"tokensweep-image-{os.getpid()}-", dir=_where(room_bytes)))
    (folder / "containers.conf").write_text(CONFIGURATION.format(tmp=folder / "podman"), encoding="utf-8")
    own = {"TMPDIR": str(folder), "CONTAINERS_CONF": str(folder / "containers.conf"), "BUILDAH_ISOLATION": "chroot"}
    store = Store(folder, log, {**os.environ, **own})
    cgroups_before = _podman_cgroups()
    try:
        yield store
    finally:
        for command in (store.podman("rm", "--all", "--force"), ["buildah", *store.options(), "rm", "--all"]):
            subprocess.run(command, capture_output=True, env=store.environment)
        _unmount_below(folder)
        _remove(folder)
        for cgroup in _podman_cgroups() - cgroups_before:
            with suppress(OSError):  # somebody else's podman uses it too
                for empty in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
                    empty.rmdir()
                cgroup.rmdir()


def _podman_cgroups() -> set[Path]:
    """podman makes one in each hierarchy at its first container, and leaves it."""
    return {path for pattern in ("libpod_parent", "*/libpod_parent") for path in CGROUPS.glob(pattern)}


def _where(room_bytes: int) -> str | None:
    """The folder in memory if it has twice the room, else the usual one for temporary files."""
    try:
        free = os.statvfs(IN_MEMORY)
    except OSError:
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    least = min(free.f_bavail * free.f_frsize, int(available[1]) * 1024 if available else 0)
    return IN_MEMORY if least > 2 * room_bytes else None


def _kill_session(session: int) -> None:
    """Every process of it: ninja gives each compiler a process group of its own."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)


def _remove(folder: Path) -> None:
    """What was killed a moment ago may still be writing there."""
    gives_up_s = time.monotonic() + REMOVE_TIMEOUT_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < gives_up_s)
        if folder.exists():
            time.sleep(0.2)
            _unmount_below(folder)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted((m for m in mounts if Path(m).is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)


def _why(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if line.lower().startswith(("error", "e:"))]
    return (wrong or lines or ["no output"])[-1]
