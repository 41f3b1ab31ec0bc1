"""Fetches the pinned source distribution from a package index and unpacks the llama.cpp inside it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath

from runtime_recipe import Source

from tasks.domain.errors import ConfigError, Retry, TokensweepError

DEFAULT_INDEX = "https://pypi.org/simple"
INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
ACCEPT_INDEX = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
NEEDED_FOLDERS = ("cmake", "common", "ggml", "include", "licenses", "src", "tools", "vendor")
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0

Say = Callable[[str], None]


class DownloadError(TokensweepError):
    retry = Retry.SAME


def fetch_source(source: Source, folder: Path, say: Say, environ: Mapping[str, str] = os.environ) -> Path:
    """Download the file into `folder`, or find it there; what is returned has the pinned SHA-256.

    Asks the index that uv or pip is set to first, then the pinned address, then `pip download` with its own settings.
    Raises ConfigError when a file of another content is offered, DownloadError when nothing answers.
    """
    target = folder / source.file
    if target.exists() and sha256_of(target) == source.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for url in _addresses(source, environ, failures):
        say(f"download {source.file} ({source.bytes / 1e6:.0f} MB) from {urllib.parse.urlsplit(url).hostname}")
        try:
            _download(url, target, environ)
        except (OSError, HTTPException, ValueError) as exc:
            failures.append(f"{without_password(url)}: {exc}")
            continue
        return verified(target, source, remove=True)
    if _pip_download(source, folder, environ, failures):
        return verified(target, source, remove=True)
    raise DownloadError(
        f"{source.file} could not be downloaded: {'; '.join(failures)}.",
        reason="source_unavailable",
        next_step="Check the network and PIP_INDEX_URL or UV_INDEX_URL, or fetch it by hand and pass --source FILE.",
    )


def verified(path: Path, source: Source, *, remove: bool = False) -> Path:
    """`path`, once its content is the pinned one. Raises ConfigError, and removes the file if told to, otherwise."""
    got = sha256_of(path)
    if got == source.sha256:
        return path
    size = path.stat().st_size
    if remove:
        path.unlink()
    raise ConfigError(
        f"{path} is not the pinned {source.file}: {size} bytes with SHA-256 {got}, expected {source.bytes} bytes with "
        f"{source.sha256}.{' It was removed.' if remove else ''}",
        reason="source_checksum",
        next_step="Try again; if it repeats, the index or a proxy serves another file: ask for it elsewhere.",
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_source(archive: Path, source: Source, folder: Path) -> Path:
    """Unpack the parts of llama.cpp that a build needs and return its root; the rest of the archive is left out."""
    prefix = PurePosixPath(source.file.removesuffix(".tar.gz"), source.folder)
    with tarfile.open(archive, "r:gz") as tar:
        # Python 3.11 before 3.11.4 has no filters; the pinned checksum already says what is inside.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        for member in tar:
            path = PurePosixPath(member.name)
            if not path.is_relative_to(prefix):
                continue
            inside = path.relative_to(prefix)
            if len(inside.parts) > 1 and inside.parts[0] not in NEEDED_FOLDERS:
                continue
            tar.extract(member, folder)
    root = folder / prefix
    if not (root / "CMakeLists.txt").is_file():
        raise ConfigError(
            f"{archive} holds no llama.cpp in {prefix}.",
            reason="source_layout",
            next_step="Correct `folder` in runtime.lock.toml.",
        )
    return root


def without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _addresses(source: Source, environ: Mapping[str, str], failures: list[str]) -> Iterator[str]:
    configured = [environ[name] for name in INDEX_VARIABLES if environ.get(name)]
    if not configured:
        yield source.url
    for index in configured or [DEFAULT_INDEX]:
        try:
            yield from _in_index(index, source, environ)
        except (OSError, HTTPException, ValueError) as exc:
            failures.append(f"{without_password(index)}: {exc}")
    if configured:
        yield source.url


def _in_index(index: str, source: Source, environ: Mapping[str, str]) -> Iterator[str]:
    """Addresses of the file in a simple repository (PEP 503 or PEP 691)."""
    page_url = f"{index.rstrip('/')}/{source.project}/"
    with _open(page_url, environ, {"Accept": ACCEPT_INDEX}) as answer:
        is_json = "json" in answer.headers.get("Content-Type", "")
        page = answer.read().decode("utf-8", "replace")
    hrefs = [str(file.get("url", "")) for file in json.loads(page).get("files", [])] if is_json else _links(page)
    for href in hrefs:
        address = urllib.parse.urldefrag(urllib.parse.urljoin(page_url, href)).url
        if urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2] == source.file:
            yield _with_credentials(address, index)
            return
    raise ValueError(f"does not list {source.file}")


def _links(page: str) -> list[str]:
    found: list[str] = []

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "a":
                found.extend(value for name, value in attrs if name == "href" and value)

    Anchors().feed(page)
    return found


def _with_credentials(address: str, index: str) -> str:
    """Give a file on the index's own host the user and password that the index was given."""
    file, host = urllib.parse.urlsplit(address), urllib.parse.urlsplit(index)
    if host.username is None or file.netloc != host.netloc.rpartition("@")[2]:
        return address
    return urllib.parse.urlunsplit(file._replace(netloc=host.netloc))


def _open(url: str, environ: Mapping[str, str], headers: Mapping[str, str]) -> HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{without_password(url)} is not an http address")
    request = urllib.request.Request(without_password(url), headers={"User-Agent": "tokensweep", **headers})  # noqa: S310
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    bundle = next((environ[name] for name in CA_VARIABLES if environ.get(name)), None)
    context = ssl.create_default_context(cafile=bundle) if parts.scheme == "https" else None
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context)  # noqa: S310
    return answer


def _download(url: str, target: Path, environ: Mapping[str, str]) -> None:
    part = target.with_name(target.name + ".part")
    with _open(url, environ, {}) as answer, part.open("wb") as file:
        shutil.copyfileobj(answer, file, CHUNK_BYTES)
        expected = answer.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"the connection ended after {file.tell()} of {expected} bytes")
    part.replace(target)


def _pip_download(source: Source, folder: Path, environ: Mapping[str, str], failures: list[str]) -> bool:
    """Last resort: a pip that may know of an index or a proxy from its own configuration."""
    env = dict(environ)
    base = shutil.which("python3", path=environ.get("PATH", os.defpath))
    for python in dict.fromkeys((sys.executable, base or sys.executable)):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, env=env).returncode != 0:
            continue
        command = [python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        ended = subprocess.run(
            [*command, f"{source.project}=={source.version}"], capture_output=True, text=True, env=env
        )
        if (folder / source.file).exists():
            return True
        failures.append(f"pip download: {(ended.stderr.strip() or 'no file').splitlines()[-1]}")
        return False
    return False
