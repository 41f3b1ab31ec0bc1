"""Which SSH server a local server runs, and how it is configured: OpenSSH's sshd, else the asyncssh of `ssh_server.py`.

Host key and authorised key are those of the create: nothing is generated here, so the controller knows the key that
it will see before it connects.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

from tasks.clouds.local.network import find_tool

MIN_PYTHON = (3, 9)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/lib64/ssh/sftp-server",
)


def find_sshd() -> str | None:
    """sshd wants to be called by its absolute path."""
    path = find_tool("sshd")
    return os.path.realpath(path) if path else None


def find_sftp_server() -> str | None:
    return next((path for path in _SFTP_SERVERS if os.access(path, os.X_OK)), None)


def why_no_sshd_for_user() -> str:
    """Why sshd cannot serve this very user without root's help, or "" when it can."""
    user = pwd.getpwuid(os.geteuid())
    if find_sshd() is None:
        return "sshd is missing"
    if find_sftp_server() is None:
        return "sftp-server is missing"
    if Path(user.pw_shell).name in ("nologin", "false") or not os.access(user.pw_shell, os.X_OK):
        return f"{user.pw_name} has no login shell"
    if os.geteuid() == 0:
        if _is_locked(user.pw_name):
            return f"the account {user.pw_name} is locked"
        try:
            # Root's sshd insists on this folder, which its package's service makes at boot.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        except OSError as exc:
            return f"/run/sshd cannot be made: {exc.strerror}"
    return ""


def _is_locked(user: str) -> bool:
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)


def sshd_config(
    *,
    host_key: str,
    authorized_keys: str,
    user: str,
    environment: dict[str, str],
    sftp: str,
    force_command: str = "",
) -> str:
    """Keys only, no PAM, nothing forwarded. The environment is the session's, over what sshd would set."""
    set_env = " ".join(f'"{key}={value}"' for key, value in environment.items())
    lines = [
        f'HostKey "{host_key}"',
        f'AuthorizedKeysFile "{authorized_keys}"',
        "StrictModes no",  # the state folder may lie below one that a group may write to
        "UsePAM no",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        f"AllowUsers {user}",
        "DisableForwarding yes",
        "PermitUserRC no",
        "PrintMotd no",
        "PrintLastLog no",
        "UseDNS no",
        "PidFile none",
        "LogLevel ERROR",
        "MaxSessions 64",
        "LoginGraceTime 30",
        "ClientAliveInterval 15",
        f"SetEnv {set_env}",
        f"Subsystem sftp {sftp}",
    ]
    if force_command:
        lines.append(f"ForceCommand {force_command}")
    return "\n".join(lines) + "\n"


def session_shell() -> str:
    return "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"


@functools.cache
def system_python() -> str | None:
    """/usr/bin/python3 when a server can use it: the agent needs Python 3.9."""
    path = "/usr/bin/python3"
    if not os.access(path, os.X_OK):
        return None
    match = re.fullmatch(r"python(\d+)\.(\d+)", Path(path).resolve().name)
    if match is None:
        code = "import sys; print('python%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=20)
        match = re.fullmatch(r"python(\d+)\.(\d+)\n", done.stdout)
    return path if match and (int(match[1]), int(match[2])) >= MIN_PYTHON else None


def controller_python() -> str:
    """The interpreter below the virtual environment: it runs where the environment is not to be seen."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
