"""The other processes of tests/crash/test_view_soak.py, which are killed at any moment.

write STORE STREAM    captures so many mails for each number on standard input; tells their ids
look URL VIEW         opens the replica, lists and reads all, looks again, until it or the test is killed
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from store.deliveries import Query, RemovedError
from store.errors import NotFoundError, StoreError
from store.index import Index
from store.replicas import hollow, index_files
from store.replicas.fleet import open_fleet
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.store import Store
from tests.store.conftest import put_message

PACK_BYTES = 150_000


def make_small() -> None:
    """Runs, pages and pieces of an index as small as the stores of a test, so that there are many."""
    assert Index.__init__.__kwdefaults__ is not None
    Index.__init__.__kwdefaults__["fresh_rows"] = 60
    hollow.PAGE_BYTES = 4096
    index_files._PIECE_BYTES = (4096, 16 << 20)


def write(path: Path, stream: str) -> None:
    with Store.open(path) as store:
        store.start_writing(stream, pack_bytes=PACK_BYTES)
        print("ready", flush=True)
        for line in sys.stdin:
            for _ in range(int(line)):
                mail = (
                    b"Subject: w\r\n\r\n" + random.randbytes(random.choice([20, 900, 9_000])).hex().encode()
                )
                delivery = put_message(store, mail)
                print(delivery.id.hex(), mail.hex(), flush=True)
            print("done", flush=True)


def look(url: str, view: Path) -> None:
    quiet: list[str] = []
    parent = os.getppid()
    with open_fleet(Replica(Remote.open(url)), view, tell=quiet.append) as fleet:
        while os.getppid() == parent:
            found = [stored.delivery for stored in fleet.deliveries(Query())]
            for delivery in random.sample(found, min(40, len(found))):
                try:
                    fleet.read_small(delivery.content)
                except NotFoundError:
                    with suppress(RemovedError):  # it may have been compacted away since
                        fleet.delivery(delivery.id)
                        raise
            fleet.refresh()


def main() -> None:
    make_small()
    what, *rest = sys.argv[1:]
    if what == "write":
        write(Path(rest[0]), rest[1])
    else:
        try:
            look(rest[0], Path(rest[1]))
        except StoreError:
            traceback.print_exc()
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
