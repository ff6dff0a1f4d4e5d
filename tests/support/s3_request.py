"""Requests to an S3 service that no client of ours makes: they make buckets, and lock them."""

from __future__ import annotations

import hashlib
import hmac
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

KEY, SECRET = "testkey", "testsecret"


def make_bucket(endpoint: str, name: str) -> None:
    signed(endpoint, "PUT", f"/{name}")


def make_locked_bucket(endpoint: str, name: str, days: int) -> None:
    """One with versions that locks what is new for so many days."""
    signed(endpoint, "PUT", f"/{name}", headers={"x-amz-bucket-object-lock-enabled": "true"})
    rule = f"<Mode>GOVERNANCE</Mode><Days>{days}</Days>"
    body = (
        '<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        f"<Rule><DefaultRetention>{rule}</DefaultRetention></Rule></ObjectLockConfiguration>"
    )
    signed(endpoint, "PUT", f"/{name}", "object-lock=", body.encode())


def signed(
    endpoint: str,
    method: str,
    path: str,
    query: str = "",
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    age: timedelta = timedelta(),
) -> bytes:
    """The answer's body to a request with a signature of version 4, of that age. Raises `HTTPError`."""
    now = f"{datetime.now(UTC) - age:%Y%m%dT%H%M%SZ}"
    digest = hashlib.sha256(body).hexdigest()
    sent = {"host": endpoint[7:], "x-amz-content-sha256": digest, "x-amz-date": now, **(headers or {})}
    names = ";".join(sorted(sent))
    lines = [f"{name}:{sent[name]}" for name in sorted(sent)]
    canonical = hashlib.sha256("\n".join([method, path, query, *lines, "", names, digest]).encode())
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    signing = f"AWS4{SECRET}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{canonical.hexdigest()}"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signing.hex()}"
    )
    url = endpoint + path + (f"?{query.rstrip('=')}" if query else "")
    request = urllib.request.Request(url, body, sent, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())
