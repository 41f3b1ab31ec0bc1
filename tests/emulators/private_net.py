"""A private network in which the vendors' own host names lead to the emulators, over TLS.

The product runs with every SDK's default endpoints: it has no switch for tests, and nothing of it can reach the
internet, because this network has no way out.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.emulators.base import Emulator, StartResponse
from tests.emulators.serving import FaultyApp

INSIDE = "TOKENSWEEP_LAB_INSIDE"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE")


def reenter(folder: Path, hosts: Sequence[str], argv: Sequence[str]) -> int:
    """Run argv in a network and mount namespace of its own, where all these hosts are 127.0.0.1. Needs root."""
    make_certificates(folder, hosts)
    lines = ["127.0.0.1 localhost", "::1 localhost", *(f"127.0.0.1 {host}" for host in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    script = 'ip link set lo up && mount --bind "$0" /etc/hosts && exec "$@"'
    certificates = dict.fromkeys(CA_VARIABLES, str(folder / "ca.pem"))
    return subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", script, str(folder / "hosts"), *argv],
        env={**os.environ, **certificates, INSIDE: str(folder)},
    ).returncode


def is_inside() -> bool:
    return INSIDE in os.environ


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """ca.pem, and server.pem (key and certificate for all hosts): good for a day."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokensweep lab")])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, ca=True)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emulators")])
    server = _certificate(subject, ca_name, key.public_key(), ca_key, names=names)
    pem = serialization.Encoding.PEM
    plain = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(key.private_bytes(*plain) + server.public_bytes(pem))


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signed_with: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_with.public_key()), critical=False)
    )
    if ca:
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signed_with, hashes.SHA256())


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        return None


class ByHost:
    """One application for all vendors: the host name of the request says which emulator answers."""

    def __init__(self, emulators: Iterable[Emulator]) -> None:
        self.apps = {host: FaultyApp(emulator) for emulator in emulators for host in emulator.hosts}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").partition(":")[0]
        app = self.apps.get(host)
        if app is None:
            start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
            return [f"nobody emulates {host}\n".encode()]
        return app(environ, start_response)


@contextmanager
def all_served(folder: Path, emulators: Iterable[Emulator]) -> Iterator[None]:
    """Serve them on port 443 of the private network."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")
    server = make_server("127.0.0.1", 443, ByHost(emulators), threaded=True, request_handler=_Quiet, ssl_context=tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
