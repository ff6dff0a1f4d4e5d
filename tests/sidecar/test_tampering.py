"""Tampering by somebody with write access and all knowledge of the format, against a head kept elsewhere.

    mail ──► store ──► mailkeep head ──► kept          attacker ──► store ──► mailkeep check --since-head

Each attack leaves a store that is sound by all its checksums: `check` alone believes it, which is tested,
too, or the attack would prove nothing. What would break these: anything in the history that no leaf covers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from store import layout, records
from store.compact import CompactOptions, Compactor, close_open_packs
from store.deliveries import Query
from store.ids import DeliveryId, now_us
from store.layout import NewChunk
from store.log import StreamLog
from store.notes import SignKey
from store.records import Content, Delivery, Entry, EntryType, Erasure, Expiry, Outcome, Outcomes, Stub
from store.retention import Rule, erase, expire, record
from store.scan import initial_state
from store.sealing import Keyring, new_identity, recipients_of
from store.segments import pack_path
from store.store import Store
from tests.support.attacker import Attacker, Written
from tests.support.mailstore import MESSAGE, NOON_US, SECOND_US, Ran, mailkeep, written

COUNT = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a few packs, with a head kept beside it, and some mail after that."""
    path = tmp_path / "store"
    with written(path) as fill:
        for n in range(COUNT):
            fill.put(MESSAGE + b"%d" % n, subject=b"number %d" % n, replies=(b"250 ok",))
            if n % 15 == 14:
                fill.store.writer.roll()
    assert mailkeep("head", "--store", path, "--output", tmp_path / "head.txt").code == 0
    shutil.copytree(path, tmp_path / "before")
    with written(path) as fill:
        for n in range(5):
            fill.put(MESSAGE + b"later %d" % n, time_us=NOON_US + (COUNT + n) * SECOND_US)
    return path


def since(path: Path, *more: str | Path) -> Ran:
    return mailkeep("check", "--store", path, "--since-head", path.parent / "head.txt", *more)


def history(ran: Ran) -> list[str]:
    """What was found of the history."""
    assert ran.code == 1, ran.out + ran.err
    return [line for line in ran.lines if line.startswith("history: ")]


def entries(groups: list[Written]) -> list[Entry]:
    return [entry for group in groups for entry in group.entries]


def number_of(groups: list[Written], number: int) -> tuple[Written, int, Delivery]:
    """The n-th delivery: its group, its place there, itself."""
    for group in groups:
        for at, entry in enumerate(group.entries):
            if isinstance(entry, Delivery):
                if number == 0:
                    return group, at, entry
                number -= 1
    raise AssertionError


def removed(groups: list[Written]) -> None:
    """A message with all that was recorded of it."""
    _, _, gone = number_of(groups, 17)
    for group in groups:
        group.entries = [
            entry
            for entry in group.entries
            if not (
                isinstance(entry, Content | Delivery)
                and gone.content in {entry.id, getattr(entry, "content", b"")}
            )
            and getattr(entry, "delivery", b"") != gone.id
        ]


def altered(groups: list[Written]) -> None:
    group, at, delivery = number_of(groups, 17)
    group.entries[at] = msgspec.structs.replace(delivery, subject=b"another")


def moved_in_time(groups: list[Written]) -> None:
    group, at, delivery = number_of(groups, 3)
    group.entries[at] = msgspec.structs.replace(delivery, time_us=delivery.time_us + 1)


def reordered(groups: list[Written]) -> None:
    one, other = number_of(groups, 5)[0], number_of(groups, 30)[0]
    one.entries, other.entries = other.entries, one.entries


def swapped_packs(groups: list[Written]) -> None:
    """The first two packs change places."""
    ends = [n for n, group in enumerate(groups) if group.ends]
    one, two = groups[: ends[0] + 1], groups[ends[0] + 1 : ends[1] + 1]
    groups[: ends[1] + 1] = two + one


def inserted(groups: list[Written]) -> None:
    group, at, delivery = number_of(groups, 10)
    other = msgspec.structs.replace(delivery, id=b"\x07" * 8 + delivery.id[8:])
    group.entries.insert(at + 1, other)


def truncated(groups: list[Written]) -> None:
    del groups[-12:]


def emptied(groups: list[Written]) -> None:
    del groups[1:]


def rebuilt_to_the_same_length(groups: list[Written]) -> None:
    """Another history of as many facts: one message less, another one more."""
    _, _, last = number_of(groups, COUNT - 1)
    removed(groups)
    extra = [msgspec.structs.replace(last, id=bytes([n] * 8) + last.id[8:]) for n in range(2)]
    groups[-1].entries += extra


def without_its_replies(groups: list[Written]) -> None:
    _, _, delivery = number_of(groups, 17)
    for group in groups:
        group.entries = [e for e in group.entries if getattr(e, "delivery", b"") != delivery.id]


REWRITES = [
    removed,
    altered,
    moved_in_time,
    reordered,
    swapped_packs,
    inserted,
    truncated,
    emptied,
    rebuilt_to_the_same_length,
    without_its_replies,
]


def test_what_nobody_touched_is_as_it_was(path: Path) -> None:
    ran = since(path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].startswith("read 85 facts against the head of ")
    assert "nothing wrong" in ran.lines[-1]
    shutil.rmtree(path / "index")
    assert since(path, "--read-data").code == 0
    Attacker(path).rewrite(lambda groups: None)
    assert since(path).code == 0, "the attacker can write what was there, too"


@pytest.mark.parametrize("change", REWRITES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("as_segment", [False, True])
def test_a_history_rewritten(path: Path, change: Callable[[list[Written]], None], as_segment: bool) -> None:
    Attacker(path).rewrite(change, as_segment=as_segment)
    assert mailkeep("check", "--store", path, "--read-data").code == 0, "it is sound, or it shows nothing"
    found = history(since(path))
    assert len(found) == 1
    assert "altered, removed or reordered" in found[0] or "cut or rolled back" in found[0]
    consistent = mailkeep("head", "--store", path, "--consistent-with", path.parent / "head.txt")
    assert consistent.code == 1
    assert "are not what they were" in consistent.out or "cut or rolled back" in consistent.out


@pytest.mark.parametrize("change", REWRITES, ids=lambda change: change.__name__)
def test_a_history_rewritten_beside_its_index(path: Path, change: Callable[[list[Written]], None]) -> None:
    """The index is left, and remembers."""
    shutil.copytree(path / "index", path.parent / "index")
    Attacker(path).rewrite(change)
    shutil.rmtree(path / "index", ignore_errors=True)
    shutil.copytree(path.parent / "index", path / "index")
    assert history(since(path))


def test_rolled_back_to_a_copy(path: Path) -> None:
    """What came after the head goes unseen, until a head knows it."""
    later = path.parent / "later.txt"
    mailkeep("head", "--store", path, "--output", later)
    shutil.rmtree(path)
    shutil.copytree(path.parent / "before", path)
    assert since(path).code == 0
    ran = mailkeep("check", "--store", path, "--since-head", later)
    assert "has 80 facts, and the head vouches for 85: cut or rolled back" in history(ran)[0]


@pytest.mark.parametrize("at", [-100, -200, -400, -600, -800])
def test_a_last_group_spoilt_as_a_crash_might(path: Path, at: int) -> None:
    """Where the index is gone nothing tells a reader that it had been whole."""
    shutil.rmtree(path)
    shutil.copytree(path.parent / "before", path)
    newest = max(path.glob("streams/host/*.pack"))
    data = bytearray(newest.read_bytes())
    data[at] ^= 1
    newest.write_bytes(data)
    Attacker(path).forget()
    assert history(since(path))


def test_packs_that_change_names(path: Path) -> None:
    one, two = (pack_path(path / "streams/host", n) for n in (1, 2))
    one.rename(path / "aside")
    two.rename(one)
    (path / "aside").rename(two)
    Attacker(path).forget()
    assert history(since(path))


def test_a_stream_gone_or_made_anew(path: Path) -> None:
    shutil.rmtree(path / "streams/host")
    Attacker(path).forget()
    assert history(since(path)) == ["history: host: stream is missing: the head vouches for 80 facts of it"]
    with written(path) as fill:
        for n in range(100):
            fill.put(b"another life %d" % n)
    assert "altered, removed or reordered" in history(since(path))[0]


def test_another_store(path: Path) -> None:
    about = path / "mailkeep.store"
    shutil.rmtree(path)
    with written(path) as fill:
        fill.put()
    assert about.exists()
    assert "the head is of another store" in history(since(path))[0]


# -- the messages, which each delivery's content id vouches for


def other_bytes(groups: list[Written]) -> None:
    """A message says something else; what is recorded of it does not."""
    group, _, _ = number_of(groups, 17)
    (block,) = group.blocks
    ((chunk, _, size, kind),) = layout.chunk_table(layout.RecordType.CHUNKS, block)
    group.blocks = [layout.encode_chunks([NewChunk(chunk, b"x" * size, kind)], 3)]


def no_bytes(groups: list[Written]) -> None:
    """A message is gone; what is recorded of it is not."""
    group, _, gone = number_of(groups, 17)
    group.blocks = []
    group.entries = [e for e in group.entries if not (isinstance(e, Content) and e.id == gone.content)]


@pytest.mark.parametrize(("change", "kind"), [(other_bytes, "content: "), (no_bytes, "missing: ")])
def test_message_bytes(path: Path, change: Callable[[list[Written]], None], kind: str) -> None:
    Attacker(path).rewrite(change)
    ran = since(path, "--read-data")
    assert ran.code == 1
    found = [line for line in ran.lines if not line.startswith(" ")]
    assert any(line.startswith(kind) for line in found), ran.out
    assert not any(line.startswith("history: ") for line in found)


# -- erasure, the one exception


def stubbed(attacker: Attacker, number: int, *, name: bytes = b"", kind: int = 0) -> Delivery:
    """All that was recorded of a delivery is replaced by stubs with its own leaves, which fit tree and chain;
    they may name another delivery, and be of another kind."""
    groups = attacker.read()
    _, _, gone = number_of(groups, number)

    def left(entry: Entry) -> Entry:
        about = entry.id if isinstance(entry, Delivery) else getattr(entry, "delivery", b"")
        if about != gone.id or isinstance(entry, Stub | Erasure):
            return entry
        leaf = records.leaf(records.encode(entry))
        return Stub(leaf=leaf, delivery=DeliveryId(name or gone.id), type=kind or records.type_of(entry))

    for group in groups:
        group.entries = [
            left(e) for e in group.entries if not (isinstance(e, Content) and e.id == gone.content)
        ]
    attacker.write(groups)
    return gone


def erased(path: Path, *ids: DeliveryId) -> None:
    """By somebody who may, and gone from the packs."""
    with Store.open(path) as store:
        store.start_writing("operator")
        erase(store, ids, owner="dpo", reason="request 88")
        store.settle_index()
        close_open_packs(store)
        assert Compactor(store, CompactOptions(everything=True)).run().dropped_messages == len(ids)


def ids_of(path: Path) -> list[DeliveryId]:
    with Store.open(path) as store:
        return [stored.delivery.id for stored in store.deliveries(Query(newest_first=False))]


def test_a_stub_that_nothing_justifies(path: Path) -> None:
    gone = stubbed(Attacker(path), 17)
    (found,) = history(since(path))[:1]
    assert gone.id.hex()[:16] in found
    assert "no erasure or expiry names it" in found


def test_an_erasure_is_seen_by_whom_and_when(path: Path) -> None:
    ids = ids_of(path)
    erased(path, ids[0], ids[-1])
    ran = since(path, "--read-data")
    assert ran.code == 0, ran.out
    assert "  since then erased: 2 deliveries, 3 facts, " in ran.out
    assert " by dpo: request 88" in ran.out
    told = since(path, "--json").objects[-1]["since_head"]
    assert told["facts_gone"] == 3
    (one,) = told["removed"]
    assert (one["what"], one["owner"], one["deliveries"]) == ("erased", "dpo", 2)
    assert mailkeep("head", "--store", path, "--consistent-with", path.parent / "head.txt").code == 0


def test_an_expiry_is_seen_too(path: Path) -> None:
    with Store.open(path) as store:
        store.start_writing("operator")
        rules = [Rule(to="anna@example.org", keep_us=1)]
        assert expire(store, rules, owner="clock").deliveries == COUNT + 5
        store.settle_index()
        close_open_packs(store)
        assert Compactor(store, CompactOptions(everything=True)).run().dropped_messages
    ran = since(path)
    assert ran.code == 0, ran.out
    assert f"  since then expired: {COUNT + 5} deliveries, " in ran.out
    assert " by clock: to anna@example.org, keep 1us" in ran.out


def test_replies_that_come_after_the_erasure(path: Path) -> None:
    """The mailbox server has not answered yet when somebody erases the message."""
    with written(path) as fill:
        late = fill.put(b"on its way", time_us=now_us())
    mailkeep("head", "--store", path, "--output", path.parent / "head.txt")
    with Store.open(path) as store:
        store.start_writing("operator")
        erase(store, [late.id], owner="dpo", reason="at once")
    with written(path) as fill:
        fact = Outcomes(delivery=late.id, time_us=now_us(), outcomes=(Outcome(0, b"250 ok"),))
        record(fill.store, [fact])
        close_open_packs(fill.store)
        fill.store.writer.roll()
        Compactor(fill.store, CompactOptions(everything=True)).run()
    ran = since(path, "--json")
    assert ran.code == 0, ran.out
    assert ran.objects[-1]["since_head"]["facts_gone"] == 1, "what came after the removal stays"


def test_an_erasure_by_the_attacker_shows(path: Path) -> None:
    """He may erase as anybody may who can write; but not in silence."""
    attacker = Attacker(path)
    gone = stubbed(attacker, 17)
    groups = attacker.read()
    names = b"".join(
        entry.leaf[: records.LEAF_NAME_BYTES]
        for entry in entries(groups)
        if isinstance(entry, Stub) and entry.delivery == gone.id
    )
    forged = Erasure(
        delivery=gone.id, time_us=now_us(), owner="nobody", reason="none", content=b"x" * 16, facts=names
    )
    groups[-1].entries.append(forged)
    attacker.write(groups)
    ran = since(path)
    assert ran.code == 0, ran.out
    assert "  since then erased: 1 deliveries, 2 facts, " in ran.out
    assert " by nobody: none" in ran.out


@pytest.mark.parametrize("kind", [EntryType.DELIVERY, EntryType.OUTCOMES, EntryType.REPLAY])
def test_a_message_gone_in_the_name_of_another_that_was_erased(path: Path, kind: int) -> None:
    first = ids_of(path)[0]
    erased(path, first)
    mailkeep("head", "--store", path, "--output", path.parent / "head.txt")
    assert since(path).code == 0
    stubbed(Attacker(path), 17, name=first, kind=kind)
    assert mailkeep("check", "--store", path).code == 0, "it is sound, or it shows nothing"
    (found,) = history(since(path))
    assert first.hex()[:16] in found
    assert "no erasure or expiry names it" in found


# -- the head itself


def test_a_head_that_somebody_altered(path: Path, tmp_path: Path) -> None:
    signing, public = tmp_path / "head.key", tmp_path / "head.key.pub"
    assert mailkeep("head", "keygen", signing, "--name", "mx1").code == 0
    assert (signing.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    head = tmp_path / "head.txt"
    assert mailkeep("head", "--store", path, "--output", head, "--sign", signing).code == 0
    assert since(path, "--key", public).code == 0
    assert mailkeep("head", "--verify", head, "--key", public.read_text().strip()).code == 0
    Attacker(path).rewrite(altered)
    forged = mailkeep("head", "--store", path).out
    _, empty, signatures = head.read_text().rpartition("\n\n")
    head.write_text(forged + "\n" + signatures if empty else forged)
    ran = since(path, "--key", public)
    assert (ran.code, ran.out) == (1, "")
    assert "the signature of mx1 is not over this text" in ran.err
    head.write_text(SignKey.generate("mx1").sign(forged))
    ran = since(path, "--key", public)
    assert ran.code == 1
    assert "is not signed by mx1" in ran.err
    assert since(path).code == 0, (
        "without a key the forged head is believed: keep the key, or the head, elsewhere"
    )


def all_stubbed(groups: list[Written], name: DeliveryId) -> bytes:
    """Every message but one becomes stubs, all in the name of that one; what their leaves are called."""
    names = b""
    for group in groups:
        kept: list[Entry] = []
        for entry in group.entries:
            if isinstance(entry, Content):
                continue
            if isinstance(entry, Delivery | Outcomes):
                leaf = records.leaf(records.encode(entry))
                kind = int(EntryType.OUTCOMES)
                if isinstance(entry, Delivery) and entry.id == name:
                    kind = int(EntryType.DELIVERY)
                kept.append(Stub(leaf=leaf, delivery=name, type=kind))
                names += leaf[: records.LEAF_NAME_BYTES]
            else:
                kept.append(entry)
        group.entries = kept
    return names


def test_many_messages_gone_in_the_name_of_one_are_counted(path: Path) -> None:
    """No hash covers in whose name a fact is gone; so the count of facts tells."""
    groups = Attacker(path).read()
    _, _, one = number_of(groups, 3)
    names = all_stubbed(groups, one.id)
    removal = Erasure(delivery=one.id, time_us=now_us(), owner="dpo", reason="request 88", facts=names)
    groups.append(Written(entries=[removal]))
    Attacker(path).write(groups)
    told = next(line for line in since(path).lines if "since then" in line)
    assert f"1 deliveries, {len(names) // records.LEAF_NAME_BYTES} facts" in told
    assert len(names) // records.LEAF_NAME_BYTES > 70


@pytest.mark.parametrize("deliveries", [(), None], ids=["names nobody", "names one"])
def test_a_removal_that_does_not_name_what_it_removed(path: Path, deliveries: tuple[()] | None) -> None:
    groups = Attacker(path).read()
    _, _, one = number_of(groups, 3)
    all_stubbed(groups, one.id)
    ids = (one.id,) if deliveries is None else deliveries
    removal = Expiry(time_us=now_us(), rule="keep 1y", owner="scheduler", deliveries=ids)
    groups.append(Written(entries=[removal]))
    Attacker(path).write(groups)
    assert any("do not name what they removed" in line for line in history(since(path)))


def test_a_stub_in_the_name_of_another_than_its_removal(path: Path) -> None:
    groups = Attacker(path).read()
    _, _, one = number_of(groups, 3)
    _, _, other = number_of(groups, 4)
    names = all_stubbed(groups, one.id)
    removal = Erasure(delivery=other.id, time_us=now_us(), owner="dpo", reason="request 88", facts=names)
    groups.append(Written(entries=[removal]))
    Attacker(path).write(groups)
    assert any("no erasure or expiry names it" in line for line in history(since(path)))


def test_true_leaves_beside_sealed_rubbish(path: Path) -> None:
    """Somebody seals nothing, for a key of his own, and writes the leaves of the history beside it."""
    attacker = Attacker(path)
    groups = attacker.read()
    for old in attacker.directory.glob("*.pack"):
        old.unlink()
    attacker.forget()
    log = StreamLog(
        attacker.directory, attacker.about.id, initial_state(attacker.about.id, "host"), lock=None,
        new_pack=True, keyring=Keyring(recipients_of([new_identity()[1]])),
    )  # fmt: skip
    for group in groups:
        facts = [data for entry in group.entries if records.is_fact(data := records.encode(entry))]
        leaves = [records.leaf(fact) for fact in facts]
        rubbish = layout.encode_entries([b"\x01rubbish"], 3)
        where = log._append(layout.RecordType.ENTRIES, rubbish, leaves)
        log._leaves += [(leaf, where) for leaf in leaves]
        log.commit()
    log.close()
    found = history(since(path))
    assert any("only their leaves are there" in line for line in found)
