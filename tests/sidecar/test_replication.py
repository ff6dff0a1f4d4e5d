"""What a replica's thread says of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sidecar.config import Config
from sidecar.replication import Replication
from store.replicas.ship import Shipped, Shipper
from store.store import Store
from tests.store.conftest import put_message


def test_what_comes_while_a_round_is_under_way_is_not_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.parse(
        f'[store]\npath = "{tmp_path}/store"\nstream = "host"\n[lmtp]\n'
        f'[[replica]]\nurl = "file://{tmp_path}/replica"\n',
        "x",
    )
    round_, came = Shipper.round, []

    def with_mail_behind_it(self: Shipper) -> Shipped:
        shipped = round_(self)
        came.append(time.time())
        put_message(store, b"Subject: after it has looked\r\n\r\n")
        return shipped

    monkeypatch.setattr(Shipper, "round", with_mail_behind_it)
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        running = Replication(config, config.replica[0], store)
        began = time.time()
        running._try()
        assert began <= running.last_success < came[0]
