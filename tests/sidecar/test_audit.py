"""Why mail is in a mailbox or a store alone: a real store, and a mailbox in memory or a Maildir on disk.

What would break these: a hole that is explained away, mail that came while one looked taken for one, a wrong
login that keeps the others back, an erased message taken in again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.audit import Account, Auditor, Kind
from sidecar.audit_run import AuditRun
from sidecar.config import Config, ConfigError
from sidecar.identity import write_identity
from sidecar.intake import Intake
from sidecar.live.mailbox import LiveError, LiveMessage, LoginError
from sidecar.live.maildir import Maildir
from sidecar.sections import ImapConfig
from store.deliveries import Query
from store.records import Delivery, Leg, Replay
from store.retention import Rule, erase, expire
from store.store import Store
from store.writer import Submission
from tests.live.test_matching import captured, mail
from tests.store.conftest import put_message
from tests.support.live_server import LiveServer
from tests.support.mailstore import NOON_US, SECOND_US, Filler, mailkeep, written

ANNA, BERT = b"anna@example.org", b"bert@example.org"
DAY_US = 86_400 * SECOND_US
OK, NO = (b"250 2.0.0 saved",), (b"550 5.1.1 no such user",)


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[Filler]:
    with written(tmp_path / "store") as made:
        yield made


def capture(filler: Filler, raw: bytes, **how: Any) -> Delivery:
    like = captured(raw)
    how.setdefault("replies", OK)
    return filler.put(
        raw, message_id=like.message_id, subject=like.subject, header_from=like.header_from, **how
    )


def audit(filler: Filler, server: LiveServer, user: str = ANNA.decode(), **how: int) -> Account:
    filler.store.settle_index()
    auditor = Auditor(filler.store, ImapConfig(), **how)
    auditor.scan()
    return auditor.audit(user, server)


def kinds(account: Account) -> list[tuple[str, str]]:
    return sorted(
        (str(one.kind), (one.stored.delivery if one.stored else one.live).message_id.decode())  # type: ignore[union-attr]  # one of the two
        for one in account.differences
    )


def name(number: int) -> str:
    return f"<{number}@example.net>"


def test_what_was_delivered_and_is_nowhere(filler: Filler) -> None:
    server = LiveServer()
    for number, replies in ((1, OK), (2, OK), (3, NO), (4, ()), (5, (b"451 4.3.0 later",))):
        capture(filler, mail(number), replies=replies)
    server.deliver(mail(1), received_us=NOON_US)
    capture(filler, mail(2))  # twice
    capture(filler, mail(6), leg=Leg.MILTER)
    capture(filler, mail(7), leg=Leg.IMPORT, replies=())
    capture(filler, mail(8), to=(ANNA, BERT), replies=(*NO, *OK))
    account = audit(filler, server)
    assert kinds(account) == [("gone", name(2)), ("unanswered", name(4))]
    assert (account.delivered, account.present, account.missing, account.live) == (3, 1, 2, 1)
    assert kinds(audit(filler, LiveServer(), BERT.decode())) == [("gone", name(8))]


def test_put_back_and_gone_again(filler: Filler) -> None:
    delivery = capture(filler, mail(1))
    fact = Replay(
        delivery=delivery.id, time_us=NOON_US, run="r1", recipient=ANNA, downstream="x", reply=b"250 ok"
    )
    filler.store.writer.submit(Submission(entries=[fact]))
    filler.store.writer.roll()
    account = audit(filler, LiveServer())
    assert kinds(account) == [("gone-again", name(1))]
    assert account.differences[0].detail == "put back in run r1"


def test_those_who_were_refused_and_those_of_other_legs_are_not_asked_for(filler: Filler) -> None:
    capture(filler, mail(1), to=(b"Anna+x@Example.org", b"nobody@example.org"), replies=(*OK, *NO))
    capture(filler, mail(2), to=(b"far@example.com",), leg=Leg.MILTER, replies=())
    filler.store.settle_index()
    auditor = Auditor(filler.store, ImapConfig())
    assert auditor.scan() == ["anna@example.org"]
    assert auditor.login("ANNA+lists@example.org") == "anna@example.org"
    assert auditor.login("carl") == "carl"
    assert auditor.address("carl@example.org") == b"carl@example.org"
    assert auditor.address("anna@example.org") == b"anna+x@example.org"


def test_why_mail_is_not_in_the_store(filler: Filler) -> None:
    server = LiveServer(folders=("INBOX", "Sent Items", "Drafts", "Work/Sent", "Entwürfe"))
    capture(filler, mail(1))
    server.deliver(mail(1), received_us=NOON_US)
    capture(filler, mail(20), to=(BERT,))
    capture(filler, mail(21), leg=Leg.MILTER, replies=())
    capture(filler, mail(22), to=(BERT,), replies=OK)
    bare = mail(9).partition(b"\r\n")[2]
    later = NOON_US + 60 * SECOND_US
    server.deliver(mail(2), received_us=NOON_US - SECOND_US)
    server.deliver(mail(3), received_us=NOON_US - SECOND_US + 1)  # in the same second, for all we know
    server.put(bare.replace(b"<9@", b"<4@"), "Sent Items", received_us=later)
    server.put(bare.replace(b"<9@", b"<5@"), "Work/Sent", received_us=later)
    server.put(bare.replace(b"<9@", b"<6@"), "Drafts", received_us=later)
    server.put(bare.replace(b"<9@", b"<7@"), "Entwürfe", received_us=later)
    server.put(bare.replace(b"<9@", b"<8@"), received_us=later)
    server.put(mail(9), "Sent Items", received_us=later, flags=("\\Seen", "\\Draft"))
    server.deliver(mail(10), "Sent Items", received_us=later)
    for number in (20, 21, 22):
        server.deliver(mail(number), received_us=later)
    account = audit(filler, server)
    assert kinds(account) == sorted(
        [("before", name(2)), ("hole", name(3)), ("sent", name(4)), ("sent", name(5)), ("draft", name(6)),
         ("draft", name(7)), ("appended", name(8)), ("draft", name(9)), ("hole", name(10)),
         ("other", name(20)), ("other", name(21)), ("other", name(22))]
    )  # fmt: skip
    assert account.count(Kind.HOLE) == 2
    assert audit(filler, LiveServer(), "nobody").differences == []


def test_a_user_for_whom_there_is_nothing_at_all(filler: Filler) -> None:
    server = LiveServer()
    server.deliver(mail(1), received_us=NOON_US - 2 * SECOND_US)
    server.deliver(mail(2), received_us=NOON_US + DAY_US)
    assert kinds(audit(filler, server, "carl")) == [("before", name(1)), ("before", name(2))]
    capture(filler, mail(3), to=(BERT,))
    assert kinds(audit(filler, server, "carl")) == [("before", name(1)), ("hole", name(2))]


def test_what_was_erased_or_has_expired(filler: Filler) -> None:
    server = LiveServer()
    deliveries = [capture(filler, mail(number), time_us=NOON_US + number * DAY_US) for number in range(1, 5)]
    for number in range(1, 5):
        server.deliver(mail(number), received_us=NOON_US + number * DAY_US)
    no_id = mail(b"")
    deliveries.append(capture(filler, no_id))
    server.deliver(no_id, received_us=NOON_US + 10 * DAY_US)
    filler.store.settle_index()
    erase(filler.store, [deliveries[2].id, deliveries[4].id], owner="o", reason="r")
    expire(filler.store, [Rule(keep_us=DAY_US)], owner="o", at_us=NOON_US + 3 * DAY_US + 1)
    capture(filler, mail(5), time_us=NOON_US)
    account = audit(filler, server)
    assert kinds(account) == [
        ("erased", ""), ("erased", name(3)), ("expired", name(1)), ("expired", name(2)), ("gone", name(5)),
    ]  # fmt: skip


def test_another_mail_with_the_id_of_one_that_is_known_is_a_hole(filler: Filler) -> None:
    server = LiveServer()
    capture(filler, mail(1))
    server.deliver(mail(1), received_us=NOON_US)
    server.deliver(mail(1, b"quite another text than that\r\n"), received_us=NOON_US)
    assert kinds(audit(filler, server)) == [("hole", name(1))]


def test_an_interval(filler: Filler) -> None:
    server = LiveServer()
    for number in range(6):  # one a day; the odd ones are gone
        capture(filler, mail(number), time_us=NOON_US + number * DAY_US)
        if number % 2 == 0:
            server.deliver(mail(number), received_us=NOON_US + number * DAY_US)
    server.deliver(mail(7), received_us=NOON_US - DAY_US)
    server.deliver(mail(8), received_us=NOON_US + 3 * DAY_US)
    server.deliver(mail(0), received_us=NOON_US + 4 * DAY_US)  # put back
    account = audit(filler, server, since_us=NOON_US + 2 * DAY_US, until_us=NOON_US + 5 * DAY_US)
    assert kinds(account) == [("gone", name(3)), ("hole", name(8))]
    assert (account.delivered, account.live) == (3, 6)
    account = audit(filler, server, since_us=NOON_US - 2 * DAY_US, until_us=NOON_US + DAY_US)
    assert kinds(account) == [("before", name(7))]
    assert kinds(audit(filler, server, "carl", since_us=NOON_US + 3 * DAY_US)) == [
        ("hole", name(8)), *[("other", name(number)) for number in (0, 4)],
    ]  # fmt: skip
    everything = [("before", name(7)), *[("gone", name(n)) for n in (1, 3, 5)], ("hole", name(8))]
    assert kinds(audit(filler, server)) == everything
    assert kinds(audit(filler, server, until_us=NOON_US)) == [("before", name(7))]


def test_mail_that_comes_while_one_looks_is_no_hole(filler: Filler) -> None:
    class Busy(LiveServer):
        def folders(self) -> list[str]:
            if not self.commands:
                capture(filler, mail(2))
                self.deliver(mail(2), received_us=NOON_US + SECOND_US)
            return super().folders()

    capture(filler, mail(1))
    server = Busy()
    server.deliver(mail(1), received_us=NOON_US)
    account = audit(filler, server)
    assert account.live == 2
    assert account.differences == []


def test_bytes_that_are_not_the_same_and_a_date_that_is_not(filler: Filler) -> None:
    server = LiveServer()
    for number in (1, 2):
        capture(filler, mail(number, b"a\0b\r\n"))
    for number, old, new in (
        (1, b"a\0", b"a?"),
        (2, b"1 Jan 2024 00:00:00 +0000\r\nFrom", b"2 Jan 2024 00:00:00 +0000\r\nFrom"),
    ):
        server.deliver(mail(number, b"a\0b\r\n").replace(old, new), received_us=NOON_US)
    account = audit(filler, server)
    assert (account.present, account.by_headers) == (1, 1)
    assert kinds(account) == [("gone", name(2)), ("hole", name(2))]


def test_what_the_server_does_not_give_is_told_as_a_hole(filler: Filler) -> None:
    server = LiveServer()
    capture(filler, mail(1))
    server.refused = {server.deliver(mail(2), received_us=NOON_US).uid}
    server.deliver(mail(3), received_us=NOON_US)
    server.headless = {server.deliver(mail(4), received_us=NOON_US).uid}
    account = audit(filler, server)
    holes = {one.live.uid: one.detail for one in account.differences if one.live}
    assert holes == {"1": "the server does not give it", "2": "", "3": "the server does not give it"}


# -- many mailboxes


def run(
    filler: Filler, servers: dict[str, LiveServer | LiveError], connections: int = 1, **how: Any
) -> list[Account]:
    filler.store.settle_index()
    auditor = Auditor(filler.store, ImapConfig())
    users = auditor.scan()

    def open_mailbox(user: str) -> LiveServer:
        found = servers[user]
        if isinstance(found, LiveError):
            raise found
        return found

    return list(AuditRun(auditor, open_mailbox, **how).run(users, connections))


@pytest.mark.parametrize("connections", [1, 3])
def test_one_that_cannot_be_asked_does_not_keep_back_the_others(filler: Filler, connections: int) -> None:
    servers: dict[str, LiveServer | LiveError] = {}
    for number in range(9):
        capture(filler, mail(number), to=(b"user%d@example.org" % number,))
        server = LiveServer()
        server.deliver(mail(100), received_us=NOON_US + DAY_US)
        servers[f"user{number}@example.org"] = server
    servers["user3@example.org"] = LoginError("no")
    servers["user5@example.org"].down = True  # type: ignore[union-attr]  # it is a server
    accounts = run(filler, servers, connections)
    assert [account.user for account in accounts] == sorted(servers)
    assert [type(account.error) for account in accounts if account.error] == [LoginError, LiveError]
    assert sum(account.count(Kind.HOLE) for account in accounts) == 7
    assert all(account.differences == [] for account in accounts if account.error)


def test_who_stops_it_need_not_wait_for_all(filler: Filler) -> None:
    servers: dict[str, LiveServer | LiveError] = {}
    for number in range(20):
        capture(filler, mail(number), to=(b"user%02d@example.org" % number,))
        servers[f"user{number:02}@example.org"] = LiveServer(folders=[f"f{n}" for n in range(100)])

    class EnoughError(Exception):
        pass

    def stop(_number: int) -> None:
        time.sleep(0.5)  # else all are done with before anybody hears of the first
        raise EnoughError

    for connections in (1, 4):
        with pytest.raises(EnoughError):
            run(filler, servers, connections, advance=stop)
    asked = sum(server.commands > 0 for server in servers.values() if isinstance(server, LiveServer))
    assert asked < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("audit")]


def test_taking_in_what_is_lacking(filler: Filler) -> None:
    server = LiveServer(folders=("INBOX", "Sent", "Größe"))
    capture(filler, mail(2))
    erased = capture(filler, mail(1))
    erase(filler.store, [erased.id], owner="o", reason="r")
    server.deliver(mail(1), received_us=NOON_US)
    server.deliver(mail(2), received_us=NOON_US)
    hole = server.deliver(mail(3, b"x" * 100_000), "Größe", received_us=NOON_US + DAY_US)
    server.mail["Größe"][hole.uid] = (
        replace(hole, flags=("\\Seen", "$Label1")),
        server.mail["Größe"][hole.uid][1],
    )
    server.put(mail(4).partition(b"\r\n")[2], "Sent", received_us=NOON_US + DAY_US)
    server.put(mail(5), received_us=NOON_US + DAY_US, flags=("\\Draft",))
    servers: dict[str, LiveServer | LiveError] = {"anna@example.org": server}
    with Intake(filler.store) as intake:
        (account,) = run(filler, servers, intake=intake)
    assert account.imported == 2
    assert kinds(account) == [("draft", name(5)), ("erased", name(1))]
    (again,) = run(filler, servers)
    assert kinds(again) == kinds(account)
    imported = [one.delivery for one in filler.store.deliveries(Query()) if one.delivery.leg == Leg.IMPORT]
    taken = next(one for one in imported if one.message_id == name(3).encode())
    assert taken.envelope.recipients[0].address == ANNA
    assert taken.time_us // SECOND_US == (NOON_US + DAY_US) // SECOND_US
    assert taken.attributes["folder"].decode() == "Größe"
    assert taken.attributes["flags"] == b"\\Seen $Label1"
    assert b"".join(filler.store.read(taken.content)) == server.mail["Größe"][hole.uid][1]


# -- the command


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """One mail that the store has, and a hole."""
    path = tmp_path / "Maildir"
    for folder in ("cur", "new", "tmp"):
        (path / folder).mkdir(parents=True)
    with written(tmp_path / "store") as filler:
        capture(filler, mail(1))
        capture(filler, mail(2, subject=b"\x1b[31mred"))
    for number in (1, 3):
        file = path / "cur" / f"{number}:2,S"
        raw = mail(number, subject=b"x" if number == 1 else b"\x1b[32mhole")
        file.write_bytes(b"Return-Path: <>\n" + raw.replace(b"\r\n", b"\n"))
        os.utime(file, ns=(0, (NOON_US + 60 * SECOND_US) * 1000))
    return path


def test_the_command_tells_and_takes_in(tmp_path: Path, maildir: Path) -> None:
    asked = ("audit", "--store", tmp_path / "store", "--maildir", maildir, "anna@example.org")
    ran = mailkeep(*asked)
    assert ran.code == 5
    assert [line.split()[:2] for line in ran.lines[:1]] == [["anna@example.org", "hole"]]
    assert ran.lines[0].endswith(rf"INBOX 3  \x1b[32mhole  from bob  {name(3)}"), ran.lines[0]
    assert ran.lines[1].split() == ["USER", "LIVE", "DELIVERED", "MISSING", "HOLES", "EXPLAINED"]
    assert ran.lines[2].split() == ["anna@example.org", "2", "2", "1", "1", "0"]
    assert "mailkeep: 1 mailbox: 1 hole, 1 gone" in ran.err
    details = mailkeep(*asked, "--details")
    assert (details.code, len(details.lines)) == (5, 4)
    assert "\\x1b[31mred" in details.out
    told = mailkeep(*asked, "--json").objects
    assert [one.get("difference") for one in told] == ["gone", "hole", None, None]
    assert told[0]["delivery"]["message_id"] == name(2)
    assert (told[1]["folder"], told[1]["uid"], told[1]["flags"]) == ("INBOX", "3", ["\\Seen"])
    assert (told[1]["subject"], told[1]["from"]) == ("\x1b[32mhole", "bob")
    assert (told[2]["holes"], told[2]["missing"]) == (1, 1)
    assert told[3]["differences"]["hole"] == 1
    assert mailkeep(*asked, "--until", "2026-01-01").code == 0
    ran = mailkeep(*asked, "--import-missing", "--details")
    assert ran.code == 0
    (taken,) = (line for line in ran.lines if " taken in " in line)
    assert taken.endswith(rf"INBOX 3  \x1b[32mhole  from bob  {name(3)} (hole)"), taken
    assert "1 gone; 1 taken in" in ran.err
    assert mailkeep(*asked).code == 0


def test_wrong_usage(tmp_path: Path, maildir: Path) -> None:
    store = ("--store", tmp_path / "store")
    for arguments in ((), ("anna", "bert")):
        ran = mailkeep("audit", *store, "--maildir", maildir, *arguments)
        assert ran.code == 2
        assert "name the one user whose Maildir it is" in ran.err
    config = tmp_path / "mailkeep.toml"
    config.write_text("[lmtp]\n")
    ran = mailkeep("audit", *store, "--config", config)
    assert ran.code == 2
    assert "the configuration has no [imap]" in ran.err
    passwords = tmp_path / "passwords"
    config.write_text(
        f"[lmtp]\n[imap]\nserver = '127.0.0.1:1'\nmaster_user = 'm'\npasswords = '{passwords}'\n"
    )
    ran = mailkeep("audit", *store, "--config", config)
    assert (ran.code, f"{passwords} cannot be read: No such file or directory" in ran.err) == (2, True)
    passwords.write_bytes(b"m:\xff\n")
    assert f"{passwords} is not UTF-8 at byte 2" in mailkeep("audit", *store, "--config", config).err
    passwords.write_text("m:x\n")
    passwords.chmod(0o600)
    ran = mailkeep("audit", *store, "--config", config, "anna@example.org")
    assert ran.code == 40
    assert (
        "IMAP server 127.0.0.1:1 of [imap] server, anna@example.org: cannot be reached: Connection refused"
        in (ran.err)
    )
    ran = mailkeep("audit", *store, "--maildir", tmp_path, "anna")
    assert ran.code == 40
    assert "did you mean" in ran.err
    with pytest.raises(ConfigError, match=r"\[scheduler\] audit: it needs \[imap\]"):
        Config.parse("[lmtp]\n[scheduler]\naudit = '@daily'", "test")


def test_ctrl_c(tmp_path: Path, maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[tuple[LiveMessage, bytes]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Maildir, "fetch", interrupted)
    ran = mailkeep("audit", "--store", tmp_path / "store", "--maildir", maildir, "anna@example.org")
    assert (ran.code, ran.out) == (130, "")
    assert "interrupted: the same command begins anew" in ran.err


def test_a_sealed_store(tmp_path: Path, maildir: Path) -> None:
    public = write_identity(tmp_path / "key.txt", None)
    with Store.open(tmp_path / "sealed", create=True, recipients=[public]) as store:
        store.start_writing("host")
        put_message(store, mail(1), to=(ANNA,))
        put_message(store, mail(3), to=(ANNA,))
    asked = ("audit", "--store", tmp_path / "sealed", "--maildir", maildir, "anna@example.org")
    assert mailkeep(*asked).code == 21
    assert mailkeep(*asked, "--identity", tmp_path / "key.txt").code == 0
