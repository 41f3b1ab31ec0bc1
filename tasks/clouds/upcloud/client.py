"""UpCloud's SDK with timeouts, and its listings to the last page."""

from __future__ import annotations

from typing import Any

from upcloud_api import CloudManager

from tasks.domain.errors import ProviderError

ENDPOINT = "https://api.upcloud.com/1.3"
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
_PAGE = 100  # the API's most, by UpCloud's Go SDK
_MOST_PAGES = 1000


def open_manager(
    username: str = "",
    password: str = "",
    token: str = "",
    *,
    endpoint: str = ENDPOINT,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> CloudManager:
    """A ready SDK for one account; talks to nobody yet. It sends everything once: the SDK has no retries."""
    manager = CloudManager(username or None, password or None, token=token or None)
    manager.api.timeout = (connect_timeout_s, read_timeout_s)
    manager.api.api_root = endpoint
    return manager


def every(manager: CloudManager, path: str, key: str, item: str, id_key: str, **filters: str) -> list[dict[str, Any]]:
    """All entries of a listing, whether the API pages it or not.

    Nothing in an answer says that there is more. So pages are asked for until one brings nothing new, and everything
    is read twice where more than one page is needed, because what goes between two pages hides what comes after it.
    """
    found, n_pages = _read(manager, path, key, item, id_key, filters)
    if n_pages <= 1:
        return list(found.values())
    for _ in range(3):
        again, _ = _read(manager, path, key, item, id_key, filters)
        if again.keys() == found.keys():
            return list(again.values())
        found = again
    raise ProviderError(f"upcloud: {path} changes faster than its pages can be read")


def _read(
    manager: CloudManager, path: str, key: str, item: str, id_key: str, filters: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], int]:
    found: dict[str, dict[str, Any]] = {}
    for n_pages in range(1, _MOST_PAGES + 1):
        params = filters | {"limit": str(_PAGE), "offset": str((n_pages - 1) * _PAGE)}
        entries = manager.api.get_request(path, params=params)[key][item]
        new = {str(entry[id_key]): entry for entry in entries if str(entry[id_key]) not in found}
        found |= new
        if len(entries) < _PAGE or not new:
            return found, n_pages
    raise ProviderError(f"upcloud: {path} does not end")
