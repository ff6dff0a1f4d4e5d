"""`python -m tests.bench replay`: mails put back into a Dovecot, against Postfix's load generator alone.

    store --> mailkeep replay --> Dovecot LMTP          smtp-source -L --> the same Dovecot LMTP

The same mails into a fresh mailbox each time, in turns, in one run. smtp-source makes nothing durable and
reads nothing; mailkeep reads and proves each message, and records it before and after.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sidecar.demo.dovecot import PrivateDovecot
from store.records import Envelope, Leg, Recipient
from store.store import Store
from tests.bench.table import Line, conditions, show, skipped
from tests.support.restoring import configure
from tests.support.service import COMMAND

MAILS = int(os.environ.get("MAILKEEP_BENCH_MAILS", "4000"))
ROUNDS = 3
LANES = (4,)
TARGET = 0.9
_SENDER, _OWNER = "sender@example.com", b"anna@example.org"


def mail(number: int) -> bytes:
    """4 kB; each has a text of its own."""
    head = f"From: <{_SENDER}>\r\nSubject: {number}\r\nMessage-ID: <{number}@b>\r\n\r\n"
    line = f"line of mail {number:08} with some words in it, as mail has them, and no more\r\n"
    return (head + line * 50).encode()


def fill(path: Path) -> None:
    """A store with the mails of one mailbox."""
    with Store.open(path, create=True) as store:
        store.start_writing("bench")
        for number in range(MAILS):
            ingest = store.begin()
            ingest.feed(mail(number))
            envelope = Envelope(_SENDER.encode(), (Recipient(_OWNER),))
            ingest.commit(Leg.LMTP, envelope, queue_id=b"", attributes={}, done=lambda _error: None)


def replay(store: Path, address: str, lanes: int, recipient: str) -> float:
    """Messages a second, with the command's start."""
    fresh = store.with_name(recipient)  # one that knows of no replays
    shutil.copytree(store, fresh)
    config = str(store.with_name("mailkeep.toml"))
    began = time.perf_counter()
    subprocess.run(
        [*COMMAND, "replay", "--store", str(fresh), "--all", "--rcpt", recipient,
         "--downstream", address, "--connections", str(lanes), "--config", config],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120,
    )  # fmt: skip
    return MAILS / (time.perf_counter() - began)


def source(program: str, file: Path, address: str, lanes: int, recipient: str) -> float:
    """Messages a second."""
    began = time.perf_counter()
    subprocess.run(
        [program, "-L", "-d", "-s", str(lanes), "-m", str(MAILS), "-F", str(file), "-f", _SENDER,
         "-t", recipient, address],
        check=True, timeout=120,
    )  # fmt: skip
    return MAILS / (time.perf_counter() - began)


def first_mail(store: Path, address: str, id_: str) -> float:
    """Seconds that a single restore takes, as a command."""
    began = time.perf_counter()
    subprocess.run(
        [*COMMAND, "replay", "--store", str(store), id_, "--downstream", address],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    program = shutil.which("smtp-source", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None or PrivateDovecot.why_unavailable():
        skipped("replay", "smtp-source or Dovecot is not installed")
        return
    lines = []
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as scratch:
        where = Path(scratch).resolve()
        where.chmod(0o755)
        fill(where / "store")
        file = where / "mail.eml"
        file.write_bytes(mail(0).replace(b"\r\n", b"\n"))
        with PrivateDovecot(where / "servers") as dovecot:
            address = dovecot.lmtp_address
            configure(where, dovecot)
            for lanes in LANES:
                ratios, ours, theirs = [], [], []
                for number in range(ROUNDS):
                    theirs.append(source(program, file, address, lanes, f"s{lanes}-{number}@example.org"))
                    ours.append(replay(where / "store", address, lanes, f"r{lanes}-{number}@example.org"))
                    ratios.append(ours[-1] / theirs[-1])
                lines.append(
                    Line(
                        what=f"{MAILS} mails of 4 kB, {lanes} connections",
                        ours=f"{statistics.median(ours):.0f}/s", peer=f"{statistics.median(theirs):.0f}/s",
                        ratio=statistics.median(ratios), target=TARGET, at_least=True,
                    )
                )  # fmt: skip
            with Store.open(where / "store") as store, store.index.read() as snapshot:
                id_ = next(snapshot.by_time(0, 1 << 62, newest_first=True, removed=False)).hex()
            single = min(first_mail(where / "store", address, id_) for _ in range(3))
            lines.append(Line(what="one mail, the whole command", ours=f"{single:.2f} s", ratio=single,
                              target=1.0, unit=" s"))  # fmt: skip
    show("replay", f"replay into Dovecot, median of {ROUNDS} rounds in turns; {conditions()}", lines)
