"""First step of `make`: say what is missing on this machine, and get uv. Standard library only.

`bootstrap.py image` is the first step of `make image`: root on a Debian gets what builds images from apt-get.
Exit code 2 when something is missing that cannot be installed from here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

TOOLS = Path(".tools")
MIN_PYTHON = (3, 11)
UV = "uv>=0.5"
IMAGE_PACKAGES = ("buildah", "podman", "runc", "mmdebstrap")  # programs of the same names


def missing() -> list[str]:
    """What a person has to install, one line each."""
    lines = []
    if platform.system() != "Linux":
        lines.append(f"Linux (this is {platform.system()})")
    if sys.version_info < MIN_PYTHON:
        lines.append(f"Python 3.11 or newer (this is {platform.python_version()}; set PYTHON=python3.12 or the like)")
    if not any(shutil.which(tool) for tool in ("c++", "g++", "clang++")):
        lines.append("a C++ compiler (Debian: apt-get install g++; Fedora: dnf install gcc-c++; Arch: pacman -S gcc)")
    if shutil.which("git") is None:
        lines.append("git (Debian: apt-get install git)")
    return lines


def ensure_uv() -> None:
    """uv from the PATH, or into .tools with this Python's own pip."""
    if shutil.which("uv") or (TOOLS / "bin" / "uv").exists():
        return
    print("getting uv …", file=sys.stderr)
    try:
        venv.create(TOOLS, with_pip=True)
    except subprocess.CalledProcessError:
        sys.exit("Python cannot make a virtual environment. Debian: apt-get install python3-venv")
    pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", UV]
    if subprocess.run(pip, check=False).returncode != 0:
        sys.exit("uv could not be installed with pip. Is PyPI reachable? See https://docs.astral.sh/uv")


def ensure_image_tools() -> None:
    """buildah and its like from apt-get; elsewhere what to install by hand."""
    lacking = [name for name in IMAGE_PACKAGES if shutil.which(name) is None]
    if not lacking:
        return
    install = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *lacking]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"images need {', '.join(lacking)} (Debian, as root: {' '.join(install)})", file=sys.stderr)
        sys.exit(2)
    print(f"installing {', '.join(lacking)} with apt-get …", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "--quiet=2"], install):
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode != 0:
            print(f"`{' '.join(command)}` failed", file=sys.stderr)
            sys.exit(2)


def main() -> None:
    if sys.argv[1:] == ["image"]:
        ensure_image_tools()
        return
    lines = missing()
    if lines:
        print("tokensweep needs:", *(f"  - {line}" for line in lines), sep="\n", file=sys.stderr)
        sys.exit(2)
    ensure_uv()


if __name__ == "__main__":
    main()
