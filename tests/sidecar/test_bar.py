"""What a long command says of how far it is."""

from __future__ import annotations

import re

import pytest

from sidecar import bar
from sidecar.bar import Bar


def test_plain_lines_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar, "_PLAIN_INTERVAL_S", 0.0)
    with Bar("replay", 4) as progress:
        progress.advance()
        progress.advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert re.fullmatch(r"mailkeep: replay: 1 of 4, [\d.]+/s, \d+s left", first)
    assert second.startswith("mailkeep: replay: 3 of 4, ")


def test_nothing_at_all_when_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar, "_PLAIN_INTERVAL_S", 0.0)
    with Bar("import", quiet=True) as progress:
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_an_unknown_total_is_not_made_up() -> None:
    with Bar("import", quiet=True) as progress:
        progress.advance(7)
        assert re.fullmatch(r"import: 7, [\d.]+/s", progress.line())


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0s"), (59.6, "1m00s"), (190, "3m10s"), (7500, "2h05m")])
def test_time_left_reads_at_a_glance(seconds: float, told: str) -> None:
    assert bar._clock(seconds) == told
