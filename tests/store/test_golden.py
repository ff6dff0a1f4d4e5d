"""Stores that earlier versions have written: each later one reads them, writes on, compacts and rebuilds.

What would break these: a change of what bytes mean without a new version number, a new version that does not
read the old one, a field that gets another meaning, a pack of a later version taken for damage (or read).
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from store import layout
from store.check import Checked, check
from store.check_history import HistoryCheck
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query, StoredDelivery
from store.errors import FormatError
from store.evidence import head_of, prove
from store.ids import DeliveryId
from store.layout import FIRST_COMPACTED, FORMAT_VERSION, OPEN_VERSION, PACK_HEADER_BYTES, decode_pack_header
from store.rebuild import rebuild
from store.records import Outcome, Recipient
from store.rows import Term
from store.scan import read_pack_header, scan_records
from store.segments import Segment, stream_files
from store.store import Store
from tests.golden.make import SECRET, identities, messages
from tests.store.conftest import put_message
from tests.support.mailstore import mailkeep

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("v*.tar.gz"))
STREAM = "golden"
ALL = CompactOptions(everything=True, level=3)


@dataclass(frozen=True)
class Golden:
    """A store as it was, unpacked anew, and what it holds."""

    path: Path
    deliveries: list[dict[str, Any]]

    def open(self) -> Store:
        """As whoever may read it."""
        return Store.open(self.path, identities=identities())

    @property
    def sealed(self) -> bool:
        return "recipients" in json.loads((self.path / "mailkeep.store").read_text())

    @property
    def packs(self) -> list[Path]:
        return sorted(self.path.glob("streams/*/*.pack"))

    def verify(self, store: Store, *, more: int = 0) -> None:
        """All that was in it, and so many more; each field, each byte; nothing is wrong."""
        assert store.damage == []
        found = {stored.delivery.id.hex(): stored for stored in store.deliveries(Query())}
        assert len(found) == len(self.deliveries) + more
        for told in self.deliveries:
            self._same(store, found[told["id"]], told)
        counted = store.stats().counters
        assert sum(counted.deliveries.values()) == len(found)
        assert list(check(store, Checked(), read_data=True)) == []
        head = head_of(store)
        assert head.gaps == ()
        assert list(HistoryCheck(store, head).run()) == []
        proved = prove(store, DeliveryId(bytes.fromhex(self.deliveries[0]["id"]))).verify()[0]
        assert proved.id.hex() == self.deliveries[0]["id"]

    def _same(self, store: Store, stored: StoredDelivery, told: dict[str, Any]) -> None:
        delivery = stored.delivery
        data = b"".join(store.read(delivery.content))
        seen = {
            "id": delivery.id.hex(), "leg": str(delivery.leg), "size": len(data),
            "blake3": blake3(data).hexdigest(), "subject": delivery.subject.decode(),
            "queue_id": delivery.queue_id.decode(), "time_us": delivery.time_us,
        }  # fmt: skip
        assert seen == {key: told[key] for key in seen}
        assert delivery.content.hex() == told["blake3"]
        assert delivery.size == told["size"]
        assert delivery.envelope.sender == b"a@example.org"
        assert delivery.envelope.recipients == (
            Recipient(b"b@example.org"),
            Recipient(b"C@Example.org", b" ORCPT=x"),
        )
        assert delivery.attributes == {"HELO": b"client"}
        assert delivery.notes == ("golden",)
        assert stored.outcomes == {0: Outcome(0, b"250 2.0.0 Saved")}


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name.partition(".")[0])
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    (tmp_path / "identity").write_text(SECRET)
    monkeypatch.setenv("MAILKEEP_IDENTITY", str(tmp_path / "identity"))
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    told = json.loads((tmp_path / "expected.json").read_text())
    assert f"{told['version']}.tar.gz" == request.param.name
    return Golden(tmp_path / "store", told["deliveries"])


def test_there_is_one_of_each_version() -> None:
    versions = {int(path.name.removeprefix("v").partition(".")[0]) for path in GOLDEN}
    assert versions >= {1}
    assert versions <= set(range(1, FORMAT_VERSION + 1))


def test_its_packs_are_of_its_version(golden: Golden, request: pytest.FixtureRequest) -> None:
    version = int(json.loads((golden.path.parent / "expected.json").read_text())["version"][1:])
    assert {read_pack_header(pack).version for pack in golden.packs} == {version}
    assert len(golden.packs) > 1


def test_everything_is_there(golden: Golden) -> None:
    with golden.open() as store:
        golden.verify(store)
        wanted = {blake3(message).hexdigest() for message in messages()}
        assert {told["blake3"] for told in golden.deliveries} == wanted


def test_the_other_facts_are_there(golden: Golden) -> None:
    with golden.open() as store:
        counted = store.stats().counters
        assert (counted.uncaptured, counted.replays) == (2, 2)
        first = store.delivery(DeliveryId(bytes.fromhex(golden.deliveries[0]["id"])))
        assert {(replay.run, replay.reply) for replay in first.replays} == {("run", b"250 ok")}
        assert store.run(b"s" * 16) is None, "it was finished"


def test_look_ups(golden: Golden) -> None:
    with golden.open() as store:
        for term, value in ((Term.RECIPIENT, b"c@example.org"), (Term.SENDER, b"a@example.org")):
            assert len(list(store.deliveries(Query(terms=((term, value),))))) == len(golden.deliveries)
        for told in golden.deliveries:
            id_ = DeliveryId(bytes.fromhex(told["id"]))
            assert store.resolve(told["id"][:10]) == id_
            assert store.recipe(store.delivery(id_).delivery.content).size == told["size"]


def test_the_commands_read_it(golden: Golden) -> None:
    listed = mailkeep("list", "--store", golden.path, "--json", "--limit", "0")
    assert {shown["id"] for shown in listed.objects} == {told["id"] for told in golden.deliveries}
    told = golden.deliveries[-1]
    raw = mailkeep("show", told["id"], "--raw", "--store", golden.path).raw
    assert blake3(raw).hexdigest() == told["blake3"]
    assert mailkeep("check", "--store", golden.path, "--read-data").code == 0


def test_it_is_written_on(golden: Golden) -> None:
    """Known messages again, which share what the earlier version stored, and new ones."""
    before = {pack: pack.read_bytes() for pack in golden.packs}
    with golden.open() as store:
        store.start_writing(STREAM, reserve_bytes=0)
        again = [put_message(store, message) for message in messages()]
        put_message(store, b"Subject: new\r\n\r\nnever seen before\r\n")
        store.settle_index()
        golden.verify(store, more=len(again) + 1)
    for pack, data in before.items():
        assert pack.read_bytes().startswith(data), "what is there is never written over"
    grown = sum(pack.stat().st_size for pack in golden.packs) - sum(map(len, before.values()))
    assert grown < 60_000, "what both versions cut alike is stored once"
    with golden.open() as store:
        golden.verify(store, more=len(again) + 1)
        found = {stored.delivery.id: stored.delivery for stored in store.deliveries(Query())}
        for delivery, message in zip(again, messages(), strict=True):
            assert b"".join(store.read(found[delivery.id].content)) == message


def test_it_is_compacted(golden: Golden) -> None:
    with golden.open() as store:
        close_open_packs(store)
        report = Compactor(store, ALL).run()
        assert (report.units, report.skipped) == (1, [])
        assert (report.dropped_messages, report.dropped_chunks) == (0, 0)
        golden.verify(store)
        parts = stream_files(golden.path / "streams" / STREAM).parts
        assert isinstance(parts[0], Segment)
        expected = FORMAT_VERSION if golden.sealed else OPEN_VERSION
        assert {read_pack_header(pack).version for pack in golden.packs} == {expected}
        kinds = {
            record.type
            for pack in golden.packs
            for record in scan_records(pack, read_pack_header(pack).key(), PACK_HEADER_BYTES)
        }
        assert layout.RecordType.CHUNKS_1 not in kinds
    for _ in range(2):  # and again from what it has become, without an index
        shutil.rmtree(golden.path / "index")
        with golden.open() as store:
            golden.verify(store)
            Compactor(store, ALL).run()
            golden.verify(store)


def test_written_on_and_compacted(golden: Golden) -> None:
    """Packs of both versions in one segment, and the next one after it."""
    count = 0
    for turn in range(3):
        with golden.open() as store:
            store.start_writing(STREAM, reserve_bytes=0)
            for number, message in enumerate(messages()):
                put_message(store, message + b"%d %d" % (turn, number))
                count += 1
            store.settle_index()
            if turn != 1:
                store.writer.roll()
                store.settle_index()
                assert Compactor(store, ALL).run().skipped == []
            golden.verify(store, more=count)
    with golden.open() as store:
        golden.verify(store, more=count)


def test_its_index_is_built_anew(golden: Golden) -> None:
    golden.open().close()
    shutil.rmtree(golden.path / "index")
    with golden.open() as store:
        golden.verify(store)
        report = rebuild(store)
        assert (report.deliveries, report.damage) == (len(golden.deliveries), [])
        golden.verify(store)
    assert mailkeep("rebuild", "--store", golden.path).code == 0


def test_reading_changes_no_pack(golden: Golden) -> None:
    before = {path: path.read_bytes() for path in golden.packs}
    with golden.open() as store:
        golden.verify(store)
    assert {path: path.read_bytes() for path in golden.packs} == before


def of_version(pack: Path, version: int) -> None:
    """The pack as if a version to come had written it: its header says so, and its sum is right."""
    data = bytearray(pack.read_bytes())
    data[8:10] = version.to_bytes(2, "little")
    data[PACK_HEADER_BYTES - 16 : PACK_HEADER_BYTES] = blake3(bytes(data[: PACK_HEADER_BYTES - 16])).digest(
        16
    )
    assert decode_pack_header(bytes(data)).version == version
    pack.write_bytes(data)


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_pack_from_a_later_version_is_refused(golden: Golden, which: str, indexed: bool) -> None:
    """In words, and without a byte being changed: it is no damage."""
    if indexed:
        golden.open().close()
    written = [pack for pack in golden.packs if int(pack.stem) < FIRST_COMPACTED]
    pack = golden.packs[0] if which == "first" else written[-1]  # what is indexed is not read again at once
    if indexed and which == "first":
        shutil.rmtree(golden.path / "index")
    of_version(pack, FORMAT_VERSION + 1)
    before = {path: path.read_bytes() for path in golden.packs}
    with (
        pytest.raises(FormatError, match=f"format version {FORMAT_VERSION + 1}"),
        golden.open() as store,
    ):
        store.start_writing(STREAM, reserve_bytes=0)
    ran = mailkeep("check", "--store", golden.path)
    assert ran.code == FormatError.exit_code, ran.err
    assert "at least as new" in ran.err
    assert {path: path.read_bytes() for path in golden.packs} == before


def test_compaction_refuses_a_pack_from_a_later_version(golden: Golden) -> None:
    with golden.open() as store:
        close_open_packs(store)
    of_version(golden.packs[0], FORMAT_VERSION + 1)
    before = {path: path.read_bytes() for path in golden.packs}
    ran = mailkeep("compact", "--all", "--store", golden.path)
    assert ran.code == FormatError.exit_code, (ran.out, ran.err)
    assert {path: path.read_bytes() for path in golden.packs} == before


def test_a_store_from_a_later_version_is_refused(golden: Golden) -> None:
    identity = golden.path / "mailkeep.store"
    told = json.loads(identity.read_text())
    identity.write_text(json.dumps({**told, "format": FORMAT_VERSION + 1}))
    with pytest.raises(FormatError):
        golden.open()
