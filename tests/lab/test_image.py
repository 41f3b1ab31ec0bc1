"""The agent's image, built from a base made here around the runtime of the cache, and run under podman.

About a minute and a half on two free CPUs, most of it for unpacking Debian; compiling is left to `make image`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

AGENT_IMAGE = Path(__file__).resolve().parents[2] / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from build_image import Order, carry_out  # noqa: E402
from image_store import IN_MEMORY, INSTALL  # noqa: E402
from runtime_recipe import ARCH_NAMES  # noqa: E402

from tasks.domain.errors import ConfigError  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

NO_NETWORK = ("Failed to fetch", "Could not resolve", "Unable to connect", "Could not connect", "Temporary failure")


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("images are built as root on Linux")
    missing = [name for name in ("buildah", "podman", "runc", "mmdebstrap") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: {INSTALL}")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this root may not mount, so no container runs here")
    arch = next(name for name, machine in ARCH_NAMES.items() if machine == platform.machine())
    return Order((arch,), runtime="cache", out=tmp_path_factory.mktemp("dist"))


def folders(pid: int | str) -> set[str]:
    """What a process has in its private place, and what is mounted there."""
    mounts = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    found = {mount for mount in mounts if f"tokensweep-image-{pid}-" in mount}
    for folder in (tempfile.gettempdir(), IN_MEMORY):
        found |= {str(path) for path in Path(folder).glob(f"tokensweep-image-{pid}-*")}
    return found


def shared() -> set[str]:
    """What podman keeps outside of it, if it is let."""
    found = {str(path) for path in Path("/sys/fs/cgroup").glob("**/libpod*")}
    return found | {str(path) for path in Path("/var/lib/containers").glob("storage/*")}


def test_the_image_measures_and_the_build_leaves_nothing_but_its_files(order: Order, engine_cache: Path) -> None:
    before, alone = shared(), not folders("*")
    try:
        lines = "\n".join(carry_out(order))
    except ConfigError as exc:
        if exc.reason == "no_base" and any(words in str(exc) for words in NO_NETWORK):
            pytest.skip(f"no Debian packages can be had here: {exc}")
        raise
    finally:
        left = folders(os.getpid())
    assert left == set()
    if alone and not folders("*"):  # another build's containers would be among them
        assert shared() - before == set()

    (arch,) = order.archs
    assert f"cpu {arch}: measured 2 cells" in lines
    runtime = json.loads((order.runtime_folder(arch) / "manifest.json").read_text())
    assert f"builds {', '.join(build['name'] for build in runtime['builds'])}" in lines
    with tarfile.open(order.archive) as tar:
        names = tar.getnames()
        assert "oci-layout" in names
        listed = json.loads(tar.extractfile("index.json").read())  # type: ignore[union-attr]
    assert listed["manifests"]


def test_a_base_that_cannot_be_had_is_said_and_nothing_stays(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_base.RELEASE", "no-such-release")
    with pytest.raises(ConfigError, match="mmdebstrap could not make a Debian no-such-release"):
        carry_out(order)
    assert folders(os.getpid()) == set()


def test_a_build_that_is_ended_leaves_nothing(order: Order) -> None:
    command = [sys.executable, AGENT_IMAGE / "build_image.py", "--arch", *order.archs, "--runtime", "cache"]
    with subprocess.Popen([*command, "--out", order.out], stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        assert any("make the builder's base" in line for line in build.stderr)
        assert folders(build.pid) != set(), "it has begun"
        build.terminate()
        assert build.wait(timeout=120) == 128 + signal.SIGTERM
    assert folders(build.pid) == set()


def test_an_ordinary_user_is_told_what_to_do(order: Order, tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]; from pathlib import Path; import image_store\n"
        "os.setuid(65534)\n"
        "try:\n with image_store.private_store(Path('log')): pass\n"
        "except image_store.ConfigError as exc: print(exc)"
    )
    command = [sys.executable, "-c", code, AGENT_IMAGE, AGENT_IMAGE.parent]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "Images are built as root here" in done.stdout, done.stderr
    assert "sudo make image" in done.stdout
