"""Ephemeral ed25519 keys, one pair for the host and one for the client of every server.

They live in memory and go to the vendor's create call; nothing here writes them to disk. A key that is lost with the
process costs nothing: the server is deleted by its tags.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tasks.domain.errors import ConfigError

KEY_TYPE = "ssh-ed25519"


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """`private`: OpenSSH PEM text. `public`: one line as in authorized_keys."""

    private: str = field(repr=False)
    public: str


def new_host_key() -> KeyPair:
    """The key by which a server proves who it is; the vendor installs it at first boot."""
    return _new_key("tokensweep-host")


def new_client_key() -> KeyPair:
    """The key that may log in to one server."""
    return _new_key("tokensweep-client")


def fingerprint(public_line: str) -> str:
    """`SHA256:…` as ssh-keygen prints it. Raises ConfigError when the line is no public key."""
    return fingerprint_of_blob(key_blob(public_line))


def fingerprint_of_blob(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def key_blob(public_line: str) -> bytes:
    """The key of a public line of type ssh-ed25519, decoded. Raises ConfigError for anything else."""
    fields = public_line.split()
    if len(fields) < 2 or fields[0] != KEY_TYPE:
        raise ConfigError(
            f"Not an {KEY_TYPE} public key: {public_line[:60]!r}.",
            next_step="Give a line that begins with its type, as ssh-keygen writes it.",
        )
    try:
        return base64.b64decode(fields[1], validate=True)
    except binascii.Error as exc:
        raise ConfigError(f"Not base64 in the public key {public_line[:60]!r}: {exc}.") from exc


def _new_key(comment: str) -> KeyPair:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private=private, public=f"{public} {comment}")
