"""The peer of the recovery bench: a plain parallel download, `URL DIRECTORY [ENDPOINT CREDENTIALS]`.

Every object below the URL, 8 in flight, each written to a file of its own and flushed. A process of its own,
as `mailkeep restore-store` is; prints objects and bytes.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.store import LocalStore, S3Store

IN_FLIGHT = 8


def _store(url: str, endpoint: str, credentials: str) -> S3Store | LocalStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(parts.path)
    told = dict(line.split(" = ") for line in Path(credentials).read_text().splitlines())
    return S3Store(
        parts.netloc, prefix=parts.path.strip("/"), endpoint=endpoint, region="us-east-1",
        client_options={"allow_http": True}, virtual_hosted_style_request=False,
        access_key_id=told["access_key_id"], secret_access_key=told["secret_access_key"],
    )  # fmt: skip


def main() -> None:
    """Download."""
    url, directory, endpoint, credentials = (*sys.argv[1:], "", "")[:4]
    store, target = _store(url, endpoint, credentials), Path(directory)
    names = [str(found["path"]) for page in obstore.list(store) for found in page]
    target.mkdir()

    def fetch(number: int) -> int:
        data = obstore.get(store, names[number]).bytes()
        with (target / f"{number}").open("wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        return len(data)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        print(len(names), sum(pool.map(fetch, range(len(names)))))


if __name__ == "__main__":
    main()
