"""Opens a store that was left by a killed writer and says how long it took: `PATH read|write DELIVERY`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from store.errors import StoreError
from store.ids import DeliveryId
from store.store import Store


def main() -> None:
    """Print one line of JSON."""
    path, mode, acknowledged = sys.argv[1:4]
    began = time.perf_counter()
    store = Store.open(Path(path))
    opened = time.perf_counter()
    if mode == "write":
        store.start_writing("bench")
    started = time.perf_counter()
    try:
        delivery = store.delivery(DeliveryId(bytes.fromhex(acknowledged)))
        there = sum(map(len, store.read(delivery.delivery.content))) == delivery.delivery.size
    except StoreError:
        there = False
    found = time.perf_counter()
    report = {
        "open_s": opened - began,
        "start_s": started - opened,
        "first_read_s": found - started,
        "there": there,
        "damage": store.damage,
    }
    store.close()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
