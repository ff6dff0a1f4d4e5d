"""Real and hostile mail through LMTP: what the mailbox server got and the store gives back is what was sent.

8 clients --lmtp--> mailkeep serve --lmtp--> sink (CHUNKING, or strict DATA)
                         |
                         +--> store --> Store.read, `mailkeep show --raw`

The corpora lie beside the repository and are read into memory only; the hostile mails here are always sent.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from store.deliveries import Query
from store.ids import DeliveryId
from store.store import Store
from tests.e2e.conftest import NOT_IN_A_CLONE
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import Service
from tests.support.serving import Client

pytestmark = pytest.mark.e2e

CORPORA = Path(__file__).parents[3] / "shared" / "corpus"
CLIENTS = 8
SHOWN = 15
"""of each run, so many are asked for by the command, too"""

HEAD = b"Subject: hostile\r\n\r\n"
HOSTILE = [
    b"",
    b"\r\n",
    b".\r\n",
    b"no header at all\r\n",
    b" leading blank\r\n\r\nbody\r\n",
    b"Subject: headers alone\r\n",
    HEAD,
    HEAD + b".\r\n..\r\n...\r\n.\r\n",
    HEAD + b"NUL \0 and \xff\xfe, bare CR \r here\r\r\n\rthere\r\n",
    HEAD + b"\r.\r\r\n\r\r\n.\r\r\n",
    HEAD + b"MAIL FROM:<x@x>\r\nRCPT TO:<x@x>\r\nDATA\r\nRSET\r\nQUIT\r\n",
    HEAD + b"x" * 1_000_000 + b"\r\n",
    HEAD + b".\r\n" * 50_000,
    b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(200)) + b"\r\n",
    b"X-Bytes: " + bytes(n for n in range(256) if n not in b"\r\n") + b"\r\n\r\n",
    HEAD + b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\nQUJD=\r\n====\r\nnot base64!\r\nQUJ\r\n",
    HEAD + (b"QUJD" * 19 + b"\r\n") * 5000 + b"QUJD \r\n" + (b"QUJD" * 19 + b"\r\n") * 5000,
    b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\n--a\r\n--a--\r\n--a\r\n--",
]
BARE_NEWLINES = [
    HEAD + b"bare \n newline\r\n\nat the start\n\r\n",
    HEAD + b"\n\n\r\n\n\r\n",
    HEAD + b"a dot at the start of a line is doubled\r\n.\n\r\n",
]
SMUGGLING = [HEAD + b"one\n.\n two\r\n", HEAD + b"one\n.\r\n two\r\n"]
"""A lax server takes these for the end of the message. Chunks carry them; by DATA they must not go."""


def on_the_wire(message: bytes) -> bytes:
    """A file as a client sends it: lines end in CRLF, the last one too."""
    lines = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    return lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n"


def corpus(name: str) -> list[bytes]:
    """Every file of a corpus as it is sent."""
    archive = CORPORA / f"{name}.tar.zst"
    if not archive.exists():
        pytest.skip(f"NOT TESTED: {name}.tar.zst {NOT_IN_A_CLONE}, and not here")
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=io.BufferedReader(plain), mode="r|") as files,
    ):
        return [on_the_wire(file.read()) for entry in files if (file := files.extractfile(entry))]


async def send_all(service: Service, messages: Sequence[bytes]) -> list[bytes]:
    """Over some connections; the reply to each. Message n goes to mN@x.example."""
    replies = [b""] * len(messages)
    left = iter(enumerate(messages))

    async def send() -> None:
        client = await Client.connect(service.port)
        try:
            for number, message in left:
                [replies[number]] = await client.send(ending_in_crlf(message), [b"m%d@x.example" % number])
        finally:
            await client.close()

    await asyncio.gather(*(send() for _ in range(CLIENTS)))
    return replies


def ending_in_crlf(message: bytes) -> bytes:
    return message if not message or message.endswith(b"\r\n") else message + b"\r\n"


def number_in(address: bytes) -> int:
    found = re.search(rb"m(\d+)@x.example", address)
    assert found
    return int(found[1])


async def pass_through(directory: Path, sink: LmtpSink, messages: Sequence[bytes]) -> None:
    """Send them, and compare what came out at both ends."""
    messages = [ending_in_crlf(message) for message in messages]
    await sink.start()
    service = Service(directory / "mailkeep", lmtp={"downstream": str(sink.address)})
    await asyncio.to_thread(service.start)
    try:
        replies = await send_all(service, messages)
    finally:
        ended = await asyncio.to_thread(service.stop)
        await sink.stop()
    assert ended == 0, service.tail()
    assert {reply[:4] for reply in replies} <= {b"250 "}, [r for r in replies if not r.startswith(b"250 ")][
        :5
    ]

    got = {number_in(mail.recipients[0]): mail.message for mail in sink.delivered}
    assert len(got) == len(sink.delivered) == len(messages)
    assert [n for n, message in enumerate(messages) if got[n] != message] == [], (
        "altered on its way downstream"
    )
    kept = await asyncio.to_thread(read_back, service, messages)
    size = sum(map(len, messages))
    print(f"{len(messages)} messages, {size} bytes: {len(got)} delivered and {kept} kept, byte for byte")


def read_back(service: Service, messages: Sequence[bytes]) -> int:
    """Compare all of the store with what was sent, some of it by the command; how many there are."""
    ids: dict[int, DeliveryId] = {}
    wrong = []
    with Store.open(service.store) as store:
        for stored in store.deliveries(Query()):
            number = number_in(stored.delivery.envelope.recipients[0].address)
            ids[number] = stored.delivery.id
            if b"".join(store.read(stored.delivery.content)) != messages[number]:
                wrong.append(number)
    assert wrong == [], "the store gives back other bytes"
    assert len(ids) == len(messages)
    by_size = sorted(range(len(messages)), key=lambda number: len(messages[number]))
    for number in {*by_size[:3], *by_size[-3:], *by_size[:: max(1, len(by_size) // (SHOWN - 6))]}:
        assert service.raw(ids[number].hex()) == messages[number]
    return len(ids)


chunking = pytest.mark.parametrize("chunking", [True, False], ids=["chunks", "data"])


@chunking
async def test_hostile_mail(tmp_path: Path, chunking: bool) -> None:
    """Bytes that mail should not have, and often has.

    Setup: 8 clients --lmtp--> mailkeep serve --BDAT or DATA--> strict sink.
    Test: what the sink got, Store.read and `show --raw` equal what was sent. Bare newlines pass as well,
    except where a dot beside them could be taken for the end: those only go as chunks.
    """
    messages = HOSTILE + BARE_NEWLINES + (SMUGGLING if chunking else [])
    await pass_through(tmp_path, LmtpSink(chunking=chunking), messages)


@pytest.mark.parametrize("message", SMUGGLING)
async def test_nothing_is_smuggled_by_data(tmp_path: Path, message: bytes) -> None:
    """One message in is at most one message out, however lax the mailbox server.

    Setup: client --lmtp--> mailkeep serve --DATA--> sink that ends DATA as Dovecot 2.3 does.
    Test: a message that such a server would cut in two is refused for good, delivered to nobody, and kept.
    """
    sink = LmtpSink(chunking=False, lax=True)
    await sink.start()
    service = Service(tmp_path / "mailkeep", lmtp={"downstream": str(sink.address)})
    await asyncio.to_thread(service.start)
    try:
        [reply] = await send_all(service, [message])
        [after] = await send_all(service, [HEAD])
    finally:
        assert await asyncio.to_thread(service.stop) == 0
        await sink.stop()
    assert reply.startswith(b"550 5.6.0 ")
    assert after.startswith(b"250 ")
    assert [mail.message for mail in sink.delivered] == [HEAD]
    with Store.open(service.store) as store:
        assert {b"".join(store.read(s.delivery.content)) for s in store.deliveries(Query())} == {
            message,
            HEAD,
        }


@pytest.mark.timeout(300)
@chunking
@pytest.mark.parametrize("name", ["everyday", "torture"])
async def test_every_file_of_the_corpora(server_directory: Path, name: str, chunking: bool) -> None:
    """100 % of the mail there is at hand, byte for byte.

    Setup: 8 clients (every file, its line ends made CRLF) --lmtp--> mailkeep serve --BDAT or DATA--> sink.
    Test: what the sink got, Store.read (all of them) and `show --raw` (some) equal what was sent. By DATA go
    every torture mail, and one of eight everyday ones.
    """
    messages = corpus(name)
    if name == "everyday" and not chunking:
        messages = messages[::8]
    await pass_through(server_directory, LmtpSink(chunking=chunking), messages)
