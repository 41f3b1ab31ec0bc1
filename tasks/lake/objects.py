"""A lake in object storage: `s3://`, `gs://` and `az://`, read through a local mirror.

The store is the truth. Opening brings the mirror up to date: new and changed objects are fetched, vanished ones
removed, and everything else, that is DuckDB, the inventory and its checks, works on local files. Landing and
compaction write into the mirror and put the files into the store in the same order, the commit marker last; a PUT
shows whole or not at all. What is in the mirror alone, because a process died before its upload, vanishes with the
next opening.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake.location import lake_folder

SCHEMES = ("s3", "gs", "az", "abfss", "memory")
_STATE = ".mirror.json"
_THREADS = 8


@dataclass(frozen=True)
class RemoteLake:
    """The address of a lake in object storage. `options`: the store's own settings (keys of obstore), secrets included.

    `mirror` is a folder of this machine; one folder serves one address.
    """

    url: str
    mirror: Path
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _store(self) -> Any:
        try:
            from obstore.store import from_url
        except ImportError as exc:
            raise ConfigError(
                f"The lake {self.url} is in object storage, and the package obstore is not installed.",
                next_step="Install it (pip install obstore), or give a local folder.",
            ) from exc
        with self._explained("opened"):
            return from_url(self.url, **dict(self.options))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One thread or process at a time on the mirror: an update must not remove what another is about to put."""
        self.mirror.mkdir(parents=True, exist_ok=True)
        with (self.mirror / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def pull(self) -> Path:
        """Bring the mirror up to date, under the lock. Raises ConfigError when the store cannot be read."""
        import obstore

        with self._explained("read"):
            remote = {m["path"]: m for batch in obstore.list(self._store) for m in batch if _is_ours(m["path"])}
            known = self._known()
            wanted = [p for p, m in remote.items() if known.get(p) != _tag(m) or not (self.mirror / p).is_file()]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda p: self._fetch(p, remote[p]), sorted(wanted)))
        for path in self._local():
            if path.relative_to(self.mirror).as_posix() not in remote:
                path.unlink(missing_ok=True)
        self._remember({p: _tag(m) for p, m in remote.items()})
        return self.mirror

    def push(self, files: Iterable[Path]) -> None:
        """Put files of the mirror into the store, one after the other. Raises LandingError when it refuses."""
        import obstore

        with self._explained("written", landing=True):
            known = self._known()
            for path in files:
                name = path.relative_to(self.mirror).as_posix()
                put = obstore.put(self._store, name, path.read_bytes())
                known[name] = str(put.get("e_tag"))
            self._remember(known)

    def remove(self, files: Iterable[Path]) -> None:
        """Delete the objects of these files of the mirror; one that is not there is no error."""
        import obstore

        with self._explained("written", landing=True):
            for path in files:
                try:
                    obstore.delete(self._store, path.relative_to(self.mirror).as_posix())
                except FileNotFoundError:
                    continue

    def _fetch(self, name: str, meta: Mapping[str, Any]) -> None:
        import obstore

        path = self.mirror / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        temporary.write_bytes(bytes(obstore.get(self._store, name).bytes()))
        modified_s = meta["last_modified"].timestamp()
        os.utime(temporary, (modified_s, modified_s))
        temporary.replace(path)

    def _local(self) -> list[Path]:
        return [p for p in self.mirror.rglob("*.parquet") if not p.name.startswith(".")]

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads((self.mirror / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, tags: Mapping[str, str]) -> None:
        temporary = self.mirror / f"{_STATE}.{os.getpid()}"
        temporary.write_text(json.dumps(dict(tags), sort_keys=True))
        temporary.replace(self.mirror / _STATE)

    @contextmanager
    def _explained(self, verb: str, *, landing: bool = False) -> Iterator[None]:
        try:
            yield
        except (ConfigError, LandingError):
            raise
        except Exception as exc:  # obstore's errors share no public base class with the network's
            text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
            kind = LandingError if landing else ConfigError
            raise kind(
                f"The lake {self.url} cannot be {verb}: {text}.",
                next_step="Check the address, the credentials block and the network; nothing is lost.",
            ) from exc


def local_folder(lake_root: str | Path | RemoteLake) -> Path:
    """The local folder that shows a lake, brought up to date. Raises ConfigError where the lake cannot be opened."""
    with writable_folder(lake_root) as folder:
        return folder


@contextmanager
def writable_folder(lake_root: str | Path | RemoteLake) -> Iterator[Path]:
    """The same, with the mirror of a remote lake locked until what is written there was also put."""
    if not isinstance(lake_root, RemoteLake):
        yield lake_folder(lake_root)
        return
    _ = lake_root._store  # raises before anything is made where the address or the package is wrong
    with lake_root.locked():
        yield lake_root.pull()


def is_remote(root: str) -> bool:
    """Whether an address names object storage."""
    scheme, separator, _ = root.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def _is_ours(path: str) -> bool:
    return path.endswith(".parquet") and not path.rsplit("/", 1)[-1].startswith(".")


def _tag(meta: Mapping[str, Any]) -> str:
    """What changes when the object does."""
    return str(meta.get("e_tag") or f"{meta['size']}-{meta['last_modified']}")
