"""The builder's base without a registry: a Debian made by mmdebstrap, which takes packages as this machine does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from image_store import Store

from tasks.domain.errors import ConfigError

RELEASE = "bookworm"  # of the Dockerfile's own base
# What the Dockerfile's first stage installs; here already, so that the certificates below stay this machine's.
PACKAGES = ("ca-certificates", "python3", "python3-venv")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


def make_base(store: Store, tag: str, environ: Mapping[str, str] = os.environ) -> str:
    """Commit the base to `store` under `tag`; a minute or two. It names this machine's mirrors: it stays in the store.

    Raises ConfigError when there is no mmdebstrap, or it fails.
    """
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise ConfigError(
            "The builder's base cannot be made: there is no mmdebstrap.",
            reason="no_mmdebstrap",
            next_step="apt-get install mmdebstrap, or take the base from its registry: --base registry.",
        )
    tar = store.folder / "base.tar"
    apt = store.folder / "apt.conf"
    apt.write_text(_acquire_settings(), encoding="utf-8")
    command = [mmdebstrap, "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--aptopt={apt}"]
    command += ["--dpkgopt=force-unsafe-io", RELEASE, str(tar), _mirror()]
    done = subprocess.run(command, capture_output=True, text=True, env={**environ, "TMPDIR": str(store.folder)})
    if done.returncode != 0:
        raise ConfigError(
            f"mmdebstrap could not make a Debian {RELEASE}: {_last_error(done.stderr)}",
            reason="no_base",
            next_step="Check that apt-get update works here.",
        )
    container = store.buildah("from", "--name", "base", "scratch").strip()
    store.buildah("add", "--quiet", container, str(tar), "/")
    tar.unlink()
    bundle = next((Path(environ[name]) for name in CA_VARIABLES if environ.get(name)), Path("/") / CERTIFICATES)
    if bundle.is_file():
        store.buildah("copy", "--quiet", container, str(bundle), f"/{CERTIFICATES}")
    settings = {name: environ[name] for name in INDEX_VARIABLES if environ.get(name)}
    settings.update(dict.fromkeys(CA_VARIABLES, f"/{CERTIFICATES}"))
    store.buildah("config", *(f"--env={name}={value}" for name, value in settings.items()), container)
    store.buildah("commit", "--quiet", "--rm", container, tag)
    return tag


def _mirror() -> str:
    """The archive of Debian's that apt is set to here."""
    if shutil.which("apt-get") is None:
        return DEFAULT_MIRROR
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Created-By: Packages"]
    shown = subprocess.run(command, capture_output=True, text=True)
    uris = [uri for uri in shown.stdout.split() if "security" not in uri]
    return uris[0] if uris else DEFAULT_MIRROR


def _acquire_settings() -> str:
    """How apt gets files here: proxies, time-outs, certificates."""
    if shutil.which("apt-config") is None:
        return ""
    shown = subprocess.run(["apt-config", "dump", "--no-empty", "Acquire"], capture_output=True, text=True)
    kept = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::By-Hash")
    return "".join(f"{line}\n" for line in shown.stdout.splitlines() if line.startswith(kept))


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(("E:", "Err"))]
    return (lines or text.splitlines() or ["no output"])[-1]
