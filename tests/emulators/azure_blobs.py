"""Azure Blob Storage, as far as obstore's client speaks it, with the signature of every request checked.

Protocol: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api. Signature: Shared Key,
https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key, with the account's name in the path as
Azurite has it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from email import message_from_bytes, message_from_string
from email.message import Message
from email.utils import parsedate_to_datetime
from time import time
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.emulators.object_stores import Answer, Call, Container, RefusedCall, only, ranged

ACCOUNT = "tokensweeplakes"
KEY = base64.b64encode(b"an account key of the emulator, 64 bytes long as those of Azure.").decode()
PAGE_SIZE = 3
"""Blobs in a page, at most: so that every listing has more than one."""

_SIGNED = ("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
           "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")  # fmt: skip
_CLOCK_SKEW_S = 900


@dataclass
class AzureBlobEmulator:
    """containers: by name; one must be there before it is used. calls: method and parameters of each request."""

    containers: dict[str, Container] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def answer(self, call: Call) -> Answer:
        self._authorize(call)
        account, rest = call.names
        name, _, blob = rest.partition("/")
        if account != ACCOUNT:
            raise RefusedCall(404, "ResourceNotFound", f"There is no account {account}.")
        container = self.containers.get(name)
        if container is None:
            raise RefusedCall(404, "ContainerNotFound", "The specified container does not exist.")
        if not blob:
            batch = call.method == "POST" and call.query.get("comp") == "batch"
            return self._batch(call) if batch else self._list(container, name, call)
        if call.query.get("comp") in ("block", "blocklist"):
            return self._blocks(container, blob, call)
        return self._blob(container, blob, call)

    def _authorize(self, call: Call) -> None:
        if "x-ms-version" not in call.headers:
            raise RefusedCall(400, "MissingRequiredHeader", "x-ms-version is missing.")
        told = parsedate_to_datetime(call.headers.get("x-ms-date") or call.headers.get("date", ""))
        if abs(told.timestamp() - time()) > _CLOCK_SKEW_S:
            raise RefusedCall(403, "AuthenticationFailed", "The date of the request is too far from now.")
        signature = base64.b64encode(
            hmac.new(base64.b64decode(KEY), string_to_sign(call).encode(), hashlib.sha256).digest()
        ).decode()
        if not hmac.compare_digest(call.headers.get("authorization", ""), f"SharedKey {ACCOUNT}:{signature}"):
            raise RefusedCall(403, "AuthenticationFailed", "The signature is not the one that the account's key makes.")

    def _list(self, container: Container, name: str, call: Call) -> Answer:
        if call.method != "GET" or call.query.get("restype") != "container" or call.query.get("comp") != "list":
            raise RefusedCall(501, "NotImplemented", f"{call.method} of a container is not emulated.")
        only(call, ("restype", "comp", "prefix", "marker", "maxresults"))
        size = min(PAGE_SIZE, int(call.query.get("maxresults", PAGE_SIZE)))
        shown, following = container.page(call.query.get("prefix", ""), call.query.get("marker", ""), size)
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{escape(name)}"><Blobs>'
        for blob, found in shown:
            text += f"<Blob><Name>{escape(blob)}</Name><Properties><Last-Modified>{found.modified_http}</Last-Modified>"
            text += f"<Etag>{escape(found.etag)}</Etag><Content-Length>{len(found.data)}</Content-Length>"
            text += "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>"
            text += "</Properties></Blob>"
        text += f"</Blobs><NextMarker>{escape(following)}</NextMarker></EnumerationResults>"
        return Answer(200, text.encode())

    def _batch(self, call: Call) -> Answer:
        """Requests in one body, each signed by itself and each with an answer of its own: how the client deletes."""
        only(call, ("restype", "comp"))
        kind = call.headers.get("content-type", "")
        parts = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + call.body).get_payload()
        if not kind.startswith("multipart/mixed; boundary=batch_") or not isinstance(parts, list):
            raise RefusedCall(400, "InvalidInput", "The body of the batch is not multipart/mixed.")
        answers = []
        for part in parts:
            if not isinstance(part, Message):
                raise RefusedCall(400, "InvalidInput", "A part of the batch is no request.")
            status, code = self._part(part)
            head = f"Content-Type: application/http\r\nContent-ID: {part['Content-ID']}\r\n\r\n"
            answers.append(f"{head}HTTP/1.1 {status} {code}\r\nx-ms-error-code: {code}\r\n\r\n")
        body = "".join(f"--answers\r\n{answer}\r\n" for answer in answers) + "--answers--\r\n"
        return Answer(202, body.encode(), {"Content-Type": "multipart/mixed; boundary=answers"})

    def _part(self, part: Message) -> tuple[int, str]:
        line, _, rest = str(part.get_payload()).lstrip().partition("\n")
        method, path, _ = line.split()
        headers = {name.lower(): value for name, value in message_from_string(rest).items()}
        if method != "DELETE":
            return 400, "InvalidInput"
        try:
            return self.answer(Call(method, path, {}, headers, b"")).status, "Accepted"
        except RefusedCall as exc:
            return exc.status, exc.code

    def _blob(self, container: Container, blob: str, call: Call) -> Answer:
        only(call, ())
        if call.method == "PUT":
            if call.headers.get("x-ms-blob-type") != "BlockBlob":
                raise RefusedCall(400, "MissingRequiredHeader", "x-ms-blob-type is not BlockBlob.")
            made = container.put(blob, call.body)
            return Answer(201, headers={"ETag": made.etag, "Last-Modified": made.modified_http})
        found = container.objects.get(blob)
        if found is None:
            raise RefusedCall(404, "BlobNotFound", "The specified blob does not exist.")
        if call.method == "DELETE":
            del container.objects[blob]
            return Answer(202)
        if call.method not in ("GET", "HEAD"):
            raise RefusedCall(501, "NotImplemented", f"{call.method} of a blob is not emulated.")
        return ranged(found, call, {"ETag": found.etag, "Last-Modified": found.modified_http})

    def _blocks(self, container: Container, blob: str, call: Call) -> Answer:
        """An upload in blocks: each of them, then the list that puts them together."""
        only(call, ("comp", "blockid"))
        if call.method != "PUT":
            raise RefusedCall(501, "NotImplemented", f"{call.method} of blocks is not emulated.")
        blocks = container.uploads.setdefault(blob, {})
        if call.query["comp"] == "block":
            blocks[call.query["blockid"]] = call.body
            return Answer(201)
        named = [block.text or "" for block in ElementTree.fromstring(call.body)]
        if any(block not in blocks for block in named):
            raise RefusedCall(400, "InvalidBlockList", "The specified block list is invalid.")
        made = container.put(blob, b"".join(blocks[block] for block in named))
        del container.uploads[blob]
        return Answer(201, headers={"ETag": made.etag, "Last-Modified": made.modified_http})


def string_to_sign(call: Call) -> str:
    """What the signature is of; a length of 0 counts as none, and x-ms-date stands for Date."""
    values = {name: call.headers.get(name, "") for name in _SIGNED}
    values["content-length"] = "" if values["content-length"] == "0" else values["content-length"]
    values["date"] = "" if "x-ms-date" in call.headers else values["date"]
    ours = sorted((name, value) for name, value in call.headers.items() if name.startswith("x-ms-"))
    headers = "".join(f"{name}:{value.strip()}\n" for name, value in ours)
    resource = f"/{ACCOUNT}{call.raw_path}"
    resource += "".join(f"\n{name.lower()}:{value}" for name, value in sorted(call.query.items()))
    return "\n".join([call.method, *values.values(), headers]) + resource
