"""`mailkeep compact` as an operator has it: what it would do, what it did, what it left, and being stopped.

What would break these: a dry run that changes a byte, an exit code that hides a unit left as it is, a damaged
pack that is rewritten or not named, a Ctrl-C that leaves half a segment or a traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from blake3 import blake3

from sidecar.units import format_size
from store.check import Checked, check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.ids import now_us
from store.log import COMPACT_LOCK, lock_stream
from store.records import Delivery, Erasure
from store.segments import FIRST_COMPACTED, Segment, all_packs, pack_path, stream_files
from store.store import Store
from store.writer import Submission
from tests.support.mailstore import MESSAGE, NOON_US, Ran, mailkeep, written
from tests.support.service import COMMAND

REPORT = {
    "units", "packs_before", "packs_after", "bytes_before", "bytes_after",
    "dropped_messages", "dropped_chunks", "seconds", "skipped",
}  # fmt: skip
PACKS = 4


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILKEEP_CONFIG", raising=False)
    monkeypatch.setattr("sidecar.config.DEFAULT_PATH", tmp_path / "etc/mailkeep.toml")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four packs, the last of them open, of a stream that nobody writes."""
    with written(tmp_path / "store") as fill:
        for n in range(10 * PACKS):
            fill.put(MESSAGE * 20 + b"%d" % n)
            if n % 10 == 9 and n < 10 * PACKS - 1:
                fill.store.writer.roll()
    return tmp_path / "store"


def directory(path: Path) -> Path:
    return path / "streams/host"


def bytes_of(path: Path) -> dict[str, bytes]:
    return {f"{file}": file.read_bytes() for file in sorted(path.glob("streams/*/*[!k]")) if file.is_file()}


def compact(path: Path, *arguments: str) -> Ran:
    return mailkeep("compact", "--store", path, *arguments)


def whole(path: Path, count: int) -> None:
    """All of it is there and sound, and no file too many."""
    with Store.open(path) as store:
        assert store.damage == []
        found = [stored.delivery for stored in store.deliveries(Query())]
        assert len(found) == count
        for delivery in found:
            assert blake3(b"".join(store.read(delivery.content))).digest() == delivery.content
        assert list(check(store, Checked(), read_data=True)) == []
    assert set(all_packs(directory(path))) == stream_files(directory(path)).packs()
    assert not list(directory(path).glob("*.new"))


# -- what would be done


def test_a_dry_run_in_words(path: Path) -> None:
    with Store.open(path) as store:
        store.end_pack("host")
    before = bytes_of(path)
    size = sum(pack_path(directory(path), n).stat().st_size for n in range(1, PACKS + 1))
    ran = compact(path, "--dry-run", "--all")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"host, packs 1 to {PACKS} (asked for): {PACKS} packs, {format_size(size)}\n"
    assert bytes_of(path) == before


def test_a_dry_run_as_json(path: Path) -> None:
    before = bytes_of(path)
    ran = compact(path, "--dry-run", "--all", "--json")
    (unit,) = ran.objects
    assert (ran.code, ran.err) == (0, "")
    assert unit == {
        "stream": "host",
        "first": 1,
        "last": PACKS - 1,
        "bytes": unit["bytes"],
        "why": "asked for",
    }
    assert unit["bytes"] == sum(pack_path(directory(path), n).stat().st_size for n in range(1, PACKS))
    assert bytes_of(path) == before, "the open pack stays open"


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_a_dry_run_with_nothing_due(path: Path, json_: list[str]) -> None:
    """So little that it waits until there is more."""
    before = bytes_of(path)
    ran = compact(path, "--dry-run", *json_)
    assert (ran.code, ran.out, ran.err) == (0, "", "mailkeep: nothing is due\n")
    assert bytes_of(path) == before


def test_a_dry_run_says_what_a_run_does(path: Path) -> None:
    with Store.open(path) as store:
        store.end_pack("host")
    (unit,) = compact(path, "--dry-run", "--all", "--json").objects
    (report,) = compact(path, "--all", "--json").objects
    assert (report["units"], report["packs_before"]) == (1, unit["last"] - unit["first"] + 1)
    assert report["bytes_before"] == unit["bytes"]


# -- what was done


def test_a_report_in_words(path: Path) -> None:
    ran = compact(path, "--all")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(rf"{PACKS} packs of 0\.\d MB are now 1 of 0\.\d MB\n", ran.out)
    whole(path, 10 * PACKS)
    parts = stream_files(directory(path)).parts
    assert isinstance(parts[0], Segment)
    assert (parts[0].first, parts[0].last) == (1, PACKS)


def test_a_report_as_json(path: Path) -> None:
    ran = compact(path, "--all", "--json", "--level", "1", "--threads", "2")
    (report,) = ran.objects
    assert (ran.code, ran.err) == (0, "")
    assert report.keys() == REPORT
    assert (report["units"], report["packs_before"], report["packs_after"]) == (1, PACKS, 1)
    segment = stream_files(directory(path)).parts[0]
    assert isinstance(segment, Segment)
    sizes = sum(pack_path(directory(path), n).stat().st_size for n in segment.packs)
    assert report["bytes_after"] == sizes < report["bytes_before"]
    assert (report["dropped_messages"], report["dropped_chunks"], report["skipped"]) == (0, 0, [])
    assert segment.packs[0] >= FIRST_COMPACTED
    whole(path, 10 * PACKS)


def test_nothing_is_due(path: Path) -> None:
    ran = compact(path)
    assert (ran.code, ran.out, ran.err) == (0, "nothing is due\n", "")
    (report,) = compact(path, "--json").objects
    assert (report["units"], report["bytes_after"], report["skipped"]) == (0, 0, [])
    whole(path, 10 * PACKS)


def test_all_again_and_again(path: Path) -> None:
    """Asked for is done, also where nothing would be gained; and nothing piles up."""
    for _ in range(3):
        assert compact(path, "--all").code == 0
        whole(path, 10 * PACKS)
    assert len(all_packs(directory(path))) == 2, "a segment of one pack, and the empty one behind it"


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in the microsecond of another"])
def test_what_was_erased_is_dropped(path: Path, alone: bool) -> None:
    with written(path) as fill:
        text = b"Subject: gone\r\n\r\n" + os.urandom(3000).hex().encode()
        _erase(fill.store, fill.put(text, time_us=NOON_US + (500 if alone else 0)))
    (unit,) = compact(path, "--dry-run", "--json").objects
    assert unit["why"] == "1 deliveries were removed"
    ran = compact(path)
    assert ran.code == 0
    assert ", 1 messages dropped" in ran.out
    whole(path, 10 * PACKS)
    assert compact(path, "--dry-run", "--json").objects == []


def _erase(store: Store, delivery: Delivery) -> None:
    store.settle_index()
    erasure = Erasure(
        delivery=delivery.id, time_us=now_us(), owner="dpo", reason="asked",
        content=store.tombstone(delivery.content),
    )  # fmt: skip
    store.writer.submit(Submission(entries=[erasure]))
    store.writer.roll()
    store.settle_index()


def test_several_streams(path: Path) -> None:
    with Store.open(path) as store:
        store.start_writing("other").close()
    ran = compact(path, "--all", "--json")
    assert ran.objects[0]["units"] == 1, "a stream without a word in it is left alone"
    whole(path, 10 * PACKS)


def test_it_runs_beside_a_writer(path: Path) -> None:
    """In a process of its own: the stream's newest pack is the writer's, and stays as it is."""
    with written(path) as fill:
        fill.put(MESSAGE + b"while it is written")
        fill.store.settle_index()
        newest = max(n for n in all_packs(directory(path)) if n < FIRST_COMPACTED)
        ran = subprocess.run(
            [*COMMAND, "compact", "--all", "--json", "--store", path],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        assert json.loads(ran.stdout)["packs_before"] == newest - 1
        assert pack_path(directory(path), newest).exists()
        fill.put(MESSAGE + b"and after")
    whole(path, 10 * PACKS + 2)


# -- what goes wrong


def test_no_store(tmp_path: Path) -> None:
    ran = compact(tmp_path / "none")
    assert (ran.code, ran.out) == (11, "")
    assert "there is no store at" in ran.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "wrong", ["--level=0", "--level=23", "--threads=0", "--threads=65", "--level=x", "--al"]
)
def test_wrong_usage(path: Path, wrong: str) -> None:
    before = bytes_of(path)
    ran = compact(path, wrong)
    assert (ran.code, ran.out) == (2, "")
    assert wrong.partition("=")[0] in ran.err
    assert bytes_of(path) == before


def test_help() -> None:
    ran = mailkeep("compact", "--help")
    assert ran.code == 0
    for option in ("--dry-run", "--all", "--threads", "--level", "--json"):
        assert option in ran.out
    assert "Exit codes: 0" in ran.out


def spoil(path: Path, number: int, *, at: int = 600) -> Path:
    pack = pack_path(directory(path), number)
    data = bytearray(pack.read_bytes())
    data[at] ^= 1
    pack.write_bytes(data)
    return pack


@pytest.mark.parametrize("number", [1, 2, PACKS])
def test_a_damaged_pack_is_named_and_left(path: Path, number: int) -> None:
    with Store.open(path) as store:
        store.end_pack("host")
    pack = spoil(path, number)
    before = bytes_of(path)
    ran = compact(path, "--all")
    assert ran.code == 1
    assert "nothing is due" not in ran.out, "it was due, and could not be done"
    assert re.search(
        rf"(?m)^mailkeep: left as it is: host, packs 1 to {PACKS} \(asked for\): {pack} at byte", ran.err
    )
    assert bytes_of(path) == before
    (report,) = compact(path, "--all", "--json").objects
    assert report["units"] == 0
    assert len(report["skipped"]) == 1
    assert f"{pack}" in report["skipped"][0]


def test_a_damaged_segment_is_named_and_left(path: Path) -> None:
    assert compact(path, "--all").code == 0
    segment = stream_files(directory(path)).parts[0]
    assert isinstance(segment, Segment)
    pack = spoil(path, segment.packs[0])
    before = {name: data for name, data in bytes_of(path).items() if name.endswith((".pack", ".segment"))}
    ran = compact(path, "--all")
    assert ran.code == 1
    assert f"{pack} at byte" in ran.err
    assert {name: bytes_of(path)[name] for name in before} == before


def test_somebody_else_compacts(path: Path) -> None:
    with lock_stream(directory(path), COMPACT_LOCK):
        ran = compact(path, "--all")
    assert ran.code == 1
    assert "another process compacts stream 'host'" in ran.err
    assert compact(path, "--all").code == 0
    whole(path, 10 * PACKS)


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half done is left, and the next run ends well."""
    with Store.open(path) as store:
        store.end_pack("host")
    before = set(bytes_of(path))
    with monkeypatch.context() as patch:
        real = os.pwrite

        def full(fd: int, data: bytes, offset: int) -> int:
            if offset > 0:
                raise OSError(28, "No space left on device")
            return real(fd, data, offset)

        patch.setattr("store.files.os.pwrite", full)
        ran = compact(path, "--all")
    assert ran.code == 13, ran.err
    assert {name for name in bytes_of(path) if name.endswith((".pack", ".segment"))} <= before
    assert compact(path, "--all").code == 0
    whole(path, 10 * PACKS)


# -- Ctrl-C


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "store"
    with written(path) as fill:
        for n in range(200):
            # Nothing in it comes twice, so that there is something to look for, for seconds.
            words = blake3(b"%d" % n).digest(length=60_000).hex().encode()
            fill.put(b"Subject: %d\r\n\r\n" % n + words)
    return path


@pytest.fixture
def large(made: Path, tmp_path: Path) -> Path:
    """Enough that compaction takes a while at its hardest."""
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle(large: Path, number: signal.Signals) -> None:
    """At two moments: no traceback, no half segment that counts, and the next run ends well."""
    for share in (0.2, 0.8):
        compacting = subprocess.Popen(
            [*COMMAND, "compact", "--all", "--level", "19", "--store", large],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while max(all_packs(directory(large))) < FIRST_COMPACTED and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(0.6 * share)
            compacting.send_signal(number)
            out, err = compacting.communicate(timeout=120)
        finally:
            if compacting.poll() is None:
                compacting.kill()
                compacting.wait()
        assert b"Traceback" not in err, err.decode()
        if number == signal.SIGINT:
            assert compacting.returncode in {130, 1, -signal.SIGINT}, (out, err)
            assert set(all_packs(directory(large))) <= stream_files(directory(large)).packs(), "it tidied up"
        with Store.open(large) as store:
            assert len(list(store.deliveries(Query()))) == 200
            assert list(check(store, Checked(), read_data=True)) == []
            with store.index.read() as snapshot:
                assert not snapshot.has_condemned() or number == signal.SIGTERM
        if isinstance(stream_files(directory(large)).parts[0], Segment):
            pytest.fail("it was done before it was stopped: make it larger")
    with Store.open(large) as store:
        assert Compactor(store, CompactOptions(everything=True, level=1)).run().units == 1
    whole(large, 200)
