"""Google Cloud Storage's XML API, as far as obstore's client speaks it, behind a service account of its own.

Protocol: https://cloud.google.com/storage/docs/xml-api/reference-methods. Credentials: a JWT that the service account
signed itself (https://google.aip.dev/auth/4111) as the bearer; its signature, scope and lifetime are checked.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.emulators.object_stores import Answer, Call, Container, RefusedCall, only, ranged

EMAIL = "lake@emulated.iam.gserviceaccount.com"
SCOPES = {f"https://www.googleapis.com/auth/{name}" for name in ("cloud-platform", "devstorage.full_control")}
LIST_QUERY = ("list-type", "prefix", "continuation-token", "max-keys", "delimiter", "encoding-type", "start-after")
SMALLEST_PART_BYTES = 5 * 2**20
PAGE_SIZE = 3
"""Objects in a page, at most: so that every listing has more than one."""


@dataclass
class GcsEmulator:
    """buckets: by name; a bucket must be there before it is used. calls: of every request, method and parameters."""

    buckets: dict[str, Container] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def service_account(self, base_url: str) -> dict[str, Any]:
        """The key file of the service account, with the address of the emulator instead of Google's."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return {
            "type": "service_account",
            "project_id": "emulated",
            "private_key_id": "k1",
            "private_key": pem,
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": f"{base_url}/token",
            "gcs_base_url": base_url,
        }

    def service_account_key(self, base_url: str) -> str:
        """The same as text."""
        return json.dumps(self.service_account(base_url))

    def answer(self, call: Call) -> Answer:
        self._authorize(call)
        name, key = call.names
        bucket = self.buckets.get(name)
        if bucket is None:
            raise RefusedCall(404, "NoSuchBucket", "The specified bucket does not exist.")
        if not key:
            return self._list(bucket, name, call)
        if "uploads" in call.query or "uploadId" in call.query:
            return self._upload(bucket, key, call)
        return self._object(bucket, key, call)

    def _authorize(self, call: Call) -> None:
        kind, _, token = call.headers.get("authorization", "").partition(" ")
        if kind != "Bearer":
            raise RefusedCall(401, "AuthenticationRequired", "Authentication required.")
        try:
            claims = jwt.decode(
                token, self._key.public_key(), algorithms=["RS256"], options={"require": ["exp", "iat"]}
            )
        except jwt.InvalidTokenError as exc:
            raise RefusedCall(401, "AuthenticationRequired", f"Invalid credentials: {exc}") from exc
        scopes = set(claims.get("scope", "").split())
        if claims.get("iss") != EMAIL or claims.get("sub", EMAIL) != EMAIL or not scopes & SCOPES:
            raise RefusedCall(403, "AccessDenied", "The token is not for this service account or scope.")
        if claims["exp"] - claims["iat"] > 3600 or claims["iat"] > time.time() + 60:
            raise RefusedCall(401, "AuthenticationRequired", "The token lives too long.")

    def _list(self, bucket: Container, name: str, call: Call) -> Answer:
        if call.method != "GET" or call.query.get("list-type") != "2":
            raise RefusedCall(501, "NotImplemented", f"{call.method} of a bucket is not emulated.")
        only(call, LIST_QUERY)
        if call.query.get("delimiter"):
            raise RefusedCall(501, "NotImplemented", "Listings with a delimiter are not emulated.")
        prefix = call.query.get("prefix", "")
        after = call.query.get("continuation-token") or call.query.get("start-after", "")
        size = min(PAGE_SIZE, int(call.query.get("max-keys", PAGE_SIZE)))
        shown, following = bucket.page(prefix, after, size)
        text = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://doc.s3.amazonaws.com/2006-03-01">'
        text += f"<Name>{escape(name)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount>"
        text += f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>"
        if following:
            text += f"<NextContinuationToken>{escape(following)}</NextContinuationToken>"
        for key, found in shown:
            text += f"<Contents><Key>{escape(key)}</Key><Generation>{found.generation}</Generation>"
            text += f"<MetaGeneration>1</MetaGeneration><LastModified>{found.modified_iso}</LastModified>"
            text += f"<ETag>{escape(found.etag)}</ETag><Size>{len(found.data)}</Size></Contents>"
        return Answer(200, f"{text}</ListBucketResult>".encode())

    def _object(self, bucket: Container, key: str, call: Call) -> Answer:
        only(call, ())
        if call.method == "PUT":
            return Answer(200, headers=_written(bucket.put(key, call.body)))
        found = bucket.objects.get(key)
        if found is None:
            raise RefusedCall(404, "NoSuchKey", "The specified key does not exist.")
        if call.method == "DELETE":
            del bucket.objects[key]
            return Answer(204)
        if call.method not in ("GET", "HEAD"):
            raise RefusedCall(501, "NotImplemented", f"{call.method} of an object is not emulated.")
        return ranged(found, call, {**_written(found), "Last-Modified": found.modified_http})

    def _upload(self, bucket: Container, key: str, call: Call) -> Answer:
        """An upload in parts: begun, each part, put together or given up."""
        only(call, ("uploads", "uploadId", "partNumber"))
        if call.method == "POST" and "uploads" in call.query:
            upload_id = uuid.uuid4().hex
            bucket.uploads[upload_id] = {}
            text = f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>"
            return Answer(200, f"{text}</InitiateMultipartUploadResult>".encode())
        parts = bucket.uploads.get(call.query.get("uploadId", ""))
        if parts is None:
            raise RefusedCall(404, "NoSuchUpload", "The specified upload does not exist.")
        if call.method == "PUT":
            parts[call.query["partNumber"]] = call.body
            return Answer(200, headers={"ETag": f'"part-{call.query["partNumber"]}"'})
        if call.method == "DELETE":
            del bucket.uploads[call.query["uploadId"]]
            return Answer(204)
        numbers = [part.findtext("{*}PartNumber", "") for part in ElementTree.fromstring(call.body).findall("{*}Part")]
        if sorted(numbers, key=int) != numbers or any(n not in parts for n in numbers):
            raise RefusedCall(400, "InvalidPart", "A part is missing or out of order.")
        if any(len(parts[n]) < SMALLEST_PART_BYTES for n in numbers[:-1]):
            raise RefusedCall(400, "EntityTooSmall", "A part is smaller than 5 MiB.")
        made = bucket.put(key, b"".join(parts[n] for n in numbers))
        del bucket.uploads[call.query["uploadId"]]
        text = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{escape(made.etag)}</ETag>"
        return Answer(200, f"{text}</CompleteMultipartUploadResult>".encode(), _written(made))


def _written(made: Any) -> dict[str, str]:
    return {"ETag": made.etag, "x-goog-generation": str(made.generation), "x-goog-metageneration": "1"}
