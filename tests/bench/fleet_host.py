"""One mail host of the fleet bench: `PATH NAME DELIVERIES SEED DIVISOR URL ENDPOINT CREDENTIALS MAILBOX`.

Captures so many deliveries of ten years into a store of its own and ships it; prints, as lines of JSON, the
content ids of what came for the mailbox, and how large it all is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sidecar.interpreter import spare_the_collector, take_turns
from store.index_copy import copy_of
from store.replicas.remote import Remote, RemoteOptions
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from tests.bench.capture import Captures
from tests.bench.stream import DAY_US, Stream

IN_FLIGHT = 64
YEARS_US = 10 * 365 * DAY_US
TAIL = 500
"""deliveries that come after the full round, as they do on a host that goes on"""


def main() -> None:
    """Capture, ship, tell."""
    path, name, deliveries, seed, divisor = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    url, endpoint, credentials, mailbox = sys.argv[6:10]
    stream = Stream(seed, divisor=divisor, step_us=YEARS_US // deliveries)
    remote = Remote.open(url, RemoteOptions(endpoint=endpoint, credentials=Path(credentials)))
    spare_the_collector()
    take_turns()
    with Store.open(path, create=True) as store:
        store.start_writing(name)
        captures = Captures(store, IN_FLIGHT)
        shipper = Shipper(
            path, remote, name, ShipOptions(index=lambda: copy_of(store.index, store.view.names()))
        )
        written = 0
        while written < deliveries:
            if written >= deliveries - TAIL:
                _settle(store, captures)
                shipper.round(full=written - 50 < deliveries - TAIL)
            for mail in stream.take(50):
                delivery = captures.put(mail)
                if mailbox.encode() in mail.recipients:
                    print(json.dumps({"content": delivery.content.hex()}))
            written += 50
        _settle(store, captures)
        while shipper.round().more:
            pass
        stats = store.stats()
        print(json.dumps({"pack_bytes": stats.pack_bytes, "index_bytes": stats.index_bytes}))


def _settle(store: Store, captures: Captures) -> None:
    captures.drain()
    store.settle_index(600)


if __name__ == "__main__":
    main()
