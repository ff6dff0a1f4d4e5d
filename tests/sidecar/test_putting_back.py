"""What replay and undelete are asked for, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from sidecar.commands.putting_back import _flags
from sidecar.select import Selection, select
from store.store import Store
from tests.store.conftest import put_message
from tests.support.mailstore import MESSAGE


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ("Seen", ("\\Seen",)),
        (r"\seen,$Label1", ("\\Seen", "$Label1")),
        ("flagged answered", ("\\Flagged", "\\Answered")),
        ("Junk", ("Junk",)),
    ],
)
def test_flags_of_the_system_do_without_their_backslash(asked: str, flags: tuple[str, ...]) -> None:
    assert _flags(asked) == flags


def test_a_flag_that_imap_does_not_know_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="Nonsense"):
        _flags(r"\Nonsense")


def test_the_limit_counts_the_legs_that_are_meant(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        for number in range(4):
            put_message(store, MESSAGE + b"%d" % number)
            put_message(store, MESSAGE + b"%d" % number, leg="milter")
        store.settle_index()
        found = list(select(store, Selection(legs=("import", "lmtp"), limit=3)))
        assert [one.delivery.leg for one in found] == ["lmtp"] * 3
