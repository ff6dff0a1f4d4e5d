"""IMAP servers that say what makes no sense: nothing is lost unseen, and nothing but `LiveError` comes of it.

The server here is a script of answers, as no real one would give them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sidecar.live.imap import ImapServer
from sidecar.live.mailbox import LiveError
from sidecar.sources.imap import ImapSource
from sidecar.sources.source import Skipped, Wanted
from sidecar.units import Address

FACTS = b'* 1 FETCH (UID 1 RFC822.SIZE 5 INTERNALDATE "01-Jan-2020 00:00:00 +0000" FLAGS ())\r\n'
ANSWERS = {
    b"LIST": b'* LIST () "/" INBOX\r\n',
    b"STATUS": b"* STATUS INBOX (UIDVALIDITY 5)\r\n",
    b"UID SEARCH": b"* SEARCH 1\r\n",
    b"UID FETCH 1 (RFC822.SIZE": FACTS,
    b"UID FETCH 1 (BODY.PEEK[])": b"* 1 FETCH (UID 1 BODY[] {5}\r\nA: b\n)\r\n",
    b"EXAMINE": b"* 1 EXISTS\r\n",
    b"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\n",
}


def talk(server: socket.socket, answers: dict[bytes, bytes]) -> None:
    with server:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as lines:
                lines.write(b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
                lines.flush()
                for line in lines:
                    tag, _, command = line.strip().partition(b" ")
                    said = next((told for begin, told in answers.items() if command.startswith(begin)), b"")
                    lines.write(said + tag + b" OK done\r\n")
                    lines.flush()
                    if command == b"LOGOUT":
                        break


@contextmanager
def source(**lies: bytes) -> Iterator[ImapSource]:
    answers = dict(ANSWERS)
    names = dict(zip(("list", "status", "search", "facts", "body"), ANSWERS, strict=False))
    answers |= {names[name]: lie for name, lie in lies.items()}
    server = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", server.getsockname()[1])
    # Two connections, one after the other in a thread each: one lists, one fetches.
    for _ in range(2):
        threading.Thread(target=talk, args=(server.dup(), answers), daemon=True).start()
    server.close()
    yield ImapSource(ImapServer(address=address, passwords={"u": "p"}), "u", connections=1)


def told(source: ImapSource) -> list[bytes | str]:
    found = source.messages(Wanted(recipient=b"a@x"))
    return [one.reason if isinstance(one, Skipped) else b"".join(one.pieces()) for one in found]


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({}, b"A: b\n"),
        ({"facts": FACTS.replace(b"RFC822.SIZE 5", b"RFC822.SIZE abc")}, b"A: b\n"),
        ({"facts": FACTS.replace(b"RFC822.SIZE 5", b"RFC822.SIZE NIL")}, b"A: b\n"),
        ({"facts": FACTS.replace(b"RFC822.SIZE 5 ", b"")}, b"A: b\n"),
        ({"facts": FACTS.replace(b"FLAGS ()", b"FLAGS NIL")}, b"A: b\n"),
        ({"facts": FACTS.replace(b"Jan-2020", b"Jan-0001")}, b"A: b\n"),
        ({"body": b"* 1 FETCH (UID 1 BODY[] 77)\r\n"}, "is not there any more"),
        ({"status": b"* STATUS INBOX ()\r\n"}, "makes no sense"),
        ({"status": b"* STATUS INBOX (UIDVALIDITY NIL)\r\n"}, "makes no sense"),
    ],
)
def test_each_message_is_taken_or_told(lies: dict[str, bytes], said: bytes | str) -> None:
    with source(**lies) as mailbox:
        (one,) = told(mailbox)
    assert one == said or (isinstance(said, str) and isinstance(one, str) and said in one)


def test_folders_that_cannot_be_named() -> None:
    with source(list=b'* LIST () "/" "&&&-\xff"\r\n') as mailbox, pytest.raises(LiveError, match="no sense"):
        told(mailbox)
