# ruff: noqa: PTH101, PTH103, PTH110, PTH112, PTH120, PTH123, PTH208, PTH211, T201
# pathlib costs a third of the time that this takes to start, and stderr is the console.
"""The first process of a local server: PID 1 of a micro-VM, or the supervisor of a loopback server.

Run as a script, isolated and without site packages (`python -I -S server_init.py`), so that it is up in some 30 ms
and needs no file of the host once the root has changed. It imports the standard library alone.

Its creator and it talk over stdin and stdout, one JSON object per line:

    creator  the configuration (`launch.py` writes it)
    init     {"pid": …}            its process id as the host sees it
    creator  {"commands": […]}     the network is there: configure your end
    init     {"ready": true}       the SSH port answers

When stdin ends before that, the creator was killed: the half-made server ends itself. Afterwards nothing ties it to
its creator. It accepts SSH connections and starts one sshd for each (so the port is never free for another to take),
reaps what is orphaned, and ends everything at the deadline or on SIGTERM.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

ENV_MARK = "TOKENSWEEP_VM"
MARK_BASE = 1 << 61
MARK_VM_BITS = 29

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x20000000, 0x40000000, 0x02000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 24, 36

KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 14, 18, 23, 29, 31})
"""chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, ipc_lock, sys_chroot,
sys_nice, audit_write, setfcap: what a server's root needs, and nothing that changes the kernel it shares."""


def put_mark(mark: int) -> bool:
    """Mark this process and all that it will ever start, for `marks`; False where the system does not let it.

    The mark is a limit on real-time CPU time of 70,000 years or more. Unlike the environment, which sshd overwrites
    with its title and `env -i` drops, children inherit it whatever they do, and everybody may read it.
    """
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, mark))
    except (ValueError, OSError):
        return False
    return True


def mark_of(pid: int) -> int:
    """The mark of a process, or 0."""
    try:
        with open(f"/proc/{pid}/limits") as limits:
            for line in limits:
                if line.startswith("Max realtime timeout"):
                    soft = line.split()[3]
                    return int(soft) if soft.isdigit() and int(soft) >= MARK_BASE else 0
    except OSError:
        pass
    return 0


class Kernel:
    """The system calls that the standard library lacks. Each raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def unshare(self, flags: int) -> None:
        self._check(self._libc.unshare(flags), "unshare")

    def mount(self, source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
        result = self._libc.mount(
            source.encode(), target.encode(), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        )
        self._check(result, f"mount {source} on {target}")

    def bind(self, source: str, target: str, read_only: bool) -> None:
        self.mount(source, target, flags=MS_BIND | MS_REC)
        if read_only:
            for point in _mounts_below(target) if os.path.isdir(target) else [target]:
                kept = os.statvfs(point).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
                self.mount("none", point, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)

    def pivot_root(self, new_root: str) -> None:
        """Make new_root the root; the old one cannot be reached any more."""
        os.chdir(new_root)
        self._check(self._libc.pivot_root(b".", b"."), "pivot_root")
        self._check(self._libc.umount2(b".", MNT_DETACH), "umount of the old root")
        os.chdir("/")

    def prctl(self, option: int, argument: int) -> None:
        self._check(self._libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl {option}")

    def drop_capabilities(self) -> None:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            last = int(file.read())
        for capability in range(last + 1):
            if capability not in KEPT_CAPABILITIES:
                self.prctl(PR_CAPBSET_DROP, capability)


def _mounts_below(target: str) -> list[str]:
    points = []
    with open("/proc/self/mountinfo") as mountinfo:
        for line in mountinfo:
            point = line.split()[4].encode().decode("unicode_escape")  # spaces are \040
            if point == target or point.startswith(target.rstrip("/") + "/"):
                points.append(point)
    return points


def build_root(kernel: Kernel, root: dict[str, Any]) -> None:
    """Put the server's root together as `microvm_root.py` planned it, and move into it."""
    top = root["top"]
    kernel.mount("none", "/", flags=MS_REC | MS_PRIVATE)
    kernel.mount("tmpfs", top, "tmpfs", MS_NOSUID | MS_NODEV, root["options"])
    for path, mode in root["directories"]:
        os.makedirs(top + path, exist_ok=True)
        os.chmod(top + path, mode)
    for path, target in root["links"]:
        os.symlink(target, top + path)
    for path, mode, text in root["files"]:
        with open(top + path, "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
    for mount in root["mounts"]:
        target = top + mount["target"]
        if mount["fstype"] == "bind":
            if not os.path.lexists(target):
                _make_mount_point(mount["source"], target)
            kernel.bind(mount["source"], target, mount["read_only"])
        else:
            kernel.mount(mount["source"], target, mount["fstype"], mount["flags"], mount["data"])
    for path in root["read_only"]:
        if os.path.exists(top + path):
            kernel.bind(top + path, top + path, True)
    kernel.pivot_root(top)


def _make_mount_point(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w"):
            pass


class Service:
    """Answers SSH until the deadline."""

    def __init__(self, config: dict[str, Any], listener: socket.socket) -> None:
        self.deadline_unix_s: float = config["deadline_unix_s"]
        self.is_pid_1: bool = config["isolation"] == "microvm"
        self.mark: int = config["mark"]
        self.sshd: list[str] = config["ssh"]["argv"]
        self.per_connection: bool = config["ssh"]["per_connection"]
        self.environment: dict[str, str] = config["environment"]
        self.listener = listener
        self.daemon_pid = 0
        self.daemon_started_s = float("-inf")
        self.ending = False

    def run(self) -> NoReturn:
        self.listener.setblocking(False)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        watched: list[Any] = [wake_read, self.listener] if self.per_connection else [wake_read]
        while not self.ending and (left_s := self.deadline_unix_s - time.time()) > 0:
            if not self.per_connection:
                self._keep_daemon()
            ready, _, _ = select.select(watched, [], [], min(left_s, 5.0))  # 5 s: the clock may be set
            with suppress(BlockingIOError):
                os.read(wake_read, 512)
            self._reap()
            if self.listener in ready:
                self._accept()
        self._power_off("was told to end" if self.ending else "reached its deadline")

    def _end(self, *_: object) -> None:
        self.ending = True

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            with connection:
                connection.setblocking(True)
                self._spawn([(connection.fileno(), 0), (connection.fileno(), 1)])

    def _keep_daemon(self) -> None:
        if self.daemon_pid == 0 and time.monotonic() - self.daemon_started_s > 1.0:
            self.daemon_started_s = time.monotonic()
            self.daemon_pid = self._spawn([(self.listener.fileno(), 3)])

    def _spawn(self, moves: list[tuple[int, int]]) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in moves]
        return os.posix_spawn(
            self.sshd[0], self.sshd, self.environment, file_actions=actions, setsigdef=[signal.SIGCHLD, signal.SIGTERM]
        )

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                if pid == self.daemon_pid:
                    self.daemon_pid = 0

    def _power_off(self, why: str) -> NoReturn:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} the server {why}", file=sys.stderr, flush=True)
        self.listener.close()
        while not self.is_pid_1 and self._kill_the_others():
            self._reap()
            time.sleep(0.01)
        os._exit(0)  # of PID 1: the kernel kills everything in its namespace

    def _kill_the_others(self) -> bool:
        """Without a namespace of its own, the server's processes are found by their mark."""
        me = os.getpid()
        others = [pid for pid in _pids() if pid != me and (mark_of(pid) == self.mark or _parent(pid) == me)]
        for pid in others:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(others)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def read_line() -> dict[str, Any]:
    """The creator's next line. Raises EOFError when the creator is gone, or says nothing for a minute."""
    line = bytearray()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([0], [], [], 60.0)
        piece = os.read(0, 65536) if ready else b""
        if not piece:
            raise EOFError("the creator is gone")
        line += piece
    message: dict[str, Any] = json.loads(line)
    return message


def answer(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def still_wanted(config: dict[str, Any]) -> bool:
    """A delete marks the record first and looks for processes afterwards, we do it the other way round: one sees the
    other, whoever comes first."""
    return os.path.exists(config["record"]) and not os.path.exists(config["deleting"])


def run_commands(commands: list[dict[str, Any]]) -> None:
    for command in commands:
        subprocess.run(command["argv"], input=command["stdin"], text=True, check=True, stdout=subprocess.DEVNULL)


def start(config: dict[str, Any]) -> None:
    """Take on the limits, fork into the namespaces, and tell the creator who the child is."""
    for path in config["cgroup_procs"]:
        with open(path, "w") as procs:
            procs.write(str(os.getpid()))
    if config["isolation"] == "loopback":
        os.sched_setaffinity(0, config["cpus"])
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = config["memory_bytes"] if hard == resource.RLIM_INFINITY else min(config["memory_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    else:
        Kernel().unshare(NAMESPACES | CLONE_NEWPID)
    pid = os.fork()
    if pid:
        with suppress(BrokenPipeError):
            answer({"pid": pid})
        os._exit(0)


def become_init(config: dict[str, Any]) -> socket.socket:
    """Everything between the fork and the open SSH port."""
    kernel = Kernel()
    if config["isolation"] == "loopback":
        with suppress(OSError):  # the mark finds orphans as well; this also reaps them
            kernel.prctl(PR_SET_CHILD_SUBREAPER, 1)
        read_line()
        os.set_inheritable(config["listen_fd"], False)
        return socket.socket(fileno=config["listen_fd"])
    build_root(kernel, config["root"])
    socket.sethostname(config["name"])
    run_commands(read_line()["commands"])
    kernel.drop_capabilities()
    return socket.create_server(("", config["ssh_port"]), backlog=64)


def probe(config: dict[str, Any]) -> None:
    """Make, in namespaces that end with this process, one of each thing that a micro-VM needs."""
    kernel = Kernel()
    kernel.unshare(NAMESPACES)
    kernel.mount("none", "/", flags=MS_REC | MS_PRIVATE)
    kernel.mount("tmpfs", config["mount_point"], "tmpfs", MS_NOSUID)
    run_commands(config["commands"])
    kernel.unshare(CLONE_NEWPID)  # last: it is for children, and lets no second one live when the first has ended
    answer({"ready": True})


def main() -> None:
    os.umask(0o022)
    config = read_line()
    if config["isolation"] == "probe":
        probe(config)
        return
    put_mark(config["mark"])
    if not still_wanted(config):
        sys.exit("the server was deleted while it was being created")
    start(config)
    os.setsid()
    try:
        listener = become_init(config)
    except EOFError:
        os._exit(1)
    answer({"ready": True})
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    Service(config, listener).run()


if __name__ == "__main__":
    main()
