"""Makes a golden store with the version at hand: `python -m tests.golden.make v1 OUTPUT.tar.gz`.

Run once for each format version, when it is new, and never again: what it made is what later versions must
still read. Every kind of entry and of piece is in it.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

from blake3 import blake3

from store.compact import CompactOptions, Compactor
from store.ids import DeliveryId, now_us
from store.records import (
    Entry,
    Envelope,
    Erasure,
    Expiry,
    Hold,
    Leg,
    Outcome,
    Outcomes,
    Recipient,
    Replay,
    ReplayRun,
    Uncaptured,
)
from store.sealing import Identity, parse_identities
from store.store import Store
from store.writer import Submission

FIRST_US = 1_790_000_000_000_000
SECRET = "AGE-SECRET-KEY-1X7KKPEPK9MFH88TD8HPY7JSFYMYGEYL34P88AMM4LPCCJEUHFDWSZSJRL0"
"""opens the sealed golden stores, and nothing else in the world"""


def identities() -> list[Identity]:
    """Whoever reads the sealed golden stores."""
    return parse_identities(SECRET.encode(), "SECRET", lambda: None)


def messages() -> list[bytes]:
    """Plain, multipart with base64 at two widths, binary, empty, without a final line end."""
    rng = random.Random(1)
    file = rng.randbytes(150_000)
    wide = b"\r\n".join(base64.b64encode(file)[i : i + 76] for i in range(0, 200_000, 76))
    narrow = b"\n".join(base64.b64encode(file)[i : i + 60] for i in range(0, 200_000, 60))
    text = b"".join(b"line %d of a text that is long enough to stand alone\r\n" % n for n in range(60))
    found = [
        b"From: a@example.org\r\nTo: b@example.org\r\nSubject: plain\r\nMessage-ID: <1@example.org>\r\n"
        b"\r\nhello\r\n",
        b"",
        b"Subject: no line end\r\n\r\nno line end",
        bytes(range(256)) * 40,
    ]
    for number, body in enumerate((wide, narrow)):
        found.append(
            b"Received: from x by y id ABCDEF%d; now\r\nFrom: a@example.org\r\nSubject: file %d\r\n"
            b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n'
            % (number, number)
            + text
            + b"\r\n--b\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n" + body + b"\r\n--b--\r\n"
        )
    return found


def put(store: Store, number: int, message: bytes) -> dict[str, object]:
    """Capture one message and give what must be found again."""
    done = threading.Event()
    ingest = store.begin()
    ingest.feed(message)
    envelope = Envelope(
        b"a@example.org", (Recipient(b"b@example.org"), Recipient(b"C@Example.org", b" ORCPT=x"))
    )
    delivery = ingest.commit(
        Leg.LMTP if number % 3 else Leg.MILTER, envelope, queue_id=b"Q%d" % number,
        attributes={"HELO": b"client"}, notes=("golden",), time_us=FIRST_US + number * 1_000_000,
        done=lambda _error: done.set(),
    )  # fmt: skip
    done.wait(10)
    store.writer.submit(
        Submission(entries=[
            Outcomes(
                delivery=delivery.id, time_us=FIRST_US + number, outcomes=(Outcome(0, b"250 2.0.0 Saved"),)
            ),
        ])
    )  # fmt: skip
    return {
        "id": delivery.id.hex(), "leg": str(delivery.leg), "size": len(message),
        "blake3": blake3(message).hexdigest(), "subject": delivery.subject.decode(),
        "queue_id": delivery.queue_id.decode(), "time_us": delivery.time_us,
    }  # fmt: skip


def settled(store: Store, facts: list[Entry]) -> None:
    """Write facts, and wait until they are in the index."""
    done = threading.Event()
    store.writer.submit(Submission(entries=facts, done=lambda _error: done.set()))
    assert done.wait(10)
    store.settle_index()


def main(version: str, output: str) -> None:
    """A store of a few packs, without its index, and what it holds."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "store"
        recipients = [identity.recipient for identity in identities()] if version == "v3" else []
        expected = []
        for _ in range(2):  # two lives of the service, and a pack each
            with Store.open(path, create=True, recipients=recipients) as store:
                store.start_writing("golden", reserve_bytes=0, pack_bytes=64 << 10)
                expected += [put(store, len(expected), message) for message in messages()]
                first = bytes.fromhex(str(expected[0]["id"]))
                for entry in (
                    Replay(
                        delivery=first, time_us=now_us(), run="run", recipient=b"b@example.org",
                        downstream="127.0.0.1:24", reply=b"250 ok",
                    ),
                    ReplayRun(
                        run="run", time_us=now_us(), selection=b"s" * 16, owner="root", messages=1,
                        finished=True,
                    ),
                    Uncaptured(
                        time_us=now_us(), leg=Leg.LMTP, queue_id=b"LOST", reason="full",
                        envelope=Envelope(b"", (Recipient(b"d@example.org"),)),
                    ),
                ):  # fmt: skip
                    store.writer.submit(Submission(entries=[entry]))
        # A segment, a stub, a tombstone, an expiry, a hold, and mail behind it.
        with Store.open(path, identities=identities()) as store:
            store.start_writing("golden", reserve_bytes=0, pack_bytes=64 << 10)
            first, second = (store.delivery(DeliveryId(bytes.fromhex(str(e["id"])))) for e in expected[-2:])
            facts: list[Entry] = [
                Erasure(
                    delivery=first.delivery.id, time_us=now_us(), owner="dpo", reason="asked",
                    content=store.tombstone(first.delivery.content),
                    facts=store.traces(first.delivery.id),
                ),
                Expiry(
                    time_us=now_us(), rule="1d", owner="serve", deliveries=(second.delivery.id,),
                    facts=(store.traces(second.delivery.id),),
                ),
            ]  # fmt: skip
            settled(store, facts)
            store.writer.roll()
            store.settle_index()
            Compactor(store, CompactOptions(everything=True)).run()
            hold = Hold(name="case", time_us=now_us(), owner="legal", reason="court", matches={"to": "b@x"})
            settled(store, [hold])
            behind = put(store, len(expected), messages()[0])
        removed = [entry["id"] for entry in expected[-2:]]
        expected = [*expected[:-2], behind]
        told = {"version": version, "deliveries": expected, "removed": removed}
        (Path(scratch) / "expected.json").write_text(json.dumps(told, indent=1))
        with tarfile.open(output, "w:gz") as archive:
            archive.add(path / "mailkeep.store", "store/mailkeep.store")
            archive.add(path / "streams", "store/streams")
            archive.add(Path(scratch) / "expected.json", "expected.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
