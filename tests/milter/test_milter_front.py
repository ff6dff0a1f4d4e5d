"""The milter front on a real libmilter, driven from the MTA's side of the protocol."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sidecar.milter_front import MilterFront, MilterListenError, MilterMissingError
from sidecar.milter_session import MilterLimits
from sidecar.units import Address
from tests.support.milter_client import CONTINUE, Mail, MilterClient

_ROOT = Path(__file__).parents[2]
_WAIT_S = 60.0
_DEFERRED = (b"y", b"451 4.3.0 Message could not be stored, try again later\0")
_FULL = (b"y", b"451 4.3.1 Message could not be stored, try again later\0")
_STOPPING = (b"y", b"451 4.3.2 Backup service is stopping, try again later\0")
_LEADING_SPACE = 0x100000
_FAULTS = [
    {"headers": ((b"X-Fault", b" capture"),)},
    {"headers": ((b"X-Fault", b" bug"),)},
    {"mail": (b"<capture-fails@example.org>",)},
    {"mail": (b"<bug@example.org>",)},
]


@pytest.fixture(scope="module", autouse=True)
def _pymilter():
    try:
        from milter import main  # noqa: F401 - is it the real one, built and loadable?
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"pymilter must be there in CI: {error}")
        pytest.skip(f"NOT TESTED, the milter front: pymilter is missing ({error})")


class Server:
    """A process with a milter front, its socket and what it has made durable."""

    def __init__(self, directory: Path, *, drain_timeout_s: float = 20.0) -> None:
        self.socket = str(directory / "s")
        self.directory = directory
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.support.milter_server",
                self.socket,
                str(directory),
                str(drain_timeout_s),
            ],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def client(self, **offer: int) -> MilterClient:
        return MilterClient(self.socket, **offer)

    def stored(self) -> list[tuple[dict, bytes]]:
        """What is durable, in order: facts and bytes."""
        facts = sorted(self.directory.glob("*.json"), key=lambda p: int(p.stem))
        return [(json.loads(path.read_text()), path.with_suffix(".eml").read_bytes()) for path in facts]

    def last(self) -> tuple[dict, bytes]:
        return self.stored()[-1]

    def events(self) -> list[str]:
        path = self.directory / "events"
        return path.read_text().splitlines() if path.exists() else []

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def finish(self) -> tuple[int, str]:
        """Wait for the end: exit status and what it said."""
        output, _ = self.process.communicate(timeout=_WAIT_S + 20)
        return self.process.returncode, output


@contextmanager
def _server(directory: Path, **options: float) -> Iterator[Server]:
    server = Server(directory, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(_WAIT_S)
        server.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with _server(tmp_path_factory.mktemp("m")) as running:
        yield running


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not done():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_negotiation(server):
    with server.client() as client:
        client.negotiate()
        assert client.actions == 0x100
        assert client.steps == 0x1C0382
        assert client.symbols[5].split()[0] == b"i"
        assert b"{client_addr}" in client.symbols[5]
        assert b"{auth_authen}" in client.symbols[2]


def test_message_envelope_and_macros(server):
    mail = Mail(
        headers=(
            (b"Subject", b" hi"),
            (b"To", b"\ta,\n b"),
            (b"X", b"none"),
            (b"Y", b""),
            (b"Z", b"   three"),
        ),
        body=b"one\r\n.\r\n..two\r\n",
        mail=(b"<sender@example.org>", b"SIZE=100", b"BODY=8BITMIME"),
        rcpts=((b"<a@example.org>",), (b"<\xc3\xa4@example.org>", b"NOTIFY=NEVER")),
        macros={
            b"M": {b"{auth_type}": b"PLAIN", b"{auth_authen}": b"ann"},
            b"E": {b"i": b"4Qxyz", b"{client_name}": b"other.example.org"},
        },
    )
    with server.client() as client:
        assert client.connect().message(mail) == CONTINUE
    facts, data = server.last()
    assert data == mail.expected
    assert facts == {
        "leg": "milter",
        "sender": "sender@example.org",
        "sender_params": "SIZE=100 BODY=8BITMIME",
        "recipients": [["a@example.org", ""], ["\u00c3\u00a4@example.org", "NOTIFY=NEVER"]],
        "queue_id": "4Qxyz",
        "attributes": {
            "client_name": "client.example.org",
            "client_addr": "192.0.2.7",
            "client_port": "51234",
            "j": "mx.example.org",
            "daemon_name": "smtpd",
            "auth_type": "PLAIN",
            "auth_authen": "ann",
        },
        "notes": [],
    }


@pytest.mark.parametrize(
    "mail",
    [
        Mail(headers=((b"Subject", b" \xff\xfe \xc3\xa4"),), body=b"\xff\xfe\r\n"),
        Mail(body=b"\0a\0\0\r\n\0"),
        Mail(body=b"x" * 300_000 + b"\r\n"),
        Mail(body=b"no line end"),
        Mail(body=b"\r\n\r\n"),
        Mail(headers=(), body=b" no header\r\n"),
        Mail(headers=tuple((b"X-%d" % n, b" " + b"v" * 60000) for n in range(10)), body=b"after\r\n"),
        Mail(body=bytes(range(256)) * 2000),
        Mail(rcpts=tuple((b"<u%d@example.org>" % n,) for n in range(1000))),
    ],
    ids=[
        "8bit",
        "nul",
        "long-line",
        "no-end",
        "blank-lines",
        "no-header",
        "600k-header",
        "512k-body",
        "1000-rcpt",
    ],
)
def test_bytes_are_kept(server, mail):
    with server.client() as client:
        assert client.connect().message(mail) == CONTINUE
    facts, data = server.last()
    assert data == mail.expected
    assert [r[0].encode() for r in facts["recipients"]] == [r[0][1:-1] for r in mail.rcpts]


def test_body_cut_anywhere(server):
    mail = Mail(body=b"a\r\n.\r\n\0\r\n\r\nb")
    with server.client() as client:
        client.connect()
        for slice_bytes in range(1, len(mail.body)):
            assert client.message(mail, slice_bytes) == CONTINUE
            assert server.last()[1] == mail.expected


def test_empty_body_is_noted(server):
    with server.client() as client:
        assert client.connect().message(Mail(body=b"")) == CONTINUE
    facts, data = server.last()
    assert data == b"Subject: hello\r\n\r\n"
    assert facts["notes"] == ["blank-line-unknown"]


@pytest.mark.parametrize(("sender", "kept"), [(b"loc@example.org", "loc@example.org"), (b"<>", "")])
def test_sender_without_brackets_and_null_sender(server, sender, kept):
    with server.client() as client:
        assert client.connect().message(Mail(mail=(sender,), rcpts=((b"loc@example.org",),))) == CONTINUE
    facts, _ = server.last()
    assert facts["sender"] == kept
    assert facts["recipients"] == [["loc@example.org", ""]]


@pytest.mark.parametrize(
    ("where", "attributes"),
    [
        ({"family": b"6", "address": b"2001:db8::7"}, {"client_addr": "2001:db8::7", "client_port": "51234"}),
        ({"family": b"U"}, {}),
        ({"name": b"localhost", "address": b"127.0.0.1"}, {"client_name": "localhost"}),
    ],
)
def test_where_the_client_is(server, where, attributes):
    with server.client() as client:
        assert client.connect(**where).message(Mail()) == CONTINUE
    assert attributes.items() <= server.last()[0]["attributes"].items()


def test_macros_fill_in_what_the_connection_left_out(server):
    mail = Mail(macros={b"E": {b"i": b"4Q", b"{client_addr}": b"192.0.2.9", b"{client_port}": b"25"}})
    with server.client() as client:
        assert client.connect(family=b"U").message(mail) == CONTINUE
    attributes = server.last()[0]["attributes"]
    assert (attributes["client_addr"], attributes["client_port"]) == ("192.0.2.9", "25")


def test_no_queue_id_is_noted(server):
    with server.client() as client:
        assert client.connect().message(Mail(macros={})) == CONTINUE
    facts, _ = server.last()
    assert facts["queue_id"] == ""
    assert facts["notes"] == ["queue-id-unknown"]


def test_macro_that_is_no_utf8_does_not_cost_the_message(server):
    mail = Mail(macros={b"M": {b"{auth_authen}": b"\xff"}, b"E": {b"i": b"4Q"}})
    with server.client() as client:
        assert client.connect().message(mail) == CONTINUE
    assert "auth_authen" not in server.last()[0]["attributes"]


def test_two_messages_on_one_connection_share_nothing(server):
    first = Mail(
        headers=((b"A", b" 1"),), rcpts=((b"<a@example.org>",),), macros={b"M": {b"{auth_authen}": b"ann"}}
    )
    # libmilter forgets a stage's macros only when others come in their place: `j` always does.
    second = Mail(
        headers=((b"B", b" 2"),), rcpts=((b"<b@example.org>",),), macros={b"M": {b"j": b"mx.example.org"}}
    )
    with server.client() as client:
        client.connect()
        assert client.message(first) == CONTINUE
        assert client.message(second) == CONTINUE
    (_, one), (facts, two) = server.stored()[-2:]
    assert (one, two) == (first.expected, second.expected)
    assert facts["recipients"] == [["b@example.org", ""]]
    assert facts["queue_id"] == ""
    assert "auth_authen" not in facts["attributes"]
    assert facts["attributes"]["client_addr"] == "192.0.2.7"


@pytest.mark.parametrize("fault", _FAULTS)
def test_fault_is_answered_451_and_the_session_goes_on(server, fault):
    before = len(server.stored())
    with server.client() as client:
        client.connect()
        assert client.message(Mail(**fault, body=b"x" * 500_000)) == _DEFERRED
        assert len(server.stored()) == before
        assert client.message(Mail()) == CONTINUE
        assert server.last()[1] == Mail().expected


def test_a_full_store_is_told(server):
    with server.client() as client:
        client.connect()
        assert client.message(Mail(mail=(b"<full@example.org>",))) == _FULL
        assert client.message(Mail()) == CONTINUE


def test_accept_mode_lets_through(server):
    with server.client() as client:
        assert client.connect().message(Mail(mail=(b"<accept-mode@example.org>",))) == CONTINUE
    _until(lambda: server.events()[-1].startswith("uncaptured"))


@pytest.mark.parametrize("after", ["mail", "headers", "body"])
def test_abort_then_next_message(server, after):
    before = len(server.stored())
    lost, mail = Mail(headers=((b"Lost", b" 1"),)), Mail(headers=((b"Kept", b" 2"),))
    with server.client() as client:
        client.connect().envelope(lost)
        if after != "mail":
            client.headers(lost.headers)
        if after == "body":
            client.event(b"N")
            client.event(b"B", lost.body)
        client.abort()
        assert client.message(mail) == CONTINUE
    assert [data for _, data in server.stored()[before:]] == [mail.expected]


def test_mail_while_a_message_is_open_begins_anew(server):
    with server.client() as client:
        client.connect().envelope(Mail(rcpts=((b"<lost@example.org>",),)))
        client.content(Mail(headers=((b"Lost", b" 1"),)))
        assert client.message(Mail()) == CONTINUE
    facts, data = server.last()
    assert data == Mail().expected
    assert facts["recipients"] == [["rcpt@example.org", ""]]


@pytest.mark.parametrize("step", range(6))
def test_disconnect_at_every_step_leaves_nothing_open(server, step):
    mail = Mail(body=b"x" * 200_000)
    before, ended = len(server.stored()), len(server.events())
    with server.client() as client:
        steps = [
            client.negotiate,
            lambda: client.event(b"C", b"c\x004\0\x19192.0.2.7\0"),
            lambda: client.envelope(mail),
            lambda: client.headers(mail.headers),
            lambda: client.event(b"N"),
            lambda: client.event(b"B", mail.body[:65535]),
        ]
        for do in steps[: step + 1]:
            do()
    with server.client() as client:
        assert client.connect().message(Mail()) == CONTINUE
    assert len(server.stored()) == before + 1
    expected = {"captured 0": 1, "abandoned 0": int(step >= 2)}
    _until(lambda: Counter(server.events()[ended:]) == +Counter(expected))


def test_quit_between_messages(server):
    client = server.client().connect()
    assert client.message(Mail()) == CONTINUE
    client.quit()


def test_an_mta_without_leading_space_and_no_reply(server):
    with server.client(actions=0x3F, steps=0x7F) as client:
        client.connect()
        assert (client.actions, client.steps & 0x100000) == (0, 0)
        assert client.message(Mail(headers=((b"Subject", b"hello"),))) == CONTINUE
    facts, data = server.last()
    assert data == b"Subject: hello\r\n\r\nbody\r\n"
    assert facts["notes"] == ["header-space-unknown"]


@pytest.mark.parametrize("fault", _FAULTS)
def test_fault_with_an_mta_that_waits_for_every_reply(server, fault):
    with server.client(steps=_LEADING_SPACE) as client:
        client.connect()
        assert client.message(Mail(**fault)) == _DEFERRED
        assert client.message(Mail()) == CONTINUE


def test_parallel_sessions(server):
    before = len(server.stored())
    together = threading.Barrier(20)

    def session(number: int) -> set[bytes]:
        mails = [
            Mail(headers=((b"Number", b" %d.%d" % (number, n)),), body=b"%d" % number * 50_000 * n)
            for n in range(1, 6)
        ]
        with server.client() as client:
            client.connect()
            together.wait(_WAIT_S)
            assert [client.message(mail) for mail in mails] == [CONTINUE] * len(mails)
        return {mail.expected for mail in mails}

    with ThreadPoolExecutor(20) as pool:
        sent = set().union(*pool.map(session, range(20)))
    stored = [data for _, data in server.stored()[before:]]
    assert len(stored) == 100
    assert set(stored) == sent


def test_socket_mode(server):
    assert stat.S_IMODE(Path(server.socket).stat().st_mode) == 0o640


def test_sigterm_when_idle_ends_and_removes_the_socket(tmp_path):
    with _server(tmp_path) as server:
        server.terminate()
        assert server.finish() == (0, "stopping with 0 in flight\nstopped, running=False\n")
        assert not Path(server.socket).exists()


def test_sigterm_drains_the_message_in_flight(tmp_path):
    with _server(tmp_path) as server, server.client() as idle, server.client() as busy:
        idle.connect()
        busy.connect().envelope(Mail())
        busy.content(Mail())
        server.terminate()
        assert server.process.stdout.readline() == "stopping with 1 in flight\n"
        # The drain has begun or is about to: until then new mail is still taken, and given up again.
        while (reply := idle.envelope(Mail())) != _STOPPING:
            assert reply in {None, CONTINUE}
            idle.abort()
        assert busy.end(Mail()) == CONTINUE
        assert server.finish() == (0, "stopped, running=False\n")
        assert [data for _, data in server.stored()] == [Mail().expected]


def test_sigterm_with_a_message_that_never_ends(tmp_path):
    with _server(tmp_path, drain_timeout_s=0.5) as server, server.client() as client:
        client.connect().envelope(Mail())
        server.terminate()
        assert server.finish() == (0, "stopping with 1 in flight\nstopped, running=False\n")
        assert server.stored() == []


def test_libmilter_ending_by_itself_is_told(tmp_path):
    with _server(tmp_path) as server:
        with server.client() as client:
            assert client.connect().message(Mail()) == CONTINUE
        server.process.send_signal(signal.SIGUSR1)
        while server.process.poll() is None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
                caller.connect(server.socket)  # libmilter looks when somebody connects
            time.sleep(0.05)
        assert server.finish() == (0, "stopping with 0 in flight\nstopped, running=False\n")
        assert server.events()[-1] == "died libmilter ended"


def test_killed_and_started_again_over_the_stale_socket(tmp_path):
    with _server(tmp_path) as server:
        server.process.kill()
        server.process.communicate()
        assert Path(server.socket).is_socket()
    with _server(tmp_path) as server, server.client() as client:
        assert client.connect().message(Mail()) == CONTINUE


def _start(address: str) -> None:
    MilterFront(Address.parse(address), None, MilterLimits(), None).start()


def test_a_live_socket_is_not_taken_over(server):
    with pytest.raises(MilterListenError, match="another process listens"):
        _start(f"unix:{server.socket}")
    with server.client() as client:
        assert client.connect().message(Mail()) == CONTINUE


def test_what_is_no_socket_is_not_removed(tmp_path):
    path = tmp_path / "precious"
    path.write_text("keep me")
    with pytest.raises(MilterListenError, match="in use"):
        _start(f"unix:{path}")
    assert path.read_text() == "keep me"


def test_no_directory(tmp_path):
    with pytest.raises(MilterListenError, match="No such file") as caught:
        _start(f"unix:{tmp_path}/absent/s")
    assert "directory" in caught.value.hint


def test_tcp_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(MilterListenError, match="in use"):
        _start(f"127.0.0.1:{other.getsockname()[1]}")


def test_pymilter_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "milter", None)
    with pytest.raises(MilterMissingError) as caught:
        _start("127.0.0.1:1")
    assert "mailkeep[milter]" in caught.value.hint
