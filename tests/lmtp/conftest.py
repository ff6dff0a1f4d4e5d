"""One stage for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.lmtp_stage import Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.stop()
