"""The browser as a person uses it, at 80x24: a real store, real keys, a real LMTP server."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.widgets import Input

from sidecar.browse import actions
from sidecar.browse.app import Browser, Setting
from sidecar.browse.dialogs import Outcome, PutBack
from sidecar.browse.model import Asked
from sidecar.select import Selection
from sidecar.units import Address
from store.records import Delivery
from store.store import Store
from tests.store.conftest import put_message
from tests.support.browsing import browsing, screen_text
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import NOON_US, SECOND_US, written
from tests.support.sink_thread import SinkThread
from tests.support.waiting import until

HOUR_US = 3600 * SECOND_US
PDF = (
    b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nplease pay\r\n"
    b'--b\r\nContent-Type: application/pdf; name="bill.pdf"\r\nContent-Transfer-Encoding: base64\r\n'
    b"\r\nQUJD\r\n--b--\r\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def mails(path: Path) -> list[Delivery]:
    """Twelve, two hours apart, oldest first, to anna, bert and carl in turn."""
    names = (b"anna@example.org", b"bert@example.org", b"carl@example.org")
    with written(path) as fill:
        return [
            fill.put(
                b"From: Shop <shop@example.com>\r\nSubject: invoice %d\x1b[2J" % n + PDF,
                to=[names[n % 3]], replies=[b"250 ok"], time_us=NOON_US + n * 2 * HOUR_US,
                subject=b"invoice %d\x1b[2J" % n, header_from=b"Shop <shop@example.com>",
            )
            for n in range(12)
        ]  # fmt: skip


def subjects(browser: Browser) -> list[str]:
    return [row.subject.partition("\\")[0] for row in browser.messages.rows]


async def test_newest_first_and_nothing_of_the_mail_drives_the_screen(
    path: Path, mails: list[Delivery]
) -> None:
    async with browsing(path) as (browser, pilot):
        await until(lambda: " q quit" in screen_text(browser).rpartition("\n")[2])
        assert subjects(browser) == [f"invoice {n}" for n in range(11, -1, -1)]
        shown = screen_text(browser)
        assert "\x1b" not in shown
        lines = shown.split("\n")
        assert all(cell_len(line) == 80 for line in lines)
        assert len(lines) == 24
        assert lines[0].startswith(" mailkeep  everything, newest first")
        assert lines[2].startswith(">  ")
        assert r"invoice 11\x1b[2J" in lines[2]
        await pilot.press("down", "down", "k", "G")
        assert browser.messages.cursor == 11
        await pilot.press("g", "pagedown")
        assert browser.messages.cursor == 11
        await pilot.press("question_mark")
        await pilot.pause()
        assert "put the marked ones back" in screen_text(browser)
        await pilot.press("escape")


async def test_a_message_is_read_and_its_record(path: Path, mails: list[Delivery]) -> None:
    async with browsing(path) as (browser, pilot):
        await pilot.press("down", "enter")
        await until(lambda: "please pay" in screen_text(browser))
        shown = screen_text(browser)
        assert r"Subject:   invoice 10\x1b[2J" in shown
        assert "bill.pdf  application/pdf, 3 B" in shown
        await pilot.press("down")
        await until(lambda: r"Subject:   invoice 9\x1b[2J" in screen_text(browser))
        await pilot.press("i")
        await until(lambda: mails[9].id.hex() in screen_text(browser))
        await pilot.press("i", "enter")
        await until(lambda: "CAPTURED" not in screen_text(browser))
        await pilot.press("n")
        await until(lambda: r"Subject:   invoice 8\x1b[2J" in screen_text(browser))
        await pilot.press("escape", "escape")
        await pilot.pause()
        assert browser.messages.has_focus
        assert not browser.pane.display


async def test_mailboxes_and_days_lead_to_their_messages(path: Path, mails: list[Delivery]) -> None:
    async with browsing(path) as (browser, pilot):
        await pilot.press("m")
        await until(lambda: len(browser.mailboxes.rows) == 3 and not browser.is_loading)
        assert [row.cells[:2] for row in browser.mailboxes.rows] == [
            ("carl@example.org", "4"), ("bert@example.org", "4"), ("anna@example.org", "4"),
        ]  # fmt: skip
        await pilot.press("s", "home", "enter")
        await until(lambda: len(browser.messages.rows) == 4 and not browser.is_loading)
        assert browser.asked.line == "to:anna@example.org"
        assert subjects(browser) == ["invoice 9", "invoice 6", "invoice 3", "invoice 0"]
        await pilot.press("escape")
        assert browser.view_name == "mailboxes"
        await pilot.press("d")
        await until(lambda: len(browser.days.rows) == 2 and not browser.is_loading)
        day = browser.days.rows[0]
        await pilot.press("enter")
        await until(lambda: len(browser.messages.rows) == day.messages and not browser.is_loading)
        assert f"since:{day.key}" in browser.asked.line


async def test_marks_single_range_and_all(path: Path, mails: list[Delivery]) -> None:
    async with browsing(path) as (browser, pilot):
        await pilot.press("space", "down", "v", "down", "down", "space")
        assert list(browser.marks) == [mails[11].id, mails[9].id, mails[8].id, mails[7].id]
        await pilot.pause()
        lines = screen_text(browser).split("\n")
        assert [line[1] for line in lines[2:8]] == ["*", " ", "*", "*", "*", " "]
        assert "4 marked" in lines[-2]
        await pilot.press("a")
        assert len(browser.marks) == 12
        await pilot.press("u")
        assert len(browser.marks) == 0
        await pilot.press("v", "escape", "down")
        assert browser.messages.range_from is None


async def test_the_filter_line(path: Path, mails: list[Delivery]) -> None:
    async with browsing(path) as (browser, pilot):
        await pilot.press("slash", *"to:@example.org invoice 1", "enter")
        await until(lambda: browser.asked.words and not browser.is_loading)
        assert subjects(browser) == ["invoice 11", "invoice 10", "invoice 1"]
        await pilot.press("slash", *"subjct:x", "enter")
        await pilot.pause()
        assert "subjct: is no filter" in screen_text(browser)
        assert "quote a word that has a colon" in " ".join(screen_text(browser).split()), "80 columns will do"
        await pilot.press("escape")
        await pilot.pause()
        assert "is no filter" not in screen_text(browser)
        await pilot.press("slash")
        assert browser.query_one("#filter", Input).value == "to:@example.org invoice 1 "
        await pilot.press("ctrl+u", *"nothing-like-it", "enter")
        await until(lambda: "nothing matches" in screen_text(browser))
        await pilot.press("slash", "ctrl+u", "enter")
        await until(lambda: len(browser.messages.rows) == 12)


@pytest.mark.parametrize(("downs", "form"), [(0, "eml"), (1, "mbox"), (2, "maildir")])
async def test_the_marked_ones_are_exported(path: Path, mails: list[Delivery], downs: int, form: str) -> None:
    output = path.parent / "out"
    async with browsing(path) as (browser, pilot):
        await pilot.press("space", "space", "e")
        await until(lambda: "2 messages as" in screen_text(browser))
        await pilot.press(*["down"] * downs, "ctrl+u", *str(output), "enter")
        await until(lambda: "2 messages written to" in screen_text(browser))
        await pilot.press("escape")
        await pilot.press("e")
        await until(lambda: "messages as" in screen_text(browser))
        await pilot.press("ctrl+u", *"/no-such/folder/file", "down", "enter")
        await until(lambda: "/no-such/folder/file: No such file" in screen_text(browser))
        await pilot.press("escape")
    with Store.open(path) as store:
        exact = {b"".join(store.read(mail.content)) for mail in mails[10:]}
    if form == "eml":
        assert {file.read_bytes() for file in output.iterdir()} == exact
    elif form == "mbox":
        assert output.read_bytes().count(b"\nFrom: Shop") == 2
    else:
        assert len(list((output / "new").iterdir())) == 2


async def test_the_marked_ones_are_put_back(path: Path, mails: list[Delivery]) -> None:
    sink = LmtpSink(rcpt_replies={b"RCPT TO:<carl@example.org>": b"550 5.1.1 no\x1b[2J such user\r\n"})
    with SinkThread(sink) as server:
        setting = Setting(downstream=Address.parse(server.address))
        async with browsing(path, setting) as (browser, pilot):
            await pilot.press("space", "space", "r")
            await until(lambda: "2 messages to 2 mailboxes" in screen_text(browser))
            assert server.address in screen_text(browser)
            assert sink.delivered == []
            await pilot.press("n")
            await pilot.press("r")
            await until(lambda: "2 messages to 2 mailboxes" in screen_text(browser))
            await pilot.press("y")
            await until(lambda: "1 of 2 are back" in screen_text(browser))
            await until(lambda: r"550 5.1.1 no\x1b[2J" in screen_text(browser))
            assert list(browser.marks) == [mails[11].id], "the one that is not back stays marked"
            await pilot.press("escape")
            # Another mailbox, one message.
            await pilot.press("u", "home", "r")
            await until(lambda: "1 message to 1 mailbox " in screen_text(browser))
            await pilot.press("o", *"dora@example.org", "enter")
            await until(lambda: "  dora@example.org" in screen_text(browser))
            await pilot.press("y")
            await until(lambda: "1 of 1 are back" in screen_text(browser))
            await pilot.press("escape")
        assert [(d.mail, d.recipients) for d in sink.delivered] == [
            (b"MAIL FROM:<>", [b"RCPT TO:<bert@example.org>"]),
            (b"MAIL FROM:<>", [b"RCPT TO:<dora@example.org>"]),
        ]
    with Store.open(path) as store:
        assert sink.delivered[0].message == b"".join(store.read(mails[10].content))
        assert [replay.recipient for replay in store.delivery(mails[11].id).replays] == [
            b"carl@example.org", b"dora@example.org",
        ]  # fmt: skip


@pytest.mark.parametrize("typed", ["dora@example.org", "no\\address"])
async def test_a_yes_is_for_the_mailbox_that_was_asked_for_last(
    path: Path, mails: list[Delivery], typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    plan = actions.plan

    def late(*arguments: Any, **how: Any) -> actions.Plan:
        if how["rcpt"]:
            gate.wait(60)
        return plan(*arguments, **how)

    monkeypatch.setattr(actions, "plan", late)
    sink = LmtpSink()
    with SinkThread(sink) as server:
        async with browsing(path, Setting(downstream=Address.parse(server.address))) as (browser, pilot):
            await pilot.press("r")
            await until(lambda: "carl@example.org" in screen_text(browser).partition("put back")[2])
            await pilot.press("o", *typed, "enter", "y", "y")
            await pilot.pause(0.3)
            gate.set()
            if "@" in typed:
                await until(lambda: "  dora@example.org" in screen_text(browser))
            await pilot.pause(0.3)
            assert sink.delivered == []
            assert isinstance(browser.screen, PutBack)


async def test_a_home_of_nobody_is_no_end_of_it(
    path: Path, mails: list[Delivery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with browsing(path) as (browser, pilot):
        await pilot.press("e")
        await pilot.press(*["backspace"] * 20, *"~nobody-here/x", "enter")
        await until(lambda: "1 messages written to ~nobody-here/x" in screen_text(browser))
    assert len(list((tmp_path / "~nobody-here/x").iterdir())) == 1


async def test_putting_back_may_be_stopped_between_two_messages(path: Path, mails: list[Delivery]) -> None:
    gate = asyncio.Event()
    sink = LmtpSink(gates={b"body": gate})
    with SinkThread(sink) as server:
        async with browsing(path, Setting(downstream=Address.parse(server.address))) as (browser, pilot):
            await pilot.press("a", "r")
            await until(lambda: "12 messages to 3 mailboxes" in screen_text(browser))
            await pilot.press("y")
            await until(lambda: isinstance(browser.screen, Outcome) and sink.connections)
            await pilot.press("escape")
            await until(lambda: "stops after this message" in screen_text(browser))
            server.open(gate)
            await until(lambda: "stopped after 1 of 12" in screen_text(browser))
            await pilot.press("escape")
            assert len(browser.marks) == 11
    assert len(sink.delivered) == 1


async def test_a_mailbox_asked_for_gets_its_own_alone(path: Path) -> None:
    with written(path) as fill:
        fill.put(to=[b"anna@example.org", b"carl@example.org"], replies=[b"250 ok", b"250 ok"])
    setting = Setting(asked=Asked(Selection(to="anna@example.org")), downstream=Address.parse("127.0.0.1:1"))
    async with browsing(path, setting) as (browser, pilot):
        await pilot.press("r")
        await until(lambda: "1 message to 1 mailbox (1 delivery)" in screen_text(browser))
        assert "carl" not in screen_text(browser).partition("put back")[2].partition("Esc leave")[0]
        await pilot.press("y")
        await until(lambda: "0 of 1 are back" in screen_text(browser))
        await pilot.press("escape")


async def test_without_a_server_it_says_so(path: Path, mails: list[Delivery]) -> None:
    async with browsing(path) as (browser, pilot):
        await pilot.press("r")
        await pilot.pause()
        assert "no LMTP server is named" in screen_text(browser)


async def test_as_of_and_an_empty_store(path: Path) -> None:
    with written(path) as fill:
        fill.put()
    async with browsing(path, Setting(asked=Asked(Selection(as_of="2026-03-01")))) as (browser, pilot):
        await pilot.pause()
        assert "nothing matches" in screen_text(browser)
        assert "as-of:2026-03-01" in screen_text(browser)
        await pilot.press("enter", "space", "v", "a", "r", "e", "end", "i", "m", "enter", "d", "enter")
        await pilot.pause()


async def test_new_mail_comes_by_R_while_another_writes(path: Path) -> None:  # noqa: N802 - the key
    with written(path) as fill:
        fill.put(subject=b"first")
    async with browsing(path) as (browser, pilot):
        assert subjects(browser) == ["first"]
        writer = browser.store.start_writing("host")  # LMDB is opened once in a process
        assert writer
        await asyncio.to_thread(put_message, browser.store, b"Subject: second\r\n\r\nx\r\n")
        await pilot.press("R")
        await until(lambda: subjects(browser) == ["second", "first"])


async def test_pages_come_as_the_cursor_goes_down(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.browse.app.PAGE", 20)
    monkeypatch.setattr("sidecar.browse.app.TALLIED", 30)
    with written(path) as fill:
        for number in range(70):
            fill.put(subject=b"%d" % number, to=[b"user%d@x" % (number % 50)])
    async with browsing(path) as (browser, pilot):
        assert len(browser.messages.rows) == 20
        for count in (40, 60, 70):
            await pilot.press("end")
            await until(lambda count=count: len(browser.messages.rows) == count and not browser.is_loading)
        assert subjects(browser) == [str(number) for number in range(69, -1, -1)]
        await pilot.press("m")
        await until(lambda: len(browser.mailboxes.rows) == 30 and not browser.is_loading)
        await pilot.press("end")
        await until(lambda: len(browser.mailboxes.rows) == 50 and not browser.is_loading)
