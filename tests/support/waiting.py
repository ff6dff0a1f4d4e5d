"""Waiting for what another task brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0
"""what a test waits for before it fails; nothing here takes a fraction of it"""


async def until(condition: Callable[[], object]) -> None:
    """Until `condition` holds. Raises TimeoutError when it never does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - most of what is waited for sets no event
            await asyncio.sleep(0.005)
