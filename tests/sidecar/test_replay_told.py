"""What `replay` and `undelete` make of what was asked, and what they say of it."""

from __future__ import annotations

from pathlib import Path

from store.store import Store
from tests.sidecar.test_replay import MESSAGES, SinkThread, ids, lines, run, server
from tests.store.conftest import put_message

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
