"""What the demo says after it was interrupted."""

from __future__ import annotations

import pytest

from sidecar.demo.teller import Teller


def test_it_goes_on_when_it_was_interrupted_while_it_printed(capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller()
    teller.console._enter_buffer()  # where a KeyboardInterrupt within print leaves it
    teller.title("held back")
    assert "held back" not in capsys.readouterr().out
    teller.go_on()
    teller.title("Interrupted.")
    assert "Interrupted." in capsys.readouterr().out
