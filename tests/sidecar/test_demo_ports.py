"""Ports for private servers: one that was given and is not bound yet is nobody else's."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest

from sidecar.demo.ports import free_port

_GIVEN = "from sidecar.demo.ports import free_port; print(free_port(), flush=True); input()"


def test_no_port_is_given_to_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _GIVEN], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout
        taken = int(other.stdout.readline())
        ours = free_port()
        wanted = itertools.chain((taken, ours), itertools.count(taken + 1))
        monkeypatch.setattr(random, "randint", lambda *_: next(wanted))
        assert free_port() not in (taken, ours)
        other.communicate("\n")
    monkeypatch.undo()
    monkeypatch.setattr(random, "randint", lambda *_: taken)
    assert free_port() == taken, "it ended with the other process"
