"""The browser on a replica, where it lies: two hosts as one, read, refreshed and put back from."""

from __future__ import annotations

from pathlib import Path

from sidecar.browse.app import Browser, Setting
from sidecar.units import Address
from store.index_copy import copy_of
from store.replicas.fleet import open_fleet
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from tests.store.conftest import put_message
from tests.support.browsing import browsing, screen_text
from tests.support.lmtp_sink import LmtpSink
from tests.support.sink_thread import SinkThread
from tests.support.waiting import until


class Host:
    """A mail host that ships."""

    def __init__(self, directory: Path, url: str, name: str) -> None:
        self.store = Store.open(directory / name, create=True)
        self.store.start_writing(name)
        options = ShipOptions(index=lambda: copy_of(self.store.index, self.store.view.names()))
        self.shipper = Shipper(directory / name, Remote.open(url), name, options)

    def put(self, subject: str, *, full: bool) -> None:
        put_message(self.store, f"Subject: {subject}\r\n\r\nthe text of {subject}\r\n".encode())
        self.store.settle_index()
        self.shipper.round(full=full)


def subjects(browser: Browser) -> list[str]:
    return [row.subject for row in browser.messages.rows]


async def test_two_hosts_as_one(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    hosts = [Host(tmp_path, url, "mx1"), Host(tmp_path, url, "mx2")]
    for number in range(4):
        hosts[number % 2].put(f"mail {number}", full=number < 2)
    fleet = open_fleet(Replica(Remote.open(url)), tmp_path / "view")
    sink = LmtpSink()
    with SinkThread(sink) as server:
        host, _, port = server.address.rpartition(":")
        async with browsing(fleet, Setting(downstream=Address(host, int(port)))) as (browser, pilot):
            assert subjects(browser) == ["mail 3", "mail 2", "mail 1", "mail 0"]
            await pilot.press("enter")
            await until(lambda: "the text of mail 3" in screen_text(browser))
            await pilot.press("escape")
            hosts[0].put("mail 4", full=False)
            await pilot.press("f5")
            await until(lambda: "mail 4" in subjects(browser))
            await pilot.press("r")
            await until(lambda: "1 message to 1 mailbox" in screen_text(browser))
            await pilot.press("y")
            await until(lambda: "1 of 1 are back" in screen_text(browser))
    assert b"Subject: mail" in sink.delivered[0].message
    for one in hosts:
        one.store.close()
