from __future__ import annotations

import shutil
import subprocess

import pytest

from tasks.domain.errors import ConfigError
from tasks.remote.keys import fingerprint, key_blob, new_client_key, new_host_key


def test_every_key_is_another_and_the_private_half_stays_out_of_repr() -> None:
    host, client = new_host_key(), new_client_key()
    assert host.public.startswith("ssh-ed25519 ")
    assert len({host.public, client.public, new_host_key().public}) == 3
    assert "BEGIN OPENSSH PRIVATE KEY" in host.private
    assert "PRIVATE" not in repr(host)
    assert host.private.splitlines()[1] not in repr(host)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_ssh_keygen_reads_both_halves_and_agrees_on_the_fingerprint(tmp_path) -> None:
    key = new_host_key()
    private = tmp_path / "key"
    private.write_text(key.private)
    private.chmod(0o600)
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(private)], capture_output=True, text=True, check=True
    ).stdout
    assert derived.split()[:2] == key.public.split()[:2]
    (tmp_path / "key.pub").write_text(key.public)
    listed = subprocess.run(["ssh-keygen", "-lf", str(private)], capture_output=True, text=True, check=True).stdout
    assert fingerprint(key.public) in listed


@pytest.mark.parametrize("line", ["", "ssh-rsa AAAA", "ssh-ed25519", "ssh-ed25519 not*base64", "AAAAC3NzaC1lZDI1NTE5"])
def test_what_is_no_ed25519_line_is_refused_with_a_message(line: str) -> None:
    with pytest.raises(ConfigError, match=r"public key"):
        key_blob(line)
