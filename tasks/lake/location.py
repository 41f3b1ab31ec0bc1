"""Where a lake lies."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.domain.errors import ConfigError
from tasks.lake.columns import Table

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
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
        f"The lake {url.scheme}://{url.hostname or ''} cannot be opened: only local folders are supported.",
        next_step="Give a path or a file:// URL; copy the folder to object storage afterwards.",
    )


def checked_name(what: str, name: str) -> str:
    """A sweep's or server run's id that is safe as a file name. Raises ConfigError for one that is not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no {what}: letters, digits, dot, dash and underscore only, 200 at most, no leading dot.",
            next_step=f"Give another {what}.",
        )
    return name


def run_file(folder: Path, table: Table, sweep_id: str, server_run_id: str) -> Path:
    """The file of one table and server run."""
    return folder / table.name / f"sweep={sweep_id}" / f"{server_run_id}.parquet"
