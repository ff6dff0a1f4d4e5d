"""The job that looks replicas over, and has mended what is wrong with them.

What it comes to is kept in `jobs/` of the store, with how far reading is: it outlives a restart, and
/metrics tells it.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from sidecar.config import Config
from sidecar.jobs.common import FINDINGS_TOLD, Current, step_of
from sidecar.metrics import Metrics
from sidecar.portion import Portion
from sidecar.readable import escaped
from sidecar.replication import open_configured
from sidecar.scheduler import channel
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from sidecar.sections import ReplicaConfig
from sidecar.units import format_size
from store.errors import StoreError
from store.files import write_whole
from store.store import Store

if TYPE_CHECKING:
    from store.replicas.mend import Mended
    from store.replicas.scrub import Scrubbed

log = logging.getLogger(__name__)
_LATE_S = 3600.0
"""what the shipper was asked for and has not mended by then counts as not mended"""


class Record(msgspec.Struct, kw_only=True):
    """Of one replica: when it was looked over last, and last with nothing wrong that stays so; what was
    found; and the piece that was read last. Times in seconds since 1970; 0 for never."""

    url: str = ""
    last: float = 0.0
    last_right: float = 0.0
    missing: int = 0
    damaged: int = 0
    unmended: int = 0
    after: str = ""


def load_record(store: Path, url: str) -> Record:
    """What is on record; nothing where the file is not there or damaged. Raises `OSError`."""
    try:
        return msgspec.json.decode(_file(store, url).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return Record(url=url)


def watch_scrubs(metrics: Metrics, config: Config) -> None:
    """Let /metrics tell what is on record of the replicas that are configured."""
    path = config.store.path
    for number, replica in enumerate(config.replica, 1):
        if replica.url:
            _watch(metrics, path, replica.url, str(number))


def _watch(metrics: Metrics, path: Path, url: str, number: str) -> None:
    def watch(name: str, field: str) -> None:
        metrics.watch(name, lambda: float(getattr(load_record(path, url), field)), number)

    watch("replica_scrub_timestamp_seconds", "last_right")
    watch("replica_missing_objects", "missing")
    watch("replica_damaged_objects", "damaged")
    watch("replica_unmended_objects", "unmended")


def scrub_job(store: Store, config: Current) -> Run:
    """Looks each replica over. The run fails when one cannot be asked, or has what cannot be mended."""

    def run(context: JobContext) -> str:
        asked = context.arguments.get("read_data")
        portion = Portion.parse(asked) if asked is not None else None
        current = config()
        told: list[str] = []
        failed: list[str] = []
        for number, replica in enumerate(current.replica, 1):
            if replica.url:
                host = current.store.stream_of(1)
                try:
                    text = _scrub_one(store, replica, host, portion or replica.scrub_read, context)
                except (StoreError, OSError, StillWrongError) as exc:
                    failed.append(f"replica {number}: {exc}")
                else:
                    told.append(f"replica {number}: {text}")
        for text in failed:
            log.error("scrub: %s", escaped(text))
        if failed:
            raise StillWrongError("; ".join(failed))
        return "; ".join(told) or "there is no replica"

    return run


def _scrub_one(store: Store, replica: ReplicaConfig, host: str, portion: Portion, context: JobContext) -> str:
    # The client of buckets in memory, for those alone who have replicas.
    from store.replicas.asked import Asked
    from store.replicas.mend import Mended, ask
    from store.replicas.reader import Replica
    from store.replicas.scrub import ScrubOptions, scrub

    record = load_record(store.path, replica.url)
    waited_s = Asked(store.path, replica.url, host).since_s()
    step = step_of(context)
    read = 0

    def reached(name: str) -> None:
        nonlocal read
        read += 1
        record.after = name
        context.progress(read, 0, f"pieces read of {replica.url}")

    options = ScrubOptions(portion=portion.of, after=record.after, reached=reached, step=step)
    try:
        scrubbed = scrub(Replica(open_configured(replica)), store.path, store.id, host, options)
        mended = Mended()
        if scrubbed.wrong.anew and replica.url.startswith("file:"):
            # As a directory looks on which nothing is mounted: it must not fill the disk below.
            mended.left.append("it is empty; if that is mounted, restart `serve`: all is shipped anew")
        else:
            ask(store.path, replica.url, scrubbed.wrong, mended, step)
        if waited_s > _LATE_S:
            mended.left.append(f"what was to be mended {waited_s / 3600:.0f} hours ago still is")
        _take_down(record, scrubbed, mended)
    finally:
        _save(store.path, record)
    for finding in scrubbed.findings[:FINDINGS_TOLD]:
        log.error("scrub: %s: %s", finding.where, finding.what)
    for text in mended.left[:FINDINGS_TOLD]:
        log.error("scrub: %s: not mended: %s", replica.url, text)
    findings = len(scrubbed.findings)
    found = "1 finding" if findings == 1 else f"{findings} findings" if findings else "nothing wrong"
    if mended.left:
        raise StillWrongError(f"{found}, {len(mended.left)} cannot be mended from here: {mended.left[0]}")
    mending = f", {mended.asked} being mended" if mended.asked else ""
    return f"{scrubbed.pieces} pieces, {_how_much(scrubbed, portion)}: {found}{mending}"


def _how_much(scrubbed: Scrubbed, portion: Portion) -> str:
    if not scrubbed.read_pieces or scrubbed.read_bytes >= scrubbed.bytes:
        return "all of them read" if scrubbed.read_pieces else "none of them read"
    runs = math.ceil(scrubbed.bytes / max(1, portion.of(scrubbed.bytes)))
    amount = f"{format_size(scrubbed.read_bytes)} of {format_size(scrubbed.bytes)} read"
    return f"{amount} (all in {runs} runs)"


def _take_down(record: Record, scrubbed: Scrubbed, mended: Mended) -> None:
    wrong = scrubbed.wrong
    record.last = time.time()
    record.missing = len(wrong.missing) + wrong.anew
    record.damaged = len(wrong.damaged) + len(wrong.index) + wrong.rounds
    record.unmended = len(mended.left)
    if not mended.left:
        record.last_right = record.last


def _file(store: Path, url: str) -> Path:
    return store / channel.DIRECTORY / f"scrub-{blake3(url.encode()).hexdigest()[:16]}.json"


def _save(store: Path, record: Record) -> None:
    channel.make_directories(store / channel.DIRECTORY)
    write_whole(_file(store, record.url), msgspec.json.encode(record) + b"\n")


class StillWrongError(Exception):
    """A replica could not be looked over, or something stays wrong with it."""
