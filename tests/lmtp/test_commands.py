"""Command lines: cut without a byte changed, refused with the right reply."""

import pytest

from sidecar.lmtp import CommandError, parse_command, parse_path, parse_xforward


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"QUIT", b"QUIT", b""),
        (b"noop  x ", b"NOOP", b"x"),
        (b"MAIL FROM:<a@b> SIZE=10", b"MAIL", b"FROM:<a@b> SIZE=10"),
        (b"Rcpt To:<\xc3\xa9@b>", b"RCPT", b"To:<\xc3\xa9@b>"),
    ],
)
def test_command(line: bytes, verb: bytes, argument: bytes) -> None:
    assert parse_command(line) == (verb, argument)


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"", b"500 5.5.2"),
        (b" MAIL FROM:<>", b"500 5.5.2"),
        (b"\xff\xfe", b"500 5.5.2"),
        (b"RCPT TO:<a>\rDATA", b"501 5.5.2"),
        (b"RCPT TO:<a\0>", b"501 5.5.2"),
    ],
)
def test_no_command(line: bytes, reply: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse_command(line)
    assert caught.value.reply.startswith(reply)
    assert caught.value.reply.endswith(b"\r\n")


@pytest.mark.parametrize(
    ("argument", "address", "parameters"),
    [
        (b"TO:<a@b>", b"a@b", b""),
        (b"to: <a@b>  X=1  Y ", b"a@b", b"X=1  Y"),
        (b"TO:<>", b"", b""),
        (b"TO:<@r,@s:a@b>", b"@r,@s:a@b", b""),
        (b'TO:<"a b"@c> X=1', b'"a b"@c', b"X=1"),
        (b'TO:<"a> X=1"@c> Y=2', b'"a> X=1"@c', b"Y=2"),
        (rb'TO:<"a\">"@c>', rb'"a\">"@c', b""),
        (b"TO:<\xff\xc3\xa9@b>", b"\xff\xc3\xa9@b", b""),
        (b"TO:<postmaster> ORCPT=rfc822;a+2Bb@c", b"postmaster", b"ORCPT=rfc822;a+2Bb@c"),
    ],
)
def test_path(argument: bytes, address: bytes, parameters: bytes) -> None:
    assert parse_path(argument, b"TO:") == (address, parameters)


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"a@b",
        b"FROM:<a>",
        b"TO:a@b",
        b"TO:<a@b",
        b"TO:",
        b"TO:<a@b>X=1",
        b'TO:<"a>',
        b'TO:<"a>"',
        b"TO:>a<",
    ],
)
def test_no_path(argument: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse_path(argument, b"TO:")
    assert caught.value.reply == b"501 5.5.4 Syntax: TO:<address> [parameters]\r\n"


def test_xforward() -> None:
    assert parse_xforward(
        b"NAME=spike.example addr=192.0.2.1 PROTO=ESMTP HELO=[UNAVAILABLE] ident=4X+2B+ff+zz"
    ) == {
        "NAME": b"spike.example",
        "ADDR": b"192.0.2.1",
        "PROTO": b"ESMTP",
        "IDENT": b"4X+\xff+zz",
    }


@pytest.mark.parametrize("argument", [b"", b"NAME", b"LOGIN=x", b"\xff=x", b"NAME=a =b"])
def test_no_xforward(argument: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse_xforward(argument)
    assert caught.value.reply.startswith(b"501 5.5.4")
