"""What `replay` and `undelete` make of what was asked, and what they say of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from sidecar.commands import putting_back
from store.store import Store
from tests.sidecar.test_replay import MESSAGES, SinkThread, ids, lines, run, server
from tests.store.conftest import put_message
from tests.support import restoring

__all__ = ["ids", "server"]


def test_the_limit_counts_what_is_put_back(tmp_path: Path, server: SinkThread) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        for number, message in enumerate(MESSAGES):
            for leg in ("lmtp", "milter"):
                put_message(store, message + leg.encode(), leg=leg, queue_id=b"Q%d" % number)
    result = run(tmp_path, server, "--to", "anna@example.org", "--limit", "4", "--json")
    assert result.returncode == 0, result.stderr
    assert {mail.message for mail in server.sink.delivered} == {m + b"lmtp" for m in MESSAGES[1:]}
    assert len(lines(run(tmp_path, server, "--all", "--leg", "milter", "--limit", "3", "--json"))) == 3


def configure(tmp_path: Path) -> Path:
    """With servers that nobody is at: whatever would look into a mailbox ends with 40."""
    (tmp_path / "passwords").write_text("m:x\n")
    config = tmp_path / "mailkeep.toml"
    config.write_text(
        f'[store]\npath = "{tmp_path / "store"}"\n[lmtp]\ndownstream = "127.0.0.1:1"\n'
        f'[imap]\nserver = "127.0.0.1:1"\nmaster_user = "m"\npasswords = "{tmp_path / "passwords"}"\n'
    )
    return config


@pytest.mark.parametrize(
    ("user", "more", "code", "told"),
    [
        ("anan@example.org", (), 4, "nothing was ever captured for anan@example.org"),
        (
            "anna@example.org",
            ("--until", "1h"),
            0,
            "nothing was delivered to anna@example.org in this interval",
        ),
        ("anna@example.org", (), 40, "cannot be reached"),
        ("dora@example.org", (), 0, "--imported takes what was imported"),
        ("dora@example.org", ("--imported",), 40, "cannot be reached"),
    ],
)
def test_undelete_says_why_there_is_nothing(
    tmp_path: Path, user: str, more: tuple[str, ...], code: int, told: str
) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        put_message(store, MESSAGES[0], to=(b"Anna+lists@example.org",))
        put_message(store, MESSAGES[1], to=(b"dora@example.org",), leg="import")
    result = restoring.run(configure(tmp_path), "undelete", user, "--since", "1d", *more)
    assert (result.returncode, told in result.stderr) == (code, True), result.stderr


def test_lines_of_a_mapping_without_mail_are_named(
    tmp_path: Path, server: SinkThread, ids: list[str]
) -> None:
    mapping = tmp_path / "mapping"
    mapping.write_text("Anna@example.org x@new.example\nanan@example.org y@new.example\n")
    for more in (["--dry-run"], []):
        result = run(tmp_path, server, "--mapping", str(mapping), *more)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("no mail selected is for") == 1
        assert "no mail selected is for anan@example.org" in result.stderr
    assert len(server.sink.delivered) == 5


@pytest.mark.parametrize("how", [["--via", "imap"], ["--missing-only"]])
def test_mailboxes_that_cannot_be_reached(tmp_path: Path, ids: list[str], how: list[str]) -> None:
    result = restoring.run(configure(tmp_path), "replay", "--all", "--patience", "0s", *how)
    assert result.returncode == 40, result.stderr
    assert "look at [imap]" in result.stderr


def test_system_flags_need_no_backslash(tmp_path: Path) -> None:
    config = configure(tmp_path)

    def flags(text: str) -> tuple[str, ...] | None:
        return putting_back.request(
            putting_back.Via.IMAP, config=config, downstream=None, folder="", flags=text, connections=1,
            rate=0, patience="1s",
        ).flags  # fmt: skip

    assert flags("Seen, \\flagged,$Forwarded Later") == ("\\Seen", "\\Flagged", "$Forwarded", "Later")
    for text in ("\\Sene", "\\Recent", "Seen (x)", "\\*"):
        with pytest.raises(typer.BadParameter, match=r"is none of \\Seen"):
            flags(text)


def test_a_report_writes_over_nothing_but_a_report(
    tmp_path: Path, server: SinkThread, ids: list[str]
) -> None:
    file = tmp_path / "file"
    for text in ("a letter\n", '{"to": 1}\n', "[]"):
        file.write_text(text)
        result = run(tmp_path, server, ids[0], "--report", str(file))
        assert (result.returncode, "is no report" in result.stderr) == (2, True), result.stderr
        assert file.read_text() == text
    assert not server.sink.delivered
    file.write_text("")
    for _ in range(2):
        assert run(tmp_path, server, ids[1], "--report", str(file)).returncode == 0
        assert len(file.read_text().splitlines()) == 2


def test_the_id_of_submitted_mail_is_told(tmp_path: Path, server: SinkThread) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        submitted = put_message(store, MESSAGES[0], leg="milter", queue_id=b"4Qx").id.hex()
        alone = put_message(store, MESSAGES[1], leg="milter", queue_id=b"4Qy").id.hex()
        delivered = put_message(store, b"Received: x\r\n" + MESSAGES[0], queue_id=b"4Qx").id.hex()
    result = run(tmp_path, server, submitted, alone, delivered)
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "as it was submitted" in line]
    assert len(told) == 2
    assert told[0].startswith(f"mailkeep: {submitted[:10]} ")
    assert told[0].endswith(f"as delivered: {delivered[:10]}")
    assert "no delivery of it is known" in told[1]
