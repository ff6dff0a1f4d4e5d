"""Rules decide, holds win, what is dropped is gone from every look, and all of it stands in the log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store import looks, retention
from store.check import Checked, check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query, RemovedError
from store.errors import HeldError, NotFoundError
from store.filters import Filter
from store.ids import ContentId, DeliveryId, content_id, now_us
from store.places import Group
from store.records import Delivery, Entry, Envelope, Erasure, Expiry, Hold, Leg, Recipient
from store.retention import (
    HoldNameError,
    NoHoldError,
    Rule,
    deciding,
    direction_of,
    due,
    erase,
    expire,
    expires_us,
    holds_in_force,
    place_hold,
    release_hold,
)
from store.scan import initial_state, scan_groups
from store.store import Store
from tests.support.mailstore import Filler

DAY_US = 86_400_000_000
NOW_US = 1_774_958_400_000_000
FOREVER = None


def delivery(
    *to: bytes, leg: Leg = Leg.LMTP, sender: bytes = b"bert@example.com", **attributes: bytes
) -> Delivery:
    return Delivery(
        id=DeliveryId(bytes(16)), time_us=NOW_US, leg=leg, content=ContentId(bytes(32)), size=1,
        envelope=Envelope(sender, tuple(map(Recipient, to))), attributes=attributes,
    )  # fmt: skip


def rules(*written: tuple[str, int | None]) -> list[Rule]:
    """Rules as `to=… sender=…` with days."""
    return [
        Rule(
            **dict(word.split("=") for word in conditions.split()),
            keep_us=None if days is None else days * DAY_US,
        )
        for conditions, days in written
    ]


ANNA, BOSS, ELSE = b"anna@example.org", b"boss@example.org", b"emil@example.net"


@pytest.mark.parametrize(
    ("written", "mail", "days"),
    [
        ([], delivery(ANNA), FOREVER),
        ([("", 7)], delivery(ANNA), 7),
        ([("", FOREVER)], delivery(ANNA), FOREVER),
        ([("to=@example.org", 7)], delivery(ANNA), 7),
        ([("to=@example.org", 7)], delivery(ELSE), FOREVER),
        # the first that matches
        ([("to=boss@example.org", FOREVER), ("to=@example.org", 7)], delivery(BOSS), FOREVER),
        ([("to=boss@example.org", FOREVER), ("to=@example.org", 7)], delivery(ANNA), 7),
        ([("to=@example.org", 7), ("to=boss@example.org", FOREVER)], delivery(BOSS), 7),
        ([("to=a*@example.org", 3), ("", 9)], delivery(ANNA), 3),
        # several recipients: as long as one of them demands
        ([("to=boss@example.org", 90), ("to=@example.org", 7)], delivery(ANNA, BOSS), 90),
        ([("to=boss@example.org", FOREVER), ("to=@example.org", 7)], delivery(ANNA, BOSS), FOREVER),
        ([("to=@example.org", 7)], delivery(ANNA, ELSE), FOREVER),
        ([("to=@example.org", 7), ("", 3)], delivery(ANNA, ELSE), 7),
        ([("to=@example.org", 7), ("to=*", 3)], delivery(), FOREVER),
        ([("to=@example.org", 7), ("", 3)], delivery(), 3),
        # sender, leg
        ([("sender=@example.com", 5)], delivery(ANNA), 5),
        ([("sender=<>", 5)], delivery(ANNA), FOREVER),
        ([("sender=<>", 5)], delivery(ANNA, sender=b""), 5),
        ([("leg=milter", 5)], delivery(ANNA), FOREVER),
        ([("leg=lmtp to=@example.org", 5)], delivery(ANNA), 5),
        ([("leg=import", 5)], delivery(ANNA, leg=Leg.IMPORT), 5),
        # direction
        ([("direction=in", 5)], delivery(ANNA), 5),
        ([("direction=out", 5)], delivery(ANNA), FOREVER),
        ([("direction=out", 5)], delivery(ELSE, leg=Leg.MILTER, auth_authen=b"anna"), 5),
        ([("direction=in", 5)], delivery(ELSE, leg=Leg.MILTER, auth_authen=b"anna"), FOREVER),
        ([("direction=in", 5), ("", 8)], delivery(ANNA, leg=Leg.IMPORT), 8),
    ],
)
def test_rules(written: list[tuple[str, int | None]], mail: Delivery, days: int | None) -> None:
    expected = None if days is None else NOW_US + days * DAY_US
    assert expires_us(mail, rules(*written)) == expected
    decided = deciding(mail, rules(*written))
    assert (decided.keep_us if decided else None) == (None if days is None else days * DAY_US)


@pytest.mark.parametrize(
    ("attributes", "direction"),
    [
        ({"auth_authen": b"anna", "client_addr": b"192.0.2.1"}, "out"),
        ({"auth_authen": b"", "client_addr": b"192.0.2.1"}, "in"),
        ({"client_addr": b"127.0.0.1"}, "out"),
        ({"client_addr": b"127.8.0.1"}, "out"),
        ({"client_addr": b"::1"}, "out"),
        ({"client_addr": b"IPv6:::1"}, "out"),
        ({"client_addr": b"2001:db8::1"}, "in"),
        ({"client_addr": b"\xff"}, None),
        ({}, None),
    ],
)
def test_directions_at_the_milter(attributes: dict[str, bytes], direction: str | None) -> None:
    assert direction_of(delivery(ANNA, leg=Leg.MILTER, **attributes)) == direction


def test_a_rule_in_words() -> None:
    assert str(Rule(to="@a.b", direction="in", keep_us=90 * DAY_US)) == "to @a.b, direction in, keep 90d"
    assert [str(Rule(keep_us=us)) for us in (None, 730 * DAY_US, 5_400_000_000, 1)] == [
        "keep forever",
        "keep 2y",
        "keep 90m",
        "keep 1us",
    ]


# -- with a store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, create=True) as opened:
        opened.start_writing("host", pack_bytes=1 << 16)
        yield opened


def put(store: Store, age_days: float, message: bytes = b"", **how: Any) -> Delivery:
    """A delivery of that age, seen from NOW_US."""
    time_us = NOW_US - round(age_days * DAY_US)
    made = Filler(store).put(message or b"Subject: %d\r\n\r\nbody\r\n" % time_us, time_us=time_us, **how)
    store.settle_index()
    return made


def seen(store: Store, as_of_us: int | None = None) -> list[DeliveryId]:
    query = Query(newest_first=False) if as_of_us is None else Query(newest_first=False, as_of_us=as_of_us)
    return [found.delivery.id for found in store.deliveries(query)]


def facts(store: Store, kind: type[Entry]) -> list[Any]:
    """The facts of a kind in the log itself."""
    found = []
    for name in store.view.names():
        start = initial_state(store.id, name)
        for group in scan_groups(store.path / "streams" / name, store.id, name, start):
            if isinstance(group, Group):
                found += [entry for entry, _ in group.entries if isinstance(entry, kind)]
    return found


def dues(store: Store, *written: tuple[str, int | None]) -> list[DeliveryId]:
    return [one.delivery.id for one in due(store, rules(*written), NOW_US)]


def test_what_is_due_in_order_of_time(store: Store) -> None:
    old, older = put(store, 10), put(store, 20)
    put(store, 6.999)
    on_time = put(store, 7)
    board = put(store, 30, to=[BOSS])
    shared = put(store, 30, to=[BOSS, ANNA])
    everything = [("to=boss@example.org", 29), ("to=anna@example.org", 7)]
    both = dues(store, *everything)
    assert both[2:] == [older.id, old.id, on_time.id]
    assert set(both[:2]) == {board.id, shared.id}
    assert dues(store) == []
    assert dues(store, ("", FOREVER)) == []
    assert dues(store, ("to=boss@example.org", 31), ("to=anna@example.org", 7)) == both[2:]
    assert dues(store, ("to=anna@example.org", FOREVER), ("", 1)) == [board.id]
    assert dues(store, ("to=@example.org", 7)) == both, "by addresses or by looking at all: the same"


@pytest.mark.parametrize("ids_per_look", [1, 3, 500])
def test_young_mail_and_other_peoples_is_not_even_loaded(
    store: Store, ids_per_look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "IDS_PER_LOOK", ids_per_look)
    old = [put(store, 40 + n).id for n in range(3)][::-1]
    others = [put(store, 50 + n, to=[ELSE]).id for n in range(3)][::-1]
    for n in range(5):
        put(store, n)
    loaded: list[DeliveryId] = []
    load = store.delivery
    monkeypatch.setattr(store, "delivery", lambda id_, *more: loaded.append(id_) or load(id_, *more))  # type: ignore[func-returns-value]  # a spy
    assert dues(store, ("to=anna@example.org", 30)) == old
    assert loaded == old, "an address is looked up"
    loaded.clear()
    assert dues(store, ("to=@example.org", 30), ("to=emil@example.net", 60)) == old
    assert loaded == others + old, "the shortest time that is asked of everybody"
    loaded.clear()
    assert dues(store, ("to=@example.org", 45), ("to=emil@example.net", 51)) == [*others[:2]]
    assert dues(store) == []
    assert len(loaded) == len(others)


def test_expiry_is_recorded_and_seen_everywhere(store: Store, path: Path) -> None:
    gone = [put(store, 10 + n, subject=b"x").id for n in range(3)]
    kept = put(store, 1).id
    before_us = now_us()
    report = expire(store, rules(("to=@example.org", 7)), owner="me", at_us=NOW_US)
    assert {rule: gone.deliveries for rule, gone in report.rules.items()} == {"to @example.org, keep 7d": 3}
    assert (report.deliveries, report.held) == (3, 0)
    (fact,) = facts(store, Expiry)
    assert (fact.rule, fact.owner, set(fact.deliveries)) == ("to @example.org, keep 7d", "me", set(gone))
    assert before_us <= fact.time_us <= now_us()
    assert seen(store) == [kept]
    with pytest.raises(RemovedError, match=r"has expired on .* by me: to @example.org, keep 7d"):
        store.delivery(gone[0])
    assert set(seen(store, before_us)) == {*gone, kept}, "as it stood then"
    assert store.delivery(gone[0], before_us).delivery.id == gone[0]
    assert seen(store, now_us()) == [kept]
    again = expire(store, rules(("to=@example.org", 7)), owner="me", at_us=NOW_US)
    assert (again.deliveries, len(facts(store, Expiry))) == (0, 1)


def test_no_rules_write_nothing(store: Store) -> None:
    put(store, 10_000)
    state = store.state("host")
    assert expire(store, [], owner="me").deliveries == 0
    assert expire(store, rules(("", FOREVER)), owner="me").deliveries == 0
    assert store.state("host") == state


def test_stopped_in_the_middle_and_begun_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 4)
    monkeypatch.setattr(retention, "_STEP", 1)
    everything = {put(store, 100 - n, to=[(ANNA, ELSE)[n % 2]]).id for n in range(10)}
    two = rules(("to=@example.org", 7), ("to=@example.net", 8))
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        expire(store, two, owner="me", at_us=NOW_US, step=step)
    first = {id_ for fact in facts(store, Expiry) for id_ in fact.deliveries}
    assert len(first) == 4, "the batch that was written stays written"
    report = expire(store, two, owner="me", at_us=NOW_US)
    assert report.deliveries == 6
    written = [id_ for fact in facts(store, Expiry) for id_ in fact.deliveries]
    assert sorted(written) == sorted(everything), "each once"
    assert max(len(fact.deliveries) for fact in facts(store, Expiry)) <= 4


def test_a_hold_wins_over_expiry_now_and_in_future(store: Store) -> None:
    held = put(store, 10)
    free = put(store, 10, to=[ELSE])
    place_hold(store, "case", Filter(to="anna@example.org"), owner="law", reason="suit")
    later = put(store, 9)
    week = rules(("", 7))
    assert {(one.delivery.id, one.hold.name if one.hold else None) for one in due(store, week, NOW_US)} == {
        (held.id, "case"),
        (later.id, "case"),
        (free.id, None),
    }
    report = expire(store, week, owner="me", at_us=NOW_US)
    assert (report.deliveries, report.held) == (1, 2)
    assert seen(store) == [held.id, later.id]
    release_hold(store, "case", owner="law", reason="settled")
    assert expire(store, week, owner="me", at_us=NOW_US).deliveries == 2
    assert seen(store) == []


def test_a_hold_placed_while_expiry_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 2)
    for n in range(6):
        put(store, 20 - n)
    dropped = []

    def progress(count: int) -> None:
        dropped.append(count)
        if len(dropped) == 1:
            place_hold(store, "case", Filter(to="@example.org"), owner="law", reason="suit")

    report = expire(store, rules(("", 7)), owner="me", at_us=NOW_US, progress=progress)
    assert (report.deliveries, report.held) == (2, 4)
    assert len(seen(store)) == 4


def test_names_of_holds(store: Store) -> None:
    for name in ("", "a b", "-x", "x" * 64, "a/b", "ä"):
        with pytest.raises(HoldNameError, match="cannot name a hold"):
            place_hold(store, name, Filter(to="*"), owner="o", reason="r")
    with pytest.raises(NoHoldError, match="there is none"):
        release_hold(store, "case", owner="o", reason="r")
    place_hold(store, "case", Filter(to="*"), owner="o", reason="r")
    with pytest.raises(HoldNameError, match="in force already"):
        place_hold(store, "case", Filter(to="x@y"), owner="o", reason="r")
    release_hold(store, "case", owner="o", reason="r")
    with pytest.raises(NoHoldError, match="released before"):
        release_hold(store, "case", owner="o", reason="r")
    assert holds_in_force(store) == []
    place_hold(store, "case", Filter(to="x@y"), owner="o2", reason="r2")
    (hold,) = holds_in_force(store)
    assert (hold.owner, hold.reason, hold.matches) == ("o2", "r2", {"to": "x@y"})
    assert len(facts(store, Hold)) == 3


def test_a_clock_set_back_does_not_undo_a_release(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    place_hold(store, "case", Filter(to="*"), owner="o", reason="r")
    monkeypatch.setattr(retention, "now_us", lambda: 5)
    release_hold(store, "case", owner="o", reason="r")
    assert holds_in_force(store) == []
    place_hold(store, "case", Filter(to="*"), owner="o", reason="r")
    assert len(holds_in_force(store)) == 1


def test_holds_and_removals_survive_the_index(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        expired, erased, kept = put(store, 10).id, put(store, 11, to=[ELSE]).id, put(store, 1).id
        content = store.delivery(erased).delivery.content
        erase(store, [erased], owner="me", reason="request")
        expire(store, rules(("", 7)), owner="me", at_us=NOW_US)
        place_hold(store, "case", Filter(to="@example.org", since_us=5), owner="law", reason="suit")
        place_hold(store, "old", Filter(to="*"), owner="law", reason="suit")
        release_hold(store, "old", owner="law", reason="settled")
        holds = holds_in_force(store)
    shutil.move(path / "index", path / "index.away")
    with Store.open(path) as store:
        assert holds_in_force(store) == holds
        assert seen(store) == [kept]
        for id_ in (expired, erased):
            with pytest.raises(RemovedError):
                store.delivery(id_)
        assert store.was_erased(content)


def test_erasure_leaves_a_tombstone_and_a_receipt(store: Store) -> None:
    first, second = put(store, 10, to=[ANNA, ELSE]), put(store, 9)
    before_us = now_us()
    receipt = erase(store, [first.id, second.id, first.id], owner="dpo", reason="request 88")
    assert (receipt.owner, receipt.reason) == ("dpo", "request 88")
    assert before_us <= receipt.time_us <= now_us()
    assert [(one.delivery, one.captured_us, one.recipients, one.size) for one in receipt.erased] == [
        (first.id, first.time_us, 2, first.size),
        (second.id, second.time_us, 1, second.size),
    ]
    written = {fact.delivery: fact for fact in facts(store, Erasure)}
    assert set(written) == {first.id, second.id}
    assert written[first.id].content == receipt.erased[0].tombstone == store.tombstone(first.content)
    assert (written[first.id].owner, written[first.id].reason) == ("dpo", "request 88")
    assert store.was_erased(first.content)
    assert not store.was_erased(ContentId(bytes(32)))
    assert seen(store) == []
    assert seen(store, before_us) == [], "gone at all times"
    with pytest.raises(RemovedError, match=r"was erased on .* by dpo: request 88"):
        store.delivery(first.id, before_us)
    with pytest.raises(RemovedError):
        erase(store, [first.id], owner="dpo", reason="again")
    with pytest.raises(NotFoundError):
        erase(store, [DeliveryId(bytes(16))], owner="dpo", reason="no such")


def test_nothing_is_erased_when_any_is_held(store: Store) -> None:
    free, held = put(store, 10, to=[ELSE]), put(store, 9)
    place_hold(store, "case", Filter(to="anna@example.org"), owner="law", reason="suit")
    state = store.state("host")
    with pytest.raises(
        HeldError, match=r"nothing was erased: .* under the hold case of law \(suit\)"
    ) as caught:
        erase(store, [free.id, held.id], owner="dpo", reason="request")
    assert caught.value.exit_code == 20
    assert store.state("host") == state
    assert seen(store) == [free.id, held.id]


def compacted(path: Path) -> None:
    """Everything written so far compacted; the newest pack may be open and is another."""
    with Store.open(path) as store:
        store.start_writing("host").roll()
        put(store, 0, b"the next pack\r\n")
        Compactor(store, CompactOptions(level=1, everything=True)).run()


def has(store: Store, message: bytes) -> bool:
    """Whether a message can still be put together."""
    try:
        return b"".join(store.read(content_id(message))) == message
    except NotFoundError:
        return False


def test_compaction_takes_what_is_gone_and_leaves_what_came_under_a_hold(path: Path) -> None:
    messages = [b"Subject: %d\r\n\r\n" % n + bytes([65 + n]) * 50 + b"\r\n" for n in range(4)]
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        held, gone, erased, kept = (
            put(store, age, message, to=[who])
            for age, message, who in zip((11, 10, 2, 1), messages, (ANNA, ELSE, ELSE, ANNA), strict=True)
        )
        before_us = now_us()
        assert expire(store, rules(("", 7)), owner="me", at_us=NOW_US).deliveries == 2
        erase(store, [erased.id], owner="dpo", reason="request")
        assert all(has(store, message) for message in messages), "until compaction"
        assert set(seen(store, before_us)) == {held.id, gone.id, kept.id}
        place_hold(store, "case", Filter(to="anna@example.org"), owner="law", reason="suit")
    compacted(path)
    with Store.open(path) as store:
        store.start_writing("host")
        assert [has(store, message) for message in messages] == [True, False, False, True]
        assert {one.id for one in (held, gone, erased, kept)} & set(seen(store, before_us)) == {
            held.id,
            kept.id,
        }
        with pytest.raises(RemovedError, match="has expired"):
            store.delivery(gone.id, before_us)
        with pytest.raises(RemovedError, match="was erased"):
            store.delivery(erased.id, before_us)
        assert store.was_erased(erased.content)
        release_hold(store, "case", owner="law", reason="settled")
    compacted(path)
    with Store.open(path) as store:
        assert [has(store, message) for message in messages] == [False, False, False, True]


def test_captured_in_the_same_microsecond_as_mail_that_stays(path: Path) -> None:
    """As imports are, which know whole seconds."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        put(store, 1, b"stays\r\n")
        erase(store, [put(store, 1, b"goes\r\n").id], owner="dpo", reason="request")
    compacted(path)
    with Store.open(path) as store:
        assert [has(store, message) for message in (b"stays\r\n", b"goes\r\n")] == [True, False]


def test_the_same_mail_again_after_its_erasure_and_compaction(path: Path) -> None:
    """All in one process, as in `serve`: what the writer remembers of the old pack must not be relied on."""
    message = b"Subject: again\r\n\r\n" + b"x" * 5000 + b"\r\n"
    with Store.open(path, create=True) as store:
        store.start_writing("host").roll()
        erase(store, [put(store, 2, message).id], owner="dpo", reason="request")
        store.writer.roll()
        put(store, 1, b"the next pack\r\n")
        Compactor(store, CompactOptions(level=1)).run()
        assert not has(store, message), "gone at once"
        again = put(store, 0, message)
        assert has(store, message)
    with Store.open(path) as store:
        assert store.delivery(again.id).delivery.content == again.content
        assert has(store, message)
        assert list(check(store, Checked(), read_data=True)) == []
