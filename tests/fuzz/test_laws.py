"""The laws that must hold for any bytes, for as long as there is patience (`make fuzz`).

`MAILKEEP_FUZZ_EXAMPLES` says how many examples each law gets. What is found here becomes a test of its room.
"""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.lmtp import DotReader, DotWriter, ReplyError, ReplyParser
from store.check import Checked, check
from store.splitter import Kind
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_splitter import HEADER, HOSTILE, attachment, data_of, is_lawful, mails, split

EXAMPLES = int(os.environ.get("MAILKEEP_FUZZ_EXAMPLES", "5000"))
LONG = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
CUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=8)
WIRE = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\0", b"\xff", b"\r\n.\r\n", b"x" * 100])).map(
    b"".join
)

pytestmark = pytest.mark.timeout(0)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    out, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        out.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return out


@LONG
@given(message=mails(), sizes=CUTS)
def test_any_mail_comes_back(message: bytes, sizes: list[int]) -> None:
    is_lawful(message, sizes)


@LONG
@given(
    size=st.integers(1024, 2_000_000),
    seed=st.integers(0, 1 << 32),
    one=st.tuples(st.integers(4, 249).map(lambda n: 4 * n), st.sampled_from([b"\r\n", b"\n"])),
    other=st.tuples(st.integers(4, 249).map(lambda n: 4 * n), st.sampled_from([b"\r\n", b"\n"])),
)
def test_a_file_is_the_same_chunks_whatever_its_lines(
    size: int, seed: int, one: tuple[int, bytes], other: tuple[int, bytes]
) -> None:
    data = random.Random(seed).randbytes(size)
    first, second = (
        data_of(is_lawful(HEADER + attachment(data, *way), [70_001]), Kind.ATTACHMENT) for way in (one, other)
    )
    assert b"".join(first) in (data, b"")  # a short one with wide lines may be too little to decode
    assert first == second or not first or not second


@pytest.mark.parametrize("name", HOSTILE)
def test_four_times_the_mail_takes_not_ten_times_the_time(name: str) -> None:
    """Linear is 4, quadratic 16; the rest is for a machine that does other things, too."""

    def took_s(size: int) -> float:
        unit = HOSTILE[name]
        message = HEADER + b"".join(unit.replace(b"%d", b"%07d" % n) for n in range(size // len(unit)))
        best_s = math.inf
        for _ in range(3):
            begin_s = time.process_time()
            split(message)
            best_s = min(best_s, time.process_time() - begin_s)
        return best_s

    assert took_s(8 << 20) < 10 * took_s(2 << 20) + 0.1


@LONG
@given(message=WIRE, sizes=CUTS, more=CUTS)
def test_what_is_stuffed_is_read_back(message: bytes, sizes: list[int], more: list[int]) -> None:
    writer, reader = DotWriter(), DotReader()
    wire = b"".join([*(writer.feed(piece) for piece in pieces(message, sizes)), writer.finish()])
    body = b""
    for piece in pieces(wire, more):
        assert not reader.ended, "an end that was not sent"
        part, rest = reader.feed(piece)
        body += part
        assert not rest
    assert reader.ended
    assert body == (message if not message or message.endswith(b"\r\n") else message + b"\r\n")


@LONG
@given(data=st.binary(max_size=300), sizes=CUTS)
def test_no_reply_breaks_the_parser(data: bytes, sizes: list[int]) -> None:
    parser = ReplyParser()
    try:
        for piece in pieces(data, sizes):
            parser.feed(piece)
    except ReplyError:
        return


def test_flips_in_a_larger_store(tmp_path: Path) -> None:
    """Random single-byte flips over a store of several packs: found, and never returned as mail."""
    rng = random.Random(EXAMPLES)
    messages = [b"Subject: %d\r\n\r\n" % n + rng.randbytes(rng.randrange(1, 40_000)) for n in range(60)]
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        store.start_writing("host", pack_bytes=200_000)
        for message in messages:
            put_message(store, message)
    packs = sorted(path.glob("streams/host/*.pack"))
    for _ in range(EXAMPLES // 50):
        pack = rng.choice(packs)
        sound = pack.read_bytes()
        at = rng.randrange(len(sound))
        flipped = bytes([sound[at] ^ 1 << rng.randrange(8)])
        pack.write_bytes(sound[:at] + flipped + sound[at + 1 :])
        with Store.open(path) as store:
            assert list(check(store, Checked(), read_data=True)), (pack, at)
        pack.write_bytes(sound)
