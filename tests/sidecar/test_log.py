"""One event is one line, for a terminal, the journal or a collector, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import log


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("mail").setLevel(logging.NOTSET)


def fail(logger: logging.Logger) -> None:
    try:
        int("first\nsecond")
    except ValueError:
        logger.exception("it failed")


def test_text_for_a_terminal() -> None:
    out = io.StringIO()
    log.set_up("info", "text", out)
    logger = logging.getLogger("sidecar.test")
    logger.info("from %s", "<a@example>\r\n12:00:00 error forged \x1b[31m\x9b\u2028é")
    logger.debug("not shown")
    (line,) = out.getvalue().splitlines()
    assert re.match("[0-9:]{8} ", line)
    assert line[9:] == (
        r"info sidecar.test: from <a@example>\x0d\x0a12:00:00 error forged \x1b[31m\x9b\x2028é"
    )


def test_a_line_is_too_short_to_carry_a_message() -> None:
    out = io.StringIO()
    log.set_up("info", "text", out)
    logging.getLogger("x").info("%s", "b" * 100_000)
    assert len(out.getvalue()) < log.TEXT_MAX_CHARS + 100
    assert out.getvalue().endswith("... (100000 characters)\n")


def test_json_lines() -> None:
    out = io.StringIO()
    log.set_up("info", "json", out)
    logger = logging.getLogger("sidecar.test")
    logger.warning('a "quoted" \udcff é')
    fail(logger)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["level"] == "warning"
    assert first["logger"] == "sidecar.test"
    assert first["message"] == 'a "quoted" ? é'
    assert first["time"].endswith("+00:00")
    assert second["message"] == "it failed"
    assert second["error"].startswith("Traceback")
    out.getvalue().encode()


def test_the_journal_gets_priorities_on_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        status = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.set_up("debug", "text", journal)
        logger = logging.getLogger("sidecar.test")
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
        fail(logger)
        logger.critical("c")
        journal.seek(0)
        lines = journal.read().splitlines()
    assert lines[:4] == [
        "<7>sidecar.test: d",
        "<6>sidecar.test: i",
        "<4>sidecar.test: w",
        "<3>sidecar.test: it failed",
    ]
    assert lines[-1] == "<2>sidecar.test: c"
    assert len(lines) > 6
    assert all(line.startswith("<3>") for line in lines[3:-1])


def test_an_inherited_journal_stream_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    with (tmp_path / "err").open("w+") as stream:
        log.set_up("info", "text", stream)
        logging.getLogger("x").info("i")
        stream.seek(0)
        assert not stream.read().startswith("<")


def test_levels_change_at_a_reload_and_aiosmtpd_stays_quiet() -> None:
    out = io.StringIO()
    log.set_up("warning", "text", out)
    logging.getLogger("x").info("before")
    log.set_level("debug")
    logging.getLogger("x").debug("after")
    logging.getLogger("mail.log").info("RCPT TO:<secret@example>")
    assert out.getvalue().endswith("debug x: after\n")
    assert len(out.getvalue().splitlines()) == 1


def test_setting_up_again_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.set_up("info", "text", first)
    log.set_up("info", "text", second)
    logging.getLogger("x").info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
