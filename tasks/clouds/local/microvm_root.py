"""What a micro-VM's root is put together from: the host's programs, read-only, and files of its own.

Nothing else of the host is there: not its /home, /root, /etc or /tmp, nor the folder of the project. The plan is
data; `server_init.build_root` carries it out inside the new mount namespace, where everything ends with the server.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from tasks.clouds.base import CreateSpec
from tasks.clouds.guest import USERNAME
from tasks.clouds.local import ssh
from tasks.clouds.local.cgroups import Hierarchy
from tasks.clouds.local.server_init import ENV_MARK, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from tasks.clouds.local.server_types import MIB, Shape
from tasks.clouds.local.state import Record

WORK_DIR = "/srv"
LIMITS_PATH = "/etc/tokensweep/limits.json"
PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/protocols",
    "/etc/services",
    "/etc/terminfo",
)
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
KERNEL_SETTINGS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
ROOT_TMPFS_MIB = 256
_NO_PROGRAMS = MS_NOSUID | MS_NODEV | MS_NOEXEC


def session_environment(mark: str) -> dict[str, str]:
    path = ssh.SYSTEM_PATH if ssh.system_python() else f"/etc/tokensweep/bin:{ssh.SYSTEM_PATH}"
    return {"HOME": WORK_DIR, "PATH": path, ENV_MARK: mark, "TOKENSWEEP_LIMITS": LIMITS_PATH}


def plan(
    spec: CreateSpec, record: Record, shape: Shape, hierarchy: Hierarchy, tag: str, top: str, disk: str, mark: str
) -> dict[str, Any]:
    """The root of one server, for `server_init.build_root`. top: an empty folder to mount it on."""
    views = hierarchy.views(tag, record.name)
    mounts = [
        *(_bind(path, path) for path in PROGRAMS if Path(path).is_dir() and not Path(path).is_symlink()),
        *(_bind(os.path.realpath(path), path) for path in SYSTEM_FILES if Path(path).exists()),
        *(_bind(f"/dev/{device}", f"/dev/{device}", read_only=False) for device in DEVICES),
        _mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"),
        _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),  # noqa: S108 (the server's)
        _mount("proc", "/proc", "proc", _NO_PROGRAMS),
        _mount("sysfs", "/sys", "sysfs", _NO_PROGRAMS | MS_RDONLY),
        _disk(shape, disk),
    ]
    if "/sys/fs/cgroup" not in views:  # version 1: a folder for each controller
        mounts.append(_mount("tmpfs", "/sys/fs/cgroup", "tmpfs", _NO_PROGRAMS, "size=64k,mode=755"))
    mounts += [_bind(source, target) for target, source in views.items()]
    links = [(path, str(Path(path).readlink())) for path in PROGRAMS if Path(path).is_symlink()]
    links += [("/dev/fd", "/proc/self/fd"), ("/dev/ptmx", "pts/ptmx")]
    links += [(f"/dev/{name}", f"/proc/self/fd/{fd}") for fd, name in enumerate(("stdin", "stdout", "stderr"))]
    if ssh.system_python() is None:
        prefix = os.path.realpath(sys.base_prefix)
        mounts.append(_bind(prefix, prefix))
        links.append(("/etc/tokensweep/bin/python3", ssh.controller_python()))
    return {
        "top": top,
        "options": f"mode=755,size={min(ROOT_TMPFS_MIB, shape.memory_bytes // MIB // 4)}m",
        "directories": [
            *((path, 0o755) for path in ("/etc/ssh", "/etc/tokensweep/bin", "/run/sshd", "/var/empty", "/home")),
            *((path, 0o755) for path in ("/dev/pts", "/dev/shm", "/proc", "/sys", WORK_DIR)),  # noqa: S108
            ("/root", 0o700),
            ("/tmp", 0o1777),  # noqa: S108
            ("/var/tmp", 0o1777),  # noqa: S108
        ],
        "links": links,
        "files": _files(spec, record, shape, mark),
        "mounts": mounts,
        "read_only": KERNEL_SETTINGS,
    }


def _disk(shape: Shape, disk: str) -> dict[str, Any]:
    """A folder of the host's disk; a small disk of its own has to be in memory, within the memory limit."""
    if shape.disk_bytes:
        return _mount("tmpfs", WORK_DIR, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={shape.disk_bytes}")
    return _bind(disk, WORK_DIR, read_only=False)


def limits(shape: Shape, record: Record) -> dict[str, Any]:
    """What the agent cannot see otherwise: /proc/meminfo is the host's."""
    return {
        "memory_bytes": shape.memory_bytes,
        "cpus": list(record.cpus),
        "disk_bytes": shape.disk_bytes or None,
        "link_bytes_per_s": shape.link_bytes_per_s,
    }


def _files(spec: CreateSpec, record: Record, shape: Shape, mark: str) -> list[tuple[str, int, str]]:
    config = ssh.sshd_config(
        host_key="/etc/ssh/ssh_host_key",
        authorized_keys="/etc/ssh/authorized_keys",
        user=f"root {USERNAME}",
        environment=session_environment(mark),
        sftp="internal-sftp",
    )
    return [
        ("/etc/passwd", 0o644, _passwd()),
        ("/etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("/etc/shadow", 0o600, f"root:*::0:::::\n{USERNAME}:*::0:::::\nsshd:*::0:::::\nnobody:*::0:::::\n"),
        ("/etc/hostname", 0o644, f"{record.name}\n"),
        ("/etc/hosts", 0o644, f"127.0.0.1 localhost {record.name}\n::1 localhost\n"),
        ("/etc/machine-id", 0o444, f"{uuid.UUID(record.id).hex}\n"),
        ("/etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"),
        ("/etc/resolv.conf", 0o644, ""),
        ("/etc/ssh/authorized_keys", 0o644, spec.client_public_key.strip() + "\n"),
        ("/etc/ssh/ssh_host_key", 0o600, spec.host_private_key.strip() + "\n"),
        ("/etc/ssh/ssh_host_key.pub", 0o644, spec.host_public_key.strip() + "\n"),
        ("/etc/ssh/sshd_config", 0o644, config),
        (LIMITS_PATH, 0o444, json.dumps(limits(shape, record)) + "\n"),
    ]


def _passwd() -> str:
    return (
        f"root:x:0:0:root:{WORK_DIR}:{ssh.session_shell()}\n"
        f"{USERNAME}:x:0:0:the user of cloud servers:{WORK_DIR}:{ssh.session_shell()}\n"
        "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )


def _bind(source: str, target: str, read_only: bool = True) -> dict[str, Any]:
    return {"fstype": "bind", "source": source, "target": target, "read_only": read_only}


def _mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> dict[str, Any]:
    return {"fstype": fstype, "source": source, "target": target, "flags": flags, "data": data}
