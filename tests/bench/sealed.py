"""`python -m tests.bench sealed`: what sealing costs, against the same capture into an open store.

Rounds in turns, each into a new store; ingest as in `ingest.py`, and the size of what comes of it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from store.sealing import new_identity
from store.store import Store
from tests.bench.capture import Captures
from tests.bench.corpus import Corpus, prepare
from tests.bench.size import IN_FLIGHT
from tests.bench.table import Line, show

ROUNDS = int(os.environ.get("MAILKEEP_BENCH_ROUNDS", "5"))
TARGET = 1.15


def _take(corpus: Corpus, path: Path, recipients: tuple[str, ...]) -> tuple[float, float, int]:
    """(wall, CPU) seconds, and bytes of packs."""
    with Store.open(path, create=True, recipients=recipients) as store:
        store.start_writing("bench")
        cpu, began = time.process_time(), time.perf_counter()
        captures = Captures(store, IN_FLIGHT)
        for mail in corpus.mails():
            captures.put(mail)
        captures.drain()
        wall, used = time.perf_counter() - began, time.process_time() - cpu
        size = store.pack_bytes()
    shutil.rmtree(path)
    return wall, used, size


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as temporary:
        scratch = Path(temporary)
        corpus = prepare(scratch / "corpus")
        recipients = (new_identity()[1],)
        _take(corpus, scratch / "store", recipients)  # warm up
        opened: list[tuple[float, float, int]] = []
        sealed: list[tuple[float, float, int]] = []
        for _ in range(ROUNDS):
            opened.append(_take(corpus, scratch / "store", ()))
            sealed.append(_take(corpus, scratch / "store", recipients))
        lines = []
        for at, what, form, target in (
            (0, "time for all of it, sealed against open", "{:.2f} s", TARGET),
            (1, "CPU time", "{:.2f} s", None),
            (2, "bytes of packs", "{:,.0f}", None),
        ):
            mine, peer = (statistics.median(run[at] for run in runs) for runs in (sealed, opened))
            ratio = statistics.median(a[at] / b[at] for a, b in zip(sealed, opened, strict=True))
            lines.append(
                Line(what=what, ours=form.format(mine), peer=form.format(peer), ratio=ratio, target=target)
            )
        show("sealed", f"Sealed: {corpus.title}, median of {ROUNDS} rounds in turns", lines)


if __name__ == "__main__":
    main()
