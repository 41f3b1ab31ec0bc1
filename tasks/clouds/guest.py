"""What a server is told at its first boot: its host key, who may log in, and when to end itself.

One cloud-init document for every vendor; all of them offer Ubuntu images that read it.
"""

from __future__ import annotations

import math

import yaml

from tasks.clouds.base import CreateSpec

USERNAME = "tokensweep"
HEADER = "#cloud-config\n"
DEADLINE_SLACK_S = 60
"""The guest ends itself this long after the deadline: the controller and the reaper come first."""


def user_data(spec: CreateSpec) -> str:
    """The cloud-init document. It carries the private host key of this one server and no other secret.

    Its first command arms a timer that powers the machine off. Whether that ends billing is a trait of the vendor
    (`Traits.stopped_bills`); where it does not, it at least stops what a forgotten server does to others.
    """
    document = {
        # bootcmd runs before everything else and at every boot, so a reboot does not disarm the timer.
        "bootcmd": [["sh", "-c", _timer(math.ceil(spec.deadline_unix_s) + DEADLINE_SLACK_S)]],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": spec.host_private_key, "ed25519_public": spec.host_public_key},
        "ssh_genkeytypes": [],
        "ssh_pwauth": False,
        "disable_root": True,
        "users": [
            {
                "name": USERNAME,
                "shell": "/bin/bash",
                "lock_passwd": True,
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "ssh_authorized_keys": [spec.client_public_key],
            }
        ],
        # Nothing that takes CPU or network while benchmarks run.
        "package_update": False,
        "package_upgrade": False,
        "runcmd": [["systemctl", "stop", "unattended-upgrades.service", "apt-daily.timer", "apt-daily-upgrade.timer"]],
    }
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=10_000)


def _timer(end_unix_s: int) -> str:
    """Seconds from now, because a timer by the calendar would wait for a clock that may be set later."""
    return (
        f"left=$(( {end_unix_s} - $(date +%s) )); [ $left -gt 0 ] || left=1; "
        "systemd-run --unit=tokensweep-deadline --on-active=$left --timer-property=AccuracySec=1s "
        "systemctl poweroff --force || shutdown -P +$(( (left + 59) / 60 ))"
    )
