"""Where a lake lies."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.domain.errors import ConfigError
from tasks.lake.columns import Table

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_COMPACTED = "compacted-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def lake_folder(root: str | Path) -> Path:
    """The folder behind a lake's address: a path or a file:// URL. Raises ConfigError for any other scheme."""
    text = str(root)
    if not text:
        raise ConfigError("The lake has no address.", next_step="Give a folder, e.g. var/lake.")
    if not _SCHEME.match(text):
        return Path(text).expanduser().absolute()
    url = urlsplit(text)
    if url.scheme.lower() == "file" and url.netloc in ("", "localhost"):
        return Path(unquote(url.path)).absolute()
    raise ConfigError(
        f"The lake {url.scheme}://{url.hostname or ''} is no folder of this machine.",
        next_step="Give a path, a file:// URL, or an s3://, gs:// or az:// URL with its credentials block.",
    )


def is_compacted(stem: str) -> bool:
    """Whether a file of this name holds many runs of its sweep, put together by a compaction."""
    return stem.startswith(_COMPACTED)


def compacted_name(generation: int, token: str) -> str:
    """File name without suffix. Of two that hold a run, the one of the later generation counts."""
    return f"{_COMPACTED}{generation:06d}-{token}"


def generation_of(stem: str) -> int:
    """The inverse of `compacted_name`; 0 for any other name."""
    number = stem[len(_COMPACTED) :].partition("-")[0] if is_compacted(stem) else ""
    return int(number) if number.isdigit() else 0


def checked_name(what: str, name: str) -> str:
    """A sweep's or server run's id that is safe as a file name. Raises ConfigError for one that is not."""
    if is_compacted(name):
        raise ConfigError(f"{name!r} is no {what}: {_COMPACTED}... names files of a compaction.")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no {what}: letters, digits, dot, dash and underscore only, 200 at most, no leading dot.",
            next_step=f"Give another {what}.",
        )
    return name


def run_file(folder: Path, table: Table, sweep_id: str, server_run_id: str) -> Path:
    """The file of one table and server run."""
    return folder / table.name / f"sweep={sweep_id}" / f"{server_run_id}.parquet"
