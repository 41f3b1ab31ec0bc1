"""A sweep by somebody who is not root: loopback servers, and asyncssh where sshd cannot serve this account."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.product import SERVER, TINY_MODEL, Product, clean

USER = "nobody"
READ_THE_CHECKOUT = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")


def setpriv() -> tuple[str, ...]:
    """The command that becomes USER; with leave to read, where the interpreter lies below root's home."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming another user takes root and setpriv; as an ordinary user every test here is this one")
    user = pwd.getpwnam(USER)
    as_user = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    prefix = os.path.realpath(sys.base_prefix)
    if subprocess.run([*as_user, "sh", "-c", 'ls "$0"', prefix], capture_output=True).returncode == 0:
        return as_user
    return (*as_user, *READ_THE_CHECKOUT)


@pytest.fixture
def theirs(engine_cache: Path, prefect_url: str) -> Iterator[Product]:
    """A home and a cache that are the user's own, in a folder that the user can reach."""
    prefix = setpriv()
    top = Path(f"/var/tmp/tokensweep-of-{USER}-{os.getpid()}")
    models = top / "cache" / "models"
    models.mkdir(parents=True)
    shutil.copytree(engine_cache / "runtime", top / "cache" / "runtime", symlinks=True)
    for name in (TINY_MODEL, f"{TINY_MODEL}.json"):
        shutil.copy2(engine_cache / "models" / name, models / name)
    for path in (top, *top.rglob("*")):
        shutil.chown(path, USER)
    environment = {"HOME": str(top), "PREFECT_API_URL": prefect_url, "XDG_CACHE_HOME": str(top / "xdg")}
    product = Product(top / "home", top / "cache", environment, prefix)
    try:
        yield product
    finally:
        clean(product)
        shutil.rmtree(top)


@pytest.mark.lab
def test_an_ordinary_user_sweeps_this_machine(theirs: Product) -> None:
    doctor = {check["name"]: check for check in theirs.run("doctor", "--json").json()}
    assert "loopback" in doctor["vendor local"]["detail"], doctor
    preset = theirs.preset(pp=[16, 128])
    killed = theirs.start("run", "--yes", preset)
    killed.wait_for(": run tiny-15m pp16")
    killed.kill()
    killed.end()
    reap = theirs.run("reap", "--json")
    assert reap.rc == 0, str(reap)
    theirs.assert_nothing_is_left()

    done = theirs.run("run", "--yes", preset)
    assert done.rc == 0, str(done)
    assert {outcome for outcome, _ in theirs.cells().values()} == {"measured"} and len(theirs.cells()) == 3
    assert {r["isolation"] for r in theirs.query("SELECT isolation FROM server_runs")} == {"loopback"}
    owners = {path.owner() for path in theirs.home.rglob("*")}
    assert owners == {USER}, "nothing was written by root"
    assert theirs.run("leaks").rc == 0 and theirs.run("run", "--yes", preset).rc == 3
    theirs.assert_nothing_is_left()
    assert {key[0] for key in theirs.cells()} == {SERVER}
